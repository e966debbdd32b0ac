//! What a segment says of itself before its content.

use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, MAX_DISKS, PointId, SeedId, Since, VmId};
use serde::{Deserialize, Serialize};

/// Largest disk, in bytes: bounds what a run of zeroes may cost.
const MAX_DISK: u64 = 64 << 40;

/// A header that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A VM that is replicated has a disk, and no more than [`MAX_DISKS`].
    #[error("it names {0} disks, not 1 to {MAX_DISKS}")]
    Disks(usize),
    /// A disk at fault.
    #[error("{id:?} {fault}")]
    Disk {
        /// The disk.
        id: DiskId,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// Its number does not lie in its own term.
    #[error("point {0} does not lie on its lineage")]
    Point(PointId),
    /// A point without a disk.
    #[error("it is a point, and all of its disks are still being copied")]
    AllJoining,
    /// What it builds on is not an earlier point of its lineage.
    #[error("it builds on {0}, which is no earlier point of its lineage")]
    Since(PointId),
}

/// Header of a segment: enough to decide whether it may be accepted, before any content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The VM.
    pub vm: VmId,
    /// Every disk of the VM that is replicated, changed or not, in the VM's order.
    pub disks: Vec<DiskExtent>,
    /// Path of terms up to the one in which the segment was cut.
    pub lineage: Lineage,
    /// What it holds.
    pub content: Content,
    /// When it was cut, by the clock of the host that cut it.
    pub time: Timestamp,
    /// How consistent the content is.
    pub consistency: Consistency,
}

/// A disk of the set that a segment belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskExtent {
    /// Its identity.
    pub id: DiskId,
    /// Its size in bytes at the time of the cut, a multiple of 4 KiB.
    pub size: Bytes,
    /// It was added and is still being copied: its changed blocks are in the segment, and it is no
    /// part of the point.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joining: bool,
}

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Content {
    /// Part `part` (from 0, in order, without gaps) of an initial replication. Not a point.
    Seed {
        /// The initial replication it belongs to.
        seed: SeedId,
        /// Its number.
        part: u64,
    },
    /// Every block that changed after `since`: a recovery point, numbered `sequence` in the
    /// current term of the header's lineage.
    Delta {
        /// Number of the point.
        sequence: u64,
        /// What it builds on.
        since: Since,
    },
}

/// How consistent a point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after pulling the plug: all disks at one instant.
    Crash,
    /// The guest's applications were quiesced.
    Application,
}

impl Header {
    /// The point that the segment is; none for a part of an initial replication.
    #[must_use]
    pub fn point(&self) -> Option<PointId> {
        match self.content {
            Content::Seed { .. } => None,
            Content::Delta { sequence, .. } => Some(PointId {
                term: self.lineage.current().id,
                sequence,
            }),
        }
    }

    /// Whether the header agrees with itself.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), HeaderError> {
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return Err(HeaderError::Disks(self.disks.len()));
        }
        for (position, disk) in self.disks.iter().enumerate() {
            let fault = if disk.size.0 == 0 || disk.size.0 % BLOCK_SIZE != 0 {
                "has a size that is no multiple of 4 KiB"
            } else if disk.size.0 > MAX_DISK {
                "is larger than 64 TiB"
            } else if self.disks[..position]
                .iter()
                .any(|other| other.id == disk.id)
            {
                "is named twice"
            } else {
                continue;
            };
            return Err(HeaderError::Disk { id: disk.id, fault });
        }
        let Some(point) = self.point() else {
            return Ok(());
        };
        if point.sequence == 0 || !self.lineage.contains(point) {
            return Err(HeaderError::Point(point));
        }
        if self.disks.iter().all(|disk| disk.joining) {
            return Err(HeaderError::AllJoining);
        }
        match self.content {
            Content::Delta {
                since: Since::Point(since),
                ..
            } if since.sequence >= point.sequence || !self.lineage.contains(since) => {
                Err(HeaderError::Since(since))
            }
            _ => Ok(()),
        }
    }
}
