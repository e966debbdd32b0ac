use std::sync::Mutex;

use super::*;
use crate::image::{at, put, read};

const LEN: u64 = ACCOUNTS * BLOCK as u64;
const DISKS: usize = 3;

/// Writes of all disks, in the order in which they were issued.
type Log = Mutex<Vec<(usize, u64, Vec<u8>)>>;

struct Memory<'a> {
    number: usize,
    content: Mutex<Vec<u8>>,
    log: &'a Log,
}

impl Disk for Memory<'_> {
    fn len(&self) -> u64 {
        LEN
    }
    fn is_empty(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, block: &mut [u8]) -> io::Result<()> {
        read(&self.content.lock().expect("no panic"), offset, block)
    }
    fn write(&self, offset: u64, block: &[u8]) -> io::Result<()> {
        put(&mut self.content.lock().expect("no panic"), offset, block);
        let entry = (self.number, offset, block.to_vec());
        self.log.lock().expect("no panic").push(entry);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn judge_images(images: &[Vec<u8>]) -> Result<Balanced, BankError> {
    let mut reads: Vec<_> = images
        .iter()
        .map(|image| |offset, block: &mut [u8]| read(image, offset, block))
        .collect();
    let mut disks: Vec<(u64, &mut Read<'_>)> = Vec::new();
    for read in &mut reads {
        disks.push((LEN, read));
    }
    judge(&mut disks)
}

/// The writes of a bank, and how many of them opened it.
fn written(transfers: u64) -> (Vec<(usize, u64, Vec<u8>)>, usize) {
    let log = Log::default();
    let disk = |number| Memory {
        number,
        content: Mutex::new(vec![0; at(LEN)]),
        log: &log,
    };
    let disks: Vec<Memory<'_>> = (0..DISKS).map(disk).collect();
    let disks = disks.iter().map(|disk| disk as &dyn Disk).collect();
    let mut bank = Bank::found(disks, Rng::new(7)).expect("memory");
    let opened = log.lock().expect("no panic").len();
    for number in 1..=transfers {
        assert_eq!(bank.transfer().expect("memory"), number);
    }
    drop(bank);
    (log.into_inner().expect("no panic"), opened)
}

/// Each disk after so many of all writes.
fn images(log: &[(usize, u64, Vec<u8>)], after: [usize; DISKS]) -> Vec<Vec<u8>> {
    let mut images = vec![vec![0; at(LEN)]; DISKS];
    for (n, (disk, offset, block)) in log.iter().enumerate() {
        if n < after[*disk] {
            put(&mut images[*disk], *offset, block);
        }
    }
    images
}

#[test]
fn at_every_instant_the_sum_is_right() {
    let (log, opened) = written(40);
    for instant in opened..=log.len() {
        let found = judge_images(&images(&log, [instant; DISKS])).expect("one instant");
        let writes = (instant - opened) as u64;
        assert_eq!(found.transfers, writes.div_ceil(2));
        assert_eq!(found.in_flight > 0, writes % 2 == 1);
    }
    let founding = judge_images(&images(&log, [opened - 1; DISKS])).expect_err("not all");
    assert!(
        matches!(founding, BankError::NoAccount { .. }),
        "{founding}"
    );
}

#[test]
fn a_disk_of_another_instant_makes_the_sum_wrong() {
    let (log, opened) = written(12);
    let mut wrong = 0;
    for instant in opened..=log.len() {
        for other in opened..=log.len() {
            for disk in 0..DISKS {
                let mut after = [instant; DISKS];
                after[disk] = other;
                let (first, last) = (instant.min(other), instant.max(other));
                // What was issued between the two, on the disk that has less of it and on the others.
                let missing =
                    |entry: &(usize, u64, Vec<u8>)| (entry.0 == disk) == (other < instant);
                let between = &log[first..last];
                let gap = between.iter().position(missing);
                let later = between.iter().rposition(|entry| !missing(entry));
                let is_one_instant = match (gap, later) {
                    (Some(gap), Some(later)) => later < gap,
                    _ => true,
                };
                let found = judge_images(&images(&log, after));
                assert_eq!(
                    found.is_ok(),
                    is_one_instant,
                    "{disk}: {other}, others: {instant}"
                );
                wrong += u32::from(found.is_err());
            }
        }
    }
    assert!(wrong > 500, "{wrong}");
}

#[test]
fn what_was_in_flight_is_received_when_the_bank_is_opened_again() {
    let (log, opened) = written(10);
    for instant in opened..=log.len() {
        let again = Log::default();
        let contents = images(&log, [instant; DISKS]);
        let disks: Vec<Memory<'_>> = (0..)
            .zip(contents)
            .map(|(number, content)| Memory {
                number,
                content: Mutex::new(content),
                log: &again,
            })
            .collect();
        let all = || disks.iter().map(|disk| disk as &dyn Disk).collect();
        let (mut bank, found) = Bank::open(all(), Rng::new(1)).expect("right");
        let (_, opened) = Bank::open(all(), Rng::new(1)).expect("right");
        assert_eq!((opened.transfers, opened.in_flight), (found.transfers, 0));
        assert_eq!(bank.transfer().expect("memory"), found.transfers + 1);
    }
}

#[test]
fn a_damaged_account_is_found() {
    let (log, _) = written(10);
    let mut images = images(&log, [log.len(); DISKS]);
    images[1][at(offset(LEN, 5)) + 100] ^= 1;
    let error = judge_images(&images).expect_err("damaged");
    assert!(
        matches!(
            error,
            BankError::Damaged {
                disk: 1,
                account: 5
            }
        ),
        "{error}"
    );
}
