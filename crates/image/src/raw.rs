//! A raw image over a store.
//!
//! Guests see sectors of 512 bytes. Where the store needs more (O_DIRECT on a disk of 4 KiB
//! sectors), the partial blocks at the ends of a write are read, changed and written back under an
//! exclusive claim on them; whole blocks are written under a shared one. Where it does not, nothing
//! is claimed at all. Memory that the store cannot take is copied, a part at a time.
//!
//! After a crash the store holds what it held: nothing is kept in memory here.

use std::ops::{ControlFlow, Range};

use block::{Buffer, Claims, Device, Done, Fault, Image, Op, Place, Store};
use model::{BLOCK_SIZE, SECTOR_SIZE};

use crate::FlushGate;

/// Longest range that is punched or zeroed in one call to the store, in bytes: others come between.
const LONGEST: u64 = 64 << 20;
/// Most memory of an operation that the store cannot take as it is, in bytes.
const BOUNCE: u64 = 256 << 10;

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
        let outcome = self.read_bounced(at, &mut into, around).await;
        Done {
            outcome,
            buffer: Some(into),
        }
    }

    async fn read_bounced(
        &self,
        at: u64,
        into: &mut Buffer,
        around: Range<u64>,
    ) -> Result<(), Fault> {
        let end = at + into.len() as u64;
        for part in parts(around) {
            let bounce = self.fetch(part.clone()).await?;
            let wanted = part.start.max(at)..part.end.min(end);
            let (to, skip) = (index(wanted.start - at), index(wanted.start - part.start));
            into.copy_from(to, &bounce, skip, index(wanted.end - wanted.start));
        }
        Ok(())
    }

    /// Reads an aligned range into memory of its own.
    async fn fetch(&self, range: Range<u64>) -> Result<Buffer, Fault> {
        let bounce = Buffer::zeroed(index(range.end - range.start));
        let done = self.store.read(range.start, bounce).await;
        done.outcome?;
        match done.buffer {
            Some(buffer) => Ok(buffer),
            None => unreachable!("a store gives the memory of a read back"),
        }
    }

    async fn write(&self, at: u64, from: Buffer) -> Done {
        let len = from.len() as u64;
        let around = self.around(at, len);
        let whole = around == (at..at + len);
        let _claim = if !whole {
            Some(self.claims.exclusive(around.clone()).await)
        } else if self.alignment > SECTOR_SIZE {
            Some(self.claims.shared(around.clone()).await)
        } else {
            None
        };
        if whole && from.is_aligned(self.alignment) {
            return self.store.write(at, from).await;
        }
        Done {
            outcome: self.write_bounced(at, &from, around).await,
            buffer: Some(from),
        }
    }

    /// Writes memory or a range that the store does not take. The range is claimed.
    async fn write_bounced(&self, at: u64, from: &Buffer, around: Range<u64>) -> Result<(), Fault> {
        let end = at + from.len() as u64;
        for part in parts(around) {
            let wanted = part.start.max(at)..part.end.min(end);
            let mut bounce = Buffer::zeroed(index(part.end - part.start));
            // What the store takes at once and the write has a part of.
            let last = part.end - self.alignment;
            let head = (wanted.start != part.start).then_some(part.start);
            let tail = (wanted.end != part.end && head != Some(last)).then_some(last);
            for unit in [head, tail].into_iter().flatten() {
                let old = self.fetch(unit..unit + self.alignment).await?;
                bounce.copy_from(index(unit - part.start), &old, 0, old.len());
            }
            let (to, skip) = (index(wanted.start - part.start), index(wanted.start - at));
            bounce.copy_from(to, from, skip, index(wanted.end - wanted.start));
            self.store.write(part.start, bounce).await.outcome?;
        }
        Ok(())
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

/// A range in parts that fit the memory of an operation. Aligned if the range is.
fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut from = range.start;
    std::iter::from_fn(move || {
        let part = from..range.end.min(from - from % BOUNCE + BOUNCE);
        from = part.end;
        (!part.is_empty()).then_some(part)
    })
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
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
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
            let hole = at..data.start;
            if !hole.is_empty() && visit(hole, Place::Zero).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at = data.end;
            let place = Place::Stored { at: data.start };
            if !data.is_empty() && visit(data, place).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
