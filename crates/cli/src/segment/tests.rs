use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;

use jiff::Timestamp;
use journal::{Consistency, Content as Holds, Header, SegmentWriter};
use model::{DiskId, Lineage, SeedId, Since, VmId};
use proptest::collection::vec;
use proptest::prelude::*;

use super::pieces::{Content, Pieces};
use super::*;
use crate::args::Part;
use crate::show::Shown;

const DISK_BLOCKS: u64 = 40;

fn header(disks: usize) -> Header {
    let extent = |_| DiskExtent {
        joining: false,
        id: DiskId::random(),
        size: Bytes(DISK_BLOCKS * BLOCK_SIZE),
    };
    Header {
        vm: VmId::random(),
        disks: (0..disks).map(extent).collect(),
        lineage: Lineage::begin("host-\u{1b}[31ma"),
        content: Holds::Delta {
            sequence: 7,
            since: Since::Seed {
                seed: SeedId::random(),
                parts: 3,
            },
        },
        time: Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
    }
}

/// Blocks of disks, each with its fill; 0 is a run of zeroes.
type Blocks = BTreeMap<(u16, u64), u8>;

fn segment(header: &Header, blocks: &Blocks) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("scratch");
    let path = folder.path().join("7.delta");
    let file = File::create(&path).expect("made");
    let mut writer = SegmentWriter::create(file, header).expect("a good header");
    for ((disk, block), fill) in blocks {
        match fill {
            0 => writer.push_zero(*disk, *block, 1),
            fill => writer.push_frame(*disk, *block, &[*fill; 4096]),
        }
        .expect("inside the disk");
    }
    writer.finish().expect("written");
    (folder, path)
}

fn some_blocks() -> Blocks {
    // Disk 0: 4 and 5 with content, 7 zeroes; disk 1: 39.
    [((0, 4), 1), ((0, 5), 2), ((0, 7), 0), ((1, 39), 3)].into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn pieces_are_what_was_pushed_and_say_where_nothing_was(
        pushed in vec((0..2_u16, 0..DISK_BLOCKS, 0..4_u8), 0..60),
        disk in 0..2_u16,
        from in 0..DISK_BLOCKS * BLOCK_SIZE,
        length in 0..DISK_BLOCKS * BLOCK_SIZE,
    ) {
        let blocks: Blocks = pushed.into_iter().map(|(disk, block, fill)| ((disk, block), fill)).collect();
        let (_folder, path) = segment(&header(2), &blocks);
        let reader = open(&path).expect("a good segment");
        let range = Range::new(from, (from + length).min(DISK_BLOCKS * BLOCK_SIZE));
        let mut at = from;
        for piece in Pieces::new(&path, &reader, disk.into(), range) {
            let piece = piece.expect("a good segment");
            prop_assert_eq!(piece.range.at.0, at);
            prop_assert!(piece.range.length.0 > 0);
            for (number, byte) in (at..piece.range.end()).enumerate() {
                let said = match &piece.content {
                    Content::Bytes(bytes) => Some(bytes[number]),
                    Content::Zero => Some(0),
                    Content::Absent => None,
                };
                prop_assert_eq!(said, blocks.get(&(disk, byte / BLOCK_SIZE)).copied());
            }
            at = piece.range.end();
        }
        prop_assert_eq!(at, range.end());
    }
}

#[test]
fn info_counts_what_each_disk_has_and_lets_no_name_steer_the_terminal() {
    let header = header(2);
    let (_folder, path) = segment(&header, &some_blocks());
    let info = SegmentInfo::read(&path).expect("a good segment");
    let text = info.table();
    let point = header.point().expect("a delta").to_string();
    for part in [
        point.as_str(),
        "3 parts",
        "16 KiB, of it 4 KiB zeroes",
        "host-\\u{1b}[31ma",
        "1970-01-01 00:00:00.000",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = serde_json::to_value(&info).expect("it has a JSON form");
    let disks = &json["disks"];
    assert_eq!(disks[0]["held"], "12 KiB", "{json}");
    assert_eq!(disks[0]["zeroes"], "4 KiB", "{json}");
    assert_eq!(disks[1]["runs"], 1, "{json}");
    assert_eq!(json["point"], point.as_str());
    // 12 KiB of the same bytes each.
    assert!(json["ratio"].as_f64().expect("a number") > 10.0, "{json}");
}

#[tokio::test]
async fn verify_names_the_damaged_frame_and_the_blocks_that_are_lost_with_it() {
    let (_folder, path) = segment(&header(2), &some_blocks());
    let whole = verify(&path, |_, _| {}).await.expect("a segment");
    assert_eq!(whole.problem(), None);
    let mut bytes = fs::read(&path).expect("read");
    // The second of three frames; each begins with the magic number of zstd.
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let mut at = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&magic));
    let second = at.nth(1).expect("three frames");
    bytes[second + 5] ^= 1;
    fs::write(&path, bytes).expect("written");
    let mut told = (0, 0);
    let damaged = verify(&path, |done, total| told = (done, total)).await;
    let damaged = damaged.expect("the structure is right");
    assert_eq!(told, (8192, 12288));
    let problem = damaged.problem().expect("damaged");
    assert_eq!(problem.code, Code::Failed);
    assert!(problem.reason.contains("frame 1"), "{problem}");
    let text = damaged.table();
    for part in ["2 of 3", "frame 1", "5 to 5", "4 KiB at 20 KiB"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_disk_is_found_by_its_number_or_the_beginning_of_its_id() {
    let header = header(2);
    let path = Path::new("x");
    let find = |wanted| find_disk(path, &header.disks, wanted);
    assert_eq!(find(Some("1")).ok(), Some(1));
    let id = header.disks[1].id.to_string();
    assert_eq!(find(Some(&id[..13])).ok(), Some(1));
    let digits = id.replace('-', "");
    assert_eq!(find(Some(&digits)).ok(), Some(1));
    for refused in [Some("2"), Some("zz"), Some(""), None] {
        let problem = find(refused).expect_err("no such disk");
        assert_eq!(problem.code, Code::Invalid, "{refused:?}");
        assert!(problem.way_out.contains("--disk"), "{problem}");
    }
    assert_eq!(find_disk(path, &header.disks[..1], None).ok(), Some(0));
}

#[tokio::test]
async fn a_range_outside_the_disk_is_refused_and_writes_nothing() {
    let (folder, path) = segment(&header(1), &[((0, 1), 1)].into());
    let to = folder.path().join("out.raw");
    let size = DISK_BLOCKS * BLOCK_SIZE;
    for (at, length) in [
        (size, None),
        (size - 4096, Some(4097)),
        (u64::MAX, Some(1)),
        (1, Some(u64::MAX)),
    ] {
        let part = Part {
            disk: None,
            at: Some(Bytes(at)),
            length: length.map(Bytes),
        };
        let refused = copy(&path, &part, Some(&to), |_, _| {}).await;
        let problem = refused.expect_err("outside");
        assert_eq!(problem.code, Code::Invalid);
        assert!(problem.reason.contains("160 KiB"), "{problem}");
    }
    assert!(!to.exists());
}

#[tokio::test]
async fn what_is_copied_into_a_file_is_sparse_and_says_what_was_not_there() {
    let (folder, path) = segment(&header(1), &[((0, 4), 1), ((0, 5), 0)].into());
    let to = folder.path().join("out.raw");
    let part = Part {
        at: Some(Bytes(3 * 4096 + 1)),
        length: Some(Bytes(4 * 4096)),
        ..Part::default()
    };
    let copied = copy(&path, &part, Some(&to), |_, _| {})
        .await
        .expect("copied");
    let mut expected = vec![0; 4095];
    expected.extend([1; 4096]);
    expected.resize(4 * 4096, 0);
    assert!(fs::read(&to).expect("read") == expected);
    let notice = copied.notice().expect("something is missing");
    assert!(
        notice.contains("4095 B at 12289 B, 4097 B at 24 KiB"),
        "{notice}"
    );
    let json = serde_json::to_value(&copied).expect("it has a JSON form");
    assert_eq!(json["content"], "4 KiB", "{json}");
    assert_eq!(json["absent"][0]["at"], "12289 B", "{json}");
    let again = copy(&path, &part, Some(&to), |_, _| {}).await;
    assert_eq!(again.expect_err("it exists").code, Code::Conflict);
}

#[test]
fn the_listing_is_cut_to_the_range_that_was_asked_for() {
    let (_folder, path) = segment(&header(2), &some_blocks());
    let all = list(&path, &Part::default()).expect("listed").table();
    assert_eq!(all.lines().count(), 5, "{all}");
    let part = Part {
        disk: Some("0".to_owned()),
        at: Some(Bytes(5 * 4096 + 100)),
        length: Some(Bytes(3 * 4096)),
    };
    let some = list(&path, &part).expect("listed");
    let text = some.table();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.contains("20580 B") && text.contains("3996 B"),
        "{text}"
    );
    assert!(text.contains("zeroes"), "{text}");
    let json = serde_json::to_value(&some).expect("it has a JSON form");
    assert_eq!(json[1]["length"], "4 KiB", "{json}");
    assert_eq!(json[1]["frame"], serde_json::Value::Null, "{json}");
}
