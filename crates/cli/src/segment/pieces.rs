//! The content of a range of a disk as a segment tells it, piece by piece.

use std::iter::Peekable;
use std::path::Path;

use journal::segment::Runs;
use journal::{Run, SegmentReader, Source};
use model::{BLOCK_SIZE, Problem};

use super::{Range, wrong};

/// A part of what was asked for, whole blocks but at its ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: Range,
    pub(super) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// It reads as zeroes.
    Zero,
    /// The segment does not say: it did not change.
    Absent,
}

/// Pieces in order, without gaps. They end after the first error.
pub(super) struct Pieces<'a> {
    path: &'a Path,
    reader: &'a SegmentReader,
    disk: usize,
    runs: Peekable<Runs<'a>>,
    at: u64,
    end: u64,
    /// The frame that was read last: neighbours often lie in one.
    frame: Option<(u32, Vec<u8>)>,
}

impl<'a> Pieces<'a> {
    /// Of `range` of the disk at that position in the header's list.
    pub(super) fn new(
        path: &'a Path,
        reader: &'a SegmentReader,
        disk: usize,
        range: Range,
    ) -> Self {
        Self {
            path,
            reader,
            disk,
            runs: reader.runs().peekable(),
            at: range.at.0,
            end: range.end(),
            frame: None,
        }
    }

    /// The first run that ends after the place that is reached; none when there is none before the
    /// end.
    fn run(&mut self) -> Result<Option<Run>, Problem> {
        loop {
            let run = match self.runs.peek() {
                None => return Ok(None),
                Some(Err(error)) => return Err(wrong(self.path, error)),
                Some(Ok(run)) => *run,
            };
            let place = (usize::from(run.disk), Range::of(&run).end());
            if place > (self.disk, self.at) {
                let here = place.0 == self.disk && Range::of(&run).at.0 < self.end;
                return Ok(here.then_some(run));
            }
            self.runs.next();
        }
    }

    fn piece(&mut self) -> Result<Piece, Problem> {
        let run = self.run()?;
        let begins = run.map_or(self.end, |run| Range::of(&run).at.0);
        let (end, content) = match run {
            Some(run) if begins <= self.at => {
                let end = Range::of(&run).end().min(self.end);
                (end, self.content(&run, begins, end)?)
            }
            _ => (begins, Content::Absent),
        };
        let range = Range::new(self.at, end);
        self.at = end;
        Ok(Piece { range, content })
    }

    /// Of the run that begins at `begins`, the bytes from the place that is reached to `end`.
    fn content(&mut self, run: &Run, begins: u64, end: u64) -> Result<Content, Problem> {
        let Source::Frame { frame, skip } = run.source else {
            return Ok(Content::Zero);
        };
        if self
            .frame
            .as_ref()
            .is_none_or(|(number, _)| *number != frame)
        {
            let content = self.reader.read_frame(frame);
            self.frame = Some((frame, content.map_err(|error| wrong(self.path, &error))?));
        }
        let content = self.frame.as_ref().map_or(&[][..], |(_, content)| content);
        let first = u64::from(skip) * BLOCK_SIZE;
        let index = |at: u64| usize::try_from(first + at - begins).unwrap_or(usize::MAX);
        // The reader made sure that a run lies in its frame.
        let bytes = content.get(index(self.at)..index(end)).unwrap_or_default();
        Ok(Content::Bytes(bytes.to_vec()))
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let piece = self.piece();
        if piece.is_err() {
            self.at = self.end;
        }
        Some(piece)
    }
}
