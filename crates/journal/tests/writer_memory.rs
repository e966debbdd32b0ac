//! How much memory a segment of many single blocks takes while it is written. Alone in its process, whose
//! memory is looked at.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io;

use model::{Bytes, DiskId, Lineage, SeedId, Since, VmId};
use pollux_journal::{Consistency, Content, DiskExtent, Extent, Frame, Header, SegmentWriter};

const MIB: u64 = 1 << 20;
/// Blocks of 1 TiB, and of 10 GiB.
const DISK: u64 = 1 << 28;
const DIRTY: u64 = 2_621_440;

/// The most that was ever resident of this process, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// Writes a segment of 10 GiB of single blocks, of which `block` names each; gives the growth of the peak.
fn write(block: impl Fn(u64) -> u64) -> u64 {
    let header = Header {
        vm: VmId::random(),
        disks: vec![DiskExtent {
            joining: false,
            id: DiskId::random(),
            size: Bytes(DISK * model::BLOCK_SIZE),
        }],
        lineage: Lineage::begin("host-a"),
        content: Content::Delta {
            sequence: 1,
            since: Since::Seed {
                seed: SeedId::random(),
                parts: 1,
            },
        },
        time: jiff::Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
    };
    let frame = Frame::encode(&[7; 1 << 16], Frame::LEVEL).unwrap();
    let before = peak();
    let mut writer = SegmentWriter::create(io::sink(), &header).unwrap();
    for first in (0..DIRTY).step_by(16) {
        let one = |number| Extent {
            disk: 0,
            block: block(number),
            count: 1,
        };
        let extents: Vec<Extent> = (first..first + 16).map(one).collect();
        writer.push(&frame, &extents).unwrap();
    }
    let (summary, _) = writer.finish().unwrap();
    assert_eq!(u64::from(summary.runs), DIRTY);
    peak() - before
}

#[test]
fn ten_gib_of_single_blocks_take_some_bytes_each_while_their_segment_is_written() {
    // As staging reads them: the next one 1 to 204 blocks on.
    let mut at = 0;
    let mut rng = testkit::Rng::new(1);
    let ascending: Vec<u32> = (0..DIRTY)
        .map(|_| {
            at += 1 + u32::try_from(rng.below(200)).unwrap();
            at
        })
        .collect();
    let near = write(|number| ascending[usize::try_from(number).unwrap()].into());
    // In no order: an odd factor names each block once.
    let far = write(|number| number * 0x09e3_779b % DISK);
    // 8 MiB of both are the frame table.
    eprintln!("{} and {} KiB", near >> 10, far >> 10);
    assert!(near < 20 * MIB, "{} KiB", near >> 10);
    assert!(near + far < 32 * MIB, "{} KiB", (near + far) >> 10);
}
