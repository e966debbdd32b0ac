//! Writes a run file from front to back: list of segments, pages, footer.

use std::io::{BufWriter, Write};

use model::DiskId;

use super::RunError;
use super::entry::{At, Entry};
use super::layout::{
    Footer, MAX_DISKS, MAX_HEIGHT, MAX_SEGMENTS, Member, PAGE, RunDisk, list_pages, page_hash,
};
use super::page::{Child, Filling};

/// Bytes gathered before a write.
const BUFFER: usize = 256 * 1024;

/// Writes a run file to `W`. Its memory is a page for each level, whatever the number of entries and
/// segments. Dropped without [`RunWriter::finish`], it leaves something that no reader accepts.
pub(crate) struct RunWriter<W: Write> {
    file: BufWriter<W>,
    pages: u32,
    segments: u32,
    list_hash: [u8; 32],
    entries: u64,
    disks: Vec<RunDisk>,
    last: Option<At>,
    /// The page of each height that is being filled.
    filling: Vec<Filling>,
}

impl<W: Write> RunWriter<W> {
    /// Begins a file about `segments`, the oldest first, and `disks`, in the order of their ids: so
    /// files can be joined whose disks are not the same.
    ///
    /// # Errors
    /// [`RunError::Full`], segments or disks out of order, a failed write.
    pub(crate) fn create(
        file: W,
        disks: &[DiskId],
        segments: impl Iterator<Item = Member>,
    ) -> Result<Self, RunError> {
        if disks.len() > MAX_DISKS {
            return Err(RunError::Full("more disks than the format can name"));
        }
        if !disks.is_sorted_by(|a, b| a < b) {
            return Err(RunError::Entry("names a disk out of order"));
        }
        let mut writer = Self {
            file: BufWriter::with_capacity(BUFFER, file),
            pages: 0,
            segments: 0,
            list_hash: [0; 32],
            entries: 0,
            disks: disks
                .iter()
                .map(|id| RunDisk { id: *id, levels: 0 })
                .collect(),
            last: None,
            filling: vec![Filling::new(0)],
        };
        writer.list(segments)?;
        Ok(writer)
    }

    fn list(&mut self, segments: impl Iterator<Item = Member>) -> Result<(), RunError> {
        let mut hasher = blake3::Hasher::new();
        let mut before = None;
        let mut len = 0;
        for member in segments {
            if before.is_some_and(|before| before >= member.sequence) {
                return Err(RunError::Entry("names a segment out of order"));
            }
            if self.segments == MAX_SEGMENTS {
                return Err(RunError::Full("more segments than the format can name"));
            }
            before = Some(member.sequence);
            let bytes = member.to_bytes();
            hasher.update(&bytes);
            self.write(&bytes)?;
            self.segments += 1;
            len += bytes.len();
        }
        self.list_hash = hasher.finalize().into();
        self.pages = u32::try_from(list_pages(self.segments)).expect("at most MAX_SEGMENTS");
        self.write(&vec![0; self.pages as usize * PAGE - len])
    }

    /// Adds an entry, which comes after all that were added before.
    ///
    /// # Errors
    /// Out of order, or of a disk or a segment that there is not; [`RunError::Full`]; a failed write.
    pub(crate) fn push(&mut self, entry: &Entry) -> Result<(), RunError> {
        entry.check().map_err(RunError::Entry)?;
        if self.last.is_some_and(|last| last >= entry.at) {
            return Err(RunError::Entry("comes before the one before it"));
        }
        if entry.at.segment >= self.segments {
            return Err(RunError::Entry("names a segment that is not listed"));
        }
        let key = entry.at.key;
        match self.disks.get_mut(usize::from(key.disk())) {
            None => return Err(RunError::Entry("names a disk that is not listed")),
            Some(disk) => disk.levels |= 1 << key.level(),
        }
        self.last = Some(entry.at);
        self.entries += 1;
        if self.filling[0].is_full() {
            self.flush(0)?;
        }
        self.filling[0].entry(entry);
        Ok(())
    }

    /// Writes the page of `height`, and names it in the one above.
    fn flush(&mut self, height: usize) -> Result<(), RunError> {
        let page = self.pages;
        let (bytes, first) = self.filling[height].take(page);
        self.write(&bytes[..])?;
        self.pages = page
            .checked_add(1)
            .filter(|pages| *pages < u32::MAX)
            .ok_or(RunError::Full("more pages than the format can name"))?;
        let child = Child {
            first: first.unwrap_or(At {
                key: super::Key::from_raw(0),
                segment: 0,
            }),
            page,
            hash: page_hash(&bytes),
        };
        let above = height + 1;
        if above == self.filling.len() {
            let height = u8::try_from(above).unwrap_or(u8::MAX);
            // One more holds the name of the top page only.
            if height > MAX_HEIGHT {
                return Err(RunError::Full("more entries than the format can hold"));
            }
            self.filling.push(Filling::new(height));
        }
        if self.filling[above].is_full() {
            self.flush(above)?;
        }
        self.filling[above].child(&child);
        Ok(())
    }

    /// Number of entries so far.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Writes what is left, and gives the file back with the hash of its footer: not synced, and
    /// its buffers flushed to the operating system.
    ///
    /// # Errors
    /// [`RunError::Full`], a failed write.
    pub(crate) fn finish(mut self) -> Result<(blake3::Hash, W), RunError> {
        let mut height = 0;
        self.flush(0)?;
        let top = loop {
            height += 1;
            // The highest page names one only: that is the top.
            if height + 1 == self.filling.len() {
                if let Some(top) = self.filling[height].only() {
                    break top;
                }
            }
            if self.filling[height].count() > 0 {
                self.flush(height)?;
            }
        };
        let footer = Footer {
            pages: self.pages,
            segments: self.segments,
            entries: self.entries,
            top: top.page,
            height: u8::try_from(height - 1).unwrap_or(u8::MAX),
            top_hash: top.hash,
            list_hash: self.list_hash,
            disks: std::mem::take(&mut self.disks),
        };
        let bytes = footer.to_bytes();
        self.write(&bytes)?;
        let file = self.file.into_inner().map_err(|error| RunError::Io {
            action: "write",
            source: error.into_error(),
        })?;
        Ok((blake3::hash(&bytes), file))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RunError> {
        self.file.write_all(bytes).map_err(|source| RunError::Io {
            action: "write",
            source,
        })
    }
}
