//! Makes a run file of segments.

use std::io::Write;

use model::DiskId;

use super::entry::{At, Entry, LEVELS, MAX_BLOCKS, split};
use super::join::merge;
use super::{Member, RunError, RunWriter};
use crate::{JournalError, SegmentReader};

/// A segment that goes into a run file.
pub(crate) struct Input {
    pub(crate) member: Member,
    /// For errors.
    pub(crate) name: String,
    /// Checked.
    pub(crate) reader: SegmentReader,
}

impl Input {
    fn failed(&self, source: crate::SegmentError) -> RunError {
        JournalError::segment(&self.name, source).into()
    }

    /// For each of its disks the levels of pieces that it holds, a bit each.
    fn levels(&self) -> Result<Vec<u16>, RunError> {
        let header = self.reader.header();
        if header
            .disks
            .iter()
            .any(|disk| disk.size.0 / model::BLOCK_SIZE > MAX_BLOCKS)
        {
            return Err(RunError::Full("a disk that is too large"));
        }
        let mut levels = vec![0; header.disks.len()];
        for run in self.reader.runs() {
            let run = run.map_err(|source| self.failed(source))?;
            if let Some(levels) = levels.get_mut(usize::from(run.disk)) {
                for (key, _) in split(&run, 0) {
                    *levels |= 1 << key.level();
                }
            }
        }
        Ok(levels)
    }

    /// The pieces of `level` of the disk at `from` in its header, as entries about segment `segment` and
    /// disk `disk` of the run file.
    fn pieces(
        &self,
        level: u32,
        from: usize,
        segment: u32,
        disk: u8,
    ) -> impl Iterator<Item = Result<Entry, RunError>> {
        let mut runs = self.reader.runs();
        let mut pieces = None;
        std::iter::from_fn(move || {
            loop {
                let piece = pieces.as_mut().and_then(Iterator::next);
                if let Some((key, source)) = piece {
                    let key: super::Key = key;
                    if key.level() == level {
                        let at = At { key, segment };
                        return Some(Ok(Entry { at, source }));
                    }
                    continue;
                }
                match runs.next()? {
                    Ok(run) if usize::from(run.disk) == from => {
                        pieces = Some(split(&run, disk));
                    }
                    Ok(run) if usize::from(run.disk) > from => return None,
                    Ok(_) => {}
                    Err(source) => return Some(Err(self.failed(source))),
                }
            }
        })
    }
}

/// Writes to `into` what `segments` hold, the oldest first. Their indexes are read once for each level
/// of pieces, a batch at a time.
///
/// Gives the hash of the footer and `into`.
///
/// # Errors
/// A segment that cannot be read, a failed write, [`RunError::Full`].
pub(crate) fn build<W: Write>(segments: &[Input], into: W) -> Result<(blake3::Hash, W), RunError> {
    let mut levels = Vec::with_capacity(segments.len());
    let mut disks: Vec<DiskId> = Vec::new();
    for segment in segments {
        let of = segment.levels()?;
        for (disk, levels) in segment.reader.header().disks.iter().zip(&of) {
            if *levels != 0 && !disks.contains(&disk.id) {
                disks.push(disk.id);
            }
        }
        levels.push(of);
    }
    disks.sort_unstable();
    let members = segments.iter().map(|segment| segment.member);
    let mut writer = RunWriter::create(into, &disks, members)?;
    for level in 0..LEVELS {
        for (disk, id) in (0..).zip(&disks) {
            let mut inputs = Vec::new();
            for (number, (segment, levels)) in (0..).zip(segments.iter().zip(&levels)) {
                let mut of = segment.reader.header().disks.iter();
                let from = of.position(|disk| disk.id == *id);
                if let Some(from) = from.filter(|from| levels[*from] >> level & 1 == 1) {
                    inputs.push(segment.pieces(level, from, number, disk));
                }
            }
            merge(inputs, &mut writer)?;
        }
    }
    writer.finish()
}
