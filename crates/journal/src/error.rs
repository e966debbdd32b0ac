//! What goes wrong in a journal.

use std::io;

use durable::LockError;
use jiff::Timestamp;
use model::{Bytes, DiskId, PointId, SeedId};

use crate::SegmentError;
use crate::runs::RunError;

/// Why a journal cannot be made, opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused.
    #[error("cannot {action} `{name}` of the journal")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file, in the journal's folder.
        name: String,
        /// What it said.
        source: io::Error,
    },
    /// Another process has it open for changes.
    #[error("the journal is in use")]
    Locked(#[source] LockError),
    /// There is a journal already.
    #[error("the folder holds a journal already")]
    Exists,
    /// There is none, or its creation was never finished.
    #[error("the folder holds no journal: it has no index")]
    NoIndex,
    /// Made by another version.
    #[error("the journal has format version {0}, which this build does not read")]
    Version(u32),
    /// The index is not as it was written.
    #[error("the journal's index {0}")]
    IndexDamaged(&'static str),
    /// A change that contradicts what the journal holds: a fault of this program.
    #[error("the journal cannot be changed like that: its index then {0}")]
    Impossible(&'static str),
    /// The index is not the JSON that it should be.
    #[error("the journal's index cannot be understood")]
    IndexSyntax(#[source] serde_json::Error),
    /// A file that the index names is absent or too short.
    #[error("`{0}`, which the journal's index names, is missing or cut short")]
    Missing(String),
    /// A segment is wrong.
    #[error("cannot use segment `{name}`")]
    Segment {
        /// Its file, in the journal's folder.
        name: String,
        /// Why.
        source: SegmentError,
    },
    /// A change set is wrong.
    #[error("cannot use change set `{name}`")]
    ChangeSet {
        /// Its file, in the journal's folder.
        name: String,
        /// Why.
        source: crate::SetError,
    },
    /// A run file cannot be read or written. It can be removed: it is made again from the segments.
    #[error("cannot use run file `{name}`")]
    Run {
        /// The file, in the journal's folder.
        name: String,
        /// Why.
        source: RunError,
    },
    /// The disks that were asked for cannot be.
    #[error(
        "a journal holds 1 to {} disks with sizes that are multiples of 4 KiB, each once",
        model::MAX_DISKS
    )]
    Disks,
    /// The segment does not fit what the journal holds.
    #[error("the segment does not fit")]
    Refused(#[from] Refusal),
    /// The file is not the segment that was offered.
    #[error("`{0}` is another segment than the one that was offered")]
    NotOffered(String),
    /// A name that is no file of the incoming folder.
    #[error("`{0}` is no name of an incoming file")]
    Name(String),
    /// The journal does not hold that point (any more).
    #[error("the journal holds no point {0}")]
    NoSuchPoint(PointId),
    /// The point does not have such a disk.
    #[error("the point has no {0:?}")]
    NoSuchDisk(DiskId),
    /// A reason to pin a point that is too long to be kept.
    #[error("a reason of {0} bytes to keep a point is longer than {max}", max = crate::index::MAX_REASON)]
    LongReason(usize),
    /// A lock is never shortened.
    #[error("point {point} is locked until {until}, and a lock cannot be shortened")]
    LockedLonger {
        /// The point.
        point: PointId,
        /// Until when it is locked.
        until: Timestamp,
    },
    /// Another process may read a point only while it is pinned.
    #[error("point {0} is not pinned: it could be merged away while it is read")]
    NotPinned(PointId),
    /// There are segments above the base, or below that point.
    #[error("point {0} is not all that the journal holds")]
    NotAlone(PointId),
    /// A range outside a disk.
    #[error("{len} bytes at {at} lie outside a disk of {size}")]
    Range {
        /// First byte.
        at: u64,
        /// Number of bytes.
        len: u64,
        /// Size of the disk.
        size: Bytes,
    },
    /// A merge of the journal is running already.
    #[error("a merge of the journal is running")]
    Busy,
    /// The merge that is to be finished was not begun in this journal, or was finished before.
    #[error("the journal knows nothing of this merge")]
    NotBegun,
}

impl JournalError {
    /// Whether it failed for want of space: it may succeed when there is some.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let source = match self {
            Self::Io { source, .. }
            | Self::Segment {
                source: SegmentError::Io { source, .. },
                ..
            }
            | Self::Run {
                source: RunError::Io { source, .. },
                ..
            } => source,
            _ => return false,
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// Whether what was written is not there any more: reading it again tells the same.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io { source, .. }
            | Self::Segment {
                source: SegmentError::Io { source, .. },
                ..
            } => source.raw_os_error() == Some(libc::EIO),
            Self::Segment { .. } | Self::Missing(_) => true,
            _ => false,
        }
    }

    pub(crate) fn io(action: &'static str, name: &str, source: io::Error) -> Self {
        Self::Io {
            action,
            name: name.to_owned(),
            source,
        }
    }

    pub(crate) fn run(name: &str, source: RunError) -> Self {
        Self::Run {
            name: name.to_owned(),
            source,
        }
    }

    pub(crate) fn segment(name: &str, source: SegmentError) -> Self {
        Self::Segment {
            name: name.to_owned(),
            source,
        }
    }
}

/// Why a segment does not fit what a journal holds. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Of another VM.
    #[error("it belongs to another VM")]
    Vm,
    /// Not exactly the disks of the initial replication, in their order.
    #[error("it names other disks than the initial replication began with")]
    Disks,
    /// Disks that are gone keep their place while a point has them.
    #[error("its points have too many disks: some are gone, and older points still have them")]
    ManyDisks,
    /// A disk became smaller, which a journal does not follow.
    #[error("{0:?} became smaller")]
    Shrunk(DiskId),
    /// Of another initial replication.
    #[error("it belongs to {0:?}, and the journal to another one")]
    OtherSeed(SeedId),
    /// Not the next part of the initial replication.
    #[error("it is part {got} of the initial replication, and part {next} is next")]
    Part {
        /// Its number.
        got: u64,
        /// The next one.
        next: u64,
    },
    /// A part with this number but other content was received.
    #[error("another part {0} of the initial replication was received before")]
    OtherPart(u64),
    /// A part of an initial replication for a journal that holds points already.
    #[error("the initial replication is complete: the journal is at point {0}")]
    Complete(PointId),
    /// A part of an initial replication for a journal whose base must stay as it is.
    #[error("its base must stay as it is until there is a point: no part may be written to it")]
    BaseStays,
    /// The first point builds on another number of parts than were received.
    #[error("it builds on {needs} parts of the initial replication, and {has} were received")]
    Parts {
        /// What it builds on.
        needs: u64,
        /// What the journal has.
        has: u64,
    },
    /// Nothing that it builds on was received.
    #[error("it builds on a point, and the initial replication is not complete")]
    Seeding,
    /// Alarm: the same point with other content.
    #[error("ALARM: point {0} was received before with other content")]
    OtherRoot(PointId),
    /// The journal's newest point is not of its history: the primary was restored, or the
    /// histories diverged.
    #[error("the journal is at point {0}, which is not of its history")]
    Diverged(PointId),
    /// It is not newer than what the journal holds.
    #[error("the journal is at point {0}, which is not older")]
    NotNewer(PointId),
    /// Changes between the journal's newest point and what it builds on are missing.
    #[error("it builds on {since}, and the journal is at {tip} only")]
    Gap {
        /// What it builds on.
        since: PointId,
        /// The newest point.
        tip: PointId,
    },
}

impl Refusal {
    /// Whether a person must be told: it cannot come from a lost message or a restart.
    #[must_use]
    pub fn is_alarm(&self) -> bool {
        matches!(self, Self::OtherRoot(_))
    }
}
