//! Which blocks an overlay holds: a bit for each block of 4 KiB, twice.
//!
//! The *volatile* map is a mapped file in the run folder: a bit set there survives `kill -9` and is
//! ignored after a reboot, or when there is no durable map yet. The *durable* map is a file beside the
//! data. Each of its bits is right whether old or new (see `overlay`), so that a torn write of a page
//! of it leaves a valid one.
//!
//! ```text
//!   both files   | header, 4 KiB: magic, tag, size, boot (volatile only) | bits ...
//! ```
//!
//! Both take all their space when they are begun: a file system that is full refuses then, not when
//! something that was written is flushed.
//!
//! The size is that of the disk when the map was begun. A disk may grow later, and the map with it:
//! what it says nothing of is absent. No bit may lie behind the end of the disk.
#![allow(unsafe_code, reason = "words of the mapping are reached as atomics")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Buffer, Fault, Store};
use memmap2::{MmapOptions, MmapRaw};
use model::{BLOCK_SIZE, BootId};
use rustix::fs::{FallocateFlags, fallocate};

const VOLATILE: u64 = u64::from_le_bytes(*b"PLXVOLA1");
const DURABLE: u64 = u64::from_le_bytes(*b"PLXPRES1");
/// Header, and what of a map is written at once, in bytes.
const PAGE: usize = 4096;
const PAGE_WORDS: usize = PAGE / 8;

/// What an overlay lies above; another one must not be put on it.
pub type Tag = [u8; 32];

/// Words of the header: magic, tag, size, boot.
type Header = [u64; 8];

fn header(magic: u64, tag: &Tag, size: u64, boot: (u64, u64)) -> Header {
    let mut words = [magic, 0, 0, 0, 0, size, boot.0, boot.1];
    for (word, bytes) in words[1..5].iter_mut().zip(tag.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    }
    words
}

/// Whether a header says what it should; its size is told, not compared.
fn is_same(word: impl Fn(usize) -> u64, wanted: &Header) -> bool {
    let compared = (0..wanted.len()).filter(|at| *at != 5);
    compared.into_iter().all(|at| word(at) == wanted[at])
}

/// A number of bits, at most 64.
fn small(bits: u64) -> u32 {
    u32::try_from(bits).expect("64 at most")
}

/// The maps of an overlay.
pub(crate) struct Presence<M> {
    map: MmapRaw,
    durable: M,
    /// Blocks of the disk.
    blocks: u64,
    /// How many of them are present.
    count: Cell<u64>,
    /// Pages in which the durable map differs.
    behind: RefCell<BTreeSet<usize>>,
    /// Whether what the durable map's file says is durable. A process that was killed may have
    /// written it and not got to the sync.
    synced: Cell<bool>,
}

/// Why the maps cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// The volatile map's file.
    #[error("cannot map the presence of blocks")]
    Volatile(#[source] io::Error),
    /// The durable map's file.
    #[error("cannot read or write the map of present blocks")]
    Durable(#[source] Fault),
    /// It is no map, or that of an overlay above something else.
    #[error("the map of present blocks belongs to another disk or another point")]
    Foreign,
    /// It holds blocks that the disk does not have.
    #[error(
        "the map of present blocks holds block {block}, the disk ends at block {end}: give the disk its \
         size back"
    )]
    Outside {
        /// The first that is outside.
        block: u64,
        /// Number of blocks of the disk.
        end: u64,
    },
}

impl<M: Store> Presence<M> {
    /// Opens both maps of a disk of `size` bytes above what `tag` names; those that are empty are
    /// begun.
    pub(crate) async fn open(
        volatile: &Path,
        durable: M,
        boot: BootId,
        tag: &Tag,
        size: u64,
    ) -> Result<Self, PresenceError> {
        let words = usize::try_from((size / BLOCK_SIZE).div_ceil(64)).expect("64 TiB at most");
        let pages = words.div_ceil(PAGE_WORDS);
        let map = Self::map(volatile, (pages + 1) * PAGE).map_err(PresenceError::Volatile)?;
        let presence = Self {
            map,
            durable,
            blocks: size / BLOCK_SIZE,
            count: Cell::new(0),
            behind: RefCell::default(),
            synced: Cell::new(false),
        };
        let wanted = header(DURABLE, tag, size, (0, 0));
        let found = presence.read_page(0).await?;
        if found.iter().all(|word| *word == 0) {
            // A new overlay: what an earlier one at this place held is none of its business. Before
            // it is begun, so that a kill in between leaves no doubt.
            presence.word(0).store(0, Ordering::Release);
            presence.begin(&wanted).await?;
        } else if !is_same(|at| found[at], &wanted) {
            return Err(PresenceError::Foreign);
        }
        let wanted = header(VOLATILE, tag, size, boot.0.as_u64_pair());
        let valid = is_same(|at| presence.word(at).load(Ordering::Relaxed), &wanted);
        if !valid {
            presence.word(0).store(0, Ordering::Release);
        }
        for page in 0..pages {
            let stored = presence.read_page(page + 1).await?;
            let live = (page + 1) * PAGE_WORDS;
            for (at, bits) in (live..).zip(stored) {
                let word = presence.word(at);
                if !valid {
                    word.store(bits, Ordering::Relaxed);
                } else if word.load(Ordering::Relaxed) != bits {
                    presence.behind.borrow_mut().insert(page);
                }
                // Behind the end of the disk as well: each must be inside.
                presence.count_word(at - PAGE_WORDS)?;
            }
        }
        if !valid {
            for (at, value) in wanted.iter().enumerate().rev() {
                presence.word(at).store(*value, Ordering::Release);
            }
        }
        Ok(presence)
    }

    /// Adds the bits of word `number` of the map to the count.
    fn count_word(&self, number: usize) -> Result<(), PresenceError> {
        let bits = self.word(PAGE_WORDS + number).load(Ordering::Relaxed);
        let first = 64 * number as u64;
        let inside = self.blocks.saturating_sub(first).min(64);
        let outside = bits & u64::MAX.checked_shl(small(inside)).unwrap_or(0);
        if outside != 0 {
            return Err(PresenceError::Outside {
                block: first + u64::from(outside.trailing_zeros()),
                end: self.blocks,
            });
        }
        self.count
            .set(self.count.get() + u64::from(bits.count_ones()));
        Ok(())
    }

    fn map(path: &Path, len: usize) -> io::Result<MmapRaw> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        // What is there stays: it is that of the same disk, perhaps before it grew, or replaced.
        // Every page is there before it is mapped: a full tmpfs refuses now, not with a signal.
        fallocate(&file, FallocateFlags::empty(), 0, len as u64)?;
        MmapOptions::new().len(len).map_raw(&file)
    }

    /// An empty durable map. It takes all its space now: a flush that finds no room for it later would
    /// be a failed one.
    async fn begin(&self, wanted: &Header) -> Result<(), PresenceError> {
        let len = self.map.len() as u64;
        let taken = self.durable.zero(0, len).await;
        taken.map_err(PresenceError::Durable)?;
        let mut page = Buffer::zeroed(PAGE);
        for (at, word) in wanted.iter().enumerate() {
            page.copy_from_slice(8 * at, &word.to_le_bytes());
        }
        let written = self.durable.write(0, page).await.outcome;
        written.map_err(PresenceError::Durable)?;
        self.durable.sync().await.map_err(PresenceError::Durable)
    }

    /// Page `number` of the durable file; zeroes past its end.
    async fn read_page(&self, number: usize) -> Result<Vec<u64>, PresenceError> {
        let at = (number * PAGE) as u64;
        let done = self.durable.read(at, Buffer::zeroed(PAGE)).await;
        done.outcome.map_err(PresenceError::Durable)?;
        let bytes = done
            .buffer
            .map(|buffer| buffer.to_vec())
            .unwrap_or_default();
        let words = bytes.chunks_exact(8);
        Ok(words
            .map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")))
            .collect())
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!((at + 1) * 8 <= self.map.len(), "inside the mapping");
        // SAFETY: inside the mapping (checked), aligned, valid for as long as `self`, and only ever
        // reached as an atomic. Whoever maps the file holds the disk's lock.
        unsafe { &*self.map.as_ptr().cast::<AtomicU64>().add(at) }
    }

    fn place(block: u64) -> (usize, u64) {
        let at = usize::try_from(block / 64).expect("inside the disk");
        (PAGE_WORDS + at, 1 << (block % 64))
    }

    /// Whether `block` is in the overlay.
    pub(crate) fn has(&self, block: u64) -> bool {
        let (at, bit) = Self::place(block);
        self.word(at).load(Ordering::Relaxed) & bit != 0
    }

    /// How many blocks are.
    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }

    /// The longest run from `blocks.start` on, inside `blocks`, that is all present or all absent.
    pub(crate) fn run(&self, blocks: Range<u64>) -> (Range<u64>, bool) {
        let present = self.has(blocks.start);
        let end = self.next(blocks.start + 1..blocks.end, !present);
        (blocks.start..end.unwrap_or(blocks.end), present)
    }

    /// The first of `blocks` that is present, or absent.
    pub(crate) fn next(&self, blocks: Range<u64>, present: bool) -> Option<u64> {
        let mut block = blocks.start;
        while block < blocks.end {
            let (at, _) = Self::place(block);
            let bits = self.word(at).load(Ordering::Relaxed);
            let wanted = if present { bits } else { !bits } >> (block % 64);
            if wanted != 0 {
                let found = block + u64::from(wanted.trailing_zeros());
                return (found < blocks.end).then_some(found);
            }
            block = (block / 64 + 1) * 64;
        }
        None
    }

    /// The content of `blocks` is in the overlay's file from now on.
    pub(crate) fn add(&self, blocks: Range<u64>) {
        self.change(blocks, |old, bits| old | bits);
    }

    /// The content of `blocks` is below from now on.
    pub(crate) fn remove(&self, blocks: Range<u64>) {
        self.change(blocks, |old, bits| old & !bits);
    }

    fn change(&self, blocks: Range<u64>, with: impl Fn(u64, u64) -> u64) {
        let mut block = blocks.start;
        while block < blocks.end {
            let (at, _) = Self::place(block);
            let end = blocks.end.min((block / 64 + 1) * 64);
            let bits = (u64::MAX >> (64 - small(end - block))) << (block % 64);
            let word = self.word(at);
            let old = word.load(Ordering::Relaxed);
            let new = with(old, bits);
            if new != old {
                word.store(new, Ordering::Release);
                let count = self.count.get() + u64::from(new.count_ones());
                self.count.set(count - u64::from(old.count_ones()));
                self.behind.borrow_mut().insert(at / PAGE_WORDS - 1);
            }
            block = end;
        }
    }

    /// The pages in which the durable map differs, as they are now. What their bits say must be
    /// durable, above and below, before they are given to [`Presence::store`].
    pub(crate) fn take(&self) -> Vec<(usize, Buffer)> {
        let pages = self.behind.take();
        pages
            .into_iter()
            .map(|page| {
                let mut buffer = Buffer::zeroed(PAGE);
                for at in 0..PAGE_WORDS {
                    let bits = self
                        .word((page + 1) * PAGE_WORDS + at)
                        .load(Ordering::Relaxed);
                    buffer.copy_from_slice(8 * at, &bits.to_le_bytes());
                }
                (page, buffer)
            })
            .collect()
    }

    /// Makes pages durable. After a failure the overlay takes no more flushes, so that nothing has
    /// to be put back.
    pub(crate) async fn store(&self, pages: Vec<(usize, Buffer)>) -> Result<(), Fault> {
        if pages.is_empty() && self.synced.get() {
            return Ok(());
        }
        for (page, buffer) in pages {
            let at = ((page + 1) * PAGE) as u64;
            self.durable.write(at, buffer).await.outcome?;
        }
        self.durable.sync().await?;
        self.synced.set(true);
        Ok(())
    }
}
