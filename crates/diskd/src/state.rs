//! State of a disk that survives `kill -9` but not a reboot.
//!
//! A preallocated file on tmpfs, mapped shared: what is stored here is in the kernel at once.
//! It is tagged with the boot id; under another boot, or for another disk, it is begun anew.
//!
//! ```text
//!   | header | A | B | A | B | ...      pages; in the maps A and B a bit a block of 4 KiB
//!        phase: bit 0  which map is current (guest writes mark there)
//!               bit 1  the other one is sealed: an epoch that is being staged
//! ```
//!
//! - The phase is one word: exchanging the maps is one store, so no crash finds it half done.
//! - The pages of both maps alternate, so that a disk that grows only makes the file longer.
//! - A map that is neither current nor sealed is all zero before it becomes current.
//! - A sealed map found at opening belonged to a process that died while it staged: its marks go
//!   back into the current one. The union of both maps never misses a changed block.
//! - A failed flush is sticky: no process takes writes any more until the disk was closed in order
//!   and is opened again. Nobody knows then which blocks reached the disk, so none of the marks is
//!   worth anything: every block counts as changed.
//! - `closed` is what the disk's file looked like when it was closed cleanly; a file that looks
//!   otherwise at the next opening was changed behind our back, and the marks are not exact.
//!
//! After a reboot every block counts as changed. The write-intent log, which makes that a bounded
//! set, comes with the hardening of the tracker.
#![allow(unsafe_code, reason = "the file is mapped and seen as words")]

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use model::{BLOCK_SIZE, BootId, DiskId, RelationshipId};
use rustix::fs::FallocateFlags;
use uuid::Uuid;

const MAGIC: u64 = u64::from_le_bytes(*b"PLXSTAT2");
const PAGE: u64 = 4096;
const PAGE_WORDS: usize = 512;
/// Largest disk in bytes: room for its maps is reserved in the address space.
const MAX_DISK: u64 = 64 << 40;
const WORD_BITS: u64 = 64;

/// Words of the header.
mod word {
    pub(super) const MAGIC: usize = 0;
    pub(super) const PHASE: usize = 1;
    pub(super) const SIZE: usize = 2;
    pub(super) const TERM: usize = 3;
    /// One of [`super::flush`].
    pub(super) const FLUSH_FAILED: usize = 4;
    pub(super) const BOOT: usize = 8;
    pub(super) const DISK: usize = 10;
    pub(super) const RELATIONSHIP: usize = 12;
    pub(super) const CLOSED: usize = 16;
    pub(super) const CLOSED_WORDS: usize = 5;
}

/// What became of the flushes of the disk.
mod flush {
    pub(super) const NONE_FAILED: u64 = 0;
    /// It takes no more writes.
    pub(super) const FAILED: u64 = 1;
    /// One failed, and the disk was closed in order since: the next opening is the reopening.
    pub(super) const FAILED_AND_CLOSED: u64 = 2;
}

const CURRENT: u64 = 1;
const SEALED: u64 = 2;

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

/// What tells that a file was not touched while it was closed: device and inode, size,
/// modification and change time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp([u64; word::CLOSED_WORDS]);

impl Stamp {
    /// That of one more file, in their order.
    pub fn add(&mut self, other: Self) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word = word.rotate_left(7) ^ other;
        }
    }

    /// Of the file at `path`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        // Only compared: that a time before 1970 wraps does no harm.
        let nanoseconds = |seconds: i64, nanos: i64| {
            let sum = seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
            u64::from_ne_bytes(sum.to_ne_bytes())
        };
        Ok(Self([
            meta.dev(),
            meta.ino(),
            meta.size(),
            nanoseconds(meta.mtime(), meta.mtime_nsec()),
            nanoseconds(meta.ctime(), meta.ctime_nsec()),
        ]))
    }
}

/// The state of one disk. Used by its owner thread only.
pub struct DiskState {
    file: File,
    path: PathBuf,
    /// Longer than the file: what the file grows by is mapped already.
    map: MmapRaw,
    /// Length of the file in words.
    len: Cell<usize>,
    blocks: Cell<u64>,
    /// Marked blocks of the current map.
    dirty: Cell<u64>,
}

impl DiskState {
    /// Opens the state of the disk `disk` of `size` bytes (a multiple of 4 KiB) at `path`, or
    /// begins it. `looks` is what the disk's file looks like now; `term` what this host may
    /// write in.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn open(
        path: &Path,
        boot: BootId,
        disk: DiskId,
        size: u64,
        term: u64,
        looks: Option<Stamp>,
    ) -> Result<Self, StateError> {
        let io = |source| StateError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        let state = Self::map(file, path).map_err(io)?;
        let had = state.get(word::SIZE);
        let ours = state.get(word::MAGIC) == MAGIC
            && state.uuid(word::BOOT) == boot.0
            && state.uuid(word::DISK) == disk.0
            && had <= size
            && state.has_room(had / BLOCK_SIZE);
        if ours {
            state.blocks.set(had / BLOCK_SIZE);
        } else {
            state.put(word::MAGIC, 0);
            state.make_room(size / BLOCK_SIZE).map_err(io)?;
            state.blocks.set(size / BLOCK_SIZE);
            // Beyond the end of the disk too: it may grow.
            for word in &state.words()[PAGE_WORDS..] {
                clear(word);
            }
            state.forget();
            state.put(word::TERM, 0);
            state.put(word::FLUSH_FAILED, flush::NONE_FAILED);
            state.put_closed(None);
            state.put(word::SIZE, size);
            state.put_uuid(word::BOOT, boot.0);
            state.put_uuid(word::DISK, disk.0);
            state.put(word::MAGIC, MAGIC);
        }
        let written = state.get(word::TERM);
        if written > term {
            return Err(StateError::Term {
                written,
                granted: term,
            });
        }
        state.put(word::TERM, term);
        if state.is_reopening() {
            tracing::warn!(%disk, "a flush failed before the disk was closed: every block counts as changed");
            state.forget();
        }
        let closed = state.closed();
        if closed.is_some_and(|closed| looks != Some(closed)) {
            tracing::warn!(%disk, "the disk was changed while it was closed: every block counts as changed");
            state.forget();
        }
        state.put_closed(None);
        if state.is_sealed_phase() {
            state.fold_back();
        } else {
            state.clear_map(1 - state.current());
        }
        state.dirty.set(state.count(state.current()));
        state.grow(size)?;
        Ok(state)
    }

    fn map(file: File, path: &Path) -> io::Result<Self> {
        let had = file.metadata()?.len();
        if had % PAGE != 0 || had == 0 {
            file.set_len(0)?;
        }
        let most = PAGE + 2 * map_bytes(MAX_DISK / BLOCK_SIZE);
        let most = usize::try_from(most).map_err(|_overflow| io::ErrorKind::FileTooLarge)?;
        let state = Self {
            map: MmapOptions::new().len(most).map_raw(&file)?,
            file,
            path: path.to_owned(),
            len: Cell::new(0),
            blocks: Cell::new(0),
            dirty: Cell::new(0),
        };
        state.allocate(had.max(PAGE))?;
        Ok(state)
    }

    /// Makes the file `len` bytes long. Every page is there before it is used: a full tmpfs refuses
    /// now, not with a signal.
    fn allocate(&self, len: u64) -> io::Result<()> {
        if len > self.map.len() as u64 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len)?;
        self.len.set(index(len / 8));
        Ok(())
    }

    fn make_room(&self, blocks: u64) -> io::Result<()> {
        if self.has_room(blocks) {
            return Ok(());
        }
        self.allocate(PAGE + 2 * map_bytes(blocks))
    }

    fn has_room(&self, blocks: u64) -> bool {
        self.len.get() as u64 * 8 >= PAGE + 2 * map_bytes(blocks)
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
        let room = self.make_room(size / BLOCK_SIZE);
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
        assert!(self.has_room(blocks), "room was made before");
        self.blocks.set(blocks);
        if self.relationship().is_some() {
            self.mark(had..blocks);
        }
        // Last: killed before, the next process grows it once more.
        self.put(word::SIZE, size);
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, lives as long as `self`, and is only ever seen as atomic
        // words. The file is `len` words long, not more than the mapping, and never shortened while
        // it is mapped: whoever maps it holds the disk's lock.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), self.len.get()) }
    }

    fn get(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Relaxed)
    }

    fn put(&self, at: usize, value: u64) {
        // Release: `kill -9` cannot reorder what the processor has done, but the compiler could.
        self.words()[at].store(value, Ordering::Release);
    }

    fn uuid(&self, at: usize) -> Uuid {
        Uuid::from_u64_pair(self.get(at), self.get(at + 1))
    }

    fn put_uuid(&self, at: usize, value: Uuid) {
        let (high, low) = value.as_u64_pair();
        self.put(at, high);
        self.put(at + 1, low);
    }

    fn closed(&self) -> Option<Stamp> {
        let words = std::array::from_fn(|at| self.get(word::CLOSED + at));
        (words != [0; word::CLOSED_WORDS]).then_some(Stamp(words))
    }

    fn put_closed(&self, stamp: Option<Stamp>) {
        let words = stamp.map_or([0; word::CLOSED_WORDS], |stamp| stamp.0);
        for (at, value) in words.into_iter().enumerate() {
            self.put(word::CLOSED + at, value);
        }
    }

    /// Notes what the disk's file looks like, once nothing writes to it any more.
    pub fn close(&self, looks: Stamp) {
        self.put_closed(Some(looks));
    }

    /// Number of blocks of the disk.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.get()
    }

    /// The relationship that changes are tracked for.
    #[must_use]
    pub fn relationship(&self) -> Option<RelationshipId> {
        let id = self.uuid(word::RELATIONSHIP);
        (!id.is_nil()).then_some(RelationshipId(id))
    }

    /// Begins to track for `relationship`, with every block marked.
    pub fn track(&self, relationship: RelationshipId) {
        self.forget();
        self.mark(0..self.blocks.get());
        self.put_uuid(word::RELATIONSHIP, relationship.0);
    }

    /// Tracks no longer and forgets all marks.
    pub fn forget(&self) {
        self.put_uuid(word::RELATIONSHIP, Uuid::nil());
        self.put(word::PHASE, 0);
        self.clear_map(0);
        self.clear_map(1);
        self.dirty.set(0);
    }

    /// Whether a flush of the disk failed.
    #[must_use]
    pub fn flush_failed(&self) -> bool {
        self.get(word::FLUSH_FAILED) == flush::FAILED
    }

    /// Notes that a flush of the disk failed, before anybody is told. It stays so until the disk is
    /// reopened: [`DiskState::close_failed`], a new process, [`DiskState::reopened`].
    pub fn fail_flush(&self) {
        self.put(word::FLUSH_FAILED, flush::FAILED);
    }

    /// Notes that the disk, of which a flush failed, was closed in order.
    pub fn close_failed(&self) {
        if self.flush_failed() {
            self.put(word::FLUSH_FAILED, flush::FAILED_AND_CLOSED);
        }
    }

    /// Whether this opening ends a failed flush. What may hide that a block did not reach the disk
    /// must be forgotten; then [`DiskState::reopened`].
    #[must_use]
    pub fn is_reopening(&self) -> bool {
        self.get(word::FLUSH_FAILED) == flush::FAILED_AND_CLOSED
    }

    /// The failed flush is over.
    pub fn reopened(&self) {
        if self.is_reopening() {
            self.put(word::FLUSH_FAILED, flush::NONE_FAILED);
        }
    }

    /// Blocks marked in the current map.
    #[must_use]
    pub fn dirty(&self) -> u64 {
        self.dirty.get()
    }

    fn current(&self) -> usize {
        usize::from(self.get(word::PHASE) & CURRENT != 0)
    }

    fn is_sealed_phase(&self) -> bool {
        self.get(word::PHASE) & SEALED != 0
    }

    /// One of the two maps.
    fn bits(&self, map: usize) -> Bits<'_> {
        Bits {
            words: self.words(),
            map,
            blocks: self.blocks.get(),
        }
    }

    /// Marks blocks as changed.
    pub fn mark(&self, blocks: Range<u64>) {
        let bits = self.bits(self.current());
        let mut added = 0;
        for_words(blocks, |word, mask| {
            let word = bits.word(word);
            let old = word.load(Ordering::Relaxed);
            if old & mask != mask {
                word.store(old | mask, Ordering::Release);
                added += u64::from((mask & !old).count_ones());
            }
        });
        self.dirty.set(self.dirty.get() + added);
    }

    /// Seals the current map and makes the other one current.
    ///
    /// # Panics
    /// If an epoch is sealed already.
    pub fn seal(&self) {
        let phase = self.get(word::PHASE);
        assert!(phase & SEALED == 0, "one epoch is sealed at a time");
        self.put(word::PHASE, (phase ^ CURRENT) | SEALED);
        self.dirty.set(0);
    }

    /// Seals an empty map beside the current one, for [`DiskState::move_to_sealed`].
    ///
    /// # Panics
    /// If an epoch is sealed already.
    pub fn seal_nothing(&self) {
        let phase = self.get(word::PHASE);
        assert!(phase & SEALED == 0, "one epoch is sealed at a time");
        self.put(word::PHASE, phase | SEALED);
    }

    /// Moves the marks of `blocks` from the current to the sealed map.
    pub fn move_to_sealed(&self, blocks: Range<u64>) {
        let (from, to) = (self.bits(self.current()), self.bits(1 - self.current()));
        let mut moved = 0;
        for_words(blocks, |word, mask| {
            let (from, to) = (from.word(word), to.word(word));
            let old = from.load(Ordering::Relaxed);
            let sealed = to.load(Ordering::Relaxed);
            to.store(sealed | (old & mask), Ordering::Release);
            from.store(old & !mask, Ordering::Release);
            moved += u64::from((old & mask).count_ones());
        });
        self.dirty.set(self.dirty.get() - moved);
    }

    /// Puts the marks of the sealed epoch back: it will not be shipped.
    pub fn fold_back(&self) {
        let (to, from) = (self.bits(self.current()), self.bits(1 - self.current()));
        for (to, from) in to.iter().zip(from.iter()) {
            let back = from.load(Ordering::Relaxed);
            if back != 0 {
                to.store(to.load(Ordering::Relaxed) | back, Ordering::Release);
            }
        }
        self.release();
        self.dirty.set(self.count(self.current()));
    }

    /// Forgets the sealed epoch: its segment is whole and carries the marks from now on.
    pub fn release(&self) {
        self.put(word::PHASE, self.get(word::PHASE) & !SEALED);
        self.clear_map(1 - self.current());
    }

    /// The first run of blocks inside `within` that are sealed.
    #[must_use]
    pub fn next_sealed(&self, within: Range<u64>) -> Option<Range<u64>> {
        if !self.is_sealed_phase() {
            return None;
        }
        self.bits(1 - self.current()).next_run(within)
    }

    /// The first run of blocks inside `within` that are marked in the current map.
    #[must_use]
    pub fn next_marked(&self, within: Range<u64>) -> Option<Range<u64>> {
        self.bits(self.current()).next_run(within)
    }

    fn clear_map(&self, map: usize) {
        for word in self.bits(map).iter() {
            clear(word);
        }
    }

    fn count(&self, map: usize) -> u64 {
        self.bits(map)
            .iter()
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
            .sum()
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("a part of a mapping fits into the address space")
}

/// Pages that are all zero stay untouched.
fn clear(word: &AtomicU64) {
    if word.load(Ordering::Relaxed) != 0 {
        word.store(0, Ordering::Release);
    }
}

/// Calls `visit(word, mask)` for every word that holds bits of `range`.
fn for_words(range: Range<u64>, mut visit: impl FnMut(usize, u64)) {
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min((at / WORD_BITS + 1) * WORD_BITS);
        let mask = (u64::MAX >> (WORD_BITS - (end - at))) << (at % WORD_BITS);
        visit(index(at / WORD_BITS), mask);
        at = end;
    }
}

/// Bytes of one map, whole pages.
fn map_bytes(blocks: u64) -> u64 {
    blocks.div_ceil(8).next_multiple_of(PAGE)
}

/// The words of a map, one page here and the next but one there.
#[derive(Clone, Copy)]
struct Bits<'a> {
    words: &'a [AtomicU64],
    map: usize,
    blocks: u64,
}

impl<'a> Bits<'a> {
    fn word(&self, at: usize) -> &'a AtomicU64 {
        let page = 1 + 2 * (at / PAGE_WORDS) + self.map;
        &self.words[page * PAGE_WORDS + at % PAGE_WORDS]
    }

    fn iter(self) -> impl Iterator<Item = &'a AtomicU64> {
        (0..index(self.blocks.div_ceil(WORD_BITS))).map(move |at| self.word(at))
    }

    /// The first run of set bits inside `within`.
    fn next_run(self, within: Range<u64>) -> Option<Range<u64>> {
        let seek = |from: u64, wanted: bool| {
            let mut at = from;
            while at < within.end {
                let word = self.word(index(at / WORD_BITS)).load(Ordering::Relaxed);
                let word = if wanted { word } else { !word } >> (at % WORD_BITS);
                if word != 0 {
                    return (at + u64::from(word.trailing_zeros())).min(within.end);
                }
                at = (at / WORD_BITS + 1) * WORD_BITS;
            }
            within.end
        };
        let start = seek(within.start, true);
        (start < within.end).then(|| start..seek(start, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1000 * BLOCK_SIZE;

    struct Scratch {
        folder: tempfile::TempDir,
        boot: BootId,
        disk: DiskId,
    }

    impl Scratch {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("scratch");
            Self {
                folder,
                boot: BootId::random(),
                disk: DiskId::random(),
            }
        }

        fn open(&self, term: u64) -> Result<DiskState, StateError> {
            self.open_sized(term, SIZE)
        }

        fn open_sized(&self, term: u64, size: u64) -> Result<DiskState, StateError> {
            let path = self.folder.path().join("state");
            DiskState::open(&path, self.boot, self.disk, size, term, self.looks())
        }

        fn looks(&self) -> Option<Stamp> {
            Stamp::of(&self.folder.path().join("disk")).ok()
        }
    }

    fn marked(state: &DiskState) -> Vec<u64> {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(run) = state.next_marked(from..state.blocks()) {
            from = run.end;
            found.extend(run);
        }
        assert_eq!(found.len() as u64, state.dirty());
        found
    }

    #[test]
    fn marks_and_a_sealed_epoch_survive_the_process_and_come_back_as_one_set() {
        let scratch = Scratch::new();
        let relationship = RelationshipId::random();
        let state = scratch.open(1).expect("opened");
        state.track(relationship);
        assert_eq!(state.dirty(), 1000);
        state.seal();
        state.release();
        state.mark(60..70);
        state.mark(999..1000);
        state.seal();
        state.mark(3..5);
        assert_eq!(state.next_sealed(0..1000), Some(60..70));
        assert_eq!(state.next_sealed(65..68), Some(65..68));
        drop(state);
        let state = scratch.open(1).expect("opened again");
        assert_eq!(state.relationship(), Some(relationship));
        let expected: Vec<u64> = [3, 4].into_iter().chain(60..70).chain([999]).collect();
        assert_eq!(marked(&state), expected);
        assert_eq!(state.next_sealed(0..1000), None);
    }

    #[test]
    fn another_boot_another_disk_or_another_size_begins_anew() {
        let scratch = Scratch::new();
        scratch
            .open(1)
            .expect("opened")
            .track(RelationshipId::random());
        let rebooted = Scratch {
            boot: BootId::random(),
            ..scratch
        };
        let state = rebooted.open(1).expect("opened");
        assert_eq!((state.relationship(), state.dirty()), (None, 0));
        state.track(RelationshipId::random());
        drop(state);
        let other = Scratch {
            disk: DiskId::random(),
            ..rebooted
        };
        assert_eq!(other.open(1).expect("opened").relationship(), None);
    }

    #[test]
    fn a_disk_that_grows_keeps_its_marks_and_what_is_new_counts_as_changed() {
        // 40,000 blocks: the maps have one page, then two.
        let (small, large) = (30_000 * BLOCK_SIZE, 40_000 * BLOCK_SIZE);
        let scratch = Scratch::new();
        let state = scratch.open_sized(1, small).expect("opened");
        state.grow(small + BLOCK_SIZE).expect("room");
        assert_eq!(state.dirty(), 0, "it is not tracked");
        state.track(RelationshipId::random());
        state.seal();
        state.release();
        state.mark(5..7);
        state.seal();
        state.mark(29_999..30_000);
        state.grow(large).expect("room");
        assert_eq!(state.blocks(), 40_000);
        let expected: Vec<u64> = [29_999].into_iter().chain(30_001..40_000).collect();
        assert_eq!(marked(&state), expected);
        assert_eq!(state.next_sealed(0..40_000), Some(5..7));
        state.fold_back();
        drop(state);
        let state = scratch.open_sized(1, large).expect("opened again");
        assert_eq!(state.dirty(), 2 + 1 + 9_999);
        drop(state);
        // The next process grows it: this one was killed in between.
        let state = scratch
            .open_sized(1, large + 9 * BLOCK_SIZE)
            .expect("opened larger");
        assert_eq!(state.dirty(), 2 + 1 + 9_999 + 9);
        drop(state);
        let state = scratch.open_sized(1, small).expect("opened smaller");
        assert_eq!(state.relationship(), None, "another disk");
        assert!(matches!(
            state.grow(MAX_DISK + BLOCK_SIZE),
            Err(StateError::Io { .. })
        ));
        assert_eq!(state.blocks(), 30_000);
    }

    #[test]
    fn a_lower_term_than_the_one_written_in_is_refused() {
        let scratch = Scratch::new();
        drop(scratch.open(3).expect("opened"));
        assert!(matches!(
            scratch.open(2),
            Err(StateError::Term {
                written: 3,
                granted: 2
            })
        ));
        assert!(scratch.open(4).is_ok());
    }

    #[test]
    fn a_disk_that_was_changed_while_it_was_closed_is_tracked_no_longer() {
        let scratch = Scratch::new();
        let disk = scratch.folder.path().join("disk");
        std::fs::write(&disk, b"before").expect("written");
        let state = scratch.open(1).expect("opened");
        state.track(RelationshipId::random());
        state.close(scratch.looks().expect("there"));
        drop(state);
        let state = scratch.open(1).expect("opened");
        assert!(state.relationship().is_some(), "nothing was changed");
        state.close(scratch.looks().expect("there"));
        drop(state);
        std::fs::write(&disk, b"behind our back").expect("written");
        assert_eq!(scratch.open(1).expect("opened").relationship(), None);
    }

    #[test]
    fn a_failed_flush_ends_with_an_opening_after_a_close_and_then_every_block_counts_as_changed() {
        let scratch = Scratch::new();
        let state = scratch.open(1).expect("opened");
        state.track(RelationshipId::random());
        state.close_failed();
        assert!(!state.is_reopening(), "none failed");
        state.fail_flush();
        drop(state);
        let state = scratch.open(1).expect("after a kill");
        assert!(state.flush_failed() && !state.is_reopening());
        assert!(state.relationship().is_some());
        state.reopened();
        assert!(state.flush_failed(), "it was not closed");
        state.close_failed();
        drop(state);
        // Killed before it was done: the next one begins again.
        for _ in 0..2 {
            let state = scratch.open(1).expect("after a close");
            assert!(state.is_reopening() && !state.flush_failed());
            assert_eq!((state.relationship(), state.dirty()), (None, 0));
        }
        let state = scratch.open(1).expect("after a close");
        state.reopened();
        state.track(RelationshipId::random());
        drop(state);
        let state = scratch.open(1).expect("once more");
        assert!(!state.is_reopening() && !state.flush_failed());
        assert!(state.relationship().is_some(), "only once");
    }

    #[test]
    fn moving_marks_to_the_sealed_map_loses_none() {
        let scratch = Scratch::new();
        let state = scratch.open(1).expect("opened");
        state.mark(10..200);
        state.seal_nothing();
        state.move_to_sealed(0..100);
        assert_eq!(state.next_sealed(0..1000), Some(10..100));
        assert_eq!(state.next_marked(0..1000), Some(100..200));
        state.mark(50..51);
        state.fold_back();
        assert_eq!(marked(&state), (10..200).collect::<Vec<u64>>());
    }
}
