//! Writes that go past the page cache.

use std::fs;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// What offsets, lengths and addresses are multiples of; no disk or file system asks for more.
const ALIGNMENT: usize = 4096;

/// Bytes that begin where the kernel can take them past the page cache.
#[derive(Debug, Default)]
pub struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeroes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT];
        let from = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, from, len }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.len]
    }
}

/// `file` once more, for writes past the page cache; none where its file system has no such thing.
pub(crate) fn reopened(file: &fs::File) -> Option<fs::File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened.ok().map(fs::File::from)
}

/// Writes all of `from` at byte `at`, or says that it has to be written in the usual way.
pub(crate) fn write(file: &fs::File, at: u64, from: &[u8]) -> io::Result<bool> {
    if at % ALIGNMENT as u64 != 0 || from.len() % ALIGNMENT != 0 {
        return Ok(false);
    }
    match file.write_all_at(from, at) {
        // Its file system has other wants, or took a part, after which the rest is not aligned.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(false),
        written => written.map(|()| true),
    }
}
