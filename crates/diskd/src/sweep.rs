//! What of the write-intent log is over.
//!
//! ```text
//!   what is hot cools; from now on what is touched is hot
//!        |  candidates: armed, clean, and were not hot
//!        |  flush what is below
//!        v
//!   those that are still clean and not hot: disarmed, in memory at once, durably before this ends
//! ```
//!
//! A region is clean when the replica has all of it. Disarmed, it is taken for equal after a power cut:
//! so what it holds must be durable, not only sent. A candidate that is disarmed
//!
//! - was clean once before the flush began. Then nothing was in flight to it: a change is marked when it
//!   is issued, and marked again by every cut that it crosses. So all of what it held had completed, and
//!   the flush covers it;
//! - was not touched from before that instant on ([`Ledger::touch`](crate::ledger::Ledger::touch), in the
//!   step that marks and issues; an exchange of what is below touches too): it holds the same now,
//!   whatever was marked, sent, confirmed or compared meanwhile;
//! - is clean now: the replica has just that.
//!
//! A log that was begun meanwhile has everything armed and knows nothing of this: the sweep ends.
//!
//! What a change of the stack will mark was armed when that was prepared, and is clean until the swap:
//! nothing is disarmed in between ([`Tracker::hold`]).

use std::ops::Range;
use std::rc::Rc;

use block::{Device, Fault, Store};

use crate::ledger::blocks_of;
use crate::tracker::{Rule, Tracker};
use crate::turn::give_way;

/// Regions that are looked at in one turn of the owner.
const TURN: u64 = 1 << 13;

impl<D: Device, S: Store> Tracker<D, S> {
    /// Disarms what is over, but for what is hot; with `all` that too.
    ///
    /// # Errors
    /// Why the disk cannot be flushed, or the log not be written nor removed.
    pub async fn sweep(&self, all: bool) -> Result<(), Fault> {
        if self.held.get() > 0 || self.state.flush_failed() || self.sweeping.replace(true) {
            return Ok(());
        }
        let outcome = self.sweep_alone(all).await;
        self.sweeping.set(false);
        outcome
    }

    async fn sweep_alone(&self, all: bool) -> Result<(), Fault> {
        let Some(log) = self.ledger.log() else {
            return Ok(());
        };
        let hot = self.ledger.cool();
        let was_cold = |region: u64| all || !hot.has(region);
        let mut candidates: Vec<Range<u64>> = Vec::new();
        let end = self.state.regions();
        for start in (0..end).step_by(usize::try_from(TURN).expect("a few thousand")) {
            let within = start..end.min(start + TURN);
            let armed = |within| log.next_armed(within);
            self.add_clean(&mut candidates, within, armed, was_cold);
            give_way().await;
        }
        self.sweeps.set(self.sweeps.get() + 1);
        if candidates.is_empty() {
            return Ok(());
        }
        if self.keeps(Rule::FlushBeforeClear) {
            self.flush().await.outcome?;
        }
        // In parts: each is looked at in one turn, and disarmed in memory in the same.
        let is_cold = |region: u64| !self.ledger.is_hot(region) || !self.keeps(Rule::TouchedStays);
        let mut candidates = candidates.into_iter().peekable();
        while candidates.peek().is_some() {
            let mut part = Vec::new();
            let mut left = TURN;
            while let Some(run) = candidates.next_if(|_| left > 0) {
                left = left.saturating_sub(run.end - run.start);
                self.add_clean(&mut part, run, Some, is_cold);
            }
            let kept = self.ledger.log();
            if self.held.get() > 0 || !kept.is_some_and(|kept| Rc::ptr_eq(&kept, &log)) {
                return Ok(());
            }
            let disarmed = log.disarm(&part).await;
            self.ledger.or_lose(&log, disarmed)?;
        }
        Ok(())
    }

    /// Adds the regions of the runs that `next` finds in `within` and that are clean and cold.
    fn add_clean(
        &self,
        found: &mut Vec<Range<u64>>,
        within: Range<u64>,
        next: impl Fn(Range<u64>) -> Option<Range<u64>>,
        is_cold: impl Fn(u64) -> bool,
    ) {
        let mut from = within.start;
        while let Some(run) = (from < within.end)
            .then(|| next(from..within.end))
            .flatten()
        {
            from = run.end;
            for region in run {
                if !self.is_over(region) || !is_cold(region) {
                    continue;
                }
                match found.last_mut() {
                    Some(last) if last.end == region => last.end += 1,
                    _ => found.push(region..region + 1),
                }
            }
        }
    }

    /// Whether the replica has all of `region`.
    fn is_over(&self, region: u64) -> bool {
        let state = &self.state;
        let alone = region..region + 1;
        let sent = || {
            let blocks = blocks_of(&alone, state.blocks());
            state.next_marked(blocks.clone()).is_none() && state.next_sealed(blocks).is_none()
        };
        state.is_clean(region) || !self.keeps(Rule::ConfirmBeforeClear) && sent()
    }

    /// Nothing is disarmed until what this gives is dropped.
    pub fn hold(self: &Rc<Self>) -> Hold<D, S> {
        self.held.set(self.held.get() + 1);
        Hold(Rc::clone(self))
    }
}

/// See [`Tracker::hold`].
pub struct Hold<D, S>(Rc<Tracker<D, S>>);

impl<D, S> Drop for Hold<D, S> {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - 1);
    }
}
