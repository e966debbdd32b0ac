//! What a segment says of itself before its content.

use jiff::Timestamp;
use model::{Bytes, DiskId, Lineage, PointId, SeedId, Since, VmId};
use serde::{Deserialize, Serialize};

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
}
