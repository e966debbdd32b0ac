//! For whom a disk is tracked, and what becomes of what was sent to it.
//!
//! Everything here arms before it marks, and marks before it forgets: a kill or a power cut in between
//! finds too much, never too little.

use std::io;
use std::ops::Range;

use block::{Device, Fault, Store};
use model::{BLOCK_SIZE, Bytes, REGION_SIZE, RelationshipId};

use crate::control::TrackingStatus;
use crate::intent::{Looks, regions};
use crate::ledger::blocks_of;
use crate::state::Marks;
use crate::tracker::Tracker;

/// Where a disk may differ from what was confirmed last.
#[derive(Debug, Default)]
pub struct Differing {
    /// Runs of blocks, rising; they may touch.
    pub(crate) runs: Vec<Range<u64>>,
    /// The region to go on with; none at the end of the disk.
    pub(crate) next: Option<u64>,
}

impl<D: Device, S: Store> Tracker<D, S> {
    /// Tracks for `relationship`; goes on if it does already. What nobody can tell is suspect; while
    /// the initial replication is not finished (`begin`), in what was sent of it, so many bytes: behind
    /// that it is marked. Whether nothing was lost. Not while an epoch is staged.
    pub async fn track(&self, relationship: RelationshipId, begin: Option<u64>) -> bool {
        let size = self.state.blocks() * BLOCK_SIZE;
        let known = self.state.relationship() == Some(relationship);
        let exact = known && self.state.suspects() == 0;
        if !known {
            self.ledger.begin(relationship, size).await;
            let all = [self.everything()];
            let marks = match begin {
                Some(0) => Marks::All,
                _ => Marks::Suspect(&all),
            };
            self.state.track(relationship, marks);
            // They were issued when nothing was tracked, and may end after their region was compared.
            for (_, flight) in &*self.flights.borrow() {
                self.state.mark(flight.blocks.clone());
            }
        } else if self.ledger.is_lost() {
            self.ledger.begin(relationship, size).await;
        }
        if let Some(sent) = begin {
            self.mark_suspects(sent);
        }
        self.publish();
        exact
    }

    /// Tracks for `relationship`, whose twin holds what lies below everything that is `written` above it;
    /// goes on if it does already. Not while an epoch is staged.
    pub async fn track_above(
        &self,
        relationship: RelationshipId,
        written: impl FnOnce() -> Vec<Range<u64>>,
    ) {
        if self.state.relationship() == Some(relationship) {
            return;
        }
        let size = self.state.blocks() * BLOCK_SIZE;
        self.ledger.begin(relationship, size).await;
        // From here to the end nothing is issued.
        self.state.track(relationship, Marks::Blocks(&written()));
        for (_, flight) in &*self.flights.borrow() {
            self.state.mark(flight.blocks.clone());
        }
        self.publish();
    }

    fn everything(&self) -> Range<u64> {
        0..self.state.regions()
    }

    /// Stops tracking and forgets all marks. Not while an epoch is staged.
    ///
    /// # Errors
    /// When the log cannot be removed; nothing was changed.
    pub fn untrack(&self) -> io::Result<()> {
        self.ledger.end()?;
        self.state.forget();
        self.publish();
        Ok(())
    }

    /// Marks blocks as changed; those that the disk does not have are ignored. Nothing is marked if
    /// nothing is tracked.
    ///
    /// # Errors
    /// The write-intent log can neither be written nor removed.
    pub async fn mark(&self, blocks: Range<u64>) -> Result<(), Fault> {
        let end = blocks.end.min(self.state.blocks());
        let blocks = blocks.start.min(end)..end;
        self.arm(regions(&blocks)).await?;
        if self.state.relationship().is_some() {
            self.state.mark(blocks);
        }
        self.publish();
        Ok(())
    }

    /// Returns when `regions` are armed, or need not be. There is no await until the caller goes on.
    ///
    /// # Errors
    /// The write-intent log can neither be written nor removed.
    pub async fn arm(&self, regions: Range<u64>) -> Result<(), Fault> {
        let blocks = blocks_of(&regions, self.state.blocks());
        while !self.ledger.is_armed(&blocks) {
            self.ledger.arm(regions.clone()).await?;
        }
        Ok(())
    }

    /// Arms `runs` of blocks that will be replaced, and what the disk will grow by until it has `size`
    /// bytes. What was armed stays so while a [`hold`](Tracker::hold) lasts.
    ///
    /// # Errors
    /// The write-intent log can neither be written nor removed.
    pub async fn arm_for(&self, runs: &[Range<u64>], size: u64) -> Result<(), Fault> {
        for run in runs {
            self.arm(regions(run)).await?;
        }
        let had = self.state.blocks();
        if size <= had * BLOCK_SIZE {
            return Ok(());
        }
        if let Some(log) = self.ledger.log() {
            let grown = log.grow(size).await;
            self.ledger.or_lose(&log, grown)?;
        }
        // It may have grown before, for a swap that was given up.
        self.arm(regions(&(had - 1..had))).await
    }

    /// Nobody can tell how the disk differs from the replica.
    ///
    /// # Errors
    /// The write-intent log can neither be written nor removed.
    pub async fn suspect_all(&self) -> Result<(), Fault> {
        self.arm(self.everything()).await?;
        if self.state.relationship().is_some() {
            self.state.suspect(self.everything());
        }
        Ok(())
    }

    /// Nobody can tell how the disk differs from the replica in `regions`, as far as it has them.
    ///
    /// # Errors
    /// The write-intent log can neither be written nor removed.
    pub async fn suspect(&self, regions: Range<u64>) -> Result<(), Fault> {
        let end = regions.end.min(self.state.regions());
        let regions = regions.start.min(end)..end;
        self.arm(regions.clone()).await?;
        if self.state.relationship().is_some() {
            self.state.suspect(regions);
        }
        Ok(())
    }

    /// Where the disk may differ from what the replica confirmed last, from region `from` on. After
    /// `limit` runs no further region is looked at. None if nothing is tracked.
    pub(crate) fn differing(&self, from: u64, limit: usize) -> Option<Differing> {
        self.state.relationship()?;
        let regions = self.state.regions();
        let mut found = Differing::default();
        for region in from.min(regions)..regions {
            if found.runs.len() >= limit {
                found.next = Some(region);
                break;
            }
            if !self.state.is_clean(region) {
                found.runs.extend(self.changed(region));
            }
        }
        Some(found)
    }

    /// What is unconfirmed is in no segment any more: it has to be compared.
    pub fn suspect_unconfirmed(&self) {
        let mut from = 0;
        while let Some(run) = self.state.next_unconfirmed(from..self.state.regions()) {
            from = run.end;
            self.state.suspect(run);
        }
    }

    /// What is suspect in the regions from byte `from` on is marked instead.
    pub(crate) fn mark_suspects(&self, from: u64) {
        let regions = self.state.regions();
        let from = from.div_ceil(REGION_SIZE).min(regions);
        while let Some(run) = self.state.next_suspect(from..regions) {
            self.state.mark(blocks_of(&run, self.state.blocks()));
            run.for_each(|region| self.state.clear_suspect(region));
        }
    }

    /// Every segment that was staged is confirmed, or its blocks are marked or suspect.
    pub fn confirm(&self) {
        self.state.confirm();
    }

    /// `region` was compared: `differ` is marked, and it is suspect no longer.
    ///
    /// # Errors
    /// The write-intent log can neither be written nor removed.
    pub async fn compared(&self, region: u64, differ: &[Range<u64>]) -> Result<(), Fault> {
        for blocks in differ {
            self.mark(blocks.clone()).await?;
        }
        if region < self.state.regions() {
            self.state.clear_suspect(region);
        }
        Ok(())
    }

    /// The disk was flushed and takes no more writes; its files look like `stamp`. If nothing can be
    /// noted of that, nobody will be able to tell whether they were changed, and all is suspect; but under
    /// a `guest` that goes on the next process comes at once.
    ///
    /// # Errors
    /// The write-intent log can neither be written nor removed, or the disk not be flushed.
    pub async fn close(&self, stamp: Looks, guest: bool) -> Result<(), Fault> {
        self.sweep(true).await?;
        if let Some(log) = self.ledger.log() {
            let closed = log.close(stamp).await;
            self.ledger.or_lose(&log, closed)?;
        }
        if self.ledger.is_lost() && !guest {
            self.suspect_all().await?;
        }
        Ok(())
    }

    /// What is tracked.
    pub fn tracking(&self) -> Option<TrackingStatus> {
        let blocks = |count: u64| Bytes(count * BLOCK_SIZE);
        let regions = |count: u64| Bytes(count * REGION_SIZE);
        Some(TrackingStatus {
            relationship: self.state.relationship()?,
            marked: blocks(self.state.dirty()),
            sealed: blocks(self.state.sealed()),
            unconfirmed: regions(self.state.unconfirmed()),
            suspect: regions(self.state.suspects()),
            armed: regions(self.ledger.armed(self.state.regions())),
            log: self.ledger.status(),
            commits: self.ledger.commits(),
            sweeps: self.sweeps.get(),
        })
    }
}
