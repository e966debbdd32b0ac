//! Retention: the oldest segment goes into the base.
//!
//! ```text
//!   base = point 3, segments 4 5 6
//!     begin    index: base = mixture            point 3 is gone from here on
//!     run      write what segment 4 holds to the base, sync it; note which blocks these are
//!              if a peer may not have come so far
//!     finish   index: base = point 4, segments 5 6
//!              remove the file of segment 4
//! ```
//!
//! Until `finish` the segment stays above the base and hides what is being written, so
//! that every point from 4 on is whole at any instant. After a crash `begin` finds the
//! mixture and everything is done again. A base that was only seeded is no point, and
//! merging the first segment into it loses none.

use std::sync::Arc;

use durable::{File, Group};
use jiff::Timestamp;
use model::PointId;

use crate::changes::{NewSet, Sets};
use crate::index::{Base, Change, Note};
use crate::journal::BaseFile;
use crate::laying::Laying;
use crate::{Journal, JournalError, Root, SegmentReader};

/// What stands in the way of merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// There is no segment above the base.
    Nothing,
    /// The oldest point is pinned, or open for reading.
    Point(PointId),
    /// The oldest point is locked until then.
    Locked(PointId, Timestamp),
}

/// The outcome of [`Journal::begin_merge`].
#[derive(Debug)]
pub enum Begun {
    /// Run it, then finish it.
    Merge(Merge),
    /// Nothing was changed.
    Held(Held),
}

/// The oldest segment on its way into the base. Borrows nothing, so that it can run on another
/// thread while the journal goes on taking points in.
#[derive(Debug)]
pub struct Merge {
    name: String,
    root: Root,
    segment: Arc<dyn File>,
    bases: Vec<BaseFile>,
    /// What it changed is noted for peers that have not come so far.
    set: Option<Box<NewSet>>,
    group: Arc<Group>,
    /// Only one merge at a time.
    token: Arc<()>,
}

/// A merge whose content is in the base and durable.
#[derive(Debug)]
pub struct Merged {
    root: Root,
    sets: Sets,
    _token: Arc<()>,
}

impl Merge {
    /// Writes the segment's content to the base and syncs it.
    ///
    /// # Errors
    /// A damaged segment or a failed write. The journal is whole all the same, and
    /// [`Journal::begin_merge`] begins again.
    pub fn run(self) -> Result<Merged, JournalError> {
        // Checked as if it came from outside: what it says replaces what the base holds.
        let reader = SegmentReader::of(self.segment)
            .map_err(|source| JournalError::segment(&self.name, source))?;
        if reader.summary().root != self.root {
            return Err(JournalError::NotOffered(self.name));
        }
        let mut laying = Laying::begin(reader.clone(), &self.name, &self.bases)?;
        laying.advance(u64::MAX, u64::MAX)?;
        self.group
            .flush(laying.needs())
            .map_err(|source| JournalError::io("flush the base after", &self.name, source))?;
        let sets = match self.set {
            Some(set) => set.write(&reader, &self.name)?,
            None => Sets::default(),
        };
        Ok(Merged {
            root: self.root,
            sets,
            _token: self.token,
        })
    }
}

impl Journal {
    /// Merges the oldest segment into the base; the oldest point is gone then, unless the base
    /// was only seeded. Says what stood in the way if nothing was done.
    ///
    /// # Errors
    /// As [`Journal::begin_merge`], [`Merge::run`] and [`Journal::finish_merge`].
    pub fn merge_oldest(&mut self, now: Timestamp) -> Result<Option<Held>, JournalError> {
        match self.begin_merge(now)? {
            Begun::Held(held) => Ok(Some(held)),
            Begun::Merge(merge) => {
                let merged = merge.run()?;
                self.finish_merge(merged)?;
                Ok(None)
            }
        }
    }

    /// Gives up the point that the base holds, durably, so that the oldest segment can go there. `now`
    /// is compared with its lock.
    ///
    /// # Errors
    /// [`JournalError::Busy`] while another merge runs; the index cannot be replaced.
    pub fn begin_merge(&mut self, now: Timestamp) -> Result<Begun, JournalError> {
        self.settle()?;
        if self.is_merging() {
            return Err(JournalError::Busy);
        }
        let Some(oldest) = self.index.segments.front() else {
            return Ok(Begun::Held(Held::Nothing));
        };
        if let Base::Point(base) = &self.index.base {
            let pinned = self.index.pins.iter().any(|pin| pin.point == base.point);
            if pinned || self.leases.holds(base.point) {
                return Ok(Begun::Held(Held::Point(base.point)));
            }
            if let Some(until) = self.locked(base.point, now) {
                return Ok(Begun::Held(Held::Locked(base.point, until)));
            }
        }
        let (name, root) = (oldest.file(), oldest.stored);
        // What it makes holes of may be wanted by others.
        self.lacking.grows(oldest.zeroes.0);
        let segment = oldest.open(&*self.folder)?;
        let set = self.set_for(oldest);
        let bases = self.bases()?;
        if self.index.base != Base::Merging {
            self.publish(vec![Change::Note(Note::MergeBegins)], vec![])?;
        }
        Ok(Begun::Merge(Merge {
            name,
            root,
            segment,
            bases,
            set,
            group: self.group.clone(),
            token: self.merge.clone(),
        }))
    }

    /// Publishes that the base holds the merged segment's point, and removes its file.
    ///
    /// # Errors
    /// The index cannot be replaced, or the merge is not of this journal. A file that cannot be
    /// removed is removed when the journal is opened next.
    pub fn finish_merge(&mut self, merged: Merged) -> Result<(), JournalError> {
        self.settle()?;
        let oldest = self.index.segments.front();
        let Some(oldest) =
            oldest.filter(|entry| self.index.base == Base::Merging && entry.stored == merged.root)
        else {
            return Err(JournalError::NotBegun);
        };
        let oldest = oldest.clone();
        let (noted, files) = self.change_of(merged.sets);
        let changes = noted.into_iter().chain([Change::Note(Note::MergeEnds)]);
        self.publish(changes.collect(), vec![])?;
        files.iter().for_each(|file| self.discard(file));
        self.remove_files(&[oldest]);
        self.drop_bases();
        self.tidy_packs();
        Ok(())
    }

    /// Whether segments are on their way into the base, or into one.
    pub(crate) fn is_merging(&self) -> bool {
        Arc::strong_count(&self.merge) > 1
    }

    /// Until when `point` is locked, if it still is.
    pub(crate) fn locked(&self, point: PointId, now: Timestamp) -> Option<Timestamp> {
        let until = self.index.locks.get(&point.sequence).copied();
        until.filter(|until| now < *until)
    }
}
