//! Writes a segment from front to back.

use std::io::{BufWriter, Write};

use model::{BLOCK_SIZE, Bytes};

use super::gather::Gathered;
use super::layout::{ENTRY_LEN, FOOTER_LEN, Footer, FrameEntry, PRELUDE_LEN, Prelude, RUN_LEN};
use super::merkle::Tree;
use super::{
    BLOCK_BYTES, Extent, Frame, MAX_FRAMES, MAX_RUNS, Run, SegmentError, Site, Source, Summary,
    TABLES,
};
use crate::Header;

/// Bytes gathered before a write; a frame that cannot be compressed is written without.
const BUFFER: usize = super::MAX_CONTENT;

/// Writes a segment to `W`, a file in general. Frames and zeroes come in any order; the index is
/// sorted at the end. Dropped without [`SegmentWriter::finish`], it leaves something that no
/// reader accepts.
pub struct SegmentWriter<W: Write> {
    file: BufWriter<W>,
    /// Size of each disk in blocks.
    disks: Vec<u64>,
    at: u64,
    tree: Tree,
    frames: Vec<FrameEntry>,
    runs: Gathered,
    /// Set by a failed write: what the file holds is not known any more.
    broken: bool,
}

impl<W: Write> SegmentWriter<W> {
    /// Begins a segment at the current (first) byte of `file`.
    ///
    /// # Errors
    /// A header that contradicts itself or is too long, or a failed write.
    pub fn create(file: W, header: &Header) -> Result<Self, SegmentError> {
        header.check()?;
        let bytes = serde_json::to_vec(header).map_err(SegmentError::HeaderSyntax)?;
        let (prelude, prelude_bytes) = Prelude::of(&bytes)?;
        let mut writer = Self {
            file: BufWriter::with_capacity(BUFFER, file),
            disks: header
                .disks
                .iter()
                .map(|disk| disk.size.0 / BLOCK_SIZE)
                .collect(),
            at: (PRELUDE_LEN + bytes.len()) as u64,
            tree: Tree::new(&prelude.hash),
            frames: Vec::new(),
            runs: Gathered::new(),
            broken: false,
        };
        writer.write(Site::Header, &prelude_bytes)?;
        writer.write(Site::Header, &bytes)?;
        Ok(writer)
    }

    /// Encodes and appends the content of consecutive blocks: `content.len()` bytes of disk
    /// `disk` (its position in the header's list) from block `block` on.
    ///
    /// # Errors
    /// As [`Frame::encode`] and [`SegmentWriter::push`].
    pub fn push_frame(
        &mut self,
        disk: u16,
        block: u64,
        content: &[u8],
    ) -> Result<(), SegmentError> {
        let frame = Frame::encode(content, Frame::LEVEL)?;
        let count = frame.content_len / BLOCK_BYTES;
        self.push(&frame, &[Extent { disk, block, count }])
    }

    /// Appends a frame whose content belongs to `extents`, in that order.
    ///
    /// # Errors
    /// Extents outside their disks or of another length than the content; a full segment; a
    /// failed write. Only the last one breaks the segment.
    pub fn push(&mut self, frame: &Frame<'_>, extents: &[Extent]) -> Result<(), SegmentError> {
        let blocks = u64::from(frame.content_len) / BLOCK_SIZE;
        let mut sum = 0;
        for extent in extents {
            self.check(extent.disk, extent.block, extent.count.into())?;
            sum += u64::from(extent.count);
            if sum > blocks {
                return Err(misfit(extent));
            }
        }
        match extents.last() {
            Some(last) if sum != blocks => return Err(misfit(last)),
            Some(_) => {}
            None => return Err(SegmentError::Content(0)),
        }
        self.room(extents.len())?;
        let number = self.push_content(frame)?;
        let mut skip = 0;
        for extent in extents {
            self.runs.push(Run {
                disk: extent.disk,
                block: extent.block,
                count: extent.count,
                source: Source::Frame {
                    frame: number,
                    skip,
                },
            });
            skip += u8::try_from(extent.count).expect("no more than the 16 blocks of a frame");
        }
        Ok(())
    }

    /// Appends a frame whose blocks are named with [`SegmentWriter::push_run`]: each of them, and
    /// once, or no reader accepts the segment. Gives its number.
    pub(crate) fn push_content(&mut self, frame: &Frame<'_>) -> Result<u32, SegmentError> {
        let number = u32::try_from(self.frames.len())
            .ok()
            .filter(|number| *number < MAX_FRAMES)
            .ok_or(SegmentError::Full)?;
        // What is left of the longest file is for the tables.
        if self.at + u64::from(frame.stored_len()) > TABLES {
            return Err(SegmentError::Full);
        }
        self.write(Site::Frame(number), &frame.stored)?;
        let entry = FrameEntry {
            at: self.at,
            stored_len: frame.stored_len(),
            content_len: frame.content_len,
            hash: frame.hash,
        };
        self.at += u64::from(entry.stored_len);
        self.tree.frame(&entry);
        self.frames.push(entry);
        Ok(number)
    }

    /// Notes where some blocks are: zeroes, or in a frame of [`SegmentWriter::push_content`].
    pub(crate) fn push_run(&mut self, run: Run) -> Result<(), SegmentError> {
        self.check(run.disk, run.block, run.count.into())?;
        self.room(1)?;
        self.runs.push(run);
        Ok(())
    }

    /// Notes that `count` blocks of disk `disk` from `block` on read as zeroes.
    ///
    /// # Errors
    /// Blocks outside the disk; a full segment.
    pub fn push_zero(&mut self, disk: u16, block: u64, count: u64) -> Result<(), SegmentError> {
        self.check(disk, block, count)?;
        self.room(usize::try_from(count.div_ceil(u32::MAX.into())).unwrap_or(usize::MAX))?;
        let (mut block, end) = (block, block + count);
        while block < end {
            let count = u32::try_from(end - block).unwrap_or(u32::MAX);
            self.runs.push(Run {
                disk,
                block,
                count,
                source: Source::Zero,
            });
            block += u64::from(count);
        }
        Ok(())
    }

    /// Runs named so far.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Bytes of payload written so far.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        Bytes(
            self.frames
                .iter()
                .map(|frame| u64::from(frame.content_len))
                .sum(),
        )
    }

    /// Writes frame table, index and footer, and gives the file back: not synced, and its
    /// buffers flushed to the operating system.
    ///
    /// # Errors
    /// [`SegmentError::Overlap`] if a block was pushed twice; a failed write.
    pub fn finish(mut self) -> Result<(Summary, W), SegmentError> {
        if self.broken {
            return Err(SegmentError::Broken);
        }
        let frames = std::mem::take(&mut self.frames);
        let table = self.at;
        for entry in &frames {
            self.write(Site::Tables, &entry.to_bytes())?;
        }
        let index = table + (frames.len() * ENTRY_LEN) as u64;
        let mut hasher = blake3::Hasher::new();
        let (mut runs, mut content, mut zeroes) = (0_u32, 0, 0);
        for run in index_of(std::mem::replace(&mut self.runs, Gathered::new())) {
            let run = run?;
            runs += 1;
            let len = u64::from(run.count) * BLOCK_SIZE;
            content += len;
            if run.source == Source::Zero {
                zeroes += len;
            }
            let bytes = run.to_bytes();
            hasher.update(&bytes);
            self.write(Site::Tables, &bytes)?;
        }
        let file_len = index + u64::from(runs) * RUN_LEN as u64 + FOOTER_LEN as u64;
        let summary = Summary {
            root: self.tree.finish(hasher.finalize()),
            content: Bytes(content),
            zeroes: Bytes(zeroes),
            file_len: Bytes(file_len),
            frames: u32::try_from(frames.len()).expect("checked against MAX_FRAMES"),
            runs,
        };
        let footer = Footer {
            table,
            index,
            summary,
        };
        let written = |source| SegmentError::Io {
            action: "write",
            site: Site::Footer,
            source,
        };
        self.file.write_all(&footer.to_bytes()).map_err(written)?;
        let file = self
            .file
            .into_inner()
            .map_err(|error| written(error.into_error()))?;
        Ok((summary, file))
    }

    /// As if so many bytes had been written.
    #[cfg(test)]
    pub(super) fn at(mut self, at: u64) -> Self {
        self.at = at;
        self
    }

    /// With another size of the lots in which runs are gathered.
    #[cfg(test)]
    pub(super) fn in_lots_of(mut self, runs: usize) -> Self {
        self.runs = Gathered::in_lots_of(runs);
        self
    }

    fn write(&mut self, site: Site, bytes: &[u8]) -> Result<(), SegmentError> {
        if self.broken {
            return Err(SegmentError::Broken);
        }
        self.file.write_all(bytes).map_err(|source| {
            self.broken = true;
            SegmentError::Io {
                action: "write",
                site,
                source,
            }
        })
    }

    fn check(&self, disk: u16, block: u64, count: u64) -> Result<(), SegmentError> {
        let fault = match self.disks.get(usize::from(disk)) {
            None => "lie on a disk that the header does not name",
            Some(_) if count == 0 => "are none",
            Some(size) if block.checked_add(count).is_none_or(|end| end > *size) => {
                "lie outside the disk"
            }
            Some(_) => return Ok(()),
        };
        Err(SegmentError::Extent {
            disk,
            block,
            count,
            fault,
        })
    }

    fn room(&self, more: usize) -> Result<(), SegmentError> {
        match self.runs.len().checked_add(more) {
            Some(sum) if sum <= MAX_RUNS as usize => Ok(()),
            _ => Err(SegmentError::Full),
        }
    }
}

fn misfit(extent: &Extent) -> SegmentError {
    SegmentError::Extent {
        disk: extent.disk,
        block: extent.block,
        count: extent.count.into(),
        fault: "do not fit the length of the frame",
    }
}

/// The index: by disk and block, neighbouring zeroes joined, no block twice.
fn index_of(runs: Gathered) -> impl Iterator<Item = Result<Run, SegmentError>> {
    let mut runs = runs.sorted().peekable();
    std::iter::from_fn(move || {
        let mut run = runs.next()?;
        while let Some(next) = runs.peek().filter(|next| next.disk == run.disk) {
            let end = run.block + u64::from(run.count);
            if next.block < end {
                let (disk, block) = (next.disk, next.block);
                return Some(Err(SegmentError::Overlap { disk, block }));
            }
            let joined = run.count.checked_add(next.count);
            match (run.source, next.source, joined) {
                (Source::Zero, Source::Zero, Some(count)) if next.block == end => run.count = count,
                _ => break,
            }
            runs.next();
        }
        Some(Ok(run))
    })
}
