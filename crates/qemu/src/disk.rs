//! What a disk looks like to QEMU: its connection to diskd, and the device that the guest sees.
//!
//! | bus | connection | device | can come and go |
//! |---|---|---|---|
//! | virtio | vhost-user, a chardev that reconnects | `vhost-user-blk-pci` | yes |
//! | scsi | NBD on a Unix socket, reconnecting | `scsi-hd` on the one `virtio-scsi-pci` | yes |
//! | ide | the same | `ide-hd` on the PIIX3's two channels | no |
//!
//! Generation 2 has a PCIe root port for each slot, since only what is in one can come and go;
//! generation 1 gives each slot a place on the PCI bus, so that a guest finds it again.
//!
//! Over NBD QEMU keeps the guest's requests while diskd is away, for [`RECONNECT_LIMIT_S`], and
//! holds the guest still when a disk fails or has no room (`werror=stop`): nothing is told to a
//! guest that would make it give a disk up.
//!
//! The same JSON goes to the command line and to `device_add`.

use model::{Bus, DiskSpec, Generation, MAX_DISKS, VmSpec};
use serde_json::{Value, json};

use crate::machine::{MachineError, RunPaths, socket};

/// More queues than this gain nothing over one owner thread per disk.
const MAX_QUEUES: u32 = 4;
/// How long QEMU waits before it asks a diskd that went away again, in milliseconds.
pub(crate) const RECONNECT_MS: u32 = 100;
/// How long QEMU tries to open a disk whose NBD server went away meanwhile, in seconds: short, for it does
/// nothing else then, and at a hot-plug the guest waits.
const OPEN_LIMIT_S: u32 = 5;
/// How long QEMU keeps requests for an NBD server that went away, in seconds.
const RECONNECT_LIMIT_S: u32 = 24 * 3600;
/// Functions of a PCI device.
const FUNCTIONS: u8 = 8;
/// The first place of root ports on q35's bus; the ones before are for single devices.
const FIRST_PORT: u8 = 0x10;
/// The first place of disks on i440fx's bus.
const FIRST_PLACE: u8 = 8;
/// The SCSI controller.
const SCSI: &str = "scsi";

/// How QEMU reaches diskd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Back {
    /// At this socket.
    VhostUser(String),
    /// At this socket.
    Nbd(String),
}

/// A disk, as QEMU is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    bus: Bus,
    pub(crate) slot: u8,
    serial: String,
    generation: Generation,
    queues: u32,
    pub(crate) back: Back,
}

impl Disk {
    /// `disk` of the machine `spec`, with its sockets in `run`.
    ///
    /// # Errors
    /// [`MachineError`] for a path that cannot be told.
    pub fn new(spec: &VmSpec, disk: &DiskSpec, run: &RunPaths) -> Result<Self, MachineError> {
        let back = match disk.bus {
            Bus::Virtio => Back::VhostUser(socket(&run.vhost_user(disk.slot))?.to_owned()),
            Bus::Scsi | Bus::Ide => Back::Nbd(socket(&run.nbd(disk.slot))?.to_owned()),
        };
        Ok(Self {
            bus: disk.bus,
            slot: disk.slot,
            serial: disk.serial(),
            generation: spec.generation,
            queues: spec.processors.clamp(1, MAX_QUEUES),
            back,
        })
    }

    /// Name of the connection: of the chardev, or of the block node.
    pub(crate) fn node(&self) -> String {
        node_of(self.slot)
    }

    /// Id of the device.
    #[must_use]
    pub fn id(&self) -> String {
        id_of(self.slot)
    }

    /// The chardev to diskd, as `chardev-add` takes it.
    pub(crate) fn chardev(&self, path: &str) -> Value {
        json!({
            "id": self.node(),
            "backend": {"type": "socket", "data": {
                "addr": {"type": "unix", "data": {"path": path}},
                "server": false,
                "reconnect-ms": RECONNECT_MS,
            }},
        })
    }

    /// The block node at diskd.
    pub(crate) fn blockdev(&self, path: &str) -> Value {
        json!({
            "driver": "nbd",
            "node-name": self.node(),
            "server": {"type": "unix", "path": path},
            "export": "guest",
            "open-timeout": OPEN_LIMIT_S,
            "reconnect-delay": RECONNECT_LIMIT_S,
            "discard": "unmap",
        })
    }

    /// The device; `place` in the boot order, for what is there at the start.
    pub(crate) fn device(&self, place: Option<usize>) -> Value {
        let (node, id) = (self.node(), self.id());
        let mut device = match self.bus {
            Bus::Virtio => json!({
                "driver": "vhost-user-blk-pci", "chardev": node, "num-queues": self.queues,
            }),
            Bus::Scsi => json!({
                "driver": "scsi-hd", "drive": node, "bus": format!("{SCSI}.0"),
                "scsi-id": self.slot, "lun": 0,
            }),
            Bus::Ide => json!({
                "driver": "ide-hd", "drive": node, "bus": format!("ide.{}", self.slot / 2),
                "unit": self.slot % 2,
            }),
        };
        device["id"] = id.into();
        match (self.bus, self.generation) {
            (Bus::Virtio, Generation::One) => {
                device["addr"] = format!("{:x}", FIRST_PLACE + self.slot).into();
            }
            (Bus::Virtio, Generation::Two) => {
                device["bus"] = port_of(self.slot).into();
                device["disable-legacy"] = "on".into();
            }
            (Bus::Scsi | Bus::Ide, _) => {
                device["serial"] = self.serial.clone().into();
                device["write-cache"] = "on".into();
                for error in ["werror", "rerror"] {
                    device[error] = "stop".into();
                }
            }
        }
        if let Some(place) = place {
            device["bootindex"] = place.into();
        }
        device
    }
}

pub(crate) fn node_of(slot: u8) -> String {
    format!("disk{slot}")
}

pub(crate) fn id_of(slot: u8) -> String {
    format!("drive{slot}")
}

/// The slot of the disk whose block node is `node`.
pub(crate) fn slot_of_node(node: &str) -> Option<u8> {
    node.strip_prefix("disk")?.parse().ok()
}

fn port_of(slot: u8) -> String {
    format!("port{slot}")
}

/// What disks are plugged into, but for the PIIX3, which is a part of generation 1's chipset.
pub(crate) fn controllers(generation: Generation) -> Vec<Value> {
    let mut controller = json!({"driver": "virtio-scsi-pci", "id": SCSI});
    if generation == Generation::One {
        return vec![controller];
    }
    controller["disable-legacy"] = "on".into();
    #[allow(clippy::cast_possible_truncation, reason = "16")]
    let slots = 0..MAX_DISKS as u8;
    let ports = slots.map(|slot| {
        let (place, function) = (FIRST_PORT + slot / FUNCTIONS, slot % FUNCTIONS);
        json!({
            "driver": "pcie-root-port", "id": port_of(slot), "bus": "pcie.0",
            "addr": format!("{place:x}.{function}"), "multifunction": true,
            "chassis": u32::from(slot) + 1,
            // The 64 KiB of I/O space would not do for all, and modern virtio needs none.
            "io-reserve": 0,
        })
    });
    ports.chain([controller]).collect()
}
