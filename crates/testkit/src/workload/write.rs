//! The writing side, as it runs in the guest.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::record::{BLOCK, Commit, FIRST_SLOT_BLOCK, Record, RunId};
use super::verify::newest_commit;

/// What is written to: a block device opened with `O_DIRECT`, or memory in tests.
pub trait Disk: Sync {
    /// Size in bytes.
    fn len(&self) -> u64;
    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool;
    /// Reads one block at `offset`, a multiple of [`BLOCK`].
    ///
    /// # Errors
    /// What the device says.
    fn read(&self, offset: u64, block: &mut [u8]) -> io::Result<()>;
    /// Writes one block at `offset`, a multiple of [`BLOCK`].
    ///
    /// # Errors
    /// What the device says.
    fn write(&self, offset: u64, block: &[u8]) -> io::Result<()>;
    /// Makes all that was written durable.
    ///
    /// # Errors
    /// What the device says.
    fn flush(&self) -> io::Result<()>;
}

/// One run of the workload.
pub struct Writer<'a> {
    disk: &'a dyn Disk,
    commit: Commit,
}

impl<'a> Writer<'a> {
    /// Begins a run: from here on, records of earlier runs on the disk count for nothing.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when the disk does not hold one batch.
    pub fn begin(disk: &'a dyn Disk, run: RunId, batch: u64, writers: u64) -> io::Result<Self> {
        let slots = (disk.len() / BLOCK as u64).saturating_sub(FIRST_SLOT_BLOCK);
        if batch == 0 || writers == 0 || slots < batch {
            let fault = format!("{slots} slots do not hold a batch of {batch}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, fault));
        }
        let before = newest_commit(&mut |offset, block| disk.read(offset, block))?;
        let mut writer = Self {
            disk,
            commit: Commit {
                run,
                generation: before.newest.map_or(0, |commit| commit.generation),
                committed: 0,
                batch,
                writers,
                slots,
            },
        };
        writer.publish()?;
        Ok(writer)
    }

    /// Writes and commits one batch; returns the newest durable record.
    ///
    /// # Errors
    /// What the device says; the run must not go on after one.
    pub fn batch(&mut self) -> io::Result<u64> {
        let first = self.commit.committed + 1;
        let end = first + self.commit.batch;
        let next = AtomicU64::new(first);
        std::thread::scope(|scope| {
            let mut others = Vec::new();
            for _ in 1..self.commit.writers {
                others.push(scope.spawn(|| self.write_records(&next, end)));
            }
            let mut result = self.write_records(&next, end);
            for other in others {
                let written = other
                    .join()
                    .unwrap_or_else(|_panic| Err(io::Error::other("a writer panicked")));
                result = result.and(written);
            }
            result
        })?;
        self.disk.flush()?;
        self.commit.committed = end - 1;
        self.publish()?;
        Ok(self.commit.committed)
    }

    fn write_records(&self, next: &AtomicU64, end: u64) -> io::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= end {
                return Ok(());
            }
            let slot = self.commit.slot(number);
            let time = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0));
            let record = Record {
                run: self.commit.run,
                number,
                slot,
                time,
            };
            let offset = (FIRST_SLOT_BLOCK + slot) * BLOCK as u64;
            self.disk.write(offset, &record.to_block().0)?;
        }
    }

    fn publish(&mut self) -> io::Result<()> {
        self.commit.generation += 1;
        let offset = (self.commit.generation & 1) * BLOCK as u64;
        self.disk.write(offset, &self.commit.to_block().0)?;
        self.disk.flush()
    }
}
