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
//! Killed anywhere it is asked for again and goes on: the partner answers the same again. Until the
//! partner has the first point its disks are as they were.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use diskd::control::Request;
use model::{Code, DiskChoice, DiskId, PointId, Problem, REGION_SIZE, RelationshipId, SeedId};
use replica::client::PeerLink;
use replica::link::LinkError;
use replica::source::Progress;
use replica::standing::Role;
use replica::wire::{Enrol, Reverse, Reversed};

use super::handle::{Answer, View};
use super::owner::{Happening, Owner, refuse};
use super::progress;
use super::relation::{Back, Relation};
use super::source::ask;
use crate::host::Host;
use crate::twin::{Store, not_a_twin};

/// How long diskd may take for what it makes durable.
const LIMIT: Duration = Duration::from_secs(120);
/// Runs of regions that are told at once.
const AT_ONCE: usize = 1024;

impl Owner {
    /// Makes the partner the replica; answered when it is.
    pub(super) fn reverse(&mut self, choice: Option<DiskChoice>, answer: Answer) {
        let (view, relation) = match self.may_reverse(choice) {
            Ok(both) => both,
            Err(problem) => return refuse(answer, problem),
        };
        self.reversing = Some(answer);
        let (host, supervisor) = (Arc::clone(&self.host), self.supervisor.clone());
        let store = self.store.clone();
        self.spawn(async move {
            let done = async {
                let machine = view
                    .home
                    .machine
                    .as_ref()
                    .ok_or_else(|| not_a_twin(&view))?;
                let term = view.standing.lineage.current().number;
                let budget = host.settings.copy_budget;
                let ensured =
                    supervisor.ensure(&host.programs, machine, term, budget, host.uses_kvm());
                ensured.await?;
                let back = Backwards {
                    host: &host,
                    view: &view,
                    relation: &relation,
                    socket: supervisor.diskd_socket(),
                };
                back.run(store).await
            };
            Happening::Reversed(done.await, Box::new(relation))
        });
    }

    /// What the new relationship is, recorded durably so that it stays the same.
    fn may_reverse(&mut self, choice: Option<DiskChoice>) -> Result<(View, Relation), Problem> {
        let view = self.view();
        let thing = view.thing();
        let refuse = |reason: String, way_out: &str| {
            Err(Problem::new(Code::Conflict, &thing, reason, way_out))
        };
        let Some(former) = view.relation.clone() else {
            let reason = "has no relationship that could be reversed".to_owned();
            return refuse(reason, "`pollux replica enable` replicates it");
        };
        if view.standing.role != Role::FailedOver {
            let reason = "was not failed over to this host".to_owned();
            return refuse(reason, "Ask on the host to which it was failed over");
        }
        if self.reversing.is_some() || self.ending || self.changing {
            let reason = "is being reversed, or changed, already".to_owned();
            return refuse(reason, "Wait for that");
        }
        view.standing.reverse(&thing)?;
        let (Some(machine), Some(store)) = (&view.home.machine, &self.store) else {
            return Err(not_a_twin(&view));
        };
        let back = match former.back {
            Some(back) => back,
            None => Back {
                relationship: RelationshipId::random(),
                seed: SeedId::random(),
                newest: tokio::task::block_in_place(|| store.newest())?,
            },
        };
        let choice = choice.unwrap_or(DiskChoice::All);
        let chosen = super::replicate::chosen(&machine.spec, &choice)?;
        if former.back != Some(back) {
            self.relate(Relation {
                back: Some(back),
                ..former.clone()
            })?;
        }
        let relation = Relation {
            choice,
            keep: former.keep.clone(),
            reversed: true,
            ..Relation::new(
                back.relationship,
                &former.partner,
                former.every_s,
                back.seed,
                chosen,
            )
        };
        Ok((self.view(), relation))
    }

    /// The partner is the replica, or is not.
    pub(super) fn reversed(&mut self, done: Result<(), Problem>, relation: Relation) {
        let done = done.and_then(|()| {
            let view = self.view();
            let next = view.standing.reverse(&view.thing())?;
            let begin = Progress::reversed(relation.seed, relation.disks.len());
            progress::write(&view.home.path, begin)?;
            self.relate(relation)?;
            self.store(next)
        });
        if done.is_ok() {
            tracing::info!(vm = %self.id, "is replicated back");
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
struct Backwards<'a> {
    host: &'a Arc<Host>,
    view: &'a View,
    /// The new one.
    relation: &'a Relation,
    socket: PathBuf,
}

impl Backwards<'_> {
    async fn run(&self, store: Option<Store>) -> Result<(), Problem> {
        let (Some(former), Some(store)) = (&self.view.relation, store) else {
            return Err(not_a_twin(self.view));
        };
        let back = former.back.ok_or_else(|| not_a_twin(self.view))?;
        self.track(store, back.newest).await?;
        let reversed = self.ask_partner(former, back).await?;
        match reversed.differs {
            Some(all) => {
                for disk in all {
                    self.suspect(disk.disk, &disk.regions).await?;
                }
                Ok(())
            }
            None => self.ask(&Request::Suspect).await,
        }
    }

    async fn ask(&self, request: &Request) -> Result<(), Problem> {
        ask(&self.socket, &self.view.thing(), request, LIMIT)
            .await
            .map(drop)
    }

    /// What this host wrote since the takeover is marked; what the newest point has more than the one
    /// that was taken over is suspect.
    async fn track(&self, store: Store, newest: PointId) -> Result<(), Problem> {
        let origin = self.view.home.machine.as_ref();
        let Some(origin) = origin.and_then(|machine| machine.origin.clone()) else {
            return Err(not_a_twin(self.view));
        };
        let relationship = self.relation.id;
        self.ask(&Request::TrackAbove { relationship }).await?;
        let between =
            tokio::task::spawn_blocking(move || store.changes_between(origin.point, newest));
        let between = between
            .await
            .map_err(|error| Problem::failed("polluxd", &error))??;
        let Some(disks) = between else {
            return self.ask(&Request::Suspect).await;
        };
        let known = |disk: &&DiskId| disks.iter().any(|one| one.id == **disk);
        for unknown in self.relation.disks.iter().filter(|disk| !known(disk)) {
            self.suspect(*unknown, std::slice::from_ref(&ALL)).await?;
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

    async fn suspect(&self, disk: DiskId, regions: &[Range<u64>]) -> Result<(), Problem> {
        if !self.relation.disks.contains(&disk) {
            return Ok(());
        }
        for regions in regions.chunks(AT_ONCE) {
            let regions = regions.to_vec();
            self.ask(&Request::SuspectRegions { disk, regions }).await?;
        }
        Ok(())
    }

    async fn ask_partner(&self, former: &Relation, back: Back) -> Result<Reversed, Problem> {
        let view = self.view;
        let configuration = self.relation.configuration(&view.home.spec);
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
