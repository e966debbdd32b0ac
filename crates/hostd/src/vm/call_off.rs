//! The owner's part in calling a failover off; and on the host that gave way to it, in going on where it was.
//!
//! ```text
//!   failed over, off                              stood down, off
//!   what diskd knew of what is above the point    start: the partner is the replica, as it says
//!     goes                                          --> a new term is named, durable
//!     --> role of the replica durable               --> the partner stands down for it
//!     --> failover/ goes, and its pin     |         --> term and lineage durable
//!            this decides                           --> asked again, as for any start
//! ```
//!
//! Killed before it is decided, the VM lies above the point, as after a reboot. Afterwards it is the replica,
//! and what is left of the folder goes when polluxd starts ([`super::takeover::tidy`]).

use std::sync::Arc;

use api::{EventKind, Severity};
use model::{Code, Problem, VmState};
use replica::run::Evidence;
use tokio::runtime::Handle;

use super::folder::VmFolder;
use super::handle::{Answer, View};
use super::owner::{Happening, Owner};
use super::progress;
use super::succession;
use super::takeover::undo;
use crate::event::Draft;
use crate::partner;
use crate::twin::{Store, not_a_twin};

impl Owner {
    /// Makes the VM that was failed over to this host the twin again that it was.
    pub(super) fn call_off(&mut self, dropping: bool, answer: Answer) {
        // Fails only when nobody waits for it any more.
        let _ = answer.send(self.become_replica(dropping));
    }

    fn become_replica(&mut self, dropping: bool) -> Result<(), Problem> {
        let view = self.view();
        let store = self.may_call_off(&view, dropping)?;
        let home = &view.home.path;
        let received = VmFolder::read(home)?.spec;
        // Held until the name is seen as the twin's.
        let _name = match view.home.spec.name == received.name {
            true => None,
            false => Some(self.host.reserve(&received.name)?),
        };
        self.end_back(view.relation.clone())?;
        tokio::task::block_in_place(|| {
            // Nobody could reach what lives in the run folder once that is gone.
            Handle::current().block_on(self.supervisor.shut_down())?;
            self.take_place()?;
            // What its diskd kept there is about the disks that go.
            let run = self.supervisor.run();
            if run.exists() {
                let failed = |error| Problem::failed(run.display().to_string(), &error);
                std::fs::remove_dir_all(run).map_err(failed)?;
            }
            store.take_over(|newest| {
                let newest = newest.ok_or_else(|| not_a_twin(&view))?;
                let next = view.standing.call_off(&view.thing(), newest, false)?;
                self.store(next)
            })
        })?;
        let machine = self.view().home.machine;
        self.show(|view| {
            view.trouble = None;
            view.home.spec = received;
            view.home.machine = None;
        });
        if let Some(machine) = machine {
            tokio::task::block_in_place(|| undo(&store, &machine));
        }
        self.say_called_off();
        Ok(())
    }

    fn may_call_off(&self, view: &View, dropping: bool) -> Result<Store, Problem> {
        let thing = view.thing();
        view.standing.revocable(&thing)?;
        let Some(store) = self.store.clone() else {
            return Err(not_a_twin(view));
        };
        let newest = tokio::task::block_in_place(|| store.newest())?;
        let runs = view.state != VmState::Off;
        view.standing.call_off(&thing, newest, runs)?;
        // Whoever took it back is no replica of this one.
        let kept = view.standing.stood_down.is_none();
        let relation = view.relation.as_ref().filter(|_| kept);
        if let Some(relation) = relation.filter(|one| one.back.is_some()) {
            let (partner, name) = (&relation.partner, &view.home.spec.name);
            let reason = format!(
                "was to be replicated back: host `{partner}` may be its replica already, in another \
                 relationship"
            );
            let way_out = format!(
                "`pollux failover reverse {name}` goes on with that; to leave that first, `pollux failover \
                 start {name} --point POINT` goes to another point"
            );
            return Err(Problem::new(Code::Conflict, thing, reason, way_out));
        }
        self.may_drop(dropping, "the other host does not have")?;
        Ok(store)
    }

    fn say_called_off(&self) {
        let view = self.view();
        let partner = view.standing.partner.as_deref().unwrap_or_default();
        let what = format!(
            "the failover to this host is called off: it is the replica again of host `{partner}`, and what \
             was written since is gone"
        );
        tracing::info!(vm = %self.id, what);
        let name = view.home.spec.name.as_str();
        let draft = Draft::new(EventKind::CalledOff, Severity::Warning, name, what);
        self.host.events.record(draft.about(self.id));
    }

    /// Asks a partner that is the replica to stand down, if this host stood down for it. True: that is under
    /// way, and its answer decides.
    pub(super) fn ask_to_return(&mut self, evidence: &Evidence) -> Result<bool, Problem> {
        if !self.view().standing.may_return(evidence) {
            return Ok(false);
        }
        self.heed(evidence)?;
        let view = self.view();
        let used = progress::reserved(&view.home.path)?;
        let (thing, host) = (view.thing(), self.host.name());
        self.store(view.standing.prepare_return(&thing, used, host)?)?;
        self.returning = true;
        let (host, view, round) = (Arc::clone(&self.host), self.view(), self.round);
        self.spawn(async move {
            Happening::Evidence(round, partner::stand_down(&host, &view, None).await)
        });
        Ok(true)
    }

    /// Opens the term for which the partner stood down, if it did, and goes on with the start.
    pub(super) fn return_by(&mut self, evidence: &Evidence) -> Result<(), Problem> {
        let view = self.view();
        let next = view.standing.take_over(&view.thing(), evidence, None)?;
        let fence = next.fence;
        self.store(succession::dated(&view.standing, next))?;
        if let Some(fence) = fence {
            // The partner counts on none since it took over.
            self.agree_lease(fence, 0)?;
        }
        tracing::info!(vm = %self.id, "goes on in a new term: the failover was called off");
        let (host, view, round) = (Arc::clone(&self.host), self.view(), self.round);
        self.spawn(async move {
            Happening::Evidence(round, partner::evidence_to_start(&host, &view, None).await)
        });
        Ok(())
    }
}
