//! What differs between two points is known after they went, until every peer has passed them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Sets of blocks by disk: what a peer at `x` needs to come to `y`.
fn all_known(journal: &Journal, points: &[Known], from: u64) -> (u32, u32) {
    let (mut known, mut unknown) = (0, 0);
    for x in points {
        for y in points {
            let told = knows_changes(journal, x, y).expect("read");
            let expected = x.id.sequence.min(y.id.sequence) >= from;
            assert!(told || !expected, "{} to {}", x.id, y.id);
            known += u32::from(told);
            unknown += u32::from(!told);
        }
    }
    (known, unknown)
}

/// The blocks of a disk that `newer` has otherwise than `older`. Each write is another content: these are
/// the blocks that were shipped for `newer`, if it is the next point.
fn shipped(id: DiskId, older: &Known, newer: &Known) -> BTreeSet<u64> {
    let of = |known: &Known| {
        let at = known.ids.iter().position(|other| *other == id);
        at.map(|at| known.disks[at].clone()).unwrap_or_default()
    };
    let (older, newer) = (of(older), of(newer));
    let zeroes = [0; BLOCK];
    let block = |disk: &[u8], at: usize| -> [u8; BLOCK] {
        let found = disk.get(at * BLOCK..(at + 1) * BLOCK);
        found.map_or(zeroes, |found| found.try_into().expect("a block"))
    };
    let all = 0..older.len().max(newer.len()) / BLOCK;
    let differ = all.filter(|at| block(&older, *at) != block(&newer, *at));
    differ.map(|at| at as u64).collect()
}

/// No difference is told to be more than was shipped for the points from the last one at or before both, of
/// which the journal knows where a change begins, to the first at or after both where one ends.
fn bounded(journal: &Journal, points: &[Known]) {
    let number = |since: Since| match since {
        Since::Point(point) => point.sequence,
        Since::Seed { .. } => 0,
    };
    let sets = journal.index.changes.values();
    let sets = sets.map(|set| (number(set.since), set.point.sequence));
    let segments = journal.index.segments.iter();
    let segments = segments.map(|entry| (number(entry.since), entry.point.sequence));
    let ends: BTreeSet<u64> = sets
        .chain(segments)
        .flat_map(|(since, point)| [since, point])
        .collect();
    for (at, x) in points.iter().enumerate() {
        for y in &points[at + 1..] {
            let Some(told) = journal.changes_between(x.id, y.id).expect("read") else {
                continue;
            };
            let from = ends.range(..=x.id.sequence).next_back().copied();
            let to = ends.range(y.id.sequence..).next().copied();
            let (from, to) = (from.expect("one"), to.expect("one"));
            for disk in told {
                let steps = points.windows(2).filter(|pair| {
                    let (older, newer) = (pair[0].id.sequence, pair[1].id.sequence);
                    from <= older && newer <= to
                });
                let most: BTreeSet<u64> = steps
                    .flat_map(|pair| shipped(disk.id, &pair[0], &pair[1]))
                    .collect();
                let told: BTreeSet<u64> = disk.extents().flatten().collect();
                assert!(told.is_subset(&most), "{} to {}: {told:?}", x.id, y.id);
            }
        }
    }
}

#[test]
fn points_that_were_put_into_newer_ones_cost_no_comparison_and_little_more_than_their_difference() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 12);
    let now = at(primary.sequence);
    let (_, thinned) = journal.retain(&keep("2s:all,60s:5s"), now).expect("done");
    assert!(thinned > 0);
    let gone = points
        .iter()
        .filter(|point| journal.point(point.id).is_none());
    assert!(gone.count() > 4);
    // Also of those that are gone: whoever was at one of them gets the difference.
    assert_eq!(all_known(&journal, &points, 0).1, 0);
    bounded(&journal, &points);
    // And so when what they were put into is merged.
    for _ in 0..2 {
        journal.merge_oldest(at(primary.sequence)).expect("merged");
    }
    assert_eq!(all_known(&journal, &points, 0).1, 0);
    bounded(&journal, &points);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(24), ..ProptestConfig::default() })]

    #[test]
    fn the_difference_of_any_two_points_that_ever_were_is_known_until_peers_have_passed(
        steps in proptest::collection::vec((1..5_usize, 0..5_u8, any::<u8>()), 1..9),
    ) {
        let (folder, mut primary) = (CutFolder::new(), Primary::new());
        let (mut journal, mut points) = seeded(&folder, &mut primary);
        let mut released = 0;
        for (count, step, which) in steps {
            more(&mut journal, &folder, &mut primary, &mut points, count);
            let now = at(primary.sequence);
            match step {
                0 => for _ in 0..which % 9 {
                    journal.merge_oldest(now).expect("merged");
                },
                1 => drop(journal.retain(&keep("2s:all,20s:5s"), now).expect("done")),
                2 => {
                    primary.grow(0, 3);
                    journal.retain(&keep("3:all"), now).expect("done");
                }
                3 => {
                    let upto = points[usize::from(which) % points.len()].id;
                    journal.release(upto).expect("released");
                    released = released.max(upto.sequence);
                }
                _ => journal = reopen(&folder).expect("opened"),
            }
            all_known(&journal, &points, released);
            bounded(&journal, &points);
            let sets = folder.list("changes").expect("listed").len();
            prop_assert!(sets <= 5 && sets == journal.index.changes.len());
        }
        let tip = points[points.len() - 1].id;
        journal.release(tip).expect("released");
        prop_assert_eq!(folder.list("changes").expect("listed").len(), 0);
        while journal.merge_oldest(NOW).expect("merged").is_none() {}
        prop_assert_eq!(folder.list("changes").expect("listed").len(), 0, "nobody needs them");
    }
}

#[test]
fn changes_are_those_of_the_points_between_and_no_more_while_these_are_there() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 6);
    let told = |journal: &Journal, x: usize, y: usize| -> Vec<u64> {
        let changed = journal.changes_between(points[x].id, points[y].id);
        let changed = changed.expect("read").expect("known");
        changed.iter().map(crate::ChangedDisk::blocks).collect()
    };
    let differ = |x: usize, y: usize| -> Vec<u64> {
        // Each write is another content: what was written differs.
        let disks = points[x].disks.iter().zip(&points[y].disks);
        let count = |(x, y): (&Vec<u8>, &Vec<u8>)| {
            let blocks = x.chunks(BLOCK).zip(y.chunks(BLOCK));
            blocks.filter(|(x, y)| x != y).count() as u64
        };
        disks.map(count).collect()
    };
    for at in 0..6 {
        assert_eq!(told(&journal, at, at + 1), differ(at, at + 1));
    }
    assert_eq!(told(&journal, 2, 5), told(&journal, 5, 2));
    assert_eq!(told(&journal, 3, 3), [0, 0]);
    let before = told(&journal, 1, 5);
    for _ in 0..3 {
        journal.merge_oldest(NOW).expect("merged");
    }
    assert_eq!(
        told(&journal, 1, 5),
        before,
        "sets say what the segments said"
    );
    let stranger = PointId {
        term: model::TermId::random(),
        sequence: 3,
    };
    let unknown = journal.changes_between(stranger, points[5].id);
    assert_eq!(unknown.expect("read"), None);
}

#[test]
fn what_is_noted_by_name_outlives_the_segments() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 8);
    let (x, y) = (points[2].clone(), points[6].clone());
    assert!(journal.note_changes(x.id, y.id).expect("noted"));
    let set = *journal.index.changes.values().next().expect("one");
    assert_eq!((set.since, set.point), (Since::Point(x.id), y.id));
    let mut journal = reopen(&folder).expect("opened");
    assert!(knows_changes(&journal, &x, &y).expect("read"));
    let stranger = PointId {
        term: model::TermId::random(),
        sequence: 3,
    };
    assert!(!journal.note_changes(stranger, y.id).expect("not known"));
}

#[test]
fn a_set_that_cannot_be_written_costs_a_comparison_and_nothing_else() {
    let (mut known, mut unknown) = (0, 0);
    for fault in 0..80 {
        let (folder, mut primary) = (CutFolder::new(), Primary::new());
        let (mut journal, mut points) = seeded(&folder, &mut primary);
        more(&mut journal, &folder, &mut primary, &mut points, 9);
        folder.fail_after(fault);
        let mut failures = 0;
        for _ in 0..9 {
            failures += u32::from(journal.merge_oldest(NOW).is_err());
        }
        folder.fail_after(u64::MAX);
        assert!(failures <= 1);
        assert_points(&journal, &points, "merged");
        let told = all_known(&journal, &points, u64::MAX);
        let journal = reopen(&folder).expect("opened");
        assert_points(&journal, &points, "opened");
        assert_eq!(
            all_known(&journal, &points, u64::MAX),
            told,
            "fault {fault}"
        );
        known += u32::from(told.1 == 0);
        unknown += u32::from(told.1 > 0);
    }
    assert!(known > 0 && unknown > 0, "{known}, {unknown}");
}

#[test]
fn without_its_change_sets_a_journal_opens_and_merges_all_the_same() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 12);
    for _ in 0..5 {
        journal.merge_oldest(NOW).expect("merged");
    }
    let names = || folder.list("changes").expect("listed");
    assert_eq!(names().len(), 4);
    // All of them are damaged: those that room is made from are given up.
    for name in names() {
        let file = folder.open(&format!("changes/{name}")).expect("there");
        file.write_at(9, &[0xff; 3]).expect("written");
    }
    for _ in 0..2 {
        journal.merge_oldest(NOW).expect("merged");
    }
    let (x, y) = (&points[0], &points[12]);
    assert!(!knows_changes(&journal, x, y).expect("read"));
    for name in names() {
        folder.remove(&format!("changes/{name}")).expect("removed");
    }
    let journal = reopen(&folder).expect("opened");
    assert!(journal.index.changes.is_empty());
    assert!(!knows_changes(&journal, x, y).expect("read"));
    assert_points(&journal, &points, "without sets");
    let journal = reopen(&folder).expect("opened again");
    assert!(journal.index.changes.is_empty());
}
