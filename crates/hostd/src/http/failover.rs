//! Routes of failovers.

use std::sync::Arc;

use api::{EventKind, Severity, StartFailover, TestFailover, VmDetails};
use axum::Json;
use axum::extract::{Path, State};
use model::{Code, PointId, Problem, VmState};

use super::body::Json as Body;
use super::hosts::blocking;
use super::points::store_of;
use super::vms::{details, word};
use super::{Answered, Refusal};
use crate::event::Draft;
use crate::host::Host;
use crate::twin::LATEST;
use crate::vm::folder::Made;
use crate::vm::{Message, Vm, takeover};

/// So often a failover from the newest point begins again because a newer one came meanwhile.
const TRIES: u32 = 3;

pub(super) async fn start(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<StartFailover>,
) -> Answered<VmDetails> {
    let vm = host.find(&vm)?;
    let word = word(wanted.because.as_deref())?;
    let newest = wanted.point.as_deref().is_none_or(|name| name == LATEST);
    let mut from = point(&vm, wanted.point).await?;
    for left in (0..TRIES).rev() {
        let done = vm.ask(|answer| Message::Failover {
            point: from,
            newest,
            word: word.clone(),
            answer,
        });
        let Err(problem) = done.await else { break };
        // The primary sends its last when it is asked to stand down: then from that.
        let latest = if newest {
            point(&vm, None).await?
        } else {
            from
        };
        if latest == from || left == 0 {
            return Err(Refusal(problem));
        }
        from = latest;
    }
    details(&vm).await
}

pub(super) async fn test(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<TestFailover>,
) -> Answered<VmDetails> {
    let twin = host.find(&vm)?;
    let point = point(&twin, wanted.point).await?;
    let folder = twin.ask(|answer| Message::Test { point, answer }).await?;
    let copy = match host.open_vm(folder.clone()).await {
        Ok(copy) => copy,
        Err(problem) => {
            let store = store_of(&twin)?;
            // Nothing else would end it.
            let undo = move || {
                takeover::undo(&store, &folder);
                Ok(())
            };
            blocking(undo).await?;
            return Err(problem.into());
        }
    };
    let started = copy
        .ask(|answer| Message::Start { word: None, answer })
        .await;
    if let Err(problem) = started {
        // The first problem is the one that matters.
        let _ = end_test(&host, &copy).await;
        return Err(problem.into());
    }
    twin.observed.tested(jiff::Timestamp::now());
    record_test(&host, &twin, EventKind::TestBegan, "a test failover began");
    details(&copy).await
}

/// The point that was asked for.
async fn point(vm: &Vm, wanted: Option<String>) -> Result<PointId, Refusal> {
    let store = store_of(vm)?;
    let wanted = wanted.unwrap_or_else(|| LATEST.to_owned());
    blocking(move || store.find(&wanted)).await
}

pub(super) async fn stop_test(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<()> {
    let vm = host.find(&vm)?;
    let copy = test_of(&host, &vm).ok_or_else(|| {
        let way_out = "`pollux failover test` starts one";
        let reason = "has no test failover";
        Problem::new(Code::Conflict, vm.view().thing(), reason, way_out)
    })?;
    let twin = copy.view().home.machine.and_then(|machine| machine.origin);
    let twin = twin.and_then(|origin| host.vm(origin.twin));
    end_test(&host, &copy).await?;
    if let Some(twin) = twin {
        record_test(
            &host,
            &twin,
            EventKind::TestEnded,
            "the test failover ended",
        );
    }
    Ok(Json(()))
}

fn record_test(host: &Host, twin: &Vm, kind: EventKind, what: &str) {
    let name = twin.view().home.spec.name;
    let draft = Draft::new(kind, Severity::Info, name.as_str(), what.to_owned());
    host.events.record(draft.about(twin.id));
}

/// The copy that a test failover of `vm` made, or `vm` itself if it is one.
pub(super) fn test_of(host: &Host, vm: &Vm) -> Option<Vm> {
    host.vms().into_iter().find(|other| {
        let machine = other.view().home.machine;
        let origin = machine.and_then(|machine| machine.origin);
        origin.is_some_and(|origin| {
            origin.made == Made::Test && (origin.twin == vm.id || other.id == vm.id)
        })
    })
}

/// Ends and deletes the copy that a test failover made, and lets its point go.
pub(super) async fn end_test(host: &Host, copy: &Vm) -> Result<(), Problem> {
    if copy.view().state != VmState::Off {
        match copy.ask(|answer| Message::Kill { answer }).await {
            // It may have ended meanwhile.
            Err(problem) if problem.code != Code::Conflict => return Err(problem),
            _ => {}
        }
    }
    let machine = copy.view().home.machine;
    copy.ask(|answer| Message::Delete { answer }).await?;
    let origin = machine.and_then(|machine| machine.origin);
    let twin = origin.as_ref().and_then(|origin| host.vm(origin.twin));
    if let Some((origin, store)) = origin.zip(twin.and_then(|twin| twin.store)) {
        blocking(move || store.unpin(origin.point, takeover::TEST))
            .await
            .map_err(|Refusal(problem)| problem)?;
    }
    Ok(())
}
