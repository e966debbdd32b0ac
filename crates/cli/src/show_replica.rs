//! Relationships for people: how they are, what was measured, why they are not healthy.

use api::{
    Authorization, HealthMessage, LostWrites, Measures, PreparedFailover, Progress, Replication,
    ReplicationHealth,
};
use comfy_table::ContentArrangement;
use jiff::Timestamp;
use model::{Bytes, Mode, ReplicationState};

use crate::show::{Shown, columns, exact_time, finish, harmless, interval, list, or_dash};

/// Hyper-V's columns of `Get-VMReplication`.
const STATUS: [&str; 10] = [
    "VMName",
    "State",
    "Health",
    "Mode",
    "FrequencySec",
    "PrimaryServer",
    "ReplicaServer",
    "ReplicaPort",
    "AuthType",
    "Relationship",
];
/// Hyper-V's columns of `Measure-VMReplication`.
const MEASURE: [&str; 8] = [
    "VMName",
    "State",
    "Health",
    "LReplTime",
    "PReplSize(M)",
    "AvgLatency",
    "AvgReplSize(M)",
    "Relationship",
];
/// Hyper-V's columns of `Get-VMReplicationAuthorizationEntry`.
const AUTHORIZATION: [&str; 3] = ["AllowedPS", "StorageLoc", "TrustGroup"];
/// There are no extended replicas yet.
const RELATIONSHIP: &str = "Simple";

/// Most ranges of a disk that people are shown; programs get all.
const RANGES: usize = 16;

impl Shown for LostWrites {
    fn table(&self) -> String {
        let mut table = columns(&["Disk", "From", "Size"]);
        let mut below = format!(
            "\n\nwritten after point {}, the newest of the host that took over",
            self.since
        );
        if let Some(from) = self.from {
            below.push_str(&format!("\nthat was cut at   {}", exact_time(from)));
        }
        if let Some(until) = self.until {
            below.push_str(&format!("\nlast written at   {}", exact_time(until)));
        }
        for disk in &self.disks {
            let number = disk.number.to_string();
            let ranges = disk.ranges.as_deref().unwrap_or_default();
            for range in ranges.iter().take(RANGES) {
                table.add_row([number.clone(), range.at.to_string(), range.len.to_string()]);
            }
            let sum = Bytes(ranges.iter().map(|range| range.len.0).sum());
            let what = match &disk.ranges {
                None => format!("nobody can tell which of its {} were written", disk.size),
                Some(none) if none.is_empty() => "nothing was written".to_owned(),
                Some(all) if all.len() > RANGES => {
                    format!("{} ranges, {sum} together; `-o json` shows all", all.len())
                }
                Some(_) => format!("{sum} together"),
            };
            let file = harmless(&disk.file);
            below.push_str(&format!(
                "\ndisk {number}: {what}\n  as it was, not to be written to: {file}"
            ));
            let open = self.open.iter().find(|open| open.slot == disk.number);
            if let Some(open) = open {
                below.push_str(&format!("\n  open: {}", open.uri));
            }
        }
        if let Some(held) = self.held.filter(|held| held.0 > 0) {
            let held = Bytes(held.0.div_ceil(1 << 20) << 20);
            below.push_str(&format!(
                "\nfor its sake {held} of older points are kept; `--drop` lets them go"
            ));
        }
        finish(&table) + &below
    }
}

/// Relationships in a table that fits a terminal.
impl Shown for Vec<Replication> {
    fn table(&self) -> String {
        let mut table = columns(&[
            "VM", "State", "Health", "Mode", "Every", "Peer", "Lag", "Points", "Pending",
        ]);
        let mut below = String::new();
        for one in self {
            let state = match one.progress() {
                Some(so_far) if so_far.total.0 > 0 => {
                    let done = u128::from(so_far.done.0) * 100 / u128::from(so_far.total.0);
                    if let Some((rate, left)) = one.per_second.zip(one.left_s) {
                        let left = interval(left);
                        below.push_str(&format!(
                            "\n\n{}: {} of {}, {rate} a second, {left} left",
                            one.name, so_far.done, so_far.total
                        ));
                    }
                    format!("{} ({done} %)", short(one.state))
                }
                _ => short(one.state),
            };
            table.add_row([
                one.name.to_string(),
                state,
                one.health.to_string(),
                one.mode.to_string(),
                or_dash(one.every_s.map(interval)),
                one.peer.clone(),
                or_dash(one.lag_s.map(|lag| format!("{lag} s"))),
                one.points.to_string(),
                or_dash(one.pending),
            ]);
            // Below, for a sentence in a narrow column cannot be read.
            let name = one.name.as_str();
            for line in disks(one).into_iter().chain(fence(one)) {
                below.push_str(&format!("\n\n{name}: {line}"));
            }
            for message in &one.messages {
                below.push_str(&format!("\n\n{name}: {}", sentence(message)));
            }
            if let (true, Some(error)) = (one.messages.is_empty(), &one.last_error) {
                below.push_str(&format!("\n\n{name}: {}", harmless(error)));
            }
        }
        finish(&table) + &below
    }
}

/// Its disks that are in no point, or not in the newest.
fn disks(one: &Replication) -> Vec<String> {
    let joining = one.joining.iter().map(|joining| {
        let Progress { done, total, .. } = &joining.progress;
        let disk = joining.disk;
        format!("disk {disk} is being copied to its twin, {done} of {total}")
    });
    let mut lines: Vec<_> = joining.collect();
    if !one.left_out.is_empty() {
        let numbers: Vec<_> = one.left_out.iter().map(u8::to_string).collect();
        let (disks, are) = match numbers.len() {
            1 => ("disk", "is"),
            _ => ("disks", "are"),
        };
        lines.push(format!(
            "{disks} {} {are} not replicated",
            numbers.join(", ")
        ));
    }
    lines
}

/// Its lease, and what else was chosen about who may run it.
fn fence(one: &Replication) -> Vec<String> {
    let peer = &one.peer;
    let seconds = |ms: u64| format!("{} s", ms.div_ceil(1000));
    let lease = one.lease.map(|lease| {
        let length = format!("a lease of {} s", lease.seconds);
        match (lease.takeover_in_ms, lease.left_ms) {
            (Some(0), _) => format!(
                "the primary's lease of {} s is over; this host may take over",
                lease.seconds
            ),
            (Some(left), _) => {
                format!("{length}; this host could take over in {}", seconds(left))
            }
            (None, _) if lease.held => {
                format!("{length} is over: held still until host `{peer}` renews it")
            }
            (None, Some(left)) => format!("{length}, {} left", seconds(left)),
            (None, None) => format!("{length}, and host `{peer}` has granted none yet"),
        }
    });
    let unasked = (!one.start_unasked.is_deny()).then(|| {
        format!(
            "starts without an answer of host `{peer}` (start_unasked = allow): two may run until \
             they are in contact"
        )
    });
    lease.into_iter().chain(unasked).collect()
}

/// The longest states are too long for a terminal of 80 columns.
fn short(state: ReplicationState) -> String {
    match state {
        ReplicationState::ReadyForInitialReplication => "ReadyForInitial".to_owned(),
        ReplicationState::InitialReplicationInProgress => "Initial".to_owned(),
        other => other.to_string(),
    }
}

/// What is wrong and what to do; what others said is in it.
fn sentence(message: &HealthMessage) -> String {
    let HealthMessage {
        level,
        what,
        way_out,
        ..
    } = message;
    harmless(&format!("{level}: {what}. {way_out}"))
}

/// As Hyper-V shows them, however wide that is.
pub(crate) fn wide_status(all: &[Replication]) -> String {
    let mut table = columns(&STATUS);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for one in all {
        table.add_row([
            one.name.to_string(),
            one.state.to_string(),
            one.health.to_string(),
            one.mode.to_string(),
            or_dash(one.every_s),
            one.primary_host.clone(),
            one.replica_host.clone(),
            or_dash(one.replica_port),
            "Certificate".to_owned(),
            RELATIONSHIP.to_owned(),
        ]);
    }
    finish(&table)
}

/// As Hyper-V shows them, however wide that is.
pub(crate) fn wide_measures(all: &[Measures]) -> String {
    let mut table = columns(&MEASURE);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for one in all {
        table.add_row([
            one.name.to_string(),
            one.state.to_string(),
            one.health.to_string(),
            or_dash(one.last_replication.map(second)),
            or_dash(one.pending.map(mebibytes)),
            or_dash(one.latency_average_ms.map(span)),
            or_dash(one.size_average.map(mebibytes)),
            RELATIONSHIP.to_owned(),
        ]);
    }
    finish(&table)
}

/// As Hyper-V shows them.
pub(crate) fn wide_authorizations(all: &[Authorization]) -> String {
    let mut table = columns(&AUTHORIZATION);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for one in all {
        table.add_row([
            one.pattern.clone(),
            one.store.display().to_string(),
            or_dash(one.group.clone()),
        ]);
    }
    finish(&table)
}

/// All relationships in a table.
impl Shown for Vec<Measures> {
    fn table(&self) -> String {
        let mut table = columns(&[
            "VM",
            "Health",
            "Points",
            "Last (UTC)",
            "Size",
            "Latency",
            "Pending",
            "RPO",
        ]);
        for one in self {
            table.add_row([
                one.name.to_string(),
                one.health.to_string(),
                points(one),
                or_dash(one.last_replication.map(second)),
                or_dash(one.size_average),
                or_dash(one.latency_average_ms.map(milliseconds)),
                or_dash(one.pending),
                or_dash(one.rpo_s.map(|s| format!("{s} s"))),
            ]);
        }
        finish(&table)
    }
}

/// Everything that was measured of one.
impl Shown for Measures {
    fn table(&self) -> String {
        let both = |average: Option<String>, maximum: Option<String>| match (average, maximum) {
            (Some(average), Some(maximum)) => format!("{average} on average, {maximum} at most"),
            _ => "-".to_owned(),
        };
        let mut rows = vec![
            ("VM", self.name.to_string()),
            (
                "State",
                format!("{}, {} with host {}", self.state, self.mode, self.peer),
            ),
            ("Health", self.health.to_string()),
            (
                "Interval",
                format!(
                    "{} to {} UTC",
                    second(self.interval_start),
                    second(self.interval_end)
                ),
            ),
            ("Counted since", format!("{} UTC", second(self.since))),
            ("Points", points(self)),
            (
                "Size",
                both(
                    self.size_average.map(|size| size.to_string()),
                    self.size_maximum.map(|size| size.to_string()),
                ),
            ),
            (
                "Latency",
                both(
                    self.latency_average_ms.map(milliseconds),
                    self.latency_maximum_ms.map(milliseconds),
                ),
            ),
            ("Network failures", self.network_failures.to_string()),
            (
                "Replication failures",
                self.replication_failures.to_string(),
            ),
            (
                "Last replication",
                or_dash(
                    self.last_replication
                        .map(|time| format!("{} UTC", second(time))),
                ),
            ),
            ("Last size", or_dash(self.last_size)),
            (
                "Last latency",
                or_dash(self.last_latency_ms.map(milliseconds)),
            ),
            ("RPO now", or_dash(self.rpo_s.map(|s| format!("{s} s")))),
            (
                "Last test failover",
                or_dash(
                    self.last_test_failover
                        .map(|time| format!("{} UTC", second(time))),
                ),
            ),
        ];
        if self.mode == Mode::Primary {
            let pause = |us: u64| format!("{}.{:02} ms", us / 1000, us % 1000 / 10);
            let pauses = match (self.pause_p99_us, self.pause_longest_us) {
                (Some(p99), Some(longest)) => {
                    format!("99 % at most {}, longest {}", pause(p99), pause(longest))
                }
                _ => "-".to_owned(),
            };
            let efficiency = self
                .compression_percent
                .map(|part| format!("{part} % saved"));
            rows.extend([
                ("Pending", or_dash(self.pending)),
                ("Backlog", or_dash(self.backlog)),
                ("Sent", self.sent.to_string()),
                ("Compression", or_dash(efficiency)),
                (
                    "Resynchronized",
                    format!("{} compared, {} differed", self.compared, self.differed),
                ),
                ("Pause of a cut", pauses),
            ]);
        } else {
            rows.push(("Received", self.received.to_string()));
        }
        list(rows)
    }
}

/// Such as `719 of 720`.
fn points(measures: &Measures) -> String {
    match measures.due {
        Some(due) => format!("{} of {due}", measures.successful),
        None => measures.successful.to_string(),
    }
}

/// To the second, in UTC.
fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Such as `0.25 s`.
fn milliseconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

/// As .NET prints a span of time: `00:00:00.2500000`.
fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    let days = match seconds / 86_400 {
        0 => String::new(),
        days => format!("{days}."),
    };
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    let clock = format!("{days}{hours:02}:{minutes:02}:{:02}", seconds % 60);
    match ms % 1000 {
        0 => clock,
        rest => format!("{clock}.{rest:03}0000"),
    }
}

/// Such as `1.25`.
fn mebibytes(bytes: Bytes) -> String {
    let hundredths = u128::from(bytes.0) * 100 / (1 << 20);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// Level and messages of each.
impl Shown for Vec<ReplicationHealth> {
    fn table(&self) -> String {
        let all = self.iter().map(|one| {
            let first = format!("{}: {} ({}, {})", one.name, one.health, one.state, one.mode);
            let messages = one.messages.iter().map(|message| {
                let since = match message.since {
                    Some(since) => format!("since {} UTC: ", exact_time(since)),
                    None => String::new(),
                };
                format!("\n  {since}{}", sentence(message))
            });
            first + &messages.collect::<String>()
        });
        all.collect::<Vec<_>>().join("\n")
    }
}

/// One line of names, then one per relationship; sizes in bytes, times in RFC 3339.
pub(crate) fn csv(all: &[Measures]) -> String {
    let mut text = String::new();
    for (n, one) in all.iter().enumerate() {
        let fields = fields(one);
        if n == 0 {
            let names: Vec<String> = fields.iter().map(|(name, _)| (*name).to_owned()).collect();
            text.push_str(&line(&names));
        }
        let values: Vec<String> = fields.into_iter().map(|(_, value)| value).collect();
        text.push_str(&line(&values));
    }
    text
}

fn line(values: &[String]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| field(value)).collect();
    // RFC 4180, section 2.
    quoted.join(",") + "\r\n"
}

fn field(value: &str) -> String {
    if value.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

fn fields(one: &Measures) -> Vec<(&'static str, String)> {
    fn or_none(value: Option<impl ToString>) -> String {
        value.map_or_else(String::new, |value| value.to_string())
    }
    let bytes = |bytes: Option<Bytes>| or_none(bytes.map(|bytes| bytes.0));
    vec![
        ("vm", one.name.to_string()),
        ("id", one.vm.to_string()),
        ("mode", one.mode.to_string()),
        ("peer", one.peer.clone()),
        ("state", one.state.to_string()),
        ("health", one.health.to_string()),
        ("interval_start", one.interval_start.to_string()),
        ("interval_end", one.interval_end.to_string()),
        ("since", one.since.to_string()),
        ("successful", one.successful.to_string()),
        ("due", or_none(one.due)),
        ("missed", or_none(one.missed)),
        ("network_failures", one.network_failures.to_string()),
        ("replication_failures", one.replication_failures.to_string()),
        ("size_average", bytes(one.size_average)),
        ("size_maximum", bytes(one.size_maximum)),
        ("latency_average_ms", or_none(one.latency_average_ms)),
        ("latency_maximum_ms", or_none(one.latency_maximum_ms)),
        ("last_replication", or_none(one.last_replication)),
        ("last_size", bytes(one.last_size)),
        ("last_latency_ms", or_none(one.last_latency_ms)),
        ("last_test_failover", or_none(one.last_test_failover)),
        ("sent", one.sent.0.to_string()),
        ("received", one.received.0.to_string()),
        ("compression_percent", or_none(one.compression_percent)),
        ("compared", one.compared.0.to_string()),
        ("differed", one.differed.0.to_string()),
        ("pending", bytes(one.pending)),
        ("backlog", bytes(one.backlog)),
        ("rpo_s", or_none(one.rpo_s)),
        ("pause_p99_us", or_none(one.pause_p99_us)),
        ("pause_longest_us", or_none(one.pause_longest_us)),
    ]
}

impl Shown for PreparedFailover {
    fn table(&self) -> String {
        let mut table = columns(&["Step", "Result"]);
        for step in &self.steps {
            table.add_row([step.step.clone(), step.result.clone()]);
        }
        finish(&table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_are_not_in_the_points_are_told() {
        let shown = vec![relationship(|value| {
            value["left_out"] = serde_json::json!([1, 3]);
            value["joining"] = serde_json::json!([{
                "disk": 2, "progress": {"what": "copy", "done": "1 GiB", "total": "4 GiB"}
            }]);
        })]
        .table();
        assert!(
            shown.contains("web: disk 2 is being copied to its twin, 1 GiB of 4 GiB")
                && shown.contains("web: disks 1, 3 are not replicated"),
            "{shown}"
        );
    }

    fn relationship(change: impl FnOnce(&mut serde_json::Value)) -> Replication {
        let mut value = serde_json::json!({
            "vm": "3113a526-618a-457f-a413-8ba96208dae2", "name": "web",
            "relationship": "010f5aab-6fd3-412c-9ad7-62c75531cf74",
            "state": "replicating", "health": "normal", "mode": "primary", "every_s": 30,
            "peer": "pollux", "lag_s": 12, "latest": null, "points": 7, "pending": "0 B",
            "shipped": "0 B", "longest_pause_us": 0, "initial": null, "last_error": null,
            "primary_host": "castor", "replica_host": "pollux", "replica_port": 8443,
        });
        change(&mut value);
        serde_json::from_value(value).expect("a relationship")
    }

    fn measures(change: impl FnOnce(&mut serde_json::Value)) -> Measures {
        let mut value = serde_json::json!({
            "vm": "3113a526-618a-457f-a413-8ba96208dae2", "name": "web",
            "relationship": "010f5aab-6fd3-412c-9ad7-62c75531cf74",
            "mode": "primary", "state": "replicating", "health": "normal", "peer": "pollux",
            "interval_start": "2026-11-29T00:00:00Z", "interval_end": "2026-11-29T12:00:00Z",
            "since": "2026-11-29T00:00:00Z", "successful": 719, "due": 720, "missed": 1,
            "network_failures": 2, "replication_failures": 3, "size_average": "1536 KiB",
            "size_maximum": "3 MiB", "latency_average_ms": 250, "latency_maximum_ms": 90_000,
            "last_replication": "2026-11-29T06:00:00Z", "last_size": "1 MiB",
            "last_latency_ms": 240, "last_test_failover": null, "sent": "1 GiB",
            "received": "0 B", "compression_percent": 60, "compared": "0 B", "differed": "0 B",
            "pending": "2560 KiB", "backlog": "0 B", "rpo_s": 12, "pause_p99_us": 214,
            "pause_longest_us": 1_500,
        });
        change(&mut value);
        serde_json::from_value(value).expect("measures")
    }

    /// The words of each line; no value here has a space.
    fn words(text: &str) -> Vec<Vec<&str>> {
        text.lines()
            .map(|line| line.split_whitespace().collect())
            .collect()
    }

    #[test]
    fn an_error_of_a_relationship_stands_on_its_own_line() {
        let error = "the journal takes 14.2 MiB of its 20 MiB. Raise the limit there";
        let one = relationship(|value| value["last_error"] = error.into());
        let text = vec![one].table();
        assert_eq!(text.lines().last(), Some(format!("web: {error}").as_str()));
    }

    #[test]
    fn messages_stand_below_with_their_way_out_in_place_of_the_error() {
        let text = vec![relationship(|value| {
            value["last_error"] = "host `pollux`: is away".into();
            value["messages"] = serde_json::json!([{
                "level": "critical", "reason": "cannot-send", "since": null,
                "what": "nothing can be sent: \u{1b}[31m", "way_out": "Start it",
            }]);
        })]
        .table();
        let last = text.lines().last().expect("lines");
        assert_eq!(
            last,
            "web: Critical: nothing can be sent: \\u{1b}[31m. Start it"
        );
        assert!(!text.contains("is away"), "{text}");
    }

    #[test]
    fn the_table_fits_a_terminal_of_a_hundred_columns_with_the_longest_words() {
        let text = vec![relationship(|value| {
            value["name"] = "database-server".into();
            value["peer"] = "pollux.example".into();
            value["state"] = "initial-replication-in-progress".into();
            value["health"] = "critical".into();
            value["mode"] = "primary".into();
            value["lag_s"] = 86_400.into();
            value["points"] = 99_999.into();
            value["pending"] = "1022 GiB".into();
            value["initial"] =
                serde_json::json!({"what": "x", "done": "99 GiB", "total": "100 GiB"});
        })]
        .table();
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{}: {line}", line.len());
        }
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn the_wide_tables_have_the_columns_that_admins_know() {
        let text = wide_status(&[relationship(|_| {})]);
        assert_eq!(
            words(&text),
            [
                STATUS.to_vec(),
                vec![
                    "web",
                    "Replicating",
                    "Normal",
                    "Primary",
                    "30",
                    "castor",
                    "pollux",
                    "8443",
                    "Certificate",
                    "Simple",
                ],
            ]
        );
        let text = wide_measures(&[measures(|_| {})]);
        assert_eq!(words(&text)[0], MEASURE.to_vec());
        let row: Vec<&str> = text.lines().nth(1).expect("a row").split("  ").collect();
        let row: Vec<&str> = row
            .into_iter()
            .filter(|cell| !cell.is_empty())
            .map(str::trim)
            .collect();
        assert_eq!(
            row,
            [
                "web",
                "Replicating",
                "Normal",
                "2026-11-29 06:00:00",
                "2.50",
                "00:00:00.2500000",
                "1.50",
                "Simple",
            ]
        );
    }

    #[test]
    fn authorizations_have_the_columns_that_admins_know() {
        let text = wide_authorizations(&[Authorization {
            pattern: "*.example.com".to_owned(),
            store: "/replicas".into(),
            group: None,
            limit: Some(Bytes(1)),
            copies: Vec::new(),
        }]);
        assert_eq!(
            words(&text),
            [
                AUTHORIZATION.to_vec(),
                vec!["*.example.com", "/replicas", "-"]
            ]
        );
    }

    #[test]
    fn a_span_is_printed_as_dot_net_does() {
        assert_eq!(span(0), "00:00:00");
        assert_eq!(span(61_001), "00:01:01.0010000");
        assert_eq!(span(90_000_000), "1.01:00:00");
    }

    #[test]
    fn measures_of_one_vm_are_told_in_full_and_of_a_twin_without_what_only_its_primary_knows() {
        let text = measures(|_| {}).table();
        for part in [
            "719 of 720",
            "1.5 MiB on average, 3 MiB at most",
            "60 % saved",
            "0.21 ms",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = measures(|value| {
            value["mode"] = "replica".into();
            value["due"] = serde_json::Value::Null;
        })
        .table();
        assert!(
            text.contains("Received") && !text.contains("Backlog"),
            "{text}"
        );
        assert!(!text.contains("of 720"), "{text}");
    }

    #[test]
    fn csv_has_a_line_of_names_and_quotes_what_would_break_it() {
        let text = csv(&[measures(|value| value["peer"] = "a,\"b\"".into())]);
        let lines: Vec<&str> = text.split_terminator("\r\n").collect();
        let [names, values] = &lines[..] else {
            panic!("{text}");
        };
        assert!(
            names.starts_with("vm,id,mode,peer,state,health,interval_start,"),
            "{names}"
        );
        assert!(
            values.contains(",Primary,\"a,\"\"b\"\"\",Replicating,"),
            "{values}"
        );
        assert!(
            values.contains(",719,720,1,2,3,1572864,3145728,250,90000,"),
            "{values}"
        );
        assert_eq!(names.split(',').count(), fields(&measures(|_| {})).len());
        assert_eq!(csv(&[]), "");
    }

    #[test]
    fn health_tells_since_when_and_what_to_do() {
        let one: ReplicationHealth = serde_json::from_value(serde_json::json!({
            "vm": "3113a526-618a-457f-a413-8ba96208dae2", "name": "web", "mode": "primary",
            "state": "suspended", "health": "warning", "messages": [{
                "level": "warning", "reason": "paused", "since": "2026-11-29T06:00:00Z",
                "what": "it is paused", "way_out": "`pollux replica resume web`",
            }],
        }))
        .expect("health");
        assert_eq!(
            vec![one].table(),
            "web: Warning (Suspended, Primary)\n  since 2026-11-29 06:00:00.000 UTC: Warning: it \
             is paused. `pollux replica resume web`"
        );
    }
}

#[cfg(test)]
mod lost_writes {
    use api::{LostDisk, LostRange, OpenDisk};
    use model::{DiskId, PointId, TermId};

    use super::*;

    #[test]
    fn what_was_never_sent_is_listed_by_range_and_summed_where_there_are_many() {
        let range = |n: u64| LostRange {
            at: n << 20,
            len: Bytes(4096),
        };
        let disk = |number, ranges| LostDisk {
            number,
            size: Bytes(1 << 30),
            ranges,
            file: format!("/state/branch/disk{number}.raw"),
        };
        let report = LostWrites {
            since: PointId {
                term: TermId::random(),
                sequence: 7,
            },
            from: Some(Timestamp::UNIX_EPOCH),
            until: Some(Timestamp::UNIX_EPOCH),
            disks: vec![
                disk(0, Some((0..20).map(range).collect())),
                disk(1, Some(Vec::new())),
                disk(2, None),
            ],
            held: Some(Bytes((3 << 20) - 1)),
            open: vec![OpenDisk {
                slot: 1,
                id: DiskId::random(),
                size: Bytes(1 << 30),
                uri: "nbd+unix:///disk?socket=/run/nbd1.sock".to_owned(),
                socket: "/run/nbd1.sock".into(),
            }],
        };
        let shown = report.table();
        let rows = shown.lines().filter(|line| line.ends_with("4 KiB"));
        assert_eq!(rows.count(), RANGES, "{shown}");
        for part in [
            "20 ranges, 80 KiB together",
            "disk 1: nothing was written",
            "disk 2: nobody can tell which of its 1 GiB",
            "/state/branch/disk2.raw",
            "open: nbd+unix:///disk?socket=/run/nbd1.sock",
            "3 MiB of older points are kept; `--drop`",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(shown.lines().all(|line| line.len() <= 80), "{shown}");
    }
}
