//! Reads a segment that nobody vouches for.

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use durable::{File, OsFile};
use model::{BLOCK_SIZE, Bytes};

use super::frame::{decode, decompress_into};
use super::layout::{ENTRY_LEN, FOOTER_LEN, Footer, FrameEntry, PRELUDE_LEN, Prelude, RUN_LEN};
use super::merkle::Tree;
use super::{BLOCK_BYTES, Frame, MAX_FRAMES, MAX_RUNS, Run, SegmentError, Site, Source, Summary};
use crate::Header;

/// Table entries or runs read at once.
const BATCH: u32 = 1024;

/// An open segment whose structure was checked. It keeps the file open, the header, and nothing
/// per frame or run, so that many can be open at once. Any thread may read.
#[derive(Clone)]
pub struct SegmentReader {
    file: Arc<dyn File>,
    header: Arc<Header>,
    /// First byte of the first frame.
    frames_at: u64,
    footer: Footer,
}

impl fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentReader({:?})", self.footer.summary)
    }
}

impl SegmentReader {
    /// Opens the segment at `path` and checks everything but the content of its frames.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<Self, SegmentError> {
        let file = fs::File::open(path).map_err(|source| SegmentError::Io {
            action: "open",
            site: Site::Header,
            source,
        })?;
        Self::of(Arc::new(OsFile::from(file)))
    }

    /// [`SegmentReader::open`] of an open file. It must not change from now on: content is
    /// checked again whenever it is read, the rest is not.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(file: Arc<dyn File>) -> Result<Self, SegmentError> {
        let (reader, hash) = Self::ends(file)?;
        reader.check(&hash)?;
        Ok(reader)
    }

    /// Prelude, header and footer; and the hash in the prelude.
    fn ends(file: Arc<dyn File>) -> Result<(Self, [u8; 32]), SegmentError> {
        let file_len = file.size().map_err(|source| SegmentError::Io {
            action: "read",
            site: Site::Footer,
            source,
        })?;
        if file_len < (PRELUDE_LEN + FOOTER_LEN) as u64 {
            return Err(SegmentError::Foreign("it is shorter than an empty one"));
        }
        let mut bytes = [0; PRELUDE_LEN];
        read(&*file, Site::Header, 0, &mut bytes)?;
        let prelude = Prelude::read(&bytes)?;
        let frames_at = PRELUDE_LEN as u64 + u64::from(prelude.header_len);
        let footer = read_footer(&*file, file_len, frames_at)?;

        let mut header = vec![0; prelude.header_len as usize];
        read(&*file, Site::Header, PRELUDE_LEN as u64, &mut header)?;
        if Prelude::hash(&bytes, &header) != prelude.hash {
            return Err(SegmentError::Damaged(Site::Header));
        }
        let header: Header = serde_json::from_slice(&header).map_err(SegmentError::HeaderSyntax)?;
        header.check()?;

        let reader = Self {
            file,
            header: Arc::new(header),
            frames_at,
            footer,
        };
        Ok((reader, prelude.hash))
    }

    /// What the segment says of itself.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What it amounts to.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.footer.summary
    }

    /// Bytes that its frames take in the file: what its content less its zeroes was compressed to.
    #[must_use]
    pub fn stored(&self) -> Bytes {
        Bytes(self.footer.table - self.frames_at)
    }

    #[cfg(test)]
    pub(crate) fn file(&self) -> &dyn File {
        &*self.file
    }

    #[cfg(test)]
    pub(super) fn footer(&self) -> Footer {
        self.footer
    }

    /// The index, sorted by disk and block.
    #[must_use]
    pub fn runs(&self) -> Runs<'_> {
        self.runs_from(0)
    }

    /// The index from run `next` on.
    pub(crate) fn runs_from(&self, next: u32) -> Runs<'_> {
        Runs {
            reader: self,
            next,
            batch: Vec::new(),
            used: 0,
        }
    }

    /// The index from the first run of disk `disk` (its position in the header's list) on.
    pub(crate) fn runs_of(&self, disk: u16) -> Result<Runs<'_>, SegmentError> {
        let (mut low, mut high) = (0, self.footer.summary.runs);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut bytes = [0; RUN_LEN];
            let at = self.footer.index + u64::from(middle) * RUN_LEN as u64;
            read(&*self.file, Site::Tables, at, &mut bytes)?;
            if Run::read(middle, &bytes)?.disk < disk {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(self.runs_from(low))
    }

    /// Content of frame `number`, which matched its hash: 1 to 16 blocks.
    ///
    /// # Errors
    /// [`SegmentError::Damaged`] if it does not match; a frame that there is not; a failed read.
    pub fn read_frame(&self, number: u32) -> Result<Vec<u8>, SegmentError> {
        self.content(number, &self.entry(number)?)
    }

    /// [`SegmentReader::read_frame`] to the beginning of `into`, which has room for any frame. Gives its
    /// length; none if it does not lie in the first `come` bytes of the file.
    pub(crate) fn frame_within(
        &self,
        number: u32,
        come: u64,
        into: &mut [u8],
    ) -> Result<Option<usize>, SegmentError> {
        let entry = self.entry(number)?;
        if entry.at.saturating_add(u64::from(entry.stored_len)) > come {
            return Ok(None);
        }
        let content = &mut into[..entry.content_len as usize];
        if entry.stored_len == entry.content_len {
            self.read_stored(number, &entry, content)?;
        } else {
            let stored = self.stored_bytes(number, &entry)?;
            decompress_into(number, content, &stored)?;
        }
        Ok(Some(content.len()))
    }

    /// Frame `number` as it is stored, which matched its hash.
    ///
    /// # Errors
    /// As [`SegmentReader::read_frame`].
    pub(crate) fn stored_frame(&self, number: u32) -> Result<Frame<'static>, SegmentError> {
        let entry = self.entry(number)?;
        Ok(Frame {
            stored: Cow::Owned(self.stored_bytes(number, &entry)?),
            content_len: entry.content_len,
            hash: entry.hash,
        })
    }

    fn entry(&self, number: u32) -> Result<FrameEntry, SegmentError> {
        if number >= self.footer.summary.frames {
            return Err(SegmentError::Invalid {
                site: Site::Frame(number),
                fault: "does not exist",
            });
        }
        let mut bytes = [0; ENTRY_LEN];
        let at = self.footer.table + u64::from(number) * ENTRY_LEN as u64;
        read(&*self.file, Site::Tables, at, &mut bytes)?;
        FrameEntry::read(number, &bytes)
    }

    /// Reads, hashes and decodes every frame: what a replica does before it acknowledges.
    ///
    /// # Errors
    /// The first frame that is wrong.
    pub fn verify_all(&self) -> Result<(), SegmentError> {
        self.entries(|number, entry| self.content(number, entry).map(drop))
    }

    fn content(&self, number: u32, entry: &FrameEntry) -> Result<Vec<u8>, SegmentError> {
        let stored = self.stored_bytes(number, entry)?;
        decode(number, entry.content_len, stored)
    }

    fn stored_bytes(&self, number: u32, entry: &FrameEntry) -> Result<Vec<u8>, SegmentError> {
        let mut stored = vec![0; entry.stored_len as usize];
        self.read_stored(number, entry, &mut stored)?;
        Ok(stored)
    }

    fn read_stored(
        &self,
        number: u32,
        entry: &FrameEntry,
        stored: &mut [u8],
    ) -> Result<(), SegmentError> {
        read(&*self.file, Site::Frame(number), entry.at, stored)?;
        if blake3::hash(stored) != entry.hash {
            return Err(SegmentError::Damaged(Site::Frame(number)));
        }
        Ok(())
    }

    /// Calls `visit` with every entry of the frame table.
    fn entries(
        &self,
        mut visit: impl FnMut(u32, &FrameEntry) -> Result<(), SegmentError>,
    ) -> Result<(), SegmentError> {
        let frames = self.footer.summary.frames;
        let mut bytes = Vec::new();
        for first in (0..frames).step_by(BATCH as usize) {
            let count = BATCH.min(frames - first);
            bytes.resize(count as usize * ENTRY_LEN, 0);
            let at = self.footer.table + u64::from(first) * ENTRY_LEN as u64;
            read(&*self.file, Site::Tables, at, &mut bytes)?;
            for (number, bytes) in (first..).zip(bytes.chunks_exact(ENTRY_LEN)) {
                visit(number, &FrameEntry::read(number, bytes)?)?;
            }
        }
        Ok(())
    }

    /// Checks frame table and index against each other, the disks, and the root.
    fn check(&self, header_hash: &[u8; 32]) -> Result<(), SegmentError> {
        let summary = self.footer.summary;
        let mut tree = Tree::new(header_hash);
        // A bit for each block of content that no run has claimed yet.
        let mut unclaimed: Vec<u16> = Vec::with_capacity(summary.frames as usize);
        let mut at = self.frames_at;
        self.entries(|number, entry| {
            if entry.at != at {
                return invalid(Site::Frame(number), "does not follow the frame before it");
            }
            at += u64::from(entry.stored_len);
            unclaimed.push(mask(entry.content_len / BLOCK_BYTES));
            tree.frame(entry);
            Ok(())
        })?;
        if at != self.footer.table {
            return invalid(
                Site::Footer,
                "does not place the frame table after the last frame",
            );
        }

        let mut hasher = blake3::Hasher::new();
        let (mut content, mut zeroes) = (0_u64, 0_u64);
        let mut before = (0_u16, 0_u64);
        for (number, run) in (0..).zip(self.runs()) {
            let run = run?;
            hasher.update(&run.to_bytes());
            let site = Site::Run(number);
            let end = run.block + u64::from(run.count);
            match self.header.disks.get(usize::from(run.disk)) {
                None => return invalid(site, "lies on a disk that the header does not name"),
                Some(disk) if end > disk.size.0 / BLOCK_SIZE => {
                    return invalid(site, "lies outside its disk");
                }
                Some(_) if (run.disk, run.block) < before => {
                    return invalid(site, "overlaps the one before it or is out of order");
                }
                Some(_) => before = (run.disk, end),
            }
            let len = u64::from(run.count) * BLOCK_SIZE;
            content += len;
            match run.source {
                Source::Zero => zeroes += len,
                Source::Frame { frame, skip } => {
                    let Some(unclaimed) = unclaimed.get_mut(frame as usize) else {
                        return invalid(site, "names a frame that there is not");
                    };
                    let wanted = mask(run.count) << skip;
                    if *unclaimed & wanted != wanted {
                        return invalid(
                            site,
                            "names content that is not there or was named before",
                        );
                    }
                    *unclaimed &= !wanted;
                }
            }
        }
        if let Some(number) = unclaimed.iter().position(|bits| *bits != 0) {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            return invalid(
                Site::Frame(number),
                "holds content that belongs to no block",
            );
        }
        if (summary.content, summary.zeroes) != (Bytes(content), Bytes(zeroes)) {
            return invalid(
                Site::Footer,
                "states another amount of content than the index",
            );
        }
        if tree.finish(hasher.finalize()) != summary.root {
            return Err(SegmentError::Damaged(Site::Tables));
        }
        Ok(())
    }
}

/// A bit for each of `count` blocks, from 0 to 16.
fn mask(count: u32) -> u16 {
    u16::MAX
        .checked_shr(16_u32.saturating_sub(count))
        .unwrap_or(0)
}

/// The footer of a file of `file_len` bytes whose frames begin at `frames_at`: its parts follow
/// each other without a gap.
pub(super) fn read_footer(
    file: &dyn File,
    file_len: u64,
    frames_at: u64,
) -> Result<Footer, SegmentError> {
    let mut bytes = [0; FOOTER_LEN];
    let footer_at = file_len - FOOTER_LEN as u64;
    read(file, Site::Footer, footer_at, &mut bytes)?;
    let footer = Footer::read(&bytes)?;
    let summary = &footer.summary;
    if summary.file_len.0 != file_len {
        return invalid(Site::Footer, "states another length than that of the file");
    }
    if summary.frames > MAX_FRAMES || summary.runs > MAX_RUNS {
        return Err(SegmentError::Full);
    }
    let index = u64::from(summary.frames) * ENTRY_LEN as u64;
    let index = footer.table.checked_add(index);
    let end = footer
        .index
        .checked_add(u64::from(summary.runs) * RUN_LEN as u64);
    if footer.table < frames_at || index != Some(footer.index) || end != Some(footer_at) {
        return invalid(Site::Footer, "does not place the parts one after the other");
    }
    Ok(footer)
}

pub(super) fn read(
    file: &dyn File,
    site: Site,
    at: u64,
    into: &mut [u8],
) -> Result<(), SegmentError> {
    file.read_at(at, into).map_err(|source| SegmentError::Io {
        action: "read",
        site,
        source,
    })
}

fn invalid<T>(site: Site, fault: &'static str) -> Result<T, SegmentError> {
    Err(SegmentError::Invalid { site, fault })
}

/// The runs of a segment's index, read in batches. Ends after the first error.
pub struct Runs<'a> {
    reader: &'a SegmentReader,
    next: u32,
    batch: Vec<u8>,
    used: usize,
}

impl Runs<'_> {
    fn fill(&mut self) -> Result<(), SegmentError> {
        let footer = &self.reader.footer;
        let count = BATCH.min(footer.summary.runs - self.next);
        self.batch.resize(count as usize * RUN_LEN, 0);
        self.used = 0;
        let at = footer.index + u64::from(self.next) * RUN_LEN as u64;
        read(&*self.reader.file, Site::Tables, at, &mut self.batch)
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<Run, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        let runs = self.reader.footer.summary.runs;
        if self.next >= runs {
            return None;
        }
        let number = self.next;
        let filled = if self.used == self.batch.len() {
            self.fill()
        } else {
            Ok(())
        };
        let run = filled.and_then(|()| Run::read(number, &self.batch[self.used..]));
        self.used += RUN_LEN;
        self.next = if run.is_ok() { number + 1 } else { runs };
        Some(run)
    }
}
