use std::io;
use std::sync::Mutex;

use super::record::Block;
use super::*;
use crate::image::{put, read};

/// A disk in memory that remembers the order of its writes.
struct Memory {
    content: Mutex<Vec<u8>>,
    log: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Memory {
    fn new(blocks: usize) -> Self {
        Self {
            content: Mutex::new(vec![0; blocks * BLOCK]),
            log: Mutex::new(Vec::new()),
        }
    }

    fn image(&self) -> Vec<u8> {
        self.content.lock().expect("no panic").clone()
    }
}

impl Disk for Memory {
    fn len(&self) -> u64 {
        self.image().len() as u64
    }
    fn is_empty(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, block: &mut [u8]) -> io::Result<()> {
        read(&self.image(), offset, block)
    }
    fn write(&self, offset: u64, block: &[u8]) -> io::Result<()> {
        put(&mut self.content.lock().expect("no panic"), offset, block);
        let entry = (offset, block.to_vec());
        self.log.lock().expect("no panic").push(entry);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn judge(image: &[u8], cut: Cut) -> Result<Verified, VerifyError> {
    verify(image.len() as u64, cut, |offset, block| {
        read(image, offset, block)
    })
}

/// A disk of `blocks` on which `batches` of 8 records were written by `writers`.
fn written(blocks: usize, batches: u64, writers: u64) -> Memory {
    let disk = Memory::new(blocks);
    let mut writer = Writer::begin(&disk, [9; 16], 8, writers).expect("it fits");
    for n in 1..=batches {
        assert_eq!(writer.batch().expect("memory"), n * 8);
    }
    disk
}

#[test]
fn a_whole_disk_is_right_before_and_after_the_numbers_wrap() {
    for (blocks, batches) in [(1000, 5), (66, 5), (66, 8), (66, 9), (37, 40)] {
        let image = written(blocks, batches, 1).image();
        let found = judge(&image, Cut::Point).expect("right");
        assert_eq!((found.committed, found.newest), (batches * 8, batches * 8));
        let held = (batches * 8).min(blocks as u64 - FIRST_SLOT_BLOCK);
        assert_eq!(found.records_checked, held);
    }
}

#[test]
fn every_prefix_of_the_writes_is_a_point() {
    let disk = written(37, 9, 1);
    let mut image = vec![0; 37 * BLOCK];
    let mut newest = 0;
    for (offset, block) in disk.log.lock().expect("no panic").iter() {
        put(&mut image, *offset, block);
        let found = judge(&image, Cut::Point).expect("a prefix");
        assert!(found.newest >= newest && found.committed <= found.newest);
        newest = found.newest;
    }
    assert_eq!(newest, 72);
}

#[test]
fn a_write_that_is_missing_before_one_that_is_there_is_found() {
    let disk = written(200, 6, 1);
    let log = disk.log.lock().expect("no panic").clone();
    let mut found_all = 0;
    // The last write of a prefix may be missing; any other may not. Commit records are
    // overwritten by later ones, so only their effect on the newest can be seen.
    for missing in 1..log.len() - 12 {
        if log[missing].0 < FIRST_SLOT_BLOCK * BLOCK as u64 {
            continue;
        }
        let mut image = vec![0; 200 * BLOCK];
        for (n, (offset, block)) in log.iter().enumerate() {
            if n != missing {
                put(&mut image, *offset, block);
            }
        }
        let error = judge(&image, Cut::Point).expect_err("a gap");
        assert!(matches!(error, VerifyError::Missing { .. }), "{error}");
        found_all += 1;
    }
    assert!(found_all > 30);
}

#[test]
fn a_gap_above_the_commit_is_a_fault_of_a_point_and_not_of_a_power_loss() {
    let disk = written(200, 2, 1);
    let log = disk.log.lock().expect("no panic").clone();
    let mut image = vec![0; 200 * BLOCK];
    // The commit of 8, then records 9, 11 and 12 of the next batch, without 10.
    for (n, (offset, block)) in log.iter().enumerate().take(14) {
        if n != 11 {
            put(&mut image, *offset, block);
        }
    }
    let error = judge(&image, Cut::Point).expect_err("a gap");
    assert!(
        matches!(error, VerifyError::Missing { expected: 10, .. }),
        "{error}"
    );
    let found = judge(&image, Cut::PowerLoss).expect("not flushed");
    assert_eq!((found.committed, found.newest), (8, 12));
}

#[test]
fn a_flushed_record_that_was_lost_is_a_fault_in_any_case() {
    for cut in [Cut::Point, Cut::PowerLoss] {
        let disk = written(200, 4, 3);
        let mut image = disk.image();
        let (offset, _) = disk.log.lock().expect("no panic")[3];
        put(&mut image, offset, &[0; BLOCK]);
        let error = judge(&image, cut).expect_err("lost");
        assert!(matches!(error, VerifyError::Missing { .. }), "{error}");
    }
}

#[test]
fn an_older_record_in_the_place_of_a_flushed_one_is_found() {
    let disk = written(34, 8, 1);
    let log = disk.log.lock().expect("no panic").clone();
    let mut image = disk.image();
    // Record 1 was overwritten by record 33 long ago.
    put(&mut image, log[1].0, &log[1].1);
    let error = judge(&image, Cut::Point).expect_err("went back");
    assert!(
        matches!(error, VerifyError::Missing { expected: 33, .. }),
        "{error}"
    );
}

#[test]
fn a_commit_that_went_back_is_found_by_records_that_are_too_new() {
    let disk = written(200, 4, 1);
    let log = disk.log.lock().expect("no panic").clone();
    let mut image = disk.image();
    let commits: Vec<_> = log
        .iter()
        .filter(|(offset, _)| *offset < FIRST_SLOT_BLOCK * BLOCK as u64)
        .collect();
    for (offset, block) in &commits[1..3] {
        put(&mut image, *offset, block);
    }
    let error = judge(&image, Cut::PowerLoss).expect_err("went back");
    assert!(matches!(error, VerifyError::TooNew { .. }), "{error}");
}

#[test]
fn damage_anywhere_is_found() {
    let image = written(34, 8, 1).image();
    for block in 0..34 {
        let mut bad = image.clone();
        bad[block * BLOCK + 2000] ^= 1;
        judge(&bad, Cut::Point).expect_err("damaged");
    }
}

#[test]
fn a_torn_write_in_flight_is_forgiven_after_a_power_loss_only() {
    let disk = written(200, 2, 1);
    let log = disk.log.lock().expect("no panic").clone();
    let mut image = vec![0; 200 * BLOCK];
    for (offset, block) in &log[..11] {
        put(&mut image, *offset, block);
    }
    put(&mut image, log[11].0, &log[11].1[..512]);
    judge(&image, Cut::PowerLoss).expect("it was in flight");
    let error = judge(&image, Cut::Point).expect_err("points have no torn writes");
    assert!(matches!(error, VerifyError::Damaged { .. }), "{error}");
}

#[test]
fn a_record_in_the_wrong_place_is_found() {
    let mut image = written(200, 4, 1).image();
    let here: Vec<usize> = (2..200)
        .filter(|block| image[block * BLOCK] != 0)
        .take(2)
        .collect();
    let moved = image[here[0] * BLOCK..][..BLOCK].to_vec();
    image[here[1] * BLOCK..][..BLOCK].copy_from_slice(&moved);
    let error = judge(&image, Cut::Point).expect_err("moved");
    assert!(matches!(error, VerifyError::Misplaced { .. }), "{error}");
}

#[test]
fn a_new_run_makes_the_old_one_count_for_nothing() {
    let disk = written(200, 4, 1);
    let mut second = Writer::begin(&disk, [5; 16], 4, 1).expect("it fits");
    let found = judge(&disk.image(), Cut::Point).expect("begun");
    assert_eq!((found.run, found.newest), ([5; 16], 0));
    second.batch().expect("memory");
    let found = judge(&disk.image(), Cut::Point).expect("right");
    assert_eq!((found.committed, found.records_checked), (4, 4));
}

#[test]
fn hostile_commit_records_are_refused_without_a_panic() {
    let good = Commit {
        run: [1; 16],
        generation: 1,
        committed: 3,
        batch: 2,
        writers: 1,
        slots: 5,
    };
    let judge_commit = |commit: Commit| {
        let mut image = vec![0; 10 * BLOCK];
        let Block(block) = commit.to_block();
        put(&mut image, 0, &block);
        judge(&image, Cut::Point).expect_err("nonsense")
    };
    let huge = u64::MAX;
    for (committed, batch, slots) in [
        (huge, 2, 5),
        (3, huge, 5),
        (3, 0, 5),
        (3, 2, 0),
        (0, 1, huge),
    ] {
        let error = judge_commit(Commit {
            committed,
            batch,
            slots,
            ..good
        });
        assert!(matches!(error, VerifyError::Commit(0)), "{error}");
    }
    let slots = 9;
    let error = judge_commit(Commit { slots, ..good });
    assert!(matches!(error, VerifyError::Size { .. }), "{error}");
    let empty = judge(&[0; 4 * BLOCK], Cut::Point).expect_err("never ran");
    assert!(matches!(empty, VerifyError::NoRun), "{empty}");
    assert!(judge(&[], Cut::Point).is_err());
}
