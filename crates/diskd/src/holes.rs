//! Where a disk takes no space: what is sent of it need not be read.
//!
//! ```text
//!   marked    |####....########################....####|
//!   content   |####            ####                    |   the rest are holes
//!   a part    |########################|                   so much content, whatever lies between
//! ```
//!
//! Of a part of an initial replication it is looked at twice: before, for how far it reaches, and when its
//! marks have moved, for what is not read. Whatever is written between is marked again; the part is larger by
//! that.

use std::ops::Range;

use block::{Device, Image, Store};
use model::BLOCK_SIZE;

use crate::tracker::Tracker;
use crate::turn::give_way;

/// Most blocks that are looked at in one go.
pub(crate) const LOOK: u64 = 1 << 12;
/// Most pieces of a file that are told apart in one turn of the owner.
const PIECES: usize = 256;
/// Most blocks of a part, if it were all holes: their marks move in one turn of the owner.
const LONGEST: u64 = 1 << 22;

/// The first run that `next` finds from block `from` on. The end of one that is longer than [`LOOK`] is not
/// looked for: a run that spans a disk would be walked through again and again.
pub(crate) fn first(
    from: u64,
    end: u64,
    next: impl Fn(Range<u64>) -> Option<Range<u64>>,
) -> Option<Range<u64>> {
    let near = end.min(from.saturating_add(LOOK));
    next(from.min(near)..near).or_else(|| next(near..end))
}

impl<D: Device + Image, S: Store> Tracker<D, S> {
    /// The parts of `blocks` that take no space, rising, and the first block that was not looked at. Where
    /// nobody can tell there are none: reading finds out.
    pub(crate) async fn holes(&self, blocks: Range<u64>) -> (Vec<Range<u64>>, u64) {
        let range = blocks.start * BLOCK_SIZE..blocks.end * BLOCK_SIZE;
        match self.zeroes(range, PIECES).await {
            Ok((holes, looked)) => {
                let holes = holes.into_iter();
                let holes = holes.map(|hole| hole.start / BLOCK_SIZE..hole.end / BLOCK_SIZE);
                // A piece may end inside a block.
                (holes.collect(), (looked / BLOCK_SIZE).max(blocks.start + 1))
            }
            Err(_) => (Vec::new(), blocks.end),
        }
    }

    /// How many marked blocks take space, counted until there are more than `most`.
    pub async fn content(&self, most: u64) -> u64 {
        let (mut at, mut content) = (0, 0);
        while content <= most {
            let blocks = self.state.blocks();
            let Some(run) = first(at, blocks, |within| self.state.next_marked(within)) else {
                break;
            };
            let end = run.end.min(run.start + LOOK);
            let (holes, looked) = self.holes(run.start..end).await;
            let empty: u64 = holes.iter().map(|hole| hole.end - hole.start).sum();
            content += (looked - run.start).saturating_sub(empty);
            at = looked;
            give_way().await;
        }
        content
    }

    /// How many marked blocks there are from block `from` on until about `limit` of them take space; each
    /// hole between them counts as one.
    pub async fn reach(&self, from: u64, limit: u64) -> u64 {
        let (mut at, mut left, mut reached) = (from, limit.max(1), 0);
        let mut hole_before = None;
        while reached < LONGEST {
            let blocks = self.state.blocks();
            let Some(run) = first(at, blocks, |within| self.state.next_marked(within)) else {
                break;
            };
            let end = run.end.min(run.start + LOOK);
            let (holes, looked) = self.holes(run.start..end).await;
            at = run.start;
            for hole in holes.into_iter().chain(std::iter::once(looked..looked)) {
                let content = hole.start - at;
                if content >= left {
                    return reached + left;
                }
                left -= content;
                // It costs an entry.
                if !hole.is_empty() && hole_before != Some(hole.start) {
                    left = left.saturating_sub(1).max(1);
                }
                reached += hole.end - at;
                (at, hole_before) = (hole.end, Some(hole.end));
            }
            give_way().await;
        }
        reached.max(1)
    }
}
