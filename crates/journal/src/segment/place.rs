//! Where a frame lies in a segment that was checked before.

use std::cell::RefCell;

use durable::File;

use super::frame::decompress;
use super::layout::{ENTRY_LEN, FOOTER_LEN, FrameEntry, PRELUDE_LEN};
use super::reader::{read, read_footer};
use super::{MAX_CONTENT, SegmentError, Site};
use crate::Root;

thread_local! {
    /// What a frame is stored as, until it is decoded: 64 KiB.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// All that it takes to read a frame of a known segment: neither its header nor its index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FramePlace {
    number: u32,
    entry: FrameEntry,
}

impl FramePlace {
    /// Of frame `number` in a file that was checked before and has this root: its frame table is
    /// believed.
    ///
    /// # Errors
    /// Another segment; a frame that there is not; a failed read.
    pub(crate) fn find(file: &dyn File, root: Root, number: u32) -> Result<Self, SegmentError> {
        let len = file.size().map_err(|source| SegmentError::Io {
            action: "read",
            site: Site::Footer,
            source,
        })?;
        if len < (PRELUDE_LEN + FOOTER_LEN) as u64 {
            return Err(SegmentError::Foreign("it is shorter than an empty one"));
        }
        let footer = read_footer(file, len, PRELUDE_LEN as u64)?;
        if footer.summary.root != root {
            return Err(SegmentError::Damaged(Site::Footer));
        }
        if number >= footer.summary.frames {
            return Err(SegmentError::Invalid {
                site: Site::Frame(number),
                fault: "does not exist",
            });
        }
        let mut bytes = [0; ENTRY_LEN];
        let at = footer.table + u64::from(number) * ENTRY_LEN as u64;
        read(file, Site::Tables, at, &mut bytes)?;
        let entry = FrameEntry::read(number, &bytes)?;
        Ok(Self { number, entry })
    }

    /// Content of the frame, in the same file, which matched its hash: 1 to 16 blocks.
    ///
    /// # Errors
    /// [`SegmentError::Damaged`] if it does not match; a failed read.
    pub(crate) fn read(&self, file: &dyn File) -> Result<Vec<u8>, SegmentError> {
        let Self { number, entry } = self;
        let site = Site::Frame(*number);
        STORED.with_borrow_mut(|buffer| {
            buffer.resize(MAX_CONTENT, 0);
            // Not longer than its content: checked when the entry was read.
            let stored = &mut buffer[..entry.stored_len as usize];
            read(file, site, entry.at, stored)?;
            if blake3::hash(stored) != entry.hash {
                return Err(SegmentError::Damaged(site));
            }
            if entry.stored_len == entry.content_len {
                return Ok(stored.to_vec());
            }
            decompress(*number, entry.content_len, stored)
        })
    }
}
