//! The owner's part in replicating back: this host took over, and its partner becomes the replica.
//!
//! ```text
//!   relation.back: the new relationship, durable
//!     --> diskd tracks: what was written above the point is marked
//!     --> what the points after that one changed is suspect
//!     --> Reverse --> the partner is the replica, and tells where its disks may differ: suspect
//!     --> progress, relation, standing durable: primary --> drive
//! ```
//!
//! The first two steps are taken when the failover is completed ([`super::complete`]) too: what was written
//! above the point is merged then.
//!
//! Killed anywhere it is asked for again and goes on: the partner answers the same again. Until the
//! partner has the first point its disks are as they were, and it may have them back; asked for once more,
//! it becomes the replica again in the same relationship, by another seed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use diskd::control::Request;
use model::{Code, DiskChoice, DiskId, Problem, REGION_SIZE, RelationshipId, SeedId};
use replica::client::PeerLink;
use replica::link::LinkError;
use replica::run::{Evidence, named};
use replica::source::Progress;
use replica::standing::{Role, Standing};
use replica::wire::{Enrol, Reverse, Reversed};

use super::handle::{Answer, View};
use super::owner::{Happening, Owner, refuse};
use super::progress;
use super::relation::{Back, Relation};
use super::source::{DiskdSource, ask, segments};
use super::supervisor::Supervisor;
use crate::host::Host;
use crate::partner;
use crate::twin::{Store, not_a_twin};

/// How long diskd may take for what it makes durable.
const LIMIT: Duration = Duration::from_secs(120);
/// Runs of regions that are told at once.
const AT_ONCE: usize = 1024;

impl Owner {
    /// Makes the partner the replica, and the failover final if it can be; answered when the partner is.
    pub(super) fn reverse(&mut self, choice: Option<DiskChoice>, answer: Answer) {
        if self.is_reversed() {
            return self.reverse_again(choice, answer);
        }
        let (backwards, relation) = match self.may_reverse(choice) {
            Ok(both) => both,
            Err(problem) => return refuse(answer, problem),
        };
        self.reversing = Some(answer);
        self.spawn(async move {
            Happening::Reversed(backwards.run(&relation).await, Box::new(relation))
        });
    }

    fn is_reversed(&self) -> bool {
        let view = self.view();
        let relation = view.relation.as_ref();
        view.is_sent() && relation.is_some_and(|relation| relation.reversed)
    }

    /// The answer was lost; or the partner, which became the replica, has its disks back.
    fn reverse_again(&mut self, choice: Option<DiskChoice>, answer: Answer) {
        if let Err(problem) = self.check_idle_to_reverse() {
            return refuse(answer, problem);
        }
        self.reversing = Some(answer);
        let (host, view) = (Arc::clone(&self.host), self.view());
        self.spawn(async move {
            Happening::ReplicaSays(partner::evidence(&host, &view, None).await, choice)
        });
    }

    pub(super) async fn replica_says(&mut self, evidence: Evidence, choice: Option<DiskChoice>) {
        let again = async {
            match self.must_reverse_again(evidence).await? {
                true => self.again(choice).map(Some),
                false => Ok(None),
            }
        };
        let done = match again.await {
            Ok(Some((backwards, relation))) => {
                let driver = self.stop_driver();
                return self.spawn(async move {
                    if let Some(driver) = driver {
                        // It ends by itself; a panic was logged.
                        let _ = driver.await;
                    }
                    Happening::Reversed(backwards.run(&relation).await, Box::new(relation))
                });
            }
            Ok(None) => Ok(()),
            Err(problem) => Err(problem),
        };
        if let Some(answer) = self.reversing.take() {
            // Fails only when nobody waits for it any more.
            let _ = answer.send(done);
        }
        self.drive();
    }

    /// Whether the partner is not the replica that it was made, as it says.
    async fn must_reverse_again(&mut self, evidence: Evidence) -> Result<bool, Problem> {
        let theirs = match evidence {
            Evidence::Says(theirs) | Evidence::Leased(theirs) => theirs,
            Evidence::Refused(problem) => return Err(named(problem, &self.thing())),
            Evidence::Unreachable(why) => {
                let view = self.view();
                let relation = view.relation.as_ref();
                let partner = relation.map_or("", |relation| &relation.partner);
                let reason = format!(
                    "was replicated back, and host `{partner}`, which may have its own disks back \
                     since, does not answer: {why}"
                );
                let way_out = format!(
                    "Try again when it answers; if it is lost for good, `pollux replica remove {}` \
                     ends the replication",
                    view.home.spec.name
                );
                let thing = view.thing();
                return Err(Problem::new(Code::Unreachable, thing, reason, way_out));
            }
            _ => return Err(not_a_twin(&self.view())),
        };
        self.heard(&theirs).await?;
        // Nobody renews a lease there any more.
        let standing = self.view().standing;
        self.store(standing.without_replica(&theirs, standing.agreement))?;
        self.apply_lease().await;
        let view = self.view();
        view.standing.reverse(&view.thing())?;
        // Killed on the way, it goes on with what it was asked for last.
        let is_done = view
            .relation
            .as_ref()
            .is_some_and(|relation| relation.back.is_none_or(|back| back.seed == relation.seed));
        Ok(theirs.role != Role::Replica || !is_done)
    }

    /// What makes the partner the replica once more, in the same relationship: what differs is known for that.
    /// By a seed of its own: what was cut for its disks before is not taken in.
    fn again(&mut self, choice: Option<DiskChoice>) -> Result<(Backwards, Relation), Problem> {
        let view = self.view();
        let (Some(machine), Some(former)) = (&view.home.machine, view.relation.clone()) else {
            return Err(not_a_twin(&view));
        };
        let Some(known) = former.back else {
            let reason = "was replicated back by an older Pollux, which kept nothing of how";
            let way_out = format!(
                "End it on both hosts with `pollux replica remove {}`; `pollux replica enable` copies \
                 everything anew",
                view.home.spec.name
            );
            return Err(Problem::new(Code::Conflict, view.thing(), reason, way_out));
        };
        let choice = choice.unwrap_or_else(|| former.choice.clone());
        let disks = super::replicate::chosen(&machine.spec, &choice)?;
        let back = match known.seed == former.seed {
            true => Back {
                seed: SeedId::random(),
                tracked: true,
                ..known
            },
            false => known,
        };
        self.relate(Relation {
            back: Some(back),
            ..former.clone()
        })?;
        let relation = Relation {
            choice,
            disks,
            seed: back.seed,
            back: Some(back),
            ..former.clone()
        };
        let backwards = Backwards {
            host: Arc::clone(&self.host),
            view: self.view(),
            supervisor: self.supervisor.clone(),
            store: None,
            former,
            back,
        };
        Ok((backwards, relation))
    }

    /// Refuses while something else is done that it would disturb.
    fn check_idle_to_reverse(&self) -> Result<(), Problem> {
        let reason = if self.is_launching() {
            // It may be going to another point.
            "is being started at the moment"
        } else if self.reversing.is_some() || self.ending || self.completing {
            "is being reversed, completed or ended at the moment"
        } else {
            return Ok(());
        };
        let way_out = "Try again when that is done";
        Err(Problem::new(Code::Conflict, self.thing(), reason, way_out))
    }

    fn may_reverse(
        &mut self,
        choice: Option<DiskChoice>,
    ) -> Result<(Backwards, Relation), Problem> {
        let view = self.view();
        let thing = view.thing();
        let refuse = |reason: &str, way_out: &str| {
            Err(Problem::new(Code::Conflict, &thing, reason, way_out))
        };
        let Some(former) = view.relation.clone() else {
            let reason = "has no relationship that could be reversed";
            return refuse(reason, "`pollux replica enable` replicates it");
        };
        if view.standing.role != Role::FailedOver {
            let reason = "was not failed over to this host";
            let name = &view.home.spec.name;
            let way_out = format!(
                "Ask on the host to which it was failed over. If it was taken back from there by force, \
                 `pollux failover cancel {name}` there makes that host the replica again"
            );
            return refuse(reason, &way_out);
        }
        self.check_idle_to_reverse()?;
        view.standing.reverse(&thing)?;
        let Some(machine) = &view.home.machine else {
            return Err(not_a_twin(&view));
        };
        let choice = choice.unwrap_or(DiskChoice::All);
        let disks = super::replicate::chosen(&machine.spec, &choice)?;
        let backwards = self.backwards()?;
        let back = backwards.back;
        let relation = Relation {
            choice,
            keep: former.keep.clone(),
            reversed: true,
            // Should it be asked for once more.
            back: Some(back),
            ..Relation::new(
                back.relationship,
                &former.partner,
                former.every_s,
                back.seed,
                disks,
            )
        };
        Ok((backwards, relation))
    }

    /// The failover is final, if nobody holds a point of it any more; else a person completes it later.
    fn make_final(&self, standing: &Standing) -> Result<Standing, Problem> {
        let closed = match self.store.as_ref().filter(|_| !standing.completed) {
            Some(store) => tokio::task::block_in_place(|| store.close()),
            None => Ok(()),
        };
        match closed {
            Ok(()) => standing.complete(&self.thing()),
            Err(problem) => {
                tracing::info!(vm = %self.id, %problem, "its failover is not final yet");
                Ok(standing.clone())
            }
        }
    }

    /// What is done beside the owner; what the relationship is to be is recorded durably before, so that it
    /// stays the same.
    pub(super) fn backwards(&mut self) -> Result<Backwards, Problem> {
        let view = self.view();
        let former = view.relation.clone().ok_or_else(|| not_a_twin(&view))?;
        let back = match (former.back, &self.store) {
            (Some(back), _) => back,
            (None, Some(store)) => {
                let newest = tokio::task::block_in_place(|| store.newest_info())?;
                let back = Back {
                    relationship: RelationshipId::random(),
                    seed: SeedId::random(),
                    newest: newest.id,
                    newest_cut: Some(newest.time),
                    tracked: false,
                };
                self.relate(Relation {
                    back: Some(back),
                    ..former.clone()
                })?;
                back
            }
            (None, None) => return Err(not_a_twin(&view)),
        };
        Ok(Backwards {
            host: Arc::clone(&self.host),
            view,
            supervisor: self.supervisor.clone(),
            store: self.store.clone(),
            former,
            back,
        })
    }

    /// Tracking goes on from the takeover: it is known for good what the partner lacks.
    pub(super) fn note_tracked(&mut self) -> Result<(), Problem> {
        let Some(relation) = self.view().relation else {
            return Ok(());
        };
        match relation.back {
            Some(back) if !back.tracked => {
                let back = Some(Back {
                    tracked: true,
                    ..back
                });
                self.relate(Relation { back, ..relation })
            }
            _ => Ok(()),
        }
    }

    /// The partner is the replica, or is not.
    pub(super) fn reversed(&mut self, done: Result<(), Problem>, relation: Relation) {
        let done = done.and_then(|()| {
            let view = self.view();
            let asked = |relation: &Relation| relation.back.map(|back| back.relationship);
            if view.relation.as_ref().and_then(asked) != Some(relation.id) {
                let reason =
                    "went to another point, or lost its partner, while it was being reversed";
                let name = &view.home.spec.name;
                let way_out = format!(
                    "`pollux failover cancel {name}` on host `{}` takes back what was made there",
                    relation.partner
                );
                return Err(Problem::new(Code::Conflict, view.thing(), reason, way_out));
            }
            let begin = Progress::reversed(relation.seed, relation.disks.len());
            progress::write(&view.home.path, begin)?;
            let back = relation.back.map(|back| Back {
                tracked: true,
                ..back
            });
            self.relate(Relation { back, ..relation })?;
            let ready = match view.standing.role {
                // It was made so before, or is left for a person to make.
                Role::Primary => view.standing.clone(),
                Role::FailedOver | Role::Replica => self.make_final(&view.standing)?,
            };
            let next = ready.reverse(&view.thing())?;
            let stored = self.store(next);
            if let (Err(_), false, Some(store)) = (&stored, view.standing.completed, &self.store) {
                store.reopen();
            }
            stored
        });
        match &done {
            Ok(()) => {
                tracing::info!(vm = %self.id, "is replicated back");
                self.go_on_completing();
            }
            Err(problem) => {
                tracing::warn!(vm = %self.id, %problem, "is not replicated back");
            }
        }
        if let Some(answer) = self.reversing.take() {
            // Fails only when nobody waits for it any more.
            let _ = answer.send(done);
        }
        self.settle();
    }
}

/// Every region of a disk.
const ALL: Range<u64> = 0..u64::MAX;

/// What is done beside the owner.
pub(super) struct Backwards {
    host: Arc<Host>,
    view: View,
    supervisor: Supervisor,
    store: Option<Store>,
    former: Relation,
    back: Back,
}

impl Backwards {
    async fn ask(&self, request: &Request) -> Result<(), Problem> {
        let socket = self.supervisor.diskd_socket();
        ask(&socket, &self.view.thing(), request, LIMIT)
            .await
            .map(drop)
    }

    /// Makes the partner the replica in the new `relation`.
    async fn run(&self, relation: &Relation) -> Result<(), Problem> {
        self.track().await?;
        self.turn_partner(relation).await
    }

    /// Lets diskd track: what this host wrote since the takeover is marked, and what the newest point has
    /// more than the one that was taken over is suspect.
    pub(super) async fn track(&self) -> Result<(), Problem> {
        let view = &self.view;
        let machine = view.home.machine.as_ref().ok_or_else(|| not_a_twin(view))?;
        self.supervisor.serve(&self.host, view, machine).await?;
        if self.back.tracked {
            return self.track_on().await;
        }
        let relationship = self.back.relationship;
        self.ask(&Request::TrackAbove { relationship }).await?;
        let (Some(origin), Some(store)) = (machine.origin.clone(), self.store.clone()) else {
            return Err(not_a_twin(view));
        };
        let newest = self.back.newest;
        let between =
            tokio::task::spawn_blocking(move || store.changes_between(origin.point, newest));
        let between = between
            .await
            .map_err(|error| Problem::failed("polluxd", &error))??;
        let Some(disks) = between else {
            return self.ask(&Request::Suspect).await;
        };
        let known = |id: &DiskId| disks.iter().any(|one| one.id == *id);
        let all = machine.spec.disks.iter().map(|disk| disk.id);
        for unknown in all.filter(|id| !known(id)) {
            self.suspect(unknown, std::slice::from_ref(&ALL)).await?;
        }
        for disk in &disks {
            let regions: Vec<_> = disk
                .extents()
                .map(|run| {
                    let blocks = REGION_SIZE / model::BLOCK_SIZE;
                    run.start / blocks..run.end.div_ceil(blocks)
                })
                .collect();
            self.suspect(disk.id, &regions).await?;
        }
        Ok(())
    }

    /// Goes on where it was; what nobody can tell any more is suspect.
    async fn track_on(&self) -> Result<(), Problem> {
        self.ask(&Request::Track {
            relationship: self.back.relationship,
            begin: false,
            sent: Vec::new(),
            but: Vec::new(),
        })
        .await?;
        // What was staged for the partner as it was is marked again: what is suspect from now on would make
        // that suspect as well.
        let outbox = DiskdSource::outbox(&self.view.home.path);
        if outbox.exists() {
            let staged = segments(&outbox);
            let staged =
                staged.map_err(|error| super::create::no_space_or(&self.view.thing(), &error))?;
            for file in staged {
                self.ask(&Request::FoldBack { file }).await?;
            }
        }
        Ok(())
    }

    async fn suspect(&self, disk: DiskId, regions: &[Range<u64>]) -> Result<(), Problem> {
        let machine = self.view.home.machine.iter();
        let mut disks = machine.flat_map(|machine| &machine.spec.disks);
        if !disks.any(|one| one.id == disk) {
            return Ok(());
        }
        for regions in regions.chunks(AT_ONCE) {
            let regions = regions.to_vec();
            self.ask(&Request::SuspectRegions { disk, regions }).await?;
        }
        Ok(())
    }

    /// Makes the partner the replica in the new `relation`, and takes into account where its disks may
    /// differ.
    async fn turn_partner(&self, relation: &Relation) -> Result<(), Problem> {
        match self.ask_partner(relation).await?.differs {
            Some(all) => {
                for disk in all {
                    self.suspect(disk.disk, &disk.regions).await?;
                }
                Ok(())
            }
            None => self.ask(&Request::Suspect).await,
        }
    }

    async fn ask_partner(&self, relation: &Relation) -> Result<Reversed, Problem> {
        let (view, former, back) = (&self.view, &self.former, self.back);
        let configuration = relation.configuration(&view.home.spec);
        let reverse = Reverse {
            enrol: Enrol {
                relationship: back.relationship,
                revision: configuration.revision(),
                spec: configuration.spec,
                disks: configuration.disks,
                frequency_s: configuration.frequency_s,
                keep: configuration.keep,
                seed: back.seed,
                seed_from: None,
                lineage: view.standing.lineage.clone(),
            },
            newest: back.newest,
            newest_cut: back.newest_cut,
        };
        let ask = async |relationship| {
            let client = self.host.client(&former.partner);
            let link = PeerLink::new(client, view.home.spec.id, relationship);
            link.reverse(&reverse).await
        };
        let answer = match ask(former.id).await {
            // It may have agreed before.
            Err(LinkError::Refused(problem)) if problem.code == Code::NotFound => {
                match ask(back.relationship).await {
                    Err(LinkError::Refused(again)) if again.code == Code::NotFound => {
                        Err(LinkError::Refused(problem))
                    }
                    answer => answer,
                }
            }
            answer => answer,
        };
        answer.map_err(|error| match error {
            LinkError::Lost(problem) | LinkError::Refused(problem) => problem,
        })
    }
}
