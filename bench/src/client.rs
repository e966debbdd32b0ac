//! A load generator on the guest's side of vhost-user-blk, the same for every server.
#![allow(
    unsafe_code,
    reason = "requests name memory that is shared with the server"
)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

/// Bytes of a request.
const BLOCK: usize = 4096;
/// Entries of the queue; a request takes three.
const QUEUE: u16 = 128;
/// A server that answers nothing for so long hangs.
const HANG: Duration = Duration::from_secs(10);

/// Which requests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    RandRead,
    RandWrite,
}

/// Random requests of 4 KiB, `depth` at once, over the first `len` bytes of the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) pattern: Pattern,
    pub(crate) depth: usize,
    pub(crate) len: u64,
    pub(crate) duration: Duration,
}

/// A connection to a server. The queue borrows nothing from the transport but what outlives it.
pub(crate) struct Client {
    queue: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    buffers: memmap2::MmapRaw,
    depth: usize,
    random: u64,
    /// Keeps the queue's memory mapped and the connection open; dropped last.
    _transport: Box<VirtioBlkTransport>,
}

impl Client {
    /// Connects with one queue for up to `depth` requests at once.
    pub(crate) fn connect(socket: &Path, depth: usize) -> Result<Self> {
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let transport = VhostUser::new(path, features.bits())
            .with_context(|| format!("cannot connect to {path}"))?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let memory = File::from(memfd_create("bench", MemfdFlags::CLOEXEC)?);
        memory.set_len((depth * BLOCK) as u64)?;
        let buffers = memmap2::MmapRaw::map_raw(&memory)?;
        let address = buffers.as_mut_ptr();
        // Not zeroes, so that no server can take a short cut.
        for at in 0..buffers.len() {
            // SAFETY: inside the mapping, which nobody else uses yet.
            unsafe { address.add(at).write(at.to_le_bytes()[0] | 1) };
        }
        transport.map_mem_region(address as usize, buffers.len(), memory.as_raw_fd(), 0)?;
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, QUEUE)?;
        let mut queue = queues.into_iter().next().context("there is no queue")?;
        queue.set_used_notif_enabled(true);
        Ok(Self {
            queue,
            kick: transport.get_submission_notifier(0),
            call: transport.get_completion_fd(0),
            buffers,
            depth,
            random: 0x9e37_79b9_7f4a_7c15,
            _transport: transport,
        })
    }

    /// Runs `load` and returns how many operations completed, and in what time.
    pub(crate) fn run(&mut self, load: Load) -> Result<(u64, Duration)> {
        let blocks = load.len / BLOCK as u64;
        let start = Instant::now();
        for slot in 0..load.depth.min(self.depth) {
            self.submit(load.pattern, blocks, slot)?;
        }
        self.kick.notify()?;
        let (mut done, mut running) = (0, load.depth.min(self.depth));
        while running > 0 {
            self.wait()?;
            let finished: Vec<_> = self.queue.completions().collect();
            let going_on = start.elapsed() < load.duration;
            for completion in &finished {
                if completion.ret != 0 {
                    bail!("an operation failed with error {}", -completion.ret);
                }
                done += 1;
                if going_on {
                    self.submit(load.pattern, blocks, completion.context)?;
                } else {
                    running -= 1;
                }
            }
            if going_on && !finished.is_empty() && self.queue.avail_notif_needed() {
                self.kick.notify()?;
            }
        }
        Ok((done, start.elapsed()))
    }

    fn submit(&mut self, pattern: Pattern, blocks: u64, slot: usize) -> Result<()> {
        // xorshift64: a server cannot guess it, and it costs nothing.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let at = self.random % blocks * BLOCK as u64;
        let buffer = self.buffers.as_mut_ptr().wrapping_add(slot * BLOCK);
        // SAFETY: the slot lies in the mapping and no other request uses it.
        unsafe {
            match pattern {
                Pattern::RandRead => self.queue.read_raw(at, buffer, BLOCK, slot),
                Pattern::RandWrite => self.queue.write_raw(at, buffer, BLOCK, slot),
            }
        }
        .context("cannot queue a request")
    }

    /// Waits for a notification.
    fn wait(&self) -> Result<()> {
        let limit = Timespec::try_from(HANG)?;
        let ready = poll(&mut [PollFd::new(&*self.call, PollFlags::IN)], Some(&limit))?;
        if ready == 0 {
            bail!("the server answered nothing for {HANG:?}");
        }
        self.call.read()?;
        Ok(())
    }
}
