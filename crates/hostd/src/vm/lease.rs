//! The owner's part in leases: asking for them, holding the guest still without one, and what a
//! replica promised.
//!
//! ```text
//!   primary's owner                                     replica's owner
//!     renewing (a task): asks, often enough --contact--> stores, promises: not before L + margin
//!       Renewed <----------------- granted -------------'         |
//!     grant --> vmd: the guest may run until then                 '--> over: may be taken over
//!     its end --> QEMU stops the processors --> vmd: Held
//!                   '--- does not answer ---> vmd stops the process
//! ```
//!
//! The rules are [`replica::lease`] and [`replica::run`]. What a person chose is durable in the
//! standing before anything is asked; grants and promises are in memory only. A polluxd that starts
//! has the end of the grant from vmd, and has promised until now.

use std::time::Duration;

use model::{Problem, RelationshipId, VmState};
use replica::client::PeerLink;
use replica::lease::{BootTime, Grant};
use replica::link::LinkError;
use replica::run::must_hold;
use replica::standing::{Role, Warrant};
use replica::wire::{Contact, ContactAnswer, LeaseRequest};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use vmd::control::Lease;

use super::handle::View;
use super::leasing::{pace, question};
use super::owner::{Happening, Owner};
use super::state::{self, Event};

/// How long QEMU may take to hold the guest still; then vmd stops it.
const HOLD_LIMIT: Duration = Duration::from_millis(400);
/// How long QEMU may take to let the guest go on.
const GO_ON_LIMIT: Duration = Duration::from_secs(10);
/// After this long it is looked again whether a guest that QEMU does not hold is stopped.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What a guest is told to be that has no lease.
const UNLEASED: &str = "held still: its replica has not renewed its lease";

/// What the owner does about the lease of its guest.
#[derive(Debug, Default)]
pub(super) struct Leasehold {
    renewing: Option<Renewing>,
    /// Whether the guest is held because it has no lease.
    pub(super) held: bool,
    /// Whether something else held it then.
    paused_before: bool,
    /// Whether QEMU was asked to hold it for that, and has not answered in time: it may yet do so.
    asked: bool,
    /// What vmd was told.
    told: Option<Lease>,
    /// When it is tried again to hold the guest.
    again: Option<Instant>,
}

impl Leasehold {
    /// Whether the guest is held because it has no lease, or may be.
    pub(super) fn is_ours(&self) -> bool {
        self.held || self.asked
    }
}

/// Asks for leases until it is dropped.
#[derive(Debug)]
struct Renewing {
    relationship: RelationshipId,
    asked: LeaseRequest,
    task: JoinHandle<()>,
}

impl Drop for Renewing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a question for a lease came to.
#[derive(Debug)]
pub(super) struct Renewal {
    relationship: RelationshipId,
    at: BootTime,
    asked: LeaseRequest,
    answer: Result<ContactAnswer, LinkError>,
}

impl Owner {
    /// Asks for leases as long as there is one.
    pub(super) fn follow_lease(&mut self) {
        let wanted = {
            let view = self.seen.borrow();
            let relation = view.relation.as_ref().filter(|_| !self.ending);
            let relation = relation.map(|relation| (relation.id, relation.partner.clone()));
            relation.zip(question(&view))
        };
        let known = self.lease.renewing.as_ref();
        let known = known.map(|known| (known.relationship, known.asked));
        if known == wanted.as_ref().map(|((id, _), asked)| (*id, *asked)) {
            return;
        }
        self.lease.renewing = wanted.and_then(|((relationship, partner), asked)| {
            let link = PeerLink::new(self.host.client(&partner), self.id, relationship);
            let (limit, pause) = pace(asked.fence?);
            let (clock, seen, happen) =
                (self.host.clock, self.seen.subscribe(), self.happen.clone());
            let task = tokio::spawn(async move {
                loop {
                    let contact = {
                        let standing = &seen.borrow().standing;
                        Contact {
                            opened: standing.opened,
                            lease: Some(asked),
                            ..Contact::of(standing.lineage.clone())
                        }
                    };
                    let at = clock.now();
                    let answer = link.meet(&contact, limit).await;
                    let renewal = Renewal {
                        relationship,
                        at,
                        asked,
                        answer,
                    };
                    if happen.send(Happening::Renewal(renewal)).await.is_err() {
                        return;
                    }
                    sleep(pause).await;
                }
            });
            Some(Renewing {
                relationship,
                asked,
                task,
            })
        });
    }

    /// The replica answered, or did not.
    pub(super) async fn renewed(&mut self, renewal: Renewal) {
        let view = self.view();
        let relation = view.relation.as_ref();
        if relation.map(|relation| relation.id) != Some(renewal.relationship) {
            return;
        }
        match renewal.answer {
            Ok(answer) => {
                let heard = self.heard(&answer.standing).await;
                let taken = heard.and_then(|()| self.take(renewal.at, renewal.asked, &answer));
                if let Err(problem) = taken {
                    tracing::error!(vm = %self.id, %problem, "its lease is not renewed");
                }
            }
            Err(error) => tracing::debug!(vm = %self.id, %error, "its lease is not renewed"),
        }
        self.apply_lease().await;
    }

    /// Takes in what a replica answered to what was asked at `at`.
    fn take(
        &mut self,
        at: BootTime,
        asked: LeaseRequest,
        answer: &ContactAnswer,
    ) -> Result<(), Problem> {
        let (view, says) = (self.view(), &answer.standing);
        let standing = view.standing.without_replica(says, asked.agreement);
        if standing != view.standing {
            tracing::warn!(vm = %self.id, "its partner is no replica any more, and renews no lease");
            return self.store(standing);
        }
        let (Some(fence), Some(lease)) = (asked.fence, answer.lease) else {
            return Ok(());
        };
        if lease.granted && asked.agreement == standing.agreement {
            let term = says.lineage.current().number;
            let grant = Grant::answered(term, at, fence);
            view.leasing.take(grant, asked.agreement);
        } else if standing.must_agree_anew(says, lease) {
            return self.agree_lease(fence, lease.agreement);
        }
        Ok(())
    }

    /// A guest was found for which vmd has this lease.
    pub(super) fn found_lease(&mut self, lease: Lease) {
        let view = self.view();
        self.lease.told = Some(lease);
        if let (Lease::Until { at }, None) = (lease, view.leasing.grant()) {
            let boot = self.host.clock.boot();
            let term = view.standing.lineage.current().number;
            let until = Some(BootTime { boot, at });
            view.leasing.set(Some(Grant { term, until }));
        }
    }

    /// A guest was found that was held because it has no lease.
    pub(super) fn found_unleased(&mut self) {
        self.lease.held = true;
        self.lease.paused_before = false;
        self.show(|view| view.trouble = Some(UNLEASED.to_owned()));
        self.say_unleased(true);
    }

    /// There is no guest any more that could be held.
    pub(super) fn forget_hold(&mut self) {
        (self.lease.held, self.lease.asked) = (false, false);
        self.lease.told = None;
        self.say_unleased(false);
    }

    /// There is room for what a guest writes that is held for the want of a lease, too.
    pub(super) fn held_no_longer_but_for_lease(&mut self) {
        self.lease.paused_before = false;
        self.show(|view| view.trouble = Some(UNLEASED.to_owned()));
    }

    /// When something is to be done about the lease.
    pub(super) fn lease_wakes(&self) -> Option<Instant> {
        let view = self.seen.borrow();
        let fence = view.standing.fence?;
        let now = self.host.clock.now();
        let left = match view.standing.role {
            Role::Replica if view.unleased => return None,
            Role::Replica => view.leasing.takeover_in(fence, now),
            _ if self.guest.is_none() || self.is_held_unleased() => return None,
            _ if view.standing.warrant == Some(Warrant::Override) => return None,
            _ => {
                let grant = view.leasing.grant();
                let left = grant.and_then(|grant| grant.left(now));
                left.filter(|_| !must_hold(&view.standing, grant, now))
                    .unwrap_or_default()
            }
        };
        let due = Instant::now() + left;
        Some(self.lease.again.map_or(due, |again| due.max(again)))
    }

    fn is_held_unleased(&self) -> bool {
        self.lease.held && self.state() == VmState::Paused
    }

    /// Holds the guest still or lets it go on, as the lease says now, and lets vmd know.
    pub(super) async fn apply_lease(&mut self) {
        let view = self.view();
        let (standing, now) = (&view.standing, self.host.clock.now());
        self.lease.again = None;
        if standing.role == Role::Replica {
            let left = standing
                .fence
                .map(|fence| view.leasing.takeover_in(fence, now));
            return self.say_unleased(left == Some(Duration::ZERO));
        }
        if self.guest.is_none() {
            (self.lease.held, self.lease.asked) = (false, false);
            self.say_unleased(false);
            if !self.is_launching() {
                self.lease.told = None;
                return;
            }
            return self.tell_vmd(view.leasing.for_vmd(standing)).await;
        }
        let over = must_hold(standing, view.leasing.grant(), now);
        if over && !self.is_held_unleased() {
            self.hold_unleased().await;
        } else if !over && self.lease.is_ours() && standing.stood_down.is_none() {
            self.let_go_on(&view).await;
        }
        let held = self.lease.held || standing.stood_down.is_some();
        let lease = match view.leasing.for_vmd(standing) {
            Lease::Until { .. } if held && self.state() == VmState::Paused => Lease::Held,
            lease => lease,
        };
        self.tell_vmd(lease).await;
    }

    /// The guest has no lease: it is held still at once, and stays so until the next one.
    async fn hold_unleased(&mut self) {
        let Some(guest) = &self.guest else { return };
        let is_paused = self.state() == VmState::Paused;
        let paused_before = is_paused && !self.lease.asked;
        if !is_paused {
            let stopped = match &guest.qmp {
                Some(qmp) => matches!(timeout(HOLD_LIMIT, qmp.stop()).await, Ok(Ok(()))),
                None => false,
            };
            if !stopped && !self.is_frozen().await {
                (self.lease.asked, self.lease.paused_before) = (true, false);
                self.lease.again = Some(Instant::now() + LOOK_AGAIN);
                return;
            }
            self.enter(state::after(self.state(), Event::Held));
        }
        if self.state() != VmState::Paused {
            return;
        }
        tracing::warn!(vm = %self.id, paused_before, "held still: it has no lease");
        (self.lease.held, self.lease.asked) = (true, false);
        self.lease.paused_before = paused_before;
        if !paused_before {
            self.show(|view| view.trouble = Some(UNLEASED.to_owned()));
        }
        self.say_unleased(true);
    }

    /// Whether vmd has stopped the process of QEMU.
    async fn is_frozen(&self) -> bool {
        let status = timeout(HOLD_LIMIT, self.supervisor.status()).await;
        matches!(status, Ok(Ok(Some(status))) if status.frozen)
    }

    /// The guest has a lease again.
    async fn let_go_on(&mut self, view: &View) {
        // First, for it may have stopped the process.
        let lease = view.leasing.for_vmd(&view.standing);
        self.tell_vmd(lease).await;
        let Some(guest) = self
            .guest
            .as_ref()
            .filter(|_| self.lease.told == Some(lease))
        else {
            return;
        };
        let goes_on = match &guest.qmp {
            _ if self.lease.paused_before => true,
            Some(qmp) => matches!(timeout(GO_ON_LIMIT, qmp.cont()).await, Ok(Ok(()))),
            None => {
                // Found stopped, so nothing is connected.
                self.look_for_guest();
                true
            }
        };
        if !goes_on {
            tracing::error!(vm = %self.id, "QEMU does not let the guest go on; tried again");
            return;
        }
        tracing::info!(vm = %self.id, "its lease was renewed: the guest goes on");
        (self.lease.held, self.lease.asked) = (false, false);
        self.say_unleased(false);
    }

    async fn tell_vmd(&mut self, lease: Lease) {
        if self.lease.told == Some(lease) {
            return;
        }
        match timeout(HOLD_LIMIT, self.supervisor.lease(lease)).await {
            Ok(Ok(())) => self.lease.told = Some(lease),
            Ok(Err(problem)) => {
                tracing::warn!(vm = %self.id, %problem, "its supervisor does not know of its lease");
            }
            Err(_elapsed) => tracing::warn!(vm = %self.id, "its supervisor does not answer"),
        }
    }
}
