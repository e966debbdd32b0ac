//! Reads regions, so that they can be compared with the replica: suspect ones, or any to verify what
//! the replica has.
//!
//! The guest goes on meanwhile: what it writes is marked as always, so a region that was read in the
//! middle of a write is compared wrongly only where that does no harm.

use std::ops::{ControlFlow, Range};

use block::{Buffer, Device, Fault, Image, Op, Place, Store};
use model::{BLOCK_SIZE, REGION_SIZE};

use crate::ledger::blocks_of;
use crate::tracker::Tracker;

/// What a suspect region holds.
#[derive(Debug)]
pub struct Content {
    /// Which one.
    pub region: u64,
    /// All of it, in order.
    pub pieces: Vec<Piece>,
}

/// What a region holds while the guest writes.
#[derive(Debug)]
pub struct Changing {
    /// What was read.
    pub content: Content,
    /// Blocks of the disk, in rising order.
    pub changed: Vec<Range<u64>>,
}

/// A part of it.
#[derive(Debug)]
pub enum Piece {
    /// So many blocks of zeroes, of which nothing was read.
    Zeroes(u64),
    /// Whole blocks.
    Read(Buffer),
}

impl<D: Device + Image, S: Store> Tracker<D, S> {
    /// The first suspect region from `from` on, if there is one.
    ///
    /// # Errors
    /// What reading says.
    pub async fn read_suspect(&self, from: u64) -> Result<Option<Content>, Fault> {
        let regions = self.state.regions();
        match self.state.next_suspect(from.min(regions)..regions) {
            Some(found) => self.read_region(found.start).await.map(Some),
            None => Ok(None),
        }
    }

    /// Region `region`, if the disk has it, and the blocks of the disk that may have changed in it since
    /// the last point that was confirmed. Not while a segment is confirmed.
    ///
    /// # Errors
    /// What reading says.
    pub async fn read_changing(&self, region: u64) -> Result<Option<Changing>, Fault> {
        if region >= self.state.regions() {
            return Ok(None);
        }
        let content = self.read_region(region).await?;
        // Not before the read: whatever was issued until its end is marked by now.
        let changed = self.changed(region);
        Ok(Some(Changing { content, changed }))
    }

    async fn read_region(&self, region: u64) -> Result<Content, Fault> {
        let size = self.state.blocks() * BLOCK_SIZE;
        let range = region * REGION_SIZE..size.min((region + 1) * REGION_SIZE);
        let mut pieces = Vec::new();
        let mut at = range.start;
        for zeroes in self.zeroes(range.clone(), usize::MAX).await?.0 {
            self.read_piece(at..zeroes.start, &mut pieces).await?;
            pieces.push(Piece::Zeroes((zeroes.end - zeroes.start) / BLOCK_SIZE));
            at = zeroes.end;
        }
        self.read_piece(at..range.end, &mut pieces).await?;
        Ok(Content { region, pieces })
    }

    /// The parts of `range` that read as zeroes without being read, whole blocks; and where the looking
    /// ended, after so many pieces or at the end of the range.
    pub(crate) async fn zeroes(
        &self,
        range: Range<u64>,
        pieces: usize,
    ) -> Result<(Vec<Range<u64>>, u64), Fault> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let (mut end, mut left) = (range.start, pieces);
        let mut visit = |piece: Range<u64>, place: Place| {
            end = piece.end;
            if place == Place::Zero {
                let start = piece.start.next_multiple_of(BLOCK_SIZE);
                let end = piece.end / BLOCK_SIZE * BLOCK_SIZE;
                match found.last_mut() {
                    Some(last) if last.end == start => last.end = end.max(start),
                    _ if start < end => found.push(start..end),
                    _ => {}
                }
            }
            left -= 1;
            if left == 0 {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let _ = self.below.translate(range, &mut visit).await?;
        Ok((found, end))
    }

    async fn read_piece(&self, range: Range<u64>, pieces: &mut Vec<Piece>) -> Result<(), Fault> {
        let len = range.end - range.start;
        if len == 0 {
            return Ok(());
        }
        let op = Op::Read {
            at: range.start,
            into: Buffer::zeroed(usize::try_from(len).expect("1 MiB at most")),
        };
        let done = self.below.run(op).await;
        done.outcome?;
        let content = done.buffer.ok_or(Fault::Os(libc::EIO))?;
        pieces.push(Piece::Read(content));
        Ok(())
    }
}

impl<D: Device, S: Store> Tracker<D, S> {
    /// The blocks of a region that may differ from what was confirmed last: all, if nobody knows which.
    pub(crate) fn changed(&self, region: u64) -> Vec<Range<u64>> {
        let mut within = blocks_of(&(region..region + 1), self.state.blocks());
        let state = &self.state;
        let is_unknown = state.relationship().is_none()
            || state.next_suspect(region..region + 1).is_some()
            || state.next_unconfirmed(region..region + 1).is_some();
        if is_unknown {
            return vec![within];
        }
        let mut changed: Vec<Range<u64>> = Vec::new();
        loop {
            let marked = state.next_marked(within.clone());
            let sealed = state.next_sealed(within.clone());
            let Some(next) = [marked, sealed]
                .into_iter()
                .flatten()
                .min_by_key(|run| run.start)
            else {
                return changed;
            };
            within.start = next.end;
            changed.push(next);
        }
    }
}
