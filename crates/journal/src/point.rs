//! A recovery point as disks: base and segments at once.
//!
//! ```text
//!   segment 6        [b]         [c c]
//!   segment 5     [a a a a]                       newest wins: the pieces
//!   base       ..................................
//!   point 6    ...[a b a a]......[c c]...........
//! ```
//!
//! [`PointReader`] holds the pieces of each disk: 32 bytes for each run that is visible, so
//! memory follows what changed above the base, not the number of segments. (Runs in sorted
//! files, merged in the background, come when that is too much.)
//!
//! It stays right while older segments are merged into the base and their files removed: a
//! segment whose file is gone is in the base, and there the block has the content of the newest
//! segment up to this point that holds it, which is the one that the piece names.

use std::fmt;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use block::{Fault, Image, Place};
use durable::{File, Folder, OsFolder};
use model::{BLOCK_SIZE, Bytes, DiskId, PointId};

use crate::index::{Base, Entry, Index};
use crate::journal::Lease;
use crate::pieces::{Layers, Piece};
use crate::recent::Recent;
use crate::{JournalError, SegmentReader, Source};

/// Most segment files that a reader keeps open.
const OPEN_SEGMENTS: usize = 64;
/// Most decoded frames that a reader keeps: 4 MiB.
const FRAMES: usize = 64;
/// How often a point is looked for again because a file was merged away meanwhile.
const ATTEMPTS: u32 = 16;

/// Segment and frame.
type FrameKey = (u32, u32);

/// Reads a point. From any number of threads at once.
pub struct PointReader {
    point: PointId,
    folder: Arc<dyn Folder>,
    disks: Vec<Disk>,
    segments: Vec<Segment>,
    open: Mutex<Recent<u32, SegmentReader>>,
    frames: Mutex<Recent<FrameKey, Arc<Vec<u8>>>>,
    _lease: Option<Lease>,
}

struct Disk {
    id: DiskId,
    /// At the point.
    size: u64,
    base: Arc<dyn File>,
    /// Bytes of the base that belong to the point; the rest of the disk reads as zeroes where no
    /// segment says otherwise.
    base_len: u64,
    pieces: Vec<Piece>,
}

struct Segment {
    entry: Entry,
    name: String,
}

impl fmt::Debug for PointReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PointReader({}, {} segments)",
            self.point,
            self.segments.len()
        )
    }
}

impl PointReader {
    /// Opens a pinned point of the journal in the folder `path`, which another process may have
    /// open and be changing.
    ///
    /// # Errors
    /// [`JournalError::NotPinned`]; [`JournalError::NoSuchPoint`]; a damaged journal; a failed
    /// read.
    pub fn open_pinned(path: &Path, point: PointId) -> Result<Arc<Self>, JournalError> {
        let folder: Arc<dyn Folder> = Arc::new(
            OsFolder::open(path)
                .map_err(|source| JournalError::io("open the folder", "", source))?,
        );
        Self::open_pinned_in(&folder, point)
    }

    pub(crate) fn open_pinned_in(
        folder: &Arc<dyn Folder>,
        point: PointId,
    ) -> Result<Arc<Self>, JournalError> {
        let mut attempt = 0;
        loop {
            let index = Index::load(&**folder)?;
            if index.find(point).is_none() {
                return Err(JournalError::NoSuchPoint(point));
            }
            if !index.pins.iter().any(|pin| pin.point == point) {
                return Err(JournalError::NotPinned(point));
            }
            attempt += 1;
            match Self::of(folder, &index, point, None) {
                // Merged into the base since the index was read: it says so now.
                Err(JournalError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
                other => return other,
            }
        }
    }

    pub(crate) fn of(
        folder: &Arc<dyn Folder>,
        index: &Index,
        point: PointId,
        lease: Option<Lease>,
    ) -> Result<Arc<Self>, JournalError> {
        let (position, entry) = index.find(point).ok_or(JournalError::NoSuchPoint(point))?;
        let below = index
            .segments
            .range(..position.map_or(0, |position| position + 1));
        let mut disks = Vec::new();
        for extent in entry.disks.iter().filter(|disk| !disk.joining) {
            let disk = index
                .base_of(extent.id)
                .ok_or(JournalError::IndexDamaged("misses the base of a disk"))?;
            let name = disk.file();
            disks.push(Disk {
                id: disk.id,
                size: extent.size.0,
                base: folder
                    .open_read(&name)
                    .map_err(|source| JournalError::io("open", &name, source))?,
                base_len: disk.size.0,
                pieces: Vec::new(),
            });
        }
        let mut layers: Vec<Layers> = disks.iter().map(|_| Layers::default()).collect();
        let mut segments = Vec::with_capacity(below.len());
        for (number, entry) in (0..).zip(below) {
            let segment = Segment {
                entry: entry.clone(),
                name: entry.file(),
            };
            let failed = |source| JournalError::segment(&segment.name, source);
            let file = entry.open(&**folder)?;
            // All of it is checked: these disks may be about to run.
            let reader = SegmentReader::of(file).map_err(failed)?;
            if reader.summary().root != entry.stored {
                return Err(JournalError::IndexDamaged(
                    "names another segment by this name",
                ));
            }
            let mut runs: Vec<Vec<Piece>> = disks.iter().map(|_| Vec::new()).collect();
            // Disks may have come and gone: where those of the segment are among the point's.
            let header = reader.header().disks.iter();
            let at: Vec<_> = header
                .map(|extent| disks.iter().position(|disk| disk.id == extent.id))
                .collect();
            for run in reader.runs() {
                let run = run.map_err(failed)?;
                let disk = at.get(usize::from(run.disk)).copied().flatten();
                if let Some(pieces) = disk.and_then(|disk| runs.get_mut(disk)) {
                    pieces.push(Piece::new(number, &run));
                }
            }
            for (layers, pieces) in layers.iter_mut().zip(runs) {
                layers.push(pieces);
            }
            segments.push(segment);
        }
        for (disk, layers) in disks.iter_mut().zip(layers) {
            disk.pieces = layers.finish();
        }
        debug_assert!(!matches!(index.base, Base::Seeding { .. }));
        Ok(Arc::new(Self {
            point,
            folder: folder.clone(),
            disks,
            segments,
            open: Mutex::new(Recent::new(OPEN_SEGMENTS)),
            frames: Mutex::new(Recent::new(FRAMES)),
            _lease: lease,
        }))
    }

    /// Which point it is.
    #[must_use]
    pub fn point(&self) -> PointId {
        self.point
    }

    /// Its disks and their sizes, in the VM's order.
    pub fn disks(&self) -> impl Iterator<Item = (DiskId, Bytes)> + '_ {
        self.disks.iter().map(|disk| (disk.id, Bytes(disk.size)))
    }

    /// The disk `id` as an image.
    ///
    /// # Errors
    /// [`JournalError::NoSuchDisk`]
    pub fn image(self: &Arc<Self>, id: DiskId) -> Result<PointImage, JournalError> {
        let disk = self
            .disks
            .iter()
            .position(|disk| disk.id == id)
            .ok_or(JournalError::NoSuchDisk(id))?;
        Ok(PointImage {
            reader: self.clone(),
            disk,
        })
    }

    /// Fills `into` with the content of disk `id` from byte `at` on.
    ///
    /// # Errors
    /// A range outside the disk, content that does not verify, a failed read.
    pub fn read_at(
        self: &Arc<Self>,
        id: DiskId,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), JournalError> {
        self.image(id)?.read_at(at, into)
    }

    /// Fills `into` with what a piece holds from byte `at` of the disk on.
    fn read_encoded(
        &self,
        disk: &Disk,
        at: u64,
        (segment, frame, skip): (u32, u32, u32),
        into: &mut [u8],
    ) -> Result<(), JournalError> {
        let Some(content) = self.frame(segment, frame)? else {
            // Merged: see the module.
            return read_base(disk, at, into);
        };
        let start = skip as usize;
        match content.get(start..start + into.len()) {
            Some(part) => into.copy_from_slice(part),
            None => return Err(JournalError::IndexDamaged("does not fit its segments")),
        }
        Ok(())
    }

    /// A decoded frame; none if its segment was merged into the base.
    fn frame(&self, segment: u32, frame: u32) -> Result<Option<Arc<Vec<u8>>>, JournalError> {
        let key = (segment, frame);
        if let Some(content) = lock(&self.frames).get(&key) {
            return Ok(Some(content));
        }
        let Some(reader) = self.segment(segment)? else {
            return Ok(None);
        };
        let content = reader.read_frame(frame).map_err(|source| {
            JournalError::segment(&self.segments[segment as usize].name, source)
        })?;
        let content = Arc::new(content);
        lock(&self.frames).put(key, content.clone());
        Ok(Some(content))
    }

    fn segment(&self, number: u32) -> Result<Option<SegmentReader>, JournalError> {
        if let Some(reader) = lock(&self.open).get(&number) {
            return Ok(Some(reader));
        }
        let segment = &self.segments[number as usize];
        let file = match segment.entry.open(&*self.folder) {
            Ok(file) => file,
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                // A file goes only after the index no longer names it.
                let index = Index::load(&*self.folder)?;
                match index.find(segment.entry.point) {
                    // It was moved, and is not moved again before the index is read again.
                    Some((Some(_), now)) if now.stored == segment.entry.stored => {
                        now.open(&*self.folder)?
                    }
                    _ => return Ok(None),
                }
            }
            Err(error) => return Err(error),
        };
        let reader = SegmentReader::checked_before(file, segment.entry.stored)
            .map_err(|source| JournalError::segment(&segment.name, source))?;
        lock(&self.open).put(number, reader.clone());
        Ok(Some(reader))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_base(disk: &Disk, at: u64, into: &mut [u8]) -> Result<(), JournalError> {
    disk.base
        .read_at(at, into)
        .map_err(|source| JournalError::io("read", &format!("base-{}.raw", disk.id), source))
}

/// One disk of a point. [`Place::Stored`] is a byte offset in its base file,
/// [`Place::Encoded`] names a frame that [`PointImage::read_at`] decodes.
#[derive(Debug, Clone)]
pub struct PointImage {
    reader: Arc<PointReader>,
    disk: usize,
}

impl PointImage {
    /// Fills `into` from byte `at` on. From any thread; blocks.
    ///
    /// # Errors
    /// A range outside the disk, content that does not verify, a failed read.
    pub fn read_at(&self, at: u64, into: &mut [u8]) -> Result<(), JournalError> {
        let disk = &self.reader.disks[self.disk];
        let len = into.len() as u64;
        let end = match at.checked_add(len) {
            Some(end) if end <= disk.size => end,
            _ => {
                return Err(JournalError::Range {
                    at,
                    len,
                    size: Bytes(disk.size),
                });
            }
        };
        let mut outcome = Ok(());
        let mut rest = into;
        let _ = self.places(at..end, &mut |range, place| {
            let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            outcome = match place {
                Place::Zero | Place::Below => {
                    part.fill(0);
                    Ok(())
                }
                Place::Stored { at } => read_base(disk, at, part),
                Place::Encoded {
                    segment,
                    frame,
                    skip,
                } => self
                    .reader
                    .read_encoded(disk, range.start, (segment, frame, skip), part),
            };
            match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        outcome
    }

    /// Calls `visit` with the pieces of `range`, which lies inside the disk, until it breaks. Needs no
    /// I/O.
    pub(crate) fn places(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let disk = &self.reader.disks[self.disk];
        let mut at = range.start;
        if range.is_empty() {
            return ControlFlow::Continue(());
        }
        let first = disk
            .pieces
            .partition_point(|piece| piece.end() * BLOCK_SIZE <= range.start);
        for piece in &disk.pieces[first..] {
            let start = piece.block * BLOCK_SIZE;
            if start >= range.end {
                break;
            }
            below(disk, at..start, visit)?;
            at = at.max(start);
            let end = (piece.end() * BLOCK_SIZE).min(range.end);
            let place = match piece.source {
                Source::Zero => Place::Zero,
                Source::Frame { frame, skip } => Place::Encoded {
                    segment: piece.segment,
                    frame,
                    skip: u32::from(skip) * 4096
                        + u32::try_from(at - start).expect("a frame has 64 KiB"),
                },
            };
            visit(at..end, place)?;
            at = end;
        }
        below(disk, at..range.end, visit)
    }
}

impl Image for PointImage {
    fn size(&self) -> u64 {
        self.reader.disks[self.disk].size
    }

    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        if range.start > range.end || range.end > self.size() {
            return Err(Fault::Range);
        }
        Ok(self.places(range, visit))
    }
}

/// What the base says of a range that no segment holds.
fn below(
    disk: &Disk,
    range: Range<u64>,
    visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let end = range.end.min(disk.base_len.max(range.start));
    if range.start < end {
        visit(range.start..end, Place::Stored { at: range.start })?;
    }
    if end < range.end {
        visit(end..range.end, Place::Zero)?;
    }
    ControlFlow::Continue(())
}
