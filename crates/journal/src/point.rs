//! A recovery point as disks: base and segments at once.
//!
//! ```text
//!   segment 6        [b]         [c c]
//!   segment 5     [a a a a]                       newest wins
//!   base       ..................................
//!   point 6    ...[a b a a]......[c c]...........
//! ```
//!
//! Which segment is the newest that holds a block is looked up in the run files
//! ([`runs`](crate::runs)) when the block is read, for its neighbours as well: a [`View`] has these files
//! open, and one that it makes in memory for the few segments that no file covers yet. So opening reads the index, the lists of segments
//! in the run files, and those few segments; and what a reader holds is bounded but for 56 bytes a
//! segment. Segments that a run file covers were checked when it was made; here their frames are
//! checked when they are read.
//!
//! A reader stays right while older segments are merged into the base, segments are squashed or
//! packed, and run files are replaced:
//! - what it has open stays readable;
//! - when a segment's file is gone, the index is read again and a new view made of it. It is the
//!   same point: a block that is in none of its segments now was merged into the base, and there it has
//!   the content of the newest of them that held it, which no later merge up to this point changes;
//! - when a run file turns out to be damaged, a new view is made without it.

use std::fmt;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{Fault, Image, Place};
use durable::{File, Folder, OsFolder};
use model::{Bytes, DiskId, PointId};

use crate::JournalError;
use crate::index::{BaseDisk, Index};
use crate::journal::Lease;
use crate::view::View;

/// How often a point is looked for again because a file went meanwhile.
const ATTEMPTS: u32 = 16;

/// Reads a point. From any number of threads at once.
pub struct PointReader {
    point: PointId,
    folder: Arc<dyn Folder>,
    disks: Vec<Disk>,
    /// How it is read now.
    view: Mutex<Arc<View>>,
    /// Held while a new view is made; run files that turned out to be damaged.
    renewal: Mutex<Vec<String>>,
    _lease: Option<Lease>,
}

struct Disk {
    id: DiskId,
    /// At the point.
    size: u64,
    base: Arc<dyn File>,
}

impl fmt::Debug for PointReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PointReader({}, {:?})", self.point, self.view())
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

    /// The file that holds all of a disk at `point`, which is pinned and all that the journal in the folder
    /// `path` holds: nobody needs a segment for it, and nobody writes to the file as long as that is so.
    ///
    /// # Errors
    /// [`JournalError::NotPinned`]; [`JournalError::NoSuchPoint`]; [`JournalError::NotAlone`];
    /// [`JournalError::NoSuchDisk`]; a damaged journal; a failed read.
    pub fn file_of(path: &Path, point: PointId, disk: DiskId) -> Result<PathBuf, JournalError> {
        let folder = OsFolder::open(path)
            .map_err(|source| JournalError::io("open the folder", "", source))?;
        let index = Index::load(&folder)?;
        let (position, entry) = index.find(point).ok_or(JournalError::NoSuchPoint(point))?;
        if !index.pins.iter().any(|pin| pin.point == point) {
            return Err(JournalError::NotPinned(point));
        }
        if position.is_some() || !index.segments.is_empty() {
            return Err(JournalError::NotAlone(point));
        }
        let mut whole = entry.disks.iter().filter(|extent| !extent.joining);
        if !whole.any(|extent| extent.id == disk) {
            return Err(JournalError::NoSuchDisk(disk));
        }
        Ok(path.join(base_of(&index, disk)?.file()))
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
                Err(error) if is_gone(&error) && attempt < ATTEMPTS => {}
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
        let (_, entry) = index.find(point).ok_or(JournalError::NoSuchPoint(point))?;
        let mut disks = Vec::new();
        for extent in entry.disks.iter().filter(|disk| !disk.joining) {
            let name = base_of(index, extent.id)?.file();
            disks.push(Disk {
                id: extent.id,
                size: extent.size.0,
                base: folder
                    .open_read(&name)
                    .map_err(|source| JournalError::io("open", &name, source))?,
            });
        }
        let ids: Vec<DiskId> = disks.iter().map(|disk| disk.id).collect();
        let view = View::of(folder, index, point, &ids, &[])?;
        Ok(Arc::new(Self {
            point,
            folder: folder.clone(),
            disks,
            view: Mutex::new(Arc::new(view)),
            renewal: Mutex::new(Vec::new()),
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

    pub(crate) fn view(&self) -> Arc<View> {
        lock(&self.view).clone()
    }

    /// Does something with a view; with a new one when it came upon a file that is gone or damaged.
    fn with_view(
        &self,
        mut work: impl FnMut(&View) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let mut attempt = 0;
        loop {
            let view = self.view();
            let Err(error) = work(&view) else {
                return Ok(());
            };
            attempt += 1;
            let damaged = match &error {
                JournalError::Run { name, source } if source.is_damage() => Some(name),
                error if is_gone(error) => None,
                _ => return Err(error),
            };
            if attempt == ATTEMPTS || !self.renew(&view, damaged)? {
                return Err(error);
            }
        }
    }

    /// Makes a new view in place of `seen`, unless that was done already, without the run file
    /// `damaged`. Gives whether there is anything new.
    fn renew(&self, seen: &Arc<View>, damaged: Option<&String>) -> Result<bool, JournalError> {
        let mut unwanted = lock(&self.renewal);
        if !Arc::ptr_eq(seen, &self.view()) {
            return Ok(true);
        }
        if let Some(name) = damaged {
            tracing::warn!(file = name, "a run file is damaged: read without it");
            unwanted.push(name.clone());
        }
        let ids: Vec<DiskId> = self.disks.iter().map(|disk| disk.id).collect();
        let mut attempt = 0;
        let view = loop {
            attempt += 1;
            let index = Index::load(&*self.folder)?;
            match View::of(&self.folder, &index, self.point, &ids, &unwanted) {
                Err(error) if is_gone(&error) && attempt < ATTEMPTS => {}
                other => break other?,
            }
        };
        // A file goes only after the index no longer names it.
        let is_new = damaged.is_some() || !view.has_segments_of(seen);
        *lock(&self.view) = Arc::new(view);
        Ok(is_new)
    }
}

/// The base of the disk `id` of a point.
pub(crate) fn base_of(index: &Index, id: DiskId) -> Result<&BaseDisk, JournalError> {
    index
        .base_of(id)
        .ok_or(JournalError::IndexDamaged("misses the base of a disk"))
}

/// Whether a file that should be there is not: the index may say now where its content is.
fn is_gone(error: &JournalError) -> bool {
    match error {
        JournalError::Missing(_) => true,
        JournalError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        let mut done = 0;
        self.reader.with_view(|view| {
            let mut outcome = Ok(());
            let from = at + done as u64;
            let _ = view.places(self.disk, from..end, &mut |range, place| {
                let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                let part = &mut into[done..done + len];
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
                    } => view.read_frame(segment, frame, skip, part),
                };
                match outcome {
                    Ok(()) => {
                        done += len;
                        ControlFlow::Continue(())
                    }
                    Err(_) => ControlFlow::Break(()),
                }
            })?;
            outcome
        })
    }

    /// Calls `visit` with the pieces of `range`, which lies inside the disk, until it breaks. Reads
    /// pages of run files that were not used lately.
    pub(crate) fn places(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, JournalError> {
        let mut at = range.start;
        let mut flow = ControlFlow::Continue(());
        self.reader.with_view(|view| {
            flow = view.places(self.disk, at..range.end, &mut |part, place| {
                at = part.end;
                visit(part, place)
            })?;
            Ok(())
        })?;
        Ok(flow)
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
        self.places(range, visit).map_err(|error| {
            tracing::error!(point = %self.reader.point, %error, "cannot look into the point");
            match error {
                JournalError::Io { source, .. } => {
                    source.raw_os_error().map_or(Fault::Corrupt, Fault::Os)
                }
                _ => Fault::Corrupt,
            }
        })
    }
}
