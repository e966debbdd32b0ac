//! A step of a policy: how far back it reaches, and how many points it wants there.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};

use super::Keep;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;

/// Seconds from the Unix epoch, a Thursday, back to the Monday before: weeks begin there, and
/// days and hours as they do anyway.
const MONDAY: i64 = 3 * 24 * 60 * 60;

/// A part of a policy: of the points that `span` reaches, one for each `grain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Which points it looks at.
    pub span: Span,
    /// Which of them it wants.
    pub grain: Grain,
}

/// How far back a step reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Points up to this age in seconds.
    Age(u64),
    /// This many of the points that the grain leaves, whatever their age.
    Count(u32),
}

/// How close to each other the points of a step are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Every point.
    All,
    /// The first point of each stretch of this many seconds.
    Each(u64),
}

/// Text that should have been a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    /// Nothing.
    #[error("no step says what is kept (expected steps such as `1h:all,24h:hourly`)")]
    Empty,
    /// More than [`Keep::MAX_STEPS`].
    #[error("{0} steps are more than {max}", max = Keep::MAX_STEPS)]
    TooMany(usize),
    /// Not two parts.
    #[error(
        "`{0}` is no step (expected how far back and what is kept there, such as `24h:hourly`)"
    )]
    Step(String),
    /// The part before the colon.
    #[error(
        "`{0}` does not say how far back (expected an age such as `30min`, `24h`, `7d` or `8w`, \
         up to {weeks} weeks, or a number of points up to {points})",
        weeks = Step::MAX_AGE / WEEK,
        points = Step::MAX_COUNT
    )]
    Span(String),
    /// The part after the colon.
    #[error(
        "`{0}` does not say which points (expected `all`, `hourly`, `daily`, `weekly`, or an \
         interval such as `15min`)"
    )]
    Grain(String),
    /// A step that wants one point for more time than it reaches back.
    #[error("`{0}` reaches back less than the interval of its points")]
    Short(String),
    /// A step that does not reach further back than the one before it.
    #[error(
        "`{after}` has to reach further back than `{before}` before it: the shortest step comes first"
    )]
    SpanNotRising {
        /// The step before.
        before: String,
        /// The step at fault.
        after: String,
    },
    /// A step that keeps points as close as the one before it.
    #[error("`{after}` has to keep fewer points than `{before}` before it: a longer interval")]
    GrainNotRising {
        /// The step before.
        before: String,
        /// The step at fault.
        after: String,
    },
}

impl Step {
    /// Oldest age in seconds: ten years.
    pub const MAX_AGE: u64 = 520 * WEEK;
    /// Most points of a step that counts.
    pub const MAX_COUNT: u32 = 100_000;

    /// Whether this step may come after `before`.
    pub(super) fn follows(&self, before: &Self) -> Result<(), KeepError> {
        let names = || (before.to_string(), self.to_string());
        if self.grain.seconds() <= before.grain.seconds() {
            let (before, after) = names();
            return Err(KeepError::GrainNotRising { before, after });
        }
        if let (Some(reach), Some(reach_before)) = (self.reach(), before.reach()) {
            if reach <= reach_before {
                let (before, after) = names();
                return Err(KeepError::SpanNotRising { before, after });
            }
        }
        Ok(())
    }

    /// How many seconds it reaches back while points come without a gap; none if that follows
    /// from how often they come.
    fn reach(&self) -> Option<u64> {
        match (self.span, self.grain) {
            (Span::Age(seconds), _) => Some(seconds),
            (Span::Count(count), Grain::Each(seconds)) => Some(u64::from(count) * seconds),
            (Span::Count(_), Grain::All) => None,
        }
    }
}

impl Span {
    /// Whether a point of this age is looked at; one that counts looks at all of them.
    pub(super) fn reaches(self, age: SignedDuration) -> bool {
        match self {
            Self::Age(seconds) => {
                age <= SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX))
            }
            Self::Count(_) => true,
        }
    }
}

impl Grain {
    /// The number of the stretch in which `time` lies; none if each point stands alone.
    pub(super) fn bucket(self, time: Timestamp) -> Option<i64> {
        match self {
            Self::All => None,
            Self::Each(seconds) => {
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).max(1);
                Some(time.as_second().saturating_add(MONDAY).div_euclid(seconds))
            }
        }
    }

    fn seconds(self) -> u64 {
        match self {
            Self::All => 0,
            Self::Each(seconds) => seconds,
        }
    }
}

impl FromStr for Step {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (span, grain) = text
            .split_once(':')
            .ok_or_else(|| KeepError::Step(text.to_owned()))?;
        let step = Self {
            span: span.trim().parse()?,
            grain: grain.trim().parse()?,
        };
        match step.span {
            Span::Age(seconds) if seconds < step.grain.seconds() => {
                Err(KeepError::Short(text.to_owned()))
            }
            _ => Ok(step),
        }
    }
}

impl FromStr for Span {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || KeepError::Span(text.to_owned());
        let counts = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        if counts {
            return match text.parse() {
                Ok(count @ 1..=Step::MAX_COUNT) => Ok(Self::Count(count)),
                _ => Err(refuse()),
            };
        }
        match duration(text) {
            Some(seconds) if seconds <= Step::MAX_AGE => Ok(Self::Age(seconds)),
            _ => Err(refuse()),
        }
    }
}

impl FromStr for Grain {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            "hourly" => Ok(Self::Each(HOUR)),
            "daily" => Ok(Self::Each(DAY)),
            "weekly" => Ok(Self::Each(WEEK)),
            other => match duration(other) {
                Some(seconds) if seconds <= Step::MAX_AGE => Ok(Self::Each(seconds)),
                _ => Err(KeepError::Grain(text.to_owned())),
            },
        }
    }
}

/// Seconds of a whole number, not 0, with a unit.
fn duration(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start() {
        "s" => 1,
        "min" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        "w" => WEEK,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(unit).filter(|seconds| *seconds > 0)
}

/// Exact, as people write it: `90min`, `24h` rather than `1d`.
fn write_duration(f: &mut fmt::Formatter<'_>, seconds: u64) -> fmt::Result {
    let units = [
        (WEEK, 2 * WEEK, "w"),
        (DAY, 2 * DAY, "d"),
        (HOUR, HOUR, "h"),
        (MINUTE, MINUTE, "min"),
        (1, 0, "s"),
    ];
    let fits = |(unit, least, _): &&(u64, u64, &str)| seconds % unit == 0 && seconds >= *least;
    match units.iter().find(fits) {
        Some((unit, _, name)) => write!(f, "{}{name}", seconds / unit),
        None => write!(f, "{seconds}s"),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.span {
            Span::Age(seconds) => write_duration(f, seconds)?,
            Span::Count(count) => write!(f, "{count}")?,
        }
        f.write_str(":")?;
        match self.grain {
            Grain::All => f.write_str("all"),
            Grain::Each(HOUR) => f.write_str("hourly"),
            Grain::Each(DAY) => f.write_str("daily"),
            Grain::Each(WEEK) => f.write_str("weekly"),
            Grain::Each(seconds) => write_duration(f, seconds),
        }
    }
}
