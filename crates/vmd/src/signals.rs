//! SIGTERM and SIGINT as something to poll for.
#![allow(unsafe_code, reason = "signalfd(2) has no safe binding here")]

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Gives a child the usual mask, between fork and exec.
pub(crate) fn unblock_all() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes `set`; both calls are async-signal-safe.
    let failed = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
    };
    match failed {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// The signals that ask vmd to end.
pub(crate) struct Signals(File);

impl Signals {
    /// Blocks them for this thread and takes them from a descriptor instead. Children would
    /// inherit that: they call [`unblock_all`].
    pub(crate) fn take() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes `set`; the others read or change it in place; the
        // descriptor that signalfd returns belongs to nobody else.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
            let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
            let fd = libc::signalfd(-1, set.as_ptr(), flags);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(File::from(OwnedFd::from_raw_fd(fd))))
        }
    }

    /// Forgets the signals that have come.
    pub(crate) fn drain(&mut self) {
        let mut one = [0; size_of::<libc::signalfd_siginfo>()];
        while matches!(self.0.read(&mut one), Ok(read) if read > 0) {}
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
