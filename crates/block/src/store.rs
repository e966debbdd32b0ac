//! Owned bytes to and from a file.

use std::ops::Range;

use crate::{Buffer, Done, Fault};

/// A file, or what behaves like one. Offsets and lengths in bytes. A read past the end of the
/// file gives zeroes; a write past it extends the file.
#[allow(
    async_fn_in_trait,
    reason = "owner-thread only: futures are not Send by design"
)]
pub trait Store {
    /// Offsets, lengths and memory addresses of reads and writes must be multiples of this
    /// (bytes, a power of two; 1 when anything goes).
    fn alignment(&self) -> u64;

    /// Fills `into` from byte `at` on. Short reads are retried inside.
    async fn read(&self, at: u64, into: Buffer) -> Done;

    /// Stores `from` at byte `at`. Short writes are retried inside.
    async fn write(&self, at: u64, from: Buffer) -> Done;

    /// Makes `len` bytes at `at` read as zeroes and gives their space back where it can.
    async fn punch(&self, at: u64, len: u64) -> Result<(), Fault>;

    /// Makes `len` bytes at `at` read as zeroes and keeps their space where it can.
    async fn zero(&self, at: u64, len: u64) -> Result<(), Fault>;

    /// Everything that completed before this call becomes durable (fdatasync).
    async fn sync(&self) -> Result<(), Fault>;

    /// The first part of `range` that takes space; all before it reads as zeroes. None if all of
    /// `range` reads as zeroes. A store that cannot tell says that all of it takes space.
    ///
    /// May hold up the owner thread for as long as the file system takes to look: whoever asks for a
    /// disk in many pieces does so a limited number of times in a turn ([`Image::translate`] ends when
    /// its visitor breaks).
    ///
    /// [`Image::translate`]: crate::Image::translate
    async fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>, Fault>;
}
