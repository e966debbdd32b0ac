//! Opens the files that a disk is made of.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use block::Image;
use durable::{Lock, LockError};
use image::{Overlay, OverlayFiles, RawDevice, Tag};
use journal::PointReader;
use model::{BootId, Bytes, CheckpointId, DiskId, PointId};
use ring::{Ring, RingStore};
use rustix::fs::Advice;

use crate::layer::{Below, Layer, OverlayLayer};
use crate::ledger::Place;
use crate::plan::{Base, Flat, Over};
use crate::point::PointDevice;

/// How long a disk may stay locked by a predecessor that was killed and is being torn down.
pub(crate) const DYING: Duration = Duration::from_secs(5);
/// Between two looks at a lock: flock(2) has no wait with a limit.
const LOOK: Duration = Duration::from_millis(10);

/// A layer over files.
pub(crate) type FileLayer = Layer<RingStore>;

/// What opening takes, beside the files.
pub(crate) struct Assembler {
    pub(crate) ring: Ring,
    pub(crate) boot: BootId,
    /// The disk.
    pub(crate) id: DiskId,
    /// Its state file: the volatile maps lie beside it.
    pub(crate) state: PathBuf,
    /// Folder of its write-intent log and of the notes that must survive a power cut.
    pub(crate) tracking: PathBuf,
}

impl Assembler {
    /// A file beside the state file.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.state.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    }

    /// A file of this disk in the tracking folder.
    fn durable(&self, suffix: &str) -> PathBuf {
        self.tracking.join(format!("{}{suffix}", self.id))
    }

    /// The stack that was in force last.
    pub(crate) fn last_stack(&self) -> PathBuf {
        self.durable(".stack")
    }

    /// Where the write-intent log lies.
    pub(crate) fn log(&self) -> LogFile {
        LogFile {
            ring: self.ring.clone(),
            path: self.durable(".intent"),
        }
    }

    /// The volatile map of an overlay.
    pub(crate) fn volatile(&self, over: &Over) -> PathBuf {
        match over.checkpoint {
            None => self.beside(".presence"),
            Some(_) => self.beside(&format!(".{}.presence", name(over))),
        }
    }

    /// Whether an overlay is being merged into what it lies above, or was: `begun` or `drained`.
    fn merging(&self, over: &Over) -> PathBuf {
        self.durable(&format!(".{}.merge", name(over)))
    }

    /// Notes that the merging of an overlay has begun, or that nothing is left in it and will ever be.
    /// For the next process: it goes on sending everything below.
    pub(crate) fn note_merging(&self, over: &Over, drained: bool) -> std::io::Result<()> {
        let word: &[u8] = if drained { DRAINED } else { b"begun" };
        durable::replace(&self.merging(over), word)
    }

    /// Whether an overlay was drained: nothing is missed without it.
    pub(crate) fn was_drained(&self, over: &Over) -> bool {
        std::fs::read(self.merging(over)).is_ok_and(|word| word == DRAINED)
    }

    /// Forgets what lies beside the state for an overlay that is no longer used.
    pub(crate) fn forget(&self, over: &Over) -> std::io::Result<()> {
        durable::remove(&self.volatile(over))?;
        durable::remove(&self.merging(over))
    }

    /// What lies below everything. The content of a raw file is that of the first `size` bytes.
    pub(crate) fn base(
        &self,
        base: &Base,
        size: Bytes,
        lock: Option<Rc<Lock>>,
    ) -> Result<FileLayer> {
        match base {
            Base::Raw(file) => {
                let store = self.open(file, size)?;
                let device = RawDevice::new(store, size.0, false)
                    .with_context(|| format!("cannot use {}", file.display()))?;
                Ok(Layer::Raw { device, lock })
            }
            Base::Point { journal, point } => {
                Ok(Layer::Point(point_device(journal, *point, self.id, size)?))
            }
        }
    }

    /// Makes sure that the file `now` holds all of the disk at the point `was`.
    pub(crate) fn check_holds(&self, was: &Base, now: &Base) -> Result<()> {
        let (Base::Point { journal, point }, Base::Raw(file)) = (was, now) else {
            bail!("only a recovery point can be given up for the file that holds it");
        };
        let held = PointReader::file_of(journal, *point, self.id)
            .with_context(|| format!("point {point} of {} is no file", journal.display()))?;
        let which = |file: &Path| {
            let meta = std::fs::metadata(file)
                .with_context(|| format!("cannot look at {}", file.display()))?;
            anyhow::Ok((meta.dev(), meta.ino()))
        };
        if which(&held)? != which(file)? {
            bail!(
                "{} is another file than {}, which holds point {point}",
                file.display(),
                held.display()
            );
        }
        Ok(())
    }

    /// An overlay above `below`. Its files are made if they are absent.
    pub(crate) async fn overlay(
        &self,
        over: &Over,
        base: &Base,
        below: Rc<FileLayer>,
        lock: Lock,
    ) -> Result<OverlayLayer<RingStore>> {
        let Over { file, map, .. } = over;
        let size = Bytes(block::Device::size(&*below));
        make_room(file, map, size, || self.forget(over))?;
        let volatile = self.volatile(over);
        let files = OverlayFiles {
            data: self.open(file, size)?,
            map: RingStore::open(&self.ring, map, false, true)
                .with_context(|| format!("cannot open {}", map.display()))?,
            volatile: &volatile,
        };
        // New files are as durable as what is flushed into them.
        for name in [file, map] {
            sync_folder_of(name)
                .with_context(|| format!("cannot sync the folder of {}", name.display()))?;
        }
        let tag = match (over.checkpoint, base) {
            (None, Base::Point { point, .. }) => point_tag(*point, self.id),
            (None, Base::Raw(_)) => {
                bail!("the overlay {} is that of no checkpoint", file.display())
            }
            (Some(checkpoint), _) => checkpoint_tag(checkpoint, self.id),
        };
        let below = Below::new(below);
        let overlay = Overlay::open(files, Rc::clone(&below), self.boot, &tag)
            .await
            .with_context(|| format!("cannot open the overlay {}", file.display()))?;
        let layer = OverlayLayer::new(overlay, below, over.clone(), Some(lock));
        if self.merging(over).exists() {
            layer.start_draining().await;
        }
        Ok(layer)
    }

    fn open(&self, path: &Path, size: Bytes) -> Result<RingStore> {
        let store = RingStore::open(&self.ring, path, false, false)
            .with_context(|| format!("cannot open the disk {}", path.display()))?;
        let len = store
            .len()
            .with_context(|| format!("cannot ask for the size of {}", path.display()))?;
        // Longer it may be: it was grown, and whoever did was killed before it could say so.
        if len < size.0 {
            bail!(
                "the disk {} has {len} bytes, its VM says {}",
                path.display(),
                size.0
            );
        }
        Ok(store)
    }

    /// After a failed flush: what may hide that a block did not reach the disk is forgotten, as after a
    /// power cut. What is read from now on is what the disk has, and the durable maps say what.
    pub(crate) fn forget_cached(&self, flat: &Flat) -> Result<()> {
        for over in &flat.overlays {
            let volatile = self.volatile(over);
            durable::remove(&volatile)
                .with_context(|| format!("cannot remove {}", volatile.display()))?;
        }
        for file in flat.files() {
            let fail = || format!("cannot read {} afresh", file.display());
            let opened = File::open(file).with_context(fail)?;
            rustix::fs::fadvise(&opened, 0, None, Advice::DontNeed).with_context(fail)?;
        }
        Ok(())
    }
}

/// The file of a write-intent log.
pub(crate) struct LogFile {
    ring: Ring,
    path: PathBuf,
}

impl Place<RingStore> for LogFile {
    fn open(&self) -> std::io::Result<Option<RingStore>> {
        match RingStore::open(&self.ring, &self.path, false, false) {
            Ok(store) => Ok(Some(store)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn make(&self) -> std::io::Result<RingStore> {
        self.remove()?;
        let store = RingStore::open(&self.ring, &self.path, false, true)?;
        sync_folder_of(&self.path)?;
        Ok(store)
    }

    fn remove(&self) -> std::io::Result<()> {
        durable::remove(&self.path)
    }
}

const DRAINED: &[u8] = b"drained";

/// What tells an overlay from others: its checkpoint and its file.
fn name(over: &Over) -> String {
    let file = over.file.file_name().unwrap_or_default().to_string_lossy();
    match over.checkpoint {
        Some(checkpoint) => format!("{checkpoint}.{file}"),
        None => file.into_owned(),
    }
}

/// A disk of a pinned point of a journal.
fn point_device(journal: &Path, point: PointId, id: DiskId, size: Bytes) -> Result<PointDevice> {
    let opening = || format!("cannot open point {point} of {}", journal.display());
    let image = PointReader::open_pinned(journal, point)
        .with_context(opening)?
        .image(id)
        .with_context(opening)?;
    if image.size() != size.0 {
        bail!(
            "the disk {id} has {} bytes in point {point}, its VM says {}",
            image.size(),
            size.0
        );
    }
    PointDevice::new(image).context("cannot start the threads that read a point")
}

/// Gives a new overlay its size; it stays sparse. Its map comes later: one that is there already tells
/// of content that is gone. `forget` what an earlier overlay of its name left.
fn make_room(
    path: &Path,
    map: &Path,
    size: Bytes,
    forget: impl FnOnce() -> std::io::Result<()>,
) -> Result<()> {
    let fail = || format!("cannot make room in {}", path.display());
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .with_context(fail)?;
    if file.metadata().with_context(fail)?.len() == 0 {
        if std::fs::metadata(map).is_ok_and(|map| map.len() > 0) {
            bail!(
                "the disk {} is new or empty, but {} says that it has content: put the file back, or \
                 remove both to begin again",
                path.display(),
                map.display()
            );
        }
        forget().with_context(fail)?;
        file.set_len(size.0).with_context(fail)?;
        file.sync_all().with_context(fail)?;
    }
    Ok(())
}

fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// What an overlay lies above, so that it is never put above something else.
fn point_tag(point: PointId, id: DiskId) -> Tag {
    let mut tag = [0; 32];
    tag[..16].copy_from_slice(point.term.0.as_bytes());
    tag[16..24].copy_from_slice(&point.sequence.to_le_bytes());
    tag[24..].copy_from_slice(&id.0.as_bytes()[..8]);
    tag
}

/// The checkpoint of which an overlay is, so that it is never used for another.
fn checkpoint_tag(checkpoint: CheckpointId, id: DiskId) -> Tag {
    let mut tag = [0; 32];
    tag[..16].copy_from_slice(checkpoint.0.as_bytes());
    tag[16..24].copy_from_slice(b"checkpt\0");
    tag[24..].copy_from_slice(&id.0.as_bytes()[..8]);
    tag
}

/// Locks a disk's file. A predecessor that was just killed gets a moment to be gone: the kernel
/// keeps its lock until its last write has ended. `patience` is how long.
pub(crate) fn lock(path: &Path, create: bool, patience: Duration) -> Result<Lock> {
    let deadline = Instant::now() + patience;
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot open the disk {}", path.display()))?;
        match Lock::of(file, path) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Err(error @ LockError::Held { .. }) => {
                return Err(error).with_context(|| {
                    format!("the disk {} is in use; stop what uses it", path.display())
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
}
