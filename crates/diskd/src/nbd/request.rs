//! What a request asks for, checked ("Command flags", "Request types", "Error values").

use std::ops::Range;

use super::negotiation::{MAX_PAYLOAD, MIN_BLOCK, Session};
use super::protocol::{Failure, Header, command, flag};

/// A request that may be run. Ranges are in bytes, lie on the disk, and may be empty only for reads and
/// writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Read { range: Range<u64>, whole: bool },
    Write { range: Range<u64> },
    Flush,
    Trim { range: Range<u64> },
    WriteZeroes { range: Range<u64>, unmap: bool },
    Status { range: Range<u64>, one: bool },
}

impl Action {
    /// What `header` asks of `session`.
    pub(super) fn of(header: &Header, session: &Session) -> Result<Self, Failure> {
        let asked = Asked { header, session };
        // FUA is valid for all commands, even those that change nothing.
        let flags = header.flags & !flag::FUA;
        let allow = |allowed: u16| match flags & !allowed {
            0 => Ok(()),
            _ => Err(invalid("a flag that this request does not have")),
        };
        match header.command {
            command::READ => {
                allow(if session.structured { flag::DF } else { 0 })?;
                asked.short()?;
                let range = asked.range(Failure::INVALID)?;
                let whole = flags & flag::DF != 0;
                Ok(Self::Read { range, whole })
            }
            command::WRITE => {
                asked.permission()?;
                allow(0)?;
                asked.short()?;
                let range = asked.range(Failure::NO_SPACE)?;
                Ok(Self::Write { range })
            }
            command::FLUSH => {
                allow(0)?;
                if header.at != 0 || header.len != 0 {
                    return Err(invalid("a flush has no range"));
                }
                Ok(Self::Flush)
            }
            command::TRIM => {
                asked.permission()?;
                allow(0)?;
                let range = asked.range(Failure::INVALID)?;
                Ok(Self::Trim { range })
            }
            command::WRITE_ZEROES => {
                asked.permission()?;
                allow(flag::NO_HOLE)?;
                let range = asked.range(Failure::NO_SPACE)?;
                let unmap = flags & flag::NO_HOLE == 0;
                Ok(Self::WriteZeroes { range, unmap })
            }
            command::BLOCK_STATUS if session.allocation => {
                allow(flag::REQ_ONE)?;
                let range = asked.range(Failure::INVALID)?;
                if range.is_empty() {
                    return Err(invalid("the status of nothing"));
                }
                let one = flags & flag::REQ_ONE != 0;
                Ok(Self::Status { range, one })
            }
            command::BLOCK_STATUS => Err(invalid("no metadata context was selected")),
            _ => Err(invalid("this server does not know the request")),
        }
    }
}

struct Asked<'a> {
    header: &'a Header,
    session: &'a Session,
}

impl Asked<'_> {
    fn permission(&self) -> Result<(), Failure> {
        if self.session.export.read_only {
            return Err(Failure::new(Failure::PERMISSION, "the export is read-only"));
        }
        Ok(())
    }

    fn short(&self) -> Result<(), Failure> {
        if self.header.len > MAX_PAYLOAD {
            return Err(Failure::new(Failure::OVERFLOW, "more than 32 MiB at once"));
        }
        Ok(())
    }

    /// The range; `outside` is the error when it is not on the disk.
    fn range(&self, outside: u32) -> Result<Range<u64>, Failure> {
        let Header { at, len, .. } = *self.header;
        let end = at.checked_add(u64::from(len));
        let Some(end) = end.filter(|end| *end <= self.session.size) else {
            return Err(Failure::new(outside, "past the end of the disk"));
        };
        if (at | u64::from(len)) % u64::from(MIN_BLOCK) != 0 {
            return Err(invalid("not on the sectors of 512 bytes"));
        }
        Ok(at..end)
    }
}

const fn invalid(why: &'static str) -> Failure {
    Failure::new(Failure::INVALID, why)
}
