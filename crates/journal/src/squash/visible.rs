//! What is visible of one disk when segments lie above each other.

use super::SquashError;
use crate::segment::Runs;
use crate::{Run, SegmentReader, Source};

/// Consecutive blocks whose newest content is in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Position of the segment, the oldest is 0.
    pub(super) segment: usize,
    pub(super) run: Run,
}

/// The visible pieces of a disk, by block, read from the indexes as they are needed. Ends after
/// the first error.
pub(super) struct Visible<'a> {
    heads: Vec<Head<'a>>,
    broken: bool,
}

/// The runs of a segment that are not used up.
struct Head<'a> {
    segment: usize,
    disk: u16,
    runs: Runs<'a>,
    /// The next one, or what is left of it.
    run: Option<Run>,
}

impl<'a> Visible<'a> {
    /// Of the disk that has these positions in the headers of `segments`, the oldest first.
    pub(super) fn of(
        segments: &'a [SegmentReader],
        positions: &[Option<u16>],
    ) -> Result<Self, SquashError> {
        let mut heads = Vec::with_capacity(segments.len());
        for (number, (reader, position)) in segments.iter().zip(positions).enumerate() {
            let Some(disk) = *position else {
                continue;
            };
            let runs = reader.runs_of(disk);
            let mut head = Head {
                segment: number,
                disk,
                runs: runs.map_err(|source| SquashError::Read { number, source })?,
                run: None,
            };
            head.advance()?;
            heads.push(head);
        }
        Ok(Self {
            heads,
            broken: false,
        })
    }

    fn piece(&mut self) -> Result<Option<Piece>, SquashError> {
        let next = |head: &Head<'_>| head.run.map(|run| run.block);
        let Some(start) = self.heads.iter().filter_map(next).min() else {
            return Ok(None);
        };
        // The newest of those that begin here; none of the others reaches back to here.
        let mut top: Option<(usize, Run)> = None;
        let mut end = u64::MAX;
        for head in self.heads.iter().rev() {
            let Some(run) = head.run else {
                continue;
            };
            if run.block == start {
                top = Some((head.segment, run));
                break;
            }
            end = end.min(run.block);
        }
        let Some((segment, run)) = top else {
            return Ok(None);
        };
        let run = until(run, end);
        let end = end_of(&run);
        for head in &mut self.heads {
            head.skip_to(end)?;
        }
        Ok(Some(Piece { segment, run }))
    }
}

impl Iterator for Visible<'_> {
    type Item = Result<Piece, SquashError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let piece = self.piece();
        self.broken = piece.is_err();
        piece.transpose()
    }
}

impl Head<'_> {
    fn advance(&mut self) -> Result<(), SquashError> {
        let next = self.runs.next().transpose();
        let next = next.map_err(|source| SquashError::Read {
            number: self.segment,
            source,
        })?;
        self.run = next.filter(|run| run.disk == self.disk);
        Ok(())
    }

    /// Forgets everything before `block`.
    fn skip_to(&mut self, block: u64) -> Result<(), SquashError> {
        while let Some(run) = self.run.filter(|run| run.block < block) {
            if end_of(&run) > block {
                self.run = Some(from(run, block));
                return Ok(());
            }
            self.advance()?;
        }
        Ok(())
    }
}

fn end_of(run: &Run) -> u64 {
    run.block + u64::from(run.count)
}

/// Its part before `block`; all of it if it ends before.
fn until(mut run: Run, block: u64) -> Run {
    let count = u32::try_from(block - run.block).unwrap_or(u32::MAX);
    run.count = run.count.min(count);
    run
}

/// Its part from `block` on, which lies in it.
fn from(mut run: Run, block: u64) -> Run {
    let cut = u32::try_from(block - run.block).expect("less than its own count");
    run.block = block;
    run.count -= cut;
    if let Source::Frame { skip, .. } = &mut run.source {
        *skip += u8::try_from(cut).expect("a frame has 16 blocks");
    }
    run
}
