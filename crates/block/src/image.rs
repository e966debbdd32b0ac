//! Where the content of a virtual disk is.

use std::ops::Range;

/// Where a piece of a virtual disk's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// As it is, from byte `at` of the image's store on.
    Stored {
        /// Byte offset in the store.
        at: u64,
    },
    /// Reads as zeroes and takes no space.
    Zero,
    /// In the image below.
    Below,
    /// In frame `frame` of segment `segment` (the image's own numbering), `skip` bytes into
    /// the frame's decoded content.
    Encoded {
        /// Which segment.
        segment: u32,
        /// Which frame of it.
        frame: u32,
        /// Bytes of decoded content before the piece.
        skip: u32,
    },
}

/// Translates ranges of the virtual disk into places; never carries payload.
pub trait Image {
    /// Size of the virtual disk in bytes.
    fn size(&self) -> u64;

    /// Calls `visit` with consecutive, non-empty pieces that together are exactly `range`,
    /// in rising order. `range` lies inside the disk.
    fn translate(&self, range: Range<u64>, visit: &mut dyn FnMut(Range<u64>, Place));
}
