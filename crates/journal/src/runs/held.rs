//! A file that is held in memory and only read.

use std::io;

use durable::File;

/// Its bytes.
#[derive(Debug)]
pub(crate) struct Held(pub(crate) Vec<u8>);

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl File for Held {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok();
        let part = from.and_then(|from| self.0.get(from..from.checked_add(into.len())?));
        into.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, _at: u64, _from: &[u8]) -> io::Result<()> {
        read_only()
    }
    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        read_only()
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn allocated(&self) -> io::Result<u64> {
        self.size()
    }
    fn set_len(&self, _len: u64) -> io::Result<()> {
        read_only()
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
