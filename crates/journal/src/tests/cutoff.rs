//! The newest points go: the others are what they were, and history goes on from there.

use super::*;
use crate::Held;

#[test]
fn the_newest_points_go_at_once_and_the_primary_goes_on_from_an_older_one() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 9);
    journal.tidy_eagerly(2).run().expect("run files");
    while ids(&journal)[0] != points[2].id {
        assert_eq!(journal.merge_oldest(NOW).expect("merged"), None);
    }
    let last = points[5].clone();
    let tip = journal.tip();
    assert!(matches!(
        journal.cut_off_after(points[0].id, NOW),
        Err(JournalError::NoSuchPoint(_))
    ));

    // All of them or none.
    let newer = points[7].id;
    journal.pin(newer, "test").expect("pinned");
    let held = journal.cut_off_after(last.id, NOW).expect("asked");
    assert_eq!(held, Some(Held::Point(newer)));
    journal.unpin(newer, "test").expect("unpinned");
    let reader = journal.open_point(newer).expect("opened");
    let held = journal.cut_off_after(last.id, NOW).expect("asked");
    assert_eq!(held, Some(Held::Point(newer)));
    drop(reader);
    journal.lock(newer, at(9)).expect("locked");
    let held = journal.cut_off_after(last.id, at(8)).expect("asked");
    assert_eq!(held, Some(Held::Locked(newer, at(9))));
    assert_eq!(journal.tip(), tip);
    assert_eq!(ids(&journal).len(), 8);

    let reader = journal.open_point(last.id).expect("opened");
    assert_eq!(journal.cut_off_after(last.id, at(9)).expect("done"), None);
    assert_content(&reader, &last, "open meanwhile");
    assert_eq!(ids(&journal), [2, 3, 4, 5].map(|at: usize| points[at].id));
    assert_eq!(folder.list("segments").expect("listed").len(), 3);
    assert_eq!(journal.cut_off_after(last.id, NOW).expect("again"), None);
    let mut journal = reopen(&folder).expect("opened");
    assert_points(&journal, &points, "opened again");

    // What was cut in the term that was left does not come back.
    let (refused, bytes) = primary.cut(Since::Point(points[9].id), &points[9].disks);
    let branch = primary.lineage.branch(last.id, "host-b");
    take(&mut journal, &folder, &bytes, refused.root).expect_err("it builds on what is gone");
    primary.lineage = branch.expect("it lies on it");
    primary.disks = last.disks.clone();
    primary.sequence = last.id.sequence;
    points.truncate(6);
    more(&mut journal, &folder, &mut primary, &mut points, 20);
    assert_points(&journal, &points, "in another term");
    journal.tidy_eagerly(2).run().expect("run files");
    assert_points(&journal, &points, "with other run files");
    let journal = reopen(&folder).expect("opened");
    assert_points(&journal, &points, "opened again");
}

#[test]
fn the_file_of_a_disk_is_given_only_of_a_pinned_point_that_is_all_there_is() {
    let home = tempfile::tempdir().expect("scratch");
    let primary = Primary::new();
    let path = home.path().join("journal");
    let (disks, seed) = (primary.extents(), primary.seed);
    let mut journal = Journal::create(&path, primary.vm, &disks, seed).expect("made");
    let mut primary = primary;
    let put = |journal: &mut Journal, (known, bytes): (Known, Vec<u8>)| {
        std::fs::write(path.join("incoming/offered"), bytes).expect("received");
        journal.commit("offered", known.root).expect("taken in");
        known
    };
    let empty = primary.disks.clone();
    let header = primary.header(Content::Seed { seed, part: 0 });
    let (bytes, root) = primary.segment(&header, &empty);
    std::fs::write(path.join("incoming/offered"), bytes).expect("received");
    journal.commit("offered", root).expect("the first part");
    primary.write(&mut Chance::new(3));
    let since = primary.seeded(1);
    let first = put(&mut journal, primary.cut(since, &empty));
    primary.write(&mut Chance::new(4));
    let since = Since::Point(first.id);
    let second = put(&mut journal, primary.cut(since, &first.disks));

    let disk = first.ids[1];
    let asked = || PointReader::file_of(&path, first.id, disk);
    assert!(matches!(asked(), Err(JournalError::NotPinned(_))));
    journal.pin(first.id, "failover").expect("pinned");
    assert!(matches!(asked(), Err(JournalError::NotAlone(_))));
    assert_eq!(journal.merge_oldest(NOW).expect("merged"), None);
    assert!(matches!(asked(), Err(JournalError::NotAlone(_))));
    assert_eq!(journal.cut_off_after(first.id, NOW).expect("done"), None);
    let file = asked().expect("all there is");
    assert_eq!(file, path.join(Journal::base_file(disk)));
    assert!(std::fs::read(&file).expect("read") == first.disks[1]);
    let other = PointReader::file_of(&path, first.id, DiskId::random());
    assert!(matches!(other, Err(JournalError::NoSuchDisk(_))));
    let gone = PointReader::file_of(&path, second.id, disk);
    assert!(matches!(gone, Err(JournalError::NoSuchPoint(_))));
}
