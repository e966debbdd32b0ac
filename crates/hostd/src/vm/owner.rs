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
use std::sync::Arc;
use std::time::Duration;

use model::{CheckpointId, DiskChoice, PointId, Problem, VmId, VmState};
use replica::driver::Command;
use replica::run::Evidence;
use replica::standing::Override;
use replica::wire::Reverse;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use vmd::control::Status;

use super::complete::Stepped;
use super::disks::Changed;
use super::fence::Release;
use super::guest::{Found, Why};
use super::handle::{Answer, MAILBOX, Message, View};
use super::launch::Guest;
use super::lease::{Leasehold, Renewal};
use super::relation::Relation;
use super::replicate::Driver;
use super::rights::Yielding;
use super::room::{Waiting, WentOn};
use super::state::{self, Event};
use super::supervisor::Supervisor;
use super::turn::{Differing, Turned};
use crate::host::Host;
use crate::twin::Store;

/// After a takeover the partner is told this often, until it knows.
const TELL: Duration = Duration::from_secs(1);

/// What a spawned task came to.
pub(super) enum Happening {
    /// For the start of that round, or the takeover that was prepared in it.
    Evidence(u64, Evidence),
    /// The peer agreed to be the replica, or did not.
    Enrolled(Result<(), Problem>),
    /// The driver ended, the partner was asked how it stands, and told; or why it was not.
    Disabled {
        answer: Answer<Option<Problem>>,
        evidence: Evidence,
        untold: Option<Problem>,
        /// A person's word that the partner is lost.
        word: Option<Override>,
    },
    /// The driver ended and the replica forgot the initial replication, or did not.
    Cancelled(Result<(), Problem>, Answer),
    Launched(Result<Guest, Problem>),
    Gone {
        pid: u32,
        status: Result<Status, Problem>,
    },
    /// No supervisor can be running a guest, or one answered again.
    Found(Option<Found>),
    /// The processors of the guest run, or do not; why not.
    Processors {
        pid: u32,
        running: bool,
        why: Why,
    },
    Killed(Result<(), Problem>),
    /// A change of the disks was carried out, or not.
    Changed(Box<Changed>),
    /// Nothing is left to be merged of a checkpoint.
    Merged(CheckpointId),
    /// A step of completing a failover was done, or not.
    Stepped(Result<Stepped, Problem>),
    /// Requests of the guest wait for room on these disks.
    NoRoom {
        pid: u32,
        slots: Vec<u8>,
    },
    /// There is room again, perhaps.
    Room {
        pid: u32,
    },
    /// What the replica says about the lease.
    Renewal(Renewal),
    /// Whether the replica counts on no lease any more.
    Release(Box<Release>),
    /// What keeps the VM from standing down, if anything, is known.
    Sent(Yielding),
    /// Where the disks differ from what the partner has, which took over.
    Turning(Differing, Box<Reverse>, Answer<Turned>),
    /// Whether it is known from now on what the partner lacks.
    Tracked(Result<(), Problem>),
    /// The driver of an earlier term ended.
    Parted,
    /// How the partner stands that was made the replica; which disks are to go back if it is none.
    ReplicaSays(Evidence, Option<DiskChoice>),
    /// The partner is the replica in this relationship, or is not.
    Reversed(Result<(), Problem>, Box<Relation>),
    /// What the partner says to the takeover.
    Told(Evidence),
    /// The processes are as they should be, as far as that can be had. An error: nobody can tell
    /// whether a guest runs.
    Settled(Result<(), Problem>),
}

/// The state of the owner's task. How relationships and failovers change it stands in
/// [`super::replicate`] and [`super::takeover`].
pub(super) struct Owner {
    pub(super) host: Arc<Host>,
    pub(super) id: VmId,
    pub(super) supervisor: Supervisor,
    pub(super) seen: watch::Sender<View>,
    pub(super) happen: mpsc::Sender<Happening>,
    /// For those who report to the owner.
    pub(super) me: mpsc::Sender<Message>,
    /// The journal, of a twin.
    pub(super) store: Option<Store>,
    pub(super) driver: Option<Driver>,
    /// Whether one of an earlier term is ending.
    pub(super) parting: bool,
    /// Who waits for the peer's agreement.
    pub(super) enabling: Option<Answer>,
    /// Who waits until the partner is the replica.
    pub(super) reversing: Option<Answer>,
    /// Whether the relationship is being ended: nothing is sent any more.
    pub(super) ending: bool,
    /// How many times its processes are being brought in order.
    pub(super) settling: u32,
    /// What has to wait for that.
    pub(super) deferred: VecDeque<Message>,
    pub(super) guest: Option<Guest>,
    pub(super) lease: Leasehold,
    /// Whether the partner is being told of a takeover.
    pub(super) telling: bool,
    /// Whether nobody can tell if a guest runs.
    pub(super) doubt: bool,
    /// Counts the starts: what was asked for one says nothing about the next.
    pub(super) round: u64,
    /// Whether the failover that goes on is from the newest point, whatever that is.
    pub(super) from_newest: bool,
    /// The point that takes the place of the failover's, if it may be started.
    pub(super) another: Option<PointId>,
    /// Whether the partner, which called its failover off, is asked to stand down for the start under way.
    pub(super) returning: bool,
    /// Ends a launch before it is done.
    pub(super) cancel: Option<oneshot::Sender<()>>,
    pub(super) starting: Vec<Answer>,
    pub(super) stopping: Vec<Answer>,
    /// Until then the guest may shut itself down.
    pub(super) deadline: Option<Instant>,
    pub(super) killing: Vec<Answer>,
    /// Whether a change of the disks is being carried out.
    pub(super) changing: bool,
    /// Whether a step of completing a failover is being done.
    pub(super) completing: bool,
    /// Disks that are being exported.
    pub(super) exports: u32,
    /// The guest that waits for room.
    pub(super) waiting: Option<Waiting>,
    /// Whether QEMU held the guest by itself because there is no room.
    pub(super) held_for_room: bool,
    /// When it went on last after it had waited.
    pub(super) went_on: Option<WentOn>,
}
impl Owner {
    /// Adopts what runs of the VM, and owns it from then on.
    pub(super) async fn begin(
        host: Arc<Host>,
        id: VmId,
        supervisor: Supervisor,
        seen: watch::Sender<View>,
        me: mpsc::Sender<Message>,
        mail: mpsc::Receiver<Message>,
        store: Option<Store>,
    ) {
        let (happen, happenings) = mpsc::channel(MAILBOX);
        let mut owner = Self {
            host,
            id,
            supervisor,
            seen,
            happen,
            me,
            store,
            driver: None,
            parting: false,
            enabling: None,
            reversing: None,
            ending: false,
            settling: 0,
            deferred: VecDeque::new(),
            guest: None,
            lease: Leasehold::default(),
            telling: false,
            doubt: false,
            round: 0,
            from_newest: false,
            another: None,
            returning: false,
            cancel: None,
            starting: Vec::new(),
            stopping: Vec::new(),
            deadline: None,
            killing: Vec::new(),
            changing: false,
            completing: false,
            exports: 0,
            waiting: None,
            held_for_room: false,
            went_on: None,
        };
        owner.adopt().await;
        owner.converge();
        owner.settle();
        owner.go_on_completing();
        tokio::spawn(owner.run(mail, happenings));
    }

    async fn run(
        mut self,
        mut mail: mpsc::Receiver<Message>,
        mut happenings: mpsc::Receiver<Happening>,
    ) {
        let mut tell = interval(TELL);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(message) = self.undefer() {
                if self.asked(message).await {
                    return;
                }
            }
            self.follow_lease();
            let expired = at(self.deadline);
            let lease = at(self.lease_wakes());
            tokio::select! {
                happening = happenings.recv() => {
                    let Some(happening) = happening else { return };
                    if self.happened(happening).await {
                        return;
                    }
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
                () = lease => self.apply_lease().await,
                _ = tell.tick(), if self.must_tell() => self.tell_partner(),
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
        let settling = self.settling > 0 && self.guest.is_none() && !self.is_launching();
        match message {
            Message::Reverse { .. } => settling || self.changing || self.completing,
            Message::Another { .. } | Message::CallOff { .. } => {
                settling || self.changing || self.completing || self.reversing.is_some()
            }
            Message::Turn { .. }
            | Message::Change { .. }
            | Message::LetGo(_)
            | Message::ExportBegins { .. }
            | Message::ExportPoint { .. }
            | Message::Enable { .. } => settling || self.changing || self.reversing.is_some(),
            _ => begins && (settling || self.changing),
        }
    }

    /// Whether a start is under way.
    pub(super) fn is_launching(&self) -> bool {
        !self.starting.is_empty()
    }

    fn undefer(&mut self) -> Option<Message> {
        let busy = self.changing || self.completing || self.reversing.is_some();
        if self.settling > 0 || busy {
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
            Message::Delete { lost, answer } => return self.delete(lost, answer).await,
            Message::Contact {
                theirs,
                opened,
                answer,
            } => {
                let _ = answer.send(self.contact(&theirs, opened).await);
            }
            Message::Lease {
                theirs,
                asked,
                answer,
            } => {
                let _ = answer.send(self.promise(&theirs, asked));
            }
            Message::Fence { wanted, answer } => self.fence(wanted, answer).await,
            Message::StartUnasked { choice, answer } => {
                let _ = answer.send(self.start_unasked(choice));
            }
            Message::StandDown { asked, answer } => self.stand_down(asked, answer),
            Message::Superseded { lineage, answer } => {
                let _ = answer.send(self.superseded(&lineage).await);
            }
            Message::Enable {
                peer,
                terms,
                answer,
            } => self.enable(&peer, terms, answer),
            Message::Set {
                every_s,
                choice,
                keep,
                answer,
            } => {
                let _ = answer.send(self.set(every_s, choice, keep));
            }
            Message::Cancel { answer } => self.cancel(answer),
            Message::Cancelled { answer } => return self.cancelled_there(answer).await,
            Message::Follow { wanted, answer } => {
                let _ = answer.send(self.follow(*wanted));
            }
            Message::Disable { word, answer } => self.disable(word, answer),
            Message::Removed { answer } => self.removed(answer),
            Message::Change { change, answer } => self.change(change, answer),
            Message::ExportBegins { answer } => self.export_begins(answer),
            Message::ExportPoint { checkpoint, answer } => self.export_point(checkpoint, answer),
            Message::ExportEnds => self.export_ends(),
            Message::LetGo(disk) => self.let_go(disk),
            Message::GoOn => {
                self.merge();
                self.drive();
                self.go_on_completing();
            }
            Message::DisksLost if self.guest.is_none() && self.settling == 0 => self.settle(),
            Message::DisksLost => {}
            Message::Verify { number, answer } => {
                let _ = answer.send(self.verify(number));
            }
            Message::VerifyNoMore { number } => self.command(Command::VerifyNoMore(number)),
            Message::Suspend { suspended, answer } => {
                let _ = answer.send(self.suspend(suspended));
            }
            Message::PrepareFailover { answer } => {
                let _ = answer.send(self.prepare_failover());
            }
            Message::CompleteFailover { answer } => {
                let _ = answer.send(self.complete());
            }
            Message::CancelFailover { answer } => {
                let _ = answer.send(self.cancel_failover());
            }
            Message::CallOff { dropping, answer } => self.call_off(dropping, answer),
            Message::Failover {
                point,
                newest,
                word,
                answer,
            } => self.failover(point, newest, word, answer),
            Message::Another { choice, answer } => self.try_another(choice, answer),
            Message::GiveBack { answer } => return self.give_back(answer).await,
            Message::Turn { asked, answer } => self.turn(asked, answer).await,
            Message::Reverse { choice, answer } => self.reverse(choice, answer),
            Message::Test {
                point,
                name,
                answer,
            } => {
                let _ = answer.send(self.test(point, name));
            }
        }
        false
    }

    /// Sees to it that nothing of a VM runs while it is off, unless its changes are sent, and no
    /// guest in any case. A launch or a doubt that ends settles anew.
    pub(super) fn settle(&mut self) {
        // Whoever changes the disks settles when that is done.
        if self.is_launching() || self.doubt || self.changing {
            return;
        }
        self.settling += 1;
        let off = self.guest.is_none();
        let view = self.view();
        let served = view.is_sent()
            || view.merging_checkpoint().is_some()
            || self.exports > 0
            || self.reversing.is_some();
        let supervisor = self.supervisor.clone();
        let host = Arc::clone(&self.host);
        let vm = self.id;
        self.spawn(async move {
            let done = match view.home.machine.as_ref().filter(|_| served) {
                Some(machine) => match supervisor.serve(&host, &view, machine).await {
                    Ok(status) if off && status.guest.is_some() => {
                        supervisor.kill_guest().await.map(drop)
                    }
                    ensured => ensured.map(drop),
                },
                None if !off => Ok(()),
                None => supervisor.shut_down().await,
            };
            let Err(problem) = done else {
                return Happening::Settled(Ok(()));
            };
            tracing::error!(%vm, %problem, "its processes are not as they should be");
            let certain = if off {
                supervisor.no_guest().await
            } else {
                Ok(())
            };
            Happening::Settled(certain)
        });
    }

    /// Takes into account what happened; true when the owner ends.
    async fn happened(&mut self, happening: Happening) -> bool {
        match happening {
            Happening::Turning(found, asked, answer) => {
                return self.turned(found, asked, answer).await;
            }
            Happening::Tracked(done) => self.tracked(done),
            Happening::Parted => self.parted(),
            Happening::ReplicaSays(evidence, choice) => {
                self.replica_says(evidence, choice).await;
            }
            Happening::Reversed(done, relation) => self.reversed(done, *relation),
            Happening::Evidence(round, evidence) => self.launch(round, &evidence),
            Happening::Launched(Ok(guest)) => self.launched(guest).await,
            Happening::Launched(Err(problem)) => self.start_failed(problem),
            Happening::Gone { pid, status } => self.gone(pid, status),
            Happening::Found(found) => self.found(found).await,
            Happening::Processors { pid, running, why } => {
                self.processors(pid, running, why).await;
            }
            Happening::Killed(done) => self.killed(done),
            Happening::Changed(changed) => self.changed(*changed),
            Happening::Merged(checkpoint) => self.merged(checkpoint),
            Happening::Stepped(done) => self.stepped(done),
            Happening::NoRoom { pid, slots } => self.no_room(pid, slots).await,
            Happening::Room { pid } => self.room(pid).await,
            Happening::Renewal(renewal) => self.renewed(renewal).await,
            Happening::Release(release) => self.released(*release).await,
            Happening::Sent(yielding) => self.sent(yielding),
            Happening::Told(evidence) => self.told(evidence).await,
            Happening::Settled(certain) => self.settled(certain),
            Happening::Enrolled(agreed) => self.enrolled(agreed),
            Happening::Disabled {
                answer,
                evidence,
                untold,
                word,
            } => {
                self.told(evidence).await;
                self.ending = false;
                let done = self.disabled(untold.is_none(), word.as_ref());
                let done = done.map(|()| untold);
                // What could not be forgotten goes on.
                self.drive();
                let _ = answer.send(done);
            }
            Happening::Cancelled(done, answer) => self.cancelled(done, answer),
        }
        false
    }

    fn settled(&mut self, certain: Result<(), Problem>) {
        self.settling -= 1;
        self.drive();
        if self.guest.is_some() || self.doubt || self.is_launching() || self.settling > 0 {
            return;
        }
        if let Err(problem) = certain {
            return self.doubt(&problem);
        }
        self.enter(state::after(self.state(), Event::Gone));
        for answer in self.stopping.drain(..).chain(self.killing.drain(..)) {
            let _ = answer.send(Ok(()));
        }
    }
}

/// Waits until then; for ever if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

pub(super) fn refuse<T>(answer: Answer<T>, problem: Problem) {
    // Fails only when nobody waits for it any more.
    let _ = answer.send(Err(problem));
}
