//! The newest points are given up: the journal ends with an older one.
//!
//! ```text
//!   points    3    4    5    6    7            it is to end with 5
//!     index:  3, 4, 5                          written anew as a whole
//!     remove the files of segments 6 and 7
//! ```
//!
//! Whoever reads a point up to that one reads none of what goes. What comes next builds on the point that
//! is the newest then, in a term that grew from it.

use std::collections::VecDeque;

use jiff::Timestamp;
use model::{DiskId, Lineage, PointId};

use crate::index::{Entry, Index};
use crate::{Held, Journal, JournalError};

impl Journal {
    /// Gives up all points that are newer than `point`, all of them or none, and durably. Says what stood in
    /// the way if nothing was done: one of them is pinned, open or locked (`now` is compared with that).
    ///
    /// # Errors
    /// [`JournalError::NoSuchPoint`]; [`JournalError::Busy`] while segments are merged; the index cannot be
    /// replaced, and it is as it was, unless that is known only after [`Journal::reload`].
    pub fn cut_off_after(
        &mut self,
        point: PointId,
        now: Timestamp,
    ) -> Result<Option<Held>, JournalError> {
        self.settle()?;
        let Some((position, _)) = self.index.find(point) else {
            return Err(JournalError::NoSuchPoint(point));
        };
        let kept = position.map_or(0, |position| position + 1);
        if kept == self.index.segments.len() {
            return Ok(None);
        }
        if self.is_merging() {
            return Err(JournalError::Busy);
        }
        for entry in self.index.segments.range(kept..) {
            let point = entry.point;
            let pinned = self.index.pins.iter().any(|pin| pin.point == point);
            if pinned || self.leases.holds(point) {
                return Ok(Some(Held::Point(point)));
            }
            if let Some(until) = self.locked(point, now) {
                return Ok(Some(Held::Locked(point, until)));
            }
        }
        let mut shorter = self.index.clone();
        let gone = shorter.cut_off(kept, point);
        let longer = std::mem::replace(&mut self.index, shorter);
        if let Err(error) = self.rewrite() {
            self.index = longer;
            return Err(error);
        }
        self.remove_files(&Vec::from(gone));
        self.drop_bases();
        self.tidy_packs();
        self.unfit.clear();
        self.tended.forget();
        Ok(None)
    }
}

impl Index {
    /// Ends with `point`, the newest of the first `kept` segments or that of the base. The segments that
    /// are gone.
    fn cut_off(&mut self, kept: usize, point: PointId) -> VecDeque<Entry> {
        let gone = self.segments.split_off(kept);
        for entry in &gone {
            self.sums.take(entry);
            self.pins.retain(|pin| pin.point != entry.point);
            self.locks.remove(&entry.point.sequence);
        }
        self.lineage = self.lineage.take().map(|lineage| up_to(&lineage, point));
        let mut disks = self.disks.clone();
        for disk in &mut disks {
            if disk.whole_from.is_none_or(|from| from > point.sequence) {
                disk.whole_from = self.whole_from(disk.id);
            }
        }
        self.disks = disks;
        gone
    }

    /// Number of the first of the newest points in a row that have the disk whole.
    fn whole_from(&self, disk: DiskId) -> Option<u64> {
        let whole = |entry: &&Entry| {
            let mut disks = entry.disks.iter();
            disks.any(|extent| extent.id == disk && !extent.joining)
        };
        let newest_first = self.segments.iter().rev().chain(self.in_base());
        let row = newest_first.take_while(whole);
        row.last().map(|entry| entry.point.sequence)
    }
}

/// The terms up to that of `point`.
fn up_to(lineage: &Lineage, point: PointId) -> Lineage {
    let mut terms = lineage.terms().to_vec();
    if let Some(at) = terms.iter().position(|term| term.id == point.term) {
        terms.truncate(at + 1);
    }
    Lineage::try_from(terms).expect("what a lineage begins with is one")
}
