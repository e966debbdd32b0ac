//! The whole process under a guest: seeded, cut, killed, compared with a replica.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use journal::{Consistency, Content, DiskExtent, Header, Journal, SegmentReader, Source};
use model::{
    BLOCK_SIZE, Bytes, Code, DiskId, Lineage, PointId, RelationshipId, SeedId, Since, VmId,
};
use pollux_diskd::config::{CONTROL_SOCKET, Config, DiskConfig, Front, StackSpec, disk_socket};
use pollux_diskd::control::{Reply, Request, Staged};
use rustix::process::{Pid, Signal, kill_process};
use support::{Guest, SLOTS};
use testkit::Rng;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 2048;
const SIZE: u64 = BLOCKS * BLOCK_SIZE;

/// A VM of two disks, its processes, and the replica's copies.
struct Vm {
    folder: tempfile::TempDir,
    config: Config,
    listeners: Vec<(String, UnixListener)>,
    process: Option<Child>,
    /// Longest file that diskd may write.
    file_limit: Option<u64>,
    lineage: Lineage,
    sequence: u64,
    seed: SeedId,
    journal: Option<Journal>,
    /// Parts of the initial replication that were shipped.
    parts: u64,
    replicas: Vec<Vec<u8>>,
}

impl Vm {
    fn new(copy_budget: u64) -> Self {
        let ids = [DiskId::random(), DiskId::random()];
        Self::of(VmId::random(), ids, copy_budget, |file, _| {
            fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
            StackSpec::Raw { file }
        })
    }

    /// A VM whose disks are what `stack` makes of a file and a path for a map.
    fn of(
        id: VmId,
        ids: [DiskId; 2],
        copy_budget: u64,
        stack: impl Fn(PathBuf, PathBuf) -> StackSpec,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("outbox")).unwrap();
        let disks: Vec<DiskConfig> = (0..)
            .zip(ids)
            .map(|(number, id)| DiskConfig {
                id,
                slot: number,
                front: Front::VhostUser,
                size: Bytes(SIZE),
                stack: stack(
                    path(&format!("{number}.raw")),
                    path(&format!("{number}.map")),
                ),
                state: path(&format!("{number}.state")),
                tracking: path("tracking"),
            })
            .collect();
        let names = disks.iter().map(|disk| disk_socket(disk.slot));
        let listeners = std::iter::once(CONTROL_SOCKET.to_owned())
            .chain(names)
            .map(|name| {
                let listener = UnixListener::bind(path(&name)).unwrap();
                (name, listener)
            })
            .collect();
        let config = Config {
            vm: id,
            term: 1,
            generation: 1,
            disks,
            copy_budget: Bytes(copy_budget),
        };
        fs::write(path("diskd.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let mut vm = Self {
            folder,
            config,
            listeners,
            process: None,
            file_limit: None,
            lineage: Lineage::begin("host-a"),
            sequence: 0,
            seed: SeedId::random(),
            journal: None,
            parts: 0,
            replicas: vec![vec![0xee; usize::try_from(SIZE).unwrap()]; 2],
        };
        vm.start();
        vm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spawn(&self) -> Child {
        let names: Vec<&str> = self
            .listeners
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        // Above those that they are to become.
        let high: Vec<OwnedFd> = self
            .listeners
            .iter()
            .map(|(_, listener)| rustix::io::fcntl_dupfd_cloexec(listener, 100).unwrap())
            .collect();
        let numbers: Vec<i32> = high.iter().map(AsRawFd::as_raw_fd).collect();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("diskd.log"))
            .unwrap();
        let limit = self.file_limit;
        let mut command = Command::new(env!("CARGO_BIN_EXE_pollux-diskd"));
        command
            .stderr(log)
            .arg(self.path("diskd.json"))
            .env("RUST_BACKTRACE", "0")
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        #[allow(unsafe_code, reason = "descriptors are passed on")]
        // SAFETY: dup2 is async-signal-safe, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                if let Some(limit) = limit {
                    // Of what it exceeds it is told by an error, and not by a signal.
                    libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                    limit_files(0, limit)?;
                }
                for (target, number) in (3..).zip(&numbers) {
                    if libc::dup2(*number, target) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command.spawn().unwrap()
    }

    fn start(&mut self) {
        self.process = Some(self.spawn());
    }

    /// `kill -9`, and waits until it is gone.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Asks for an end as vmd does.
    fn terminate(&self) {
        let pid = Pid::from_child(self.process.as_ref().unwrap());
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// What it has logged.
    fn log(&self) -> String {
        fs::read_to_string(self.path("diskd.log")).unwrap_or_default()
    }

    /// Stores a word of the state file of disk `disk`, which diskd has mapped.
    fn poke_state(&self, disk: usize, word: u64, value: u64) {
        let file = fs::File::options()
            .write(true)
            .open(self.path(&format!("{disk}.state")))
            .unwrap();
        file.write_all_at(&value.to_le_bytes(), 8 * word).unwrap();
    }

    fn exit(&mut self) -> ExitStatus {
        self.process.take().unwrap().wait().unwrap()
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path(CONTROL_SOCKET)).unwrap()
    }

    fn ask(&self, request: &Request) -> Reply {
        let mut stream = self.connect();
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        stream.write_all(&line).unwrap();
        answer(&stream)
    }

    fn header(&self, content: Content) -> Header {
        Header {
            vm: self.config.vm,
            disks: self
                .config
                .disks
                .iter()
                .map(|disk| DiskExtent {
                    id: disk.id,
                    size: disk.size,
                })
                .collect(),
            lineage: self.lineage.clone(),
            content,
            time: jiff::Timestamp::now(),
            consistency: Consistency::Crash,
        }
    }

    fn cut_request(&mut self) -> (Request, PathBuf) {
        self.sequence += 1;
        let file = self.path(&format!("outbox/{}.seg", self.sequence));
        let header = self.header(Content::Delta {
            sequence: self.sequence,
            since: Since::Seed {
                seed: self.seed,
                parts: self.parts,
            },
        });
        let request = Request::Cut {
            header,
            file: file.clone(),
        };
        (request, file)
    }

    fn cut(&mut self) -> (Staged, PathBuf) {
        let (request, file) = self.cut_request();
        match self.ask(&request) {
            Reply::Staged(staged) => (staged, file),
            other => panic!("{other:?}"),
        }
    }

    fn track(&self, relationship: RelationshipId) -> bool {
        match self.ask(&Request::Track {
            relationship,
            begin: true,
        }) {
            Reply::Tracking { exact, .. } => exact,
            other => panic!("{other:?}"),
        }
    }

    /// Reboots: what was on tmpfs is gone. How much is suspect then.
    fn reboot(&mut self, relationship: RelationshipId) -> Bytes {
        if self.process.is_some() {
            self.kill();
        }
        for disk in &self.config.disks {
            fs::remove_file(&disk.state).unwrap();
        }
        self.start();
        let request = Request::Track {
            relationship,
            begin: false,
        };
        match self.ask(&request) {
            Reply::Tracking { suspect, .. } => suspect,
            other => panic!("{other:?}"),
        }
    }

    /// Applies a segment to the replica and removes it.
    fn ship(&mut self, file: &Path) {
        let segment = SegmentReader::open(file).unwrap();
        for run in segment.runs() {
            let run = run.unwrap();
            let at = usize::try_from(run.block).unwrap() * BLOCK;
            let len = run.count as usize * BLOCK;
            let place = &mut self.replicas[usize::from(run.disk)][at..at + len];
            match run.source {
                Source::Zero => place.fill(0),
                Source::Frame { frame, skip } => {
                    let content = segment.read_frame(frame).unwrap();
                    let skip = usize::from(skip) * BLOCK;
                    place.copy_from_slice(&content[skip..skip + len]);
                }
            }
        }
        let Some(journal) = &mut self.journal else {
            fs::remove_file(file).unwrap();
            return;
        };
        let name = file.file_name().unwrap().to_str().unwrap();
        let incoming = self.folder.path().join("journal").join(Journal::INCOMING);
        fs::rename(file, incoming.join(name)).unwrap();
        journal.commit(name, segment.summary().root).unwrap();
    }

    fn assert_equal(&self) {
        for (number, replica) in self.replicas.iter().enumerate() {
            let disk = fs::read(self.path(&format!("{number}.raw"))).unwrap();
            let differs = disk
                .chunks(BLOCK)
                .zip(replica.chunks(BLOCK))
                .position(|(left, right)| left != right);
            assert_eq!(differs, None, "a block of disk {number} differs");
        }
    }

    fn guest(&self, disk: usize) -> Guest {
        let mut guest = Guest::new();
        guest.connect(&self.path(&disk_socket(self.config.disks[disk].slot)));
        guest
    }

    /// Seeds both disks in parts.
    fn seed(&mut self) {
        let seed = self.seed;
        for disk in 0..2 {
            let mut from = Some(0);
            while let Some(at) = from {
                let file = self.path(&format!("outbox/seed-{}.seg", self.parts));
                let request = Request::Seed {
                    header: self.header(Content::Seed {
                        seed,
                        part: self.parts,
                    }),
                    disk: self.config.disks[disk].id,
                    from: at,
                    limit: Bytes(3 << 20),
                    file: file.clone(),
                };
                match self.ask(&request) {
                    Reply::Staged(staged) => {
                        assert!(staged.content <= Bytes(3 << 20));
                        from = staged.next;
                    }
                    other => panic!("{other:?}"),
                }
                self.ship(&file);
                self.parts += 1;
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Sets how long files may become that the process `pid` (0: this one) writes.
fn limit_files(pid: i32, limit: u64) -> std::io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: libc::RLIM_INFINITY,
    };
    #[allow(unsafe_code, reason = "rustix has no prlimit for another process")]
    // SAFETY: the new limit is valid for the call; the old one is not wanted.
    let outcome = unsafe {
        libc::prlimit(
            pid,
            libc::RLIMIT_FSIZE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    if outcome < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

fn answer(stream: &UnixStream) -> Reply {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// Offers random block writes in the free slots of `guest`.
fn churn(guest: &mut Guest, rng: &mut Rng, blocks: u64, requests: usize) {
    for _ in 0..requests / SLOTS {
        for slot in 0..SLOTS {
            guest.poke(Guest::data(slot), &rng.bytes(BLOCK));
            // Distinct within a batch.
            let block = rng.below(blocks / SLOTS as u64) * SLOTS as u64 + slot as u64;
            guest.request(slot, WRITE, block * 8, BLOCK);
        }
        guest.wait_for(SLOTS);
        assert!((0..SLOTS).all(|slot| guest.status(slot) == 0));
    }
}

#[test]
fn a_replica_equals_the_primary_through_seeding_cuts_and_kills() {
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    assert!(!vm.track(relationship));
    let mut guests = [vm.guest(0), vm.guest(1)];
    let mut rng = Rng::new(5);
    for guest in &mut guests {
        churn(guest, &mut rng, BLOCKS, 400);
    }
    vm.seed();
    for life in 0..3 {
        // Cut while both guests write.
        let (mut done, mut epochs) = (0, 0);
        while epochs < 4 {
            let (request, file) = vm.cut_request();
            let asked = {
                let mut stream = vm.connect();
                let mut line = serde_json::to_vec(&request).unwrap();
                line.push(b'\n');
                stream.write_all(&line).unwrap();
                std::thread::spawn(move || answer(&stream))
            };
            while !asked.is_finished() {
                for guest in &mut guests {
                    churn(guest, &mut rng, BLOCKS, SLOTS);
                }
                done += 1;
            }
            match asked.join().unwrap() {
                Reply::Staged(_) => vm.ship(&file),
                other => panic!("{other:?}"),
            }
            epochs += 1;
        }
        assert!(done > 0);
        // Kill with requests on their way; QEMU connects again.
        for guest in &mut guests {
            for slot in 0..SLOTS {
                guest.poke(Guest::data(slot), &rng.bytes(BLOCK));
                guest.request(slot, WRITE, (life * 100 + slot as u64) * 8, BLOCK);
            }
        }
        vm.kill();
        vm.start();
        for (disk, guest) in guests.iter_mut().enumerate() {
            guest.disconnect();
            let answered = guest.answered().len();
            guest.connect(&vm.path(&disk_socket(vm.config.disks[disk].slot)));
            guest.wait_for(SLOTS - answered);
        }
        assert!(vm.track(relationship), "exact after kill -9");
    }
    let (staged, file) = vm.cut();
    assert!(staged.content < Bytes(SIZE), "not everything again");
    vm.ship(&file);
    vm.assert_equal();
    for guest in &mut guests {
        guest.request(0, FLUSH, 0, 0);
        guest.wait_for(1);
    }
    assert_eq!(vm.ask(&Request::Shutdown), Reply::Done);
    assert!(vm.exit().success());
}

#[test]
fn an_epoch_that_exceeds_the_copy_budget_or_is_folded_back_loses_no_mark() {
    // No old content may be saved: the first write that meets the epoch gives it up.
    let mut vm = Vm::new(0);
    vm.track(RelationshipId::random());
    let mut guest = vm.guest(0);
    let mut rng = Rng::new(6);
    churn(&mut guest, &mut rng, BLOCKS, 2000);
    let (mut given_up, mut whole) = (0, 0);
    while given_up == 0 || whole == 0 {
        let (request, file) = vm.cut_request();
        let mut stream = vm.connect();
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        stream.write_all(&line).unwrap();
        if given_up == 0 {
            churn(&mut guest, &mut rng, BLOCKS, 40 * SLOTS);
        }
        match answer(&stream) {
            Reply::Staged(_) if whole == 0 && given_up > 0 => {
                let fold = Request::FoldBack { file: file.clone() };
                assert_eq!(vm.ask(&fold), Reply::Done);
                assert!(!file.exists());
                whole += 1;
            }
            Reply::Staged(_) => vm.ship(&file),
            Reply::Refused { problem } => {
                assert_eq!(problem.code, Code::Full, "{problem}");
                assert!(!file.exists());
                given_up += 1;
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read_dir(vm.path("outbox")).unwrap().count(), 0);
    }
    let (_, file) = vm.cut();
    vm.ship(&file);
    vm.assert_equal();
}

#[test]
fn what_is_asked_wrongly_is_refused_and_changes_nothing() {
    let mut vm = Vm::new(64 << 20);
    let refused = |reply: Reply| match reply {
        Reply::Refused { problem } => problem.code,
        other => panic!("{other:?}"),
    };
    // Not tracking.
    let (request, file) = vm.cut_request();
    assert_eq!(refused(vm.ask(&request)), Code::Conflict);
    assert!(!file.exists());
    assert_eq!(fs::read_dir(vm.path("outbox")).unwrap().count(), 0);
    vm.track(RelationshipId::random());
    // Another VM, another term, a file that is there, a folder that is not.
    let (mut request, _) = vm.cut_request();
    if let Request::Cut { header, .. } = &mut request {
        header.vm = VmId::random();
    }
    assert_eq!(refused(vm.ask(&request)), Code::Invalid);
    let (mut request, file) = vm.cut_request();
    fs::write(&file, b"mine").unwrap();
    assert_eq!(refused(vm.ask(&request)), Code::Conflict);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let fold = Request::FoldBack { file: file.clone() };
    // Nobody can tell what it holds; and nothing was in any segment.
    assert_eq!(vm.ask(&fold), Reply::Done);
    assert!(!file.exists());
    if let Request::Cut { file, .. } = &mut request {
        *file = "/absent/1.seg".into();
    }
    assert_eq!(refused(vm.ask(&request)), Code::Failed);
    // Noise, then a request on the same connection; then a line without end.
    let mut stream = vm.connect();
    stream
        .write_all(b"{\"request\":\"dance\"}\n\xff\xfe\n")
        .unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for _ in 0..2 {
        let reply: Reply = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(refused(reply), Code::Invalid);
    }
    stream.write_all(b"{\"request\":\"status\"}\n").unwrap();
    match serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() {
        Reply::Status { disks, .. } => {
            assert!(disks.iter().all(|disk| disk.dirty == Bytes(SIZE)));
        }
        other => panic!("{other:?}"),
    }
    let _ = stream.write_all(&vec![b' '; (1 << 20) + 1]);
    let reply: Reply = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(refused(reply), Code::Invalid);
}

#[test]
fn a_second_process_is_refused_while_the_first_serves_the_disks() {
    let mut vm = Vm::new(64 << 20);
    assert!(matches!(vm.ask(&Request::Status), Reply::Status { .. }));
    let mut second = vm.spawn();
    assert!(!second.wait().unwrap().success());
    // The first goes on.
    assert!(matches!(vm.ask(&Request::Status), Reply::Status { .. }));
    vm.kill();
}

/// What the guest reads of its disk.
fn read_all(guest: &mut Guest) -> Vec<u8> {
    let mut content = Vec::new();
    let step = 16 * BLOCK;
    for at in 0..usize::try_from(SIZE).unwrap() / step {
        assert_eq!(guest.run(READ, (at * step / 512) as u64, step), 0);
        content.extend(guest.peek(Guest::data(0), step));
    }
    content
}

/// A VM that was replicated up to a point, and its twin above that point.
struct Pair {
    primary: Vm,
    twin: Vm,
    /// The journal.
    folder: PathBuf,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut primary = Vm::new(64 << 20);
        primary.track(RelationshipId::random());
        let extents = primary
            .header(Content::Seed {
                seed: primary.seed,
                part: 0,
            })
            .disks;
        let folder = primary.path("journal");
        let vm = primary.config.vm;
        primary.journal = Some(Journal::create(&folder, vm, &extents, primary.seed).unwrap());
        fs::create_dir_all(folder.join(Journal::INCOMING)).unwrap();
        let mut rng = Rng::new(seed);
        let mut guest = primary.guest(0);
        churn(&mut guest, &mut rng, BLOCKS, 600);
        primary.seed();
        churn(&mut guest, &mut rng, BLOCKS, 100);
        let (_, file) = primary.cut();
        primary.ship(&file);
        let point = PointId {
            term: primary.lineage.current().id,
            sequence: primary.sequence,
        };
        primary
            .journal
            .as_mut()
            .unwrap()
            .pin(point, "test")
            .unwrap();

        let ids = [primary.config.disks[0].id, primary.config.disks[1].id];
        let twin = Vm::of(vm, ids, 64 << 20, |file, map| StackSpec::Overlay {
            file,
            map,
            checkpoint: None,
            below: Box::new(StackSpec::Point {
                journal: folder.clone(),
                point,
            }),
        });
        Self {
            primary,
            twin,
            folder,
        }
    }
}

#[test]
fn a_twin_runs_above_a_point_and_loses_nothing_when_it_is_killed() {
    let Pair {
        primary, mut twin, ..
    } = Pair::new(8);
    let mut rng = Rng::new(9);
    let socket = twin.path(&disk_socket(0));
    let mut guest = twin.guest(0);
    let mut model = primary.replicas[0].clone();
    assert!(read_all(&mut guest) == model, "the point");
    for number in 0..200_u64 {
        let sectors = 1 + rng.below(20);
        let at = rng.below(SIZE / 512 - sectors);
        let bytes = rng.bytes(usize::try_from(sectors * 512).unwrap());
        guest.poke(Guest::data(0), &bytes);
        assert_eq!(guest.run(WRITE, at, bytes.len()), 0, "write {number}");
        let start = usize::try_from(at * 512).unwrap();
        model[start..start + bytes.len()].copy_from_slice(&bytes);
    }
    assert!(read_all(&mut guest) == model, "above the point");
    twin.kill();
    guest.disconnect();
    twin.start();
    guest.connect(&socket);
    assert!(read_all(&mut guest) == model, "after kill -9");
    assert_eq!(twin.ask(&Request::Shutdown), Reply::Done);
    assert!(twin.exit().success());
}

#[test]
fn sigterm_closes_in_order_and_the_marks_are_exact_unless_the_disk_is_changed_meanwhile() {
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    vm.track(relationship);
    let mut guest = vm.guest(0);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    vm.terminate();
    assert!(vm.exit().success());
    vm.start();
    assert!(vm.track(relationship), "nothing was changed");
    vm.terminate();
    assert!(vm.exit().success());
    let disk = fs::File::options()
        .write(true)
        .open(vm.path("0.raw"))
        .unwrap();
    disk.write_all_at(b"behind", 0).unwrap();
    vm.start();
    assert!(!vm.track(relationship), "it was changed");
}

#[test]
fn a_failed_flush_ends_when_the_vm_is_stopped_and_started_and_not_by_a_kill() {
    /// Word of the state file that says that a flush failed.
    const FLUSH_FAILED: u64 = 4;
    const IO_ERROR: u8 = 1;
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    vm.track(relationship);
    let socket = vm.path(&disk_socket(0));
    let mut guest = vm.guest(0);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    vm.poke_state(0, FLUSH_FAILED, 1);
    let refuses = |guest: &mut Guest, when: &str| {
        assert_eq!(guest.run(WRITE, 0, BLOCK), IO_ERROR, "{when}");
        assert_eq!(guest.run(FLUSH, 0, 0), IO_ERROR, "{when}");
        assert_eq!(guest.run(READ, 0, BLOCK), 0, "{when}");
    };
    refuses(&mut guest, "at once");
    vm.kill();
    vm.start();
    guest.disconnect();
    guest.connect(&socket);
    refuses(&mut guest, "after a kill");
    assert!(vm.track(relationship), "a kill loses no mark");
    // Closed under a guest that runs on: it must not be told that all is well.
    match vm.ask(&Request::Shutdown) {
        Reply::Refused { problem } => {
            assert!(problem.reason.contains("may be lost"), "{problem}");
            assert!(problem.way_out.contains("start the VM"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!vm.exit().success());
    vm.start();
    guest.disconnect();
    guest.connect(&socket);
    refuses(&mut guest, "after a close under the guest");
    // The guest is gone: this is the end of it.
    guest.disconnect();
    vm.terminate();
    assert!(!vm.exit().success(), "not all is durable");
    vm.start();
    assert!(!vm.track(relationship), "every block counts as changed");
    let mut guest = vm.guest(0);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    match vm.ask(&Request::Status) {
        Reply::Status { disks, .. } => {
            assert!(disks.iter().all(|disk| disk.dirty == Bytes(SIZE)));
            assert!(disks.iter().all(|disk| !disk.flush_failed));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(vm.ask(&Request::Shutdown), Reply::Done);
    assert!(vm.exit().success());
    assert!(
        vm.log()
            .contains("a flush failed before the disk was closed")
    );
}

#[test]
fn an_owner_that_panics_takes_the_process_down() {
    let mut vm = Vm::new(64 << 20);
    vm.track(RelationshipId::random());
    // The owner finds an epoch sealed that it has not begun.
    vm.poke_state(1, 1, 2);
    let (request, _) = vm.cut_request();
    let mut stream = vm.connect();
    let mut line = serde_json::to_vec(&request).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
    assert_eq!(vm.exit().signal(), Some(libc::SIGABRT));
    assert!(vm.log().contains("one epoch is sealed at a time"));
    vm.start();
    vm.cut();
}

#[test]
fn an_outbox_that_takes_no_more_refuses_the_epoch_and_neither_guest_nor_mark_is_touched() {
    let mut vm = Vm::new(64 << 20);
    // The state files, which are long and have holes, are there.
    vm.ask(&Request::Status);
    vm.kill();
    // Enough for the disks, too little for a segment with both.
    vm.file_limit = Some(SIZE + (1 << 20));
    vm.start();
    vm.track(RelationshipId::random());
    let mut rng = Rng::new(9);
    let mut guests = [vm.guest(0), vm.guest(1)];
    for guest in &mut guests {
        for block in (0..BLOCKS).step_by(16) {
            guest.poke(Guest::data(0), &rng.bytes(16 * BLOCK));
            assert_eq!(guest.run(WRITE, block * 8, 16 * BLOCK), 0);
        }
    }
    for _ in 0..2 {
        let (request, file) = vm.cut_request();
        let mut stream = vm.connect();
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        stream.write_all(&line).unwrap();
        let asked = std::thread::spawn(move || answer(&stream));
        while !asked.is_finished() {
            for guest in &mut guests {
                churn(guest, &mut rng, BLOCKS, SLOTS);
            }
        }
        match asked.join().unwrap() {
            Reply::Refused { problem } => {
                assert_eq!(problem.code, Code::Full, "{problem}");
                assert!(problem.way_out.contains("stay marked"), "{problem}");
            }
            other => panic!("{other:?}"),
        }
        assert!(!file.exists());
        assert_eq!(fs::read_dir(vm.path("outbox")).unwrap().count(), 0);
    }
    let pid = i32::try_from(vm.process.as_ref().unwrap().id()).unwrap();
    limit_files(pid, libc::RLIM_INFINITY).unwrap();
    let (staged, file) = vm.cut();
    assert_eq!(staged.content, Bytes(2 * SIZE), "every mark is back");
    vm.ship(&file);
    vm.assert_equal();
}

#[test]
fn what_a_point_lost_or_holds_corrupt_is_an_error_for_the_guest_and_said_in_the_log() {
    const IO_ERROR: u8 = 1;
    let Pair {
        primary,
        twin,
        folder,
    } = Pair::new(10);
    let point = &primary.replicas[0];
    let mut guest = twin.guest(0);
    // How many blocks could not be read; the others must be right.
    let mut lost = || {
        let mut lost = 0;
        for (block, expected) in (0..).zip(point.chunks(BLOCK)) {
            match guest.run(READ, block * 8, BLOCK) {
                0 => assert!(
                    guest.peek(Guest::data(0), BLOCK) == expected,
                    "block {block} is wrong"
                ),
                status => {
                    assert_eq!(status, IO_ERROR);
                    // Nor can a part of it be written: the rest has to come from below.
                    assert_eq!(guest.run(WRITE, block * 8, 512), IO_ERROR);
                    lost += 1;
                }
            }
        }
        lost
    };
    let segments: Vec<PathBuf> = fs::read_dir(folder.join("segments"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [segment] = &segments[..] else {
        panic!("{segments:?}");
    };
    let name = segment.file_name().unwrap().to_str().unwrap();

    let away = folder.join("away");
    fs::rename(segment, &away).unwrap();
    let gone = lost();
    assert!(gone > 10, "{gone}: the point builds on it");
    let log = twin.log();
    assert!(log.contains("cannot read the point") && log.contains(name));
    assert!(log.contains(&twin.config.disks[0].id.to_string()));
    fs::rename(&away, segment).unwrap();

    let content = fs::read(segment).unwrap();
    let file = fs::File::options().write(true).open(segment).unwrap();
    let middle = content.len() / 2;
    file.write_all_at(&[!content[middle]], middle as u64)
        .unwrap();
    let corrupt = lost();
    assert!(
        corrupt > 0 && corrupt <= 16 && corrupt < gone,
        "{corrupt}: those of one frame"
    );
    file.write_all_at(&content, 0).unwrap();
    assert_eq!(lost(), 0, "nothing was done to it");
    assert!(twin.log().lines().count() < 60, "sparingly");
}

#[test]
fn an_overlay_whose_content_is_gone_is_not_served_as_zeroes() {
    let mut pair = Pair::new(11);
    let twin = &mut pair.twin;
    let mut guest = twin.guest(0);
    guest.poke(Guest::data(0), &[7; BLOCK]);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    twin.kill();
    fs::remove_file(twin.path("0.raw")).unwrap();
    twin.start();
    assert!(!twin.exit().success());
    assert!(twin.log().contains("put the file back"), "{}", twin.log());
}

#[test]
fn after_a_power_cut_the_armed_regions_are_suspect_and_without_a_log_the_whole_disk() {
    let mut vm = Vm::new(64 << 20);
    fs::create_dir_all(vm.path("tracking")).unwrap();
    let relationship = RelationshipId::random();
    vm.track(relationship);
    vm.seed();
    let (_, file) = vm.cut();
    assert_eq!(vm.ask(&Request::Confirm { file }), Reply::Done);
    vm.terminate();
    assert!(vm.exit().success());
    assert_eq!(vm.reboot(relationship), Bytes(0), "closed in order");
    let mut guest = vm.guest(0);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    assert_eq!(vm.reboot(relationship), Bytes(1 << 20), "one region");
    let log =
        |vm: &Vm, disk: usize| vm.path(&format!("tracking/{}.intent", vm.config.disks[disk].id));
    vm.kill();
    let spoiled = fs::File::options().write(true).open(log(&vm, 0)).unwrap();
    // Both copies of the header.
    spoiled.write_all_at(&[0xa5; 2 * BLOCK], 0).unwrap();
    assert_eq!(
        vm.reboot(relationship),
        Bytes(SIZE),
        "the log of disk 0 cannot be read"
    );
    vm.kill();
    fs::remove_file(log(&vm, 1)).unwrap();
    assert_eq!(vm.reboot(relationship), Bytes(2 * SIZE), "disk 1 has none");
}
