//! A disk of a point of a real journal.

use std::fs;
use std::path::Path;

use journal::{Consistency, Content, DiskExtent, Header, Journal, SegmentWriter};
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, SeedId, Since, VmId};
use ring::Ring;
use testkit::{Rng, image_conformance, read_only_conformance};

use super::*;

const BLOCKS: u64 = 256;
const BLOCK: usize = 4096;

/// A journal of one disk, and what its newest point holds.
struct Made {
    journal: Journal,
    disk: DiskId,
    content: Vec<u8>,
}

/// The initial replication and `points` points with random changes; `merged` of them are in the base.
fn made(folder: &Path, points: u64, merged: u64, rng: &mut Rng) -> Made {
    let (vm, disk, seed) = (VmId::random(), DiskId::random(), SeedId::random());
    let disks = vec![DiskExtent {
        joining: false,
        id: disk,
        size: Bytes(BLOCKS * BLOCK_SIZE),
    }];
    let mut journal = Journal::create(folder, vm, &disks, seed).expect("made");
    let mut content = vec![0; usize::try_from(BLOCKS).expect("small") * BLOCK];
    let mut header = Header {
        vm,
        disks,
        lineage: Lineage::begin("host-a"),
        content: Content::Seed { seed, part: 0 },
        time: jiff::Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
    };
    let mut since = Since::Seed { seed, parts: 1 };
    for sequence in 0..=points {
        if sequence > 0 {
            header.content = Content::Delta { sequence, since };
        }
        let mut writer = SegmentWriter::create(Vec::new(), &header).expect("a good header");
        // Runs of a few blocks, of which some are left as they were.
        let mut block = rng.below(8);
        while block < BLOCKS {
            let count = (1 + rng.below(4)).min(BLOCKS - block);
            let at = usize::try_from(block).expect("small") * BLOCK;
            let place = at..at + usize::try_from(count).expect("small") * BLOCK;
            if rng.once_in(4) {
                writer.push_zero(0, block, count).expect("fits");
                content[place].fill(0);
            } else {
                let bytes = rng.bytes(place.len());
                writer.push_frame(0, block, &bytes).expect("fits");
                content[place].copy_from_slice(&bytes);
            }
            block += count + rng.below(8);
        }
        let (summary, bytes) = writer.finish().expect("no block twice");
        fs::write(folder.join(Journal::INCOMING).join("part"), bytes).expect("received");
        journal.commit("part", summary.root).expect("it fits");
        if let Some(point) = header.point() {
            since = Since::Point(point);
        }
    }
    for _ in 0..merged {
        assert!(
            journal
                .merge_oldest(jiff::Timestamp::UNIX_EPOCH)
                .expect("merged")
                .is_none()
        );
    }
    Made {
        journal,
        disk,
        content,
    }
}

#[test]
fn a_disk_of_a_point_is_read_like_any_other_and_refuses_every_change() {
    let ring = Ring::new(8).expect("a ring");
    for (seed, (points, merged)) in (0..).zip([(1, 0), (4, 0), (4, 2), (3, 2)]) {
        let folder = tempfile::tempdir_in("/dev/shm").expect("scratch");
        let mut rng = Rng::new(seed);
        let made = made(folder.path(), points, merged, &mut rng);
        let newest = made.journal.points().last().expect("there is one").id;
        let reader = made.journal.open_point(newest).expect("opened");
        let device = PointDevice::new(reader.image(made.disk).expect("its disk"));
        let device = device.expect("its threads run");
        ring.block_on(async {
            read_only_conformance(&device, &made.content, seed, 300).await;
            image_conformance(&device, &made.content, seed, 50).await;
        });
    }
}
