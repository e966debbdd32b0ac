//! How fast a copy goes on, and how long it will take.

use jiff::{SignedDuration, Timestamp};

/// The rate is that of the last so long, up to twice as long.
const WINDOW: SignedDuration = SignedDuration::from_secs(30);

/// How far a copy was at one time.
type Look = (Timestamp, u64);

/// How far a copy was at some times.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    seen: Option<Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// From which the rate is counted.
    from: Look,
    /// At least [`WINDOW`] later, once there is so much: the next `from`.
    recent: Look,
    last: Look,
}

impl Pace {
    /// It is `done` bytes far now; none: there is no copy. The rate in bytes per second, once there
    /// is one.
    pub(crate) fn note(&mut self, now: Timestamp, done: Option<u64>) -> Option<u64> {
        let look = (now, done?);
        let mut seen = match self.seen {
            // One that is less far is another copy, or the clock was set.
            Some(seen) if seen.last.1 <= look.1 && seen.last.0 <= now => seen,
            _ => Seen {
                from: look,
                recent: look,
                last: look,
            },
        };
        seen.last = look;
        let from = seen.from;
        if now.duration_since(seen.recent.0) > WINDOW {
            (seen.from, seen.recent) = (seen.recent, look);
        }
        self.seen = Some(seen);
        let millis = u64::try_from(now.duration_since(from.0).as_millis()).ok()?;
        (look.1 - from.1).saturating_mul(1000).checked_div(millis)
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
