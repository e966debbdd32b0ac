//! What is damaged is found, and exactly the points that suffer from it are named.

use std::ops::ControlFlow;

use super::*;
use crate::Report;

fn verified(journal: &Journal) -> Report {
    let report = journal.verify().run(&mut |_| ControlFlow::Continue(()));
    let report = report.expect("read");
    assert!(report.finished);
    report
}

/// The points that cannot be read, or read as something else.
fn wrong(journal: &Journal, known: &[Known]) -> Vec<PointId> {
    let reads_right = |point: PointId| {
        let known = known.iter().find(|known| known.id == point);
        let disks = &known.expect("known").disks;
        let Ok(reader) = journal.open_point(point) else {
            return false;
        };
        let mut contents = disks.iter().zip(reader.disks());
        contents.all(|(content, (id, _))| {
            let mut read = vec![0; content.len()];
            reader.read_at(id, 0, &mut read).is_ok() && read == *content
        })
    };
    let points = ids(journal).into_iter();
    points.filter(|point| !reads_right(*point)).collect()
}

#[test]
fn damage_anywhere_is_found_and_exactly_the_points_that_it_hurts_are_named() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 14);
    for _ in 0..3 {
        journal.merge_oldest(NOW).expect("merged");
    }
    journal
        .retain(&keep("8:all,20:7s"), at(15))
        .expect("thinned");
    assert_eq!(verified(&journal).damage.len(), 0);
    let (mut some, mut none) = (0, 0);
    for entry in journal.index.segments.clone() {
        let name = entry.file();
        let bytes = folder.content(&name).expect("there");
        let file = folder.open(&name).expect("opened");
        for at in (0..bytes.len()).step_by(97) {
            file.write_at(at as u64, &[bytes[at] ^ 4]).expect("damaged");
            let report = verified(&journal);
            let hurt = wrong(&journal, &points);
            assert_eq!(report.damage.len(), 1, "byte {at} of {name}");
            assert_eq!(report.damage[0].file, name);
            assert_eq!(report.damage[0].points, hurt, "byte {at} of {name}");
            some += u32::from(hurt.len() > 1);
            none += u32::from(hurt.len() == 1);
            file.write_at(at as u64, &[bytes[at]]).expect("repaired");
        }
        folder.remove(&name).expect("removed");
        let report = verified(&journal);
        assert!(matches!(report.damage[0].fault, JournalError::Missing(_)));
        assert_eq!(report.damage[0].points, wrong(&journal, &points));
        folder
            .create(&name)
            .and_then(|file| file.write_at(0, &bytes))
            .expect("back");
    }
    assert!(some > 0 && none > 0, "{some}, {none}");
    assert_eq!(verified(&journal).damage.len(), 0);
}

#[test]
fn a_base_that_cannot_be_read_hurts_the_points_that_read_it() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 12);
    journal.merge_oldest(NOW).expect("merged");
    for disk in journal.index.disks.clone() {
        let name = disk.file();
        let bytes = folder.content(&name).expect("there");
        let file = folder.open(&name).expect("opened");
        file.set_len(bytes.len() as u64 - 4096).expect("cut short");
        let report = verified(&journal);
        assert_eq!(report.damage.len(), 1);
        assert_eq!(report.damage[0].file, name);
        // It is read in pieces that are larger than these disks.
        let hurt = wrong(&journal, &points);
        assert!(
            hurt.iter()
                .all(|point| report.damage[0].points.contains(point))
        );
        assert!(report.damage[0].points.len() > 1);
        file.write_at(0, &bytes).expect("repaired");
    }
    assert_eq!(verified(&journal).damage.len(), 0);
}

#[test]
fn a_damaged_run_file_is_named_and_hurts_no_point() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 12);
    let tidied = journal.tidy_eagerly(2).run().expect("tidied");
    journal.finish_tidy(tidied);
    let names = folder.list("runs").expect("listed");
    let name = format!("runs/{}", names.first().expect("there is one"));
    let bytes = folder.content(&name).expect("there");
    let file = folder.open(&name).expect("opened");
    assert_eq!(verified(&journal).damage.len(), 0);
    for at in (0..bytes.len()).step_by(509) {
        file.write_at(at as u64, &[bytes[at] ^ 4]).expect("damaged");
        let report = verified(&journal);
        assert_eq!(report.damage.len(), 1, "byte {at}");
        assert_eq!(
            (&report.damage[0].file, &report.damage[0].points),
            (&name, &vec![])
        );
        file.write_at(at as u64, &[bytes[at]]).expect("repaired");
    }
}

#[test]
fn it_goes_on_while_the_journal_changes_and_stops_when_it_is_asked_to() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 20);
    let verify = journal.verify();
    let mut calls = 0_u32;
    let report = verify.run(&mut |progress| {
        assert!(progress.done <= progress.total);
        calls += 1;
        if calls == 5 {
            // Most of what was there goes.
            more(&mut journal, &folder, &mut primary, &mut points, 3);
            journal.retain(&keep("4:all,12:6s"), at(24)).expect("done");
        }
        ControlFlow::Continue(())
    });
    let report = report.expect("read");
    assert!(report.finished && report.damage.is_empty(), "{report:?}");
    assert!(calls > 20);

    let verify = journal.verify();
    let mut calls = 0;
    let stopped = verify.run(&mut |_| {
        calls += 1;
        if calls == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let stopped = stopped.expect("read");
    assert!(!stopped.finished && calls == 3);
}

/// So that the primary, which compares, sends exactly that again.
#[test]
fn what_is_damaged_of_a_point_is_unlike_anything_and_the_rest_is_compared() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 9);
    let tip = points.last().expect("there is one").clone();
    let mut damaged = 0;
    for entry in journal.index.segments.clone() {
        let name = entry.file();
        let bytes = folder.content(&name).expect("there");
        let file = folder.open(&name).expect("opened");
        for at in (0..bytes.len()).step_by(61) {
            file.write_at(at as u64, &[bytes[at] ^ 4]).expect("damaged");
            // Without its index a segment tells nothing.
            if let Ok(reader) = journal.open_point(tip.id) {
                for (id, content) in tip.ids.iter().zip(&tip.disks) {
                    let (image, size) = (reader.image(*id).expect("has it"), content.len());
                    let hashes = image.region_hashes(0, Bytes(size as u64)).expect("told");
                    let differ = hashes.differ(&crate::compare::BlockHashes::of(content));
                    let differ = differ
                        .iter()
                        .flat_map(|run| run.first..run.first + run.count);
                    let is_bad = |block: &u64| {
                        let mut read = vec![0; BLOCK];
                        reader
                            .read_at(*id, block * BLOCK as u64, &mut read)
                            .is_err()
                    };
                    let bad: Vec<u64> = (0..size.div_ceil(BLOCK) as u64).filter(is_bad).collect();
                    // A piece that is read at once is told as a whole.
                    let differ: Vec<u64> = differ.collect();
                    assert!(
                        bad.iter().all(|block| differ.contains(block)),
                        "{at} of {name}"
                    );
                    assert_eq!(bad.is_empty(), differ.is_empty(), "{at} of {name}");
                    damaged += bad.len();
                }
            }
            file.write_at(at as u64, &[bytes[at]]).expect("repaired");
        }
    }
    assert!(damaged > 0);
}
