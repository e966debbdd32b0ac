//! Entry points for the fuzz targets; nothing else may use them.
//!
//! Everything that a journal reads names its own hash, so that random changes never get past the first
//! check. What is here puts the hashes right, as somebody who forges a file would.

use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, PointId, SeedId, Since, VmId};

use crate::changes::{Changes, Gather, SetError, forge};
use crate::index::{Base, BaseDisk, Entry, Index, Pin};
use crate::segment::forged;
use crate::{Consistency, JournalError, Root};

/// Reads `body` as the index of a journal whose hash is right; its canonical bytes if it is one.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// When it is not read as it was written.
pub fn index(body: &[u8]) -> Result<Vec<u8>, JournalError> {
    let index = Index::from_bytes(&Index::with_hash(body))?;
    let bytes = index.to_bytes()?;
    let again = Index::from_bytes(&bytes)?;
    assert_eq!(again, index, "an index is read as it was written");
    Ok(bytes)
}

/// Puts the hashes of a segment right, as far as its parts lie inside `bytes`.
pub fn forge_segment(bytes: &mut [u8]) {
    forged::mend(bytes);
}

/// Bodies of good indexes: while it is seeded, with points, while it is merged.
///
/// # Panics
/// Never: what is made here has a JSON form.
#[must_use]
pub fn indexes() -> Vec<Vec<u8>> {
    let lineage = Lineage::begin("host-a");
    let term = lineage.current().id;
    let seed = SeedId::random();
    let size = Bytes(8 * BLOCK_SIZE);
    let entry = |sequence| Entry {
        point: PointId { term, sequence },
        since: Since::Seed { seed, parts: 2 },
        time: Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
        sizes: vec![size],
        root: Root([7; 32]),
        file_len: Bytes(5000),
        content: Bytes(8192),
        zeroes: Bytes(4096),
    };
    let index = |base, segments| Index {
        vm: VmId::random(),
        disks: vec![BaseDisk {
            id: DiskId::random(),
            size,
        }],
        seed,
        base,
        lineage: Some(lineage.clone()),
        segments,
        pins: vec![Pin {
            point: PointId { term, sequence: 2 },
            reason: "export".to_owned(),
        }],
    };
    let seeding = Base::Seeding {
        parts: 1,
        last: None,
    };
    [
        index(seeding, vec![]),
        index(Base::Point(entry(1)), vec![entry(2), entry(3)]),
        index(Base::Merging, vec![entry(2)]),
    ]
    .iter()
    .map(|index| serde_json::to_vec(index).expect("has a JSON form"))
    .collect()
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
