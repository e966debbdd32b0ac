//! Numbers and layouts of the protocol. Everything is big-endian.
//!
//! Sections in comments are those of the official document,
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

use smallvec::SmallVec;

/// "Newstyle negotiation": what the server says first.
pub(super) const INIT: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Before each option, and after [`INIT`].
pub(super) const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Before each reply to an option.
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// "Request message".
pub(super) const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Both a handshake flag and the client's answer ("Handshake flags", "Client flags").
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;

/// "Option types".
pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const INFO: u32 = 6;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;
    pub(in super::super) const LIST_META_CONTEXT: u32 = 9;
    pub(in super::super) const SET_META_CONTEXT: u32 = 10;
}

/// "Option reply types".
pub(super) mod answer {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const META_CONTEXT: u32 = 4;
    pub(in super::super) const UNSUPPORTED: u32 = 1 << 31 | 1;
    pub(in super::super) const INVALID: u32 = 1 << 31 | 3;
    pub(in super::super) const UNKNOWN: u32 = 1 << 31 | 6;
    pub(in super::super) const TOO_BIG: u32 = 1 << 31 | 9;
}

/// `NBD_REP_INFO`, "Option reply types".
pub(super) mod info {
    pub(in super::super) const EXPORT: u16 = 0;
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DESCRIPTION: u16 = 2;
    pub(in super::super) const BLOCK_SIZE: u16 = 3;
}

/// "Transmission flags".
pub(super) mod transmission {
    pub(in super::super) const HAS_FLAGS: u16 = 1 << 0;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const SEND_FLUSH: u16 = 1 << 2;
    pub(in super::super) const SEND_FUA: u16 = 1 << 3;
    pub(in super::super) const SEND_TRIM: u16 = 1 << 5;
    pub(in super::super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const SEND_DF: u16 = 1 << 7;
    pub(in super::super) const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// "Command flags".
pub(super) mod flag {
    pub(in super::super) const FUA: u16 = 1 << 0;
    pub(in super::super) const NO_HOLE: u16 = 1 << 1;
    pub(in super::super) const DF: u16 = 1 << 2;
    pub(in super::super) const REQ_ONE: u16 = 1 << 3;
}

/// "Request types".
pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const DISCONNECT: u16 = 2;
    pub(in super::super) const FLUSH: u16 = 3;
    pub(in super::super) const TRIM: u16 = 4;
    pub(in super::super) const WRITE_ZEROES: u16 = 6;
    pub(in super::super) const BLOCK_STATUS: u16 = 7;
}

/// "Structured reply types".
mod chunk {
    pub(super) const NONE: u16 = 0;
    pub(super) const OFFSET_DATA: u16 = 1;
    pub(super) const OFFSET_HOLE: u16 = 2;
    pub(super) const BLOCK_STATUS: u16 = 5;
    pub(super) const ERROR: u16 = 1 << 15 | 1;
}

/// `NBD_REPLY_FLAG_DONE`.
const DONE: u16 = 1;

/// `NBD_STATE_HOLE | NBD_STATE_ZERO` of `base:allocation` ("Metadata contexts").
pub(super) const HOLE_AND_ZERO: u32 = 1 | 2;
/// The id under which a client gets `base:allocation`.
pub(super) const ALLOCATION_ID: u32 = 1;
/// The only metadata context.
pub(super) const ALLOCATION: &str = "base:allocation";

/// Bytes of an option's header.
pub(super) const OPTION_HEADER: usize = 16;
/// Bytes of a request's header.
pub(super) const REQUEST_HEADER: usize = 28;

/// "Error values", with what a person is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u32,
    pub(super) why: &'static str,
}

impl Failure {
    pub(super) const PERMISSION: u32 = 1;
    pub(super) const IO: u32 = 5;
    pub(super) const INVALID: u32 = 22;
    pub(super) const NO_SPACE: u32 = 28;
    pub(super) const OVERFLOW: u32 = 75;

    pub(super) const fn new(code: u32, why: &'static str) -> Self {
        Self { code, why }
    }
}

/// A request's header, as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u16,
    pub(super) command: u16,
    /// The client's own name of the request; it comes back in the reply.
    pub(super) cookie: u64,
    pub(super) at: u64,
    pub(super) len: u32,
}

impl Header {
    /// None when the magic number is wrong: then nothing after it can be understood.
    pub(super) fn parse(bytes: &[u8; REQUEST_HEADER]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == REQUEST).then_some(())?;
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            at: fields.u64()?,
            len: fields.u32()?,
        })
    }
}

/// Takes numbers and strings off the front of bytes; None where there is too little.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length before it.
    pub(super) fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        string(text)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// "Conventions": UTF-8 without NUL, 4096 bytes at most.
pub(super) fn string(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    (text.len() <= 4096 && !text.contains('\0')).then_some(text)
}

/// One reply to an option ("Fixed newstyle negotiation").
pub(super) fn option_reply(out: &mut Vec<u8>, option: u32, answer: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend(OPTION_REPLY.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(answer.to_be_bytes());
    out.extend(length(len).to_be_bytes());
    parts.iter().for_each(|part| out.extend(*part));
}

/// What precedes the data of a reply, or is all of it.
pub(super) type Head = SmallVec<[u8; 32]>;

/// "Simple reply message", without its data.
pub(super) fn simple_reply(cookie: u64, code: u32) -> Head {
    let mut head = Head::new();
    head.extend_from_slice(&SIMPLE_REPLY.to_be_bytes());
    head.extend_from_slice(&code.to_be_bytes());
    head.extend_from_slice(&cookie.to_be_bytes());
    head
}

/// "Structured reply chunk message", without its payload of `len` bytes.
fn chunk(cookie: u64, kind: u16, done: bool, len: usize) -> Head {
    let mut head = Head::new();
    head.extend_from_slice(&STRUCTURED_REPLY.to_be_bytes());
    head.extend_from_slice(&(if done { DONE } else { 0 }).to_be_bytes());
    head.extend_from_slice(&kind.to_be_bytes());
    head.extend_from_slice(&cookie.to_be_bytes());
    head.extend_from_slice(&length(len).to_be_bytes());
    head
}

/// The request succeeded, and everything was said.
pub(super) fn none(cookie: u64) -> Head {
    chunk(cookie, chunk::NONE, true, 0)
}

/// `len` bytes of content follow.
pub(super) fn data(cookie: u64, done: bool, at: u64, len: usize) -> Head {
    let mut head = chunk(cookie, chunk::OFFSET_DATA, done, 8 + len);
    head.extend_from_slice(&at.to_be_bytes());
    head
}

/// `len` bytes read as zeroes.
pub(super) fn hole(cookie: u64, done: bool, at: u64, len: usize) -> Head {
    let mut head = chunk(cookie, chunk::OFFSET_HOLE, done, 12);
    head.extend_from_slice(&at.to_be_bytes());
    head.extend_from_slice(&length(len).to_be_bytes());
    head
}

/// Lengths and flags of consecutive extents.
pub(super) fn block_status(cookie: u64, extents: &[(u32, u32)]) -> Head {
    let mut head = chunk(cookie, chunk::BLOCK_STATUS, true, 4 + 8 * extents.len());
    head.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
    for (len, flags) in extents {
        head.extend_from_slice(&len.to_be_bytes());
        head.extend_from_slice(&flags.to_be_bytes());
    }
    head
}

/// The request failed.
pub(super) fn error(cookie: u64, failure: Failure) -> Head {
    let why = failure.why.as_bytes();
    let mut head = chunk(cookie, chunk::ERROR, true, 6 + why.len());
    head.extend_from_slice(&failure.code.to_be_bytes());
    let len = u16::try_from(why.len()).expect("a short sentence");
    head.extend_from_slice(&len.to_be_bytes());
    head.extend_from_slice(why);
    head
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("what is sent at once is far below 4 GiB")
}
