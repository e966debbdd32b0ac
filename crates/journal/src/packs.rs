//! A segment wherever it lies: in a file of its own, or in a pack.

use std::io;
use std::sync::Arc;

use durable::{File, Folder};
use model::Bytes;

use crate::index::{Entry, Place};
use crate::{JournalError, Root};

/// A part of a file, as if it were the whole. It is only read.
#[derive(Debug)]
struct Part {
    file: Arc<dyn File>,
    at: u64,
    len: u64,
}

impl File for Part {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_at(self.at + at, into)
    }

    fn write_at(&self, _at: u64, _from: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn size(&self) -> io::Result<u64> {
        // As much of it as there is: a file that was cut short is found by its reader.
        let left = self.file.size()?.saturating_sub(self.at);
        Ok(self.len.min(left))
    }

    fn allocated(&self) -> io::Result<u64> {
        self.size()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl Entry {
    /// First byte of the segment in its file.
    pub(crate) fn start(&self) -> u64 {
        match self.place {
            Place::Own => 0,
            Place::Pack { at, .. } => at,
        }
    }

    /// The stored segment, for reading.
    pub(crate) fn open(&self, folder: &dyn Folder) -> Result<Arc<dyn File>, JournalError> {
        self.place.open(folder, self.stored, self.file_len)
    }
}

impl Place {
    /// The segment `stored` of `len` bytes, for reading.
    pub(crate) fn open(
        self,
        folder: &dyn Folder,
        stored: Root,
        len: Bytes,
    ) -> Result<Arc<dyn File>, JournalError> {
        let name = self.file(stored);
        let file = folder
            .open_read(&name)
            .map_err(|source| JournalError::io("open", &name, source))?;
        Ok(match self {
            Self::Own => file,
            Self::Pack { at, .. } => Arc::new(Part {
                file,
                at,
                len: len.0,
            }),
        })
    }
}
