//! What came of an initial replication so far, read so that it can be compared with the primary.
//!
//! ```text
//!   a copy, parts --> base files --> flushed once more --> read
//! ```
//!
//! What is found equal is not sent again, so it has to be durable: it may be what a part wrote whose
//! commit a kill interrupted, and be in the page cache only. Nothing writes to the base meanwhile that
//! is not a commit of this [`Journal`] or [ahead](Journal::lay_ahead) of one, for which whoever reads has
//! to wait.

use std::fmt;
use std::sync::Arc;

use durable::{File, Need};
use model::{BLOCK_SIZE, Bytes, DiskId, SeedId};

use crate::compare::{BlockHashes, region};
use crate::{Journal, JournalError, Refusal, Tip};

/// Reads the base of an initial replication that goes on. Not while a part is committed.
pub struct SeedReader {
    seed: SeedId,
    parts: u64,
    disks: Vec<(DiskId, Bytes, Arc<dyn File>)>,
}

impl fmt::Debug for SeedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeedReader({:?} after {} parts)", self.seed, self.parts)
    }
}

impl Journal {
    /// Opens what came of the initial replication for reading; it is durable then.
    ///
    /// # Errors
    /// [`Refusal::Complete`] when there is a point already; the base files
    /// cannot be opened or flushed.
    pub fn open_seed(&self) -> Result<Arc<SeedReader>, JournalError> {
        let (seed, parts) = match self.tip() {
            Tip::Seeding {
                seed, next_part, ..
            } => (seed, next_part),
            Tip::Point { point, .. } => return Err(Refusal::Complete(point).into()),
        };
        let bases = self.bases()?;
        let needs = bases.iter().map(|(_, file)| Need::Content(file.clone()));
        self.group
            .flush(needs.collect())
            .map_err(|source| JournalError::io("flush the base in", "", source))?;
        let disks = bases.into_iter();
        Ok(Arc::new(SeedReader {
            seed,
            parts,
            disks: disks
                .map(|(disk, file)| (disk.id, disk.size, file))
                .collect(),
        }))
    }
}

impl SeedReader {
    /// The initial replication.
    #[must_use]
    pub fn seed(&self) -> SeedId {
        self.seed
    }

    /// So many parts of it had come.
    #[must_use]
    pub fn parts(&self) -> u64 {
        self.parts
    }

    /// The disks and their sizes.
    pub fn disks(&self) -> impl Iterator<Item = (DiskId, Bytes)> + '_ {
        self.disks.iter().map(|(id, size, _)| (*id, *size))
    }

    /// The hashes of region `number` of a disk as it would be at `size`, which is not less than the
    /// disk's: a disk grows with zeroes. Holds 1 MiB at most; from any thread; blocks.
    ///
    /// # Errors
    /// [`JournalError::NoSuchDisk`]; [`JournalError::Range`] for a region past the end; a failed read.
    pub fn region_hashes(
        &self,
        disk: DiskId,
        number: u64,
        size: Bytes,
    ) -> Result<BlockHashes, JournalError> {
        let (_, _, file) = self
            .disks
            .iter()
            .find(|(id, _, _)| *id == disk)
            .ok_or(JournalError::NoSuchDisk(disk))?;
        let range = region(number, size).ok_or(JournalError::Range {
            at: number.saturating_mul(crate::compare::REGION_BLOCKS * BLOCK_SIZE),
            len: crate::compare::REGION_BLOCKS * BLOCK_SIZE,
            size,
        })?;
        let failed = |source| JournalError::io("read a base in", "", source);
        // The file itself: a part of which the commit was interrupted may have made it longer.
        let end = file.size().map_err(failed)?.min(range.end).max(range.start);
        let whole = (end - range.start) / BLOCK_SIZE * BLOCK_SIZE;
        let mut content = vec![0; usize::try_from(whole).unwrap_or(0)];
        file.read_at(range.start, &mut content).map_err(failed)?;
        let mut hashes = BlockHashes::of(&content);
        let blocks = (range.end - range.start) / BLOCK_SIZE;
        hashes.push_zeroes(blocks.saturating_sub(hashes.blocks()));
        Ok(hashes)
    }
}
