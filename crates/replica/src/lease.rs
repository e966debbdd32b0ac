//! Leases: a primary runs only as long as its replica answered lately, so that the replica may
//! take over from one that is silent, without a person's word.
//!
//! ```text
//!   primary's clock   asked                       until = asked + L   held still
//!                       |==========================|.................|       HOLD at most
//!                        \        answer
//!                         \      /
//!   replica's clock       answered                      L + margin after the last answer
//!                            |--------------------------------------------|> may take over
//! ```
//!
//! The primary counts from the instant at which it *sent* the question, the replica from that at
//! which it *answered* the last one, which is later. So the guest is still before the replica
//! takes over if, over one lease, the two clocks go apart by no more than [`DRIFT_PERCENT`] of it
//! and the guest is held within [`HOLD`] of the end of its grant: that is the margin. Both read
//! their boot-time clocks, which nobody sets and which go on while a host sleeps.
//!
//! What survives a crash:
//! - the primary's [`Fence`] is durable before it asks for the first grant, the replica's before it
//!   answers: whoever counts on a lease knows that the other one does;
//! - a grant is not: it names the boot in which it was asked for, and holds in no other;
//! - nor is the replica's last answer: a replica that was restarted may have answered until then,
//!   so it counts from its own start ([`Promise::begin`]).
//!
//! # Who holds the guest still
//!
//! polluxd does, at the end of the grant: it asks QEMU to stop the processors. One that hangs or is
//! dead holds nothing, so the VM's supervisor has the end of the grant too, and stops the process of
//! QEMU in the second half of [`HOLD`] unless the guest was held by then (`vmd::lease`). What the
//! guest had asked of its disks before that is still written: it is part of what the primary wrote
//! last, and the replica never had it.

use std::fmt;
use std::time::Duration;

use model::{BootId, Code, Problem};
use serde::{Deserialize, Serialize};

/// Within this time after the end of its grant a guest is held still.
pub const HOLD: Duration = Duration::from_secs(1);
/// So far the clocks of two hosts may go apart during one lease, in percent of it. Crystals stay
/// below 0.02, time servers slew by 0.05 at most.
pub const DRIFT_PERCENT: u32 = 1;

/// Length of a lease: the primary pauses after so long without its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Fence(u32);

/// No length that a lease can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a lease of {0} s is none of {min} s to {max} s",
    min = Fence::SHORTEST,
    max = Fence::LONGEST
)]
pub struct FenceError(u32);

/// A reading of a host's boot-time clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootTime {
    /// Which boot.
    pub boot: BootId,
    /// Since then.
    pub at: Duration,
}

/// The right to write in a term, for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Number of the term.
    pub term: u64,
    /// When it ends; none without a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<BootTime>,
}

/// A grant of a lower term than the one that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a grant for term {offered} comes after one for term {held}")]
pub struct LowerTerm {
    /// The term of the grant that came.
    pub offered: u64,
    /// The term of the one held.
    pub held: u64,
}

/// What the replica promised last: not to take over for a while. In memory only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Promise {
    last: BootTime,
}

impl Fence {
    /// The shortest lease in seconds: contact is made each second, and one may be lost.
    pub const SHORTEST: u32 = 2;
    /// The longest.
    pub const LONGEST: u32 = 3600;

    /// A lease of `seconds`.
    ///
    /// # Errors
    /// [`Problem`] when it is too short or too long.
    pub fn new(seconds: u32) -> Result<Self, Problem> {
        Self::try_from(seconds).map_err(|error| {
            let way_out = format!("choose {} to {} seconds", Self::SHORTEST, Self::LONGEST);
            Problem::new(Code::Invalid, "the lease", error.to_string(), way_out)
        })
    }

    /// How long a grant lasts from its question on.
    #[must_use]
    pub fn length(self) -> Duration {
        Duration::from_secs(self.0.into())
    }

    /// How much longer the replica waits: the clocks may go apart, and the guest is not held still
    /// at once.
    #[must_use]
    pub fn margin(self) -> Duration {
        self.length() * DRIFT_PERCENT / 100 + HOLD
    }
}

impl BootTime {
    /// The time from `earlier` to this reading; none in another boot.
    fn since(self, earlier: Self) -> Option<Duration> {
        (self.boot == earlier.boot).then(|| self.at.saturating_sub(earlier.at))
    }
}

impl Grant {
    /// Without a lease.
    #[must_use]
    pub fn endless(term: u64) -> Self {
        Self { term, until: None }
    }

    /// Of an answer to what was asked at `asked`: the answer says for which term and how long.
    #[must_use]
    pub fn answered(term: u64, asked: BootTime, fence: Fence) -> Self {
        let at = asked.at.saturating_add(fence.length());
        let until = Some(BootTime { at, ..asked });
        Self { term, until }
    }

    /// Whether it may be written under now.
    #[must_use]
    pub fn holds(self, now: BootTime) -> bool {
        self.until
            .is_none_or(|until| until.boot == now.boot && now.at < until.at)
    }

    /// What is left of it when a lease of this length was agreed on at `now`: who answers for that one
    /// waits no longer.
    #[must_use]
    pub fn cut_to(self, now: BootTime, fence: Fence) -> Self {
        let at = now.at.saturating_add(fence.length());
        let until = match self.until {
            Some(until) if until.boot != now.boot || until.at <= at => Some(until),
            Some(_) | None => Some(BootTime { at, ..now }),
        };
        Self { until, ..self }
    }

    /// The grant that is held once a lease of this length was agreed on at `now` in a term.
    /// `first`: there was none before, so that nobody takes over sooner than a lease after the first
    /// question, which comes later than this.
    #[must_use]
    pub fn agreed(
        held: Option<Self>,
        first: bool,
        term: u64,
        now: BootTime,
        fence: Fence,
    ) -> Option<Self> {
        match first {
            true => Some(Self::answered(term, now, fence)),
            false => held.map(|held| held.cut_to(now, fence)),
        }
    }

    /// How long it holds still; none without an end.
    #[must_use]
    pub fn left(self, now: BootTime) -> Option<Duration> {
        let until = self.until?;
        let same = until.boot == now.boot;
        let left = until.at.saturating_sub(now.at);
        Some(if same { left } else { Duration::ZERO })
    }

    /// The grant held after `newer` came. Answers may be late, repeated and out of order: of one
    /// term and boot the one that ends later counts, and a lease does not become endless.
    ///
    /// # Errors
    /// [`LowerTerm`]: nothing changed.
    pub fn take(held: Option<Self>, newer: Self) -> Result<Self, LowerTerm> {
        let Some(held) = held else {
            return Ok(newer);
        };
        if newer.term < held.term {
            return Err(LowerTerm {
                offered: newer.term,
                held: held.term,
            });
        }
        Ok(match (held.until, newer.until) {
            (Some(ends), Some(new))
                if newer.term == held.term && ends.boot == new.boot && new.at <= ends.at =>
            {
                held
            }
            (Some(_), None) if newer.term == held.term => held,
            _ => newer,
        })
    }
}

impl Promise {
    /// Of a replica that starts at `now`: the one before it may have answered until then.
    #[must_use]
    pub fn begin(now: BootTime) -> Self {
        Self { last: now }
    }

    /// After it answered a primary that holds to a lease.
    #[must_use]
    pub fn answered(self, now: BootTime) -> Self {
        let later = now.since(self.last).is_none_or(|time| !time.is_zero());
        if later { Self { last: now } } else { self }
    }

    /// How long the primary may still run; zero when its lease is over for certain.
    #[must_use]
    pub fn left(self, fence: Fence, now: BootTime) -> Duration {
        let wait = fence.length() + fence.margin();
        match now.since(self.last) {
            // Nothing that was remembered in another boot is worth anything.
            None => wait + TICK,
            Some(time) if time > wait => Duration::ZERO,
            Some(time) => wait - time + TICK,
        }
    }
}

/// At the very end of the wait it is not over yet.
const TICK: Duration = Duration::from_nanos(1);

impl TryFrom<u32> for Fence {
    type Error = FenceError;

    fn try_from(seconds: u32) -> Result<Self, Self::Error> {
        if (Self::SHORTEST..=Self::LONGEST).contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err(FenceError(seconds))
        }
    }
}

impl From<Fence> for u32 {
    fn from(fence: Fence) -> Self {
        fence.0
    }
}

/// In seconds.
impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(seconds: u32) -> Fence {
        Fence::new(seconds).expect("a length")
    }

    fn at(boot: BootId, millis: u64) -> BootTime {
        let at = Duration::from_millis(millis);
        BootTime { boot, at }
    }

    #[test]
    fn a_lease_has_a_length_within_limits_and_reads_back() {
        assert!(Fence::new(1).is_err() && Fence::new(3601).is_err());
        let problem = Fence::new(0).expect_err("none");
        assert!(problem.way_out.contains("2 to 3600"), "{problem}");
        let text = serde_json::to_string(&fence(30)).expect("made");
        assert_eq!(
            serde_json::from_str::<Fence>(&text).expect("read"),
            fence(30)
        );
        assert!(serde_json::from_str::<Fence>("1").is_err());
        assert_eq!(fence(100).margin(), Duration::from_secs(2));
    }

    #[test]
    fn a_grant_ends_a_lease_after_its_question_and_with_its_boot() {
        let (boot, other) = (BootId::random(), BootId::random());
        let grant = Grant::answered(3, at(boot, 500), fence(10));
        assert!(grant.holds(at(boot, 10_499)));
        assert!(!grant.holds(at(boot, 10_500)));
        assert!(!grant.holds(at(other, 600)), "the host was restarted");
        assert!(Grant::endless(3).holds(at(other, 99_999)));
    }

    #[test]
    fn late_and_repeated_grants_do_no_harm_and_lower_terms_are_refused() {
        let (boot, next) = (BootId::random(), BootId::random());
        let early = Grant::answered(3, at(boot, 0), fence(10));
        let late = Grant::answered(3, at(boot, 900), fence(10));
        assert_eq!(Grant::take(None, early), Ok(early));
        assert_eq!(Grant::take(Some(early), late), Ok(late));
        assert_eq!(Grant::take(Some(late), early), Ok(late), "out of order");
        let endless = Grant::endless(3);
        assert_eq!(Grant::take(Some(late), endless), Ok(late));
        assert_eq!(Grant::take(Some(endless), late), Ok(late));
        let rebooted = Grant::answered(3, at(next, 5), fence(10));
        assert_eq!(Grant::take(Some(late), rebooted), Ok(rebooted));
        let taken = Grant::endless(4);
        assert_eq!(Grant::take(Some(late), taken), Ok(taken));
        let (offered, held) = (3, 4);
        assert_eq!(
            Grant::take(Some(taken), late),
            Err(LowerTerm { offered, held })
        );
    }

    #[test]
    fn an_agreement_gives_a_first_grant_and_makes_a_longer_one_shorter() {
        let (boot, now) = (BootId::random(), 50_000);
        let until = |grant: Grant| grant.until.map(|until| until.at.as_millis());
        let agreed = |held, first| Grant::agreed(held, first, 3, at(boot, now), fence(10));
        assert_eq!(agreed(None, true).and_then(until), Some(60_000));
        assert_eq!(agreed(None, false), None, "polluxd was restarted");
        let long = Grant::answered(3, at(boot, 49_000), fence(100));
        assert_eq!(agreed(Some(long), false).and_then(until), Some(60_000));
        let ends = Grant::answered(3, at(boot, 45_000), fence(10));
        assert_eq!(agreed(Some(ends), false).and_then(until), Some(55_000));
        assert_eq!(ends.left(at(boot, now)), Some(Duration::from_secs(5)));
        assert_eq!(ends.left(at(boot, 99_000)), Some(Duration::ZERO));
        assert_eq!(Grant::endless(3).left(at(boot, now)), None);
    }

    #[test]
    fn the_replica_waits_a_lease_and_its_margin_after_its_last_answer_or_its_start() {
        let (boot, other) = (BootId::random(), BootId::random());
        let lease = fence(10);
        let promise = Promise::begin(at(boot, 1000));
        assert!(promise.left(lease, at(boot, 12_100)) > Duration::ZERO);
        assert_eq!(promise.left(lease, at(boot, 12_101)), Duration::ZERO);
        let promise = promise.answered(at(boot, 5000));
        assert!(promise.left(lease, at(boot, 16_100)) > Duration::ZERO);
        assert_eq!(promise.left(lease, at(boot, 16_101)), Duration::ZERO);
        assert_eq!(promise.answered(at(boot, 4000)), promise);
        assert!(promise.left(lease, at(other, 99_000)) > Duration::ZERO);
    }
}
