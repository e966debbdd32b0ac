//! Grants and promises of leases, and what is asked for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replica::lease::{BootTime, Fence, Grant, Promise};
use replica::standing::{Role, Standing, Warrant};
use replica::wire::{CONTACT_TIMEOUT, LeaseRequest};
use vmd::control::Lease;

use super::handle::View;

/// The longest time from one question for a lease to the next.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Shared by everybody who sees a VM.
pub(crate) type Shared = Arc<Leasing>;

/// Grants and promises of one VM: in memory, seen by whoever decides.
#[derive(Debug)]
pub(crate) struct Leasing(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    grant: Option<Grant>,
    /// The number of what was agreed on last.
    agreement: u64,
    promise: Promise,
}

impl Leasing {
    /// Of a polluxd that starts now.
    pub(crate) fn begin(now: BootTime) -> Self {
        Self(Mutex::new(Inner {
            grant: None,
            agreement: 0,
            promise: Promise::begin(now),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Readings of a clock: a panic elsewhere leaves them as good as they were.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grant that is held.
    pub(crate) fn grant(&self) -> Option<Grant> {
        self.lock().grant
    }

    pub(super) fn set(&self, grant: Option<Grant>) {
        self.lock().grant = grant;
    }

    /// Something else was agreed on, under which this grant is held.
    pub(super) fn agreed(&self, agreement: u64, grant: Option<Grant>) {
        let inner = &mut *self.lock();
        inner.agreement = agreement;
        inner.grant = grant;
    }

    /// A grant came, for what was asked under an agreement.
    pub(crate) fn take(&self, newer: Grant, agreement: u64) {
        let inner = &mut *self.lock();
        if agreement < inner.agreement {
            // The replica counts on another lease by now, which may be shorter.
            return;
        }
        // One for a lower term is of no use to anybody.
        if let Ok(grant) = Grant::take(inner.grant, newer) {
            inner.grant = Some(grant);
        }
    }

    pub(super) fn promised(&self, now: BootTime) {
        let inner = &mut *self.lock();
        inner.promise = inner.promise.answered(now);
    }

    /// How long the primary may still run, at the replica.
    pub(crate) fn takeover_in(&self, fence: Fence, now: BootTime) -> Duration {
        self.lock().promise.left(fence, now)
    }

    /// How long vmd lets the guest of a primary that stands like this run.
    pub(crate) fn for_vmd(&self, standing: &Standing) -> Lease {
        if standing.fence.is_none() || standing.warrant == Some(Warrant::Override) {
            return Lease::None;
        }
        let term = standing.lineage.current().number;
        let grant = self.grant().filter(|grant| grant.term == term);
        let until = grant.and_then(|grant| grant.until);
        let at = until.map_or(Duration::ZERO, |until| until.at);
        Lease::Until { at }
    }
}

/// How long an answer is waited for, and how soon it is asked again: one that is lost costs no lease.
pub(super) fn pace(fence: Fence) -> (Duration, Duration) {
    let length = fence.length();
    (
        CONTACT_TIMEOUT.min(length / 2),
        LONGEST_PAUSE.min(length / 4),
    )
}

/// What the primary of this view asks its replica, if it holds to a lease.
pub(crate) fn question(view: &View) -> Option<LeaseRequest> {
    let standing = &view.standing;
    let asks = standing.role == Role::Primary && standing.stood_down.is_none();
    standing.fence.filter(|_| asks).map(|fence| LeaseRequest {
        agreement: standing.agreement,
        fence: Some(fence),
    })
}

#[cfg(test)]
mod tests {
    use model::{BootId, Lineage};

    use super::*;

    fn fence(seconds: u32) -> Fence {
        Fence::new(seconds).expect("a length")
    }

    fn primary() -> Standing {
        let mut standing = Standing::primary(Lineage::begin("castor"));
        standing.partner = Some("pollux".to_owned());
        standing
    }

    #[test]
    fn an_answer_may_be_lost_and_the_next_one_comes_before_the_lease_is_over() {
        for seconds in [2, 3, 10, 3600] {
            let (limit, pause) = pace(fence(seconds));
            assert!(
                limit + pause < fence(seconds).length(),
                "{seconds}: {limit:?} {pause:?}"
            );
        }
    }

    #[test]
    fn vmd_lets_a_guest_run_to_the_end_of_a_grant_for_its_term_and_no_longer() {
        let boot = BootId::random();
        let at = |seconds| BootTime {
            boot,
            at: Duration::from_secs(seconds),
        };
        let leasing = Leasing::begin(at(5));
        let alone = primary();
        assert_eq!(leasing.for_vmd(&alone), Lease::None);
        let held = alone.hold_to("VM `web`", fence(10), 0).expect("agreed");
        let none = Lease::Until { at: Duration::ZERO };
        assert_eq!(leasing.for_vmd(&held), none, "no grant yet");
        leasing.take(Grant::answered(7, at(20), fence(10)), 0);
        assert_eq!(leasing.for_vmd(&held), none, "for another term");
        leasing.set(None);
        leasing.take(Grant::answered(1, at(20), fence(10)), 0);
        let until = |seconds| Lease::Until {
            at: Duration::from_secs(seconds),
        };
        assert_eq!(leasing.for_vmd(&held), until(30));
        leasing.take(Grant::answered(1, at(19), fence(10)), 0);
        assert_eq!(leasing.for_vmd(&held), until(30), "it came late");
        let mut overridden = held;
        overridden.warrant = Some(Warrant::Override);
        assert_eq!(leasing.for_vmd(&overridden), Lease::None);
    }

    #[test]
    fn what_is_granted_under_an_earlier_agreement_does_not_make_a_shorter_lease_longer() {
        let boot = BootId::random();
        let at = |seconds| BootTime {
            boot,
            at: Duration::from_secs(seconds),
        };
        let leasing = Leasing::begin(at(5));
        leasing.take(Grant::answered(1, at(10), fence(3600)), 1);
        let held = leasing.grant();
        let shorter = Grant::agreed(held, false, 1, at(12), fence(2));
        leasing.agreed(2, shorter);
        assert_eq!(leasing.grant().and_then(|held| held.until), Some(at(14)));
        // Asked before that, answered after it.
        leasing.take(Grant::answered(1, at(11), fence(3600)), 1);
        assert_eq!(leasing.grant(), shorter);
        leasing.take(Grant::answered(1, at(13), fence(2)), 2);
        assert_eq!(leasing.grant().and_then(|held| held.until), Some(at(15)));
    }

    #[test]
    fn a_replica_that_starts_has_promised_until_then() {
        let boot = BootId::random();
        let at = |millis| BootTime {
            boot,
            at: Duration::from_millis(millis),
        };
        let leasing = Leasing::begin(at(1000));
        let left = |millis| leasing.takeover_in(fence(10), at(millis));
        assert!(left(12_000) > Duration::ZERO);
        assert_eq!(left(12_101), Duration::ZERO);
        leasing.promised(at(12_200));
        assert!(left(12_300) > Duration::from_secs(10));
    }
}
