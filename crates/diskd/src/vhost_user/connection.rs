//! The message thread: accepts one front end after the other and reads its messages.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use ring::Sender;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::DiskShape;
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

/// Serves front ends, one at a time, until stopped. Meant to be a thread of its own.
pub(super) fn run(
    listener: &UnixListener,
    stopper: &Stopper,
    orders: &Sender<Order>,
    disk: DiskShape,
) {
    loop {
        match accept(listener, stopper) {
            Ok(Some(stream)) => {
                if !serve(stream, stopper, orders, disk) {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(
                    disk = %disk.id,
                    error = &error as &dyn std::error::Error,
                    "the vhost-user socket cannot accept; no guest can connect any more"
                );
                return;
            }
        }
    }
}

/// The next connection; none when stopped.
fn accept(listener: &UnixListener, stopper: &Stopper) -> io::Result<Option<UnixStream>> {
    loop {
        let mut fds = [
            PollFd::new(&stopper.event, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[0].revents().is_empty() {
            return Ok(None);
        }
        match listener.accept() {
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

/// Reads the messages of one connection until it ends. False when there is no owner any more.
fn serve(stream: UnixStream, stopper: &Stopper, orders: &Sender<Order>, disk: DiskShape) -> bool {
    let copy = match stream.try_clone() {
        Ok(copy) => copy,
        Err(error) => {
            tracing::warn!(disk = %disk.id, %error, "a front end was turned away");
            return true;
        }
    };
    if !stopper.watch(Some(copy)) || orders.send(Order::Connected).is_err() {
        return false;
    }
    tracing::debug!(disk = %disk.id, "a front end connected");
    let handler = Handler::new(orders.clone(), disk);
    let handler = Arc::new(Mutex::new(handler));
    let mut messages = BackendReqHandler::from_stream(stream, handler);
    let error = loop {
        if let Err(error) = messages.handle_request() {
            break error;
        }
    };
    let going_on = stopper.watch(None);
    match error {
        Error::Disconnected => tracing::debug!(disk = %disk.id, "the front end disconnected"),
        _ if !going_on => {}
        error => tracing::warn!(
            disk = %disk.id,
            error = &error as &dyn std::error::Error,
            "the front end is disconnected"
        ),
    }
    // The next one is accepted when nothing of this one runs any more.
    let (reply, answer) = std::sync::mpsc::sync_channel(1);
    orders.send(Order::Gone(reply)).is_ok() && answer.recv().is_ok() && going_on
}
