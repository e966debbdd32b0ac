//! The owner's part in the question who may run: the standing, stored before anything rests
//! on it, and the guest held still when the partner took over.

use std::time::Duration;

use model::{Lineage, Problem, VmState};
use replica::run::Evidence;
use replica::standing::{self, Standing};
use replica::wire::PartnerStanding;
use tokio::time::timeout;

use super::owner::Owner;
use super::state::{self, Event};

/// A superseded guest is held still within this time, or killed.
const HOLD_LIMIT: Duration = Duration::from_millis(500);

impl Owner {
    /// Who may run, decided and durable.
    pub(super) fn decide(&self, evidence: &Evidence) -> Result<(), Problem> {
        let view = self.view();
        let thing = view.thing();
        if let Evidence::Says(theirs) = evidence {
            let told = theirs.stood_down.as_ref();
            self.store(view.standing.meet(&thing, &theirs.lineage, told)?.standing)?;
        }
        let standing = self.seen.borrow().standing.clone();
        self.store(standing.start(&thing, evidence)?)
    }

    /// Stores a standing durably, if it differs, before anything rests on it.
    pub(super) fn store(&self, next: Standing) -> Result<(), Problem> {
        let view = self.seen.borrow();
        if view.standing == next {
            return Ok(());
        }
        next.store(&view.home.path.join(standing::FILE))
            .map_err(|error| Problem::failed(view.thing(), &error))?;
        drop(view);
        self.show(|view| view.standing = next);
        Ok(())
    }

    pub(super) async fn contact(&mut self, theirs: &Lineage) -> Result<PartnerStanding, Problem> {
        let view = self.view();
        let met = view.standing.meet(&view.thing(), theirs, None)?;
        if met.gate {
            self.gate().await;
        }
        self.store(met.standing)?;
        let view = self.view();
        Ok(view.standing.tell(view.state != VmState::Off))
    }

    /// Holds the guest still at once; it was succeeded.
    pub(super) async fn gate(&mut self) {
        let Some(guest) = &self.guest else {
            if let Some(cancel) = self.cancel.take() {
                let _ = cancel.send(());
            }
            return;
        };
        if self.state() == VmState::Paused {
            return;
        }
        let held = async {
            match &guest.qmp {
                Some(qmp) => matches!(timeout(HOLD_LIMIT, qmp.stop()).await, Ok(Ok(()))),
                None => false,
            }
        };
        match held.await {
            true => {
                tracing::warn!(vm = %self.id, "held still: its partner took over");
                self.enter(state::after(self.state(), Event::Held));
                self.show(|view| {
                    view.trouble = Some("held still: its partner took over".to_owned());
                });
            }
            false => {
                tracing::warn!(vm = %self.id, "killed: its partner took over");
                if let Err(problem) = self.supervisor.kill_guest().await {
                    tracing::error!(vm = %self.id, %problem, "cannot kill the guest");
                }
            }
        }
    }

    pub(super) fn stand_down(&mut self, asked: &Lineage) -> Result<(), Problem> {
        let view = self.view();
        let runs = view.state != VmState::Off;
        self.store(view.standing.stand_down(&view.thing(), asked, runs)?)?;
        tracing::info!(vm = %self.id, "stood down for its partner");
        self.stop_driver();
        self.settle();
        Ok(())
    }

    pub(super) async fn superseded(&mut self, lineage: &Lineage) -> Result<(), Problem> {
        let view = self.view();
        let met = view.standing.superseded(&view.thing(), lineage)?;
        if met.gate {
            self.gate().await;
        }
        self.store(met.standing)
    }
}
