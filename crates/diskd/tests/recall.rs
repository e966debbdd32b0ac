//! What diskd knows of a disk that it opens: after kills, after reboots, after what was done to the files
//! behind its back. A reboot is played: the process is killed, and its state files on tmpfs are gone.
//!
//! The twin is an array of bytes that gets what is staged. Suspect regions are compared with it by their
//! hashes, as polluxd does. In the end a cut must make it what the guest reads.

#![allow(clippy::unwrap_used, reason = "a test")]

mod nbd_support;
mod process;
#[path = "recall/stacks.rs"]
mod stacks;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use journal::compare::BlockHashes;
use journal::{Consistency, Content, DiskExtent, Header, SegmentReader};
use model::{
    BLOCK_SIZE, Bytes, Code, DiskId, Lineage, REGION_SIZE, RelationshipId, SeedId, Since, VmId,
};
use nbd_support::Client;
use pollux_diskd::config::{Config, DiskConfig, Front, StackSpec, nbd_socket};
use pollux_diskd::control::{
    Compared, DiskStatus, LogStatus, Reply, Request, Sent, TrackingStatus,
};
use process::Process;
use testkit::Rng;

const BLOCK: usize = 4096;
const MIB: usize = 1 << 20;
/// Of the disk: seven regions and a part of one.
const SIZE: usize = 7 * MIB + 5 * BLOCK;
const REGIONS: u64 = 8;

fn mib(count: u64) -> Bytes {
    Bytes(count * REGION_SIZE)
}

struct Vm {
    folder: tempfile::TempDir,
    config: Config,
    process: Process,
    relationship: RelationshipId,
    lineage: Lineage,
    seed: SeedId,
    sequence: u64,
    /// A copy of the disk.
    twin: [Vec<u8>; 1],
    rng: Rng,
}

impl Vm {
    /// A VM that is tracked, and whose twin has all of it.
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["run", "outbox"] {
            fs::create_dir(path(name)).unwrap();
        }
        let file = path("raw");
        let size = SIZE as u64;
        fs::File::create(&file).unwrap().set_len(size).unwrap();
        let disk = DiskConfig {
            id: DiskId::random(),
            slot: 0,
            front: Front::Nbd,
            size: Bytes(size),
            stack: StackSpec::Raw { file },
            state: path("run/state"),
            tracking: path("tracking"),
        };
        let mut vm = Self {
            config: Config {
                vm: VmId::random(),
                term: 1,
                generation: 1,
                disks: vec![disk],
                copy_budget: Bytes(64 << 20),
            },
            process: Process::new(folder.path(), [nbd_socket(0)]),
            folder,
            relationship: RelationshipId::random(),
            lineage: Lineage::begin("host-a"),
            seed: SeedId::random(),
            sequence: 0,
            twin: [vec![0xee; SIZE]],
            rng: Rng::new(seed),
        };
        vm.process.configure(&vm.config);
        vm.process.start();
        vm.write(0, 3 * MIB);
        assert_eq!(vm.track(true), (false, Bytes(0)));
        vm.ship();
        vm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log_file(&self) -> PathBuf {
        self.path(&format!("tracking/{}.intent", self.config.disks[0].id))
    }

    /// The host has lost its power: tmpfs is empty, and with it the cache of segments.
    fn cut_power(&mut self) {
        self.process.kill();
        self.lose_memory();
    }

    /// The host is off: tmpfs is empty.
    fn lose_memory(&self) {
        for name in ["run", "outbox"] {
            fs::remove_dir_all(self.path(name)).unwrap();
            fs::create_dir(self.path(name)).unwrap();
        }
    }

    fn reboot(&mut self) {
        self.cut_power();
        self.process.start();
    }

    fn close(&mut self) {
        assert_eq!(self.process.ask(&Request::Shutdown), Reply::Done);
        assert!(self.process.exit().success());
    }

    fn done(&self, request: &Request) {
        assert_eq!(self.process.ask(request), Reply::Done);
    }

    fn status(&self) -> DiskStatus {
        match self.process.ask(&Request::Status) {
            Reply::Status { disks, .. } => disks.into_iter().next().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn tracking(&self) -> TrackingStatus {
        self.status().tracking.expect("tracked")
    }

    /// Whether it is exact, and how much is suspect.
    fn track(&self, begin: bool) -> (bool, Bytes) {
        self.track_sent(begin, Vec::new())
    }

    /// The same while the initial replication goes on, and everything before this byte was sent.
    fn track_seeding(&self, to: u64) -> (bool, Bytes) {
        let disk = self.config.disks[0].id;
        self.track_sent(true, vec![Sent { disk, to }])
    }

    fn track_sent(&self, begin: bool, sent: Vec<Sent>) -> (bool, Bytes) {
        let relationship = self.relationship;
        match self.process.ask(&Request::Track {
            relationship,
            begin,
            sent,
            but: Vec::new(),
        }) {
            Reply::Tracking { exact, suspect } => (exact, suspect),
            other => panic!("{other:?}"),
        }
    }

    fn guest(&self) -> Client {
        Client::open(&self.path(&nbd_socket(0)), "guest", true)
    }

    /// Random bytes.
    fn write(&mut self, at: usize, len: usize) {
        let mut guest = self.guest();
        for at in (at..at + len).step_by(MIB) {
            let bytes = self.rng.bytes(len.min(MIB));
            guest.write(at as u64, &bytes);
        }
    }

    fn content(&self) -> Vec<u8> {
        let mut guest = self.guest();
        let size = usize::try_from(self.config.disks[0].size.0).unwrap();
        let pieces = (0..size).step_by(MIB).map(|at| {
            let len = u32::try_from(MIB.min(size - at)).unwrap();
            guest.read(at as u64, len)
        });
        pieces.flatten().collect()
    }

    fn cut(&mut self) -> (Reply, PathBuf) {
        self.sequence += 1;
        let file = self.path(&format!("outbox/{}.delta", self.sequence));
        let DiskConfig { id, size, .. } = self.config.disks[0];
        let header = Header {
            vm: self.config.vm,
            disks: vec![DiskExtent {
                joining: false,
                id,
                size,
            }],
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
        (reply, file)
    }

    /// A segment with all that is marked.
    fn stage(&mut self) -> PathBuf {
        let (reply, file) = self.cut();
        assert!(matches!(reply, Reply::Staged(_)), "{reply:?}");
        file
    }

    /// The twin takes a segment; how many bytes it holds.
    fn apply(&mut self, file: &Path) -> usize {
        let segment = SegmentReader::open(file).unwrap();
        process::apply(&segment, &mut self.twin)
    }

    /// The twin gets all that is marked, and says so; how many bytes that were. It is the disk then.
    fn ship(&mut self) -> usize {
        let file = self.stage();
        let shipped = self.apply(&file);
        self.done(&Request::Confirm { file: file.clone() });
        assert!(!file.exists());
        assert!(self.content() == self.twin[0], "the twin differs");
        assert_eq!(self.tracking().unconfirmed, Bytes(0));
        shipped
    }

    /// Compares what is suspect with the twin; which regions that were.
    fn compare(&mut self) -> Vec<u64> {
        if self.tracking().suspect > Bytes(0) {
            let (reply, file) = self.cut();
            match reply {
                Reply::Refused { problem } => assert_eq!(problem.code, Code::Conflict, "{problem}"),
                other => panic!("nobody knows what differs: {other:?}"),
            }
            assert!(!file.exists());
        }
        let disk = self.config.disks[0].id;
        let mut seen = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            let limit = 3;
            let reply = self.process.ask(&Request::Hashes {
                disk,
                from: at,
                limit,
            });
            let Reply::Hashes { regions, next } = reply else {
                panic!("{reply:?}");
            };
            assert!(regions.len() == 3 || next.is_none());
            let mut compared = Vec::new();
            for found in regions {
                let at = usize::try_from(found.region).unwrap() * MIB;
                let twin = &self.twin[0];
                let theirs = BlockHashes::of(&twin[at..twin.len().min(at + MIB)]);
                assert_eq!(theirs.blocks(), found.hashes.blocks());
                seen.push(found.region);
                compared.push(Compared {
                    region: found.region,
                    differ: found.hashes.differ(&theirs),
                });
            }
            let regions = compared;
            self.done(&Request::Compared { disk, regions });
            from = next;
        }
        assert_eq!(self.tracking().suspect, Bytes(0));
        seen
    }

    /// All is compared, nothing but what differs is sent.
    fn compares_everything(&mut self, differs: usize, why: &str) {
        assert_eq!(self.track(false), (false, mib(REGIONS)));
        assert_eq!(self.compare(), (0..REGIONS).collect::<Vec<_>>());
        assert_eq!(self.ship(), differs);
        assert!(self.process.log().contains(why), "{why}");
    }
}

#[test]
fn a_kill_between_any_two_steps_of_an_epoch_leaves_exactly_what_was_not_sent() {
    let mut vm = Vm::new(1);
    let again = |vm: &mut Vm| {
        vm.process.kill();
        vm.process.start();
        assert_eq!(vm.track(false), (true, Bytes(0)));
    };
    vm.write(MIB, 3 * BLOCK);
    again(&mut vm);
    assert_eq!(vm.status().dirty, Bytes(3 * BLOCK_SIZE));
    let file = vm.stage();
    vm.write(5 * MIB, BLOCK);
    again(&mut vm);
    let tracking = vm.tracking();
    assert_eq!(tracking.marked, Bytes(BLOCK_SIZE));
    assert_eq!(tracking.unconfirmed, mib(1));
    assert_eq!(vm.apply(&file), 3 * BLOCK);
    // The answer to the confirmation is lost, and so is that to the next one.
    vm.done(&Request::Confirm { file: file.clone() });
    again(&mut vm);
    vm.done(&Request::Confirm { file });
    assert_eq!(vm.ship(), BLOCK);
    let file = vm.stage();
    assert_eq!(vm.apply(&file), 0);
    vm.write(2 * MIB, BLOCK);
    vm.done(&Request::Confirm { file });
    let file = vm.stage();
    vm.done(&Request::FoldBack { file: file.clone() });
    again(&mut vm);
    vm.done(&Request::FoldBack { file });
    assert_eq!(vm.tracking().suspect, Bytes(0), "it was marked before");
    assert_eq!(vm.ship(), BLOCK);
}

#[test]
fn after_a_reboot_what_was_not_confirmed_is_compared_and_only_what_differs_is_sent() {
    let mut vm = Vm::new(2);
    // Everything was armed when tracking began; closed in order, nothing is.
    vm.close();
    vm.process.start();
    assert_eq!(vm.tracking().armed, Bytes(0));
    vm.write(MIB, BLOCK);
    vm.write(4 * MIB, 2 * BLOCK);
    // Sent and applied, but never confirmed.
    let file = vm.stage();
    vm.apply(&file);
    vm.write(6 * MIB, 5 * BLOCK);
    vm.reboot();
    let (exact, suspect) = vm.track(false);
    assert!(!exact && suspect >= mib(3), "{suspect}");
    let compared = vm.compare();
    assert!([1, 4, 6].iter().all(|region| compared.contains(region)));
    assert_eq!(Bytes(compared.len() as u64 * REGION_SIZE), suspect);
    assert_eq!(vm.ship(), 5 * BLOCK, "the twin had the rest");
    // Now nothing is missing any more.
    vm.close();
    vm.lose_memory();
    vm.process.start();
    assert_eq!(vm.track(false), (true, Bytes(0)));
}

#[test]
fn while_the_initial_replication_goes_on_what_was_sent_is_compared_and_the_rest_is_marked() {
    let mut vm = Vm::new(11);
    vm.relationship = RelationshipId::random();
    assert_eq!(vm.track(true), (false, Bytes(0)));
    let size = vm.config.disks[0].size;
    assert_eq!(vm.status().dirty, size, "nothing was sent");
    // Four regions were sent, and a block of the fifth.
    vm.reboot();
    let sent = 4 * REGION_SIZE + BLOCK_SIZE;
    assert_eq!(vm.track_seeding(sent), (false, mib(5)));
    let behind = Bytes(size.0 - 5 * REGION_SIZE);
    assert_eq!(vm.status().dirty, behind);
    vm.write(MIB, BLOCK);
    assert_eq!(vm.compare(), [0, 1, 2, 3, 4]);
    assert_eq!(vm.track_seeding(sent), (true, Bytes(0)));
    assert_eq!(vm.ship() as u64, behind.0 + BLOCK_SIZE);
    // The twin was filled from a copy, which differs in a block.
    vm.relationship = RelationshipId::random();
    assert_eq!(vm.track_seeding(u64::MAX), (false, mib(REGIONS)));
    assert_eq!(vm.status().dirty, Bytes(0));
    vm.twin[0][3 * MIB] ^= 1;
    assert_eq!(vm.compare(), (0..REGIONS).collect::<Vec<_>>());
    assert_eq!(vm.ship(), BLOCK);
}

#[test]
fn a_reboot_while_regions_are_compared_begins_the_comparison_again() {
    let mut vm = Vm::new(3);
    vm.close();
    vm.process.start();
    vm.write(2 * MIB, BLOCK);
    vm.reboot();
    let (_, suspect) = vm.track(false);
    vm.write(7 * MIB, BLOCK);
    vm.process.kill();
    vm.process.start();
    assert_eq!(vm.track(false), (false, suspect), "a kill forgets none");
    vm.reboot();
    let (_, again) = vm.track(false);
    assert!(again > suspect, "and what was written since");
    vm.compare();
    assert_eq!(vm.ship(), 2 * BLOCK);
}

#[test]
fn a_disk_that_was_changed_while_it_was_closed_is_compared_as_a_whole() {
    for reboots in [false, true] {
        let mut vm = Vm::new(4);
        vm.close();
        if reboots {
            vm.lose_memory();
        }
        let file = fs::File::options().write(true).open(vm.path("raw"));
        file.unwrap().write_all_at(&[7; BLOCK], 3 << 20).unwrap();
        vm.process.start();
        vm.compares_everything(BLOCK, "changed while it was closed");
    }
}

#[test]
fn a_disk_whose_flush_failed_is_compared_as_a_whole_when_it_is_opened_again() {
    /// Word of the state file that says that a flush failed.
    const FLUSH_FAILED: u64 = 4;
    let mut vm = Vm::new(15);
    vm.write(MIB, BLOCK);
    let state = fs::File::options().write(true).open(vm.path("run/state"));
    let state = state.unwrap();
    state
        .write_all_at(&1_u64.to_le_bytes(), 8 * FLUSH_FAILED)
        .unwrap();
    // A kill ends nothing, and loses no mark.
    vm.process.kill();
    vm.process.start();
    assert_eq!(vm.track(false), (true, Bytes(0)));
    assert!(vm.status().flush_failed);
    let reply = vm.process.ask(&Request::Shutdown);
    assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
    assert!(!vm.process.exit().success());
    vm.process.start();
    vm.compares_everything(BLOCK, "a flush failed before the disk was closed");
    assert!(!vm.status().flush_failed);
}

#[test]
fn a_disk_with_another_file_in_its_place_is_compared_as_a_whole() {
    for reboots in [false, true] {
        let mut vm = Vm::new(5);
        if reboots {
            vm.cut_power();
        } else {
            vm.process.kill();
        }
        let mut content = fs::read(vm.path("raw")).unwrap();
        content[MIB..MIB + BLOCK].fill(9);
        fs::write(vm.path("copy"), content).unwrap();
        fs::rename(vm.path("copy"), vm.path("raw")).unwrap();
        vm.process.start();
        vm.compares_everything(BLOCK, "another one than before");
    }
}

#[test]
fn another_relationship_and_a_replica_that_was_restored_are_compared_as_a_whole() {
    let mut vm = Vm::new(6);
    vm.write(0, BLOCK);
    vm.relationship = RelationshipId::random();
    assert_eq!(vm.track(false), (false, mib(REGIONS)));
    vm.compare();
    assert_eq!(vm.ship(), BLOCK);
    assert_eq!(vm.track(false), (true, Bytes(0)));
    vm.twin[0][2 * MIB..2 * MIB + BLOCK].fill(1);
    vm.done(&Request::Suspect);
    assert_eq!(vm.compare().len() as u64, REGIONS);
    assert_eq!(vm.ship(), BLOCK);
    // In the middle of the initial replication there is nothing to compare with.
    vm.done(&Request::Suspect);
    assert_eq!(vm.track(true), (false, Bytes(0)));
    assert_eq!(vm.status().dirty, Bytes(SIZE as u64));
    vm.done(&Request::Untrack);
    assert_eq!(vm.status().tracking, None);
    assert!(!vm.log_file().exists());
}

#[test]
fn a_log_that_is_lost_costs_nothing_after_a_kill_and_a_whole_comparison_after_a_reboot() {
    let mut vm = Vm::new(7);
    vm.write(0, BLOCK);
    vm.process.kill();
    fs::remove_file(vm.log_file()).unwrap();
    vm.process.start();
    assert_eq!(vm.track(false), (true, Bytes(0)));
    assert_eq!(vm.tracking().armed, mib(REGIONS), "a new one");
    assert_eq!(vm.tracking().log, LogStatus::Kept);
    vm.cut_power();
    fs::remove_file(vm.log_file()).unwrap();
    vm.process.start();
    assert_eq!(vm.track(false), (false, mib(REGIONS)));
    vm.compare();
    assert_eq!(vm.ship(), BLOCK);
}

#[test]
fn a_torn_log_is_what_it_was_before_and_one_without_a_valid_page_arms_what_it_covers() {
    let mut vm = Vm::new(8);
    vm.close();
    vm.process.start();
    vm.write(MIB, BLOCK);
    vm.cut_power();
    // Two copies of the header, then two of the only page of bits.
    let spoil = |vm: &Vm, pages: std::ops::Range<u64>| {
        let log = fs::File::options().write(true).open(vm.log_file()).unwrap();
        for page in pages {
            log.write_all_at(&[0x5a; 512], page * 4096 + 1024).unwrap();
        }
    };
    spoil(&vm, 0..1);
    vm.process.start();
    let (exact, suspect) = vm.track(false);
    assert!(!exact && suspect < mib(REGIONS), "one header is left");
    vm.cut_power();
    spoil(&vm, 2..4);
    vm.process.start();
    assert_eq!(vm.track(false), (false, mib(REGIONS)), "no page of bits");
    vm.cut_power();
    spoil(&vm, 0..2);
    vm.process.start();
    assert_eq!(vm.status().tracking, None, "for whom is unknown");
    assert_eq!(vm.track(false), (false, mib(REGIONS)), "no header");
    vm.compare();
    assert_eq!(vm.ship(), BLOCK);
}

#[test]
fn a_log_that_can_be_read_again_later_is_not_trusted() {
    let mut vm = Vm::new(15);
    vm.close();
    vm.process.start();
    vm.write(MIB, BLOCK);
    vm.cut_power();
    let good = fs::read(vm.log_file()).unwrap();
    // As on a place that cannot be read for a while.
    fs::write(vm.log_file(), vec![0x5a; good.len()]).unwrap();
    vm.process.start();
    // Before anybody tracks, as while a person holds the replication.
    assert_eq!(vm.status().tracking, None);
    vm.write(6 * MIB, BLOCK);
    vm.cut_power();
    if vm.log_file().exists() {
        fs::write(vm.log_file(), good).unwrap();
    }
    vm.process.start();
    vm.track(false);
    vm.compare();
    assert_eq!(vm.ship(), 2 * BLOCK);
}

#[test]
fn nothing_is_cut_while_a_segment_waits_that_whoever_asks_does_not_know_of() {
    let mut vm = Vm::new(16);
    vm.write(MIB, BLOCK);
    // Asked for by a polluxd that was killed; the next one looked into the outbox before it was there.
    let file = vm.stage();
    vm.write(2 * MIB, BLOCK);
    let (reply, next) = vm.cut();
    match reply {
        Reply::Refused { problem } => assert_eq!(problem.code, Code::Conflict, "{problem}"),
        other => panic!("it lacks what the other holds: {other:?}"),
    }
    assert!(!next.exists());
    vm.done(&Request::FoldBack { file });
    assert_eq!(vm.ship(), 2 * BLOCK);
}

#[test]
fn a_segment_that_is_gone_or_cannot_be_read_makes_suspect_what_it_may_have_held() {
    let mut vm = Vm::new(9);
    for spoils in [false, true] {
        vm.write(2 * MIB, BLOCK);
        vm.write(5 * MIB, BLOCK);
        let file = vm.stage();
        if spoils {
            fs::write(&file, b"torn").unwrap();
        } else {
            fs::remove_file(&file).unwrap();
        }
        vm.done(&Request::FoldBack { file: file.clone() });
        assert!(!file.exists());
        assert_eq!(vm.tracking().suspect, mib(2));
        assert_eq!(vm.track(false), (false, mib(2)));
        assert_eq!(vm.compare(), [2, 5]);
        assert_eq!(vm.ship(), 2 * BLOCK);
    }
}

#[test]
fn a_disk_that_grew_has_its_new_part_compared_after_a_reboot() {
    for reloads in [true, false] {
        let mut vm = Vm::new(10);
        vm.close();
        vm.process.start();
        if !reloads {
            vm.close();
        }
        let size = SIZE + 2 * MIB;
        let file = fs::File::options().write(true).open(vm.path("raw"));
        file.unwrap().set_len(size as u64).unwrap();
        vm.config.disks[0].size = Bytes(size as u64);
        vm.config.generation += 1;
        vm.process.configure(&vm.config);
        vm.twin[0].resize(size, 0xee);
        if reloads {
            vm.done(&Request::Reload);
            assert_eq!(vm.track(false), (true, Bytes(0)));
            vm.cut_power();
            vm.process.start();
            let (_, suspect) = vm.track(false);
            assert_eq!(suspect, mib(3), "and the region in which it ended");
            assert_eq!(vm.compare(), [7, 8, 9]);
            assert_eq!(vm.ship(), 2 * MIB);
        } else {
            // Closed meanwhile: the file does not look as it did.
            vm.process.start();
            assert_eq!(vm.track(false), (false, mib(10)));
            vm.compare();
            assert_eq!(vm.ship(), 2 * MIB);
        }
    }
}

/// What a person asks of a VM's primary: is the twin what the disks are?
#[test]
fn blocks_that_did_not_change_are_told_apart_from_those_that_did_and_what_is_marked_is_sent() {
    let mut vm = Vm::new(31);
    let disk = vm.config.disks[0].id;
    let regions = |vm: &Vm, from, limit| {
        let reply = vm.process.ask(&Request::Regions { disk, from, limit });
        match reply {
            Reply::Regions { regions, next } => (regions, next),
            other => panic!("{other:?}"),
        }
    };
    // All of them, the short one at the end too, are what the twin has.
    let (all, next) = regions(&vm, 0, 64);
    let numbers: Vec<u64> = all.iter().map(|region| region.region).collect();
    assert_eq!((numbers, next), ((0..REGIONS).collect(), None));
    for found in &all {
        let at = usize::try_from(found.region).unwrap() * MIB;
        let theirs = &vm.twin[0][at..vm.twin[0].len().min(at + MIB)];
        assert_eq!(found.hashes, BlockHashes::of(theirs));
        assert_eq!(found.changed, []);
    }
    assert_eq!(regions(&vm, 2, 3).1, Some(5));
    assert_eq!(regions(&vm, REGIONS, 1), (Vec::new(), None));
    assert_eq!(regions(&vm, u64::MAX, 1), (Vec::new(), None));

    // The twin rots in two blocks; the guest writes one of them, and another one.
    for block in [300, 513] {
        vm.twin[0][block * BLOCK] ^= 1;
    }
    vm.write(301 * BLOCK, BLOCK);
    vm.write(513 * BLOCK, BLOCK);
    let (found, next) = regions(&vm, 1, 2);
    assert_eq!(next, Some(3));
    let changed: Vec<_> = found.iter().map(|region| region.changed.clone()).collect();
    assert_eq!(changed, [vec![(45, 1).into()], vec![(1, 1).into()]]);
    let theirs = BlockHashes::of(&vm.twin[0][MIB..2 * MIB]);
    let differ = found[0].hashes.differ(&theirs);
    let damaged = journal::compare::without(&differ, &found[0].changed);
    assert_eq!(damaged, [(44, 1).into()]);

    // What is marked outlives a kill and is in the next segment.
    let regions = vec![Compared {
        region: 1,
        differ: damaged,
    }];
    vm.done(&Request::Mark { disk, regions });
    assert_eq!(vm.status().dirty, Bytes(3 * BLOCK as u64));
    vm.process.kill();
    vm.process.start();
    assert_eq!(vm.track(false), (true, Bytes(0)));
    assert_eq!(vm.ship(), 3 * BLOCK);
    assert_eq!(vm.ship(), 0);
}

#[test]
fn what_can_neither_be_compared_nor_known_is_refused() {
    let vm = Vm::new(14);
    let disk = vm.config.disks[0].id;
    for request in [
        Request::Hashes {
            disk: DiskId::random(),
            from: 0,
            limit: 1,
        },
        Request::Compared {
            disk,
            regions: vec![Compared {
                region: 1,
                differ: vec![(255, 2).into()],
            }],
        },
        Request::Regions {
            disk: DiskId::random(),
            from: 0,
            limit: 1,
        },
        Request::Mark {
            disk,
            regions: vec![Compared {
                region: 1,
                differ: vec![(255, 2).into()],
            }],
        },
        Request::Compared {
            disk,
            regions: vec![Compared {
                region: u64::MAX,
                differ: vec![(0, 1).into()],
            }],
        },
    ] {
        match vm.process.ask(&request) {
            Reply::Refused { problem } => assert_eq!(problem.code, Code::Invalid, "{problem}"),
            other => panic!("{other:?}"),
        }
    }
    // What the disk does not have is nothing.
    let regions = vec![Compared {
        region: REGIONS,
        differ: vec![(0, 256).into()],
    }];
    vm.done(&Request::Compared { disk, regions });
    assert_eq!(vm.status().dirty, Bytes(0));
    let hashes = |from| Request::Hashes {
        disk,
        from,
        limit: 0,
    };
    for from in [0, REGIONS, u64::MAX] {
        let (regions, next) = (Vec::new(), None);
        assert_eq!(
            vm.process.ask(&hashes(from)),
            Reply::Hashes { regions, next }
        );
    }
}
