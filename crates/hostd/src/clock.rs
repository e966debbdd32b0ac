//! The clock by which leases are counted: nobody sets it, and it goes on while the host sleeps.

use std::io;

use model::BootId;
use replica::lease::BootTime;

/// The boot-time clock of this host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BootClock {
    boot: BootId,
}

impl BootClock {
    /// The clock of this boot.
    ///
    /// # Errors
    /// The kernel does not tell which boot this is.
    pub(crate) fn of_this_boot() -> io::Result<Self> {
        let boot = durable::boot_id()?;
        Ok(Self { boot })
    }

    /// Which boot this is.
    pub(crate) fn boot(self) -> BootId {
        self.boot
    }

    /// Its reading.
    pub(crate) fn now(self) -> BootTime {
        BootTime {
            boot: self.boot,
            at: durable::boot_time(),
        }
    }
}
