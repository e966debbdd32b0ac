//! Routes of measures and health.

use std::sync::Arc;

use api::{EventKind, Measures, ReplicationHealth, Severity};
use axum::Json;
use axum::extract::{Path, State};
use jiff::Timestamp;
use model::{Bytes, Mode, Problem};

use super::Answered;
use super::replication::{not_replicated, seconds_since};
use crate::event::Draft;
use crate::host::Host;
use crate::measure::Counters;
use crate::vm::observe::Seen;
use crate::vm::{View, Vm, unsent};

pub(super) async fn list(State(host): State<Arc<Host>>) -> Answered<Vec<Measures>> {
    let mut all = Vec::new();
    for vm in host.vms() {
        if vm.view().relation.is_some() {
            all.push(measures(&vm).await?);
        }
    }
    Ok(Json(all))
}

pub(super) async fn show(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Measures> {
    Ok(Json(measures(&host.find(&vm)?).await?))
}

pub(super) async fn reset(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Measures> {
    let vm = host.find(&vm)?;
    let view = vm.view();
    if view.relation.is_none() {
        return Err(not_replicated(&view).into());
    }
    vm.observed.reset(&view, Timestamp::now());
    let what = "the figures of its replication are counted anew".to_owned();
    let name = view.home.spec.name.as_str();
    let draft = Draft::new(EventKind::StatisticsReset, Severity::Info, name, what);
    host.events.record(draft.about(vm.id));
    Ok(Json(measures(&vm).await?))
}

pub(super) async fn all_health(State(host): State<Arc<Host>>) -> Answered<Vec<ReplicationHealth>> {
    let vms = host.vms();
    let replicated = vms.iter().filter(|vm| vm.view().relation.is_some());
    Ok(Json(replicated.map(judge).collect::<Result<_, _>>()?))
}

pub(super) async fn health(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<ReplicationHealth> {
    Ok(Json(judge(&host.find(&vm)?)?))
}

fn judge(vm: &Vm) -> Result<ReplicationHealth, Problem> {
    let (view, seen) = seen(vm)?;
    Ok(ReplicationHealth {
        vm: vm.id,
        name: view.home.spec.name,
        mode: seen.mode,
        state: seen.state,
        health: seen.health,
        messages: seen.messages,
    })
}

fn seen(vm: &Vm) -> Result<(View, Seen), Problem> {
    let view = vm.view();
    match vm.observed.look(&view, Timestamp::now()) {
        Some(seen) => Ok((view, seen)),
        None => Err(not_replicated(&view)),
    }
}

/// Measures of a relationship, as this host sees it.
pub(crate) async fn measures(vm: &Vm) -> Result<Measures, Problem> {
    let (view, seen) = seen(vm)?;
    let Some(relation) = &view.relation else {
        return Err(not_replicated(&view));
    };
    let measured = &seen.measured;
    let now: &Counters = &measured.now;
    let primary = seen.mode == Mode::Primary;
    let (mut pending, mut pauses) = (None, None);
    if primary {
        pending = unsent::pending(&vm.supervisor.diskd_socket(), &view.home.path).await;
        let status = vm.supervisor.diskd_status().await;
        pauses = status
            .filter(|status| status.epochs.cuts > 0)
            .map(|status| status.epochs.pauses);
    }
    let report = view.report.as_ref().map(|report| report.borrow().clone());
    let backlog = report.as_ref().map(|report| {
        let transfer = report.transfer;
        transfer.map_or(0, |transfer| {
            transfer.total.0.saturating_sub(transfer.sent.0)
        })
    });
    let cut = report.and_then(|report| report.acknowledged_cut);
    let some = |value: u64| (now.successful > 0).then_some(value);
    Ok(Measures {
        vm: vm.id,
        name: view.home.spec.name.clone(),
        relationship: relation.id,
        mode: seen.mode,
        state: seen.state,
        health: seen.health,
        peer: relation.partner.clone(),
        interval_start: measured.start,
        interval_end: measured.end,
        since: measured.since,
        successful: now.successful,
        due: primary.then(|| now.successful.saturating_add(now.missed)),
        missed: primary.then_some(now.missed),
        network_failures: now.network_failures,
        replication_failures: now.replication_failures,
        size_average: measured.size_average().map(Bytes),
        size_maximum: some(now.size_max).map(Bytes),
        latency_average_ms: measured.latency_average_ms(),
        latency_maximum_ms: some(now.latency_max_ms),
        last_replication: measured.last_success,
        last_size: measured.last_size.map(Bytes),
        last_latency_ms: measured.last_latency_ms,
        last_test_failover: measured.last_test,
        sent: Bytes(now.sent),
        received: Bytes(now.received),
        compression_percent: measured.compression_percent(),
        compared: Bytes(now.compared),
        differed: Bytes(now.differed),
        pending,
        backlog: backlog.map(Bytes),
        rpo_s: seconds_since(cut.or(measured.last_cut)),
        pause_p99_us: pauses.map(|pauses| pauses.p99_us),
        pause_longest_us: pauses.map(|pauses| pauses.longest_us),
    })
}
