//! One running queue on its owner thread.
//!
//! ```text
//!   kick --> listen: take heads ---- in-flight: taken --> spawn(request)
//!                                                             |  device.run, status byte
//!   call <-- publish: a batch of answers <-- finished <-------+  (any order)
//!            in-flight: link; used idx += n; in-flight: clear
//!
//!          Serving --stop--> Stopping   takes nothing new, answers what runs and does not wait for room
//!             |----sever---> Severed    takes nothing new, answers nothing: the front end is gone
//!             '----error---> Broken     takes nothing new, answers what runs; logged
//! ```
//!
//! - A head is noted as taken before anything is done about it, and an answer is visible to
//!   the driver before the head is noted as answered: `kill -9` at any instant loses nothing
//!   and repeats only what nobody was told about (see [`super::inflight`]).
//! - Each request holds the memory table under which it was taken.
//! - Answers that become ready in one turn of the ring are published together, with at most
//!   one notification.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use block::{Device, Waiters};
use ring::{Patience, Ring};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags, preadv2};

use super::DiskShape;
use super::chain::{self, Malformed};
use super::inflight::{InflightArea, InflightError, InflightQueue, Recovered};
use super::log::DirtyLog;
use super::memory::Memory;
use super::request::{Request, Status};
use super::room::{Room, Waiting};
use super::split_ring::{RingError, RingPlace, SplitRing};

/// Answers that are published without waiting for more.
const BATCH: usize = 16;

/// Everything that a queue needs to run.
#[derive(Debug)]
pub(super) struct QueueSetup {
    pub(super) index: u16,
    pub(super) place: RingPlace,
    /// Next entry of the available ring, if the in-flight area doesn't know better.
    pub(super) next_available: u16,
    pub(super) memory: Arc<Memory>,
    pub(super) inflight: Option<InflightArea>,
    pub(super) kick: OwnedFd,
    pub(super) call: Option<OwnedFd>,
    pub(super) error: Option<OwnedFd>,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
    /// Guest address of the used ring for the log of dirty memory, if it is to be marked.
    pub(super) log_used_at: Option<u64>,
}

/// What the queues of a disk share.
pub(super) struct Shared<D> {
    pub(super) ring: Ring,
    pub(super) device: Rc<D>,
    pub(super) disk: Arc<DiskShape>,
    pub(super) room: Room,
    /// Where memory that is written is marked, during a live migration.
    pub(super) log: RefCell<Option<DirtyLog>>,
}

/// Why a queue cannot run, or not any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Chain(#[from] Malformed),
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// The in-flight area was made for fewer or smaller queues.
    #[error("the in-flight area has no room for it")]
    NotTracked,
    /// The chain has no byte to write an answer to.
    #[error("a request without a status byte")]
    NoStatus,
    /// The disk is being closed.
    #[error("the disk is being closed")]
    Closing,
    /// The descriptor that should wake us is not an eventfd.
    #[error("its kick descriptor cannot be read")]
    Kick(#[source] std::io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Stopping,
    Severed,
    Broken,
}

struct State {
    phase: Phase,
    ring: SplitRing,
    inflight: Option<InflightQueue>,
    memory: Arc<Memory>,
    /// Heads that were taken and not published.
    busy: Vec<bool>,
    /// Requests that run.
    running: usize,
    /// Answers that wait for publication: head, length.
    finished: Vec<(u16, u32)>,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
}

/// A running queue.
pub(super) struct Queue<D> {
    index: u16,
    indirect: bool,
    shared: Rc<Shared<D>>,
    kick: OwnedFd,
    state: RefCell<State>,
    /// It is no longer serving.
    ended: Waiters,
    /// Nothing runs and nothing waits for publication.
    idle: Waiters,
}

impl<D: Device + 'static> Queue<D> {
    /// Starts it: first what was in flight when another process died, then what is new.
    pub(super) fn start(shared: &Rc<Shared<D>>, setup: QueueSetup) -> Result<Rc<Self>, QueueError> {
        let size = setup.place.size;
        let mut split = SplitRing::new(
            &setup.memory,
            setup.place,
            setup.next_available,
            setup.event_idx,
        )?;
        split.log_used_at(setup.log_used_at);
        split.set_log(shared.log.borrow().clone());
        let mut again = Vec::new();
        let inflight = match setup.inflight {
            None => None,
            Some(area) => {
                let mut inflight = area
                    .queue(setup.index, size)
                    .ok_or(QueueError::NotTracked)?;
                if let Recovered::Heads(heads) = inflight.recover(split.used_idx())? {
                    split.resume_after(u16::try_from(heads.len()).unwrap_or(u16::MAX));
                    again = heads;
                }
                Some(inflight)
            }
        };
        let queue = Rc::new(Self {
            index: setup.index,
            indirect: setup.indirect,
            shared: Rc::clone(shared),
            kick: setup.kick,
            state: RefCell::new(State {
                phase: Phase::Serving,
                ring: split,
                inflight,
                memory: setup.memory,
                busy: vec![false; usize::from(size)],
                running: 0,
                finished: Vec::new(),
                call: setup.call,
                error: setup.error,
            }),
            ended: Waiters::default(),
            idle: Waiters::default(),
        });
        if !again.is_empty() {
            tracing::info!(
                queue = queue.index,
                requests = again.len(),
                "running again what was in flight"
            );
        }
        for head in again {
            queue.state.borrow_mut().busy[usize::from(head)] = true;
            if let Err(error) = queue.begin(head) {
                queue.break_off(&error);
                break;
            }
        }
        // A process that died after publishing may not have notified.
        queue.state.borrow().notify();
        shared.ring.spawn(Rc::clone(&queue).listen());
        Ok(queue)
    }

    /// Uses another memory table for what is taken from now on.
    pub(super) fn set_memory(&self, memory: Arc<Memory>) {
        let mut state = self.state.borrow_mut();
        state.ring.move_to(&memory);
        state.memory = memory;
    }

    /// Uses another descriptor for notifications, and notifies: one may have been missed.
    pub(super) fn set_call(&self, call: Option<OwnedFd>) {
        let mut state = self.state.borrow_mut();
        state.call = call;
        state.notify();
    }

    /// Uses another descriptor for telling that the queue is broken.
    pub(super) fn set_error(&self, error: Option<OwnedFd>) {
        self.state.borrow_mut().error = error;
    }

    /// Marks what is written from now on in this log; what runs, too.
    pub(super) fn set_log(&self, log: Option<DirtyLog>) {
        self.state.borrow_mut().ring.set_log(log);
    }

    /// Marks the used ring from this guest address on, if there is a log.
    pub(super) fn log_used_at(&self, used: Option<u64>) {
        self.state.borrow_mut().ring.log_used_at(used);
    }

    /// Takes nothing new, answers everything that runs but what waits for room, and returns the
    /// index of the next entry of the available ring. A stopped queue says the same again.
    pub(super) async fn stop(&self) -> u16 {
        self.end(Phase::Stopping).await;
        self.state.borrow().ring.next_available()
    }

    /// Takes nothing new and answers nothing any more; returns when nothing runs. What ran
    /// stays in flight for whoever the front end connects to next.
    pub(super) async fn sever(&self) {
        self.end(Phase::Severed).await;
    }

    async fn end(&self, phase: Phase) {
        {
            let mut state = self.state.borrow_mut();
            // Who is gone stays gone.
            if state.phase != Phase::Severed {
                state.phase = phase;
            }
        }
        self.ended.notify();
        self.shared.room.wake();
        self.idle
            .until(|| self.state.borrow().is_idle().then_some(()))
            .await;
    }

    /// Whether who waits for room shall wait no more.
    fn is_stopped(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Stopping | Phase::Severed)
    }

    fn is_serving(&self) -> bool {
        self.state.borrow().phase == Phase::Serving
    }

    /// Takes requests as they come, until the queue ends.
    async fn listen(self: Rc<Self>) {
        let patience = Patience::default();
        loop {
            if let Err(error) = self.take_all() {
                return self.break_off(&error);
            }
            if patience.look(&self.shared.ring, || self.look()).await {
                continue;
            }
            match self.unmute() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => return self.break_off(&error.into()),
            }
            let mut readable = pin!(self.shared.ring.readable(self.kick.as_fd()));
            let mut ended = pin!(self.ended.until(|| (!self.is_serving()).then_some(())));
            let kicked = poll_fn(|cx: &mut Context<'_>| {
                if ended.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                readable.as_mut().poll(cx).map(Some)
            });
            let read = match patience.wait(kicked).await {
                None => return,
                Some(polled) => polled.and_then(|()| self.read_kick()),
            };
            if let Err(error) = read {
                return self.break_off(&QueueError::Kick(error));
            }
        }
    }

    /// Whether there is something new; gives up when something runs: its completion is waited for
    /// in the kernel.
    fn look(&self) -> ControlFlow<bool> {
        let state = self.state.borrow();
        if state.phase != Phase::Serving || state.running > 0 {
            return ControlFlow::Break(false);
        }
        match state.ring.peek() {
            Ok(None) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(true),
        }
    }

    /// Asks for notifications. False if something came meanwhile.
    fn unmute(&self) -> Result<bool, RingError> {
        let mut state = self.state.borrow_mut();
        if state.phase != Phase::Serving {
            // The front end may have been told that nothing is written any more.
            return Ok(true);
        }
        state.ring.unmute();
        Ok(state.ring.peek()?.is_none())
    }

    /// Resets the kick descriptor. It may be blocking, and others may read it too.
    fn read_kick(&self) -> std::io::Result<()> {
        let mut counter = [0; 8];
        let into = &mut [IoSliceMut::new(&mut counter)];
        match preadv2(&self.kick, into, u64::MAX, ReadWriteFlags::NOWAIT) {
            Ok(8) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Ok(_) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes everything that is available.
    fn take_all(self: &Rc<Self>) -> Result<(), QueueError> {
        if self.is_serving() {
            self.state.borrow_mut().ring.mute();
        }
        loop {
            let head = self.state.borrow_mut().take()?;
            let Some(head) = head else { return Ok(()) };
            self.begin(head)?;
        }
    }

    /// Starts the request at `head`, which was taken.
    fn begin(self: &Rc<Self>, head: u16) -> Result<(), QueueError> {
        let chain = {
            let state = self.state.borrow();
            chain::walk(state.ring.descriptors(), head, &state.memory, self.indirect)?
        };
        let request = Request::new(chain, &self.shared.disk).ok_or(QueueError::NoStatus)?;
        self.state.borrow_mut().running += 1;
        let queue = Rc::clone(self);
        self.shared.ring.spawn(async move {
            let Shared { ring, room, .. } = &*queue.shared;
            let mut patience = Waiting::new(ring, room, || queue.is_stopped());
            let status = request.run(&*queue.shared.device, &mut patience).await;
            if status.is_some() {
                patience.done();
            } else {
                drop(patience);
            }
            queue.finish(head, &request, status);
        });
        Ok(())
    }

    /// Notes an answer; none is left in flight, if it can be. The first of a batch has the batch
    /// published after everything else that is ready now; a full one is published at once, so
    /// that the driver works on it beside us.
    fn finish(self: &Rc<Self>, head: u16, request: &Request, status: Option<Status>) {
        let log = self.shared.log.borrow();
        let mut state = self.state.borrow_mut();
        state.running -= 1;
        let leave = status.is_none()
            && (state.phase == Phase::Severed || (state.inflight.is_some() && log.is_none()));
        if leave {
            if state.is_idle() {
                self.idle.notify();
            }
            return;
        }
        let len = request.answer(status.unwrap_or(Status::IoError));
        if let Some(log) = &*log {
            request.mark(log);
        }
        state.finished.push((head, len));
        if state.finished.len() == BATCH {
            drop(state);
            self.publish();
        } else if state.finished.len() == 1 {
            let queue = Rc::clone(self);
            self.shared.ring.spawn(async move { queue.publish() });
        }
    }

    fn publish(&self) {
        let mut state = self.state.borrow_mut();
        if state.phase == Phase::Severed {
            state.finished.clear();
        } else {
            state.publish();
        }
        if state.is_idle() {
            self.idle.notify();
        }
    }

    /// Takes nothing from this queue any more.
    fn break_off(&self, error: &QueueError) {
        let mut state = self.state.borrow_mut();
        if state.phase == Phase::Serving {
            state.phase = Phase::Broken;
        }
        tracing::warn!(
            queue = self.index,
            error = error as &dyn std::error::Error,
            "the guest's queue is broken and no longer served"
        );
        signal(state.error.as_ref());
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.running == 0 && self.finished.is_empty()
    }

    /// Takes the next head, and notes that in the in-flight area.
    fn take(&mut self) -> Result<Option<u16>, RingError> {
        if self.phase != Phase::Serving {
            return Ok(None);
        }
        let Some(head) = self.ring.peek()? else {
            return Ok(None);
        };
        let busy = &mut self.busy[usize::from(head)];
        if std::mem::replace(busy, true) {
            return Err(RingError::Busy(head));
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.take(head);
        }
        self.ring.advance();
        Ok(Some(head))
    }

    /// Publishes all finished answers as one batch.
    fn publish(&mut self) {
        let mut count = 0;
        for (head, len) in &self.finished {
            if let Some(inflight) = &mut self.inflight {
                inflight.link(*head);
            }
            self.ring.answer(count, *head, *len);
            count += 1;
        }
        self.ring.publish(count);
        for (head, _) in self.finished.drain(..) {
            if let Some(inflight) = &mut self.inflight {
                inflight.clear(head);
            }
            self.busy[usize::from(head)] = false;
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.settle(self.ring.used_idx());
        }
        if self.ring.must_notify() {
            self.notify();
        }
    }

    fn notify(&self) {
        signal(self.call.as_ref());
    }
}

/// Adds one to an eventfd. It can fail only if the front end gave us something else, or filled it
/// up: then it is not waiting for us.
fn signal(eventfd: Option<&OwnedFd>) {
    if let Some(eventfd) = eventfd {
        let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
    }
}
