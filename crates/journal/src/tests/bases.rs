//! Disks that come and go while there are points.

use super::*;
use crate::Refusal;

/// A journal with a point, then those of a disk that joins, is whole, and is taken away.
fn came_and_went(folder: &CutFolder) -> (Journal, Primary, Vec<Known>) {
    let mut primary = Primary::new();
    let (mut journal, mut points) = seeded(folder, &mut primary);
    let mut chance = Chance::new(7);
    primary.attach(14, &mut chance);
    primary.disks[2][5 * BLOCK..].fill(9);
    let mut next = |journal: &mut Journal, primary: &mut Primary| {
        primary.write(&mut chance);
        let (known, bytes) = primary.cut_after(&points[points.len() - 1], 4);
        take(journal, folder, &bytes, known.root).expect("it fits");
        points.push(known);
    };
    while journal.points().last().expect("there is one").disks.len() == 2 {
        next(&mut journal, &mut primary);
    }
    next(&mut journal, &mut primary);
    primary.detach(2);
    next(&mut journal, &mut primary);
    next(&mut journal, &mut primary);
    (journal, primary, points)
}

fn base_files(folder: &CutFolder) -> usize {
    let names = folder.list("").expect("listed");
    names
        .iter()
        .filter(|name| name.starts_with("base-"))
        .count()
}

#[test]
fn a_disk_is_in_the_points_from_the_first_that_has_it_whole_and_its_base_goes_with_the_last() {
    let folder = CutFolder::new();
    let (mut journal, _, points) = came_and_went(&folder);
    let counts: Vec<_> = points.iter().map(|point| point.ids.len()).collect();
    let joining = counts.iter().position(|count| *count == 3).expect("whole");
    assert!(
        joining > 2,
        "some of it with each of several points: {counts:?}"
    );
    assert_eq!(counts[joining..], [3, 3, 2, 2]);
    let with = points[joining + 1].clone();
    let reader = journal.open_point(with.id).expect("opened");
    while journal.points()[0].id != with.id || !journal.points()[0].in_base {
        assert_points(&journal, &points, "merging");
        assert_eq!(base_files(&folder), 3);
        assert_eq!(journal.merge_oldest(NOW).expect("merged"), None);
    }
    assert_content(&reader, &with, "open");
    let held = journal.merge_oldest(NOW).expect("looked");
    assert_eq!(held, Some(crate::Held::Point(with.id)));
    drop(reader);
    assert_eq!(journal.merge_oldest(NOW).expect("merged"), None);
    assert_eq!(base_files(&folder), 2, "no point has it any more");
    drop(journal);
    assert_points(&reopen(&folder).expect("opened"), &points, "opened again");
}

#[test]
fn a_base_that_was_given_up_and_is_still_there_goes_when_the_journal_is_opened() {
    let folder = CutFolder::new();
    let (mut journal, _, points) = came_and_went(&folder);
    for _ in 0..points.len() - 1 {
        journal.merge_oldest(NOW).expect("merged");
    }
    let name = format!("base-{}.raw", points[points.len() - 3].ids[2]);
    drop(journal);
    folder
        .create(&name)
        .expect("made")
        .write_at(0, &[7; BLOCK])
        .expect("written");
    let journal = reopen(&folder).expect("opened");
    assert_eq!(base_files(&folder), 2);
    assert_points(&journal, &points, "opened again");
}

#[test]
fn what_changed_of_a_disk_is_known_between_points_that_have_it_and_damage_hurts_no_other() {
    let folder = CutFolder::new();
    let (mut journal, _, points) = came_and_went(&folder);
    let whole: Vec<_> = points.iter().filter(|point| point.ids.len() == 3).collect();
    let id = whole[0].ids[2];
    let told = |journal: &Journal, x: &Known, y: &Known| {
        let changed = journal.changes_between(x.id, y.id).expect("read");
        let disks: Vec<_> = changed.expect("known").iter().map(|disk| disk.id).collect();
        disks.contains(&id)
    };
    // It is gone at the newest point: nothing is kept of what it was.
    assert!(!told(&journal, whole[0], whole[1]));
    assert!(!told(&journal, &points[1], whole[1]), "it was being copied");
    assert!(!told(&journal, whole[1], &points[points.len() - 1]));
    while journal.points()[0].id != whole[0].id {
        journal.merge_oldest(NOW).expect("merged");
    }
    folder.remove(&format!("base-{id}.raw")).expect("removed");
    let report = journal
        .verify()
        .run(&mut |_| std::ops::ControlFlow::Continue(()))
        .expect("looked");
    let [damage] = &report.damage[..] else {
        panic!("{report:?}");
    };
    let hurt: Vec<_> = whole.iter().map(|point| point.id).collect();
    assert_eq!(damage.points, hurt, "those that have it");
}

#[test]
fn changes_of_a_disk_that_joined_are_known_from_its_first_whole_point_on() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    let mut chance = Chance::new(3);
    primary.attach(6, &mut chance);
    for _ in 0..6 {
        primary.write(&mut chance);
        let (known, bytes) = primary.cut_after(&points[points.len() - 1], 2);
        take(&mut journal, &folder, &bytes, known.root).expect("it fits");
        points.push(known);
    }
    let first = points.iter().position(|point| point.ids.len() == 3);
    let first = first.expect("it is whole");
    assert!(first > 1 && first < 5, "{first}");
    let count = |journal: &Journal, x: usize, y: usize| {
        let changed = journal.changes_between(points[x].id, points[y].id);
        knows_changes(journal, &points[x], &points[y]).expect("read");
        changed.expect("read").expect("known").len()
    };
    for merged in 0..4 {
        assert_eq!(count(&journal, first - 1, first), 2, "{merged}");
        assert_eq!(count(&journal, first - 1, 6), 2, "{merged}");
        assert_eq!(count(&journal, first, first + 1), 3, "{merged}");
        assert_eq!(count(&journal, first, 6), 3, "{merged}");
        journal.merge_oldest(NOW).expect("merged");
    }
}

#[test]
fn more_disks_than_bases_may_be_are_refused_until_older_points_are_gone() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    let mut chance = Chance::new(1);
    let refused = loop {
        if primary.ids.len() > 2 {
            primary.detach(2);
        }
        primary.attach(1, &mut chance);
        let (known, bytes) = primary.cut_after(&points[points.len() - 1], 1);
        match take(&mut journal, &folder, &bytes, known.root) {
            Ok(_) => points.push(known),
            Err(error) => break (error, known, bytes),
        }
    };
    let (error, known, bytes) = refused;
    assert!(
        matches!(error, JournalError::Refused(Refusal::ManyDisks)),
        "{error:?}"
    );
    assert_eq!(journal.index.disks.len(), crate::index::MAX_BASES);
    assert_points(&journal, &points, "refused");
    for _ in 0..3 {
        journal.merge_oldest(NOW).expect("merged");
    }
    take(&mut journal, &folder, &bytes, known.root).expect("it fits now");
    points.push(known);
    assert_points(&journal, &points, "taken");
}

#[test]
fn a_base_that_could_not_be_removed_is_made_anew_and_kept_under_its_other_name() {
    let scratch = tempfile::tempdir().expect("scratch");
    let disk = crate::index::BaseDisk::new(DiskId::random(), Bytes(BLOCK_SIZE));
    let (base, other) = (
        scratch.path().join(disk.file()),
        scratch.path().join("disk0.raw"),
    );
    std::fs::write(&other, [7; BLOCK]).expect("written");
    std::fs::hard_link(&other, &base).expect("linked");
    let folder = durable::OsFolder::open(scratch.path()).expect("opened");
    crate::bases::make_bases(&folder, &[disk]).expect("made");
    assert_eq!(std::fs::read(base).expect("read"), [0; BLOCK]);
    assert_eq!(std::fs::read(other).expect("read"), [7; BLOCK]);
}
