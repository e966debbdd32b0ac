//! A sparse raw file above something that can be read.
//!
//! ```text
//!   overlay   .AB...C..      a bit for each block: in the overlay, or below
//!   below     abcdefghi
//!   disk      aABdefChi
//! ```
//!
//! Block n lies at offset n: there is no allocation table and nothing to repair.
//!
//! - A block becomes present when its data is in the overlay's file, before the write is answered:
//!   `kill -9` loses nothing that was answered.
//! - A durable bit never precedes its data. A flush takes the bits that are set, makes the data
//!   durable, then writes the bits, then makes those durable.
//! - A part of a block that is not present is written by copying the rest up, alone on the block.
//! - What is discarded is present and zero: what lies below must not show through.

use std::ops::Range;
use std::path::Path;

use block::{Buffer, Claims, Device, Done, Fault, Op, Store};
use model::{BLOCK_SIZE, BootId, SECTOR_SIZE};

use crate::presence::{Presence, PresenceError, Tag};
use crate::{FlushGate, RawDevice, SizeError};

/// Why an overlay cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Its size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Its maps.
    #[error(transparent)]
    Presence(#[from] PresenceError),
}

/// Where the content and the maps of an overlay are.
pub struct OverlayFiles<'a, S, M> {
    /// The data: a sparse file.
    pub data: S,
    /// The durable map of present blocks.
    pub map: M,
    /// File of the volatile map, on tmpfs.
    pub volatile: &'a Path,
}

/// See the module. Nothing is ever written below.
pub struct Overlay<S, M, B> {
    data: RawDevice<S>,
    below: B,
    presence: Presence<M>,
    claims: Claims,
    flushes: FlushGate,
}

impl<S: Store, M: Store, B: Device> Overlay<S, M, B> {
    /// Opens the overlay in `files`, or begins it if they are empty, above `below`, which `tag`
    /// names: it must read the same whenever the overlay is opened.
    ///
    /// # Errors
    /// [`OverlayError`]
    pub async fn open(
        files: OverlayFiles<'_, S, M>,
        below: B,
        boot: BootId,
        tag: &Tag,
    ) -> Result<Self, OverlayError> {
        let size = below.size();
        let data = RawDevice::new(files.data, size, false)?;
        let presence = Presence::open(files.volatile, files.map, boot, tag, size).await?;
        Ok(Self {
            data,
            below,
            presence,
            claims: Claims::default(),
            flushes: FlushGate::default(),
        })
    }

    async fn read(&self, at: u64, mut into: Buffer) -> Done {
        let end = at + into.len() as u64;
        if at == end {
            return Done {
                outcome: Ok(()),
                buffer: Some(into),
            };
        }
        let blocks = blocks(at, end);
        let (run, present) = self.presence.run(blocks.clone());
        if run == blocks {
            return self.read_run(at, into, present).await;
        }
        let mut from = at;
        while from < end {
            let (run, present) = self.presence.run(blocks_of(from, blocks.end));
            let to = end.min(run.end * BLOCK_SIZE);
            let done = self
                .read_run(from, Buffer::zeroed(index(to - from)), present)
                .await;
            if let (Ok(()), Some(part)) = (done.outcome, &done.buffer) {
                into.copy_from(index(from - at), part, 0, part.len());
            } else {
                return Done {
                    outcome: done.outcome.and(Err(Fault::Os(libc::EIO))),
                    buffer: Some(into),
                };
            }
            from = to;
        }
        Done {
            outcome: Ok(()),
            buffer: Some(into),
        }
    }

    async fn read_run(&self, at: u64, into: Buffer, present: bool) -> Done {
        let op = Op::Read { at, into };
        if present {
            self.data.run(op).await
        } else {
            self.below.run(op).await
        }
    }

    /// Whether a part of `block` is outside `at..end`, and the block has to be copied up first.
    fn must_copy(&self, block: u64, at: u64, end: u64) -> bool {
        let whole = at <= block * BLOCK_SIZE && (block + 1) * BLOCK_SIZE <= end;
        !whole && !self.presence.has(block)
    }

    async fn write(&self, at: u64, from: Buffer) -> Done {
        let end = at + from.len() as u64;
        if at == end {
            return Done {
                outcome: Ok(()),
                buffer: Some(from),
            };
        }
        let blocks = blocks(at, end);
        // Presence only grows: what needs no copy now needs none later.
        let copies =
            self.must_copy(blocks.start, at, end) || self.must_copy(blocks.end - 1, at, end);
        if !copies {
            let _claim = self.claims.shared(blocks.clone()).await;
            let done = self.data.run(Op::Write { at, from }).await;
            if done.outcome.is_ok() {
                self.presence.add(blocks);
            }
            return done;
        }
        let _claim = self.claims.exclusive(blocks.clone()).await;
        Done {
            outcome: self.copy_up(at, &from, blocks).await,
            buffer: Some(from),
        }
    }

    /// Writes whole blocks: what `from` does not hold of them comes from where it is now.
    async fn copy_up(&self, at: u64, from: &Buffer, blocks: Range<u64>) -> Result<(), Fault> {
        let start = blocks.start * BLOCK_SIZE;
        let mut whole = Buffer::zeroed(index((blocks.end - blocks.start) * BLOCK_SIZE));
        let last = blocks.end - 1;
        for block in [Some(blocks.start), (last != blocks.start).then_some(last)] {
            let Some(block) = block else { continue };
            let old = Buffer::zeroed(index(BLOCK_SIZE));
            let present = self.presence.has(block);
            let done = self.read_run(block * BLOCK_SIZE, old, present).await;
            done.outcome?;
            let old = done.buffer.ok_or(Fault::Os(libc::EIO))?;
            whole.copy_from(index(block * BLOCK_SIZE - start), &old, 0, old.len());
        }
        whole.copy_from(index(at - start), from, 0, from.len());
        let op = Op::Write {
            at: start,
            from: whole,
        };
        self.data.run(op).await.outcome?;
        self.presence.add(blocks);
        Ok(())
    }

    /// Whole blocks become present and zero; parts of blocks are written.
    async fn clear(&self, at: u64, len: u64, unmap: bool) -> Result<(), Fault> {
        let end = at + len;
        let first = at.next_multiple_of(BLOCK_SIZE).min(end);
        let last = (end - end % BLOCK_SIZE).max(first);
        for part in [at..first, last..end] {
            if !part.is_empty() {
                let zeroes = Buffer::zeroed(index(part.end - part.start));
                self.write(part.start, zeroes).await.outcome?;
            }
        }
        if first == last {
            return Ok(());
        }
        let blocks = first / BLOCK_SIZE..last / BLOCK_SIZE;
        let _claim = self.claims.shared(blocks.clone()).await;
        let op = Op::WriteZeroes {
            at: first,
            len: last - first,
            unmap,
        };
        self.data.run(op).await.outcome?;
        self.presence.add(blocks);
        Ok(())
    }

    async fn sync(&self) -> Result<(), Fault> {
        // Taken first: every bit in them was set after its data had reached the file.
        let pages = self.presence.take();
        self.data.store().sync().await?;
        self.presence.store(pages).await
    }

    fn check(&self, op: &Op) -> Result<(), Fault> {
        let (at, len) = op.range();
        let inside = at.checked_add(len).is_some_and(|end| end <= self.size());
        if !inside || (at | len) % SECTOR_SIZE != 0 {
            return Err(Fault::Range);
        }
        if op.mutates() && self.flushes.failed() {
            return Err(Fault::FlushFailed);
        }
        Ok(())
    }
}

/// The blocks that a range which is not empty touches.
fn blocks(at: u64, end: u64) -> Range<u64> {
    blocks_of(at, end.div_ceil(BLOCK_SIZE))
}

/// From the block of byte `at` on, to block `end`.
fn blocks_of(at: u64, end: u64) -> Range<u64> {
    at / BLOCK_SIZE..end
}

/// A length of memory that an operation already has, or a few blocks more.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("fits memory, as the operation's own did")
}

impl<S: Store, M: Store, B: Device> Device for Overlay<S, M, B> {
    fn size(&self) -> u64 {
        self.below.size()
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
            Op::Flush => self.flushes.flush(|| self.sync()).await,
        };
        Done {
            outcome,
            buffer: None,
        }
    }
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
