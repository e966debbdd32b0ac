//! What a host that was succeeded tells of it: by whom, from which point, since when two ran, and how
//! much of what was written here is here only.
//!
//! For people: no decision rests on it. It is stored with the fact that the host stood down, in one
//! file; what the partner did not say at first is asked for until it does.

use std::time::Duration;

use api::Succeeded;
use jiff::Timestamp;
use model::{Bytes, Lineage, PointId, Problem, VmState};
use replica::run::Evidence;
use replica::standing::{Met, Role, Standing, Succession};
use tokio::time::timeout;

use super::handle::View;
use super::owner::Owner;
use super::unsent;

/// How long diskd may take to tell how much was not sent: the partner waits for the answer, for
/// [`CONTACT_TIMEOUT`](replica::wire::CONTACT_TIMEOUT), and the guest is held already.
const LIMIT: Duration = Duration::from_secs(1);

/// `next`, which knows when its current term was opened if that is news to `before`.
pub(super) fn dated(before: &Standing, mut next: Standing) -> Standing {
    if next.lineage.current().id != before.lineage.current().id {
        next.opened = Some(Timestamp::now());
        next.succession = None;
    }
    next
}

/// Whether the partner knows more of how this host was succeeded.
pub(super) fn is_unclear(standing: &Standing) -> bool {
    let known = standing.succession.as_ref();
    standing.stood_down.is_some() && known.is_some_and(|known| known.opened.is_none())
}

/// The point from which `theirs` went on elsewhere.
fn fork(ours: &Lineage, theirs: &Lineage) -> Option<PointId> {
    let own = |id| ours.terms().iter().any(|term| term.id == id);
    let first = theirs.terms().iter().find(|term| !own(term.id));
    first.and_then(|term| term.parent)
}

/// How this host was succeeded, if it was.
pub(crate) fn succeeded(standing: &Standing) -> Option<Succeeded> {
    let theirs = standing.stood_down.as_ref()?;
    let known = standing.succession.clone().unwrap_or_default();
    let term = theirs.current();
    Some(Succeeded {
        host: term.opener.clone(),
        term: term.number,
        from: fork(&standing.lineage, theirs),
        opened: known.opened,
        held: known.held,
        unsent: known.unsent,
    })
}

impl Owner {
    /// The partner's lineage was taken into account: the guest is held still if it was succeeded, then
    /// that is stored, with what is known of it.
    pub(super) async fn met(&mut self, met: Met, opened: Option<Timestamp>) -> Result<(), Problem> {
        let Met { standing, gate } = met;
        let mut next = standing;
        let mut overtaken = false;
        if gate {
            let before = self.view();
            let asks = self.is_asked_about();
            let ran = !matches!(before.state, VmState::Off | VmState::Paused);
            self.gate().await?;
            let news = next.stood_down != before.standing.stood_down;
            overtaken = news && asks;
            if news || next.succession.is_none() {
                next.succession = Some(Succession {
                    opened,
                    held: ran.then(Timestamp::now),
                    unsent: self.written_here(&before).await,
                });
            }
        }
        if let Some(known) = &mut next.succession {
            known.opened = known
                .opened
                .or(opened.filter(|_| next.stood_down.is_some()));
        }
        self.store(next)?;
        if overtaken {
            // What is said to the start that is under way was said about the term before.
            let view = self.view();
            if let Err(problem) = view.standing.start(&view.thing(), &Evidence::Unasked) {
                self.start_failed(problem);
            }
        }
        Ok(())
    }

    /// How much is here that the partner does not have, if anybody can tell.
    async fn written_here(&self, view: &View) -> Option<Bytes> {
        if view.standing.role == Role::FailedOver {
            // All that was written since then lies above the point.
            return view.home.machine.as_ref()?.written_above();
        }
        let socket = self.supervisor.diskd_socket();
        let pending = unsent::pending(&socket, &view.home.path);
        timeout(LIMIT, pending).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_was_succeeded_names_the_point_at_which_the_other_one_went_on() {
        let ours = Lineage::begin("castor");
        let point = PointId {
            term: ours.current().id,
            sequence: 7,
        };
        let theirs = ours.branch(point, "pollux").expect("on it");
        let mut standing = Standing::primary(ours);
        assert_eq!(succeeded(&standing), None);
        standing.stood_down = Some(theirs);
        let told = succeeded(&standing).expect("it was");
        assert_eq!((told.host.as_str(), told.term), ("pollux", 2));
        assert_eq!((told.from, told.opened), (Some(point), None));
        assert!(!is_unclear(&standing), "it stood down when asked");
        standing.succession = Some(Succession::default());
        assert!(is_unclear(&standing));
    }

    #[test]
    fn a_term_is_dated_where_it_is_opened_and_not_when_it_goes_on() {
        let before = Standing::primary(Lineage::begin("castor"));
        assert_eq!(dated(&before, before.clone()).opened, None);
        let mut next = before.clone();
        next.lineage = Lineage::begin("castor");
        assert!(dated(&before, next).opened.is_some());
    }
}
