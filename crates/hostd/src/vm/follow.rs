//! The owner's part in following the primary: what the VM is, and how it is replicated.
//!
//! ```text
//!   primary: vm.toml, replication.toml --Configure--> vm.toml --> replication.toml, with its revision
//! ```
//!
//! Killed between the two files, it still tells the revision of before and is sent the same again.

use model::{Code, DiskId, DiskSpec, Problem, VmSpec};
use replica::standing::Role;
use replica::wire::{Configuration, Configure};

use super::create::no_space_or;
use super::folder::VmFolder;
use super::handle::Answer;
use super::owner::{Owner, refuse};
use super::relation::Relation;

impl Owner {
    /// Makes the twin as the primary wants it.
    pub(super) fn follow(&mut self, wanted: Configure) -> Result<(), Problem> {
        let view = self.view();
        let thing = view.thing();
        let relation = match &view.relation {
            Some(relation) if view.standing.role == Role::Replica => relation.clone(),
            _ => {
                let reason = "is no replica on this host";
                return Err(Problem::new(Code::Conflict, thing, reason, ""));
            }
        };
        if view.home.machine.is_some() {
            // Asked again, the answer is that it was taken over, or it is the replica as before.
            let reason = "is being failed over";
            return Err(Problem::new(Code::Failed, thing, reason, ""));
        }
        let Configuration {
            spec,
            disks,
            frequency_s,
            keep,
        } = wanted.configuration;
        // Held until the name is seen as the VM's.
        let _name = match view.home.spec.name == spec.name {
            true => None,
            false => Some(self.host.reserve(&spec.name)?),
        };
        let folder = VmFolder {
            path: view.home.path.clone(),
            spec,
            origin: None,
        };
        let former = self.former(&relation, &view.home.spec, &folder.spec)?;
        let relation = Relation { former, ..relation };
        if view.relation.as_ref() != Some(&relation) {
            // Before the disks that are gone leave vm.toml.
            self.relate(relation.clone())?;
        }
        folder
            .write()
            .map_err(|error| no_space_or(&thing, &error))?;
        self.show(|view| view.home.spec = folder.spec.clone());
        self.relate(Relation {
            disks,
            every_s: frequency_s,
            keep,
            revision: Some(wanted.revision),
            ..relation
        })?;
        tracing::info!(vm = %self.id, "follows what was changed on its primary host");
        Ok(())
    }

    /// The disks that are gone with `next`, and that points have.
    fn former(
        &self,
        relation: &Relation,
        before: &VmSpec,
        next: &VmSpec,
    ) -> Result<Vec<DiskSpec>, Problem> {
        let stays = |disk: &DiskSpec| next.disks.iter().any(|other| other.id == disk.id);
        if relation.former.is_empty() && before.disks.iter().all(stays) {
            return Ok(Vec::new());
        }
        let points = match &self.store {
            Some(store) => tokio::task::block_in_place(|| store.points())?,
            None => Vec::new(),
        };
        let held = points.iter().flat_map(|point| &point.disks);
        let held: Vec<DiskId> = held.map(|disk| disk.id).collect();
        Ok(relation.former(before, next, &held))
    }

    /// The primary gave its initial replication up. True when the owner ends.
    pub(super) async fn cancelled_there(&mut self, answer: Answer) -> bool {
        let view = self.view();
        let points = match (&self.store, view.standing.role) {
            (Some(store), Role::Replica) => store.points(),
            _ => {
                let reason = "is no replica on this host";
                Err(Problem::new(Code::Conflict, view.thing(), reason, ""))
            }
        };
        let done = points.and_then(|points| match points.len() {
            0 => Ok(()),
            n => Err(Problem::new(
                Code::Conflict,
                view.thing(),
                format!("has {n} recovery points on host `{}`", self.host.name()),
                "`pollux replica remove` ends the replication; the twin is deleted on its own host",
            )),
        });
        match done {
            Ok(()) => {
                // Not in its folder, which goes in one step: a kill before that leaves what the
                // primary cancels again.
                self.show(|view| view.relation = None);
                let ended = self.delete(false, answer).await;
                if !ended {
                    self.show(|seen| seen.relation.clone_from(&view.relation));
                }
                ended
            }
            Err(problem) => {
                refuse(answer, problem);
                false
            }
        }
    }
}
