//! A bit for each region.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use super::page::WORDS;

const WORD: u64 = 64;

/// Bits of regions, in words that pages of the log hold as they are.
#[derive(Debug, Default)]
pub(super) struct Bits {
    words: RefCell<Vec<u64>>,
    count: Cell<u64>,
}

fn index(region: u64) -> usize {
    usize::try_from(region / WORD).expect("a word of a disk of 64 TiB at most")
}

/// The bits of `regions` that are in the word of the first, and where the next word begins.
fn mask(regions: &Range<u64>) -> (u64, u64) {
    let next = regions.end.min((regions.start / WORD + 1) * WORD);
    let len = next - regions.start;
    ((u64::MAX >> (WORD - len)) << (regions.start % WORD), next)
}

impl Bits {
    /// Makes room for `pages` pages of bits; those that are new are not set.
    pub(super) fn grow(&self, pages: usize) {
        self.words.borrow_mut().resize(pages * WORDS, 0);
    }

    /// How many are set.
    pub(super) fn count(&self) -> u64 {
        self.count.get()
    }

    /// Whether all of `regions` are set; not where there is no room for them.
    pub(super) fn all(&self, regions: Range<u64>) -> bool {
        let words = self.words.borrow();
        let mut left = regions;
        while left.start < left.end {
            let (mask, next) = mask(&left);
            if words
                .get(index(left.start))
                .is_none_or(|word| word & mask != mask)
            {
                return false;
            }
            left.start = next;
        }
        true
    }

    /// Sets or clears `regions`; `changed` is told where words did change.
    pub(super) fn put(&self, regions: Range<u64>, set: bool, mut changed: impl FnMut(usize)) {
        let mut words = self.words.borrow_mut();
        let mut left = regions;
        while left.start < left.end {
            let (mask, next) = mask(&left);
            let at = index(left.start);
            let old = words[at];
            words[at] = if set { old | mask } else { old & !mask };
            if words[at] != old {
                self.recount(old, words[at]);
                changed(at);
            }
            left.start = next;
        }
    }

    /// Of page `page` (from 0 on) sets what `bits` and `and` both have set.
    pub(super) fn join(&self, page: usize, bits: &[u64], and: &Self) {
        let mut words = self.words.borrow_mut();
        let and = and.words.borrow();
        for (at, bits) in (page * WORDS..).zip(bits) {
            let old = words[at];
            words[at] |= bits & and[at];
            self.recount(old, words[at]);
        }
    }

    /// Exchanges the words of page `page`.
    pub(super) fn fill(&self, page: usize, content: &[u64]) {
        let mut words = self.words.borrow_mut();
        for (word, new) in words[page * WORDS..].iter_mut().zip(content) {
            self.recount(*word, *new);
            *word = *new;
        }
    }

    fn recount(&self, old: u64, new: u64) {
        let count = self.count.get() + u64::from(new.count_ones());
        self.count.set(count - u64::from(old.count_ones()));
    }

    /// The words of page `page`, from 0 on.
    pub(super) fn page(&self, page: usize) -> Vec<u64> {
        self.words.borrow()[page * WORDS..][..WORDS].to_vec()
    }

    /// The words of all pages.
    pub(super) fn all_words(&self) -> Vec<u64> {
        self.words.borrow().clone()
    }

    /// How many regions right before `region` are set, at most `most`.
    pub(super) fn run_before(&self, region: u64, most: u64) -> u64 {
        let words = self.words.borrow();
        let first = region.saturating_sub(most);
        let mut at = region;
        while at > first {
            // The bits before `at` in its word, the nearest one highest.
            let inside = (at - 1) % WORD + 1;
            let bits = words.get(index(at - 1)).copied().unwrap_or(0) << (WORD - inside);
            let set = u64::from(bits.leading_ones()).min(inside);
            at -= set;
            if set < inside {
                break;
            }
        }
        region - at.max(first)
    }

    /// The first run in `within` of regions that are set.
    pub(super) fn next(&self, within: Range<u64>) -> Option<Range<u64>> {
        let words = self.words.borrow();
        let find = |from: u64, set: bool| {
            let mut at = from;
            while at < within.end {
                let bits = words.get(index(at)).copied().unwrap_or(0);
                let wanted = if set { bits } else { !bits } >> (at % WORD);
                if wanted != 0 {
                    return (at + u64::from(wanted.trailing_zeros())).min(within.end);
                }
                at = (at / WORD + 1) * WORD;
            }
            within.end
        };
        let start = find(within.start, true);
        (start < within.end).then(|| start..find(start, false))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn they_are_a_set_of_numbers() {
        // 300 seeds.
        for seed in 0..300 {
            let mut rng = testkit::Rng::new(seed);
            let bits = Bits::default();
            bits.grow(1);
            let mut model = BTreeSet::new();
            let end = WORDS as u64 * WORD;
            for _ in 0..60 {
                let start = rng.below(end);
                let most = [3, 70, 500][rng.index(3)];
                let range = start..(start + rng.below(most)).min(end);
                let set = rng.once_in(2);
                let mut touched = BTreeSet::new();
                bits.put(range.clone(), set, |word| {
                    touched.insert(word as u64);
                });
                let changed = range.clone().filter(|at| model.contains(at) != set);
                let changed: BTreeSet<u64> = changed.map(|at| at / WORD).collect();
                assert_eq!(touched, changed);
                if set {
                    model.extend(range.clone());
                } else {
                    model.retain(|at| !range.contains(at));
                }
                assert_eq!(bits.count(), model.len() as u64);
                let look = rng.below(end)..end;
                let first = model.range(look.clone()).next().copied();
                let run = bits.next(look.clone());
                assert_eq!(run.clone().map(|run| run.start), first);
                if let Some(run) = run {
                    assert!(bits.all(run.clone()));
                    assert!(run.end == look.end || !model.contains(&run.end));
                }
                let before = (0..start).rev().take_while(|at| model.contains(at));
                let before = before.take(100).count() as u64;
                assert_eq!(bits.run_before(start, 100), before);
                let all = range.clone().all(|at| model.contains(&at));
                assert_eq!(bits.all(range), all);
            }
            assert!(!bits.all(end - 1..end + 1), "what there is no room for");
        }
    }
}
