//! Reads suspect regions, so that they can be compared with the replica.
//!
//! The guest goes on meanwhile: what it writes is marked as always, so a region that was read in the
//! middle of a write is compared wrongly only where that does no harm.

use std::ops::{ControlFlow, Range};

use block::{Buffer, Device, Fault, Image, Op, Place, Store};
use model::{BLOCK_SIZE, REGION_SIZE};

use crate::tracker::Tracker;

/// What a suspect region holds.
#[derive(Debug)]
pub struct Content {
    /// Which one.
    pub region: u64,
    /// All of it, in order.
    pub pieces: Vec<Piece>,
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
        let Some(found) = self.state.next_suspect(from.min(regions)..regions) else {
            return Ok(None);
        };
        let region = found.start;
        let size = self.state.blocks() * BLOCK_SIZE;
        let range = region * REGION_SIZE..size.min((region + 1) * REGION_SIZE);
        let mut pieces = Vec::new();
        let mut at = range.start;
        for zeroes in self.zeroes(range.clone()).await? {
            self.read_piece(at..zeroes.start, &mut pieces).await?;
            pieces.push(Piece::Zeroes((zeroes.end - zeroes.start) / BLOCK_SIZE));
            at = zeroes.end;
        }
        self.read_piece(at..range.end, &mut pieces).await?;
        Ok(Some(Content { region, pieces }))
    }

    /// The parts of `range` that read as zeroes without being read, whole blocks.
    async fn zeroes(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, Fault> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut visit = |piece: Range<u64>, place: Place| {
            if place == Place::Zero {
                let start = piece.start.next_multiple_of(BLOCK_SIZE);
                let end = piece.end / BLOCK_SIZE * BLOCK_SIZE;
                match found.last_mut() {
                    Some(last) if last.end == start => last.end = end.max(start),
                    _ if start < end => found.push(start..end),
                    _ => {}
                }
            }
            ControlFlow::Continue(())
        };
        let _ = self.below.translate(range, &mut visit).await?;
        Ok(found)
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
