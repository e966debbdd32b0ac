//! The owner's part in becoming the replica of the host that took over.
//!
//! ```text
//!   Reverse --> stood down for it, off --> diskd tells where the disks may differ --> twin made of them
//!                    |                         |                                        |
//!                    refused, nothing changed  nobody can tell: all of it may           the owner ends
//! ```

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use diskd::control::{Reply, Request};
use model::{Code, DiskId, PointId, Problem, VmState};
use replica::source::Progress;
use replica::standing::Relationship;
use replica::wire::{Reverse, Reversed};

use super::branch::{Branch, Written};
use super::handle::{Answer, View};
use super::owner::{Happening, Owner, refuse};
use super::source::{self, DiskdSource, ask, segments};
use super::{create, progress};
use crate::former::{self, Giving, Turning};

/// How long diskd may take for what it makes durable, or reads of a segment: less than whoever asks waits.
const LIMIT: Duration = Duration::from_secs(30);

/// What the host that took over is told, and where the twin is at home.
pub(crate) type Turned = (PathBuf, Reversed);

/// Where the disks may differ from what the partner has; none if nobody can tell.
pub(super) type Differing = Result<Option<Vec<Written>>, Problem>;

impl Owner {
    /// Finds out where the disks differ, if this host may become the replica.
    pub(super) async fn turn(&mut self, asked: Box<Reverse>, answer: Answer<Turned>) {
        if let Err(problem) = self.may_turn(&asked).await {
            return refuse(answer, problem);
        }
        let view = self.view();
        let kept = kept(&view, &asked);
        let known = match self.is_known(&view, asked.newest) {
            Ok(known) => known,
            Err(problem) => return refuse(answer, problem),
        };
        self.changing = true;
        let driver = self.stop_driver();
        let (supervisor, host) = (self.supervisor.clone(), Arc::clone(&self.host));
        let wanted = asked.enrol.disks.clone();
        self.spawn(async move {
            let found = async {
                if let Some(driver) = driver {
                    // It ends by itself; a panic was logged.
                    let _ = driver.await;
                }
                if kept.is_some() {
                    return Ok(kept);
                }
                let (Some(machine), true) = (&view.home.machine, known) else {
                    return Ok(None);
                };
                supervisor.serve(&host, &view, machine).await?;
                find(&view, &wanted, supervisor.diskd_socket())
                    .await
                    .map(Some)
            };
            let found = found.await;
            let ended = supervisor.shut_down().await;
            Happening::Turning(ended.and(found), asked, answer)
        });
    }

    async fn may_turn(&mut self, asked: &Reverse) -> Result<(), Problem> {
        let theirs = &asked.enrol.lineage;
        // Whoever asks took over: this host may not have heard of it yet.
        self.contact(theirs, None).await?;
        let view = self.view();
        let thing = view.thing();
        if self.changing || self.exports > 0 || self.ending || self.enabling.is_some() {
            let reason = "has its disks or its replication changed there at the moment";
            return Err(Problem::new(Code::Conflict, thing, reason, "Try again"));
        }
        let runs = view.state != VmState::Off;
        let relationship = relationship(&view, asked);
        view.standing.turn(&thing, theirs, runs, relationship)?;
        let Some(machine) = &view.home.machine else {
            let reason = "has no disks there";
            return Err(Problem::new(Code::Conflict, thing, reason, ""));
        };
        former::check(machine, &view.home.place, &asked.enrol).map(drop)
    }

    /// Whether what diskd has marked tells how the disks differ from the partner's `newest` point.
    fn is_known(&self, view: &View, newest: PointId) -> Result<bool, Problem> {
        let home = &view.home.path;
        let Some(Progress::Live {
            acknowledged,
            compared,
        }) = progress::read(home)?
        else {
            return Ok(false);
        };
        let lineage = &view.standing.lineage;
        let issued =
            newest.term != lineage.current().id || newest.sequence <= progress::reserved(home)?;
        let later = match compared {
            true => newest == acknowledged,
            false => newest.sequence >= acknowledged.sequence,
        };
        Ok(view.relation.is_some() && lineage.contains(newest) && issued && later)
    }

    /// It is known, or not, where the disks differ. True when the owner ends: the twin has another.
    pub(super) async fn turned(
        &mut self,
        found: Differing,
        asked: Box<Reverse>,
        answer: Answer<Turned>,
    ) -> bool {
        self.changing = false;
        let done = match found {
            // Somebody may have taken the VM back meanwhile.
            Ok(found) => self
                .may_turn(&asked)
                .await
                .and_then(|()| self.become_twin(found, &asked)),
            Err(problem) => Err(problem),
        };
        match done {
            Ok(turned) => {
                tracing::info!(vm = %self.id, "is the replica of the host that took over");
                self.host.forget(self.id);
                let _ = answer.send(Ok(turned));
                true
            }
            Err(problem) => {
                tracing::warn!(vm = %self.id, %problem, "does not become a replica");
                refuse(answer, problem);
                self.settle();
                false
            }
        }
    }

    /// Gives the disks back that the twin began with. True when the owner ends: the VM has another.
    pub(super) async fn give_back(&mut self, answer: Answer<PathBuf>) -> bool {
        let view = self.view();
        let thing = view.thing();
        let refuse_so = |reason: &str, way_out: String| {
            Err(Problem::new(Code::Conflict, &thing, reason, way_out))
        };
        let name = view.home.spec.name.clone();
        let given = async {
            let Some(store) = self.store.as_ref().filter(|_| view.home.machine.is_none()) else {
                let way_out = format!("`pollux vm show {name}` tells what it is");
                return refuse_so("did not become the replica of another host here", way_out);
            };
            let Some((branch, was)) = Branch::read(&view.home.place)? else {
                let way_out = format!("`pollux vm show {name}` tells what it is");
                return refuse_so("has no disks of its own that it could take back", way_out);
            };
            let _closed = store.opened.close_all(store).await?;
            let relation = view.relation.as_ref();
            let related = relation.is_some();
            let standing = view.standing.give_back(&thing, &branch.lineage, related)?;
            let giving = Giving {
                twin: &view.home.path,
                place: &view.home.place,
                was: &was,
                standing: &standing,
                relation,
            };
            let (mut home, host) = (PathBuf::new(), &self.host);
            // Under the lock of the journal: no point comes meanwhile.
            tokio::task::block_in_place(|| {
                store.take_over(|newest| {
                    if newest.is_some() {
                        let way_out = format!(
                            "`pollux failover start {name}` starts it from one; what it held before \
                             is kept: `pollux failover lost-writes {name}`"
                        );
                        return refuse_so("has recovery points already", way_out).map(drop);
                    }
                    store.while_lost_is_free(|| {
                        home = former::give_back(&giving, &host.layout.vms(), &host.stores)?;
                        Ok(())
                    })
                })
            })?;
            Ok(home)
        };
        let given = given.await;
        let ended = given.is_ok();
        if ended {
            tracing::info!(vm = %self.id, "has its disks back, and is stood down as before");
            self.host.forget(self.id);
        }
        // Fails only when nobody waits for it any more.
        let _ = answer.send(given);
        ended
    }

    fn become_twin(&self, found: Option<Vec<Written>>, asked: &Reverse) -> Result<Turned, Problem> {
        let view = self.view();
        let thing = view.thing();
        let (Some(machine), Some(relation)) = (&view.home.machine, &view.relation) else {
            let reason = "has no relationship any more";
            return Err(Problem::new(Code::Conflict, thing, reason, ""));
        };
        let again = relationship(&view, asked);
        let theirs = &asked.enrol.lineage;
        let standing = view.standing.turn(&thing, theirs, false, again)?;
        let lineage = view.standing.lineage.clone();
        let mut branch = Branch::new(lineage, asked.newest, found);
        branch.from = asked.newest_cut;
        branch.until = former::last_written(machine);
        let turning = Turning {
            machine,
            home: &view.home.path,
            place: &view.home.place,
            standing: &standing,
            relation,
            enrol: &asked.enrol,
            branch: &branch,
        };
        let (replicas, stores) = (self.host.layout.replicas(), Arc::clone(&self.host.stores));
        let home = tokio::task::block_in_place(|| {
            let home = former::turn(&turning, &replicas, &stores)?;
            let run = self.supervisor.run();
            if run.exists() {
                if let Err(error) = std::fs::remove_dir_all(run) {
                    tracing::warn!(folder = %run.display(), %error, "left behind");
                }
            }
            Ok::<_, Problem>(home)
        })?;
        let differs = branch.differs();
        Ok((home, Reversed { differs }))
    }
}

/// Whether this host was the replica before in the relationship that is asked for.
fn relationship(view: &View, asked: &Reverse) -> Relationship {
    let mut known = view.relation.iter();
    match known.any(|known| known.id == asked.enrol.relationship) {
        true => Relationship::Same,
        false => Relationship::New,
    }
}

/// Where the disks that are wanted differed when they were given back, if nothing was done with them since.
fn kept(view: &View, asked: &Reverse) -> Option<Vec<Written>> {
    let machine = view.home.machine.as_ref()?;
    let branch = Branch::given_back(machine)?;
    let same = branch.lineage == view.standing.lineage && branch.since == asked.newest;
    let known = branch.disks.filter(|_| same)?;
    let of = |id: &DiskId| {
        let found = known.iter().find(|one| one.disk == *id);
        let whole = || Written::new(*id, std::iter::once(0..size_of(view, *id)).collect());
        found.cloned().unwrap_or_else(whole)
    };
    Some(asked.enrol.disks.iter().map(of).collect())
}

/// The diskd that is asked.
struct Diskd {
    socket: PathBuf,
    thing: String,
}

impl Diskd {
    async fn ask(&self, request: Request) -> Result<Reply, Problem> {
        ask(&self.socket, &self.thing, &request, LIMIT).await
    }

    /// Where a disk may differ from what was confirmed.
    async fn differing(&self, disk: DiskId) -> Result<Vec<Range<u64>>, Problem> {
        let (mut all, mut from) = (Vec::new(), 0);
        loop {
            let reply = self.ask(Request::Differing { disk, from }).await?;
            let Reply::Differing { runs, next } = reply else {
                let reason = "its diskd gave an answer to another question";
                return Err(Problem::new(Code::Failed, &self.thing, reason, ""));
            };
            all.extend(runs);
            match next {
                Some(next) if next > from => from = next,
                _ => return Ok(all),
            }
        }
    }
}

/// Asks diskd where the disks that are `wanted` may differ from what was confirmed.
async fn find(view: &View, wanted: &[DiskId], socket: PathBuf) -> Result<Vec<Written>, Problem> {
    let thing = view.thing();
    let Some(relation) = &view.relation else {
        return Ok(Vec::new());
    };
    let diskd = Diskd {
        socket,
        thing: thing.clone(),
    };
    let track = Request::Track {
        relationship: relation.id,
        begin: false,
        sent: Vec::new(),
        but: source::left_out(&relation.configuration(&view.home.spec)),
    };
    diskd.ask(track).await?;
    let outbox = DiskdSource::outbox(&view.home.path);
    if outbox.exists() {
        let staged = segments(&outbox).map_err(|error| create::no_space_or(&thing, &error))?;
        for file in staged {
            diskd.ask(Request::FoldBack { file }).await?;
        }
    }
    let mut all = Vec::new();
    for disk in wanted.iter().copied() {
        let runs = match relation.disks.contains(&disk) {
            true => diskd.differing(disk).await?,
            // Nobody watched it.
            false => std::iter::once(0..size_of(view, disk)).collect(),
        };
        all.push(Written::new(disk, runs));
    }
    Ok(all)
}

fn size_of(view: &View, disk: DiskId) -> u64 {
    let mut disks = view.home.spec.disks.iter();
    disks
        .find(|spec| spec.id == disk)
        .map_or(0, |spec| spec.size.0)
}
