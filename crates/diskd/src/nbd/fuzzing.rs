//! Bytes of a client in, bytes of the server out, over a disk in memory: for fuzzing, and for tests of
//! what any bytes may do. Nothing of it is used to serve a disk.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;

use block::{Device, Done, Fault, Image, Op, Place};
use futures_util::future::select;
use ring::Ring;

use super::export::{Export, Exports};
use super::negotiation::{Negotiation, Next};
use super::protocol::Fields;
use super::server::{Limits, Server};

/// Size of the disk in bytes.
pub const SIZE: usize = 1 << 20;

/// Bytes that bring a new client to requests: structured replies, `base:allocation`, the writable export.
#[must_use]
pub fn handshake() -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    let mut option = |number: u32, data: &[u8]| {
        bytes.extend(b"IHAVEOPT");
        bytes.extend(number.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(data);
    };
    option(8, &[]);
    option(10, b"\0\0\0\x05guest\0\0\0\x01\0\0\0\x0fbase:allocation");
    option(7, b"\0\0\0\x05guest\0\0");
    bytes
}

/// What a server says to a client that says `bytes` and then no more.
///
/// # Panics
/// When the server is wrong, or there is no io_uring.
#[must_use]
pub fn connection(bytes: &[u8]) -> Vec<u8> {
    thread_local! {
        static RING: Ring = Ring::new(64).expect("this host has io_uring");
    }
    let ring = RING.with(Ring::clone);
    let exports = Exports::new(exports(&ring));
    let server = Server::new(&ring, exports, Limits::default());
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    server.take_in(ours);
    let said = ring.block_on(async {
        let said = converse(&ring, theirs, bytes).await;
        // Nobody listens, so nobody stops listening.
        server.gone().await;
        said
    });
    ring.abandon_tasks();
    said
}

/// What a client is answered that sets the option `number` with `data` after those of
/// [`handshake`] but the last, without any I/O.
#[must_use]
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let exports = Exports::new(vec![Export::new("guest", "", false, Rc::new(Nothing))]);
    let mut answer = Vec::new();
    if let Some(mut negotiation) = Negotiation::new(exports, 3) {
        let _ = negotiation.option(8, &[], &mut answer);
        if let Next::Transmission(session) = negotiation.option(number, data, &mut answer) {
            assert_eq!(session.size, 0);
        }
    }
    answer
}

/// Whether `bytes` are whole replies, one after the other, to what begins with [`handshake`].
#[must_use]
pub fn is_well_formed(bytes: &[u8]) -> bool {
    replies(bytes).is_some()
}

fn replies(bytes: &[u8]) -> Option<()> {
    let mut fields = Fields(bytes);
    let skip = |fields: &mut Fields<'_>, len: u32| {
        fields.0 = fields.0.get(usize::try_from(len).ok()?..)?;
        Some(())
    };
    skip(&mut fields, 18)?;
    while !fields.is_empty() {
        match fields.u32()? {
            // An option's, a simple one, a chunk.
            0x0003_e889 => skip(&mut fields, 12)?,
            0x6744_6698 => {
                skip(&mut fields, 12)?;
                continue;
            }
            0x668e_33ef => skip(&mut fields, 12)?,
            _ => return None,
        }
        let len = fields.u32()?;
        skip(&mut fields, len)?;
    }
    Some(())
}

fn exports(ring: &Ring) -> Vec<Export> {
    let disk = Rc::new(Memory {
        ring: ring.clone(),
        bytes: RefCell::new(vec![0; SIZE]),
    });
    vec![
        Export::new("guest", "can be written", false, Rc::clone(&disk)),
        Export::new("disk", "cannot be written", true, disk),
    ]
}

/// Says `bytes`, hears everything.
async fn converse(ring: &Ring, mut socket: UnixStream, mut bytes: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    let mut open = socket.set_nonblocking(true).is_ok();
    loop {
        if open {
            match socket.write(bytes) {
                Ok(moved) => bytes = &bytes[moved..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => bytes = &[],
            }
            if bytes.is_empty() {
                open = false;
                let _ = socket.shutdown(Shutdown::Write);
            }
        }
        match socket.read(&mut chunk) {
            Ok(0) => return said,
            Ok(moved) => said.extend(&chunk[..moved]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let readable = pin!(ring.readable(socket.as_fd()));
                if open {
                    select(readable, pin!(ring.writable(socket.as_fd()))).await;
                } else {
                    let _ = readable.await;
                }
            }
            Err(_) => return said,
        }
    }
}

/// A disk without content.
struct Nothing;

impl Device for Nothing {
    fn size(&self) -> u64 {
        0
    }
    async fn run(&self, op: Op) -> Done {
        op.refuse(Fault::Range)
    }
}

impl Image for Nothing {
    fn size(&self) -> u64 {
        0
    }
    async fn translate(
        &self,
        _range: Range<u64>,
        _visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        Ok(ControlFlow::Continue(()))
    }
}

/// A disk in memory. Operations on odd blocks take a turn longer.
struct Memory {
    ring: Ring,
    bytes: RefCell<Vec<u8>>,
}

/// What is looked at as a whole for zeroes.
const BLOCK: usize = 4096;

/// # Panics
/// Outside the disk: the server must not let that through.
fn place(at: u64, len: u64) -> Range<usize> {
    let place = |at: u64| usize::try_from(at).expect("inside the disk");
    assert!((at | len) % 512 == 0, "not on sectors");
    place(at)..place(at + len)
}

impl Device for Memory {
    fn size(&self) -> u64 {
        SIZE as u64
    }
    async fn run(&self, mut op: Op) -> Done {
        let (at, len) = op.range();
        if at / 4096 % 2 == 1 {
            self.ring.yield_now().await;
        }
        let place = place(at, len);
        let mut bytes = self.bytes.borrow_mut();
        match &mut op {
            Op::Read { into, .. } => into.copy_from_slice(0, &bytes[place]),
            Op::Write { from, .. } => from.copy_to_slice(0, &mut bytes[place]),
            Op::Discard { .. } | Op::WriteZeroes { .. } => bytes[place].fill(0),
            Op::Flush => {}
        }
        let (Op::Read { into: buffer, .. } | Op::Write { from: buffer, .. }) = op else {
            return Done {
                outcome: Ok(()),
                buffer: None,
            };
        };
        Done {
            outcome: Ok(()),
            buffer: Some(buffer),
        }
    }
}

impl Image for Memory {
    fn size(&self) -> u64 {
        SIZE as u64
    }
    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        let bytes = self.bytes.borrow();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at + 1).next_multiple_of(BLOCK as u64));
            let zero = bytes[place(at, end - at)].iter().all(|byte| *byte == 0);
            let found = if zero {
                Place::Zero
            } else {
                Place::Stored { at }
            };
            if visit(at..end, found).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at = end;
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
#[path = "fuzzing_tests.rs"]
mod tests;
