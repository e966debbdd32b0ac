//! A disk as a guest sees it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::{BLOCK, Disk};

/// A block device, read and written past the guest's cache.
pub struct Device {
    file: File,
    len: u64,
}

impl Device {
    /// The first `span` bytes of the device at `path`, or all of it: whole blocks.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(path: &str, span: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        let len = file.seek(SeekFrom::End(0))?.min(span);
        let len = len / BLOCK as u64 * BLOCK as u64;
        Ok(Self { file, len })
    }
}

impl Disk for Device {
    fn len(&self) -> u64 {
        self.len
    }
    fn is_empty(&self) -> bool {
        self.len == 0
    }
    fn read(&self, offset: u64, block: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(block, offset)
    }
    fn write(&self, offset: u64, block: &[u8]) -> io::Result<()> {
        self.file.write_all_at(block, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
