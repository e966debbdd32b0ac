//! How fast a copy goes on, and how long it will take.

use jiff::{SignedDuration, Timestamp};

/// The rate is that of the last so long, up to twice as long.
const WINDOW: SignedDuration = SignedDuration::from_secs(30);

/// How far a copy was at some times.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Two of them, at least [`WINDOW`] apart once there is so much.
    seen: Option<[(Timestamp, u64); 2]>,
}

impl Pace {
    /// It is `done` bytes far now; none: there is no copy. The rate in bytes per second, once there
    /// is one.
    pub(crate) fn note(&mut self, now: Timestamp, done: Option<u64>) -> Option<u64> {
        let done = done?;
        let [from, recent] = match self.seen {
            // One that is less far is another copy, or the clock was set.
            Some([from, recent]) if recent.1 <= done && recent.0 <= now => [from, recent],
            _ => [(now, done); 2],
        };
        self.seen = Some(match now.duration_since(recent.0) > WINDOW {
            true => [recent, (now, done)],
            false => [from, recent],
        });
        let millis = u64::try_from(now.duration_since(from.0).as_millis()).ok()?;
        (done - from.1).saturating_mul(1000).checked_div(millis)
    }
}

/// Seconds until `left` bytes are copied; none while nothing moves.
pub(crate) fn left_s(left: u64, per_second: u64) -> Option<u64> {
    (per_second > 0).then(|| left.div_ceil(per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
    }

    #[test]
    fn the_rate_is_that_of_the_last_while_and_not_of_the_whole_copy() {
        let mut pace = Pace::default();
        assert_eq!(pace.note(at(0), Some(0)), None, "one look tells no rate");
        assert_eq!(pace.note(at(10), Some(1000)), Some(100));
        // Ten times faster from here on.
        for second in (20..=200).step_by(10) {
            let done = 1000 + (u64::try_from(second).expect("positive") - 10) * 1000;
            let rate = pace.note(at(second), Some(done)).expect("a rate");
            assert!(second < 100 || rate == 1000, "{second}: {rate}");
        }
        assert_eq!(left_s(5000, 1000), Some(5));
        assert_eq!(left_s(5000, 0), None);
    }

    #[test]
    fn another_copy_and_a_clock_that_was_set_begin_anew() {
        let mut pace = Pace::default();
        pace.note(at(0), Some(0));
        pace.note(at(10), Some(1000));
        assert_eq!(pace.note(at(20), Some(10)), None, "less far than before");
        assert_eq!(pace.note(at(21), Some(20)), Some(10));
        assert_eq!(pace.note(at(-50), Some(30)), None, "the clock was set");
        assert_eq!(pace.note(at(-40), None), None);
    }
}
