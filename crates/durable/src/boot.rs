//! Which boot of the host this is.

use std::fs;
use std::io;

use model::BootId;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_the_same_until_the_next_boot() {
        let first = boot_id().expect("Linux has one");
        assert_eq!(first, boot_id().expect("Linux has one"));
        assert!(!first.0.is_nil());
    }
}
