//! What a `pollux-diskd` serves: the file that its supervisor names on the command line.

use std::path::PathBuf;

use model::{Bytes, CheckpointId, DiskId, PointId, VmId};
use serde::{Deserialize, Serialize};

/// Name of the inherited listening socket for [`crate::control`]. A disk's sockets are named
/// [`disk_socket`] and [`nbd_socket`].
pub const CONTROL_SOCKET: &str = "control";

/// Name of the inherited descriptor, if one is passed, to which a byte is written when all disks are
/// open and served. It is closed then; closed without a byte, this process has failed.
pub const READY: &str = "ready";

/// Name of the inherited listening socket on which the disk of a slot is served by vhost-user.
#[must_use]
pub fn disk_socket(slot: u8) -> String {
    format!("disk.{slot}")
}

/// Name of the inherited listening socket on which the disk of a slot is served by NBD.
#[must_use]
pub fn nbd_socket(slot: u8) -> String {
    format!("nbd.{slot}")
}

/// Configuration, as JSON. Listening sockets are inherited from file descriptor 3 on, with
/// their names in `LISTEN_FDNAMES` (as systemd passes them, sd_listen_fds(3)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The VM whose disks these are.
    pub vm: VmId,
    /// Number of the term in which this host may write; a disk that was written in a later
    /// one is refused.
    pub term: u64,
    /// Which version of the configuration this is; echoed in [`crate::control::Reply::Status`], so
    /// that whoever wrote it sees which one is in force.
    pub generation: u64,
    /// The disks.
    pub disks: Vec<DiskConfig>,
    /// Most memory for old content saved before a guest write, per disk; past it the epoch is
    /// abandoned.
    pub copy_budget: Bytes,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its identity; also the serial number that the guest sees (its first 20 hex digits).
    pub id: DiskId,
    /// Where it is plugged in, unique in the VM; names its sockets.
    pub slot: u8,
    /// How the guest reaches it.
    pub front: Front,
    /// Size in bytes. A raw file may be longer, never shorter.
    pub size: Bytes,
    /// What its content is made of.
    pub stack: StackSpec,
    /// File for state that survives `kill -9` but not a reboot: dirty maps, volatile presence,
    /// sticky failure. On tmpfs.
    pub state: PathBuf,
    /// Folder for what must survive a power cut while changes are tracked: `<id>.intent`,
    /// `<id>.stack`, `<id>.<overlay>.merge`. On durable storage; several disks may share it.
    pub tracking: PathBuf,
}

/// How the guest reaches a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Front {
    /// vhost-user-blk: virtio disks.
    VhostUser,
    /// NBD: IDE and SCSI disks.
    Nbd,
}

/// What the content of a disk is made of, from the top down. Formats are never probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum StackSpec {
    /// A raw file.
    Raw {
        /// The file.
        file: PathBuf,
    },
    /// A disk of a recovery point. With nothing above it, it is only read, over NBD.
    Point {
        /// Folder of the journal that holds the point.
        journal: PathBuf,
        /// The point.
        point: PointId,
    },
    /// A sparse raw file for what was written, above something else.
    Overlay {
        /// The file, made if absent.
        file: PathBuf,
        /// The durable presence map, made if absent.
        map: PathBuf,
        /// The checkpoint since which this holds what was written. None only above a point.
        checkpoint: Option<CheckpointId>,
        /// What it lies above.
        below: Box<StackSpec>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_spelled_from_the_top_down() {
        let text = r#"{"overlay":{"file":"/a","map":"/a.map",
            "checkpoint":"67e55044-10b1-426f-9247-bb680e5fe0c8","below":{"raw":{"file":"/b"}}}}"#;
        let stack: StackSpec = serde_json::from_str(text).expect("understood");
        let StackSpec::Overlay {
            checkpoint, below, ..
        } = stack
        else {
            panic!("an overlay");
        };
        assert!(checkpoint.is_some());
        let file = PathBuf::from("/b");
        assert_eq!(*below, StackSpec::Raw { file });
    }
}
