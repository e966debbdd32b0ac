//! What goes wrong, and what people ask for.

use std::time::Duration;

use model::{Code, Lineage, Problem};

use super::{CONTRADICTIONS, FIRST_BACKOFF, LONGEST_BACKOFF};
use super::{Event, Now, Output, Sender, State, Wait};
use crate::link::LinkError;
use crate::run;

pub(super) enum Trouble {
    Link(LinkError),
    Source(Problem),
}

/// What went wrong, if `event` says so and belongs to `state`.
pub(super) fn trouble(state: &State, event: Event) -> Option<Trouble> {
    Some(match (state, event) {
        (State::Asking, Event::Tip(Err(error)))
        | (State::Comparing(_), Event::Answered(Ok((_, Err(error)))))
        | (State::Offering, Event::Offered(Ok((_, Err(error)))))
        | (State::Shipping { .. }, Event::Stored(_, Ok(Err(error))))
        | (State::Committing, Event::Committed(Err(error))) => Trouble::Link(error),
        (State::Starting, Event::Tracked(Err(problem)))
        | (State::Staging, Event::SeedStaged(Err(problem)) | Event::CutStaged(Err(problem)))
        | (State::Comparing(_), Event::Answered(Err(problem)))
        | (State::Noting(_), Event::Noted(Err(problem)))
        | (State::Marking(_), Event::Marked(Err(problem)))
        | (State::Suspecting { .. }, Event::Suspected(Err(problem)))
        | (State::Recording { .. }, Event::Persisted(Err(problem)))
        | (State::Offering, Event::Offered(Err(problem)))
        | (State::Shipping { .. }, Event::Stored(_, Err(problem)))
        | (State::Confirming, Event::Confirmed(Err(problem)))
        | (State::FoldingBack, Event::FoldedBack(Err(problem))) => Trouble::Source(problem),
        _ => return None,
    })
}

impl Sender {
    pub(super) fn trouble(
        &mut self,
        now: Now,
        state: State,
        trouble: Trouble,
        out: &mut Vec<Output>,
    ) {
        if matches!(state, State::Shipping { .. }) {
            out.push(Output::Abandon);
        }
        // A point that could not be cut is wanted all the same, not only when the next one is due.
        self.late |= matches!(state, State::Staging);
        self.report.transfer = None;
        match trouble {
            Trouble::Link(LinkError::Lost(problem)) => {
                self.report.link_losses += 1;
                self.wait(now, Wait::Link, problem);
            }
            Trouble::Link(LinkError::Refused(problem)) => {
                let problem = run::named(problem, &self.plan.thing);
                self.report.failures += 1;
                match problem.code {
                    // What is forbidden is mended on the other host; nobody should have to come here.
                    Code::Full | Code::Failed | Code::Unreachable | Code::Forbidden => {
                        self.wait(now, Wait::Link, problem);
                    }
                    Code::Invalid | Code::NotFound | Code::Conflict => {
                        self.fail(problem);
                    }
                }
            }
            Trouble::Source(problem) => {
                self.report.failures += 1;
                self.wait(now, Wait::Source, problem);
            }
        }
    }

    pub(super) fn wait(&mut self, now: Now, wait: Wait, problem: Problem) {
        self.report.last_error = Some(problem);
        if self.pause_now() {
            return;
        }
        let until = now.since_start + self.backoff();
        self.state = State::Waiting { until, wait };
    }

    /// Doubles with each attempt, then anything from half of it to all of it.
    pub(super) fn backoff(&mut self) -> Duration {
        let full = FIRST_BACKOFF
            .saturating_mul(1 << self.attempt.min(10))
            .min(LONGEST_BACKOFF);
        self.attempt = self.attempt.saturating_add(1);
        // xorshift64: hosts that lost one replica at one instant shall not come back at one.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        let share = u32::try_from(self.chance >> 48).unwrap_or(0);
        full / 2 + full * share / (2 * u32::from(u16::MAX))
    }

    /// The replica's answer does not go with its last one: ask for its tip, but not for ever.
    pub(super) fn contradicted(&mut self, problem: Problem, out: &mut Vec<Output>) {
        if self.doubt(problem) {
            self.ask(out);
        }
    }

    /// The replica's answer should not have come. Whether to try again; it is an error if not.
    pub(super) fn doubt(&mut self, problem: Problem) -> bool {
        self.report.transfer = None;
        self.contradictions += 1;
        let again = self.contradictions < CONTRADICTIONS;
        if again {
            self.report.last_error = Some(problem);
        } else {
            self.fail(problem);
        }
        again
    }

    /// Stops until a person resumes it.
    pub(super) fn fail(&mut self, mut problem: Problem) {
        if problem.way_out.is_empty() {
            let thing = &self.plan.thing;
            problem.way_out = format!(
                "look at the replica host first; `pollux replica resume {}` tries again, and if it ends here \
                 again, {}",
                run::name(thing),
                run::anew(thing)
            );
        }
        self.report.last_error = Some(problem);
        self.state = State::Error;
    }

    pub(super) fn give_up(&mut self, reason: &str) {
        let way_out = format!("look at it first; then {}", run::anew(&self.plan.thing));
        let thing = format!(
            "the replica of {} on `{}`",
            self.plan.thing, self.plan.partner
        );
        self.fail(Problem::new(Code::Conflict, thing, reason, way_out));
    }

    pub(super) fn gated(&mut self, now: Now, lineage: Lineage, outcome: Result<(), Problem>) {
        match outcome {
            Ok(()) => self.state = State::StoodDown,
            Err(problem) => {
                self.report.last_error = Some(problem);
                // The guest must not run on: no backoff.
                let until = now.since_start + Duration::from_millis(100);
                self.state = State::Waiting {
                    until,
                    wait: Wait::Gate(lineage),
                };
            }
        }
    }

    /// Between two steps: whether a person wants it to stop here.
    pub(super) fn pause_now(&mut self) -> bool {
        if self.suspend {
            self.state = State::Suspended;
        }
        self.suspend
    }

    pub(super) fn suspend(&mut self, state: State, out: &mut Vec<Output>) {
        match state {
            // What the source does runs to its end.
            State::Starting
            | State::Staging
            | State::Noting(_)
            | State::Marking(_)
            | State::Suspecting { .. }
            | State::Recording { .. }
            | State::Confirming
            | State::FoldingBack => {
                self.suspend = true;
                self.state = state;
            }
            State::Asking
            | State::Configuring(_)
            | State::Comparing(_)
            | State::Looking(_)
            | State::Offering
            | State::Shipping { .. }
            | State::Committing => {
                self.suspend = true;
                self.report.transfer = None;
                out.push(Output::Abandon);
                self.state = State::Suspended;
            }
            State::Gating(_)
            | State::StoodDown
            | State::Waiting {
                wait: Wait::Gate(_),
                ..
            } => {
                self.state = state;
            }
            State::Waiting { .. } | State::Suspended | State::Error => {
                self.suspend = true;
                self.state = State::Suspended;
            }
        }
    }

    pub(super) fn resume(&mut self, now: Now, state: State, out: &mut Vec<Output>) {
        self.suspend = false;
        match state {
            State::Suspended | State::Error => {
                self.attempt = 0;
                self.contradictions = 0;
                self.strange = 0;
                self.strange_tip = None;
                self.refused = None;
                self.due_now(now);
                self.track(out);
            }
            // Whoever resumes it wants it now.
            State::Waiting {
                wait: Wait::Link | Wait::Paused | Wait::Filling,
                ..
            } => self.ask(out),
            State::Waiting {
                wait: Wait::Source, ..
            } => self.track(out),
            other => self.state = other,
        }
    }
}
