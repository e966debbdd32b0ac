//! What the partner of a VM says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{Code, VmId};
use replica::client::PeerLink;
use replica::lease::Grant;
use replica::link::LinkError;
use replica::run::{Evidence, weigh};
use replica::standing::Override;
use replica::wire::{Contact, ContactAnswer};

use crate::host::Host;
use crate::vm::View;
use crate::vm::leasing::question;
use crate::vm::relation::Relation;

/// How long a partner has to answer before it counts as unreachable.
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Asks the partner how the VM stands there; with an override, that stands in for an answer
/// that does not come, or that [weighs](weigh) less.
pub(crate) async fn evidence(host: &Host, view: &View, word: Option<Override>) -> Evidence {
    let Some(relation) = &view.relation else {
        return word.map_or(Evidence::Unasked, Evidence::Override);
    };
    match meet(host, view, relation, &contact(view)).await {
        Ok(answer) => weigh(&view.standing, answer.standing, word),
        Err(error) => without_answer(&error, word),
    }
}

/// Meets the partner, in whichever relationship it knows.
async fn meet(
    host: &Host,
    view: &View,
    relation: &Relation,
    contact: &Contact,
) -> Result<ContactAnswer, LinkError> {
    let mut unknown = None;
    for link in links(host, view.home.spec.id, relation) {
        match link.meet(contact, PROBE_LIMIT).await {
            Err(error) if is_unknown(&error) => unknown = unknown.or(Some(error)),
            answer => return answer,
        }
    }
    Err(unknown.expect("a relationship has an id"))
}

/// Ends the relationship at the partner, whichever it knows.
pub(crate) async fn remove(host: &Host, vm: VmId, relation: &Relation) -> Result<(), LinkError> {
    let mut unknown = None;
    for link in links(host, vm, relation) {
        match link.remove().await {
            Err(error) if is_unknown(&error) => unknown = unknown.or(Some(error)),
            answer => return answer,
        }
    }
    Err(unknown.expect("a relationship has an id"))
}

fn links(host: &Host, vm: VmId, relation: &Relation) -> Vec<PeerLink> {
    let client = host.client(&relation.partner);
    let of = |id| PeerLink::new(Arc::clone(&client), vm, id);
    relation.ids().map(of).collect()
}

/// Whether the partner has no such relationship.
fn is_unknown(error: &LinkError) -> bool {
    matches!(error, LinkError::Refused(problem) if problem.code == Code::NotFound)
}

fn contact(view: &View) -> Contact {
    Contact {
        opened: view.standing.opened,
        ..Contact::of(view.standing.lineage.clone())
    }
}

/// The same for a start: a primary that holds to a lease asks for that as well.
pub(crate) async fn evidence_to_start(
    host: &Host,
    view: &View,
    word: Option<Override>,
) -> Evidence {
    let (Some(relation), Some(asked)) = (&view.relation, question(view)) else {
        return evidence(host, view, word).await;
    };
    let at = host.clock.now();
    let contact = Contact {
        lease: Some(asked),
        ..contact(view)
    };
    let answer = match meet(host, view, relation, &contact).await {
        Ok(answer) => answer,
        Err(error) => return without_answer(&error, word),
    };
    let granted = answer.lease.is_some_and(|lease| lease.granted);
    let says = answer.standing;
    if let Some(fence) = asked.fence.filter(|_| granted) {
        let term = says.lineage.current().number;
        let grant = Grant::answered(term, at, fence);
        view.leasing.take(grant, asked.agreement);
    }
    match weigh(&view.standing, says, word) {
        Evidence::Says(says) if granted => Evidence::Leased(says),
        evidence => evidence,
    }
}

/// What an answer that is none is worth.
pub(crate) fn without_answer(error: &LinkError, word: Option<Override>) -> Evidence {
    match (error, word) {
        (_, Some(word)) => Evidence::Override(word),
        (LinkError::Lost(problem), None) => {
            Evidence::Unreachable(format!("{} {}", problem.thing, problem.reason))
        }
        (LinkError::Refused(problem), None) => Evidence::Refused(problem.clone()),
    }
}

/// Asks the primary to give up the right to run the VM for the lineage that was prepared.
///
/// A person's word counts when the primary does not answer, or does not give way for a reason
/// other than that the VM runs there: then it is not the answer that is missing.
pub(crate) async fn stand_down(host: &Host, view: &View, word: Option<Override>) -> Evidence {
    let (Some(relation), Some(attempt)) = (&view.relation, &view.standing.attempt) else {
        return word.map_or(Evidence::Unasked, Evidence::Override);
    };
    if let Some(word) = word.clone().filter(|_| view.standing.doubt(true).is_some()) {
        // The host that would know is another one.
        return Evidence::Override(word);
    }
    let begun = Instant::now();
    let left = || PROBE_LIMIT.saturating_sub(begun.elapsed());
    let mut unknown = None;
    for link in links(host, view.home.spec.id, relation) {
        let error = match link.stand_down(attempt, left()).await {
            Ok(answer) => return Evidence::StoodDown(answer.term),
            Err(error) if is_unknown(&error) => {
                unknown = unknown.or(Some(error));
                continue;
            }
            Err(error) => error,
        };
        if let LinkError::Refused(_) = error {
            if let Ok(says) = link.standing(&view.standing.lineage, left()).await {
                if says.runs {
                    return Evidence::Says(says);
                }
            }
        }
        return without_answer(&error, word);
    }
    without_answer(&unknown.expect("a relationship has an id"), word)
}
