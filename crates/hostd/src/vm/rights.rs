//! The owner's part in the question who may run: the standing, stored before anything rests
//! on it, and the guest held still when the partner took over.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use model::{Code, Lineage, Problem, RelationshipId, VmState};
use replica::run::Evidence;
use replica::standing::{Role, Standing, Warrant};
use replica::wire::PartnerStanding;
use tokio::time::{Instant, timeout, timeout_at};

use super::handle::Answer;
use super::owner::{Happening, Owner, refuse};
use super::progress;
use super::replicate::Driver;
use super::source;
use super::state::{self, Event};
use super::succession;
use super::unsent::Unsent;
use crate::partner;

/// A superseded guest is held still within this time, or killed: within a second either way.
const HOLD_LIMIT: Duration = Duration::from_millis(800);
/// How long the driver has to send the last when this host is asked to stand down: less
/// than [`partner::PROBE_LIMIT`], so that the asker hears of it.
const SEND_LIMIT: Duration = Duration::from_secs(2);

/// A request to stand down, when it is known whether everything was sent.
pub(super) struct Yielding {
    asked: Lineage,
    /// What it was when the request came.
    round: u64,
    relationship: RelationshipId,
    begun: Instant,
    /// None when it was refused already.
    answer: Option<Answer>,
    /// Whether the twin has everything.
    sent: Result<(), Problem>,
}

impl Owner {
    /// Takes into account what the partner said, durably.
    pub(super) fn heed(&self, evidence: &Evidence) -> Result<(), Problem> {
        let view = self.view();
        if let Evidence::Says(theirs) | Evidence::Leased(theirs) = evidence {
            let told = theirs.stood_down.as_ref();
            let met = view
                .standing
                .meet(&view.thing(), &theirs.lineage, told)?
                .standing;
            self.store(met.without_replica(theirs, met.agreement))?;
        }
        Ok(())
    }

    /// Who may run, decided and durable.
    pub(super) fn decide(&self, evidence: &Evidence) -> Result<(), Problem> {
        self.heed(evidence)?;
        let view = self.view();
        let thing = view.thing();
        let standing = self.seen.borrow().standing.clone();
        let used = progress::reserved(&view.home.path)?;
        let next = standing.take_back(&thing, used, self.host.name(), evidence)?;
        self.store(succession::dated(&standing, next))
    }

    /// Stores a standing durably, if it differs, before anything rests on it.
    pub(super) fn store(&self, mut next: Standing) -> Result<(), Problem> {
        let view = self.seen.borrow();
        // It comes after what lies there, whatever it was made of.
        next.stamp = view.standing.stamp;
        if view.standing == next {
            return Ok(());
        }
        let (thing, home) = (view.thing(), &view.home.path);
        let stored = self.host.stamps.store(self.id, &thing, home, &next)?;
        drop(view);
        self.show(|view| view.standing = stored);
        Ok(())
    }

    pub(super) async fn contact(
        &mut self,
        theirs: &Lineage,
        opened: Option<Timestamp>,
    ) -> Result<PartnerStanding, Problem> {
        let view = self.view();
        let met = view.standing.meet(&view.thing(), theirs, None)?;
        self.met(met, opened).await?;
        let view = self.view();
        Ok(view.standing.tell(view.state != VmState::Off))
    }

    /// Holds the guest still at once; it was succeeded.
    ///
    /// # Errors
    /// It may go on: nothing may be recorded or told that says otherwise, so that it is tried again.
    pub(super) async fn gate(&mut self) -> Result<(), Problem> {
        let Some(guest) = &self.guest else {
            if let Some(cancel) = self.cancel.take() {
                // Fails only when the launch is done, and then the guest is held once it is watched.
                let _ = cancel.send(());
            }
            if self.doubt {
                self.end_guest();
            }
            return Ok(());
        };
        if self.state() == VmState::Paused {
            // Whatever held it: it does not go on by itself.
            self.forget_room();
            return Ok(());
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
                // What is shown says by whom it was succeeded.
                self.show(|view| view.trouble = None);
            }
            false => {
                tracing::warn!(vm = %self.id, "killed: its partner took over");
                self.supervisor.kill_guest().await.inspect_err(|problem| {
                    tracing::error!(vm = %self.id, %problem, "cannot kill the guest");
                })?;
            }
        }
        Ok(())
    }

    /// Stands down, unless something would be lost: what the twin does not have is made sure of
    /// first, without disturbing the driver as long as it has something to send.
    pub(super) fn stand_down(&mut self, asked: Lineage, answer: Answer) {
        let view = self.view();
        let runs = view.state != VmState::Off;
        if let Err(problem) = view.standing.stand_down(&view.thing(), &asked, runs) {
            return refuse(answer, problem);
        }
        let Some(relation) = view.relation.as_ref().filter(|_| view.is_sent()) else {
            let _ = answer.send(self.give_way(&asked));
            return;
        };
        let unsent = Unsent {
            thing: view.thing(),
            socket: self.supervisor.diskd_socket(),
            home: view.home.path.clone(),
            relationship: relation.id,
            left_out: source::left_out(&relation.configuration(&view.home.spec)),
        };
        let mut yielding = Yielding {
            asked,
            round: self.round,
            relationship: relation.id,
            begun: Instant::now(),
            answer: Some(answer),
            sent: Ok(()),
        };
        let mut driver = self.driver.as_ref().map(Driver::handle);
        self.spawn(async move {
            yielding.sent = unsent
                .seen_by(yielding.begun + SEND_LIMIT, driver.as_mut())
                .await;
            if yielding.sent.is_err() {
                return Happening::Sent(yielding);
            }
            if let Some(driver) = driver {
                driver.stop();
                let limit = yielding.begun + SEND_LIMIT;
                if timeout_at(limit, driver.ended()).await.is_err() {
                    if let Some(answer) = yielding.answer.take() {
                        refuse(answer, unsent.unknown("some is being read"));
                    }
                    driver.ended().await;
                }
            }
            yielding.sent = unsent.counted().await;
            Happening::Sent(yielding)
        });
    }

    /// It is known whether the twin has everything.
    pub(super) fn sent(&mut self, yielding: Yielding) {
        if let Some(answer) = yielding.answer {
            let view = self.view();
            let relationship = view.relation.map(|relation| relation.id);
            let same = yielding.round == self.round
                && relationship == Some(yielding.relationship)
                && yielding.begun.elapsed() < partner::PROBE_LIMIT;
            let meanwhile = || {
                let reason = "was changed, or was too slow, while it was asked to stand down";
                Problem::new(Code::Conflict, self.thing(), reason, "Try again")
            };
            let done = yielding
                .sent
                .and_then(|()| if same { Ok(()) } else { Err(meanwhile()) })
                .and_then(|()| self.give_way(&yielding.asked));
            // Fails only when nobody waits for it any more.
            let _ = answer.send(done);
        }
        self.drive();
    }

    fn give_way(&mut self, asked: &Lineage) -> Result<(), Problem> {
        let view = self.view();
        let runs = view.state != VmState::Off;
        self.store(view.standing.stand_down(&view.thing(), asked, runs)?)?;
        tracing::info!(vm = %self.id, "stood down for its partner");
        self.stop_driver();
        self.settle();
        Ok(())
    }

    /// Locks the VM, which is off, for its partner to take over as planned, and sends the last changes.
    pub(super) fn prepare_failover(&self) -> Result<(), Problem> {
        let view = self.view();
        let runs = view.state != VmState::Off;
        self.store(view.standing.prepare_failover(&view.thing(), runs)?)?;
        if let Some(driver) = &self.driver {
            driver.handle().hurry();
        }
        Ok(())
    }

    pub(super) fn cancel_failover(&self) -> Result<(), Problem> {
        let view = self.view();
        self.store(view.standing.cancel_failover(&view.thing())?)
    }

    /// Whether the partner may not know yet that this host took over, or knows more of its own, or of what
    /// happened since the folder was backed up that was restored here.
    pub(super) fn must_tell(&self) -> bool {
        let view = self.seen.borrow();
        let standing = &view.standing;
        let unknown = match (standing.role, standing.warrant) {
            (Role::FailedOver, warrant) => warrant != Some(Warrant::StoodDown),
            (_, warrant) => warrant == Some(Warrant::Override),
        };
        let asks = unknown || standing.restored.is_some() || succession::is_unclear(standing);
        view.relation.is_some() && !self.telling && asks
    }

    /// Tells the partner that this host took over: it may have no reason of its own to ask soon.
    pub(super) fn tell_partner(&mut self) {
        self.telling = true;
        let view = self.view();
        let host = Arc::clone(&self.host);
        self.spawn(async move { Happening::Told(partner::evidence(&host, &view, None).await) });
    }

    pub(super) async fn told(&mut self, evidence: Evidence) {
        self.telling = false;
        let Evidence::Says(theirs) = evidence else {
            tracing::debug!(vm = %self.id, ?evidence, "the partner does not know of the takeover");
            return;
        };
        if let Err(problem) = self.heard(&theirs).await {
            tracing::error!(vm = %self.id, %problem, "the partner's answer is of no use");
        }
    }

    /// The partner answered how it stands.
    pub(super) async fn heard(&mut self, theirs: &PartnerStanding) -> Result<(), Problem> {
        let view = self.view();
        let stood_down = theirs.stood_down.as_ref();
        let met = view
            .standing
            .meet(&view.thing(), &theirs.lineage, stood_down)?;
        self.met(met, theirs.opened).await
    }

    pub(super) async fn superseded(&mut self, lineage: &Lineage) -> Result<(), Problem> {
        let view = self.view();
        let met = view.standing.superseded(&view.thing(), lineage)?;
        self.met(met, None).await
    }
}
