//! Who may run: the rules, each a pure function.
//!
//! Without an override, a VM starts only when its partner cannot be running it: the partner
//! says so now, or stood down durably for the term that starts. A connection that is refused,
//! or a host that does not answer, is no evidence, unless the partner holds to a lease
//! ([`crate::lease`]). Witnesses come later.
//!
//! | asked | stands on | allowed by |
//! |---|---|---|
//! | start in the current term | no partner | |
//! | | partner's word | it is the replica, or lies in an older term and does not run |
//! | | [`Warrant`] | where it took over: partner's stand-down for this term; an override until first contact |
//! | | [`Evidence::Override`] | |
//! | | `start_unasked = allow` | the partner gives no answer: then two may run |
//! | the same, under a lease | partner's word | its answer renewed the lease, which holds now |
//! | the same from another point | | as to start in the current term, for which a new one is opened |
//! | the same in a folder that was [restored](Standing::restore) | partner's word | as above; no warrant, and no `start_unasked` |
//! | open a new term | | partner's stand-down for it; its lease is over; [`Evidence::Override`] |
//! | | where it stood down | the same, asked of a partner that is the replica: it called its failover off |
//! | | newest point | it grows from that, unless a person chose an older one |
//! | stand down | asked lineage | it does not run here, and the asker builds on what is here |
//! | keep running | partner's lineage | it does not outrank ours |
//! | | lease | the grant holds; an override until first contact |
//!
//! The model check in `arbiter` searches every interleaving of two hosts with these
//! functions, and finds a counterexample for every rule when it is switched off.
//! `docs/who-may-run.md` tells it to users, with the [commands](crate::commands) out of every stop.

use std::time::Duration;

use model::{Code, Lineage, PointId, Problem, StartUnasked, TermId, VmId};

use crate::lease::{BootTime, Grant};
use crate::standing::{Override, Role, Standing, Warrant};
use crate::wire::PartnerStanding;

/// What is known about the partner at the moment of the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// Nobody asked it.
    Unasked,
    /// It was asked and gave no answer; the text says what happened.
    Unreachable(String),
    /// It answered how it stands, after it had learnt our lineage.
    Says(PartnerStanding),
    /// The same, and with this answer it renewed our lease, which holds now.
    Leased(PartnerStanding),
    /// It answered that it stood down, durably, for this term.
    StoodDown(TermId),
    /// It holds to a lease, and what we promised it is over: its guest is held still.
    LeaseExpired,
    /// It holds to a lease, and may run for so long still.
    LeaseHolds(Duration),
    /// It asked or was asked, and refused with this reason.
    Refused(Problem),
    /// A person takes the responsibility.
    Override(Override),
}

/// Which of two lineages of a VM is the one to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// They are the same.
    Same,
    /// Ours.
    Ours,
    /// Theirs.
    Theirs,
}

/// Compares two lineages; none if they have not even their first term in common.
///
/// Ancestry decides. Two that diverged (both hosts were overridden) are told apart by the
/// number of their last terms, then by its id: any order serves, if both hosts find the same.
#[must_use]
pub fn rank(ours: &Lineage, theirs: &Lineage) -> Option<Rank> {
    if ours.terms()[0].id != theirs.terms()[0].id {
        return None;
    }
    let (mine, other) = (ours.current(), theirs.current());
    Some(if mine.id == other.id {
        Rank::Same
    } else if ours.succeeds(theirs) {
        Rank::Ours
    } else if theirs.succeeds(ours) || (mine.number, mine.id) < (other.number, other.id) {
        Rank::Theirs
    } else {
        Rank::Ours
    })
}

const FORCE: &str =
    "if you know that it does not run there, say why with --force --because STATEMENT";

/// How to end the guest on the other host.
pub(crate) fn stop_there(thing: &str) -> String {
    let name = name(thing);
    format!(
        "stop it there first with `pollux vm stop {name}`, or end it with `pollux vm kill {name}`"
    )
}

/// Whoever took the VM back did so in a history that does not build on the points here.
pub(crate) fn taken_back(thing: &str, theirs: &Lineage) -> Problem {
    let term = theirs.current();
    let reason = format!(
        "was taken back by host `{}` in term {}, which does not build on the points here",
        term.opener, term.number
    );
    refused(thing, reason, anew(thing))
}

/// A guest of this host is in the way.
pub(crate) fn runs_here(thing: &str) -> Problem {
    let name = name(thing);
    let way_out = format!(
        "stop it first with `pollux vm stop {name}`, or end it with `pollux vm kill {name}`"
    );
    refused(thing, "runs here", way_out)
}

fn refused(thing: &str, reason: impl Into<String>, way_out: impl Into<String>) -> Problem {
    Problem::new(Code::Conflict, thing, reason, way_out)
}

/// What `pollux` calls the VM that problems call `thing`.
pub fn name(thing: &str) -> &str {
    let name = thing.strip_prefix("VM ").unwrap_or(thing);
    let quoted = name.strip_prefix('`').and_then(|n| n.strip_suffix('`'));
    quoted.unwrap_or(name)
}

/// The way out of a relationship that leads nowhere.
pub(crate) fn anew(thing: &str) -> String {
    format!(
        "end it on both hosts with `pollux replica remove {}`; once the twin is deleted, \
         `pollux replica enable` copies everything anew",
        name(thing)
    )
}

/// A partner that does not know the VM calls it by its id; here it is `thing`.
#[must_use]
pub fn named(mut problem: Problem, thing: &str) -> Problem {
    let id = problem.thing.strip_prefix("VM ").map(str::to_owned);
    if let Some(id) = id.filter(|id| id.parse::<VmId>().is_ok()) {
        problem.way_out = problem.way_out.replace(&id, name(thing));
        thing.clone_into(&mut problem.thing);
    }
    problem
}

/// The right to run went to the host that opened the last term of `theirs`.
pub(crate) fn taken_over(thing: &str, role: Role, theirs: &Lineage) -> Problem {
    let (term, name) = (theirs.current(), name(thing));
    let reason = format!(
        "was taken over by host `{}` in term {}, and may run there only",
        term.opener, term.number
    );
    let there = format!(
        "start it there with `pollux vm start {name}`, or call the failover off there with `pollux \
         failover cancel {name}`, and it starts here; if that host is lost or refuses, `pollux vm start \
         {name} --force --because STATEMENT` takes it back"
    );
    let way_out = match role {
        // Its disks are raw files, which nothing writes to any more.
        Role::Primary => format!(
            "{there}. What it held before that is kept in its disks here (`pollux vm show \
             {name}`): `pollux vm create NAME --image FILE` makes another VM from a copy"
        ),
        Role::Replica | Role::FailedOver => there,
    };
    refused(thing, reason, way_out)
}

/// What is wrong with a folder that was restored, as long as nobody said how the VM stands elsewhere.
#[must_use]
pub fn restored(thing: &str, standing: &Standing) -> Option<Problem> {
    let (host, name) = (&standing.doubt(false)?.shared_with, name(thing));
    let reason = format!(
        "may run on host `{host}`: its folder is not the one that this host stored last. It was restored \
         from a backup, or comes from another host, so what it says of who may run is not heeded"
    );
    let answers = match standing.doubt(true) {
        None => format!("it is decided once host `{host}` answers, which is asked by itself; "),
        Some(_) => String::new(),
    };
    let way_out = format!(
        "{answers}if you know that `{name}` does not run there, say why with --force --because STATEMENT"
    );
    Some(Problem::new(Code::Unreachable, thing, reason, way_out))
}

/// The same where it is decided who may run.
fn believed(thing: &str, standing: &Standing, evidence: &Evidence) -> Result<(), Problem> {
    let heard = match evidence {
        Evidence::Override(_) => return Ok(()),
        Evidence::Says(_) | Evidence::Leased(_) | Evidence::StoodDown(_) => true,
        Evidence::Unasked
        | Evidence::Unreachable(_)
        | Evidence::LeaseExpired
        | Evidence::LeaseHolds(_)
        | Evidence::Refused(_) => false,
    };
    if standing.doubt(heard).is_none() {
        return Ok(());
    }
    restored(thing, standing).map_or(Ok(()), Err)
}

/// A twin that has no recovery point yet is not started. `has_disks`: it began with the disks of this host,
/// which was the primary before.
#[must_use]
pub fn no_point(thing: &str, has_disks: bool) -> Problem {
    let reason = "has no recovery point yet: its initial replication is not complete";
    let name = name(thing);
    let mut way_out = "`pollux replica status` shows how far it is".to_owned();
    if has_disks {
        way_out = format!(
            "{way_out}; if the other host is lost, `pollux failover cancel {name}` gives the disks back \
             that this host had"
        );
    }
    Problem::new(Code::NotFound, thing, reason, way_out)
}

/// What the partner's answer is worth beside a person's word. The word counts for a host that stood
/// down, if the VM does not run on the partner either: two that stood down for each other, of which
/// one was restored, would refuse for ever. So it does where the partner is not the one that would know.
#[must_use]
pub fn weigh(standing: &Standing, says: PartnerStanding, word: Option<Override>) -> Evidence {
    let decides = standing.stood_down.is_some() || standing.doubt(true).is_some();
    match word {
        Some(word) if decides && !says.runs => Evidence::Override(word),
        _ => Evidence::Says(says),
    }
}

/// Whether the VM may start in its current term; the warrant that it then has.
///
/// # Errors
/// [`Problem`] says why not, and the way out.
pub fn may_start(
    thing: &str,
    standing: &Standing,
    evidence: &Evidence,
) -> Result<Option<Warrant>, Problem> {
    if let Some(theirs) = &standing.stood_down {
        return Err(taken_over(thing, standing.role, theirs));
    }
    if standing.role != Role::Replica {
        believed(thing, standing, evidence)?;
    }
    let Some(partner) = standing.partner.as_deref() else {
        return Ok(None);
    };
    if standing.prepared {
        let (reason, name) = (
            format!("is prepared for a planned failover to host `{partner}`"),
            name(thing),
        );
        let way_out = format!(
            "`pollux failover start {name}` there goes on with it, `pollux failover cancel {name}` \
             here ends it"
        );
        return Err(refused(thing, reason, way_out));
    }
    if standing.role == Role::Replica {
        let reason = format!("is the replica of the one on host `{partner}`");
        let way_out = format!("`pollux failover start {}` starts it here", name(thing));
        return Err(refused(thing, reason, way_out));
    }
    if standing.fence.is_some() {
        return may_start_leased(thing, standing, partner, evidence);
    }
    match evidence {
        Evidence::Override(_) => Ok(Some(Warrant::Override)),
        Evidence::StoodDown(term) if *term == standing.lineage.current().id => {
            Ok(Some(Warrant::StoodDown))
        }
        Evidence::Says(theirs) | Evidence::Leased(theirs) => {
            says_go(thing, standing, partner, theirs)?;
            Ok(standing.warrant)
        }
        _ if standing.warrant.is_some() => Ok(standing.warrant),
        // A person chose that two may run rather than none.
        Evidence::Unasked | Evidence::Unreachable(_) if starts_unasked(standing) => Ok(None),
        other => Err(no_evidence(thing, partner, other)),
    }
}

/// Whether the VM starts where it belongs although nobody knows whether its partner took over.
#[must_use]
pub fn starts_unasked(standing: &Standing) -> bool {
    standing.start_unasked == StartUnasked::Allow && standing.role == Role::Primary
}

/// The same for a primary that holds to a lease: its replica may take over once that is over,
/// whatever it said before.
fn may_start_leased(
    thing: &str,
    standing: &Standing,
    partner: &str,
    evidence: &Evidence,
) -> Result<Option<Warrant>, Problem> {
    match evidence {
        Evidence::Override(_) => Ok(Some(Warrant::Override)),
        Evidence::Leased(theirs) => {
            says_go(thing, standing, partner, theirs)?;
            Ok(standing.warrant)
        }
        Evidence::Says(theirs) => {
            says_go(thing, standing, partner, theirs)?;
            let reason = format!("holds to a lease, which host `{partner}` has not renewed");
            let way_out = format!("try again with `pollux vm start {}`", name(thing));
            Err(refused(thing, reason, way_out))
        }
        _ if standing.warrant == Some(Warrant::Override) => Ok(standing.warrant),
        other => Err(no_evidence(thing, partner, other)),
    }
}

/// Whether a guest that runs must be held still now: this host holds to a lease, and no grant
/// holds. It goes on with the next one.
#[must_use]
pub fn must_hold(standing: &Standing, grant: Option<Grant>, now: BootTime) -> bool {
    let term = standing.lineage.current().number;
    standing.fence.is_some()
        && standing.warrant != Some(Warrant::Override)
        && !grant.is_some_and(|grant| grant.term == term && grant.holds(now))
}

/// Whether the partner's own word allows a start.
fn says_go(
    thing: &str,
    standing: &Standing,
    partner: &str,
    theirs: &PartnerStanding,
) -> Result<(), Problem> {
    if theirs.runs {
        let reason = format!("runs on host `{partner}`");
        return Err(refused(thing, reason, stop_there(thing)));
    }
    match rank(&standing.lineage, &theirs.lineage) {
        Some(Rank::Same) if theirs.role == Role::Replica => Ok(()),
        Some(Rank::Ours) => Ok(()),
        Some(Rank::Theirs) => Err(taken_over(thing, standing.role, &theirs.lineage)),
        Some(Rank::Same) | None => {
            let reason = format!("has another history on host `{partner}`");
            Err(refused(thing, reason, anew(thing)))
        }
    }
}

fn no_evidence(thing: &str, partner: &str, evidence: &Evidence) -> Problem {
    let reason = match evidence {
        Evidence::Unreachable(why) => {
            let reason = format!("may run on host `{partner}`, which does not answer: {why}");
            return Problem::new(Code::Unreachable, thing, reason, FORCE);
        }
        Evidence::Refused(problem) => {
            let problem = named(problem.clone(), thing);
            let reason = format!("is not given up by host `{partner}`: {}", problem.reason);
            return refused(thing, reason, problem.way_out);
        }
        Evidence::LeaseHolds(left) => {
            // Up to the next whole second.
            let seconds = left.as_secs().saturating_add(1);
            let reason = format!(
                "may run on host `{partner}`, which holds to a lease that may last {seconds} s more"
            );
            let name = name(thing);
            let way_out =
                format!("wait so long, as `pollux failover start {name} --wait` does, or {FORCE}");
            return Problem::new(Code::Unreachable, thing, reason, way_out);
        }
        _ => format!("may run on host `{partner}`, which has not stood down for it"),
    };
    refused(thing, reason, FORCE)
}

/// Whether the prepared term `attempt` may be opened; the warrant that it then has.
///
/// # Errors
/// [`Problem`] says why not, and the way out.
pub fn may_take_over(
    thing: &str,
    standing: &Standing,
    attempt: TermId,
    evidence: &Evidence,
) -> Result<Warrant, Problem> {
    believed(thing, standing, evidence)?;
    match evidence {
        Evidence::Override(_) => Ok(Warrant::Override),
        Evidence::StoodDown(term) if *term == attempt => Ok(Warrant::StoodDown),
        Evidence::LeaseExpired if standing.fence.is_some() && standing.role == Role::Replica => {
            Ok(Warrant::Lease)
        }
        Evidence::Says(theirs)
            if !theirs.runs
                && theirs
                    .stood_down
                    .as_ref()
                    .is_some_and(|l| l.current().id == attempt) =>
        {
            Ok(Warrant::StoodDown)
        }
        Evidence::Says(theirs) if theirs.runs => {
            let partner = standing.partner.as_deref().unwrap_or_default();
            let reason = format!("runs on host `{partner}`");
            Err(refused(thing, reason, stop_there(thing)))
        }
        other => {
            let partner = standing.partner.as_deref().unwrap_or_default();
            Err(no_evidence(thing, partner, other))
        }
    }
}

/// Whether a new term may grow from `parent` now. `newest` is the newest point here, if that is
/// what was asked for: what came after `parent` was acknowledged, and nobody chose to pass it over.
///
/// # Errors
/// [`Problem`] says why not, and the way out.
pub fn may_grow(
    thing: &str,
    parent: Option<PointId>,
    newest: Option<PointId>,
) -> Result<(), Problem> {
    match newest {
        Some(newest) if parent != Some(newest) => {
            let reason = format!("received point {newest} while it was being taken over");
            let way_out = format!(
                "`pollux failover start {}` takes it over from there",
                name(thing)
            );
            Err(refused(thing, reason, way_out))
        }
        _ => Ok(()),
    }
}

/// Whether this host may stand down for `asked`.
///
/// # Errors
/// [`Problem`] says why not, and the way out.
pub fn may_stand_down(
    thing: &str,
    standing: &Standing,
    asked: &Lineage,
    runs: bool,
) -> Result<(), Problem> {
    if runs {
        return Err(refused(thing, "runs on its host", stop_there(thing)));
    }
    let new = asked.current().id != standing.lineage.current().id;
    if !new || !asked.descends_from(&standing.lineage) {
        let term = standing.lineage.current();
        let reason = format!(
            "has gone on in term {} (opened by host `{}`), on which the takeover does not build",
            term.number, term.opener
        );
        let way_out = format!(
            "fail over to a point of that term with `pollux failover start {}`, or say why not \
             with --force --because STATEMENT",
            name(thing)
        );
        return Err(refused(thing, reason, way_out));
    }
    Ok(())
}
