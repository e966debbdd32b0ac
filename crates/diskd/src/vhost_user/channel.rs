//! The channel on which we tell the front end something unasked (vhost-user specification,
//! "Back-end message types"): that the disk's size changed.
//!
//! ```text
//!   SET_BACKEND_REQ_FD  --> the channel
//!   CONFIG_CHANGE_MSG   <-- when the size is not the one that the front end last read
//!   GET_CONFIG          --> it reads the new one and tells the guest
//! ```
//!
//! QEMU forgets the message while its machine is stopped and does not read the configuration
//! again after a lost connection. So the message is also sent when the first queue starts,
//! unless the front end has read the size on this connection.
//!
//! `vhost` keeps the channel to itself and cannot send this message; the descriptor is copied from
//! the message before `vhost` takes it from the socket.

use std::io::{IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
};

/// `VHOST_USER_SET_BACKEND_REQ_FD`.
const SET_BACKEND_REQ_FD: u32 = 21;
/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.
const CONFIG_CHANGE: u32 = 2;
/// The version in the flags of every message.
const VERSION: u32 = 1;

/// The channel of the current connection.
#[derive(Debug, Default)]
pub(super) struct Channel(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    socket: Option<OwnedFd>,
    /// The size that the front end has last read, in bytes.
    read: Option<u64>,
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The front end has opened it.
    pub(super) fn open(&self, socket: OwnedFd) {
        self.lock().socket = Some(socket);
    }

    /// The connection has ended.
    pub(super) fn close(&self) {
        *self.lock() = State::default();
    }

    /// The front end has read that the disk has `size` bytes.
    pub(super) fn read(&self, size: u64) {
        self.lock().read = Some(size);
    }

    /// Tells the front end of the size, unless it has read this one. Does not wait.
    pub(super) fn tell(&self, size: u64) {
        let state = self.lock();
        let Some(socket) = state.socket.as_ref().filter(|_| state.read != Some(size)) else {
            return;
        };
        let mut message = [0; 12];
        message[..4].copy_from_slice(&CONFIG_CHANGE.to_ne_bytes());
        message[4..8].copy_from_slice(&VERSION.to_ne_bytes());
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(socket, &message, flags) {
            // Full: of messages like this one, which it has not looked at yet.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => tracing::warn!(%error, "the front end was not told of the new size"),
        }
    }
}

/// A copy of the descriptor of the next message on `stream`, if that message opens a channel.
/// Waits until there is a message. The message stays.
///
/// # Errors
/// When the socket cannot be read.
pub(super) fn peek(stream: &UnixStream) -> Result<Option<OwnedFd>> {
    let mut code = [0; 4];
    let len = loop {
        // Without room for descriptors, which would be copied in vain for other messages.
        match recv(stream, &mut code, RecvFlags::PEEK) {
            Err(Errno::INTR) => {}
            result => break result?.0,
        }
    };
    if len < code.len() || u32::from_ne_bytes(code) != SET_BACKEND_REQ_FD {
        return Ok(None);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let into = &mut [IoSliceMut::new(&mut code)];
    recvmsg(stream, into, &mut control, flags)?;
    let mut socket = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut files) = message {
            socket = files.next();
        }
    }
    Ok(socket)
}
