//! Whether everything that the index names is as it was written, and which points are hurt if not.
//!
//! ```text
//!   segment 6        [b]   [x]       one frame of segment 5 is damaged: its blocks are hurt at
//!   segment 5     [a x a a]          point 5, and at each newer one until all of them have been
//!   base       ................      written again: not at point 6
//! ```
//!
//! Every byte of the segments is read and compared with its hash; a segment of which the index is
//! damaged hurts its point and all newer ones, which cannot be opened. The base has no hashes: it is
//! read, and what cannot be read is damage. (Whether it is right is asked of the primary:
//! [`PointImage::region_hashes`](crate::PointImage::region_hashes).)
//!
//! It borrows nothing, so that points are taken, merged and put together meanwhile: what is gone
//! from the index when its file is missed is passed over.

use std::cell::RefCell;
use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use durable::{File, Folder};
use model::{BLOCK_SIZE, Bytes, DiskId, PointId};

use crate::changes::Changes;
use crate::index::{BaseDisk, ChangeSet, Entry, Index};
use crate::runs;
use crate::{Journal, JournalError, Root, SegmentReader, Source};

/// Bytes of a base that are read at once.
const PIECE: u64 = 1 << 20;

/// What a journal named at one instant, to be verified.
#[derive(Debug)]
pub struct Verify {
    folder: Arc<dyn Folder>,
    bases: Vec<BaseDisk>,
    /// The point that the base held.
    oldest: Option<Entry>,
    entries: Vec<Entry>,
    sets: Vec<ChangeSet>,
    /// What was there when it was looked for last: a long verification misses many files.
    now: RefCell<Option<Index>>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were looked at.
    pub done: Bytes,
    /// Bytes in all.
    pub total: Bytes,
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// Bytes that were looked at.
    pub read: Bytes,
    /// What is not as it was written.
    pub damage: Vec<Damage>,
    /// Whether everything was looked at: not if it was stopped.
    pub finished: bool,
}

/// A file that is not as it was written.
#[derive(Debug)]
pub struct Damage {
    /// The file, in the journal's folder.
    pub file: String,
    /// What is wrong with it, the first that was found.
    pub fault: JournalError,
    /// How many more things are.
    pub more: u64,
    /// The points that have other content now, or none. The oldest first.
    pub points: Vec<PointId>,
}

/// Blocks of one disk, sorted, without overlap.
type Extents = Vec<Range<u64>>;

impl Journal {
    /// What is there now, to be verified.
    #[must_use]
    pub fn verify(&self) -> Verify {
        Verify {
            folder: self.folder.clone(),
            bases: self.index.disks.clone(),
            oldest: self.index.in_base().cloned(),
            entries: self.index.segments.iter().cloned().collect(),
            sets: self.index.changes.values().copied().collect(),
            now: RefCell::new(None),
        }
    }
}

impl Verify {
    /// Reads everything; blocks. `progress` is asked every few blocks whether to go on.
    ///
    /// # Errors
    /// The index cannot be read to see whether a file that is missing is one that went meanwhile.
    pub fn run(
        &self,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Report, JournalError> {
        let bases = self.bases.iter().map(|disk| disk.size.0);
        let files = self.entries.iter().map(|entry| entry.file_len.0);
        let sets = self.sets.iter().map(|set| set.len.0);
        let mut walk = Walk {
            verify: self,
            total: bases.chain(files).chain(sets).sum(),
            done: 0,
            damage: Vec::new(),
            progress,
        };
        let finished = match walk.all()? {
            ControlFlow::Continue(()) => true,
            ControlFlow::Break(()) => false,
        };
        Ok(Report {
            read: Bytes(walk.done),
            damage: walk.damage,
            finished,
        })
    }

    /// The segment of `entry`; none if it is no longer the journal's.
    fn open(&self, entry: &Entry) -> Result<Option<Arc<dyn File>>, JournalError> {
        let error = match entry.open(&*self.folder) {
            Ok(file) => return Ok(Some(file)),
            Err(error) => error,
        };
        if !is_absent(&error) {
            return Err(error);
        }
        // What goes never comes back: only what an earlier look knew may be otherwise by now.
        for again in [false, true] {
            let known = self.now.take().filter(|_| !again);
            let index = match known {
                Some(index) => index,
                None => Index::load(&*self.folder)?,
            };
            let found = match index.find(entry.point) {
                Some((Some(_), now)) if now.stored == entry.stored => Some(now.clone()),
                _ => None,
            };
            self.now.replace(Some(index));
            match found {
                None => return Ok(None),
                // It lies elsewhere now.
                Some(now) if now.place != entry.place => match now.open(&*self.folder) {
                    Err(error) if is_absent(&error) && !again => {}
                    opened => return opened.map(Some),
                },
                Some(_) => {}
            }
        }
        Err(JournalError::Missing(entry.file()))
    }

    /// The points that read any of `blocks` of the disk `id` from what lies below segment
    /// number `from`, which is `below`'s.
    fn hurt(
        &self,
        id: DiskId,
        mut blocks: Extents,
        below: Option<&Entry>,
        from: usize,
    ) -> Vec<PointId> {
        // A disk comes and goes.
        let has = |entry: &&Entry| {
            let mut disks = entry.disks.iter().filter(|disk| !disk.joining);
            disks.any(|disk| disk.id == id)
        };
        let mut points: Vec<_> = below
            .filter(has)
            .map(|entry| entry.point)
            .into_iter()
            .collect();
        for entry in &self.entries[from..] {
            // One that cannot be read hides nothing; it has damage of its own.
            if let Ok(Some(reader)) = self.reader(entry) {
                let _ = written(&reader, id).map(|written| blocks = without(&blocks, &written));
            }
            if blocks.is_empty() {
                break;
            }
            points.extend(Some(entry).filter(has).map(|entry| entry.point));
        }
        points
    }

    fn reader(&self, entry: &Entry) -> Result<Option<SegmentReader>, JournalError> {
        let Some(file) = self.open(entry)? else {
            return Ok(None);
        };
        let name = entry.file();
        let reader =
            SegmentReader::of(file).map_err(|source| JournalError::segment(&name, source))?;
        if reader.summary().root == entry.stored {
            Ok(Some(reader))
        } else {
            Err(JournalError::NotOffered(name))
        }
    }
}

struct Walk<'a> {
    verify: &'a Verify,
    total: u64,
    done: u64,
    damage: Vec<Damage>,
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

/// Whether to go on.
type Onward = Result<ControlFlow<()>, JournalError>;

/// Goes on unless the caller does not want to.
macro_rules! onward {
    ($step:expr) => {
        if $step.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    };
}

impl Walk<'_> {
    fn all(&mut self) -> Onward {
        for number in 0..self.verify.entries.len() {
            onward!(self.segment(number)?);
        }
        for number in 0..self.verify.sets.len() {
            onward!(self.set(self.verify.sets[number])?);
        }
        for name in runs::folder::list(&*self.verify.folder)? {
            onward!(self.run_file(&name));
        }
        for number in 0..self.verify.bases.len() {
            onward!(self.base(self.verify.bases[number])?);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn advance(&mut self, bytes: u64) -> ControlFlow<()> {
        self.done += bytes;
        (self.progress)(Progress {
            done: Bytes(self.done),
            total: Bytes(self.total),
        })
    }

    fn segment(&mut self, number: usize) -> Onward {
        let entry = &self.verify.entries[number];
        let newer = || {
            self.verify.entries[number..]
                .iter()
                .map(|entry| entry.point)
        };
        let reader = match self.verify.reader(entry) {
            Ok(Some(reader)) => reader,
            Ok(None) => return Ok(self.advance(entry.file_len.0)),
            Err(fault) => {
                let points = newer().collect();
                self.found(entry.file(), vec![fault], points);
                return Ok(self.advance(entry.file_len.0));
            }
        };
        let tables = reader.summary().file_len.0 - reader.stored().0;
        onward!(self.advance(tables));
        let (mut faults, mut bad) = (Vec::new(), Vec::new());
        for frame in 0..reader.summary().frames {
            let len = match reader.stored_frame(frame) {
                Ok(stored) => {
                    let len = stored.stored_len();
                    if let Err(source) = stored.decode(frame) {
                        faults.push(JournalError::segment(&entry.file(), source));
                        bad.push(frame);
                    }
                    len.into()
                }
                Err(source) => {
                    faults.push(JournalError::segment(&entry.file(), source));
                    bad.push(frame);
                    0
                }
            };
            onward!(self.advance(len));
        }
        if !bad.is_empty() {
            let points = self.hurt_by_frames(number, &reader, &bad);
            self.found(entry.file(), faults, points);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The points that read any of these frames (sorted) of segment `number`.
    fn hurt_by_frames(&self, number: usize, reader: &SegmentReader, bad: &[u32]) -> Vec<PointId> {
        let entry = &self.verify.entries[number];
        let mut points = Vec::new();
        for (position, disk) in (0_u16..).zip(&reader.header().disks) {
            let mut blocks = Extents::new();
            for run in reader.runs() {
                // The index was good a moment ago.
                let Ok(run) = run else {
                    break;
                };
                let hit = match run.source {
                    Source::Frame { frame, .. } => bad.binary_search(&frame).is_ok(),
                    Source::Zero => false,
                };
                if hit && run.disk == position {
                    blocks.push(run.block..run.block + u64::from(run.count));
                }
            }
            if !blocks.is_empty() {
                let hurt = self.verify.hurt(disk.id, blocks, Some(entry), number + 1);
                points.extend(hurt);
            }
        }
        points
    }

    fn set(&mut self, set: ChangeSet) -> Onward {
        let name = set.file();
        let read = || -> Result<Vec<u8>, JournalError> {
            let failed = |source| JournalError::io("read", &name, source);
            let file = self.verify.folder.open_read(&name).map_err(failed)?;
            let len = file.size().map_err(failed)?;
            if len != set.len.0 {
                return Err(JournalError::Missing(name.clone()));
            }
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            file.read_at(0, &mut bytes).map_err(failed)?;
            Ok(bytes)
        };
        let fault = match read() {
            Ok(bytes) if Root(*blake3::hash(&bytes).as_bytes()) != set.hash => {
                Some(JournalError::NotOffered(name.clone()))
            }
            Ok(bytes) => match Changes::from_bytes(&bytes) {
                Ok(_) => None,
                Err(source) => Some(JournalError::ChangeSet {
                    name: name.clone(),
                    source,
                }),
            },
            Err(error) => Some(error),
        };
        if let Some(fault) = fault {
            // What is gone from the index may be missing.
            if Index::load(&*self.verify.folder)?
                .changes
                .contains_key(&set.number)
            {
                self.found(name, vec![fault], Vec::new());
            }
        }
        Ok(self.advance(set.len.0))
    }

    /// Damage of one hurts no point: what it says is in the segments too.
    fn run_file(&mut self, name: &str) -> ControlFlow<()> {
        let read = || {
            let file = match self.verify.folder.open_read(name) {
                // Joined with others meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other.map_err(|source| JournalError::io("open", name, source))?,
            };
            let failed = |source| JournalError::run(name, source);
            let file = runs::RunFile::open(file).map_err(failed)?;
            file.members(|_, _| {}).map_err(failed)?;
            file.iter()
                .try_for_each(|entry| entry.map(drop).map_err(failed))
        };
        if let Err(fault) = read() {
            self.found(name.to_owned(), vec![fault], Vec::new());
        }
        self.advance(0)
    }

    fn base(&mut self, disk: BaseDisk) -> Onward {
        let name = disk.file();
        let failed = |source| JournalError::io("read", &name, source);
        let (mut faults, mut bad) = (Vec::new(), Extents::new());
        match self.verify.folder.open_read(&name) {
            Ok(file) => {
                let mut piece = Vec::new();
                let mut at = 0;
                while at < disk.size.0 {
                    let len = PIECE.min(disk.size.0 - at);
                    piece.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
                    if let Err(source) = file.read_at(at, &mut piece) {
                        faults.push(failed(source));
                        bad.push(at / BLOCK_SIZE..(at + len) / BLOCK_SIZE);
                    }
                    at += len;
                    onward!(self.advance(len));
                }
            }
            Err(source) => {
                faults.push(failed(source));
                bad.push(0..disk.size.0 / BLOCK_SIZE);
                onward!(self.advance(disk.size.0));
            }
        }
        if !bad.is_empty() {
            let points = self
                .verify
                .hurt(disk.id, bad, self.verify.oldest.as_ref(), 0);
            self.found(name, faults, points);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn found(&mut self, file: String, faults: Vec<JournalError>, mut points: Vec<PointId>) {
        points.sort_by_key(|point| point.sequence);
        points.dedup();
        let more = faults.len().saturating_sub(1) as u64;
        if let Some(fault) = faults.into_iter().next() {
            self.damage.push(Damage {
                file,
                fault,
                more,
                points,
            });
        }
    }
}

fn is_absent(error: &JournalError) -> bool {
    matches!(error, JournalError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// The blocks of the disk `id` that a segment holds.
fn written(reader: &SegmentReader, id: DiskId) -> Result<Extents, crate::SegmentError> {
    let mut disks = (0..).zip(&reader.header().disks);
    let Some((position, _)) = disks.find(|(_, disk)| disk.id == id) else {
        return Ok(Extents::new());
    };
    let mut blocks = Extents::new();
    for run in reader.runs_of(position)? {
        let run = run?;
        if run.disk != position {
            break;
        }
        blocks.push(run.block..run.block + u64::from(run.count));
    }
    Ok(blocks)
}

/// What is in `blocks` and not in `written`.
fn without(blocks: &[Range<u64>], written: &[Range<u64>]) -> Extents {
    let mut left = Extents::new();
    let mut first = 0;
    for extent in blocks {
        while written
            .get(first)
            .is_some_and(|one| one.end <= extent.start)
        {
            first += 1;
        }
        let mut at = extent.start;
        for hole in written[first..]
            .iter()
            .take_while(|one| one.start < extent.end)
        {
            if at < hole.start {
                left.push(at..hole.start);
            }
            at = at.max(hole.end);
        }
        if at < extent.end {
            left.push(at..extent.end);
        }
    }
    left
}
