//! Routes of relationships.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::{EnableReplication, Progress, Replication};
use axum::Json;
use axum::extract::{Path, State};
use jiff::Timestamp;
use model::{Bytes, Code, Mode, PointId, Problem, ReplicationState};
use replica::report::LinkReport;
use replica::source::Position;
use replica::standing::Role;

use super::Answered;
use super::body::Json as Body;
use crate::health::{Look, health};
use crate::host::Host;
use crate::vm::relation::Relation;
use crate::vm::{Message, View, Vm, unsent};

/// How long the driver has to heed a command before its state is told.
const HEED_LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn list(State(host): State<Arc<Host>>) -> Answered<Vec<Replication>> {
    let mut all = Vec::new();
    for vm in host.vms() {
        if let Some(relation) = vm.view().relation {
            all.push(tell(&vm, relation).await?);
        }
    }
    Ok(Json(all))
}

pub(super) async fn show(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Replication> {
    of(&host.find(&vm)?).await
}

async fn of(vm: &Vm) -> Answered<Replication> {
    let view = vm.view();
    let Some(relation) = view.relation.clone() else {
        let way_out = "`pollux replica enable` replicates it";
        let reason = "is not replicated";
        return Err(Problem::new(Code::Conflict, view.thing(), reason, way_out).into());
    };
    Ok(Json(tell(vm, relation).await?))
}

pub(super) async fn enable(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<EnableReplication>,
) -> Answered<Replication> {
    let vm = host.find(&vm)?;
    // What does not fit is out of bounds as well, and refused with the bounds.
    let every_s = u32::try_from(wanted.every_s).unwrap_or(u32::MAX);
    let peer = wanted.peer;
    vm.ask(|answer| Message::Enable {
        peer,
        every_s,
        answer,
    })
    .await?;
    of(&vm).await
}

pub(super) async fn disable(State(host): State<Arc<Host>>, Path(vm): Path<String>) -> Answered<()> {
    let vm = host.find(&vm)?;
    vm.ask(|answer| Message::Disable { answer }).await?;
    Ok(Json(()))
}

pub(super) async fn suspend(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Replication> {
    set(&host.find(&vm)?, true).await
}

pub(super) async fn resume(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Replication> {
    set(&host.find(&vm)?, false).await
}

async fn set(vm: &Vm, suspended: bool) -> Answered<Replication> {
    vm.ask(|answer| Message::Suspend { suspended, answer })
        .await?;
    if let Some(mut report) = vm.view().report {
        let heeded =
            report.wait_for(|report| (report.state == ReplicationState::Suspended) == suspended);
        // What does not come at once shows in the next status.
        let _ = tokio::time::timeout(HEED_LIMIT, heeded).await;
    }
    of(vm).await
}

/// A relationship, as this host sees it.
async fn tell(vm: &Vm, relation: Relation) -> Result<Replication, Problem> {
    let view = vm.view();
    match view.standing.role {
        Role::Primary => Ok(primary(vm, &view, relation).await),
        Role::Replica | Role::FailedOver => twin(vm, &view, relation).await,
    }
}

async fn primary(vm: &Vm, view: &View, relation: Relation) -> Replication {
    let report = match &view.report {
        Some(report) => report.borrow().clone(),
        None => LinkReport::new(ReplicationState::ReadyForInitialReplication),
    };
    let state = state(view, &relation);
    let pending = unsent::pending(&vm.supervisor.diskd_socket(), &view.home.path).await;
    let error = report.last_error.as_ref().map(ToString::to_string);
    let lag_s = seconds_since(report.acknowledged_cut);
    let health = health(&Look {
        state,
        troubled: error.is_some(),
        due: report.cycles + report.missed,
        missed: report.missed,
        since_success_s: seconds_since(report.last_success),
    });
    Replication {
        vm: vm.id,
        name: view.home.spec.name.clone(),
        relationship: relation.id,
        state,
        health,
        mode: Mode::Primary,
        every_s: Some(relation.every_s.into()),
        peer: relation.partner.clone(),
        lag_s,
        latest: report.acknowledged,
        points: report.cycles,
        pending,
        shipped: report.shipped,
        longest_pause_us: view.pause_us.load(Ordering::Relaxed),
        initial: report
            .seeding
            .map(|position| progress(view, &relation, position)),
        comparison: report.comparison.map(|so_far| Progress {
            what: "comparison with the twin".to_owned(),
            done: so_far.done,
            total: so_far.total,
        }),
        compared: report.compared,
        differed: report.differed,
        last_error: error,
    }
}

/// State of a relationship that is sent from here.
pub(super) fn state(view: &View, relation: &Relation) -> ReplicationState {
    if view.standing.stood_down.is_some() {
        ReplicationState::StoodDown
    } else if relation.suspended {
        ReplicationState::Suspended
    } else {
        let ready = ReplicationState::ReadyForInitialReplication;
        let report = view.report.as_ref();
        report.map_or(ready, |report| report.borrow().state)
    }
}

/// How far an initial replication is that has come to `position`.
fn progress(view: &View, relation: &Relation, position: Position) -> Progress {
    let size_of = |id| {
        let mut disks = view.home.spec.disks.iter();
        disks
            .find(|disk| disk.id == id)
            .map_or(0, |disk| disk.size.0)
    };
    let sizes: Vec<u64> = relation.disks.iter().map(|id| size_of(*id)).collect();
    let whole: u64 = sizes.iter().take(position.disk).sum();
    Progress {
        what: "initial replication".to_owned(),
        done: Bytes(whole + position.from),
        total: Bytes(sizes.iter().sum()),
    }
}

async fn twin(vm: &Vm, view: &View, relation: Relation) -> Result<Replication, Problem> {
    let points = match vm.store.clone() {
        Some(store) => super::hosts::blocking(move || store.points())
            .await
            .map_err(|super::Refusal(problem)| problem)?,
        None => Vec::new(),
    };
    let latest = points.last();
    let state = match (view.standing.role, latest) {
        (Role::FailedOver, _) => ReplicationState::FailedOver,
        (_, Some(_)) => ReplicationState::Replicating,
        (_, None) => ReplicationState::InitialReplicationInProgress,
    };
    let lag_s = seconds_since(latest.map(|point| point.time));
    let id: Option<PointId> = latest.map(|point| point.id);
    let health = health(&Look {
        state,
        troubled: false,
        due: 0,
        missed: 0,
        since_success_s: lag_s,
    });
    Ok(Replication {
        vm: vm.id,
        name: view.home.spec.name.clone(),
        relationship: relation.id,
        state,
        health,
        mode: Mode::Replica,
        every_s: Some(relation.every_s.into()),
        peer: relation.partner,
        lag_s,
        latest: id,
        points: u64::try_from(points.len()).unwrap_or(u64::MAX),
        pending: None,
        shipped: Bytes(vm.received.load(Ordering::Relaxed)),
        longest_pause_us: 0,
        initial: None,
        comparison: None,
        compared: Bytes(0),
        differed: Bytes(0),
        last_error: None,
    })
}

fn seconds_since(time: Option<Timestamp>) -> Option<u64> {
    // Clocks of two hosts differ: what seems to come is now.
    time.map(|time| u64::try_from(Timestamp::now().duration_since(time).as_secs()).unwrap_or(0))
}
