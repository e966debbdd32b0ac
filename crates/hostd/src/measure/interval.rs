//! The monitoring interval: over which it is counted, and where it begins.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Hyper-V's choices, in hours.
const HOURS: [i64; 8] = [1, 2, 3, 4, 6, 8, 12, 24];
/// And in days.
const DAYS: [i64; 6] = [2, 3, 4, 5, 6, 7];

/// How long an interval is: `12h`, `2d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Monitoring {
    seconds: i64,
}

impl Default for Monitoring {
    fn default() -> Self {
        Self { seconds: 12 * HOUR }
    }
}

impl TryFrom<String> for Monitoring {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let seconds = match text.split_at_checked(text.len().saturating_sub(1)) {
            Some((number, "h")) => number
                .parse()
                .ok()
                .filter(|hours| HOURS.contains(hours))
                .map(|hours| hours * HOUR),
            Some((number, "d")) => number
                .parse()
                .ok()
                .filter(|days| DAYS.contains(days))
                .map(|days| days * DAY),
            _ => None,
        };
        seconds.map(|seconds| Self { seconds }).ok_or_else(|| {
            format!(
                "`{text}` is no monitoring interval: 1h, 2h, 3h, 4h, 6h, 8h, 12h, 24h and 2d to 7d are"
            )
        })
    }
}

/// From `start`, up to and without `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
}

impl Monitoring {
    /// The interval that `now` lies in. Intervals follow each other from the epoch on, in UTC: one
    /// of 12 hours begins at midnight or at noon.
    pub(crate) fn interval(self, now: Timestamp) -> Interval {
        let start = now.as_second().div_euclid(self.seconds) * self.seconds;
        let at = |second| {
            // Only at the ends of time is it none.
            Timestamp::from_second(second).unwrap_or(now)
        };
        Interval {
            start: at(start),
            end: at(start + self.seconds),
        }
    }

    /// As a length of time.
    pub(crate) fn length(self) -> SignedDuration {
        SignedDuration::from_secs(self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn only_the_lengths_that_hyper_v_has_are_taken() {
        let good = [
            "1h", "2h", "3h", "4h", "6h", "8h", "12h", "24h", "2d", "3d", "4d", "5d", "6d", "7d",
        ];
        for text in good {
            Monitoring::try_from(text.to_owned()).expect(text);
        }
        for bad in [
            "",
            "h",
            "12",
            "5h",
            "0h",
            "-1h",
            "1d",
            "8d",
            "12 h",
            "12H",
            "ä",
            "99999999999999999999h",
        ] {
            let refused = Monitoring::try_from(bad.to_owned()).expect_err(bad);
            assert!(refused.contains("12h"), "{refused}");
        }
    }

    #[test]
    fn an_interval_of_twelve_hours_begins_at_midnight_or_noon() {
        let twelve = Monitoring::default();
        let noon = at("2026-11-29T12:00:00Z");
        for (now, start, end) in [
            ("2026-11-29T00:00:00Z", "2026-11-29T00:00:00Z", noon),
            ("2026-11-29T11:59:59.999Z", "2026-11-29T00:00:00Z", noon),
        ] {
            let interval = twelve.interval(at(now));
            assert_eq!((interval.start, interval.end), (at(start), end));
        }
        assert_eq!(twelve.interval(noon).start, noon);
    }

    #[test]
    fn a_time_before_the_epoch_has_an_interval_too() {
        let interval = Monitoring::default().interval(at("1969-12-31T23:00:00Z"));
        assert_eq!(interval.start, at("1969-12-31T12:00:00Z"));
        assert_eq!(interval.end, Timestamp::UNIX_EPOCH);
    }
}
