//! The arguments of every kind of machine, taken by the installed QEMU: its disks are served
//! over vhost-user and NBD by qemu-storage-daemon, and QMP says that the guest runs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use model::{Bus, Bytes, DirectBoot, DiskSpec, Generation, VmSpec};
use pollux_qemu::{Accelerator, Disk, Firmware, Machine, Qemu, Qmp, RunPaths, Unplugged};
use tokio::process::{Child, Command};

const LIMIT: Duration = Duration::from_secs(60);
const DISK: u64 = 64 << 20;

fn disk(slot: u8, bus: Bus) -> DiskSpec {
    DiskSpec::new(format!("disk{slot}.raw").into(), Bytes(DISK), bus, slot)
}

fn spec(generation: Generation, secure_boot: bool, direct_boot: Option<DirectBoot>) -> VmSpec {
    let other = Bus::default_of(generation);
    let other = if other == Bus::Virtio {
        Bus::Scsi
    } else {
        other
    };
    let disks = vec![disk(0, Bus::Virtio), disk(1, other)];
    let name = "a test".parse().unwrap();
    VmSpec::new(
        name,
        generation,
        2,
        Bytes(256 << 20),
        secure_boot,
        direct_boot,
        disks,
    )
    .unwrap()
}

/// Serves a disk from a raw file beside its socket.
async fn serve(run: &RunPaths, disk: &DiskSpec) -> Child {
    let (socket, export) = match disk.bus {
        Bus::Virtio => (
            run.vhost_user(disk.slot),
            "type=vhost-user-blk,num-queues=2",
        ),
        Bus::Scsi | Bus::Ide => (run.nbd(disk.slot), "type=nbd,name=guest"),
    };
    let file = socket.with_extension("raw");
    File::create(&file).unwrap().set_len(DISK).unwrap();
    let mut command = Command::new("qemu-storage-daemon");
    let node = format!("driver=file,node-name=d,filename={}", file.display());
    command.args(["--blockdev", &node]);
    let address = format!("addr.type=unix,addr.path={}", socket.display());
    let export = format!("{export},id=e,node-name=d,writable=on");
    match disk.bus {
        Bus::Virtio => command.args(["--export", &format!("{export},{address}")]),
        Bus::Scsi | Bus::Ide => {
            command.args(["--nbd-server", &address]);
            command.args(["--export", &export])
        }
    };
    command.stdin(Stdio::null()).kill_on_drop(true);
    let daemon = command.spawn().unwrap();
    let wait = async {
        while !is_listening(&socket) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("it listens");
    daemon
}

/// Whether a socket there takes connections; the file is there before. Were it connected to, that would
/// be taken for the guest.
fn is_listening(path: &Path) -> bool {
    /// `__SO_ACCEPTCON` of the kernel.
    const LISTENS: &str = "00010000";
    let sockets = std::fs::read("/proc/net/unix").unwrap();
    String::from_utf8_lossy(&sockets).lines().any(|line| {
        // Number, references, protocol, flags, type, state, inode, path.
        let mut words = line.split_whitespace();
        words.nth(3) == Some(LISTENS) && words.next_back() == path.to_str()
    })
}

async fn runs(spec: &VmSpec) {
    // With a comma, which QEMU's options must carry.
    let folder = tempfile::Builder::new()
        .prefix("pollux,qemu")
        .tempdir()
        .unwrap();
    // qemu-storage-daemon's options are not escaped here.
    let sockets = tempfile::tempdir().unwrap();
    let mut run = RunPaths::new(folder.path(), folder.path());
    run.disks = sockets.path().to_owned();
    let firmware = Firmware::find(spec.secure_boot).unwrap();
    firmware.prepare_variables(&run.variables).unwrap();
    let accelerator = Accelerator::Tcg {
        reason: "the test says so".to_owned(),
    };
    let machine = Machine {
        spec,
        accelerator: &accelerator,
        run: &run,
        firmware: Some(&firmware),
    };
    let mut daemons = Vec::new();
    for disk in &spec.disks {
        daemons.push(serve(&run, disk).await);
    }
    let qemu = Qemu::find().await.unwrap();
    let mut guest = Command::new(qemu.program)
        .args(machine.arguments().unwrap())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let qmp = tokio::select! {
        qmp = Qmp::connect(&run.qmp, LIMIT) => qmp.unwrap(),
        ended = guest.wait() => panic!("QEMU did not take the arguments: {}", ended.unwrap()),
    };
    assert!(qmp.query_status().await.unwrap().running);
    let id = qmp.query_vm_generation_id().await.unwrap();
    assert_eq!(id, spec.generation_id);
    let mut plugged = qmp.plugged().await.unwrap();
    plugged.sort_unstable();
    assert_eq!(plugged, [0, 1]);
    assert!(qmp.without_room().await.unwrap().is_empty());
    for (slot, bus) in [(2, Bus::Virtio), (15, Bus::Scsi)] {
        let more = disk(slot, bus);
        let device = Disk::new(spec, &more, &run).unwrap();
        if bus == Bus::Scsi {
            assert!(qmp.plug(&device).await.is_err(), "nobody serves it");
        }
        daemons.push(serve(&run, &more).await);
        qmp.plug(&device).await.unwrap();
        assert!(qmp.plugged().await.unwrap().contains(&slot));
    }
    // No system runs that would answer for a PCI device.
    assert_eq!(qmp.unplug(15, LIMIT).await.unwrap(), Unplugged::Gone);
    assert_eq!(qmp.unplug(15, LIMIT).await.unwrap(), Unplugged::Gone);
    assert!(!qmp.plugged().await.unwrap().contains(&15));
    assert!(run.serial_log.exists() && run.console.exists());
    qmp.quit().await.unwrap();
    assert!(guest.wait().await.unwrap().success());
}

#[tokio::test]
async fn generation_1_starts() {
    runs(&spec(Generation::One, false, None)).await;
}

#[tokio::test]
async fn generation_2_starts_with_secure_boot() {
    runs(&spec(Generation::Two, true, None)).await;
}

#[tokio::test]
async fn generation_2_starts_without_secure_boot() {
    runs(&spec(Generation::Two, false, None)).await;
}

#[tokio::test]
async fn a_kernel_is_started_directly() {
    let folder = tempfile::tempdir().unwrap();
    // QEMU looks at the setup header only: what runs here is a boot sector that loops.
    let kernel: PathBuf = folder.path().join("kernel");
    let mut image = vec![0; 8192];
    image[0x1f1] = 4;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0c, 0x02]);
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x214..0x218].copy_from_slice(&0x0010_0000_u32.to_le_bytes());
    std::fs::write(&kernel, image).unwrap();
    for generation in [Generation::One, Generation::Two] {
        let direct = DirectBoot {
            kernel: kernel.clone(),
            initrd: None,
            cmdline: "console=ttyS0".to_owned(),
        };
        runs(&spec(generation, true, Some(direct))).await;
    }
}
