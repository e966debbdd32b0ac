//! The whole process under a guest: seeded, cut, killed, compared with a replica.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "engine/ends.rs"]
mod ends;
#[path = "engine/join.rs"]
mod join;
mod nbd_support;
mod process;
#[path = "engine/seeds.rs"]
mod seeds;
mod support;
#[path = "engine/twin.rs"]
mod twin;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use journal::{Consistency, Content, DiskExtent, Header, Journal, SegmentReader};
use model::{BLOCK_SIZE, Bytes, Code, DiskId, Lineage, RelationshipId, SeedId, Since, VmId};
use pollux_diskd::config::{CONTROL_SOCKET, Config, DiskConfig, Front, StackSpec, disk_socket};
use pollux_diskd::control::{Reply, Request, Staged};
use process::{Process, answer, late, limit_files};
use rustix::process::{Pid, Signal, kill_process};
use support::{Guest, SLOTS};
use testkit::Rng;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 2048;
const SIZE: u64 = BLOCKS * BLOCK_SIZE;
/// A cut that comes too late on a busy host is asked for again, not for ever.
const MOST_TRIES: u32 = 100;

/// A VM of two disks, its processes, and the replica's copies.
struct Vm {
    folder: tempfile::TempDir,
    config: Config,
    process: Process,
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
        let sockets = disks.iter().map(|disk| disk_socket(disk.slot));
        let process = Process::new(folder.path(), sockets);
        let config = Config {
            vm: id,
            term: 1,
            generation: 1,
            disks,
            copy_budget: Bytes(copy_budget),
        };
        process.configure(&config);
        let mut vm = Self {
            folder,
            config,
            process,
            lineage: Lineage::begin("host-a"),
            sequence: 0,
            seed: SeedId::random(),
            journal: None,
            parts: 0,
            replicas: vec![vec![0xee; usize::try_from(SIZE).unwrap()]; 2],
        };
        vm.process.launch();
        vm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Asks for an end as vmd does.
    fn terminate(&self) {
        let pid = Pid::from_raw(self.process.pid()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Stores a word of the state file of disk `disk`, which diskd has mapped.
    fn poke_state(&self, disk: usize, word: u64, value: u64) {
        let file = fs::File::options()
            .write(true)
            .open(self.path(&format!("{disk}.state")))
            .unwrap();
        file.write_all_at(&value.to_le_bytes(), 8 * word).unwrap();
    }

    fn header(&self, content: Content) -> Header {
        Header {
            vm: self.config.vm,
            disks: self
                .config
                .disks
                .iter()
                .map(|disk| DiskExtent {
                    joining: false,
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
            whole: Vec::new(),
            slice: None,
            file: file.clone(),
        };
        (request, file)
    }

    fn cut(&mut self) -> (Staged, PathBuf) {
        let (request, file) = self.cut_request();
        match self.process.ask(&request) {
            Reply::Staged(staged) => (staged, file),
            other => panic!("{other:?}"),
        }
    }

    fn track(&self, relationship: RelationshipId) -> bool {
        match self.process.ask(&Request::Track {
            relationship,
            begin: true,
            sent: Vec::new(),
            but: Vec::new(),
        }) {
            Reply::Tracking { exact, .. } => exact,
            other => panic!("{other:?}"),
        }
    }

    /// Reboots: what was on tmpfs is gone. How much is suspect then.
    fn reboot(&mut self, relationship: RelationshipId) -> Bytes {
        self.process.kill();
        for disk in &self.config.disks {
            fs::remove_file(&disk.state).unwrap();
        }
        self.process.launch();
        let request = Request::Track {
            relationship,
            begin: false,
            sent: Vec::new(),
            but: Vec::new(),
        };
        match self.process.ask(&request) {
            Reply::Tracking { suspect, .. } => suspect,
            other => panic!("{other:?}"),
        }
    }

    /// Applies a segment to the replica and removes it.
    fn ship(&mut self, file: &Path) {
        let segment = SegmentReader::open(file).unwrap();
        process::apply(&segment, &mut self.replicas);
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
                match self.process.ask(&request) {
                    Reply::Staged(staged) => {
                        assert!(staged.content.0 - staged.zeroes.0 <= 3 << 20);
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
    // Blocks written since the newest point was asked for.
    let mut written = 0;
    let batch = 2 * SLOTS as u64;
    for life in 0..3 {
        // Cut while both guests write.
        let (mut epochs, mut tries) = (0, 0);
        while epochs < 4 {
            tries += 1;
            assert!(tries < MOST_TRIES, "{epochs} of 4 were in time");
            let (request, file) = vm.cut_request();
            let asked = {
                let stream = vm.process.send(&request);
                std::thread::spawn(move || answer(&stream))
            };
            let mut meanwhile = 0;
            loop {
                for guest in &mut guests {
                    churn(guest, &mut rng, BLOCKS, SLOTS);
                }
                meanwhile += batch;
                if asked.is_finished() {
                    break;
                }
            }
            match asked.join().unwrap() {
                Reply::Staged(_) => {
                    vm.ship(&file);
                    written = meanwhile;
                    epochs += 1;
                }
                reply if late(&reply) => written += meanwhile,
                other => panic!("{other:?}"),
            }
        }
        // Kill with requests on their way; QEMU connects again.
        for guest in &mut guests {
            for slot in 0..SLOTS {
                guest.poke(Guest::data(slot), &rng.bytes(BLOCK));
                guest.request(slot, WRITE, (life * 100 + slot as u64) * 8, BLOCK);
            }
        }
        written += batch;
        vm.process.kill();
        vm.process.launch();
        for (disk, guest) in guests.iter_mut().enumerate() {
            guest.disconnect();
            let answered = guest.answered().len();
            guest.connect(&vm.path(&disk_socket(vm.config.disks[disk].slot)));
            guest.wait_for(SLOTS - answered);
        }
        assert!(vm.track(relationship), "exact after kill -9");
    }
    let (staged, file) = vm.cut();
    assert!(
        staged.content <= Bytes(written * BLOCK_SIZE),
        "nothing else again"
    );
    vm.ship(&file);
    vm.assert_equal();
    for guest in &mut guests {
        guest.request(0, FLUSH, 0, 0);
        guest.wait_for(1);
    }
    assert_eq!(vm.process.ask(&Request::Shutdown), Reply::Done);
    assert!(vm.process.exit().success());
}

#[test]
fn an_epoch_that_exceeds_the_copy_budget_or_is_folded_back_loses_no_mark() {
    // No old content may be saved: the first write that meets the epoch gives it up.
    let mut vm = Vm::new(0);
    vm.track(RelationshipId::random());
    let mut guest = vm.guest(0);
    let mut rng = Rng::new(6);
    churn(&mut guest, &mut rng, BLOCKS, 2000);
    let (mut given_up, mut whole, mut tries) = (0, 0, 0);
    while given_up == 0 || whole == 0 {
        tries += 1;
        assert!(tries < MOST_TRIES, "{given_up} given up, {whole} whole");
        let (request, file) = vm.cut_request();
        let stream = vm.process.send(&request);
        if given_up == 0 {
            churn(&mut guest, &mut rng, BLOCKS, 40 * SLOTS);
        }
        match answer(&stream) {
            Reply::Staged(_) if whole == 0 && given_up > 0 => {
                let fold = Request::FoldBack { file: file.clone() };
                assert_eq!(vm.process.ask(&fold), Reply::Done);
                assert!(!file.exists());
                whole += 1;
            }
            Reply::Staged(_) => vm.ship(&file),
            reply if late(&reply) => {}
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
fn nothing_is_tracked_of_a_disk_that_is_left_out() {
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    let left_out = vm.config.disks[1].id;
    let track = |vm: &Vm, begin| {
        let request = Request::Track {
            relationship,
            begin,
            sent: Vec::new(),
            but: vec![left_out],
        };
        match vm.process.ask(&request) {
            Reply::Tracking { exact, suspect } => (exact, suspect),
            other => panic!("{other:?}"),
        }
    };
    // As it was before: of both.
    vm.track(relationship);
    track(&vm, true);
    let mut guests = [vm.guest(0), vm.guest(1)];
    let mut rng = Rng::new(9);
    for guest in &mut guests {
        churn(guest, &mut rng, BLOCKS, 200);
    }
    let tracked = |vm: &Vm| match vm.process.ask(&Request::Status) {
        Reply::Status { disks, .. } => {
            let tracked = disks.iter().map(|disk| disk.tracking.is_some());
            (tracked.collect::<Vec<_>>(), disks[1].dirty)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(tracked(&vm), (vec![true, false], Bytes(0)));
    // A point of the other one is cut as ever.
    let (mut request, _) = vm.cut_request();
    if let Request::Cut { header, .. } = &mut request {
        header.disks.truncate(1);
    }
    assert!(matches!(vm.process.ask(&request), Reply::Staged(_)));
    assert_eq!(vm.process.ask(&Request::Suspect), Reply::Done);
    let (_, suspect) = track(&vm, false);
    assert_eq!(suspect, Bytes(SIZE));
    assert_eq!(tracked(&vm), (vec![true, false], Bytes(0)));
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
    assert_eq!(refused(vm.process.ask(&request)), Code::Conflict);
    assert!(!file.exists());
    assert_eq!(fs::read_dir(vm.path("outbox")).unwrap().count(), 0);
    vm.track(RelationshipId::random());
    // Another VM, another term, a file that is there, a folder that is not.
    let (mut request, _) = vm.cut_request();
    if let Request::Cut { header, .. } = &mut request {
        header.vm = VmId::random();
    }
    assert_eq!(refused(vm.process.ask(&request)), Code::Invalid);
    let (mut request, file) = vm.cut_request();
    fs::write(&file, b"mine").unwrap();
    assert_eq!(refused(vm.process.ask(&request)), Code::Conflict);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let fold = Request::FoldBack { file: file.clone() };
    // Nobody can tell what it holds; and nothing was in any segment.
    assert_eq!(vm.process.ask(&fold), Reply::Done);
    assert!(!file.exists());
    if let Request::Cut { file, .. } = &mut request {
        *file = "/absent/1.seg".into();
    }
    assert_eq!(refused(vm.process.ask(&request)), Code::Failed);
    // Noise, then a request on the same connection; then a line without end.
    let mut stream = UnixStream::connect(vm.path(CONTROL_SOCKET)).unwrap();
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
    assert!(matches!(
        vm.process.ask(&Request::Status),
        Reply::Status { .. }
    ));
    let mut second = vm.process.spawn(None);
    assert!(!second.wait().unwrap().success());
    // The first goes on.
    assert!(matches!(
        vm.process.ask(&Request::Status),
        Reply::Status { .. }
    ));
    vm.process.kill();
}

#[test]
fn an_outbox_that_takes_no_more_refuses_the_epoch_and_neither_guest_nor_mark_is_touched() {
    let mut vm = Vm::new(64 << 20);
    // The state files, which are long and have holes, are there.
    vm.process.ask(&Request::Status);
    vm.process.kill();
    // Enough for the disks, too little for a segment with both.
    vm.process.file_limit = Some(SIZE + (1 << 20));
    vm.process.launch();
    vm.track(RelationshipId::random());
    let mut rng = Rng::new(9);
    let mut guests = [vm.guest(0), vm.guest(1)];
    for guest in &mut guests {
        for block in (0..BLOCKS).step_by(16) {
            guest.poke(Guest::data(0), &rng.bytes(16 * BLOCK));
            assert_eq!(guest.run(WRITE, block * 8, 16 * BLOCK), 0);
        }
    }
    let (mut refusals, mut tries) = (0, 0);
    while refusals < 2 {
        tries += 1;
        assert!(tries < MOST_TRIES, "{refusals} of 2 were in time");
        let (request, file) = vm.cut_request();
        let stream = vm.process.send(&request);
        let asked = std::thread::spawn(move || answer(&stream));
        while !asked.is_finished() {
            for guest in &mut guests {
                churn(guest, &mut rng, BLOCKS, SLOTS);
            }
        }
        match asked.join().unwrap() {
            reply if late(&reply) => {}
            Reply::Refused { problem } => {
                refusals += 1;
                assert_eq!(problem.code, Code::Full, "{problem}");
                assert!(problem.way_out.contains("stay marked"), "{problem}");
                let outbox = vm.path("outbox").display().to_string();
                for part in ["are to be written", "are free in", &outbox] {
                    assert!(problem.reason.contains(part), "{problem}");
                }
            }
            other => panic!("{other:?}"),
        }
        assert!(!file.exists());
        assert_eq!(fs::read_dir(vm.path("outbox")).unwrap().count(), 0);
    }
    limit_files(vm.process.pid(), libc::RLIM_INFINITY).unwrap();
    let (staged, file) = vm.cut();
    assert_eq!(staged.content, Bytes(2 * SIZE), "every mark is back");
    vm.ship(&file);
    vm.assert_equal();
}
