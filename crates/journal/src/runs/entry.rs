//! What a run file says of a piece of a disk.

use std::ops::Range;

use crate::segment::{MAX_FRAME_BLOCKS, MAX_FRAMES};
use crate::{Run, Source};

/// Bytes of an entry in a file.
pub(super) const ENTRY: usize = 16;
/// Levels that there are: a piece of the highest has 2^32 blocks.
pub(super) const LEVELS: u32 = 9;
/// A piece of a level has 2^BITS pieces of the one below.
const BITS: u32 = 4;
/// The highest level of content: a frame holds no more.
const MAX_CONTENT_LEVEL: u32 = 1;
const _: () = assert!(1 << (BITS * MAX_CONTENT_LEVEL) == MAX_FRAME_BLOCKS);
/// Bits of a piece's number.
const NUMBER: u32 = 48;
/// Blocks of a disk that can be named.
pub(super) const MAX_BLOCKS: u64 = 1 << NUMBER;
/// How an entry says that its piece reads as zeroes.
const ZERO: u32 = 1 << 31;
const SKIP_BITS: u32 = 4;
const _: () = assert!(MAX_FRAMES << SKIP_BITS <= ZERO);

/// A piece of a disk. Ordered by level, disk (its position in the file's list) and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

impl Key {
    /// The piece of `level`, below [`LEVELS`], in which `block` lies.
    pub(crate) fn of(level: u32, disk: u8, block: u64) -> Self {
        let number = (block >> (level * BITS)) & ((1 << NUMBER) - 1);
        Self(u64::from(level) << 56 | u64::from(disk) << NUMBER | number)
    }

    pub(crate) fn level(self) -> u32 {
        u32::from(self.0.to_be_bytes()[0])
    }

    pub(crate) fn disk(self) -> u8 {
        self.0.to_be_bytes()[1]
    }

    /// Whether both are pieces of one level of one disk.
    pub(crate) fn is_beside(self, other: Self) -> bool {
        self.0 >> NUMBER == other.0 >> NUMBER
    }

    /// The first block.
    pub(crate) fn start(self) -> u64 {
        (self.0 & ((1 << NUMBER) - 1)) << (self.level() * BITS)
    }

    /// Its blocks.
    pub(crate) fn blocks(self) -> Range<u64> {
        let start = self.start();
        start..start + (1 << (self.level() * BITS))
    }

    pub(super) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub(super) fn raw(self) -> u64 {
        self.0
    }

    /// Whether there can be such a piece.
    fn is_sound(self) -> bool {
        self.level() < LEVELS && self.0 & ((1 << NUMBER) - 1) < 1 << (NUMBER - self.level() * BITS)
    }
}

/// Where an entry stands: its piece, and which of the file's segments, the oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) key: Key,
    pub(crate) segment: u32,
}

/// A piece of a disk in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) at: At,
    /// Of the piece's first block.
    pub(crate) source: Source,
}

impl Entry {
    pub(super) fn to_bytes(self) -> [u8; ENTRY] {
        let source = match self.source {
            Source::Zero => ZERO,
            Source::Frame { frame, skip } => frame << SKIP_BITS | u32::from(skip),
        };
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.at.key.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.at.segment.to_le_bytes());
        bytes[12..].copy_from_slice(&source.to_le_bytes());
        bytes
    }

    /// From bytes that were checked with [`Entry::read`] before, or are about to be.
    pub(super) fn read_unchecked(bytes: &[u8; ENTRY]) -> Self {
        let source = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        let at = At::read(bytes);
        let source = if source & ZERO == 0 {
            Source::Frame {
                frame: source >> SKIP_BITS,
                skip: source.to_le_bytes()[0] & 0x0f,
            }
        } else {
            Source::Zero
        };
        Self { at, source }
    }

    /// An entry that can be.
    pub(super) fn read(bytes: &[u8; ENTRY]) -> Result<Self, &'static str> {
        let entry = Self::read_unchecked(bytes);
        if entry.to_bytes() != *bytes {
            return Err("has bits set that mean nothing");
        }
        entry.check().map(|()| entry)
    }

    /// What contradicts itself.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let key = self.at.key;
        if !key.is_sound() {
            return Err("stands for no piece of a disk");
        }
        match self.source {
            Source::Zero => Ok(()),
            Source::Frame { frame, .. } if frame >= MAX_FRAMES => {
                Err("names a frame that cannot be")
            }
            Source::Frame { skip, .. } => {
                let blocks = key.blocks();
                if key.level() > MAX_CONTENT_LEVEL
                    || u64::from(skip) + (blocks.end - blocks.start) > MAX_FRAME_BLOCKS.into()
                {
                    return Err("is longer than a frame");
                }
                Ok(())
            }
        }
    }
}

impl At {
    /// From the first 12 bytes.
    pub(super) fn read(bytes: &[u8; ENTRY]) -> Self {
        let mut key = [0; 8];
        key.copy_from_slice(&bytes[..8]);
        Self {
            key: Key(u64::from_le_bytes(key)),
            segment: u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
        }
    }
}

/// Cuts a run of a segment into pieces: their keys on disk `disk`, and where the content of each
/// begins.
///
/// The run lies on a disk of at most 2^48 blocks.
pub(crate) fn split(run: &Run, disk: u8) -> impl Iterator<Item = (Key, Source)> + use<> {
    let (mut block, end) = (run.block, run.block + u64::from(run.count));
    let mut source = run.source;
    std::iter::from_fn(move || {
        if block >= end {
            return None;
        }
        let highest = match source {
            Source::Zero => LEVELS - 1,
            Source::Frame { .. } => MAX_CONTENT_LEVEL,
        };
        // As large as where it begins and what is left of it allow.
        let aligned = block.trailing_zeros() / BITS;
        let left = (end - block).ilog2() / BITS;
        let key = Key::of(aligned.min(left).min(highest), disk, block);
        let piece = (key, source);
        let blocks = key.blocks();
        block = blocks.end;
        if let Source::Frame { skip, .. } = &mut source {
            // Past the last piece it is not looked at.
            *skip = skip.wrapping_add(u8::try_from(blocks.end - blocks.start).unwrap_or(0));
        }
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn runs() -> impl Strategy<Value = Run> {
        let zero = (0..1_u64 << 40, 1..=u32::MAX).prop_map(|(block, count)| (block, count, None));
        let near = (0..600_u64, 1..=600_u32).prop_map(|(block, count)| (block, count, None));
        let content = (0..1_u64 << 40, 1..=16_u32, 0..16_u8, 0..MAX_FRAMES).prop_map(
            |(block, count, skip, frame)| {
                let count = count.min(16 - u32::from(skip));
                (block, count, Some((frame, skip)))
            },
        );
        prop_oneof![zero, near, content].prop_map(|(block, count, frame)| Run {
            disk: 0,
            block,
            count,
            source: frame.map_or(Source::Zero, |(frame, skip)| Source::Frame { frame, skip }),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: crate::cases(500), ..ProptestConfig::default() })]

        #[test]
        fn the_pieces_of_a_run_are_the_run_and_read_back(run in runs(), disk in any::<u8>()) {
            let mut block = run.block;
            let mut count = 0;
            for (key, source) in split(&run, disk) {
                let blocks = key.blocks();
                prop_assert_eq!(blocks.start, block);
                prop_assert_eq!(key, Key::of(key.level(), disk, blocks.end - 1));
                if let (Source::Frame { frame, skip }, Source::Frame { frame: of, skip: first }) =
                    (source, run.source)
                {
                    prop_assert_eq!(frame, of);
                    prop_assert_eq!(u64::from(skip), u64::from(first) + block - run.block);
                }
                let at = At { key, segment: 7 };
                let entry = Entry { at, source };
                prop_assert_eq!(Entry::read(&entry.to_bytes()), Ok(entry));
                block = blocks.end;
                count += 1;
            }
            prop_assert_eq!(block, run.block + u64::from(run.count));
            prop_assert!(count <= 15 * 2 * LEVELS);
        }

        #[test]
        fn bytes_that_are_no_entry_are_refused_and_others_read_as_written(bytes in any::<[u8; 16]>()) {
            if let Ok(entry) = Entry::read(&bytes) {
                prop_assert_eq!(entry.to_bytes(), bytes);
                let blocks = entry.at.key.blocks();
                prop_assert!(blocks.start < blocks.end && blocks.end <= 1 << 48);
            }
        }
    }
}
