//! One client of the control socket: bounded lines in, replies out, never blocking.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use model::{Code, Problem};
use rustix::event::PollFlags;

use crate::control::{MAX_LINE, Reply, Request};

const READ_CHUNK: usize = 64 << 10;

/// What a client waits for; it is read no further until it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The guest of this process id to be gone.
    Guest(u32),
    /// A new diskd to serve, or not to.
    Replacement,
    /// vmd to have stopped everything.
    Shutdown,
}

/// A client.
pub(crate) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// No more will be read: the client has sent its last line, or a bad one.
    deaf: bool,
    /// What it waits for.
    pub(crate) waiting: Option<Waiting>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            deaf: false,
            waiting: None,
        })
    }

    /// What to poll for; that the client has gone is always told.
    pub(crate) fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        // Replies must go before more requests come, so that neither buffer grows.
        if !self.output.is_empty() {
            flags |= PollFlags::OUT;
        } else if !self.deaf && self.waiting.is_none() {
            flags |= PollFlags::IN;
        }
        flags
    }

    /// Reads and writes what can be. Returns whether the client is still there.
    pub(crate) fn serve(&mut self, ready: PollFlags) -> bool {
        if ready.intersects(PollFlags::ERR | PollFlags::NVAL | PollFlags::HUP)
            && !ready.contains(PollFlags::IN)
        {
            return false;
        }
        if ready.contains(PollFlags::IN) {
            let mut chunk = [0; READ_CHUNK];
            match self.stream.read(&mut chunk) {
                Ok(0) => self.deaf = true,
                Ok(read) => self.input.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_gone) => return false,
            }
        }
        self.flush()
    }

    /// The next request, if a whole line is there and the last one was answered. A line that is
    /// none is refused, and nothing more is read from this client.
    pub(crate) fn next(&mut self) -> Option<Request> {
        if self.waiting.is_some() || !self.output.is_empty() {
            return None;
        }
        let end = self.input.iter().position(|byte| *byte == b'\n');
        let fault = match end {
            Some(end) if end <= MAX_LINE => {
                let request = serde_json::from_slice(&self.input[..end]);
                self.input.drain(..=end);
                match request {
                    Ok(request) => return Some(request),
                    Err(error) => format!("is not understood: {error}"),
                }
            }
            None if self.input.len() <= MAX_LINE => return None,
            _ => format!("is longer than {MAX_LINE} bytes"),
        };
        self.deaf = true;
        self.input.clear();
        let problem = Problem::new(Code::Invalid, "the request", fault, "");
        self.reply(&Reply::Refused { problem });
        None
    }

    /// Sends `reply`, now or when there is room.
    pub(crate) fn reply(&mut self, reply: &Reply) {
        self.waiting = None;
        match serde_json::to_vec(reply) {
            Ok(line) => {
                self.output.extend_from_slice(&line);
                self.output.push(b'\n');
            }
            // Text and numbers always have a JSON form; without one the client must not wait.
            Err(error) => {
                tracing::error!(%error, "a reply has no JSON form");
                self.deaf = true;
            }
        }
        // That the client has gone is seen at the next poll.
        let _ = self.flush();
    }

    /// Whether there is nothing left to do for it.
    pub(crate) fn is_finished(&self) -> bool {
        let asked = self.input.contains(&b'\n');
        self.deaf && !asked && self.output.is_empty() && self.waiting.is_none()
    }

    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_gone) => return false,
            }
        }
        true
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
