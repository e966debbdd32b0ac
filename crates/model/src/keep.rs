//! Which recovery points are kept: a policy, and what goes by it.
//!
//! ```text
//!   1h:all,24h:hourly,7d:daily
//!
//!   present                  1 h                              24 h             7 d
//!   | all of them            | the first one of each hour     | of each day    | none
//!   .........................  .      .      .      .      .            .
//! ```
//!
//! A point is kept if any step of the policy wants it; the newest one, and whatever is
//! held (pinned, locked, open), always is. A step of `hourly` wants the first point of each
//! hour of UTC: that one is known when the hour begins and stays the first, so that an
//! hourly point, once chosen, is never given up for a neighbour.
//!
//! **Clocks.** Times are those of the primary, whose clock may be wrong, and may be set. The
//! *present* is the time of the newest point, or this host's if that is earlier: while no
//! points come, none goes because it grows old, and a clock that runs ahead here ages
//! nothing. A point's time is believed if it lies between those of the points before it and
//! the present; any other point is as old as the next one that is believed. So a wrong time
//! makes a point younger than it is, never older.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::PointId;

mod step;
#[cfg(test)]
mod tests;

pub use step::{Grain, KeepError, Span, Step};

/// How often a judgement is made anew over what it leaves: a point with a wrong time that goes may
/// change the age of others. What this leaves to do is done by the next judgement.
const ROUNDS: u32 = 8;

/// Which recovery points are kept. Text form: steps such as `24h:hourly`, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Keep(Vec<Step>);

/// How a point goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Going {
    /// The oldest point that is left: the next one becomes the oldest, and the base of all.
    Merge(PointId),
    /// Some in the middle: their content goes into the segment of the next newer point.
    Squash {
        /// Neighbours, the oldest first; at least one.
        points: Vec<PointId>,
        /// The next newer point, which stays.
        into: PointId,
        /// Whether `into` stays for long: the step that looks at `points` wants it. If not, it will
        /// be among the next ones that go, and it saves work to wait for that.
        lasts: bool,
    },
}

/// What a step makes of points.
struct View {
    /// Whether it looks as far back as each of them.
    reached: Vec<bool>,
    /// Whether each is the first of its hour, day, or whatever the grain is.
    first: Vec<bool>,
}

impl View {
    fn wants(&self, at: usize) -> bool {
        self.first[at] && self.reached[at]
    }
}

impl Keep {
    /// Most steps of a policy.
    pub const MAX_STEPS: usize = 8;

    /// Its steps, the shortest first.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Which of `points` (the oldest first) go, and how, when this host's clock says `now`:
    /// first those that are merged, the oldest first; then those that are squashed. `held` says
    /// of a point that it must stay.
    ///
    /// The newest point never goes. Applied and judged again at the same time, nothing goes.
    #[must_use]
    pub fn judge(
        &self,
        points: &[(PointId, Timestamp)],
        held: impl Fn(PointId) -> bool,
        now: Timestamp,
    ) -> Vec<Going> {
        let Some((_, newest)) = points.last() else {
            return Vec::new();
        };
        let present = now.min(*newest);
        let times = |left: &[usize]| -> Vec<_> { left.iter().map(|at| points[*at].1).collect() };
        let mut left: Vec<usize> = (0..points.len()).collect();
        let all = self.views(&times(&left), present);
        for _ in 0..ROUNDS {
            let views = self.views(&times(&left), present);
            let before = left.len();
            let mut place = 0..before;
            left.retain(|at| {
                let place = place.next().unwrap_or_default();
                let wanted = views.iter().any(|view| view.wants(place));
                wanted || place + 1 == before || held(points[*at].0)
            });
            if left.len() == before {
                break;
            }
        }
        let lasts = |last: usize, into: usize| {
            let mut looking = all.iter().filter(|view| view.reached[last]);
            looking.any(|view| view.wants(into)) || held(points[into].0)
        };
        going(points, &left, lasts)
    }

    /// What each step makes of points that were cut at these times.
    fn views(&self, times: &[Timestamp], present: Timestamp) -> Vec<View> {
        let ages = ages(times, present);
        let view = |step: &Step| {
            let reached = match step.span {
                Span::Age(_) => ages.iter().map(|age| step.span.reaches(*age)).collect(),
                Span::Count(count) => {
                    let oldest = oldest_of_newest(times, step.grain, count);
                    (0..times.len()).map(|at| at >= oldest).collect()
                }
            };
            View {
                reached,
                first: first_of_each(times, step.grain),
            }
        };
        self.0.iter().map(view).collect()
    }
}

/// How old each point is.
fn ages(times: &[Timestamp], present: Timestamp) -> Vec<SignedDuration> {
    let mut latest = Timestamp::MIN;
    let mut believed: Vec<bool> = Vec::with_capacity(times.len());
    for time in times {
        let fits = (latest..=present).contains(time);
        if fits {
            latest = *time;
        }
        believed.push(fits);
    }
    let mut ages = vec![SignedDuration::ZERO; times.len()];
    let mut next = present;
    for at in (0..times.len()).rev() {
        if believed[at] {
            next = times[at];
        }
        ages[at] = present.duration_since(next);
    }
    ages
}

/// Whether each point is the first of its hour, day, or whatever `grain` is.
fn first_of_each(times: &[Timestamp], grain: Grain) -> Vec<bool> {
    let mut seen = HashSet::new();
    let first = |time: &Timestamp| grain.bucket(*time).is_none_or(|bucket| seen.insert(bucket));
    times.iter().map(first).collect()
}

/// The position of the oldest of the first points of the newest `count` hours, or whatever `grain`
/// is.
fn oldest_of_newest(times: &[Timestamp], grain: Grain, count: u32) -> usize {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut first = HashMap::new();
    for (at, time) in times.iter().enumerate() {
        if let Some(bucket) = grain.bucket(*time) {
            first.entry(bucket).or_insert(at);
        }
    }
    let (mut oldest, mut chosen) = (times.len(), 0);
    for (at, time) in times.iter().enumerate().rev() {
        if chosen == count {
            break;
        }
        let begins = match grain.bucket(*time) {
            None => Some(at),
            // Once for each: its points may lie apart if a clock was set back.
            Some(bucket) => first.remove(&bucket),
        };
        if let Some(at) = begins {
            chosen += 1;
            oldest = oldest.min(at);
        }
    }
    oldest
}

/// What happens to the points whose positions are not among `left`, which has the last one.
fn going(
    points: &[(PointId, Timestamp)],
    left: &[usize],
    lasts: impl Fn(usize, usize) -> bool,
) -> Vec<Going> {
    let mut left = left.iter().copied().peekable();
    let (mut going, mut between) = (Vec::new(), Vec::new());
    let mut oldest = true;
    for (at, (id, _)) in points.iter().enumerate() {
        if left.next_if_eq(&at).is_some() {
            oldest = false;
            if !between.is_empty() {
                going.push(Going::Squash {
                    points: std::mem::take(&mut between),
                    into: *id,
                    lasts: lasts(at - 1, at),
                });
            }
        } else if oldest {
            going.push(Going::Merge(*id));
        } else {
            between.push(*id);
        }
    }
    going
}

/// Every point of the last hour, then one an hour up to 24 hours.
impl Default for Keep {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self(vec![
            Step {
                span: Span::Age(HOUR),
                grain: Grain::All,
            },
            Step {
                span: Span::Age(24 * HOUR),
                grain: Grain::Each(HOUR),
            },
        ])
    }
}

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Err(KeepError::Empty);
        }
        let count = text.split(',').count();
        if count > Self::MAX_STEPS {
            return Err(KeepError::TooMany(count));
        }
        let steps = text
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<Step>, _>>()?;
        for pair in steps.windows(2) {
            pair[1].follows(&pair[0])?;
        }
        Ok(Self(steps))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<_> = self.0.iter().map(Step::to_string).collect();
        f.pad(&steps.join(","))
    }
}

impl TryFrom<String> for Keep {
    type Error = KeepError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Keep> for String {
    fn from(keep: Keep) -> Self {
        keep.to_string()
    }
}
