//! Clocks and leases: a second passes, a clock gains, grants come and end.

use std::time::Duration;

use model::Lineage;

use super::pair::{Asked, Guest, Pair, fence};
use super::rule::Rule;
use super::step::{Arbiter, VM};
use crate::lease::{BootTime, DRIFT_PERCENT, Fence, Grant, HOLD, Promise};
use crate::run::{Evidence, must_hold};
use crate::wire::{LeaseAnswer, PartnerStanding};

/// A second of the model, in milliseconds.
const SECOND: i32 = 1000;
/// As far as two clocks may go apart in one lease.
const DRIFT: i32 = SECOND * Fence::SHORTEST as i32 * DRIFT_PERCENT as i32 / 100;

impl Arbiter {
    /// The replica `x` is asked for a lease by the primary of `lineage`; what it answers.
    pub(super) fn promise(
        &self,
        pair: &mut Pair,
        x: usize,
        lineage: &Lineage,
        asked: Asked,
    ) -> (Asked, bool, u64) {
        let standing = pair.hosts[x].standing();
        let number = match self.on(Rule::LeaseNumbered) {
            true => asked.agreement,
            // Every question counts as one by the newest agreement.
            false => standing.agreement.max(asked.agreement) + 1,
        };
        let promised = standing.promise(lineage, asked.fence, number);
        let granted = promised.is_some();
        if let Some(mut next) = promised {
            if !self.on(Rule::LeaseNumbered) {
                next.agreement = asked.agreement;
            }
            pair.keep_standing(x, next, true);
            let now = pair.reading(x);
            pair.hosts[x].promise = pair.hosts[x].promise.answered(now);
        }
        (asked, granted, pair.hosts[x].standing().agreement)
    }

    /// The primary `x` learns what became of its question.
    pub(super) fn answered(
        &self,
        pair: &mut Pair,
        x: usize,
        says: &PartnerStanding,
        (asked, granted, theirs): (Asked, bool, u64),
    ) {
        let standing = pair.hosts[x].standing();
        let without = standing.without_replica(says, asked.agreement);
        let answer = LeaseAnswer {
            granted,
            agreement: theirs,
        };
        if without.fence.is_none() && standing.fence.is_some() {
            pair.keep_standing(x, without, true);
        } else if standing.must_agree_anew(says, answer) {
            if let Ok(anew) = standing.hold_to(VM, asked.fence, theirs) {
                pair.keep_standing(x, anew, true);
            }
        } else if granted && standing.agreement == asked.agreement {
            self.granted(pair, x, says, asked);
        }
        Self::goes_on(pair, x);
    }

    fn granted(&self, pair: &mut Pair, x: usize, says: &PartnerStanding, asked: Asked) {
        let at = if self.on(Rule::LeaseFromQuestion) {
            asked.at
        } else {
            pair.reading(x)
        };
        let term = says.lineage.current().number;
        let newer = Grant::answered(term, at, asked.fence);
        if let Ok(grant) = Grant::take(pair.hosts[x].grant, newer) {
            pair.hosts[x].grant = Some(grant);
        }
    }

    /// A guest that was held because there was no lease goes on if there is one, or need be none.
    fn goes_on(pair: &mut Pair, x: usize) {
        let host = &pair.hosts[x];
        let free = host.standing().stood_down.is_none()
            && !must_hold(host.standing(), host.grant, pair.reading(x));
        if host.guest == Guest::Held && free {
            pair.hosts[x].guest = Guest::Runs;
        }
    }

    /// The primary `x` agrees on a lease, or on a shorter one.
    pub(super) fn agree(&self, pair: &mut Pair, x: usize) -> Option<()> {
        let standing = pair.hosts[x].standing();
        let (first, term) = (standing.fence.is_none(), standing.lineage.current().number);
        let agreed = standing.hold_to(VM, fence(), 0).ok()?;
        pair.keep_standing(x, agreed, self.on(Rule::FenceBeforeQuestion));
        if first || self.on(Rule::LeaseCutShort) {
            let now = pair.reading(x);
            let held = pair.hosts[x].grant;
            pair.hosts[x].grant = Grant::agreed(held, first, term, now, fence());
        }
        Some(())
    }

    /// The primary `x` holds to a lease no longer; its replica hears of it first.
    pub(super) fn release(&self, pair: &mut Pair, x: usize) -> Option<()> {
        let standing = pair.hosts[x].standing();
        standing.fence?;
        let number = standing.next_agreement(0).ok()?;
        if self.on(Rule::LeaseEndsTold) {
            if !pair.is_linked() {
                return None;
            }
            let theirs = pair.hosts[1 - x].standing();
            let released = theirs.release(&standing.lineage, number)?;
            pair.keep_standing(1 - x, released, true);
        }
        let released = pair.hosts[x].standing().released(number);
        pair.keep_standing(x, released, true);
        Self::goes_on(pair, x);
        Some(())
    }

    /// Of a polluxd that starts.
    pub(super) fn promise_anew(&self, pair: &mut Pair, x: usize) {
        let now = pair.reading(x);
        // Without the rule it believes that it never answered.
        let long_ago = BootTime {
            at: Duration::ZERO,
            ..now
        };
        let from = if self.on(Rule::LeaseRestart) {
            now
        } else {
            long_ago
        };
        pair.hosts[x].promise = Promise::begin(from);
    }

    /// Whether the guest of `x` has no grant that holds.
    pub(super) fn is_over_due(pair: &Pair, x: usize) -> bool {
        let host = &pair.hosts[x];
        host.guest == Guest::Runs && must_hold(host.standing(), host.grant, pair.reading(x))
    }

    /// A second passes on both hosts: a guest without a grant does not run on for longer.
    pub(super) fn second(&self, pair: &Pair) -> Option<Pair> {
        let mut next = pair.clone();
        next.now += SECOND;
        next.left.seconds -= 1;
        let holds = self.on(Rule::LeaseHolds);
        let late = (0..2).any(|x| {
            let grant = pair.hosts[x].grant;
            let until = grant.and_then(|grant| grant.until);
            let now = next.reading(x);
            let within = until.is_some_and(|until| {
                until.boot == now.boot && now.at <= until.at.saturating_add(HOLD)
            });
            // Not the last second before it is held, but one later.
            holds && Self::is_over_due(pair, x) && !within
        });
        (!late).then_some(next)
    }

    /// The clock of `x` gains.
    pub(super) fn drift(pair: &mut Pair, x: usize) {
        pair.hosts[x].zero -= DRIFT;
    }

    /// What the replica `x` knows of the primary's lease when it takes over.
    pub(super) fn over(&self, pair: &Pair, x: usize) -> Option<Evidence> {
        let host = &pair.hosts[x];
        let fence = host.standing().fence?;
        let drift = fence.margin() - HOLD;
        let early = match self.off {
            Some(Rule::LeaseMargin) => fence.margin(),
            Some(Rule::LeaseDrift) => drift,
            _ => Duration::ZERO,
        };
        let left = host.promise.left(fence, pair.reading(x));
        let left = left.saturating_sub(early);
        Some(if left.is_zero() {
            Evidence::LeaseExpired
        } else {
            Evidence::LeaseHolds(left)
        })
    }
}
