//! What became of the epochs of a VM, counted for those who ask.

use std::time::Duration;

use jiff::Timestamp;
use model::Bytes;

use crate::control::{EpochStatus, FoldedBack, Pauses};

/// Buckets for each power of two: a figure read from them is too large by an eighth at most.
const STEP_BITS: u32 = 3;
const STEPS: u64 = 1 << STEP_BITS;
/// Buckets for all microseconds that there are.
const BUCKETS: usize = (u64::BITS as usize - STEP_BITS as usize + 1) << STEP_BITS;

/// See the module.
#[derive(Debug)]
pub(crate) struct Tally {
    seen: EpochStatus,
    pauses: Box<[u64; BUCKETS]>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            seen: EpochStatus::default(),
            pauses: Box::new([0; BUCKETS]),
        }
    }
}

impl Tally {
    /// A cut held; the disk that was held up longest waited for `pause`.
    pub(crate) fn cut(&mut self, pause: Duration) {
        let pause = micros(pause);
        self.seen.cuts += 1;
        self.seen.pauses.last_us = pause;
        self.seen.pauses.longest_us = self.seen.pauses.longest_us.max(pause);
        self.pauses[bucket(pause)] += 1;
    }

    /// A cut did not come about in time.
    pub(crate) fn abandoned(&mut self) {
        self.seen.abandoned += 1;
    }

    /// The marks of an epoch went back.
    pub(crate) fn folded_back(&mut self, why: impl Into<String>) {
        self.seen.folded_back += 1;
        self.seen.last_fold_back = Some(FoldedBack {
            why: why.into(),
            time: Timestamp::now(),
        });
    }

    /// So many bytes of old content were saved.
    pub(crate) fn copied(&mut self, bytes: u64) {
        let Bytes(copied) = self.seen.copied;
        self.seen.copied = Bytes(copied.saturating_add(bytes));
    }

    /// All of it.
    pub(crate) fn status(&self) -> EpochStatus {
        let mut seen = self.seen.clone();
        seen.pauses = Pauses {
            p50_us: self.at_most(50),
            p99_us: self.at_most(99),
            ..seen.pauses
        };
        seen
    }

    /// What so many of a hundred pauses did not exceed.
    fn at_most(&self, percent: u64) -> u64 {
        let all: u64 = self.pauses.iter().sum();
        let wanted = (all * percent).div_ceil(100);
        let mut counted = 0;
        let reached = self.pauses.iter().position(|count| {
            counted += count;
            counted >= wanted
        });
        let most = reached.map_or(0, largest);
        most.min(self.seen.pauses.longest_us)
    }
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn bucket(value: u64) -> usize {
    let place = if value < STEPS {
        value
    } else {
        let shift = value.ilog2() - STEP_BITS;
        u64::from(shift) * STEPS + (value >> shift)
    };
    usize::try_from(place).expect("there are few buckets")
}

/// The largest value in a bucket.
fn largest(bucket: usize) -> u64 {
    let place = bucket as u64;
    if place < STEPS {
        return place;
    }
    let shift = place / STEPS - 1;
    let first = place % STEPS + STEPS;
    ((first + 1) << shift).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_no_wider_than_an_eighth_of_what_it_holds() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(largest(BUCKETS - 1), u64::MAX);
        let mut rng = testkit::Rng::new(1);
        for bits in 0..64 {
            for _ in 0..100 {
                let value = rng.below(1 << bits) + (1 << bits);
                let most = largest(bucket(value));
                assert!(most >= value && most - value <= value / 8, "{value} {most}");
            }
        }
        for value in 0..1000 {
            assert!(bucket(value + 1) - bucket(value) <= 1, "{value}");
        }
    }

    #[test]
    fn pauses_are_told_as_the_middle_the_long_ones_and_the_longest() {
        let mut tally = Tally::default();
        assert_eq!(tally.status(), EpochStatus::default());
        for pause in 1..=1000 {
            tally.cut(Duration::from_micros(pause));
        }
        let pauses = tally.status().pauses;
        assert_eq!((pauses.last_us, pauses.longest_us), (1000, 1000));
        assert!((500..=563).contains(&pauses.p50_us), "{pauses:?}");
        assert!((990..=1000).contains(&pauses.p99_us), "{pauses:?}");
        tally.copied(3);
        tally.abandoned();
        tally.folded_back("full");
        let seen = tally.status();
        assert_eq!((seen.cuts, seen.abandoned, seen.folded_back), (1000, 1, 1));
        assert_eq!(seen.copied, Bytes(3));
        assert_eq!(
            seen.last_fold_back.map(|last| last.why),
            Some("full".into())
        );
    }
}
