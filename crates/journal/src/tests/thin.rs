//! Points in the middle go: what is left is what it was, whoever reads it meanwhile.

use super::*;

/// A journal whose points are a second apart.
fn journal_of(points: usize) -> (CutFolder, Primary, Journal, Vec<Known>) {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut known) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut known, points - 1);
    (folder, primary, journal, known)
}

fn numbers(journal: &Journal) -> Vec<u64> {
    ids(journal).iter().map(|point| point.sequence).collect()
}

fn files(folder: &CutFolder) -> usize {
    folder.list("segments").expect("listed").len()
}

#[test]
fn points_between_those_that_are_kept_go_and_the_rest_reads_as_before() {
    let (folder, mut primary, mut journal, mut points) = journal_of(45);
    let policy = keep("5s:all,30s:10s");
    let tip = journal.tip();
    let (merges, thinned) = journal.retain(&policy, at(45)).expect("done");
    assert!(merges > 0 && thinned > 0, "{merges}, {thinned}");
    // 15 is the first of its ten that was left when 14 had to go.
    assert_eq!(numbers(&journal), [15, 20, 30, 40, 41, 42, 43, 44, 45]);
    assert_points(&journal, &points, "thinned");
    assert_eq!(journal.tip(), tip);
    assert_eq!(files(&folder), 8, "the base has the oldest");
    assert_eq!(journal.retain(&policy, at(45)).expect("done"), (0, 0));

    // An acknowledgement that was lost is still one, though the stored segment is another.
    let thirty = points.iter().find(|known| known.id.sequence == 30);
    let thirty = thirty.expect("known");
    let entry = journal.index.find(thirty.id).expect("there").1;
    assert_eq!(entry.root, thirty.root);
    assert_ne!(entry.stored, thirty.root);

    let mut journal = reopen(&folder).expect("opened");
    assert_points(&journal, &points, "opened again");
    more(&mut journal, &folder, &mut primary, &mut points, 20);
    journal.retain(&policy, at(65)).expect("done");
    assert_eq!(numbers(&journal), [40, 50, 60, 61, 62, 63, 64, 65]);
    assert_points(&journal, &points, "thinned again");
    while journal.merge_oldest(NOW).expect("merged").is_none() {}
    assert_points(&journal, &points, "merged into the base");
}

#[test]
fn a_segment_that_hides_all_that_goes_into_it_stays() {
    let (folder, mut primary, mut journal, mut points) = journal_of(1);
    let first = points[0].clone();
    primary.write(&mut Chance::new(5));
    // The third point has all that the second one has, and no more.
    for _ in 0..2 {
        let since = Since::Point(first.id);
        let known = follow(&mut journal, &folder, &mut primary, since, &first.disks);
        points.push(known);
    }
    let stored = journal.index.newest().expect("there").stored;
    journal.retain(&keep("1:all,30s:10s"), at(3)).expect("done");
    assert_eq!(numbers(&journal), [1, 3]);
    assert_eq!(journal.index.newest().expect("there").stored, stored);
    assert_points(&journal, &points, "thinned");
    let journal = reopen(&folder).expect("opened");
    assert_points(&journal, &points, "opened again");
}

#[test]
fn nothing_is_touched_at_or_below_a_point_that_is_open_or_pinned() {
    for pinned in [false, true] {
        let (_folder, _, mut journal, points) = journal_of(30);
        let policy = keep("2s:all,30s:10s");
        let middle = &points[16];
        let lease = if pinned {
            journal.pin(middle.id, "export").expect("pinned");
            None
        } else {
            Some(journal.open_point(middle.id).expect("opened"))
        };
        journal.retain(&policy, at(30)).expect("done");
        let all_below: Vec<u64> = (1..=17).collect();
        assert_eq!(
            numbers(&journal),
            [&all_below[..], &[20, 28, 29, 30]].concat()
        );
        if let Some(reader) = lease {
            assert_content(&reader, middle, "while others went");
        } else {
            journal.unpin(middle.id, "export").expect("unpinned");
        }
        journal.retain(&policy, at(30)).expect("done");
        assert_eq!(numbers(&journal), [1, 10, 20, 28, 29, 30]);
        assert_points(&journal, &points, "all went");
    }
}

#[test]
fn a_locked_point_stays_until_then_and_holds_no_others() {
    let (_folder, _, mut journal, points) = journal_of(30);
    let policy = keep("2s:all,30s:10s");
    journal.lock(points[16].id, at(100)).expect("locked");
    journal.retain(&policy, at(30)).expect("done");
    assert_eq!(numbers(&journal), [1, 10, 17, 20, 28, 29, 30]);
    journal.retain(&policy, at(101)).expect("done");
    assert_eq!(numbers(&journal), [1, 10, 20, 28, 29, 30]);
    assert_points(&journal, &points, "unlocked");
}

#[test]
fn what_was_pinned_locked_or_opened_meanwhile_stays() {
    let policy = keep("2s:all,30s:10s");
    for way in 0..3 {
        let (folder, mut primary, mut journal, mut points) = journal_of(30);
        let thin = journal
            .begin_thin(&policy, at(30), Bytes(0))
            .expect("begun");
        let thin = thin.expect("something goes");
        let gone: Vec<_> = thin.gone().collect();
        assert_eq!(gone.len(), 8, "2 to 9");
        assert!(matches!(
            journal.begin_thin(&policy, at(30), Bytes(0)),
            Err(JournalError::Busy)
        ));
        assert!(matches!(journal.begin_merge(NOW), Err(JournalError::Busy)));
        let thinning = std::thread::spawn(|| thin.run());
        more(&mut journal, &folder, &mut primary, &mut points, 2);
        let mut reader = None;
        match way {
            0 => journal.pin(gone[3], "export").expect("pinned"),
            1 => journal.lock(gone[3], at(1000)).expect("locked"),
            _ => reader = Some(journal.open_point(points[20].id).expect("opened")),
        }
        let thinned = thinning.join().expect("no panic").expect("written");
        let before = numbers(&journal);
        assert!(!journal.finish_thin(thinned, at(32)).expect("given up"));
        assert_eq!(numbers(&journal), before);
        assert_points(&journal, &points, "given up");
        assert_eq!(files(&folder), before.len(), "nothing is left of it");
        drop(reader);
        journal.retain(&policy, at(32)).expect("done");
        assert_points(&journal, &points, "later");
    }
}

#[test]
fn without_room_nothing_is_thinned_and_merging_goes_on() {
    let (folder, _, mut journal, points) = journal_of(60);
    let policy = keep("5s:all,30s:10s");
    folder.say_free(3000);
    let (merges, thinned) = journal.retain(&policy, at(60)).expect("done");
    assert!(merges > 20 && thinned == 0, "{merges}, {thinned}");
    assert_points(&journal, &points, "merged");
    folder.say_free(10 << 20);
    let reserve = Bytes(10 << 20);
    let none = journal.begin_thin(&policy, at(60), reserve).expect("asked");
    assert!(none.is_none(), "that is kept for merging");
    let (_, thinned) = journal.retain(&policy, at(60)).expect("done");
    assert!(thinned > 0);
    assert_points(&journal, &points, "thinned");
}

#[test]
fn whatever_call_fails_every_point_is_whole_and_it_goes_on_afterwards() {
    let policy = keep("2s:all,30s:10s");
    let mut failed = 0;
    for fault in 0.. {
        let (folder, mut primary, mut journal, mut points) = journal_of(22);
        folder.fail_after(fault);
        let outcome = journal.retain(&policy, at(22));
        folder.fail_after(u64::MAX);
        assert_points(&journal, &points, "it failed");
        if fault % 2 == 0 {
            drop(journal);
            journal = reopen(&folder).expect("opened");
            assert_points(&journal, &points, "it failed, opened");
        }
        more(&mut journal, &folder, &mut primary, &mut points, 10);
        journal.retain(&policy, at(32)).expect("done now");
        // What was left of the first ten when the first point grew too old.
        let left = numbers(&journal);
        let rest = left.strip_prefix(&[2]).unwrap_or(&left);
        assert_eq!(rest, [10, 20, 30, 31, 32]);
        assert_points(&journal, &points, "done");
        // A file that could not be removed goes when it is opened.
        drop(journal);
        assert_points(&reopen(&folder).expect("opened"), &points, "at last");
        assert_eq!(files(&folder), left.len() - 1, "call {fault}");
        failed += u32::from(outcome.is_err());
        if outcome.is_ok() && fault > 40 {
            break;
        }
    }
    println!("{failed} calls failed");
    assert!(failed > 10, "{failed}");
}

#[test]
fn a_damaged_segment_is_never_put_into_another_one() {
    let (folder, _, mut journal, points) = journal_of(24);
    let policy = keep("2s:all,30s:10s");
    let name = format!("segments/{}.seg", points[4].root);
    let bytes = folder.content(&name).expect("there");
    let file = folder.open(&name).expect("opened");
    for at_byte in (0..bytes.len()).step_by(211) {
        file.write_at(at_byte as u64, &[bytes[at_byte] ^ 1])
            .expect("damaged");
        match journal.retain(&policy, at(24)) {
            Err(JournalError::Segment { name: told, .. }) => assert_eq!(told, name),
            Err(error) => panic!("{error:?}"),
            // A frame of which nothing is visible is not looked at.
            Ok(_) => {
                file.write_at(at_byte as u64, &[bytes[at_byte]])
                    .expect("repaired");
                break;
            }
        }
        assert_eq!(journal.points().len(), 24);
        file.write_at(at_byte as u64, &[bytes[at_byte]])
            .expect("repaired");
    }
    journal.retain(&policy, at(24)).expect("repaired");
    assert_points(&journal, &points, "repaired");
}

/// A point that is open for as long as one likes holds what was there when it was opened, and no more.
#[test]
fn under_an_open_point_nothing_piles_up_and_what_comes_above_it_is_thinned() {
    for pinned in [false, true] {
        let (folder, mut primary) = (CutFolder::new(), Primary::new());
        let (mut journal, mut points) = seeded(&folder, &mut primary);
        let policy = keep("3s:all,1000s:20s");
        more(&mut journal, &folder, &mut primary, &mut points, 10);
        let open = points[10].clone();
        let reader = (!pinned).then(|| journal.open_point(open.id).expect("opened"));
        if pinned {
            journal.pin(open.id, "a test").expect("pinned");
        }
        let mut most = 0;
        for _ in 0..40 {
            more(&mut journal, &folder, &mut primary, &mut points, 5);
            let now = at(primary.sequence);
            journal.retain(&policy, now).expect("done");
            let (below, above): (Vec<_>, Vec<_>) = journal
                .points()
                .into_iter()
                .partition(|point| point.id.sequence <= open.id.sequence);
            assert!(below.len() <= 11, "{}", below.len());
            most = most.max(above.len());
        }
        // Of 200: one of each 20 s, and the newest.
        assert!(most < 25, "{most}");
        assert_points(&journal, &points, "open");
        drop(reader);
        if pinned {
            journal.unpin(open.id, "a test").expect("unpinned");
        }
        journal.retain(&policy, at(primary.sequence)).expect("done");
        let below = journal.points().into_iter();
        let below = below.filter(|point| point.id.sequence <= open.id.sequence);
        assert!(below.count() <= 3, "thinned once it is closed");
        assert_points(&journal, &points, "closed");
    }
}

/// The base, byte by byte.
fn bases(folder: &CutFolder) -> Vec<(String, Vec<u8>)> {
    let mut names = folder.list("").expect("listed");
    names.retain(|name| name.starts_with("base-"));
    names.sort();
    let content = |name: String| (name.clone(), folder.content(&name).expect("there"));
    names.into_iter().map(content).collect()
}

/// What [`Journal::retain`] does where the base has to stay. Gives how often segments were put together.
fn retain_above_base(journal: &mut Journal, keep: &Keep, now: Timestamp) -> u32 {
    let mut thinned = 0;
    while let Some(thin) = journal
        .begin_thin_oldest(keep, now, Bytes(0))
        .expect("begun")
    {
        let done = thin.run().expect("written");
        assert!(journal.finish_thin(done, now).expect("published"));
        thinned += 1;
    }
    thinned
}

#[test]
fn above_a_base_that_stays_the_oldest_points_take_twice_what_differs_and_no_more() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    let (base, policy) = (bases(&folder), keep("5:all"));
    // Each block once, with what describes it, and the newest ones that the policy keeps.
    let whole = BLOCKS.iter().sum::<usize>() as u64 * (BLOCK_SIZE + 64) + 4096;
    let (mut most, mut thinned, mut came) = (0, 0, 0);
    for round in 0..60 {
        more(&mut journal, &folder, &mut primary, &mut points, 5);
        let now = at(primary.sequence);
        let newest = journal.points().into_iter().rev().take(5);
        came += newest.map(|point| point.file_len.0).sum::<u64>();
        thinned += retain_above_base(&mut journal, &policy, now);
        let left = journal.points();
        let (going, kept) = left.split_at(left.len() - 5);
        assert!(going.len() <= crate::thin::PARTS + 8, "{}", going.len());
        most = most.max(going.iter().map(|point| point.file_len.0).sum());
        assert_eq!(
            kept.last().map(|point| point.id),
            points.last().map(|it| it.id)
        );
        if round % 10 == 0 {
            assert_points(&journal, &points, "put together");
            drop(journal);
            journal = reopen(&folder).expect("opened");
        }
        assert!(bases(&folder) == base, "the base was written to");
    }
    println!("{most} at most of {came}, {thinned} times");
    assert!(
        most < 2 * whole && came > 6 * whole,
        "{most} of {came}, {whole}"
    );
    assert_points(&journal, &points, "put together");

    // It need not stay any more.
    let now = at(primary.sequence);
    let (merges, _) = journal.retain(&policy, now).expect("done");
    assert!(merges > 0);
    assert_eq!(ids(&journal).len(), 5);
    assert_points(&journal, &points, "merged");
}

#[test]
fn above_a_base_that_stays_nothing_is_put_together_without_room_or_at_a_point_that_is_read() {
    let (folder, _, mut journal, points) = journal_of(60);
    let (policy, now) = (keep("5:all"), at(60));
    let begin = |journal: &mut Journal, reserve| {
        let begun = journal.begin_thin_oldest(&policy, now, Bytes(reserve));
        begun.expect("asked").map(|thin| thin.gone().count())
    };
    folder.say_free(300);
    assert_eq!(begin(&mut journal, 0), None);
    folder.say_free(10 << 20);
    assert_eq!(begin(&mut journal, 10 << 20), None);
    assert!(begin(&mut journal, 0).is_some());
    let (open, pinned) = (points[20].clone(), points[30].clone());
    let reader = journal.open_point(open.id).expect("opened");
    journal.pin(pinned.id, "export").expect("pinned");
    journal.lock(points[40].id, at(100)).expect("locked");
    retain_above_base(&mut journal, &policy, now);
    let left = numbers(&journal);
    assert_eq!(left[..31], (1..=31).collect::<Vec<_>>());
    drop(reader);
    journal.unpin(pinned.id, "export").expect("unpinned");
    retain_above_base(&mut journal, &policy, now);
    let left = numbers(&journal);
    assert!(left.contains(&41) && left.len() < 30, "{left:?}");
    assert_points(&journal, &points, "put together");
}
