//! `vm.toml`, which users write: read strictly, written again, read as the same.

use std::path::PathBuf;

use jiff::Timestamp;
use model::{
    Bus, Bytes, CheckpointId, CheckpointSpec, DirectBoot, DiskId, DiskSpec, Generation,
    OverlaySpec, VmSpec,
};

/// Keys and values.
pub const WORDS: &[&str] = &[
    "version = 1",
    "generation = 1",
    "generation = 2",
    "generation_id",
    "processors",
    "memory",
    "secure_boot",
    "[direct_boot]",
    "kernel",
    "initrd",
    "cmdline",
    "[[disk]]",
    "file",
    "size",
    "GiB",
    "bus",
    "slot",
    "overlays",
    "[[checkpoint]]",
];

/// One text.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match VmSpec::from_toml(text) {
        Ok(spec) => {
            let again = VmSpec::from_toml(&spec.to_toml());
            assert_eq!(again.expect("what was written is read"), spec);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// VMs of both generations, with disks on every bus and a checkpoint.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let disk = |name: &str, bus, slot| DiskSpec {
        id: DiskId::random(),
        file: PathBuf::from(name),
        size: Bytes(1 << 30),
        bus,
        slot,
        overlays: Vec::new(),
    };
    let boot = DirectBoot {
        kernel: "/boot/vmlinuz".into(),
        initrd: Some("/boot/initrd.img".into()),
        cmdline: "quiet".to_owned(),
    };
    let vm = |number: u8, boot, disks| {
        let generation = Generation::try_from(number).expect("there is such a generation");
        let name = "web".parse().expect("a good name");
        let memory = Bytes(1 << 30);
        VmSpec::new(name, generation, 2, memory, number == 2, boot, disks).expect("a good VM")
    };
    let old = vm(1, Some(boot), vec![disk("disk0.raw", Bus::Ide, 0)]);
    let disks = vec![
        disk("a.raw", Bus::Virtio, 0),
        disk("/srv/b.raw", Bus::Scsi, 1),
    ];
    let mut new = vm(2, None, disks);
    let checkpoint = CheckpointSpec {
        id: CheckpointId::random(),
        name: "before the update".parse().expect("a good name"),
        time: Timestamp::UNIX_EPOCH,
        merging: false,
    };
    for (number, disk) in new.disks.iter_mut().enumerate() {
        disk.overlays.push(OverlaySpec {
            checkpoint: checkpoint.id,
            file: PathBuf::from(format!("disk{number}-1")),
        });
    }
    new.checkpoints.push(checkpoint);
    [old, new]
        .iter()
        .map(|vm| vm.to_toml().into_bytes())
        .collect()
}
