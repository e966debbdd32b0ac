//! A disk that is full to the last block: nothing is lost, points can still be given up, and what they
//! took is there again.

use super::*;
use crate::rules::{Rule, broken};

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
