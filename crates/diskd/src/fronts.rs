//! Through what a disk is reached.
//!
//! ```text
//!   guest (virtio)    --vhost-user--> tracker
//!   guest (IDE, SCSI) --NBD `guest`-> tracker         one of the two, as its configuration says
//!   others  --NBD `` or `disk`------> tracker         read-only: the disk as it is now; of a recovery
//!                                                     point with nothing above it this is all there is
//!           --NBD `checkpoint/<id>`-> what lies below the overlay of a checkpoint, read-only
//! ```

use std::os::unix::net::UnixListener;
use std::rc::Rc;

use anyhow::{Context, Result};
use block::Device;
use model::DiskId;
use ring::Ring;

use crate::config::Front;
use crate::nbd::{self, DEFAULT, Export};
use crate::stack::{FileTracker, Stack};
use crate::vhost_user::{self, DiskInfo};

/// The name of the export that a guest on IDE or SCSI uses.
pub const GUEST: &str = "guest";

/// The listening sockets of a disk.
pub struct Sockets {
    /// For vhost-user, if the guest reaches the disk by it.
    pub vhost_user: Option<UnixListener>,
    /// For NBD.
    pub nbd: Option<UnixListener>,
}

/// The front ends of a disk.
pub(crate) struct Fronts {
    vhost_user: Option<vhost_user::Handle<FileTracker>>,
    nbd: Option<nbd::Handle>,
    front: Front,
}

impl Fronts {
    /// Serves a disk.
    ///
    /// # Errors
    /// When a front end cannot be started.
    pub(crate) fn serve(
        ring: &Ring,
        tracker: &Rc<FileTracker>,
        stack: &Stack,
        id: DiskId,
        front: Front,
        sockets: Sockets,
    ) -> Result<Self> {
        let info = DiskInfo {
            id,
            read_only: false,
        };
        let serve = |listener| vhost_user::serve(ring, Rc::clone(tracker), listener, info);
        let vhost_user = sockets.vhost_user.map(serve).transpose();
        let serve = |listener| nbd::serve(ring, listener, exports(tracker, stack, front));
        let nbd = sockets.nbd.map(serve).transpose();
        Ok(Self {
            vhost_user: vhost_user.context("cannot start the vhost-user front end")?,
            nbd: nbd.context("cannot start the NBD front end")?,
            front,
        })
    }

    /// Whether a guest is connected.
    pub(crate) fn connected(&self) -> bool {
        let nbd = || self.nbd.as_ref().is_some_and(nbd::Handle::connected);
        self.vhost_user
            .as_ref()
            .is_some_and(|front| front.connected())
            || nbd()
    }

    /// Whether a guest is connected that has not hung up.
    pub(crate) fn guest_is_there(&self) -> bool {
        let nbd = || self.nbd.as_ref().is_some_and(nbd::Handle::guest_is_there);
        self.vhost_user
            .as_ref()
            .is_some_and(|front| front.guest_is_there())
            || nbd()
    }

    /// Requests of the guest that wait for room.
    pub(crate) fn waiting_for_room(&self) -> u64 {
        self.vhost_user
            .as_ref()
            .map_or(0, |front| front.waiting_for_room())
    }

    /// The stack was exchanged; the disk had `size` bytes before.
    pub(crate) fn swapped(&self, tracker: &Rc<FileTracker>, stack: &Stack, size: u64) {
        let now = tracker.size();
        if let (Some(front), true) = (&self.vhost_user, now != size) {
            front.resized(now);
        }
        self.serve_frozen(tracker, stack);
    }

    /// Serves what the checkpoints of the stack hold.
    pub(crate) fn serve_frozen(&self, tracker: &Rc<FileTracker>, stack: &Stack) {
        if let Some(nbd) = &self.nbd {
            nbd.replace(exports(tracker, stack, self.front));
        }
    }

    /// Answers what runs, or leaves it in flight, and takes nothing more.
    pub(crate) async fn shutdown(&mut self) {
        if let Some(front) = self.vhost_user.take() {
            front.shutdown().await;
        }
        if let Some(nbd) = self.nbd.take() {
            nbd.shutdown().await;
        }
    }
}

fn exports(tracker: &Rc<FileTracker>, stack: &Stack, front: Front) -> Vec<Export> {
    let disk = || Rc::clone(tracker);
    let mut exports = vec![Export::new(DEFAULT, "the disk as it is now", true, disk())];
    if front == Front::Nbd && !stack.is_read_only() {
        exports.push(Export::new(GUEST, "for the guest", false, disk()));
    }
    let frozen = stack.frozen().into_iter().map(|(checkpoint, below)| {
        let name = format!("checkpoint/{checkpoint}");
        Export::new(name, "the disk as it was", true, below)
    });
    exports.extend(frozen);
    exports
}
