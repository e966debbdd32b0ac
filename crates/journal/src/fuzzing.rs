//! Entry points for the fuzz targets; nothing else may use them.
//!
//! Everything that a journal reads names its own hash, so that random changes never get past the first
//! check. What is here puts the hashes right, as somebody who forges a file would.

use std::sync::Arc;

use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, PointId, SeedId, Since, VmId};

use crate::changes::{Changes, Gather, SetError, forge};
use crate::index::{
    self, Base, BaseDisk, Change, ChangeSet, DiskSet, Entry, Index, Note, Pin, Place, bytes_of,
    read_bytes,
};
use crate::runs::{self, Held, RunError};
use crate::segment::forged;
use crate::{Consistency, DiskExtent, JournalError, Root};

/// Reads `bytes` as the index of a journal after putting its hashes right; its canonical bytes if it is
/// one.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// When it is not read as it was written.
pub fn index(bytes: &[u8]) -> Result<Vec<u8>, JournalError> {
    let mut bytes = bytes.to_vec();
    index::forge(&mut bytes);
    let index = read_bytes(bytes)?;
    let bytes = bytes_of(&index)?;
    let again = read_bytes(bytes.clone())?;
    assert_eq!(again, index, "an index is read as it was written");
    Ok(bytes)
}

/// Puts the hashes of a segment right, as far as its parts lie inside `bytes`.
pub fn forge_segment(bytes: &mut [u8]) {
    forged::mend(bytes);
}

/// Puts the hashes of a run file right, as far as its parts lie inside `bytes`.
pub fn forge_run_file(bytes: &mut [u8]) {
    runs::forged::mend(bytes);
}

/// Reads all of a run file in each way that there is. Gives the number of its entries.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// When two ways do not agree.
pub fn run_file(bytes: Vec<u8>) -> Result<u64, RunError> {
    runs::forged::read(Arc::new(Held(bytes)))
}

/// Good run files: of no entry, of one leaf, of several.
#[must_use]
pub fn run_files() -> Vec<Vec<u8>> {
    [0, 100, 260]
        .into_iter()
        .filter_map(|blocks| runs::forged::example(blocks).ok())
        .collect()
}

/// Good indexes: while it is seeded, with points, while it is merged.
///
/// # Panics
/// Never: what is made here can be written.
#[must_use]
pub fn indexes() -> Vec<Vec<u8>> {
    let lineage = Lineage::begin("host-a");
    let term = lineage.current().id;
    let seed = SeedId::random();
    let size = Bytes(8 * BLOCK_SIZE);
    let disk = DiskId::random();
    let disks: DiskSet = Arc::from([DiskExtent {
        id: disk,
        size,
        joining: false,
    }]);
    let point = |sequence| PointId { term, sequence };
    let entry = |sequence| Entry {
        point: point(sequence),
        since: match sequence {
            1 => Since::Seed { seed, parts: 2 },
            _ => Since::Point(point(sequence - 1)),
        },
        time: Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
        disks: disks.clone(),
        root: Root([7; 32]),
        stored: Root([if sequence == 3 { 8 } else { 7 }; 32]),
        place: match sequence {
            2 => Place::Pack { pack: 1, at: 4096 },
            _ => Place::Own,
        },
        file_len: Bytes(5000),
        content: Bytes(8192),
        zeroes: Bytes(4096),
    };
    let index = |base, changes| {
        let mut index = Index::new(VmId::random(), seed, vec![BaseDisk::new(disk, size)]);
        index.base = base;
        index.lineage = Some(lineage.clone());
        index.apply(changes).expect("they can be made");
        bytes_of(&index).expect("can be written")
    };
    let seeding = Base::Seeding {
        parts: 1,
        last: None,
    };
    let notes = [
        Note::Pin(Pin {
            point: point(2),
            reason: "export".to_owned(),
        }),
        Note::Lock {
            point: point(3),
            until: Timestamp::UNIX_EPOCH,
        },
        Note::Disks(vec![BaseDisk {
            whole_from: Some(3),
            ..BaseDisk::new(disk, size)
        }]),
        Note::ChangeSets {
            add: vec![ChangeSet {
                number: 1,
                since: Since::Point(point(1)),
                point: point(3),
                len: Bytes(100),
                hash: Root([1; 32]),
            }],
            remove: vec![],
        },
    ];
    let mut points = vec![Change::Point(entry(2)), Change::Point(entry(3))];
    points.extend(notes.map(Change::Note));
    vec![
        index(seeding, vec![]),
        index(Base::Point(entry(1)), points),
        index(Base::Merging, vec![Change::Point(entry(2))]),
    ]
}

/// Reads `bytes` as a change set whose hash is right.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// When it is read and not written again as it was.
pub fn change_set(bytes: &[u8]) -> Result<(), SetError> {
    let mut bytes = bytes.to_vec();
    forge(&mut bytes);
    let set = Changes::from_bytes(&bytes)?;
    assert!(set.to_bytes() == bytes, "a change set has one form");
    for disk in &set.disks {
        let size = disk.size.0 / BLOCK_SIZE;
        assert!(disk.extents().all(|extent| extent.end <= size));
    }
    Ok(())
}

/// Good change sets: of some disks, with and without changes, in small and large units.
#[must_use]
pub fn change_sets() -> Vec<Vec<u8>> {
    let point = |sequence| PointId {
        term: Lineage::begin("host-a").current().id,
        sequence,
    };
    let disk = |limit| {
        let mut gather = Gather::new(limit);
        for start in 0..20 {
            gather.push(start * 70..start * 70 + 1 + start % 3);
        }
        gather.finish(DiskId::random(), Bytes(1390 * BLOCK_SIZE))
    };
    let since = Since::Seed {
        seed: SeedId::random(),
        parts: 3,
    };
    let set = |since, disks| Changes {
        since,
        point: point(9),
        disks,
    };
    [
        set(since, vec![]),
        set(Since::Point(point(4)), vec![disk(100), disk(5)]),
    ]
    .iter()
    .map(Changes::to_bytes)
    .collect()
}
