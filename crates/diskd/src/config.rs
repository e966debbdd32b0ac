//! What a `pollux-diskd` serves: the file that its supervisor names on the command line.

use std::path::PathBuf;

use model::{Bytes, DiskId, PointId, VmId};
use serde::{Deserialize, Serialize};

/// Name of the inherited listening socket for [`crate::control`]; a disk's vhost-user socket
/// is named `disk.` and its id.
pub const CONTROL_SOCKET: &str = "control";

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
    /// Size in bytes.
    pub size: Bytes,
    /// What its content is made of.
    pub stack: StackSpec,
    /// File for state that survives `kill -9` but not a reboot: dirty maps, volatile presence,
    /// sticky failure. On tmpfs.
    pub state: PathBuf,
}

/// What the content of a disk is made of. Formats are never probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum StackSpec {
    /// A raw file.
    Raw {
        /// The file.
        file: PathBuf,
    },
    /// A sparse raw file for what was written, above a recovery point.
    Overlay {
        /// The file, made if absent.
        file: PathBuf,
        /// The durable presence map, made if absent.
        map: PathBuf,
        /// Folder of the journal that holds the point.
        journal: PathBuf,
        /// The point.
        point: PointId,
    },
}
