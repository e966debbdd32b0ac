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
//! - A part of a block that is not present is written after the block was copied up, alone on it.
//! - What is discarded is present and zero: what lies below must not show through.
//!
//! # Draining
//!
//! A draining overlay gives its blocks to what is below, until it holds none and can be left out:
//!
//! ```text
//!   block   present --copied down, alone on it, or overwritten below--> absent     never back
//! ```
//!
//! - Every mutation goes below; what it writes a part of is copied down first. Then its blocks are
//!   absent.
//! - A bit that is set says overlay, one that is not says below, at every instant, and both have the
//!   block when it changes: a kill between leaves the one or the other. After it the overlay may be
//!   opened in either mode.
//! - A durable bit is cleared after what lies below is durable: a flush syncs the data, then what is
//!   below, then writes the bits. Until then the overlay's file keeps the old content, which a power
//!   cut may bring back: newer content was not flushed.
//! - Nothing is given back meanwhile: the file goes when nothing is in it.
//!
//! A flush reaches below also in the first flush after opening: what was written there before, by a
//! process that drained or before this overlay was put on top, may still be in memory only.

use std::cell::Cell;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use block::{Buffer, Claim, Claims, Device, Done, Fault, Image, Op, Place, Store};
use model::{BLOCK_SIZE, BootId, SECTOR_SIZE};

use crate::presence::{Presence, PresenceError, Tag};
use crate::{FlushGate, RawDevice, SizeError};

/// Most bytes that are copied through memory at once.
const BOUNCE: u64 = 256 << 10;
/// Most bytes that are cleared at once: other operations come between.
const CLEARED: u64 = 64 << 20;

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
    /// File of the volatile map, on tmpfs; of this overlay alone.
    pub volatile: &'a Path,
}

/// See the module.
pub struct Overlay<S, M, B> {
    pub(crate) data: RawDevice<S>,
    pub(crate) below: B,
    pub(crate) presence: Presence<M>,
    pub(crate) claims: Claims,
    pub(crate) flushes: FlushGate,
    pub(crate) draining: Cell<bool>,
    /// No block before this one is present, while it drains.
    pub(crate) drained: Cell<u64>,
    /// What is below may not be durable.
    owes: Cell<bool>,
    /// A rule that a test breaks on purpose.
    #[cfg(test)]
    pub(crate) broken: Cell<Option<Rule>>,
}

/// Rules that tests break on purpose, to see that they would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    DataBeforeBit,
    BelowBeforeClear,
    AloneOnCopies,
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
            draining: Cell::new(false),
            drained: Cell::new(0),
            owes: Cell::new(true),
            #[cfg(test)]
            broken: Cell::new(None),
        })
    }

    /// Always true outside tests.
    #[cfg_attr(
        not(test),
        allow(clippy::unused_self, reason = "a test breaks the rule")
    )]
    fn keeps(&self, rule: Rule) -> bool {
        #[cfg(test)]
        return self.broken.get() != Some(rule);
        #[cfg(not(test))]
        {
            let _ = rule;
            true
        }
    }

    /// What it lies above.
    pub fn below(&self) -> &B {
        &self.below
    }

    /// How many bytes it holds.
    pub fn present_bytes(&self) -> u64 {
        self.presence.count() * BLOCK_SIZE
    }

    /// Whether a flush failed: what was written, or drained, since the last one may be lost.
    pub fn flush_failed(&self) -> bool {
        self.flushes.failed()
    }

    /// Whether it holds nothing: the disk reads as what is below.
    pub fn is_empty(&self) -> bool {
        self.presence.count() == 0
    }

    /// Calls `visit` with the byte ranges that it holds, in rising order: what may read differently
    /// without it.
    pub fn held(&self, mut visit: impl FnMut(Range<u64>)) {
        let end = Device::size(&self.data) / BLOCK_SIZE;
        let mut from = 0;
        while let Some(block) = self.presence.next(from..end, true) {
            let (run, _) = self.presence.run(block..end);
            visit(run.start * BLOCK_SIZE..run.end * BLOCK_SIZE);
            from = run.end;
        }
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
            let to = end.min(run.end * BLOCK_SIZE).min(from + BOUNCE);
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

    /// Blocks of which a part is outside `at..end` and which are not where a mutation goes.
    fn strays(&self, at: u64, end: u64) -> [Option<u64>; 2] {
        let draining = self.draining.get();
        let stray = |block: u64| {
            let whole = at <= block * BLOCK_SIZE && (block + 1) * BLOCK_SIZE <= end;
            (!whole && self.presence.has(block) == draining).then_some(block)
        };
        let blocks = blocks(at, end);
        let last = blocks.end - 1;
        let tail = if last == blocks.start {
            None
        } else {
            stray(last)
        };
        [stray(blocks.start), tail]
    }

    /// Runs a mutation of `at..end`, which is not empty, where it goes: up, or below.
    async fn mutate(&self, at: u64, end: u64, op: Op) -> Done {
        let blocks = blocks(at, end);
        let _claim = match self.prepare(at, end).await {
            Ok(claim) => claim,
            Err(fault) => return op.refuse(fault),
        };
        if self.draining.get() {
            let done = self.below.run(op).await;
            // Of a failed one a part may be there.
            self.owes.set(true);
            if done.outcome.is_ok() {
                self.presence.remove(blocks);
            }
            return done;
        }
        let done = self.data.run(op).await;
        if done.outcome.is_ok() {
            self.presence.add(blocks);
        }
        done
    }

    /// Claims the blocks of `at..end` for a mutation in the mode that holds then, with the partial
    /// ones where it goes.
    async fn prepare(&self, at: u64, end: u64) -> Result<Claim<'_>, Fault> {
        let blocks = blocks(at, end);
        loop {
            let draining = self.draining.get();
            // In a mode blocks go one way only: what is no stray now is none later.
            if self.strays(at, end) == [None, None] {
                let claim = self.claims.shared(blocks.clone()).await;
                if self.draining.get() == draining {
                    return Ok(claim);
                }
                continue;
            }
            let claim = if self.keeps(Rule::AloneOnCopies) {
                self.claims.exclusive(blocks.clone()).await
            } else {
                self.claims.shared(blocks.clone()).await
            };
            if self.draining.get() != draining {
                continue;
            }
            for block in self.strays(at, end).into_iter().flatten() {
                if draining {
                    self.copy_down(block..block + 1).await?;
                } else {
                    self.copy_up(block).await?;
                }
            }
            return Ok(claim);
        }
    }

    /// Copies a block up. The caller is alone on it.
    async fn copy_up(&self, block: u64) -> Result<(), Fault> {
        let at = block * BLOCK_SIZE;
        let content = Buffer::zeroed(index(BLOCK_SIZE));
        let done = self.read_run(at, content, false).await;
        done.outcome?;
        let from = done.buffer.ok_or(Fault::Os(libc::EIO))?;
        self.data.run(Op::Write { at, from }).await.outcome?;
        self.presence.add(block..block + 1);
        Ok(())
    }

    /// Copies present blocks below; they are absent then. The caller is alone on them.
    pub(crate) async fn copy_down(&self, blocks: Range<u64>) -> Result<(), Fault> {
        let range = blocks.start * BLOCK_SIZE..blocks.end * BLOCK_SIZE;
        let mut parts = Vec::new();
        let mut note = |part: Range<u64>, place| {
            parts.push((part, place == Place::Zero));
            ControlFlow::Continue(())
        };
        let _ = self.data.translate(range, &mut note).await?;
        for (part, is_zero) in parts {
            let (at, len) = (part.start, part.end - part.start);
            let op = if is_zero {
                let unmap = true;
                Op::WriteZeroes { at, len, unmap }
            } else {
                let into = Buffer::zeroed(index(len));
                let done = self.data.run(Op::Read { at, into }).await;
                done.outcome?;
                let from = done.buffer.ok_or(Fault::Os(libc::EIO))?;
                Op::Write { at, from }
            };
            let outcome = self.below.run(op).await.outcome;
            self.owes.set(true);
            outcome?;
        }
        self.presence.remove(blocks);
        Ok(())
    }

    async fn write(&self, at: u64, from: Buffer) -> Done {
        let end = at + from.len() as u64;
        if at == end {
            return Done {
                outcome: Ok(()),
                buffer: Some(from),
            };
        }
        self.mutate(at, end, Op::Write { at, from }).await
    }

    /// Zeroes, and not what lies below.
    async fn clear(&self, at: u64, len: u64, unmap: bool) -> Result<(), Fault> {
        let end = at + len;
        let mut from = at;
        while from < end {
            let to = end.min(from - from % BLOCK_SIZE + CLEARED);
            let (at, len) = (from, to - from);
            let op = Op::WriteZeroes { at, len, unmap };
            self.mutate(from, to, op).await.outcome?;
            from = to;
        }
        Ok(())
    }

    pub(crate) async fn flush(&self) -> Result<(), Fault> {
        self.flushes.flush(|| self.sync()).await
    }

    async fn sync(&self) -> Result<(), Fault> {
        // Taken first: every bit in them was set after its data had reached the file, or cleared
        // after it had reached what is below.
        let mut pages = self.presence.take();
        let owed = self.owes.replace(false);
        if !self.keeps(Rule::DataBeforeBit) {
            self.presence.store(std::mem::take(&mut pages)).await?;
        }
        self.data.store().sync().await?;
        if !self.keeps(Rule::BelowBeforeClear) {
            self.presence.store(std::mem::take(&mut pages)).await?;
        }
        if owed {
            self.below.run(Op::Flush).await.outcome?;
        }
        self.presence.store(pages).await
    }

    fn check(&self, op: &Op) -> Result<(), Fault> {
        let (at, len) = op.range();
        let inside = at
            .checked_add(len)
            .is_some_and(|end| end <= Device::size(&self.data));
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
pub(crate) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("fits memory, as the operation's own did")
}

impl<S: Store, M: Store, B: Device> Device for Overlay<S, M, B> {
    /// That of what was below when it was opened.
    fn size(&self) -> u64 {
        Device::size(&self.data)
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
            Op::Flush => self.flush().await,
        };
        Done {
            outcome,
            buffer: None,
        }
    }
}

/// What it holds is [`Place::Stored`] in its own file, what has content below is [`Place::Below`];
/// what reads as zeroes and takes no space in either is [`Place::Zero`].
impl<S: Store, M: Store, B: Device + Image> Image for Overlay<S, M, B> {
    fn size(&self) -> u64 {
        Device::size(self)
    }

    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        if range.start > range.end || range.end > Device::size(self) {
            return Err(Fault::Range);
        }
        let mut at = range.start;
        while at < range.end {
            let (run, present) = self.presence.run(blocks(at, range.end));
            let part = at..range.end.min(run.end * BLOCK_SIZE);
            at = part.end;
            let flow = if present {
                self.data.translate(part, visit).await?
            } else {
                let mut below = |part, place| {
                    let zero = place == Place::Zero;
                    visit(part, if zero { Place::Zero } else { Place::Below })
                };
                self.below.translate(part, &mut below).await?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
