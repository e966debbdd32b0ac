use block::Image;
use proptest::prelude::*;

use super::*;
use crate::compare::BlockHashes;
use crate::{Begun, Held};

#[test]
fn a_reader_sees_the_same_bytes_before_during_and_after_the_merges_below_it() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 4);
    packed(&mut journal);
    journal.packs.full = 24 << 10;
    more(&mut journal, &folder, &mut primary, &mut points, 8);
    let pinned = points[8].clone();
    journal.pin(pinned.id, "test failover").expect("pinned");
    let outside = PointReader::open_pinned_in(&arc(&folder), pinned.id).expect("opened");
    let inside = journal.open_point(points[5].id).expect("opened");
    assert_content(&outside, &pinned, "before");
    let mut merges = 0;
    loop {
        match journal.begin_merge(NOW).expect("begun") {
            Begun::Held(held) => {
                assert_eq!(held, Held::Point(points[5].id), "open in this process");
                break;
            }
            Begun::Merge(merge) => {
                // Half of it, and then all of it again.
                folder.fail_after(2);
                let half = merge.run();
                assert_content(&outside, &pinned, "during");
                assert_content(&inside, &points[5], "during");
                drop(half);
                folder.fail_after(u64::MAX);
                journal.merge_oldest(NOW).expect("merged");
                merges += 1;
            }
        }
        assert_content(&outside, &pinned, "between");
        assert_content(&inside, &points[5], "between");
        // Opened now, some of its segments being in the base already.
        let fresh = PointReader::open_pinned_in(&arc(&folder), pinned.id).expect("opened");
        assert_content(&fresh, &pinned, "opened between");
    }
    assert_eq!(merges, 6);
    drop(inside);
    while journal.merge_oldest(NOW).expect("merged").is_none() {
        assert_content(&outside, &pinned, "after");
    }
    assert_eq!(ids(&journal)[0], pinned.id);
    more(&mut journal, &folder, &mut primary, &mut points, 2);
    assert_content(&outside, &pinned, "after more points");
    assert_points(&journal, &points, "at the end");
}

#[test]
fn the_hashes_of_a_region_are_those_of_the_content_wherever_it_lies() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    primary.grow(0, 300);
    more(&mut journal, &folder, &mut primary, &mut points, 8);
    for merges in 0..points.len() {
        for known in &points[merges..] {
            let reader = journal.open_point(known.id).expect("opened");
            for (id, content) in primary.ids.iter().zip(&known.disks) {
                let image = reader.image(*id).expect("has it");
                // As it is, and as it would be after it grew.
                for more in [0, 5 * BLOCK, 300 * BLOCK] {
                    let mut content = content.clone();
                    content.resize(content.len() + more, 0);
                    let size = Bytes(content.len() as u64);
                    let mut regions = (0..).zip(content.chunks(256 * BLOCK));
                    for (number, content) in &mut regions {
                        let hashes = image.region_hashes(number, size).expect("read");
                        assert_eq!(hashes, BlockHashes::of(content), "region {number}");
                    }
                    let past = content.len().div_ceil(256 * BLOCK) as u64;
                    for past in [past, u64::MAX] {
                        image.region_hashes(past, size).expect_err("past the end");
                    }
                }
            }
        }
        let _ = journal.merge_oldest(NOW).expect("merged");
    }
}

#[test]
fn a_reader_that_outlives_its_journal_holds_merging_in_the_next_one() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 4);
    let leases = journal.leases.clone();
    let reader = journal.open_point(points[1].id).expect("opened");
    drop(journal);
    let mut next = Journal::open_in(arc(&folder), None, Arc::default()).expect("opened again");
    next.leases = leases;
    while next.merge_oldest(NOW).expect("merged").is_none() {}
    let held = next.begin_merge(NOW).expect("begun");
    assert!(matches!(held, Begun::Held(Held::Point(point)) if point == points[1].id));
    assert_content(&reader, &points[1], "held");
    drop(reader);
    assert!(
        next.merge_oldest(NOW).expect("merged").is_none(),
        "free again"
    );
}

#[test]
fn a_reader_with_no_file_open_finds_what_was_merged_in_the_base() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 4);
    let reader = journal.open_point(points[4].id).expect("opened");
    while journal.merge_oldest(NOW).expect("merged").is_none() {}
    assert_eq!(
        folder.list("segments").expect("listed"),
        Vec::<String>::new()
    );
    assert_content(&reader, &points[4], "never read before");
}

#[test]
fn a_damaged_segment_is_found_when_it_is_read_and_never_served() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 1);
    journal.merge_oldest(NOW).expect("the first one is good");
    let entry = journal.index.segments[0].clone();
    let name = entry.file();
    let bytes = folder.content(&name).expect("there");
    let file = folder.open(&name).expect("opened");
    let start = usize::try_from(entry.start()).expect("small");
    let end = start + usize::try_from(entry.file_len.0).expect("small");
    for at in (start..end).step_by(101) {
        file.write_at(at as u64, &[bytes[at] ^ 1]).expect("damaged");
        let read = journal.open_point(points[1].id).and_then(|reader| {
            for (id, size) in reader.disks() {
                let mut content = vec![0; usize::try_from(size.0).expect("small")];
                reader.read_at(id, 0, &mut content)?;
            }
            Ok(())
        });
        // A frame that is hidden or not read is not looked at; here all are visible.
        assert!(read.is_err(), "byte {at}");
        // And when it is merged: the base must not take it over.
        let merged = journal
            .merge_oldest(NOW)
            .and_then(|_| journal.merge_oldest(NOW));
        assert!(merged.is_err(), "byte {at}");
        file.write_at(at as u64, &[bytes[at]]).expect("repaired");
    }
    assert_points(&journal, &points, "repaired");
}

#[test]
fn parts_of_blocks_read_right_however_often_and_by_however_many() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (mut journal, mut points) = seeded(&folder, &mut primary);
    more(&mut journal, &folder, &mut primary, &mut points, 8);
    let known = &points[8];
    let reader = journal.open_point(known.id).expect("opened");
    let read_all = &|order: u64| {
        let mut chance = Chance::new(order);
        for (id, content) in primary.ids.iter().zip(&known.disks) {
            for _ in 0..2000 {
                let len = 1 + usize::try_from(chance.below(BLOCK as u64 + 600)).expect("small");
                let last = (content.len() - len) as u64;
                let at = usize::try_from(chance.below(last + 1)).expect("small");
                let mut read = vec![0xaa; len];
                reader.read_at(*id, at as u64, &mut read).expect("read");
                assert!(read == content[at..at + len], "{len} bytes at {at}");
            }
        }
    };
    std::thread::scope(|scope| {
        for order in 1..5 {
            scope.spawn(move || read_all(order));
        }
    });
}

#[test]
fn ranges_outside_the_disk_and_disks_that_there_are_not_are_refused() {
    let (folder, mut primary) = (CutFolder::new(), Primary::new());
    let (journal, points) = seeded(&folder, &mut primary);
    let reader = journal.open_point(points[0].id).expect("opened");
    let id = primary.ids[1];
    let size = block_count(BLOCKS[1]);
    for at in [size, size - 10, u64::MAX, u64::MAX - 5] {
        let error = reader.read_at(id, at, &mut [0; 11]).expect_err("outside");
        assert!(matches!(error, JournalError::Range { .. }), "{error}");
    }
    reader
        .read_at(id, size - 11, &mut [0; 11])
        .expect("the end");
    let error = reader
        .read_at(DiskId::random(), 0, &mut [0])
        .expect_err("no such disk");
    assert!(matches!(error, JournalError::NoSuchDisk(_)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(24), ..ProptestConfig::default() })]

    #[test]
    fn any_range_of_any_point_translates_without_gaps_and_reads_right(
        seed in any::<u64>(), count in 0..12_usize, merges in 0..4_usize,
        grow in any::<bool>(),
        ranges in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..12),
    ) {
        let (folder, mut primary) = (CutFolder::new(), Primary::new());
        primary.write(&mut Chance::new(seed));
        let (mut journal, mut points) = seeded(&folder, &mut primary);
        more(&mut journal, &folder, &mut primary, &mut points, count / 2);
        if grow {
            primary.grow(0, 3);
        }
        more(&mut journal, &folder, &mut primary, &mut points, count - count / 2);
        for _ in 0..merges {
            journal.merge_oldest(NOW).expect("merged");
        }
        for info in journal.points() {
            let known = points.iter().find(|known| known.id == info.id).expect("known");
            let reader = journal.open_point(info.id).expect("opened");
            for (id, content) in primary.ids.iter().zip(&known.disks) {
                let image = reader.image(*id).expect("there");
                testkit::ready(testkit::image_conformance(&image, content, seed, 8));
                for (a, b) in &ranges {
                    let (a, b) = (a % (image.size() + 1), b % (image.size() + 1));
                    let (start, end) = (a.min(b), a.max(b));
                    let range = usize::try_from(start).expect("small")
                        ..usize::try_from(end).expect("small");
                    let mut read = vec![0xaa; range.len()];
                    image.read_at(start, &mut read).expect("inside");
                    prop_assert!(read == content[range]);
                }
            }
        }
    }
}
