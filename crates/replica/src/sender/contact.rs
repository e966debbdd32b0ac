//! Contact with the partner beside everything else: whether it took over is not left to the next
//! segment, which may be minutes away, nor to a person who resumes.

use std::time::Duration;

use model::Code;

use super::{Now, Output, Sender, State, Wait};
use crate::link::LinkError;
use crate::run::{Rank, rank};
use crate::standing::Role;
use crate::wire::ContactAnswer;

/// From one contact to the next.
pub const CONTACT: Duration = Duration::from_secs(1);
/// The same, at most, while no answer comes.
pub const LONGEST_CONTACT: Duration = Duration::from_secs(5);

/// Contact with the partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contact {
    /// To be made then.
    Due(Duration),
    /// Asked, and no answer yet.
    Asked,
}

impl Sender {
    /// Whether the guest may run, as far as this sender knows.
    fn keeps_contact(&self) -> bool {
        !matches!(
            self.state,
            State::Gating(_)
                | State::StoodDown
                | State::Waiting {
                    wait: Wait::Gate(_),
                    ..
                }
        )
    }

    pub(super) fn contacted(
        &mut self,
        now: Now,
        answer: Result<ContactAnswer, LinkError>,
        out: &mut Vec<Output>,
    ) {
        let pause = match &answer {
            Ok(_) => {
                self.unanswered = 0;
                CONTACT
            }
            Err(_) => {
                let pause = CONTACT.saturating_mul(1 << self.unanswered.min(3));
                self.unanswered = self.unanswered.saturating_add(1);
                pause.min(LONGEST_CONTACT)
            }
        };
        self.contact = Contact::Due(now.since_start + pause);
        let ContactAnswer {
            standing: theirs,
            reception,
            lease: _,
        } = match answer {
            Ok(answer) => answer,
            Err(LinkError::Refused(problem)) if problem.code == Code::NotFound => {
                return self.ended_there(out);
            }
            Err(_) => return,
        };
        let above = match theirs.role {
            Role::Replica => None,
            _ => rank(&self.plan.lineage, &theirs.lineage),
        };
        if above == Some(Rank::Theirs) && self.keeps_contact() {
            self.gate(theirs.lineage, out);
        } else if above == Some(Rank::Ours) && self.plan.base_stays && theirs.role == Role::Primary
        {
            self.given_back(out);
        } else if let Some(reception) = reception {
            self.received(now, reception, out);
        }
    }

    /// What time brings: contact, and when to look again.
    pub(super) fn keep_time(&mut self, now: Now, ticked: bool, out: &mut Vec<Output>) {
        if ticked {
            self.asleep = None;
        }
        let mut contact = None;
        if self.keeps_contact() {
            match self.contact {
                Contact::Due(at) if now.since_start >= at => {
                    out.push(Output::Contact);
                    self.contact = Contact::Asked;
                }
                Contact::Due(at) => contact = Some(at),
                Contact::Asked => {}
            }
        }
        let wait = match self.state {
            State::Waiting { until, .. } => Some(until),
            _ => None,
        };
        let wake = wait.into_iter().chain(contact).min();
        if let Some(until) = wake.filter(|_| wake != self.asleep) {
            out.push(Output::Sleep(until));
            self.asleep = wake;
        }
    }
}
