//! A twin that runs above a point of a journal.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use jiff::Timestamp;
use journal::{Content, Journal};
use model::{Bytes, CheckpointId, PointId, RelationshipId};
use pollux_diskd::config::{CONTROL_SOCKET, Front, StackSpec, disk_socket, nbd_socket};
use pollux_diskd::control::{Compared, Reply, Request};
use pollux_diskd::fronts::GUEST;
use testkit::Rng;

use super::nbd_support::{self, Client};
use super::process::Process;
use super::support::Guest;
use super::support::SLOTS;
use super::{BLOCK, BLOCKS, FLUSH, READ, SIZE, Vm, WRITE, churn};

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
        Self::above(seed, None)
    }

    /// The twin's overlays are those of `checkpoint`.
    fn above(seed: u64, checkpoint: Option<CheckpointId>) -> Self {
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
            checkpoint,
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
    twin.process.kill();
    guest.disconnect();
    twin.process.launch();
    guest.connect(&socket);
    assert!(read_all(&mut guest) == model, "after kill -9");
    assert_eq!(twin.process.ask(&Request::Shutdown), Reply::Done);
    assert!(twin.process.exit().success());
}

impl Vm {
    /// Where disk `disk` may differ from what was confirmed.
    fn differing(&self, disk: usize) -> Vec<Range<u64>> {
        let (disk, from) = (self.config.disks[disk].id, 0);
        match self.process.ask(&Request::Differing { disk, from }) {
            Reply::Differing { runs, next: None } => runs,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_was_written_above_a_point_is_all_that_its_twin_lacks() {
    let Pair {
        primary, mut twin, ..
    } = Pair::new(13);
    let socket = twin.path(&disk_socket(0));
    let (mut guest, mut rng) = (twin.guest(0), Rng::new(14));
    let relationship = RelationshipId::random();
    let track = Request::TrackAbove { relationship };
    churn(&mut guest, &mut rng, BLOCKS, 40);
    twin.process.kill();
    guest.disconnect();
    twin.process.launch();
    guest.connect(&socket);
    assert_eq!(twin.process.ask(&track), Reply::Done);
    churn(&mut guest, &mut rng, BLOCKS, 40);
    // Again it changes nothing.
    assert_eq!(twin.process.ask(&track), Reply::Done);

    let (now, point) = (read_all(&mut guest), &primary.replicas[0]);
    let marked = twin.differing(0);
    let sum: u64 = marked.iter().map(|run| run.end - run.start).sum();
    assert!(sum <= 80 * BLOCK as u64, "{sum}");
    for (block, (ours, theirs)) in now.chunks(BLOCK).zip(point.chunks(BLOCK)).enumerate() {
        let at = (block * BLOCK) as u64;
        let known = marked.iter().any(|run| run.contains(&at));
        assert!(known || ours == theirs, "block {block}");
    }
    assert_eq!(twin.differing(1), []);

    // What another host says of itself.
    let disk = twin.config.disks[1].id;
    let regions = vec![1..2, 7..1000];
    let suspect = Request::SuspectRegions { disk, regions };
    assert_eq!(twin.process.ask(&suspect), Reply::Done);
    assert_eq!(twin.differing(1), [1 << 20..2 << 20, 7 << 20..8 << 20]);
    let compared = |region| Compared {
        region,
        differ: Vec::new(),
    };
    let regions = vec![compared(1), compared(7)];
    let compared = Request::Compared { disk, regions };
    assert_eq!(twin.process.ask(&compared), Reply::Done);

    twin.replicas.clone_from(&primary.replicas);
    let (staged, file) = twin.cut();
    assert!(staged.content.0 <= sum, "{staged:?}");
    twin.ship(&file);
    assert!(twin.replicas[0] == now && twin.replicas[1] == primary.replicas[1]);

    // One that lies above no point has nothing to begin with.
    let refused = primary.process.ask(&track);
    assert!(matches!(refused, Reply::Refused { .. }), "{refused:?}");
}

/// `NBD_REP_ERR_UNKNOWN`: there is no such export.
const UNKNOWN: u32 = (1 << 31) + 6;

#[test]
fn a_point_alone_is_read_over_nbd_and_written_by_nobody() {
    let Pair {
        primary, mut twin, ..
    } = Pair::new(12);
    twin.process.kill();
    for name in [CONTROL_SOCKET.to_owned(), disk_socket(0), disk_socket(1)] {
        fs::remove_file(twin.path(&name)).unwrap();
    }
    for disk in &mut twin.config.disks {
        let StackSpec::Overlay { below, .. } = disk.stack.clone() else {
            panic!("an overlay above a point");
        };
        disk.stack = *below;
    }
    // A guest could not write: it is not let near.
    twin.process = Process::new(twin.folder.path(), [disk_socket(0), disk_socket(1)]);
    twin.process.configure(&twin.config);
    twin.process.launch();
    assert!(!twin.process.exit().success());
    let said = twin.process.log();
    assert!(said.contains("needs an overlay"), "{said}");

    for name in [CONTROL_SOCKET.to_owned(), disk_socket(0), disk_socket(1)] {
        fs::remove_file(twin.path(&name)).unwrap();
    }
    for disk in &mut twin.config.disks {
        disk.front = Front::Nbd;
    }
    twin.process = Process::new(twin.folder.path(), [nbd_socket(0), nbd_socket(1)]);
    twin.process.configure(&twin.config);
    twin.process.launch();
    for (number, point) in (0..).zip(&primary.replicas) {
        let socket = twin.path(&nbd_socket(number));
        let read = |what: &str| {
            let mut client = Client::open(&socket, "", true);
            for (at, expected) in (0..SIZE).step_by(1 << 20).zip(point.chunks(1 << 20)) {
                assert!(client.read(at, 1 << 20) == expected, "{what}, byte {at}");
            }
            client
        };
        let refused = read("opened").call(0, nbd_support::WRITE, 0, 512, &[1; 512]);
        assert_ne!(refused.error, 0, "read-only");
        let replies = Client::haggle(&socket).option(7, &nbd_support::go(GUEST));
        assert_eq!(replies.unwrap().last().unwrap().0, UNKNOWN);
        twin.process.kill();
        twin.process.launch();
        read("after kill -9");
    }
    assert_eq!(twin.process.ask(&Request::Shutdown), Reply::Done);
    assert!(twin.process.exit().success());
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
    // In a file of its own, or in a pack.
    let segments: Vec<PathBuf> = ["segments", "packs"]
        .into_iter()
        .flat_map(|kind| fs::read_dir(folder.join(kind)).unwrap())
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
    let log = twin.process.log();
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
    assert!(twin.process.log().lines().count() < 60, "sparingly");
}

#[test]
fn an_overlay_whose_content_is_gone_is_not_served_as_zeroes() {
    let mut pair = Pair::new(11);
    let twin = &mut pair.twin;
    let mut guest = twin.guest(0);
    guest.poke(Guest::data(0), &[7; BLOCK]);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    twin.process.kill();
    fs::remove_file(twin.path("0.raw")).unwrap();
    twin.process.launch();
    assert!(!twin.process.exit().success());
    assert!(
        twin.process.log().contains("put the file back"),
        "{}",
        twin.process.log()
    );
}

/// Puts the overlays of the twin above the files `below`, or nothing above those.
fn restack(twin: &mut Vm, below: [PathBuf; 2], overlays: bool) {
    twin.config.generation += 1;
    for (disk, file) in twin.config.disks.iter_mut().zip(below) {
        let raw = StackSpec::Raw { file };
        disk.stack = match disk.stack.clone() {
            StackSpec::Overlay {
                file,
                map,
                checkpoint,
                ..
            } if overlays => StackSpec::Overlay {
                file,
                map,
                checkpoint,
                below: Box::new(raw),
            },
            _ => raw,
        };
    }
    twin.process.configure(&twin.config);
}

/// Whether what is tracked is known exactly, and how much is suspect.
fn tracked(twin: &Vm, relationship: RelationshipId) -> (bool, Bytes) {
    match twin.process.ask(&Request::Track {
        relationship,
        begin: false,
        sent: Vec::new(),
        but: Vec::new(),
    }) {
        Reply::Tracking { exact, suspect, .. } => (exact, suspect),
        other => panic!("{other:?}"),
    }
}

/// A batch of random writes, answered or not yet, into blocks of its own and into `model`.
fn offer(guest: &mut Guest, rng: &mut Rng, model: &mut [u8]) {
    for slot in 0..SLOTS {
        let bytes = rng.bytes(BLOCK);
        guest.poke(Guest::data(slot), &bytes);
        let block = rng.below(BLOCKS / SLOTS as u64) * SLOTS as u64 + slot as u64;
        guest.request(slot, WRITE, block * 8, BLOCK);
        let at = usize::try_from(block).unwrap() * BLOCK;
        model[at..at + BLOCK].copy_from_slice(&bytes);
    }
}

fn settled(guest: &mut Guest) {
    guest.wait_for(SLOTS);
    assert!((0..SLOTS).all(|slot| guest.status(slot) == 0));
}

/// A point becomes the file that holds it under a guest that writes, and what was written above goes
/// into that; `killed` when the file was wanted, and not gone to.
fn flattened(killed: bool) {
    let checkpoint = CheckpointId::random();
    let Pair {
        mut primary,
        mut twin,
        folder,
    } = Pair::above(13, Some(checkpoint));
    let relationship = RelationshipId::random();
    twin.track(relationship);
    let mut rng = Rng::new(14);
    let socket = twin.path(&disk_socket(0));
    let mut guest = twin.guest(0);
    let mut model = primary.replicas[0].clone();
    for _ in 0..20 {
        offer(&mut guest, &mut rng, &mut model);
        settled(&mut guest);
    }
    let drain = |twin: &Vm| {
        twin.process.ask(&Request::Drain {
            disk: twin.config.disks[0].id,
            checkpoint,
            limit: Bytes(1 << 20),
        })
    };
    let Reply::Refused { problem } = drain(&twin) else {
        panic!("nothing is written to a point");
    };
    assert!(problem.reason.contains("never written"), "{problem}");

    let ids = [twin.config.disks[0].id, twin.config.disks[1].id];
    let above = twin.config.clone();
    let flat = [0, 1].map(|number| twin.path(&format!("{number}.flat")));
    let base = ids.map(|id| folder.join(Journal::base_file(id)));
    let refused = |twin: &mut Vm, says: &str| {
        restack(twin, flat.clone(), true);
        let Reply::Refused { problem } = twin.process.ask(&Request::Reload) else {
            panic!("{says}: it is another content");
        };
        assert!(problem.reason.contains(says), "{problem}");
        twin.config = above.clone();
        twin.process.configure(&twin.config);
    };
    for (base, flat) in base.iter().zip(&flat) {
        fs::hard_link(base, flat).unwrap();
    }
    refused(&mut twin, "not all that the journal holds");
    let journal = primary.journal.as_mut().unwrap();
    let now = Timestamp::now();
    assert_eq!(journal.merge_oldest(now).unwrap(), None);
    fs::remove_file(&flat[0]).unwrap();
    fs::copy(&base[0], &flat[0]).unwrap();
    refused(&mut twin, "another file");
    fs::remove_file(&flat[0]).unwrap();
    fs::hard_link(&base[0], &flat[0]).unwrap();

    restack(&mut twin, flat.clone(), true);
    offer(&mut guest, &mut rng, &mut model);
    if killed {
        twin.process.kill();
        guest.disconnect();
        let answered = guest.answered().len();
        twin.process.launch();
        guest.connect(&socket);
        guest.wait_for(SLOTS - answered);
    } else {
        assert_eq!(twin.process.ask(&Request::Reload), Reply::Done);
        settled(&mut guest);
    }
    assert_eq!(tracked(&twin, relationship), (true, Bytes(0)));
    assert!(read_all(&mut guest) == model, "above the file");
    twin.process.kill();
    guest.disconnect();
    twin.process.launch();
    guest.connect(&socket);
    assert_eq!(tracked(&twin, relationship), (true, Bytes(0)));

    for id in ids {
        loop {
            let left = twin.process.ask(&Request::Drain {
                disk: id,
                checkpoint,
                limit: Bytes(1 << 20),
            });
            match left {
                Reply::Drained { left: Bytes(0) } => break,
                Reply::Drained { .. } => {}
                other => panic!("{other:?}"),
            }
            offer(&mut guest, &mut rng, &mut model);
            settled(&mut guest);
        }
    }
    restack(&mut twin, flat.clone(), false);
    assert_eq!(twin.process.ask(&Request::Reload), Reply::Done);
    drop(primary.journal.take());
    fs::remove_dir_all(&folder).unwrap();
    assert!(read_all(&mut guest) == model, "in the file");
    twin.process.kill();
    guest.disconnect();
    twin.process.launch();
    guest.connect(&socket);
    assert_eq!(tracked(&twin, relationship), (true, Bytes(0)));
    assert!(read_all(&mut guest) == model, "without the journal");
    assert!(fs::read(&flat[1]).unwrap() == primary.replicas[1]);
}

#[test]
fn a_point_becomes_the_file_that_holds_it_while_the_guest_writes() {
    flattened(false);
}

#[test]
fn a_process_that_finds_the_file_in_place_of_the_point_knows_what_it_is() {
    flattened(true);
}
