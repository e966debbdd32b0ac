//! Telling apart what two hosts hold, without sending it.
//!
//! ```text
//!   region (1 MiB)   |b0|b1|b2| ... |b255|        one hash of 16 bytes per block of 4 KiB
//!                      \  |  /                    in JSON: base64
//!                     digest (32 bytes)           of all hashes of the region
//! ```
//!
//! Equal digests: the regions are equal, and nothing more is said. If not, the hashes of the blocks
//! tell which of them differ ([`BlockHashes::differ`]). 16 bytes of BLAKE3: chance makes two
//! blocks with one hash among some 2^64. A guest that finds two on purpose fools its own twin
//! only.
//!
//! A block that cannot be read, or does not verify, has a hash of its own, that no content has: it
//! differs from whatever it is compared with, and is sent again.
//!
//! A block of zeroes has a hash that is known beforehand, so that ranges without content cost no
//! hashing, and those of which an image says so no reading either.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use block::Place;
use model::{BLOCK_SIZE, Bytes, REGION_SIZE};
use serde::{Deserialize, Serialize};

use crate::segment::is_zero;
use crate::{JournalError, PointImage};

/// Bytes of a block's hash.
const HASH: usize = 16;
/// [`BLOCK_SIZE`] in memory.
const BLOCK: usize = 4096;
/// Blocks of a whole region.
pub const REGION_BLOCKS: u64 = REGION_SIZE / BLOCK_SIZE;

/// First bytes of the BLAKE3 hash of a block.
type Hash = [u8; HASH];

/// The hashes of consecutive blocks, at most a region's. In JSON: base64.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockHashes(Vec<Hash>);

/// Consecutive blocks of a region, counted from its first one. In JSON: `[first, count]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Blocks {
    /// The first one.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// Text that should have been [`BlockHashes`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the hashes of a region's blocks are up to {REGION_BLOCKS} times {HASH} bytes in base64")]
pub struct ParseHashesError;

impl BlockHashes {
    /// Of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Of `content`, whole blocks.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let mut hashes = Self::new();
        hashes.push(content);
        hashes
    }

    /// Adds the blocks of `content`, whole ones.
    pub fn push(&mut self, content: &[u8]) {
        debug_assert_eq!(content.len() % BLOCK, 0, "whole blocks");
        self.0.extend(content.chunks(BLOCK).map(hash));
    }

    /// Adds `blocks` blocks of zeroes.
    pub fn push_zeroes(&mut self, blocks: u64) {
        let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
        self.0.resize(self.0.len().saturating_add(blocks), zeroes());
    }

    /// Adds `blocks` blocks of which nobody can tell what they held.
    pub fn push_unreadable(&mut self, blocks: u64) {
        let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
        let len = self.0.len().saturating_add(blocks);
        self.0.resize(len, first_bytes(b"unreadable"));
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.0.len() as u64
    }

    /// The hash of all of them: BLAKE3 over theirs.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(self.0.as_flattened()).as_bytes()
    }

    /// The blocks of which the hashes are not the same here and in `other`. One that only one of
    /// them has is among them.
    #[must_use]
    pub fn differ(&self, other: &Self) -> Vec<Blocks> {
        let mut runs: Vec<Blocks> = Vec::new();
        for (block, at) in (0..).zip(0..self.0.len().max(other.0.len())) {
            if self.0.get(at) == other.0.get(at) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.first + run.count == block => run.count += 1,
                _ => runs.push(Blocks {
                    first: block,
                    count: 1,
                }),
            }
        }
        runs
    }
}

/// What of `runs` is not in `others`. Both are rising.
#[must_use]
pub fn without(runs: &[Blocks], others: &[Blocks]) -> Vec<Blocks> {
    let mut left = Vec::new();
    for run in runs {
        let (mut first, end) = (run.first, run.first.saturating_add(run.count));
        for other in others {
            let from = other.first.clamp(first, end);
            if first < from {
                let count = from - first;
                left.push(Blocks { first, count });
            }
            first = first.max(other.first.saturating_add(other.count).min(end));
        }
        if first < end {
            let count = end - first;
            left.push(Blocks { first, count });
        }
    }
    left
}

fn hash(block: &[u8]) -> Hash {
    // Most of a disk that was never written: telling that is faster than hashing it.
    if block.len() == BLOCK && is_zero(block) {
        return zeroes();
    }
    first_bytes(block)
}

fn first_bytes(block: &[u8]) -> Hash {
    let whole = blake3::hash(block);
    let mut hash = [0; HASH];
    hash.copy_from_slice(&whole.as_bytes()[..HASH]);
    hash
}

/// The hash of a block of zeroes.
fn zeroes() -> Hash {
    static ZEROES: OnceLock<Hash> = OnceLock::new();
    *ZEROES.get_or_init(|| first_bytes(&[0; BLOCK]))
}

impl fmt::Debug for BlockHashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockHashes({} blocks)", self.0.len())
    }
}

impl From<BlockHashes> for String {
    fn from(hashes: BlockHashes) -> Self {
        STANDARD.encode(hashes.0.as_flattened())
    }
}

impl TryFrom<String> for BlockHashes {
    type Error = ParseHashesError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let most = usize::try_from(REGION_BLOCKS).unwrap_or(usize::MAX) * HASH;
        if text.len() > most.div_ceil(3) * 4 {
            return Err(ParseHashesError);
        }
        let Ok(bytes) = STANDARD.decode(text) else {
            return Err(ParseHashesError);
        };
        let whole = bytes.chunks_exact(HASH);
        if !whole.remainder().is_empty() || bytes.len() > most {
            return Err(ParseHashesError);
        }
        let hash = |bytes: &[u8]| {
            let mut hash = [0; HASH];
            hash.copy_from_slice(bytes);
            hash
        };
        Ok(Self(whole.map(hash).collect()))
    }
}

impl From<(u64, u64)> for Blocks {
    fn from((first, count): (u64, u64)) -> Self {
        Self { first, count }
    }
}

impl From<Blocks> for (u64, u64) {
    fn from(blocks: Blocks) -> Self {
        (blocks.first, blocks.count)
    }
}

/// The bytes of `region` on a disk of `size`; none past its end.
#[must_use]
pub fn region(number: u64, size: Bytes) -> Option<std::ops::Range<u64>> {
    let start = number.checked_mul(REGION_SIZE)?;
    let end = start.checked_add(REGION_SIZE)?.min(size.0);
    (start < end).then_some(start..end)
}

impl PointImage {
    /// The hashes of region `number` of this disk as it would be at `size`, which is not less than
    /// the disk's: a disk grows with zeroes. Content that is damaged is unlike any other. Holds 1 MiB at most; from any thread; blocks.
    ///
    /// # Errors
    /// [`JournalError::Range`] for a region past the end; a failed read of what may be whole.
    pub fn region_hashes(&self, number: u64, size: Bytes) -> Result<BlockHashes, JournalError> {
        let range = region(number, size).ok_or(JournalError::Range {
            at: number.saturating_mul(REGION_SIZE),
            len: REGION_SIZE,
            size,
        })?;
        let mut hashes = BlockHashes::new();
        let mut outcome = Ok(());
        let mut content = Vec::new();
        let inside = range.start..range.end.min(block::Image::size(self)).max(range.start);
        let _ = self.places(inside, &mut |piece, place| {
            if let Place::Zero | Place::Below = place {
                hashes.push_zeroes((piece.end - piece.start) / BLOCK_SIZE);
                return ControlFlow::Continue(());
            }
            let len = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX);
            content.resize(len, 0);
            match self.read_at(piece.start, &mut content) {
                Ok(()) => hashes.push(&content),
                Err(error) if error.is_damage() => {
                    tracing::error!(?piece, ?error, "a point is damaged");
                    hashes.push_unreadable((piece.end - piece.start) / BLOCK_SIZE);
                }
                Err(error) => {
                    outcome = Err(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        outcome?;
        let blocks = (range.end - range.start) / BLOCK_SIZE;
        hashes.push_zeroes(blocks.saturating_sub(hashes.blocks()));
        Ok(hashes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fill: u8) -> Vec<u8> {
        vec![fill; BLOCK]
    }

    #[test]
    fn only_blocks_that_differ_are_told_and_those_that_one_side_lacks() {
        let ours: Vec<u8> = [1, 2, 3, 4, 0, 0].into_iter().flat_map(block).collect();
        let theirs: Vec<u8> = [1, 9, 9, 4, 0].into_iter().flat_map(block).collect();
        let (ours, theirs) = (BlockHashes::of(&ours), BlockHashes::of(&theirs));
        let runs = |a: &BlockHashes, b: &BlockHashes| -> Vec<(u64, u64)> {
            a.differ(b).into_iter().map(Into::into).collect()
        };
        assert_eq!(runs(&ours, &theirs), [(1, 2), (5, 1)]);
        assert_eq!(runs(&theirs, &ours), [(1, 2), (5, 1)]);
        assert_eq!(runs(&ours, &ours), []);
        assert_ne!(ours.digest(), theirs.digest());
    }

    #[test]
    fn blocks_that_are_left_out_are_not_among_what_differs() {
        let set = |runs: &[Blocks]| -> Vec<u64> {
            let blocks = runs.iter().flat_map(|run| run.first..run.first + run.count);
            blocks.collect()
        };
        let of = |bits: u32| -> Vec<Blocks> {
            // Runs of one to three blocks, some of which touch.
            let runs = (0..8_u64).filter(|n| bits >> n & 1 == 1);
            let run = |n: u64| Blocks {
                first: n * 4,
                count: n % 4 + 1,
            };
            runs.map(run).collect()
        };
        for bits in 0..256 {
            for shift in 0..6 {
                let (runs, mut others) = (of(bits), of(0b1011_0110));
                others.iter_mut().for_each(|run| run.first += shift);
                let (all, out) = (set(&runs), set(&others));
                let kept = all.into_iter().filter(|block| !out.contains(block));
                assert_eq!(set(&without(&runs, &others)), kept.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_unlike_anything() {
        let mut lost = BlockHashes::of(&block(7));
        lost.push_unreadable(2);
        for fill in [0, 7] {
            let content: Vec<u8> = [7, fill, fill].into_iter().flat_map(block).collect();
            let differ = BlockHashes::of(&content).differ(&lost);
            assert_eq!(differ, [Blocks { first: 1, count: 2 }]);
        }
    }

    #[test]
    fn a_block_of_zeroes_has_the_hash_that_was_known_beforehand() {
        let mut known = BlockHashes::new();
        known.push_zeroes(3);
        let found = BlockHashes::of(&[0; 3 * BLOCK]);
        assert_eq!(known, found);
        assert_eq!(known.digest(), found.digest());
        assert_eq!(zeroes(), first_bytes(&block(0)));
        let mut almost = block(0);
        almost[BLOCK - 1] = 1;
        assert_ne!(BlockHashes::of(&almost).0, [zeroes()]);
    }

    #[test]
    fn hashes_have_one_text_form_and_what_is_not_it_is_refused() {
        let whole: Vec<u8> = (0..=255).flat_map(block).collect();
        let hashes = BlockHashes::of(&whole);
        let text = serde_json::to_string(&hashes).expect("has one");
        assert_eq!(text.len(), 2 + 5464, "4 KiB in base64, and quotes");
        assert_eq!(
            serde_json::from_str::<BlockHashes>(&text).expect("read"),
            hashes
        );
        let one_more = STANDARD.encode([7; 257 * HASH]);
        let odd = STANDARD.encode([7; HASH + 1]);
        for bad in [one_more, odd, "*".to_owned(), "A".repeat(1 << 20)] {
            assert_eq!(BlockHashes::try_from(bad), Err(ParseHashesError));
        }
        let run = Blocks { first: 3, count: 2 };
        let text = serde_json::to_string(&run).expect("has one");
        assert_eq!(text, "[3,2]");
        assert_eq!(serde_json::from_str::<Blocks>(&text).expect("read"), run);
    }

    #[test]
    fn the_last_region_is_as_long_as_the_disk_and_none_comes_after_it() {
        let size = Bytes(REGION_SIZE + 8192);
        assert_eq!(region(0, size), Some(0..REGION_SIZE));
        assert_eq!(region(1, size), Some(REGION_SIZE..REGION_SIZE + 8192));
        for past in [2, u64::MAX / REGION_SIZE, u64::MAX] {
            assert_eq!(region(past, size), None);
        }
        assert_eq!(region(0, Bytes(0)), None);
    }
}
