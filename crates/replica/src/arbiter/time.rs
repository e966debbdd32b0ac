//! Clocks and leases: a second passes, a clock gains, grants come and end.

use std::time::Duration;

use model::Lineage;

use super::pair::{Guest, Pair};
use super::rule::Rule;
use super::step::Arbiter;
use crate::lease::{BootTime, DRIFT_PERCENT, Fence, Grant, HOLD, Promise};
use crate::run::{Evidence, must_hold};
use crate::standing::Role;
use crate::wire::PartnerStanding;

/// A second of the model, in milliseconds.
const SECOND: i32 = 1000;
/// As far as two clocks may go apart in one lease.
const DRIFT: i32 = SECOND * Fence::SHORTEST as i32 * DRIFT_PERCENT as i32 / 100;

impl Arbiter {
    /// The replica `x` is asked for a lease by the primary of `lineage`; whether it grants it.
    pub(super) fn promise(
        &self,
        pair: &mut Pair,
        x: usize,
        lineage: &Lineage,
        fence: Fence,
    ) -> bool {
        let Some(next) = pair.hosts[x].standing().promise(lineage, fence) else {
            return false;
        };
        pair.keep_standing(x, next, true);
        let now = pair.reading(x);
        pair.hosts[x].promise = pair.hosts[x].promise.answered(now);
        true
    }

    /// The primary `x` learns that what it asked for at `asked` was granted.
    pub(super) fn granted(
        &self,
        pair: &mut Pair,
        x: usize,
        says: &PartnerStanding,
        asked: BootTime,
        fence: Fence,
    ) {
        if says.role != Role::Replica {
            return;
        }
        let asked = if self.on(Rule::LeaseFromQuestion) {
            asked
        } else {
            pair.reading(x)
        };
        let term = says.lineage.current().number;
        let newer = Grant::answered(term, asked, fence);
        if let Ok(grant) = Grant::take(pair.hosts[x].grant, newer) {
            pair.hosts[x].grant = Some(grant);
        }
        let host = &pair.hosts[x];
        let free = host.standing().stood_down.is_none()
            && !must_hold(host.standing(), host.grant, pair.reading(x));
        if host.guest == Guest::Held && free {
            pair.hosts[x].guest = Guest::Runs;
        }
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
