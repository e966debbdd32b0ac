//! A disk server on a thread or in a process of its own, and a front end written by hand that
//! can break every rule of the protocol.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "guest memory and inherited descriptors")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::File;
use std::future::pending;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU16, AtomicU64, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block::{Device, Done, Fault, Op};
use image::RawDevice;
use model::DiskId;
use pollux_diskd::vhost_user::{DiskInfo, serve};
use ring::{Ring, RingStore, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Nothing in these tests takes longer unless it hangs, not even in a guest without hardware help
/// on a busy host.
pub const LIMIT: Duration = Duration::from_secs(300);

pub const DISK: &str = "8dbbbd7a-9f5c-4a6f-8a4b-5f0f7ab1c0de";

/// What a test decides about the device of its server while it runs.
#[derive(Default)]
pub struct Control {
    /// Operations that are still answered; those after them only take place.
    answers: AtomicU64,
    /// Size that the device says it has; zero for that of its file.
    pub size: AtomicU64,
    /// There is no room: every mutation fails with this error, if it isn't zero.
    pub full: AtomicI32,
    /// How many mutations failed for want of room.
    pub refused: AtomicU64,
    /// How many operations were run.
    pub run: AtomicU64,
}

impl Control {
    pub fn new(answers: u64) -> Arc<Self> {
        let control = Self::default();
        control.answers.store(answers, Ordering::SeqCst);
        Arc::new(control)
    }

    /// From now on there is room, or not.
    pub fn set_full(&self, full: bool) {
        let error = if full { libc::ENOSPC } else { 0 };
        self.full.store(error, Ordering::SeqCst);
    }

    /// Waits until `count` mutations more were refused.
    pub fn wait_refused(&self, count: u64) {
        let goal = self.refused.load(Ordering::SeqCst) + count;
        until(|| (self.refused.load(Ordering::SeqCst) >= goal).then_some(()));
    }
}

/// Looks again and again until there is something.
pub fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A device that is controlled.
pub struct Lab<D> {
    inner: D,
    control: Arc<Control>,
}

impl<D: Device> Device for Lab<D> {
    fn size(&self) -> u64 {
        match self.control.size.load(Ordering::SeqCst) {
            0 => self.inner.size(),
            size => size,
        }
    }

    async fn run(&self, op: Op) -> Done {
        let control = &self.control;
        control.run.fetch_add(1, Ordering::SeqCst);
        let full = control.full.load(Ordering::SeqCst);
        if full != 0 && op.mutates() {
            control.refused.fetch_add(1, Ordering::SeqCst);
            return op.refuse(Fault::Os(full));
        }
        let done = self.inner.run(op).await;
        let left = control.answers.load(Ordering::SeqCst);
        if left == 0 {
            return pending().await;
        }
        control.answers.store(left - 1, Ordering::SeqCst);
        done
    }
}

/// What a test asks its server.
pub enum Ask {
    /// The device has this size now.
    Resized(u64),
    /// How many requests wait for room.
    Waiting(std::sync::mpsc::Sender<u64>),
    /// Shut down.
    Stop,
}

/// A device of `file`.
pub fn raw_device(ring: &Ring, file: &Path, read_only: bool) -> RawDevice<RingStore> {
    let store = RingStore::open(ring, file, read_only, false).unwrap();
    let size = store.len().unwrap();
    RawDevice::new(store, size, read_only).unwrap()
}

/// Serves what `make` makes until told to stop.
fn serve_device<D: Device + 'static>(
    listener: UnixListener,
    read_only: bool,
    control: Arc<Control>,
    asked: &ring::Mailbox<Ask>,
    make: impl FnOnce(&Ring) -> D,
) {
    let ring = Ring::new(256).unwrap();
    let inner = make(&ring);
    let device = Rc::new(Lab { inner, control });
    let info = DiskInfo {
        id: DISK.parse::<DiskId>().unwrap(),
        read_only,
    };
    let handle = serve(&ring, device, listener, info).unwrap();
    ring.block_on(async {
        loop {
            match asked.recv().await {
                Some(Ask::Resized(size)) => handle.resized(size),
                Some(Ask::Waiting(answer)) => answer.send(handle.waiting_for_room()).unwrap(),
                Some(Ask::Stop) | None => break,
            }
        }
        handle.shutdown().await;
    });
    ring.abandon_tasks();
}

/// A server on a thread.
pub struct Server {
    pub socket: PathBuf,
    pub control: Arc<Control>,
    asks: Option<Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `file` at a socket in `folder`.
    pub fn start(folder: &Path, file: &Path, read_only: bool) -> Self {
        let file = file.to_owned();
        Self::of(folder, read_only, Control::new(u64::MAX), move |ring| {
            raw_device(ring, &file, read_only)
        })
    }

    /// Serves what `make` makes at a socket in `folder`.
    pub fn of<D: Device + 'static>(
        folder: &Path,
        read_only: bool,
        control: Arc<Control>,
        make: impl FnOnce(&Ring) -> D + Send + 'static,
    ) -> Self {
        let socket = folder.join("disk.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        Self::at(listener, socket, read_only, control, make)
    }

    /// Serves what `make` makes at `listener`, which may be shared.
    pub fn at<D: Device + 'static>(
        listener: UnixListener,
        socket: PathBuf,
        read_only: bool,
        control: Arc<Control>,
        make: impl FnOnce(&Ring) -> D + Send + 'static,
    ) -> Self {
        let (asks, mailbox) = ring::mailbox(4);
        let controlled = Arc::clone(&control);
        let thread = std::thread::spawn(move || {
            serve_device(listener, read_only, controlled, &mailbox, make);
        });
        Self {
            socket,
            control,
            asks: Some(asks),
            thread: Some(thread),
        }
    }

    fn ask(&self, ask: Ask) {
        assert!(self.asks.as_ref().unwrap().send(ask).is_ok());
    }

    /// The device grew.
    pub fn resized(&self, size: u64) {
        self.ask(Ask::Resized(size));
    }

    /// How many requests wait for room.
    pub fn waiting(&self) -> u64 {
        let (answer, answered) = std::sync::mpsc::channel();
        self.ask(Ask::Waiting(answer));
        answered.recv().unwrap()
    }

    /// Shuts it down and waits until it is gone.
    pub fn stop(&mut self) {
        if let (Some(asks), Some(thread)) = (self.asks.take(), self.thread.take()) {
            let _ = asks.send(Ask::Stop);
            let outcome = thread.join();
            assert!(
                outcome.is_ok() || std::thread::panicking(),
                "the server panicked"
            );
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

const LISTENER: &str = "POLLUX_TEST_LISTENER";
const FILE: &str = "POLLUX_TEST_FILE";
const ANSWERS: &str = "POLLUX_TEST_ANSWERS";
const FULL: &str = "POLLUX_TEST_FULL";

/// What a child process does: the body of an ignored test named `serves_for_another_test`.
pub fn child_main() {
    let Ok(listener) = std::env::var(LISTENER) else {
        return;
    };
    let fd = listener.parse().unwrap();
    // SAFETY: inherited for us alone.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let file = PathBuf::from(std::env::var_os(FILE).unwrap());
    let control = Control::new(std::env::var(ANSWERS).unwrap().parse().unwrap());
    control.set_full(std::env::var_os(FULL).is_some());
    let (_asks, mailbox) = ring::mailbox(1);
    serve_device(listener, false, control, &mailbox, |ring| {
        raw_device(ring, &file, false)
    });
}

/// A server in a process of its own, killed when dropped.
pub struct Process(Child);

impl Process {
    /// Serves on `listener`, which it inherits; answers only so many operations.
    pub fn start(listener: &UnixListener, file: &Path, answers: u64) -> Self {
        Self::spawn(listener, file, answers, false)
    }

    /// The same, without room for any mutation.
    pub fn start_full(listener: &UnixListener, file: &Path) -> Self {
        Self::spawn(listener, file, u64::MAX, true)
    }

    fn spawn(listener: &UnixListener, file: &Path, answers: u64, full: bool) -> Self {
        let inherited = rustix::io::dup(listener).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        if full {
            command.env(FULL, "1");
        }
        let child = command
            .args(["--exact", "serves_for_another_test", "--ignored"])
            .env(LISTENER, inherited.as_raw_fd().to_string())
            .env(FILE, file)
            .env(ANSWERS, answers.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub const QUEUE: u16 = 64;
/// Guest physical address of its memory, and where it lies for the front end.
pub const PHYSICAL: u64 = 0x4000_0000;
const USER: u64 = 0x7000_0000_0000;
const MEMORY: usize = 16 << 20;
const AVAILABLE: usize = 0x1000;
pub const USED: usize = 0x2000;
/// Bytes of guest memory for each bit of a log.
const PAGE: u64 = 4096;
const HEADERS: usize = 0x4000;
const DATA: usize = 0x10_0000;
/// Room for the data of one request.
pub const SLOT: usize = 64 << 10;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A guest with one queue. The request in slot n, below [`SLOTS`], uses descriptors 3n to 3n + 2.
pub struct Guest {
    file: File,
    map: memmap2::MmapRaw,
    frontend: Option<Frontend>,
    inflight: Option<(VhostUserInflight, File)>,
    kick: EventFd,
    call: EventFd,
    error: EventFd,
    available: u16,
    seen: u16,
    /// Whether requests in flight are tracked.
    pub track: bool,
    /// Whether it opens a channel for the back end, and the channel.
    pub listens: bool,
    channel: Option<UnixStream>,
    /// The log of dirty memory, from the moment on when a migration begins.
    log: Option<File>,
}

/// Requests at once: each takes three descriptors.
pub const SLOTS: usize = QUEUE as usize / 3;

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    pub fn new() -> Self {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY as u64).unwrap();
        let map = memmap2::MmapRaw::map_raw(&file).unwrap();
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            file,
            map,
            frontend: None,
            inflight: None,
            kick: eventfd(),
            call: eventfd(),
            error: eventfd(),
            available: 0,
            seen: 0,
            track: true,
            listens: false,
            channel: None,
            log: None,
        }
    }

    /// Connects and sets everything up as QEMU does, after a lost connection too.
    pub fn connect(&mut self, socket: &Path) {
        let mut frontend = Frontend::connect(socket, 1).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        frontend.set_features(self.accepted(features)).unwrap();
        assert_ne!(features & protocol, 0);
        let mut offered = frontend.get_protocol_features().unwrap();
        if !self.track {
            offered.remove(VhostUserProtocolFeatures::INFLIGHT_SHMFD);
        }
        frontend.set_protocol_features(offered).unwrap();
        if self.listens {
            let (ours, theirs) = UnixStream::pair().unwrap();
            frontend.set_backend_request_fd(&theirs).unwrap();
            self.channel = Some(ours);
        }
        if self.track {
            if self.inflight.is_none() {
                let wanted = VhostUserInflight::new(0, 0, 1, QUEUE);
                self.inflight = Some(frontend.get_inflight_fd(&wanted).unwrap());
            }
            let (inflight, file) = self.inflight.as_ref().unwrap();
            frontend
                .set_inflight_fd(inflight, file.as_raw_fd())
                .unwrap();
        }
        frontend.set_mem_table(&[self.region()]).unwrap();
        frontend.set_vring_num(0, QUEUE).unwrap();
        frontend.set_vring_base(0, self.used_idx()).unwrap();
        frontend.set_vring_addr(0, &self.rings()).unwrap();
        frontend.set_vring_kick(0, &self.kick).unwrap();
        frontend.set_vring_call(0, &self.call).unwrap();
        frontend.set_vring_err(0, &self.error).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
        self.frontend = Some(frontend);
    }

    /// Of the features offered those that it takes: EVENT_IDX needs another driver, LOG_ALL is
    /// for a migration.
    fn accepted(&self, offered: u64) -> u64 {
        let log = u64::from(self.log.is_none()) << 26;
        offered & !(1 << 29 | log)
    }

    fn rings(&self) -> VringConfigData {
        let at = |offset: usize| USER + offset as u64;
        VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: self.log.is_some().into(),
            desc_table_addr: at(0),
            used_ring_addr: at(USED),
            avail_ring_addr: at(AVAILABLE),
            log_addr: Some(PHYSICAL + USED as u64),
        }
    }

    /// Begins a migration, as QEMU does while the queue runs; the log covers all memory.
    pub fn begin_log(&mut self) {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        let len = (PHYSICAL + MEMORY as u64) / PAGE / 8;
        file.set_len(len).unwrap();
        let region = VhostUserDirtyLogRegion {
            mmap_size: len,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        self.frontend().set_log_base(0, Some(region)).unwrap();
        self.log = Some(file);
        self.set_logging();
    }

    /// Ends it.
    pub fn end_log(&mut self) -> File {
        let log = self.log.take().unwrap();
        self.set_logging();
        log
    }

    fn set_logging(&mut self) {
        let features = self.frontend().get_features().unwrap();
        let (features, rings) = (self.accepted(features), self.rings());
        self.frontend().set_features(features).unwrap();
        self.frontend().set_vring_addr(0, &rings).unwrap();
    }

    /// Offsets in guest memory of the pages that were marked, and forgets them.
    pub fn take_marked(&self) -> Vec<usize> {
        marked(self.log.as_ref().unwrap())
    }

    /// Waits for the message that the configuration changed; the size that it then has in bytes.
    pub fn wait_resized(&mut self) -> u64 {
        let channel = self.channel.as_mut().unwrap();
        channel.set_read_timeout(Some(LIMIT)).unwrap();
        let mut message = [0; 12];
        channel.read_exact(&mut message).unwrap();
        // CONFIG_CHANGE_MSG, version 1, no body, no reply wanted.
        assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        self.capacity()
    }

    /// Reads and forgets what the back end said on its channel.
    pub fn drop_messages(&mut self) {
        let channel = self.channel.as_mut().unwrap();
        channel.set_read_timeout(Some(LIMIT)).unwrap();
        channel.read_exact(&mut [0; 12]).unwrap();
    }

    /// Whether the back end has said something on its channel.
    pub fn was_told(&self) -> bool {
        is_readable(self.channel.as_ref().unwrap())
    }

    /// The size in the configuration in bytes.
    pub fn capacity(&mut self) -> u64 {
        let flags = VhostUserConfigFlags::empty();
        let answer = self.frontend().get_config(0, 60, flags, &[0; 60]);
        let (_, bytes) = answer.unwrap();
        u64::from_le_bytes(bytes[..8].try_into().unwrap()) * 512
    }

    /// Stops the queue; the next index of its available ring.
    pub fn stop_queue(&mut self) -> u32 {
        self.frontend().get_vring_base(0).unwrap()
    }

    /// Starts the queue again on the same connection, from `base` on, as QEMU does on `cont`.
    pub fn start_queue(&mut self, base: u32) {
        let (inflight, file) = self.inflight.take().unwrap();
        let base = u16::try_from(base).unwrap();
        let rings = self.rings();
        let frontend = self.frontend.as_mut().unwrap();
        frontend
            .set_inflight_fd(&inflight, file.as_raw_fd())
            .unwrap();
        self.inflight = Some((inflight, file));
        frontend.set_vring_num(0, QUEUE).unwrap();
        frontend.set_vring_base(0, base).unwrap();
        frontend.set_vring_addr(0, &rings).unwrap();
        frontend.set_vring_kick(0, &self.kick).unwrap();
        frontend.set_vring_call(0, &self.call).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: PHYSICAL,
            memory_size: MEMORY as u64,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn frontend(&mut self) -> &mut Frontend {
        self.frontend.as_mut().unwrap()
    }

    /// Gives the same memory again, as after a change of the map.
    pub fn send_memory(&mut self) {
        let region = self.region();
        self.frontend().set_mem_table(&[region]).unwrap();
    }

    /// Makes the in-flight area of a server that is gone look as if it had been killed right after
    /// it published its last answer, which was to `head` alone.
    pub fn undo_settling(&mut self, head: u16) {
        let (_, file) = self.inflight.as_ref().unwrap();
        let before = self.used_idx().wrapping_sub(1);
        // vhost-user specification, "Inflight I/O tracking": used_idx, then desc[head].inflight.
        file.write_all_at(&before.to_le_bytes(), 14).unwrap();
        file.write_all_at(&[1], 16 + 16 * u64::from(head)).unwrap();
    }

    /// Forgets the notifications that have come.
    pub fn forget_notifications(&self) {
        let _ = self.call.read();
    }

    pub fn wait_notified(&self) {
        assert!(
            wait_readable(&self.call, Instant::now() + LIMIT),
            "no notification"
        );
    }

    /// Closes the connection.
    pub fn disconnect(&mut self) {
        self.frontend = None;
    }

    /// Resets the driver, as a guest that boots again.
    pub fn reset(&mut self) {
        self.inflight = None;
        (self.available, self.seen) = (0, 0);
        self.poke(AVAILABLE, &[0; 4]);
        self.poke(USED, &[0; 4]);
    }

    fn idx(&self, ring: usize) -> &AtomicU16 {
        // SAFETY: aligned, and inside the mapping for as long as `self` lives.
        unsafe { AtomicU16::from_ptr(self.map.as_mut_ptr().add(ring + 2).cast()) }
    }

    pub fn used_idx(&self) -> u16 {
        self.idx(USED).load(Ordering::Acquire)
    }

    /// Stores bytes in guest memory.
    pub fn poke(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= MEMORY);
        // SAFETY: inside the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.map.as_mut_ptr().add(at),
                bytes.len(),
            );
        }
    }

    /// A copy of guest memory.
    pub fn peek(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= MEMORY);
        let mut bytes = vec![0; len];
        // SAFETY: inside the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(self.map.as_ptr().add(at), bytes.as_mut_ptr(), len);
        }
        bytes
    }

    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(usize::from(index) * 16, address, len, flags, next);
    }

    pub fn descriptor_at(&self, at: usize, address: u64, len: u32, flags: u16, next: u16) {
        self.poke(at, &address.to_le_bytes());
        self.poke(at + 8, &len.to_le_bytes());
        self.poke(at + 12, &flags.to_le_bytes());
        self.poke(at + 14, &next.to_le_bytes());
    }

    /// Physical address of the header of `slot`; its status byte is 32 bytes on.
    pub fn header(slot: usize) -> usize {
        HEADERS + 64 * slot
    }

    pub fn data(slot: usize) -> usize {
        DATA + SLOT * slot
    }

    /// Writes a request of `kind` with one piece of data into `slot`, and offers it.
    pub fn request(&mut self, slot: usize, kind: u32, sector: u64, len: usize) {
        let header = Self::header(slot);
        self.poke(header, &kind.to_le_bytes());
        self.poke(header + 4, &[0; 4]);
        self.poke(header + 8, &sector.to_le_bytes());
        self.poke(header + 32, &[0xff]);
        let at = |offset: usize| PHYSICAL + offset as u64;
        let first = u16::try_from(3 * slot).unwrap();
        let reads = kind == 0 || kind == 8;
        let flags = if reads { WRITE | NEXT } else { NEXT };
        let len = u32::try_from(len).unwrap();
        let after_header = if len == 0 { first + 2 } else { first + 1 };
        self.descriptor(first, at(header), 16, NEXT, after_header);
        self.descriptor(first + 1, at(Self::data(slot)), len, flags, first + 2);
        self.descriptor(first + 2, at(header + 32), 1, WRITE, 0);
        self.offer(first);
    }

    /// Makes `head` available and kicks.
    pub fn offer(&mut self, head: u16) {
        let slot = usize::from(self.available % QUEUE);
        self.poke(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.idx(AVAILABLE).store(self.available, Ordering::Release);
        fence(Ordering::SeqCst);
        self.kick.write(1).unwrap();
    }

    /// Claims any number of entries at once.
    pub fn set_available(&mut self, idx: u16) {
        self.available = idx;
        self.idx(AVAILABLE).store(idx, Ordering::Release);
        self.kick.write(1).unwrap();
    }

    /// Heads that were answered since the last call.
    pub fn answered(&mut self) -> Vec<u16> {
        let mut heads = Vec::new();
        while self.seen != self.used_idx() {
            let at = USED + 4 + 8 * usize::from(self.seen % QUEUE);
            let bytes = self.peek(at, 4);
            heads.push(u16::from_le_bytes([bytes[0], bytes[1]]));
            self.seen = self.seen.wrapping_add(1);
        }
        heads
    }

    /// Waits for notifications until `count` heads were answered.
    pub fn wait_for(&mut self, count: usize) -> Vec<u16> {
        let end = Instant::now() + LIMIT;
        let mut heads = self.answered();
        while heads.len() < count {
            assert!(
                wait_readable(&self.call, end),
                "only {} of {count} requests were answered",
                heads.len()
            );
            let _ = self.call.read();
            heads.extend(self.answered());
        }
        heads
    }

    /// Runs one request; its status byte.
    pub fn run(&mut self, kind: u32, sector: u64, len: usize) -> u8 {
        self.request(0, kind, sector, len);
        assert_eq!(self.wait_for(1), [0]);
        self.status(0)
    }

    pub fn status(&self, slot: usize) -> u8 {
        self.peek(Self::header(slot) + 32, 1)[0]
    }

    /// Waits until the queue is said to be broken.
    pub fn wait_broken(&self) {
        let end = Instant::now() + LIMIT;
        assert!(wait_readable(&self.error, end), "the queue is not broken");
        let _ = self.error.read();
    }

    /// Whether the queue was said to be broken.
    pub fn is_broken(&self) -> bool {
        wait_readable(&self.error, Instant::now())
    }
}

/// Offsets in guest memory of the pages that are marked in `log`, which is cleared.
pub fn marked(log: &File) -> Vec<usize> {
    let first = usize::try_from(PHYSICAL / PAGE).unwrap();
    let mut bytes = vec![0; usize::try_from(log.metadata().unwrap().len()).unwrap()];
    log.read_exact_at(&mut bytes, 0).unwrap();
    log.write_all_at(&vec![0; bytes.len()], 0).unwrap();
    let pages = (0..bytes.len() * 8).filter(|page| bytes[page / 8] & (1 << (page % 8)) != 0);
    pages
        .map(|page| page.checked_sub(first).expect("not of the guest") * 4096)
        .collect()
}

/// Waits until one of the descriptors is readable.
pub fn wait_any<F: AsRawFd>(events: &[std::sync::Arc<F>]) {
    let fds: Vec<RawFd> = events.iter().map(|event| event.as_raw_fd()).collect();
    assert!(
        wait_readable_of(&fds, Instant::now() + LIMIT),
        "nothing was answered"
    );
}

pub fn is_readable(event: &impl AsRawFd) -> bool {
    wait_readable_of(&[event.as_raw_fd()], Instant::now())
}

fn wait_readable(event: &impl AsRawFd, end: Instant) -> bool {
    wait_readable_of(&[event.as_raw_fd()], end)
}

fn wait_readable_of(events: &[RawFd], end: Instant) -> bool {
    // SAFETY: the callers own them for longer than the borrow.
    let fds = events
        .iter()
        .map(|event| unsafe { BorrowedFd::borrow_raw(*event) });
    let fds: Vec<_> = fds.collect();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap();
        let mut polled: Vec<_> = fds
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        match poll(&mut polled, Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("poll: {errno}"),
        }
    }
}

/// A file of `len` zero bytes.
pub fn disk_file(folder: &Path, len: u64) -> PathBuf {
    let path = folder.join("disk.raw");
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}
