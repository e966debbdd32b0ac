//! Segments: one format that is staged, shipped, stored, forwarded and exported.
//!
//! ```text
//!   | prelude, header | frame 0 | frame 1 | ... | frame table | index | footer |
//!          hash ---------------------------------------------------> Merkle root
//!                       hash, hash, ... ---------------> leaves --->  = identity
//! ```
//!
//! Every byte is said below. In short: frames hold up to 64 KiB of content each and
//! are readable on their own; the frame table says where each one lies and its
//! BLAKE3; the index says, sorted by disk and block, which blocks lie in which frame
//! and which read as zeroes.
//!
//! Invariants that a reader checks before it gives anything out:
//! - the parts follow each other without a gap and end with the file;
//! - no block is named twice, and each lies on its disk;
//! - each block of each frame's content belongs to exactly one block of a disk;
//! - the Merkle root is that of header, frame table and index. The content of a
//!   frame is checked against its hash, before it is decoded, whenever it is read.
//!
//! A reader's memory is bounded by [`MAX_FRAMES`], a writer's by that and
//! [`MAX_RUNS`], whatever the file claims.
//!
//! A segment is whole or it is none: the footer is written last, and nothing
//! can be read from a file without one.
//!
#![doc = include_str!("../../../../docs/formats/segment.md")]

mod error;
pub(crate) mod forged;
mod frame;
mod gather;
mod layout;
mod merkle;
mod place;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use error::{SegmentError, Site};
pub use frame::{Frame, is_zero};
pub(crate) use place::FramePlace;
pub use reader::{Runs, SegmentReader};
pub use writer::SegmentWriter;

use model::{BLOCK_SIZE, Bytes};

use crate::Root;

/// The version of the format that this build writes and reads.
pub const VERSION: u32 = 1;

/// Longest header in bytes: a lineage of [`model::Lineage::MAX_TERMS`] terms fits.
pub const MAX_HEADER: u32 = 1 << 20;

/// Most content of a frame, in bytes.
pub const MAX_CONTENT: usize = 64 * 1024;

/// Most frames in a segment: 256 GiB of content. The table takes 48 bytes each of a writer's
/// memory (192 MiB at most), and 2 bytes each of a reader's while it opens a segment.
pub const MAX_FRAMES: u32 = 1 << 22;

/// Most runs in a segment: of a delta of up to 64 GiB each block may be one. They take 2 to 7 bytes each of a
/// writer's memory, when they are spread evenly over a disk of 1 TiB.
pub const MAX_RUNS: u32 = 1 << 24;

/// Longest file of a segment, in bytes.
pub const MAX_FILE: u64 = 256 << 30;

/// Content without zeroes that fits into a segment, in bytes, if it is in few enough frames and runs.
pub const FITTING: u64 = MAX_FILE - (1 << 30);

/// Last byte at which frame table and index may begin.
const TABLES: u64 = FITTING + MAX_HEADER as u64 + (1 << 16);
const _: () = assert!(
    MAX_FILE
        > TABLES
            + MAX_FRAMES as u64 * layout::ENTRY_LEN as u64
            + MAX_RUNS as u64 * layout::RUN_LEN as u64
            + layout::FOOTER_LEN as u64
);

pub(crate) const BLOCK: usize = 4096;
const BLOCK_BYTES: u32 = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE);

/// Most blocks in a frame.
pub(crate) const MAX_FRAME_BLOCKS: u32 = 16;
const _: () = assert!(MAX_FRAME_BLOCKS as usize * BLOCK == MAX_CONTENT);

/// Consecutive blocks of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Position of the disk in the header's list.
    pub disk: u16,
    /// First block (of 4 KiB).
    pub block: u64,
    /// Number of blocks, at least 1.
    pub count: u32,
    /// Where their content is.
    pub source: Source,
}

/// Where the content of a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It reads as zeroes.
    Zero,
    /// In a frame.
    Frame {
        /// Number of the frame, from 0.
        frame: u32,
        /// Blocks of the frame's content before it, below 16.
        skip: u8,
    },
}

/// Some blocks of one disk: where a part of a frame's content belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Position of the disk in the header's list.
    pub disk: u16,
    /// First block (of 4 KiB).
    pub block: u64,
    /// Number of blocks.
    pub count: u32,
}

/// What a segment amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Its identity.
    pub root: Root,
    /// What it holds before compression, zeroes included.
    pub content: Bytes,
    /// Of that, what reads as zeroes and has no payload.
    pub zeroes: Bytes,
    /// Length of the file.
    pub file_len: Bytes,
    /// Number of frames.
    pub frames: u32,
    /// Number of runs in the index.
    pub runs: u32,
}
