//! The same load on a raw file through io_uring, with nothing in between.
#![allow(
    unsafe_code,
    reason = "requests name memory that is shared with the kernel"
)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use io_uring::{IoUring, opcode, types};

use crate::load::{Client, Load, Pace};

/// A file and a ring.
pub(crate) struct RawClient {
    // Dropped first: nothing is in flight between runs.
    uring: IoUring,
    file: File,
    buffers: memmap2::MmapRaw,
    load: Load,
}

impl RawClient {
    /// Opens `path`, with O_DIRECT if `direct`.
    pub(crate) fn open(path: &Path, load: Load, direct: bool) -> Result<Self> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // Anonymous memory begins at a page, as O_DIRECT wants it.
        let mut buffers = memmap2::MmapMut::map_anon(load.depth * load.pattern.block())?;
        buffers.fill(0xa5);
        Ok(Self {
            uring: IoUring::new(u32::try_from(load.depth)?).context("no io_uring")?,
            file,
            buffers: buffers.into(),
            load,
        })
    }

    fn submit(&mut self, at: u64, slot: usize) -> Result<()> {
        let block = self.load.pattern.block();
        let buffer = self.buffers.as_mut_ptr().wrapping_add(slot * block);
        let (fd, len) = (types::Fd(self.file.as_raw_fd()), u32::try_from(block)?);
        let entry = if self.load.pattern.writes() {
            opcode::Write::new(fd, buffer, len).offset(at).build()
        } else {
            opcode::Read::new(fd, buffer, len).offset(at).build()
        };
        // SAFETY: the slot lies in the mapping, which outlives the ring's use of it: a run ends
        // when everything has completed.
        unsafe { self.uring.submission().push(&entry.user_data(slot as u64)) }
            .context("the submission queue is full")
    }
}

impl Client for RawClient {
    fn run(&mut self, pace: &mut Pace) -> Result<()> {
        let mut running = self.load.depth;
        for slot in 0..running {
            self.submit(pace.offset(), slot)?;
        }
        let mut finished = Vec::with_capacity(running);
        while running > 0 {
            self.uring.submit_and_wait(1)?;
            for completion in self.uring.completion() {
                if usize::try_from(completion.result()) != Ok(self.load.pattern.block()) {
                    bail!("an operation returned {}", completion.result());
                }
                finished.push(usize::try_from(completion.user_data())?);
            }
            if !pace.completed(finished.len()) {
                running -= finished.len();
                finished.clear();
            }
            for slot in finished.drain(..) {
                self.submit(pace.offset(), slot)?;
            }
        }
        Ok(())
    }
}
