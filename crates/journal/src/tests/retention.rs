use super::*;
use crate::index::Entry;
use crate::{Begun, Held};

fn count(count: u32) -> Keep {
    keep(&format!("{count}:all"))
}

#[test]
fn as_many_points_are_kept_as_the_policy_says_and_never_none() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 9);
    let now = at(1000);
    journal.retain(&count(4), now).expect("merged");
    assert_eq!(
        ids(&journal),
        points[6..].iter().map(|point| point.id).collect::<Vec<_>>()
    );
    assert_points(&journal, &points, "four are left");
    let nothing = (0, 0);
    assert_eq!(journal.retain(&count(4), now).expect("done"), nothing);
    assert_eq!(journal.retain(&keep("3s:all"), now).expect("done"), nothing);
    journal.retain(&keep("2s:all"), now).expect("merged");
    assert_eq!(ids(&journal).len(), 3);
    journal.retain(&count(1), now).expect("merged");
    assert_eq!(ids(&journal), [points[9].id]);
    assert_points(&journal, &points, "the newest is left");
    more(&mut journal, &folder, &mut primary, &mut points, 2);
    assert_points(&journal, &points, "it goes on");
}

#[test]
fn merges_that_are_due_are_those_that_the_policy_wants_whatever_comes_meanwhile() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 9);
    let policy = count(4);
    let mut left = 10;
    // The first one makes a point of the base, and loses none.
    for (due, gone) in [(6, 5), (1, 1), (0, 0)] {
        assert_eq!(journal.merges_due(&policy, at(1000)), due);
        for _ in 0..due {
            assert_eq!(journal.merge_oldest(NOW).expect("merged"), None);
        }
        left -= gone;
        assert_eq!(ids(&journal).len(), left);
    }
    more(&mut journal, &folder, &mut primary, &mut points, 2);
    assert_eq!(journal.merges_due(&policy, at(1000)), 2);
    assert!(matches!(journal.begin_merge(NOW), Ok(Begun::Merge(_))));
    more(&mut journal, &folder, &mut primary, &mut points, 3);
    // The one that was interrupted, and one for each point that came but for that.
    assert_eq!(journal.merges_due(&policy, at(1000)), 5);
    journal.retain(&policy, at(1000)).expect("merged");
    let kept: Vec<_> = points[11..].iter().map(|point| point.id).collect();
    assert_eq!(ids(&journal), kept);
    assert_points(&journal, &points, "four are left");
}

#[test]
fn a_pinned_point_is_never_merged_past_and_the_journal_goes_on_above_it() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 4);
    let pinned = points[2].id;
    journal.pin(pinned, "test failover").expect("pinned");
    journal.pin(pinned, "export").expect("pinned");
    let unknown = PointId {
        sequence: 99,
        ..pinned
    };
    assert!(matches!(
        journal.pin(unknown, "x"),
        Err(JournalError::NoSuchPoint(_))
    ));
    journal
        .retain(&count(1), NOW)
        .expect("merged as far as it goes");
    assert_eq!(ids(&journal)[0], pinned);
    assert_eq!(
        journal.merge_oldest(NOW).expect("held"),
        Some(Held::Point(pinned))
    );
    more(&mut journal, &folder, &mut primary, &mut points, 2);
    assert_points(&journal, &points, "above the pin");

    let mut journal = reopen(&folder).expect("opened");
    journal.unpin(pinned, "test failover").expect("unpinned");
    assert_eq!(
        journal.merge_oldest(NOW).expect("held"),
        Some(Held::Point(pinned))
    );
    journal.unpin(pinned, "export").expect("unpinned");
    journal.retain(&count(1), NOW).expect("merged");
    assert_eq!(ids(&journal), [points[6].id]);
    assert_eq!(
        journal.merge_oldest(NOW).expect("nothing"),
        Some(Held::Nothing)
    );
}

#[test]
fn points_are_taken_while_a_merge_runs_and_two_merges_never_do() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 2);
    let Begun::Merge(merge) = journal.begin_merge(NOW).expect("begun") else {
        panic!("nothing is in the way");
    };
    assert!(matches!(journal.begin_merge(NOW), Err(JournalError::Busy)));
    let merging = std::thread::spawn(|| merge.run());
    more(&mut journal, &folder, &mut primary, &mut points, 3);
    let merged = merging.join().expect("no panic").expect("merged");
    assert!(matches!(journal.begin_merge(NOW), Err(JournalError::Busy)));
    journal.finish_merge(merged).expect("finished");
    assert_points(&journal, &points, "after the merge");
    assert_eq!(journal.points().len(), points.len());
    assert!(journal.points()[0].in_base);
}

#[test]
fn a_merge_that_failed_is_done_again_and_every_point_is_whole_meanwhile() {
    for fault in 0..20 {
        let (folder, mut primary) = (CutFolder::new(), Primary::new());
        let (mut journal, mut points) = seeded(&folder, &mut primary);
        more(&mut journal, &folder, &mut primary, &mut points, 3);
        journal.merge_oldest(NOW).expect("merged");
        let Begun::Merge(merge) = journal.begin_merge(NOW).expect("begun") else {
            panic!("nothing is in the way");
        };
        folder.fail_after(fault);
        let outcome = merge.run();
        folder.fail_after(u64::MAX);
        assert_points(&journal, &points, "half merged");
        assert_eq!(journal.points().len(), 3, "the oldest was given up");
        if let Ok(merged) = outcome {
            journal.finish_merge(merged).expect("finished");
            return;
        }
        assert_eq!(journal.merge_oldest(NOW).expect("again"), None);
        assert_points(&journal, &points, "merged at last");
    }
    panic!("the fault always struck");
}

#[test]
fn what_goes_from_the_pack_that_is_appended_to_makes_room() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    packed(&mut journal);
    more(&mut journal, &folder, &mut primary, &mut points, 40);
    let before = packs_len(&folder);
    while journal.count() > 3 {
        journal.merge_oldest(NOW).expect("merged");
    }
    let after = packs_len(&folder);
    assert!(4 * after < before, "{after} of {before}");
    points.drain(..points.len() - 3);
    assert_points(&journal, &points, "copied");
    more(&mut journal, &folder, &mut primary, &mut points, 2);
    drop(journal);
    let journal = Journal::open_in(arc(&folder), None, Arc::default()).expect("opened again");
    assert_points(&journal, &points, "opened again");
}

/// What the packs hold, in bytes.
fn packs_len(folder: &CutFolder) -> u64 {
    let names = folder.list("packs").expect("listed");
    let len = |name: &String| folder.content(&format!("packs/{name}")).map(|it| it.len());
    names.iter().filter_map(len).map(|len| len as u64).sum()
}

#[test]
fn what_is_damaged_in_a_pack_is_not_copied_again_and_again() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    packed(&mut journal);
    (journal.packs.full, journal.packs.left) = (64 << 10, 1);
    more(&mut journal, &folder, &mut primary, &mut points, 16);
    let in_first = |entry: &&Entry| entry.file() == "packs/1.pack";
    let last = journal.index.segments.iter().rfind(in_first);
    let last = last.expect("some lie there").clone();
    assert!(last.point.sequence > 4 && journal.index.newest() != Some(&last));
    let file = folder.open(&last.file()).expect("there");
    let middle = last.start() + last.file_len.0 / 2;
    file.write_at(middle, &[0x55; 64]).expect("written");
    let before = packs_len(&folder);
    for _ in 0..3 {
        journal.merge_oldest(NOW).expect("merged");
        assert_eq!(packs_len(&folder), before);
    }
    let entry = journal.index.find(last.point).expect("there").1;
    assert_eq!(*entry, last, "stays where it is");
}

#[test]
fn while_the_next_point_waits_for_room_those_go_that_would_be_too_old_with_it_and_never_the_newest()
{
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 9);
    // Points 1 to 10, a second from one to the next.
    let policy = keep("20s:all");
    for (now, due) in [(10, 0), (21, 0), (25, 4), (30, 9), (1000, 10)] {
        assert_eq!(journal.merges_due(&policy, at(now)), 0, "none comes");
        assert_eq!(
            journal.merges_due_before_next(&policy, at(now)),
            due,
            "{now}"
        );
    }
    for _ in 0..10 {
        assert_eq!(journal.merge_oldest(NOW).expect("merged"), None);
    }
    assert_eq!(journal.merges_due_before_next(&policy, at(1000)), 0);
    assert_eq!(journal.points().len(), 1);
    assert_points(&journal, &points, "the newest");
}
