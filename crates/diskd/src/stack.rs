//! Opens what a disk is made of, locks it, and runs its owner.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use block::{Device, Image};
use durable::{Lock, LockError};
use image::{Overlay, OverlayFiles, RawDevice, Tag};
use journal::PointReader;
use model::{BootId, Bytes, DiskId, PointId};
use ring::{Mailbox, Ring, RingStore};
use rustix::fs::Advice;

use crate::config::{DiskConfig, StackSpec};
use crate::owner::{self, Order};
use crate::point::PointDevice;
use crate::state::{DiskState, Stamp};
use crate::tracker::{Stats, Tracker};
use crate::vhost_user::{self, DiskInfo};

/// Submissions of a turn of an owner; a queue of a guest has up to 128 requests of several pieces.
const ENTRIES: u32 = 256;
/// How long a disk may stay locked by a predecessor that was killed and is being torn down.
const DYING: Duration = Duration::from_secs(5);
/// Between two looks at a lock: flock(2) has no wait with a limit.
const LOOK: Duration = Duration::from_millis(10);

/// What an owner thread is given.
pub struct Owned {
    /// The disk.
    pub config: DiskConfig,
    /// This boot.
    pub boot: BootId,
    /// The term in which this process may write.
    pub term: u64,
    /// Where guests connect.
    pub listener: UnixListener,
    /// What it is told.
    pub orders: Mailbox<Order>,
    /// What others see of it.
    pub stats: Arc<Stats>,
}

/// Opens the disk, calls `ready`, and serves it until its orders end.
///
/// # Errors
/// Why the disk cannot be opened; nothing of it was touched.
pub fn run(owned: Owned, ready: impl FnOnce()) -> Result<()> {
    let ring = Ring::new(ENTRIES)?;
    let DiskConfig { id, size, .. } = owned.config;
    // On every line that this thread logs.
    let _span = tracing::error_span!("disk", %id).entered();
    match owned.config.stack.clone() {
        StackSpec::Raw { file } => {
            let _lock = lock(&file, false)?;
            let store = open(&ring, &file, size)?;
            let device = RawDevice::new(store, size.0, false)
                .with_context(|| format!("cannot use {}", file.display()))?;
            let state = open_state(&owned, &file)?;
            if state.is_reopening() {
                forget_cached(&file)?;
                state.reopened();
            }
            serve(&ring, device, state, file, owned, ready)
        }
        StackSpec::Overlay {
            file,
            map,
            checkpoint: None,
            below,
        } => {
            let StackSpec::Point { journal, point } = *below else {
                bail!("the overlay {} is that of no checkpoint", file.display());
            };
            let _lock = lock(&file, true)?;
            let below = point_below(&journal, point, id, size)?;
            grow(&file, &map, size)?;
            let data = open(&ring, &file, size)?;
            let state = open_state(&owned, &file)?;
            let volatile = volatile(&owned.config.state);
            if state.is_reopening() {
                // As after a power cut: what the durable map lacks did not reach the disk for sure.
                durable::remove(&volatile)
                    .with_context(|| format!("cannot remove {}", volatile.display()))?;
                forget_cached(&file)?;
                state.reopened();
            }
            let files = OverlayFiles {
                data,
                map: RingStore::open(&ring, &map, false, true)
                    .with_context(|| format!("cannot open {}", map.display()))?,
                volatile: &volatile,
            };
            // New files are as durable as what is flushed into them.
            for name in [&file, &map] {
                sync_folder_of(name)
                    .with_context(|| format!("cannot sync the folder of {}", name.display()))?;
            }
            let tag = tag(point, id);
            let device = ring
                .block_on(Overlay::open(files, below, owned.boot, &tag))
                .with_context(|| format!("cannot open the overlay {}", file.display()))?;
            serve(&ring, device, state, file, owned, ready)
        }
        StackSpec::Overlay { file, .. } => {
            bail!("the overlay {} does not lie above a point", file.display())
        }
        StackSpec::Point { point, .. } => {
            bail!("nothing lies above point {point} that could be written")
        }
    }
}

fn open_state(owned: &Owned, file: &Path) -> Result<DiskState> {
    let looks = Stamp::of(file).with_context(|| format!("cannot look at {}", file.display()))?;
    let DiskConfig {
        id, size, state, ..
    } = &owned.config;
    let state = DiskState::open(state, owned.boot, *id, size.0, owned.term, Some(looks))?;
    Ok(state)
}

/// After a failed flush the kernel may hold content that it could not write, and take it for
/// written: what is read from now on is what the disk has.
fn forget_cached(file: &Path) -> Result<()> {
    let fail = || format!("cannot read {} afresh", file.display());
    let opened = std::fs::File::open(file).with_context(fail)?;
    rustix::fs::fadvise(&opened, 0, None, Advice::DontNeed).with_context(fail)
}

/// A disk of a pinned point of a journal.
fn point_below(journal: &Path, point: PointId, id: DiskId, size: Bytes) -> Result<PointDevice> {
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
/// of content that is gone.
fn grow(path: &Path, map: &Path, size: Bytes) -> Result<()> {
    let fail = || format!("cannot make room in {}", path.display());
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .with_context(fail)?;
    if file.metadata().with_context(fail)?.len() == 0 {
        if std::fs::metadata(map).is_ok_and(|map| map.len() > 0) {
            bail!(
                "the disk {} is new or empty, but {} says that it has content: put the file back, or \
                 remove both to begin again at the point",
                path.display(),
                map.display()
            );
        }
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

/// The volatile map lies beside the state.
fn volatile(state: &Path) -> PathBuf {
    let mut name = state.as_os_str().to_owned();
    name.push(".presence");
    PathBuf::from(name)
}

/// What an overlay lies above, so that it is never put above something else.
fn tag(point: PointId, id: DiskId) -> Tag {
    let mut tag = [0; 32];
    tag[..16].copy_from_slice(point.term.0.as_bytes());
    tag[16..24].copy_from_slice(&point.sequence.to_le_bytes());
    tag[24..].copy_from_slice(&id.0.as_bytes()[..8]);
    tag
}

/// Locks a disk's file. A predecessor that was just killed gets a moment to be gone: the kernel
/// keeps its lock until its last write has ended.
fn lock(path: &Path, create: bool) -> Result<Lock> {
    let deadline = Instant::now() + DYING;
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

fn open(ring: &Ring, path: &Path, size: Bytes) -> Result<RingStore> {
    let store = RingStore::open(ring, path, false, false)
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

fn serve<D: Device + 'static>(
    ring: &Ring,
    device: D,
    state: DiskState,
    file: PathBuf,
    owned: Owned,
    ready: impl FnOnce(),
) -> Result<()> {
    let id = owned.config.id;
    let tracker = Rc::new(Tracker::new(device, state, owned.stats));
    let info = DiskInfo {
        id,
        read_only: false,
    };
    let front = vhost_user::serve(ring, Rc::clone(&tracker), owned.listener, info)
        .context("cannot start the vhost-user front end")?;
    ready();
    ring.block_on(owner::obey(
        ring.clone(),
        tracker,
        front,
        owned.orders,
        file,
    ));
    Ok(())
}
