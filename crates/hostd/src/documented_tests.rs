//! What `docs/replication-health.md` lists is what there is.

use api::{EventKind, HealthReason};
use model::ReplicationState;

use crate::event::hook::is_told;

const PAGE: &str = include_str!("../../../docs/replication-health.md");

/// The rows of the table below that heading, by their first cell.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let below = PAGE
        .split(&format!("\n## {heading}\n"))
        .nth(1)
        .expect("the heading is there");
    let section = below.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().filter(|line| line.starts_with("| "));
    let rows = lines.map(|line| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().trim_matches('`')).collect()
    });
    // Without the head.
    rows.skip(1).collect()
}

fn first(heading: &str) -> Vec<&'static str> {
    rows(heading).iter().map(|row| row[0]).collect()
}

#[test]
fn every_reason_of_health_is_documented_with_its_way_out_and_nothing_else() {
    let mut listed = first("Health");
    listed.sort_unstable();
    let mut all: Vec<&str> = HealthReason::ALL.iter().map(|one| one.name()).collect();
    all.sort_unstable();
    assert_eq!(listed, all);
    assert!(
        rows("Health")
            .iter()
            .all(|row| row.iter().all(|cell| !cell.is_empty()))
    );
}

#[test]
fn every_state_is_documented() {
    use ReplicationState as State;
    let all = [
        State::ReadyForInitialReplication,
        State::InitialReplicationInProgress,
        State::Replicating,
        State::Resynchronizing,
        State::Suspended,
        State::Error,
        State::PreparedForFailover,
        State::FailedOverWaitingCompletion,
        State::FailedOver,
        State::StoodDown,
    ];
    // Whoever adds a state is led here, and adds it above too.
    let known = |state: State| match state {
        State::ReadyForInitialReplication
        | State::InitialReplicationInProgress
        | State::Replicating
        | State::Resynchronizing
        | State::Suspended
        | State::Error
        | State::PreparedForFailover
        | State::FailedOverWaitingCompletion
        | State::FailedOver
        | State::StoodDown => state.to_string(),
    };
    let all: Vec<String> = all.into_iter().map(known).collect();
    assert_eq!(first("States"), all);
}

#[test]
fn every_kind_of_event_is_documented_and_whether_the_hook_is_told() {
    let rows = rows("Events");
    let listed: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    let all: Vec<&str> = EventKind::ALL.iter().map(|one| one.name()).collect();
    assert_eq!(listed, all);
    for (row, kind) in rows.iter().zip(EventKind::ALL) {
        assert_eq!(row[2] == "yes", is_told(*kind), "{row:?}");
    }
}

#[test]
fn every_metric_is_documented_with_its_kind() {
    let rows = rows("Prometheus");
    let listed: Vec<(&str, &str)> = rows.iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(listed, crate::metrics::names());
}
