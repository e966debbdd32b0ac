//! How the changes of a VM are tracked, as the API tells it.

use jiff::Timestamp;
use model::{Bytes, DiskId, Health, RelationshipId, ReplicationState, VmId, VmName};
use serde::{Deserialize, Serialize};

/// How the changes of a VM are tracked, on its primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracking {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// The relationship that it is tracked for.
    pub relationship: RelationshipId,
    /// Name of the host that has the twin.
    pub peer: String,
    /// State of the relationship.
    pub state: ReplicationState,
    /// The worst of what was found.
    pub health: Health,
    /// What is not as it should be; nothing when all is well.
    pub findings: Vec<Finding>,
    /// Its disks.
    pub disks: Vec<TrackedDisk>,
    /// What became of its epochs.
    pub epochs: Epochs,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub health: Health,
    /// Number of the disk; none: it is of the whole VM.
    pub disk: Option<u8>,
    /// What it is, in one sentence without a full stop.
    pub what: String,
    /// What to do, or that nothing has to be done.
    pub way_out: String,
}

/// A disk whose changes are tracked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackedDisk {
    /// Its number.
    pub slot: u8,
    /// Its identity.
    pub id: DiskId,
    /// Size that the guest sees.
    pub size: Bytes,
    /// What is tracked; none if nothing is yet.
    pub tracked: Option<Tracked>,
}

/// What is tracked of a disk. Blocks have 4 KiB, regions 1 MiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// Blocks that may differ from what was staged: they go with the next point.
    pub marked: Bytes,
    /// Blocks that are being staged for a point.
    pub sealed: Bytes,
    /// Regions with blocks in a segment that the twin has not confirmed.
    pub unconfirmed: Bytes,
    /// Regions in which nobody can tell what differs: they are compared with the twin.
    pub suspect: Bytes,
    /// Regions that would be compared after a power cut.
    pub armed: Bytes,
    /// The write-intent log, which says after a power cut what has to be compared.
    pub log: IntentLog,
    /// Durable writes of the log since the disk server started.
    pub commits: u64,
    /// How often regions that are the twin's again were taken out of the log since then.
    pub sweeps: u64,
}

/// How a write-intent log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntentLog {
    /// It is kept.
    Kept,
    /// It could not be written: after a power cut the whole disk is compared.
    Lost {
        /// Why.
        why: String,
    },
}

/// What became of the epochs of a VM since its disk server started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epochs {
    /// Cuts that hold.
    pub cuts: u64,
    /// Cuts given up because a disk did not stop issuing writes before the deadline.
    pub abandoned: u64,
    /// Epochs whose marks went back, to go with the next point.
    pub folded_back: u64,
    /// The last of them.
    pub last_fold_back: Option<FoldedBack>,
    /// How long the last cut held up the guest's writes, in microseconds.
    pub pause_last_us: u64,
    /// The longest such pause.
    pub pause_longest_us: u64,
    /// Half of the pauses were at most this; rounded up, by at most an eighth.
    pub pause_p50_us: u64,
    /// 99 of 100 pauses were at most this; rounded up, by at most an eighth.
    pub pause_p99_us: u64,
    /// Old content saved because the guest wrote to a block that was not staged yet.
    pub copied: Bytes,
}

/// An epoch that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoldedBack {
    /// Why.
    pub why: String,
    /// When.
    pub time: Timestamp,
}
