//! Where everything lies in the state file.

use model::{BLOCK_SIZE, REGION_SIZE};

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"PLXSTAT3");

pub(super) const PAGE: u64 = 4096;
pub(super) const WORD_BITS: u64 = 64;
pub(super) const PAGE_WORDS: u64 = PAGE / 8;
pub(super) const PAGE_BITS: u64 = PAGE * 8;

/// Blocks of a region.
pub const REGION_BLOCKS: u64 = REGION_SIZE / BLOCK_SIZE;

/// Largest disk in bytes.
pub(super) const MAX_DISK: u64 = 64 << 40;
/// Length of the file.
pub(super) const FILE: u64 = 6 << 30;

/// Words of the header.
pub(super) mod word {
    pub(in super::super) const MAGIC: usize = 0;
    pub(in super::super) const PHASE: usize = 1;
    pub(in super::super) const SIZE: usize = 2;
    pub(in super::super) const TERM: usize = 3;
    /// One of [`super::flush`].
    pub(in super::super) const FLUSH: usize = 4;
    pub(in super::super) const TRACKED: usize = 5;
    pub(in super::super) const BOOT: usize = 8;
    pub(in super::super) const DISK: usize = 10;
    pub(in super::super) const RELATIONSHIP: usize = 12;
}

/// Bits of the phase.
pub(super) mod phase {
    /// Which map is current.
    pub(in super::super) const CURRENT: u64 = 1;
    /// The other one is sealed.
    pub(in super::super) const SEALED: u64 = 2;
}

/// What became of the flushes of the disk.
pub(super) mod flush {
    pub(in super::super) const NONE_FAILED: u64 = 0;
    /// It takes no more writes.
    pub(in super::super) const FAILED: u64 = 1;
    /// One failed, and the disk was closed in order since: the next opening is the reopening.
    pub(in super::super) const FAILED_AND_CLOSED: u64 = 2;
}

/// A map in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Map {
    Suspect,
    Unconfirmed,
    A,
    B,
}

impl Map {
    pub(super) const ALL: [Self; 4] = [Self::Suspect, Self::Unconfirmed, Self::A, Self::B];

    /// Its first byte.
    pub(super) fn offset(self) -> u64 {
        match self {
            Self::Suspect => 8 << 20,
            Self::Unconfirmed => 16 << 20,
            Self::A => 2 << 30,
            Self::B => 4 << 30,
        }
    }

    /// Blocks of a bit.
    fn unit(self) -> u64 {
        match self {
            Self::Suspect | Self::Unconfirmed => REGION_BLOCKS,
            Self::A | Self::B => 1,
        }
    }

    /// Bits for a disk of so many blocks.
    pub(super) fn bits(self, blocks: u64) -> u64 {
        blocks.div_ceil(self.unit())
    }

    /// Bytes for a disk of so many blocks: whole pages.
    pub(super) fn bytes(self, blocks: u64) -> u64 {
        self.bits(blocks).div_ceil(PAGE_BITS) * PAGE
    }

    /// Bytes for the largest disk.
    pub(super) fn most(self) -> u64 {
        self.bytes(MAX_DISK / BLOCK_SIZE)
    }
}

/// A part of the mapping, which fits into the address space.
pub(super) fn index(value: u64) -> usize {
    usize::try_from(value).expect("a part of a mapping fits into the address space")
}
