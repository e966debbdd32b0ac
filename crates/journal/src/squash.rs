//! Several neighbouring segments in one: the points between them go, the newest stays.
//!
//! ```text
//!   segment 4   [a][b b b b]      frame by frame, the oldest segment first:
//!   segment 5        [c c]          [a]        survives whole: its stored bytes are copied
//!   segment 6   .................   [b . . b]  survives in part: what is left is encoded
//!   squashed    [a][b c c b]        again, together with what is left of other frames
//! ```
//!
//! The result holds every block that one of them holds, with the content that the newest of
//! these says; its header is that of the newest, `since` is that of the oldest. So it can stand
//! where they stood, and what read them before reads the same.
//!
//! The runs are merged twice, streaming: first to see which blocks of each frame are visible
//! ([`Plan`]), which takes 2 bytes for each frame, then to write them. Nothing of the content
//! is kept but the frame at hand. What would not fit in one segment is refused before anything
//! is written.

use std::io::Write;

use model::{BLOCK_SIZE, DiskId, Since};

use crate::segment::{MAX_CONTENT, MAX_FRAMES, MAX_RUNS};
use crate::{
    Content, Frame, Header, Run, SegmentError, SegmentReader, SegmentWriter, Source, Summary,
};

#[cfg(test)]
mod tests;
mod visible;

use visible::Visible;

/// Most segments at once. Each is open, and is looked at for every run of the result.
pub(crate) const MAX_SEGMENTS: usize = 128;

/// Most frames of all of them together: 48 MiB of memory. As many again as the result has at most, for much
/// of it is hidden.
const MAX_SOURCE_FRAMES: u64 = 2 * MAX_FRAMES as u64;

/// [`BLOCK_SIZE`] in memory.
const BLOCK: usize = 4096;

/// Why segments cannot be put together. They are as they were.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SquashError {
    /// They are not made for that.
    #[error("the segments cannot be one: {0}")]
    Unfit(&'static str),
    /// One of them is wrong.
    #[error("cannot read number {number} of the segments")]
    Read {
        /// Its position.
        number: usize,
        /// Why.
        source: SegmentError,
    },
    /// The result cannot be written.
    #[error("cannot write the segment that holds all of them")]
    Write(#[source] SegmentError),
}

/// What a segment can hold; less in tests.
#[derive(Debug, Clone, Copy)]
struct Limits {
    frames: u64,
    runs: u64,
}

/// What becomes of each frame of some segments.
pub(crate) struct Plan<'a> {
    segments: &'a [SegmentReader],
    header: Header,
    /// For each disk of the result: its position in the header of each segment.
    disks: Vec<Vec<Option<u16>>>,
    /// For each frame of each segment: a bit for each block that is visible.
    masks: Vec<Vec<u16>>,
    /// Bytes that the result holds.
    content: u64,
}

/// Where the visible blocks of a frame went: frame and block in it, as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moved(u32);

impl Moved {
    const NOWHERE: Self = Self(u32::MAX);

    fn to(frame: u32, skip: u8) -> Self {
        Self(frame << 4 | u32::from(skip))
    }

    fn frame(self) -> u32 {
        self.0 >> 4
    }

    fn skip(self) -> u32 {
        self.0 & 15
    }
}
const _: () = assert!(MAX_FRAMES <= 1 << 26);

impl<'a> Plan<'a> {
    /// For `segments`, the oldest first.
    ///
    /// # Errors
    /// They are no neighbours, or too much for one segment; a failed read.
    pub(crate) fn of(segments: &'a [SegmentReader]) -> Result<Self, SquashError> {
        let limits = Limits {
            frames: MAX_FRAMES.into(),
            runs: MAX_RUNS.into(),
        };
        Self::within(segments, limits)
    }

    /// That of the one segment.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    fn within(segments: &'a [SegmentReader], limits: Limits) -> Result<Self, SquashError> {
        let header = header(segments)?;
        let disks = disks(segments, &header)?;
        let frames = |segment: &SegmentReader| u64::from(segment.summary().frames);
        if segments.iter().map(frames).sum::<u64>() > MAX_SOURCE_FRAMES {
            return Err(SquashError::Unfit("they have too many frames together"));
        }
        let masks = segments.iter().map(|segment| {
            let frames = usize::try_from(segment.summary().frames).unwrap_or(usize::MAX);
            vec![0_u16; frames]
        });
        let mut plan = Self {
            segments,
            header,
            disks,
            masks: masks.collect(),
            content: 0,
        };
        let runs = plan.look()?;
        let frames = plan.masks.iter().flatten().filter(|mask| **mask != 0);
        if runs > limits.runs || frames.count() as u64 > limits.frames {
            return Err(SquashError::Unfit("one segment does not hold as much"));
        }
        Ok(plan)
    }

    /// Finds the visible blocks of each frame. Gives the number of runs.
    fn look(&mut self) -> Result<u64, SquashError> {
        let mut runs = 0;
        for positions in &self.disks {
            for piece in Visible::of(self.segments, positions)? {
                let piece = piece?;
                runs += 1;
                self.content += u64::from(piece.run.count) * BLOCK_SIZE;
                let Source::Frame { frame, skip } = piece.run.source else {
                    continue;
                };
                let mask = self.masks[piece.segment].get_mut(frame as usize);
                // The reader checked that when the segment was opened.
                *mask.ok_or(SquashError::Unfit("a frame is missing"))? |=
                    mask_of(skip, piece.run.count);
            }
        }
        Ok(runs)
    }

    /// Writes the one segment to `into`.
    ///
    /// # Errors
    /// A damaged frame, a failed read or write. What was written is no segment then.
    pub(crate) fn write<W: Write>(self, into: W) -> Result<(Summary, W), SquashError> {
        let mut writer = SegmentWriter::create(into, &self.header).map_err(SquashError::Write)?;
        let moved = self.write_frames(&mut writer)?;
        for (disk, positions) in (0..).zip(&self.disks) {
            for piece in Visible::of(self.segments, positions)? {
                let piece = piece?;
                let source = match piece.run.source {
                    Source::Zero => Source::Zero,
                    Source::Frame { frame, skip } => {
                        let at = frame as usize;
                        let to = moved[piece.segment][at];
                        let before = self.masks[piece.segment][at] & mask_of(0, skip.into());
                        let skip = to.skip() + before.count_ones();
                        Source::Frame {
                            frame: to.frame(),
                            skip: u8::try_from(skip).expect("a frame has 16 blocks"),
                        }
                    }
                };
                let run = Run {
                    disk,
                    source,
                    ..piece.run
                };
                writer.push_run(run).map_err(SquashError::Write)?;
            }
        }
        let (summary, file) = writer.finish().map_err(SquashError::Write)?;
        if summary.content.0 != self.content {
            return Err(SquashError::Unfit("they changed meanwhile"));
        }
        Ok((summary, file))
    }

    /// Writes what is visible of all frames, in the order in which they are stored. Says where
    /// each went.
    fn write_frames<W: Write>(
        &self,
        writer: &mut SegmentWriter<W>,
    ) -> Result<Vec<Vec<Moved>>, SquashError> {
        let mut moved: Vec<_> = self
            .masks
            .iter()
            .map(|masks| vec![Moved::NOWHERE; masks.len()])
            .collect();
        let mut left = Left::default();
        for (segment, masks) in self.masks.iter().enumerate() {
            let reader = &self.segments[segment];
            let failed = |source| SquashError::Read {
                number: segment,
                source,
            };
            for (number, mask) in (0_u32..).zip(masks.iter().copied()) {
                if mask == 0 {
                    continue;
                }
                let frame = reader.stored_frame(number).map_err(failed)?;
                let at = (segment, number as usize);
                if mask.count_ones() == frame.content_len() / 4096 {
                    let to = writer.push_content(&frame).map_err(SquashError::Write)?;
                    moved[at.0][at.1] = Moved::to(to, 0);
                    continue;
                }
                let content = frame.decode(number).map_err(failed)?;
                if !left.has_room(mask) {
                    left.flush(writer, &mut moved)?;
                }
                left.add(at, mask, &content);
            }
        }
        left.flush(writer, &mut moved)?;
        Ok(moved)
    }
}

/// What is left of frames that survive in part, until it is a frame.
#[derive(Default)]
struct Left {
    content: Vec<u8>,
    /// Segment and frame that it came from, and the block of `content` where it begins.
    from: Vec<((usize, usize), u8)>,
}

impl Left {
    fn has_room(&self, mask: u16) -> bool {
        self.content.len() + mask.count_ones() as usize * BLOCK <= MAX_CONTENT
    }

    fn add(&mut self, at: (usize, usize), mask: u16, content: &[u8]) {
        let skip = u8::try_from(self.content.len() / BLOCK).expect("a frame has 16 blocks");
        self.from.push((at, skip));
        for (number, block) in content.chunks(BLOCK).enumerate() {
            if mask >> number & 1 == 1 {
                self.content.extend_from_slice(block);
            }
        }
    }

    fn flush<W: Write>(
        &mut self,
        writer: &mut SegmentWriter<W>,
        moved: &mut [Vec<Moved>],
    ) -> Result<(), SquashError> {
        if self.content.is_empty() {
            return Ok(());
        }
        let frame = Frame::encode(&self.content, Frame::LEVEL).map_err(SquashError::Write)?;
        let number = writer.push_content(&frame).map_err(SquashError::Write)?;
        for ((segment, frame), skip) in self.from.drain(..) {
            moved[segment][frame] = Moved::to(number, skip);
        }
        self.content.clear();
        Ok(())
    }
}

/// A bit for each of `count` blocks after the first `skip` of a frame.
fn mask_of(skip: u8, count: u32) -> u16 {
    let ones = u16::MAX
        .checked_shr(16_u32.saturating_sub(count))
        .unwrap_or(0);
    ones << skip
}

/// That of the newest, since what the oldest builds on.
fn header(segments: &[SegmentReader]) -> Result<Header, SquashError> {
    let (Some(oldest), Some(newest)) = (segments.first(), segments.last()) else {
        return Err(SquashError::Unfit("there are none"));
    };
    if segments.len() > MAX_SEGMENTS {
        return Err(SquashError::Unfit("they are too many at once"));
    }
    let (Content::Delta { since, .. }, Content::Delta { sequence, .. }) =
        (oldest.header().content, newest.header().content)
    else {
        return Err(SquashError::Unfit(
            "a part of an initial replication is no point",
        ));
    };
    for pair in segments.windows(2) {
        let (older, newer) = (pair[0].header(), pair[1].header());
        let (Some(before), Some(point)) = (older.point(), newer.point()) else {
            return Err(SquashError::Unfit(
                "a part of an initial replication is no point",
            ));
        };
        let joins = match newer.content {
            Content::Delta {
                since: Since::Point(since),
                ..
            } => since.sequence <= before.sequence,
            _ => true,
        };
        if older.vm != newer.vm || !newest.header().lineage.contains(before) {
            return Err(SquashError::Unfit("they are of different histories"));
        }
        if before.sequence >= point.sequence || !joins {
            return Err(SquashError::Unfit("one does not follow the other"));
        }
    }
    Ok(Header {
        content: Content::Delta { sequence, since },
        ..newest.header().clone()
    })
}

/// Where each disk of the result is in each segment. One that is not in the result is gone.
fn disks(
    segments: &[SegmentReader],
    header: &Header,
) -> Result<Vec<Vec<Option<u16>>>, SquashError> {
    let position = |segment: &SegmentReader, id: DiskId| {
        let mut disks = (0..).zip(&segment.header().disks);
        let found = disks.find(|(_, disk)| disk.id == id);
        found.map(|(position, disk)| (position, disk.size.0, disk.joining))
    };
    let mut all = Vec::new();
    for disk in &header.disks {
        let (mut positions, mut size, mut joining) = (Vec::new(), 0, true);
        for segment in segments {
            let found = position(segment, disk.id);
            match found {
                Some((_, there, joins)) if there >= size && joining >= joins => {
                    (size, joining) = (there, joins);
                }
                None if size == 0 => {}
                // What the older segments say of it would come back.
                _ => return Err(SquashError::Unfit("a disk became smaller or came back")),
            }
            positions.push(found.map(|(position, ..)| position));
        }
        all.push(positions);
    }
    Ok(all)
}
