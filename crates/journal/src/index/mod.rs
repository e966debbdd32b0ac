//! The index of a journal: the root of its folder. What it does not name does not exist.
//!
//! ```text
//!   file     | header | snapshot: the state when it was written | record | record | ...
//!   memory   Index  --- Change, Change, ... (one record: all of them or none) --->  Index
//! ```
//!
//! [`Index`] is what it says, [`Change`] what can happen to it, [`Log`] the file: each change
//! is appended, and the file is written anew when the records outgrow the snapshot. A point takes
//! 112 bytes of the file and less than 200 of memory, and is found by its sequence number, which
//! rises from segment to segment. Every byte is in docs/formats/journal.md.

mod change;
mod code;
mod first;
mod log;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use durable::Folder;
use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, MAX_DISKS, PointId, SeedId, Since, VmId};
use serde::{Deserialize, Serialize};

pub(crate) use self::change::{Change, Note};
pub(crate) use self::log::{Log, Prepared, bytes_of, forge, open, read_bytes, reserve};
use crate::packs::aligned;
use crate::{Consistency, DiskExtent, JournalError, Root};

/// Its name.
pub(crate) const INDEX: &str = "index";
/// The folder of the segments that have a file of their own.
pub(crate) const SEGMENTS: &str = "segments";
/// The folder of the files that hold many small segments.
pub(crate) const PACKS: &str = "packs";
/// The folder of the run files, which the index does not name.
pub(crate) const RUNS: &str = "runs";
/// The folder of the change sets.
pub(crate) const CHANGES: &str = "changes";

/// Most points of a journal: twelve days of one each second.
pub(crate) const MAX_POINTS: usize = 1 << 20;
/// Most base files: a disk that is gone keeps its own while a point has it.
pub(crate) const MAX_BASES: usize = 2 * MAX_DISKS;
/// Most pins at a time.
pub(crate) const MAX_PINS: usize = 4096;
/// Longest reason of a pin in bytes.
pub(crate) const MAX_REASON: usize = 1024;
/// Most change sets.
pub(crate) const MAX_FILES: usize = 1 << 20;

/// All disks of a point, in the VM's order. Points with the same ones share it.
pub(crate) type DiskSet = Arc<[DiskExtent]>;

/// What the index says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) vm: VmId,
    /// Every disk that has a base file.
    pub(crate) disks: Vec<BaseDisk>,
    pub(crate) seed: SeedId,
    pub(crate) base: Base,
    /// That of the newest segment.
    pub(crate) lineage: Option<Lineage>,
    /// Those above the base, the oldest first; sequence numbers rise.
    pub(crate) segments: VecDeque<Entry>,
    pub(crate) pins: Vec<Pin>,
    /// By the sequence number of the point: until when it may not go.
    pub(crate) locks: BTreeMap<u64, Timestamp>,
    /// Change sets, by their number.
    pub(crate) changes: BTreeMap<u64, ChangeSet>,
    /// Above the number of every pack that ever was.
    pub(crate) next_pack: u32,
    /// What the segments amount to.
    pub(crate) sums: Sums,
}

/// A disk and the size of its base file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BaseDisk {
    pub(crate) id: DiskId,
    pub(crate) size: Bytes,
    /// Number of the first of the newest points in a row that have it whole; none while it is copied.
    #[serde(default = "from_the_first", skip_serializing_if = "is_from_the_first")]
    pub(crate) whole_from: Option<u64>,
}

#[allow(clippy::unnecessary_wraps)]
fn from_the_first() -> Option<u64> {
    Some(0)
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_from_the_first(whole_from: &Option<u64>) -> bool {
    *whole_from == Some(0)
}

impl BaseDisk {
    /// The base of a disk that is new.
    pub(crate) fn new(id: DiskId, size: Bytes) -> Self {
        Self {
            id,
            size,
            whole_from: from_the_first(),
        }
    }

    pub(crate) fn file(&self) -> String {
        format!("base-{}.raw", self.id)
    }
}

/// What the base files hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    /// The first `parts` parts of the initial replication, and perhaps some of the next one.
    Seeding {
        parts: u64,
        /// Root of the last of them.
        last: Option<Root>,
    },
    /// The initial replication, which is no point.
    Seeded,
    /// A point.
    Point(Entry),
    /// A mixture of what it held before and of the oldest segment, which hides the difference.
    Merging,
}

/// A segment, or the point that the base holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) point: PointId,
    pub(crate) since: Since,
    pub(crate) time: Timestamp,
    pub(crate) consistency: Consistency,
    pub(crate) disks: DiskSet,
    /// Of the segment that the primary sent: the point's identity.
    pub(crate) root: Root,
    /// Of the segment that is stored: another one if older segments were put together with it.
    pub(crate) stored: Root,
    pub(crate) place: Place,
    /// Length of the stored segment.
    pub(crate) file_len: Bytes,
    /// What it holds before compression.
    pub(crate) content: Bytes,
    /// Of that, what reads as zeroes.
    pub(crate) zeroes: Bytes,
}

/// Where a segment is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Place {
    /// In a file of its own.
    Own,
    /// In a file with others.
    Pack {
        /// Its number, from 1.
        pack: u32,
        /// First byte.
        at: u64,
    },
}

impl Entry {
    /// Name of the file that holds the segment, in the journal's folder.
    pub(crate) fn file(&self) -> String {
        self.place.file(self.stored)
    }
}

impl Place {
    /// Name of the file that holds the segment `stored`.
    pub(crate) fn file(self, stored: Root) -> String {
        match self {
            Self::Own => format!("{SEGMENTS}/{stored}.seg"),
            Self::Pack { pack, .. } => pack_file(pack),
        }
    }
}

/// Name of pack number `pack` in the journal's folder.
pub(crate) fn pack_file(pack: u32) -> String {
    format!("{PACKS}/{pack}.pack")
}

/// A point that must stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pin {
    pub(crate) point: PointId,
    pub(crate) reason: String,
}

/// A list of changed blocks without their content, `changes/<number>.set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeSet {
    pub(crate) number: u64,
    /// It has every block that changed after that,
    pub(crate) since: Since,
    /// up to that.
    pub(crate) point: PointId,
    pub(crate) len: Bytes,
    /// Hash of the file.
    pub(crate) hash: Root,
}

impl ChangeSet {
    pub(crate) fn file(&self) -> String {
        format!("{CHANGES}/{}.set", self.number)
    }
}

/// What the segments above the base amount to, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Stored segments.
    pub(crate) files: u64,
    /// What they take there or in the base, whichever is more.
    pub(crate) grown: u64,
    /// Lengths of those that have a file of their own, and how many have that.
    pub(crate) own: BTreeMap<u64, u32>,
    /// Of each pack that holds something.
    pub(crate) packs: BTreeMap<u32, Live>,
}

/// What a pack holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

impl Sums {
    pub(crate) fn add(&mut self, entry: &Entry) {
        let (len, grown) = Self::of(entry);
        self.files = self.files.saturating_add(len);
        self.grown = self.grown.saturating_add(grown);
        match entry.place {
            Place::Own => *self.own.entry(len).or_default() += 1,
            Place::Pack { pack, .. } => {
                let live = self.packs.entry(pack).or_default();
                live.segments += 1;
                live.bytes = live.bytes.saturating_add(len);
            }
        }
    }

    pub(crate) fn take(&mut self, entry: &Entry) {
        let (len, grown) = Self::of(entry);
        self.files = self.files.saturating_sub(len);
        self.grown = self.grown.saturating_sub(grown);
        match entry.place {
            Place::Own => {
                if let Some(count) = self.own.get_mut(&len) {
                    *count -= 1;
                    if *count == 0 {
                        self.own.remove(&len);
                    }
                }
            }
            Place::Pack { pack, .. } => {
                if let Some(live) = self.packs.get_mut(&pack) {
                    live.segments -= 1;
                    live.bytes = live.bytes.saturating_sub(len);
                    if live.segments == 0 {
                        self.packs.remove(&pack);
                    }
                }
            }
        }
    }

    /// Length of the longest file of a segment.
    pub(crate) fn longest(&self) -> u64 {
        self.own.last_key_value().map_or(0, |(len, _)| *len)
    }

    fn of(entry: &Entry) -> (u64, u64) {
        let len = match entry.place {
            Place::Own => entry.file_len.0,
            Place::Pack { .. } => aligned(entry.file_len.0),
        };
        let content = entry.content.0.saturating_sub(entry.zeroes.0);
        (len, content.max(len))
    }
}

impl Index {
    /// That of a journal that was just made.
    pub(crate) fn new(vm: VmId, seed: SeedId, disks: Vec<BaseDisk>) -> Self {
        Self {
            vm,
            disks,
            seed,
            base: Base::Seeding {
                parts: 0,
                last: None,
            },
            lineage: None,
            segments: VecDeque::new(),
            pins: Vec::new(),
            locks: BTreeMap::new(),
            changes: BTreeMap::new(),
            next_pack: 1,
            sums: Sums::default(),
        }
    }

    /// The point that the base holds.
    pub(crate) fn in_base(&self) -> Option<&Entry> {
        match &self.base {
            Base::Point(entry) => Some(entry),
            Base::Seeding { .. } | Base::Seeded | Base::Merging => None,
        }
    }

    /// The points with their positions in the list of segments (none: the base), oldest first.
    pub(crate) fn points(&self) -> impl Iterator<Item = (Option<usize>, &Entry)> {
        let base = self.in_base().map(|entry| (None, entry));
        let segments = self.segments.iter().enumerate();
        base.into_iter()
            .chain(segments.map(|(position, entry)| (Some(position), entry)))
    }

    /// Number of points.
    pub(crate) fn count(&self) -> usize {
        self.segments.len() + usize::from(self.in_base().is_some())
    }

    /// The point, and its position in the list of segments (none: the base). Takes steps of the order of
    /// the logarithm of their number.
    pub(crate) fn find(&self, point: PointId) -> Option<(Option<usize>, &Entry)> {
        if let Some(base) = self.in_base().filter(|base| base.point == point) {
            return Some((None, base));
        }
        let at = self.position(point.sequence).ok()?;
        let entry = &self.segments[at];
        (entry.point == point).then_some((Some(at), entry))
    }

    /// Position of the segment with this sequence number, or of the first one above it.
    pub(crate) fn position(&self, sequence: u64) -> Result<usize, usize> {
        self.segments
            .binary_search_by_key(&sequence, |entry| entry.point.sequence)
    }

    pub(crate) fn newest(&self) -> Option<&Entry> {
        self.segments.back().or_else(|| self.in_base())
    }

    /// The disks of the points, those of many points in a row once.
    pub(crate) fn disk_sets(&self) -> impl Iterator<Item = &DiskSet> {
        let mut before: Option<&DiskSet> = None;
        self.points().filter_map(move |(_, entry)| {
            let same = before.is_some_and(|before| Arc::ptr_eq(before, &entry.disks));
            before = Some(&entry.disks);
            (!same).then_some(&entry.disks)
        })
    }

    /// The base of the disk `id`.
    pub(crate) fn base_of(&self, id: DiskId) -> Option<&BaseDisk> {
        self.disks.iter().find(|disk| disk.id == id)
    }

    /// Reads the index of a journal that another process may be changing: as it is now, or as it was
    /// just before.
    pub(crate) fn load(folder: &dyn Folder) -> Result<Self, JournalError> {
        log::load(folder).map(|opened| opened.index)
    }

    /// What contradicts what the rest of the code relies on, beyond what each change is checked for.
    fn fault(&self) -> Option<&'static str> {
        if let Some(fault) = self.bases_fault() {
            return Some(fault);
        }
        for set in self.disk_sets() {
            let known = |disk: &DiskExtent| {
                let base = self.base_of(disk.id);
                base.is_some_and(|base| base.size.0 <= disk.size.0)
            };
            if !set.iter().all(known) {
                return Some("has a point whose disks are smaller than the base");
            }
        }
        match self.base {
            Base::Seeding { .. } => {
                (!self.segments.is_empty()).then_some("has points above an unfinished seed")
            }
            Base::Seeded | Base::Merging => self
                .segments
                .is_empty()
                .then_some("misses the segment above its base"),
            Base::Point(_) => None,
        }
    }

    fn bases_fault(&self) -> Option<&'static str> {
        let whole = |size: &Bytes| size.0 > 0 && size.0 % BLOCK_SIZE == 0;
        let twice = |(at, disk): (usize, &BaseDisk)| {
            self.disks[..at].iter().any(|other| other.id == disk.id)
        };
        if self.disks.is_empty() || self.disks.len() > MAX_BASES {
            Some("names no disk or too many")
        } else if !self.disks.iter().all(|disk| whole(&disk.size)) {
            Some("has a disk whose size is no multiple of 4 KiB")
        } else if self.disks.iter().enumerate().any(twice) {
            Some("names a disk twice")
        } else {
            None
        }
    }
}
