//! The owner's part in power: starting, stopping, killing, deleting, adopting.

use std::sync::Arc;
use std::time::Duration;

use model::{Code, DiskSpec, Problem, VmSpec, VmState};
use replica::run::Evidence;
use replica::standing::{Override, Role};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::access;
use super::branch::Branch;
use super::create;
use super::folder::VmFolder;
use super::handle::Answer;
use super::launch::{Engine, Guest, Launch};
use super::owner::{Happening, Owner, refuse};
use super::state::{self, Act, Event, Wish};
use crate::partner;
use crate::stores;

impl Owner {
    pub(super) fn granted(&self, wish: Wish) -> Result<(VmState, Act), Problem> {
        let view = self.seen.borrow();
        state::wish(&view.thing(), view.state, wish, view.relation.is_some())
    }

    pub(super) fn start(&mut self, word: Option<Override>, answer: Answer) {
        match self.granted(Wish::Start) {
            Err(problem) => return refuse(answer, problem),
            Ok((_, Act::Launch)) => {}
            Ok(_) => return self.starting.push(answer),
        }
        match self.begin_start() {
            Ok(()) => self.ask_to_start(word, answer),
            Err(problem) => refuse(answer, problem),
        }
    }

    /// Asks whether it may be started.
    pub(super) fn ask_to_start(&mut self, word: Option<Override>, answer: Answer) {
        self.starting.push(answer);
        let view = self.view();
        let host = Arc::clone(&self.host);
        let round = self.round;
        self.spawn(async move {
            Happening::Evidence(round, partner::evidence_to_start(&host, &view, word).await)
        });
    }

    /// What must hold before anybody is asked.
    pub(super) fn begin_start(&mut self) -> Result<(), Problem> {
        self.take_place()?;
        let view = self.view();
        let thing = view.thing();
        let Some(machine) = &view.home.machine else {
            // Says that it is a twin, of which host, and how to start it.
            view.standing.start(&thing, &Evidence::Unasked)?;
            return Err(Problem::new(
                Code::Conflict,
                thing,
                "is the replica of another host's VM",
                "Fail it over to start it here",
            ));
        };
        let machine = self.read_again(machine)?;
        machine.check_files()?;
        let reserve = self.host.settings.memory_reserve;
        self.host
            .ledger
            .admit(self.id, &thing, machine.spec.memory, reserve)?;
        self.show(|view| view.trouble = None);
        self.round += 1;
        self.enter(VmState::Starting);
        Ok(())
    }

    /// Takes over what an editor made of `vm.toml` while nothing ran.
    pub(super) fn read_again(&self, known: &VmFolder) -> Result<VmFolder, Problem> {
        let found = VmFolder::read(&known.path).map_err(|problem| Problem {
            way_out: "Correct the file".to_owned(),
            ..problem
        })?;
        if found == *known {
            return Ok(found);
        }
        let refuse = |reason: String, way_out: &str| {
            let file = known.path.join("vm.toml").display().to_string();
            Err(Problem::new(Code::Invalid, file, reason, way_out))
        };
        let (old, new) = (&known.spec, &found.spec);
        if (new.id, &found.origin) != (old.id, &known.origin) {
            let reason = format!("says the id {}, and the VM has {}", new.id, old.id);
            return refuse(reason, "Write its own id there");
        }
        if new.name != old.name {
            // Held until the name is seen as the VM's.
            let _name = self.host.reserve(&new.name)?;
            self.show(|view| view.home.spec.name = new.name.clone());
        }
        let hardware = |spec: &VmSpec| -> Vec<_> {
            let of = |disk: &DiskSpec| (disk.id, disk.slot, disk.size, disk.file.clone());
            spec.disks.iter().map(of).collect()
        };
        let view = self.view();
        if let Some(relation) = view
            .relation
            .as_ref()
            .filter(|_| hardware(old) != hardware(new))
        {
            let reason = format!(
                "says other disks than those that are replicated to host `{}`",
                relation.partner
            );
            return refuse(
                reason,
                "End that first with `pollux replica remove`, or name the disks as before",
            );
        }
        tracing::info!(vm = %self.id, "vm.toml was changed, and is read again");
        self.show(|view| {
            view.home.spec = found.spec.clone();
            view.home.machine = Some(found.clone());
        });
        self.reconfigure();
        Ok(found)
    }

    /// Decides on the evidence, makes the decision durable, then starts QEMU.
    pub(super) fn launch(&mut self, round: u64, evidence: &Evidence) {
        if self.state() != VmState::Starting || round != self.round {
            return;
        }
        let evidence = &self.weigh_lease(evidence);
        let unasked = matches!(evidence, Evidence::Unreachable(_));
        let under_way = match (std::mem::take(&mut self.returning), self.another) {
            (true, _) => self.return_by(evidence).map(|()| true),
            (false, None) => self.ask_to_return(evidence),
            (false, Some(_)) => Ok(false),
        };
        match under_way {
            Ok(true) => return,
            Ok(false) => {}
            Err(problem) => return self.refuse_start(problem),
        }
        let decided = if let Some(point) = self.another.take() {
            self.go_to(point, evidence)
        } else if self.seen.borrow().standing.role == Role::Replica {
            self.take_over(evidence)
        } else {
            self.decide(evidence)
        };
        let launch = match decided.and_then(|()| self.plan()) {
            Ok(launch) => launch,
            Err(problem) => return self.refuse_start(problem),
        };
        if unasked {
            self.say_started_unasked();
        }
        let (cancel, cancelled) = oneshot::channel();
        self.cancel = Some(cancel);
        let host = Arc::clone(&self.host);
        let supervisor = self.supervisor.clone();
        let thing = self.thing();
        self.spawn(async move {
            let work = async {
                let engine = host.engine().await?;
                launch(engine).run().await
            };
            tokio::select! {
                result = work => Happening::Launched(result),
                _ = cancelled => {
                    // What runs is found and reaped by the shutdown that follows.
                    let _ = supervisor.kill_guest().await;
                    Happening::Launched(Err(Problem::new(
                        Code::Conflict,
                        thing,
                        "was killed while it was being started",
                        "",
                    )))
                }
            }
        });
    }

    pub(super) fn plan(
        &self,
    ) -> Result<impl FnOnce(Arc<Engine>) -> Launch + Send + 'static, Problem> {
        let view = self.view();
        let folder =
            view.home.machine.clone().ok_or_else(|| {
                Problem::new(Code::Conflict, view.thing(), "has no disks here", "")
            })?;
        let supervisor = self.supervisor.clone();
        let programs = Arc::clone(&self.host.programs);
        let term = view.standing.lineage.current().number;
        let copy_budget = self.host.settings.copy_budget;
        let (leasing, standing) = (view.leasing, view.standing);
        let lease = Box::new(move || leasing.for_vmd(&standing));
        Ok(move |engine| Launch {
            folder,
            supervisor,
            programs,
            engine,
            term,
            copy_budget,
            lease,
        })
    }

    /// Whether it is to be started, and not known yet whether it may.
    pub(super) fn is_asked_about(&self) -> bool {
        self.state() == VmState::Starting
            && self.guest.is_none()
            && !self.doubt
            && self.cancel.is_none()
    }

    pub(super) fn start_failed(&mut self, problem: Problem) {
        tracing::warn!(vm = %self.id, %problem, "not started");
        self.show(|view| view.trouble = Some(problem.reason.clone()));
        self.refuse_start(problem);
    }

    /// It may not be started: all is as it was before.
    pub(super) fn refuse_start(&mut self, problem: Problem) {
        // Evidence that is still under way comes too late.
        self.round += 1;
        self.cancel = None;
        self.another = None;
        self.returning = false;
        self.host.ledger.release(self.id);
        self.forget_attempt();
        for answer in self.starting.drain(..) {
            refuse(answer, problem.clone());
        }
        self.settle();
    }

    pub(super) async fn stop(&mut self, limit: Duration, answer: Answer) {
        let next = match self.granted(Wish::Stop) {
            Err(problem) => return refuse(answer, problem),
            Ok((next, _)) => next,
        };
        let Some(qmp) = self.guest.as_ref().and_then(|guest| guest.qmp.as_ref()) else {
            let (reason, way_out) = if self.guest.is_some() || self.doubt {
                let reason = "has a QEMU that does not answer";
                (reason, "End it with `pollux vm kill`")
            } else {
                ("is ending already", "")
            };
            let problem = Problem::new(Code::Conflict, self.thing(), reason, way_out);
            return refuse(answer, problem);
        };
        if let Err(error) = qmp.system_powerdown().await {
            let way_out = "Try again, or end it with `pollux vm kill`".to_owned();
            let failed = Problem::failed(self.thing(), &error);
            return refuse(answer, Problem { way_out, ..failed });
        }
        self.enter(next);
        self.stopping.push(answer);
        self.deadline = Some(Instant::now() + limit);
    }

    pub(super) fn stop_expired(&mut self) {
        self.deadline = None;
        self.enter(state::after(self.state(), Event::StopExpired));
        let problem = Problem::new(
            Code::Conflict,
            self.thing(),
            "was asked to shut down, but its guest did not do so in time",
            "Give it longer with `pollux vm stop --timeout`, or end it with `pollux vm kill`",
        );
        for answer in self.stopping.drain(..) {
            refuse(answer, problem.clone());
        }
    }

    pub(super) fn kill(&mut self, answer: Answer) {
        if let Err(problem) = self.granted(Wish::Kill) {
            return refuse(answer, problem);
        }
        self.killing.push(answer);
        if self.state() == VmState::Starting {
            match self.cancel.take() {
                // Fails only when the launch is done, and then the guest is killed below.
                Some(cancel) => drop(cancel.send(())),
                None => {
                    let problem = Problem::new(
                        Code::Conflict,
                        self.thing(),
                        "was killed while it was being started",
                        "",
                    );
                    self.start_failed(problem);
                }
            }
            return;
        }
        self.end_guest();
    }

    /// Deletes the VM. True when the owner ends.
    pub(super) async fn delete(&mut self, lost: bool, answer: Answer) -> bool {
        let granted = self.granted(Wish::Delete).map(drop);
        let checked = granted
            .and_then(|()| self.check_lost(lost))
            .and_then(|()| self.check_branch());
        if let Err(problem) = checked {
            refuse(answer, problem);
            return false;
        }
        let path = self.seen.borrow().home.path.clone();
        let run = self.supervisor.run().to_owned();
        let supervisor = self.supervisor.clone();
        let thing = self.thing();
        let foreign = self.seen.borrow().home.machine.as_ref().map(|machine| {
            let files = machine
                .spec
                .disks
                .iter()
                .map(|disk| machine.disk_file(disk));
            files
                .filter(|file| !file.starts_with(&machine.path))
                .collect::<Vec<_>>()
        });
        let store = self.store.clone();
        let stores = Arc::clone(&self.host.stores);
        let twin = store.is_some();
        if let Some(store) = store.as_ref().filter(|_| !lost) {
            if let Err(problem) = tokio::task::block_in_place(|| store.nothing_locked()) {
                refuse(answer, problem);
                return false;
            }
        }
        let done = async {
            supervisor.shut_down().await?;
            let _closed = match &store {
                // What was served of it cannot be read any more.
                Some(store) if lost => store.opened.close_all(store).await.ok(),
                Some(store) => Some(store.opened.close_all(store).await?),
                None => None,
            };
            let removed = tokio::task::spawn_blocking(move || {
                for file in foreign.into_iter().flatten() {
                    if let Err(error) = access::give_back(&file) {
                        tracing::warn!(file = %file.display(), %error, "stays the VM's");
                    }
                }
                let failed = |error| Problem::failed(&thing, &error);
                if run.exists() {
                    std::fs::remove_dir_all(&run).map_err(failed)?;
                }
                match twin {
                    true if lost => stores::forget(&path, &stores),
                    true => stores::remove(&path, &stores),
                    false => create::remove(&path).map_err(failed),
                }
            });
            let failed = |error| Problem::failed("polluxd", &error);
            removed.await.map_err(failed)?
        };
        let done = done.await;
        let ended = done.is_ok();
        if ended {
            tracing::info!(vm = %self.id, "deleted");
            self.host.forget(self.id);
            if let Err(error) = self.host.stamps.forget(self.id) {
                tracing::warn!(vm = %self.id, %error, "its stamp is left behind");
            }
        }
        let _ = answer.send(done);
        ended
    }

    /// Refuses to delete what this host wrote and never sent, of which there is no other copy.
    fn check_branch(&self) -> Result<(), Problem> {
        let view = self.view();
        if !Branch::folder(&view.home.place).exists() {
            return Ok(());
        }
        let name = view.home.spec.name.as_str();
        let reason = "keeps what this host wrote and never sent to the other one";
        let way_out = format!(
            "`pollux failover lost-writes {name}` shows it, and `pollux failover lost-writes {name} --drop` \
             keeps it no longer; before the first recovery point `pollux failover cancel {name}` gives the \
             disks back"
        );
        Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
    }

    /// Refuses to give up what is not lost.
    fn check_lost(&self, lost: bool) -> Result<(), Problem> {
        let view = self.view();
        if !lost || tokio::task::block_in_place(|| view.home.place.check()).is_err() {
            return Ok(());
        }
        let reason = "lies in a replica store that is there";
        let way_out = "Delete it without `--store-lost`";
        Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
    }

    pub(super) async fn launched(&mut self, guest: Guest) {
        self.cancel = None;
        self.enter(state::after(self.state(), Event::Launched));
        self.watch(guest);
        for answer in self.starting.drain(..) {
            let _ = answer.send(Ok(()));
        }
        self.settle();
        self.apply_lease().await;
        // What came when it was launched already found no guest that it could have ended.
        if self.view().standing.stood_down.is_some() {
            // What failed was logged, and is tried again at the next contact.
            let _ = self.gate().await;
        }
        if !self.killing.is_empty() {
            self.end_guest();
        }
    }
}
