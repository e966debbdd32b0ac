//! The owner's part in disks: one change at a time, carried out beside it.
//!
//! ```text
//!   Change --plan--> vm.toml durable --> diskd --> guest (QMP) ----> view: what is in force
//!                        ^                 | refused  | refused
//!                        '-----------------+----------'  the earlier ones are put back
//!   a disk that goes: guest lets it go first --> vm.toml --> diskd
//! ```
//!
//! While a change is carried out, whatever would begin or end the VM's processes waits. A crash of
//! polluxd leaves `vm.toml` as it was before or after; the next one brings that into force
//! ([`Change::Converge`]), plugs in what is missing and removes overlays that nothing names.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::{Bytes, CheckpointId, CheckpointSpec, Code, DiskId, DiskSpec, Problem, VmState};
use qemu::{Disk, Qmp, Unplugged};
use tokio::sync::mpsc;

use super::access;
use super::change::{Change, disk_thing, stems};
use super::create::no_space_or;
use super::folder::{Made, VmFolder};
use super::handle::{Answer, Message, View};
use super::merge;
use super::owner::{Happening, Owner, refuse};
use super::supervisor::Supervisor;
use super::tracking;
use crate::host::Host;

/// How long a guest has to let a disk go.
const UNPLUG: Duration = Duration::from_secs(30);

/// A change that was carried out, or not.
pub(super) struct Changed {
    /// What is in force now.
    folder: VmFolder,
    done: Result<(), Problem>,
    /// None when nobody waits for it.
    answer: Option<Answer>,
}

impl Owner {
    pub(super) fn change(&mut self, change: Change, answer: Answer) {
        let planned = self
            .changeable(&change)
            .and_then(|old| Ok((change.plan(&old.spec, self.guest.is_some())?, old)));
        match planned {
            Ok((spec, old)) => self.carry_out(change, old, spec, Some(answer)),
            Err(problem) => refuse(answer, problem),
        }
    }

    /// The folder, if this change of it can be made now.
    pub(super) fn changeable(&self, change: &Change) -> Result<VmFolder, Problem> {
        let view = self.view();
        let thing = view.thing();
        let refuse = |reason: &str, way_out: &str| {
            Err(Problem::new(Code::Conflict, thing.clone(), reason, way_out))
        };
        let Some(machine) = view.home.machine.clone() else {
            return refuse(
                "is the replica of another host's VM",
                "Change its disks on its primary host",
            );
        };
        let machine = match view.state {
            VmState::Off if !self.changing && !self.doubt => self.read_again(&machine)?,
            _ => machine,
        };
        if self.changing {
            return refuse("has its disks changed at the moment", "Try again");
        }
        if let Some(checkpoint) = view.merging_checkpoint() {
            if !matches!(change, Change::Drop(_)) && !self.exporting_only(&view) {
                let reason = format!("is merging checkpoint `{}`", checkpoint.name);
                return refuse(
                    &reason,
                    "Wait until that is done; `pollux disk merge` shows it",
                );
            }
        }
        if self.exports > 0 && !matches!(change, Change::Converge) {
            return refuse(
                "has a disk that is being exported",
                "Wait until that is done",
            );
        }
        if let (Change::Merge(id), Some(origin)) = (change, &machine.origin) {
            if origin.checkpoint == Some(*id) && !origin.flat {
                let way_out = format!(
                    "`pollux failover complete {}` merges it, once you are sure of the point",
                    view.home.spec.name
                );
                return refuse(
                    "lies above a recovery point right below that checkpoint",
                    &way_out,
                );
            }
        }
        if change.changes_hardware() {
            if let Some(relation) = &view.relation {
                let seeding = self.is_seeding()?;
                if let Some((reason, way_out)) = relation.refuses(change, seeding) {
                    return refuse(reason, way_out);
                }
            }
            if machine.origin.is_some() {
                let reason = "lies above a recovery point, which has its disks as they are";
                let way_out = match &machine.origin {
                    Some(origin) if origin.made == Made::Failover && view.standing.completed => {
                        "Wait until its failover is complete"
                    }
                    Some(origin) if origin.made == Made::Failover => {
                        "`pollux failover complete` gives it disks of its own"
                    }
                    _ => "",
                };
                return refuse(reason, way_out);
            }
        }
        match (view.state, change) {
            (VmState::Off, _) => {}
            (_, Change::Apply { .. }) => {
                let way_out =
                    "Stop it first with `pollux vm stop`, or end it with `pollux vm kill`";
                return refuse("is not off, so its disks cannot be taken back", way_out);
            }
            (VmState::Running | VmState::Paused, _) if !self.doubt && self.guest.is_some() => {}
            (VmState::Running | VmState::Paused, _) => {
                return refuse("has processes that do not answer", "");
            }
            (VmState::Starting | VmState::Stopping, _) => {
                return refuse("is being started or shut down", "Wait until that is done");
            }
        }
        Ok(machine)
    }

    /// Whether what is to be merged only waits for the end of an export.
    fn exporting_only(&self, view: &View) -> bool {
        self.exports > 0 && view.merge.is_none()
    }

    /// Brings what `vm.toml` says into force, after polluxd was started.
    pub(super) fn converge(&mut self) {
        let Some(folder) = self.view().home.machine else {
            return;
        };
        // Nobody answers; it is done when somebody does.
        if self.doubt || self.changing {
            return;
        }
        let spec = folder.spec.clone();
        self.carry_out(Change::Converge, folder, spec, None);
    }

    /// The guest let a disk go that it was asked for, later than anybody waited.
    pub(super) fn let_go(&mut self, id: DiskId) {
        // Of a guest that has ended, disks were not let go but lost.
        if self.guest.is_none() {
            return;
        }
        let change = Change::Remove(id);
        let planned = self
            .changeable(&change)
            .and_then(|old| Ok((change.plan(&old.spec, self.guest.is_some())?, old)));
        match planned {
            Ok((spec, old)) => self.carry_out(change, old, spec, None),
            // It was detached meanwhile, or has to stay: a checkpoint holds it.
            Err(problem) => {
                tracing::info!(vm = %self.id, %problem, "let go by the guest too late");
                self.converge();
            }
        }
    }

    pub(super) fn carry_out(
        &mut self,
        change: Change,
        old: VmFolder,
        spec: model::VmSpec,
        answer: Option<Answer>,
    ) {
        self.changing = true;
        let view = self.view();
        let guest = self.guest.as_ref().and_then(|guest| guest.qmp.clone());
        let mut next = VmFolder {
            spec,
            ..old.clone()
        };
        if let (Change::Flatten(_), Some(origin)) = (&change, &mut next.origin) {
            origin.flat = true;
        }
        let work = Work {
            host: Arc::clone(&self.host),
            supervisor: self.supervisor.clone(),
            next,
            old,
            term: view.standing.lineage.current().number,
            served: view.is_sent(),
            guest: guest.filter(|_| view.state != VmState::Off),
            change,
            me: self.me.clone(),
        };
        tracing::info!(vm = %self.id, change = ?work.change, "disks change");
        self.spawn(async move {
            let done = work.carry_out().await;
            let folder = if done.is_ok() { work.next } else { work.old };
            let swept = folder.clone();
            // What cannot be removed now goes with the next change.
            let swept = tokio::task::spawn_blocking(move || {
                sweep(&swept).and_then(|()| tracking::sweep(&swept))
            });
            let _ = swept.await;
            Happening::Changed(Box::new(Changed {
                folder,
                done,
                answer,
            }))
        });
    }

    pub(super) fn changed(&mut self, changed: Changed) {
        self.changing = false;
        let Changed {
            folder,
            done,
            answer,
        } = changed;
        self.show(|view| {
            view.home.spec = folder.spec.clone();
            view.home.machine = Some(folder);
        });
        let failed = done.is_err();
        let retried = answer.is_none() && self.view().is_completing();
        if let Err(problem) = &done {
            if retried {
                self.stuck(problem.clone());
            }
            tracing::warn!(vm = %self.id, %problem, "disks not changed");
            if answer.is_none() {
                let reason = problem.reason.clone();
                self.show(|view| view.trouble = Some(reason));
            }
        }
        if let Some(answer) = answer {
            // Fails only when nobody waits for it any more.
            let _ = answer.send(done);
        }
        // What ended meanwhile, and what is to be served and sent now.
        self.settle();
        self.merge();
        if !(failed && retried) {
            self.go_on_completing();
        }
    }

    /// Goes on with a merge, if there is one to be made.
    pub(super) fn merge(&mut self) {
        let view = self.view();
        let (Some(checkpoint), Some(machine)) = (view.merging_checkpoint(), &view.home.machine)
        else {
            self.show(|view| view.merge = None);
            return;
        };
        if self.changing || self.exports > 0 || view.merge.is_some() {
            return;
        }
        let of = |disk: &&DiskSpec| {
            let mut overlays = disk.overlays.iter();
            overlays.any(|overlay| overlay.checkpoint == checkpoint.id)
        };
        let disks = machine.spec.disks.iter().filter(of);
        let merge = merge::Merge {
            vm: self.id,
            supervisor: self.supervisor.clone(),
            checkpoint: checkpoint.id,
            disks: disks.map(|disk| disk.id).collect(),
            seen: self.seen.clone(),
        };
        self.show(|view| view.merge = Some(merge::Merging::default()));
        let id = checkpoint.id;
        self.spawn(async move {
            merge.run().await;
            Happening::Merged(id)
        });
    }

    /// All of a checkpoint lies in what is below it.
    pub(super) fn merged(&mut self, checkpoint: CheckpointId) {
        self.show(|view| view.merge = None);
        let change = Change::Drop(checkpoint);
        let planned = self
            .changeable(&change)
            .and_then(|old| Ok((change.plan(&old.spec, false)?, old)));
        match planned {
            // A guest that was faster is merged once more.
            Ok((spec, old)) => self.carry_out(change, old, spec, None),
            Err(problem) => {
                tracing::debug!(vm = %self.id, %problem, "merged, and not dropped yet");
                let me = self.me.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(merge::AGAIN).await;
                    // Fails only when the owner has ended.
                    let _ = me.send(Message::GoOn).await;
                });
            }
        }
    }

    pub(super) fn export_begins(&mut self, answer: Answer) {
        let done = self.changeable(&Change::Upgrade).map(|_| self.exports += 1);
        if done.is_ok() && self.guest.is_none() {
            self.settle();
        }
        // Fails only when nobody waits for it any more.
        let _ = answer.send(done);
    }

    pub(super) fn export_point(&mut self, checkpoint: CheckpointSpec, answer: Answer) {
        let change = Change::Checkpoint(checkpoint);
        let planned = self
            .view()
            .home
            .machine
            .ok_or_else(|| Problem::new(Code::Conflict, self.thing(), "has no disks here", ""));
        let planned = planned.and_then(|old| Ok((change.plan(&old.spec, true)?, old)));
        match planned {
            Ok((spec, old)) => self.carry_out(change, old, spec, Some(answer)),
            Err(problem) => refuse(answer, problem),
        }
    }

    pub(super) fn export_ends(&mut self) {
        self.exports = self.exports.saturating_sub(1);
        self.merge();
        if self.guest.is_none() {
            self.settle();
        }
    }
}

/// A change as it is carried out.
struct Work {
    host: Arc<Host>,
    supervisor: Supervisor,
    old: VmFolder,
    next: VmFolder,
    term: u64,
    /// Whether the disks must be served: what changes is marked by whom serves them.
    served: bool,
    guest: Option<Qmp>,
    change: Change,
    me: mpsc::Sender<Message>,
}

impl Work {
    async fn carry_out(&self) -> Result<(), Problem> {
        // Whoever serves them marks what becomes another content.
        if self.served && matches!(self.change, Change::Apply { .. } | Change::Resize(..)) {
            let budget = self.host.settings.copy_budget;
            let programs = &self.host.programs;
            self.supervisor
                .ensure(programs, &self.old, self.term, budget, self.host.uses_kvm())
                .await?;
        }
        match &self.change {
            Change::Remove(id) => {
                let going = self.old.spec.disks.iter().find(|disk| disk.id == *id);
                if let Some(disk) = going {
                    self.unplug(disk).await?;
                }
                let put = self.put(&self.next, false).await;
                if put.is_err() {
                    // The first problem is the one that matters.
                    let _ = self.plug_all(&self.old).await;
                }
                put
            }
            Change::Add(_) => {
                self.put(&self.next, false).await?;
                let plugged = self.plug_all(&self.next).await;
                if plugged.is_err() {
                    self.put(&self.old, false).await?;
                }
                plugged
            }
            Change::Resize(id, size) => {
                let disk = self.old.spec.disks.iter().find(|disk| disk.id == *id);
                if let Some(disk) = disk {
                    let (file, size) = (self.old.disk_file(disk), *size);
                    let thing = disk_thing(&self.old.spec, disk);
                    blocking(move || grow(&thing, &file, size)).await?;
                }
                self.put(&self.next, false).await
            }
            Change::Converge => {
                self.supervisor_takes(&self.next, false).await?;
                self.plug_all(&self.next).await?;
                self.unplug_others().await
            }
            Change::Upgrade => {
                self.host.programs.try_diskd().await?;
                self.supervisor_takes(&self.next, true).await
            }
            Change::Flatten(_) => {
                let disks = self.next.spec.disks.iter();
                let files = disks.map(|disk| self.next.disk_file(disk));
                let outside: Vec<_> = files
                    .filter(|file| !file.starts_with(&self.next.path))
                    .collect();
                for folder in outside
                    .iter()
                    .flat_map(|file| file.ancestors().skip(1).take(2))
                {
                    access::let_pass(folder)
                        .map_err(|error| Problem::failed(folder.display().to_string(), &error))?;
                }
                // What runs may not write there: it was started without.
                self.put(&self.next, !outside.is_empty()).await
            }
            Change::Checkpoint(_)
            | Change::Apply { .. }
            | Change::Merge(_)
            | Change::MergeAll { .. }
            | Change::Drop(_) => {
                let folder = self.next.checkpoints();
                let thing = self.next.thing();
                blocking(move || {
                    durable::create_folder(&folder).map_err(|error| no_space_or(&thing, &error))
                })
                .await?;
                self.put(&self.next, false).await
            }
        }
    }

    /// Writes `vm.toml`, then brings it into force; undone if that is refused.
    async fn put(&self, folder: &VmFolder, anew: bool) -> Result<(), Problem> {
        write(folder.clone()).await?;
        let taken = self.supervisor_takes(folder, anew).await;
        if taken.is_err() {
            let other = if *folder == self.next {
                &self.old
            } else {
                &self.next
            };
            write(other.clone()).await?;
            if self.guest.is_some() {
                let (programs, kvm) = (&self.host.programs, self.host.uses_kvm());
                self.supervisor.give(programs, other, kvm);
            }
        }
        taken
    }

    async fn supervisor_takes(&self, folder: &VmFolder, anew: bool) -> Result<(), Problem> {
        let (programs, budget) = (&self.host.programs, self.host.settings.copy_budget);
        let kvm = self.host.uses_kvm();
        self.supervisor
            .bring_into_force(programs, folder, self.term, budget, kvm, anew)
            .await
    }

    /// Plugs in what `folder` has and the guest lacks.
    async fn plug_all(&self, folder: &VmFolder) -> Result<(), Problem> {
        let Some(qmp) = &self.guest else {
            return Ok(());
        };
        let thing = folder.thing();
        let failed = |error| Problem::failed(&thing, &error);
        let plugged = qmp.plugged().await.map_err(failed)?;
        let paths = self.supervisor.qemu_paths(folder);
        for disk in &folder.spec.disks {
            if disk.bus.is_hot() && !plugged.contains(&disk.slot) {
                let device = Disk::new(&folder.spec, disk, &paths)
                    .map_err(|error| Problem::failed(&thing, &error))?;
                qmp.plug(&device).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Takes away what the guest has and `vm.toml` does not say.
    async fn unplug_others(&self) -> Result<(), Problem> {
        let Some(qmp) = &self.guest else {
            return Ok(());
        };
        let failed = |error| Problem::failed(self.next.thing(), &error);
        for slot in qmp.plugged().await.map_err(failed)? {
            if self.next.spec.disks.iter().all(|disk| disk.slot != slot) {
                qmp.unplug(slot, UNPLUG).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    async fn unplug(&self, disk: &DiskSpec) -> Result<(), Problem> {
        let Some(qmp) = &self.guest else {
            return Ok(());
        };
        let thing = disk_thing(&self.old.spec, disk);
        let refuse = |reason: &str, way_out: &str| {
            Err(Problem::new(Code::Conflict, thing.clone(), reason, way_out))
        };
        let asked = qmp.unplug(disk.slot, UNPLUG).await;
        if matches!(asked, Ok(Unplugged::Late)) {
            let (qmp, me, disk) = (qmp.clone(), self.me.clone(), disk.clone());
            tokio::spawn(async move {
                if qmp.unplugged(disk.slot).await.is_ok() {
                    // Fails only when the owner has ended.
                    let _ = me.send(Message::LetGo(disk.id)).await;
                }
            });
        }
        match asked {
            Ok(Unplugged::Gone) => Ok(()),
            Ok(Unplugged::Refused) => refuse(
                "is not let go by the guest",
                "Unmount it in the guest, or stop the VM first",
            ),
            Ok(Unplugged::Late) => refuse(
                "was not let go by the guest in time; it is detached when the guest does so",
                "Try again once the guest has started and uses it no more, or stop the VM first",
            ),
            Err(error) => Err(Problem::failed(thing, &error)),
        }
    }
}

async fn write(folder: VmFolder) -> Result<(), Problem> {
    blocking(move || {
        folder
            .write()
            .map_err(|error| no_space_or(&folder.thing(), &error))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Problem::failed("polluxd", &error)),
    }
}

/// Makes a raw file as long as the disk will be, durably. Longer than the disk it may stay.
fn grow(thing: &str, file: &Path, size: Bytes) -> Result<(), Problem> {
    let fail = |error: io::Error| no_space_or(thing, &error);
    let mut opened = std::fs::OpenOptions::new()
        .write(true)
        .open(file)
        .map_err(fail)?;
    let meta = opened.metadata().map_err(fail)?;
    let len = io::Seek::seek(&mut opened, io::SeekFrom::End(0)).map_err(fail)?;
    if len >= size.0 {
        return Ok(());
    }
    if !meta.is_file() {
        return Err(Problem::new(
            Code::Conflict,
            thing,
            format!("lies on {}, which has {}", file.display(), Bytes(len)),
            "Make that larger first",
        ));
    }
    opened.set_len(size.0).map_err(|error| {
        Problem::new(
            Code::Invalid,
            thing,
            format!("cannot be given {size}: {error}"),
            "The file system may not hold files of that size; choose a smaller one",
        )
    })?;
    opened.sync_all().map_err(fail)
}

/// Removes overlays that nothing names, in the VM's own folder of them.
fn sweep(folder: &VmFolder) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder.checkpoints()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let named: HashSet<_> = stems(&folder.spec)
        .into_iter()
        .map(|stem| folder.path.join(stem))
        .collect();
    for entry in entries {
        let path = entry?.path();
        let ours = path
            .extension()
            .is_some_and(|ending| ending == "overlay" || ending == "map");
        if ours && !named.contains(&path.with_extension("")) {
            tracing::info!(file = %path.display(), "removing what no checkpoint names");
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}
