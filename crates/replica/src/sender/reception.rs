//! How the replica receives: whether a person paused it there, which configuration it follows, and
//! that it knows of this relationship at all.

use std::sync::Arc;
use std::time::Duration;

use model::{Code, Problem};

use super::trouble::Trouble;
use super::{Now, Output, Sender, State, Wait};
use crate::link::LinkError;
use crate::run;
use crate::wire::{Configuration, ConfigureAnswer, Reception, Tip};

/// From one question to the next while it is paused or filled there; contact tells sooner that it is
/// not.
const PAUSED: Duration = Duration::from_secs(5);
/// A configuration that the replica refused is sent again after this long.
const REFUSED: Duration = Duration::from_secs(60);

/// The twin of `thing` is being filled on `host`.
pub(crate) fn filled(thing: &str, host: &str) -> Problem {
    let reason = format!("is being filled from a copy on `{host}`");
    Problem::new(Code::Failed, thing, reason, "")
}

/// A person paused `thing` on `host`, its replica.
pub(crate) fn paused(thing: &str, host: &str) -> Problem {
    let way_out = format!(
        "`pollux replica resume {}` there lets it go on; changes are tracked meanwhile",
        run::name(thing)
    );
    let reason = format!("is paused on its replica host `{host}`");
    Problem::new(Code::Failed, thing, reason, way_out)
}

impl Sender {
    /// From one point to the next.
    pub(super) fn frequency(&self) -> Duration {
        Duration::from_secs(self.plan.configuration.frequency_s.into())
    }

    /// The next point is due at once, and none was missed.
    pub(super) fn due_now(&mut self, now: Now) {
        self.due = now.since_start + self.frequency();
        self.late = true;
    }

    /// The next point is cut as soon as what is under way is done.
    pub(super) fn hurry(&mut self, now: Now, state: State, out: &mut Vec<Output>) {
        self.due_now(now);
        match state {
            State::Waiting {
                wait: Wait::Due, ..
            } => self.go_on(now, out),
            other => self.state = other,
        }
    }

    /// Whether the replica follows another configuration than it is to, and would take it.
    pub(super) fn is_outdated(&self, now: Now) -> bool {
        let refused = self.refused.is_some_and(|until| now.since_start < until);
        self.followed != Some(self.wanted) && !refused
    }

    /// The replica told what it has and how it receives.
    pub(super) fn told(&mut self, now: Now, tip: Tip, reception: Reception, out: &mut Vec<Output>) {
        self.note_reception(now, &reception);
        if reception.paused {
            self.hold(now);
        } else if reception.filling.is_some() {
            self.await_copy(now);
        } else if self.is_outdated(now) {
            out.push(Output::Configure {
                configuration: self.plan.configuration.clone(),
                revision: self.wanted,
            });
            self.state = State::Configuring(tip);
        } else {
            self.decide(now, tip, out);
        }
    }

    pub(super) fn configured(
        &mut self,
        now: Now,
        tip: Tip,
        answer: Result<ConfigureAnswer, LinkError>,
        out: &mut Vec<Output>,
    ) {
        match answer {
            Ok(ConfigureAnswer::Configured) => {
                self.followed = Some(self.wanted);
                self.refused = None;
                self.report.unconfigured = None;
                self.decide(now, tip, out);
            }
            Ok(ConfigureAnswer::Superseded { lineage }) => self.gate(lineage, out),
            Err(LinkError::Refused(problem))
                if matches!(problem.code, Code::Conflict | Code::Invalid) =>
            {
                self.not_configured(now, tip, problem, out);
            }
            Err(error) => {
                self.trouble(now, State::Configuring(tip), Trouble::Link(error), out);
            }
        }
    }

    /// Points go on all the same: a name that is taken there is no reason to protect nothing.
    fn not_configured(&mut self, now: Now, tip: Tip, problem: Problem, out: &mut Vec<Output>) {
        self.refused = Some(now.since_start + REFUSED);
        self.report.unconfigured = Some(run::named(problem, &self.plan.thing));
        self.decide(now, tip, out);
    }

    /// Something else is wanted from now on.
    pub(super) fn changed(
        &mut self,
        now: Now,
        configuration: Arc<Configuration>,
        out: &mut Vec<Output>,
    ) {
        self.join
            .wanted(&self.plan.configuration.disks, &configuration.disks);
        self.plan.configuration = configuration;
        self.wanted = self.plan.configuration.revision();
        self.refused = None;
        self.report.unconfigured = None;
        self.due = self.due.min(now.since_start + self.frequency());
        match self.state {
            State::Waiting {
                wait: Wait::Due, ..
            } => self.ask(out),
            // The answer would be to what was asked before.
            State::Configuring(_) => {
                out.push(Output::Abandon);
                self.ask(out);
            }
            // Seen when the next point is thought of.
            _ => {}
        }
    }

    /// How the replica receives, told by a contact beside everything else.
    pub(super) fn received(&mut self, now: Now, reception: Reception, out: &mut Vec<Output>) {
        self.note_reception(now, &reception);
        match self.state {
            State::Waiting {
                wait: Wait::Paused, ..
            } if !reception.paused => self.ask(out),
            State::Waiting {
                wait: Wait::Filling,
                ..
            } if reception.paused => self.hold(now),
            State::Waiting {
                wait: Wait::Filling,
                ..
            } if reception.filling.is_none() => self.ask(out),
            State::Waiting {
                wait: Wait::Due, ..
            } if !reception.paused && self.is_outdated(now) => self.ask(out),
            State::Waiting {
                wait: Wait::Due | Wait::Link,
                ..
            } if reception.paused => self.hold(now),
            _ if reception.paused && self.asks() => {
                out.push(Output::Abandon);
                self.report.transfer = None;
                self.hold(now);
            }
            _ => {}
        }
    }

    /// A contact says that the replica does not know of the relationship. It may be an old answer: the
    /// next question, asked now, finds out.
    pub(super) fn ended_there(&mut self, out: &mut Vec<Output>) {
        if let State::Waiting {
            wait: Wait::Due | Wait::Paused | Wait::Filling,
            ..
        } = self.state
        {
            self.ask(out);
        }
    }

    /// A contact says that the host which was made the replica is none any more, and gave way: it has its
    /// disks back.
    pub(super) fn given_back(&mut self, out: &mut Vec<Output>) {
        match self.state {
            State::Error
            | State::Waiting {
                wait: Wait::Due | Wait::Link | Wait::Paused | Wait::Filling,
                ..
            } => {}
            _ if self.asks() => {
                out.push(Output::Abandon);
                self.report.transfer = None;
            }
            // What the source does runs to its end; the next contact says the same.
            _ => return,
        }
        let way_out = format!(
            "`pollux failover reverse {}` makes it the replica again, by what differs",
            run::name(&self.plan.thing)
        );
        let thing = format!(
            "the replica of {} on `{}`",
            self.plan.thing, self.plan.partner
        );
        let reason = "is none any more: that host has its own disks back, and does not run it";
        self.fail(Problem::new(Code::Conflict, thing, reason, way_out));
    }

    /// Whether what is under way is a question to the replica.
    fn asks(&self) -> bool {
        matches!(
            self.state,
            State::Asking
                | State::Configuring(_)
                | State::Comparing(_)
                | State::Looking(_)
                | State::Offering
                | State::Shipping { .. }
                | State::Committing
        )
    }

    fn note_reception(&mut self, now: Now, reception: &Reception) {
        self.followed = reception.revision;
        let filling = reception.filling.clone();
        match filling.as_ref().map(|filling| &filling.problem) {
            Some(Some(problem)) => self.report.last_error = Some(problem.clone()),
            _ if self.report.filling.is_some() => self.report.last_error = None,
            _ => {}
        }
        self.report.filling = filling;
        if self.report.paused_there && !reception.paused {
            self.report.last_error = None;
            // What was not sent for a person's sake was not missed.
            self.due_now(now);
        }
        self.report.paused_there = reception.paused;
    }

    /// Sends nothing until the twin was filled.
    fn await_copy(&mut self, now: Now) {
        if self.pause_now() {
            return;
        }
        let until = now.since_start + PAUSED;
        self.state = State::Waiting {
            until,
            wait: Wait::Filling,
        };
    }

    /// Sends nothing until the replica receives again.
    fn hold(&mut self, now: Now) {
        self.report.last_error = Some(paused(&self.plan.thing, &self.plan.partner));
        if self.pause_now() {
            return;
        }
        let until = now.since_start + PAUSED;
        self.state = State::Waiting {
            until,
            wait: Wait::Paused,
        };
    }
}
