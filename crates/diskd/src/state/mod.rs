//! State of a disk that survives `kill -9` but not a reboot.
//!
//! A file on tmpfs, mapped shared: what is stored here is in the kernel at once. It is tagged with the
//! boot id; under another boot, or for another disk, it is begun anew, and the write-intent log tells
//! what may differ. For each block it has two bits, for each region of 256 blocks (1 MiB) two more:
//!
//! ```text
//!            mark            seal              release             confirm
//!   clean  -------> marked --------> sealed -----------> unconfirmed ------> clean
//!                      ^               |  (A and B)      (its regions)
//!                      +--- fold_back -+
//!   suspect: a region in which blocks may differ from the twin's, nobody knows which
//! ```
//!
//! # The file, byte by byte
//!
//! It is 6 GiB long and has holes: only the pages that the maps of the disk need are reserved. A disk
//! that grows has more pages reserved, further on in each map; nothing ever moves. Words are of
//! 8 bytes in the host's byte order: the file never leaves the host.
//!
//! | at (bytes) | length | what |
//! |---|---|---|
//! | 0 | 8 | `PLXSTAT3`; stored last when the file is begun |
//! | 8 | 8 | phase. Bit 0: which of A (0) and B (1) is current, guest writes mark there. Bit 1: the other one is sealed: an epoch that is being staged |
//! | 16 | 8 | size of the disk in bytes, a multiple of 4096 |
//! | 24 | 8 | highest term in which it was written |
//! | 32 | 8 | 0: no flush failed; 1: one did; 2: one did, and the disk was closed in order since |
//! | 40 | 8 | 1: changes are tracked for the relationship below |
//! | 48 | 16 | zero |
//! | 64 | 16 | boot id, the high half before the low one |
//! | 80 | 16 | id of the disk, likewise |
//! | 96 | 16 | id of the relationship, likewise |
//! | 112 | 16 | zero |
//! | 8 MiB | 4 KiB per 32 GiB of disk | SUSPECT: a bit a region |
//! | 16 MiB | the same | UNCONFIRMED: a bit a region |
//! | 2 GiB | 4 KiB per 128 MiB of disk | A: a bit a block |
//! | 4 GiB | the same | B: a bit a block |
//!
//! Bit n of a map is bit n mod 64 of its word n / 64. Room for 64 TiB lies between the maps.
//!
//! # What a kill finds
//!
//! A kill may come between any two stores. What is set in one place and cleared in another is set
//! first; what has several words is published by one store after all of them.
//!
//! - `seal` is one store of the phase.
//! - A map that is neither current nor sealed is worth nothing: it is cleared before it becomes current,
//!   here or at the next opening.
//! - A sealed map found at the opening belonged to a process that died while it staged: its marks go
//!   back into the current one, before the phase says that nothing is sealed.
//! - `release`: the regions become unconfirmed, then the phase says that nothing is sealed, then the
//!   map is cleared. Killed in between, blocks are marked and unconfirmed: sent twice, none is missed.
//! - `track`: the marks are there before the relationship is. What is not tracked has no marks: the next
//!   opening clears them.
//! - A failed flush is sticky: no process takes writes any more until the disk was closed in order and
//!   is opened again. Nobody knows then which blocks reached the disk: whoever opens it takes care
//!   of that before [`DiskState::reopened`].
//!
//! # Memory
//!
//! A page of A or B tells of 128 MiB. Pages without bits are not in this process's memory: which have
//! some is summed up at the opening and then known (`bits`), and those of a map that is cleared leave
//! it. They stay reserved in the file. A disk of 1 TiB has 64 MiB reserved and, dirty at random, half of
//! that mapped; the other half only while an epoch is staged.
#![allow(unsafe_code, reason = "the file is mapped and seen as words")]

mod bits;
mod file;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod killed_tests;
mod layout;
#[cfg(test)]
mod memory_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use model::{BLOCK_SIZE, BootId, DiskId, RelationshipId};

use bits::Bits;
use file::StateFile;
pub use layout::REGION_BLOCKS;
use layout::{Map, flush, phase, word};

/// The state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refused.
    #[error("cannot use the state file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk was written in a later term than the one granted now.
    #[error(
        "the disk was written in term {written}, and this host may write in term {granted} only"
    )]
    Term {
        /// Highest term in which it was written since the host booted.
        written: u64,
        /// The term of the grant.
        granted: u64,
    },
}

/// With what tracking begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks<'a> {
    /// Every block is marked.
    All,
    /// The disk is what its twin has.
    None,
    /// It is, but for these blocks.
    Blocks(&'a [Range<u64>]),
    /// It is, but for blocks that nobody knows in these regions.
    Suspect(&'a [Range<u64>]),
}

/// The state of one disk. Used by its owner thread only.
pub struct DiskState {
    file: StateFile,
    path: PathBuf,
    was_found: bool,
    blocks: Cell<u64>,
}

impl DiskState {
    /// Opens the state of the disk `disk` of `size` bytes (a multiple of 4 KiB) at `path`, or
    /// begins it. `term` is what this host may write in.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn open(
        path: &Path,
        boot: BootId,
        disk: DiskId,
        size: u64,
        term: u64,
    ) -> Result<Self, StateError> {
        let opened = StateFile::open(path, boot, disk, size);
        let (file, was_found) = opened.map_err(|source| StateError::Io {
            path: path.to_owned(),
            source,
        })?;
        let written = file.get(word::TERM);
        if written > term {
            return Err(StateError::Term {
                written,
                granted: term,
            });
        }
        file.put(word::TERM, term);
        let state = Self {
            blocks: Cell::new(file.get(word::SIZE) / BLOCK_SIZE),
            file,
            path: path.to_owned(),
            was_found,
        };
        if state.relationship().is_none() {
            state.forget();
        } else if state.is_sealed_phase() {
            state.fold_back();
        } else {
            state.other().wipe();
        }
        state.grow(size)?;
        Ok(state)
    }

    /// Whether this boot's state of this disk was there: it is exact. Otherwise it was begun.
    ///
    /// A process may have been killed between beginning it and [`DiskState::track`]: then it is found,
    /// and has no relationship.
    #[must_use]
    pub fn was_found(&self) -> bool {
        self.was_found
    }

    /// Number of blocks of the disk.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.get()
    }

    /// Number of regions of the disk; the last one may be a part of one.
    #[must_use]
    pub fn regions(&self) -> u64 {
        self.blocks().div_ceil(REGION_BLOCKS)
    }

    /// The disk has `size` bytes from now on, not less than before. What is new counts as changed.
    ///
    /// # Errors
    /// When there is no room for the maps; nothing was changed.
    pub fn grow(&self, size: u64) -> Result<(), StateError> {
        self.reserve(size)?;
        self.grow_reserved(size);
        Ok(())
    }

    /// Makes room for the maps of a disk of `size` bytes.
    ///
    /// # Errors
    /// When there is none; nothing was changed.
    pub fn reserve(&self, size: u64) -> Result<(), StateError> {
        let room = self.file.make_room(size / BLOCK_SIZE);
        room.map_err(|source| StateError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// [`DiskState::grow`] after [`DiskState::reserve`].
    pub fn grow_reserved(&self, size: u64) {
        let (had, blocks) = (self.blocks.get(), size / BLOCK_SIZE);
        if blocks <= had {
            return;
        }
        assert!(self.file.has_room(blocks), "room was made before");
        self.blocks.set(blocks);
        if self.relationship().is_some() {
            self.mark(had..blocks);
        }
        // Last: killed before, the next process grows it once more.
        self.file.put(word::SIZE, size);
    }

    /// The relationship that changes are tracked for.
    #[must_use]
    pub fn relationship(&self) -> Option<RelationshipId> {
        let tracked = self.file.get(word::TRACKED) != 0;
        tracked.then(|| RelationshipId(self.file.uuid(word::RELATIONSHIP)))
    }

    /// Begins to track for `relationship`; what was known is forgotten. A kill finds all of it or no
    /// relationship.
    pub fn track(&self, relationship: RelationshipId, marks: Marks<'_>) {
        self.forget();
        match marks {
            Marks::All => self.mark(0..self.blocks.get()),
            Marks::None => {}
            Marks::Blocks(runs) => runs.iter().cloned().for_each(|run| self.mark(run)),
            Marks::Suspect(regions) => regions.iter().cloned().for_each(|run| self.suspect(run)),
        }
        self.file.put_uuid(word::RELATIONSHIP, relationship.0);
        self.file.put(word::TRACKED, 1);
    }

    /// Tracks no longer and forgets all marks.
    pub fn forget(&self) {
        self.file.put(word::TRACKED, 0);
        self.file.put(word::PHASE, 0);
        for map in Map::ALL {
            self.file.bits(map).wipe();
        }
    }

    /// Whether a flush of the disk failed.
    #[must_use]
    pub fn flush_failed(&self) -> bool {
        // What is none of the three is a failure too.
        self.file.get(word::FLUSH) != flush::NONE_FAILED && !self.is_reopening()
    }

    /// Notes that a flush of the disk failed, before anybody is told. It stays so until the disk is
    /// reopened: [`DiskState::close_failed`], a new process, [`DiskState::reopened`].
    pub fn fail_flush(&self) {
        self.file.put(word::FLUSH, flush::FAILED);
    }

    /// Notes that the disk, of which a flush failed, was closed in order.
    pub fn close_failed(&self) {
        if self.flush_failed() {
            self.file.put(word::FLUSH, flush::FAILED_AND_CLOSED);
        }
    }

    /// Whether this opening ends a failed flush. None of the marks is worth anything, and what may hide
    /// that a block did not reach the disk must be forgotten; then [`DiskState::reopened`].
    #[must_use]
    pub fn is_reopening(&self) -> bool {
        self.file.get(word::FLUSH) == flush::FAILED_AND_CLOSED
    }

    /// The failed flush is over.
    pub fn reopened(&self) {
        if self.is_reopening() {
            self.file.put(word::FLUSH, flush::NONE_FAILED);
        }
    }

    fn current(&self) -> Bits<'_> {
        let map = match self.file.get(word::PHASE) & phase::CURRENT {
            0 => Map::A,
            _ => Map::B,
        };
        self.file.bits(map)
    }

    /// The map that is not current.
    fn other(&self) -> Bits<'_> {
        let map = match self.file.get(word::PHASE) & phase::CURRENT {
            0 => Map::B,
            _ => Map::A,
        };
        self.file.bits(map)
    }

    fn is_sealed_phase(&self) -> bool {
        self.file.get(word::PHASE) & phase::SEALED != 0
    }

    /// Blocks marked in the current map.
    #[must_use]
    pub fn dirty(&self) -> u64 {
        self.current().count()
    }

    /// Blocks of the sealed epoch.
    #[must_use]
    pub fn sealed(&self) -> u64 {
        if self.is_sealed_phase() {
            self.other().count()
        } else {
            0
        }
    }

    /// Regions of which [`DiskState::suspect`] says that blocks may differ.
    #[must_use]
    pub fn suspects(&self) -> u64 {
        self.file.bits(Map::Suspect).count()
    }

    /// Regions of staged segments that were not confirmed.
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.file.bits(Map::Unconfirmed).count()
    }

    /// Marks blocks as changed.
    ///
    /// # Panics
    /// If the disk does not have them.
    pub fn mark(&self, blocks: Range<u64>) {
        assert!(blocks.end <= self.blocks.get(), "a block of the disk");
        self.current().set(blocks);
    }

    /// Seals the current map and makes the other one current.
    ///
    /// # Panics
    /// If an epoch is sealed already.
    pub fn seal(&self) {
        let now = self.unsealed_phase();
        self.file
            .put(word::PHASE, (now ^ phase::CURRENT) | phase::SEALED);
    }

    /// Seals an empty map beside the current one, for [`DiskState::move_to_sealed`].
    ///
    /// # Panics
    /// If an epoch is sealed already.
    pub fn seal_nothing(&self) {
        let now = self.unsealed_phase();
        self.file.put(word::PHASE, now | phase::SEALED);
    }

    fn unsealed_phase(&self) -> u64 {
        assert!(!self.is_sealed_phase(), "one epoch is sealed at a time");
        self.file.get(word::PHASE)
    }

    /// Moves the marks of `blocks` from the current to the sealed map.
    pub fn move_to_sealed(&self, blocks: Range<u64>) {
        self.current().move_to(self.other(), blocks);
    }

    /// Puts the marks of the sealed epoch back: it will not be shipped.
    pub fn fold_back(&self) {
        self.other().add_to(self.current());
        self.forget_sealed();
    }

    /// Forgets the sealed epoch: its segment is whole and carries the marks from now on. Their regions
    /// are unconfirmed.
    pub fn release(&self) {
        self.other()
            .add_regions_to(self.file.bits(Map::Unconfirmed));
        self.forget_sealed();
    }

    fn forget_sealed(&self) {
        let now = self.file.get(word::PHASE);
        self.file.put(word::PHASE, now & !phase::SEALED);
        self.other().wipe();
    }

    /// The replica has every segment that was staged, or none of them is to be had any more and
    /// their blocks are marked or suspect: nothing is unconfirmed.
    pub fn confirm(&self) {
        self.file.bits(Map::Unconfirmed).wipe();
    }

    /// Blocks of these regions may differ, nobody knows which.
    ///
    /// # Panics
    /// If the disk does not have them.
    pub fn suspect(&self, regions: Range<u64>) {
        assert!(regions.end <= self.regions(), "a region of the disk");
        self.file.bits(Map::Suspect).set(regions);
    }

    /// The blocks of `region` that differ are marked: it is suspect no longer.
    pub fn clear_suspect(&self, region: u64) {
        self.file.bits(Map::Suspect).clear(region..region + 1);
    }

    /// The first run of blocks inside `within` that are sealed.
    #[must_use]
    pub fn next_sealed(&self, within: Range<u64>) -> Option<Range<u64>> {
        if !self.is_sealed_phase() {
            return None;
        }
        self.other().next(within)
    }

    /// The first run of blocks inside `within` that are marked in the current map.
    #[must_use]
    pub fn next_marked(&self, within: Range<u64>) -> Option<Range<u64>> {
        self.current().next(within)
    }

    /// The first run of regions inside `within` that are unconfirmed.
    #[must_use]
    pub fn next_unconfirmed(&self, within: Range<u64>) -> Option<Range<u64>> {
        self.file.bits(Map::Unconfirmed).next(within)
    }

    /// The first run of regions inside `within` that are suspect.
    #[must_use]
    pub fn next_suspect(&self, within: Range<u64>) -> Option<Range<u64>> {
        self.file.bits(Map::Suspect).next(within)
    }

    /// Whether no block of `region` is marked or sealed, and the region neither unconfirmed nor suspect.
    #[must_use]
    pub fn is_clean(&self, region: u64) -> bool {
        let blocks = region * REGION_BLOCKS..(region + 1) * REGION_BLOCKS;
        let any = |map, bits| self.file.bits(map).any(bits);
        !any(Map::A, blocks.clone())
            && !any(Map::B, blocks)
            && !any(Map::Unconfirmed, region..region + 1)
            && !any(Map::Suspect, region..region + 1)
    }
}
