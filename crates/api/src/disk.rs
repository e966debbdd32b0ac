//! Disks and checkpoints, as the API tells and takes them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use jiff::Timestamp;
use model::{Bus, Bytes, CheckpointId, CheckpointName, DiskId};
use serde::{Deserialize, Serialize};

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDisk {
    /// Its number: its place in the VM.
    pub slot: u8,
    /// What it is plugged into.
    pub bus: Bus,
    /// Its identity.
    pub id: DiskId,
    /// The file that holds its content, or what was written above a recovery point.
    pub file: PathBuf,
    /// Size that the guest sees.
    pub size: Bytes,
    /// Space that its file takes on the host.
    pub allocated: Option<Bytes>,
    /// What was written since checkpoints, the oldest first.
    pub overlays: Vec<DiskOverlay>,
    /// Requests of the guest that wait for room; none when nobody serves the disk.
    pub waiting_for_room: Option<u64>,
}

/// What was written to a disk since a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskOverlay {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Its name.
    pub name: CheckpointName,
    /// When it was made.
    pub time: Timestamp,
    /// It is being merged.
    pub merging: bool,
    /// The file that holds it.
    pub file: PathBuf,
    /// Space that it takes on the host.
    pub allocated: Option<Bytes>,
}

/// A checkpoint: all disks of a VM as they were at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its identity.
    pub id: CheckpointId,
    /// Its name.
    pub name: CheckpointName,
    /// When it was made.
    pub time: Timestamp,
    /// It is being merged.
    pub merging: bool,
    /// Space that what was written since takes, on all disks.
    pub allocated: Bytes,
}

/// Make a disk in the VM's folder and plug it in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateDisk {
    /// Size that the guest sees.
    pub size: Bytes,
    /// What it is plugged into. When absent: as for a new VM, and SCSI where IDE is full or the
    /// guest runs.
    #[serde(default)]
    pub bus: Option<Bus>,
}

/// Plug in a raw file as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachDisk {
    /// The file, an absolute path on the host.
    pub file: PathBuf,
    /// As in [`CreateDisk`].
    #[serde(default)]
    pub bus: Option<Bus>,
}

/// Unplug a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachDisk {
    /// And delete its file.
    #[serde(default)]
    pub delete: bool,
}

/// Make a disk larger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeDisk {
    /// The new size.
    pub size: Bytes,
}

/// A disk that was made larger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizedDisk {
    /// The disk.
    pub disk: VmDisk,
    /// Whether the guest that runs sees it only after its next start.
    pub at_next_start: bool,
}

/// Make a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MakeCheckpoint {
    /// Its name; when absent, after the time.
    #[serde(default)]
    pub name: Option<String>,
}

/// Take all disks back to a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyCheckpoint {
    /// Even if there are later ones, which go.
    #[serde(default)]
    pub drop_later: bool,
}

/// Format of an exported disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// The content as it is, sparse.
    #[default]
    Raw,
    /// QEMU's.
    Qcow2,
    /// Hyper-V's.
    Vhdx,
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
        })
    }
}

impl FromStr for DiskFormat {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            "vhdx" => Ok(Self::Vhdx),
            _ => Err("it must be raw, qcow2 or vhdx"),
        }
    }
}

/// Write a disk as it is now, or as it was at a checkpoint, into a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportDisk {
    /// The file, an absolute path on the host; it must not exist.
    pub file: PathBuf,
    /// The checkpoint; when absent, as the disk is now.
    #[serde(default)]
    pub checkpoint: Option<String>,
    /// Format of the file.
    #[serde(default)]
    pub format: DiskFormat,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedDisk {
    /// The file.
    pub file: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Size of the disk.
    pub size: Bytes,
    /// Space that the file takes.
    pub allocated: Bytes,
}
