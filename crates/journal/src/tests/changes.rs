//! What differs between two points is known after they went, until every peer has passed them.

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
