//! The owner's part in trying another point: a VM that was failed over, and is off, starts from another one
//! that the journal holds, and what it wrote since the failover goes.
//!
//! ```text
//!   failover/ above 5
//!     --> another/ above 3, pinned --> term and lineage durable --> the two exchanged --> the one above 5 goes
//!                                      this decides
//! ```
//!
//! Killed before, the VM stays above 5; afterwards it is above 3. Which of the two the folder `another` is
//! left from is told by the term that was opened with it ([`settle`]). Nothing runs from `another`: until it
//! has its place the VM is not started.

use std::io;
use std::path::Path;
use std::sync::Arc;

use api::{EventKind, Severity};
use model::{Bytes, Code, GenerationId, PointId, Problem, VmSpec, VmState};
use replica::run::Evidence;
use replica::standing::{Override, Standing};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::create::{exchange, publish, remove};
use super::folder::{Made, VmFolder};
use super::handle::{Answer, View};
use super::owner::{Happening, Owner, refuse};
use super::relation::Relation;
use super::succession;
use super::takeover::{Above, FAILOVER, make, overlays, since_failover, undo, unpin};
use crate::event::Draft;
use crate::host::Host;
use crate::partner;
use crate::twin::not_a_twin;

/// Folder of the VM above the other point, in the twin's home, until it has the place of [`FAILOVER`]; the
/// reason of its pin.
pub(crate) const ANOTHER: &str = "another";

/// A person wants another point.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) point: PointId,
    /// Whether what was written since the failover may go.
    pub(crate) drop_writes: bool,
    /// A person's word that the VM does not run elsewhere.
    pub(crate) word: Option<Override>,
}

impl Owner {
    pub(super) fn try_another(&mut self, choice: Choice, answer: Answer) {
        let Choice {
            point,
            drop_writes,
            word,
        } = choice;
        let ready = self
            .may_leave(drop_writes)
            .and_then(|()| self.begin_start());
        if let Err(problem) = ready {
            return refuse(answer, problem);
        }
        self.another = Some(point);
        self.starting.push(answer);
        let (host, view, round) = (Arc::clone(&self.host), self.view(), self.round);
        self.spawn(async move { Happening::Evidence(round, hear(&host, &view, word).await) });
    }

    /// Whether the point that the failover is from may be left.
    fn may_leave(&self, drop_writes: bool) -> Result<(), Problem> {
        let view = self.view();
        let thing = view.thing();
        view.standing.choosable(&thing)?;
        if view.state != VmState::Off {
            let name = &view.home.spec.name;
            let way_out = format!(
                "stop it first with `pollux vm stop {name}`, or end it with `pollux vm kill {name}`"
            );
            let reason = format!("is not off but {}", view.state);
            return Err(Problem::new(Code::Conflict, thing, reason, way_out));
        }
        self.may_drop(drop_writes, "another point does not have")
    }

    /// Whether what was written since the failover may go, which somebody lacks, and nobody is at work on.
    pub(super) fn may_drop(&self, drop_writes: bool, lacks: &str) -> Result<(), Problem> {
        self.check_idle()?;
        let view = self.view();
        let name = &view.home.spec.name;
        let machine = view.home.machine.as_ref();
        let Some((machine, origin)) = machine.and_then(|one| Some((one, one.origin.as_ref()?)))
        else {
            return Err(not_a_twin(&view));
        };
        let written = match machine.written_above() {
            Some(Bytes(0)) => return Ok(()),
            Some(written) => format!("has written {written}"),
            None => "may have written".to_owned(),
        };
        if drop_writes {
            return Ok(());
        }
        let point = origin.point;
        let reason = format!("{written} since it was failed over to point {point}, which {lacks}");
        let way_out = format!(
            "--drop-writes says that this may go; `pollux disk export {name}` takes it out first"
        );
        Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
    }

    /// Refuses while somebody is at work on the disks that would go.
    fn check_idle(&self) -> Result<(), Problem> {
        let view = self.view();
        let (reason, way_out) = if let Some(checkpoint) = view.merging_checkpoint() {
            let name = &view.home.spec.name;
            let way_out = format!("Wait until that is done; `pollux disk info {name}` shows it");
            (
                format!("is merging checkpoint `{}`", checkpoint.name),
                way_out,
            )
        } else if self.exports > 0 || self.changing || self.completing || self.ending {
            let reason =
                "is being exported, changed or completed, or its relationship ended, at the moment";
            (reason.to_owned(), "Try again when that is done".to_owned())
        } else {
            return Ok(());
        };
        Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
    }

    /// Goes to the point, if the evidence allows a start: durable before QEMU starts.
    pub(super) fn go_to(&mut self, point: PointId, evidence: &Evidence) -> Result<(), Problem> {
        self.heed(evidence)?;
        let view = self.view();
        let thing = view.thing();
        let (Some(store), Some(machine)) = (self.store.clone(), view.home.machine.clone()) else {
            return Err(not_a_twin(&view));
        };
        check_heard(&thing, view.relation.as_ref(), evidence)?;
        self.check_idle()?;
        let host = self.host.name();
        let next = view.standing.another(&thing, point, host, evidence)?;
        let (home, run) = (view.home.path.clone(), self.supervisor.run().to_owned());
        let folder = tokio::task::block_in_place(|| {
            // Nobody could reach what lives in the run folder once that is gone.
            Handle::current().block_on(self.supervisor.shut_down())?;
            settle(&home, &run, &view.standing)?;
            let received = VmFolder::read(&home)?.spec;
            let (spec, checkpoint) = since_failover(&VmSpec {
                generation_id: GenerationId::random(),
                disks: overlays(&view, &received, &store, point, "raw")?,
                checkpoints: Vec::new(),
                // As it was set up on this host.
                ..machine.spec
            })?;
            let above = Above {
                name: ANOTHER,
                made: Made::Failover,
                spec,
                twin: self.id,
                point,
                checkpoint: Some(checkpoint),
                term: Some(next.lineage.current().id),
            };
            make(&home, &store, above)
        })?;
        let decided = tokio::task::block_in_place(|| store.pin(point, FAILOVER))
            .and_then(|()| self.end_back(view.relation.clone()))
            .and_then(|()| self.store(succession::dated(&view.standing, next)));
        if let Err(problem) = decided {
            tokio::task::block_in_place(|| {
                undo(&store, &folder);
                unpin_or_warn(&home, &store);
            });
            return Err(problem);
        }
        self.say_left(&view, point);
        self.show(|view| {
            view.home.spec = folder.spec.clone();
            view.home.machine = Some(folder);
        });
        self.take_place()
    }

    /// Sees to it that the VM lies in [`FAILOVER`], if it went to another point.
    pub(super) fn take_place(&self) -> Result<(), Problem> {
        let view = self.view();
        let home = &view.home.path;
        let Some(machine) = view.home.machine.filter(VmFolder::waits_for_its_place) else {
            return Ok(());
        };
        tokio::task::block_in_place(|| {
            settle(home, self.supervisor.run(), &view.standing)?;
            self.show(|view| {
                let path = home.join(FAILOVER);
                view.home.machine = Some(VmFolder { path, ..machine });
            });
            if let Some(store) = &self.store {
                unpin_or_warn(home, store);
            }
            Ok(())
        })
    }

    fn say_left(&self, before: &View, point: PointId) {
        let machine = before.home.machine.as_ref();
        let left = machine.and_then(|machine| machine.origin.as_ref());
        let left = left.map_or_else(String::new, |origin| {
            format!(" instead of {}", origin.point)
        });
        let what =
            format!("goes to point {point}{left}; what was written since the failover is gone");
        tracing::info!(vm = %self.id, what, "in a new term");
        let name = before.home.spec.name.as_str();
        let draft = Draft::new(EventKind::FailedOver, Severity::Warning, name, what);
        self.host.events.record(draft.about(self.id));
    }

    /// What was asked for of replicating back is not gone on with: it would go on from what is left now.
    pub(super) fn end_back(&mut self, relation: Option<Relation>) -> Result<(), Problem> {
        match relation.filter(|relation| relation.back.is_some()) {
            Some(relation) => self.relate(Relation {
                back: None,
                ..relation
            }),
            None => Ok(()),
        }
    }
}

fn unpin_or_warn(home: &Path, store: &crate::twin::Store) {
    if let Err(problem) = unpin(home, store) {
        tracing::warn!(%problem, "a point stays pinned until polluxd starts again");
    }
}

impl VmFolder {
    /// Whether it is one that goes to another point, and nothing may run from there yet.
    pub(super) fn waits_for_its_place(&self) -> bool {
        self.path.ends_with(ANOTHER)
    }
}

/// What the partner says. A person's word stands in for one that is silent, not for one that was asked to
/// become the replica and refuses.
async fn hear(host: &Host, view: &View, word: Option<Override>) -> Evidence {
    let asked = view.relation.as_ref().is_some_and(|one| one.back.is_some());
    if asked && word.is_some() {
        let said = partner::evidence_to_start(host, view, None).await;
        if matches!(said, Evidence::Refused(_)) {
            return said;
        }
    }
    partner::evidence_to_start(host, view, word).await
}

/// A partner that was asked to become the replica may be it already, unless it says otherwise.
fn check_heard(
    thing: &str,
    relation: Option<&Relation>,
    evidence: &Evidence,
) -> Result<(), Problem> {
    let Some(relation) = relation.filter(|relation| relation.back.is_some()) else {
        return Ok(());
    };
    let (partner, name) = (&relation.partner, replica::run::name(thing));
    let (code, says, way_out) = match evidence {
        Evidence::Says(_) | Evidence::Leased(_) | Evidence::Override(_) => return Ok(()),
        // In the relationship that it was asked for it does not know the one before.
        Evidence::Refused(problem) => {
            let says = format!("refuses ({} {})", problem.thing, problem.reason);
            let way_out = format!(
                "`pollux failover reverse {name}` goes on with that; `pollux failover cancel {name}` on \
                 host `{partner}` takes it back"
            );
            (Code::Conflict, says, way_out)
        }
        _ => {
            let way_out =
                "Try again when it answers; if it is lost, say so with --force --because STATEMENT";
            (
                Code::Unreachable,
                "does not answer".to_owned(),
                way_out.to_owned(),
            )
        }
    };
    let reason = format!(
        "was to be replicated back: host `{partner}`, which {says}, may be its replica already"
    );
    Err(Problem::new(code, thing, reason, way_out))
}

/// Ends what was begun with the folder [`ANOTHER`] in the home of a failed-over VM that is off: it takes the
/// place of [`FAILOVER`] if its term was opened, else it goes. Blocking.
pub(crate) fn settle(home: &Path, run: &Path, standing: &Standing) -> Result<(), Problem> {
    settle_by(exchange, home, run, standing)
}

fn settle_by(
    exchange: impl Fn(&Path, &Path) -> io::Result<()>,
    home: &Path,
    run: &Path,
    standing: &Standing,
) -> Result<(), Problem> {
    let another = home.join(ANOTHER);
    if !another.exists() {
        return Ok(());
    }
    let failed = |error: io::Error| Problem::failed(another.display().to_string(), &error);
    let origin = VmFolder::read(&another)?.origin;
    let term = origin.and_then(|origin| origin.term);
    let mut terms = standing.lineage.terms().iter();
    if terms.any(|opened| Some(opened.id) == term) {
        // What its diskd kept there is about the disks that go.
        if run.exists() {
            std::fs::remove_dir_all(run).map_err(failed)?;
        }
        let failover = home.join(FAILOVER);
        if failover.exists() {
            match exchange(&another, &failover) {
                Ok(()) => return remove(&another).map_err(failed),
                Err(error) if cannot_exchange(&error) => remove(&failover).map_err(failed)?,
                Err(error) => return Err(failed(error)),
            }
        }
        // One that was killed here finds no `failover`.
        return publish(&another, &failover).map_err(failed);
    }
    remove(&another).map_err(failed)
}

/// Whether a file system knows no exchange of names.
fn cannot_exchange(error: &io::Error) -> bool {
    let code = Errno::from_io_error(error);
    code.is_some_and(|code| [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP].contains(&code))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use model::{Lineage, RelationshipId, SeedId, TermId};
    use replica::standing::Standing;

    use super::super::complete::tests::failed_over;
    use super::super::relation::Back;
    use super::*;
    use crate::twin::Store;

    /// A VM that is failed over to one point, with its folder above another one beside it.
    struct Scratch {
        home: tempfile::TempDir,
        store: Store,
        points: [PointId; 2],
        /// How it stands before and after it goes to the other point.
        standings: [Standing; 2],
    }

    impl Scratch {
        /// `same`: the other point is the one point again.
        fn new(same: bool) -> Self {
            let home = tempfile::tempdir().expect("scratch");
            let (store, folder, points) = failed_over(home.path());
            let origin = folder.origin.expect("it lies above one");
            let from = origin.point;
            let mut others = points.iter().copied().filter(|point| *point != from);
            let to = if same { Some(from) } else { others.next_back() }.expect("a point");
            let mut terms: Vec<model::Term> = Lineage::begin("castor").into();
            terms[0].id = from.term;
            let history = Lineage::try_from(terms).expect("one term");
            let standing = |point| {
                let lineage = history.branch(point, "pollux").expect("on it");
                Standing::primary(lineage)
            };
            let standings = [standing(from), standing(to)];
            let above = Above {
                name: ANOTHER,
                made: Made::Failover,
                spec: folder.spec,
                twin: origin.twin,
                point: to,
                checkpoint: origin.checkpoint,
                term: Some(standings[1].lineage.current().id),
            };
            make(home.path(), &store, above).expect("made");
            store.pin(to, FAILOVER).expect("pinned");
            Self {
                home,
                store,
                points: [from, to],
                standings,
            }
        }

        fn run(&self) -> PathBuf {
            self.home.path().join("run")
        }

        /// What a polluxd that is started now makes of it: the point that the VM lies above, and the term.
        fn settled(&self, standing: &Standing) -> (PointId, Option<TermId>) {
            let home = self.home.path();
            settle(home, &self.run(), standing).expect("settled");
            unpin(home, &self.store).expect("unpinned");
            assert!(!home.join(ANOTHER).exists());
            let origin = VmFolder::read(&home.join(FAILOVER)).expect("read").origin;
            let origin = origin.expect("it lies above a point");
            for point in self.store.points().expect("listed") {
                let pins: &[&str] = match point.id == origin.point {
                    true => &[FAILOVER],
                    false => &[],
                };
                assert_eq!(point.pins, pins, "{}", point.id);
            }
            (origin.point, origin.term)
        }
    }

    #[test]
    fn killed_anywhere_it_lies_above_the_one_point_or_the_other() {
        for same in [false, true] {
            // Before the term is opened; after that; and when the two have changed their names.
            let scratch = Scratch::new(same);
            let before = scratch.settled(&scratch.standings[0]);
            assert_eq!(before, (scratch.points[0], None));
            assert_eq!(scratch.settled(&scratch.standings[0]), before, "again");

            for exchanged in [false, true] {
                let scratch = Scratch::new(same);
                let (home, after) = (scratch.home.path(), &scratch.standings[1]);
                std::fs::create_dir(scratch.run()).expect("made");
                if exchanged {
                    std::fs::remove_dir(scratch.run()).expect("removed");
                    exchange(&home.join(ANOTHER), &home.join(FAILOVER)).expect("exchanged");
                }
                let term = after.lineage.current().id;
                assert_eq!(scratch.settled(after), (scratch.points[1], Some(term)));
                assert!(
                    !scratch.run().exists(),
                    "what is there is about other disks"
                );
            }
        }
    }

    #[test]
    fn where_names_cannot_be_exchanged_the_one_goes_before_the_other_has_its_place() {
        let settle_by = |scratch: &Scratch, errno: Errno| {
            let no_exchange = |_: &Path, _: &Path| Err(errno.into());
            let standing = &scratch.standings[1];
            super::settle_by(no_exchange, scratch.home.path(), &scratch.run(), standing)
        };
        for killed in [false, true] {
            let scratch = Scratch::new(false);
            let (home, after) = (scratch.home.path(), &scratch.standings[1]);
            settle_by(&scratch, Errno::IO).expect_err("the file system is broken");
            assert!(home.join(ANOTHER).exists() && home.join(FAILOVER).exists());
            if killed {
                remove(&home.join(FAILOVER)).expect("removed");
            } else {
                settle_by(&scratch, Errno::INVAL).expect("settled");
                assert!(!home.join(ANOTHER).exists());
            }
            let term = after.lineage.current().id;
            assert_eq!(scratch.settled(after), (scratch.points[1], Some(term)));
        }
    }

    #[test]
    fn a_partner_that_was_asked_to_become_the_replica_says_that_it_is_not_or_is_lost() {
        let (thing, seed) = ("VM `web`", SeedId::random());
        let mut relation = Relation::new(RelationshipId::random(), "castor", 30, seed, Vec::new());
        let silent = Evidence::Unreachable("no route".to_owned());
        check_heard(thing, Some(&relation), &silent).expect("it was not asked");
        relation.back = Some(Back {
            relationship: RelationshipId::random(),
            seed,
            newest: PointId {
                term: TermId::random(),
                sequence: 1,
            },
            newest_cut: None,
            tracked: false,
        });
        let problem = check_heard(thing, Some(&relation), &silent).expect_err("it may be");
        assert_eq!(problem.code, Code::Unreachable);
        assert!(problem.reason.contains("castor"), "{problem}");
        let unknown = Problem::new(Code::NotFound, thing, "has another relationship there", "");
        let problem = check_heard(thing, Some(&relation), &Evidence::Refused(unknown));
        let problem = problem.expect_err("it is there");
        assert_eq!(problem.code, Code::Conflict);
        assert!(!problem.reason.contains("does not answer"), "{problem}");
        for part in ["failover reverse web", "failover cancel web", "castor"] {
            assert!(problem.way_out.contains(part), "{problem}");
        }
        let at = jiff::Timestamp::UNIX_EPOCH;
        let word = Override::new("castor has burnt down", "root", at).expect("a statement");
        check_heard(thing, Some(&relation), &Evidence::Override(word)).expect("a word");
    }

    #[test]
    fn what_was_written_above_a_point_is_told_by_its_files() {
        let scratch = Scratch::new(false);
        let machine = VmFolder::read(&scratch.home.path().join(FAILOVER)).expect("read");
        assert_eq!(
            machine.written_above(),
            Some(Bytes(0)),
            "it was never opened"
        );
        let overlay = &machine.spec.disks[0].overlays[0];
        let (data, _) = machine.overlay_files(overlay);
        std::fs::create_dir_all(data.parent().expect("a folder")).expect("made");
        std::fs::write(&data, vec![1; 64 << 10]).expect("written");
        assert!(machine.written_above() >= Some(Bytes(64 << 10)));
        let flat = VmFolder {
            origin: None,
            ..machine
        };
        assert_eq!(flat.written_above(), None, "nobody can tell");
    }
}
