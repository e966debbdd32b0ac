//! Routes of VMs.

use std::sync::Arc;
use std::time::Duration;

use api::{CreateVm, DiskContentFrom, JobLine, Processes, StartVm, StopVm, Vm, VmDetails};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use diskd::control::StoreKind;
use jiff::Timestamp;
use model::{Code, Mode, Problem};
use replica::run;
use replica::standing::{Override, Role};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::body::{Json as Body, lines};
use super::{Answered, Refusal, disks};
use crate::host::Host;
use crate::vm::{self, Message, View, create, succession};

/// Whoever asks through the socket; its owner alone can.
pub(super) const LOCAL_USER: &str = "the owner of the local socket";
/// Longest time that a guest is given to shut down.
const MAX_STOP: u64 = 24 * 3600;

pub(super) async fn list(State(host): State<Arc<Host>>) -> Answered<Vec<Vm>> {
    let vms = host.vms();
    Ok(Json(vms.iter().map(|vm| summary(vm.view())).collect()))
}

pub(super) async fn show(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<VmDetails> {
    details(&host.find(&vm)?).await
}

pub(super) async fn create(
    State(host): State<Arc<Host>>,
    Body(wanted): Body<CreateVm>,
) -> Result<Response, Refusal> {
    let reserved = host.reserve(&wanted.name)?;
    let mut claims = Vec::new();
    for disk in &wanted.disks {
        if let DiskContentFrom::File(file) = &disk.from {
            claims.push(host.claim(file)?);
        }
    }
    let (told, progress) = mpsc::channel(4);
    tokio::spawn(async move {
        let done = make(&host, wanted, told.clone()).await;
        drop((reserved, claims));
        let line = match done {
            Ok(made) => JobLine::Done(made),
            Err(problem) => JobLine::Failed(problem),
        };
        // Fails only when whoever asked went away.
        let _ = told.send(line).await;
    });
    Ok(lines(progress))
}

async fn make(
    host: &Arc<Host>,
    wanted: CreateVm,
    told: mpsc::Sender<JobLine<VmDetails>>,
) -> Result<VmDetails, Problem> {
    let (vms, name) = (host.layout.vms(), host.name().to_owned());
    let made = tokio::task::spawn_blocking(move || {
        create::create(&vms, &name, &wanted, |progress| {
            told.blocking_send(JobLine::Progress(progress)).is_ok()
        })
    });
    let folder = made
        .await
        .map_err(|error| Problem::failed("polluxd", &error))??;
    let vm = host.open_vm(folder).await?;
    tracing::info!(vm = %vm.id, name = %vm.view().home.spec.name, "created");
    let Json(details) = details(&vm).await.map_err(|Refusal(problem)| problem)?;
    Ok(details)
}

pub(super) async fn start(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(start): Body<StartVm>,
) -> Answered<VmDetails> {
    let vm = host.find(&vm)?;
    let word = word(start.because.as_deref())?;
    vm.ask(|answer| Message::Start { word, answer }).await?;
    details(&vm).await
}

/// A person's statement, recorded with who and when.
pub(super) fn word(because: Option<&str>) -> Result<Option<Override>, Problem> {
    because
        .map(|statement| Override::new(statement, LOCAL_USER, Timestamp::now()))
        .transpose()
}

pub(super) async fn stop(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(stop): Body<StopVm>,
) -> Answered<VmDetails> {
    let vm = host.find(&vm)?;
    let timeout = stop_limit(stop.timeout_s)?;
    vm.ask(|answer| Message::Stop { timeout, answer }).await?;
    details(&vm).await
}

/// How long a guest has to shut down.
pub(super) fn stop_limit(seconds: u64) -> Result<Duration, Problem> {
    if seconds == 0 || seconds > MAX_STOP {
        return Err(Problem::new(
            Code::Invalid,
            "timeout",
            format!("is {seconds} s"),
            format!("It must be 1 to {MAX_STOP} seconds"),
        ));
    }
    Ok(Duration::from_secs(seconds))
}

pub(super) async fn kill(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<VmDetails> {
    let vm = host.find(&vm)?;
    vm.ask(|answer| Message::Kill { answer }).await?;
    details(&vm).await
}

/// How a VM is deleted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Deleting {
    /// That the store of the twin is lost.
    store: Option<Lost>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Lost {
    Lost,
}

pub(super) async fn delete(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    how: Result<Query<Deleting>, QueryRejection>,
) -> Answered<()> {
    let Query(how) = how.map_err(|error| {
        let way_out = "`?store=lost` is all that may be said";
        Problem::new(Code::Invalid, "the request", error.body_text(), way_out)
    })?;
    let vm = host.find(&vm)?;
    if let Some(copy) = super::failover::tests_of(&host, &vm).first() {
        let reason = if copy.id == vm.id {
            "was made by a test failover"
        } else {
            "has a test failover"
        };
        let way_out = "End that with `pollux failover stop-test`";
        return Err(Problem::new(Code::Conflict, vm.view().thing(), reason, way_out).into());
    }
    let lost = matches!(how.store, Some(Lost::Lost));
    vm.ask(|answer| Message::Delete { lost, answer }).await?;
    Ok(Json(()))
}

/// A VM in a list.
fn summary(view: View) -> Vm {
    let uptime_s = view.guest.as_ref().map(|guest| {
        let seconds = Timestamp::now().duration_since(guest.started).as_secs();
        u64::try_from(seconds).unwrap_or(0)
    });
    let status = status(&view);
    let mode = mode(&view);
    let spec = view.home.spec;
    Vm {
        id: spec.id,
        name: spec.name,
        state: view.state,
        generation: spec.generation,
        processors: spec.processors,
        memory: spec.memory,
        uptime_s,
        mode,
        status,
    }
}

/// One line: that all is well, or what is not.
fn status(view: &View) -> String {
    if let Some(trouble) = &view.trouble {
        return trouble.clone();
    }
    if let Some(problem) = run::restored(&view.thing(), &view.standing) {
        return format!("{}; {}", problem.reason, problem.way_out);
    }
    match succession::succeeded(&view.standing) {
        Some(succeeded) => succeeded.to_string(),
        None => "Operating normally".to_owned(),
    }
}

fn mode(view: &View) -> Option<Mode> {
    let made = view
        .home
        .machine
        .as_ref()
        .and_then(|folder| folder.origin.as_ref());
    if made.is_some_and(|origin| origin.made == vm::folder::Made::Test) {
        return Some(Mode::TestReplica);
    }
    match view.standing.role {
        Role::Primary => view.relation.as_ref().map(|_| Mode::Primary),
        Role::Replica | Role::FailedOver => Some(Mode::Replica),
    }
}

/// Everything about a VM.
pub(super) async fn details(vm: &vm::Vm) -> Answered<VmDetails> {
    let view = vm.view();
    // One that does not answer is told of by the VM's status line.
    let status = vm.supervisor.status().await.unwrap_or(None);
    let diskd = match &status {
        Some(_) => vm.supervisor.diskd_status().await,
        None => None,
    };
    let processes = status.map(|status| {
        let mut lacking = status.lacking;
        let more = diskd.iter().flat_map(|diskd| &diskd.lacking);
        lacking.extend(
            more.filter(|one| !lacking.contains(one))
                .cloned()
                .collect::<Vec<_>>(),
        );
        Processes {
            vmd: status.pid,
            diskd: status.diskd,
            diskd_restarts: status.diskd_restarts,
            guest: status.guest,
            accelerator: view.guest.as_ref().map(|guest| guest.accelerator),
            diskd_outdated: diskd
                .as_ref()
                .is_some_and(|diskd| diskd.version != env!("CARGO_PKG_VERSION")),
            diskd_version: diskd.as_ref().map(|diskd| diskd.version.clone()),
            store: diskd
                .as_ref()
                .map(|diskd| store_name(diskd.store).to_owned()),
            lacking,
        }
    });
    Ok(Json(VmDetails {
        disks: disks::disks(&view, diskd.as_ref()),
        checkpoints: disks::all_checkpoints(&view),
        spec: view.home.spec.clone(),
        folder: view.home.path.clone(),
        succeeded: succession::succeeded(&view.standing),
        processes,
        vm: summary(view),
    }))
}

/// For people.
pub(crate) fn store_name(store: StoreKind) -> &'static str {
    match store {
        StoreKind::IoUring => "io_uring",
        StoreKind::Threads => "threads, since the host gives no io_uring",
    }
}
