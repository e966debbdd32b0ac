//! The same load on a raw file through io_uring, with nothing in between; or with a full copy of each
//! write to a log, the other way of knowing what changed.
//!
//! The log gets what such a log must get at least: the content, appended, one write beside each write
//! to the disk, at the same time; a request completes when both have. Where the content belongs would
//! be a few bytes more, which are left out. The log lies in a file that is preallocated and was written
//! before, as if it were used again and again: a log that grows costs more.
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

/// Copies of writes, one after the other.
struct Log {
    file: File,
    len: u64,
    next: u64,
}

/// A file and a ring.
pub(crate) struct RawClient {
    // Dropped first: nothing is in flight between runs.
    uring: IoUring,
    file: File,
    log: Option<Log>,
    /// What each slot waits for.
    pending: Vec<u8>,
    buffers: memmap2::MmapRaw,
    load: Load,
}

impl RawClient {
    /// Opens `path`, with O_DIRECT if `direct`.
    pub(crate) fn open(path: &Path, load: Load, direct: bool) -> Result<Self> {
        // Anonymous memory begins at a page, as O_DIRECT wants it.
        let mut buffers = memmap2::MmapMut::map_anon(load.depth * load.pattern.block())?;
        buffers.fill(0xa5);
        Ok(Self {
            uring: IoUring::new(u32::try_from(2 * load.depth)?).context("no io_uring")?,
            file: open(path, direct)?,
            log: None,
            pending: vec![0; load.depth],
            buffers: buffers.into(),
            load,
        })
    }

    /// Copies each write to the file `log`, from its beginning on again and again.
    pub(crate) fn with_log(mut self, log: &Path, direct: bool) -> Result<Self> {
        let file = open(log, direct)?;
        let len = file.metadata()?.len();
        self.log = Some(Log { file, len, next: 0 });
        Ok(self)
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
        let mut entries = vec![entry.user_data(slot as u64)];
        if let Some(log) = &mut self.log {
            let fd = types::Fd(log.file.as_raw_fd());
            let copy = opcode::Write::new(fd, buffer, len).offset(log.next).build();
            entries.push(copy.user_data(slot as u64));
            log.next = (log.next + block as u64) % log.len;
        }
        self.pending[slot] = u8::try_from(entries.len())?;
        // SAFETY: the slot lies in the mapping, which outlives the ring's use of it: a run ends
        // when everything has completed.
        unsafe { self.uring.submission().push_multiple(&entries) }
            .context("the submission queue is full")
    }
}

fn open(path: &Path, direct: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
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
                let slot = usize::try_from(completion.user_data())?;
                self.pending[slot] -= 1;
                if self.pending[slot] == 0 {
                    finished.push(slot);
                }
            }
            if finished.is_empty() {
                continue;
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
