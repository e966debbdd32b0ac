//! The owner's part in what is agreed on about who may run: a lease, at either host, and whether the
//! VM starts without an answer.
//!
//! ```text
//!   lease=N:  standing durable --> asked for ([`super::lease`]) --> the replica's standing durable
//!   none:     the replica's standing durable --> standing durable
//! ```

use std::time::Duration;

use api::{EventKind, Severity};
use model::{Code, FenceChoice, Lineage, Problem, RelationshipId, StartUnasked};
use replica::client::PeerLink;
use replica::lease::{Fence, Grant};
use replica::link::LinkError;
use replica::run::{Evidence, must_hold, starts_unasked};
use replica::standing::Role;
use replica::wire::{Contact, ContactAnswer, LeaseAnswer, LeaseRequest};

use super::handle::Answer;
use super::owner::{Happening, Owner, refuse};
use crate::event::Draft;
use crate::partner::PROBE_LIMIT;

/// What the question to hold to no lease any more came to.
#[derive(Debug)]
pub(super) struct Release {
    relationship: RelationshipId,
    asked: LeaseRequest,
    outcome: Result<ContactAnswer, LinkError>,
    answer: Answer,
}

impl Owner {
    /// Holds to a lease from now on, durably; `theirs` is the agreement that the replica knows.
    pub(super) fn agree_lease(&mut self, fence: Fence, theirs: u64) -> Result<(), Problem> {
        let view = self.view();
        let first = view.standing.fence.is_none();
        let next = view.standing.hold_to(&view.thing(), fence, theirs)?;
        let (term, agreement) = (next.lineage.current().number, next.agreement);
        self.store(next)?;
        let now = self.host.clock.now();
        let held = view.leasing.grant();
        let grant = Grant::agreed(held, first, term, now, fence);
        view.leasing.agreed(agreement, grant);
        Ok(())
    }

    /// A person wants another fence.
    pub(super) async fn fence(&mut self, wanted: FenceChoice, answer: Answer) {
        let relation = match self.sending(&self.view()) {
            Ok(relation) => relation,
            Err(problem) => return refuse(answer, problem),
        };
        let view = self.view();
        let asked = match wanted {
            FenceChoice::Lease(seconds) => {
                let done = Fence::new(seconds).and_then(|fence| match view.standing.fence {
                    Some(same) if same == fence => Ok(()),
                    _ => self.agree_lease(fence, 0),
                });
                self.apply_lease().await;
                let _ = answer.send(done);
                return;
            }
            FenceChoice::None if view.standing.fence.is_none() => {
                let _ = answer.send(Ok(()));
                return;
            }
            FenceChoice::None => match view.standing.next_agreement(0) {
                Ok(agreement) => LeaseRequest {
                    agreement,
                    fence: None,
                },
                Err(problem) => return refuse(answer, problem),
            },
        };
        let link = PeerLink::new(self.host.client(&relation.partner), self.id, relation.id);
        let contact = Contact {
            lease: Some(asked),
            ..Contact::of(view.standing.lineage)
        };
        self.spawn(async move {
            let outcome = link.meet(&contact, PROBE_LIMIT).await;
            Happening::Release(Box::new(Release {
                relationship: relation.id,
                asked,
                outcome,
                answer,
            }))
        });
    }

    /// The replica was asked to count on no lease any more.
    pub(super) async fn released(&mut self, release: Release) {
        let view = self.view();
        let thing = view.thing();
        let (partner, id) = match &view.relation {
            Some(relation) => (relation.partner.clone(), Some(relation.id)),
            None => (String::new(), None),
        };
        let name = view.home.spec.name.as_str();
        let done = match release.outcome {
            Ok(answer) => match answer.lease {
                Some(lease) if lease.granted && id == Some(release.relationship) => {
                    let agreement = release.asked.agreement;
                    self.store(view.standing.released(agreement))
                        .inspect(|()| view.leasing.agreed(agreement, None))
                }
                _ => {
                    let reason = format!("is under a lease that host `{partner}` does not end");
                    let way_out =
                        format!("try again with `pollux replica set {name} --fence none`");
                    Err(Problem::new(Code::Conflict, thing, reason, way_out))
                }
            },
            Err(LinkError::Refused(problem)) => Err(problem),
            Err(LinkError::Lost(problem)) => {
                let reason = format!(
                    "is under a lease on which host `{partner}` counts, which {}",
                    problem.reason
                );
                let way_out = format!(
                    "try again when it answers; if you know that it is lost, `pollux replica \
                     remove {name} --force --because STATEMENT` ends the replication"
                );
                Err(Problem::new(Code::Unreachable, thing, reason, way_out))
            }
        };
        self.apply_lease().await;
        // Fails only when nobody waits for it any more.
        let _ = release.answer.send(done);
    }

    /// The primary of the lineage `theirs` asks something about a lease.
    pub(super) fn promise(
        &mut self,
        theirs: &Lineage,
        asked: LeaseRequest,
    ) -> Result<LeaseAnswer, Problem> {
        let view = self.view();
        let (next, answer) = view.standing.answer_lease(theirs, asked);
        let Some(next) = next.filter(|_| !self.ending) else {
            return Ok(LeaseAnswer {
                granted: false,
                ..answer
            });
        };
        self.store(next)?;
        if asked.fence.is_some() {
            view.leasing.promised(self.host.clock.now());
        }
        self.say_unleased(false);
        Ok(answer)
    }

    /// A person chooses whether it starts when its partner gives no answer.
    pub(super) fn start_unasked(&mut self, choice: StartUnasked) -> Result<(), Problem> {
        let view = self.view();
        self.sending(&view)?;
        self.store(view.standing.let_start_unasked(&view.thing(), choice)?)
    }

    /// It starts although nobody knows whether its partner took over.
    pub(super) fn say_started_unasked(&self) {
        let view = self.view();
        let chosen = starts_unasked(&view.standing) && view.standing.warrant.is_none();
        let Some(relation) = view.relation.filter(|_| chosen) else {
            return;
        };
        let name = view.home.spec.name.as_str();
        let what = format!(
            "is started although host `{}` does not answer: if that host took over, two run until \
             they are in contact",
            relation.partner
        );
        let draft = Draft {
            way_out: format!(
                "`pollux replica set {name} --start-unasked deny` lets it wait for an answer"
            ),
            ..Draft::new(EventKind::StartedUnasked, Severity::Warning, name, what)
        };
        self.host.events.record(draft.about(self.id));
    }

    /// What evidence is worth at this moment, under a lease.
    pub(super) fn weigh_lease(&self, evidence: &Evidence) -> Evidence {
        let view = self.view();
        let (standing, now) = (&view.standing, self.host.clock.now());
        match evidence {
            Evidence::Leased(says) if must_hold(standing, view.leasing.grant(), now) => {
                Evidence::Says(says.clone())
            }
            Evidence::Unreachable(_) if standing.role == Role::Replica => match standing.fence {
                Some(fence) => match view.leasing.takeover_in(fence, now) {
                    Duration::ZERO => Evidence::LeaseExpired,
                    left => Evidence::LeaseHolds(left),
                },
                None => evidence.clone(),
            },
            other => other.clone(),
        }
    }

    /// Whether the guest has no lease, or at the replica: whether the primary's is over.
    pub(super) fn say_unleased(&self, unleased: bool) {
        let view = self.seen.borrow().clone();
        if view.unleased == unleased {
            return;
        }
        self.show(|view| view.unleased = unleased);
        let (Some(relation), fence) = (&view.relation, view.standing.fence) else {
            return;
        };
        let peer = &relation.partner;
        let name = view.home.spec.name.as_str();
        let replica = view.standing.role == Role::Replica;
        let seconds = fence.map_or(0, u32::from);
        let (kind, severity, what, way_out) = match (unleased, replica) {
            (true, true) => (
                EventKind::LeaseOver,
                Severity::Warning,
                format!(
                    "host `{peer}` has not renewed its lease of {seconds} s: its guest is held \
                     still, and this host may take over"
                ),
                format!("`pollux failover start {name}` does, if it does not come back"),
            ),
            (true, false) => (
                EventKind::LeaseOver,
                Severity::Error,
                format!(
                    "host `{peer}` has not answered for {seconds} s, so the guest is held still: \
                     that host may take over"
                ),
                format!(
                    "it goes on by itself when host `{peer}` answers; see that polluxd and the \
                     network there are up"
                ),
            ),
            (false, true) => (
                EventKind::LeaseRenewed,
                Severity::Info,
                format!("host `{peer}` renews its lease again"),
                String::new(),
            ),
            (false, false) => (
                EventKind::LeaseRenewed,
                Severity::Info,
                "the guest is held for the want of a lease no longer".to_owned(),
                String::new(),
            ),
        };
        let draft = Draft {
            way_out,
            ..Draft::new(kind, severity, name, what)
        };
        self.host.events.record(draft.about(self.id));
    }
}
