//! An NBD server on a thread of its own, and a client written by hand that can break every rule.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::{ControlFlow, Range};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use block::{Device, Done, Fault, Image, Op, Place, Waiters};
use futures_util::future::join;
use image::{Overlay, OverlayFiles, RawDevice};
use model::BootId;
use pollux_diskd::nbd::{Export, Handle, Limits, serve_within};
use ring::{Kind, Ring, RingStore, Sender};

/// Nothing in these tests takes longer unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A raw file that can be told to misbehave.
pub struct TestDisk {
    raw: RawDevice<RingStore>,
    size: Cell<u64>,
    /// Writes fail with this.
    pub fault: Cell<Option<Fault>>,
    /// So many of the next mutations wait until [`TestDisk::release`].
    hold: Cell<u64>,
    held: Cell<bool>,
    /// The next read waits too.
    hold_read: Cell<bool>,
    released: Waiters,
    pub flushes: Cell<u64>,
    /// Pieces that were told of where it has content.
    pub pieces: Cell<u64>,
}

impl TestDisk {
    fn open(ring: &Ring, path: &Path) -> Rc<Self> {
        let store = RingStore::open(ring, path, false, false).unwrap();
        let size = store.len().unwrap();
        Rc::new(Self {
            raw: RawDevice::new(store, size, false).unwrap(),
            size: Cell::new(size),
            fault: Cell::new(None),
            hold: Cell::new(0),
            held: Cell::new(false),
            hold_read: Cell::new(false),
            released: Waiters::default(),
            flushes: Cell::new(0),
            pieces: Cell::new(0),
        })
    }

    /// The next mutation waits until [`TestDisk::release`], at the latest until a shutdown has begun.
    pub fn hold_next(&self) {
        self.hold.set(1);
    }

    /// The next read waits until [`TestDisk::release`].
    pub fn hold_next_read(&self) {
        self.hold_read.set(true);
    }

    /// Whether something waits for [`TestDisk::release`].
    pub fn holds(&self) -> bool {
        self.held.get()
    }

    /// What was held goes on.
    pub fn release(&self) {
        self.held.set(false);
        self.released.notify();
    }

    pub fn set_size(&self, size: u64) {
        self.size.set(size);
    }
}

impl Device for TestDisk {
    fn size(&self) -> u64 {
        self.size.get()
    }
    async fn run(&self, op: Op) -> Done {
        if matches!(op, Op::Read { .. }) && self.hold_read.take() {
            self.held.set(true);
            self.released
                .until(|| (!self.held.get()).then_some(()))
                .await;
        }
        if op.mutates() {
            if let Some(left) = self.hold.get().checked_sub(1) {
                self.hold.set(left);
                self.held.set(true);
                self.released
                    .until(|| (!self.held.get()).then_some(()))
                    .await;
            }
            if let Some(fault) = self.fault.get() {
                return op.refuse(fault);
            }
        }
        if matches!(op, Op::Flush) {
            self.flushes.set(self.flushes.get() + 1);
        }
        self.raw.run(op).await
    }
}

impl Image for TestDisk {
    fn size(&self) -> u64 {
        self.size.get()
    }
    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        let mut count = |piece, place| {
            self.pieces.set(self.pieces.get() + 1);
            visit(piece, place)
        };
        self.raw.translate(range, &mut count).await
    }
}

/// What a test has the owner thread do.
type Job = Box<dyn FnOnce(&Rc<TestDisk>, &Handle) + Send>;

enum Message {
    Do(Job),
    Stop,
}

/// A server on a thread.
pub struct Server {
    pub socket: PathBuf,
    messages: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

/// The exports of a disk: `guest`, and read-only `disk`.
pub fn exports(disk: &Rc<TestDisk>) -> Vec<Export> {
    vec![
        Export::new("guest", "what the guest uses", false, Rc::clone(disk)),
        Export::new("disk", "as it is now", true, Rc::clone(disk)),
    ]
}

impl Server {
    pub fn start(folder: &Path, file: &Path) -> Self {
        Self::start_within(folder, file, Limits::default())
    }

    pub fn start_within(folder: &Path, file: &Path, limits: Limits) -> Self {
        let socket = folder.join("nbd.sock");
        let _ = std::fs::remove_file(&socket);
        Self::over(UnixListener::bind(&socket).unwrap(), socket, file, limits)
    }

    /// On a listener that outlives it.
    pub fn over(listener: UnixListener, socket: PathBuf, file: &Path, limits: Limits) -> Self {
        Self::serving(listener, socket, file, limits, |_, disk| exports(disk))
    }

    /// `guest` is an overlay above `file`, which is `checkpoint/1`.
    pub fn over_overlay(folder: &Path, file: &Path) -> Self {
        let socket = folder.join("nbd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let folder = folder.to_owned();
        Self::serving(
            listener,
            socket,
            file,
            Limits::default(),
            move |ring, disk| {
                let data = RingStore::open(ring, &folder.join("overlay"), false, true).unwrap();
                let map = RingStore::open(ring, &folder.join("map"), false, true).unwrap();
                let size = Device::size(&**disk);
                rustix::fs::ftruncate(&data, size).unwrap();
                let files = OverlayFiles {
                    data,
                    map,
                    volatile: &folder.join("volatile"),
                };
                let boot = BootId::random();
                let overlay = Overlay::open(files, Rc::clone(disk), boot, &[7; 32]);
                let overlay = ring.block_on(overlay).unwrap();
                vec![
                    Export::new("guest", "", false, Rc::new(overlay)),
                    Export::new("checkpoint/1", "", true, Rc::clone(disk)),
                ]
            },
        )
    }

    fn serving(
        listener: UnixListener,
        socket: PathBuf,
        file: &Path,
        limits: Limits,
        exports: impl FnOnce(&Ring, &Rc<TestDisk>) -> Vec<Export> + Send + 'static,
    ) -> Self {
        let ring = || Ring::new(256).unwrap();
        Self::serving_on(listener, socket, file, limits, exports, ring)
    }

    /// Where the kernel gives no io_uring.
    pub fn on_threads(folder: &Path, file: &Path) -> Self {
        let socket = folder.join("nbd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let limits = Limits::default();
        let ring = || Ring::of_kind(Kind::Threads, 256).unwrap();
        Self::serving_on(
            listener,
            socket,
            file,
            limits,
            |_, disk| exports(disk),
            ring,
        )
    }

    fn serving_on(
        listener: UnixListener,
        socket: PathBuf,
        file: &Path,
        limits: Limits,
        exports: impl FnOnce(&Ring, &Rc<TestDisk>) -> Vec<Export> + Send + 'static,
        ring: fn() -> Ring,
    ) -> Self {
        let (messages, mailbox) = ring::mailbox(16);
        let file = file.to_owned();
        let thread = std::thread::spawn(move || {
            let ring = ring();
            let disk = TestDisk::open(&ring, &file);
            let exports = exports(&ring, &disk);
            let handle = serve_within(&ring, listener, exports, limits).unwrap();
            ring.block_on(async {
                while let Some(Message::Do(job)) = mailbox.recv().await {
                    job(&disk, &handle);
                }
                let released = async {
                    ring.yield_now().await;
                    disk.release();
                };
                join(handle.shutdown(), released).await;
            });
            ring.abandon_tasks();
        });
        Self {
            socket,
            messages,
            thread: Some(thread),
        }
    }

    /// Runs `job` on the owner thread and gives back what it does.
    pub fn with<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Rc<TestDisk>, &Handle) -> T + Send + 'static,
    ) -> T {
        let (answer, told) = std::sync::mpsc::channel();
        let job: Job = Box::new(move |disk, handle| answer.send(job(disk, handle)).unwrap());
        assert!(self.messages.send(Message::Do(job)).is_ok());
        told.recv_timeout(LIMIT).unwrap()
    }

    /// Asks it to shut down, and does not wait.
    pub fn begin_stop(&self) {
        let _ = self.messages.send(Message::Stop);
    }

    /// Shuts it down and waits until it is gone.
    pub fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.begin_stop();
            let outcome = thread.join();
            assert!(
                outcome.is_ok() || std::thread::panicking(),
                "the server panicked"
            );
        }
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a program that must succeed, and gives what it says.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .arg((10 * LIMIT).as_secs().to_string())
        .arg(program)
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// Numbers of the protocol, spelled again: a test must not share a mistake.
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;
pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;
pub const ACK: u32 = 1;

/// A reply to an option: its type and its data.
pub type OptionReply = (u32, Vec<u8>);

/// A reply to a request, put together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    pub cookie: u64,
    pub error: u32,
    pub message: String,
    /// Content: first byte and bytes.
    pub data: Vec<(u64, Vec<u8>)>,
    /// Holes: first byte and length.
    pub holes: Vec<(u64, u32)>,
    /// Extents: length and flags.
    pub extents: Vec<(u32, u32)>,
}

impl Answer {
    /// The content of a read of `range`; every byte must have been told once.
    pub fn content(&self, range: Range<u64>) -> Vec<u8> {
        let len = usize::try_from(range.end - range.start).unwrap();
        let mut content = vec![None; len];
        let holes = self
            .holes
            .iter()
            .map(|(at, len)| (*at, vec![0; *len as usize]));
        for (at, bytes) in self.data.iter().cloned().chain(holes) {
            let skip = usize::try_from(at - range.start).unwrap();
            for (place, byte) in content[skip..].iter_mut().zip(&bytes) {
                assert!(place.replace(*byte).is_none(), "told twice");
            }
            assert!(skip + bytes.len() <= len);
        }
        content.into_iter().map(Option::unwrap).collect()
    }
}

/// What a client says first: fixed newstyle, no zeroes.
const FLAGS: [u8; 4] = 3_u32.to_be_bytes();

/// A client.
pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
    /// Lengths of the reads under way, for simple replies.
    reads: HashMap<u64, (u64, u32)>,
    /// Answers that are not whole yet.
    partial: HashMap<u64, Answer>,
    pub size: u64,
    pub flags: u16,
}

impl Client {
    /// Connects and reads the greeting; says nothing.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        let mut client = Self {
            stream,
            structured: false,
            reads: HashMap::new(),
            partial: HashMap::new(),
            size: 0,
            flags: 0,
        };
        let greeting = client.take(18).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3]);
        client
    }

    /// With client flags, ready for options.
    pub fn haggle(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        client.give(&FLAGS);
        client
    }

    /// In transmission.
    pub fn open(socket: &Path, export: &str, structured: bool) -> Self {
        Self::try_open(socket, export, structured).unwrap()
    }

    pub fn try_open(socket: &Path, export: &str, structured: bool) -> io::Result<Self> {
        let mut client = Self::connect(socket);
        client.try_give(&FLAGS)?;
        if structured {
            assert_eq!(client.option(8, &[])?, [(ACK, vec![])]);
            client.structured = true;
            let mut data = Vec::new();
            data.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
            data.extend(export.as_bytes());
            data.extend(1_u32.to_be_bytes());
            data.extend(15_u32.to_be_bytes());
            data.extend(b"base:allocation");
            assert_eq!(client.option(10, &data)?.last().unwrap().0, ACK);
        }
        let replies = client.option(7, &go(export))?;
        assert_eq!(replies.last().unwrap().0, ACK, "{replies:?}");
        let told = &replies[0].1;
        client.size = u64::from_be_bytes(told[2..10].try_into().unwrap());
        client.flags = u16::from_be_bytes(told[10..12].try_into().unwrap());
        Ok(client)
    }

    pub fn give(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn try_give(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sets an option, and takes all replies to it.
    pub fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<OptionReply>> {
        self.try_give(&option_bytes(option, data))?;
        self.option_replies(option)
    }

    pub fn option_replies(&mut self, option: u32) -> io::Result<Vec<OptionReply>> {
        let mut replies = Vec::new();
        loop {
            assert_eq!(u64::from_be_bytes(self.number()?), 0x0003_e889_0455_65a9);
            assert_eq!(u32::from_be_bytes(self.number()?), option);
            let kind = u32::from_be_bytes(self.number()?);
            let len = u32::from_be_bytes(self.number()?);
            let data = self.take(len as usize)?;
            replies.push((kind, data));
            if kind == ACK || kind >> 31 == 1 {
                return Ok(replies);
            }
        }
    }

    /// Sends a request; `data` follows.
    pub fn ask(&mut self, cookie: u64, flags: u16, command: u16, at: u64, len: u32, data: &[u8]) {
        if command == READ {
            self.reads.insert(cookie, (at, len));
        }
        let mut bytes = request(cookie, flags, command, at, len);
        bytes.extend(data);
        self.give(&bytes);
    }

    /// Takes messages until an answer is whole.
    pub fn answer(&mut self) -> io::Result<Answer> {
        loop {
            let magic = u32::from_be_bytes(self.number()?);
            if magic == 0x6744_6698 {
                let error = u32::from_be_bytes(self.number()?);
                let cookie = u64::from_be_bytes(self.number()?);
                let mut answer = self.begun(cookie);
                assert_eq!(answer.data.len() + answer.holes.len(), 0);
                answer.error = error;
                if let Some((at, len)) = self.reads.remove(&cookie) {
                    assert!(!self.structured, "a simple reply to a read");
                    if answer.error == 0 {
                        answer.data.push((at, self.take(len as usize)?));
                    }
                }
                return Ok(answer);
            }
            assert_eq!(magic, 0x668e_33ef, "neither kind of reply");
            assert!(self.structured);
            let flags = u16::from_be_bytes(self.number()?);
            let kind = u16::from_be_bytes(self.number()?);
            let cookie = u64::from_be_bytes(self.number()?);
            let len = u32::from_be_bytes(self.number()?) as usize;
            let payload = self.take(len)?;
            let long = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().unwrap());
            let short = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            let mut answer = self.begun(cookie);
            match kind {
                0 => assert!(payload.is_empty() && flags == 1),
                1 => answer.data.push((long(0), payload[8..].to_vec())),
                2 => answer.holes.push((long(0), short(8))),
                5 => {
                    assert_eq!(short(0), 1, "the id of base:allocation");
                    let extents = (4..len).step_by(8).map(|at| (short(at), short(at + 4)));
                    answer.extents.extend(extents);
                }
                0x8001 => {
                    answer.error = short(0);
                    answer.message = String::from_utf8(payload[6..].to_vec()).unwrap();
                }
                _ => panic!("an unknown chunk {kind}"),
            }
            if flags & 1 == 1 {
                self.reads.remove(&cookie);
                return Ok(answer);
            }
            self.partial.insert(cookie, answer);
        }
    }

    /// What was told so far.
    fn begun(&mut self, cookie: u64) -> Answer {
        let begun = self.partial.remove(&cookie);
        begun.unwrap_or_else(|| Answer {
            cookie,
            ..Answer::default()
        })
    }

    pub fn answers(&mut self, count: usize) -> Vec<Answer> {
        (0..count).map(|_| self.answer().unwrap()).collect()
    }

    pub fn call(&mut self, flags: u16, command: u16, at: u64, len: u32, data: &[u8]) -> Answer {
        let cookie = 0x1234_5678_9abc_def0;
        self.ask(cookie, flags, command, at, len, data);
        let answer = self.answer().unwrap();
        assert_eq!(answer.cookie, cookie);
        answer
    }

    pub fn read(&mut self, at: u64, len: u32) -> Vec<u8> {
        let answer = self.call(0, READ, at, len, &[]);
        assert_eq!(answer.error, 0, "{answer:?}");
        answer.content(at..at + u64::from(len))
    }

    pub fn write(&mut self, at: u64, data: &[u8]) {
        let answer = self.call(0, WRITE, at, u32::try_from(data.len()).unwrap(), data);
        assert_eq!(answer.error, 0, "{answer:?}");
    }

    /// Whether the server has hung up; what it said before is passed over.
    pub fn is_hung_up(&mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return true,
                Err(_) => return false,
            }
        }
    }
}

pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of `NBD_OPT_GO` and `NBD_OPT_INFO`, with no wishes.
pub fn go(export: &str) -> Vec<u8> {
    let mut data = u32::try_from(export.len()).unwrap().to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend([0, 0]);
    data
}

pub fn request(cookie: u64, flags: u16, command: u16, at: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(at.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// A file of `size` bytes that is one hole.
pub fn disk_file(folder: &Path, size: u64) -> PathBuf {
    let path = folder.join("disk.raw");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Bytes that differ everywhere.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).flatten().take(len).collect();
    bytes.truncate(len);
    bytes
}
