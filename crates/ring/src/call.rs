//! What is asked of the kernel, in words of neither engine.
#![allow(unsafe_code, reason = "calls name memory that somebody else keeps")]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::Timespec;

/// The memory of a transfer. It is not owned: whoever starts a call keeps it until the completion.
#[derive(Clone, Copy)]
pub(crate) enum Pieces {
    One(libc::iovec),
    Many {
        first: *const libc::iovec,
        count: u32,
    },
}

#[derive(Clone, Copy)]
pub(crate) enum Call {
    Read {
        fd: RawFd,
        at: u64,
        into: Pieces,
    },
    Write {
        fd: RawFd,
        at: u64,
        from: Pieces,
    },
    Sync {
        fd: RawFd,
    },
    Allocate {
        fd: RawFd,
        mode: i32,
        at: u64,
        len: u64,
    },
    /// Completes once, when one of `events` is there or the descriptor failed.
    Poll {
        fd: RawFd,
        events: libc::c_short,
    },
    /// `time` is `length` where io_uring reads it.
    Sleep {
        time: *const Timespec,
        length: Duration,
    },
}

// SAFETY: the pointers are to memory that is kept until the completion and that may be
// used by any thread, as the kernel would.
unsafe impl Send for Call {}

impl Pieces {
    fn as_parts(&self) -> (*const libc::iovec, i32) {
        match self {
            Self::One(piece) => (piece, 1),
            Self::Many { first, count } => (*first, i32::try_from(*count).unwrap_or(i32::MAX)),
        }
    }
}

impl Call {
    /// Does it here and now. The result is that of a completion: bytes moved, or a negative
    /// `errno`. Polls and sleeps are not for this.
    pub(crate) fn perform(&self) -> i32 {
        let offset = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
        // SAFETY: the memory is kept by whoever made the call, and the descriptor open.
        let result = unsafe {
            match self {
                // The kernel reads no array of pieces for these.
                Self::Read {
                    fd,
                    at,
                    into: Pieces::One(piece),
                } => libc::pread(*fd, piece.iov_base, piece.iov_len, offset(*at)),
                Self::Write {
                    fd,
                    at,
                    from: Pieces::One(piece),
                } => libc::pwrite(*fd, piece.iov_base, piece.iov_len, offset(*at)),
                Self::Read { fd, at, into } => {
                    let (first, count) = into.as_parts();
                    libc::preadv(*fd, first, count, offset(*at))
                }
                Self::Write { fd, at, from } => {
                    let (first, count) = from.as_parts();
                    libc::pwritev(*fd, first, count, offset(*at))
                }
                Self::Sync { fd } => libc::fdatasync(*fd) as isize,
                Self::Allocate { fd, mode, at, len } => {
                    libc::fallocate(*fd, *mode, offset(*at), offset(*len)) as isize
                }
                Self::Poll { .. } | Self::Sleep { .. } => return -libc::EINVAL,
            }
        };
        match i32::try_from(result) {
            Ok(result @ 0..) => result,
            _ => -io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        }
    }
}
