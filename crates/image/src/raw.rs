//! A raw image over a store.
//!
//! Guests see sectors of 512 bytes. Where the store needs more (O_DIRECT on a disk of 4 KiB
//! sectors), the partial blocks at the ends of a write are read, changed and written back under an
//! exclusive claim on them; whole blocks are written under a shared one. Where it does not, nothing
//! is claimed at all. Memory that the store cannot take is copied.
//!
//! After a crash the store holds what it held: nothing is kept in memory here.

use std::ops::Range;

use block::{Buffer, Claims, Device, Done, Fault, Image, Op, Place, Store};
use model::{BLOCK_SIZE, SECTOR_SIZE};

use crate::FlushGate;

/// Longest range that is punched or zeroed in one call to the store, in bytes.
const LONGEST: u64 = 1 << 30;

/// A size that a raw disk cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a disk of {size} bytes does not consist of whole blocks of {block} bytes")]
pub struct SizeError {
    size: u64,
    block: u64,
}

/// A [`Device`] whose byte n is byte n of its store.
pub struct RawDevice<S> {
    store: S,
    size: u64,
    read_only: bool,
    /// What the store needs, in bytes.
    alignment: u64,
    claims: Claims,
    flushes: FlushGate,
}

impl<S: Store> RawDevice<S> {
    /// A disk of `size` bytes over `store`.
    ///
    /// # Errors
    /// When `size` is not a multiple of 4 KiB and of what the store needs.
    pub fn new(store: S, size: u64, read_only: bool) -> Result<Self, SizeError> {
        let alignment = store.alignment();
        let block = alignment.max(BLOCK_SIZE);
        if size % block != 0 {
            return Err(SizeError { size, block });
        }
        Ok(Self {
            store,
            size,
            read_only,
            alignment,
            claims: Claims::default(),
            flushes: FlushGate::default(),
        })
    }

    /// The store below.
    pub fn store(&self) -> &S {
        &self.store
    }

    fn check(&self, op: &Op) -> Result<(), Fault> {
        let (at, len) = op.range();
        let inside = at.checked_add(len).is_some_and(|end| end <= self.size);
        if !inside || (at | len) % SECTOR_SIZE != 0 {
            return Err(Fault::Range);
        }
        if op.mutates() {
            if self.read_only {
                return Err(Fault::ReadOnly);
            }
            if self.flushes.failed() {
                return Err(Fault::FlushFailed);
            }
        }
        Ok(())
    }

    /// The smallest range of what the store takes around `at..at + len`.
    fn around(&self, at: u64, len: u64) -> Range<u64> {
        at - at % self.alignment..(at + len).next_multiple_of(self.alignment)
    }

    async fn read(&self, at: u64, mut into: Buffer) -> Done {
        let len = into.len() as u64;
        let around = self.around(at, len);
        if around == (at..at + len) && into.is_aligned(self.alignment) {
            return self.store.read(at, into).await;
        }
        let (outcome, bounce) = self.fetch(around.clone()).await;
        if outcome.is_ok() {
            let skip = index(at - around.start);
            into.copy_from(0, &bounce, skip, into.len());
        }
        Done {
            outcome,
            buffer: Some(into),
        }
    }

    /// Reads an aligned range into memory of its own.
    async fn fetch(&self, range: Range<u64>) -> (Result<(), Fault>, Buffer) {
        let bounce = Buffer::zeroed(index(range.end - range.start));
        given_back(self.store.read(range.start, bounce).await)
    }

    async fn write(&self, at: u64, from: Buffer) -> Done {
        let len = from.len() as u64;
        let around = self.around(at, len);
        if around == (at..at + len) {
            let _claim = if self.alignment > SECTOR_SIZE {
                Some(self.claims.shared(around).await)
            } else {
                None
            };
            if from.is_aligned(self.alignment) {
                return self.store.write(at, from).await;
            }
            let mut bounce = Buffer::zeroed(from.len());
            bounce.copy_from(0, &from, 0, from.len());
            return Done {
                outcome: self.store.write(at, bounce).await.outcome,
                buffer: Some(from),
            };
        }
        Done {
            outcome: self.merge(at, len, around, &from).await,
            buffer: Some(from),
        }
    }

    /// Writes a range whose ends are not what the store takes.
    async fn merge(
        &self,
        at: u64,
        len: u64,
        around: Range<u64>,
        from: &Buffer,
    ) -> Result<(), Fault> {
        let _claim = self.claims.exclusive(around.clone()).await;
        let mut whole = Buffer::zeroed(index(around.end - around.start));
        let last = around.end - self.alignment;
        let head = (at != around.start).then_some(around.start);
        let tail = (at + len != around.end && head != Some(last)).then_some(last);
        for block in [head, tail].into_iter().flatten() {
            let (outcome, old) = self.fetch(block..block + self.alignment).await;
            outcome?;
            whole.copy_from(index(block - around.start), &old, 0, old.len());
        }
        whole.copy_from(index(at - around.start), from, 0, from.len());
        self.store.write(around.start, whole).await.outcome
    }

    /// Makes a range read as zeroes. Partial blocks at its ends are written, the rest is given
    /// back to the file system (`punch`) or kept.
    async fn clear(&self, at: u64, len: u64, punch: bool) -> Result<(), Fault> {
        let block = self.alignment.max(BLOCK_SIZE);
        let end = at + len;
        let (first, last) = (at.next_multiple_of(block), end - end % block);
        if first >= last {
            // No whole block; at most two partial ones.
            for range in [at..first.min(end), first.min(end)..end] {
                self.write_zeroes(range).await?;
            }
            return Ok(());
        }
        self.write_zeroes(at..first).await?;
        let mut from = first;
        while from < last {
            let len = (last - from).min(LONGEST);
            let _claim = if self.alignment > SECTOR_SIZE {
                Some(self.claims.shared(from..from + len).await)
            } else {
                None
            };
            if punch {
                self.store.punch(from, len).await?;
            } else {
                self.store.zero(from, len).await?;
            }
            from += len;
        }
        self.write_zeroes(last..end).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> Result<(), Fault> {
        if range.is_empty() {
            return Ok(());
        }
        let zeroes = Buffer::zeroed(index(range.end - range.start));
        self.write(range.start, zeroes).await.outcome
    }
}

fn given_back(done: Done) -> (Result<(), Fault>, Buffer) {
    match done.buffer {
        Some(buffer) => (done.outcome, buffer),
        None => unreachable!("a store gives the memory of a read back"),
    }
}

/// A length of memory that an operation already has, or a few blocks more.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("fits memory, as the operation's own did")
}

impl<S: Store> Device for RawDevice<S> {
    fn size(&self) -> u64 {
        self.size
    }

    async fn run(&self, op: Op) -> Done {
        if let Err(fault) = self.check(&op) {
            return op.refuse(fault);
        }
        let outcome = match op {
            Op::Read { at, into } => return self.read(at, into).await,
            Op::Write { at, from } => return self.write(at, from).await,
            Op::Discard { at, len } => self.clear(at, len, true).await,
            Op::WriteZeroes { at, len, unmap } => self.clear(at, len, unmap).await,
            Op::Flush => self.flushes.flush(|| self.store.sync()).await,
        };
        Done {
            outcome,
            buffer: None,
        }
    }
}

impl<S: Store> Image for RawDevice<S> {
    fn size(&self) -> u64 {
        self.size
    }

    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place),
    ) -> Result<(), Fault> {
        if range.start > range.end || range.end > self.size {
            return Err(Fault::Range);
        }
        let mut at = range.start;
        while at < range.end {
            let data = self.store.next_data(at..range.end).await?;
            // A file may end inside a sector, and what it does not have is zero.
            let data = data.map_or(range.end..range.end, |data| {
                let start = data.start - data.start % SECTOR_SIZE;
                let end = data.end.next_multiple_of(SECTOR_SIZE);
                start.max(at)..end.min(range.end)
            });
            if at < data.start {
                visit(at..data.start, Place::Zero);
            }
            if !data.is_empty() {
                let at = data.start;
                visit(data.clone(), Place::Stored { at });
            }
            at = data.end;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
