//! Blocks of a disk, gathered in any order, in bounded memory.

use std::ops::Range;

use model::{BLOCK_SIZE, Bytes, DiskId};

use super::ChangedDisk;

/// Largest unit, as a power of two of blocks: more than the largest disk.
pub(super) const MAX_UNIT: u8 = 34;

/// See the module. Takes no more memory than for two times the limit.
pub(crate) struct Gather {
    limit: usize,
    unit: u8,
    /// In units.
    extents: Vec<Range<u64>>,
}

impl Gather {
    /// That comes to at most `limit` extents.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            unit: 0,
            extents: Vec::new(),
        }
    }

    /// Adds some blocks.
    pub(crate) fn push(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        let extent = self.in_units(&blocks, 0);
        match self.extents.last_mut() {
            // In order, as mostly.
            Some(last) if last.start <= extent.start && extent.start <= last.end => {
                last.end = last.end.max(extent.end);
            }
            _ => self.extents.push(extent),
        }
        if self.extents.len() >= self.limit.saturating_mul(2) {
            self.compact();
        }
    }

    /// What `extent`, which is in units of `unit`, covers in those of now.
    fn in_units(&self, extent: &Range<u64>, unit: u8) -> Range<u64> {
        let more = self.unit - unit;
        let last = extent.end - 1;
        extent.start >> more..(last >> more) + 1
    }

    /// Sorts, joins, and goes on with larger units until it is no more than the limit.
    fn compact(&mut self) {
        self.extents.sort_unstable_by_key(|extent| extent.start);
        self.join();
        while self.extents.len() > self.limit && self.unit < MAX_UNIT {
            let before = self.unit;
            self.unit += 1;
            for at in 0..self.extents.len() {
                self.extents[at] = self.in_units(&self.extents[at], before);
            }
            self.join();
        }
    }

    /// Joins sorted extents that touch.
    fn join(&mut self) {
        self.extents.dedup_by(|next, before| {
            let touch = next.start <= before.end;
            if touch {
                before.end = before.end.max(next.end);
            }
            touch
        });
    }

    /// Of the disk `id`, which has this size. Blocks past its end are none.
    pub(crate) fn finish(mut self, id: DiskId, size: Bytes) -> ChangedDisk {
        self.compact();
        // The last unit may reach past the end, but has to begin before it.
        let units = (size.0 / BLOCK_SIZE).div_ceil(1 << self.unit);
        self.extents.retain_mut(|extent| {
            extent.end = extent.end.min(units);
            extent.start < extent.end
        });
        self.extents.shrink_to_fit();
        ChangedDisk {
            id,
            size,
            unit: self.unit,
            extents: self.extents,
        }
    }
}
