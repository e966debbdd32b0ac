//! A write-intent log as a disk may hold it, and what is done with it then.
//!
//! Whatever the file says, it is refused, or it is a log: what was armed is armed after a reboot, what
//! was disarmed and not armed again is not, and nothing is armed that lies behind the end of the disk.

use std::ops::Range;

use block::{Buffer, Store};
use diskd::intent::{Armed, IntentLog, Looks, Tag};
use model::{DiskId, REGION_SIZE, RelationshipId};
use uuid::Uuid;

use crate::memory::{Memory, soon};

const TAG: Tag = Tag {
    disk: DiskId(Uuid::from_u128(1)),
    relationship: RelationshipId(Uuid::from_u128(2)),
};
const PAGE: usize = 4096;
/// Regions of two pages, and a few in a third.
const REGIONS: u64 = 2 * 31_744 + 70;
/// The header and three pages of bits, two copies of each.
const PAGES: usize = 8;
/// Largest disk that is opened, in bytes: a header may say 64 TiB, which takes time.
const LARGEST: u64 = 1 << 40;

fn open(store: &Memory) -> Option<IntentLog<Memory>> {
    soon(IntentLog::open(store.clone(), TAG.disk)).ok()
}

fn armed(log: &IntentLog<Memory>) -> Vec<Range<u64>> {
    let mut runs = Vec::new();
    let mut from = 0;
    while let Some(run) = log.next_armed(from..log.regions()) {
        from = run.end;
        runs.push(run);
    }
    runs
}

/// A page whose hash is right, whatever it says.
fn seal(page: &mut [u8]) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&page[..64]);
    hasher.update(&page[96..]);
    page[64..96].copy_from_slice(hasher.finalize().as_bytes());
}

/// A byte of how many bytes forge pages (each: page, where, value, whether the hash is put right), and
/// what is done then, three bytes each.
pub fn run(data: &[u8]) {
    let Some((&count, data)) = data.split_first() else {
        return;
    };
    let (forged, operations) = data.split_at((usize::from(count) * 4).min(data.len()));
    let store = Memory::default();
    let made = IntentLog::create(store.clone(), TAG, REGIONS * REGION_SIZE, Armed::None);
    soon(made).expect("a log in memory");
    let mut file = store.bytes(0, PAGES * PAGE);
    for change in forged.chunks_exact(4) {
        let page = &mut file[usize::from(change[0]) % PAGES * PAGE..][..PAGE];
        // The head and the first words of the content.
        page[usize::from(change[1])] = change[2];
        if change[3] % 2 == 0 {
            seal(page);
        }
    }
    let size = |copy: usize| {
        let at = copy * PAGE + 128;
        u64::from_le_bytes(file[at..at + 8].try_into().expect("8 bytes"))
    };
    if size(0).max(size(1)) > LARGEST {
        return;
    }
    soon(store.write(0, Buffer::from_slice(&file)));
    let Some(log) = open(&store) else { return };
    soon(log.opened(Looks::of(&[1]))).expect("memory does not fail");
    let end = log.regions();
    for operation in operations.chunks_exact(3).take(16) {
        let at = u64::from(operation[1]) * 251 % end;
        let range = at..(at + u64::from(operation[2])).min(end);
        match operation[0] % 4 {
            0 => {
                soon(log.disarm(std::slice::from_ref(&range))).expect("disarmed");
                assert_eq!(log.next_armed(range), None);
            }
            1 => {
                let size = (end + u64::from(operation[2])) * REGION_SIZE;
                soon(log.grow(size)).expect("grown");
            }
            _ => {
                soon(log.arm(range.clone())).expect("armed");
                if !range.is_empty() {
                    assert_eq!(log.next_armed(range.clone()), Some(range));
                }
            }
        }
    }
    let told = armed(&log);
    let sum: u64 = told.iter().map(|run| run.end - run.start).sum();
    assert_eq!(log.armed(), sum, "counted");
    assert!(told.last().is_none_or(|run| run.end <= log.regions()));
    let again = open(&store).expect("a log that was written");
    assert!(armed(&again) == told, "the next process finds the same");
}

/// Logs that are whole, torn, of others, and that say the impossible.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let operations: Vec<u8> = (0..48).map(|n: u8| n.wrapping_mul(89)).collect();
    let seed = |forged: &[[u8; 4]]| {
        let count = u8::try_from(forged.len()).expect("few");
        [&[count][..], &forged.concat(), &operations].concat()
    };
    vec![
        seed(&[]),
        // Bits, with a hash that is right and one that is not.
        seed(&[[2, 130, 0xff, 0], [3, 131, 0x55, 0]]),
        seed(&[[2, 130, 0xff, 1], [3, 131, 0x55, 1]]),
        // Generation, number, relationship, disk, size.
        seed(&[[2, 48, 9, 0], [3, 55, 0xff, 0]]),
        seed(&[[4, 40, 7, 0]]),
        seed(&[[6, 24, 1, 0], [7, 24, 1, 0]]),
        seed(&[[0, 8, 1, 0], [1, 8, 1, 0]]),
        seed(&[[0, 130, 0xff, 0], [1, 130, 0xff, 0]]),
        seed(&[[0, 136, 1, 0], [1, 176, 1, 0]]),
    ]
}
