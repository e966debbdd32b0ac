//! Routes of disks and checkpoints.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::{
    ApplyCheckpoint, AttachDisk, Checkpoint, CreateDisk, DetachDisk, DiskContentFrom, DiskOverlay,
    ExportDisk, ExportedDisk, JobLine, MakeCheckpoint, NewDisk, Progress, ResizeDisk, ResizedDisk,
    VmDetails, VmDisk,
};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use jiff::Timestamp;
use model::{
    BLOCK_SIZE, Bus, Bytes, CheckpointId, CheckpointSpec, Code, DiskSpec, Problem, VmSpec,
    free_slot,
};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::time::timeout;

use super::body::{Json as Body, lines};
use super::hosts::blocking;
use super::{Answered, Refusal, vms};
use crate::host::Host;
use crate::vm::change::{Change, disk_thing, find_checkpoint, find_disk, new_checkpoint};
use crate::vm::create::{Unnamed, disk_specification, no_space_or};
use crate::vm::folder::VmFolder;
use crate::vm::reload::DiskdStatus;
use crate::vm::{Message, View, Vm, access, export};

/// How long an export waits until what the guest wrote meanwhile is merged.
const MERGED: Duration = Duration::from_secs(30);

pub(super) async fn list(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Vec<VmDisk>> {
    let vm = host.find(&vm)?;
    let status = vm.supervisor.diskd_status().await;
    Ok(Json(disks(&vm.view(), status.as_ref())))
}

pub(super) async fn show(
    State(host): State<Arc<Host>>,
    Path((vm, disk)): Path<(String, String)>,
) -> Answered<VmDisk> {
    let vm = host.find(&vm)?;
    Ok(Json(told(&vm, &disk).await?))
}

/// A VM whose disks nobody else changes as long as this lives.
struct Alone {
    vm: Vm,
    machine: VmFolder,
    _held: OwnedMutexGuard<()>,
}

impl Alone {
    async fn with(host: &Arc<Host>, vm: &str) -> Result<Self, Problem> {
        let vm = host.find(vm)?;
        let held = Arc::clone(&vm.disks).lock_owned().await;
        Ok(Self {
            machine: machine(&vm)?,
            vm,
            _held: held,
        })
    }

    /// A new disk of this VM. Where no bus is wanted, the usual one, or SCSI where that is full or
    /// takes nothing while the guest runs.
    async fn specify(&self, new: NewDisk) -> Result<DiskSpec, Refusal> {
        let VmSpec {
            generation, disks, ..
        } = self.machine.spec.clone();
        let usual = Bus::default_of(generation);
        let runs = self.vm.view().guest.is_some();
        let possible = (usual.is_hot() || !runs) && free_slot(&disks, usual).is_some();
        let bus = new.bus.unwrap_or(if possible { usual } else { Bus::Scsi });
        let thing = self.machine.thing();
        blocking(move || disk_specification(&thing, generation, &disks, &new, bus)).await
    }
}

pub(super) async fn create(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<CreateDisk>,
) -> Answered<VmDisk> {
    let alone = Alone::with(&host, &vm).await?;
    let Alone { vm, machine, .. } = &alone;
    let new = NewDisk {
        from: DiskContentFrom::Empty,
        size: Some(wanted.size),
        bus: wanted.bus,
    };
    let mut disk = alone.specify(new).await?;
    if machine.disk_file(&disk).exists() {
        // Left there by a disk that was detached.
        let id = disk.id.0.simple().to_string();
        disk.file = format!("disk{}-{}.raw", disk.slot, &id[..8]).into();
    }
    // Everything that can be refused is, before a file is made.
    Change::Add(disk.clone()).plan(&machine.spec, vm.view().guest.is_some())?;
    let (path, size, thing) = (machine.disk_file(&disk), disk.size, machine.thing());
    let unnamed = Unnamed::mark(&path).map_err(|error| no_space_or(&thing, &error))?;
    blocking(move || make(&thing, &path, size)).await?;
    let added = add(vm, &disk).await;
    if added.is_err() {
        // It is empty; a file that stays is in nobody's way.
        let _ = fs::remove_file(machine.disk_file(&disk));
    }
    drop(unnamed);
    added
}

fn make(thing: &str, path: &FilePath, size: Bytes) -> Result<(), Problem> {
    let fail = |error| no_space_or(thing, &error);
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(fail)?;
    let made = file.set_len(size.0).and_then(|()| file.sync_all());
    made.map_err(|error| {
        // What cannot be removed is empty.
        let _ = fs::remove_file(path);
        match error.kind() {
            std::io::ErrorKind::FileTooLarge | std::io::ErrorKind::InvalidInput => Problem::new(
                Code::Invalid,
                thing,
                format!("cannot have a disk of {size}: {error}"),
                "The file system may not hold files of that size; choose a smaller one",
            ),
            _ => fail(error),
        }
    })
}

pub(super) async fn attach(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(wanted): Body<AttachDisk>,
) -> Answered<VmDisk> {
    let alone = Alone::with(&host, &vm).await?;
    let Alone { vm, machine, .. } = &alone;
    let new = NewDisk {
        from: DiskContentFrom::File(wanted.file.clone()),
        size: None,
        bus: wanted.bus,
    };
    let file = wanted.file;
    let _claim = host.claim(&file)?;
    let mut disk = alone.specify(new).await?;
    if disk.size.0 % BLOCK_SIZE != 0 {
        let problem = Problem::new(
            Code::Invalid,
            format!("disk file {}", file.display()),
            format!("has {} bytes, which is no multiple of 4 KiB", disk.size.0),
            "Make it longer with `truncate --size %4096 FILE`",
        );
        return Err(problem.into());
    }
    if let Ok(inside) = file.strip_prefix(&machine.path) {
        disk.file = inside.to_owned();
    }
    add(vm, &disk).await
}

async fn add(vm: &Vm, disk: &DiskSpec) -> Answered<VmDisk> {
    change(vm, Change::Add(disk.clone())).await?;
    Ok(Json(told(vm, &disk.id.to_string()).await?))
}

pub(super) async fn detach(
    State(host): State<Arc<Host>>,
    Path((vm, disk)): Path<(String, String)>,
    Body(detach): Body<DetachDisk>,
) -> Answered<()> {
    let Alone { vm, machine, _held } = Alone::with(&host, &vm).await?;
    let disk = find_disk(&machine.spec, &disk)?.clone();
    let file = machine.disk_file(&disk);
    let thing = disk_thing(&machine.spec, &disk);
    if detach.delete && !fs::metadata(&file).is_ok_and(|meta| meta.is_file()) {
        let reason = format!("lies on {}, which is no file", file.display());
        let problem = Problem::new(Code::Invalid, thing, reason, "Detach it without --delete");
        return Err(problem.into());
    }
    change(&vm, Change::Remove(disk.id)).await?;
    let outside = !file.starts_with(&machine.path);
    let done = blocking(move || {
        if detach.delete {
            return durable::remove(&file).map_err(|error| {
                let reason = format!("was detached, and {} stays: {error}", file.display());
                Problem::new(Code::Failed, &thing, reason, "Remove that file yourself")
            });
        }
        if outside {
            if let Err(error) = access::give_back(&file) {
                tracing::warn!(file = %file.display(), %error, "stays the VM's");
            }
        }
        Ok(())
    });
    done.await?;
    Ok(Json(()))
}

pub(super) async fn resize(
    State(host): State<Arc<Host>>,
    Path((vm, disk)): Path<(String, String)>,
    Body(resize): Body<ResizeDisk>,
) -> Answered<ResizedDisk> {
    let Alone { vm, machine, _held } = Alone::with(&host, &vm).await?;
    let disk = find_disk(&machine.spec, &disk)?.clone();
    change(&vm, Change::Resize(disk.id, resize.size)).await?;
    Ok(Json(ResizedDisk {
        at_next_start: vm.view().guest.is_some() && disk.bus != Bus::Virtio,
        disk: told(&vm, &disk.id.to_string()).await?,
    }))
}

pub(super) async fn checkpoints(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Vec<Checkpoint>> {
    Ok(Json(all_checkpoints(&host.find(&vm)?.view())))
}

pub(super) async fn checkpoint(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    Body(make): Body<MakeCheckpoint>,
) -> Answered<Checkpoint> {
    let Alone { vm, machine, _held } = Alone::with(&host, &vm).await?;
    let spec = machine.spec;
    let new = new_checkpoint(&spec, make.name.as_deref(), now(), false)?;
    let id = new.id;
    change(&vm, Change::Checkpoint(new.clone())).await?;
    let made = all_checkpoints(&vm.view())
        .into_iter()
        .find(|one| one.id == id);
    let gone = || Problem::new(Code::NotFound, vm.view().thing(), "has lost it again", "");
    Ok(Json(made.ok_or_else(gone)?))
}

/// To the second: that is how names tell it.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

pub(super) async fn apply(
    State(host): State<Arc<Host>>,
    Path((vm, name)): Path<(String, String)>,
    Body(apply): Body<ApplyCheckpoint>,
) -> Answered<VmDetails> {
    let Alone { vm, machine, _held } = Alone::with(&host, &vm).await?;
    let spec = machine.spec;
    let wanted = Change::Apply {
        checkpoint: find_checkpoint(&spec, &name)?.id,
        drop_later: apply.drop_later,
    };
    change(&vm, wanted).await?;
    vms::details(&vm).await
}

pub(super) async fn merge(
    State(host): State<Arc<Host>>,
    Path((vm, name)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let vm = host.find(&vm)?;
    let spec = machine(&vm)?.spec;
    let checkpoint = find_checkpoint(&spec, &name)?.clone();
    if !checkpoint.merging {
        let _alone = vm.disks.lock().await;
        change(&vm, Change::Merge(checkpoint.id)).await?;
    }
    Ok(followed(vm, Some(checkpoint.id)))
}

/// Merges all that a person made.
pub(super) async fn merge_all(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Result<Response, Refusal> {
    let vm = host.find(&vm)?;
    let machine = machine(&vm)?;
    let but = machine.above_point();
    let checkpoints = machine.spec.checkpoints;
    let stay = checkpoints.iter().filter(|one| !one.merging);
    let stay: Vec<_> = stay.map(|one| one.id).collect();
    let wanted = match stay[..] {
        [] => None,
        // Nobody asked for it by name: why it stays is said if it is the only one.
        [last] if Some(last) == but => (checkpoints.len() == 1).then_some(Change::Merge(last)),
        _ => Some(Change::MergeAll { but }),
    };
    if let Some(wanted) = wanted {
        let _alone = vm.disks.lock().await;
        change(&vm, wanted).await?;
    }
    Ok(followed(vm, None))
}

/// A job that ends with the merge of this checkpoint, or of all.
fn followed(vm: Vm, checkpoint: Option<CheckpointId>) -> Response {
    let (told, progress) = mpsc::channel(4);
    tokio::spawn(async move {
        follow(&vm, checkpoint, &told).await;
        // Fails only when whoever asked went away.
        let _ = told.send(JobLine::Done(())).await;
    });
    lines(progress)
}

/// Tells how far a merge is, of one checkpoint or of all, until it is done or nobody listens.
async fn follow(vm: &Vm, of: Option<CheckpointId>, told: &mpsc::Sender<JobLine<()>>) {
    let mut seen = vm.watch();
    loop {
        let (name, merge) = {
            let view = seen.borrow_and_update();
            let Some(merging) = view
                .merging_checkpoint()
                .filter(|one| of.is_none_or(|of| one.id == of))
            else {
                return;
            };
            (merging.name.clone(), view.merge.clone().unwrap_or_default())
        };
        let what = match merge.stuck {
            Some(problem) => format!("waiting ({})", problem.reason),
            None => format!("merging `{name}`"),
        };
        let (done, total) = (merge.done, merge.total);
        let line = JobLine::Progress(Progress { what, done, total });
        if told.send(line).await.is_err() {
            return;
        }
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            () = told.closed() => return,
        }
    }
}

pub(super) async fn export(
    State(host): State<Arc<Host>>,
    Path((vm, disk)): Path<(String, String)>,
    Body(wanted): Body<ExportDisk>,
) -> Result<Response, Refusal> {
    let vm = host.find(&vm)?;
    let machine = machine(&vm)?;
    let disk = find_disk(&machine.spec, &disk)?.clone();
    let of = wanted
        .checkpoint
        .as_deref()
        .map(|name| find_checkpoint(&machine.spec, name).cloned())
        .transpose()?;
    export::check(&wanted.file)?;
    if let Some(of) = &of {
        let mut overlays = disk.overlays.iter();
        let holds = overlays.any(|overlay| overlay.checkpoint == of.id);
        if of.merging || !holds {
            let reason = if of.merging {
                "is being merged"
            } else {
                "was made before that disk was attached"
            };
            let thing = format!("checkpoint `{}` of {}", of.name, machine.thing());
            return Err(Problem::new(Code::Conflict, thing, reason, "").into());
        }
    }
    // Refused before the work begins, as a refusal.
    vm.ask(|answer| Message::ExportBegins { answer }).await?;
    let (told, progress) = mpsc::channel(4);
    tokio::spawn(async move {
        let done = run_export(&vm, &disk, of, &wanted, &told).await;
        vm.tell(Message::ExportEnds).await;
        let whole = |view: &View| view.merging_checkpoint().is_none();
        // The next export or change finds the disks as they were. It fails only when the VM is gone
        // or the guest has written for longer than anybody wants to wait.
        let _ = timeout(MERGED, vm.watch().wait_for(whole)).await;
        let line = match done {
            Ok(exported) => JobLine::Done(exported),
            Err(problem) => JobLine::Failed(problem),
        };
        // Fails only when whoever asked went away.
        let _ = told.send(line).await;
    });
    Ok(lines(progress))
}

async fn run_export(
    vm: &Vm,
    disk: &DiskSpec,
    of: Option<CheckpointSpec>,
    wanted: &ExportDisk,
    told: &mpsc::Sender<JobLine<ExportedDisk>>,
) -> Result<ExportedDisk, Problem> {
    let spec = machine(vm)?.spec;
    let checkpoint = match of {
        Some(of) => of,
        None => {
            // It is merged from the start: a polluxd that is started meanwhile goes on with that.
            let checkpoint = new_checkpoint(&spec, None, now(), true)?;
            let made = checkpoint.clone();
            vm.ask(|answer| Message::ExportPoint {
                checkpoint: made,
                answer,
            })
            .await?;
            checkpoint
        }
    };
    let source = export::Source {
        thing: disk_thing(&spec, disk),
        socket: vm.supervisor.nbd_socket(disk.slot),
        export: format!("checkpoint/{}", checkpoint.id),
        size: disk.size,
    };
    source.wait(&vm.supervisor, checkpoint.id).await?;
    let (file, format, told) = (wanted.file.clone(), wanted.format, told.clone());
    let exported = blocking(move || {
        let whole = export::run(&source, &file, format, |progress| {
            told.blocking_send(JobLine::Progress(progress)).is_ok()
        })?;
        export::publish(&[whole])
    });
    let mut exported = exported.await.map_err(|Refusal(problem)| problem)?;
    Ok(exported.remove(0))
}

pub(super) async fn upgrade(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<VmDetails> {
    let vm = host.find(&vm)?;
    let _alone = vm.disks.lock().await;
    change(&vm, Change::Upgrade).await?;
    vms::details(&vm).await
}

async fn change(vm: &Vm, change: Change) -> Result<(), Problem> {
    vm.ask(|answer| Message::Change { change, answer }).await
}

/// What can be started, and so has disks here.
fn machine(vm: &Vm) -> Result<VmFolder, Problem> {
    let view = vm.view();
    view.home.machine.clone().ok_or_else(|| {
        Problem::new(
            Code::Conflict,
            view.thing(),
            "is the replica of another host's VM, so its disks are not here",
            "Ask on its primary host; `pollux point list` shows the recovery points here",
        )
    })
}

async fn told(vm: &Vm, disk: &str) -> Result<VmDisk, Problem> {
    let view = vm.view();
    let id = find_disk(&view.home.spec, disk)?.id;
    let status = vm.supervisor.diskd_status().await;
    let mut all = disks(&view, status.as_ref()).into_iter();
    let gone = || {
        Problem::new(
            Code::NotFound,
            view.thing(),
            "has no such disk any more",
            "",
        )
    };
    all.find(|disk| disk.id == id).ok_or_else(gone)
}

/// The disks of a VM.
pub(super) fn disks(view: &View, status: Option<&DiskdStatus>) -> Vec<VmDisk> {
    let spec = &view.home.spec;
    let tell = |disk: &DiskSpec| {
        let file = match &view.home.machine {
            Some(machine) => machine.lowest(disk),
            None => view.home.place.journal(),
        };
        let overlays = disk.overlays.iter().filter_map(|overlay| {
            let mut checkpoints = spec.checkpoints.iter();
            let checkpoint = checkpoints.find(|one| one.id == overlay.checkpoint)?;
            let file = view.home.machine.as_ref()?.overlay_files(overlay).0;
            Some(DiskOverlay {
                checkpoint: checkpoint.id,
                name: checkpoint.name.clone(),
                time: checkpoint.time,
                merging: checkpoint.merging,
                allocated: allocated(&file),
                file,
            })
        });
        let now = status.and_then(|status| status.disks.iter().find(|now| now.id == disk.id));
        VmDisk {
            slot: disk.slot,
            bus: disk.bus,
            id: disk.id,
            allocated: allocated(&file),
            file,
            size: disk.size,
            overlays: overlays.collect(),
            waiting_for_room: now.map(|now| now.waiting_for_room),
        }
    };
    spec.disks.iter().map(tell).collect()
}

/// The checkpoints of a VM, the oldest first.
pub(super) fn all_checkpoints(view: &View) -> Vec<Checkpoint> {
    let disks = disks(view, None);
    let overlays = || disks.iter().flat_map(|disk| &disk.overlays);
    let tell = |one: &CheckpointSpec| {
        let of = overlays().filter(|overlay| overlay.checkpoint == one.id);
        let taken = of.filter_map(|overlay| overlay.allocated);
        Checkpoint {
            id: one.id,
            name: one.name.clone(),
            time: one.time,
            merging: one.merging,
            allocated: Bytes(taken.map(|taken| taken.0).sum()),
        }
    };
    view.home.spec.checkpoints.iter().map(tell).collect()
}

/// Space that a file takes.
pub(super) fn allocated(file: &PathBuf) -> Option<Bytes> {
    let meta = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
    Some(Bytes(meta.blocks().saturating_mul(512)))
}
