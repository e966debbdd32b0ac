//! Opens what a disk is made of, locks it, and runs its owner.

use std::fs::OpenOptions;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use block::Device;
use durable::{Lock, LockError};
use image::RawDevice;
use model::{BootId, Bytes};
use ring::{Mailbox, Ring, RingStore};

use crate::config::{DiskConfig, StackSpec};
use crate::owner::{self, Order};
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
    match &owned.config.stack {
        StackSpec::Raw { file } => {
            let file = file.clone();
            let _lock = lock(&file)?;
            let store = open(&ring, &file, owned.config.size)?;
            let device = RawDevice::new(store, owned.config.size.0, false)
                .with_context(|| format!("cannot use {}", file.display()))?;
            serve(&ring, device, &file, owned, ready)
        }
        StackSpec::Overlay { .. } => bail!("unsupported"),
    }
}

/// Locks a disk's file. A predecessor that was just killed gets a moment to be gone: the kernel
/// keeps its lock until its last write has ended.
fn lock(path: &Path) -> Result<Lock> {
    let deadline = Instant::now() + DYING;
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
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
    if len != size.0 {
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
    file: &Path,
    owned: Owned,
    ready: impl FnOnce(),
) -> Result<()> {
    let DiskConfig { id, state, .. } = &owned.config;
    let looks = Stamp::of(file).with_context(|| format!("cannot look at {}", file.display()))?;
    let state = DiskState::open(
        state,
        owned.boot,
        *id,
        device.size(),
        owned.term,
        Some(looks),
    )?;
    let tracker = Rc::new(Tracker::new(device, state, owned.stats));
    let info = DiskInfo {
        id: *id,
        read_only: false,
    };
    let front = vhost_user::serve(ring, Rc::clone(&tracker), owned.listener, info)
        .context("cannot start the vhost-user front end")?;
    ready();
    let file = file.to_owned();
    ring.block_on(owner::obey(
        ring.clone(),
        tracker,
        front,
        owned.orders,
        file,
    ));
    Ok(())
}
