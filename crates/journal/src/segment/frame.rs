//! Frames: up to 64 KiB of content, compressed and hashed on their own.

use std::borrow::Cow;
use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::WriteBuf;

use super::{BLOCK, MAX_CONTENT, SegmentError, Site};

/// An encoded frame, ready to be written. Made on any thread: compression and hashing are the
/// costly part of a segment.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    pub(super) stored: Cow<'a, [u8]>,
    pub(super) content_len: u32,
    pub(super) hash: [u8; 32],
}

thread_local! {
    /// A context costs more to make than a frame to compress.
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

impl<'a> Frame<'a> {
    /// The level for [`Frame::encode`] when nothing speaks for another: zstd's fastest that
    /// still codes literals.
    pub const LEVEL: i32 = 1;

    /// Encodes `content`: 1 to 16 blocks of 4 KiB. Stored as it is if zstd at `level` does not
    /// make it smaller.
    ///
    /// # Errors
    /// [`SegmentError::Content`] for any other length.
    pub fn encode(content: &'a [u8], level: i32) -> Result<Self, SegmentError> {
        if content.is_empty() || content.len() > MAX_CONTENT || content.len() % BLOCK != 0 {
            return Err(SegmentError::Content(content.len()));
        }
        // A compressor that fails costs space, never content.
        let stored = compress(content, level)
            .filter(|stored| stored.len() < content.len())
            .map_or(Cow::Borrowed(content), Cow::Owned);
        Ok(Self {
            hash: *blake3::hash(&stored).as_bytes(),
            stored,
            content_len: u32::try_from(content.len()).expect("at most 64 KiB, checked above"),
        })
    }

    /// Number of bytes of content.
    #[must_use]
    pub fn content_len(&self) -> u32 {
        self.content_len
    }

    /// Hash of what is stored.
    #[cfg(test)]
    pub(crate) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Its content, if it was read as frame `number`.
    pub(crate) fn decode(self, number: u32) -> Result<Vec<u8>, SegmentError> {
        decode(number, self.content_len, self.stored.into_owned())
    }

    /// Number of bytes that it takes in the file, its table entry not counted.
    #[must_use]
    pub fn stored_len(&self) -> u32 {
        u32::try_from(self.stored.len()).expect("never longer than the content")
    }
}

fn compress(content: &[u8], level: i32) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|(made_for, _)| *made_for != level) {
            *slot = Some((level, Compressor::new(level).ok()?));
        }
        let (_, compressor) = slot.as_mut()?;
        compressor.compress(content).ok()
    })
}

/// Content of frame `number` from its stored bytes, which have been checked against the hash.
pub(super) fn decode(
    number: u32,
    content_len: u32,
    stored: Vec<u8>,
) -> Result<Vec<u8>, SegmentError> {
    if stored.len() == content_len as usize {
        return Ok(stored);
    }
    decompress(number, content_len, &stored)
}

/// [`decode`] of what is shorter than its content.
pub(super) fn decompress(
    number: u32,
    content_len: u32,
    stored: &[u8],
) -> Result<Vec<u8>, SegmentError> {
    let content_len = content_len as usize;
    let mut content = Vec::with_capacity(content_len);
    fill(number, content_len, stored, &mut content)?;
    Ok(content)
}

/// [`decompress`] to `content`, which is as long as it is.
pub(super) fn decompress_into(
    number: u32,
    content: &mut [u8],
    stored: &[u8],
) -> Result<(), SegmentError> {
    fill(number, content.len(), stored, content)
}

fn fill<B: WriteBuf + ?Sized>(
    number: u32,
    content_len: usize,
    stored: &[u8],
    content: &mut B,
) -> Result<(), SegmentError> {
    let invalid = |fault| SegmentError::Invalid {
        site: Site::Frame(number),
        fault,
    };
    // Straight into a buffer of the stated length: no window is allocated, whatever size the
    // compressed bytes ask for, and what does not fit fails.
    let written = DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(Decompressor::new().ok()?);
        }
        slot.as_mut()?.decompress_to_buffer(stored, content).ok()
    });
    match written {
        Some(written) if written == content_len => Ok(()),
        Some(_) => Err(invalid("holds less than it states")),
        None => Err(invalid(
            "cannot be decompressed to the length that it states",
        )),
    }
}

/// Whether every byte is zero: such blocks belong into the index, not into a frame.
#[must_use]
pub fn is_zero(content: &[u8]) -> bool {
    // Compared in one call of the C library's memcmp, which uses vectors.
    static ZEROES: [u8; BLOCK] = [0; BLOCK];
    content
        .chunks(BLOCK)
        .all(|piece| piece == &ZEROES[..piece.len()])
}
