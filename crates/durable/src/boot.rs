//! Which boot of the host this is, and how long it lasts.

use std::fs;
use std::io;
use std::time::Duration;

use model::BootId;
use rustix::time::{ClockId, clock_gettime};

/// The identity of this boot of the host (random(4), `/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// When `/proc` is not there or does not hold a UUID.
pub fn boot_id() -> io::Result<BootId> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// How long the host has been up, asleep or not, by the clock that nobody sets (clock_gettime(2),
/// `CLOCK_BOOTTIME`).
#[must_use]
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_the_same_until_the_next_boot() {
        let first = boot_id().expect("Linux has one");
        assert_eq!(first, boot_id().expect("Linux has one"));
        assert!(!first.0.is_nil());
    }

    #[test]
    fn the_time_since_boot_goes_on() {
        let first = boot_time();
        assert!(!first.is_zero());
        while boot_time() == first {}
        assert!(boot_time() > first);
    }
}
