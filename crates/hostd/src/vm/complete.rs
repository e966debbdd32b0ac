//! The owner's part in completing a failover: the VM comes to lie on disks of its own.
//!
//! ```text
//!   point 5 in the journal        journal: only 5       disks: base files         raw disks
//!   + overlay, a checkpoint  -->  + overlay        -->  + overlay            -->
//!                        shrink               flatten                  merge, forget
//! ```
//!
//! That it is to be completed is durable before anything else is done ([`Standing::complete`]). What comes
//! next is told by what is there ([`next`]), so that it goes on after a crash at any instant. The guest may
//! run or not, and notices nothing.
//!
//! | step | done by | durable in |
//! |---|---|---|
//! | track | [`super::reverse`], if there is a partner | diskd's log, `replication.toml` |
//! | shrink | [`Store::keep_only`], [`Store::link`] | the journal's index; names of the base files |
//! | flatten | [`Change::Flatten`] | `vm.toml`, then `origin.toml`; diskd is asked to go there |
//! | merge | [`Change::Merge`], as of any checkpoint | `vm.toml`, maps of the overlays |
//! | forget | [`Store::remove`] | `origin.toml` goes, then the journal |
//!
//! [`Standing::complete`]: replica::standing::Standing::complete

use std::path::PathBuf;
use std::time::Duration;

use model::{CheckpointId, Code, DiskId, PointId, Problem};
use replica::standing::Role;

use super::change::Change;
use super::folder::VmFolder;
use super::handle::{Message, View};
use super::owner::{Happening, Owner};
use crate::twin::{Store, not_a_twin};

/// After a failure it is tried again this often.
const AGAIN: Duration = Duration::from_secs(5);

/// What the failed-over VM's former host lacks must be known before it is merged.
fn must_track(view: &View, machine: &VmFolder) -> bool {
    let above = machine.origin.as_ref().is_some_and(|origin| !origin.flat);
    let relation = view.relation.as_ref();
    above && relation.is_some_and(|relation| !relation.back.is_some_and(|back| back.tracked))
}

/// How far the points are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Completing {
    pub(crate) done: u64,
    pub(crate) total: u64,
    /// Why it does not go on at the moment.
    pub(crate) stuck: Option<Problem>,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the point all that the journal holds, and give its files their second names.
    Shrink(PointId),
    /// Merge the checkpoint of what was written since.
    Merge(CheckpointId),
    /// The origin is history, and the journal goes.
    Forget,
}

/// What was done of a step in the background.
pub(super) enum Stepped {
    /// The files of disks that cannot lie in the VM's folder.
    Shrunk(Vec<(DiskId, PathBuf)>),
    Forgotten(Box<VmFolder>),
}

/// What a failed-over VM needs to be complete, if anything, unless it is being merged. `left`: whether
/// something of the journal is there.
pub(super) fn next(machine: &VmFolder, left: bool) -> Option<Step> {
    let Some(origin) = &machine.origin else {
        return left.then_some(Step::Forget);
    };
    if !origin.flat {
        return Some(Step::Shrink(origin.point));
    }
    let of_it = |id: &CheckpointId| {
        let mut all = machine.spec.checkpoints.iter();
        all.any(|one| one.id == *id)
    };
    match origin.checkpoint.filter(of_it) {
        Some(checkpoint) => Some(Step::Merge(checkpoint)),
        None => Some(Step::Forget),
    }
}

impl Owner {
    /// Decides that the failover is final, durably, and goes about it.
    pub(super) fn complete(&mut self) -> Result<(), Problem> {
        self.take_place()?;
        let view = self.view();
        let thing = view.thing();
        let completed = view.standing.complete(&thing)?;
        let refuse = |reason: &str, way_out: &str| {
            Err(Problem::new(Code::Conflict, &thing, reason, way_out))
        };
        let origin = view
            .home
            .machine
            .as_ref()
            .and_then(|machine| machine.origin.as_ref());
        let Some(origin) = origin else {
            if view.standing.completed {
                return Ok(());
            }
            return refuse(
                "lies on disks of its own: it has no failover to complete",
                "",
            );
        };
        if view.standing.completed {
            return Ok(());
        }
        if origin.checkpoint.is_none() {
            return refuse(
                "was failed over by an older Pollux, which kept no checkpoint of that",
                "Export its disks with `pollux disk export`, and make a VM of them",
            );
        }
        let Some(store) = self.store.clone() else {
            return Err(not_a_twin(&view));
        };
        tokio::task::block_in_place(|| store.close())?;
        if let Err(problem) = self.store(completed) {
            tokio::task::block_in_place(|| store.reopen());
            return Err(problem);
        }
        tracing::info!(vm = %self.id, point = %origin.point, "the failover is final");
        self.go_on_completing();
        Ok(())
    }

    /// Takes the next step, if there is one and nothing else is done with the disks.
    pub(super) fn go_on_completing(&mut self) {
        let view = self.view();
        if !view.standing.completed || view.standing.role == Role::Replica {
            return;
        }
        let Some((machine, store)) = view.home.machine.clone().zip(self.store.clone()) else {
            return self.completed();
        };
        if self.completing || self.changing || view.merging_checkpoint().is_some() {
            return;
        }
        if must_track(&view, &machine) {
            return self.track_back();
        }
        let left = tokio::task::block_in_place(|| store.is_left());
        match next(&machine, left) {
            None => self.completed(),
            Some(Step::Shrink(point)) => {
                self.show(|view| {
                    view.completing.get_or_insert_default();
                });
                let seen = self.seen.clone();
                self.step(move || shrink(&machine, &store, point, &seen));
            }
            Some(Step::Merge(checkpoint)) => {
                // Readers of points would read what the VM writes now.
                tokio::task::block_in_place(|| store.end());
                self.change_to_complete(Change::Merge(checkpoint));
            }
            Some(Step::Forget) => self.step(move || forget(machine, &store)),
        }
    }

    /// From now on it is known what the former host lacks, should it become the replica.
    fn track_back(&mut self) {
        let backwards = match self.backwards() {
            Ok(backwards) => backwards,
            Err(problem) => return self.stuck(problem),
        };
        self.completing = true;
        self.spawn(async move { Happening::Tracked(backwards.track().await) });
    }

    pub(super) fn tracked(&mut self, done: Result<(), Problem>) {
        self.completing = false;
        match done.and_then(|()| self.note_tracked()) {
            Ok(()) => self.go_on_completing(),
            Err(problem) => self.stuck(problem),
        }
    }

    /// Does something in the background.
    fn step(&mut self, work: impl FnOnce() -> Result<Stepped, Problem> + Send + 'static) {
        self.completing = true;
        let thing = self.thing();
        self.spawn(async move {
            let done = tokio::task::spawn_blocking(work).await;
            let done = done.unwrap_or_else(|error| Err(Problem::failed(thing, &error)));
            Happening::Stepped(done)
        });
    }

    pub(super) fn stepped(&mut self, done: Result<Stepped, Problem>) {
        self.completing = false;
        match done {
            Ok(Stepped::Shrunk(files)) => self.change_to_complete(Change::Flatten(files)),
            Ok(Stepped::Forgotten(machine)) => {
                tracing::info!(vm = %self.id, "lies on disks of its own");
                self.show(|view| view.home.machine = Some(*machine));
                self.go_on_completing();
            }
            Err(problem) => self.stuck(problem),
        }
    }

    fn change_to_complete(&mut self, change: Change) {
        let planned = self
            .changeable(&change)
            .and_then(|old| Ok((change.plan(&old.spec, self.guest.is_some())?, old)));
        match planned {
            Ok((spec, old)) => self.carry_out(change, old, spec, None),
            Err(problem) => self.stuck(problem),
        }
    }

    /// It is tried again.
    pub(super) fn stuck(&mut self, problem: Problem) {
        tracing::warn!(vm = %self.id, %problem, "the failover is not complete yet");
        self.show(|view| {
            view.trouble = Some(problem.to_string());
            view.completing.get_or_insert_default().stuck = Some(problem);
        });
        let me = self.me.clone();
        tokio::spawn(async move {
            tokio::time::sleep(AGAIN).await;
            // Fails only when the owner has ended.
            let _ = me.send(Message::GoOn).await;
        });
    }

    fn completed(&mut self) {
        if self.seen.borrow().completing.is_some() {
            self.show(|view| {
                view.completing = None;
                view.trouble = None;
            });
        }
        let settled = self.view().standing.settled();
        if let Err(problem) = self.store(settled) {
            self.stuck(problem);
        }
    }
}

impl View {
    /// Whether a failover is being completed.
    pub(crate) fn is_completing(&self) -> bool {
        let machine = self.home.machine.as_ref();
        self.standing.completed && machine.is_some_and(|machine| machine.origin.is_some())
    }
}

fn shrink(
    machine: &VmFolder,
    store: &Store,
    point: PointId,
    seen: &tokio::sync::watch::Sender<View>,
) -> Result<Stepped, Problem> {
    store.keep_only(point, |done, total| {
        seen.send_modify(|view| {
            view.completing = Some(Completing {
                done: done as u64,
                total: total as u64,
                stuck: None,
            });
        });
    })?;
    Ok(Stepped::Shrunk(store.link(machine)?))
}

fn forget(machine: VmFolder, store: &Store) -> Result<Stepped, Problem> {
    let failed = |error: std::io::Error| Problem::failed(machine.thing(), &error);
    machine.forget_origin().map_err(failed)?;
    store.remove()?;
    Ok(Stepped::Forgotten(Box::new(VmFolder {
        origin: None,
        ..machine
    })))
}

#[cfg(test)]
#[path = "complete_tests.rs"]
pub(super) mod tests;
