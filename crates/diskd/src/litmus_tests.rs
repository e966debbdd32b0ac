//! Litmus of dependent writes: a point is what the disks would hold if the power of the host were cut at
//! one instant.
//!
//! ```text
//!   chain:  disk a, queue 0 --answered--> disk a, queue 1 --> disk b --> disk c (NBD) --+
//!             ^                                                                         |
//!             +------------------------------ the next number --------------------------+
//! ```
//!
//! A chain writes a number to one place after the other; each write is issued when the one before it was
//! answered. So at any instant a place holds the number of the place before it or one less, and the
//! first holds that of the last or one more. Several chains run at once, in other orders; some of their
//! places share blocks; beside them large writes make work for staging. Epochs are cut all the time,
//! parts of an initial replication staged in between. Every point (what was staged before, with its
//! segment applied) must hold numbers in that order, and every place one number in all of its sectors.
//!
//! The engine, its owners, rings, front ends and segments are the real ones. Injected ([`crate::lab`]): a
//! fifth of the writes take until the next cut (before they reach the file, after, or in the middle), and
//! owners come late to park. The main test cuts 3,000 times, or as often as `POLLUX_CUTS` says; a rule
//! that is broken on purpose must be noticed within as many.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use journal::{Consistency, Content, DiskExtent, Header, SegmentReader, Source};
use memmap2::MmapRaw;
use model::{
    BLOCK_SIZE, BootId, Bytes, Code, DiskId, Lineage, RelationshipId, SeedId, Since, VmId,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use testkit::Rng;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::config::{Config, DiskConfig, Front, StackSpec};
use crate::control::{Reply, Request};
use crate::engine::{Disk, Engine};
use crate::fronts::Sockets;
use crate::lab::Lab;
use crate::owner::{Owned, run};
use crate::tracker::Rule;

const BLOCK: usize = 4096;
const SIZE: u64 = 512 * BLOCK_SIZE;
const DISKS: usize = 3;
/// Reached by NBD, the others by vhost-user.
const NBD_DISK: usize = 2;
/// Queues of a disk that is reached by vhost-user.
const QUEUES: usize = 2;
/// Most that one write holds.
const ROOM: usize = 64 << 10;
/// Blocks from here on are for writes that depend on nothing.
const FILLED: u64 = 64;

/// Where a chain writes its number.
#[derive(Clone, Copy)]
struct Place {
    disk: usize,
    queue: usize,
    at: u64,
    len: usize,
}

fn place(disk: usize, queue: usize, sector: u64, len: usize) -> Place {
    let at = sector * 512;
    Place {
        disk,
        queue,
        at,
        len,
    }
}

fn chains() -> Vec<Vec<Place>> {
    let block = |disk, queue, block: u64| place(disk, queue, 8 * block, BLOCK);
    vec![
        vec![
            block(0, 0, 0),
            block(0, 1, 1),
            block(1, 0, 0),
            block(2, 0, 0),
        ],
        vec![
            block(2, 0, 1),
            block(1, 1, 1),
            block(0, 1, 2),
            block(0, 0, 3),
        ],
        // Several places in one block, from several queues.
        vec![
            place(0, 0, 32, 512),
            place(0, 1, 33, 1024),
            place(2, 0, 16, 512),
            place(2, 0, 23, 512),
            place(1, 0, 16, 2048),
            place(1, 1, 20, 2048),
        ],
        // More than one block.
        vec![
            place(1, 0, 80, 3 * BLOCK),
            place(0, 0, 84, 2 * BLOCK),
            place(2, 0, 80, 4 * BLOCK),
            place(0, 1, 120, BLOCK),
        ],
    ]
}

/// An NBD client that knows what it needs.
struct Nbd(UnixStream);

impl Nbd {
    fn open(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).expect("served");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("greeted");
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend(5_u32.to_be_bytes());
        hello.extend(b"guest");
        stream.write_all(&hello).expect("heard");
        let mut told = [0; 10];
        stream.read_exact(&mut told).expect("there is a guest");
        Self(stream)
    }

    fn write(&mut self, cookie: usize, at: u64, bytes: &[u8]) {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0, 0, 1]);
        request.extend((cookie as u64).to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(u32::try_from(bytes.len()).expect("small").to_be_bytes());
        request.extend(bytes);
        self.0.write_all(&request).expect("heard");
    }

    /// The cookie of the next answer.
    fn answer(&mut self) -> usize {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).expect("answered");
        assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        let cookie = u64::from_be_bytes(reply[8..].try_into().expect("eight"));
        usize::try_from(cookie).expect("small")
    }
}

/// What a chain is about to write, or where it waits.
struct Chain {
    places: Vec<Place>,
    /// Number and place of the write that is issued.
    number: u64,
    at: usize,
    /// It has no order and writes anywhere.
    fills: bool,
}

impl Chain {
    fn next(&mut self, rng: &mut Rng) -> Place {
        if self.fills {
            let len = BLOCK * (1 + rng.index(ROOM / BLOCK));
            let room = SIZE / BLOCK_SIZE - FILLED - (ROOM / BLOCK) as u64;
            self.number += 1;
            let block = FILLED + rng.below(room);
            return place(rng.index(DISKS), rng.index(QUEUES), 8 * block, len);
        }
        let place = self.places[self.at % self.places.len()];
        if self.at % self.places.len() == 0 {
            self.number += 1;
        }
        self.at += 1;
        place
    }

    fn content(&self, len: usize) -> Vec<u8> {
        let sector: Vec<u8> = self.number.to_le_bytes().repeat(64);
        sector.repeat(len / 512)
    }
}

/// A guest's side of all disks.
struct Fronts<'a> {
    /// Of the disks that are reached by vhost-user, [`QUEUES`] each.
    queues: Vec<VirtioBlkQueue<'a, usize>>,
    calls: Vec<Arc<EventFd>>,
    kicks: Vec<Box<dyn QueueNotifier>>,
    nbd: Nbd,
    /// Shared with the servers: [`ROOM`] bytes for each chain.
    memory: MmapRaw,
}

/// The transports of the disks that are reached by vhost-user, and the memory that they share.
fn connect(folder: &Path, chains: usize) -> (Vec<Box<VirtioBlkTransport>>, MmapRaw) {
    let file = std::fs::File::from(memfd_create("io", MemfdFlags::CLOEXEC).expect("memory"));
    file.set_len((chains * ROOM) as u64).expect("memory");
    let memory = MmapRaw::map_raw(&file).expect("mapped");
    let bits = (VirtioFeatureFlags::VERSION_1).bits() | 1 << 12;
    let transports = (0..NBD_DISK).map(|disk| {
        let socket = folder.join(format!("{disk}.guest"));
        let transport = VhostUser::new(socket.to_str().expect("of letters"), bits);
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport.expect("served"));
        let start = memory.as_mut_ptr() as usize;
        let mapped = transport.map_mem_region(start, memory.len(), file.as_raw_fd(), 0);
        mapped.expect("mapped");
        transport
    });
    (transports.collect(), memory)
}

impl<'a> Fronts<'a> {
    fn of(transports: &'a mut [Box<VirtioBlkTransport>], memory: MmapRaw, nbd: Nbd) -> Self {
        let (mut queues, mut calls, mut kicks) = (Vec::new(), Vec::new(), Vec::new());
        for transport in transports {
            let made = VirtioBlkQueue::setup_queues(&mut **transport, QUEUES, 64);
            queues.extend(made.expect("queues"));
            for queue in 0..QUEUES {
                calls.push(transport.get_completion_fd(queue));
                kicks.push(transport.get_submission_notifier(queue));
            }
        }
        for queue in &mut queues {
            queue.set_used_notif_enabled(true);
        }
        Self {
            queues,
            calls,
            kicks,
            nbd,
            memory,
        }
    }

    /// Issues the write of a chain that waits for nothing.
    fn issue(&mut self, chain: usize, place: Place, bytes: &[u8]) {
        if place.disk == NBD_DISK {
            self.nbd.write(chain, place.at, bytes);
            return;
        }
        let index = place.disk * QUEUES + place.queue;
        let buffer = self.memory.as_mut_ptr().wrapping_add(chain * ROOM);
        #[allow(
            unsafe_code,
            reason = "the chain has its part of the mapping to itself"
        )]
        // SAFETY: inside the mapping; the chain issues nothing else until this was answered.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer, bytes.len());
            let queue = &mut self.queues[index];
            let issued = queue.write_raw(place.at, buffer, bytes.len(), chain);
            issued.expect("room");
        }
        self.kicks[index].notify().expect("kicked");
    }

    /// Waits for answers; the chains that have one.
    fn answered(&mut self) -> Vec<usize> {
        let mut polled: Vec<PollFd<'_>> = self
            .calls
            .iter()
            .map(|call| PollFd::from_borrowed_fd(borrow(&**call), PollFlags::IN))
            .collect();
        polled.push(PollFd::new(&self.nbd.0, PollFlags::IN));
        poll(&mut polled, None).expect("polled");
        let readable: Vec<bool> = polled
            .iter()
            .map(|polled| !polled.revents().is_empty())
            .collect();
        let mut chains = Vec::new();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if readable[index] {
                self.calls[index].read().expect("read");
            }
            for completion in queue.completions() {
                assert_eq!(completion.ret, 0, "a write");
                chains.push(completion.context);
            }
        }
        if readable[self.queues.len()] {
            chains.push(self.nbd.answer());
        }
        chains
    }
}

/// Writes until told to stop, and then until everything was answered. How many writes were.
fn write(folder: &Path, seed: u64, stop: &AtomicBool) -> u64 {
    let mut rng = Rng::new(seed);
    let mut chains: Vec<Chain> = chains()
        .into_iter()
        .chain([Vec::new(), Vec::new()])
        .map(|places| Chain {
            fills: places.is_empty(),
            places,
            number: 0,
            at: 0,
        })
        .collect();
    let (mut transports, memory) = connect(folder, chains.len());
    let nbd = Nbd::open(&folder.join(format!("{NBD_DISK}.guest")));
    let mut fronts = Fronts::of(&mut transports, memory, nbd);
    let (mut running, mut written) = (0, 0);
    let mut ready: Vec<usize> = (0..chains.len()).collect();
    loop {
        if !stop.load(Ordering::Acquire) {
            running += ready.len();
            for number in ready.drain(..) {
                let chain = &mut chains[number];
                let place = chain.next(&mut rng);
                fronts.issue(number, place, &chain.content(place.len));
            }
        }
        if running == 0 {
            return written;
        }
        ready = fronts.answered();
        running -= ready.len();
        written += ready.len() as u64;
    }
}

#[allow(unsafe_code, reason = "an event descriptor of another crate")]
fn borrow(event: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: it is open as long as what it is borrowed from.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// What a run came to.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    points: u64,
    given_up: u64,
    /// A disk did not come to rest in time.
    late: u64,
    written: u64,
    slow: u64,
    copied: u64,
}

/// Three disks, their owners and what a replica would hold.
struct Host {
    folder: tempfile::TempDir,
    config: Config,
    engine: Option<Arc<Engine>>,
    owners: Vec<JoinHandle<()>>,
    slow: Arc<AtomicU64>,
    lineage: Lineage,
    seed: SeedId,
    sequence: u64,
    replicas: Vec<Vec<u8>>,
    tally: Tally,
}

impl Host {
    fn start(rule: Option<Rule>, seed: u64, copy_budget: u64) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").expect("scratch in memory");
        let path = |name: String| folder.path().join(name);
        for name in ["outbox", "tracking"] {
            std::fs::create_dir(path(name.to_owned())).expect("made");
        }
        let disk = |number: usize| {
            let file = path(format!("{number}.raw"));
            let made = std::fs::File::create(&file).expect("made");
            made.set_len(SIZE).expect("sized");
            DiskConfig {
                id: DiskId::random(),
                slot: u8::try_from(number).expect("few"),
                front: if number == NBD_DISK {
                    Front::Nbd
                } else {
                    Front::VhostUser
                },
                size: Bytes(SIZE),
                stack: StackSpec::Raw { file },
                state: path(format!("{number}.state")),
                tracking: path("tracking".to_owned()),
            }
        };
        let config = Config {
            vm: VmId::random(),
            term: 1,
            generation: 1,
            disks: (0..DISKS).map(disk).collect(),
            copy_budget: Bytes(copy_budget),
        };
        let boot = BootId::random();
        let slow = Arc::new(AtomicU64::new(0));
        let (mut disks, mut owners) = (Vec::new(), Vec::new());
        for (number, disk) in config.disks.clone().into_iter().enumerate() {
            let (orders, mailbox) = ring::mailbox(64);
            let stats = Arc::default();
            disks.push(Disk {
                id: disk.id,
                size: disk.size.0.into(),
                orders,
                stats: Arc::clone(&stats),
            });
            let listener = UnixListener::bind(path(format!("{number}.guest"))).expect("bound");
            let sockets = match disk.front {
                Front::VhostUser => Sockets {
                    vhost_user: Some(listener),
                    nbd: None,
                },
                Front::Nbd => Sockets {
                    vhost_user: None,
                    nbd: Some(listener),
                },
            };
            let owned = Owned {
                config: disk,
                boot,
                term: config.term,
                sockets,
                orders: mailbox,
                stats,
            };
            let (ready, opened) = mpsc::channel();
            let slow = Arc::clone(&slow);
            owners.push(std::thread::spawn(move || {
                Lab::new(rule, seed + number as u64, slow).enter();
                run(owned, || ready.send(()).expect("waited for")).expect("served");
            }));
            opened.recv().expect("opened");
        }
        let engine = Engine::new(path("config".to_owned()), &config, disks, Vec::new());
        let host = Self {
            folder,
            config,
            engine: Some(Arc::new(engine)),
            owners,
            slow,
            lineage: Lineage::begin("host-a"),
            seed: SeedId::random(),
            sequence: 0,
            replicas: vec![vec![0; usize::try_from(SIZE).expect("small")]; DISKS],
            tally: Tally::default(),
        };
        let relationship = RelationshipId::random();
        let reply = host.ask(Request::Track {
            relationship,
            begin: true,
            sent: Vec::new(),
            but: Vec::new(),
        });
        assert!(matches!(reply, Reply::Tracking { .. }), "{reply:?}");
        host
    }

    fn ask(&self, request: Request) -> Reply {
        let engine = self.engine.as_ref().expect("it runs");
        crate::server::run(request, engine).0
    }

    fn header(&self, content: Content) -> Header {
        let disks = self.config.disks.iter().map(|disk| DiskExtent {
            joining: false,
            id: disk.id,
            size: disk.size,
        });
        Header {
            vm: self.config.vm,
            disks: disks.collect(),
            lineage: self.lineage.clone(),
            content,
            time: jiff::Timestamp::UNIX_EPOCH,
            consistency: Consistency::Crash,
        }
    }

    fn file(&mut self) -> PathBuf {
        self.sequence += 1;
        let name = format!("outbox/{}.segment", self.sequence);
        self.folder.path().join(name)
    }

    /// Whether the segment of `request` came about; it is applied then.
    fn ship(&mut self, request: Request, file: &Path) -> bool {
        match self.ask(request) {
            Reply::Staged(staged) => self.tally.copied += staged.copied_before_write.0,
            Reply::Refused { problem } if problem.code == Code::Full => {
                self.tally.given_up += 1;
                return false;
            }
            Reply::Refused { problem } if problem.reason.ends_with("in time") => {
                self.tally.late += 1;
                assert!(self.tally.late < 1000, "{problem}");
                return false;
            }
            other => panic!("{other:?}"),
        }
        let segment = SegmentReader::open(file).expect("whole");
        for run in segment.runs() {
            let run = run.expect("whole");
            let at = usize::try_from(run.block).expect("small") * BLOCK;
            let len = run.count as usize * BLOCK;
            let place = &mut self.replicas[usize::from(run.disk)][at..at + len];
            match run.source {
                Source::Zero => place.fill(0),
                Source::Frame { frame, skip } => {
                    let content = segment.read_frame(frame).expect("whole");
                    let skip = usize::from(skip) * BLOCK;
                    place.copy_from_slice(&content[skip..skip + len]);
                }
            }
        }
        let file = file.to_owned();
        assert_eq!(self.ask(Request::Confirm { file }), Reply::Done);
        true
    }

    /// Stages a part of a disk as of an initial replication: consistent with nothing until the next cut.
    fn part(&mut self, rng: &mut Rng) {
        let file = self.file();
        let content = Content::Seed {
            seed: self.seed,
            part: self.sequence,
        };
        let request = Request::Seed {
            header: self.header(content),
            disk: self.config.disks[rng.index(DISKS)].id,
            from: 0,
            limit: Bytes(BLOCK_SIZE * (1 + rng.below(40))),
            file: file.clone(),
        };
        self.ship(request, &file);
    }

    /// Cuts, and looks at the point.
    fn cut(&mut self) -> Result<(), String> {
        let file = self.file();
        let since = Since::Seed {
            seed: self.seed,
            parts: 1,
        };
        let content = Content::Delta {
            sequence: self.sequence,
            since,
        };
        let header = self.header(content);
        let request = Request::Cut {
            header,
            whole: Vec::new(),
            slice: None,
            file: file.clone(),
        };
        if self.ship(request, &file) {
            self.tally.points += 1;
            self.look()?;
        }
        Ok(())
    }

    /// Whether the replica holds what the disks held at one instant.
    fn look(&self) -> Result<(), String> {
        for (number, chain) in chains().iter().enumerate() {
            let mut seen = Vec::new();
            for place in chain {
                let at = usize::try_from(place.at).expect("small");
                let content = &self.replicas[place.disk][at..at + place.len];
                let first = &content[..8];
                if content.chunks(8).any(|word| word != first) {
                    return Err(format!("chain {number}: place {} is torn", seen.len()));
                }
                seen.push(u64::from_le_bytes(first.try_into().expect("eight")));
            }
            let falls = seen.windows(2).all(|pair| pair[0] >= pair[1]);
            if !falls || seen[0] > seen[seen.len() - 1] + 1 {
                return Err(format!("chain {number} holds {seen:?}"));
            }
        }
        Ok(())
    }
}

/// Cuts at least `cuts` times under writers, until something is wrong. One that comes too late counts
/// for none.
fn litmus(rule: Option<Rule>, cuts: u64, seed: u64, copy_budget: u64) -> Result<Tally, String> {
    let mut host = Host::start(rule, seed, copy_budget);
    let mut rng = Rng::new(!seed);
    let stop = Arc::new(AtomicBool::new(false));
    let folder = host.folder.path().to_owned();
    let stopped = Arc::clone(&stop);
    let writer = std::thread::spawn(move || write(&folder, seed, &stopped));
    let mut outcome = Ok(());
    let mut asked = 0;
    while asked < cuts + host.tally.late {
        asked += 1;
        if rng.once_in(4) {
            host.part(&mut rng);
        }
        outcome = host
            .cut()
            .map_err(|wrong| format!("point {}: {wrong} (seed {seed})", host.tally.points));
        if outcome.is_err() {
            break;
        }
    }
    stop.store(true, Ordering::Release);
    // Slow writes end with a cut.
    while !writer.is_finished() {
        let late = host.cut();
        outcome = outcome.and(late);
    }
    host.tally.written = writer.join().expect("it went well");
    host.tally.slow = host.slow.load(Ordering::Relaxed);
    let tally = host.tally;
    let engine = host.engine.take().expect("it runs");
    engine.close().expect("closed");
    drop(engine);
    for owner in host.owners.drain(..) {
        owner.join().expect("it went well");
    }
    outcome.map(|()| tally)
}

fn cuts() -> u64 {
    let told = std::env::var("POLLUX_CUTS").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(3000)
}

#[test]
fn every_point_holds_dependent_writes_in_their_order_across_queues_disks_and_front_ends() {
    let tally = litmus(None, cuts(), 1, u64::MAX).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{tally:?}");
    assert!(
        tally.points >= cuts() && tally.slow > 100 && tally.copied > 0,
        "{tally:?}"
    );
}

#[test]
fn so_it_does_when_epochs_are_given_up_in_between() {
    let budget = 4 * BLOCK_SIZE;
    let tally = litmus(None, cuts() / 3, 2, budget).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{tally:?}");
    assert!(tally.given_up > 0 && tally.points > 0, "{tally:?}");
}

#[test]
fn each_rule_of_a_cut_is_missed_when_it_is_broken() {
    for rule in [
        Rule::OneInstant,
        Rule::DoubleMark,
        Rule::WaitForCrossing,
        Rule::CopyBeforeWrite,
        Rule::MarkBeforeIssue,
    ] {
        // It ends with the first point that is wrong, which for some is a matter of chance.
        match litmus(Some(rule), 10 * cuts(), 3, u64::MAX) {
            Ok(tally) => panic!("nobody misses {rule:?}: {tally:?}"),
            Err(wrong) => println!("{rule:?}: {wrong}"),
        }
    }
}
