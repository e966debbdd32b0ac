//! One map of the state file: bits, and what is known of its pages without looking at them.
//!
//! The summary has a bit a page, set before anything is stored there: where it is clear, the page is
//! all zero. So clearing, counting and seeking touch only pages that have, or had, bits. It is memory
//! of this process only, built from the file at the opening: no crash leaves one that lies.
//!
//! A page whose summary bit is clear is written without being read first. The kernel answers a first
//! read of a page by mapping its neighbours too, those of 64 KiB, and they would stay in memory.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::Advice;

use super::layout::{PAGE, PAGE_BITS, PAGE_WORDS, REGION_BLOCKS, WORD_BITS, index};

/// Words that hold the marks of a region.
const REGION_WORDS: u64 = REGION_BLOCKS / WORD_BITS;
/// Bytes read at once when a map is summed up.
const CHUNK: usize = 1 << 18;

/// What is known of a map.
#[derive(Default)]
pub(super) struct Summary {
    /// A bit a page.
    pages: RefCell<Vec<u64>>,
    /// Bits set in the map.
    count: Cell<u64>,
}

impl Summary {
    fn has(&self, page: u64) -> bool {
        let pages = self.pages.borrow();
        let word = pages.get(index(page / WORD_BITS));
        word.is_some_and(|word| word >> (page % WORD_BITS) & 1 != 0)
    }

    fn add(&self, page: u64) {
        let (at, mut pages) = (index(page / WORD_BITS), self.pages.borrow_mut());
        if at >= pages.len() {
            pages.resize(at + 1, 0);
        }
        pages[at] |= 1 << (page % WORD_BITS);
    }

    /// The first page from `from` on that may have bits.
    fn next(&self, from: u64) -> Option<u64> {
        let pages = self.pages.borrow();
        let mut at = from;
        loop {
            let word = pages.get(index(at / WORD_BITS))? >> (at % WORD_BITS);
            if word != 0 {
                return Some(at + u64::from(word.trailing_zeros()));
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
    }
}

/// The only way into the file: kill -9 cannot undo or reorder what the processor has done, but the
/// compiler could reorder it.
pub(super) fn store(word: &AtomicU64, value: u64) {
    #[cfg(test)]
    super::killed::maybe();
    word.store(value, Ordering::Release);
}

/// A map.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    /// Of the largest disk; what lies beyond this one's is not touched.
    pub(super) words: &'a [AtomicU64],
    pub(super) summary: &'a Summary,
}

impl Bits<'_> {
    /// Bits set.
    pub(super) fn count(self) -> u64 {
        self.summary.count.get()
    }

    fn load(self, at: u64) -> u64 {
        self.words[index(at)].load(Ordering::Relaxed)
    }

    /// Sets bits of the word `at`.
    fn or(self, at: u64, mask: u64) {
        let page = at / PAGE_WORDS;
        let old = if self.summary.has(page) {
            self.load(at)
        } else {
            self.summary.add(page);
            0
        };
        let added = mask & !old;
        if added != 0 {
            store(&self.words[index(at)], old | mask);
            self.summary
                .count
                .set(self.count() + u64::from(added.count_ones()));
        }
    }

    /// Sets bits.
    pub(super) fn set(self, bits: Range<u64>) {
        for_words(bits, |at, mask| self.or(at, mask));
    }

    /// Clears bits.
    pub(super) fn clear(self, bits: Range<u64>) {
        for_words(bits, |at, mask| {
            self.take(at, mask);
        });
    }

    /// Clears bits of the word `at`; those that were set.
    fn take(self, at: u64, mask: u64) -> u64 {
        if !self.summary.has(at / PAGE_WORDS) {
            return 0;
        }
        let old = self.load(at);
        let taken = old & mask;
        if taken != 0 {
            store(&self.words[index(at)], old & !mask);
            self.summary
                .count
                .set(self.count() - u64::from(taken.count_ones()));
        }
        taken
    }

    /// Moves bits to another map. They are there before they are gone here.
    pub(super) fn move_to(self, to: Bits<'_>, bits: Range<u64>) {
        for_words(bits, |at, mask| {
            if self.summary.has(at / PAGE_WORDS) {
                let moved = self.load(at) & mask;
                if moved != 0 {
                    to.or(at, moved);
                    self.take(at, moved);
                }
            }
        });
    }

    /// Sets all bits of this map in another one too.
    pub(super) fn add_to(self, to: Bits<'_>) {
        for page in self.pages() {
            for at in page * PAGE_WORDS..(page + 1) * PAGE_WORDS {
                let word = self.load(at);
                if word != 0 {
                    to.or(at, word);
                }
            }
        }
    }

    /// Sets in `to` the region of every block that is set here.
    pub(super) fn add_regions_to(self, to: Bits<'_>) {
        for page in self.pages() {
            let first = page * PAGE_WORDS / REGION_WORDS;
            for word in first / WORD_BITS..(first + PAGE_WORDS / REGION_WORDS) / WORD_BITS {
                let mut mask = 0;
                for bit in 0..WORD_BITS {
                    let at = (word * WORD_BITS + bit) * REGION_WORDS;
                    let any = (at..at + REGION_WORDS).any(|at| self.load(at) != 0);
                    mask |= u64::from(any) << bit;
                }
                if mask != 0 {
                    to.or(word, mask);
                }
            }
        }
    }

    /// Clears everything; the pages leave the memory of this process, and stay reserved in the file.
    pub(super) fn wipe(self) {
        let mut touched = None;
        for page in self.pages() {
            for at in page * PAGE_WORDS..(page + 1) * PAGE_WORDS {
                if self.load(at) != 0 {
                    store(&self.words[index(at)], 0);
                }
            }
            let first = touched.map_or(page, |touched: Range<u64>| touched.start);
            touched = Some(first..page + 1);
        }
        if let Some(touched) = touched {
            self.let_go(touched);
        }
        self.summary.pages.borrow_mut().fill(0);
        self.summary.count.set(0);
    }

    /// Unmaps pages from this process until they are touched again.
    fn let_go(self, pages: Range<u64>) {
        let words = &self.words[index(pages.start * PAGE_WORDS)..index(pages.end * PAGE_WORDS)];
        let at = words.as_ptr().cast_mut().cast();
        // SAFETY: whole pages of a shared mapping of a file, alive while `self.words` is borrowed. What
        // they hold is in the file: a later load faults in the same values.
        let outcome = unsafe { rustix::mm::madvise(at, size_of_val(words), Advice::LinuxDontNeed) };
        if let Err(error) = outcome {
            tracing::debug!(%error, "pages of the state stay in memory");
        }
    }

    fn pages(self) -> impl Iterator<Item = u64> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let page = self.summary.next(from)?;
            from = page + 1;
            Some(page)
        })
    }

    /// The first run of set bits inside `within`.
    pub(super) fn next(self, within: Range<u64>) -> Option<Range<u64>> {
        let start = self.next_set(within.clone())?;
        Some(start..self.next_clear(start..within.end))
    }

    /// Whether any of the bits is set.
    pub(super) fn any(self, bits: Range<u64>) -> bool {
        self.next_set(bits).is_some()
    }

    fn next_set(self, within: Range<u64>) -> Option<u64> {
        let mut at = within.start;
        while at < within.end {
            let page = at / PAGE_BITS;
            if !self.summary.has(page) {
                at = self.summary.next(page + 1)? * PAGE_BITS;
                continue;
            }
            let word = self.load(at / WORD_BITS) >> (at % WORD_BITS);
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros());
                return (found < within.end).then_some(found);
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    fn next_clear(self, within: Range<u64>) -> u64 {
        let mut at = within.start;
        while at < within.end && self.summary.has(at / PAGE_BITS) {
            let word = !self.load(at / WORD_BITS) >> (at % WORD_BITS);
            if word != 0 {
                return within.end.min(at + u64::from(word.trailing_zeros()));
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        within.end.min(at)
    }

    /// Sums up what the file has of this map, `bits` of them at `offset`. The file is read, not the
    /// mapping: what is zero does not come into the memory of this process.
    pub(super) fn sum_up(self, file: &std::fs::File, offset: u64, bits: u64) -> io::Result<()> {
        let end = bits.div_ceil(PAGE_BITS) * PAGE;
        let mut chunk = vec![0; CHUNK];
        let (mut at, mut count) = (0, 0);
        while at < end {
            let chunk = &mut chunk[..CHUNK.min(index(end - at))];
            file.read_exact_at(chunk, offset + at)?;
            for page in chunk.chunks_exact(index(PAGE)) {
                let words = page.chunks_exact(8).map(|word| {
                    let word = word.try_into().expect("8 bytes");
                    u64::from_ne_bytes(word).count_ones()
                });
                let ones = u64::from(words.sum::<u32>());
                if ones != 0 {
                    self.summary.add(at / PAGE);
                    count += ones;
                }
                at += PAGE;
            }
        }
        self.summary.count.set(count);
        // Of no block of the disk.
        self.clear(bits..end * 8);
        Ok(())
    }
}

/// Calls `visit(word, mask)` for every word that holds bits of `range`.
fn for_words(range: Range<u64>, mut visit: impl FnMut(u64, u64)) {
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min((at / WORD_BITS + 1) * WORD_BITS);
        let mask = (u64::MAX >> (WORD_BITS - (end - at))) << (at % WORD_BITS);
        visit(at / WORD_BITS, mask);
        at = end;
    }
}
