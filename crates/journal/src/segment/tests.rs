use std::collections::BTreeMap;
use std::sync::Arc;

use durable::{File, Folder};
use jiff::Timestamp;
use model::{DiskId, Lineage, SeedId, Since, VmId};
use proptest::collection::vec;
use proptest::prelude::*;
use testkit::CutFolder;

use super::layout::{FOOTER_LEN, PRELUDE_LEN, RUN_LEN};
use super::*;
use crate::{Consistency, Content, DiskExtent, Header};

const DISK_BLOCKS: u64 = 64;

fn header(disks: usize) -> Header {
    Header {
        vm: VmId::random(),
        disks: (0..disks)
            .map(|_| DiskExtent {
                joining: false,
                id: DiskId::random(),
                size: Bytes(DISK_BLOCKS * BLOCK_SIZE),
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
    }
}

fn file_of(bytes: &[u8]) -> Arc<dyn File> {
    let file = CutFolder::new().create("segment").expect("made");
    file.write_at(0, bytes).expect("written");
    file
}

fn open(bytes: &[u8]) -> Result<SegmentReader, SegmentError> {
    SegmentReader::of(file_of(bytes))
}

/// What a segment says, block by block; `None` reads as zeroes.
type Blocks = BTreeMap<(u16, u64), Option<Vec<u8>>>;

fn blocks(reader: &SegmentReader) -> Result<Blocks, SegmentError> {
    let mut blocks = Blocks::new();
    for run in reader.runs() {
        let run = run?;
        let content = match run.source {
            Source::Zero => None,
            Source::Frame { frame, skip } => Some(
                reader
                    .read_frame(frame)?
                    .split_off(usize::from(skip) * BLOCK),
            ),
        };
        for number in 0..u64::from(run.count) {
            let at = usize::try_from(number).expect("small") * BLOCK;
            let content = content
                .as_ref()
                .map(|content| content[at..at + BLOCK].to_vec());
            assert!(
                blocks
                    .insert((run.disk, run.block + number), content)
                    .is_none()
            );
        }
    }
    Ok(blocks)
}

/// A frame that compresses, one that does not, zeroes, on two disks.
fn small() -> (Vec<u8>, Blocks) {
    let mut writer = SegmentWriter::create(Vec::new(), &header(2)).expect("a good header");
    let mut blocks = Blocks::new();
    let noise = noise(7, 1);
    writer.push_frame(1, 5, &noise).expect("pushed");
    blocks.insert((1, 5), Some(noise));
    writer.push_frame(0, 9, &[3; 2 * BLOCK]).expect("pushed");
    blocks.insert((0, 9), Some(vec![3; BLOCK]));
    blocks.insert((0, 10), Some(vec![3; BLOCK]));
    writer.push_zero(0, 0, 3).expect("pushed");
    for block in 0..3 {
        blocks.insert((0, block), None);
    }
    let (summary, bytes) = writer.finish().expect("finished");
    assert_eq!(summary.file_len.0, bytes.len() as u64);
    (bytes, blocks)
}

/// Bytes that do not compress.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * BLOCK];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

#[test]
fn every_flipped_bit_of_a_segment_is_found() {
    let (bytes, blocks_before) = small();
    let reader = open(&bytes).expect("a good segment");
    reader.verify_all().expect("a good segment");
    assert_eq!(blocks(&reader).expect("a good segment"), blocks_before);
    for at in 0..bytes.len() {
        for bit in [1, 0x80] {
            let mut flipped = bytes.clone();
            flipped[at] ^= bit;
            let found = open(&flipped).and_then(|reader| reader.verify_all());
            assert!(found.is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_frame_is_read_from_its_place_as_it_is_or_not_at_all() {
    let (bytes, _) = small();
    let reader = open(&bytes).expect("a good segment");
    let root = reader.summary().root;
    let frames = reader.summary().frames;
    let read = |bytes: &[u8], number| {
        let file = file_of(bytes);
        FramePlace::find(&*file, root, number)?.read(&*file)
    };
    for number in 0..frames {
        let content = reader.read_frame(number).expect("a good frame");
        assert_eq!(read(&bytes, number).expect("a good frame"), content);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            if let Ok(read) = read(&flipped, number) {
                assert!(read == content, "byte {at}");
            }
        }
        for len in 0..bytes.len() {
            assert!(read(&bytes[..len], number).is_err(), "{len} bytes");
        }
    }
    let error = read(&bytes, frames).expect_err("no such frame");
    assert!(matches!(error, SegmentError::Invalid { .. }), "{error}");
    let error = FramePlace::find(&*file_of(&bytes), Root([1; 32]), 0).expect_err("another");
    assert!(
        matches!(error, SegmentError::Damaged(Site::Footer)),
        "{error}"
    );
}

#[test]
fn what_frames_take_in_the_file_is_what_is_left_of_it_without_the_rest() {
    let (bytes, _) = small();
    let reader = open(&bytes).expect("a good segment");
    let summary = reader.summary();
    let header = serde_json::to_vec(reader.header()).expect("a header").len();
    let tables = summary.frames as usize * layout::ENTRY_LEN + summary.runs as usize * RUN_LEN;
    let rest = PRELUDE_LEN + header + tables + FOOTER_LEN;
    assert_eq!(reader.stored(), Bytes((bytes.len() - rest) as u64));
}

#[test]
fn a_segment_cut_short_or_continued_is_refused() {
    let (bytes, _) = small();
    for len in 0..bytes.len() {
        assert!(open(&bytes[..len]).is_err(), "{len} bytes");
    }
    for more in [1, FOOTER_LEN, 5000] {
        let mut longer = bytes.clone();
        longer.resize(bytes.len() + more, 0);
        assert!(open(&longer).is_err(), "{more} more");
        // Its own footer once more at the end.
        let mut doubled = bytes.clone();
        doubled.extend_from_slice(&bytes[bytes.len() - FOOTER_LEN..]);
        assert!(open(&doubled).is_err());
    }
}

/// `bytes` with the index changed by `change` and everything after it made to agree again: what
/// an attacker can do who knows the format.
fn forge(bytes: &[u8], change: impl FnOnce(&mut Vec<Run>)) -> Vec<u8> {
    let reader = open(bytes).expect("a good segment");
    let mut runs: Vec<Run> = reader.runs().collect::<Result<_, _>>().expect("good runs");
    change(&mut runs);
    let mut footer = reader.footer();
    let index = usize::try_from(footer.index).expect("small");
    let mut forged = bytes[..index].to_vec();
    let mut hasher = blake3::Hasher::new();
    let (mut content, mut zeroes) = (0_u64, 0_u64);
    for run in &runs {
        hasher.update(&run.to_bytes());
        forged.extend_from_slice(&run.to_bytes());
        let len = u64::from(run.count) * BLOCK_SIZE;
        content += len;
        zeroes += if run.source == Source::Zero { len } else { 0 };
    }
    let mut prelude = [0; PRELUDE_LEN];
    prelude.copy_from_slice(&bytes[..PRELUDE_LEN]);
    let mut tree = merkle::Tree::new(&layout::Prelude::read(&prelude).expect("good").hash);
    let table = usize::try_from(footer.table).expect("small");
    for (number, entry) in (0..).zip(bytes[table..index].chunks(layout::ENTRY_LEN)) {
        tree.frame(&layout::FrameEntry::read(number, entry).expect("good"));
    }
    footer.summary.root = tree.finish(hasher.finalize());
    footer.summary.runs = u32::try_from(runs.len()).expect("few");
    footer.summary.content = Bytes(content);
    footer.summary.zeroes = Bytes(zeroes);
    footer.summary.file_len = Bytes((index + runs.len() * RUN_LEN + FOOTER_LEN) as u64);
    forged.extend_from_slice(&footer.to_bytes());
    forged
}

#[test]
fn an_index_that_verifies_but_lies_is_refused_with_the_run_at_fault() {
    let (bytes, before) = small();
    let untouched = open(&forge(&bytes, |_| {})).expect("nothing was changed");
    assert_eq!(blocks(&untouched).expect("good"), before);

    let refused = |name: &str, change: &dyn Fn(&mut Vec<Run>), words: &str| {
        let error = open(&forge(&bytes, |runs| change(runs))).expect_err(name);
        assert!(error.to_string().contains(words), "{name}: {error}");
    };
    // Runs: zeroes 0..3, frame 1 at 9..11 on disk 0; frame 0 at 5 on disk 1.
    refused(
        "outside",
        &|runs| runs[2].block = DISK_BLOCKS,
        "run 2 of its index lies outside",
    );
    refused(
        "huge block",
        &|runs| runs[2].block = u64::MAX,
        "run 2 of its index lies outside",
    );
    refused(
        "huge zeroes",
        &|runs| runs[0].count = u32::MAX,
        "run 0 of its index lies outside",
    );
    refused("no such disk", &|runs| runs[2].disk = 2, "does not name");
    refused("order", &|runs| runs.swap(0, 1), "out of order");
    refused("overlap", &|runs| runs[1].block = 2, "overlaps");
    refused("twice", &|runs| runs.insert(1, runs[0]), "overlaps");
    refused("empty", &|runs| runs[0].count = 0, "is empty");
    refused(
        "unclaimed",
        &|runs| {
            runs.remove(1);
        },
        "frame 1 holds content that belongs to no",
    );
    let frame = |frame, skip| Source::Frame { frame, skip };
    refused(
        "no such frame",
        &|runs| runs[2].source = frame(2, 0),
        "names a frame",
    );
    refused("past the frame", &|runs| runs[1].count = 3, "not there");
    refused(
        "skips past the frame",
        &|runs| runs[2].source = frame(0, 1),
        "not there",
    );
    refused(
        "skips too far",
        &|runs| runs[2].source = frame(0, 16),
        "longer than a frame",
    );
    refused(
        "one content twice",
        &|runs| runs[2].source = frame(1, 0),
        "named before",
    );
}

#[test]
fn a_frame_that_decodes_to_another_length_is_refused() {
    // zstd of 64 KiB of zeroes, announced as 4 KiB; and of 4 KiB, announced as 8 KiB.
    for (len, announced) in [(MAX_CONTENT, BLOCK), (BLOCK, 2 * BLOCK)] {
        let content = vec![0; len];
        let mut frame = Frame::encode(&content, 1).expect("encoded");
        frame.content_len = u32::try_from(announced).expect("small");
        let mut writer = SegmentWriter::create(Vec::new(), &header(1)).expect("a good header");
        let extent = Extent {
            disk: 0,
            block: 0,
            count: u32::try_from(announced / BLOCK).expect("small"),
        };
        writer.push(&frame, &[extent]).expect("pushed");
        let (_, bytes) = writer.finish().expect("finished");
        let reader = open(&bytes).expect("the structure is good");
        let error = reader.verify_all().expect_err("the content is not");
        assert!(error.to_string().contains("frame 0"), "{error}");
        assert!(reader.read_frame(0).is_err());
        assert!(reader.read_frame(1).is_err(), "there is no such frame");
    }
}

#[test]
fn what_cannot_be_in_a_segment_is_refused_when_it_is_pushed() {
    let mut writer = SegmentWriter::create(Vec::new(), &header(1)).expect("a good header");
    assert!(matches!(
        writer.push_frame(0, 0, &[]),
        Err(SegmentError::Content(0))
    ));
    assert!(writer.push_frame(0, 0, &[1; 100]).is_err());
    assert!(
        writer
            .push_frame(0, 0, &vec![1; MAX_CONTENT + BLOCK])
            .is_err()
    );
    assert!(writer.push_frame(1, 0, &[1; BLOCK]).is_err());
    assert!(writer.push_frame(0, DISK_BLOCKS, &[1; BLOCK]).is_err());
    assert!(writer.push_zero(0, u64::MAX, 2).is_err());
    assert!(writer.push_zero(0, 0, 0).is_err());
    let frame = Frame::encode(&[1; 2 * BLOCK], 1).expect("encoded");
    let extent = |block, count| Extent {
        disk: 0,
        block,
        count,
    };
    assert!(writer.push(&frame, &[]).is_err());
    assert!(writer.push(&frame, &[extent(0, 1)]).is_err());
    assert!(writer.push(&frame, &[extent(0, 1), extent(4, 2)]).is_err());
    writer
        .push(&frame, &[extent(4, 1), extent(2, 1)])
        .expect("fits");
    writer.push_zero(0, 2, 1).expect("found at the end");
    match writer.finish() {
        Err(SegmentError::Overlap { disk: 0, block: 2 }) => {}
        other => panic!("{:?}", other.map(|(summary, _)| summary)),
    }
}

#[test]
fn what_a_delta_builds_on_reads_as_the_format_says_and_no_other_way() {
    let header = header(1);
    let Content::Delta {
        since: Since::Seed { seed, .. },
        ..
    } = header.content
    else {
        panic!("it builds on a seed")
    };
    let text = |parts: &str| {
        format!(r#"{{"delta":{{"sequence":1,"since":{{"seed":{{"seed":"{seed}"{parts}}}}}}}}}"#)
    };
    let good = serde_json::to_string(&header.content).expect("made");
    assert_eq!(good, text(r#","parts":1"#));
    for bad in ["", r#","parts":1,"part":1"#, r#","parts":-1"#] {
        let read = serde_json::from_str::<Content>(&text(bad));
        assert!(read.is_err(), "{bad}");
    }
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    let good = header(2);
    let refused = |change: &dyn Fn(&mut Header)| {
        let mut bad = good.clone();
        change(&mut bad);
        let made = SegmentWriter::create(Vec::new(), &bad).map(drop);
        assert!(matches!(made, Err(SegmentError::Header(_))), "{bad:?}");
    };
    refused(&|bad| bad.disks.clear());
    refused(&|bad| bad.disks[1] = bad.disks[0]);
    refused(&|bad| bad.disks[1].size = Bytes(4095));
    refused(&|bad| bad.disks[1].size = Bytes(0));
    refused(&|bad| bad.disks[1].size = Bytes(!4095));
    let delta = |sequence, since| Content::Delta { sequence, since };
    let point = |sequence| model::PointId {
        term: good.lineage.current().id,
        sequence,
    };
    refused(&|bad| {
        bad.content = delta(
            0,
            Since::Seed {
                seed: SeedId::random(),
                parts: 1,
            },
        )
    });
    refused(&|bad| bad.content = delta(5, Since::Point(point(5))));
    let mut stray = point(4);
    stray.term = model::TermId::random();
    refused(&|bad| bad.content = delta(5, Since::Point(stray)));
}

#[test]
fn a_failed_write_is_not_forgotten() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            let len = bytes.len().min(self.0);
            self.0 -= len;
            Ok(len)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut writer = SegmentWriter::create(Full(300_000), &header(1)).expect("fits the buffer");
    let mut failed = false;
    for block in 0..DISK_BLOCKS / 16 * 2 {
        let content = noise(block, 16);
        failed |= writer.push_frame(0, block % 4 * 16, &content).is_err();
    }
    assert!(failed);
    assert!(matches!(writer.finish(), Err(SegmentError::Broken)));
}

/// Some blocks of a disk with content of one byte, zeroes, or noise.
#[derive(Debug, Clone)]
enum Push {
    Zero {
        disk: u16,
        block: u64,
        count: u64,
    },
    Frame {
        disk: u16,
        block: u64,
        fills: Vec<u8>,
    },
}

fn pushes() -> impl Strategy<Value = Vec<Push>> {
    let zero = (0..2_u16, 0..DISK_BLOCKS, 1..20_u64).prop_map(|(disk, block, count)| Push::Zero {
        disk,
        block,
        count,
    });
    let frame = (0..2_u16, 0..DISK_BLOCKS, vec(any::<u8>(), 1..=16))
        .prop_map(|(disk, block, fills)| Push::Frame { disk, block, fills });
    vec(prop_oneof![zero, frame], 0..12)
}

fn content(fills: &[u8]) -> Vec<u8> {
    let block = |fill: &u8| match fill % 4 {
        0 => noise(u64::from(*fill), 1),
        _ => vec![*fill; BLOCK],
    };
    fills.iter().flat_map(block).collect()
}

#[test]
fn a_segment_is_full_while_there_is_room_for_its_tables_in_the_longest_file() {
    let noise = [7; BLOCK];
    let begin = |at| {
        let writer = SegmentWriter::create(Vec::new(), &header(1));
        writer.expect("a good header").at(at)
    };
    let frame = Frame::encode(&noise, Frame::LEVEL).expect("a block");
    let last = TABLES - u64::from(frame.stored_len());
    begin(last).push_frame(0, 0, &noise).expect("the last one");
    let pushed = begin(last + 1).push_frame(0, 0, &noise);
    assert!(matches!(pushed, Err(SegmentError::Full)), "{pushed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(200), ..ProptestConfig::default() })]

    #[test]
    fn a_segment_gives_back_what_was_pushed_in_whatever_order(pushes in pushes()) {
        let header = header(2);
        let mut writer = SegmentWriter::create(Vec::new(), &header).expect("a good header");
        let mut model = Blocks::new();
        let mut overlaps = false;
        for push in &pushes {
            let (disk, block, count) = match push {
                Push::Zero { disk, block, count } => (*disk, *block, *count),
                Push::Frame { disk, block, fills } => (*disk, *block, fills.len() as u64),
            };
            let fits = block + count <= DISK_BLOCKS;
            let (pushed, content) = match push {
                Push::Zero { .. } => (writer.push_zero(disk, block, count), None),
                Push::Frame { fills, .. } => {
                    let content = content(fills);
                    (writer.push_frame(disk, block, &content), Some(content))
                }
            };
            prop_assert_eq!(pushed.is_ok(), fits);
            for number in (0..count).filter(|_| fits) {
                let at = usize::try_from(number).expect("small") * BLOCK;
                let content = content.as_ref().map(|content| content[at..at + BLOCK].to_vec());
                overlaps |= model.insert((disk, block + number), content).is_some();
            }
        }
        let finished = writer.finish();
        prop_assert_eq!(finished.is_err(), overlaps);
        let Ok((summary, bytes)) = finished else { return Ok(()) };
        let reader = open(&bytes).expect("a good segment");
        reader.verify_all().expect("a good segment");
        prop_assert_eq!(reader.header(), &header);
        prop_assert_eq!(reader.summary(), &summary);
        prop_assert_eq!(summary.content, Bytes(model.len() as u64 * BLOCK_SIZE));
        prop_assert_eq!(blocks(&reader).expect("a good segment"), model);
    }

    #[test]
    fn the_file_is_the_same_whatever_the_size_of_the_lots_in_which_runs_are_gathered(
        pushes in pushes(), lot in 1..8_usize,
    ) {
        let header = header(2);
        let written = |writer: SegmentWriter<Vec<u8>>| {
            let mut writer = writer;
            for push in &pushes {
                // What does not fit is left out.
                let _ = match push {
                    Push::Zero { disk, block, count } => writer.push_zero(*disk, *block, *count),
                    Push::Frame { disk, block, fills } => {
                        writer.push_frame(*disk, *block, &content(fills))
                    }
                };
            }
            writer.finish().map_err(|error| error.to_string())
        };
        let begin = || SegmentWriter::create(Vec::new(), &header).expect("a good header");
        prop_assert_eq!(written(begin().in_lots_of(lot)), written(begin()));
    }

    #[test]
    fn damage_anywhere_is_an_error_and_never_a_panic(
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let (mut bytes, _) = small();
        let before = bytes.clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        let good = open(&bytes).and_then(|reader| reader.verify_all()).is_ok();
        prop_assert_eq!(good, bytes == before);
    }

    #[test]
    fn garbage_between_good_ends_is_an_error_and_never_a_panic(
        garbage in vec(any::<u8>(), 0..400),
        table in any::<u16>(), frames in 0..40_u32, runs in 0..40_u32,
    ) {
        let (good, _) = small();
        let reader = open(&good).expect("a good segment");
        let start = usize::try_from(reader.footer().table).expect("small");
        let mut bytes = good[..start].to_vec();
        bytes.extend_from_slice(&garbage);
        let mut footer = reader.footer();
        footer.table = start as u64 + u64::from(table % 4);
        footer.index = footer.table + u64::from(frames) * layout::ENTRY_LEN as u64;
        footer.summary.frames = frames;
        footer.summary.runs = runs;
        footer.summary.file_len = Bytes((bytes.len() + FOOTER_LEN) as u64);
        bytes.extend_from_slice(&footer.to_bytes());
        prop_assert!(open(&bytes).is_err());
    }
}
