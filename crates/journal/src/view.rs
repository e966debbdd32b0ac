//! How a point is read as long as the files stay where they are.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use block::Place;
use durable::{File, Folder};
use model::{BLOCK_SIZE, DiskId, PointId};

use crate::index::Index;
use crate::point::base_of;
use crate::recent::Shards;
use crate::runs::folder::open_all;
use crate::runs::{Found, Held, Input, Member, RunError, RunFile, Stack, build, join};
use crate::segment::{FramePlace, MAX_CONTENT, MAX_FRAMES};
use crate::stored::Stored;
use crate::{JournalError, Source};

/// Files with segments that are kept open; packs are 64 MiB each.
const OPEN_FILES: usize = 64;
/// Frames of which is kept where they lie: 1 MiB.
const PLACES: usize = 16384;
/// Decoded frames that are kept, for blocks that were written together: 8 MiB.
const FRAMES: usize = 128;
/// Blocks that are kept, for those that are wanted again and lie in frames of their own: 8 MiB.
const BLOCKS: usize = 2048;
/// Blocks of a stretch of a disk: 256 KiB.
const STRETCH: u64 = 64;
/// Stretches of which is kept what is the newest there, so that the run files are looked into once for
/// all blocks of one: 4 GiB of a disk. Each takes 24 bytes where no segment holds anything, and up to 1.5
/// KiB.
const STRETCHES: usize = 16384;
/// Pages of run files that are kept: 8 MiB.
const PAGES: usize = 2048;
/// Most segments that are read at once for what no run file covers.
const AT_ONCE: usize = 64;
/// [`BLOCK_SIZE`] in memory.
const BLOCK: u32 = 4096;

/// See the module.
pub(crate) struct View {
    folder: Arc<dyn Folder>,
    /// Those of the point, the oldest first.
    segments: Vec<Stored>,
    stack: Stack,
    /// By disk and number.
    stretches: Shards<Arc<Stretch>>,
    /// Of each disk, the bytes of the base that belong to the point; the rest of the disk reads as zeroes
    /// where no segment says otherwise.
    base_lens: Vec<u64>,
    /// By number of the pack, or position of the segment.
    files: Shards<Arc<dyn File>>,
    /// By position of the segment, and number.
    places: Shards<FramePlace>,
    /// By position of the segment, and number.
    frames: Shards<Arc<Vec<u8>>>,
    /// By position of the segment, number of the frame, and of the block in it.
    blocks: Shards<Arc<[u8]>>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (segments, files) = (self.segments.len(), self.stack.layers());
        write!(f, "View({segments} segments, {files} run files)")
    }
}

impl View {
    /// Of the point's `disks`, as `index` says, without the run files that are `unwanted`.
    ///
    /// # Errors
    /// [`JournalError::NoSuchPoint`]; [`JournalError::Missing`] if a file went since the index was
    /// read; damaged segments, failed reads.
    pub(crate) fn of(
        folder: &Arc<dyn Folder>,
        index: &Index,
        point: PointId,
        disks: &[DiskId],
        unwanted: &[String],
    ) -> Result<Self, JournalError> {
        let (position, _) = index.find(point).ok_or(JournalError::NoSuchPoint(point))?;
        let count = position.map_or(0, |position| position + 1);
        let segments: Vec<Stored> = index.segments.iter().take(count).map(Stored::of).collect();
        let base_len = |id: &DiskId| base_of(index, *id).map(|disk| disk.size.0);
        Ok(Self {
            folder: folder.clone(),
            stack: stack(folder, &segments, disks, unwanted)?,
            stretches: Shards::new(STRETCHES),
            segments,
            base_lens: disks.iter().map(base_len).collect::<Result<_, _>>()?,
            files: Shards::new(OPEN_FILES),
            places: Shards::new(PLACES),
            frames: Shards::new(FRAMES),
            blocks: Shards::new(BLOCKS),
        })
    }

    /// Whether the segments are the same ones, where they were.
    pub(crate) fn has_segments_of(&self, other: &Self) -> bool {
        self.segments == other.segments
    }

    /// Calls `visit` with the pieces of `range` of a disk, which lies inside it, until it breaks.
    ///
    /// # Errors
    /// A damaged run file, a failed read.
    pub(crate) fn places(
        &self,
        disk: usize,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, JournalError> {
        if range.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let base_len = self.base_lens[disk];
        let mut joined = Joined { last: None, visit };
        let blocks = range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE);
        let mut place = |blocks: Range<u64>, found: Option<Found>| {
            let first = blocks.start * BLOCK_SIZE;
            let start = first.max(range.start);
            let end = (blocks.end * BLOCK_SIZE).min(range.end);
            match found {
                None => {
                    let middle = end.min(base_len.max(start));
                    joined.push(start..middle, Place::Stored { at: start })?;
                    joined.push(middle..end, Place::Zero)
                }
                Some(Found {
                    source: Source::Zero,
                    ..
                }) => joined.push(start..end, Place::Zero),
                Some(Found {
                    source: Source::Frame { frame, skip },
                    segment,
                }) => {
                    // Into a frame: below 64 KiB.
                    let inside = u32::try_from(start - first).unwrap_or(u32::MAX);
                    let skip = (u32::from(skip) * BLOCK).saturating_add(inside);
                    let place = Place::Encoded {
                        segment,
                        frame,
                        skip,
                    };
                    joined.push(start..end, place)
                }
            }
        };
        let flow = if blocks.end - blocks.start == 1 {
            place(blocks.clone(), self.newest(disk, blocks.start)?)
        } else {
            self.stack.sweep(disk, blocks, &mut place)?
        };
        Ok(match flow {
            ControlFlow::Continue(()) => joined.finish(),
            ControlFlow::Break(()) => flow,
        })
    }

    /// The newest of one block of a disk.
    fn newest(&self, disk: usize, block: u64) -> Result<Option<Found>, JournalError> {
        let number = block / STRETCH;
        // Blocks have fewer than 56 bits, and a point few disks.
        let key = (disk as u64) << 56 | number;
        let stretch = match self.stretches.get(key) {
            Some(stretch) => stretch,
            None => {
                let first = number * STRETCH;
                let mut pieces = Vec::new();
                let _ = self
                    .stack
                    .sweep(disk, first..first + STRETCH, &mut |range, found| {
                        pieces.push((range.start, found));
                        ControlFlow::Continue(())
                    })?;
                let stretch = Arc::new(Stretch(pieces.into()));
                self.stretches.put(key, stretch.clone());
                stretch
            }
        };
        Ok(stretch.newest(block))
    }

    /// Fills `into` with what a frame holds from byte `skip` of its content on.
    ///
    /// # Errors
    /// [`JournalError::Missing`] if the segment went; content that does not verify, a failed read.
    pub(crate) fn read_frame(
        &self,
        segment: u32,
        frame: u32,
        skip: u32,
        into: &mut [u8],
    ) -> Result<(), JournalError> {
        if frame >= MAX_FRAMES || skip as usize >= MAX_CONTENT {
            return Err(JournalError::IndexDamaged("does not fit its segments"));
        }
        let block = skip / BLOCK;
        let inside = (skip % BLOCK) as usize;
        let in_one = inside + into.len() <= BLOCK as usize;
        // 22 bits for the frame, 4 for the block.
        let key = u64::from(segment) << 32 | u64::from(frame) << 4 | u64::from(block);
        if in_one {
            if let Some(content) = self.blocks.get(key) {
                return part_of(&content, inside, into);
            }
        }
        if let Some(content) = self.frames.get(frame_key(segment, frame)) {
            return part_of(&content, skip as usize, into);
        }
        let content = self.load(segment, frame)?;
        part_of(&content, skip as usize, into)?;
        let start = (block * BLOCK) as usize;
        if in_one {
            if let Some(content) = content.get(start..start + BLOCK as usize) {
                self.blocks.put(key, content.into());
            }
        }
        self.frames.put(frame_key(segment, frame), content);
        Ok(())
    }

    fn load(&self, segment: u32, frame: u32) -> Result<Arc<Vec<u8>>, JournalError> {
        let stored = &self.segments[segment as usize];
        let file = stored.within(self.file(segment)?);
        let key = frame_key(segment, frame);
        let place = match self.places.get(key) {
            Some(place) => place,
            None => {
                let place = stored.frame(&*file, frame)?;
                self.places.put(key, place);
                place
            }
        };
        let content = place
            .read(&*file)
            .map_err(|source| JournalError::segment(&stored.file(), source))?;
        Ok(Arc::new(content))
    }

    fn file(&self, segment: u32) -> Result<Arc<dyn File>, JournalError> {
        let stored = &self.segments[segment as usize];
        let key = match stored.pack() {
            Some(pack) => 1 << 32 | u64::from(pack),
            None => segment.into(),
        };
        if let Some(file) = self.files.get(key) {
            return Ok(file);
        }
        let file = stored.open_file(&*self.folder)?;
        self.files.put(key, file.clone());
        Ok(file)
    }
}

/// First blocks of what lies side by side in a stretch of a disk, and the newest there.
struct Stretch(Box<[(u64, Option<Found>)]>);

impl Stretch {
    fn newest(&self, block: u64) -> Option<Found> {
        let after = self.0.partition_point(|(first, _)| *first <= block);
        let (first, found) = self.0.get(after.checked_sub(1)?)?;
        found.map(|found| found.from(block - first))
    }
}

fn frame_key(segment: u32, frame: u32) -> u64 {
    u64::from(segment) << 32 | u64::from(frame)
}

/// Fills `into` with the content from byte `start` on.
fn part_of(content: &[u8], start: usize, into: &mut [u8]) -> Result<(), JournalError> {
    match content.get(start..start + into.len()) {
        Some(part) => into.copy_from_slice(part),
        None => return Err(JournalError::IndexDamaged("does not fit its segments")),
    }
    Ok(())
}

/// The run files for `segments`, and one in memory for those that none covers.
fn stack(
    folder: &Arc<dyn Folder>,
    segments: &[Stored],
    disks: &[DiskId],
    unwanted: &[String],
) -> Result<Stack, JournalError> {
    let members: Vec<Member> = segments.iter().map(Stored::member).collect();
    let mut is_covered = vec![false; segments.len()];
    let mut stack = Stack::new(disks.to_vec(), PAGES);
    for (name, file) in open_all(&**folder, unwanted)? {
        match stack.add(name.clone(), file, &members, &mut is_covered) {
            Err(error) if error.is_damage() => {
                tracing::warn!(file = name, %error, "a run file is not used");
            }
            other => other.map_err(|source| JournalError::run(&name, source))?,
        }
    }
    let bare: Vec<&Stored> = segments
        .iter()
        .zip(&is_covered)
        .filter(|(_, is_covered)| !**is_covered)
        .map(|(segment, _)| segment)
        .collect();
    if !bare.is_empty() {
        let name = "(of the newest segments)";
        let file = in_memory(folder, &bare)?;
        stack
            .add(name.to_owned(), file, &members, &mut is_covered)
            .map_err(|source| JournalError::run(name, source))?;
    }
    Ok(stack)
}

/// A run file of `segments`. They are checked first: nobody did that yet.
fn in_memory(folder: &Arc<dyn Folder>, segments: &[&Stored]) -> Result<RunFile, JournalError> {
    let own = |error| match error {
        RunError::From(error) => *error,
        source => JournalError::run("(in memory)", source),
    };
    let held = |bytes| RunFile::open(Arc::new(Held(bytes))).map_err(own);
    let mut files = Vec::new();
    for segments in segments.chunks(AT_ONCE) {
        let input = |segment: &&Stored| {
            Ok(Input {
                member: segment.member(),
                name: segment.file(),
                reader: segment.open(&**folder)?,
            })
        };
        let inputs = segments.iter().map(input);
        let inputs = inputs.collect::<Result<Vec<_>, JournalError>>()?;
        files.push(held(build(&inputs, Vec::new()).map_err(own)?.1)?);
    }
    if files.len() == 1 {
        if let Some(only) = files.pop() {
            return Ok(only);
        }
    }
    let files: Vec<&RunFile> = files.iter().collect();
    held(join(&files, |_| true, Vec::new()).map_err(own)?.1)
}

/// Makes one of neighbouring pieces that are one.
struct Joined<'a> {
    last: Option<(Range<u64>, Place)>,
    visit: &'a mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
}

impl Joined<'_> {
    fn push(&mut self, range: Range<u64>, place: Place) -> ControlFlow<()> {
        if range.is_empty() {
            return ControlFlow::Continue(());
        }
        if let Some((last, before)) = &mut self.last {
            if follows(before, last.end - last.start, &place) {
                last.end = range.end;
                return ControlFlow::Continue(());
            }
        }
        match self.last.replace((range, place)) {
            Some((range, place)) => (self.visit)(range, place),
            None => ControlFlow::Continue(()),
        }
    }

    fn finish(self) -> ControlFlow<()> {
        match self.last {
            Some((range, place)) => (self.visit)(range, place),
            None => ControlFlow::Continue(()),
        }
    }
}

/// Whether `next` is what comes `len` bytes after the beginning of `place`.
fn follows(place: &Place, len: u64, next: &Place) -> bool {
    match (place, next) {
        (Place::Zero, Place::Zero) => true,
        (Place::Stored { at }, Place::Stored { at: next }) => at + len == *next,
        (
            Place::Encoded {
                segment,
                frame,
                skip,
            },
            Place::Encoded {
                segment: next_segment,
                frame: next_frame,
                skip: next,
            },
        ) => {
            (segment, frame) == (next_segment, next_frame)
                && u64::from(*skip) + len == u64::from(*next)
        }
        _ => false,
    }
}
