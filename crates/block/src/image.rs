//! Where the content of a virtual disk is.

use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use crate::Fault;

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
    /// In the image below, which has content there.
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
#[allow(
    async_fn_in_trait,
    reason = "owner-thread only: futures are not Send by design"
)]
pub trait Image {
    /// Size of the virtual disk in bytes.
    fn size(&self) -> u64;

    /// Calls `visit` with consecutive, non-empty pieces that together are exactly `range`,
    /// in rising order. Pieces begin and end on sectors if `range` does.
    ///
    /// When `visit` breaks, nothing more is looked at, and that is told. What was looked at then is a
    /// little more than what was visited: whoever asks again from there on for the rest of a disk in
    /// many pieces does not pay for its pieces twice.
    ///
    /// What changes meanwhile is told as it was at some instant of the call, each piece for itself.
    ///
    /// # Errors
    /// [`Fault::Range`] if `range` does not lie inside the disk; what the file below says when it
    /// is asked. `visit` may have been called with a part of the pieces.
    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault>;
}

impl<I: Image> Image for Rc<I> {
    fn size(&self) -> u64 {
        I::size(self)
    }
    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        I::translate(self, range, visit).await
    }
}
