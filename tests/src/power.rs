//! What a guest does to an overlay before its power is cut, and what must be there afterwards.
//!
//! Everything follows from a seed, so that whoever judges knows what was written:
//!
//! ```text
//!   session s:  below = stamps of step 0, a new overlay
//!     batch 1: steps that touch no sector twice, all at once -> flush -> "flushed 1"
//!     batch 2: ...
//!   power cut, boot, judge: each sector holds what the last step of the flushed batches left
//!                           there, or what the batch after them would leave there
//! ```
//!
//! Every other session drains its overlay from batch [`DRAINED_FROM`] on, while the steps of a batch run.
//!
//! Nothing else is right: a block of zeroes where none were written is a map that was durable before
//! its data.
//!
//! Beside the overlay a raw disk is written whose changes a write-intent log keeps ([`tracked`]): its twin
//! gets all of it after every [`CONFIRMED`] batches; then it is flushed and its regions are disarmed. In
//! every region that is not armed after a power cut, it must hold what its twin had last, or gets next.

use std::collections::BTreeMap;

use block::{Buffer, Op};
use testkit::Rng;

pub mod twin;

/// Size of the disk in sectors of 512 bytes.
pub const SECTORS: u64 = 4096;
const SECTOR: usize = 512;
/// Longest step in sectors.
const LONGEST: u64 = 40;
const STEPS: usize = 12;
/// The first batch in which the overlay is drained, if it is.
pub const DRAINED_FROM: u64 = 4;

/// Whether the overlay of `session` is drained.
#[must_use]
pub fn drains(session: u64) -> bool {
    session % 2 == 1
}

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Tells it from all others of a session; 0 is what lies below.
    pub number: u64,
    /// First sector.
    pub at: u64,
    /// Sectors.
    pub count: u64,
    kind: u64,
}

impl Step {
    /// The step that wrote everything below.
    #[must_use]
    pub fn below() -> Self {
        Self {
            number: 0,
            at: 0,
            count: SECTORS,
            kind: 9,
        }
    }

    /// What it leaves in `sector`.
    #[must_use]
    pub fn leaves(&self, session: u64, sector: u64) -> Vec<u8> {
        if self.kind < 3 {
            return vec![0; SECTOR];
        }
        let seed = blake3::hash(
            &[session, self.number, sector]
                .map(u64::to_le_bytes)
                .concat(),
        );
        let mut content = Vec::with_capacity(SECTOR);
        for word in [session, self.number, sector] {
            content.extend(word.to_le_bytes());
        }
        content.extend(seed.as_bytes().iter().cycle().take(SECTOR - 24));
        content
    }

    /// As an operation on the disk.
    #[must_use]
    pub fn op(&self, session: u64) -> Op {
        let (at, len) = (self.at * SECTOR as u64, self.count * SECTOR as u64);
        match self.kind {
            0 => Op::Discard { at, len },
            1 | 2 => Op::WriteZeroes {
                at,
                len,
                unmap: self.kind == 1,
            },
            _ => {
                let sectors = self.at..self.at + self.count;
                let content: Vec<u8> = sectors
                    .flat_map(|sector| self.leaves(session, sector))
                    .collect();
                Op::Write {
                    at,
                    from: Buffer::from_slice(&content),
                }
            }
        }
    }
}

/// The steps of batch `number`, which counts from 1: no sector is touched by two of them, blocks are.
#[must_use]
pub fn batch(session: u64, number: u64) -> Vec<Step> {
    let mut rng = Rng::new(session << 32 | number);
    let mut steps: Vec<Step> = Vec::new();
    while steps.len() < STEPS {
        let count = 1 + rng.below(LONGEST);
        let step = Step {
            number: number * 100 + steps.len() as u64,
            at: rng.below(SECTORS - count),
            count,
            kind: rng.below(10),
        };
        let apart =
            |other: &Step| other.at + other.count <= step.at || step.at + step.count <= other.at;
        if steps.iter().all(apart) {
            steps.push(step);
        }
    }
    steps
}

/// Number of regions of the tracked disk.
pub const REGIONS: u64 = 24;
/// After how many batches its twin has all of it.
pub const CONFIRMED: u64 = 3;
/// Blocks of the tracked disk that are written in a batch.
const TRACKED: usize = 6;
const BLOCKS: u64 = 256;

/// Blocks of the tracked disk that batch `number` writes, and what it leaves in each.
#[must_use]
pub fn tracked(session: u64, number: u64) -> BTreeMap<u64, Vec<u8>> {
    let mut rng = Rng::new(!session << 32 | number);
    let mut blocks = BTreeMap::new();
    while blocks.len() < TRACKED {
        let block = rng.below(REGIONS * BLOCKS);
        let content = [session, number, block].map(u64::to_le_bytes).concat();
        let content = content.iter().copied().cycle().take(8 * SECTOR).collect();
        blocks.insert(block, content);
    }
    blocks
}

/// Whether `content`, that of region `region` of the tracked disk, which is not armed, is what may be
/// there when `flushed` batches were flushed.
#[must_use]
pub fn is_confirmed(session: u64, flushed: u64, region: u64, content: &[u8]) -> bool {
    let last = flushed / CONFIRMED * CONFIRMED;
    [last, last + CONFIRMED].into_iter().any(|batches| {
        let mut expected = vec![0; content.len()];
        for (block, bytes) in (1..=batches).flat_map(|number| tracked(session, number)) {
            if block / BLOCKS == region {
                let at = usize::try_from(block % BLOCKS).expect("small") * bytes.len();
                expected[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        expected == content
    })
}

/// Whether `content`, the whole disk, is what may be there when `flushed` batches were flushed.
///
/// # Errors
/// The first sector that is wrong.
pub fn judge(session: u64, flushed: u64, content: &[u8]) -> Result<(), String> {
    let sectors = usize::try_from(SECTORS).expect("a small disk");
    let mut last = vec![Step::below(); sectors];
    let mut next = vec![None; sectors];
    for number in 1..=flushed + 1 {
        for step in batch(session, number) {
            for sector in step.at..step.at + step.count {
                let sector = usize::try_from(sector).expect("a small disk");
                if number <= flushed {
                    last[sector] = step;
                } else {
                    next[sector] = Some(step);
                }
            }
        }
    }
    for ((sector, found), (last, next)) in (0..)
        .zip(content.chunks(SECTOR))
        .zip(last.iter().zip(&next))
    {
        let right = |step: &Step| step.leaves(session, sector) == found;
        if !right(last) && !next.as_ref().is_some_and(right) {
            return Err(format!(
                "sector {sector} holds {:?}..., not what step {} left there nor {:?}",
                &found[..24],
                last.number,
                next.map(|step| step.number),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(session: u64, flushed: u64) -> Vec<u8> {
        let mut content = Step::below();
        content.count = SECTORS;
        let mut disk: Vec<Vec<u8>> = (0..SECTORS)
            .map(|sector| content.leaves(session, sector))
            .collect();
        for step in (1..=flushed).flat_map(|number| batch(session, number)) {
            for sector in step.at..step.at + step.count {
                disk[usize::try_from(sector).expect("small")] = step.leaves(session, sector);
            }
        }
        disk.concat()
    }

    #[test]
    fn the_judge_takes_what_was_flushed_and_the_next_batch_and_nothing_else() {
        let content = after(3, 5);
        assert_eq!(judge(3, 5, &content), Ok(()));
        assert_eq!(judge(3, 4, &content), Ok(()));
        assert!(judge(3, 6, &content).is_err(), "a flushed batch is missing");
        assert!(judge(3, 3, &content).is_err(), "two batches ahead");
        let mut lost = content;
        lost[..4096].fill(0);
        assert!(judge(3, 5, &lost).is_err(), "a block of zeroes");
    }

    #[test]
    fn a_region_that_is_not_armed_holds_what_was_confirmed_or_is_about_to_be() {
        let after = |batches: u64| {
            let mut content = vec![0; 1 << 20];
            for (block, bytes) in (1..=batches).flat_map(|number| tracked(9, number)) {
                if block / BLOCKS == 4 {
                    let at = usize::try_from(block % BLOCKS).expect("small") * 4096;
                    content[at..at + 4096].copy_from_slice(&bytes);
                }
            }
            content
        };
        assert!(is_confirmed(9, 40, 4, &after(39)));
        assert!(is_confirmed(9, 40, 4, &after(42)));
        assert!(!is_confirmed(9, 40, 4, &after(9)), "writes are lost");
        let mut torn = after(39);
        torn[5000] ^= 1;
        assert!(!is_confirmed(9, 40, 4, &torn));
    }
}
