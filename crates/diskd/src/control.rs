//! The control socket of `pollux-diskd`.
//!
//! A stream of JSON lines, one [`Request`] answered by one [`Reply`], any number of
//! connections. Only the owner of the VM's run folder can reach the socket.

use std::ops::Range;
use std::path::PathBuf;

use jiff::Timestamp;
use journal::Header;
use journal::compare::{BlockHashes, Blocks};
use model::{Bytes, CheckpointId, DiskId, Problem, RelationshipId};
use serde::{Deserialize, Serialize};

/// Longest line in bytes, either way.
pub const MAX_LINE: usize = 1 << 20;

/// Most regions in one [`Reply::Hashes`].
pub const MAX_HASHES: u64 = 128;
/// Most regions in one [`Reply::Regions`].
pub const MAX_REGIONS: u64 = 64;
/// Most runs in one [`Reply::Differing`], but for those of one region.
pub const MAX_DIFFERING: usize = 8192;

/// What diskd is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How it is. Answered by [`Reply::Status`].
    Status,
    /// Track changes for this relationship. Goes on where it was if nothing was lost since; after a
    /// power cut what nobody can tell is suspect. Answered by [`Reply::Tracking`].
    Track {
        /// The relationship.
        relationship: RelationshipId,
        /// The initial replication is not finished: what was never sent is marked and not suspect,
        /// for there is nothing to compare it with.
        begin: bool,
        /// What was sent of it at least once. Nothing of a disk that is not named, nor if it does not
        /// `begin`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        sent: Vec<Sent>,
        /// Disks that are not replicated: nothing is tracked of them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        but: Vec<DiskId>,
    },
    /// Track changes for this relationship, whose twin holds the recovery point that every disk lies
    /// above: what was written above it is marked. Goes on where it was if it tracks for it already.
    /// Refused if a disk lies above no point. Answered by [`Reply::Done`].
    TrackAbove {
        /// The relationship.
        relationship: RelationshipId,
    },
    /// Stop tracking and forget all marks. Answered by [`Reply::Done`].
    Untrack,
    /// Stage marked blocks of one disk, from byte `from` on, as a part of an initial
    /// replication: the marks move to the segment, no consistency is promised.
    /// Answered by [`Reply::Staged`].
    Seed {
        /// Header of the segment.
        header: Header,
        /// The disk.
        disk: DiskId,
        /// First byte to look at, a multiple of 4 KiB.
        from: u64,
        /// Stop after about this much content.
        limit: Bytes,
        /// The segment file, in the outbox; it appears when it is whole.
        file: PathBuf,
    },
    /// Stage already what [`Request::Seed`] with the same fields will ask for next, beside the segment that
    /// is in the outbox. The file does not appear before it is asked for, and whatever else is asked about
    /// marks, but a confirmation, gives it up. Answered by [`Reply::Done`].
    Prepare {
        /// Header of the segment.
        header: Header,
        /// The disk.
        disk: DiskId,
        /// First byte to look at, a multiple of 4 KiB.
        from: u64,
        /// Stop after about this much content.
        limit: Bytes,
        /// The segment file, in the outbox.
        file: PathBuf,
    },
    /// Cut an epoch on all disks of the header at one instant and stage it. `header.time` is set to
    /// the instant. Of disks that the header has as joining nothing is staged but a slice of one; a disk
    /// that it does not name is tracked no longer. Answered by [`Reply::Staged`].
    Cut {
        /// Header of the segment.
        header: Header,
        /// Disks that were joining, and are whole with this one: what is suspect of them is marked,
        /// for there is nothing to compare it with.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        whole: Vec<DiskId>,
        /// What is staged of a disk that is joining.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slice: Option<Slice>,
        /// The segment file, in the outbox; it appears when it is whole.
        file: PathBuf,
    },
    /// The replica has what a staged segment holds: its file goes (that of a part of an initial
    /// replication waits under another name for the next one to be written over it), nothing is
    /// unconfirmed any more. May be repeated. Answered by [`Reply::Done`].
    Confirm {
        /// The segment file.
        file: PathBuf,
    },
    /// Mark what a staged segment holds again, then remove its file: it will not be shipped. If the
    /// file is gone or cannot be read, the regions that it held are suspect. Answered by
    /// [`Reply::Done`].
    FoldBack {
        /// The segment file.
        file: PathBuf,
    },
    /// From now on nobody can tell how any disk differs from the replica: every region is suspect.
    /// Answered by [`Reply::Done`].
    Suspect,
    /// From now on nobody can tell how these regions of a disk differ from the replica; those that it does
    /// not have are ignored. Answered by [`Reply::Done`].
    SuspectRegions {
        /// The disk.
        disk: DiskId,
        /// Runs of regions of 1 MiB.
        regions: Vec<Range<u64>>,
    },
    /// Where a disk may differ from what the replica confirmed last. Answered by [`Reply::Differing`].
    Differing {
        /// The disk.
        disk: DiskId,
        /// First byte to look at, a multiple of 1 MiB.
        from: u64,
    },
    /// The hashes of the next suspect regions of a disk. Answered by [`Reply::Hashes`].
    Hashes {
        /// The disk.
        disk: DiskId,
        /// First region to look at, in regions of 1 MiB.
        from: u64,
        /// Most regions; at most [`MAX_HASHES`] are given.
        limit: u64,
    },
    /// Regions were compared with the replica: what differs is marked, and they are suspect no longer.
    /// Answered by [`Reply::Done`].
    Compared {
        /// The disk.
        disk: DiskId,
        /// The regions.
        regions: Vec<Compared>,
    },
    /// What the next regions of a disk hold, suspect or not, and which of their blocks may have changed
    /// since the last segment that was confirmed. Answered by [`Reply::Regions`].
    Regions {
        /// The disk.
        disk: DiskId,
        /// The first region, in regions of 1 MiB.
        from: u64,
        /// Most regions; at most [`MAX_REGIONS`] are given.
        limit: u64,
    },
    /// These blocks are to be in the next segment, whether they change or not. Answered by
    /// [`Reply::Done`].
    Mark {
        /// The disk.
        disk: DiskId,
        /// The regions.
        regions: Vec<Compared>,
    },
    /// Read the configuration file again and go there, at one instant for all disks: overlays are
    /// pushed on top, dropped when they were drained, replaced by fresh ones; a disk grows. The guest
    /// goes on. Answered by [`Reply::Done`]; refused, nothing was changed.
    Reload,
    /// Copy about `limit` bytes of what was written since a checkpoint into what it lies above. From the
    /// first time on everything that is written goes there. Answered by [`Reply::Drained`].
    Drain {
        /// The disk.
        disk: DiskId,
        /// The checkpoint.
        checkpoint: CheckpointId,
        /// About how much.
        limit: Bytes,
    },
    /// Make everything durable and exit, as SIGTERM does. Answered before the exit: by
    /// [`Reply::Done`], or by [`Reply::Refused`] if a disk could not be flushed; it exits all the
    /// same.
    Shutdown,
}

/// What was sent of a disk at least once: the twin holds it, as it is or as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// The disk.
    pub disk: DiskId,
    /// Everything before this byte; past its end: all of it.
    pub to: u64,
}

/// Marked blocks of one disk, as of no one instant. The first block stays marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// The disk.
    pub disk: DiskId,
    /// First byte to look at, a multiple of 4 KiB.
    pub from: u64,
    /// Stop after about this much content.
    pub limit: Bytes,
}

/// diskd's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// To [`Request::Status`].
    Status {
        /// Its process id.
        pid: u32,
        /// Its version.
        version: String,
        /// Generation of the configuration that is in force.
        generation: u64,
        /// How files are read and written.
        store: StoreKind,
        /// What of the sandbox this host does not provide, in words; nothing when it is whole.
        lacking: Vec<String>,
        /// Its disks, in the configuration's order.
        disks: Vec<DiskStatus>,
        /// What became of epochs since this diskd started.
        epochs: EpochStatus,
    },
    /// To [`Request::Track`].
    Tracking {
        /// Whether the marks of every disk are exact, but for disks of which tracking began now beside
        /// others. If not, what nobody can tell is suspect, or marked.
        exact: bool,
        /// Regions of all disks that must be compared with the replica before the next cut.
        suspect: Bytes,
    },
    /// To [`Request::Seed`] and [`Request::Cut`].
    Staged(Staged),
    /// To [`Request::Drain`].
    Drained {
        /// What is left. Nothing: all of it is durable below, and the overlay is not needed any more.
        left: Bytes,
    },
    /// To [`Request::Hashes`].
    Hashes {
        /// Suspect regions, in rising order.
        regions: Vec<RegionHashes>,
        /// Where to go on; none when no suspect region is left behind them.
        next: Option<u64>,
    },
    /// To [`Request::Regions`].
    Regions {
        /// Regions, in rising order.
        regions: Vec<ChangingRegion>,
        /// Where to go on; none at the end of the disk.
        next: Option<u64>,
    },
    /// To [`Request::Differing`].
    Differing {
        /// Runs of bytes, rising and apart, [`MAX_DIFFERING`] at most: whole blocks, and whole regions of
        /// which nobody knows more.
        runs: Vec<Range<u64>>,
        /// Where to go on; none at the end of the disk.
        next: Option<u64>,
    },
    /// Done.
    Done,
    /// Refused or failed; nothing was changed. To a cut or a seed: there is no segment file, and what
    /// was marked is marked. (No reply at all says nothing: look into the outbox.)
    Refused {
        /// Why.
        problem: Problem,
    },
}

/// How files are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// io_uring.
    IoUring,
    /// A pool of threads: this host does not provide io_uring.
    Threads,
}

/// A disk, as [`Reply::Status`] tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskStatus {
    /// Its identity.
    pub id: DiskId,
    /// Size that the guest sees.
    pub size: Bytes,
    /// Whether a guest is connected.
    pub connected: bool,
    /// Requests of the guest that are not answered because there is no room for what they write.
    /// They are tried again until there is.
    pub waiting_for_room: u64,
    /// The checkpoints that the disk lies above, the oldest first.
    pub overlays: Vec<OverlayStatus>,
    /// Marked and not staged yet.
    pub dirty: Bytes,
    /// Completed since this diskd started.
    pub reads: u64,
    /// Completed since this diskd started.
    pub writes: u64,
    /// Completed since this diskd started.
    pub flushes: u64,
    /// Whether a flush failed: the disk takes no more writes until it is reopened, by a shutdown
    /// after the guest is gone and another start. All of it is suspect then.
    pub flush_failed: bool,
    /// Another file, or none, has the name of one that is open.
    #[serde(default)]
    pub replaced: bool,
    /// What is tracked; none if nothing is.
    pub tracking: Option<TrackingStatus>,
}

/// What is tracked of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackingStatus {
    /// For whom.
    pub relationship: RelationshipId,
    /// Blocks that may differ from what was staged.
    pub marked: Bytes,
    /// Blocks of the epoch that is being staged.
    pub sealed: Bytes,
    /// Regions with blocks in a staged segment that the replica has not confirmed.
    pub unconfirmed: Bytes,
    /// Regions that must be compared with the replica.
    pub suspect: Bytes,
    /// Regions that are compared after a power cut, at most.
    pub armed: Bytes,
    /// The write-intent log.
    pub log: LogStatus,
    /// Commits of the log since this diskd started.
    pub commits: u64,
    /// Sweeps since this diskd started: regions that are the replica's again leave the log.
    pub sweeps: u64,
}

/// How the write-intent log of a disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LogStatus {
    /// It is kept.
    Kept,
    /// It could not be written: after a power cut the whole disk is compared.
    Lost {
        /// Why.
        why: String,
    },
}

/// What became of the epochs of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochStatus {
    /// Cuts that hold.
    pub cuts: u64,
    /// Cuts given up because a disk did not stop issuing writes in time.
    pub abandoned: u64,
    /// Epochs whose marks went back, before or after their segment was whole.
    pub folded_back: u64,
    /// The last of them.
    pub last_fold_back: Option<FoldedBack>,
    /// How long the guest's writes were held up by cuts.
    pub pauses: Pauses,
    /// Old content saved because the guest wrote before it was staged.
    pub copied: Bytes,
}

/// An epoch that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldedBack {
    /// Why.
    pub why: String,
    /// When.
    pub time: Timestamp,
}

/// How long the guest's writes were held up, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pauses {
    /// By the last cut.
    pub last_us: u64,
    /// By the longest.
    pub longest_us: u64,
    /// Half of the cuts took at most this; rounded up, by at most an eighth.
    pub p50_us: u64,
    /// 99 of 100 took at most this; rounded up, by at most an eighth.
    pub p99_us: u64,
}

/// What a suspect region holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionHashes {
    /// Which one.
    pub region: u64,
    /// Of each of its blocks.
    pub hashes: BlockHashes,
}

/// What a region holds while the guest writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangingRegion {
    /// Which one.
    pub region: u64,
    /// Of each of its blocks.
    pub hashes: BlockHashes,
    /// Its blocks that may have changed since the last segment that was confirmed.
    pub changed: Vec<Blocks>,
}

/// What came of comparing a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compared {
    /// Which one.
    pub region: u64,
    /// The blocks of it that differ.
    pub differ: Vec<Blocks>,
}

/// The overlay of a checkpoint: what was written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlayStatus {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// What it holds.
    pub present: Bytes,
    /// Whether it is being merged into what it lies above.
    pub draining: bool,
}

/// A staged segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Staged {
    /// Content held, before compression.
    pub content: Bytes,
    /// Of it, ranges that read as zeroes and cost no payload.
    pub zeroes: Bytes,
    /// Length of the segment file.
    pub file_len: Bytes,
    /// Old content saved because the guest wrote before it was staged.
    pub copied_before_write: Bytes,
    /// How long the guest's operations were held up by the cut, in microseconds.
    pub pause_us: u64,
    /// Where the next part of an initial replication goes on; none when the end of the disk was
    /// reached, and for a cut.
    pub next: Option<u64>,
}
