//! Parts of an initial replication: what they hold, and the one that is made while another is sent.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use journal::{Content, SegmentReader};
use model::{Bytes, RelationshipId};
use pollux_diskd::control::{Reply, Request, Staged};
use testkit::Rng;

use super::process::answer;
use super::{BLOCK, SIZE, Vm, WRITE};

/// Content of a part.
const LIMIT: Bytes = Bytes(3 << 20);

impl Vm {
    /// Leaves no hole in disk `disk`, of which no changes are tracked yet.
    pub(super) fn fill(&self, disk: usize) {
        let file = self.path(&format!("{disk}.raw"));
        let file = fs::File::options().write(true).open(file).unwrap();
        let noise = Rng::new(9).bytes(usize::try_from(SIZE).unwrap());
        file.write_all_at(&noise, 0).unwrap();
    }

    fn part_file(&self, part: u64) -> PathBuf {
        self.path(&format!("outbox/{part}.seed"))
    }

    /// The request for part `part` of the first disk.
    fn seed_request(&self, part: u64, from: u64) -> Request {
        Request::Seed {
            header: self.header(Content::Seed {
                seed: self.seed,
                part,
            }),
            disk: self.config.disks[0].id,
            from,
            limit: LIMIT,
            file: self.part_file(part),
        }
    }

    fn prepare_request(&self, part: u64, from: u64) -> Request {
        match self.seed_request(part, from) {
            Request::Seed {
                header,
                disk,
                from,
                limit,
                file,
            } => Request::Prepare {
                header,
                disk,
                from,
                limit,
                file,
            },
            other => other,
        }
    }

    fn staged(&self, request: &Request) -> Staged {
        match self.process.ask(request) {
            Reply::Staged(staged) => staged,
            other => panic!("{other:?}"),
        }
    }

    fn confirm(&self, part: u64) {
        let file = self.part_file(part);
        assert_eq!(self.process.ask(&Request::Confirm { file }), Reply::Done);
    }

    /// Marked, sealed and unconfirmed of the first disk.
    fn marks(&self) -> [Bytes; 3] {
        match self.process.ask(&Request::Status) {
            Reply::Status { mut disks, .. } => {
                let tracking = disks.remove(0).tracking.unwrap();
                [tracking.marked, tracking.sealed, tracking.unconfirmed]
            }
            other => panic!("{other:?}"),
        }
    }

    /// Names in the outbox.
    fn outbox(&self) -> Vec<String> {
        let files = fs::read_dir(self.path("outbox")).unwrap();
        let mut names: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_part_reaches_as_far_as_its_content_and_holes_are_neither_read_nor_counted() {
    // 8 GiB, of which 4 MiB in two places take space.
    let size = 8 << 30;
    let mut vm = Vm::new(64 << 20);
    let (file, mut rng) = (vm.path("0.raw"), Rng::new(3));
    let disk = fs::File::options().write(true).open(&file).unwrap();
    disk.set_len(0).unwrap();
    disk.set_len(size).unwrap();
    for at in [1 << 30, (7 << 30) + (5 << 20)] {
        disk.write_all_at(&rng.bytes(2 << 20), at).unwrap();
    }
    vm.config.disks[0].size = Bytes(size);
    vm.process.kill();
    vm.process.configure(&vm.config);
    vm.process.launch();
    vm.track(RelationshipId::random());
    let (mut from, mut part, mut covered) = (Some(0), 0, 0);
    while let Some(at) = from {
        let staged = vm.staged(&vm.seed_request(part, at));
        let content = staged.content.0 - staged.zeroes.0;
        assert!(content <= LIMIT.0, "{staged:?}");
        assert!(staged.file_len.0 < content + (1 << 20), "{staged:?}");
        covered += staged.content.0;
        let segment = SegmentReader::open(&vm.part_file(part)).unwrap();
        assert!(segment.summary().runs < 200, "{:?}", segment.summary());
        vm.confirm(part);
        (from, part) = (staged.next, part + 1);
    }
    assert_eq!((covered, part), (size, 2), "all of it, in two parts");
}

#[test]
fn the_next_part_is_made_while_one_is_sent_and_a_write_meanwhile_is_marked_again() {
    let vm = Vm::new(64 << 20);
    vm.fill(0);
    let mut guest = vm.guest(0);
    vm.track(RelationshipId::random());
    let all = Bytes(SIZE);
    let first = vm.staged(&vm.seed_request(0, 0));
    let next = first.next.expect("more than one part");
    let unconfirmed = vm.marks()[2];
    assert!(unconfirmed > Bytes(0));
    assert_eq!(vm.process.ask(&vm.prepare_request(1, next)), Reply::Done);
    assert_eq!(vm.outbox(), ["0.seed", "1.seed.part"]);
    let [marked, sealed, _] = vm.marks();
    assert!(sealed > Bytes(0), "its marks have moved");
    assert_eq!(marked.0 + sealed.0 + first.content.0, all.0);
    assert_eq!(guest.run(WRITE, next / 512, BLOCK), 0);
    vm.confirm(0);
    let [again, still, unconfirmed] = vm.marks();
    assert_eq!((again.0, still), (marked.0 + BLOCK as u64, sealed));
    assert_eq!(unconfirmed, Bytes(0), "a confirmation is of the one before");
    let second = vm.staged(&vm.seed_request(1, next));
    assert_eq!(second.content, sealed);
    assert_eq!(vm.outbox(), ["1.seed", "spent"]);
    let [marked, sealed, unconfirmed] = vm.marks();
    assert_eq!((marked, sealed), (again, Bytes(0)));
    assert!(unconfirmed > Bytes(0), "its marks are in the segment now");
    let segment = SegmentReader::open(&vm.part_file(1)).unwrap();
    let content = Content::Seed {
        seed: vm.seed,
        part: 1,
    };
    assert_eq!(segment.header().content, content);
}

#[test]
fn a_part_that_was_made_ahead_is_given_up_for_any_other_request_about_marks_and_by_a_kill() {
    let mut vm = Vm::new(64 << 20);
    vm.fill(0);
    let relationship = RelationshipId::random();
    vm.track(relationship);
    let first = vm.staged(&vm.seed_request(0, 0));
    let next = first.next.expect("more than one part");
    let left = Bytes(SIZE - first.content.0);
    let fold_back = Request::FoldBack {
        file: vm.part_file(0),
    };
    for (what, marked) in [("track", left), ("kill", left), ("fold back", Bytes(SIZE))] {
        assert_eq!(vm.process.ask(&vm.prepare_request(1, next)), Reply::Done);
        assert!(vm.marks()[1] > Bytes(0));
        match what {
            "track" => assert!(vm.track(relationship)),
            "kill" => {
                vm.process.kill();
                vm.process.launch();
            }
            _ => assert_eq!(vm.process.ask(&fold_back), Reply::Done),
        }
        let [now, sealed, _] = vm.marks();
        assert_eq!((now, sealed), (marked, Bytes(0)), "{what}");
    }
    // What a kill left is removed by the next that is begun.
    let again = vm.staged(&vm.seed_request(0, 0));
    assert_eq!(
        (again.content, vm.outbox()),
        (first.content, vec!["0.seed".to_owned()])
    );
    // Given up in the middle, whenever that is.
    for _ in 0..100 {
        let made = vm.process.send(&vm.prepare_request(1, next));
        assert!(vm.track(relationship));
        let _ = answer(&made);
        assert!(vm.track(relationship));
        assert_eq!(vm.marks()[..2], [left, Bytes(0)]);
    }
    vm.confirm(0);
    // Another part is asked for than was made.
    let mut third = vm.seed_request(1, next + (4 << 20));
    if let Request::Seed { limit, .. } = &mut third {
        *limit = Bytes(1 << 20);
    }
    assert_eq!(vm.process.ask(&vm.prepare_request(1, next)), Reply::Done);
    assert_eq!(vm.staged(&third).content, Bytes(1 << 20));
    assert_eq!(vm.marks()[..2], [Bytes(left.0 - (1 << 20)), Bytes(0)]);
}

#[test]
fn a_part_is_staged_whenever_making_it_ahead_begins() {
    let vm = Vm::new(64 << 20);
    vm.fill(0);
    vm.track(RelationshipId::random());
    let fold_back = Request::FoldBack {
        file: vm.part_file(1),
    };
    let request = vm.seed_request(1, 0);
    let content = vm.staged(&request).content;
    assert_eq!(vm.process.ask(&fold_back), Reply::Done);
    for _ in 0..100 {
        let made = vm.process.send(&vm.prepare_request(1, 0));
        assert_eq!(vm.staged(&request).content, content);
        let _ = answer(&made);
        assert_eq!(vm.process.ask(&fold_back), Reply::Done);
        assert_eq!(vm.marks(), [Bytes(SIZE), Bytes(0), Bytes(0)]);
    }
}
