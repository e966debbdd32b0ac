//! The owner's part in a relationship: agreeing on it, sending, ending it.
//!
//! ```text
//!   enable: relation durable --> enrol at the peer --> partner in the standing --> drive
//!   disable, at either: driver ends --> partner told --> marks, outbox and relation forgotten
//!   cancel: driver ends --> replica forgets it and deletes the twin --> as above
//!   set, disks change: configuration --> driver --> followed by the replica ([`super::follow`])
//! ```
//!
//! A crash between the first two steps leaves a relationship of which the peer knows nothing:
//! it shows as an error, and is disabled and enabled again.

use std::sync::Arc;

use model::{
    Code, DiskChoice, DiskId, Keep, Problem, RelationshipId, ReplicationState, SeedId, TermId,
    VmSpec,
};
use replica::client::PeerLink;
use replica::driver::{self, Begin, COMMANDS, Command};
use replica::link::LinkError;
use replica::report::LinkReport;
use replica::run::Evidence;
use replica::source::{Plan, Progress};
use replica::standing::{Override, Role};
use replica::wire::{Configuration, Enrol};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::folder::Made;
use super::handle::{Answer, View};
use super::owner::{Happening, Owner, refuse};
use super::progress;
use super::relation::{Relation, Terms};
use super::source::{DiskdSource, Record};
use super::tracking;
use crate::partner;

/// Longest time from one point to the next, in seconds.
const MAX_EVERY: u32 = 3600;

/// A running driver.
pub(super) struct Driver {
    /// In which it sends.
    term: TermId,
    commands: mpsc::Sender<Command>,
    configuration: watch::Sender<Arc<Configuration>>,
    task: JoinHandle<()>,
    report: watch::Receiver<LinkReport>,
}

/// Ends a driver that somebody else holds, and waits for its end.
pub(super) struct DriverHandle {
    commands: mpsc::Sender<Command>,
    report: watch::Receiver<LinkReport>,
}

impl Driver {
    pub(super) fn handle(&self) -> DriverHandle {
        DriverHandle {
            commands: self.commands.clone(),
            report: self.report.clone(),
        }
    }
}

impl DriverHandle {
    /// Sends nothing more; what it does at the moment it does to the end.
    pub(super) fn stop(&self) {
        // Full of commands that are heeded first, or ended already.
        let _ = self.commands.try_send(Command::Stop);
    }

    /// Cuts the next point now.
    pub(super) fn hurry(&self) {
        // One that is full of commands is waited for all the same, until its next point is due.
        let _ = self.commands.try_send(Command::Hurry);
    }

    /// Waits until it has come further, or ended.
    pub(super) async fn moved(&mut self) {
        // An error means that the reporter is gone, and nothing more comes.
        if self.report.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) {
        // An error means that the reporter is gone.
        let _ = self.report.clone().wait_for(|_| false).await;
    }
}

impl Owner {
    pub(super) fn enable(&mut self, peer: &str, terms: Terms, answer: Answer) {
        let seed_from = terms.seed_from.clone();
        let relation = match self.agree(peer, terms) {
            Ok(relation) => relation,
            Err(problem) => return refuse(answer, problem),
        };
        self.enabling = Some(answer);
        let view = self.view();
        let client = self.host.client(peer);
        let configuration = relation.configuration(&view.home.spec);
        let enrol = Enrol {
            relationship: relation.id,
            revision: configuration.revision(),
            spec: configuration.spec,
            disks: configuration.disks,
            frequency_s: configuration.frequency_s,
            keep: configuration.keep,
            seed: relation.seed,
            seed_from,
            lineage: view.standing.lineage.clone(),
        };
        let vm = self.id;
        self.spawn(async move {
            let asked = client.enrol(vm, &enrol).await;
            if asked.is_err() {
                // It may have agreed all the same: then it forgets it, if it can be reached.
                let _ = PeerLink::new(client, vm, enrol.relationship).remove().await;
            }
            Happening::Enrolled(asked.map(drop).map_err(|error| error.problem().clone()))
        });
    }

    /// Checks a new relationship and records it durably.
    fn agree(&mut self, peer: &str, terms: Terms) -> Result<Relation, Problem> {
        let view = self.view();
        let thing = view.thing();
        let refuse = |reason: String, way_out: &str| {
            Err(Problem::new(Code::Conflict, &thing, reason, way_out))
        };
        if let Some(relation) = &view.relation {
            let reason = format!("is replicated with host `{}` already", relation.partner);
            return refuse(reason, "End that first with `pollux replica remove`");
        }
        if let Some(theirs) = &view.standing.stood_down {
            let (term, name) = (theirs.current(), &view.home.spec.name);
            let reason = format!(
                "was taken over by host `{}` in term {}, and what is here is not what runs there",
                term.opener, term.number
            );
            let way_out = format!(
                "Replicate it from there. If that host is lost, `pollux vm start {name} --force --because \
                 STATEMENT` takes it back first"
            );
            return refuse(reason, &way_out);
        }
        let machine = match &view.home.machine {
            Some(machine) if view.standing.role == Role::Primary && machine.origin.is_none() => {
                machine
            }
            machine => {
                let reason = "lies above a recovery point and cannot be replicated yet".to_owned();
                let origin = machine.as_ref().and_then(|machine| machine.origin.as_ref());
                let way_out = match origin.map(|origin| origin.made) {
                    Some(Made::Failover) => format!(
                        "`pollux failover complete {}` makes ordinary disks of it",
                        view.home.spec.name
                    ),
                    _ => "Replicate the VM that it was made from".to_owned(),
                };
                return refuse(reason, &way_out);
            }
        };
        if machine.spec.disks.is_empty() {
            return refuse(
                "has no disk, so there is nothing to replicate".to_owned(),
                "",
            );
        }
        check_frequency(&thing, terms.every_s)?;
        self.host.trust.get(peer)?;
        let disks = chosen(&machine.spec, &terms.choice)?;
        let (id, seed) = (RelationshipId::random(), SeedId::random());
        let relation = Relation {
            choice: terms.choice,
            keep: terms.keep,
            ..Relation::new(id, peer, terms.every_s, seed, disks)
        };
        let home = &view.home.path;
        let begin = match terms.seed_from {
            Some(_) => Progress::from_copy(seed, relation.disks.len()),
            None => Progress::begin(seed),
        };
        progress::write(home, begin)?;
        relation
            .write(home)
            .map_err(|error| super::create::no_space_or(&thing, &error))?;
        self.show(|view| view.relation = Some(relation.clone()));
        Ok(relation)
    }

    pub(super) fn enrolled(&mut self, agreed: Result<(), Problem>) {
        let waiting = self.enabling.take();
        let done = agreed.and_then(|()| {
            let mut standing = self.view().standing;
            standing.partner = self.view().relation.map(|relation| relation.partner);
            self.store(standing)
        });
        let done = match done {
            Ok(()) => {
                tracing::info!(vm = %self.id, "replication enabled");
                self.settle();
                Ok(())
            }
            Err(problem) => {
                // The first problem is the one that matters.
                let _ = self.forget_relation(true, None);
                Err(problem)
            }
        };
        if let Some(answer) = waiting {
            // Fails only when nobody waits for it any more.
            let _ = answer.send(done);
        }
    }

    /// Starts the driver, if there is anything to send.
    pub(super) fn drive(&mut self) {
        let view = self.view();
        let Some(relation) = view.relation.clone().filter(|_| view.is_sent()) else {
            return;
        };
        if self.enabling.is_some() || self.ending || self.reversing.is_some() {
            return;
        }
        let term = view.standing.lineage.current().id;
        let ended = |driver: &Driver| driver.report.has_changed().is_err();
        let outlived = |driver: &Driver| ended(driver) || driver.term != term;
        if self.driver.as_ref().is_some_and(outlived) {
            // It was asked to stand down and did not. Or the partner took over, and it was taken back, or that
            // was called off: in another term. What it sent may be answered yet, and is recorded before another
            // driver begins.
            if let Some(task) = self.stop_driver() {
                self.parting = true;
                self.spawn(async move {
                    // A panic was logged.
                    let _ = task.await;
                    Happening::Parted
                });
            }
        }
        if self.parting {
            return;
        }
        let relation = match self.choose(relation) {
            Ok(relation) => relation,
            Err(problem) => {
                tracing::error!(vm = %self.id, %problem, "its disks are replicated as before");
                return self.show(|view| view.trouble = Some(problem.to_string()));
            }
        };
        if self.driver.is_some() {
            return self.reconfigure();
        }
        let configuration = Arc::new(relation.configuration(&view.home.spec));
        let (configurations, configuration) = watch::channel(configuration);
        match self.sender(&view, &relation, configuration) {
            Ok((source, begin)) => {
                let link = PeerLink::new(self.host.client(&relation.partner), self.id, relation.id);
                let (commands, orders) = mpsc::channel(COMMANDS);
                let first = ReplicationState::ReadyForInitialReplication;
                let (reports, report) = watch::channel(LinkReport::new(first));
                let (source, link) = (Arc::new(source), Arc::new(link));
                let span = tracing::info_span!("replication", vm = %self.id);
                let run = driver::run(source, link, begin, orders, reports);
                let task = tokio::spawn(run.instrument(span));
                self.show(|view| view.report = Some(report.clone()));
                self.driver = Some(Driver {
                    term,
                    commands,
                    configuration: configurations,
                    task,
                    report,
                });
            }
            Err(problem) => {
                tracing::error!(vm = %self.id, %problem, "cannot be replicated");
                self.show(|view| view.trouble = Some(problem.to_string()));
            }
        }
    }

    /// The relationship with the disks that are wanted now, recorded durably. Those of an initial
    /// replication stay until it is complete.
    fn choose(&mut self, relation: Relation) -> Result<Relation, Problem> {
        let disks = relation.wanted(&self.view().home.spec);
        if disks == relation.disks || self.is_seeding()? {
            return Ok(relation);
        }
        tracing::info!(vm = %self.id, ?disks, "other disks are replicated from now on");
        let relation = Relation { disks, ..relation };
        self.relate(relation.clone())?;
        Ok(relation)
    }

    /// Whether its initial replication, if it is replicated, is not complete.
    pub(super) fn is_seeding(&self) -> Result<bool, Problem> {
        let recorded = progress::read(&self.view().home.path)?;
        Ok(!matches!(recorded, Some(Progress::Live { .. })))
    }

    /// Tells the driver, if there is one, what the replica is to follow now.
    pub(super) fn reconfigure(&self) {
        let view = self.view();
        let (Some(driver), Some(relation)) = (&self.driver, &view.relation) else {
            return;
        };
        let configuration = relation.configuration(&view.home.spec);
        driver.configuration.send_if_modified(|known| {
            let changed = **known != configuration;
            *known = Arc::new(configuration);
            changed
        });
    }

    /// What the driver needs to send.
    fn sender(
        &self,
        view: &View,
        relation: &Relation,
        configuration: watch::Receiver<Arc<Configuration>>,
    ) -> Result<(DiskdSource, Begin), Problem> {
        let home = &view.home.path;
        let recorded = progress::read(home)?;
        let progress = recorded.unwrap_or_else(|| match relation.reversed {
            true => Progress::reversed(relation.seed, relation.disks.len()),
            false => Progress::begin(relation.seed),
        });
        let source = DiskdSource {
            vm: self.id,
            thing: view.thing(),
            socket: self.supervisor.diskd_socket(),
            home: home.clone(),
            relationship: relation.id,
            lineage: view.standing.lineage.clone(),
            configuration: configuration.clone(),
            record: tokio::sync::Mutex::new(Record {
                progress,
                reserved: progress::reserved(home)?,
            }),
            owner: self.me.clone(),
            longest_pause_us: Arc::clone(&view.pause_us),
            sums: Arc::clone(&view.staged),
            hashed: Arc::default(),
        };
        let (chance, _) = self.id.0.as_u64_pair();
        let plan = configuration.borrow().clone();
        let begin = Begin {
            plan: Plan {
                thing: view.thing(),
                partner: relation.partner.clone(),
                disks: relation.disks.clone(),
                lineage: view.standing.lineage.clone(),
                base_stays: relation.reversed,
                configuration: plan,
            },
            progress,
            suspended: relation.suspended,
            chance,
            configuration,
        };
        Ok((source, begin))
    }

    /// The driver of an earlier term has ended.
    pub(super) fn parted(&mut self) {
        self.parting = false;
        self.drive();
    }

    /// Ends the driver; what it does at the moment it does to the end.
    pub(super) fn stop_driver(&mut self) -> Option<JoinHandle<()>> {
        let driver = self.driver.take()?;
        // It also ends when the commands do.
        let _ = driver.commands.try_send(Command::Stop);
        self.show(|view| view.report = None);
        Some(driver.task)
    }

    pub(super) fn suspend(&mut self, suspended: bool) -> Result<(), Problem> {
        let view = self.view();
        let receiving = view.relation.clone();
        let receiving = receiving.filter(|_| view.standing.role == Role::Replica);
        if let Some(relation) = receiving {
            // The primary is told when it asks next, which it does every second.
            return self.relate(Relation {
                suspended,
                ..relation
            });
        }
        let relation = self.sending(&view)?;
        self.relate(Relation {
            suspended,
            ..relation
        })?;
        self.drive();
        let command = if suspended {
            Command::Suspend
        } else {
            Command::Resume
        };
        match &self.driver {
            Some(driver) => tell(&view, driver, command),
            None => Ok(()),
        }
    }

    /// Compares the replica's newest point with the disks, beside the sending.
    pub(super) fn verify(&mut self, number: u64) -> Result<(), Problem> {
        let view = self.view();
        let refuse = |reason: String, way_out: &str| {
            let thing = format!("the twin of {}", view.thing());
            Err(Problem::new(Code::Conflict, thing, reason, way_out))
        };
        if let Some(relation) = &view.relation {
            if view.standing.role != Role::Primary {
                let reason = "is compared with its primary on the primary only".to_owned();
                let name = view.home.spec.name.as_str();
                let way_out = format!(
                    "on host `{}`: `pollux replica verify {name} --against-primary`",
                    relation.partner
                );
                return refuse(reason, &way_out);
            }
        }
        let relation = self.sending(&view)?;
        let Some(driver) = &self.driver else {
            let reason = "is not sent to now".to_owned();
            return refuse(reason, "`pollux replica health` tells why");
        };
        let (state, goes_on) = {
            let report = driver.report.borrow();
            let last = report.verification.as_ref();
            (
                report.state,
                last.is_some_and(|last| last.outcome.is_none()),
            )
        };
        if relation.suspended || state != ReplicationState::Replicating {
            let state = if relation.suspended {
                ReplicationState::Suspended
            } else {
                state
            };
            let reason = format!("can be compared while it is Replicating; now it is {state}");
            return refuse(reason, "`pollux replica health` tells why, and what to do");
        }
        if goes_on {
            let reason = "is being compared already".to_owned();
            return refuse(reason, "Wait for that");
        }
        tell(&view, driver, Command::Verify(number))
    }

    /// Tells the driver, if there is one. A mailbox that is full of commands is no harm.
    pub(super) fn command(&self, command: Command) {
        if let Some(driver) = &self.driver {
            let _ = driver.commands.try_send(command);
        }
    }

    /// Replicates in another way from now on.
    pub(super) fn set(
        &mut self,
        every_s: Option<u32>,
        choice: Option<DiskChoice>,
        keep: Option<Keep>,
    ) -> Result<(), Problem> {
        let view = self.view();
        let mut relation = self.sending(&view)?;
        if let Some(every_s) = every_s {
            check_frequency(&view.thing(), every_s)?;
            relation.every_s = every_s;
        }
        relation.keep = keep.or(relation.keep);
        if let Some(choice) = choice {
            let disks = chosen(&view.home.spec, &choice)?;
            if disks != relation.disks && self.is_seeding()? {
                return Err(Problem::new(
                    Code::Conflict,
                    view.thing(),
                    "has its disks copied to its twin for the first time",
                    "Wait until that is done, or give it up with `pollux replica cancel`",
                ));
            }
            (relation.choice, relation.disks) = (choice, disks);
        }
        self.relate(relation)?;
        self.drive();
        Ok(())
    }

    /// Records the relationship durably.
    pub(super) fn relate(&mut self, relation: Relation) -> Result<(), Problem> {
        let view = self.view();
        relation
            .write(&view.home.path)
            .map_err(|error| super::create::no_space_or(&view.thing(), &error))?;
        self.show(|view| view.relation = Some(relation));
        Ok(())
    }

    /// The relationship, if this host sends.
    pub(super) fn sending(&self, view: &View) -> Result<Relation, Problem> {
        let refuse = |reason: &str, way_out: &str| {
            Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
        };
        match &view.relation {
            None => refuse("is not replicated", "`pollux replica enable` replicates it"),
            Some(relation) if view.standing.role == Role::FailedOver => {
                let reason = format!(
                    "was failed over to this host, and nothing is replicated back to host `{}`",
                    relation.partner
                );
                refuse(&reason, "`pollux replica remove` ends the replication")
            }
            Some(_) if view.standing.role != Role::Primary => {
                refuse("is received here", "Ask for that on its primary host")
            }
            Some(_) if self.enabling.is_some() => {
                refuse("is being enabled for replication", "Wait for that first")
            }
            Some(_) if self.ending => {
                refuse("has a replication that is being ended", "Wait for that")
            }
            Some(relation) => Ok(relation.clone()),
        }
    }

    pub(super) fn disable(&mut self, word: Option<Override>, answer: Answer<Option<Problem>>) {
        self.end(answer, true, word);
    }

    /// The partner ended the relationship; the twin stays.
    pub(super) fn removed(&mut self, answer: Answer<Option<Problem>>) {
        tracing::warn!(vm = %self.id, "the partner ends the replication");
        self.end(answer, false, None);
    }

    /// Ends the relationship here, and at the partner if it is to be told.
    fn end(&mut self, answer: Answer<Option<Problem>>, tell: bool, word: Option<Override>) {
        let view = self.view();
        let Some(relation) = view.relation.clone() else {
            let problem = Problem::new(Code::Conflict, view.thing(), "is not replicated", "");
            return refuse(answer, problem);
        };
        let busy = match (&self.enabling, self.ending) {
            (Some(_), _) => Some("is being enabled for replication"),
            (None, true) => Some("has a replication that is being ended"),
            (None, false) => None,
        };
        if let Some(reason) = busy {
            let way_out = "Wait for that first";
            return refuse(
                answer,
                Problem::new(Code::Conflict, view.thing(), reason, way_out),
            );
        }
        if let (Role::Replica, Some(_)) = (view.standing.role, view.standing.fence) {
            // Before the primary hears of the end, and runs on without one.
            let counted = view
                .standing
                .next_agreement(0)
                .and_then(|agreement| self.store(view.standing.released(agreement)));
            if let Err(problem) = counted {
                return refuse(answer, problem);
            }
        }
        self.ending = true;
        let driver = self.stop_driver();
        let sent = view.standing.role == Role::Primary;
        let host = Arc::clone(&self.host);
        // A host that was taken over from keeps its word: it stays stood down.
        let tell = tell && view.standing.role != Role::FailedOver;
        let socket = self.supervisor.diskd_socket();
        let vm = self.id;
        self.spawn(async move {
            if let Some(driver) = driver {
                // It ends by itself; a panic was logged.
                let _ = driver.await;
            }
            let mut evidence = Evidence::Unasked;
            let mut untold = None;
            if tell {
                // Whether it took over must stay known when they do not meet any more.
                evidence = partner::evidence(&host, &view, None).await;
                if let Err(error) = partner::remove(&host, vm, &relation).await {
                    tracing::warn!(%vm, %error, "the partner was not told of the end");
                    untold = match error {
                        // It knows nothing of it any more.
                        LinkError::Refused(problem) if problem.code == Code::NotFound => None,
                        LinkError::Refused(problem) | LinkError::Lost(problem) => Some(problem),
                    };
                }
            }
            if sent {
                if let Err(problem) = super::source::untrack(&socket).await {
                    tracing::warn!(%vm, %problem, "its diskd goes on tracking until it ends");
                }
            }
            Happening::Disabled {
                answer,
                evidence,
                untold,
                word,
            }
        });
    }

    /// `told`: the partner ended it too, or ended it first.
    pub(super) fn disabled(&mut self, told: bool, word: Option<&Override>) -> Result<(), Problem> {
        self.forget_relation(told, word)?;
        tracing::info!(vm = %self.id, "replication disabled");
        self.settle();
        self.go_on_completing();
        Ok(())
    }

    /// Gives the initial replication up, on both hosts.
    pub(super) fn cancel(&mut self, answer: Answer) {
        let view = self.view();
        let seeding =
            self.sending(&view)
                .and_then(|relation| match progress::read(&view.home.path)? {
                    Some(Progress::Live { .. }) => Err(Problem::new(
                        Code::Conflict,
                        view.thing(),
                        "has recovery points on its replica: its initial replication is complete",
                        "`pollux replica remove` ends the replication",
                    )),
                    _ if relation.reversed => Err(Problem::new(
                        Code::Conflict,
                        view.thing(),
                        format!(
                            "is replicated back to host `{}`, whose own disks its twin began with",
                            relation.partner
                        ),
                        format!(
                            "`pollux failover cancel {}` there gives it these disks back",
                            view.home.spec.name
                        ),
                    )),
                    _ => Ok(relation),
                });
        let relation = match seeding {
            Ok(relation) => relation,
            Err(problem) => return refuse(answer, problem),
        };
        self.ending = true;
        let driver = self.stop_driver();
        let link = PeerLink::new(self.host.client(&relation.partner), self.id, relation.id);
        let socket = self.supervisor.diskd_socket();
        let vm = self.id;
        self.spawn(async move {
            if let Some(driver) = driver {
                // It ends by itself; a panic was logged.
                let _ = driver.await;
            }
            let done = match link.cancel().await {
                Ok(()) => Ok(()),
                // It knows nothing of it any more.
                Err(LinkError::Refused(problem)) if problem.code == Code::NotFound => Ok(()),
                Err(LinkError::Refused(problem)) => Err(problem),
                Err(LinkError::Lost(mut problem)) => {
                    problem.way_out = "Try again when it can be reached, or end the replication \
                                       here alone with `pollux replica remove`"
                        .to_owned();
                    Err(problem)
                }
            };
            if done.is_ok() {
                if let Err(problem) = super::source::untrack(&socket).await {
                    tracing::warn!(%vm, %problem, "its diskd goes on tracking until it ends");
                }
            }
            Happening::Cancelled(done, answer)
        });
    }

    pub(super) fn cancelled(&mut self, done: Result<(), Problem>, answer: Answer) {
        self.ending = false;
        let done = done.and_then(|()| self.disabled(true, None));
        if done.is_err() {
            // Nothing was changed: it goes on.
            self.drive();
        }
        // Fails only when nobody waits for it any more.
        let _ = answer.send(done);
    }

    fn forget_relation(&mut self, told: bool, word: Option<&Override>) -> Result<(), Problem> {
        let view = self.view();
        // A VM that was taken over elsewhere stays stood down: ending a relationship is no word
        // about who runs it.
        let standing = view.standing.end(&view.thing(), told, word)?;
        let home = &view.home.path;
        let failed = |error: std::io::Error| Problem::failed(view.thing(), &error);
        let outbox = DiskdSource::outbox(home);
        if outbox.exists() {
            // The folder stays: it belongs to diskd, which may be running.
            for entry in std::fs::read_dir(&outbox).map_err(failed)? {
                std::fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
            }
        }
        if let Some(machine) = &view.home.machine {
            tracking::forget(machine).map_err(failed)?;
        }
        progress::forget(home).map_err(failed)?;
        // First: with a partner and no relationship with it the VM could be neither started nor
        // given another. A kill in between leaves the relationship, which names the partner.
        self.store(standing)?;
        if let Err(error) = Relation::remove(home) {
            self.store(view.standing.clone())?;
            return Err(failed(error));
        }
        self.show(|view| view.relation = None);
        Ok(())
    }
}

fn tell(view: &View, driver: &Driver, command: Command) -> Result<(), Problem> {
    driver.commands.try_send(command).map_err(|_full| {
        let reason = "is busy with earlier commands of this kind";
        Problem::new(
            Code::Conflict,
            view.thing(),
            reason,
            "Try again in a moment",
        )
    })
}

/// Refuses what no relationship can keep up.
fn check_frequency(thing: &str, every_s: u32) -> Result<(), Problem> {
    if every_s == 0 || every_s > MAX_EVERY {
        return Err(Problem::new(
            Code::Invalid,
            thing,
            format!("cannot be replicated every {every_s} s"),
            format!("Choose 1 to {MAX_EVERY} seconds"),
        ));
    }
    Ok(())
}

/// The disks that a person means, in the VM's order.
pub(super) fn chosen(spec: &VmSpec, choice: &DiskChoice) -> Result<Vec<DiskId>, Problem> {
    let thing = super::folder::thing(spec.name.as_str());
    let way_out = "`pollux disk list` shows the numbers of its disks";
    for number in choice.named() {
        if !spec.disks.iter().any(|disk| disk.slot == *number) {
            let thing = format!("disk {number} of {thing}");
            return Err(Problem::new(
                Code::NotFound,
                thing,
                "does not exist",
                way_out,
            ));
        }
    }
    let disks = spec.disks.iter().filter(|disk| choice.contains(disk.slot));
    let disks: Vec<DiskId> = disks.map(|disk| disk.id).collect();
    if disks.is_empty() {
        let reason = format!("has no disk left that would be replicated with `--disks {choice}`");
        return Err(Problem::new(Code::Invalid, thing, reason, way_out));
    }
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use model::{Bus, Bytes, DiskSpec, Generation};

    use super::*;

    fn spec() -> VmSpec {
        let disk = |slot: u8| {
            let file = format!("disk{slot}.raw").into();
            DiskSpec::new(file, Bytes(1 << 20), Bus::Virtio, slot)
        };
        // Number 1 was detached.
        let disks = vec![disk(0), disk(2), disk(3)];
        let name = "web".parse().expect("a name");
        VmSpec::new(
            name,
            Generation::Two,
            1,
            Bytes(64 << 20),
            false,
            None,
            disks,
        )
        .expect("a VM")
    }

    #[test]
    fn disks_are_chosen_by_their_numbers_and_one_that_is_not_there_is_named() {
        let spec = spec();
        let chosen = |text: &str| {
            let found = chosen(&spec, &text.parse().expect("a choice"))?;
            let position = |id: &DiskId| spec.disks.iter().position(|disk| disk.id == *id);
            Ok(found.iter().filter_map(position).collect::<Vec<_>>())
        };
        for (text, found) in [
            ("all", vec![0, 1, 2]),
            ("3,0", vec![0, 2]),
            ("all-but:2", vec![0, 2]),
        ] {
            assert_eq!(chosen(text), Ok(found), "{text}");
        }
        let problem: Problem = chosen("0,1").expect_err("detached");
        assert_eq!(problem.code, Code::NotFound, "{problem}");
        assert!(problem.thing.contains("disk 1 of VM `web`"), "{problem}");
        let problem = chosen("all-but:0,2,3").expect_err("none");
        assert_eq!(problem.code, Code::Invalid, "{problem}");
    }
}
