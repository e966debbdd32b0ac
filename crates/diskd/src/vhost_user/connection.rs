//! The message thread: accepts one front end after the other and reads its messages.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ring::Sender;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use smallvec::SmallVec;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::DiskShape;
use super::channel::{self, Channel};
use super::front::Order;
use super::handler::Handler;

/// Ends the message thread from another one.
pub(super) struct Stopper {
    /// Readable once stopped.
    event: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    /// The connection that is being read, to be shut down.
    stream: Option<UnixStream>,
}

impl Stopper {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: Mutex::default(),
        }))
    }

    /// Closes the connection and accepts no other. Does not wait.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped = true;
        // The eventfd is ours, with room; a connection that is closed already needs no closing.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        if let Some(stream) = state.stream.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether the other end of the connection is open, though its last messages were not read yet.
    pub(super) fn peer_is_there(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = &state.stream else {
            return false;
        };
        let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&now)) {
            Ok(_) => fds[0].revents().is_empty(),
            // It cannot be told: as if it were.
            Err(_) => true,
        }
    }

    /// Remembers the connection; false if it is too late for one.
    fn watch(&self, stream: Option<UnixStream>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stream = stream;
        !state.stopped
    }
}

/// Shortest and longest pause after a connection could not be accepted, such as for want of
/// descriptors.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What the message thread works with.
pub(super) struct Served {
    pub(super) listener: UnixListener,
    pub(super) stopper: Arc<Stopper>,
    pub(super) orders: Sender<Order>,
    pub(super) disk: Arc<DiskShape>,
    pub(super) channel: Arc<Channel>,
}

impl Served {
    /// Serves front ends, one at a time, until stopped. Meant to be a thread of its own.
    pub(super) fn run(self) {
        let mut pause = None;
        loop {
            match self.accept(pause) {
                Ok(Some(stream)) => {
                    if pause.take().is_some() {
                        tracing::info!(disk = %self.disk.id, "the vhost-user socket accepts again");
                    }
                    if !self.serve(stream) {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    // The guest waits as long as nobody answers on the socket: said once.
                    if pause.is_none() {
                        tracing::error!(
                            disk = %self.disk.id,
                            error = &error as &dyn std::error::Error,
                            "the vhost-user socket cannot accept a connection; trying again"
                        );
                    }
                    pause = Some(pause.map_or(PAUSES.0, |last| PAUSES.1.min(last * 2)));
                }
            }
        }
    }

    /// The next connection, after a pause; none when stopped.
    fn accept(&self, pause: Option<Duration>) -> io::Result<Option<UnixStream>> {
        if pause.is_some() && self.stopped(None, pause)? {
            return Ok(None);
        }
        loop {
            if self.stopped(Some(&self.listener), None)? {
                return Ok(None);
            }
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) => match error.kind() {
                    // Taken by somebody else, or gone before we came.
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Waits for the stopper, until the listener is readable or time is up. Whether stopped.
    fn stopped(
        &self,
        listener: Option<&UnixListener>,
        limit: Option<Duration>,
    ) -> io::Result<bool> {
        let limit = limit.map(Timespec::try_from);
        let limit = limit.transpose().map_err(io::Error::other)?;
        loop {
            let stopper = PollFd::new(&self.stopper.event, PollFlags::IN);
            let listener = listener.map(|listener| PollFd::new(listener, PollFlags::IN));
            let mut fds: SmallVec<[PollFd<'_>; 2]> =
                [stopper].into_iter().chain(listener).collect();
            match poll(&mut fds, limit.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(!fds[0].revents().is_empty()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads the messages of one connection until it ends. False when there is no owner any
    /// more.
    fn serve(&self, stream: UnixStream) -> bool {
        let disk = self.disk.id;
        let copies = stream
            .try_clone()
            .and_then(|copy| Ok((copy, stream.try_clone()?)));
        let (watched, peeked) = match copies {
            Ok(copies) => copies,
            Err(error) => {
                tracing::warn!(%disk, %error, "a front end was turned away");
                return true;
            }
        };
        if !self.stopper.watch(Some(watched)) || self.orders.send(Order::Connected).is_err() {
            return false;
        }
        tracing::debug!(%disk, "a front end connected");
        let handler = Handler::new(
            self.orders.clone(),
            Arc::clone(&self.disk),
            Arc::clone(&self.channel),
        );
        let mut messages = BackendReqHandler::from_stream(stream, Arc::new(Mutex::new(handler)));
        let error = loop {
            let channel = match channel::peek(&peeked) {
                Ok(channel) => channel,
                Err(error) => break Error::SocketBroken(error),
            };
            if let Err(error) = messages.handle_request() {
                break error;
            }
            if let Some(channel) = channel {
                self.channel.open(channel);
            }
        };
        self.channel.close();
        let going_on = self.stopper.watch(None);
        match error {
            Error::Disconnected => tracing::debug!(%disk, "the front end disconnected"),
            _ if !going_on => {}
            error => tracing::warn!(
                %disk,
                error = &error as &dyn std::error::Error,
                "the front end is disconnected"
            ),
        }
        // The next one is accepted when nothing of this one runs any more.
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.orders.send(Order::Gone(reply)).is_ok() && answer.recv().is_ok() && going_on
    }
}
