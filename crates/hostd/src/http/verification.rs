//! The route on which a twin is verified against its primary, which this host is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::{ComparedReplica, DamagedRange, JobLine, Progress};
use axum::extract::{Path, State};
use axum::response::Response;
use model::{Bytes, Code, PointId, Problem};
use replica::report::{LinkReport, Verification};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::Refusal;
use super::body::lines;
use super::replication::not_replicated;
use crate::host::Host;
use crate::vm::verification::{damage, slot};
use crate::vm::{Message, Vm};

/// How long the next point, in which damage is repaired, is waited for.
const REPAIR: Duration = Duration::from_secs(60);
/// Tells verifications apart.
static NUMBER: AtomicU64 = AtomicU64::new(1);

pub(super) async fn run(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Result<Response, Refusal> {
    let vm = host.find(&vm)?;
    if vm.view().relation.is_none() {
        return Err(not_replicated(&vm.view()).into());
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    vm.ask(|answer| Message::Verify { number, answer }).await?;
    let report = vm.view().report.ok_or_else(|| ended(&vm))?;
    let (told, progress) = mpsc::channel(4);
    tokio::spawn(async move {
        let done = tokio::select! {
            done = follow(&vm, number, report, &told) => done,
            () = told.closed() => {
                vm.tell(Message::VerifyNoMore { number }).await;
                return;
            }
        };
        let line = match done {
            Ok(compared) => JobLine::Done(compared),
            Err(problem) => JobLine::Failed(problem),
        };
        // Fails only when whoever asked went away.
        let _ = told.send(line).await;
    });
    Ok(lines(progress))
}

fn ended(vm: &Vm) -> Problem {
    let thing = format!("the twin of {}", vm.view().thing());
    let reason = "was compared in part: its replication ended meanwhile";
    Problem::new(Code::Failed, thing, reason, "")
}

/// Tells how far it is until everything was looked at and what was damaged is repaired.
async fn follow(
    vm: &Vm,
    number: u64,
    mut report: watch::Receiver<LinkReport>,
    told: &mpsc::Sender<JobLine<ComparedReplica>>,
) -> Result<ComparedReplica, Problem> {
    let mut before = None;
    let (found, point) = loop {
        let last = report.borrow_and_update().verification.clone();
        // Until it begins there may be an earlier one.
        let last = last.filter(|last| last.number == number);
        if let Some(last) = last {
            if let Some(outcome) = last.outcome.clone() {
                break (last, outcome?);
            }
            if before.replace(last.done) != Some(last.done) {
                let progress = Progress {
                    what: "comparing with the twin".to_owned(),
                    done: last.done,
                    total: last.total,
                };
                // Fails only when whoever asked went away.
                let _ = told.send(JobLine::Progress(progress)).await;
            }
        }
        report.changed().await.map_err(|_closed| ended(vm))?;
    };
    let mut found = found;
    if found.is_damaged() {
        tracing::error!(vm = %vm.id, damage = damage(&found, &vm.view().home.spec), "damaged");
        let repaired = report.wait_for(|report| {
            let last = report.verification.as_ref();
            last.is_none_or(|last| last.number != number || !last.is_damaged())
        });
        if let Ok(Ok(report)) = timeout(REPAIR, repaired).await {
            let last = report.verification.clone();
            found = last.filter(|last| last.number == number).unwrap_or(found);
        }
    }
    Ok(tell(vm, &found, point))
}

fn tell(vm: &Vm, found: &Verification, point: PointId) -> ComparedReplica {
    let view = vm.view();
    let ranges = found.damage.iter().map(|range| DamagedRange {
        slot: slot(&view.home.spec, range.disk),
        disk: range.disk,
        at: Bytes(range.at),
        len: range.len,
    });
    ComparedReplica {
        point,
        compared: found.done,
        changed: found.changed,
        damaged: found.damaged,
        damage: ranges.collect(),
        more: found.more,
        repaired: found.repaired,
    }
}
