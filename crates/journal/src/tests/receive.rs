use super::*;
use crate::{NoRoom, Refusal, Room, Verdict};

#[test]
fn parts_of_a_seed_come_in_order_and_a_repeated_one_is_success() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let mut journal = primary.create(&folder).expect("made");
    primary.write(&mut Chance::new(1));
    let empty: Disks = primary
        .disks
        .iter()
        .map(|disk| vec![0; disk.len()])
        .collect();
    let seed = primary.seed;
    let part = |primary: &Primary, part| {
        let header = primary.header(Content::Seed { seed, part });
        let (bytes, root) = primary.segment(&header, &empty);
        (header, bytes, root)
    };
    let (_, later, later_root) = part(&primary, 1);
    let refused = take(&mut journal, &folder, &later, later_root).expect_err("out of order");
    assert!(matches!(
        refused,
        JournalError::Refused(Refusal::Part { got: 1, next: 0 })
    ));
    let (header, bytes, root) = part(&primary, 0);
    let next = |next_part, last| Tip::Seeding {
        seed,
        next_part,
        last: Some(last),
    };
    let first = root;
    assert_eq!(
        take(&mut journal, &folder, &bytes, root).expect("fits"),
        next(1, first)
    );
    assert_eq!(journal.check(&header, root), Verdict::Have);
    assert_eq!(
        take(&mut journal, &folder, &bytes, root).expect("again"),
        next(1, first)
    );
    // The same number, cut again with newer content.
    primary.write(&mut Chance::new(2));
    let (header, _, root) = part(&primary, 0);
    assert_eq!(
        journal.check(&header, root),
        Verdict::Unfit(Refusal::OtherPart(0))
    );
    assert_eq!(
        take(&mut journal, &folder, &later, later_root).expect("next"),
        next(2, later_root)
    );
    assert!(folder.content("incoming/offered").is_none());

    let other = Content::Seed {
        seed: SeedId::random(),
        part: 2,
    };
    let verdict = journal.check(&primary.header(other), root);
    assert!(matches!(verdict, Verdict::Unfit(Refusal::OtherSeed(_))));
}

#[test]
fn what_is_read_of_an_initial_replication_is_found_after_a_power_cut() {
    for seed in 0..40 {
        for calls in [0, 1, 3, 6, 9, 12, 100] {
            let (folder, mut primary) = (CutFolder::new(), Primary::new());
            let mut journal = primary.create(&folder).expect("made");
            primary.write(&mut Chance::new(seed));
            let empty: Disks = primary
                .disks
                .iter()
                .map(|disk| vec![0; disk.len()])
                .collect();
            let part = Content::Seed {
                seed: primary.seed,
                part: 0,
            };
            let (bytes, root) = primary.segment(&primary.header(part), &empty);
            let name = receive(&folder, &bytes).expect("received");
            // It may end anywhere, and the process with it: what was written may be in no part.
            folder.fail_after(calls);
            let _ = journal.commit(name, root);
            drop(journal);
            folder.fail_after(u64::MAX);
            let read = |folder: &CutFolder| {
                let journal = reopen(folder).expect("whole");
                let reader = journal.open_seed().expect("it goes on");
                let disks = reader.disks().collect::<Vec<_>>();
                assert_eq!(disks.len(), primary.ids.len());
                let hashes = |(id, size)| reader.region_hashes(id, 0, size).expect("read");
                disks.into_iter().map(hashes).collect::<Vec<_>>()
            };
            let before = read(&folder);
            assert_eq!(
                read(&folder.cut(seed)),
                before,
                "seed {seed}, {calls} calls"
            );
        }
    }
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (journal, points) = seeded(&folder, &mut primary);
    let error = journal.open_seed().expect_err("it is complete");
    let complete =
        |error| matches!(error, JournalError::Refused(Refusal::Complete(at)) if at == points[0].id);
    assert!(complete(error));
}

#[test]
fn a_point_is_accepted_only_above_what_it_builds_on() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 2);
    let at = |sequence| PointId {
        term: primary.lineage.current().id,
        sequence,
    };
    let check = |header: &Header| journal.check(header, Root([7; 32]));
    let delta = |sequence, since| primary.header(Content::Delta { sequence, since });
    let since = |sequence| Since::Point(at(sequence));
    // The tip is 3.
    assert_eq!(check(&delta(4, since(3))), Verdict::Fits);
    assert_eq!(check(&delta(9, since(2))), Verdict::Fits);
    assert_eq!(check(&delta(9, primary.seeded(1))), Verdict::Fits);
    let unfit = Verdict::Unfit;
    assert_eq!(check(&delta(3, since(2))), unfit(Refusal::OtherRoot(at(3))));
    assert!(Refusal::OtherRoot(at(3)).is_alarm());
    assert_eq!(
        journal.check(&delta(3, since(2)), points[2].root),
        Verdict::Have
    );
    assert_eq!(
        check(&delta(9, since(4))),
        unfit(Refusal::Gap {
            since: at(4),
            tip: at(3)
        })
    );
    let mut other = delta(4, since(3));
    other.vm = VmId::random();
    assert_eq!(check(&other), unfit(Refusal::Vm));
    let mut other = delta(4, since(3));
    other.disks.swap(0, 1);
    other.disks[0].joining = true;
    assert_eq!(check(&other), Verdict::Fits, "disks come and go");
    let one = other.disks[0];
    let new = |_| DiskExtent {
        id: DiskId::random(),
        ..one
    };
    other.disks.extend((2..model::MAX_DISKS).map(new));
    assert_eq!(check(&other), Verdict::Fits);
    let mut other = delta(4, since(3));
    other.disks[0].size.0 -= 4096;
    assert_eq!(check(&other), unfit(Refusal::Shrunk(primary.ids[0])));
    let seed = primary.header(Content::Seed {
        seed: primary.seed,
        part: 1,
    });
    assert_eq!(check(&seed), unfit(Refusal::Complete(at(3))));

    // A term that grew from the tip goes on; one that grew from before it does not.
    let mut later = delta(4, since(3));
    later.lineage = primary.lineage.branch(at(3), "host-b").expect("on it");
    assert_eq!(check(&later), Verdict::Fits);
    later.lineage = primary.lineage.branch(at(2), "host-b").expect("on it");
    later.content = Content::Delta {
        sequence: 4,
        since: since(2),
    };
    assert_eq!(check(&later), unfit(Refusal::Diverged(at(3))));
    later.lineage = Lineage::begin("host-c");
    later.content = Content::Delta {
        sequence: 4,
        since: primary.seeded(1),
    };
    assert_eq!(check(&later), unfit(Refusal::Diverged(at(3))));
}

#[test]
fn the_first_point_needs_exactly_the_parts_that_it_builds_on() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let mut journal = primary.create(&folder).expect("made");
    primary.write(&mut Chance::new(1));
    let sent = primary.disks.clone();
    for part in 0..3 {
        for parts in [0, 1, 2, 3, 4, u64::MAX] {
            let since = primary.seeded(parts);
            let header = primary.header(Content::Delta { sequence: 1, since });
            let expected = if parts == part {
                Verdict::Fits
            } else {
                let (needs, has) = (parts, part);
                Verdict::Unfit(Refusal::Parts { needs, has })
            };
            assert_eq!(journal.check(&header, Root([7; 32])), expected);
        }
        let seed = primary.seed;
        let header = primary.header(Content::Seed { seed, part });
        let (bytes, root) = primary.segment(&header, &sent);
        take(&mut journal, &folder, &bytes, root).expect("the next part");
    }
    // Nor when it was not offered first.
    let since = primary.seeded(2);
    let (known, bytes) = primary.cut(since, &sent);
    let refused = take(&mut journal, &folder, &bytes, known.root).expect_err("a part too many");
    assert!(matches!(
        refused,
        JournalError::Refused(Refusal::Parts { needs: 2, has: 3 })
    ));
}

#[test]
fn a_base_that_must_stay_takes_no_part_and_the_first_point_lies_above_it() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let mut journal = primary.create(&folder).expect("made").keeping_base();
    let ids = primary.ids.clone();
    let bases = || {
        let files = ids.iter().map(|id| Journal::base_file(*id));
        let content = files.map(|file| folder.content(&file));
        content.collect::<Vec<_>>()
    };
    let before = bases();
    primary.write(&mut Chance::new(1));
    let seed = primary.seed;
    let part = primary.header(Content::Seed { seed, part: 0 });
    let (bytes, root) = primary.segment(&part, &primary.disks);
    assert_eq!(
        journal.check(&part, root),
        Verdict::Unfit(Refusal::BaseStays)
    );
    let refused = take(&mut journal, &folder, &bytes, root).expect_err("it stays");
    assert!(matches!(refused, JournalError::Refused(Refusal::BaseStays)));
    let (since, zeroes) = (primary.seeded(0), before_all(&primary));
    let (known, bytes) = primary.cut(since, &zeroes);
    take(&mut journal, &folder, &bytes, known.root).expect("the first point");
    assert_eq!(bases(), before);
}

/// Disks of zeroes.
fn before_all(primary: &Primary) -> Disks {
    let disks = primary.disks.iter();
    disks.map(|disk| vec![0; disk.len()]).collect()
}

#[test]
fn a_point_that_was_merged_away_is_not_taken_again() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 2);
    for _ in 0..2 {
        assert_eq!(journal.merge_oldest(NOW).expect("merged"), None);
    }
    let header = primary.header(Content::Delta {
        sequence: 1,
        since: primary.seeded(1),
    });
    let verdict = journal.check(&header, points[0].root);
    assert_eq!(verdict, Verdict::Unfit(Refusal::NotNewer(points[2].id)));
}

#[test]
fn a_damaged_segment_is_refused_and_nothing_changes() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, points) = seeded(&folder, &mut primary);
    primary.write(&mut Chance::new(3));
    let since = Since::Point(points[0].id);
    let (known, bytes) = primary.cut(since, &points[0].disks);
    for at in (0..bytes.len()).step_by(37) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        let refused = take(&mut journal, &folder, &damaged, known.root);
        assert!(refused.is_err(), "byte {at}");
    }
    let other = take(&mut journal, &folder, &bytes, Root([1; 32])).expect_err("not offered");
    assert!(matches!(other, JournalError::NotOffered(_)));
    for name in ["", "..", "../index", ".hidden", "a/b"] {
        let error = journal.commit(name, known.root).expect_err("no such file");
        assert!(matches!(error, JournalError::Name(_)), "{name}");
    }
    assert_eq!(ids(&journal), [points[0].id]);
    take(&mut journal, &folder, &bytes, known.root).expect("undamaged");
    assert_points(&journal, &[points[0].clone(), known], "after damage");
}

#[test]
fn a_damaged_part_of_a_seed_is_refused_and_a_good_one_takes_its_place() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let mut journal = primary.create(&folder).expect("made");
    let empty: Disks = primary
        .disks
        .iter()
        .map(|disk| vec![0; disk.len()])
        .collect();
    for seed in 1..4 {
        primary.write(&mut Chance::new(seed));
    }
    let seed = primary.seed;
    let header = primary.header(Content::Seed { seed, part: 0 });
    let (bytes, root) = primary.segment(&header, &empty);
    let before = journal.tip();
    for at in (0..bytes.len()).step_by(37) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        let refused = take(&mut journal, &folder, &damaged, root);
        assert!(refused.is_err(), "byte {at}");
        assert_eq!(journal.tip(), before, "byte {at}");
    }
    // Cut again, with what was written meanwhile where the other had it too.
    for disk in &mut primary.disks {
        for block in disk
            .chunks_mut(BLOCK)
            .filter(|block| !crate::segment::is_zero(block))
        {
            fill(block, 1000);
        }
    }
    let (bytes, root) = primary.segment(&header, &empty);
    take(&mut journal, &folder, &bytes, root).expect("undamaged");
    let since = primary.seeded(1);
    let before = primary.disks.clone();
    let known = follow(&mut journal, &folder, &mut primary, since, &before);
    assert_points(&journal, &[known], "after damage");
}

#[test]
fn a_disk_that_grew_has_its_size_at_each_point() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 1);
    primary.grow(1, 7);
    more(&mut journal, &folder, &mut primary, &mut points, 2);
    primary.grow(0, 1);
    more(&mut journal, &folder, &mut primary, &mut points, 1);
    assert_points(&journal, &points, "above the base");
    let sizes = |journal: &Journal| {
        let points = journal.points();
        let sizes: Vec<_> = points.iter().map(|point| point.disks[1].size.0).collect();
        sizes
    };
    let (small, large) = (block_count(BLOCKS[1]), block_count(BLOCKS[1] + 7));
    assert_eq!(sizes(&journal), [small, small, large, large, large]);
    while journal.merge_oldest(NOW).expect("merged").is_none() {
        assert_points(&journal, &points, "while merging");
    }
    assert_eq!(sizes(&journal), [large]);
    let journal = reopen(&folder).expect("opened");
    assert_points(&journal, &points, "opened again");
}

/// What the base files hold.
fn base_of(journal: &Journal) -> Disks {
    let read = |(disk, file): (crate::index::BaseDisk, Arc<dyn durable::File>)| {
        let mut content = vec![0xaa; usize::try_from(disk.size.0).expect("small")];
        file.read_at(0, &mut content).expect("read");
        content
    };
    let bases = journal.bases().expect("opened");
    bases.into_iter().map(read).collect()
}

#[test]
fn what_came_of_a_part_is_laid_down_before_its_commit_and_nothing_else() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let mut journal = primary.create(&folder).expect("made");
    let empty = primary.disks.clone();
    for seed in 0..20 {
        primary.write(&mut Chance::new(seed));
    }
    let seed = primary.seed;
    let header = primary.header(Content::Seed { seed, part: 0 });
    let (bytes, root) = primary.segment(&header, &empty);
    let name = receive(&folder, &bytes).expect("received");
    let (mut laid, mut partly) = (empty.clone(), 0);
    for come in (0..=bytes.len() as u64).step_by(512) {
        let before = std::mem::replace(&mut laid, {
            journal.lay_ahead(name, root, Bytes(come)).expect("laid");
            base_of(&journal)
        });
        let blocks = |disks: &Disks| -> Vec<Vec<u8>> {
            let blocks = disks.iter().flat_map(|disk| disk.chunks(BLOCK));
            blocks.map(<[u8]>::to_vec).collect()
        };
        let states = blocks(&laid).into_iter().zip(blocks(&before));
        for (now, wanted) in states.zip(blocks(&primary.disks)) {
            let (now, before) = now;
            assert!(now == before || now == wanted, "at {come}");
        }
        partly += u64::from(laid != empty && laid != primary.disks);
    }
    assert!(partly > 0 && laid == primary.disks);
    assert_eq!(journal.check(&header, root), Verdict::Fits, "not published");
    journal.commit(name, root).expect("committed");
    assert!(base_of(&journal) == primary.disks);
    // What was committed, and points, are none of its business.
    let before = primary.disks.clone();
    primary.write(&mut Chance::new(77));
    let (known, bytes) = primary.cut(primary.seeded(1), &before);
    let name = receive(&folder, &bytes).expect("received");
    let all = Bytes(bytes.len() as u64);
    journal.lay_ahead(name, known.root, all).expect("ignored");
    assert!(base_of(&journal) == before);
}

#[test]
fn a_part_that_is_not_what_was_offered_is_found_while_it_is_laid_down_and_is_not_committed() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let mut journal = primary.create(&folder).expect("made");
    let empty = primary.disks.clone();
    primary.write(&mut Chance::new(3));
    let seed = primary.seed;
    let header = primary.header(Content::Seed { seed, part: 0 });
    let (bytes, root) = primary.segment(&header, &empty);
    let all = Bytes(bytes.len() as u64);
    let name = receive(&folder, &bytes).expect("received");
    let other = Root([7; 32]);
    let error = journal.lay_ahead(name, other, all).expect_err("another");
    assert!(matches!(error, JournalError::NotOffered(_)), "{error}");
    let mut tried = 0;
    for byte in (0..bytes.len()).rev() {
        let mut damaged = bytes.clone();
        damaged[byte] ^= 1;
        let name = receive(&folder, &damaged).expect("received");
        let Err(error) = journal.lay_ahead(name, root, all) else {
            panic!("byte {byte} says nothing");
        };
        if matches!(
            error,
            JournalError::Segment {
                source: crate::SegmentError::Damaged(crate::segment::Site::Frame(_)),
                ..
            }
        ) {
            tried += 1;
            journal.commit(name, root).expect_err("damaged");
            if tried == 3 {
                break;
            }
        }
    }
    assert_eq!(tried, 3);
    let name = receive(&folder, &bytes).expect("received");
    journal.commit(name, root).expect("as it was offered");
    assert!(base_of(&journal) == primary.disks);
}

#[test]
fn what_a_journal_takes_never_exceeds_what_it_was_said_to_take_while_it_is_merged() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 4);
    let said = journal.committed_len().expect("measured");
    loop {
        let bases = journal.bases().expect("opened");
        let base: u64 = bases
            .iter()
            .map(|(_, base)| base.allocated().expect("measured"))
            .sum();
        let segments = &journal.index.segments;
        let files: u64 = segments.iter().map(|entry| entry.file_len.0).sum();
        assert!(base + files <= said.0, "{base} and {files}, not {said}");
        // A segment counts for what its content will take, however well it is compressed.
        let content = |entry: &crate::index::Entry| entry.content.0 - entry.zeroes.0;
        let whole: u64 = journal.index.disks.iter().map(|disk| disk.size.0).sum();
        let grown = base + segments.iter().map(content).sum::<u64>();
        let now = journal.committed_len().expect("measured").0;
        assert!(now >= grown.min(whole + files), "{now}");
        if journal.merge_oldest(NOW).expect("merged").is_some() {
            break;
        }
    }
}

#[test]
fn what_does_not_fit_the_room_is_refused_with_the_figures() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (journal, _) = seeded(&folder, &mut primary);
    let used = journal.committed_len().expect("measured");
    let room = |limit, reserve, owed| Room {
        limit,
        reserve: Bytes(reserve),
        owed: Bytes(owed),
    };
    let len = Bytes(100);
    let fits = |held, room| journal.would_fit(len, Bytes(held), room);
    fits(0, room(None, 0, 0)).expect("no limit");
    let limit = Some(Bytes(used.0 + 100));
    fits(0, room(limit, 0, 0)).expect("just fits");
    for (held, less) in [(0, 1), (1, 0)] {
        let error = fits(held, room(limit.map(|limit| Bytes(limit.0 - less)), 0, 0));
        assert!(matches!(error, Err(NoRoom::Limit { .. })));
    }
    // What is kept free: of this journal's points, of others', and in reserve.
    let owed = journal.owed().expect("measured").0;
    folder.say_free(owed + 100 + 30 + 5);
    fits(0, room(None, 30, 5)).expect("just fits");
    for (reserve, beside) in [(31, 5), (30, 6), (u64::MAX, 5), (30, u64::MAX)] {
        let error = fits(0, room(None, reserve, beside)).expect_err("too much");
        assert!(matches!(error, NoRoom::Free { .. }));
    }
}

#[test]
fn a_folder_of_the_operating_system_holds_a_journal_that_is_locked_and_not_made_twice() {
    let scratch = tempfile::tempdir().expect("scratch");
    let path = scratch.path().join("journal");
    let mut primary = Primary::new();
    let missing = Journal::open(&path).expect_err("absent");
    assert!(matches!(missing, JournalError::Io { .. }), "{missing}");
    let mut journal =
        Journal::create(&path, primary.vm, &primary.extents(), primary.seed).expect("made");
    assert!(matches!(Journal::open(&path), Err(JournalError::Locked(_))));
    let empty = primary.disks.clone();
    primary.write(&mut Chance::new(1));
    let since = primary.seeded(0);
    let (known, bytes) = primary.cut(since, &empty);
    std::fs::write(path.join("incoming/offered"), &bytes).expect("received");
    journal.commit("offered", known.root).expect("committed");
    std::fs::write(path.join("segments/stray.seg"), b"stray").expect("written");
    drop(journal);
    let again = Journal::create(&path, primary.vm, &primary.extents(), primary.seed);
    assert!(matches!(again, Err(JournalError::Exists)));
    let mut journal = Journal::open(&path).expect("opened");
    assert!(!path.join("segments/stray.seg").exists());
    assert_points(&journal, std::slice::from_ref(&known), "opened");
    let outside = PointReader::open_pinned(&path, known.id);
    assert!(matches!(outside, Err(JournalError::NotPinned(_))));
    journal.pin(known.id, "test failover").expect("pinned");
    assert_eq!(journal.points()[0].pins, ["test failover"]);
    let outside = PointReader::open_pinned(&path, known.id).expect("pinned");
    assert_content(&outside, &known, "another process");
    journal.merge_oldest(NOW).expect("up to the pin");
    assert_content(&outside, &known, "after the merge");
    let raw = std::fs::read(path.join(format!("base-{}.raw", primary.ids[0]))).expect("a raw file");
    assert!(raw == known.disks[0]);
    drop(journal);
    for (text, version) in [
        (&b"pollux-journal 3 00\n{}"[..], 3),
        (b"POLLUXJN\x09\0\0\0", 9),
    ] {
        let mut bytes = text.to_vec();
        bytes.resize(100, 0);
        std::fs::write(path.join("index"), bytes).expect("written");
        match Journal::open(&path) {
            Err(JournalError::Version(found)) => assert_eq!(found, version),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_journal_whose_files_are_missing_is_not_opened() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (journal, points) = seeded(&folder, &mut primary);
    drop(journal);
    folder
        .remove(&format!("segments/{}.seg", points[0].root))
        .expect("removed");
    match reopen(&folder) {
        Err(JournalError::Missing(name)) => assert!(name.contains(&points[0].root.to_string())),
        other => panic!("{other:?}"),
    }
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    packed(&mut journal);
    more(&mut journal, &folder, &mut primary, &mut points, 1);
    drop(journal);
    folder.remove("packs/1.pack").expect("removed");
    assert!(reopen(&folder).is_err());
}

#[test]
fn a_change_that_failed_took_place_or_not_and_the_next_one_finds_out() {
    let mut taken = [0, 0];
    for fault in 0..12 {
        let (folder, mut primary) = (CutFolder::new(), Primary::new());
        let (mut journal, mut points) = seeded(&folder, &mut primary);
        primary.write(&mut Chance::new(fault));
        let (known, bytes) = primary.cut(Since::Point(points[0].id), &points[0].disks);
        let name = receive(&folder, &bytes).expect("received");
        folder.fail_after(fault);
        let outcome = journal.commit(name, known.root);
        folder.fail_after(u64::MAX);
        let Err(error) = outcome else {
            assert!(taken[0] > 0, "no fault struck");
            return;
        };
        assert!(error.is_full(), "{error:?}");
        journal.pin(points[0].id, "test").expect("it finds out");
        points.push(known.clone());
        assert_points(&journal, &points, "read again");
        let there = journal.points().len() == 2;
        taken[usize::from(there)] += 1;
        take(&mut journal, &folder, &bytes, known.root).expect("there, or taken now");
        assert_points(&journal, &points, "committed");
        assert_eq!(journal.points().len(), 2);
    }
    panic!("a fault always struck");
}
