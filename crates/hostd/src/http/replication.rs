//! Routes of relationships.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::{
    EnableReplication, EndedReplication, JoiningDisk, Lease, Progress, Replication, SetReplication,
};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use jiff::Timestamp;
use model::{Bytes, Code, DiskChoice, FenceChoice, Problem, ReplicationState, StartUnasked};
use replica::lease::Fence;
use replica::report::LinkReport;
use replica::standing::Role;
use serde::Deserialize;

use super::Answered;
use super::body::Json as Body;
use crate::host::Host;
use crate::measure::pace::left_s;
use crate::vm::observe::{self, Seen};
use crate::vm::relation::{Relation, Terms};
use crate::vm::{Message, View, Vm, unsent};

/// How long the driver has to heed a command before its state is told.
const HEED_LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn list(State(host): State<Arc<Host>>) -> Answered<Vec<Replication>> {
    let mut all = Vec::new();
    for vm in host.vms() {
        if vm.view().relation.is_some() {
            all.push(tell(&host, &vm).await?);
        }
    }
    Ok(Json(all))
}

pub(super) async fn show(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Replication> {
    of(&host, &host.find(&vm)?).await
}

async fn of(host: &Host, vm: &Vm) -> Answered<Replication> {
    Ok(Json(tell(host, vm).await?))
}

pub(super) async fn enable(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<EnableReplication>,
) -> Answered<Replication> {
    let vm = host.find(&vm)?;
    if let Some(FenceChoice::Lease(seconds)) = wanted.fence {
        // What cannot be shall not be found out half-way.
        Fence::new(seconds)?;
    }
    let peer = wanted.peer;
    let terms = Terms {
        every_s: seconds(wanted.every_s),
        choice: wanted.disks.unwrap_or(DiskChoice::All),
        keep: wanted.keep,
        seed_from: wanted.seed_from,
    };
    vm.ask(|answer| Message::Enable {
        peer,
        terms,
        answer,
    })
    .await?;
    if let Some(wanted) = wanted.fence {
        vm.ask(|answer| Message::Fence { wanted, answer }).await?;
    }
    of(&host, &vm).await
}

/// What does not fit is out of bounds as well, and refused with the bounds.
fn seconds(wanted: u64) -> u32 {
    u32::try_from(wanted).unwrap_or(u32::MAX)
}

pub(super) async fn set(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<SetReplication>,
) -> Answered<Replication> {
    let vm = host.find(&vm)?;
    // In an order in which one may give way to the other; each is refused alone.
    let unasked = async |choice| {
        vm.ask(|answer| Message::StartUnasked { choice, answer })
            .await
    };
    if wanted.start_unasked == Some(StartUnasked::Deny) {
        unasked(StartUnasked::Deny).await?;
    }
    if let Some(wanted) = wanted.fence {
        vm.ask(|answer| Message::Fence { wanted, answer }).await?;
    }
    if wanted.start_unasked == Some(StartUnasked::Allow) {
        unasked(StartUnasked::Allow).await?;
    }
    vm.ask(|answer| Message::Set {
        every_s: wanted.every_s.map(seconds),
        choice: wanted.disks,
        keep: wanted.keep,
        answer,
    })
    .await?;
    of(&host, &vm).await
}

pub(super) async fn cancel(State(host): State<Arc<Host>>, Path(vm): Path<String>) -> Answered<()> {
    let vm = host.find(&vm)?;
    vm.ask(|answer| Message::Cancel { answer }).await?;
    Ok(Json(()))
}

/// How a relationship is ended.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ending {
    /// Why the other host, which counts on a lease, is lost.
    because: Option<String>,
}

pub(super) async fn disable(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    how: Result<Query<Ending>, QueryRejection>,
) -> Answered<EndedReplication> {
    let Query(how) = how.map_err(|error| {
        let way_out = "`?because=STATEMENT` is all that may be said";
        Problem::new(Code::Invalid, "the request", error.body_text(), way_out)
    })?;
    let vm = host.find(&vm)?;
    let word = super::vms::word(how.because.as_deref())?;
    let untold = vm.ask(|answer| Message::Disable { word, answer }).await?;
    quiet(&vm).await?;
    Ok(Json(EndedReplication { untold }))
}

pub(super) async fn suspend(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Replication> {
    pause(&host, &host.find(&vm)?, true).await
}

pub(super) async fn resume(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Replication> {
    pause(&host, &host.find(&vm)?, false).await
}

/// Waits for what a twin was taking in when it was told to take nothing more.
async fn quiet(vm: &Vm) -> Result<(), super::Refusal> {
    match vm.store.clone() {
        Some(store) => {
            let quiet = move || {
                store.wait_quiet();
                Ok(())
            };
            super::hosts::blocking(quiet).await
        }
        None => Ok(()),
    }
}

async fn pause(host: &Host, vm: &Vm, suspended: bool) -> Answered<Replication> {
    vm.ask(|answer| Message::Suspend { suspended, answer })
        .await?;
    quiet(vm).await?;
    if let Some(mut report) = vm.view().report {
        let heeded =
            report.wait_for(|report| (report.state == ReplicationState::Suspended) == suspended);
        // What does not come at once shows in the next status.
        let _ = tokio::time::timeout(HEED_LIMIT, heeded).await;
    }
    of(host, vm).await
}

/// A relationship, as this host sees it.
pub(super) async fn tell(host: &Host, vm: &Vm) -> Result<Replication, Problem> {
    let view = vm.view();
    let seen = vm.observed.look(&view, Timestamp::now());
    let (Some(relation), Some(seen)) = (view.relation.clone(), seen) else {
        return Err(not_replicated(&view));
    };
    match view.standing.role {
        Role::Primary => Ok(primary(host, vm, &view, relation, seen).await),
        Role::Replica | Role::FailedOver => twin(host, vm, &view, relation, seen).await,
    }
}

pub(super) fn not_replicated(view: &View) -> Problem {
    let way_out = "`pollux replica enable` replicates it";
    let reason = "is not replicated";
    Problem::new(Code::Conflict, view.thing(), reason, way_out)
}

async fn primary(host: &Host, vm: &Vm, view: &View, relation: Relation, seen: Seen) -> Replication {
    let report = match &view.report {
        Some(report) => report.borrow().clone(),
        None => LinkReport::new(ReplicationState::ReadyForInitialReplication),
    };
    let pending = unsent::pending(&vm.supervisor.diskd_socket(), &view.home.path).await;
    let peer = host.trust.get(&relation.partner).ok();
    let address = peer.map(|trusted| trusted.address());
    let (left_out, joining) = apart(view, &relation, &report);
    // Why nothing comes there says more than why its name is not as it should be.
    let error = seen.error.clone().or(report.unconfigured);
    Replication {
        pending,
        left_out,
        joining,
        longest_pause_us: view.pause_us.load(Ordering::Relaxed),
        initial: seen.copying.clone().filter(|_| report.comparison.is_none()),
        comparison: seen.copying.clone().filter(|_| report.comparison.is_some()),
        per_second: seen.per_second.map(Bytes),
        left_s: seen
            .copying
            .as_ref()
            .zip(seen.per_second)
            .and_then(|(so_far, rate)| left_s(so_far.total.0.saturating_sub(so_far.done.0), rate)),
        compared: report.compared,
        differed: report.differed,
        lag_s: seconds_since(report.acknowledged_cut),
        latest: report.acknowledged,
        primary_host: host.name().to_owned(),
        replica_host: relation.partner.clone(),
        replica_port: address.as_deref().and_then(port),
        last_error: error.as_ref().map(ToString::to_string),
        ..common(host, vm, view, relation, seen)
    }
}

/// What either side tells alike.
fn common(host: &Host, vm: &Vm, view: &View, relation: Relation, seen: Seen) -> Replication {
    Replication {
        vm: vm.id,
        name: view.home.spec.name.clone(),
        relationship: relation.id,
        state: seen.state,
        health: seen.health,
        mode: seen.mode,
        every_s: Some(relation.every_s.into()),
        peer: relation.partner,
        lag_s: None,
        latest: None,
        points: seen.measured.points,
        pending: None,
        shipped: Bytes(seen.measured.moved),
        longest_pause_us: 0,
        initial: None,
        comparison: None,
        per_second: None,
        left_s: None,
        left_out: Vec::new(),
        joining: Vec::new(),
        compared: Bytes(0),
        differed: Bytes(0),
        last_error: seen.error.as_ref().map(ToString::to_string),
        lease: lease(host, view),
        start_unasked: view.standing.start_unasked,
        messages: seen.messages,
        primary_host: String::new(),
        replica_host: String::new(),
        replica_port: None,
    }
}

/// The lease under which the VM runs.
fn lease(host: &Host, view: &View) -> Option<Lease> {
    let (fence, now) = (view.standing.fence?, host.clock.now());
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let receives = view.standing.role == Role::Replica;
    let grant = view.leasing.grant().filter(|_| !receives);
    Some(Lease {
        seconds: fence.into(),
        left_ms: grant.and_then(|grant| grant.left(now)).map(millis),
        held: view.unleased && !receives,
        takeover_in_ms: receives.then(|| millis(view.leasing.takeover_in(fence, now))),
    })
}

/// The disks that are not replicated, and those that no point has yet.
fn apart(view: &View, relation: &Relation, report: &LinkReport) -> (Vec<u8>, Vec<JoiningDisk>) {
    let disks = &view.home.spec.disks;
    let out = disks
        .iter()
        .filter(|disk| !relation.disks.contains(&disk.id));
    let joining = report.joining.iter().filter_map(|joining| {
        let disk = disks.iter().find(|disk| disk.id == joining.disk)?;
        Some(JoiningDisk {
            disk: disk.slot,
            progress: Progress {
                what: "copy of the disk".to_owned(),
                done: joining.done,
                total: joining.total,
            },
        })
    });
    (out.map(|disk| disk.slot).collect(), joining.collect())
}

/// The port of an address such as `pollux:8443`.
fn port(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

async fn twin(
    host: &Host,
    vm: &Vm,
    view: &View,
    relation: Relation,
    seen: Seen,
) -> Result<Replication, Problem> {
    let points = match vm.store.clone() {
        Some(store) => super::hosts::blocking(move || store.points())
            .await
            .map_err(|super::Refusal(problem)| problem),
        None => Ok(Vec::new()),
    };
    let points = match points {
        Err(_) if view.home.place.away().is_some() => {
            // The health says so, and what is known all the same is told.
            return Ok(Replication {
                primary_host: relation.partner.clone(),
                replica_host: host.name().to_owned(),
                replica_port: Some(host.listens_at().port()),
                lag_s: seconds_since(seen.measured.last_cut),
                ..common(host, vm, view, relation, seen)
            });
        }
        points => points?,
    };
    let latest = points.last();
    let filling = vm.store.as_ref().and_then(|store| store.filling.now());
    Ok(Replication {
        lag_s: seconds_since(latest.map(|point| point.time)),
        latest: latest.map(|point| point.id),
        initial: filling.as_ref().map(observe::filling),
        points: u64::try_from(points.len()).unwrap_or(u64::MAX),
        primary_host: relation.partner.clone(),
        replica_host: host.name().to_owned(),
        replica_port: Some(host.listens_at().port()),
        ..common(host, vm, view, relation, seen)
    })
}

pub(super) fn seconds_since(time: Option<Timestamp>) -> Option<u64> {
    // Clocks of two hosts differ: what seems to come is now.
    time.map(|time| u64::try_from(Timestamp::now().duration_since(time).as_secs()).unwrap_or(0))
}
