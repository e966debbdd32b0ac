//! What the marks of the disk must be.

use std::ops::Range;

use model::BLOCK_SIZE;

use super::BLOCKS;

pub(super) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("small")
}

/// Blocks of the disk.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Set(pub(super) Vec<bool>);

impl Set {
    pub(super) fn none() -> Self {
        Self(vec![false; size(BLOCKS)])
    }

    pub(super) fn all() -> Self {
        Self(vec![true; size(BLOCKS)])
    }

    pub(super) fn add(&mut self, blocks: Range<u64>) {
        self.0[size(blocks.start)..size(blocks.end)].fill(true);
    }

    pub(super) fn join(&mut self, other: &Self) {
        for (here, there) in self.0.iter_mut().zip(&other.0) {
            *here |= there;
        }
    }

    pub(super) fn has(&self, block: u64) -> bool {
        self.0[size(block)]
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().filter(|block| **block).count()
    }

    /// The runs that `next` finds.
    pub(super) fn of(end: u64, unit: u64, next: impl Fn(Range<u64>) -> Option<Range<u64>>) -> Self {
        let mut set = Self::none();
        let mut at = 0;
        while let Some(run) = next(at..end) {
            set.add(run.start * unit..(run.end * unit).min(BLOCKS));
            at = run.end;
        }
        set
    }

    /// Of what `left` and `right` differ.
    pub(super) fn differing(left: &[u8], right: &[u8]) -> Self {
        let blocks = left.chunks(size(BLOCK_SIZE));
        let blocks = blocks.zip(right.chunks(size(BLOCK_SIZE)));
        Self(blocks.map(|(left, right)| left != right).collect())
    }

    /// The first block that `other` has not.
    pub(super) fn beyond(&self, other: &Self) -> Option<usize> {
        let both = self.0.iter().zip(&other.0);
        both.into_iter().position(|(here, there)| *here && !there)
    }
}

/// What the marks must be.
pub(super) struct Model {
    /// What the disk would hold if everything issued had completed.
    pub(super) issued: Vec<u8>,
    pub(super) current: Set,
    pub(super) sealed: Set,
    pub(super) flights: Vec<(u64, Range<u64>)>,
    pub(super) next: u64,
}

impl Model {
    pub(super) fn seal(&mut self) {
        self.sealed = std::mem::replace(&mut self.current, Set::none());
        self.in_flight();
    }

    /// What is in flight is marked again.
    pub(super) fn in_flight(&mut self) {
        for (_, blocks) in &self.flights {
            self.current.add(blocks.clone());
        }
    }

    pub(super) fn fold_back(&mut self) {
        let sealed = std::mem::replace(&mut self.sealed, Set::none());
        self.current.join(&sealed);
    }
}
