//! From a specification to QEMU's arguments, per generation.
//!
//! | | generation 1 | generation 2 |
//! |---|---|---|
//! | chipset | i440fx (`pc`) | q35 |
//! | firmware | SeaBIOS | OVMF in pflash, behind SMM when Secure Boot is on |
//! | direct kernel boot | by SeaBIOS | by SeaBIOS too: quick, no UEFI, no Secure Boot |
//! | disks | IDE, virtio-scsi, virtio-blk over vhost-user | virtio-scsi, virtio-blk, modern interface only |
//! | plugged in and out while it runs | into PCI slots | into PCIe root ports, one per disk |
//! | left of the PC | keyboard controller, floppy controller, HPET | none of these, no SATA, no SMBus |
//! | console | COM1 | COM1 |
//!
//! Both have a VM-Generation ID, a random number generator, and memory in a shared memfd,
//! which vhost-user needs, and a SCSI controller, so that SCSI disks can come while it runs. What
//! a disk looks like to QEMU is [`crate::disk`]'s. Neither has a display adapter or a network
//! adapter yet.
//!
//! QEMU runs without default devices, without user configuration, and with all of `-sandbox`.

use std::path::{Path, PathBuf};

use model::{Generation, VmSpec};

use crate::disk::{self, Back, Disk, RECONNECT_MS};
use crate::{Accelerator, Firmware};

/// Most bytes in the path of a Unix socket, without the closing NUL: `sun_path`, unix(7).
const MAX_SOCKET_PATH: usize = 107;
/// Cache of translated code in MiB; QEMU's own default is 1 GiB per guest.
const TCG_CACHE_MIB: u32 = 256;

/// The files and sockets of a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPaths {
    /// QMP socket, made by QEMU; [`crate::Qmp::connect`].
    pub qmp: PathBuf,
    /// Socket of the serial console, made by QEMU.
    pub console: PathBuf,
    /// What the guest wrote to its serial port, appended.
    pub serial_log: PathBuf,
    /// The VM's own UEFI variables; see [`Firmware::prepare_variables`].
    pub variables: PathBuf,
    /// Folder of diskd's sockets.
    pub disks: PathBuf,
}

impl RunPaths {
    /// Sockets in the run folder `run`, lasting files in the VM's folder `folder`.
    #[must_use]
    pub fn new(run: &Path, folder: &Path) -> Self {
        Self {
            qmp: run.join("qmp.sock"),
            console: run.join("console.sock"),
            serial_log: folder.join("serial.log"),
            variables: folder.join("uefi-variables.fd"),
            disks: run.to_owned(),
        }
    }

    /// diskd's vhost-user socket of the disk in `slot`.
    #[must_use]
    pub fn vhost_user(&self, slot: u8) -> PathBuf {
        self.disks.join(format!("disk{slot}.sock"))
    }

    /// diskd's NBD socket of the disk in `slot`.
    #[must_use]
    pub fn nbd(&self, slot: u8) -> PathBuf {
        self.disks.join(format!("nbd{slot}.sock"))
    }
}

/// All that a guest's QEMU is made of.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// What the VM is.
    pub spec: &'a VmSpec,
    /// What runs its processors.
    pub accelerator: &'a Accelerator,
    /// Its files and sockets.
    pub run: &'a RunPaths,
    /// UEFI; needed for generation 2 unless it boots a kernel directly.
    pub firmware: Option<&'a Firmware>,
}

/// A machine that cannot be put into arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// QEMU and its supervisor take text.
    #[error("path {} is not UTF-8", .0.display())]
    NotText(PathBuf),
    /// Linux does not take it.
    #[error(
        "socket path {} has {} bytes, and Linux takes at most {MAX_SOCKET_PATH}: choose a \
         shorter run folder",
        .0.display(),
        .0.as_os_str().len()
    )]
    SocketPathTooLong(PathBuf),
    /// Generation 2 without firmware.
    #[error("generation 2 needs UEFI firmware (secure boot: {secure_boot})")]
    Firmware {
        /// Which kind.
        secure_boot: bool,
    },
}

impl Machine<'_> {
    /// QEMU's arguments, without the program.
    ///
    /// # Errors
    /// [`MachineError`] when they cannot be made.
    pub fn arguments(&self) -> Result<Vec<String>, MachineError> {
        let mut args = Arguments::default();
        self.machine(&mut args);
        self.boot(&mut args)?;
        self.memory_and_processors(&mut args);
        self.control(&mut args)?;
        self.disks(&mut args)?;
        args.option(
            "-device",
            format!("vmgenid,guid={}", self.spec.generation_id),
        );
        args.option("-device", format!("virtio-rng-pci{}", self.modern()));
        Ok(args.0)
    }

    /// Whether UEFI starts it.
    fn uefi(&self) -> bool {
        self.spec.generation == Generation::Two && self.spec.direct_boot.is_none()
    }

    /// Generation 2 has no guest that needs the interface of before virtio 1.0.
    fn modern(&self) -> &'static str {
        match self.spec.generation {
            Generation::One => "",
            Generation::Two => ",disable-legacy=on",
        }
    }

    fn machine(&self, args: &mut Arguments) {
        let spec = self.spec;
        // `top -H` shows which threads are the guest's processors.
        let name = escape(spec.name.as_str());
        args.option("-name", format!("guest={name},debug-threads=on"));
        args.option("-uuid", spec.id.to_string());
        for flag in ["-nodefaults", "-no-user-config"] {
            args.flag(flag);
        }
        args.option("-display", "none");
        args.option("-nic", "none");
        args.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        args.option("-msg", "timestamp=on");
        let chipset = match spec.generation {
            Generation::One => "pc",
            Generation::Two => "q35,sata=off,smbus=off,i8042=off,hpet=off",
        };
        let smm = if self.uefi() && spec.secure_boot {
            ",smm=on"
        } else {
            ",smm=off"
        };
        args.option(
            "-machine",
            format!(
                "{chipset}{smm},vmport=off,usb=off,graphics=off,dump-guest-core=off,\
                 mem-merge=off,memory-backend=ram"
            ),
        );
        match self.accelerator {
            Accelerator::Kvm => {
                args.option("-accel", "kvm");
                args.option("-cpu", "host");
            }
            Accelerator::Tcg { .. } => {
                args.option(
                    "-accel",
                    format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}"),
                );
                args.option("-cpu", "max");
            }
        }
        args.option("-rtc", "base=utc");
    }

    fn boot(&self, args: &mut Arguments) -> Result<(), MachineError> {
        args.option("-boot", "menu=off,strict=on");
        if let Some(direct) = &self.spec.direct_boot {
            args.option("-kernel", text(&direct.kernel)?);
            if let Some(initrd) = &direct.initrd {
                args.option("-initrd", text(initrd)?);
            }
            args.option("-append", direct.cmdline.clone());
            return Ok(());
        }
        if !self.uefi() {
            return Ok(());
        }
        let secure_boot = self.spec.secure_boot;
        let firmware = self
            .firmware
            .filter(|firmware| firmware.secure_boot == secure_boot)
            .ok_or(MachineError::Firmware { secure_boot })?;
        if secure_boot {
            // Only code in SMM may write the variables, or a guest could enrol its own keys.
            args.option("-global", "driver=cfi.pflash01,property=secure,value=on");
            // Waking from S3 would enter code that SMM does not guard.
            args.option("-global", "ICH9-LPC.disable_s3=1");
        }
        for (unit, file, access) in [(0, &firmware.code, "on"), (1, &self.run.variables, "off")] {
            let file = escape(text(file)?);
            args.option(
                "-drive",
                format!("if=pflash,unit={unit},format=raw,readonly={access},file={file}"),
            );
        }
        Ok(())
    }

    fn memory_and_processors(&self, args: &mut Arguments) {
        let bytes = self.spec.memory.0;
        args.option("-m", format!("size={bytes}B"));
        args.option(
            "-object",
            format!("memory-backend-memfd,id=ram,size={bytes}B,share=on,merge=off,dump=off"),
        );
        args.option("-smp", self.spec.processors.to_string());
    }

    fn control(&self, args: &mut Arguments) -> Result<(), MachineError> {
        let qmp = escape(socket(&self.run.qmp)?);
        args.option(
            "-chardev",
            format!("socket,id=qmp,path={qmp},server=on,wait=off"),
        );
        args.option("-mon", "chardev=qmp,mode=control");
        let console = escape(socket(&self.run.console)?);
        let log = escape(text(&self.run.serial_log)?);
        args.option(
            "-chardev",
            format!(
                "socket,id=console,path={console},server=on,wait=off,logfile={log},logappend=on"
            ),
        );
        args.option("-device", "isa-serial,chardev=console");
        Ok(())
    }

    fn disks(&self, args: &mut Arguments) -> Result<(), MachineError> {
        for device in disk::controllers(self.spec.generation) {
            args.option("-device", device.to_string());
        }
        for (n, spec) in self.spec.disks.iter().enumerate() {
            // The kernel that is booted directly has the first place already.
            let place = n + usize::from(self.spec.direct_boot.is_some());
            let disk = Disk::new(self.spec, spec, self.run)?;
            match &disk.back {
                Back::VhostUser(path) => {
                    let (id, path) = (disk.node(), escape(path));
                    args.option(
                        "-chardev",
                        format!("socket,id={id},path={path},reconnect-ms={RECONNECT_MS}"),
                    );
                }
                Back::Nbd(path) => args.option("-blockdev", disk.blockdev(path).to_string()),
            }
            args.option("-device", disk.device(Some(place)).to_string());
        }
        Ok(())
    }
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }
}

/// A comma ends a value in QEMU's options, two stand for one.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

pub(crate) fn text(path: &Path) -> Result<&str, MachineError> {
    path.to_str()
        .ok_or_else(|| MachineError::NotText(path.to_owned()))
}

pub(crate) fn socket(path: &Path) -> Result<&str, MachineError> {
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(MachineError::SocketPathTooLong(path.to_owned()));
    }
    text(path)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
