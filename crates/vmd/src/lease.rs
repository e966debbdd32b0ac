//! How long the guest may run without a word of polluxd.
//!
//! Under a lease a guest runs only as long as its replica answered lately. polluxd renews the lease
//! here whenever that one answers, and holds the guest still, in order, when it does not. A polluxd
//! that hangs or is dead does neither: then vmd stops the whole process of QEMU (SIGSTOP), which no
//! program can refuse, and lets it go on (SIGCONT) with the next renewal.
//!
//! ```text
//!   Until{at} --at + LEASE_GRACE--> stopped --Until{later}, None--> goes on
//!       ^   \--polluxd held it--> Held
//!       '--- polluxd lets it go on
//! ```
//!
//! The clock is the boot-time clock, which nobody sets and which goes on while the host sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::process::Signal;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::control::{LEASE_GRACE, Lease};
use crate::process::Process;

/// The lease of the guest, and whether it is stopped for the want of one.
pub(crate) struct Leased {
    timer: OwnedFd,
    lease: Lease,
    frozen: bool,
}

impl Leased {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            timer: timerfd_create(TimerfdClockId::Boottime, flags)?,
            lease: Lease::None,
            frozen: false,
        })
    }

    pub(crate) fn lease(&self) -> Lease {
        self.lease
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// From now on that counts.
    pub(crate) fn set(&mut self, lease: Lease, guest: Option<&Process>) -> io::Result<()> {
        let end = match lease {
            Lease::Until { at } => Some(at.saturating_add(LEASE_GRACE)),
            Lease::None | Lease::Held => None,
        };
        // Zero would disarm it.
        let at = end.map(|end| end.max(Duration::from_nanos(1)));
        let timer = Itimerspec {
            it_interval: timespec(Duration::ZERO),
            it_value: timespec(at.unwrap_or_default()),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &timer)?;
        self.lease = lease;
        let allowed = match lease {
            Lease::None => true,
            Lease::Until { .. } => !self.is_over(),
            Lease::Held => false,
        };
        if self.frozen && allowed {
            self.frozen = false;
            if let Some(guest) = guest {
                guest.signal(Signal::CONT);
                tracing::info!(
                    pid = guest.pid(),
                    "its lease was renewed: the guest goes on"
                );
            }
        }
        Ok(())
    }

    /// Stops the guest if its lease is over.
    pub(crate) fn keep_time(&mut self, guest: Option<&Process>) {
        // Readable until it is read; that nothing is to be read is no harm.
        let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
        let Some(guest) = guest.filter(|_| !self.frozen && self.is_over()) else {
            return;
        };
        guest.signal(Signal::STOP);
        self.frozen = true;
        tracing::error!(
            pid = guest.pid(),
            "its lease is over and nobody held the guest still: its process is stopped"
        );
    }

    /// The guest is gone.
    pub(crate) fn gone(&mut self) {
        self.frozen = false;
    }

    fn is_over(&self) -> bool {
        matches!(self.lease, Lease::Until { at } if at.saturating_add(LEASE_GRACE) <= durable::boot_time())
    }
}

/// Readable when a lease is over.
impl AsFd for Leased {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}
