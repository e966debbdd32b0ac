//! Which engine a ring has: io_uring, or a pool of threads where the kernel gives none.

use std::fmt;
use std::io;

use crate::call::Call;
use crate::operation::Cancel;
use crate::pool::Pool;
use crate::uring::Uring;

/// What the kernel says when io_uring is switched off (EPERM), forbidden by a seccomp profile (EPERM,
/// ENOSYS) or a security module (EACCES), not built in (ENOSYS), too old for what is asked of it
/// (EINVAL), or over the limit of locked memory (ENOMEM).
const REFUSALS: [i32; 5] = [
    libc::EPERM,
    libc::EACCES,
    libc::ENOSYS,
    libc::EINVAL,
    libc::ENOMEM,
];

/// What does the work of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One io_uring.
    IoUring,
    /// poll(2) and a small pool of threads: slower, needs nothing special.
    Threads,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        })
    }
}

/// Why there is no io_uring.
#[derive(Debug, thiserror::Error)]
#[error(
    "this host does not let pollux use io_uring, so disks are slower (Linux 5.15 or newer is needed, \
     the sysctl kernel.io_uring_disabled must be 0, and a container's seccomp profile must allow \
     io_uring_setup)"
)]
pub struct Unavailable {
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

#[allow(
    clippy::large_enum_variant,
    reason = "there is one for each owner thread"
)]
pub(crate) enum Engine {
    Uring(Uring),
    Pool(Pool),
}

impl Engine {
    /// io_uring if the kernel gives one; else threads, and why.
    pub(crate) fn best(entries: u32) -> io::Result<(Self, Option<Unavailable>)> {
        match Uring::new(entries) {
            Ok(uring) => Ok((Self::Uring(uring), None)),
            Err(source) if source.raw_os_error().is_some_and(|e| REFUSALS.contains(&e)) => {
                Ok((Self::Pool(Pool::new()?), Some(Unavailable { source })))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn of_kind(kind: Kind, entries: u32) -> io::Result<Self> {
        match kind {
            Kind::IoUring => Uring::new(entries)
                .map(Self::Uring)
                .map_err(|source| io::Error::new(source.kind(), Unavailable { source })),
            Kind::Threads => Pool::new().map(Self::Pool),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Uring(_) => Kind::IoUring,
            Self::Pool(_) => Kind::Threads,
        }
    }

    /// Starts `call`, at the latest in [`Self::enter`].
    pub(crate) fn push(&self, call: &Call, user_data: u64) {
        match self {
            Self::Uring(uring) => uring.push(call, user_data),
            Self::Pool(pool) => pool.push(call, user_data),
        }
    }

    /// Ends a call early; it completes all the same.
    pub(crate) fn cancel(&self, user_data: u64, cancel: Cancel) {
        match self {
            Self::Uring(uring) => uring.cancel(user_data, cancel),
            Self::Pool(pool) => pool.cancel(user_data, cancel),
        }
    }

    /// Lets completions arrive; waits for one if there is none and `idle`. It may return with none.
    pub(crate) fn enter(&self, idle: bool) {
        match self {
            Self::Uring(uring) => uring.enter(idle),
            Self::Pool(pool) => pool.enter(idle),
        }
    }

    /// Tells `each` what completed, and how: `user_data`, and a result or a negative `errno`.
    pub(crate) fn take(&self, each: impl FnMut(u64, i32)) {
        match self {
            Self::Uring(uring) => uring.take(each),
            Self::Pool(pool) => pool.take(each),
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
