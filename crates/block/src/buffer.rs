//! Memory that an operation owns while the kernel may touch it.
//!
//! Either allocated here, aligned for O_DIRECT, or borrowed from guest memory
//! together with what keeps that mapping alive. Guest memory may change at any
//! time under us, so no reference to its bytes is ever made: only raw copies.
#![allow(unsafe_code, reason = "guest memory is reached through raw iovecs")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

/// Alignment of allocated buffers in bytes; enough for O_DIRECT on 4 KiB sectors.
const ALIGNMENT: usize = 4096;

/// Bytes in one or more pieces, owned by an operation.
pub struct Buffer {
    pieces: SmallVec<[libc::iovec; 4]>,
    len: usize,
    keep: Keep,
}

/// What keeps the memory alive; dropped after the pieces are no longer used.
enum Keep {
    Allocated(Allocation),
    Borrowed { _owner: Arc<dyn Any + Send + Sync> },
}

struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this layout and is freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Buffer {
    /// Zeroed memory of `len` bytes, aligned for O_DIRECT.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), ALIGNMENT)
            .expect("a buffer is far smaller than the address space");
        // SAFETY: the layout's size is not zero.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        Self {
            pieces: smallvec![libc::iovec {
                iov_base: start.as_ptr().cast(),
                iov_len: len
            }],
            len,
            keep: Keep::Allocated(Allocation { start, layout }),
        }
    }

    /// An allocated copy of `bytes`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(0, bytes);
        buffer
    }

    /// Memory that belongs to `owner`, such as a snapshot of the guest's memory map.
    ///
    /// # Safety
    /// Every piece must stay mapped, readable and writable for as long as `owner` lives.
    /// Others may change the bytes at any time.
    #[must_use]
    pub unsafe fn borrowed(
        pieces: SmallVec<[libc::iovec; 4]>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let len = pieces.iter().map(|piece| piece.iov_len).sum();
        Self {
            pieces,
            len,
            keep: Keep::Borrowed { _owner: owner },
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, for the kernel. They are valid for as long as the buffer lives.
    #[must_use]
    pub fn pieces(&self) -> &[libc::iovec] {
        &self.pieces
    }

    /// Whether every piece starts and ends on a multiple of `alignment` (a power of two).
    #[must_use]
    pub fn is_aligned(&self, alignment: u64) -> bool {
        let mask = usize::try_from(alignment).map_or(usize::MAX, |alignment| alignment - 1);
        self.pieces
            .iter()
            .all(|piece| (piece.iov_base as usize | piece.iov_len) & mask == 0)
    }

    /// All bytes, if they were allocated here: those of a guest are only ever copied.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[u8]> {
        let Keep::Allocated(memory) = &self.keep else {
            return None;
        };
        // SAFETY: `len` bytes that were zeroed when they were allocated. Whoever writes to them, the kernel
        // too, has the buffer for itself until that is done.
        Some(unsafe { std::slice::from_raw_parts(memory.start.as_ptr(), self.len) })
    }

    /// Copies `target.len()` bytes from `offset` on into `target`.
    ///
    /// # Panics
    /// If the range is outside the buffer.
    pub fn copy_to_slice(&self, offset: usize, target: &mut [u8]) {
        let target = (target.as_mut_ptr(), target.len());
        self.each(offset, target.1, |piece, done, len| {
            // SAFETY: `piece` has `len` valid bytes (see `borrowed`), `target` has at least
            // `done + len`; a `&mut` slice cannot overlap either kind of memory.
            unsafe { std::ptr::copy_nonoverlapping(piece, target.0.add(done), len) };
        });
    }

    /// Copies `source` into the buffer from `offset` on.
    ///
    /// # Panics
    /// If the range is outside the buffer.
    pub fn copy_from_slice(&mut self, offset: usize, source: &[u8]) {
        self.each(offset, source.len(), |piece, done, len| {
            // SAFETY: as in `copy_to_slice`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr().add(done), piece, len) };
        });
    }

    /// Copies `len` bytes of `source` from `skip` on into this buffer from `offset` on.
    ///
    /// # Panics
    /// If a range is outside its buffer.
    pub fn copy_from(&mut self, offset: usize, source: &Self, skip: usize, len: usize) {
        self.each(offset, len, |target, before, len| {
            source.each(skip + before, len, |from, done, len| {
                // SAFETY: both parts have `len` valid bytes. Guest memory may overlap itself.
                unsafe { std::ptr::copy(from, target.add(done), len) };
            });
        });
    }

    /// Zeroes `len` bytes from `offset` on.
    ///
    /// # Panics
    /// If the range is outside the buffer.
    pub fn fill_zero(&mut self, offset: usize, len: usize) {
        self.each(offset, len, |piece, _, len| {
            // SAFETY: `piece` has `len` valid bytes.
            unsafe { std::ptr::write_bytes(piece, 0, len) };
        });
    }

    /// A copy of all bytes on the heap.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to_slice(0, &mut bytes);
        bytes
    }

    /// Calls `visit(start, bytes before it, length)` for each contiguous part of a range.
    fn each(&self, offset: usize, len: usize, mut visit: impl FnMut(*mut u8, usize, usize)) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "a copy of {len} bytes at {offset} is outside a buffer of {}",
            self.len
        );
        let (mut skip, mut done) = (offset, 0);
        for piece in &self.pieces {
            if done == len {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let part = (piece.iov_len - skip).min(len - done);
            // SAFETY: `skip` is inside the piece.
            visit(unsafe { piece.iov_base.cast::<u8>().add(skip) }, done, part);
            done += part;
            skip = 0;
        }
    }
}

// SAFETY: allocated memory has this one handle; borrowed memory is valid for as long as its owner,
// which is Send and Sync, and is only ever copied raw.
unsafe impl Send for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Buffer({} bytes in {} pieces)",
            self.len,
            self.pieces.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_cross_the_pieces_of_borrowed_memory() {
        let owner: Arc<Vec<u8>> = Arc::new((0..64).collect());
        let start = owner.as_ptr().cast_mut();
        let piece = |at: usize, len| libc::iovec {
            // SAFETY: inside the vector.
            iov_base: unsafe { start.add(at) }.cast(),
            iov_len: len,
        };
        // SAFETY: the vector is kept by `owner`.
        let buffer = unsafe { Buffer::borrowed(smallvec![piece(0, 10), piece(32, 10)], owner) };
        let mut read = [0; 6];
        buffer.copy_to_slice(7, &mut read);
        assert_eq!(read, [7, 8, 9, 32, 33, 34]);
        assert_eq!(buffer.len(), 20);
        assert!(!buffer.is_aligned(512));
    }

    #[test]
    fn only_memory_that_was_allocated_is_given_out_as_a_slice() {
        let own = Buffer::from_slice(&[7; 5000]);
        assert_eq!(own.as_slice(), Some(&[7; 5000][..]));
        // SAFETY: no pieces.
        let borrowed = unsafe { Buffer::borrowed(smallvec![], Arc::new(())) };
        assert_eq!(borrowed.as_slice(), None);
    }

    #[test]
    #[should_panic(expected = "outside a buffer")]
    fn a_copy_outside_the_buffer_panics_instead_of_reading_on() {
        Buffer::zeroed(16).copy_to_slice(10, &mut [0; 7]);
    }
}
