//! In-flight tracking of split rings (vhost-user specification, "Inflight I/O tracking").
//!
//! The area lives in a file that the front end keeps, so a new process learns from
//! it which requests the old one had taken and not answered:
//!
//! ```text
//!   take head    counter[h] = n; n += 1;  inflight[h] = 1
//!   answer batch next[h] = last_batch_head;  last_batch_head = h   (each h)
//!                used ring's idx += batch                          <- the answer
//!                inflight[h] = 0 (each h);  used_idx = used ring's idx
//!   recover      if used_idx != used ring's idx: the last batch was answered; finish it
//!                the heads with inflight = 1 are run again in order of their counters
//! ```
//!
//! Killed before the answer, a batch is run again, and nobody was told that it was done.
//! Killed after it, recovery finishes the bookkeeping, and it is not run again.
//! The content is the front end's: every index is checked.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::memory::{Area, MemoryError};

/// Version of the layout.
const VERSION: u16 = 1;
const HEADER: usize = 16;
const ENTRY: usize = 16;
/// Queue regions start on cache lines.
const ALIGNMENT: usize = 64;

// Offsets in the header of a queue's region.
const AT_VERSION: usize = 8;
const AT_DESC_NUM: usize = 10;
const AT_LAST_BATCH_HEAD: usize = 12;
const AT_USED_IDX: usize = 14;
// Offsets in an entry.
const AT_INFLIGHT: usize = 0;
const AT_NEXT: usize = 6;
const AT_COUNTER: usize = 8;

/// Why an in-flight area cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum InflightError {
    /// The area is too small or not aligned for what the message says about it.
    #[error("an in-flight area of {len} bytes at {offset} for {queues} queues of {size}")]
    Shape {
        offset: u64,
        len: u64,
        queues: u16,
        size: u16,
    },
    /// The area cannot be made or mapped.
    #[error("the in-flight area cannot be mapped")]
    Memory(#[source] MemoryError),
    /// The area cannot be made.
    #[error("the in-flight area cannot be made")]
    Make(#[source] io::Error),
    /// Written by something else.
    #[error(
        "the in-flight area has version {version} and {entries} entries, not {VERSION} and {size}"
    )]
    Version {
        version: u16,
        entries: u16,
        size: u16,
    },
    /// The used ring and the area cannot belong together.
    #[error("the in-flight area is {batch} answers behind the used ring of {size} entries")]
    Behind { batch: u16, size: u16 },
    /// An entry names a head that the queue does not have.
    #[error("the in-flight area names head {head} of a queue of {size}")]
    Head { head: u16, size: u16 },
}

fn queue_len(size: u16) -> usize {
    (HEADER + ENTRY * usize::from(size)).next_multiple_of(ALIGNMENT)
}

/// The area of a connection: one region for each queue.
#[derive(Debug, Clone)]
pub(super) struct InflightArea {
    area: Area,
    queues: u16,
    size: u16,
}

impl InflightArea {
    /// A new, empty area for `queues` queues of `size`, and its file and length for the front
    /// end to keep.
    pub(super) fn create(queues: u16, size: u16) -> Result<(File, u64), InflightError> {
        let len = (queue_len(size) * usize::from(queues)) as u64;
        let make = || -> io::Result<File> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("pollux-inflight", flags)?;
            ftruncate(&file, len)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Ok(file.into())
        };
        Ok((make().map_err(InflightError::Make)?, len))
    }

    /// The area that the front end kept.
    pub(super) fn open(
        file: &File,
        offset: u64,
        len: u64,
        queues: u16,
        size: u16,
    ) -> Result<Self, InflightError> {
        let needed = queue_len(size) * usize::from(queues);
        if len < needed as u64 || offset % ALIGNMENT as u64 != 0 {
            return Err(InflightError::Shape {
                offset,
                len,
                queues,
                size,
            });
        }
        let area = Area::map(file, offset, needed).map_err(InflightError::Memory)?;
        Ok(Self { area, queues, size })
    }

    /// The region of queue `index`, which has `size` entries; none if the area was not made
    /// for it.
    pub(super) fn queue(&self, index: u16, size: u16) -> Option<InflightQueue> {
        (index < self.queues && size <= self.size).then(|| InflightQueue {
            area: self.area.part(
                usize::from(index) * queue_len(self.size),
                queue_len(self.size),
            ),
            entries: self.size,
            size,
            counter: 0,
        })
    }
}

/// What the area says about a queue that starts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recovered {
    /// The area is new: nothing was in flight.
    Fresh,
    /// The heads that were taken and not answered, in the order in which they were taken.
    Heads(Vec<u16>),
}

/// The in-flight region of one queue.
#[derive(Debug)]
pub(super) struct InflightQueue {
    area: Area,
    /// Entries in the area.
    entries: u16,
    /// Size of the queue.
    size: u16,
    /// Counter of the next head taken.
    counter: u64,
}

fn entry(head: u16) -> usize {
    HEADER + ENTRY * usize::from(head)
}

impl InflightQueue {
    /// Finishes what a killed process left half done. `used_idx` is the used ring's.
    pub(super) fn recover(&mut self, used_idx: u16) -> Result<Recovered, InflightError> {
        let version = self.area.load_u16(AT_VERSION, Ordering::Acquire);
        if version == 0 {
            let order = Ordering::Relaxed;
            // Whoever made it may have left something in it, which the next process would believe.
            for head in 0..self.entries {
                self.clear(head);
            }
            self.area.store_u16(AT_DESC_NUM, self.entries, order);
            self.area.store_u16(AT_USED_IDX, used_idx, order);
            self.area.store_u16(AT_VERSION, VERSION, Ordering::Release);
            return Ok(Recovered::Fresh);
        }
        let entries = self.area.load_u16(AT_DESC_NUM, Ordering::Relaxed);
        if version != VERSION || entries != self.entries {
            return Err(InflightError::Version {
                version,
                entries,
                size: self.entries,
            });
        }
        let batch = used_idx.wrapping_sub(self.area.load_u16(AT_USED_IDX, Ordering::Relaxed));
        if batch > self.size {
            return Err(InflightError::Behind {
                batch,
                size: self.size,
            });
        }
        let mut head = self.area.load_u16(AT_LAST_BATCH_HEAD, Ordering::Relaxed);
        for _ in 0..batch {
            if head >= self.size {
                return Err(InflightError::Head {
                    head,
                    size: self.size,
                });
            }
            self.clear(head);
            head = self.area.load_u16(entry(head) + AT_NEXT, Ordering::Relaxed);
        }
        self.settle(used_idx);
        let mut taken = Vec::new();
        for head in 0..self.entries {
            if self
                .area
                .load_u8(entry(head) + AT_INFLIGHT, Ordering::Relaxed)
                == 0
            {
                continue;
            }
            if head >= self.size {
                return Err(InflightError::Head {
                    head,
                    size: self.size,
                });
            }
            let counter = self
                .area
                .load_u64(entry(head) + AT_COUNTER, Ordering::Relaxed);
            taken.push((counter, head));
        }
        taken.sort_unstable();
        self.counter = taken
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(Recovered::Heads(
            taken.into_iter().map(|(_, head)| head).collect(),
        ))
    }

    /// Notes that `head` was taken, before anything is done about it.
    pub(super) fn take(&mut self, head: u16) {
        self.area
            .store_u64(entry(head) + AT_COUNTER, self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.area
            .store_u8(entry(head) + AT_INFLIGHT, 1, Ordering::Release);
    }

    /// Adds `head` to the batch that is about to be answered.
    pub(super) fn link(&mut self, head: u16) {
        let last = self.area.load_u16(AT_LAST_BATCH_HEAD, Ordering::Relaxed);
        self.area
            .store_u16(entry(head) + AT_NEXT, last, Ordering::Release);
        self.area
            .store_u16(AT_LAST_BATCH_HEAD, head, Ordering::Release);
    }

    /// Notes that `head`, of an answered batch, is no longer in flight.
    pub(super) fn clear(&mut self, head: u16) {
        self.area
            .store_u8(entry(head) + AT_INFLIGHT, 0, Ordering::Release);
    }

    /// Ends an answered batch: every head of it was cleared.
    pub(super) fn settle(&mut self, used_idx: u16) {
        self.area
            .store_u16(AT_USED_IDX, used_idx, Ordering::Release);
    }
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
mod tests;
