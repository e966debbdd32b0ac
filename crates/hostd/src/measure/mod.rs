//! What is counted of a relationship, over a monitoring interval.
//!
//! ```text
//!   primary:  LinkReport, sums of staging --> Tally --difference--> Measured
//!   replica:  segments received ------------> Receipt ------------> Measured
//!                                                                      |
//!                        the interval is over, or a person resets: counters begin anew
//! ```
//!
//! Pure: the time is given. What was last (size, time, test failover) and the points ever made
//! outlive an interval. [`file`] keeps it over a restart of polluxd.

pub(crate) mod file;
mod interval;
pub(crate) mod pace;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use model::{Health, RelationshipId, ReplicationState};
use replica::report::LinkReport;
use serde::{Deserialize, Serialize};

pub use interval::Monitoring;

/// The version of the file that this build writes.
const VERSION: u32 = 1;

/// What was staged since polluxd started: sums.
#[derive(Debug, Default)]
pub(crate) struct StagedSums {
    /// Bytes of content, without what reads as zeroes.
    content: AtomicU64,
    /// Bytes of the segment files that hold it.
    packed: AtomicU64,
}

impl StagedSums {
    /// Counts a segment.
    pub(crate) fn add(&self, content: u64, packed: u64) {
        self.content.fetch_add(content, Ordering::Relaxed);
        self.packed.fetch_add(packed, Ordering::Relaxed);
    }
}

/// Counters of a driver at one time; they only rise while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) cycles: u64,
    pub(crate) missed: u64,
    pub(crate) link_losses: u64,
    pub(crate) failures: u64,
    pub(crate) sizes: u64,
    pub(crate) latencies_ms: u64,
    pub(crate) sent: u64,
    pub(crate) compared: u64,
    pub(crate) differed: u64,
}

/// What is known of the last point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Last {
    /// When it was acknowledged or received.
    pub(crate) time: Timestamp,
    /// When it was cut.
    pub(crate) cut: Option<Timestamp>,
    /// Length of its segment file.
    pub(crate) size: u64,
    /// From its cut to its acknowledgement.
    pub(crate) latency_ms: Option<u64>,
}

impl Tally {
    /// What `report` has counted.
    pub(crate) fn of(report: &LinkReport) -> Self {
        Self {
            cycles: report.cycles,
            missed: report.missed,
            link_losses: report.link_losses,
            failures: report.failures,
            sizes: report.sizes.0,
            latencies_ms: milliseconds(report.latencies),
            sent: report.shipped.0,
            compared: report.compared.0,
            differed: report.differed.0,
        }
    }

    /// What came since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cycles: self.cycles.saturating_sub(before.cycles),
            missed: self.missed.saturating_sub(before.missed),
            link_losses: self.link_losses.saturating_sub(before.link_losses),
            failures: self.failures.saturating_sub(before.failures),
            sizes: self.sizes.saturating_sub(before.sizes),
            latencies_ms: self.latencies_ms.saturating_sub(before.latencies_ms),
            sent: self.sent.saturating_sub(before.sent),
            compared: self.compared.saturating_sub(before.compared),
            differed: self.differed.saturating_sub(before.differed),
        }
    }
}

/// The last point of `report`, if it has one that was acknowledged since its driver began.
pub(crate) fn last_of(report: &LinkReport) -> Option<Last> {
    Some(Last {
        time: report.last_success?,
        cut: report.acknowledged_cut,
        size: report.last_size.0,
        latency_ms: report.last_latency.map(milliseconds),
    })
}

pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Counters of one monitoring interval.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Counters {
    /// Points that the twin has.
    pub(crate) successful: u64,
    /// Times at which a point was due and none was made.
    pub(crate) missed: u64,
    /// How often the partner could not be reached.
    pub(crate) network_failures: u64,
    /// How often something else kept it from going on.
    pub(crate) replication_failures: u64,
    /// Sum of the lengths of the segments of points, in bytes.
    pub(crate) sizes: u64,
    /// The longest of them.
    pub(crate) size_max: u64,
    /// Points of which the latency is known.
    pub(crate) timed: u64,
    /// Sum of their latencies.
    pub(crate) latencies_ms: u64,
    /// The longest of them.
    pub(crate) latency_max_ms: u64,
    /// Bytes of segments sent.
    pub(crate) sent: u64,
    /// Bytes of segments received.
    pub(crate) received: u64,
    /// Bytes of content staged.
    pub(crate) content: u64,
    /// Bytes of the segments that hold it.
    pub(crate) packed: u64,
    /// Bytes of disks compared with the twin.
    pub(crate) compared: u64,
    /// Of them, bytes that differed.
    pub(crate) differed: u64,
}

/// What was measured of a relationship.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    version: u32,
    /// The relationship that it is about.
    pub(crate) relationship: RelationshipId,
    /// Beginning of the interval.
    pub(crate) start: Timestamp,
    /// Its end.
    pub(crate) end: Timestamp,
    /// Since when it is counted: the interval's beginning, or later.
    pub(crate) since: Timestamp,
    /// When the relationship began here.
    pub(crate) enabled: Timestamp,
    /// The counters of the interval.
    pub(crate) now: Counters,
    /// Points that the twin has taken in since the relationship began.
    pub(crate) points: u64,
    /// Bytes of segments sent or received since then.
    pub(crate) moved: u64,
    /// When the twin took in anything last.
    pub(crate) last_success: Option<Timestamp>,
    /// When the last point was cut.
    pub(crate) last_cut: Option<Timestamp>,
    /// Length of its segment.
    pub(crate) last_size: Option<u64>,
    /// From its cut to its acknowledgement.
    pub(crate) last_latency_ms: Option<u64>,
    /// When a test failover began last.
    pub(crate) last_test: Option<Timestamp>,
    /// The state that an event told of last.
    pub(crate) told_state: Option<ReplicationState>,
    /// The health that an event told of last.
    pub(crate) told_health: Option<Health>,
}

/// A segment that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// Its length in bytes.
    pub(crate) len: u64,
    /// When it was cut, if it is a point and not a part of an initial replication.
    pub(crate) cut: Option<Timestamp>,
}

impl Measured {
    /// Nothing was counted yet.
    pub(crate) fn begin(
        relationship: RelationshipId,
        monitoring: Monitoring,
        now: Timestamp,
    ) -> Self {
        let interval = monitoring.interval(now);
        Self {
            version: VERSION,
            relationship,
            start: interval.start,
            end: interval.end,
            since: now,
            enabled: now,
            now: Counters::default(),
            points: 0,
            moved: 0,
            last_success: None,
            last_cut: None,
            last_size: None,
            last_latency_ms: None,
            last_test: None,
            told_state: None,
            told_health: None,
        }
    }

    /// Begins the interval that `now` lies in, if that is another one; whether it is. A clock that
    /// was set back by less than an interval does not bring back one that is over.
    pub(crate) fn roll(&mut self, monitoring: Monitoring, now: Timestamp) -> bool {
        let length = monitoring.length();
        let same_length = self.end.duration_since(self.start) == length;
        let earliest = self.start.checked_sub(length).unwrap_or(Timestamp::MIN);
        if same_length && now >= earliest && now < self.end {
            return false;
        }
        let interval = monitoring.interval(now);
        self.start = interval.start;
        self.end = interval.end;
        self.since = interval.start;
        self.now = Counters::default();
        true
    }

    /// Counters begin anew, because a person says so.
    pub(crate) fn reset(&mut self, now: Timestamp) {
        self.since = now;
        self.now = Counters::default();
    }

    /// Takes in what a driver has counted since it was asked last.
    pub(crate) fn add(&mut self, came: &Tally, last: Option<Last>) {
        let all = &mut self.now;
        add(&mut all.successful, came.cycles);
        add(&mut all.missed, came.missed);
        add(&mut all.network_failures, came.link_losses);
        add(&mut all.replication_failures, came.failures);
        add(&mut all.sizes, came.sizes);
        add(&mut all.timed, came.cycles);
        add(&mut all.latencies_ms, came.latencies_ms);
        add(&mut all.sent, came.sent);
        add(&mut all.compared, came.compared);
        add(&mut all.differed, came.differed);
        add(&mut self.points, came.cycles);
        add(&mut self.moved, came.sent);
        let Some(last) = last else { return };
        self.last_success = Some(last.time);
        if came.cycles > 0 {
            self.point(last);
        }
    }

    /// Takes in what was staged.
    pub(crate) fn staged(&mut self, sums: &StagedSums) {
        add(
            &mut self.now.content,
            sums.content.swap(0, Ordering::Relaxed),
        );
        add(&mut self.now.packed, sums.packed.swap(0, Ordering::Relaxed));
    }

    /// Takes in a segment that was received.
    pub(crate) fn received(&mut self, now: Timestamp, receipt: Receipt) {
        add(&mut self.now.received, receipt.len);
        add(&mut self.moved, receipt.len);
        self.last_success = Some(now);
        let Some(cut) = receipt.cut else { return };
        add(&mut self.now.successful, 1);
        add(&mut self.now.sizes, receipt.len);
        add(&mut self.points, 1);
        // Clocks of two hosts differ: what seems to come from later came at once.
        let late = now.duration_since(cut).max(SignedDuration::ZERO);
        let latency = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
        add(&mut self.now.timed, 1);
        add(&mut self.now.latencies_ms, latency);
        self.point(Last {
            time: now,
            cut: Some(cut),
            size: receipt.len,
            latency_ms: Some(latency),
        });
    }

    /// A test failover began.
    pub(crate) fn tested(&mut self, now: Timestamp) {
        self.last_test = Some(now);
    }

    fn point(&mut self, last: Last) {
        self.last_cut = last.cut.or(self.last_cut);
        self.last_size = Some(last.size);
        self.last_latency_ms = last.latency_ms;
        self.now.size_max = self.now.size_max.max(last.size);
        let latency = last.latency_ms.unwrap_or(0);
        self.now.latency_max_ms = self.now.latency_max_ms.max(latency);
    }

    /// Mean length of a point's segment.
    pub(crate) fn size_average(&self) -> Option<u64> {
        self.now.sizes.checked_div(self.now.successful)
    }

    /// Mean time from a cut to its acknowledgement.
    pub(crate) fn latency_average_ms(&self) -> Option<u64> {
        self.now.latencies_ms.checked_div(self.now.timed)
    }

    /// By how much compression made smaller what was staged, in percent.
    pub(crate) fn compression_percent(&self) -> Option<u8> {
        let Counters {
            content, packed, ..
        } = self.now;
        let saved = u128::from(content.saturating_sub(packed)) * 100;
        let percent = saved.checked_div(u128::from(content))?;
        u8::try_from(percent).ok()
    }
}

fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

#[cfg(test)]
mod tests;
