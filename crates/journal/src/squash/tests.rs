use std::collections::BTreeMap;
use std::sync::Arc;

use durable::{File, Folder};
use jiff::Timestamp;
use model::{Bytes, Lineage, PointId, SeedId, VmId};
use proptest::collection::vec;
use proptest::prelude::*;
use testkit::CutFolder;

use super::*;
use crate::{Consistency, DiskExtent, Extent};

/// Content of blocks by disk and block: what is not there is not in any segment.
type Blocks = BTreeMap<(DiskId, u64), Vec<u8>>;

/// Disks and lineage of the segments of a test.
struct History {
    vm: VmId,
    lineage: Lineage,
    seed: SeedId,
}

impl History {
    fn new() -> Self {
        Self {
            vm: VmId::random(),
            lineage: Lineage::begin("host-a"),
            seed: SeedId::random(),
        }
    }

    /// Number `sequence`, on the one before it.
    fn header(&self, sequence: u64, disks: Vec<DiskExtent>) -> Header {
        let since = match sequence {
            1 => Since::Seed {
                seed: self.seed,
                parts: 1,
            },
            _ => Since::Point(PointId {
                term: self.lineage.current().id,
                sequence: sequence - 1,
            }),
        };
        Header {
            vm: self.vm,
            disks,
            lineage: self.lineage.clone(),
            content: Content::Delta { sequence, since },
            time: Timestamp::from_second(i64::try_from(sequence).expect("small")).expect("good"),
            consistency: Consistency::Crash,
        }
    }
}

fn disk(id: DiskId, blocks: u64) -> DiskExtent {
    DiskExtent {
        joining: false,
        id,
        size: Bytes(blocks * BLOCK_SIZE),
    }
}

/// Not two blocks are the same; some compress.
fn block(number: u64) -> Vec<u8> {
    let mut content = vec![0; BLOCK];
    if number % 2 == 0 {
        content[..8].copy_from_slice(&(number + 1).to_le_bytes());
    } else {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&number.to_le_bytes());
        hasher.finalize_xof().fill(&mut content);
    }
    content
}

fn file(bytes: &[u8]) -> Arc<dyn File> {
    let file = CutFolder::new().create("segment").expect("made");
    file.write_at(0, bytes).expect("written");
    file
}

fn reader(bytes: &[u8]) -> SegmentReader {
    SegmentReader::of(file(bytes)).expect("a segment")
}

/// What a segment does, to a model.
fn apply(segment: &SegmentReader, blocks: &mut Blocks) {
    for run in segment.runs() {
        let run = run.expect("read");
        let id = segment.header().disks[usize::from(run.disk)].id;
        for number in 0..run.count {
            let content = match run.source {
                Source::Zero => vec![0; BLOCK],
                Source::Frame { frame, skip } => {
                    let content = segment.read_frame(frame).expect("read");
                    let at = (usize::from(skip) + number as usize) * BLOCK;
                    content[at..at + BLOCK].to_vec()
                }
            };
            blocks.insert((id, run.block + u64::from(number)), content);
        }
    }
}

fn squashed(segments: &[SegmentReader]) -> SegmentReader {
    let plan = Plan::of(segments).expect("they fit");
    let (summary, bytes) = plan.write(Vec::new()).expect("written");
    let result = reader(&bytes);
    assert_eq!(*result.summary(), summary);
    result.verify_all().expect("whole");
    result
}

/// Which disk, distance to the run before, blocks, and whether they read as zeroes.
type Op = (usize, u64, u64, bool);

#[derive(Debug, Clone)]
struct Shape {
    /// Blocks that each disk has more than before; the second one comes with its first.
    grow: (u64, u64),
    ops: Vec<Op>,
    /// The runs of a frame lie apart.
    scattered: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let op = (0..2_usize, 0..10_u64, 1..=16_u64, any::<bool>());
    let grow = prop_oneof![3 => Just((0, 0)), 1 => (0..9_u64, 0..9_u64)];
    (grow, vec(op, 0..10), any::<bool>()).prop_map(|(grow, ops, scattered)| Shape {
        grow,
        ops,
        scattered,
    })
}

/// Segments of these shapes, and their ids in the order of the last header.
fn segments(shapes: &[Shape]) -> (History, Vec<SegmentReader>) {
    let history = History::new();
    let ids = [DiskId::random(), DiskId::random()];
    let mut sizes = [40, 0];
    let mut filled = 0;
    let mut readers = Vec::new();
    for (sequence, shape) in (1..).zip(shapes) {
        sizes[0] += shape.grow.0;
        sizes[1] += shape.grow.1;
        let mut disks = vec![disk(ids[0], sizes[0])];
        if sizes[1] > 0 {
            // In front: positions are not the same in all segments.
            disks.insert(0, disk(ids[1], sizes[1]));
        }
        let header = history.header(sequence, disks.clone());
        let mut writer = SegmentWriter::create(Vec::new(), &header).expect("good");
        for (position, disk) in (0..).zip(&disks) {
            let which = usize::from(disk.id == ids[1]);
            let blocks = disk.size.0 / BLOCK_SIZE;
            let (mut at, mut scattered) = (0, Vec::new());
            for (_, gap, count, zero) in shape.ops.iter().filter(|op| op.0 == which) {
                let first = at + gap;
                let count = (*count).min(blocks.saturating_sub(first));
                if count == 0 {
                    break;
                }
                at = first + count;
                if *zero {
                    writer.push_zero(position, first, count).expect("fits");
                    continue;
                }
                let content: Vec<u8> = (0..count)
                    .flat_map(|_| {
                        filled += 1;
                        block(filled)
                    })
                    .collect();
                if shape.scattered && count < 8 {
                    scattered.push((first, count, content));
                } else {
                    writer.push_frame(position, first, &content).expect("fits");
                }
            }
            for pair in scattered.chunks(2) {
                let extents: Vec<_> = pair
                    .iter()
                    .rev()
                    .map(|(block, count, _)| Extent {
                        disk: position,
                        block: *block,
                        count: u32::try_from(*count).expect("small"),
                    })
                    .collect();
                let content: Vec<u8> = pair.iter().rev().flat_map(|it| it.2.clone()).collect();
                let frame = Frame::encode(&content, Frame::LEVEL).expect("good");
                writer.push(&frame, &extents).expect("fits");
            }
        }
        let (_, bytes) = writer.finish().expect("no block twice");
        readers.push(reader(&bytes));
    }
    (history, readers)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(250), ..ProptestConfig::default() })]

    #[test]
    fn the_one_segment_does_what_all_of_them_did(shapes in vec(shape(), 1..9), split in any::<usize>()) {
        let (_, segments) = segments(&shapes);
        let result = squashed(&segments);
        let (mut expected, mut found) = (Blocks::new(), Blocks::new());
        for segment in &segments {
            apply(segment, &mut expected);
        }
        apply(&result, &mut found);
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        prop_assert!(found == expected);

        let (oldest, newest) = (segments[0].header(), segments[segments.len() - 1].header());
        let (Content::Delta { since, .. }, Content::Delta { sequence, .. }) =
            (oldest.content, newest.content) else { unreachable!() };
        let header = Header { content: Content::Delta { sequence, since }, ..newest.clone() };
        prop_assert_eq!(result.header(), &header);

        // In two steps it is the same.
        let split = split % segments.len();
        let first = squashed(&segments[..=split]);
        let mut rest = vec![first];
        rest.extend_from_slice(&segments[split + 1..]);
        let again = squashed(&rest);
        let mut found = Blocks::new();
        apply(&again, &mut found);
        prop_assert!(found == expected);
        prop_assert_eq!(again.header(), result.header());
    }

    #[test]
    fn what_does_not_fit_is_refused_before_anything_is_written(
        shapes in vec(shape(), 1..6), frames in 0..12_u64, runs in 0..20_u64,
    ) {
        let (_, segments) = segments(&shapes);
        let whole = squashed(&segments);
        let fits = Plan::within(&segments, Limits { frames, runs });
        if u64::from(whole.summary().frames) > frames || u64::from(whole.summary().runs) > runs {
            prop_assert!(matches!(fits, Err(SquashError::Unfit(_))));
        }
        if let Ok(plan) = fits {
            let (summary, _) = plan.write(Vec::new()).expect("fits");
            prop_assert_eq!(summary, *whole.summary());
        }
    }
}

#[test]
fn a_frame_that_survives_whole_is_copied_as_it_is_and_others_share_frames() {
    let history = History::new();
    let id = DiskId::random();
    let write = |sequence, runs: &[(u64, u64)]| {
        let header = history.header(sequence, vec![disk(id, 200)]);
        let mut writer = SegmentWriter::create(Vec::new(), &header).expect("good");
        for (first, count) in runs {
            let content: Vec<u8> = (*first..first + count)
                .flat_map(|number| block(number * 10 + sequence))
                .collect();
            writer.push_frame(0, *first, &content).expect("fits");
        }
        reader(&writer.finish().expect("good").1)
    };
    let older = write(1, &[(0, 16), (20, 10), (40, 4), (50, 4), (60, 4)]);
    let newer = write(2, &[(25, 1), (42, 2), (52, 2), (59, 12)]);
    let result = squashed(&[older.clone(), newer.clone()]);
    let stored = |reader: &SegmentReader| -> Vec<[u8; 32]> {
        let frames = 0..reader.summary().frames;
        frames
            .map(|number| reader.stored_frame(number).expect("good").hash())
            .collect()
    };
    // Of the older: the first one whole, 9 + 2 + 2 blocks of three others, nothing of the last.
    assert_eq!(result.summary().frames, 1 + 4 + 1);
    let copied = [&stored(&older)[..1], &stored(&newer)].concat();
    assert!(copied.iter().all(|hash| stored(&result).contains(hash)));
}

#[test]
fn segments_that_are_no_neighbours_are_refused() {
    let history = History::new();
    let id = DiskId::random();
    let empty = |header: &Header| {
        let writer = SegmentWriter::create(Vec::new(), header).expect("good");
        reader(&writer.finish().expect("good").1)
    };
    let number = |sequence, blocks| empty(&history.header(sequence, vec![disk(id, blocks)]));
    let other = History::new();
    let elsewhere = empty(&other.header(2, vec![disk(id, 9)]));
    let another_disk = empty(&history.header(2, vec![disk(DiskId::random(), 9)]));
    let mut disks = vec![disk(id, 9), disk(DiskId::random(), 9)];
    disks[0].joining = true;
    let joining = empty(&history.header(2, disks));
    let part = Header {
        content: Content::Seed {
            seed: history.seed,
            part: 0,
        },
        ..history.header(1, vec![disk(id, 9)])
    };
    for (segments, why) in [
        (vec![], "there are none"),
        (vec![number(2, 9), number(1, 9)], "does not follow"),
        (vec![number(1, 9), number(1, 9)], "does not follow"),
        (vec![number(1, 9), number(3, 9)], "does not follow"),
        (vec![number(1, 9), elsewhere], "histories"),
        (vec![empty(&part), number(1, 9)], "no point"),
        (vec![number(1, 9), number(2, 8)], "smaller"),
        (vec![number(1, 9), another_disk, number(3, 9)], "came back"),
        (vec![number(1, 9), joining], "came back"),
        ((1..200).map(|n| number(n, 9)).collect(), "too many"),
    ] {
        let error = Plan::of(&segments).err().expect(why).to_string();
        assert!(error.contains(why), "{error}: {why}");
    }
}

#[test]
fn damage_is_found_wherever_it_is_and_names_the_segment() {
    let shapes: Vec<_> = (0..3)
        .map(|n| Shape {
            grow: (0, 0),
            ops: vec![(0, 4 * n, 16, false), (0, 1, 5, false)],
            scattered: false,
        })
        .collect();
    let (_, segments) = segments(&shapes);
    let files: Vec<Vec<u8>> = segments.iter().map(bytes_of).collect();
    for (number, good) in files.iter().enumerate() {
        for at in (0..good.len()).step_by(37) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let Ok(damaged) = SegmentReader::of(file(&bad)) else {
                continue;
            };
            // In a frame, then: it matters if it is visible.
            let mut three = segments.clone();
            three[number] = damaged;
            let plan = Plan::of(&three).expect("the indexes are good");
            match plan.write(Vec::new()) {
                Ok((_, bytes)) => {
                    let mut expected = Blocks::new();
                    segments.iter().for_each(|one| apply(one, &mut expected));
                    let mut found = Blocks::new();
                    apply(&reader(&bytes), &mut found);
                    assert!(found == expected, "byte {at} of {number}");
                }
                Err(SquashError::Read { number: named, .. }) => assert_eq!(named, number),
                Err(error) => panic!("byte {at} of {number}: {error:?}"),
            }
        }
    }
}

fn bytes_of(segment: &SegmentReader) -> Vec<u8> {
    let len = usize::try_from(segment.summary().file_len.0).expect("small");
    let mut bytes = vec![0; len];
    segment.file().read_at(0, &mut bytes).expect("read");
    bytes
}
