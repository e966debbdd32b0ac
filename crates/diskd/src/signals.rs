//! SIGTERM and SIGINT, by which the supervisor asks for an end in order.
#![allow(
    unsafe_code,
    reason = "rustix and std have no way to wait for a signal"
)]

use std::io;
use std::mem::MaybeUninit;

/// The signals that ask this process to end. They interrupt nothing; somebody waits for them.
#[derive(Clone, Copy)]
pub struct Termination(libc::sigset_t);

impl Termination {
    /// Keeps them from ending the process. To be called before any thread is started: threads
    /// inherit it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn take() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` fills the set in; the signals exist.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
            libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
            set.assume_init()
        };
        // SAFETY: the set is initialized; the old mask is not wanted.
        match unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        } {
            0 => Ok(Self(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for one.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn wait(&self) -> io::Result<()> {
        let mut signal = 0;
        // SAFETY: both are valid for the call.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
