//! A load generator on the guest's side of vhost-user-blk, the same for every server.
//!
//! It does what a guest's driver does: it asks for a notification only when it has nothing left
//! to do, and kicks only when the server asks for that.
#![allow(
    unsafe_code,
    reason = "requests name memory that is shared with the server"
)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

use crate::load::{self, Client, Load, Pace, Pattern, xorshift};

/// Entries of the queue; a request takes three.
const QUEUE: u16 = 128;
/// A server that answers nothing for so long hangs.
pub(crate) const HANG: Duration = Duration::from_secs(10);

/// A connection to a server. The queue borrows nothing from the transport but what outlives it.
pub(crate) struct VhostUserClient {
    queue: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    buffers: memmap2::MmapRaw,
    load: Load,
    /// Slots that completed and were not used again; kept for its capacity.
    finished: Vec<usize>,
    /// Keeps the queue's memory mapped and the connection open; dropped last.
    _transport: Box<VirtioBlkTransport>,
}

impl VhostUserClient {
    /// Connects with one queue.
    pub(crate) fn connect(socket: &Path, load: Load) -> Result<Self> {
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let discard = match load.pattern {
            Pattern::Discard => VirtioBlkFeatureFlags::DISCARD.bits(),
            _ => 0,
        };
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let transport = VhostUser::new(path, features.bits() | discard)
            .with_context(|| format!("cannot connect to {path}"))?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let memory = File::from(memfd_create("bench", MemfdFlags::CLOEXEC)?);
        memory.set_len((load.depth * load.pattern.block()) as u64)?;
        let buffers = memmap2::MmapRaw::map_raw(&memory)?;
        let address = buffers.as_mut_ptr();
        // Other content with each connection: a block that is written again changes.
        let mut random = load::seed();
        for at in 0..buffers.len() {
            // Half of each block can be compressed, as much of what guests write; none is zeroes, so
            // that no server can take a short cut.
            let byte = if at % 4096 < 2048 {
                xorshift(&mut random).to_le_bytes()[0]
            } else {
                at.to_le_bytes()[0] | 1
            };
            // SAFETY: inside the mapping, which nobody else uses yet.
            unsafe { address.add(at).write(byte) };
        }
        transport.map_mem_region(address as usize, buffers.len(), memory.as_raw_fd(), 0)?;
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, QUEUE)?;
        let mut queue = queues.into_iter().next().context("there is no queue")?;
        queue.set_used_notif_enabled(false);
        Ok(Self {
            queue,
            kick: transport.get_submission_notifier(0),
            call: transport.get_completion_fd(0),
            buffers,
            load,
            finished: Vec::new(),
            _transport: transport,
        })
    }

    fn submit(&mut self, at: u64, slot: usize) -> Result<()> {
        let block = self.load.pattern.block();
        if self.load.pattern == Pattern::Discard {
            let queued = self.queue.discard(at, block as u64, slot);
            return queued.context("cannot queue a request");
        }
        let buffer = self.buffers.as_mut_ptr().wrapping_add(slot * block);
        // SAFETY: the slot lies in the mapping and no other request uses it.
        unsafe {
            if self.load.pattern.writes() {
                self.queue.write_raw(at, buffer, block, slot)
            } else {
                self.queue.read_raw(at, buffer, block, slot)
            }
        }
        .context("cannot queue a request")
    }

    /// Waits until something has completed.
    fn wait(&mut self) -> Result<()> {
        self.queue.set_used_notif_enabled(true);
        // What was asked for is seen before the ring is looked at once more.
        fence(Ordering::SeqCst);
        if !self.queue.completions().has_next() {
            let limit = Timespec::try_from(HANG)?;
            let ready = poll(&mut [PollFd::new(&*self.call, PollFlags::IN)], Some(&limit))?;
            if ready == 0 {
                bail!("the server answered nothing for {HANG:?}");
            }
            self.call.read()?;
        }
        self.queue.set_used_notif_enabled(false);
        Ok(())
    }
}

impl Client for VhostUserClient {
    fn run(&mut self, pace: &mut Pace) -> Result<()> {
        let mut running = self.load.depth;
        for slot in 0..running {
            self.submit(pace.offset(), slot)?;
        }
        if self.queue.avail_notif_needed() {
            self.kick.notify()?;
        }
        let mut finished = std::mem::take(&mut self.finished);
        while running > 0 {
            for completion in self.queue.completions() {
                if completion.ret != 0 {
                    bail!("an operation failed with error {}", -completion.ret);
                }
                finished.push(completion.context);
            }
            if finished.is_empty() {
                self.wait()?;
                continue;
            }
            if !pace.completed(finished.len()) {
                running -= finished.len();
                finished.clear();
                continue;
            }
            for slot in finished.drain(..) {
                if let Some(early) = pace.early() {
                    if self.queue.avail_notif_needed() {
                        self.kick.notify()?;
                    }
                    std::thread::sleep(early);
                }
                self.submit(pace.offset(), slot)?;
            }
            if self.queue.avail_notif_needed() {
                self.kick.notify()?;
            }
        }
        self.finished = finished;
        Ok(())
    }
}
