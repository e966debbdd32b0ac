//! What may be wrong with a segment, and where.

use std::fmt;
use std::io;

use super::{MAX_CONTENT, MAX_FRAMES, MAX_HEADER, MAX_RUNS, VERSION};
use crate::HeaderError;

/// A part of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Prelude and header.
    Header,
    /// The frame of this number.
    Frame(u32),
    /// The index run of this number.
    Run(u32),
    /// The frame table and the index, as a whole.
    Tables,
    /// The footer.
    Footer,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("its header"),
            Self::Frame(number) => write!(f, "frame {number}"),
            Self::Run(number) => write!(f, "run {number} of its index"),
            Self::Tables => f.write_str("its frame table or index"),
            Self::Footer => f.write_str("its footer"),
        }
    }
}

/// Why a segment cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The operating system refused.
    #[error("cannot {action} {site} of the segment")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// Which part.
        site: Site,
        /// What it said.
        source: io::Error,
    },
    /// It does not begin or end as a segment does.
    #[error("the file is no segment: {0}")]
    Foreign(&'static str),
    /// Made by another version.
    #[error("the segment has format version {0}; this build reads version {VERSION}")]
    Version(u32),
    /// A part does not have the hash that it should have.
    #[error("the segment is damaged: {0} does not verify")]
    Damaged(Site),
    /// A part contradicts the format.
    #[error("the segment is not valid: {site} {fault}")]
    Invalid {
        /// Which part.
        site: Site,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The header is not the JSON that it should be.
    #[error("the segment's header cannot be read")]
    HeaderSyntax(#[source] serde_json::Error),
    /// The header contradicts itself.
    #[error("the segment's header is not valid")]
    Header(#[from] HeaderError),
    /// The header has more bytes than [`MAX_HEADER`].
    #[error("the segment's header has {0} bytes, more than {MAX_HEADER}")]
    HeaderTooLong(u64),
    /// Content of a frame that is empty, too long or not whole blocks.
    #[error("a frame cannot hold {0} bytes: it holds 1 to {most} blocks of 4 KiB", most = MAX_CONTENT / 4096)]
    Content(usize),
    /// Blocks pushed twice.
    #[error("block {block} of disk {disk} is in the segment twice")]
    Overlap {
        /// Position of the disk in the header's list.
        disk: u16,
        /// The block.
        block: u64,
    },
    /// Blocks that the disk does not have, or not as many as the frame holds.
    #[error("{count} blocks from {block} on of disk {disk} {fault}")]
    Extent {
        /// Position of the disk in the header's list.
        disk: u16,
        /// First block.
        block: u64,
        /// Number of blocks.
        count: u64,
        /// What is wrong with them.
        fault: &'static str,
    },
    /// More than a segment holds; it has to be split.
    #[error("the segment is full: it holds at most {MAX_FRAMES} frames and {MAX_RUNS} runs")]
    Full,
    /// An earlier write failed, so that the file cannot become a segment.
    #[error("an earlier write of the segment failed")]
    Broken,
}
