//! For tests and measurements: a journal of many points, made in little time.
//!
//! Its segments are real and lie in one pack; points share them by turns, so that 86,400 points need
//! not be written one by one.

use std::path::Path;

use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, PointId, SeedId, Since, VmId};

use crate::index::{Base, BaseDisk, Entry, Index, Log, Pin, Place, pack_file};
use crate::{
    Consistency, Content, DiskExtent, Extent, Frame, Header, Journal, JournalError, SegmentWriter,
};

/// Where a segment begins in the pack.
const ALIGNED: u64 = 4096;

/// What the journal is to be.
#[derive(Debug, Clone, Copy)]
pub struct Large {
    /// Number of points above the base.
    pub points: u64,
    /// Number of segments that they share.
    pub segments: u64,
    /// Changed blocks in each, spread over the disk, 16 to a frame.
    pub blocks: u64,
    /// Size of the only disk.
    pub size: Bytes,
}

/// Makes it in the folder `path`, its newest point pinned; not open, and without run files.
///
/// # Errors
/// A failed write.
pub fn make(path: &Path, large: &Large) -> Result<(DiskId, Vec<PointId>), JournalError> {
    let (vm, id, seed) = (VmId::random(), DiskId::random(), SeedId::random());
    let extent = DiskExtent {
        joining: false,
        id,
        size: large.size,
    };
    let journal = Journal::create(path, vm, &[extent], seed)?;
    let lineage = Lineage::begin("host-a");
    let term = lineage.current().id;
    let base = BaseDisk::new(id, large.size);
    let mut index = Index::new(vm, seed, vec![base]);
    index.lineage = Some(lineage.clone());
    index.next_pack = 2;

    let pack = pack_file(1);
    let io = |source| JournalError::io("write", &pack, source);
    let file = journal.folder.create(&pack).map_err(io)?;
    let mut at = 0;
    let mut stored = Vec::new();
    for number in 0..large.segments {
        let header = Header {
            vm,
            disks: vec![extent],
            lineage: lineage.clone(),
            content: Content::Delta {
                sequence: number + 1,
                since: Since::Seed { seed, parts: 1 },
            },
            time: Timestamp::UNIX_EPOCH,
            consistency: Consistency::Crash,
        };
        let failed = |source| JournalError::segment(&pack, source);
        let mut writer = SegmentWriter::create(Vec::new(), &header).map_err(failed)?;
        let blocks = blocks(number, large);
        for blocks in blocks.chunks(16) {
            let content: Vec<u8> = blocks.iter().flat_map(|block| content(*block)).collect();
            let frame = Frame::encode(&content, Frame::LEVEL).map_err(failed)?;
            let extents = blocks.iter().map(|block| Extent {
                disk: 0,
                block: *block,
                count: 1,
            });
            let extents: Vec<Extent> = extents.collect();
            writer.push(&frame, &extents).map_err(failed)?;
        }
        let (summary, bytes) = writer.finish().map_err(failed)?;
        file.write_at(at, &bytes).map_err(io)?;
        stored.push((summary, at));
        at = (at + bytes.len() as u64).next_multiple_of(ALIGNED);
    }
    file.sync().map_err(io)?;

    for (sequence, (summary, at)) in (1..=large.points + 1).zip(stored.iter().cycle()) {
        let entry = Entry {
            point: PointId { term, sequence },
            since: Since::Seed { seed, parts: 1 },
            time: Timestamp::UNIX_EPOCH,
            consistency: Consistency::Crash,
            disks: [extent].into(),
            root: summary.root,
            stored: summary.root,
            place: Place::Pack { pack: 1, at: *at },
            file_len: summary.file_len,
            content: summary.content,
            zeroes: summary.zeroes,
        };
        if sequence == 1 {
            index.base = Base::Point(entry);
        } else {
            index.sums.add(&entry);
            index.segments.push_back(entry);
        }
    }
    index.pins.extend(index.newest().map(|newest| Pin {
        point: newest.point,
        reason: "test".to_owned(),
    }));
    Log::replace(&journal.folder, &index, &journal.group)?;
    let points = index.points().map(|(_, entry)| entry.point);
    Ok((id, points.collect()))
}

/// The blocks of a segment, in order.
fn blocks(segment: u64, large: &Large) -> Vec<u64> {
    let disk = large.size.0 / BLOCK_SIZE;
    let numbers = segment * large.blocks..(segment + 1) * large.blocks;
    let spread = numbers.map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % disk);
    let mut blocks: Vec<u64> = spread.collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// What a block that a segment holds has at every point: half of it compresses.
#[must_use]
pub fn content(block: u64) -> Vec<u8> {
    let mut content = vec![7; 4096];
    blake3::Hasher::new()
        .update(&block.to_le_bytes())
        .finalize_xof()
        .fill(&mut content[..2048]);
    content
}

/// The blocks that some point changed, of the first `segments` segments.
#[must_use]
pub fn changed(segments: u64, large: &Large) -> Vec<u64> {
    let mut all: Vec<u64> = (0..segments.min(large.segments))
        .flat_map(|segment| blocks(segment, large))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}
