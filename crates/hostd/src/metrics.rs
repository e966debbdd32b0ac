//! Measures for Prometheus, in the OpenMetrics text format 1.0.
//!
//! Names never change; each is told for every relationship for which it is known, with the labels
//! `vm`, `id`, `mode` and `peer`. Counters of the monitoring interval begin anew with it, which is
//! what Prometheus expects of counters.

use std::fmt;

use api::Measures;
use model::{Bytes, Health};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// The content type of [`text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    /// Its samples are named with `_total` behind its name.
    Counter,
}

/// One metric.
struct Metric {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&Measures) -> Option<u64>,
    /// What the value is divided by, to have seconds.
    per: u32,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&Measures) -> Option<u64>,
) -> Metric {
    Metric {
        name,
        kind,
        help,
        value,
        per: 1,
    }
}

const fn in_seconds(
    name: &'static str,
    help: &'static str,
    per: u32,
    value: fn(&Measures) -> Option<u64>,
) -> Metric {
    Metric {
        per,
        ..metric(name, Kind::Gauge, help, value)
    }
}

fn len(bytes: Option<Bytes>) -> Option<u64> {
    bytes.map(|bytes| bytes.0)
}

const METRICS: &[Metric] = &[
    metric(
        "pollux_replication_health",
        Kind::Gauge,
        "Health: 0 not applicable, 1 normal, 2 warning, 3 critical",
        |one| {
            Some(match one.health {
                Health::NotApplicable => 0,
                Health::Normal => 1,
                Health::Warning => 2,
                Health::Critical => 3,
            })
        },
    ),
    metric(
        "pollux_replication_points",
        Kind::Counter,
        "Points that the twin got",
        |one| Some(one.successful),
    ),
    metric(
        "pollux_replication_missed_points",
        Kind::Counter,
        "Points that were due while the one before was not at the twin yet",
        |one| one.missed,
    ),
    metric(
        "pollux_replication_network_failures",
        Kind::Counter,
        "Times that the other host could not be reached",
        |one| Some(one.network_failures),
    ),
    metric(
        "pollux_replication_failures",
        Kind::Counter,
        "Times that something else kept the replication from going on",
        |one| Some(one.replication_failures),
    ),
    metric(
        "pollux_replication_sent_bytes",
        Kind::Counter,
        "Bytes of segments sent",
        |one| Some(one.sent.0),
    ),
    metric(
        "pollux_replication_received_bytes",
        Kind::Counter,
        "Bytes of segments received",
        |one| Some(one.received.0),
    ),
    metric(
        "pollux_replication_compared_bytes",
        Kind::Counter,
        "Bytes of disks compared with the twin by hash",
        |one| Some(one.compared.0),
    ),
    metric(
        "pollux_replication_differed_bytes",
        Kind::Counter,
        "Bytes of disks that were found to differ",
        |one| Some(one.differed.0),
    ),
    in_seconds(
        "pollux_replication_rpo_seconds",
        "Time since the latest point that the twin has was cut",
        1,
        |one| one.rpo_s,
    ),
    in_seconds(
        "pollux_replication_last_success_timestamp_seconds",
        "When the twin got anything last, in seconds since 1970",
        1,
        |one| {
            let second = one.last_replication?.as_second();
            u64::try_from(second).ok()
        },
    ),
    in_seconds(
        "pollux_replication_latency_average_seconds",
        "Mean time from the cut of a point until the twin had it",
        1000,
        |one| one.latency_average_ms,
    ),
    in_seconds(
        "pollux_replication_latency_maximum_seconds",
        "Longest time from the cut of a point until the twin had it",
        1000,
        |one| one.latency_maximum_ms,
    ),
    in_seconds(
        "pollux_replication_latency_last_seconds",
        "Time from the cut of the last point until the twin had it",
        1000,
        |one| one.last_latency_ms,
    ),
    metric(
        "pollux_replication_size_average_bytes",
        Kind::Gauge,
        "Mean length of what was sent for a point",
        |one| len(one.size_average),
    ),
    metric(
        "pollux_replication_size_maximum_bytes",
        Kind::Gauge,
        "Longest of what was sent for a point",
        |one| len(one.size_maximum),
    ),
    metric(
        "pollux_replication_size_last_bytes",
        Kind::Gauge,
        "Length of what was sent for the last point",
        |one| len(one.last_size),
    ),
    metric(
        "pollux_replication_pending_bytes",
        Kind::Gauge,
        "Bytes changed and not at the twin yet",
        |one| len(one.pending),
    ),
    metric(
        "pollux_replication_backlog_bytes",
        Kind::Gauge,
        "Bytes that the twin lacks of the segment on its way",
        |one| len(one.backlog),
    ),
    Metric {
        per: 100,
        ..metric(
            "pollux_replication_compression_saved_ratio",
            Kind::Gauge,
            "Part by which compression made smaller what was sent",
            |one| one.compression_percent.map(u64::from),
        )
    },
    in_seconds(
        "pollux_replication_cut_pause_p99_seconds",
        "99 of 100 cuts held up the guest's writes for at most this",
        1_000_000,
        |one| one.pause_p99_us,
    ),
    in_seconds(
        "pollux_replication_cut_pause_longest_seconds",
        "Longest time for which a cut held up the guest's writes",
        1_000_000,
        |one| one.pause_longest_us,
    ),
];

/// Measures of all relationships of a host.
#[derive(Debug)]
struct All(Vec<Measures>);

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in METRICS {
            let kind = match metric.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
            };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for one in &self.0 {
                let Some(value) = (metric.value)(one) else {
                    continue;
                };
                let labels = [
                    ("vm", escaped(one.name.as_str())),
                    ("id", one.vm.to_string()),
                    ("mode", one.mode.to_string().to_lowercase()),
                    ("peer", escaped(&one.peer)),
                ];
                let mut sample = family.encode_family(&labels)?;
                match metric.kind {
                    Kind::Counter => sample.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                    Kind::Gauge if metric.per == 1 => sample.encode_gauge(&value)?,
                    #[allow(clippy::cast_precision_loss, reason = "figures for people")]
                    Kind::Gauge => sample.encode_gauge(&(value as f64 / f64::from(metric.per)))?,
                }
            }
        }
        Ok(())
    }
}

/// As the value of a label is written. The crate leaves that to its callers.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text
}

/// All of it.
///
/// # Errors
/// Never in fact: text can be written into memory.
pub(crate) fn text(measures: Vec<Measures>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(All(measures)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Names and kinds, as the documentation lists them.
#[cfg(test)]
pub(crate) fn names() -> Vec<(&'static str, &'static str)> {
    let kind = |metric: &Metric| match metric.kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
    };
    METRICS
        .iter()
        .map(|metric| (metric.name, kind(metric)))
        .collect()
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
