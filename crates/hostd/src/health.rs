//! The health of a relationship by Hyper-V's rules, and why it is not better. Pure.
//!
//! | level | when |
//! |---|---|
//! | Critical | the primary cannot send, or a person is needed; the guest is held without a lease; paused on the replica, or its store is away; the twin is damaged |
//! | Warning | the primary's lease is over; more than a fifth of the points missed in the monitoring interval; more than an hour since anything was sent or received; initial replication not complete; failed over and not reversed; paused on the primary; a log cannot be written; a store is full, or old points do not go; a point takes more than five minutes on average |
//! | Normal | none of that |
//! | NotApplicable | not replicated, or the copy of a test failover |
//!
//! A level without a message does not exist: the level is that of the worst message. What each says,
//! and what to do, stands in `docs/replication-health.md`.

use std::collections::BTreeMap;

use api::{HealthMessage, HealthReason};
use jiff::{SignedDuration, Timestamp};
use model::{Code, Health, Mode, Problem, ReplicationState};

use crate::stores::Trouble;

/// More than this part of the points missed is a warning, in percent.
const MISSED: u128 = 20;
/// So long without success is a warning.
const LONG: SignedDuration = SignedDuration::from_hours(1);
/// A mean latency above this is a warning, in milliseconds.
const SLOW_MS: u64 = 5 * 60 * 1000;

/// What the health depends on.
#[derive(Debug, Clone)]
pub(crate) struct Look<'a> {
    pub(crate) now: Timestamp,
    /// Name of the VM.
    pub(crate) vm: &'a str,
    /// Name of the other host.
    pub(crate) peer: &'a str,
    pub(crate) mode: Mode,
    pub(crate) state: ReplicationState,
    /// Whether a person paused it here.
    pub(crate) paused: bool,
    /// How the other host took over, in words, if it did.
    pub(crate) succeeded: Option<&'a str>,
    /// Whether what the other host took was its own: it had been failed over to this one.
    pub(crate) taken_back: bool,
    /// Whether the failover to this host can be called off.
    pub(crate) revocable: bool,
    /// What went wrong and has not been made good.
    pub(crate) error: Option<&'a Problem>,
    /// Why what the twin holds cannot be had, if it is here.
    pub(crate) away: Option<&'a Problem>,
    /// What else is wrong with what the twin holds, if it is here.
    pub(crate) trouble: &'a Trouble,
    /// What ends soon, or has ended, of the certificates on which the relationship rests.
    pub(crate) certificates: &'a [Problem],
    /// Points that the twin got in the interval.
    pub(crate) successful: u64,
    /// Points missed in it.
    pub(crate) missed: u64,
    /// Since when that is counted.
    pub(crate) since: Timestamp,
    /// When the relationship began here.
    pub(crate) enabled: Timestamp,
    /// When anything was acknowledged or received last.
    pub(crate) last_success: Option<Timestamp>,
    pub(crate) latency_average_ms: Option<u64>,
    /// Whether the guest is held because its lease is over; at the replica: whether the primary's is.
    pub(crate) unleased: bool,
    /// What of the twin's newest point is known to be damaged, in words.
    pub(crate) damage: Option<&'a str>,
}

/// All that is not as it should be, the worst first.
pub(crate) fn messages(look: &Look<'_>) -> Vec<HealthMessage> {
    if look.mode == Mode::TestReplica {
        return Vec::new();
    }
    let away = look.away.map(|problem| {
        critical(
            HealthReason::StoreAway,
            because("the twin cannot be had", Some(problem)),
            way_out(Some(problem), String::new),
        )
    });
    let damage = look.trouble.damage.as_ref().map(|problem| {
        critical(
            HealthReason::JournalDamaged,
            because("the twin cannot be relied on", Some(problem)),
            way_out(Some(problem), String::new),
        )
    });
    let full = look.trouble.full.as_ref().map(|problem| {
        warning(
            HealthReason::StoreFull,
            because("nothing more is taken in", Some(problem)),
            way_out(Some(problem), String::new),
        )
    });
    let stay = look.trouble.stay.as_ref().map(|problem| {
        warning(
            HealthReason::PointsStay,
            because("points that are too old do not go, and the store fills", Some(problem)),
            way_out(Some(problem), || {
                let vm = name(look.vm);
                format!(
                    "Make room in its store; if that is not what lacks, `pollux replica verify {vm}` tells \
                     what is damaged"
                )
            }),
        )
    });
    let certificate = look.certificates.first().map(|problem| {
        warning(
            HealthReason::Certificate,
            because("a certificate needs to be replaced", Some(problem)),
            way_out(Some(problem), String::new),
        )
    });
    let here = away.into_iter().chain(damage).chain(full).chain(stay);
    let mut all: Vec<HealthMessage> = here.chain(of_state(look)).chain(certificate).collect();
    if matches!(
        look.state,
        ReplicationState::StoodDown
            | ReplicationState::FailedOverWaitingCompletion
            | ReplicationState::FailedOver
    ) {
        // Nothing is to be sent.
        return all;
    }
    all.extend(unleased(look));
    all.extend(damaged(look));
    all.extend(missed(look));
    all.extend(silent(look));
    all.extend(slow(look));
    all.sort_by_key(|message| std::cmp::Reverse(message.level));
    all
}

/// The worst of what was found.
pub(crate) fn level(mode: Mode, messages: &[HealthMessage]) -> Health {
    let none = if mode == Mode::TestReplica {
        Health::NotApplicable
    } else {
        Health::Normal
    };
    let all = messages.iter().map(|message| message.level);
    all.max().unwrap_or(none)
}

/// Whether something but a person keeps the twin from taking anything in.
fn hindered(look: &Look<'_>) -> bool {
    look.away.is_some() || look.trouble.full.is_some()
}

fn of_state(look: &Look<'_>) -> Option<HealthMessage> {
    use ReplicationState::{
        Error, FailedOver, FailedOverWaitingCompletion, InitialReplicationInProgress,
        PreparedForFailover, ReadyForInitialReplication, Replicating, Resynchronizing, StoodDown,
        Suspended,
    };
    let (vm, peer) = (name(look.vm), look.peer);
    Some(match look.state {
        StoodDown => stood_down(look),
        Error => critical(
            HealthReason::NeedsAPerson,
            because("it stands still", look.error),
            way_out(look.error, || {
                format!("Mend that, then `pollux replica resume {vm}`")
            }),
        ),
        // Why is told beside it.
        Suspended if look.mode == Mode::Replica && !look.paused && hindered(look) => return None,
        Suspended if look.mode == Mode::Replica => critical(
            HealthReason::PausedAtReplica,
            "it is paused on this host, the replica: nothing is taken in".to_owned(),
            format!("`pollux replica resume {vm}`"),
        ),
        Suspended if look.paused || look.error.is_none() => warning(
            HealthReason::Paused,
            "it is paused; changes are tracked, and the twin grows old".to_owned(),
            format!("`pollux replica resume {vm}`"),
        ),
        Suspended if look.error.is_some_and(refuses) => cannot_send(look),
        Suspended => warning(
            HealthReason::CannotWriteLog,
            because(
                "changes are tracked, and cannot be written down for the twin",
                look.error,
            ),
            way_out(look.error, || {
                format!(
                    "It goes on by itself once that is mended; `pollux replica resume {vm}` tries \
                     at once"
                )
            }),
        ),
        Replicating
        | PreparedForFailover
        | Resynchronizing
        | InitialReplicationInProgress
        | ReadyForInitialReplication
            if look.error.is_some() =>
        {
            cannot_send(look)
        }
        ReadyForInitialReplication | InitialReplicationInProgress => warning(
            HealthReason::InitialReplication,
            "the initial replication is not complete, so there is no point to fail over to"
                .to_owned(),
            format!("Wait for it: `pollux replica status {vm} --watch` shows how far it is"),
        ),
        Resynchronizing => warning(
            HealthReason::Resynchronizing,
            "what may differ from the twin is being compared; no point is made meanwhile"
                .to_owned(),
            format!("Wait for it: `pollux replica status {vm} --watch` shows how far it is"),
        ),
        FailedOverWaitingCompletion => warning(
            HealthReason::FailedOver,
            format!(
                "it was failed over to this host, and that is not final: it lies above a recovery point, \
                 and nothing is replicated back to `{peer}`"
            ),
            format!(
                "`pollux failover complete {vm}` makes it final, once you are sure of the point; `pollux \
                 failover cancel {vm}` calls it off, and the VM starts on host `{peer}` again"
            ),
        ),
        FailedOver => warning(
            HealthReason::FailedOver,
            format!("it was failed over to this host, and nothing is replicated back to `{peer}`"),
            format!("The VM has no twin until then: keep a copy with `pollux disk export {vm}`"),
        ),
        Replicating | PreparedForFailover => return None,
    })
}

/// Whether the other host is there and refuses this one, or this one refuses it.
fn refuses(error: &Problem) -> bool {
    error.code == Code::Forbidden
}

fn cannot_send(look: &Look<'_>) -> HealthMessage {
    let peer = look.peer;
    critical(
        HealthReason::CannotSend,
        because(&format!("nothing can be sent to host `{peer}`"), look.error),
        way_out(look.error, || {
            format!(
                "It is tried again by itself; `pollux host status` on host `{peer}` tells whether \
                 it is up"
            )
        }),
    )
}

fn stood_down(look: &Look<'_>) -> HealthMessage {
    let (vm, peer) = (name(look.vm), look.peer);
    let way_out = match look.taken_back {
        true if look.revocable => format!(
            "Work with it on host `{peer}`. `pollux failover cancel {vm} --drop-writes` makes this host its \
             replica again by what differs; what was written here since the failover goes, and is taken out \
             before with `pollux disk export {vm}`. `pollux vm kill {vm}` ends a guest that is held here, \
             which that needs"
        ),
        // That was no failover, which could be reversed.
        true => format!(
            "Work with it on host `{peer}`. `pollux replica remove {vm}` on both hosts ends their \
             relationship; what was written here alone is taken out then, with `pollux disk export {vm}`. \
             Once this one is deleted, with `pollux vm delete {vm}`, `pollux replica enable` there copies \
             everything anew"
        ),
        false => format!(
            "Work with it on host `{peer}`. `pollux failover reverse {vm}` there makes this host its \
             replica by what differs, and keeps what was written here alone; `pollux vm kill {vm}` ends a \
             guest that is held here, which that needs. To work with it here, `pollux failover cancel {vm}` \
             there calls the failover off, and then `pollux vm start {vm}` here starts it"
        ),
    };
    let why = look.succeeded.unwrap_or("the other host took over");
    critical(
        HealthReason::StoodDown,
        format!("the VM does not run here and has no twin: {why}"),
        way_out,
    )
}

fn unleased(look: &Look<'_>) -> Option<HealthMessage> {
    let (vm, peer) = (name(look.vm), look.peer);
    look.unleased.then(|| match look.mode {
        Mode::Replica => warning(
            HealthReason::PrimarySilent,
            format!(
                "host `{peer}` has not renewed its lease, so its guest is held still, and this host \
                 may take over"
            ),
            format!("See to host `{peer}`, or take over with `pollux failover start {vm}`"),
        ),
        _ => critical(
            HealthReason::LeaseOver,
            format!(
                "the guest is held still: host `{peer}` has not renewed its lease, and may take over"
            ),
            format!(
                "It goes on by itself when host `{peer}` answers. If that host is lost for good, \
                 `pollux replica remove {vm} --force --because STATEMENT` lets it run without a twin"
            ),
        ),
    })
}

fn damaged(look: &Look<'_>) -> Option<HealthMessage> {
    let damage = look.damage?;
    Some(critical(
        HealthReason::TwinDamaged,
        format!("the newest point of the twin is not what the disks hold: {damage}"),
        format!(
            "It is sent again by itself with the next point; older points keep it. See to the \
             storage of host `{}`",
            look.peer
        ),
    ))
}

fn missed(look: &Look<'_>) -> Option<HealthMessage> {
    let missed = u128::from(look.missed);
    let due = u128::from(look.successful) + missed;
    if missed * 100 <= due * MISSED {
        return None;
    }
    let vm = name(look.vm);
    Some(HealthMessage {
        since: Some(look.since),
        ..warning(
            HealthReason::PointsMissed,
            format!(
                "{missed} of {due} points were missed in the monitoring interval, more than {MISSED} %"
            ),
            format!(
                "The network or the replica is slower than the changes come: `pollux replica \
                 measure {vm}` tells how much that is; choose a longer time between points, or \
                 forget the figures with `pollux replica reset-statistics {vm}`"
            ),
        )
    })
}

fn silent(look: &Look<'_>) -> Option<HealthMessage> {
    let last = look.last_success.unwrap_or(look.enabled);
    if look.now.duration_since(last) <= LONG {
        return None;
    }
    let (vm, peer) = (name(look.vm), look.peer);
    let message = if look.mode == Mode::Replica {
        warning(
            HealthReason::NothingReceived,
            "nothing was received for more than an hour".to_owned(),
            format!("`pollux replica health {vm}` on host `{peer}` tells what keeps it"),
        )
    } else {
        warning(
            HealthReason::NothingSent,
            "nothing reached the twin for more than an hour".to_owned(),
            format!("`pollux replica status {vm}` and `pollux track status {vm}` tell what waits"),
        )
    };
    Some(HealthMessage {
        since: Some(last),
        ..message
    })
}

fn slow(look: &Look<'_>) -> Option<HealthMessage> {
    let latency = look.latency_average_ms.filter(|ms| *ms > SLOW_MS)?;
    let vm = name(look.vm);
    Some(HealthMessage {
        since: Some(look.since),
        ..warning(
            HealthReason::Slow,
            format!(
                "a point takes {} s on average until the twin has it, more than 5 minutes",
                latency / 1000
            ),
            format!(
                "The network or the replica is too slow for what changes: `pollux replica measure \
                 {vm}` tells how much that is"
            ),
        )
    })
}

fn critical(reason: HealthReason, what: String, way_out: String) -> HealthMessage {
    message(Health::Critical, reason, what, way_out)
}

fn warning(reason: HealthReason, what: String, way_out: String) -> HealthMessage {
    message(Health::Warning, reason, what, way_out)
}

fn message(level: Health, reason: HealthReason, what: String, way_out: String) -> HealthMessage {
    HealthMessage {
        level,
        reason,
        what,
        since: None,
        way_out,
    }
}

fn because(what: &str, error: Option<&Problem>) -> String {
    match error {
        Some(problem) => format!("{what}: {}: {}", problem.thing, problem.reason),
        None => what.to_owned(),
    }
}

/// The error's own way out, or this one; a sentence in any case.
fn way_out(error: Option<&Problem>, otherwise: impl FnOnce() -> String) -> String {
    let own = error.map(|problem| problem.way_out.as_str());
    let Some(own) = own.filter(|own| !own.is_empty()) else {
        return otherwise();
    };
    let mut rest = own.chars();
    rest.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(rest).collect()
    })
}

/// A VM's name as one word of a command line; a name has no quotes.
fn name(vm: &str) -> String {
    if vm.contains(' ') {
        format!("'{vm}'")
    } else {
        vm.to_owned()
    }
}

/// Since when each thing is not as it should be.
#[derive(Debug, Default)]
pub(crate) struct Onset(BTreeMap<HealthReason, Timestamp>);

impl Onset {
    /// Takes note of what there is now, and forgets what is over.
    pub(crate) fn note(&mut self, now: Timestamp, messages: &[HealthMessage]) {
        self.0
            .retain(|reason, _| messages.iter().any(|message| message.reason == *reason));
        for message in messages {
            self.0.entry(message.reason).or_insert(now);
        }
    }

    /// Says since when, where the message does not know it itself.
    pub(crate) fn date(&self, messages: &mut [HealthMessage]) {
        for message in messages {
            let known = self.0.get(&message.reason).copied();
            message.since = message.since.or(known);
        }
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
