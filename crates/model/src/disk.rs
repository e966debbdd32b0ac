//! Disks and checkpoints, as `vm.toml` says them, and the rules between them.
//!
//! ```text
//!   checkpoints:    a          b            oldest first
//!   disk 0:  base <- overlay(a) <- overlay(b) <== guest
//!   disk 1:  base              <- overlay(b) <== guest     attached after a
//! ```
//!
//! `overlay(c)` holds what was written since checkpoint `c`, so what lies below it is the disk as
//! it was at `c`. A disk that was attached after a checkpoint has no overlay of it.

use std::collections::HashSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::spec::{MAX_DISKS, SpecError, value};
use crate::{BLOCK_SIZE, Bytes, CheckpointId, DiskId, Generation};

const MAX_DISK: Bytes = Bytes(64 << 40);
/// Most checkpoints of a VM, as in Hyper-V.
pub const MAX_CHECKPOINTS: usize = 50;
/// Places of the two IDE channels.
const IDE_SLOTS: u8 = 4;
/// In place of a slot that a file of before there were slots does not say.
const UNSAID: u8 = u8::MAX;

/// What a disk is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bus {
    /// virtio-blk, the fastest; plugged in and out while the guest runs.
    #[default]
    Virtio,
    /// A disk of the virtio-scsi controller; plugged in and out while the guest runs.
    Scsi,
    /// The PC's own controller, of generation 1: for guests without drivers for the others.
    Ide,
}

impl Bus {
    /// What a new disk of a VM is plugged into, unless told otherwise.
    #[must_use]
    pub fn default_of(generation: Generation) -> Self {
        match generation {
            Generation::One => Self::Ide,
            Generation::Two => Self::Virtio,
        }
    }

    /// Whether a disk can come and go while the guest runs.
    #[must_use]
    pub fn is_hot(self) -> bool {
        self != Self::Ide
    }

    /// The slots of this bus: numbers below this one.
    #[must_use]
    pub fn slots(self) -> u8 {
        match self {
            Self::Ide => IDE_SLOTS,
            #[allow(clippy::cast_possible_truncation, reason = "16")]
            Self::Virtio | Self::Scsi => MAX_DISKS as u8,
        }
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
            Self::Ide => "ide",
        })
    }
}

impl FromStr for Bus {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "virtio" => Ok(Self::Virtio),
            "scsi" => Ok(Self::Scsi),
            "ide" => Ok(Self::Ide),
            other => Err(value("bus", other, "it must be virtio, scsi or ide")),
        }
    }
}

/// A virtual disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Its identity, the same on both hosts.
    pub id: DiskId,
    /// The raw file, relative to the VM's folder, or absolute.
    pub file: PathBuf,
    /// Size that the guest sees; a multiple of 4 KiB.
    pub size: Bytes,
    /// What it is plugged into; virtio in files of before there was a choice.
    #[serde(default)]
    pub bus: Bus,
    /// Its place there, and its number for people; unique in the VM, whatever the bus.
    #[serde(default = "unsaid")]
    pub slot: u8,
    /// What was written since which checkpoint, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlays: Vec<OverlaySpec>,
}

fn unsaid() -> u8 {
    UNSAID
}

impl DiskSpec {
    /// A new disk without a checkpoint.
    #[must_use]
    pub fn new(file: PathBuf, size: Bytes, bus: Bus, slot: u8) -> Self {
        Self {
            id: DiskId::random(),
            file,
            size,
            bus,
            slot,
            overlays: Vec::new(),
        }
    }

    /// The serial number that the guest sees: the first 20 hex digits of the id, as many as
    /// virtio-blk and IDE take.
    #[must_use]
    pub fn serial(&self) -> String {
        let mut serial = self.id.0.simple().to_string();
        serial.truncate(20);
        serial
    }
}

/// What was written to a disk since a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlaySpec {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Its two files without their endings `.overlay` and `.map`, relative to the VM's folder.
    pub file: PathBuf,
}

/// A name of a checkpoint, safe in tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointName(String);

impl CheckpointName {
    const RULE: &'static str = "1 to 100 letters, digits, spaces or `._-:()`, the first a letter or \
        a digit, the last no space, and not a UUID";

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CheckpointName {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = (1..=100).contains(&text.chars().count())
            && text.starts_with(char::is_alphanumeric)
            && !text.ends_with(' ')
            && text
                .chars()
                .all(|c| c.is_alphanumeric() || " ._-:()".contains(c))
            // A name that reads as an id could not be told from one on the command line.
            && uuid::Uuid::parse_str(text).is_err();
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(value("checkpoint.name", text, Self::RULE))
        }
    }
}

impl TryFrom<String> for CheckpointName {
    type Error = SpecError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CheckpointName> for String {
    fn from(name: CheckpointName) -> Self {
        name.0
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// All disks of a VM as they were at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSpec {
    /// Its identity.
    pub id: CheckpointId,
    /// Its name, unique in the VM.
    pub name: CheckpointName,
    /// When it was made.
    pub time: Timestamp,
    /// It is to go: what was written since is being merged into what lies below. It cannot be
    /// applied any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merging: bool,
}

/// Gives the disks of a file of before there were slots their places.
pub(crate) fn say_slots(disks: &mut [DiskSpec]) {
    for (n, disk) in disks.iter_mut().enumerate() {
        if disk.slot == UNSAID {
            disk.slot = u8::try_from(n).unwrap_or(UNSAID);
        }
    }
}

/// The lowest slot of `bus` that no disk has; none when all are taken.
#[must_use]
pub fn free_slot(disks: &[DiskSpec], bus: Bus) -> Option<u8> {
    (0..bus.slots()).find(|slot| disks.iter().all(|disk| disk.slot != *slot))
}

pub(crate) fn check(
    generation: Generation,
    disks: &[DiskSpec],
    checkpoints: &[CheckpointSpec],
) -> Result<(), SpecError> {
    if disks.len() > MAX_DISKS {
        return Err(value("disk", disks.len(), "a VM has at most 16 disks"));
    }
    check_checkpoints(checkpoints)?;
    let (mut ids, mut files, mut slots) = (HashSet::new(), HashSet::new(), HashSet::new());
    for disk in disks {
        let rule = "it must be 4 KiB to 64 TiB and a multiple of 4 KiB";
        if disk.size.0 == 0 || disk.size > MAX_DISK || disk.size.0 % BLOCK_SIZE != 0 {
            return Err(value("disk.size", disk.size, rule));
        }
        if !ids.insert(disk.id) {
            return Err(value("disk.id", disk.id, "two disks have the same id"));
        }
        let file = disk.file.display();
        if !(is_inside(&disk.file) || disk.file.is_absolute()) {
            let rule = "it must be absolute or lie in the VM's folder";
            return Err(value("disk.file", file, rule));
        }
        if !files.insert(&disk.file) {
            return Err(value("disk.file", file, "two disks have the same file"));
        }
        if disk.bus == Bus::Ide && generation == Generation::Two {
            let rule = "generation 2 has no IDE; take virtio or scsi";
            return Err(value("disk.bus", disk.bus, rule));
        }
        if disk.slot >= disk.bus.slots() {
            let rule = match disk.bus {
                Bus::Ide => "IDE has the slots 0 to 3",
                Bus::Virtio | Bus::Scsi => "the slots are 0 to 15",
            };
            return Err(value("disk.slot", disk.slot, rule));
        }
        if !slots.insert(disk.slot) {
            return Err(value(
                "disk.slot",
                disk.slot,
                "two disks have the same slot",
            ));
        }
        let mut later = checkpoints.iter();
        for overlay in &disk.overlays {
            let file = overlay.file.display();
            if !is_inside(&overlay.file) {
                let rule = "it must lie in the VM's folder";
                return Err(value("disk.overlays.file", file, rule));
            }
            if !files.insert(&overlay.file) {
                let rule = "two overlays have the same file";
                return Err(value("disk.overlays.file", file, rule));
            }
            if !later.any(|checkpoint| checkpoint.id == overlay.checkpoint) {
                let rule = "it must be a checkpoint of the VM, and overlays stand in the order of \
                            the checkpoints";
                let key = "disk.overlays.checkpoint";
                return Err(value(key, overlay.checkpoint, rule));
            }
        }
    }
    Ok(())
}

fn check_checkpoints(checkpoints: &[CheckpointSpec]) -> Result<(), SpecError> {
    if checkpoints.len() > MAX_CHECKPOINTS {
        let rule = "a VM has at most 50 checkpoints";
        return Err(value("checkpoint", checkpoints.len(), rule));
    }
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    for checkpoint in checkpoints {
        if !ids.insert(checkpoint.id) {
            let rule = "two checkpoints have the same id";
            return Err(value("checkpoint.id", checkpoint.id, rule));
        }
        if !names.insert(&checkpoint.name) {
            let rule = "two checkpoints have the same name";
            return Err(value("checkpoint.name", &checkpoint.name, rule));
        }
    }
    Ok(())
}

/// Whether a path stays below the folder that it is relative to.
fn is_inside(path: &Path) -> bool {
    path != Path::new("")
        && path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(name: &str) -> CheckpointSpec {
        CheckpointSpec {
            id: CheckpointId::random(),
            name: name.parse().expect("a good name"),
            time: Timestamp::UNIX_EPOCH,
            merging: false,
        }
    }

    fn disk(slot: u8, bus: Bus, of: &[&CheckpointSpec]) -> DiskSpec {
        let overlays = of.iter().map(|checkpoint| OverlaySpec {
            checkpoint: checkpoint.id,
            file: format!("checkpoints/{slot}-{}", checkpoint.id).into(),
        });
        let file = format!("disk{slot}-{bus}.raw").into();
        let mut disk = DiskSpec::new(file, Bytes(1 << 20), bus, slot);
        disk.overlays = overlays.collect();
        disk
    }

    #[track_caller]
    fn wrong(disks: &[DiskSpec], checkpoints: &[CheckpointSpec], says: &str) {
        let error = check(Generation::One, disks, checkpoints).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    }

    #[test]
    fn slots_are_unique_and_ide_has_four_of_generation_1() {
        let ide = |slot| disk(slot, Bus::Ide, &[]);
        check(Generation::One, &[ide(0), ide(3)], &[]).expect("good");
        wrong(&[ide(4)], &[], "0 to 3");
        wrong(&[ide(1), disk(1, Bus::Scsi, &[])], &[], "same slot");
        wrong(&[disk(16, Bus::Virtio, &[])], &[], "0 to 15");
        let error = check(Generation::Two, &[ide(0)], &[]).expect_err("no IDE");
        assert!(error.to_string().contains("no IDE"), "{error}");
    }

    #[test]
    fn the_lowest_free_slot_is_given_until_all_are_taken() {
        let mut disks = vec![disk(0, Bus::Ide, &[]), disk(2, Bus::Scsi, &[])];
        assert_eq!(free_slot(&disks, Bus::Ide), Some(1));
        disks.extend([disk(1, Bus::Ide, &[]), disk(3, Bus::Ide, &[])]);
        assert_eq!(free_slot(&disks, Bus::Ide), None);
        assert_eq!(free_slot(&disks, Bus::Virtio), Some(4));
    }

    #[test]
    fn overlays_are_of_known_checkpoints_and_in_their_order() {
        let (a, b) = (checkpoint("a"), checkpoint("b"));
        let both = [a.clone(), b.clone()];
        for of in [&[&a, &b][..], &[&b], &[]] {
            check(Generation::One, &[disk(0, Bus::Ide, of)], &both).expect("good");
        }
        wrong(&[disk(0, Bus::Ide, &[&b, &a])], &both, "order");
        wrong(&[disk(0, Bus::Ide, &[&a, &b])], &both[..1], "order");
        wrong(&[], &[a.clone(), a.clone()], "same id");
        let mut named = b.clone();
        named.name = a.name.clone();
        wrong(&[], &[a.clone(), named], "same name");
        let mut out = disk(0, Bus::Ide, &[&a]);
        out.overlays[0].file = "../x".into();
        wrong(&[out], &both, "in the VM's folder");
    }
}
