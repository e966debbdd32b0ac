//! Operations on a virtual disk.

use std::io;

use crate::Buffer;

/// One operation. Offsets and lengths are in bytes and multiples of 512; the range lies
/// inside the device.
#[derive(Debug)]
pub enum Op {
    /// Fill `into` from `at` on.
    Read {
        /// First byte.
        at: u64,
        /// Where the content goes; its length is the length of the read.
        into: Buffer,
    },
    /// Store `from` at `at`.
    Write {
        /// First byte.
        at: u64,
        /// The content.
        from: Buffer,
    },
    /// The content is no longer needed; reads as zeroes from now on, for ever.
    Discard {
        /// First byte.
        at: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Reads as zeroes from now on.
    WriteZeroes {
        /// First byte.
        at: u64,
        /// Number of bytes.
        len: u64,
        /// Whether the space may be given back.
        unmap: bool,
    },
    /// Everything that completed before this was issued becomes durable.
    Flush,
}

impl Op {
    /// First byte and length of what the operation touches; a flush touches nothing.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        match self {
            Self::Read { at, into } => (*at, into.len() as u64),
            Self::Write { at, from } => (*at, from.len() as u64),
            Self::Discard { at, len } | Self::WriteZeroes { at, len, .. } => (*at, *len),
            Self::Flush => (0, 0),
        }
    }

    /// Ends the operation without having run it; its memory is given back.
    #[must_use]
    pub fn refuse(self, fault: Fault) -> Done {
        let buffer = match self {
            Self::Read { into: buffer, .. } | Self::Write { from: buffer, .. } => Some(buffer),
            Self::Discard { .. } | Self::WriteZeroes { .. } | Self::Flush => None,
        };
        Done {
            outcome: Err(fault),
            buffer,
        }
    }

    /// Whether the visible content may change.
    #[must_use]
    pub fn mutates(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. }
        )
    }
}

/// Why an operation failed. `Copy`, because the data path makes none of it on the heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The range is outside the device or not a multiple of 512.
    #[error("the range lies outside the disk or between its sectors")]
    Range,
    /// The device is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// An earlier flush failed; what it should have made durable may be lost.
    #[error("an earlier flush of the disk failed")]
    FlushFailed,
    /// Stored content does not verify.
    #[error("stored content does not verify")]
    Corrupt,
    /// The operating system refused, with this `errno`.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Os(i32),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Os(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// A finished operation: its outcome, and its memory back.
#[derive(Debug)]
pub struct Done {
    /// What became of it.
    pub outcome: Result<(), Fault>,
    /// The memory of a read or a write.
    pub buffer: Option<Buffer>,
}

/// A virtual disk.
#[allow(
    async_fn_in_trait,
    reason = "owner-thread only: futures are not Send by design"
)]
pub trait Device {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Runs one operation to completion. Must not be dropped before it is done.
    async fn run(&self, op: Op) -> Done;
}

impl<D: Device> Device for std::rc::Rc<D> {
    fn size(&self) -> u64 {
        D::size(self)
    }
    async fn run(&self, op: Op) -> Done {
        D::run(self, op).await
    }
}
