//! The topmost device of a disk: marks what changes, and lets an epoch be cut.
//!
//! ```text
//!   mutation --> admitted? --> armed? --> mark --> issue --> complete
//!         ^        |             |  waits until the write-intent log says durably that its regions may
//!         |        |             |  differ, then all is looked at again
//!         |        |             |
//!         +--------|-------------+
//!                  |  waits while the disk is parked for a cut,
//!                  |  while an operation that crosses the last cut runs on its blocks,
//!                  |  while its blocks are being read for staging;
//!                  |  saves the old content of blocks of the sealed epoch first (`staging`)
//!
//!   cut:  park -> (all disks parked) -> seal -> unpark
//! ```
//!
//! Invariants
//! - A block is marked before its write is issued, in one step without an await.
//! - The region of a block that is marked, sealed or unconfirmed, and each suspect one, is armed
//!   durably before its content can change ([`Ledger`]).
//! - A sealed epoch holds exactly the mutations issued before its cut: content of a sealed block is
//!   read after the last of them completed and before the first later one is issued.
//! - A mutation in flight when marks move is marked in both maps.
//! - Reads and flushes are never held up. Mutations wait for reads of this disk and for the end of a
//!   cut, never for the writer of the segment.
//! - A failed flush is noted in the state file before it is answered. From then on nothing is
//!   written, until the disk is reopened.
//!
//! After `kill -9` the maps are what they were ([`DiskState`]): the marks of everything issued, a
//! superset of what changed. A sealed epoch folds back. After a power cut what is armed is suspect, and
//! compared with the replica before the next cut.

use std::cell::{Cell, RefCell};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Device, Done, Fault, Image, Op, Place, Store, Waiters};
use model::{BLOCK_SIZE, SECTOR_SIZE};
use ring::RingStore;
use slab::Slab;

use crate::holes::first;
use crate::intent::regions;
use crate::ledger::Ledger;
use crate::sparse::Sparse;
use crate::staging::{Epoch, Staging};
use crate::state::DiskState;

/// Why an epoch cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Nothing is marked.
    #[error("changes are not tracked")]
    NotTracking,
    /// The last one was neither confirmed nor given up.
    #[error("another epoch is being staged")]
    Busy,
    /// Nobody can tell yet how the disk differs from the replica.
    #[error("regions have to be compared with the replica first")]
    Suspect,
}

/// Counters that other threads read.
#[derive(Debug, Default)]
pub struct Stats {
    /// Reads completed.
    pub reads: AtomicU64,
    /// Mutations completed.
    pub writes: AtomicU64,
    /// Flushes completed.
    pub flushes: AtomicU64,
    /// Marked blocks that are not sealed.
    pub dirty: AtomicU64,
    /// 1 once a flush failed.
    pub flush_failed: AtomicU64,
}

/// Only the owner writes: no atomic addition is needed.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// A mutation that was issued and has not completed.
pub(crate) struct Flight {
    pub(crate) blocks: Range<u64>,
    /// It was issued before the last cut.
    pub(crate) crossing: bool,
}

/// See the module.
pub struct Tracker<D, S = RingStore> {
    pub(crate) below: D,
    pub(crate) state: DiskState,
    pub(crate) ledger: Ledger<S>,
    /// So many changes of the stack are prepared: what they will mark stays armed.
    pub(crate) held: Cell<usize>,
    pub(crate) sweeping: Cell<bool>,
    pub(crate) sweeps: Cell<u64>,
    stats: Arc<Stats>,
    pub(crate) parked: Cell<bool>,
    pub(crate) flights: RefCell<Slab<Flight>>,
    /// How many of the flights cross.
    pub(crate) crossing: Cell<usize>,
    pub(crate) staging: RefCell<Option<Staging>>,
    /// Epochs begun.
    epochs: Cell<u64>,
    pub(crate) changed: Waiters,
    faults: Sparse,
    /// A rule that a test breaks on purpose.
    #[cfg(test)]
    pub(crate) broken: Cell<Option<Rule>>,
}

/// Rules that tests break on purpose, to see that they would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    MarkBeforeIssue,
    ArmBeforeIssue,
    FlushBeforeClear,
    /// What changed since a sweep began stays armed.
    TouchedStays,
    /// What is unconfirmed is not over.
    ConfirmBeforeClear,
    DoubleMark,
    CopyBeforeWrite,
    WaitForCrossing,
    /// All disks are parked before one of them seals.
    #[cfg(test)]
    OneInstant,
    /// A segment is confirmed when the replica has it.
    #[cfg(test)]
    AckBeforeConfirm,
}

impl<D: Device, S: Store> Tracker<D, S> {
    /// Tracks `below` in `state` and `ledger`.
    pub fn new(below: D, state: DiskState, stats: Arc<Stats>, ledger: Ledger<S>) -> Self {
        let tracker = Self {
            below,
            state,
            ledger,
            held: Cell::new(0),
            sweeping: Cell::new(false),
            sweeps: Cell::new(0),
            stats,
            parked: Cell::new(false),
            flights: RefCell::new(Slab::new()),
            crossing: Cell::new(0),
            staging: RefCell::new(None),
            epochs: Cell::new(0),
            changed: Waiters::default(),
            faults: Sparse::default(),
            #[cfg(test)]
            broken: Cell::new(crate::lab::broken()),
        };
        tracker.publish();
        tracker
    }

    /// Always true outside tests.
    #[cfg_attr(
        not(test),
        allow(clippy::unused_self, reason = "a test breaks the rule")
    )]
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        #[cfg(test)]
        return self.broken.get() != Some(rule);
        #[cfg(not(test))]
        {
            let _ = rule;
            true
        }
    }

    /// Shows others what the state is.
    pub(crate) fn publish(&self) {
        let dirty = self.state.dirty();
        self.stats.dirty.store(dirty, Ordering::Relaxed);
        let failed = u64::from(self.state.flush_failed());
        self.stats.flush_failed.store(failed, Ordering::Relaxed);
    }

    /// The marks.
    pub fn state(&self) -> &DiskState {
        &self.state
    }

    /// From now on no mutation is issued; those in flight go on.
    pub fn park(&self) {
        self.parked.set(true);
    }

    /// Mutations are issued again.
    pub fn unpark(&self) {
        self.parked.set(false);
        self.changed.notify();
    }

    /// Cuts: everything issued so far belongs to the sealed epoch, everything later does not.
    ///
    /// # Errors
    /// [`SealError`]; nothing was changed.
    pub fn seal(&self, epoch: Epoch) -> Result<(), SealError> {
        self.may_seal()?;
        self.state.seal();
        self.begin(epoch, true);
        Ok(())
    }

    /// Moves marks from block `from` on, at most `limit` of them, to the sealed map. The block after
    /// the last one looked at, or none at the end of the disk.
    ///
    /// # Errors
    /// [`SealError`]; nothing was changed.
    pub fn seal_part(&self, epoch: Epoch, from: u64, limit: u64) -> Result<Option<u64>, SealError> {
        self.may_seal()?;
        self.state.seal_nothing();
        let (mut at, mut left) = (from, limit.max(1));
        let mut next = None;
        let marked = |within| self.state.next_marked(within);
        while let Some(run) = first(at, self.state.blocks(), marked) {
            if left == 0 {
                next = Some(at);
                break;
            }
            let run = run.start..run.end.min(run.start.saturating_add(left));
            left -= run.end - run.start;
            at = run.end;
            self.state.move_to_sealed(run);
        }
        self.begin(epoch, false);
        Ok(next)
    }

    fn may_seal(&self) -> Result<(), SealError> {
        if self.state.relationship().is_none() {
            return Err(SealError::NotTracking);
        }
        if self.staging.borrow().is_some() {
            return Err(SealError::Busy);
        }
        if self.state.suspects() > 0 {
            return Err(SealError::Suspect);
        }
        Ok(())
    }

    fn begin(&self, epoch: Epoch, consistent: bool) {
        for (_, flight) in self.flights.borrow_mut().iter_mut() {
            // Its data may reach the disk after the block was read for staging.
            if self.keeps(Rule::DoubleMark) {
                self.state.mark(flight.blocks.clone());
            }
            if consistent && !flight.crossing {
                flight.crossing = true;
                self.crossing.set(self.crossing.get() + 1);
            }
        }
        let number = self.epochs.get() + 1;
        self.epochs.set(number);
        self.staging
            .replace(Some(Staging::new(number, epoch, consistent)));
        self.publish();
    }

    /// Writes and discards that ended.
    pub(crate) fn writes(&self) -> u64 {
        self.stats.writes.load(Ordering::Relaxed)
    }

    /// Whether there are some that did not.
    pub(crate) fn is_writing(&self) -> bool {
        !self.flights.borrow().is_empty()
    }

    async fn mutate(&self, op: Op) -> Done {
        let (at, len) = op.range();
        let inside = at
            .checked_add(len)
            .is_some_and(|end| end <= self.below.size());
        if !inside || (at | len) % SECTOR_SIZE != 0 {
            return op.refuse(Fault::Range);
        }
        let blocks = at / BLOCK_SIZE..(at + len).div_ceil(BLOCK_SIZE);
        loop {
            if self.parked.get() || self.crossing.get() > 0 || self.staging.borrow().is_some() {
                self.admit(&blocks).await;
            }
            if self.ledger.is_armed(&blocks) || !self.keeps(Rule::ArmBeforeIssue) {
                break;
            }
            // Nothing of it was issued: a cut does not wait for it.
            if let Err(fault) = self.ledger.arm(regions(&blocks)).await {
                return op.refuse(fault);
            }
        }
        if self.state.flush_failed() {
            return op.refuse(Fault::FlushFailed);
        }
        // From here to the first step of the operation below there is no await.
        self.ledger.touch(&blocks);
        let tracked = self.state.relationship().is_some();
        let late = !self.keeps(Rule::MarkBeforeIssue);
        if tracked && !late {
            self.state.mark(blocks.clone());
        }
        let flight = InFlight {
            tracker: self,
            key: self.flights.borrow_mut().insert(Flight {
                blocks: blocks.clone(),
                crossing: false,
            }),
        };
        let kind = match op {
            Op::Write { .. } => "write",
            _ => "clear",
        };
        let done = self.below.run(op).await;
        drop(flight);
        self.note_fault(kind, at, len, done.outcome);
        if tracked && late {
            self.state.mark(blocks);
        }
        count(&self.stats.writes);
        let dirty = self.state.dirty();
        self.stats.dirty.store(dirty, Ordering::Relaxed);
        done
    }

    /// Says what the guest could not do, sparingly: it may try again and again.
    fn note_fault(&self, kind: &'static str, at: u64, len: u64, outcome: Result<(), Fault>) {
        let Err(fault) = outcome else { return };
        if let (Some(so_far), false) = (self.faults.next(), fault == Fault::Range) {
            tracing::error!(at, len, %fault, so_far, "the guest cannot {kind} its disk");
        }
    }

    pub(crate) async fn flush(&self) -> Done {
        if self.state.flush_failed() {
            return Op::Flush.refuse(Fault::FlushFailed);
        }
        let done = self.below.run(Op::Flush).await;
        if let Err(fault) = done.outcome {
            if !self.state.flush_failed() {
                tracing::error!(
                    %fault,
                    "a flush failed: the disk takes no more writes; check the storage below it, then stop \
                     the VM and start it again"
                );
            }
            self.state.fail_flush();
            self.publish();
        }
        count(&self.stats.flushes);
        done
    }
}

/// A flight in the table until it lands.
struct InFlight<'a, D, S> {
    tracker: &'a Tracker<D, S>,
    key: usize,
}

impl<D, S> Drop for InFlight<'_, D, S> {
    fn drop(&mut self) {
        let tracker = self.tracker;
        let flight = tracker.flights.borrow_mut().remove(self.key);
        if flight.crossing {
            tracker.crossing.set(tracker.crossing.get() - 1);
            tracker.changed.notify();
        }
    }
}

impl<D: Device, S: Store> Device for Tracker<D, S> {
    fn size(&self) -> u64 {
        self.below.size()
    }

    async fn run(&self, op: Op) -> Done {
        match op {
            Op::Read { .. } => {
                let (at, len) = op.range();
                let done = self.below.run(op).await;
                self.note_fault("read", at, len, done.outcome);
                count(&self.stats.reads);
                done
            }
            Op::Flush => self.flush().await,
            Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. } => self.mutate(op).await,
        }
    }
}

impl<D: Image, S: Store> Image for Tracker<D, S> {
    fn size(&self) -> u64 {
        self.below.size()
    }

    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        self.below.translate(range, visit).await
    }
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
