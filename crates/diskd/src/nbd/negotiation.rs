//! The handshake without I/O: what each option does, and what is answered ("Fixed newstyle
//! negotiation", "Option types").
//!
//! ```text
//!   client flags --> Negotiation --option--> option --...--> GO, EXPORT_NAME --> Session
//!                        |                      '--> ABORT, a broken rule --> the connection ends
//!                        '- every other option is answered, and the next one awaited
//! ```

use super::export::{Export, Exports};
use super::protocol::{
    ALLOCATION, ALLOCATION_ID, FIXED_NEWSTYLE, Fields, INIT, NO_ZEROES, OPTION, answer, info,
    option, option_reply, string, transmission,
};

/// Smallest unit of a request in bytes; what a device takes.
pub(super) const MIN_BLOCK: u32 = 512;
/// Best unit in bytes.
const PREFERRED_BLOCK: u32 = 4096;
/// Longest read or write in bytes; every client may rely on this much ("Block size constraints").
pub(super) const MAX_PAYLOAD: u32 = 32 << 20;

/// Longest data of an option that is looked at: names of 4096 bytes, and some queries.
pub(super) const MAX_OPTION: u32 = 64 << 10;

/// What a client and the server agreed on.
pub(super) struct Session {
    pub(super) export: Export,
    /// In bytes, and for as long as this client stays.
    pub(super) size: u64,
    /// Reads are answered in chunks, errors with a reason.
    pub(super) structured: bool,
    /// The client may ask for `base:allocation`.
    pub(super) allocation: bool,
}

/// What follows from an option.
pub(super) enum Next {
    /// Send the answer, await another option.
    Option,
    /// Send the answer, take requests.
    Transmission(Session),
    /// Send the answer, hang up.
    End,
}

/// The options that a client has set so far.
pub(super) struct Negotiation {
    exports: Exports,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which the client selected `base:allocation`.
    allocation: Option<String>,
}

/// What the server says first.
pub(super) fn greeting() -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(INIT.to_be_bytes());
    out.extend(OPTION.to_be_bytes());
    out.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    out
}

impl Negotiation {
    /// None if the client sets a flag that was not offered ("Client flags").
    pub(super) fn new(exports: Exports, flags: u32) -> Option<Self> {
        let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
        (flags & !known == 0).then(|| Self {
            exports,
            fixed: flags & u32::from(FIXED_NEWSTYLE) != 0,
            no_zeroes: flags & u32::from(NO_ZEROES) != 0,
            structured: false,
            allocation: None,
        })
    }

    /// An option whose data of `len` bytes is longer than [`MAX_OPTION`] and is passed over.
    pub(super) fn too_big(&self, option: u32, out: &mut Vec<u8>) -> Next {
        if !self.fixed || option == option::EXPORT_NAME {
            return Next::End;
        }
        refuse(out, option, answer::TOO_BIG, "the option is too long")
    }

    /// Does what `option` says, and puts the answer to `out`.
    pub(super) fn option(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Next {
        if option == option::EXPORT_NAME {
            return self.export_name(data, out);
        }
        if !self.fixed {
            // "Newstyle negotiation": nothing else is understood there.
            return Next::End;
        }
        match option {
            option::ABORT => {
                option_reply(out, option, answer::ACK, &[]);
                Next::End
            }
            option::LIST => self.list(data, out),
            option::INFO | option::GO => self.info(option, data, out),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                acknowledge(out, option)
            }
            option::STRUCTURED_REPLY => {
                let why = "this option has no data";
                refuse(out, option, answer::INVALID, why)
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.contexts(option, data, out)
            }
            // STARTTLS, EXTENDED_HEADERS, and what is not known.
            _ => refuse(
                out,
                option,
                answer::UNSUPPORTED,
                "this server does not know the option",
            ),
        }
    }

    fn export_name(&self, data: &[u8], out: &mut Vec<u8>) -> Next {
        let export = string(data).and_then(|name| self.exports.find(name));
        let Some(export) = export else {
            return Next::End;
        };
        let session = self.session(export);
        out.extend(session.size.to_be_bytes());
        out.extend(session.flags().to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        Next::Transmission(session)
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) -> Next {
        if !data.is_empty() {
            let why = "this option has no data";
            return refuse(out, option::LIST, answer::INVALID, why);
        }
        for export in self.exports.list() {
            let name = export.name.as_bytes();
            let len = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
            let parts = [&len, name, export.description.as_bytes()];
            option_reply(out, option::LIST, answer::SERVER, &parts);
        }
        acknowledge(out, option::LIST)
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`: name, number of wishes, wishes.
    fn info(&self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Next {
        let Some((name, wishes)) = parse_info(data) else {
            let why = "the option is malformed";
            return refuse(out, option, answer::INVALID, why);
        };
        let Some(export) = self.exports.find(name) else {
            let why = "there is no such export";
            return refuse(out, option, answer::UNKNOWN, why);
        };
        let session = self.session(export);
        let mut tell = |kind: u16, parts: &[&[u8]]| {
            let all: Vec<u8> = parts.concat();
            option_reply(out, option, answer::INFO, &[&kind.to_be_bytes(), &all]);
        };
        let size = session.size.to_be_bytes();
        tell(info::EXPORT, &[&size, &session.flags().to_be_bytes()]);
        let sizes = [MIN_BLOCK, PREFERRED_BLOCK, MAX_PAYLOAD].map(u32::to_be_bytes);
        tell(info::BLOCK_SIZE, &[&sizes.concat()]);
        if wishes.contains(&info::NAME) {
            tell(info::NAME, &[session.export.name.as_bytes()]);
        }
        if wishes.contains(&info::DESCRIPTION) {
            tell(info::DESCRIPTION, &[session.export.description.as_bytes()]);
        }
        option_reply(out, option, answer::ACK, &[]);
        if option == option::GO {
            Next::Transmission(session)
        } else {
            Next::Option
        }
    }

    /// `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: export, number of queries,
    /// queries. Those that are not known here, such as QEMU's `qemu:`, select nothing.
    fn contexts(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Next {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.allocation = None;
        }
        if !self.structured {
            let why = "structured replies come first";
            return refuse(out, option, answer::INVALID, why);
        }
        let Some((name, queries)) = parse_contexts(data) else {
            let why = "the option is malformed";
            return refuse(out, option, answer::INVALID, why);
        };
        let Some(export) = self.exports.find(name) else {
            let why = "there is no such export";
            return refuse(out, option, answer::UNKNOWN, why);
        };
        // To list, a namespace means all that is in it, and nothing means all there is.
        let all = !set && queries.is_empty();
        let meant = |query: &&str| *query == ALLOCATION || (!set && *query == "base:");
        if all || queries.iter().any(meant) {
            let id = if set { ALLOCATION_ID } else { 0 }.to_be_bytes();
            let parts = [&id, ALLOCATION.as_bytes()];
            option_reply(out, option, answer::META_CONTEXT, &parts);
            if set {
                self.allocation = Some(export.name);
            }
        }
        acknowledge(out, option)
    }

    fn session(&self, export: Export) -> Session {
        Session {
            size: export.disk.size(),
            structured: self.structured,
            allocation: self.allocation.as_ref() == Some(&export.name),
            export,
        }
    }
}

impl Session {
    /// "Transmission flags". Several connections may be used at once: nothing is cached here, and
    /// a flush of the disk is one of all of them.
    fn flags(&self) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::CAN_MULTI_CONN;
        if self.export.read_only {
            flags |= transmission::READ_ONLY;
        } else {
            flags |= transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES;
        }
        if self.structured {
            flags |= transmission::SEND_DF;
        }
        flags
    }
}

fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let wishes = (0..count)
        .map(|_| fields.u16())
        .collect::<Option<Vec<_>>>()?;
    fields.is_empty().then_some((name, wishes))
}

fn parse_contexts(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    // Each takes bytes of the option, so the count is bounded by its length.
    for _ in 0..count {
        queries.push(fields.string()?);
    }
    fields.is_empty().then_some((name, queries))
}

fn acknowledge(out: &mut Vec<u8>, option: u32) -> Next {
    option_reply(out, option, answer::ACK, &[]);
    Next::Option
}

pub(super) fn refuse(out: &mut Vec<u8>, option: u32, answer: u32, why: &str) -> Next {
    option_reply(out, option, answer, &[why.as_bytes()]);
    Next::Option
}
