//! A request that was taken, and how it is answered.
//!
//! A long one is run in parts; whichever part ends last ends the reply. A request that succeeds and
//! whose reply has no content gets a simple reply, which is allowed and short ("Structured reply chunk
//! message"); a failure is told with its reason where the client can take it.

use std::cell::Cell;
use std::rc::Rc;

use block::{Buffer, Done, Fault, Op};

use super::connection::Connection;
use super::export::Export;
use super::negotiation::Session;
use super::outbox::Segment;
use super::protocol::{self, Failure, Head, Header};
use super::window::Permit;

/// A request between its header and the last byte of its reply.
pub(super) struct Call {
    connection: Rc<Connection>,
    export: Export,
    cookie: u64,
    structured: bool,
    /// What it writes must be durable before it is answered.
    durable: bool,
    /// Parts that have not ended.
    left: Cell<usize>,
    failure: Cell<Option<Failure>>,
    _place: Permit,
}

/// What a part of a request came to.
pub(super) enum Part {
    /// Content from `at` on.
    Data {
        at: u64,
        buffer: Buffer,
        permit: Permit,
    },
    /// `len` zeroes from `at` on.
    Hole { at: u64, len: usize, permit: Permit },
    /// There is nothing to tell but that it is done.
    Nothing,
}

impl Call {
    pub(super) fn new(
        connection: &Rc<Connection>,
        session: &Session,
        header: &Header,
        place: Permit,
    ) -> Rc<Self> {
        Rc::new(Self {
            connection: Rc::clone(connection),
            export: session.export.clone(),
            cookie: header.cookie,
            structured: session.structured,
            durable: header.flags & protocol::flag::FUA != 0,
            left: Cell::new(1),
            failure: Cell::new(None),
            _place: place,
        })
    }

    pub(super) fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    pub(super) fn export(&self) -> &Export {
        &self.export
    }

    /// It is run in so many parts.
    pub(super) fn split(&self, parts: usize) {
        self.left.set(parts);
    }

    pub(super) fn failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Runs one operation; its memory comes back where it has some.
    pub(super) async fn run(&self, op: Op) -> (Result<(), Failure>, Option<Buffer>) {
        let Done { outcome, buffer } = self.export.disk.run(op).await;
        (outcome.map_err(failure), buffer)
    }

    /// Runs an operation that changes the disk, as a part of the request.
    pub(super) async fn change(self: Rc<Self>, op: Op, permit: Option<Permit>) {
        let (mut outcome, buffer) = self.run(op).await;
        self.connection.keep(buffer);
        drop(permit);
        if self.durable && self.left.get() == 1 && outcome.is_ok() && !self.failed() {
            outcome = self.run(Op::Flush).await.0;
        }
        self.end(outcome.map(|()| Part::Nothing));
    }

    /// Reads a part of the request.
    pub(super) async fn read(self: Rc<Self>, at: u64, len: usize, permit: Permit) {
        let into = self.connection.memory(len);
        let (outcome, buffer) = self.run(Op::Read { at, into }).await;
        let part = match (outcome, buffer) {
            (Ok(()), Some(buffer)) => Ok(Part::Data { at, buffer, permit }),
            (Ok(()), None) => unreachable!("a device gives the memory of a read back"),
            (Err(failure), buffer) => {
                self.connection.keep(buffer);
                Err(failure)
            }
        };
        self.end(part);
    }

    /// A part has ended.
    pub(super) fn end(self: &Rc<Self>, part: Result<Part, Failure>) {
        let left = self.left.get() - 1;
        self.left.set(left);
        let part = part.unwrap_or_else(|failure| {
            self.failure
                .set(Some(self.failure.get().unwrap_or(failure)));
            Part::Nothing
        });
        let (last, failure) = (left == 0, self.failure.get());
        let done = last && failure.is_none();
        match part {
            Part::Data { at, buffer, permit } => {
                let head = if self.structured {
                    protocol::data(self.cookie, done, at, buffer.len())
                } else {
                    protocol::simple_reply(self.cookie, 0)
                };
                self.say(head, Some(buffer), Some(permit));
            }
            Part::Hole { at, len, permit } => {
                let head = protocol::hole(self.cookie, done, at, len);
                self.say(head, None, Some(permit));
            }
            Part::Nothing if done => self.say(protocol::simple_reply(self.cookie, 0), None, None),
            Part::Nothing => {}
        }
        if let (true, Some(failure)) = (last, failure) {
            let head = if self.structured {
                protocol::error(self.cookie, failure)
            } else {
                protocol::simple_reply(self.cookie, failure.code)
            };
            self.say(head, None, None);
        }
    }

    /// A read of nothing.
    pub(super) fn end_empty(self: &Rc<Self>) {
        let head = if self.structured {
            protocol::none(self.cookie)
        } else {
            protocol::simple_reply(self.cookie, 0)
        };
        self.say(head, None, None);
    }

    /// The answer to a request for the status of blocks.
    pub(super) fn end_status(self: &Rc<Self>, extents: &[(u32, u32)]) {
        self.say(protocol::block_status(self.cookie, extents), None, None);
    }

    /// A part of a simple reply; only the first has a head.
    pub(super) fn stream(self: &Rc<Self>, first: bool, buffer: Buffer, permit: Permit) {
        let head = if first {
            protocol::simple_reply(self.cookie, 0)
        } else {
            Head::new()
        };
        self.say(head, Some(buffer), Some(permit));
    }

    fn say(self: &Rc<Self>, head: Head, body: Option<Buffer>, content: Option<Permit>) {
        self.connection.send(Segment {
            head,
            body,
            _content: content,
            _call: Some(Rc::clone(self)),
        });
    }
}

/// "Error values".
fn failure(fault: Fault) -> Failure {
    match fault {
        Fault::Range => Failure::new(Failure::INVALID, "outside the disk or between its sectors"),
        Fault::ReadOnly => Failure::new(Failure::PERMISSION, "the disk is read-only"),
        Fault::FlushFailed => Failure::new(Failure::IO, "an earlier flush of the disk failed"),
        Fault::Corrupt => Failure::new(Failure::IO, "stored content does not verify"),
        Fault::Os(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
            Failure::new(Failure::NO_SPACE, "no room is left on the host")
        }
        Fault::Os(_) => Failure::new(Failure::IO, "the host cannot read or write the disk"),
    }
}
