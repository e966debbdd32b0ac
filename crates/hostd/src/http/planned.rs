//! Routes of planned failovers: what is done on the primary, before the twin takes over.
//!
//! ```text
//!   replicated, partner answers,
//!   no checkpoints ---------------> guest shut down --> locked --> last changes sent --> prepared
//!        |                              |                  |             |
//!        refused, nothing changed       it goes on         <- unlocked --+ fails, or whoever asked
//!                                                                          went away
//! ```
//!
//! Then the twin is failed over to on its host, which this one stands down for at once; or it is
//! cancelled here. So is there what was failed over, and here what became the replica.

use std::sync::Arc;
use std::time::Duration;

use api::{CancelFailover, FailoverStep, JobLine, PrepareFailover, PreparedFailover, Progress};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use model::{Bytes, CheckpointSpec, Code, PointId, Problem, ReplicationState, VmState};
use replica::report::LinkReport;
use replica::run::Evidence;
use replica::standing::Role;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::body::{Json as Body, lines};
use super::replication::not_replicated;
use super::vms::stop_limit;
use super::{Answered, Refusal};
use crate::host::Host;
use crate::twin::not_a_twin;
use crate::vm::folder::VmFolder;
use crate::vm::{Message, View, Vm, observe, progress, unsent};
use crate::{former, partner};

/// How much is left is looked at again after this long, if the driver tells nothing.
const LOOK: Duration = Duration::from_millis(500);

type Told = mpsc::Sender<JobLine<PreparedFailover>>;

pub(super) async fn prepare(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<PrepareFailover>,
) -> Result<Response, Refusal> {
    let vm = host.find(&vm)?;
    let limit = stop_limit(wanted.timeout_s)?;
    let (told, progress) = mpsc::channel(4);
    tokio::spawn(async move {
        let line = match run(&host, &vm, limit, wanted.keep_checkpoints, &told).await {
            Ok(prepared) => JobLine::Done(prepared),
            Err(problem) => JobLine::Failed(problem),
        };
        // Fails only when whoever asked went away.
        let _ = told.send(line).await;
    });
    Ok(lines(progress))
}

pub(super) async fn cancel(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<CancelFailover>,
) -> Answered<()> {
    let vm = host.find(&vm)?;
    match vm.view().standing.role {
        Role::Primary => {
            vm.ask(|answer| Message::CancelFailover { answer }).await?;
            return Ok(Json(()));
        }
        Role::FailedOver => {
            let dropping = wanted.drop_writes;
            vm.ask(|answer| Message::CallOff { dropping, answer })
                .await?;
            return Ok(Json(()));
        }
        Role::Replica => {}
    }
    // To the end, whether or not whoever asked waits: between the two steps it is no VM of this host.
    let given = tokio::spawn(async move {
        let home = vm.ask(|answer| Message::GiveBack { answer }).await?;
        let opened = match home.starts_with(host.layout.replicas()) {
            // Its disks lie in the store where its journal was.
            true => host.open_twin(&home).await,
            false => match VmFolder::read(&home) {
                Ok(folder) => host.open_vm(folder).await.map(drop),
                Err(problem) => Err(problem),
            },
        };
        host.leave_out(&home, opened.clone());
        opened
    });
    given
        .await
        .map_err(|error| Problem::failed("polluxd", &error))??;
    Ok(Json(()))
}

async fn run(
    host: &Arc<Host>,
    vm: &Vm,
    limit: Duration,
    keep_checkpoints: bool,
    told: &Told,
) -> Result<PreparedFailover, Problem> {
    let mut steps = Vec::new();
    let mut done = |step: &str, result: String| {
        let step = step.to_owned();
        steps.push(FailoverStep { step, result });
    };
    let replica_host = check(vm)?;
    done("Replication is in order", "yes".to_owned());
    ask(host, vm, &replica_host).await?;
    done("The replica answers", replica_host.clone());
    let received = host.server.rules(|rules| match rules.admit(&replica_host) {
        Ok(_) => Ok(()),
        Err(denied) => Err(denied.problem(&replica_host, host.name())),
    });
    let back = way_back(&vm.view(), &replica_host, received, keep_checkpoints)?;
    done("This host can become the replica", back);

    say(told, "shutting the guest down", 0, 0).await?;
    let result = if vm.view().state == VmState::Off {
        "was off".to_owned()
    } else {
        let timeout = limit;
        vm.ask(|answer| Message::Stop { timeout, answer }).await?;
        "shut down".to_owned()
    };
    done("The guest is off", result);

    vm.ask(|answer| Message::PrepareFailover { answer }).await?;
    done("The VM is locked", "does not start here".to_owned());
    let sent = async {
        // Whatever was begun before may lack what was written last.
        let begun = progress::reserved(&vm.view().home.path)?;
        send_last(vm, begun, told).await
    };
    let result = match sent.await {
        Ok(point) => format!("point {point} holds all"),
        Err(problem) => {
            // It was locked a moment ago; that it is not any more is what is wanted.
            let _ = vm.ask(|answer| Message::CancelFailover { answer }).await;
            return Err(problem);
        }
    };
    done("The twin has everything", result);
    Ok(PreparedFailover {
        steps,
        replica_host,
    })
}

/// Refuses unless deltas flow; the replica's name.
fn check(vm: &Vm) -> Result<String, Problem> {
    let view = vm.view();
    let relation = view.relation.clone().ok_or_else(|| not_replicated(&view))?;
    let refuse = |reason: String, way_out: String| {
        Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
    };
    let name = view.home.spec.name.as_str();
    if view.standing.role == Role::Replica {
        let reason = format!("is received here from host `{}`", relation.partner);
        let way_out = format!("`pollux failover prepare {name}` belongs there");
        return refuse(reason, way_out);
    }
    match observe::state(&view, &relation, true) {
        ReplicationState::Replicating | ReplicationState::PreparedForFailover => {
            Ok(relation.partner)
        }
        state => {
            let reason = format!("cannot be failed over as planned: its replication is {state}");
            let way_out = format!("`pollux replica health {name}` tells what to do about that");
            refuse(reason, way_out)
        }
    }
}

/// Whether this host can become the replica of the one that takes over, in words; `received`: whether it
/// receives anything from that one. Who finds out afterwards only that it cannot has a VM without a twin:
/// checkpoints, which can be merged now, are refused unless they are to be kept.
fn way_back(
    view: &View,
    partner: &str,
    received: Result<(), Problem>,
    keep_checkpoints: bool,
) -> Result<String, Problem> {
    let Some(machine) = &view.home.machine else {
        return Err(not_a_twin(view));
    };
    let checkpoints = machine.spec.checkpoints.iter();
    let above_point = machine.above_point();
    // One that is being merged goes by itself; the one of a failover when that is completed.
    let stays = |one: &&CheckpointSpec| !one.merging && Some(one.id) != above_point;
    let stay: Vec<_> = checkpoints.filter(stays).collect();
    let names: Vec<_> = stay.iter().map(|one| format!("`{}`", one.name)).collect();
    let (name, names) = (&machine.spec.name, names.join(", "));
    if stay.is_empty() {
        return Ok(
            match (former::way_back(machine, &view.home.place), received) {
                (Err(problem), _) => format!("not as it is: {}", problem.reason),
                (Ok(()), Err(denied)) => format!("not as it is: {denied}"),
                (Ok(()), Ok(())) if machine.spec.checkpoints.is_empty() => "yes".to_owned(),
                (Ok(()), Ok(())) => "once its checkpoints are merged".to_owned(),
            },
        );
    }
    if keep_checkpoints {
        return Ok(format!(
            "once its checkpoints are merged here, by `pollux disk merge {name} --all`: {names}"
        ));
    }
    let reason = format!(
        "has checkpoints, with which this host cannot become its replica afterwards: {names}"
    );
    let way_out = format!(
        "Nothing was changed. `pollux disk merge {name} --all` merges them while it runs. Or keep them with \
         `--keep-checkpoints`: on host `{partner}` the VM has no twin then, until they are merged here and \
         `pollux failover reverse {name}` is said there"
    );
    Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
}

/// Refuses unless the partner answers, as the replica.
async fn ask(host: &Host, vm: &Vm, partner: &str) -> Result<(), Problem> {
    let view = vm.view();
    let refuse = |code, reason: String| {
        let way_out = "Nothing was changed; try again when it is mended";
        Err(Problem::new(code, view.thing(), reason, way_out))
    };
    match partner::evidence(host, &view, None).await {
        Evidence::Says(says) if says.role == Role::Replica && !says.runs => Ok(()),
        Evidence::Says(_) => refuse(
            Code::Conflict,
            format!("is not received on host `{partner}` any more"),
        ),
        Evidence::Refused(problem) => Err(problem),
        Evidence::Unreachable(why) => refuse(
            Code::Unreachable,
            format!("has its twin on host `{partner}`, which does not answer: {why}"),
        ),
        _ => refuse(Code::Conflict, format!("is unknown on host `{partner}`")),
    }
}

/// Waits until the twin has a point that was begun after the sequence number `begun`, and nothing
/// waits to be sent; that point.
async fn send_last(vm: &Vm, begun: u64, told: &Told) -> Result<PointId, Problem> {
    let mut most = 0;
    loop {
        let view = vm.view();
        check(vm)?;
        if !view.standing.prepared {
            let reason = "was given free while its last changes were sent";
            return Err(Problem::new(Code::Conflict, view.thing(), reason, ""));
        }
        let pending = unsent::pending(&vm.supervisor.diskd_socket(), &view.home.path).await;
        let mut report = view.report;
        // What comes after this is what is waited for below.
        let now = report
            .as_mut()
            .map(|report| report.borrow_and_update().clone());
        let (acknowledged, error) =
            now.map_or((None, None), |now| (now.acknowledged, now.last_error));
        match (pending, acknowledged) {
            (Some(Bytes(0)), Some(point)) if point.sequence > begun => return Ok(point),
            (pending, _) => {
                // All of it, when nobody can tell. Whether anybody still waits shows only when told.
                let left = pending.map_or(most, |pending| pending.0);
                most = most.max(left);
                let what = match error {
                    None => "sending the last changes".to_owned(),
                    Some(problem) => format!(
                        "the last changes wait: {} {}",
                        problem.thing, problem.reason
                    ),
                };
                say(told, &what, most - left, most).await?;
            }
        }
        // What comes of it is looked at in any case.
        let _ = timeout(LOOK, moved(report)).await;
    }
}

/// Waits until the driver has come further; for ever when there is none at this moment.
async fn moved(report: Option<watch::Receiver<LinkReport>>) {
    if let Some(mut report) = report {
        if report.changed().await.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

/// Fails when whoever asked went away.
async fn say(told: &Told, what: &str, done: u64, total: u64) -> Result<(), Problem> {
    let line = JobLine::Progress(Progress {
        what: what.to_owned(),
        done: Bytes(done),
        total: Bytes(total),
    });
    told.send(line).await.map_err(|_gone| {
        let reason = "was given up by whoever asked for it";
        Problem::new(Code::Conflict, "the planned failover", reason, "")
    })
}
