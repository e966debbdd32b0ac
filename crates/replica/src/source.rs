//! What is replicated, as the driver sees it: the VM's diskd, its outbox, its durable records.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use journal::compare::{BlockHashes, Blocks};
use journal::{Header, Root};
use model::{DiskId, Lineage, PointId, Problem, SeedId, Since};
use serde::{Deserialize, Serialize};

use crate::wire::{Configuration, Offer, RegionHashes};

/// A staged segment in the outbox. At most one exists: its marks come back only by
/// [`Source::fold_back`], and go only by [`Source::confirm`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The segment file.
    pub file: PathBuf,
    /// Its header, as read from the file.
    pub header: Header,
    /// Its root, likewise.
    pub root: Root,
}

/// A staged part of an initial replication, or a staged point with a part of a disk that joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedPart {
    /// The segment.
    pub segment: Staged,
    /// First byte of the disk that the next part looks at; none at the end of the disk.
    pub next: Option<u64>,
}

/// Asks for a part of an initial replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeedPart {
    /// The initial replication.
    pub seed: SeedId,
    /// Number of the part.
    pub part: u64,
    /// Where it begins.
    pub at: Position,
}

/// How far an initial replication has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Index of the disk among the replicated ones; their number when all are done.
    pub disk: usize,
    /// First byte that was not looked at yet.
    pub from: u64,
}

impl Position {
    /// Nothing was looked at.
    pub const BEGIN: Self = Self { disk: 0, from: 0 };

    /// Where the part after one that begins here does, if its source says that it is `next`.
    #[must_use]
    pub fn after(self, next: Option<u64>) -> Self {
        match next {
            // A source that stands still would be asked for ever.
            Some(from) if from > self.from => Self { from, ..self },
            _ => Self {
                disk: self.disk + 1,
                from: 0,
            },
        }
    }
}

/// A disk that a point is cut of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutDisk {
    /// The disk.
    pub id: DiskId,
    /// How it takes part.
    pub part: Part,
}

/// How a disk takes part in a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The point before has it.
    Member,
    /// The point before has it not, and this one does: all marks that are left are taken, and what is
    /// suspect is marked before, for there is nothing to compare it with.
    Joined,
    /// It is being copied, and nothing of it comes with this point.
    Joining,
    /// It is being copied: about `limit` bytes of what is marked from byte `from` on come with this
    /// point, as of no one instant.
    Slice {
        /// First byte to look at.
        from: u64,
        /// About how much is taken.
        limit: model::Bytes,
    },
}

/// What the primary must remember of a relationship over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Progress {
    /// The initial replication is being sent.
    Seeding {
        /// Its identity.
        seed: SeedId,
        /// Number of the next part that is not acknowledged.
        part: u64,
        /// Where that part begins.
        at: Position,
        /// Where it ends, once it was staged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end: Option<Position>,
        /// Everything before it was sent at least once, or was in what the twin was filled from: what
        /// nobody can tell of it is compared. Parts may be behind it; see [`Progress::sent`].
        sent: Position,
        /// How often that was begun.
        round: u64,
    },
    /// Deltas are being sent.
    Live {
        /// The newest point known to be acknowledged.
        acknowledged: PointId,
        /// Whether blocks were found equal to that point: what is marked or suspect says nothing of
        /// any other one since.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        compared: bool,
    },
}

impl Progress {
    /// The beginning of a relationship.
    #[must_use]
    pub fn begin(seed: SeedId) -> Self {
        Self::Seeding {
            seed,
            part: 0,
            at: Position::BEGIN,
            end: None,
            sent: Position::BEGIN,
            round: 0,
        }
    }

    /// The beginning of one whose twin is filled from a copy of so many disks.
    #[must_use]
    pub fn from_copy(seed: SeedId, disks: usize) -> Self {
        Self::Seeding {
            seed,
            part: 0,
            at: Position::BEGIN,
            end: None,
            sent: Position {
                disk: disks,
                from: 0,
            },
            round: 0,
        }
    }

    /// The beginning of one whose twin began with the disks of its host, so many: nothing but a point
    /// follows.
    #[must_use]
    pub fn reversed(seed: SeedId, disks: usize) -> Self {
        let end = Position {
            disk: disks,
            from: 0,
        };
        Self::Seeding {
            seed,
            part: 0,
            at: end,
            end: None,
            sent: end,
            round: 0,
        }
    }

    /// What the twin may hold already, as it is or as it was; none when the initial replication is
    /// complete. Behind that it holds nothing.
    #[must_use]
    pub fn sent(&self) -> Option<Position> {
        match *self {
            Self::Seeding { at, end, sent, .. } => Some(end.unwrap_or(at).max(at).max(sent)),
            Self::Live { .. } => None,
        }
    }
}

/// What was found when tracking began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracking {
    /// Whether the marks were found as they were left. If not, everything that may differ from
    /// the replica is suspect now, or marked where it was [never sent](Progress::sent).
    pub exact: bool,
    /// How much is suspect: it may differ, and has to be [compared](Source::hashes) before the next cut.
    pub suspect: model::Bytes,
    /// The segment that is in the outbox, if any.
    pub staged: Option<Staged>,
    /// What was recorded last.
    pub progress: Progress,
    /// The highest sequence number ever reserved in the current term or before.
    pub reserved: u64,
}

/// What some suspect regions of a disk hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspects {
    /// Size of the disk.
    pub size: model::Bytes,
    /// At most [`MAX_COMPARED`](crate::wire::MAX_COMPARED), rising.
    pub regions: Vec<RegionHashes>,
    /// The region from which to go on; none when there is none left.
    pub next: Option<u64>,
}

/// What some regions of a disk hold, and what of it is on its way to the replica anyway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changing {
    /// Size of the disk.
    pub size: model::Bytes,
    /// At most [`MAX_COMPARED`](crate::wire::MAX_COMPARED), rising.
    pub regions: Vec<ChangingRegion>,
    /// The region from which to go on; none at the end of the disk.
    pub next: Option<u64>,
}

/// What a region holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangingRegion {
    /// Its number.
    pub region: u64,
    /// Of every block of it.
    pub hashes: BlockHashes,
    /// The blocks, rising, of which somebody may have changed the content since the last confirmed
    /// point. Whatever was being written while the region was read is among them.
    pub changed: Vec<Blocks>,
}

/// A region that was compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedRegion {
    /// Its number.
    pub region: u64,
    /// Its blocks that differ.
    pub differ: Vec<Blocks>,
}

/// The primary's side of one relationship. Implemented over diskd's control socket.
///
/// Every method may be repeated after a failure. An error of any method suspends the
/// relationship with the problem as its cause, and after a while everything begins again
/// with [`track`](Source::track).
pub trait Source: Send + Sync + 'static {
    /// Lets diskd track the disks of the configuration for this relationship, and looks what the outbox holds. More than one
    /// segment there: all but the newest are folded back first. One that is not whole is as in
    /// [`fold_back`](Source::fold_back). Not exact: the outbox may be emptied, since its blocks are
    /// suspect or marked. While the initial replication goes on nothing is suspect that was [never
    /// sent](Progress::sent): it is marked. A disk that was not tracked before is suspect.
    fn track(&self) -> impl Future<Output = Result<Tracking, Problem>> + Send;

    /// The next sequence number: above all before and above `above`, recorded durably before it is
    /// given.
    fn reserve_sequence(&self, above: u64) -> impl Future<Output = Result<u64, Problem>> + Send;

    /// Stages a part of the initial replication: what is marked there, as it is now or was since the part
    /// before was staged. Refused while anything is suspect.
    fn seed(&self, part: SeedPart) -> impl Future<Output = Result<StagedPart, Problem>> + Send;

    /// Cuts `disks` at one instant and stages what changed after `since`: every mark there is, but of
    /// disks that are being copied ([`Part`]). One of them that is gone is left out. Of a disk that is
    /// left out nothing is tracked any more: should it be tracked again, all of it is suspect. Refused
    /// while anything of a member is suspect. Where to go on with the slice, if there was one and it did
    /// not reach the end.
    fn cut(
        &self,
        since: Since,
        sequence: u64,
        disks: Vec<CutDisk>,
    ) -> impl Future<Output = Result<StagedPart, Problem>> + Send;

    /// What the segment file consists of; see [`crate::outbox::offer`]. Its round is not known here.
    fn offer(&self, staged: &Staged) -> impl Future<Output = Result<Offer, Problem>> + Send;

    /// Chunk `n` of the segment file; see [`crate::outbox::chunk`].
    fn chunk(&self, staged: &Staged, n: u64)
    -> impl Future<Output = Result<Bytes, Problem>> + Send;

    /// The replica has it durably: forget its marks and remove the file. No error if it is gone.
    fn confirm(&self, staged: &Staged) -> impl Future<Output = Result<(), Problem>> + Send;

    /// It will not be shipped: mark its blocks again, then remove the file. No error if it is gone.
    /// If nobody can tell what it holds, everything is suspect in which a segment may lie that was not
    /// confirmed.
    fn fold_back(&self, staged: &Staged) -> impl Future<Output = Result<(), Problem>> + Send;

    /// What the next suspect regions of a disk hold, from this region on. Only reads: may be dropped
    /// at any time.
    fn hashes(
        &self,
        disk: DiskId,
        from: u64,
    ) -> impl Future<Output = Result<Suspects, Problem>> + Send;

    /// These regions of a disk were compared with the replica: what differs is marked, and they are
    /// not suspect any more. A region that is not suspect is passed over.
    fn compared(
        &self,
        disk: DiskId,
        regions: Vec<ComparedRegion>,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// What the next regions of a disk hold, from this one on. Only reads: may be dropped at any time.
    /// No segment is staged or confirmed meanwhile.
    fn changing(
        &self,
        disk: DiskId,
        from: u64,
    ) -> impl Future<Output = Result<Changing, Problem>> + Send;

    /// The replica has these blocks otherwise, though they did not change: the next segment is to hold
    /// them.
    fn mark(
        &self,
        disk: DiskId,
        regions: Vec<ComparedRegion>,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// The replica is at a point of which this host cannot tell what it lacks: every block of every
    /// disk is suspect, also after a power cut. After that it is recorded durably that sequence
    /// numbers up to `issued` may have been used. How much is suspect.
    fn suspect(&self, issued: u64) -> impl Future<Output = Result<model::Bytes, Problem>> + Send;

    /// Records progress durably.
    fn persist(&self, progress: Progress) -> impl Future<Output = Result<(), Problem>> + Send;

    /// The partner runs the VM in `lineage`: stop the guest at once, then record it durably
    /// ([`Standing::superseded`](crate::standing::Standing::superseded)). Tried again until it
    /// succeeds. May be called while another method is at work.
    fn gate(&self, lineage: &Lineage) -> impl Future<Output = Result<(), Problem>> + Send;

    /// What this host's clock says: the one that cuts are stamped with.
    fn wall(&self) -> Timestamp;
}

/// What a driver is told when it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For messages: ``VM `web` ``.
    pub thing: String,
    /// Name of the replica host, for messages.
    pub partner: String,
    /// The disks of the initial replication, in its order, while that goes on.
    pub disks: Vec<DiskId>,
    /// The primary's lineage; its current term is the one in which it cuts.
    pub lineage: Lineage,
    /// Whether the twin began with the disks that its host had, which must stay as they are: what
    /// differs comes with the first point, and no part before it.
    pub base_stays: bool,
    /// What the replica is to follow; another one may come while it runs.
    pub configuration: Arc<Configuration>,
}
