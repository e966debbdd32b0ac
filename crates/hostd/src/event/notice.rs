//! Which events follow from how a relationship was and how it is now. Pure: the time is given.
//!
//! | told | when |
//! |---|---|
//! | state | at once |
//! | health | once it has lasted ten seconds |
//! | error | at once; the same kind again only when five minutes have passed |
//! | damage of the twin | when the verification that found it ends; when it is repaired |
//! | points missed | at once; again only after five minutes without a missed one, which are told too |
//!
//! What was told last of state and health is kept with the measures, so that a restart of polluxd
//! tells neither too much nor too little.

use api::{EventKind, HealthMessage, Severity};
use jiff::{SignedDuration, Timestamp};
use model::{Code, Health, PointId, Problem, ReplicationState, VmId};

use super::Draft;

/// Health that changes back within this time is not told.
const HOLD: SignedDuration = SignedDuration::from_secs(10);
/// After this time without it, something counts as over.
const QUIET: SignedDuration = SignedDuration::from_mins(5);

/// How a relationship is now.
#[derive(Debug, Clone)]
pub(crate) struct Facts<'a> {
    pub(crate) vm: VmId,
    /// Name of the VM.
    pub(crate) name: &'a str,
    /// None: it is not replicated.
    pub(crate) relation: Option<Related<'a>>,
}

/// How it is while there is a relationship.
#[derive(Debug, Clone)]
pub(crate) struct Related<'a> {
    /// Name of the other host.
    pub(crate) peer: &'a str,
    /// Whether this host receives.
    pub(crate) received: bool,
    /// How the other host took over, in words, if it did.
    pub(crate) succeeded: Option<&'a str>,
    /// None: nobody can tell yet.
    pub(crate) state: Option<ReplicationState>,
    pub(crate) health: Health,
    pub(crate) messages: &'a [HealthMessage],
    pub(crate) error: Option<&'a Problem>,
    /// Points missed, in the monitoring interval.
    pub(crate) missed: u64,
    /// The last verification of the twin, if it ended.
    pub(crate) verified: Option<Verified>,
}

/// How a verification of the twin's newest point ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) number: u64,
    /// What is damaged, in words.
    pub(crate) damage: Option<String>,
    /// The point that holds it again.
    pub(crate) repaired: Option<PointId>,
}

/// What was told, and what may have to be.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// The other host, if it was replicated; none: nothing was looked at yet.
    before: Option<Option<String>>,
    state: Option<ReplicationState>,
    health: Option<Health>,
    /// The health that may have to be told, and since when it is so.
    turning: Option<(Health, Timestamp)>,
    error: Option<(Code, Timestamp)>,
    missed: u64,
    missing: Option<Missing>,
    /// The verification of which damage was told, and whether its repair was.
    damage: Option<(u64, bool)>,
}

/// Points that are being missed.
#[derive(Debug)]
struct Missing {
    count: u64,
    since: Timestamp,
    last: Timestamp,
}

impl Notices {
    /// After a restart: what was told before.
    pub(crate) fn after(state: Option<ReplicationState>, health: Option<Health>) -> Self {
        Self {
            state,
            health,
            ..Self::default()
        }
    }

    /// State and health that were told last.
    pub(crate) fn told(&self) -> (Option<ReplicationState>, Option<Health>) {
        (self.state, self.health)
    }

    /// What is to be told now.
    pub(crate) fn notice(&mut self, now: Timestamp, facts: &Facts<'_>) -> Vec<Draft> {
        let mut told = Vec::new();
        let peer = facts
            .relation
            .as_ref()
            .map(|related| related.peer.to_owned());
        let before = self.before.replace(peer);
        match (&facts.relation, before) {
            (None, Some(Some(peer))) => {
                *self = Self {
                    before: Some(None),
                    ..Self::default()
                };
                let what = format!("the relationship with host `{peer}` ended");
                told.push((
                    EventKind::Removed,
                    Severity::Info,
                    what,
                    String::new(),
                    &[][..],
                ));
            }
            (None, _) => {}
            (Some(related), before) => {
                if before == Some(None) {
                    let what = if related.received {
                        format!("is received from host `{}`", related.peer)
                    } else {
                        format!("is replicated to host `{}`", related.peer)
                    };
                    told.push((EventKind::Enabled, Severity::Info, what, String::new(), &[]));
                }
                self.of_state(related, &mut told);
                self.of_error(now, related, &mut told);
                self.of_damage(related, &mut told);
                self.of_points(now, related, &mut told);
                self.of_health(now, related, &mut told);
            }
        }
        let drafts = told
            .into_iter()
            .map(|(kind, severity, what, way_out, messages)| Draft {
                way_out,
                messages: messages.to_vec(),
                ..Draft::new(kind, severity, facts.name, what).about(facts.vm)
            });
        drafts.collect()
    }

    fn of_state<'a>(&mut self, related: &Related<'a>, told: &mut Vec<Told<'a>>) {
        let Some(state) = related.state.filter(|state| self.state != Some(*state)) else {
            return;
        };
        let peer = related.peer;
        let before = self.state.replace(state);
        let (kind, severity, what) = match state {
            ReplicationState::FailedOverWaitingCompletion => (
                EventKind::FailedOver,
                Severity::Warning,
                format!("was failed over to this host from `{peer}`"),
            ),
            ReplicationState::StoodDown => (
                EventKind::StoodDown,
                Severity::Error,
                match related.succeeded {
                    Some(how) => format!("the VM does not run here any more: {how}"),
                    None => format!("host `{peer}` took over; the VM does not run here any more"),
                },
            ),
            state => (
                EventKind::State,
                Severity::Info,
                match before {
                    Some(before) => format!("went from {before} to {state}"),
                    None => format!("is {state}"),
                },
            ),
        };
        told.push((kind, severity, what, String::new(), &[]));
    }

    fn of_error<'a>(&mut self, now: Timestamp, related: &Related<'a>, told: &mut Vec<Told<'a>>) {
        let Some(problem) = related.error else {
            return;
        };
        let known = self.error.is_some_and(|(code, last)| {
            code == problem.code && now.duration_since(last).abs() < QUIET
        });
        // While it lasts it is not told again, however long.
        self.error = Some((problem.code, now));
        if !known {
            let severity = match related.health {
                Health::Critical => Severity::Error,
                _ => Severity::Warning,
            };
            let what = format!("{}: {}", problem.thing, problem.reason);
            told.push((
                EventKind::Error,
                severity,
                what,
                problem.way_out.clone(),
                &[],
            ));
        }
    }

    fn of_damage<'a>(&mut self, related: &Related<'a>, told: &mut Vec<Told<'a>>) {
        let Some(verified) = &related.verified else {
            return;
        };
        let Some(damage) = &verified.damage else {
            return;
        };
        let known = self.damage.filter(|(number, _)| *number == verified.number);
        if known.is_none() {
            let what = format!("the newest point of the twin is not what the disks hold: {damage}");
            let way_out = format!(
                "it is sent again with the next point; see to the storage of host `{}`",
                related.peer
            );
            let (kind, severity) = (EventKind::Damaged, Severity::Error);
            told.push((kind, severity, what, way_out, &[]));
        }
        let repaired = verified
            .repaired
            .filter(|_| known.is_none_or(|(_, told)| !told));
        if let Some(point) = repaired {
            let what = format!(
                "point {point} of the twin holds again what was damaged; older points do not"
            );
            let (kind, severity) = (EventKind::Repaired, Severity::Info);
            told.push((kind, severity, what, String::new(), &[]));
        }
        self.damage = Some((verified.number, verified.repaired.is_some()));
    }

    fn of_points<'a>(&mut self, now: Timestamp, related: &Related<'a>, told: &mut Vec<Told<'a>>) {
        // Lower than before: the interval is another one.
        let more = if related.missed >= self.missed {
            related.missed - self.missed
        } else {
            related.missed
        };
        self.missed = related.missed;
        match &mut self.missing {
            None if more > 0 => {
                self.missing = Some(Missing {
                    count: more,
                    since: now,
                    last: now,
                });
                let what = "a point was due while the one before was not at the twin yet";
                let (kind, severity) = (EventKind::PointsMissed, Severity::Warning);
                told.push((kind, severity, what.to_owned(), String::new(), &[]));
            }
            Some(missing) if more > 0 => {
                missing.count = missing.count.saturating_add(more);
                missing.last = now;
            }
            Some(missing) if now.duration_since(missing.last).abs() >= QUIET => {
                let what = format!(
                    "points are made in time again; {} were missed since {}",
                    missing.count, missing.since
                );
                let (kind, severity) = (EventKind::PointsOnTime, Severity::Info);
                told.push((kind, severity, what, String::new(), &[]));
                self.missing = None;
            }
            _ => {}
        }
    }

    fn of_health<'a>(&mut self, now: Timestamp, related: &Related<'a>, told: &mut Vec<Told<'a>>) {
        let health = related.health;
        if self.health == Some(health) {
            self.turning = None;
            return;
        }
        let since = match self.turning {
            Some((turning, since)) if turning == health => since,
            _ => now,
        };
        self.turning = Some((health, since));
        if now.duration_since(since).abs() < HOLD {
            return;
        }
        self.turning = None;
        let before = self.health.replace(health);
        let severity = match health {
            Health::Critical => Severity::Error,
            Health::Warning => Severity::Warning,
            Health::Normal | Health::NotApplicable => Severity::Info,
        };
        let change = match before {
            Some(before) => format!("health went from {before} to {health}"),
            None => format!("health is {health}"),
        };
        let (what, way_out) = match related.messages.first() {
            Some(first) => (format!("{change}: {}", first.what), first.way_out.clone()),
            None => (change, String::new()),
        };
        told.push((EventKind::Health, severity, what, way_out, related.messages));
    }
}

/// Kind, severity, what, way out, messages.
type Told<'a> = (EventKind, Severity, String, String, &'a [HealthMessage]);

#[cfg(test)]
#[path = "notice_tests.rs"]
mod tests;
