//! A disk that is full to the last block: nothing is lost, points can still be given up, and what they
//! took is there again.

use super::*;
use crate::packs::Memory;
use crate::rules::{Rule, broken, hold};
use crate::{Room, SegmentReader};

/// Commits the next point if it fits; tells whether.
fn try_more(
    journal: &mut Journal,
    folder: &CutFolder,
    primary: &mut Primary,
    points: &mut Vec<Known>,
) -> bool {
    let tip = points.last().expect("there is one").clone();
    let sequence = primary.sequence;
    let (known, bytes) = primary.cut(Since::Point(tip.id), &tip.disks);
    match take(journal, folder, &bytes, known.root) {
        Ok(_) => points.push(known),
        Err(error) => {
            assert!(error.is_full(), "{error:?}");
            primary.sequence = sequence;
            let _ = folder.remove("incoming/offered");
            return false;
        }
    }
    true
}

/// A journal with some points, on a disk without any space left.
fn full(points: usize) -> (CutFolder, Primary, Journal, Vec<Known>) {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut known) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut known, points);
    folder.limit(Some(0));
    (folder, primary, journal, known)
}

#[test]
fn on_a_full_disk_points_are_given_up_until_there_is_space_for_new_ones() {
    let (folder, mut primary, mut journal, mut points) = full(12);
    primary.write(&mut Chance::new(3));
    assert!(!try_more(&mut journal, &folder, &mut primary, &mut points));
    assert_points(&journal, &points, "full");
    // More changes than the room behind the last record holds.
    let tip = points[12].id;
    let before = folder.content("index").expect("there").len();
    for number in 0..400 {
        journal
            .pin(tip, &format!("number {number}"))
            .expect("pinned");
        journal
            .unpin(tip, &format!("number {number}"))
            .expect("unpinned");
    }
    assert!(folder.content("index").expect("there").len() <= before + (32 << 10));
    folder.limit(Some(journal.owed().expect("measured").0));
    while journal.merge_oldest(NOW).expect("merged").is_none() {}
    assert_points(&journal, &points, "merged");
    assert!(try_more(&mut journal, &folder, &mut primary, &mut points));
    assert_points(&journal, &points, "taken in again");
    let journal = reopen(&folder).expect("opened");
    assert_points(&journal, &points, "opened");
}

#[test]
fn what_a_fault_left_in_doubt_is_settled_on_a_full_disk() {
    for fault in 0..12 {
        let (folder, _, mut journal, points) = full(6);
        folder.fail_after(fault);
        let outcome = journal.pin(points[6].id, "a test");
        folder.fail_after(u64::MAX);
        if let Err(error) = outcome {
            assert!(error.is_full(), "{error:?}");
        }
        journal.unpin(points[6].id, "a test").expect("settled");
        journal.merge_oldest(NOW).expect("merged");
        assert_points(&journal, &points, "settled");
        // And so does a process that finds it.
        let mut journal = reopen(&folder).expect("opened");
        journal.pin(points[6].id, "another").expect("pinned");
        assert_points(&journal, &points, "opened");
    }
}

#[test]
fn a_torn_record_is_taken_away_on_a_full_disk() {
    let (folder, _, mut journal, points) = full(6);
    journal.pin(points[6].id, "a test").expect("pinned");
    drop(journal);
    let content = folder.content("index").expect("there");
    let end = content
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("records")
        + 1;
    let file = folder.open("index").expect("there");
    file.write_at(end as u64 + 1, b"torn").expect("in its room");
    let mut journal = reopen(&folder).expect("opened");
    assert_points(&journal, &points, "opened");
    journal.unpin(points[6].id, "a test").expect("unpinned");
    journal.merge_oldest(NOW).expect("merged");
}

#[test]
fn while_what_is_owed_is_free_every_merge_goes_on_and_much_less_would_not_do() {
    let seeds = seeds(200);
    let count = seeds.end - seeds.start;
    let (mut merges, mut too_little, mut less) = (0, 0, 0);
    for seed in seeds {
        let mut chance = Chance::new(seed);
        let (folder, mut primary) = (CutFolder::new(), Primary::new());
        let (mut journal, mut points) = seeded(&folder, &mut primary);
        primary.grow(0, chance.index(80));
        journal.packs.small = [0, 4 << 10, 1 << 20][chance.index(3)];
        journal.packs.full = 48 << 10;
        more(&mut journal, &folder, &mut primary, &mut points, 4);
        primary.grow(1, chance.index(80));
        let count = 1 + chance.index(20);
        more(&mut journal, &folder, &mut primary, &mut points, count);
        if chance.below(3) == 0 {
            let (_, gone) = primary.detach(1);
            assert!(!gone.is_empty());
            let tip = points.last().expect("there is one").clone();
            let (known, bytes) = primary.cut_after(&tip, 0);
            take(&mut journal, &folder, &bytes, known.root).expect("it fits");
            points.push(known);
        }
        if chance.below(2) == 0 {
            let (keep, now) = (keep("3s:all,60s:6s"), at(primary.sequence));
            while let Some(thin) = journal.begin_thin(&keep, now, Bytes(0)).expect("begun") {
                let done = thin.run().expect("written");
                journal.finish_thin(done, now).expect("published");
            }
        }
        let owed = journal.owed().expect("measured").0;
        let merge_all = |folder: &CutFolder, journal: &mut Journal, room: u64| {
            folder.limit(Some(room));
            loop {
                match journal.merge_oldest(NOW) {
                    Ok(None) => continue,
                    other => return other.map(drop),
                }
            }
        };
        let other = folder.cut(seed);
        let mut opened = reopen(&other).expect("opened");
        let counted = folder.cut(seed);
        let mut counting = reopen(&counted).expect("opened");
        let roughly = counting.owed().expect("measured");
        counting.count_owed().expect("counted");
        less += u64::from(counting.owed().expect("measured") < roughly);
        // And whatever comes after it was counted.
        if chance.below(2) == 0 {
            let mut primary = primary.clone();
            more(
                &mut counting,
                &counted,
                &mut primary,
                &mut points.clone(),
                3,
            );
        }
        // The index becomes longer.
        let exactly = counting.owed().expect("measured").0 + 2 * 4096;
        if let Err(error) = merge_all(&counted, &mut counting, exactly) {
            panic!("try it again with POLLUX_SEED={seed}: of {exactly} bytes, {error:?}");
        }
        if let Err(error) = merge_all(&other, &mut opened, owed / 3) {
            assert!(error.is_full(), "POLLUX_SEED={seed}: {error:?}");
            too_little += 1;
        }
        merges += journal.points().len();
        if let Err(error) = merge_all(&folder, &mut journal, owed) {
            panic!("try it again with POLLUX_SEED={seed}: of {owed} bytes, {error:?}");
        }
        assert_points(&journal, &points, "merged");
    }
    println!(
        "{count} seeds: {merges} merges in what was owed; a third of it was too little {too_little} times"
    );
    assert!(
        count < 100 || too_little.min(less) > count / 10,
        "{too_little}, {less}"
    );
}

/// Takes a segment in as a host does, which looks at the room when it is offered, and at the commit for what
/// its content takes. Tells whether it was.
fn admit(journal: &mut Journal, folder: &CutFolder, bytes: &[u8], root: Root) -> bool {
    let room = Room {
        limit: None,
        // What the index takes, and the last block of each file.
        reserve: Bytes(64 << 10),
        owed: Bytes(0),
    };
    let len = bytes.len() as u64;
    let fits = |journal: &mut Journal, len, held| {
        if journal.would_fit(Bytes(len), Bytes(held), room).is_ok() {
            return true;
        }
        if journal.is_owed_vague() && hold(Rule::KeepOwed) {
            journal.count_owed().expect("counted");
        }
        journal.would_fit(Bytes(len), Bytes(held), room).is_ok()
    };
    if !fits(journal, len, 0) || receive(folder, bytes).is_err() {
        return false;
    }
    let reader = SegmentReader::of(Arc::new(Memory(bytes.to_vec()))).expect("whole");
    let summary = reader.summary();
    let content = summary.content.0 - summary.zeroes.0;
    let fits = fits(journal, content.saturating_sub(len), len);
    if fits {
        journal.commit("offered", root).expect("there is room");
    } else {
        folder.remove("incoming/offered").expect("removed");
    }
    fits
}

/// How many points were taken in, refused and merged until the store was brimful many times; an error is
/// that of a merge.
fn brimful(seed: u64) -> Result<[u64; 3], JournalError> {
    let (mut taken, mut refused, mut merged) = (0, 0, 0);
    let mut chance = Chance::new(seed);
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    primary.grow(0, 120);
    journal.packs.small = [0, 4 << 10, 1 << 20][chance.index(3)];
    journal.packs.full = 48 << 10;
    // All of the disks twice, and some more.
    folder.limit(Some(320 * 4096));
    for _ in 0..200 {
        primary.write(&mut chance);
        let tip = points.last().expect("there is one").clone();
        let (known, bytes) = primary.cut(Since::Point(tip.id), &tip.disks);
        if admit(&mut journal, &folder, &bytes, known.root) {
            points.push(known);
            taken += 1;
            continue;
        }
        primary.sequence -= 1;
        refused += 1;
        assert!(!journal.index.segments.is_empty(), "seed {seed}: for good");
        for _ in 0..1 + chance.index(3) {
            merged += u64::from(journal.merge_oldest(NOW)?.is_none());
        }
    }
    while journal.merge_oldest(NOW)?.is_none() {
        merged += 1;
    }
    assert_points(&journal, &points, "at the end");
    Ok([taken, refused, merged])
}

#[test]
fn whatever_comes_to_a_store_that_is_nearly_full_each_merge_has_the_room_that_it_needs() {
    let seeds = seeds(20);
    let count = seeds.end - seeds.start;
    let mut sums = [0; 3];
    for seed in seeds {
        let counts = brimful(seed)
            .unwrap_or_else(|error| panic!("try it again with POLLUX_SEED={seed}: {error:?}"));
        sums = std::array::from_fn(|at| sums[at] + counts[at]);
    }
    let [taken, refused, merged] = sums;
    println!("{count} seeds: {taken} points taken, {refused} refused, {merged} merges");
    assert!(refused > 10 * count && taken > 10 * count, "{sums:?}");
    let fails = |seed| brimful(seed).is_err_and(|error| error.is_full());
    let missed = broken(Rule::KeepOwed, || (0..20).any(fails));
    assert!(missed, "no seed needs what is kept");
}

/// What the file that keeps the space is for.
#[test]
fn without_the_space_that_is_kept_a_full_disk_is_a_dead_end() {
    let dead_end = broken(Rule::ReserveIndex, || {
        let (_, _, mut journal, points) = full(6);
        let tip = points[6].id;
        (0..400).any(|number| {
            let pinned = journal.pin(tip, &format!("number {number}"));
            pinned.is_err_and(|error| error.is_full())
        })
    });
    assert!(dead_end);
}
