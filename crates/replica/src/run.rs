//! Who may run: the rules, each a pure function.
//!
//! Without an override, a VM starts only when its partner cannot be running it: the partner
//! says so now, or stood down durably for the term that starts. A connection that is refused,
//! or a host that does not answer, is no evidence. Leases and witnesses come later.
//!
//! | asked | stands on | allowed by |
//! |---|---|---|
//! | start in the current term | no partner | |
//! | | partner's word | it is the replica, or lies in an older term and does not run |
//! | | [`Warrant`] | partner's stand-down for this term; an override until first contact |
//! | | [`Evidence::Override`] | |
//! | open a new term | | partner's stand-down for it; [`Evidence::Override`] |
//! | stand down | asked lineage | it does not run here, and the asker builds on what is here |
//! | keep running | partner's lineage | it does not outrank ours |
//!
//! The model check in `run_tests.rs` searches every interleaving of two hosts with these
//! functions, and finds a counterexample for every rule when it is switched off.

use model::{Code, Lineage, Problem, TermId, VmId};

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
    /// It answered that it stood down, durably, for this term.
    StoodDown(TermId),
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

fn refused(thing: &str, reason: impl Into<String>, way_out: impl Into<String>) -> Problem {
    Problem::new(Code::Conflict, thing, reason, way_out)
}

/// What `pollux` calls the VM that problems call `thing`.
fn name(thing: &str) -> &str {
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
pub(crate) fn named(mut problem: Problem, thing: &str) -> Problem {
    let id = problem.thing.strip_prefix("VM ").map(str::to_owned);
    if let Some(id) = id.filter(|id| id.parse::<VmId>().is_ok()) {
        problem.way_out = problem.way_out.replace(&id, name(thing));
        thing.clone_into(&mut problem.thing);
    }
    problem
}

/// The right to run went to the host that opened the last term of `theirs`.
fn taken_over(thing: &str, role: Role, theirs: &Lineage) -> Problem {
    let (term, name) = (theirs.current(), name(thing));
    let reason = format!(
        "was taken over by host `{}` in term {}, and may run there only",
        term.opener, term.number
    );
    let there = format!("start it there with `pollux vm start {name}`");
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
    let Some(partner) = standing.partner.as_deref() else {
        return Ok(None);
    };
    if standing.role == Role::Replica {
        let reason = format!("is the replica of the one on host `{partner}`");
        let way_out = format!("`pollux failover start {}` starts it here", name(thing));
        return Err(refused(thing, reason, way_out));
    }
    match evidence {
        Evidence::Override(_) => Ok(Some(Warrant::Override)),
        Evidence::StoodDown(term) if *term == standing.lineage.current().id => {
            Ok(Some(Warrant::StoodDown))
        }
        Evidence::Says(theirs) => {
            says_go(thing, standing, partner, theirs)?;
            Ok(standing.warrant)
        }
        _ if standing.warrant.is_some() => Ok(standing.warrant),
        other => Err(no_evidence(thing, partner, other)),
    }
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
        return Err(refused(thing, reason, "stop it there first"));
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
    match evidence {
        Evidence::Override(_) => Ok(Warrant::Override),
        Evidence::StoodDown(term) if *term == attempt => Ok(Warrant::StoodDown),
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
            Err(refused(thing, reason, "shut it down there first"))
        }
        other => {
            let partner = standing.partner.as_deref().unwrap_or_default();
            Err(no_evidence(thing, partner, other))
        }
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
        let way_out = "shut it down there first";
        return Err(refused(thing, "runs on its host", way_out));
    }
    let new = asked.current().id != standing.lineage.current().id;
    if !new || !asked.descends_from(&standing.lineage) {
        let term = standing.lineage.current();
        let reason = format!(
            "has gone on in term {} (opened by host `{}`), on which the takeover does not build",
            term.number, term.opener
        );
        let way_out =
            "fail over to a point of that term, or say why not with --force --because STATEMENT";
        return Err(refused(thing, reason, way_out));
    }
    Ok(())
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
