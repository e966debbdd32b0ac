//! Run files against a map of all that was ever written.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use durable::File;
use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, SeedId, Since, VmId};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::{
    Consistency, Content, DiskExtent, Extent, Frame, Header, SegmentReader, SegmentWriter, Source,
};

/// Blocks of a disk.
const BLOCKS: u64 = 6000;

/// What a segment changes: disk, distance to the run before, length, and whether to zeroes.
type Runs = Vec<(u16, u64, u64, bool)>;

fn runs() -> impl Strategy<Value = Runs> {
    let near = (0..2_u16, 0..12_u64, 1..40_u64, any::<bool>());
    let far = (0..2_u16, 0..2000_u64, 1..3000_u64, Just(true));
    vec(prop_oneof![4 => near, 1 => far], 0..10)
}

fn header(disks: &[DiskId], sequence: u64) -> Header {
    Header {
        vm: VmId::random(),
        disks: disks
            .iter()
            .map(|id| DiskExtent {
                joining: false,
                id: *id,
                size: Bytes(BLOCKS * BLOCK_SIZE),
            })
            .collect(),
        lineage: Lineage::begin("host-a"),
        content: Content::Delta {
            sequence,
            since: Since::Seed {
                seed: SeedId::random(),
                parts: 1,
            },
        },
        time: Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
    }
}

fn segment(disks: &[DiskId], sequence: u64, runs: &Runs) -> Input {
    let mut writer = SegmentWriter::create(Vec::new(), &header(disks, sequence)).expect("begun");
    let mut ends = [0; 2];
    for (disk, distance, count, zero) in runs {
        let end = &mut ends[usize::from(*disk)];
        let start = (*end + distance).min(BLOCKS);
        *end = (start + count).min(BLOCKS);
        if start == *end {
            continue;
        }
        if *zero {
            writer.push_zero(*disk, start, *end - start).expect("fits");
            continue;
        }
        let content = vec![7; usize::try_from((*end - start) * BLOCK_SIZE).expect("small")];
        for (number, content) in (0..).zip(content.chunks(1 << 16)) {
            let (block, disk) = (start + number * 16, *disk);
            let frame = Frame::encode(content, Frame::LEVEL).expect("a frame");
            let count = frame.content_len() / 4096;
            // As staging does it: what follows in a frame need not be what follows on the disk.
            let half = count / 2;
            let two = [
                Extent {
                    disk,
                    block: block + u64::from(count - half),
                    count: half,
                },
                Extent {
                    disk,
                    block,
                    count: count - half,
                },
            ];
            let extents = if half > 0 && number % 2 == 1 {
                &two[..]
            } else {
                &[Extent { disk, block, count }]
            };
            writer.push(&frame, extents).expect("fits");
        }
    }
    let (summary, bytes) = writer.finish().expect("no block twice");
    Input {
        member: Member {
            sequence,
            root: summary.root,
        },
        name: format!("segment {sequence}"),
        reader: SegmentReader::of(Arc::new(Held(bytes))).expect("good"),
    }
}

fn open(bytes: Vec<u8>) -> RunFile {
    RunFile::open(Arc::new(Held(bytes))).expect("as it was written")
}

/// By disk and block: the newest of `segments`, by position.
fn newest(segments: &[&Input]) -> BTreeMap<(u16, u64), Found> {
    let mut model = BTreeMap::new();
    for (place, segment) in (0..).zip(segments) {
        for run in segment.reader.runs() {
            let run = run.expect("read");
            for number in 0..run.count {
                let source = match run.source {
                    Source::Zero => Source::Zero,
                    Source::Frame { frame, skip } => Source::Frame {
                        frame,
                        skip: skip + u8::try_from(number).expect("below 16"),
                    },
                };
                let found = Found {
                    segment: place,
                    source,
                };
                model.insert((run.disk, run.block + u64::from(number)), found);
            }
        }
    }
    model
}

fn assert_reads(stack: &Stack, model: &BTreeMap<(u16, u64), Found>, ranges: &[(u64, u64)]) {
    for disk in 0..2_u16 {
        let whole = [(0, BLOCKS)];
        for (from, to) in whole.iter().chain(ranges) {
            let (from, to) = (from % (BLOCKS + 1), to % (BLOCKS + 1));
            let range = from.min(to)..from.max(to);
            let mut at = range.start;
            let seen = stack.sweep(disk.into(), range.clone(), &mut |part, found| {
                assert_eq!(part.start, at);
                assert!(part.end > at && part.end <= range.end);
                for block in part.clone() {
                    let here = found.map(|found| Found {
                        source: match found.source {
                            Source::Zero => Source::Zero,
                            Source::Frame { frame, skip } => Source::Frame {
                                frame,
                                skip: skip + u8::try_from(block - part.start).expect("a frame"),
                            },
                        },
                        ..found
                    });
                    assert_eq!(here.as_ref(), model.get(&(disk, block)), "block {block}");
                }
                at = part.end;
                ControlFlow::Continue(())
            });
            assert_eq!(seen.expect("read"), ControlFlow::Continue(()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(96), ..ProptestConfig::default() })]

    #[test]
    fn each_block_comes_from_the_newest_segment_of_the_point_that_holds_it(
        segments in vec((runs(), any::<bool>()), 1..14),
        // Of each segment, in which file it is; files of one parity are joined.
        files in vec(0..6_usize, 14),
        keep_all in any::<bool>(),
        point in 1..14_usize,
        ranges in vec((any::<u64>(), any::<u64>()), 12),
    ) {
        let disks = [DiskId::random(), DiskId::random()];
        let inputs: Vec<Input> = (1..)
            .zip(&segments)
            .map(|(sequence, (runs, _))| segment(&disks, sequence * 3, runs))
            .collect();
        // Some were merged into the base or squashed.
        let live = inputs.iter().zip(&segments).filter(|(_, (_, live))| *live);
        let live: Vec<&Input> = live.map(|(input, _)| input).take(point).collect();
        let is_live = |member: &Member| live.iter().any(|input| input.member == *member);
        let mut built: Vec<Vec<Input>> = (0..6).map(|_| Vec::new()).collect();
        for (input, file) in inputs.iter().zip(&files) {
            built[*file].push(Input {
                member: input.member,
                name: input.name.clone(),
                reader: input.reader.clone(),
            });
            // In two files now and then.
            if file % 3 == 0 {
                let again = &mut built[(file + 2) % 6];
                again.push(Input {
                    member: input.member,
                    name: input.name.clone(),
                    reader: input.reader.clone(),
                });
            }
        }
        let mut joined = [Vec::new(), Vec::new()];
        let mut files = Vec::new();
        for (number, inputs) in built.iter().enumerate() {
            let bytes = build(inputs, Vec::new()).expect("built").1;
            if number >= 4 {
                files.push(bytes);
            } else {
                joined[number % 2].push(open(bytes));
            }
        }
        for inputs in &joined {
            let keep = |member: &Member| keep_all || is_live(member);
            let (hash, bytes) = join(&inputs.iter().collect::<Vec<_>>(), keep, Vec::new()).expect("joined");
            prop_assert_eq!(open(bytes.clone()).hash(), hash);
            files.push(bytes);
        }
        let members: Vec<Member> = live.iter().map(|input| input.member).collect();
        let mut is_covered = vec![false; members.len()];
        let mut stack = Stack::new(disks.to_vec(), 8);
        for bytes in files {
            let file = open(bytes);
            stack.add("a file".to_owned(), file, &members, &mut is_covered).expect("good");
        }
        prop_assert!(is_covered.iter().all(|is_covered| *is_covered));
        assert_reads(&stack, &newest(&live), &ranges);
    }
}

/// Entries of many leaves: every third block of one disk, in 1 to 3 of 3 segments.
fn large(blocks: u64) -> (Vec<u8>, u64) {
    let members = (1..4).map(|sequence| Member {
        sequence,
        root: crate::Root([7; 32]),
    });
    let disks = [DiskId::random()];
    let mut writer = RunWriter::create(Vec::new(), &disks, members).expect("begun");
    for block in 0..blocks {
        for segment in 0..=u32::try_from(block % 3).expect("small") {
            let key = Key::of(0, 0, block * 3);
            let at = At { key, segment };
            let source = Source::Frame { frame: 5, skip: 1 };
            writer.push(&Entry { at, source }).expect("in order");
        }
    }
    let entries = writer.entries();
    (writer.finish().expect("written").1, entries)
}

#[test]
fn any_number_of_entries_is_read_back_in_order_and_each_is_found() {
    // None, one, a full leaf and one more, a full page above and one more.
    for blocks in [0, 1, 127, 128, 16_192, 16_194, 40_000] {
        let (bytes, entries) = large(blocks);
        let len = bytes.len();
        assert_eq!(
            forged::read(Arc::new(Held(bytes.clone()))).expect("good"),
            entries
        );
        let file = open(bytes);
        assert_eq!(file.entries(), entries);
        let pages = Pages::new(1);
        for block in (0..blocks * 3 + 3).step_by(997) {
            let at = At {
                key: Key::of(0, 0, block),
                segment: 1,
            };
            let found = file
                .last_until(&pages, at)
                .expect("read")
                .map(|entry| entry.at);
            let key = (blocks > 0).then(|| block.min((blocks - 1) * 3) / 3);
            let expected = key.map(|number| At {
                key: Key::of(0, 0, number * 3),
                segment: if number * 3 < block {
                    u32::try_from(number % 3).expect("small")
                } else {
                    1.min(u32::try_from(number % 3).expect("small"))
                },
            });
            assert_eq!(found, expected, "block {block} of {blocks} in {len} bytes");
        }
    }
}

#[test]
fn every_flipped_byte_and_every_cut_of_a_file_is_found() {
    // One leaf; two, and a page above.
    for (blocks, step) in [(20, 1), (130, 7)] {
        let (bytes, entries) = large(blocks);
        let read = |bytes| forged::read(Arc::new(Held(bytes)));
        assert_eq!(read(bytes.clone()).expect("good"), entries);
        for at in (0..bytes.len()).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(read(flipped).is_err(), "byte {at}");
        }
        for len in (0..bytes.len()).step_by(512) {
            let error = read(bytes[..len].to_vec()).expect_err("cut");
            assert!(error.is_damage(), "{len} bytes");
        }
    }
}

#[test]
fn a_forged_file_gives_an_error_or_entries_that_can_be() {
    let (bytes, entries) = large(130);
    let mut mended = bytes.clone();
    forged::mend(&mut mended);
    assert!(mended == bytes, "there was nothing to mend");
    let mut refused = 0;
    let mut read = 0;
    for at in (0..bytes.len()).step_by(3) {
        let mut forged = bytes.clone();
        forged[at] ^= 0x11;
        forged::mend(&mut forged);
        match forged::read(Arc::new(Held(forged))) {
            Ok(found) if found == entries => read += 1,
            Ok(_) => panic!("byte {at} hides entries"),
            Err(_) => refused += 1,
        }
    }
    assert!(
        refused > 2000 && read > 100,
        "{refused} refused, {read} read"
    );
}

#[test]
fn a_page_that_is_named_twice_is_held_against_each_that_names_it() {
    // Two pages above leaves, and the top page; pages of the list, leaves and inner pages follow.
    let (bytes, _) = large(16_400);
    let page = |number: u32| number as usize * layout::PAGE;
    let top = u32::try_from(bytes.len() / layout::PAGE - 2).expect("small");
    let slot = |above: u32, number: usize| page(above) + 16 + number * 32;
    let child = |above, number| {
        let at = slot(above, number) + 12;
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
    };
    let (left, right) = (child(top, 0), child(top, 1));
    let leaf = child(left, 0);
    // A leaf where a page above leaves belongs; a leaf of other entries.
    for (above, number, names) in [(top, 1, leaf), (right, 0, leaf), (top, 1, left)] {
        let mut forged = bytes.clone();
        let at = slot(above, number) + 12;
        forged[at..at + 4].copy_from_slice(&names.to_le_bytes());
        forged::mend(&mut forged);
        let error = forged::read(Arc::new(Held(forged))).expect_err("forged");
        assert!(error.is_damage(), "{error}");
    }
}

#[test]
fn what_is_out_of_order_or_not_listed_is_not_written() {
    let member = |sequence| Member {
        sequence,
        root: crate::Root([1; 32]),
    };
    let (low, high) = (
        DiskId(uuid::Uuid::from_u128(1)),
        DiskId(uuid::Uuid::from_u128(2)),
    );
    let create = |disks: &[DiskId], members: Vec<Member>| {
        RunWriter::create(Vec::new(), disks, members.into_iter())
    };
    assert!(create(&[high, low], vec![]).is_err());
    assert!(create(&[low, low], vec![]).is_err());
    assert!(create(&[low], vec![member(2), member(2)]).is_err());
    let mut writer = create(&[low, high], vec![member(1), member(2)]).expect("begun");
    let entry = |disk, block, segment| Entry {
        at: At {
            key: Key::of(0, disk, block),
            segment,
        },
        source: Source::Zero,
    };
    writer.push(&entry(0, 7, 1)).expect("the first");
    writer.push(&entry(0, 7, 1)).expect_err("twice");
    writer.push(&entry(0, 7, 0)).expect_err("an older one");
    writer.push(&entry(0, 6, 1)).expect_err("a lower one");
    writer.push(&entry(0, 8, 2)).expect_err("no such segment");
    writer.push(&entry(2, 8, 1)).expect_err("no such disk");
    writer.push(&entry(1, 0, 0)).expect("the next disk");
    assert_eq!(writer.entries(), 2);
}

#[test]
fn a_damaged_input_is_not_joined() {
    let (bytes, _) = large(2000);
    let len = bytes.len();
    for at in [5, 4096 + 100, len / 2, len - 5000] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        let file: Arc<dyn File> = Arc::new(Held(damaged));
        let joined = RunFile::open(file).and_then(|file| join(&[&file], |_| true, Vec::new()));
        assert!(joined.expect_err("damaged").is_damage(), "byte {at}");
    }
}

#[test]
fn a_terabyte_of_zeroes_takes_some_entries_and_is_one_place() {
    let disk = DiskId::random();
    let mut header = header(&[disk], 1);
    let blocks = 1_u64 << 28;
    header.disks[0].size = Bytes(blocks * BLOCK_SIZE);
    let mut writer = SegmentWriter::create(Vec::new(), &header).expect("begun");
    writer.push_zero(0, 1, blocks - 2).expect("fits");
    let (summary, bytes) = writer.finish().expect("written");
    let input = Input {
        member: Member {
            sequence: 1,
            root: summary.root,
        },
        name: "segment".to_owned(),
        reader: SegmentReader::of(Arc::new(Held(bytes))).expect("good"),
    };
    let members = [input.member];
    let file = open(build(&[input], Vec::new()).expect("built").1);
    assert!(file.entries() < 300, "{}", file.entries());
    let mut stack = Stack::new(vec![disk], 8);
    stack
        .add("a file".to_owned(), file, &members, &mut [false])
        .expect("good");
    let mut parts = 0;
    let mut zeroes = 0;
    let seen = stack.sweep(0, 0..blocks, &mut |part, found| {
        parts += 1;
        if found.is_some() {
            zeroes += part.end - part.start;
        }
        ControlFlow::Continue(())
    });
    assert!(seen.is_ok());
    assert_eq!(zeroes, blocks - 2);
    assert!(parts < 300, "{parts}");
}
