//! Routes of failovers.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use api::{
    EventKind, LostDisk, LostRange, LostWrites, Replication, ReverseReplication, Severity,
    StartFailover, StopTest, TestFailover, VmDetails,
};
use axum::Json;
use axum::extract::{Path, State};
use model::{Bytes, Code, PointId, Problem, SpecError, VmName, VmState};
use replica::standing::Role;

use super::body::Json as Body;
use super::hosts::blocking;
use super::points::{disks as open_disks, store_of};
use super::replication::tell;
use super::vms::{details, word};
use super::{Answered, Refusal};
use crate::event::Draft;
use crate::host::{Host, NameReservation};
use crate::receive::{Why, kept_points, let_points_go};
use crate::twin::{LATEST, LOST, nothing_lost};
use crate::vm::another::Choice;
use crate::vm::branch::Branch;
use crate::vm::folder::Made;
use crate::vm::{Message, Vm, takeover};

/// Most copies of one twin that test failovers make.
const MAX_TESTS: u32 = 64;
/// So often a failover from the newest point begins again because a newer one came meanwhile.
const TRIES: u32 = 3;

pub(super) async fn start(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<StartFailover>,
) -> Answered<VmDetails> {
    let vm = host.find(&vm)?;
    let word = word(wanted.because.as_deref())?;
    let failed_over = vm.view().standing.role == Role::FailedOver;
    if let Some(named) = wanted.point.clone().filter(|_| failed_over) {
        if named == LATEST && !wanted.drop_writes {
            return Err(failed_over_already(&vm).into());
        }
        let choice = Choice {
            point: point(&vm, Some(named)).await?,
            drop_writes: wanted.drop_writes,
            word,
        };
        vm.ask(|answer| Message::Another { choice, answer }).await?;
        return details(&vm).await;
    }
    let newest = wanted.point.as_deref().is_none_or(|name| name == LATEST);
    let mut from = point(&vm, wanted.point.clone()).await?;
    let mut left = TRIES;
    loop {
        let done = vm.ask(|answer| Message::Failover {
            point: from,
            newest,
            word: word.clone(),
            answer,
        });
        let Err(problem) = done.await else { break };
        if let Some(over) = lease_over_in(&host, &vm).filter(|_| wanted.wait) {
            if problem.code == Code::Unreachable {
                tokio::time::sleep(over).await;
                from = if newest {
                    point(&vm, None).await?
                } else {
                    from
                };
                continue;
            }
        }
        // The primary sends its last when it is asked to stand down: then from that.
        let latest = if newest {
            point(&vm, None).await?
        } else {
            from
        };
        left -= 1;
        if latest == from || left == 0 {
            return Err(Refusal(problem));
        }
        from = latest;
    }
    details(&vm).await
}

/// Older clients name the newest point unless a person names one, so that alone is no wish to go to it.
fn failed_over_already(vm: &Vm) -> Problem {
    let view = vm.view();
    let name = &view.home.spec.name;
    let reason = "was failed over to this host already";
    let way_out = format!(
        "`pollux vm start {name}` starts it, `pollux failover start {name} --point latest --drop-writes` \
         goes to the newest point"
    );
    Problem::new(Code::Conflict, view.thing(), reason, way_out)
}

/// How long the lease of a primary that does not answer lasts, if it holds to one.
fn lease_over_in(host: &Host, vm: &Vm) -> Option<Duration> {
    let view = vm.view();
    let left = view
        .leasing
        .takeover_in(view.standing.fence?, host.clock.now());
    (view.standing.role == Role::Replica && !left.is_zero()).then_some(left)
}

pub(super) async fn test(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<TestFailover>,
) -> Answered<VmDetails> {
    let twin = host.find(&vm)?;
    let point = match wanted.point.as_deref() {
        Some(LOST) => None,
        _ => Some(point(&twin, wanted.point).await?),
    };
    let name = free_name(&host, &twin)?;
    let made = twin.ask(|answer| Message::Test {
        point,
        name: name.name().clone(),
        answer,
    });
    let folder = made.await?;
    let copy = match host.open_vm(folder.clone()).await {
        Ok(copy) => copy,
        Err(problem) => {
            let store = store_of(&twin)?;
            // Nothing else would end it.
            let undo = move || {
                if let Some(origin) = &folder.origin {
                    takeover::undo(store.at(&origin.journal), &folder);
                }
                Ok(())
            };
            blocking(undo).await?;
            return Err(problem.into());
        }
    };
    // It is a VM of this host now.
    drop(name);
    let started = copy
        .ask(|answer| Message::Start { word: None, answer })
        .await;
    if let Err(problem) = started {
        // The first problem is the one that matters.
        let _ = end_test(&host, &copy).await;
        return Err(problem.into());
    }
    let what = match point {
        Some(_) => {
            twin.observed.tested(jiff::Timestamp::now());
            "a test failover began"
        }
        // No point of the twin was tested.
        None => "a test began of what was never sent",
    };
    record_test(&host, &twin, EventKind::TestBegan, what);
    details(&copy).await
}

/// `NAME - Test`, or the first of `NAME - Test 2` and so on that no VM of this host has.
fn free_name(host: &Arc<Host>, twin: &Vm) -> Result<NameReservation, Problem> {
    let view = twin.view();
    let of = |number| match number {
        1 => format!("{} - Test", view.home.spec.name),
        number => format!("{} - Test {number}", view.home.spec.name),
    };
    for number in 1..=MAX_TESTS {
        let name: VmName = of(number).parse().map_err(|error: SpecError| {
            let way_out = "Give the VM a shorter name";
            Problem::new(Code::Invalid, view.thing(), error.to_string(), way_out)
        })?;
        if let Ok(name) = host.reserve(&name) {
            return Ok(name);
        }
    }
    let reason = format!("has {MAX_TESTS} test failovers already");
    let way_out = "End some with `pollux failover stop-test`";
    Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
}

/// The point that was asked for.
async fn point(vm: &Vm, wanted: Option<String>) -> Result<PointId, Refusal> {
    let store = store_of(vm)?;
    let wanted = wanted.unwrap_or_else(|| LATEST.to_owned());
    blocking(move || store.find(&wanted)).await
}

pub(super) async fn reverse(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<ReverseReplication>,
) -> Answered<Replication> {
    let vm = host.find(&vm)?;
    let choice = wanted.disks;
    vm.ask(|answer| Message::Reverse { choice, answer }).await?;
    Ok(Json(tell(&host, &vm).await?))
}

pub(super) async fn lost_writes(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<LostWrites> {
    let vm = host.find(&vm)?;
    let view = vm.view();
    let thing = view.thing();
    let (store, keep) = (vm.store.clone(), kept_points(&host, &vm));
    let read = blocking(move || {
        let read = Branch::read(&view.home.place)?;
        // What it keeps is told while the journal is away, too.
        let held = store.and_then(|store| store.held_back(&keep).ok().flatten());
        Ok(read.map(|(branch, was)| (branch, was, held)))
    });
    let (branch, was, held) = read.await?.ok_or_else(|| nothing_lost(&thing))?;
    let opened = vm
        .store
        .iter()
        .flat_map(|store| store.of_lost().opened.list());
    let disks = was.spec.disks.iter().map(|disk| LostDisk {
        number: disk.slot,
        size: disk.size,
        ranges: branch.disks.as_ref().map(|all| {
            let written = all.iter().find(|one| one.disk == disk.id);
            let runs = written.into_iter().flat_map(|written| &written.runs);
            let range = |run: &Range<u64>| LostRange {
                at: run.start,
                len: Bytes(run.end - run.start),
            };
            runs.map(range).collect()
        }),
        file: was.disk_file(disk).display().to_string(),
    });
    Ok(Json(LostWrites {
        since: branch.since,
        from: branch.from,
        until: branch.until,
        disks: disks.collect(),
        held,
        open: opened.flat_map(|one| open_disks(&one)).collect(),
    }))
}

pub(super) async fn drop_lost_writes(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<()> {
    let vm = host.find(&vm)?;
    let (view, store) = (vm.view(), vm.store.clone());
    let thing = view.thing();
    let dropped = blocking(move || {
        let kept = store.filter(|_| Branch::folder(&view.home.place).exists());
        let store = kept.ok_or_else(|| nothing_lost(&thing))?;
        store.drop_lost()?;
        Ok(store)
    });
    // If the store is full, no point comes that would begin it.
    let_points_go(&host, vm, dropped.await?, Why::Retention);
    Ok(Json(()))
}

pub(super) async fn stop_test(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<StopTest>,
) -> Answered<()> {
    let vm = host.find(&vm)?;
    let copies = tests_of(&host, &vm);
    let failed_over = vm.view().standing.role == Role::FailedOver;
    if copies.is_empty() && wanted.or_failover && failed_over {
        let dropping = false;
        vm.ask(|answer| Message::CallOff { dropping, answer })
            .await?;
        return Ok(Json(()));
    }
    if copies.is_empty() {
        let view = vm.view();
        let name = &view.home.spec.name;
        let way_out = if view.standing.prepared {
            format!(
                "`pollux failover cancel {name}` ends the planned failover that it is prepared for"
            )
        } else if view.standing.choosable("").is_ok() {
            format!(
                "`pollux failover start {name} --point POINT` goes to another point, `pollux failover \
                 cancel {name}` calls the failover off"
            )
        } else {
            format!("`pollux failover test {name}` starts one")
        };
        let reason = "has no test failover";
        return Err(Problem::new(Code::Conflict, view.thing(), reason, way_out).into());
    }
    for copy in copies {
        let twin = copy.view().home.machine.and_then(|machine| machine.origin);
        let twin = twin.and_then(|origin| host.vm(origin.twin));
        end_test(&host, &copy).await?;
        if let Some(twin) = twin {
            let ended = "the test failover ended";
            record_test(&host, &twin, EventKind::TestEnded, ended);
        }
    }
    Ok(Json(()))
}

fn record_test(host: &Host, twin: &Vm, kind: EventKind, what: &str) {
    let name = twin.view().home.spec.name;
    let draft = Draft::new(kind, Severity::Info, name.as_str(), what.to_owned());
    host.events.record(draft.about(twin.id));
}

/// The copies that test failovers of `vm` made, or `vm` itself if it is one.
pub(super) fn tests_of(host: &Host, vm: &Vm) -> Vec<Vm> {
    let mut vms = host.vms();
    vms.retain(|other| {
        let machine = other.view().home.machine;
        let origin = machine.and_then(|machine| machine.origin);
        origin.is_some_and(|origin| {
            origin.made == Made::Test && (origin.twin == vm.id || other.id == vm.id)
        })
    });
    vms
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
    copy.ask(|answer| Message::Delete {
        lost: false,
        answer,
    })
    .await?;
    let Some((folder, origin)) = machine.and_then(|folder| Some((folder.path, folder.origin?)))
    else {
        return Ok(());
    };
    let twin = host.vm(origin.twin).and_then(|twin| twin.store);
    if let (Some(store), Some(pin)) = (twin, folder.file_name()) {
        let pin = pin.to_string_lossy().into_owned();
        blocking(move || store.at(&origin.journal).unpin(origin.point, &pin))
            .await
            .map_err(|Refusal(problem)| problem)?;
    }
    Ok(())
}
