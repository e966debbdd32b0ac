//! One client: its socket, what it sends, what it is sent.
//!
//! ```text
//!   Open --close--> Closing   nothing is received any more; what runs is answered
//!     |                |
//!     '--sever---------'----> Severed   nothing is sent any more either
//! ```
//!
//! Three kinds of tasks: one receives (see [`super::server`]), one sends, and one for each operation
//! on the disk. What ends the connection never ends an operation.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use block::{Buffer, Waiters};
use futures_util::future::{Either, select};
use ring::Ring;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::export::Export;
use super::outbox::{Outbox, Segment};
use super::socket;
use super::window::Window;

/// Most bytes of memory that a client's connection keeps for its next operations.
const SPARE: usize = 4 << 20;

/// Nothing can be received, or should be, any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closing,
    Severed,
}

/// A client's connection.
pub(super) struct Connection {
    ring: Ring,
    socket: UnixStream,
    phase: Cell<Phase>,
    /// It is no longer open.
    ended: Waiters,
    /// Set once the client has chosen.
    export: RefCell<Option<Export>>,
    pub(super) window: Rc<Window>,
    outbox: RefCell<Outbox>,
    /// There is something to send, or there never will be.
    output: Waiters,
    spare: RefCell<Spare>,
    /// Operations on the disk.
    running: Cell<usize>,
}

/// An operation that runs, until dropped.
pub(super) struct Running(Rc<Connection>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.window.changed.notify();
    }
}

impl Connection {
    pub(super) fn new(ring: &Ring, socket: UnixStream) -> Rc<Self> {
        Rc::new(Self {
            ring: ring.clone(),
            socket,
            phase: Cell::new(Phase::Open),
            ended: Waiters::default(),
            export: RefCell::new(None),
            window: Rc::default(),
            outbox: RefCell::default(),
            output: Waiters::default(),
            spare: RefCell::default(),
            running: Cell::new(0),
        })
    }

    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase.get() == Phase::Open
    }

    /// What the client has chosen, if it has.
    pub(super) fn export(&self) -> Option<Export> {
        self.export.borrow().clone()
    }

    pub(super) fn choose(&self, export: Export) {
        *self.export.borrow_mut() = Some(export);
    }

    /// Whether the client has closed its socket. One that only says no more is still there.
    pub(super) fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    /// Receives nothing more; what runs is answered.
    pub(super) fn close(&self) {
        if self.is_open() {
            self.phase.set(Phase::Closing);
            self.ended.notify();
            self.window.changed.notify();
        }
    }

    /// Receives and sends nothing more.
    pub(super) fn sever(&self) {
        self.phase.set(Phase::Severed);
        self.ended.notify();
        self.window.changed.notify();
        self.output.notify();
    }

    /// Waits until `ready` gives something, or for the end of the connection.
    pub(super) async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> Result<T, Ended> {
        let changed = &self.window.changed;
        changed
            .until(|| {
                if self.is_open() {
                    ready().map(Ok)
                } else {
                    Some(Err(Ended))
                }
            })
            .await
    }

    /// Runs `operation` beside everything else, to its end.
    pub(super) fn spawn(self: &Rc<Self>, operation: impl Future<Output = ()> + 'static) {
        let running = self.begin();
        self.ring.spawn(async move {
            operation.await;
            drop(running);
        });
    }

    /// Notes that an operation runs.
    pub(super) fn begin(self: &Rc<Self>) -> Running {
        self.running.set(self.running.get() + 1);
        Running(Rc::clone(self))
    }

    /// Receives at least one byte into what is left of `first` after so many bytes, then into
    /// `second`. `dry` says, and is told, that there is probably nothing at the moment.
    pub(super) async fn receive(
        &self,
        mut first: Option<(&mut Buffer, usize)>,
        second: &mut [u8],
        dry: &mut bool,
    ) -> Result<usize, Ended> {
        let before = first
            .as_ref()
            .map_or(0, |(buffer, skip)| buffer.len() - skip);
        let wanted = before + second.len();
        loop {
            if *dry {
                let ended = pin!(self.ended.until(|| (!self.is_open()).then_some(())));
                let readable = pin!(self.ring.readable(self.socket.as_fd()));
                match select(ended, readable).await {
                    Either::Left(_) | Either::Right((Err(_), _)) => return Err(Ended),
                    Either::Right((Ok(()), _)) => {}
                }
            } else {
                // Whoever sends without a pause is not the only one.
                self.ring.yield_now().await;
            }
            if !self.is_open() {
                return Err(Ended);
            }
            let rest = first.as_mut().map(|(buffer, skip)| (&mut **buffer, *skip));
            match socket::receive(self.socket.as_fd(), rest, second) {
                Ok(None) => *dry = true,
                Ok(Some(0)) | Err(_) => return Err(Ended),
                Ok(Some(moved)) => {
                    *dry = moved < wanted;
                    return Ok(moved);
                }
            }
        }
    }

    /// Has `segment` sent after everything before it.
    pub(super) fn send(&self, segment: Segment) {
        if self.phase.get() == Phase::Severed {
            return;
        }
        self.outbox.borrow_mut().push(segment);
        self.output.notify();
    }

    /// Sends what there is until the connection is severed. Replies that become ready in one turn of
    /// the ring go together.
    pub(super) async fn send_all(self: Rc<Self>) {
        let severed = || self.phase.get() == Phase::Severed;
        let mut gone = Vec::new();
        while !severed() {
            let some = || (severed() || !self.outbox.borrow().is_empty()).then_some(());
            self.output.until(some).await;
            if severed() {
                break;
            }
            let sent = self
                .outbox
                .borrow_mut()
                .send(self.socket.as_fd(), &mut gone);
            let some = !gone.is_empty();
            gone.drain(..).for_each(|segment| self.keep(segment.body));
            if some {
                self.window.changed.notify();
            }
            match sent {
                Ok(true) => {}
                Ok(false) => self.room().await,
                Err(_) => self.sever(),
            }
        }
        // After the borrow: what is dropped here may look at the connection.
        let rest = self.outbox.borrow_mut().clear();
        drop(rest);
    }

    /// Waits until there is room for more, or nobody to send to.
    async fn room(&self) {
        let severed = || (self.phase.get() == Phase::Severed).then_some(());
        let severed = pin!(self.output.until(severed));
        let writable = pin!(self.ring.writable(self.socket.as_fd()));
        if let Either::Right((Err(_), _)) = select(severed, writable).await {
            self.sever();
        }
    }

    /// Waits until everything that was said is sent; false if it can't be.
    pub(super) async fn is_sent(&self) -> bool {
        let sent = || {
            let severed = self.phase.get() == Phase::Severed;
            (severed || self.outbox.borrow().is_empty()).then_some(!severed)
        };
        self.window.changed.until(sent).await
    }

    /// Ends it: what runs is answered, as far as the client takes the answers within `linger`.
    pub(super) async fn finish(&self, linger: Duration) {
        self.close();
        let idle = || (self.running.get() == 0).then_some(());
        self.window.changed.until(idle).await;
        select(pin!(self.is_sent()), pin!(self.ring.sleep(linger))).await;
        self.sever();
        // It may be closed already, by the other side.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Memory of `len` bytes; what is in it is to be overwritten.
    pub(super) fn memory(&self, len: usize) -> Buffer {
        let kept = self.spare.borrow_mut().take(len);
        kept.unwrap_or_else(|| Buffer::zeroed(len))
    }

    /// Keeps memory for the next operation.
    pub(super) fn keep(&self, buffer: Option<Buffer>) {
        if let Some(buffer) = buffer {
            self.spare.borrow_mut().put(buffer);
        }
    }
}

/// Memory of past operations, the oldest first.
#[derive(Default)]
struct Spare {
    buffers: VecDeque<Buffer>,
    bytes: usize,
}

impl Spare {
    fn take(&mut self, len: usize) -> Option<Buffer> {
        // The last one is the likeliest to be in a cache, and clients seldom mix lengths.
        let found = self
            .buffers
            .iter()
            .rposition(|buffer| buffer.len() == len)?;
        self.bytes -= len;
        self.buffers.remove(found)
    }

    fn put(&mut self, buffer: Buffer) {
        self.bytes += buffer.len();
        self.buffers.push_back(buffer);
        while self.bytes > SPARE || self.buffers.len() > super::window::REQUESTS {
            let Some(oldest) = self.buffers.pop_front() else {
                return;
            };
            self.bytes -= oldest.len();
        }
    }
}
