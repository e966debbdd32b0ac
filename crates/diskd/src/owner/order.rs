//! What owners are told, and what they answer.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use block::Fault;
use model::{Bytes, CheckpointId, RelationshipId};

use crate::config::DiskConfig;
use crate::control::{OverlayStatus, StoreKind, TrackingStatus};
use crate::cut::Cut;
use crate::flow::Piece;
use crate::relation::Differing;
use crate::staging::{Abandoned, StageReport};
use crate::suspects::{Changing, Content};
use crate::tracker::SealError;

/// What an owner is told. Answers go to the channel in the order; an asker that is gone is no
/// reason to stop.
pub enum Order {
    /// How the disk is.
    Look(mpsc::Sender<Look>),
    /// Track for a relationship.
    Track {
        /// Which one.
        relationship: RelationshipId,
        /// Its initial replication is not finished: so many bytes of it were sent.
        begin: Option<u64>,
        /// Whether nothing was lost: what differs is marked, or in a segment.
        answer: mpsc::Sender<bool>,
    },
    /// Stop tracking.
    Untrack(mpsc::Sender<Result<(), String>>),
    /// Mark blocks: they were in a segment that is given up. Without any, nobody knows which they
    /// were: the unconfirmed regions are suspect.
    FoldBack(Option<Vec<Range<u64>>>, mpsc::Sender<Result<(), Fault>>),
    /// Nothing is unconfirmed any more. What is over may leave the write-intent log.
    Confirm(mpsc::Sender<()>),
    /// Everything is suspect.
    Suspect(mpsc::Sender<Result<(), Fault>>),
    /// Read at most so many suspect regions, from a region on.
    ReadSuspects {
        /// The first to look at.
        from: u64,
        /// Most of them.
        limit: u64,
        /// What they hold.
        answer: mpsc::Sender<Result<Vec<Content>, Fault>>,
    },
    /// Read so many regions, from a region on, and tell what may have changed in them.
    ReadChanging {
        /// The first.
        from: u64,
        /// Most of them.
        limit: u64,
        /// What they hold.
        answer: mpsc::Sender<Result<Vec<Changing>, Fault>>,
    },
    /// Track for this relationship what was written above the point that lies below all; false if none
    /// does.
    TrackAbove(RelationshipId, mpsc::Sender<bool>),
    /// These regions are suspect.
    SuspectRegions(Vec<Range<u64>>, mpsc::Sender<Result<(), Fault>>),
    /// Where the disk may differ from what was confirmed last: blocks of some regions from a region on,
    /// and where to go on. None if nothing is tracked.
    Differing {
        /// The first region.
        from: u64,
        /// After so many runs no further region is looked at.
        limit: usize,
        /// See above.
        answer: mpsc::Sender<Option<Differing>>,
    },
    /// Regions were compared: blocks of them that differ.
    Compared(Vec<(u64, Vec<Range<u64>>)>, mpsc::Sender<Result<(), Fault>>),
    /// How many marked blocks take space, counted until there are more than so many.
    Content(u64, mpsc::Sender<u64>),
    /// Mark blocks between marked ones until so many runs are left at most: what is cut next then fits
    /// into a segment.
    Coarsen(u64, mpsc::Sender<()>),
    /// Take part in a cut, then stage.
    Cut(Arc<Cut>, StageOrder),
    /// Stage about so many marked blocks from a block on.
    Seed {
        /// First block to look at.
        from: u64,
        /// About how many.
        limit: u64,
        /// The disk is not whole with them: something of it stays marked, so that nobody takes all of
        /// it for sent.
        joins: bool,
        /// How to stage them.
        stage: StageOrder,
    },
    /// Give the epoch up.
    Abandon,
    /// The epoch's segment is whole (true) or will never be.
    End(bool, mpsc::Sender<()>),
    /// Open what this configuration has and the disk has not. The guest goes on.
    Prepare(Box<DiskConfig>, mpsc::Sender<Result<(), Unprepared>>),
    /// Go to what was prepared, at the instant of all disks; false if that was abandoned.
    Swap(Arc<Cut>, mpsc::Sender<bool>),
    /// Forget what was prepared.
    Forget(mpsc::Sender<()>),
    /// Merge about so many bytes of what was written since a checkpoint into what lies below.
    Drain {
        /// The checkpoint.
        checkpoint: CheckpointId,
        /// About how many.
        limit: Bytes,
        /// What is left.
        answer: mpsc::Sender<Result<Bytes, Unmerged>>,
    },
    /// Answer what runs, take nothing more, make everything durable. If that fails, and the guest is
    /// gone, the next process reopens the disk.
    Close(mpsc::Sender<Result<(), Fault>>),
}

/// How a disk is.
#[derive(Debug)]
pub struct Look {
    /// Whether a guest is connected.
    pub connected: bool,
    /// Its requests that wait for room.
    pub waiting_for_room: u64,
    /// The size that it sees.
    pub size: Bytes,
    /// Its checkpoints, the oldest first.
    pub overlays: Vec<OverlayStatus>,
    /// Another file, or none, has the name of one that is open.
    pub replaced: bool,
    /// How its files are read and written.
    pub store: StoreKind,
    /// What is tracked of it.
    pub tracking: Option<TrackingStatus>,
}

/// Why another stack cannot be had, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unprepared(pub(crate) String);

/// Why a checkpoint cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum Unmerged {
    /// The stack does not allow it.
    #[error("{0}")]
    Refused(String),
    /// There is no room for it.
    #[error("there is no room for it")]
    Full,
    /// It was tried.
    #[error("{0}")]
    Failed(String),
}

/// How an epoch is staged.
pub struct StageOrder {
    /// Position of the disk in the segment's header.
    pub disk: u16,
    /// Most bytes of saved old content in memory.
    pub budget: u64,
    /// There is nothing to compare with what is suspect: it is marked.
    pub whole: bool,
    /// Where everything goes.
    pub deliveries: mpsc::Sender<Delivery>,
}

/// What an owner sends while an epoch is staged. A disk that was sealed sends [`Delivery::Staged`]
/// once, after its last piece; one that was not sends nothing more.
#[derive(Debug)]
pub enum Delivery {
    /// The disk was sealed, or why not.
    Sealed {
        /// Position of the disk in the segment's header.
        disk: u16,
        /// For a part of an initial replication: the next block to look at, if any.
        outcome: Result<Option<u64>, SealFault>,
        /// How long mutations were held up.
        pause: Duration,
    },
    /// Content.
    Piece(Piece),
    /// Every sealed block was read, or why not.
    Staged {
        /// Position of the disk in the segment's header.
        disk: u16,
        /// What was done.
        outcome: Result<StageReport, Abandoned>,
    },
}

/// Why a disk was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealFault {
    /// Some disk was not parked in time.
    #[error("a disk did not stop issuing writes in time")]
    Late,
    /// Its state does not allow it.
    #[error(transparent)]
    Seal(#[from] SealError),
}
