//! The vhost-user-blk front end of a disk: QEMU hands us the guest's queues.
//!
//! ```text
//!   QEMU ==vhost-user socket==> connection, handler      (message thread of the disk)
//!                                    |  Order, reply
//!                                    v
//!   guest ==kick, rings, call==> front, queue, request   (owner thread: one ring, all queues)
//!                                    |  block::Op on guest memory, nothing is copied
//!                                    v
//!                                  Device
//! ```
//!
//! | file | job |
//! |---|---|
//! | `connection` | accepts one front end after the other, reads messages |
//! | `handler` | what each message means |
//! | `front` | starts, stops and drains queues on the owner thread |
//! | `queue` | takes requests, runs them, publishes answers |
//! | `request` | what a chain asks for, checked |
//! | `chain` | walks descriptors |
//! | `split_ring` | available and used ring |
//! | `room` | what a mutation does that finds no room |
//! | `log` | which guest memory was written, for live migration |
//! | `channel` | tells the front end that the size changed |
//! | `inflight` | what was taken and not answered, in memory that outlives this process |
//! | `memory` | guest memory; all unsafe code |
//!
//! Everything in the messages, the rings and the in-flight area is hostile. What is wrong is answered
//! with an error where there is a place for one; otherwise the queue is broken or the connection ended,
//! with a line in the log. Limits are named where they are checked.
//!
//! **After `kill -9`** of this process QEMU connects again and gives the in-flight area back:
//! requests that were taken and not answered are run again in their order, answered ones are not.
//! The old process must be gone and the disk's lock taken before a disk is served again.
//!
//! **Closed in order** ([`Handle::shutdown`]) everything that was taken is answered, or left in
//! flight for want of room; QEMU connects to the next process as after a kill. No guest ever
//! sees an I/O error because of either.

mod chain;
mod channel;
mod connection;
mod front;
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod inflight;
mod log;
mod memory;
mod queue;
mod request;
mod room;
mod split_ring;

use std::io;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use block::Device;
use model::{BLOCK_SIZE, DiskId, SECTOR_SIZE};
use ring::Ring;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use channel::Channel;
use connection::{Served, Stopper};
use front::Front;
use request::{MAX_RANGE_SECTORS, MAX_RANGES, SERIAL};

/// Most queues of a disk. QEMU refuses to start with a `num-queues` of more, so who writes its
/// command line takes the number of processors or this, whichever is less.
pub const MAX_QUEUES: u16 = 16;

/// Most data segments of a request that the guest is told of: a queue of 128, without header and
/// status.
const SEGMENTS: u32 = 126;

/// Orders that may wait for the owner. The message thread waits for each reply, so there are never
/// more than a few.
const ORDERS: usize = 16;

/// What a guest sees of a disk beside its content and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskInfo {
    /// Its identity; the first 20 hex digits are the serial number.
    pub id: DiskId,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A disk as the front end describes it; the owner and the message thread share it.
#[derive(Debug)]
struct DiskShape {
    id: DiskId,
    serial: [u8; SERIAL],
    /// In bytes.
    size: AtomicU64,
    read_only: bool,
}

impl DiskShape {
    fn new(info: DiskInfo, size: u64) -> Self {
        let mut serial = [0; SERIAL];
        let mut text = [0; uuid::fmt::Simple::LENGTH];
        info.id.0.simple().encode_lower(&mut text);
        serial.copy_from_slice(&text[..SERIAL]);
        Self {
            id: info.id,
            serial,
            size: AtomicU64::new(size),
            read_only: info.read_only,
        }
    }

    /// In bytes.
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Virtio features and those of vhost-user that share their space.
    fn features(&self) -> u64 {
        let mut features = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_MQ,
        ];
        if self.read_only {
            features.push(VIRTIO_BLK_F_RO);
        } else {
            features.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        let shared = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
        features
            .into_iter()
            .fold(shared.bits(), |all, bit| all | 1 << bit)
    }

    /// `struct virtio_blk_config` (VIRTIO 1.2, section 5.2.4) of a disk of `size` bytes.
    fn config_space(&self, size: u64) -> [u8; 60] {
        let (sector, block) = (SECTOR_SIZE, BLOCK_SIZE);
        let mut bytes = [0; 60];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
        put(0, &(size / sector).to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &number(sector));
        // Logical sectors in a physical one, as a power of two.
        put(24, &[(block / sector).ilog2().to_le_bytes()[0]]);
        // Smallest efficient write in logical sectors.
        put(26, &number(block / sector)[..2]);
        // There is a write-back cache.
        put(32, &[1]);
        put(34, &MAX_QUEUES.to_le_bytes());
        if !self.read_only {
            let ranges = number(MAX_RANGES as u64);
            put(36, &MAX_RANGE_SECTORS.to_le_bytes());
            put(40, &ranges);
            put(44, &number(block / sector));
            put(48, &MAX_RANGE_SECTORS.to_le_bytes());
            put(52, &ranges);
            // Writing zeroes may give space back.
            put(56, &[1]);
        }
        bytes
    }
}

/// A disk that is served. Dropped without [`Handle::shutdown`] it goes on being served.
pub struct Handle<D> {
    front: Rc<Front<D>>,
    disk: Arc<DiskShape>,
    channel: Arc<Channel>,
    stopper: Arc<Stopper>,
    thread: JoinHandle<()>,
}

/// Serves `device` to whoever connects to `listener`, one front end at a time.
///
/// Requests run as tasks of `ring`, on whose owner thread this must be called; messages are read
/// on a thread of its own.
///
/// # Errors
/// When the thread cannot be started.
pub fn serve<D: Device + 'static>(
    ring: &Ring,
    device: Rc<D>,
    listener: UnixListener,
    info: DiskInfo,
) -> io::Result<Handle<D>> {
    let disk = Arc::new(DiskShape::new(info, device.size()));
    let channel = Arc::new(Channel::default());
    // The listener may be shared with a process that is about to die: it may take the connection.
    listener.set_nonblocking(true)?;
    let stopper = Stopper::new()?;
    let (orders, mailbox) = ring::mailbox(ORDERS);
    let thread = std::thread::Builder::new()
        .name("vhost-user".to_owned())
        .spawn({
            let served = Served {
                listener,
                stopper: Arc::clone(&stopper),
                orders,
                disk: Arc::clone(&disk),
                channel: Arc::clone(&channel),
            };
            move || served.run()
        })?;
    let front = Rc::new(Front::new(ring, device, Arc::clone(&disk)));
    ring.spawn(Rc::clone(&front).serve(mailbox));
    Ok(Handle {
        front,
        disk,
        channel,
        stopper,
        thread,
    })
}

impl<D: Device + 'static> Handle<D> {
    /// Whether a front end is connected now.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.front.connected()
    }

    /// Whether a front end is connected that has not hung up.
    #[must_use]
    pub fn guest_is_there(&self) -> bool {
        self.connected() && self.stopper.peer_is_there()
    }

    /// The device has `size` bytes now: requests up to there are served, and the guest is told.
    /// Called after the device has grown; before it becomes smaller.
    pub fn resized(&self, size: u64) {
        self.disk.size.store(size, Ordering::Release);
        self.channel.tell(size);
    }

    /// How many requests of the guest wait, unanswered, because there is no room for them below.
    #[must_use]
    pub fn waiting_for_room(&self) -> u64 {
        self.front.waiting_for_room()
    }

    /// Answers every request that runs, but for those that wait for room, closes the connection and stops accepting.
    pub async fn shutdown(self) {
        self.front.close().await;
        self.stopper.stop();
        self.front.ended().await;
        // It has dropped its end of the mailbox, the last thing it does.
        if self.thread.join().is_err() {
            tracing::error!("the thread that reads vhost-user messages has panicked");
        }
    }
}
