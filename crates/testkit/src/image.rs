//! Disks of tests that lie in memory.

use std::io;

/// A place in an image.
pub(crate) fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("small")
}

/// Writes to it.
pub(crate) fn put(image: &mut [u8], offset: u64, block: &[u8]) {
    image[at(offset)..at(offset) + block.len()].copy_from_slice(block);
}

/// Reads from it.
pub(crate) fn read(image: &[u8], offset: u64, block: &mut [u8]) -> io::Result<()> {
    block.copy_from_slice(&image[at(offset)..at(offset) + block.len()]);
    Ok(())
}
