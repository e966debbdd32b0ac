//! Many journals that commit at the same time.

use std::io;
use std::sync::Barrier;

use durable::{File, FileSystem, Flushed, Group, Need};

use super::*;

const JOURNALS: usize = 1000;
const ROUNDS: u64 = 3;

/// The file system of all journals.
#[derive(Debug)]
struct All(Vec<CutFolder>);

impl FileSystem for All {
    fn sync_all(&self) -> io::Result<()> {
        self.0.iter().try_for_each(FileSystem::sync_all)
    }
}

/// A file whose flush takes until so many wait for the next one.
#[derive(Debug)]
struct Slow {
    group: Arc<Group>,
    callers: usize,
    begun: Barrier,
}

impl File for Slow {
    fn read_at(&self, _at: u64, _into: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn write_at(&self, _at: u64, _from: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn size(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn allocated(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync(&self) -> io::Result<()> {
        self.begun.wait();
        self.group.gathered(self.callers);
        Ok(())
    }
}

struct Twin {
    folder: CutFolder,
    primary: Primary,
    journal: Journal,
    points: Vec<Known>,
}

impl Twin {
    fn new() -> Self {
        let (folder, mut primary) = (CutFolder::new(), Primary::new());
        primary.ids.truncate(1);
        primary.disks = vec![vec![0; 2 * BLOCK]];
        let (mut journal, mut points) = seeded(&folder, &mut primary);
        packed(&mut journal);
        more(&mut journal, &folder, &mut primary, &mut points, 1);
        Self {
            folder,
            primary,
            journal,
            points,
        }
    }
}

#[test]
fn a_thousand_journals_that_commit_at_once_take_one_flush() {
    let mut twins: Vec<_> = (0..JOURNALS).map(|_| Twin::new()).collect();
    let folders = twins.iter().map(|twin| twin.folder.clone()).collect();
    let group = Arc::new(Group::new(Arc::new(All(folders))));
    for twin in &mut twins {
        twin.journal.group = group.clone();
    }
    for _ in 0..ROUNDS {
        let slow = Arc::new(Slow {
            group: group.clone(),
            callers: JOURNALS,
            begun: Barrier::new(2),
        });
        std::thread::scope(|scope| {
            let first = scope.spawn(|| group.flush(vec![Need::Content(slow.clone())]));
            slow.begun.wait();
            for twin in &mut twins {
                let commit = || {
                    let Twin {
                        folder,
                        primary,
                        journal,
                        points,
                    } = twin;
                    more(journal, folder, primary, points, 1);
                };
                let builder = std::thread::Builder::new().stack_size(512 << 10);
                builder.spawn_scoped(scope, commit).expect("started");
            }
            first.join().expect("no panic").expect("flushed");
        });
    }
    let expected = Flushed {
        asked: ROUNDS * (JOURNALS as u64 + 1),
        single: ROUNDS,
        whole: ROUNDS,
    };
    assert_eq!(group.flushed(), expected);
    // And all of them are there whatever is lost.
    for (seed, twin) in (0..).zip(twins.iter().step_by(20)) {
        let folder = twin.folder.cut(seed);
        let journal = reopen(&folder).expect("opened");
        assert_eq!(journal.count(), twin.points.len());
        assert_points(&journal, &twin.points, "after the cut");
    }
}

#[test]
fn the_name_of_a_pack_counts_from_its_own_flush_on() {
    let mut twin = Twin::new();
    twin.journal.packs.close();
    twin.primary.write(&mut Chance::new(3));
    let before = twin.points[1].clone();
    let (known, bytes) = twin.primary.cut(Since::Point(before.id), &before.disks);
    let name = receive(&twin.folder, &bytes).expect("received");
    // The new pack is made and written; its record fails, and writing the index anew for it as well.
    twin.folder.fail_in_a_row(2, 4);
    twin.journal
        .commit(name, known.root)
        .expect_err("no record");
    assert!(!twin.journal.is_stale());
    // Another flush says nothing of the pack.
    twin.journal.pin(before.id, "export").expect("pinned");
    take(&mut twin.journal, &twin.folder, &bytes, known.root).expect("again");
    let newest = twin.journal.index.newest().expect("there").file();
    assert_eq!(newest, "packs/2.pack");
    twin.points.push(known);
    for seed in 0..20 {
        let folder = twin.folder.cut(seed);
        let journal = reopen(&folder).expect("opened");
        assert_eq!(journal.count(), 3, "seed {seed}");
        assert_points(&journal, &twin.points, "cut");
    }
}

#[test]
fn after_a_flush_that_failed_a_journal_says_what_was_durable_and_takes_the_point_again() {
    let mut twin = Twin::new();
    twin.primary.write(&mut Chance::new(3));
    let before = twin.points[1].clone();
    let (known, bytes) = twin.primary.cut(Since::Point(before.id), &before.disks);
    let name = receive(&twin.folder, &bytes).expect("received");
    // The segment and the record are written; their flush fails.
    twin.folder.fail_after(2);
    let failed = twin
        .journal
        .commit(name, known.root)
        .expect_err("not durable");
    assert!(failed.is_full(), "{failed:?}");
    assert_eq!(ids(&twin.journal), [twin.points[0].id, before.id]);
    take(&mut twin.journal, &twin.folder, &bytes, known.root).expect("again");
    // Not in the pack whose flush failed.
    let files: Vec<_> = twin
        .journal
        .index
        .segments
        .iter()
        .map(crate::index::Entry::file)
        .collect();
    assert_eq!(files[1..], ["packs/1.pack", "packs/2.pack"]);
    twin.points.push(known);
    let folder = twin.folder.cut(1);
    let journal = reopen(&folder).expect("opened");
    assert_eq!(journal.count(), 3);
    assert_points(&journal, &twin.points, "cut");
}
