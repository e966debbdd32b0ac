//! What a file looks like from outside: tells whether it was touched while nobody held it open.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Inode, size, modification and change time (in nanoseconds) of a file, or of several in their order.
///
/// The number of the device is no part of it: a reboot may give the same device another one, and a
/// stamp is compared across reboots. A file put in place of another has another change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp([u64; Stamp::WORDS]);

impl Stamp {
    /// Of 8 bytes each.
    pub const WORDS: usize = 4;

    /// Of the file at `path`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        // Only compared: that a time before 1970 wraps does no harm.
        let nanoseconds = |seconds: i64, nanos: i64| {
            let sum = seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
            u64::from_ne_bytes(sum.to_ne_bytes())
        };
        Ok(Self([
            meta.ino(),
            meta.size(),
            nanoseconds(meta.mtime(), meta.mtime_nsec()),
            nanoseconds(meta.ctime(), meta.ctime_nsec()),
        ]))
    }

    /// That of one more file, in their order.
    pub fn add(&mut self, other: Self) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word = word.rotate_left(7) ^ other;
        }
    }

    /// As it is kept.
    #[must_use]
    pub fn words(self) -> [u64; Self::WORDS] {
        self.0
    }

    /// The one that was kept.
    #[must_use]
    pub fn from_words(words: [u64; Self::WORDS]) -> Self {
        Self(words)
    }
}
