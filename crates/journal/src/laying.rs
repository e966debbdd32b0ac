//! A segment is written to the base files: when it is merged, or as a part of an initial replication
//! while that still comes.
//!
//! ```text
//!   the file    | frame 0 | frame 1 | ..... | not there yet ... | frame table | index |
//!   the base    <---------------------------|                      came first, verified
//! ```
//!
//! Frame by frame, each of which is verified before. May be repeated, in whole or in part, any number of
//! times: what is there of a segment that turns out to be damaged, or never comes whole, counts as little
//! as what a power cut left.

use std::fmt;
use std::sync::Arc;

use durable::{File, Need};
use model::BLOCK_SIZE;

use crate::journal::BaseFile;
use crate::segment::Site;
use crate::{JournalError, Root, SegmentError, SegmentReader, Source};

/// Bytes written to a base after which the operating system is asked to begin with making them durable.
const BEGIN_SYNC: u64 = 32 << 20;
/// Bytes that are written of what has come of a part before whoever sent the last of it is answered.
pub(crate) const AT_ONCE: u64 = 16 << 20;

/// A segment on its way into the base files.
pub(crate) struct Laying {
    reader: SegmentReader,
    /// Of the segment, for errors.
    name: String,
    /// The bases, in the order of the header's disks.
    files: Vec<Arc<dyn File>>,
    /// Runs of the index before this one are written.
    next: u32,
    since_sync: u64,
}

impl fmt::Debug for Laying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Laying({} from run {})", self.name, self.next)
    }
}

impl Laying {
    /// Nothing is written yet, but that the base files are as long as the disks.
    ///
    /// # Errors
    /// A disk that has no base, or a base that cannot be made longer.
    pub(crate) fn begin(
        reader: SegmentReader,
        name: &str,
        bases: &[BaseFile],
    ) -> Result<Self, JournalError> {
        let mut files = Vec::with_capacity(reader.header().disks.len());
        for disk in &reader.header().disks {
            let (base, file) = bases
                .iter()
                .find(|(base, _)| base.id == disk.id)
                .ok_or_else(|| JournalError::Missing(name.to_owned()))?;
            if disk.size.0 > base.size.0 {
                file.set_len(disk.size.0)
                    .map_err(|source| JournalError::io("write the base from", name, source))?;
            }
            files.push(file.clone());
        }
        Ok(Self {
            reader,
            name: name.to_owned(),
            files,
            next: 0,
            since_sync: 0,
        })
    }

    /// Of the segment.
    pub(crate) fn root(&self) -> Root {
        self.reader.summary().root
    }

    /// Writes what lies in the first `come` bytes of the segment's file, up to the first frame that is not
    /// there yet, or to about `most` bytes.
    ///
    /// # Errors
    /// A damaged frame, or a failed read or write.
    pub(crate) fn advance(&mut self, come: u64, most: u64) -> Result<(), JournalError> {
        let failed = |source| JournalError::segment(&self.name, source);
        let written = |source| JournalError::io("write the base from", &self.name, source);
        let (mut open, mut left): (Option<(u32, Vec<u8>)>, u64) = (None, most);
        for run in self.reader.runs_from(self.next) {
            let run = run.map_err(failed)?;
            let base = self
                .files
                .get(usize::from(run.disk))
                .ok_or_else(|| JournalError::Missing(self.name.clone()))?;
            let (at, len) = (run.block * BLOCK_SIZE, u64::from(run.count) * BLOCK_SIZE);
            match run.source {
                Source::Zero => base.punch(at, len).map_err(written)?,
                Source::Frame { frame, skip } => {
                    let content = match open.take() {
                        Some((number, content)) if number == frame => Some(content),
                        _ => self.reader.frame_within(frame, come).map_err(failed)?,
                    };
                    let Some(content) = content else {
                        return Ok(());
                    };
                    let start = usize::from(skip) * 4096;
                    let end = start + run.count as usize * 4096;
                    let part = content
                        .get(start..end)
                        .ok_or_else(|| failed(SegmentError::Damaged(Site::Frame(frame))))?;
                    base.write_at(at, part).map_err(written)?;
                    open = Some((frame, content));
                    self.since_sync += len;
                    left = left.saturating_sub(len);
                    if self.since_sync >= BEGIN_SYNC {
                        base.begin_sync();
                        self.since_sync = 0;
                    }
                }
            }
            self.next += 1;
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// What has to be flushed.
    pub(crate) fn needs(&self) -> Vec<Need> {
        self.files.iter().cloned().map(Need::Content).collect()
    }
}
