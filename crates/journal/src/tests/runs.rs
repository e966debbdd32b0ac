//! Points read through run files.

use super::*;
use crate::Held;

fn files(folder: &CutFolder) -> Vec<String> {
    match folder.list("runs") {
        Ok(mut names) => {
            names.retain(|name| name.ends_with(".run"));
            names.sort_unstable();
            names
                .into_iter()
                .map(|name| format!("runs/{name}"))
                .collect()
        }
        Err(_) => Vec::new(),
    }
}

fn tidy(journal: &mut Journal, segments: usize) {
    let tidied = journal.tidy_eagerly(segments).run().expect("tidied");
    journal.finish_tidy(tidied);
}

#[test]
fn readers_see_the_same_bytes_whatever_becomes_of_the_run_files() {
    let (mut joined, mut damaged) = (0, 0);
    for seed in 0..30 {
        let mut chance = Chance::new(seed);
        let (folder, mut primary) = (CutFolder::new(), Primary::new());
        let (mut journal, mut points) = seeded(&folder, &mut primary);
        let mut readers: Vec<(Arc<PointReader>, Known)> = Vec::new();
        for step in 0..40 {
            let before = files(&folder);
            match chance.below(12) {
                0..=3 => more(&mut journal, &folder, &mut primary, &mut points, 1),
                4..=6 => {
                    tidy(&mut journal, 1 + chance.index(4));
                    let after = files(&folder);
                    joined += u32::from(before.iter().any(|name| !after.contains(name)));
                }
                7 => {
                    journal.merge_oldest(NOW).expect("merged or held");
                }
                8 => {
                    let known = &points[points.len() - 1 - chance.index(points.len().min(4))];
                    if let Ok(reader) = journal.open_point(known.id) {
                        readers.push((reader, known.clone()));
                    }
                }
                9 => drop((!readers.is_empty()).then(|| readers.remove(0))),
                10 => {
                    let files = files(&folder);
                    if !files.is_empty() {
                        folder
                            .remove(&files[chance.index(files.len())])
                            .expect("removed");
                    }
                }
                _ => {
                    let files = files(&folder);
                    if !files.is_empty() {
                        let name = &files[chance.index(files.len())];
                        let at = chance.index(folder.content(name).expect("there").len());
                        let file = folder.open(name).expect("opened");
                        let mut byte = [0];
                        file.read_at(at as u64, &mut byte).expect("read");
                        file.write_at(at as u64, &[byte[0] ^ 0x10])
                            .expect("damaged");
                        damaged += 1;
                    }
                }
            }
            let context = format!("seed {seed}, step {step}");
            for (reader, known) in &readers {
                assert_content(reader, known, &context);
            }
            assert_points(&journal, &points, &context);
        }
    }
    assert!(joined > 10 && damaged > 10, "{joined}, {damaged}");
}

#[test]
fn a_point_whose_segments_have_run_files_is_opened_without_reading_them() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 6);
    tidy(&mut journal, 1);
    let tip = points.last().expect("there is one").clone();
    let segments = folder.list("segments").expect("listed");
    for name in &segments {
        folder
            .rename(&format!("segments/{name}"), &format!("incoming/{name}"))
            .expect("moved");
    }
    let reader = journal.open_point(tip.id).expect("no segment is needed");
    let read = reader.read_at(primary.ids[0], 0, &mut vec![0; tip.disks[0].len()]);
    assert!(matches!(read, Err(JournalError::Missing(_))), "{read:?}");
    for name in &segments {
        folder
            .rename(&format!("incoming/{name}"), &format!("segments/{name}"))
            .expect("back");
    }
    assert_content(&reader, &tip, "with its segments");
}

#[test]
fn a_tidy_runs_while_points_are_taken_and_merged_and_one_runs_at_a_time() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 20);
    let first = journal.begin_tidy().expect("21 segments");
    assert!(journal.begin_tidy().is_none(), "it runs");
    more(&mut journal, &folder, &mut primary, &mut points, 3);
    for _ in 0..5 {
        journal.merge_oldest(NOW).expect("merged");
    }
    let tidied = first.run().expect("done");
    assert_points(&journal, &points, "tidied");
    journal.finish_tidy(tidied);
    assert_eq!(files(&folder).len(), 1);
    assert!(journal.begin_tidy().is_none(), "3 new ones, 5 gone");
    more(&mut journal, &folder, &mut primary, &mut points, 13);
    let second = journal
        .begin_tidy()
        .expect("16 new ones")
        .run()
        .expect("done");
    journal.finish_tidy(second);
    assert_eq!(files(&folder).len(), 2);
    assert_points(&journal, &points, "tidied again");
    while journal.merge_oldest(NOW).expect("merged").is_none() {}
    let third = journal.begin_tidy().expect("all went").run().expect("done");
    journal.finish_tidy(third);
    assert_eq!(files(&folder), Vec::<String>::new());
    assert!(journal.begin_tidy().is_none());
}

#[test]
fn a_segment_that_is_damaged_gets_no_run_file_and_the_others_do() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 5);
    let name = format!("segments/{}.seg", points[3].root);
    let file = folder.open(&name).expect("opened");
    let bytes = folder.content(&name).expect("there");
    file.write_at(100, &[bytes[100] ^ 1]).expect("damaged");
    tidy(&mut journal, 1);
    for known in &points {
        let opened = journal.open_point(known.id);
        // Those from it on need it.
        if known.id.sequence < points[3].id.sequence {
            assert_content(&opened.expect("does not need it"), known, "others");
        } else {
            opened.expect_err("damaged");
        }
    }
    file.write_at(100, &[bytes[100]]).expect("repaired");
    assert_points(&journal, &points, "repaired");
}

#[test]
fn a_tidy_that_fails_or_loses_power_at_any_call_loses_nothing_and_is_done_again() {
    let (mut failed, mut cut) = (0, 0);
    for calls in 0..40 {
        for power in [false, true] {
            let (folder, mut primary) = (CutFolder::new(), Primary::new());
            let (mut journal, mut points) = seeded(&folder, &mut primary);
            more(&mut journal, &folder, &mut primary, &mut points, 4);
            tidy(&mut journal, 2);
            more(&mut journal, &folder, &mut primary, &mut points, 4);
            let context = format!("call {calls}");
            let folder = if power {
                folder.cut_after(calls);
                let run = journal.tidy_eagerly(1).run();
                cut += u32::from(run.is_err());
                folder.cut(calls)
            } else {
                folder.fail_after(calls);
                failed += u32::from(journal.tidy_eagerly(1).run().is_err());
                folder.fail_after(u64::MAX);
                assert_points(&journal, &points, &context);
                folder
            };
            let mut journal = reopen(&folder).expect("whole");
            assert_points(&journal, &points, &context);
            tidy(&mut journal, 1);
            assert_eq!(files(&folder).len(), 1, "{context}");
            assert_points(&journal, &points, &context);
        }
    }
    assert!(failed > 5 && cut > 5, "{failed}, {cut}");
}

#[test]
fn a_run_file_of_another_journal_says_nothing() {
    let journals: Vec<_> = (0..2)
        .map(|_| {
            let (folder, mut primary) = (CutFolder::new(), Primary::new());
            let (mut journal, mut points) = seeded(&folder, &mut primary);
            more(&mut journal, &folder, &mut primary, &mut points, 3);
            tidy(&mut journal, 1);
            (folder, journal, points)
        })
        .collect();
    let [(ours, journal, points), (theirs, ..)] = &journals[..] else {
        unreachable!("two")
    };
    for name in files(theirs) {
        let bytes = theirs.content(&name).expect("there");
        let file = ours.create(&name).expect("made");
        file.write_at(0, &bytes).expect("written");
        // Under a name that is not its own it is not even opened for that.
        let other = ours.create("runs/0.run").expect("made");
        other.write_at(0, &bytes).expect("written");
    }
    assert_points(journal, points, "with a stranger's");
    let tidied = journal.tidy_eagerly(1).run();
    tidied.expect("removed them");
    assert_eq!(files(ours).len(), 1);
    assert_points(journal, points, "without");
}

#[test]
fn a_pinned_point_is_opened_and_read_while_another_thread_merges_and_tidies() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 40);
    let pinned = points[40].clone();
    journal.pin(pinned.id, "test failover").expect("pinned");
    let kept = PointReader::open_pinned_in(&arc(&folder), pinned.id).expect("opened");
    let opened = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            for _ in 0..40 {
                tidy(&mut journal, 2);
                let held = journal.merge_oldest(NOW).expect("merged");
                assert!(held.is_none_or(|held| held == Held::Point(pinned.id)));
                more(&mut journal, &folder, &mut primary, &mut points, 1);
            }
        });
        let mut opened = 0;
        while !worker.is_finished() || opened == 0 {
            let reader = PointReader::open_pinned_in(&arc(&folder), pinned.id).expect("opened");
            assert_content(&reader, &pinned, "opened meanwhile");
            assert_content(&kept, &pinned, "opened before");
            opened += 1;
        }
        worker.join().expect("worked");
        opened
    });
    assert!(opened > 0);
    assert_points(&journal, &points, "at the end");
}
