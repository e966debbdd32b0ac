//! Where the content of a segment is, as the index says.

use std::io;
use std::sync::Arc;

use durable::{File, Folder};
use model::{BLOCK_SIZE, Bytes};

use crate::index::{Entry, Place};
use crate::runs::Member;
use crate::segment::FramePlace;
use crate::{JournalError, Root, SegmentReader};

/// A segment of the journal; its file may be gone when it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    sequence: u64,
    root: Root,
    place: Place,
    len: Bytes,
    /// Blocks of content, zeroes not counted.
    blocks: u64,
}

impl Stored {
    pub(crate) fn of(entry: &Entry) -> Self {
        Self {
            sequence: entry.point.sequence,
            root: entry.stored,
            place: entry.place,
            len: entry.file_len,
            blocks: entry.content.0.saturating_sub(entry.zeroes.0) / BLOCK_SIZE,
        }
    }

    /// As run files name it.
    pub(crate) fn member(&self) -> Member {
        Member {
            sequence: self.sequence,
            root: self.root,
        }
    }

    /// Blocks of content: it has no more runs, beside those of zeroes.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Name of its file in the journal's folder.
    pub(crate) fn file(&self) -> String {
        self.place.file(self.root)
    }

    /// Opens it and checks all but the content of its frames.
    ///
    /// # Errors
    /// [`JournalError::Missing`]; a damaged segment; a failed read.
    pub(crate) fn open(&self, folder: &dyn Folder) -> Result<SegmentReader, JournalError> {
        let file = self.within(self.open_file(folder)?);
        let name = self.file();
        let reader =
            SegmentReader::of(file).map_err(|source| JournalError::segment(&name, source))?;
        if reader.summary().root == self.root {
            Ok(reader)
        } else {
            Err(JournalError::IndexDamaged(
                "names another segment by this name",
            ))
        }
    }

    /// The segment in its open file, which others may be in.
    pub(crate) fn within(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        self.place.within(file, self.len)
    }

    /// Where a frame lies, when the segment was checked before.
    ///
    /// # Errors
    /// A damaged segment; a failed read.
    pub(crate) fn frame(&self, file: &dyn File, number: u32) -> Result<FramePlace, JournalError> {
        FramePlace::find(file, self.root, number)
            .map_err(|source| JournalError::segment(&self.file(), source))
    }

    /// Its pack, if it shares one.
    pub(crate) fn pack(&self) -> Option<u32> {
        match self.place {
            Place::Own => None,
            Place::Pack { pack, .. } => Some(pack),
        }
    }

    /// Opens the file that it is in.
    ///
    /// # Errors
    /// [`JournalError::Missing`]; a failed read.
    pub(crate) fn open_file(&self, folder: &dyn Folder) -> Result<Arc<dyn File>, JournalError> {
        let name = self.file();
        folder.open_read(&name).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                JournalError::Missing(name)
            } else {
                JournalError::io("open", &name, source)
            }
        })
    }
}
