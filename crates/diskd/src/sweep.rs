//! What of the write-intent log is over.
//!
//! ```text
//!   candidates: armed, clean, not touched since the last sweep
//!        |  flush what is below
//!        |  anything became clean meanwhile?  then not this time
//!        v
//!   those that are still clean: disarmed, in memory at once, durably before this ends
//! ```
//!
//! A region is clean when the replica has all of it. Disarmed, it is taken for equal after a power cut:
//! so what the guest wrote there must be durable, not only sent. The flush is begun after the region
//! was seen clean. What was clean before and is clean after it, and was not in between, has no newer
//! content: only a confirmation, a comparison or a new beginning makes something clean, and those are
//! counted.
//!
//! What a change of the stack will mark was armed when that was prepared, and is clean until the swap:
//! nothing is disarmed in between ([`Tracker::hold`]).

use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

use block::{Device, Fault, Store};

use crate::ledger::blocks_of;
use crate::tracker::{Rule, Tracker};

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
        let cleaned = self.cleaned.get();
        let Some(log) = self.ledger.log() else {
            return Ok(());
        };
        let mut candidates: Vec<Range<u64>> = Vec::new();
        let end = self.state.regions();
        for start in (0..end).step_by(usize::try_from(TURN).expect("a few thousand")) {
            let within = start..end.min(start + TURN);
            self.add_clean(
                &mut candidates,
                within,
                |within| log.next_armed(within),
                all,
            );
            give_way().await;
        }
        self.ledger.cool();
        self.sweeps.set(self.sweeps.get() + 1);
        if candidates.is_empty() {
            return Ok(());
        }
        if self.keeps(Rule::FlushBeforeClear) {
            self.flush().await.outcome?;
        }
        // In parts: each is looked at in one turn, and disarmed in memory in the same.
        let mut candidates = candidates.into_iter().peekable();
        while candidates.peek().is_some() {
            let mut part = Vec::new();
            let mut left = TURN;
            while let Some(run) = candidates.next_if(|_| left > 0) {
                left = left.saturating_sub(run.end - run.start);
                self.add_clean(&mut part, run, Some, true);
            }
            if self.cleaned.get() != cleaned || self.held.get() > 0 {
                return Ok(());
            }
            let disarmed = log.disarm(&part).await;
            self.ledger.or_lose(&log, disarmed)?;
        }
        Ok(())
    }

    /// Adds the regions of the runs that `next` finds in `within` and that are clean.
    fn add_clean(
        &self,
        found: &mut Vec<Range<u64>>,
        within: Range<u64>,
        next: impl Fn(Range<u64>) -> Option<Range<u64>>,
        hot_too: bool,
    ) {
        let mut from = within.start;
        while let Some(run) = (from < within.end)
            .then(|| next(from..within.end))
            .flatten()
        {
            from = run.end;
            for region in run {
                if !self.is_over(region) || !hot_too && self.ledger.is_hot(region) {
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

/// Lets everybody who is ready now go first.
async fn give_way() {
    let mut given = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
