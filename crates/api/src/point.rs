//! Recovery points, as the API tells them.

use std::path::PathBuf;

use jiff::Timestamp;
use journal::Consistency;
use model::{Bytes, DiskId, PointId};
use serde::{Deserialize, Serialize};

use crate::DiskFormat;

/// A recovery point of a twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its name.
    pub id: PointId,
    /// When it was cut, by the clock of the host that cut it.
    pub time: Timestamp,
    /// How consistent it is.
    pub consistency: Consistency,
    /// Space that its changes take; the oldest point is the base and takes none.
    pub size: Bytes,
    /// Held by a failover, because it is open, or by an export; it is not merged away.
    pub pinned: bool,
    /// Its disks, while it is open.
    #[serde(default)]
    pub open: Vec<OpenDisk>,
    /// Until when it is locked: it is not merged away before, and its twin not deleted.
    #[serde(default)]
    pub locked: Option<Timestamp>,
}

/// Lock a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockPoint {
    /// Until when; never earlier than it is locked already.
    pub until: Timestamp,
}

/// What came of verifying everything that a twin has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedReplica {
    /// Bytes that were read and compared with their hashes.
    pub read: Bytes,
    /// Files that are not as they were written.
    pub damage: Vec<DamagedFile>,
}

/// A file of a twin that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedFile {
    /// The file, on polluxd's host.
    pub file: PathBuf,
    /// What is wrong with it, the first that was found.
    pub what: String,
    /// How many more things are.
    pub more: u64,
    /// The points that have other content now, or none; the oldest first.
    pub points: Vec<PointId>,
}

/// What came of verifying a twin's newest point against the disks of the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedReplica {
    /// The newest point of the twin when everything was compared.
    pub point: PointId,
    /// Bytes of disks that were compared.
    pub compared: Bytes,
    /// Of them, what had changed since the newest point and was left out: the next one replaces it.
    pub changed: Bytes,
    /// What the twin had otherwise though it had not changed.
    pub damaged: Bytes,
    /// Where, the first ranges.
    pub damage: Vec<DamagedRange>,
    /// How many more ranges there are.
    pub more: u64,
    /// The point that holds again what was damaged, if it reached the twin in time; older ones do not.
    pub repaired: Option<PointId>,
}

/// A range of a disk that a twin had otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedRange {
    /// The disk's number.
    pub slot: u8,
    /// Its id.
    pub disk: DiskId,
    /// First byte of it.
    pub at: Bytes,
    /// How long it is.
    pub len: Bytes,
}

/// Open a point: serve its disks read-only over NBD until it is closed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenPoint {
    /// This disk only: its number, the name of its file, or the beginning of its id.
    #[serde(default)]
    pub disk: Option<String>,
}

/// A point that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedPoint {
    /// The point.
    pub point: PointId,
    /// Its disks.
    pub disks: Vec<OpenDisk>,
}

/// A disk of a point that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDisk {
    /// Its number.
    pub slot: u8,
    /// Its id.
    pub id: DiskId,
    /// Its size at the point.
    pub size: Bytes,
    /// The Unix socket on which it is served, on polluxd's host.
    pub socket: PathBuf,
    /// The same as an address that NBD programs understand.
    pub uri: String,
}

impl OpenDisk {
    /// The address of what is served on `socket`, see the specification "NBD URI".
    #[must_use]
    pub fn uri_of(socket: &std::path::Path) -> String {
        let path = socket.to_string_lossy();
        let parts: Vec<_> = path.split('/').map(crate::client::escape).collect();
        format!("nbd+unix:///disk?socket={}", parts.join("/"))
    }
}

/// Write the disks of a point into files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportPoint {
    /// The file, an absolute path on the host, which must not exist. For all disks the folder, which
    /// must exist: files in it are named `disk0.qcow2` after the disk's number and the format.
    pub to: PathBuf,
    /// The disk: its number, the name of its file, or the beginning of its id. All if absent.
    #[serde(default)]
    pub disk: Option<String>,
    /// Format of the files.
    #[serde(default)]
    pub format: DiskFormat,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_socket_keeps_its_folders_and_hides_what_would_end_it() {
        let uri = |path: &str| OpenDisk::uri_of(std::path::Path::new(path));
        assert_eq!(
            uri("/run/pollux/0123/nbd0.sock"),
            "nbd+unix:///disk?socket=/run/pollux/0123/nbd0.sock"
        );
        assert_eq!(uri("/a&b #/s"), "nbd+unix:///disk?socket=/a%26b%20%23/s");
    }
}
