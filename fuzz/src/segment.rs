//! A segment, which a peer sends: opened, and every frame read.
//!
//! The hashes are put right first, as a peer that means harm would.

use std::io;
use std::sync::Arc;

use durable::File;
use jiff::Timestamp;
use journal::{Consistency, Content, DiskExtent, Header, SegmentReader, SegmentWriter, Source};
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, SeedId, Since, VmId};

/// Keys of the header.
pub const WORDS: &[&str] = &[
    "POLLUXSG",
    "POLLUXSE",
    "\"vm\"",
    "\"disks\"",
    "\"lineage\"",
    "\"content\"",
    "\"delta\"",
    "\"seed\"",
    "\"since\"",
    "\"parts\"",
    "\"sequence\"",
    "\"point\"",
];

/// Bytes that are only read.
#[derive(Debug)]
pub(crate) struct Bare(pub(crate) Vec<u8>);

impl File for Bare {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok();
        let part = from.and_then(|from| self.0.get(from..from.checked_add(into.len())?));
        into.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, _at: u64, _from: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn allocated(&self) -> io::Result<u64> {
        self.size()
    }
    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// One file.
pub fn run(data: &[u8]) {
    let mut bytes = data.to_vec();
    journal::fuzzing::forge_segment(&mut bytes);
    let Ok(reader) = SegmentReader::of(Arc::new(Bare(bytes))) else {
        return;
    };
    let whole = reader.verify_all().is_ok();
    let mut content = 0;
    for run in reader.runs() {
        let run = run.expect("the index of an open segment was checked");
        content += u64::from(run.count) * BLOCK_SIZE;
        let Source::Frame { frame, skip } = run.source else {
            continue;
        };
        let read = reader.read_frame(frame);
        assert!(!whole || read.is_ok(), "a frame that verified is read");
        if let Ok(read) = read {
            let end = (u64::from(skip) + u64::from(run.count)) * BLOCK_SIZE;
            assert!(end <= read.len() as u64, "a run lies in its frame");
        }
    }
    assert_eq!(reader.summary().content, Bytes(content));
}

/// Segments of one and two disks, with frames that compress, and one with a frame that does not.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    vec![seed(1, false), seed(2, false), seed(2, true)]
}

fn seed(disks: u16, noisy: bool) -> Vec<u8> {
    let header = Header {
        vm: VmId::random(),
        disks: (0..disks)
            .map(|_| DiskExtent {
                joining: false,
                id: DiskId::random(),
                size: Bytes(64 * BLOCK_SIZE),
            })
            .collect(),
        lineage: Lineage::begin("host-a"),
        content: Content::Delta {
            sequence: 1,
            since: Since::Seed {
                seed: SeedId::random(),
                parts: 1,
            },
        },
        time: Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
    };
    let mut writer = SegmentWriter::create(Vec::new(), &header).expect("a good header");
    if noisy {
        let noise = (0..256).flat_map(|_| VmId::random().0.into_bytes());
        let noise: Vec<u8> = noise.collect();
        writer.push_frame(disks - 1, 5, &noise).expect("pushed");
    }
    writer.push_frame(0, 9, &[3; 8192]).expect("pushed");
    writer.push_zero(0, 0, 3).expect("pushed");
    writer.finish().expect("finished").1
}
