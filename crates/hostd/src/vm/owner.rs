//! The task that owns one VM: everything that changes the VM passes through its mailbox.
//!
//! ```text
//!   HTTP, partner --Message--> mailbox --.
//!                                         owner: state, standing, guest ---> View (watch)
//!   launch, wait, ask --Happening--------'   |
//!            ^-------------------------------'  spawned, answer by a happening
//! ```
//!
//! Nothing that takes long is awaited here, so a VM can always be killed and its partner is
//! always answered. Which wish is granted is decided by [`super::state`], who may run by
//! [`replica::run`]; the standing is stored before anything rests on it.
//!
//! A crash of polluxd loses only what is in this task: the next one reads the folder, finds the
//! supervisor by its socket and adopts the guest.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use model::{Code, Lineage, PointId, Problem, VmId, VmSpec, VmState};
use replica::report::LinkReport;
use replica::run::Evidence;
use replica::standing::{self, Override, Role, Standing};
use replica::wire::PartnerStanding;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use vmd::control::Status;

use super::create;
use super::folder::{self, VmFolder};
use super::launch::{Guest, Launch};
use super::relation::Relation;
use super::replicate::Driver;
use super::state::{self, Act, Event, Wish};
use super::supervisor::{GuestRecord, Supervisor, describe};
use crate::host::Host;
use crate::partner;
use crate::twin::Store;

/// Wishes that wait in a mailbox; whoever sends more waits.
const MAILBOX: usize = 32;
/// A superseded guest is held still within this time, or killed.
const HOLD_LIMIT: Duration = Duration::from_millis(500);
/// How long a QEMU that was found has to answer.
const ADOPT_LIMIT: Duration = Duration::from_secs(10);

/// The answer to a message.
pub(crate) type Answer<T = ()> = oneshot::Sender<Result<T, Problem>>;

/// What is asked of an owner.
#[derive(Debug)]
pub(crate) enum Message {
    /// Run; answered when the guest runs.
    Start {
        /// A person's word that it does not run elsewhere.
        word: Option<Override>,
        answer: Answer,
    },
    /// Shut down; answered when the VM is off.
    Stop { timeout: Duration, answer: Answer },
    /// End the guest; answered when the VM is off.
    Kill { answer: Answer },
    /// Remove the folder and end the owner.
    Delete { answer: Answer },
    /// The partner told its lineage.
    Contact {
        theirs: Lineage,
        answer: Answer<PartnerStanding>,
    },
    /// The partner wants to open this lineage.
    StandDown { asked: Lineage, answer: Answer },
    /// The partner runs the VM in this lineage.
    Superseded { lineage: Lineage, answer: Answer },
    /// Replicate to `peer`; answered when it agreed.
    Enable {
        peer: String,
        every_s: u32,
        answer: Answer,
    },
    /// End the relationship here, and at the partner if it can be reached.
    Disable { answer: Answer },
    /// The partner ended the relationship.
    Removed { answer: Answer },
    /// Send nothing, or go on.
    Suspend { suspended: bool, answer: Answer },
    /// Start the twin; answered when the guest runs.
    Failover {
        point: PointId,
        /// A person's word that the primary cannot be running.
        word: Option<Override>,
        answer: Answer,
    },
    /// Make a VM above a point, beside the twin; answered with its folder.
    Test {
        point: PointId,
        answer: Answer<VmFolder>,
    },
}

/// What a spawned task came to.
pub(super) enum Happening {
    /// For a start, or for a takeover that was prepared.
    Evidence(Evidence),
    /// The peer agreed to be the replica, or did not.
    Enrolled(Result<(), Problem>),
    /// The driver ended and the partner was told.
    Disabled(Answer),
    Launched(Result<Guest, Problem>),
    Gone {
        pid: u32,
        status: Result<Status, Problem>,
    },
    /// The processes of a VM that is off are as they should be.
    Settled,
}

/// Where a VM is at home, and what it is made of.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    /// The folder that holds its standing and its relationship.
    pub(crate) path: PathBuf,
    /// What it is.
    pub(crate) spec: VmSpec,
    /// What can be started; none for a twin that was not failed over.
    pub(crate) machine: Option<VmFolder>,
}

/// What everybody may see of a VM.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) home: Home,
    pub(crate) state: VmState,
    /// Why it is not as it should be.
    pub(crate) trouble: Option<String>,
    pub(crate) guest: Option<GuestRecord>,
    pub(crate) standing: Standing,
    pub(crate) relation: Option<Relation>,
    /// What the driver tells, on the primary while it runs.
    pub(crate) report: Option<watch::Receiver<LinkReport>>,
    /// The longest hold-up of the guest by a cut, in microseconds.
    pub(crate) pause_us: Arc<AtomicU64>,
}

impl View {
    /// For messages: ``VM `web` ``.
    pub(crate) fn thing(&self) -> String {
        folder::thing(self.home.spec.name.as_str())
    }

    /// Whether its changes are sent to a twin, so that its disks are served while it is off too.
    pub(crate) fn is_sent(&self) -> bool {
        self.relation.is_some()
            && self.standing.role == Role::Primary
            && self.standing.stood_down.is_none()
    }
}

/// A VM, as the rest of polluxd holds it.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) id: VmId,
    mailbox: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
    pub(crate) supervisor: Supervisor,
    /// QEMU serves one console at a time.
    pub(crate) console: Arc<tokio::sync::Mutex<()>>,
    /// The journal, of a twin.
    pub(crate) store: Option<Store>,
    /// Bytes of segments received since polluxd started.
    pub(crate) received: Arc<AtomicU64>,
}

impl Vm {
    /// What there is to see now.
    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Sends a message made of an answer's sender, and waits for the answer.
    pub(crate) async fn ask<T>(
        &self,
        message: impl FnOnce(Answer<T>) -> Message,
    ) -> Result<T, Problem> {
        let (answer, answered) = oneshot::channel();
        let gone = || {
            let reason = "was deleted meanwhile";
            Problem::new(Code::NotFound, self.view.borrow().thing(), reason, "")
        };
        if self.mailbox.send(message(answer)).await.is_err() {
            return Err(gone());
        }
        answered.await.unwrap_or_else(|_closed| Err(gone()))
    }

    /// Reads what is durable, adopts what runs, and starts the owner.
    pub(crate) async fn open(host: Arc<Host>, home: Home) -> Result<Self, Problem> {
        let id = home.spec.id;
        let thing = folder::thing(home.spec.name.as_str());
        let failed = |error: &(dyn std::error::Error + 'static)| Problem::failed(&thing, error);
        let standing = Standing::load(&home.path.join(standing::FILE))
            .map_err(|error| failed(&error))?
            .ok_or_else(|| {
                let reason = format!("{} has no {}", home.path.display(), standing::FILE);
                Problem::new(
                    Code::Failed,
                    &thing,
                    reason,
                    "Restore the folder from a backup",
                )
            })?;
        let relation = Relation::read(&home.path)?;
        let supervisor = Supervisor::new(thing.clone(), host.layout.run_of(id));
        let store = (standing.role != Role::Primary).then(|| Store::new(&home.path, thing));
        let (mailbox, mail) = mpsc::channel(MAILBOX);
        let (happen, happenings) = mpsc::channel(MAILBOX);
        let (seen, view) = watch::channel(View {
            home,
            state: VmState::Off,
            trouble: None,
            guest: None,
            standing,
            relation,
            report: None,
            pause_us: Arc::default(),
        });
        let mut owner = Owner {
            host,
            id,
            supervisor: supervisor.clone(),
            seen,
            happen,
            guest: None,
            cancel: None,
            starting: Vec::new(),
            stopping: Vec::new(),
            deadline: None,
            killing: Vec::new(),
            me: mailbox.clone(),
            store: store.clone(),
            driver: None,
            enabling: None,
            settling: 0,
            deferred: VecDeque::new(),
        };
        owner.adopt().await;
        owner.settle();
        tokio::spawn(owner.run(mail, happenings));
        Ok(Self {
            id,
            mailbox,
            view,
            supervisor,
            console: Arc::default(),
            store,
            received: Arc::default(),
        })
    }
}

/// The state of the owner's task. How relationships and failovers change it stands in
/// [`super::replicate`] and [`super::takeover`].
pub(super) struct Owner {
    pub(super) host: Arc<Host>,
    pub(super) id: VmId,
    pub(super) supervisor: Supervisor,
    seen: watch::Sender<View>,
    happen: mpsc::Sender<Happening>,
    /// For those who report to the owner.
    pub(super) me: mpsc::Sender<Message>,
    /// The journal, of a twin.
    pub(super) store: Option<Store>,
    pub(super) driver: Option<Driver>,
    /// Who waits for the peer's agreement.
    pub(super) enabling: Option<Answer>,
    /// How many times its processes are being brought in order.
    settling: u32,
    /// What has to wait for that.
    deferred: VecDeque<Message>,
    guest: Option<Guest>,
    /// Ends a launch before it is done.
    cancel: Option<oneshot::Sender<()>>,
    pub(super) starting: Vec<Answer>,
    stopping: Vec<Answer>,
    /// Until then the guest may shut itself down.
    deadline: Option<Instant>,
    killing: Vec<Answer>,
}

impl Owner {
    async fn run(
        mut self,
        mut mail: mpsc::Receiver<Message>,
        mut happenings: mpsc::Receiver<Happening>,
    ) {
        loop {
            if let Some(message) = self.undefer() {
                if self.asked(message).await {
                    return;
                }
            }
            let deadline = self.deadline;
            let expired = async {
                match deadline {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                happening = happenings.recv() => {
                    let Some(happening) = happening else { return };
                    self.happened(happening).await;
                }
                message = mail.recv(), if self.deferred.len() < MAILBOX => {
                    let Some(message) = message else { return };
                    if self.must_wait(&message) {
                        self.deferred.push_back(message);
                    } else if self.asked(message).await {
                        return;
                    }
                }
                () = expired => self.stop_expired(),
            }
        }
    }

    pub(super) fn view(&self) -> View {
        self.seen.borrow().clone()
    }

    pub(super) fn state(&self) -> VmState {
        self.seen.borrow().state
    }

    pub(super) fn thing(&self) -> String {
        self.seen.borrow().thing()
    }

    pub(super) fn show(&self, change: impl FnOnce(&mut View)) {
        self.seen.send_modify(change);
    }

    pub(super) fn enter(&self, next: VmState) {
        let now = self.state();
        if now == next {
            return;
        }
        debug_assert!(now.is_transition_valid(next), "{now} -> {next}");
        tracing::info!(vm = %self.id, from = %now, to = %next, "state");
        self.show(|view| view.state = next);
    }

    pub(super) fn spawn(&self, work: impl Future<Output = Happening> + Send + 'static) {
        let happen = self.happen.clone();
        tokio::spawn(async move {
            // Fails only when the owner has ended.
            let _ = happen.send(work.await).await;
        });
    }

    /// Whether a message has to wait until the processes are in order: the order to end them
    /// may be under way.
    fn must_wait(&self, message: &Message) -> bool {
        let begins = matches!(
            message,
            Message::Start { .. } | Message::Failover { .. } | Message::Delete { .. }
        );
        begins && self.settling > 0 && self.state() == VmState::Off
    }

    fn undefer(&mut self) -> Option<Message> {
        if self.settling > 0 {
            return None;
        }
        self.deferred.pop_front()
    }

    /// Carries out a message; true when the owner ends.
    async fn asked(&mut self, message: Message) -> bool {
        match message {
            Message::Start { word, answer } => self.start(word, answer),
            Message::Stop { timeout, answer } => self.stop(timeout, answer).await,
            Message::Kill { answer } => self.kill(answer),
            Message::Delete { answer } => return self.delete(answer).await,
            Message::Contact { theirs, answer } => {
                let _ = answer.send(self.contact(&theirs).await);
            }
            Message::StandDown { asked, answer } => {
                let _ = answer.send(self.stand_down(&asked));
            }
            Message::Superseded { lineage, answer } => {
                let _ = answer.send(self.superseded(&lineage).await);
            }
            Message::Enable {
                peer,
                every_s,
                answer,
            } => self.enable(&peer, every_s, answer),
            Message::Disable { answer } => self.disable(answer),
            Message::Removed { answer } => {
                let _ = answer.send(self.removed());
            }
            Message::Suspend { suspended, answer } => {
                let _ = answer.send(self.suspend(suspended));
            }
            Message::Failover {
                point,
                word,
                answer,
            } => self.failover(point, word, answer),
            Message::Test { point, answer } => {
                let _ = answer.send(self.test(point));
            }
        }
        false
    }

    fn granted(&self, wish: Wish) -> Result<(VmState, Act), Problem> {
        let view = self.seen.borrow();
        state::wish(&view.thing(), view.state, wish, view.relation.is_some())
    }

    fn start(&mut self, word: Option<Override>, answer: Answer) {
        match self.granted(Wish::Start) {
            Err(problem) => return refuse(answer, problem),
            Ok((_, Act::Launch)) => {}
            Ok(_) => return self.starting.push(answer),
        }
        if let Err(problem) = self.begin_start() {
            return refuse(answer, problem);
        }
        self.starting.push(answer);
        let view = self.view();
        let host = Arc::clone(&self.host);
        self.spawn(async move { Happening::Evidence(partner::evidence(&host, &view, word).await) });
    }

    /// What must hold before anybody is asked.
    fn begin_start(&mut self) -> Result<(), Problem> {
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
        machine.check_files()?;
        let reserve = self.host.settings.memory_reserve;
        self.host
            .ledger
            .admit(self.id, &thing, machine.spec.memory, reserve)?;
        self.show(|view| view.trouble = None);
        self.enter(VmState::Starting);
        Ok(())
    }

    /// Decides on the evidence, makes the decision durable, then starts QEMU.
    fn launch(&mut self, evidence: &Evidence) {
        if self.state() != VmState::Starting {
            return;
        }
        let decided = if self.seen.borrow().standing.attempt.is_some() {
            self.take_over(evidence)
        } else {
            self.decide(evidence)
        };
        let launch = match decided.and_then(|()| self.plan()) {
            Ok(launch) => launch,
            Err(problem) => return self.refuse_start(problem),
        };
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

    /// Who may run, decided and durable.
    fn decide(&self, evidence: &Evidence) -> Result<(), Problem> {
        let view = self.view();
        let thing = view.thing();
        if let Evidence::Says(theirs) = evidence {
            let told = theirs.stood_down.as_ref();
            self.store(view.standing.meet(&thing, &theirs.lineage, told)?.standing)?;
        }
        let standing = self.seen.borrow().standing.clone();
        self.store(standing.start(&thing, evidence)?)
    }

    fn plan(
        &self,
    ) -> Result<impl FnOnce(Arc<super::launch::Engine>) -> Launch + Send + 'static, Problem> {
        let view = self.view();
        let folder =
            view.home.machine.clone().ok_or_else(|| {
                Problem::new(Code::Conflict, view.thing(), "has no disks here", "")
            })?;
        let supervisor = self.supervisor.clone();
        let programs = Arc::clone(&self.host.programs);
        let term = view.standing.lineage.current().number;
        let copy_budget = self.host.settings.copy_budget;
        Ok(move |engine| Launch {
            folder,
            supervisor,
            programs,
            engine,
            term,
            copy_budget,
        })
    }

    pub(super) fn start_failed(&mut self, problem: Problem) {
        tracing::warn!(vm = %self.id, %problem, "not started");
        self.show(|view| view.trouble = Some(problem.reason.clone()));
        self.refuse_start(problem);
    }

    /// It may not be started: all is as it was before.
    fn refuse_start(&mut self, problem: Problem) {
        self.cancel = None;
        self.host.ledger.release(self.id);
        self.forget_attempt();
        for answer in self.starting.drain(..) {
            refuse(answer, problem.clone());
        }
        self.settle();
    }

    /// Sees to it that nothing of a VM runs while it is off, unless its changes are sent.
    pub(super) fn settle(&mut self) {
        self.settling += 1;
        let view = self.view();
        let supervisor = self.supervisor.clone();
        let host = Arc::clone(&self.host);
        let vm = self.id;
        self.spawn(async move {
            let done = match view.home.machine.as_ref().filter(|_| view.is_sent()) {
                Some(machine) => {
                    let term = view.standing.lineage.current().number;
                    let budget = host.settings.copy_budget;
                    let ensured = supervisor.ensure(&host.programs, machine, term, budget);
                    ensured.await.map(drop)
                }
                None if view.guest.is_some() => Ok(()),
                None => supervisor.shut_down().await,
            };
            if let Err(problem) = done {
                tracing::error!(%vm, %problem, "its processes are not as they should be");
            }
            Happening::Settled
        });
    }

    async fn stop(&mut self, limit: Duration, answer: Answer) {
        let next = match self.granted(Wish::Stop) {
            Err(problem) => return refuse(answer, problem),
            Ok((next, _)) => next,
        };
        let Some(guest) = &self.guest else {
            let problem = Problem::new(Code::Conflict, self.thing(), "is ending already", "");
            return refuse(answer, problem);
        };
        let Some(qmp) = &guest.qmp else {
            let reason = "has a QEMU that does not answer";
            let way_out = "End it with `pollux vm kill`";
            return refuse(
                answer,
                Problem::new(Code::Failed, self.thing(), reason, way_out),
            );
        };
        if let Err(error) = qmp.system_powerdown().await {
            return refuse(answer, Problem::failed(self.thing(), &error));
        }
        self.enter(next);
        self.stopping.push(answer);
        self.deadline = Some(Instant::now() + limit);
    }

    fn stop_expired(&mut self) {
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

    fn kill(&mut self, answer: Answer) {
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
        let supervisor = self.supervisor.clone();
        let vm = self.id;
        // The waiter for the guest's end tells the rest.
        tokio::spawn(async move {
            if let Err(problem) = supervisor.kill_guest().await {
                tracing::error!(%vm, %problem, "cannot kill the guest");
            }
        });
    }

    async fn delete(&mut self, answer: Answer) -> bool {
        if let Err(problem) = self.granted(Wish::Delete) {
            refuse(answer, problem);
            return false;
        }
        let path = self.seen.borrow().home.path.clone();
        let run = self.supervisor.run().to_owned();
        let supervisor = self.supervisor.clone();
        let thing = self.thing();
        let done = async {
            supervisor.shut_down().await?;
            let removed = tokio::task::spawn_blocking(move || {
                if run.exists() {
                    std::fs::remove_dir_all(&run)?;
                }
                create::remove(&path)
            });
            match removed.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(Problem::failed(&thing, &error)),
                Err(error) => Err(Problem::failed(&thing, &error)),
            }
        };
        let done = done.await;
        let ended = done.is_ok();
        if ended {
            tracing::info!(vm = %self.id, "deleted");
            self.host.forget(self.id);
        }
        let _ = answer.send(done);
        ended
    }

    /// Stores a standing durably, if it differs, before anything rests on it.
    pub(super) fn store(&self, next: Standing) -> Result<(), Problem> {
        let view = self.seen.borrow();
        if view.standing == next {
            return Ok(());
        }
        next.store(&view.home.path.join(standing::FILE))
            .map_err(|error| Problem::failed(view.thing(), &error))?;
        drop(view);
        self.show(|view| view.standing = next);
        Ok(())
    }

    async fn contact(&mut self, theirs: &Lineage) -> Result<PartnerStanding, Problem> {
        let view = self.view();
        let met = view.standing.meet(&view.thing(), theirs, None)?;
        if met.gate {
            self.gate().await;
        }
        self.store(met.standing)?;
        let view = self.view();
        Ok(view.standing.tell(view.state != VmState::Off))
    }

    /// Holds the guest still at once; it was succeeded.
    pub(super) async fn gate(&mut self) {
        let Some(guest) = &self.guest else {
            if let Some(cancel) = self.cancel.take() {
                let _ = cancel.send(());
            }
            return;
        };
        if self.state() == VmState::Paused {
            return;
        }
        let held = async {
            match &guest.qmp {
                Some(qmp) => matches!(timeout(HOLD_LIMIT, qmp.stop()).await, Ok(Ok(()))),
                None => false,
            }
        };
        match held.await {
            true => {
                tracing::warn!(vm = %self.id, "held still: its partner took over");
                self.enter(state::after(self.state(), Event::Held));
                self.show(|view| {
                    view.trouble = Some("held still: its partner took over".to_owned());
                });
            }
            false => {
                tracing::warn!(vm = %self.id, "killed: its partner took over");
                if let Err(problem) = self.supervisor.kill_guest().await {
                    tracing::error!(vm = %self.id, %problem, "cannot kill the guest");
                }
            }
        }
    }

    fn stand_down(&mut self, asked: &Lineage) -> Result<(), Problem> {
        let view = self.view();
        let runs = view.state != VmState::Off;
        self.store(view.standing.stand_down(&view.thing(), asked, runs)?)?;
        tracing::info!(vm = %self.id, "stood down for its partner");
        self.stop_driver();
        self.settle();
        Ok(())
    }

    async fn superseded(&mut self, lineage: &Lineage) -> Result<(), Problem> {
        let view = self.view();
        let met = view.standing.superseded(&view.thing(), lineage)?;
        if met.gate {
            self.gate().await;
        }
        self.store(met.standing)
    }

    async fn happened(&mut self, happening: Happening) {
        match happening {
            Happening::Evidence(evidence) => self.launch(&evidence),
            Happening::Launched(Ok(guest)) => self.launched(guest),
            Happening::Launched(Err(problem)) => self.start_failed(problem),
            Happening::Gone { pid, status } => self.gone(pid, status),
            Happening::Settled => self.settled(),
            Happening::Enrolled(agreed) => self.enrolled(agreed),
            Happening::Disabled(answer) => {
                let _ = answer.send(self.disabled());
            }
        }
    }

    fn launched(&mut self, guest: Guest) {
        self.cancel = None;
        self.enter(state::after(self.state(), Event::Launched));
        self.watch(guest);
        for answer in self.starting.drain(..) {
            let _ = answer.send(Ok(()));
        }
    }

    /// From now on the guest's end is noticed.
    fn watch(&mut self, guest: Guest) {
        let pid = guest.record.pid;
        self.show(|view| view.guest = Some(guest.record.clone()));
        self.guest = Some(guest);
        let supervisor = self.supervisor.clone();
        self.spawn(async move {
            let status = supervisor.wait_guest(pid).await;
            Happening::Gone { pid, status }
        });
    }

    fn gone(&mut self, pid: u32, status: Result<Status, Problem>) {
        if self
            .guest
            .as_ref()
            .is_none_or(|guest| guest.record.pid != pid)
        {
            return;
        }
        self.guest = None;
        self.deadline = None;
        let trouble = match status {
            Ok(status) if self.killing.is_empty() => describe(status.last_exit),
            Ok(_) => None,
            // The guest dies with its supervisor.
            Err(problem) => Some(format!("its supervisor died: {}", problem.reason)),
        };
        if let Some(trouble) = &trouble {
            tracing::warn!(vm = %self.id, trouble, "the guest is gone");
        }
        self.show(|view| {
            view.guest = None;
            view.trouble = trouble;
        });
        self.host.ledger.release(self.id);
        self.settle();
    }

    fn settled(&mut self) {
        self.settling -= 1;
        self.drive();
        if self.guest.is_some() || self.settling > 0 {
            return;
        }
        self.enter(state::after(self.state(), Event::Gone));
        for answer in self.stopping.drain(..).chain(self.killing.drain(..)) {
            let _ = answer.send(Ok(()));
        }
    }

    /// Finds what runs of this VM already.
    async fn adopt(&mut self) {
        let status = match self.supervisor.status().await {
            Ok(Some(status)) => status,
            Ok(None) => return,
            Err(problem) => {
                tracing::error!(vm = %self.id, %problem, "cannot ask its supervisor");
                return;
            }
        };
        let view = self.view();
        let Some((machine, pid)) = view.home.machine.as_ref().zip(status.guest) else {
            return;
        };
        let paths = self.supervisor.qemu_paths(machine);
        let qmp = match qemu::Qmp::connect(&paths.qmp, ADOPT_LIMIT).await {
            Ok(qmp) => Some(qmp),
            Err(error) => {
                tracing::error!(vm = %self.id, %error, "its QEMU does not answer");
                self.show(|view| view.trouble = Some(error.to_string()));
                None
            }
        };
        let record = self.supervisor.recorded(pid).unwrap_or(GuestRecord {
            pid,
            started: jiff::Timestamp::now(),
            accelerator: api::Accelerator::Tcg,
        });
        let running = match &qmp {
            Some(qmp) => qmp.query_status().await.is_ok_and(|status| status.running),
            None => true,
        };
        self.host.ledger.adopt(self.id, machine.spec.memory);
        self.enter(VmState::Starting);
        self.enter(if running {
            VmState::Running
        } else {
            VmState::Paused
        });
        tracing::info!(vm = %self.id, pid, running, "adopted");
        self.watch(Guest { record, qmp });
    }
}

pub(super) fn refuse<T>(answer: Answer<T>, problem: Problem) {
    // Fails only when nobody waits for it any more.
    let _ = answer.send(Err(problem));
}
