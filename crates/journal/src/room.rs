//! Room: what a journal takes in its file system, and what it still needs of that.
//!
//! ```text
//!   now          | base, with holes | segments, compressed | free ...............................|
//!   merged       | base, not compressed, with less holes              | free ..................|
//!                                                          |<-- owed ->|
//! ```
//!
//! While what it owes is free, every segment can go into the base, one after the other. It is bounded in two
//! ways: by what segments hold beyond the length of their files, as if nothing of that were in the base, which
//! costs nothing to know; and by the blocks that some segment has and the base has not, which are
//! [counted](Journal::count_owed) when it matters.

use std::collections::HashMap;

use model::{BLOCK_SIZE, Bytes, DiskId};

use crate::changes::Gather;
use crate::index::Entry;
use crate::rules::{Rule, hold};
use crate::{Journal, JournalError, MAX_EXTENTS, SegmentReader, Source};

/// Space that a journal may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Most bytes for this journal; none: whatever the file system has.
    pub limit: Option<Bytes>,
    /// Bytes of the file system that stay free whatever comes.
    pub reserve: Bytes,
    /// Bytes that other journals on the file system [owe](Journal::owed) it.
    pub owed: Bytes,
}

/// Why there is no room for a segment.
#[derive(Debug, thiserror::Error)]
pub enum NoRoom {
    /// The journal's limit.
    #[error("the journal takes {used} of its {limit}; {len} more do not fit")]
    Limit {
        /// What it takes now.
        used: Bytes,
        /// What it may take.
        limit: Bytes,
        /// What was to come.
        len: Bytes,
    },
    /// The file system's space.
    #[error(
        "the file system has {free} left, of which {reserve} are kept, and {owed} for points that go into \
         their base; {len} more do not fit"
    )]
    Free {
        /// What it has left.
        free: Bytes,
        /// What stays free.
        reserve: Bytes,
        /// What journals there owe.
        owed: Bytes,
        /// What was to come.
        len: Bytes,
    },
    /// It cannot be told.
    #[error("cannot tell how much space is left")]
    Unknown(#[source] JournalError),
}

/// Most bytes of blocks that some segment has and the base has not: as they were counted, and what that may
/// have become since.
#[derive(Debug, Default)]
pub(crate) struct Lacking(Option<Counted>);

#[derive(Debug, Clone, Copy)]
struct Counted {
    bytes: u64,
    since: u64,
}

impl Lacking {
    /// A segment with so many bytes of content came, or one went into the base that made so many of it
    /// a hole.
    pub(crate) fn grows(&mut self, by: u64) {
        if let Some(counted) = &mut self.0 {
            counted.since = counted.since.saturating_add(by);
        }
    }

    fn most(&self) -> u64 {
        self.0.map_or(u64::MAX, |counted| {
            counted.bytes.saturating_add(counted.since)
        })
    }

    /// Whether counting again may tell much less.
    fn is_vague(&self) -> bool {
        self.0
            .is_none_or(|counted| counted.since > counted.bytes / 4)
    }
}

impl Journal {
    /// Most bytes that what was committed takes in the file system, now and after its segments went
    /// to the base, where nothing is compressed; incoming files not counted.
    ///
    /// # Errors
    /// A failed read of the base files' sizes.
    pub fn committed_len(&self) -> Result<Bytes, JournalError> {
        let (base, lacks) = self.base_lens()?;
        let (sums, gone) = (&self.index.sums, self.packs.gone(&self.index));
        let grown = base.saturating_add(sums.grown).saturating_add(gone);
        let files = sums.files.saturating_add(gone);
        // However often a block was written, the base has it once.
        let whole = base.saturating_add(lacks).saturating_add(files);
        Ok(Bytes(grown.min(whole)))
    }

    /// What the base files take in the file system, and how much more they would without a hole.
    fn base_lens(&self) -> Result<(u64, u64), JournalError> {
        let newest = self.index.newest().map(|entry| entry.disks.clone());
        let (mut base, mut lacks) = (0_u64, 0_u64);
        for (disk, file) in self.bases()? {
            let allocated = file
                .allocated()
                .map_err(|source| JournalError::io("measure", &disk.file(), source))?;
            base = base.saturating_add(allocated);
            // It becomes longer with the first segment that has it so.
            let size = match &newest {
                None => disk.size.0,
                Some(disks) => match disks.iter().find(|extent| extent.id == disk.id) {
                    Some(extent) => extent.size.0.max(disk.size.0),
                    // It is gone since, and may have grown before that.
                    None => u64::MAX,
                },
            };
            lacks = lacks.saturating_add(size.saturating_sub(allocated));
        }
        Ok((base, lacks))
    }

    /// What it owes its file system: most bytes of that which are free now, and needed while segments go
    /// into the base one by one.
    ///
    /// # Errors
    /// A failed read of the base files' sizes.
    pub fn owed(&self) -> Result<Bytes, JournalError> {
        self.owed_with(0, 0)
    }

    /// The same with a segment more: the `held` bytes of its file, and what its content takes beyond those.
    fn owed_with(&self, held: u64, beyond: u64) -> Result<Bytes, JournalError> {
        if !hold(Rule::KeepOwed) {
            return Ok(Bytes(0));
        }
        let (_, lacks) = self.base_lens()?;
        let sums = &self.index.sums;
        // A file is there until all that it holds is in the base.
        let meanwhile = sums.longest().max(held);
        let meanwhile = meanwhile.saturating_add(self.packs.most_kept(&self.index));
        let beyond_files = sums.grown.saturating_sub(sums.files).saturating_add(beyond);
        let content = held.saturating_add(beyond);
        let owed = beyond_files
            .saturating_add(meanwhile)
            .min(self.lacking.most().saturating_add(content))
            .min(lacks);
        Ok(Bytes(owed))
    }

    /// Whether [`Journal::count_owed`] may find that it owes much less than it seems.
    #[must_use]
    pub fn is_owed_vague(&self) -> bool {
        self.lacking.is_vague()
    }

    /// Counts what it owes, block by block: reads the tables of all segments.
    ///
    /// # Errors
    /// A damaged segment, or a failed read.
    pub fn count_owed(&mut self) -> Result<(), JournalError> {
        let bases = self.bases()?;
        let limit = MAX_EXTENTS / bases.len().max(1);
        let mut written: HashMap<DiskId, Gather> = HashMap::new();
        for entry in &self.index.segments {
            self.gather(entry, limit, &mut written)?;
        }
        let mut lacking = 0_u64;
        for (disk, file) in bases {
            let Some(gather) = written.remove(&disk.id) else {
                continue;
            };
            for blocks in gather.finish(disk.id, Bytes(u64::MAX)).extents() {
                let len = (blocks.end - blocks.start).saturating_mul(BLOCK_SIZE);
                let holes = file
                    .holes(blocks.start.saturating_mul(BLOCK_SIZE), len)
                    .map_err(|source| JournalError::io("measure", &disk.file(), source))?;
                lacking = lacking.saturating_add(holes);
            }
        }
        self.lacking = Lacking(Some(Counted {
            bytes: lacking,
            since: 0,
        }));
        Ok(())
    }

    /// Adds the blocks of which the segment has content.
    fn gather(
        &self,
        entry: &Entry,
        limit: usize,
        written: &mut HashMap<DiskId, Gather>,
    ) -> Result<(), JournalError> {
        let name = entry.file();
        let failed = |source| JournalError::segment(&name, source);
        let reader = SegmentReader::of(entry.open(&*self.folder)?).map_err(failed)?;
        for run in reader.runs() {
            let run = run.map_err(failed)?;
            let disk = reader.header().disks.get(usize::from(run.disk));
            if let (Source::Frame { .. }, Some(disk)) = (run.source, disk) {
                let gather = written.entry(disk.id);
                let gather = gather.or_insert_with(|| Gather::new(limit));
                gather.push(run.block..run.block + u64::from(run.count));
            }
        }
        Ok(())
    }

    /// Whether `len` more bytes fit: of a file that is to come, or, of one of which `held` bytes are there, for
    /// what its content takes beyond those. Gives what it [owes](Journal::owed) then.
    ///
    /// # Errors
    /// Why not.
    pub fn would_fit(&self, len: Bytes, held: Bytes, room: Room) -> Result<Bytes, NoRoom> {
        if let Some(limit) = room.limit {
            let used = self.committed_len().map_err(NoRoom::Unknown)?;
            let all = used.0.saturating_add(held.0).checked_add(len.0);
            if all.is_none_or(|sum| sum > limit.0) {
                return Err(NoRoom::Limit { used, limit, len });
            }
        }
        let free = self
            .folder
            .free()
            .map_err(|source| NoRoom::Unknown(JournalError::io("measure", "", source)))?;
        let (now, beyond) = match held.0 {
            0 => (len.0, 0),
            _ => (0, len.0),
        };
        let owes = self.owed_with(held.0, beyond).map_err(NoRoom::Unknown)?;
        let owed = Bytes(owes.0.saturating_add(room.owed.0));
        let kept = room.reserve.0.saturating_add(owed.0);
        if now.checked_add(kept).is_none_or(|needed| needed > free) {
            return Err(NoRoom::Free {
                free: Bytes(free),
                reserve: room.reserve,
                owed,
                len,
            });
        }
        Ok(owes)
    }
}
