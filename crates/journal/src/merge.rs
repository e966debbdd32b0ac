//! Retention: the oldest segment goes into the base.
//!
//! ```text
//!   base = point 3, segments 4 5 6
//!     begin    index: base = mixture            point 3 is gone from here on
//!     run      write what segment 4 holds to the base, sync it
//!     finish   index: base = point 4, segments 5 6
//!              remove the file of segment 4
//! ```
//!
//! Until `finish` the segment stays above the base and hides what is being written, so
//! that every point from 4 on is whole at any instant. After a crash `begin` finds the
//! mixture and everything is done again. A base that was only seeded is no point, and
//! merging the first segment into it loses none.

use std::sync::Arc;

use durable::File;
use jiff::{SignedDuration, Timestamp};
use model::{Bytes, PointId};

use crate::index::{Base, Index};
use crate::receive::lay_down;
use crate::{Journal, JournalError, Root, SegmentReader};

/// Which points are kept. The newest one always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most points.
    pub count: Option<u32>,
    /// Oldest age of a point.
    pub age: Option<SignedDuration>,
}

/// What stands in the way of merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// There is no segment above the base.
    Nothing,
    /// The oldest point is pinned, or open for reading.
    Point(PointId),
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
    bases: Vec<Arc<dyn File>>,
    sizes: Vec<Bytes>,
    /// Only one merge at a time.
    token: Arc<()>,
}

/// A merge whose content is in the base and durable.
#[derive(Debug)]
pub struct Merged {
    root: Root,
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
        lay_down(&reader, &self.name, &self.bases, &self.sizes)?;
        Ok(Merged {
            root: self.root,
            _token: self.token,
        })
    }
}

impl Journal {
    /// Whether there is a point that `retention` does not keep, and a merge would take it away
    /// or prepare for that.
    #[must_use]
    pub fn is_over(&self, retention: &Retention, now: Timestamp) -> bool {
        let points: Vec<_> = self.index.points().map(|(_, entry)| entry.time).collect();
        let [oldest, _, ..] = points[..] else {
            return false;
        };
        let too_many = retention.count.is_some_and(|count| {
            points.len() > usize::try_from(count.max(1)).unwrap_or(usize::MAX)
        });
        let too_old = retention
            .age
            .is_some_and(|age| now.duration_since(oldest) > age);
        too_many || too_old
    }

    /// Merges until `retention` holds or a point is in the way. Gives the number of merges.
    ///
    /// # Errors
    /// As [`Journal::merge_oldest`].
    pub fn retain(&mut self, retention: &Retention, now: Timestamp) -> Result<u32, JournalError> {
        let mut merges = 0;
        while self.is_over(retention, now) && self.merge_oldest()?.is_none() {
            merges += 1;
        }
        Ok(merges)
    }

    /// Merges the oldest segment into the base; the oldest point is gone then, unless the base
    /// was only seeded. Says what stood in the way if nothing was done.
    ///
    /// # Errors
    /// As [`Journal::begin_merge`], [`Merge::run`] and [`Journal::finish_merge`].
    pub fn merge_oldest(&mut self) -> Result<Option<Held>, JournalError> {
        match self.begin_merge()? {
            Begun::Held(held) => Ok(Some(held)),
            Begun::Merge(merge) => {
                let merged = merge.run()?;
                self.finish_merge(merged)?;
                Ok(None)
            }
        }
    }

    /// Gives up the point that the base holds, durably, so that the oldest segment can go there.
    ///
    /// # Errors
    /// [`JournalError::Busy`] while another merge runs; the index cannot be replaced.
    pub fn begin_merge(&mut self) -> Result<Begun, JournalError> {
        self.settle()?;
        if Arc::strong_count(&self.merge) > 1 {
            return Err(JournalError::Busy);
        }
        let Some(oldest) = self.index.segments.first() else {
            return Ok(Begun::Held(Held::Nothing));
        };
        if let Base::Point(base) = &self.index.base {
            let pinned = self.index.pins.iter().any(|pin| pin.point == base.point);
            if pinned || self.leases.holds(base.point) {
                return Ok(Begun::Held(Held::Point(base.point)));
            }
        }
        let (name, root) = (oldest.file(), oldest.root);
        let segment = self
            .folder
            .open_read(&name)
            .map_err(|source| JournalError::io("open", &name, source))?;
        let bases = self.bases()?;
        if self.index.base != Base::Merging {
            let mut next = self.index.clone();
            next.base = Base::Merging;
            self.publish(next)?;
        }
        Ok(Begun::Merge(Merge {
            name,
            root,
            segment,
            bases,
            sizes: self.index.disks.iter().map(|disk| disk.size).collect(),
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
        let mut next = self.index.clone();
        let base_was_mixed = next.base == Base::Merging;
        if !base_was_mixed
            || next
                .segments
                .first()
                .is_none_or(|entry| entry.root != merged.root)
        {
            return Err(JournalError::NotBegun);
        }
        let entry = next.segments.remove(0);
        let name = entry.file();
        absorb(&mut next, entry);
        self.publish(next)?;
        if let Err(error) = self.folder.remove(&name) {
            tracing::warn!(file = name, %error, "cannot remove a merged segment");
        }
        Ok(())
    }
}

/// The base holds `entry` from now on.
fn absorb(index: &mut Index, entry: crate::index::Entry) {
    for (disk, size) in index.disks.iter_mut().zip(&entry.sizes) {
        disk.size = *size;
    }
    index.base = Base::Point(entry);
}
