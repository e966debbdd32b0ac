//! Checkpoints taken, merged, applied and disks grown under a guest, with the real process, which is killed
//! at random instants. What the guest sees is compared with an array of bytes, and so is a replica that gets
//! what was marked.

#![allow(clippy::unwrap_used, reason = "a test")]

mod nbd_support;
mod process;
mod support;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use journal::{Consistency, Content, DiskExtent, Header, SegmentReader};
use model::{
    BLOCK_SIZE, Bytes, CheckpointId, DiskId, Lineage, RelationshipId, SeedId, Since, VmId,
};
use nbd_support::{Client, go};
use pollux_diskd::config::{Config, DiskConfig, Front, StackSpec, disk_socket, nbd_socket};
use pollux_diskd::control::{DiskStatus, Reply, Request};
use process::Process;
use support::{Guest, SLOTS};
use testkit::{Rng, seeds};

/// `NBD_REP_ERR_UNKNOWN`.
const UNKNOWN: u32 = (1 << 31) + 6;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 224;
const DISKS: usize = 2;

/// Content, and sectors that perhaps held something else.
type Held = (Vec<u8>, HashMap<usize, Vec<u8>>);

/// A checkpoint of all disks, with what they held.
struct Checkpoint {
    id: CheckpointId,
    /// Of the overlay files.
    stem: String,
    /// By disk; none once it is being merged.
    held: Option<Vec<Held>>,
}

struct Vm {
    folder: tempfile::TempDir,
    config: Config,
    process: Process,
    guests: Vec<Guest>,
    /// What the guests must see.
    models: Vec<Vec<u8>>,
    replicas: Vec<Vec<u8>>,
    checkpoints: Vec<Checkpoint>,
    relationship: RelationshipId,
    lineage: Lineage,
    seed: SeedId,
    sequence: u64,
    stems: u64,
    rng: Rng,
}

impl Vm {
    fn new(seed: u64) -> Self {
        Self::with_front(seed, Front::VhostUser)
    }

    fn with_front(seed: u64, front: Front) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| folder.path().join(name);
        let size = Bytes(BLOCKS * BLOCK_SIZE);
        let mut sockets = Vec::new();
        let mut disks = Vec::new();
        for slot in 0..u8::try_from(DISKS).unwrap() {
            let file = path(&format!("{slot}.raw"));
            fs::File::create(&file).unwrap().set_len(size.0).unwrap();
            sockets.extend([disk_socket(slot), nbd_socket(slot)]);
            disks.push(DiskConfig {
                id: DiskId::random(),
                slot,
                front,
                size,
                stack: StackSpec::Raw { file },
                state: path(&format!("{slot}.state")),
                tracking: path("tracking"),
            });
        }
        let config = Config {
            vm: VmId::random(),
            term: 1,
            generation: 1,
            disks,
            copy_budget: Bytes(64 << 20),
        };
        let zeroes = vec![0; usize::try_from(size.0).unwrap()];
        let mut vm = Self {
            process: Process::new(folder.path(), sockets),
            folder,
            config,
            guests: Vec::new(),
            models: vec![zeroes.clone(); DISKS],
            replicas: vec![zeroes; DISKS],
            checkpoints: Vec::new(),
            relationship: RelationshipId::random(),
            lineage: Lineage::begin("host-a"),
            seed: SeedId::random(),
            sequence: 0,
            stems: 0,
            rng: Rng::new(seed),
        };
        vm.process.configure(&vm.config);
        vm.process.start();
        if front == Front::VhostUser {
            for disk in 0..DISKS {
                let mut guest = Guest::new();
                guest.connect(&vm.socket(disk));
                vm.guests.push(guest);
            }
        }
        vm.track();
        vm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self, disk: usize) -> PathBuf {
        self.path(&disk_socket(u8::try_from(disk).unwrap()))
    }

    fn status(&self) -> (u64, Vec<DiskStatus>) {
        match self.process.ask(&Request::Status) {
            Reply::Status {
                generation, disks, ..
            } => (generation, disks),
            other => panic!("{other:?}"),
        }
    }

    fn track(&self) -> bool {
        let relationship = self.relationship;
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

    /// Puts the checkpoints into the configuration.
    fn restack(&mut self) {
        self.config.generation += 1;
        let folder = self.folder.path();
        for (number, disk) in self.config.disks.iter_mut().enumerate() {
            let mut stack = StackSpec::Raw {
                file: folder.join(format!("{number}.raw")),
            };
            for checkpoint in &self.checkpoints {
                let stem = &checkpoint.stem;
                stack = StackSpec::Overlay {
                    file: folder.join(format!("{number}.{stem}")),
                    map: folder.join(format!("{number}.{stem}.map")),
                    checkpoint: Some(checkpoint.id),
                    below: Box::new(stack),
                };
            }
            disk.stack = stack;
        }
        self.process.configure(&self.config);
    }

    fn stem(&mut self) -> String {
        self.stems += 1;
        format!("{}.overlay", self.stems)
    }

    /// Requests of both guests, not waited for. The sectors that they change, by disk.
    fn offer(&mut self) -> Vec<HashMap<usize, Vec<u8>>> {
        let mut all = Vec::new();
        for disk in 0..DISKS {
            let mut changed = HashMap::new();
            let blocks = self.models[disk].len() / BLOCK;
            for slot in 0..SLOTS {
                // Each slot has blocks of its own: no two of a batch meet.
                let block = self.rng.index(blocks / SLOTS) * SLOTS + slot;
                let skip = if self.rng.once_in(2) {
                    0
                } else {
                    self.rng.index(8)
                };
                let sectors = if skip == 0 {
                    8
                } else {
                    1 + self.rng.index(8 - skip)
                };
                let first = block * 8 + skip;
                let guest = &mut self.guests[disk];
                let bytes = if self.rng.once_in(6) {
                    let mut range = Vec::new();
                    range.extend((first as u64).to_le_bytes());
                    range.extend(u32::try_from(sectors).unwrap().to_le_bytes());
                    range.extend([0; 4]);
                    guest.poke(Guest::data(slot), &range);
                    guest.request(slot, DISCARD, 0, range.len());
                    vec![0; sectors * 512]
                } else {
                    let bytes = self.rng.bytes(sectors * 512);
                    guest.poke(Guest::data(slot), &bytes);
                    guest.request(slot, WRITE, first as u64, bytes.len());
                    bytes
                };
                for (number, sector) in bytes.chunks(512).enumerate() {
                    changed.insert(first + number, sector.to_vec());
                }
            }
            all.push(changed);
        }
        all
    }

    /// Waits for `left` requests of each guest, and takes what they wrote into the model.
    fn settle(&mut self, left: [usize; DISKS], changed: Vec<HashMap<usize, Vec<u8>>>) {
        for (disk, changed) in changed.into_iter().enumerate() {
            self.guests[disk].wait_for(left[disk]);
            assert!((0..SLOTS).all(|slot| self.guests[disk].status(slot) == 0));
            for (sector, bytes) in changed {
                self.models[disk][sector * 512..(sector + 1) * 512].copy_from_slice(&bytes);
            }
        }
    }

    fn write(&mut self) {
        let changed = self.offer();
        self.settle([SLOTS; DISKS], changed);
        if self.rng.once_in(4) {
            for guest in &mut self.guests {
                assert_eq!(guest.run(FLUSH, 0, 0), 0);
            }
        }
    }

    /// What the guest of `disk` reads.
    fn read(&mut self, disk: usize) -> Vec<u8> {
        let mut content = Vec::new();
        let blocks = self.models[disk].len() / BLOCK;
        let guest = &mut self.guests[disk];
        for first in (0..blocks).step_by(SLOTS) {
            let count = SLOTS.min(blocks - first);
            for slot in 0..count {
                guest.request(slot, READ, ((first + slot) * 8) as u64, BLOCK);
            }
            guest.wait_for(count);
            for slot in 0..count {
                assert_eq!(guest.status(slot), 0);
                content.extend(guest.peek(Guest::data(slot), BLOCK));
            }
        }
        content
    }

    fn verify(&mut self, when: &str) {
        for disk in 0..DISKS {
            let seen = self.read(disk);
            let pairs = seen.chunks(512).zip(self.models[disk].chunks(512));
            let wrong = pairs.enumerate().find(|(_, (seen, model))| seen != model);
            assert!(
                wrong.is_none(),
                "{when}: sector {} of disk {disk}",
                wrong.unwrap().0
            );
        }
    }

    /// What others read: the disk as it is, and what each checkpoint holds.
    fn verify_exports(&mut self) {
        for disk in 0..DISKS {
            let socket = self.path(&nbd_socket(u8::try_from(disk).unwrap()));
            let read = |name: &str, len: usize| {
                let mut client = Client::open(&socket, name, true);
                client.read(0, u32::try_from(len).unwrap())
            };
            let model = &self.models[disk];
            assert!(read("", model.len()) == *model, "the live view");
            for checkpoint in &self.checkpoints {
                let name = format!("checkpoint/{}", checkpoint.id);
                let Some(held) = &checkpoint.held else {
                    let mut client = Client::haggle(&socket);
                    let replies = client.option(7, &go(&name)).unwrap();
                    assert_eq!(replies[0].0, UNKNOWN, "it is being merged");
                    continue;
                };
                let (content, maybe) = &held[disk];
                let seen = read(&name, content.len());
                for (sector, (seen, held)) in seen.chunks(512).zip(content.chunks(512)).enumerate()
                {
                    let other = maybe.get(&sector).map(Vec::as_slice);
                    assert!(
                        seen == held || Some(seen) == other,
                        "{name}: sector {sector}"
                    );
                }
            }
        }
    }

    /// Kills it, with `changed` on its way, and starts it again.
    fn kill_and_start(&mut self, changed: Option<Vec<HashMap<usize, Vec<u8>>>>) {
        self.process.kill();
        self.process.start();
        let mut left = [0; DISKS];
        for (disk, left) in left.iter_mut().enumerate() {
            let socket = self.socket(disk);
            let guest = &mut self.guests[disk];
            guest.disconnect();
            let answered = guest.answered().len();
            guest.connect(&socket);
            if changed.is_some() {
                *left = SLOTS - answered;
            }
        }
        if let Some(changed) = changed {
            self.settle(left, changed);
        }
    }

    /// Has the configuration file read again, or killed while it does, in some runs.
    fn reload(&mut self, changed: Option<Vec<HashMap<usize, Vec<u8>>>>, kill: bool) {
        if kill {
            let stream = self.process.send(&Request::Reload);
            // At no time in particular.
            for _ in 0..self.rng.below(2000) {
                std::hint::black_box(self.rng.bits());
            }
            if self.rng.once_in(2) {
                std::thread::yield_now();
            }
            self.kill_and_start(changed);
            drop(stream);
        } else {
            let reply = self.process.ask(&Request::Reload);
            assert_eq!(reply, Reply::Done);
            if let Some(changed) = changed {
                self.settle([SLOTS; DISKS], changed);
            }
        }
        let (generation, disks) = self.status();
        assert_eq!(generation, self.config.generation);
        for (disk, wanted) in disks.iter().zip(&self.config.disks) {
            assert_eq!(disk.size, wanted.size);
            let overlays: Vec<_> = disk.overlays.iter().map(|one| one.checkpoint).collect();
            let wanted: Vec<_> = self.checkpoints.iter().map(|one| one.id).collect();
            assert_eq!(overlays, wanted);
        }
    }

    fn checkpoint(&mut self, kill: bool) {
        let before = self.models.clone();
        let writes = !self.guests.is_empty() && self.rng.once_in(2);
        let changed = writes.then(|| self.offer());
        let maybe = changed
            .clone()
            .unwrap_or_else(|| vec![HashMap::new(); DISKS]);
        let stem = self.stem();
        self.checkpoints.push(Checkpoint {
            id: CheckpointId::random(),
            stem,
            held: Some(before.into_iter().zip(maybe).collect()),
        });
        self.restack();
        self.reload(changed, kill);
        assert!(self.track(), "a checkpoint changes nothing that is seen");
    }

    fn apply(&mut self, kill: bool) {
        let frozen = (0..self.checkpoints.len()).filter(|at| self.checkpoints[*at].held.is_some());
        let frozen: Vec<usize> = frozen.collect();
        if frozen.is_empty() {
            return;
        }
        let at = frozen[self.rng.index(frozen.len())];
        self.checkpoints.truncate(at + 1);
        self.checkpoints[at].stem = self.stem();
        self.restack();
        self.reload(None, kill);
        for disk in 0..DISKS {
            let seen = self.read(disk);
            let held = self.checkpoints[at].held.as_mut().unwrap();
            let (content, maybe) = &mut held[disk];
            for (sector, bytes) in std::mem::take(maybe) {
                let place = sector * 512..(sector + 1) * 512;
                if seen[place.clone()] == bytes {
                    content[place].copy_from_slice(&bytes);
                }
            }
            self.models[disk] = content.clone();
        }
        self.verify("applied");
        // Killed in between, nobody knows any more what differs: everything is marked.
        assert!(self.track() || kill);
    }

    /// Merges a part of a checkpoint, and lets it go when nothing is left.
    fn merge(&mut self, kill: bool) {
        if self.checkpoints.is_empty() {
            return;
        }
        let at = self.rng.index(self.checkpoints.len());
        let checkpoint = self.checkpoints[at].id;
        self.checkpoints[at].held = None;
        for _ in 0..1 + self.rng.below(6) {
            let mut whole = true;
            let limit = Bytes(BLOCK_SIZE * (1 + self.rng.below(60)));
            for disk in 0..DISKS {
                let request = Request::Drain {
                    disk: self.config.disks[disk].id,
                    checkpoint,
                    limit,
                };
                match self.process.ask(&request) {
                    Reply::Drained { left } => whole &= left == Bytes(0),
                    other => panic!("{other:?}"),
                }
            }
            if self.rng.once_in(2) {
                self.write();
            }
            if whole {
                let gone = self.checkpoints.remove(at);
                let changed = self.rng.once_in(2).then(|| self.offer());
                self.restack();
                self.reload(changed, kill);
                for disk in 0..DISKS {
                    for suffix in ["", ".map"] {
                        let name = format!("{disk}.{}{suffix}", gone.stem);
                        fs::remove_file(self.path(&name)).unwrap();
                    }
                }
                assert!(self.track(), "a merge changes nothing that is seen");
                return;
            }
            if kill && self.rng.once_in(3) {
                let changed = self.offer();
                let stream = self.process.send(&Request::Drain {
                    disk: self.config.disks[0].id,
                    checkpoint,
                    limit,
                });
                self.kill_and_start(Some(changed));
                drop(stream);
            }
        }
    }

    fn grow(&mut self, kill: bool) {
        if !self.checkpoints.is_empty() {
            return;
        }
        let disk = self.rng.index(DISKS);
        let size = self.config.disks[disk].size.0 + BLOCK_SIZE * (1 + self.rng.below(40));
        let file = fs::File::options()
            .write(true)
            .open(self.path(&format!("{disk}.raw")));
        file.unwrap().set_len(size).unwrap();
        self.config.disks[disk].size = Bytes(size);
        self.restack();
        self.reload(None, kill);
        let size = usize::try_from(size).unwrap();
        self.models[disk].resize(size, 0);
        self.replicas[disk].resize(size, 0);
        assert!(self.track(), "a disk that grows keeps its marks");
    }

    /// Ships what was marked; the replica is then what the guest sees.
    fn cut(&mut self) {
        self.sequence += 1;
        let file = self.path(&format!("{}.seg", self.sequence));
        let disks = self.config.disks.iter().map(|disk| DiskExtent {
            joining: false,
            id: disk.id,
            size: disk.size,
        });
        let header = Header {
            vm: self.config.vm,
            disks: disks.collect(),
            lineage: self.lineage.clone(),
            content: Content::Delta {
                sequence: self.sequence,
                since: Since::Seed {
                    seed: self.seed,
                    parts: 1,
                },
            },
            time: jiff::Timestamp::now(),
            consistency: Consistency::Crash,
        };
        let reply = self.process.ask(&Request::Cut {
            header,
            whole: Vec::new(),
            slice: None,
            file: file.clone(),
        });
        assert!(matches!(reply, Reply::Staged(_)), "{reply:?}");
        let segment = SegmentReader::open(&file).unwrap();
        process::apply(&segment, &mut self.replicas);
        fs::remove_file(file).unwrap();
        assert!(self.replicas == self.models, "the replica differs");
    }
}

#[test]
fn checkpoints_come_and_go_under_a_guest_and_kills_and_nobody_sees_a_difference() {
    let mut kills = 0;
    for seed in seeds(8) {
        let mut vm = Vm::new(seed);
        for _ in 0..40 {
            let kill = vm.rng.once_in(3);
            kills += u32::from(kill);
            match vm.rng.below(12) {
                0..3 => vm.checkpoint(kill),
                3..6 => vm.merge(kill),
                6 => vm.apply(kill),
                7 => vm.grow(kill),
                8 => vm.cut(),
                9 if kill => {
                    let changed = vm.offer();
                    vm.kill_and_start(Some(changed));
                }
                _ => vm.write(),
            }
            vm.verify(&format!("seed {seed}"));
            if vm.rng.once_in(3) {
                vm.verify_exports();
            }
        }
        vm.cut();
        vm.verify("at the end");
        assert_eq!(vm.process.ask(&Request::Shutdown), Reply::Done);
        assert!(vm.process.exit().success());
    }
    assert!(kills > 50, "{kills}");
}

#[test]
fn a_guest_without_virtio_has_its_disk_over_nbd_and_others_only_read() {
    let mut vm = Vm::with_front(1, Front::Nbd);
    let socket = vm.path(&nbd_socket(0));
    let mut guest = Client::open(&socket, "guest", true);
    guest.write(0, &[1; 8192]);
    assert!(vm.status().1[0].connected);
    let mut other = Client::open(&socket, "", true);
    assert_eq!(other.read(0, 8192), [1; 8192]);
    assert!(!vm.status().1[1].connected, "who reads is no guest");
    vm.checkpoint(false);
    guest.write(4096, &[2; 4096]);
    let name = format!("checkpoint/{}", vm.checkpoints[0].id);
    let mut frozen = Client::open(&socket, &name, true);
    assert_eq!(frozen.read(0, 8192), [1; 8192]);
    vm.process.kill();
    vm.process.start();
    let mut guest = Client::open(&socket, "guest", true);
    assert_eq!(guest.read(4096, 4096), [2; 4096]);
    assert_eq!(vm.status().1[0].dirty, vm.config.disks[0].size);
}

#[test]
fn what_cannot_be_reached_is_refused_and_changes_nothing() {
    let mut vm = Vm::new(2);
    vm.write();
    vm.checkpoint(false);
    vm.write();
    vm.checkpoint(false);
    vm.write();
    let good = vm.config.clone();
    let (_, before) = vm.status();
    let overlay = |file: &str, below: StackSpec| StackSpec::Overlay {
        file: file.into(),
        map: format!("{file}.map").into(),
        checkpoint: Some(CheckpointId::random()),
        below: Box::new(below),
    };
    let raw = |file: PathBuf| StackSpec::Raw { file };
    let own = vm.path("1.raw");
    let used = vm.path("used").display().to_string();
    fs::write(&used, [7; 4096]).unwrap();
    let stacks = [
        // Without what was written since the checkpoints.
        (raw(own.clone()), "not drained"),
        (
            overlay("/nowhere/overlay", good.disks[1].stack.clone()),
            "nowhere",
        ),
        (overlay(&used, good.disks[1].stack.clone()), "4096 bytes"),
        (raw(vm.path("used")), "below everything"),
    ];
    let mut wrong: Vec<(Config, &str)> = stacks
        .into_iter()
        .map(|(stack, why)| {
            let mut config = good.clone();
            // The first disk could go there, and must not alone.
            let first = vm.path(&format!("first-{why}")).display().to_string();
            config.disks[0].stack = overlay(&first, good.disks[0].stack.clone());
            config.disks[1].stack = stack;
            (config, why)
        })
        .collect();
    let change = |change: fn(&mut Config)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    wrong.extend([
        (change(|config| config.term = 2), "another term"),
        (change(|config| drop(config.disks.pop())), "not about"),
        (change(|config| config.disks[0].slot = 5), "only its size"),
        (
            change(|config| config.disks[0].size = Bytes(4096)),
            "smaller",
        ),
        (
            change(|config| config.disks[0].size.0 += 4096),
            "keeps its size",
        ),
    ]);
    for (config, why) in wrong {
        vm.config = config;
        vm.config.generation += 1;
        vm.process.configure(&vm.config);
        match vm.process.ask(&Request::Reload) {
            Reply::Refused { problem } => {
                assert!(problem.to_string().contains(why), "{why}: {problem}");
            }
            other => panic!("{why}: {other:?}"),
        }
        let (generation, after) = vm.status();
        assert_eq!(generation, good.generation);
        for (before, after) in before.iter().zip(&after) {
            let ids = |disk: &DiskStatus| -> Vec<CheckpointId> {
                disk.overlays.iter().map(|one| one.checkpoint).collect()
            };
            assert_eq!((before.size, ids(before)), (after.size, ids(after)));
        }
        vm.write();
        vm.verify(why);
    }
    fs::write(vm.path("diskd.json"), b"{").unwrap();
    assert!(matches!(
        vm.process.ask(&Request::Reload),
        Reply::Refused { .. }
    ));
    let drain = |checkpoint| Request::Drain {
        disk: good.disks[0].id,
        checkpoint,
        limit: Bytes(1 << 20),
    };
    let reply = vm.process.ask(&drain(CheckpointId::random()));
    assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
    vm.config = good.clone();
    vm.checkpoint(false);
    vm.verify("and it goes on");
}

#[test]
fn a_checkpoint_is_not_applied_once_it_is_being_merged() {
    let mut vm = Vm::new(3);
    vm.write();
    vm.checkpoint(false);
    let checkpoint = vm.checkpoints[0].id;
    let good = vm.config.clone();
    vm.write();
    for disk in &good.disks {
        let reply = vm.process.ask(&Request::Drain {
            disk: disk.id,
            checkpoint,
            limit: Bytes(BLOCK_SIZE),
        });
        assert!(matches!(reply, Reply::Drained { .. }), "{reply:?}");
    }
    // What it held has gone below, or may go at any time: nothing has its content any more.
    for disk in &mut vm.config.disks {
        let StackSpec::Overlay { below, .. } = disk.stack.clone() else {
            panic!("a checkpoint was taken");
        };
        let file = vm.folder.path().join(format!("applied{}", disk.slot));
        disk.stack = StackSpec::Overlay {
            map: file.with_extension("map"),
            file,
            checkpoint: Some(CheckpointId::random()),
            below,
        };
    }
    vm.config.generation += 1;
    vm.process.configure(&vm.config);
    match vm.process.ask(&Request::Reload) {
        Reply::Refused { problem } => {
            assert!(problem.to_string().contains("is being merged"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
    vm.config = good;
    vm.process.configure(&vm.config);
    vm.write();
    vm.checkpoints[0].held = None;
    vm.verify("and it goes on");
}
