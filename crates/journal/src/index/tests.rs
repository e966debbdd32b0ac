use std::time::Instant;

use durable::{Folder, Group};
use proptest::prelude::*;
use testkit::CutFolder;

use super::log::{bytes_of, open, read_bytes};
use super::*;

fn alone() -> Group {
    Group::default()
}

fn arc<T: Folder + Clone + 'static>(folder: &T) -> Arc<dyn Folder> {
    Arc::new(folder.clone())
}

fn seeding() -> Index {
    let disks = vec![BaseDisk::new(DiskId::random(), Bytes(8192))];
    Index::new(VmId::random(), SeedId::random(), disks)
}

fn disks(index: &Index) -> DiskSet {
    let extents = index.disks.iter().map(|disk| DiskExtent {
        id: disk.id,
        size: disk.size,
        joining: false,
    });
    extents.collect()
}

struct Maker {
    disks: DiskSet,
    lineage: Lineage,
    seed: SeedId,
}

impl Maker {
    fn of(index: &Index) -> Self {
        Self {
            disks: disks(index),
            lineage: Lineage::begin("host-a"),
            seed: index.seed,
        }
    }

    fn point(&self, sequence: u64) -> PointId {
        PointId {
            term: self.lineage.current().id,
            sequence,
        }
    }

    fn entry(&self, sequence: u64) -> Entry {
        let root = Root(*blake3::hash(&sequence.to_le_bytes()).as_bytes());
        Entry {
            point: self.point(sequence),
            since: match sequence {
                1 => Since::Seed {
                    seed: self.seed,
                    parts: 3,
                },
                _ => Since::Point(self.point(sequence.saturating_sub(1))),
            },
            time: Timestamp::new(i64::try_from(sequence).expect("small"), 500).expect("a time"),
            consistency: Consistency::Application,
            disks: self.disks.clone(),
            root,
            stored: root,
            place: Place::Pack {
                pack: 1,
                at: 4096 * sequence,
            },
            file_len: Bytes(4000),
            content: Bytes(8192),
            zeroes: Bytes(4096),
        }
    }
}

/// Opens what is in `folder`; its state, and whether the last record is in doubt.
fn reopened(folder: &CutFolder) -> Result<(Index, usize, bool), JournalError> {
    let opened = open(folder, None)?;
    Ok((opened.index, opened.doubts.len(), opened.is_torn))
}

#[test]
fn every_flipped_bit_of_a_snapshot_is_found() {
    let mut index = seeding();
    let maker = Maker::of(&index);
    index
        .apply(vec![Change::Point(maker.entry(1))])
        .expect("fits");
    let bytes = bytes_of(&index).expect("made");
    assert_eq!(read_bytes(bytes.clone()).expect("good"), index);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(read_bytes(flipped).is_err(), "byte {at}, bit {bit}");
        }
        assert!(read_bytes(bytes[..at].to_vec()).is_err(), "{at} bytes");
    }
}

#[test]
fn a_log_that_is_cut_anywhere_has_all_records_before_and_durable_ones_are_not_lost_unnoticed() {
    let folder = CutFolder::new();
    let mut index = seeding();
    let maker = Maker::of(&index);
    let mut log = Log::replace(&arc(&folder), &index, &alone()).expect("made");
    let mut states = vec![(folder.content(INDEX).expect("there").len(), index.clone())];
    for sequence in 1..=3 {
        let changes = vec![Change::Point(maker.entry(sequence))];
        log.append(&changes).expect("appended");
        index.apply(changes).expect("fits");
        states.push((folder.content(INDEX).expect("there").len(), index.clone()));
        log.file().sync().expect("synced");
        log.is_flushed();
    }
    let bytes = folder.content(INDEX).expect("there");
    let begin = states[0].0;
    for len in begin..=bytes.len() {
        let known = states.iter().rfind(|(end, _)| *end <= len);
        let found = read_bytes(bytes[..len].to_vec()).expect("a torn tail is none");
        assert_eq!(found, known.expect("the snapshot").1, "{len} bytes");
    }
    // Whatever is flipped where the log was durable: damage, and not the end of the log.
    let durable = states[3].0;
    for at in begin..durable {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let found = read_bytes(flipped);
            assert!(found.is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_record_is_in_doubt_until_a_later_one_says_that_it_is_durable() {
    let folder = CutFolder::new();
    let index = seeding();
    let maker = Maker::of(&index);
    let mut log = Log::replace(&arc(&folder), &index, &alone()).expect("made");
    assert_eq!(reopened(&folder).expect("good").1, 0);
    log.append(&[Change::Point(maker.entry(1))])
        .expect("appended");
    assert_eq!(reopened(&folder).expect("good").1, 1);
    log.append(&[Change::Point(maker.entry(2))])
        .expect("appended");
    let opened = open(&folder, None).expect("good");
    assert_eq!(opened.doubts.len(), 2);
    let cut = open(&folder, Some(opened.doubts[1].at)).expect("good");
    assert_eq!((cut.index.segments.len(), cut.is_torn), (1, true));
    log.file().sync().expect("synced");
    log.is_flushed();
    assert_eq!(reopened(&folder).expect("good").1, 0);
    // An append that failed leaves nothing, and the next one takes its place.
    folder.fail_after(0);
    log.append(&[Change::Point(maker.entry(3))])
        .expect_err("no space");
    log.append(&[Change::Point(maker.entry(4))])
        .expect("appended");
    let (found, doubts, is_torn) = reopened(&folder).expect("good");
    assert_eq!((found.segments.len(), doubts, is_torn), (3, 1, false));
}

#[test]
fn an_index_that_contradicts_itself_is_refused() {
    let mut bad = seeding();
    bad.base = Base::Merging;
    assert!(read_bytes(bytes_of(&bad).expect("made")).is_err());
    let mut bad = seeding();
    bad.disks[0].size = Bytes(4095);
    assert!(read_bytes(bytes_of(&bad).expect("made")).is_err());
    let mut bad = seeding();
    let maker = Maker::of(&bad);
    for sequence in [2, 1] {
        bad.segments.push_back(maker.entry(sequence));
    }
    bad.base = Base::Seeded;
    assert!(read_bytes(bytes_of(&bad).expect("made")).is_err());
}

#[test]
fn changes_that_cannot_be_are_refused_and_nothing_is_changed() {
    let mut index = seeding();
    let maker = Maker::of(&index);
    let points = (1..=4).map(|sequence| Change::Point(maker.entry(sequence)));
    index.apply(points.collect()).expect("fit");
    index
        .apply(vec![
            Change::Note(Note::Pin(Pin {
                point: maker.point(2),
                reason: "export".to_owned(),
            })),
            Change::Note(Note::Lock {
                point: maker.point(3),
                until: Timestamp::MAX,
            }),
        ])
        .expect("there");
    let note = Change::Note;
    let squash = |first, last| Change::Squash {
        first,
        by: maker.entry(last),
    };
    let mut elsewhere = maker.entry(5);
    elsewhere.disks = Arc::from([DiskExtent {
        id: DiskId::random(),
        size: Bytes(4096),
        joining: false,
    }]);
    for bad in [
        Change::Point(maker.entry(4)),
        Change::Point(elsewhere),
        Change::BasePoint(maker.entry(1)),
        squash(3, 2),
        squash(3, 5),
        // Point 2 is pinned.
        squash(1, 3),
        note(Note::MergeEnds),
        note(Note::Lock {
            point: maker.point(3),
            until: Timestamp::UNIX_EPOCH,
        }),
        note(Note::Pin(Pin {
            point: maker.point(9),
            reason: String::new(),
        })),
        note(Note::Moved {
            sequence: 3,
            place: Place::Pack { pack: 2, at: 17 },
        }),
        note(Note::Disks(vec![])),
        note(Note::Disks(vec![BaseDisk::new(
            DiskId::random(),
            Bytes(8192),
        )])),
        note(Note::Seeding {
            parts: 9,
            last: None,
        }),
    ] {
        let before = index.clone();
        assert!(index.check(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        assert!(index.apply(vec![bad]).is_err());
        assert_eq!(index, before);
    }
    index.apply(vec![squash(3, 4)]).expect("they are there");
    assert_eq!(index.segments.len(), 3);
    assert!(index.find(maker.point(3)).is_none() && index.locks.is_empty());
    assert_eq!(index.find(maker.point(4)).expect("left").0, Some(2));
}

/// Anything that may happen, by its number.
fn change(index: &Index, maker: &Maker, kind: u8, number: u64) -> Change {
    let sequences: Vec<_> = index.segments.iter().map(|it| it.point.sequence).collect();
    let pick = |number: u64| {
        let count = sequences.len() as u64;
        let at = number.checked_rem(count).unwrap_or(0);
        sequences
            .get(usize::try_from(at).expect("small"))
            .copied()
            .unwrap_or(0)
    };
    let newest = sequences.last().copied().unwrap_or(0);
    let note = match kind {
        0..=4 => return Change::Point(maker.entry(newest + 1 + number % 3)),
        5 => {
            let mut by = maker.entry(pick(number / 7));
            by.stored = Root([7; 32]);
            by.place = Place::Own;
            return Change::Squash {
                first: pick(number),
                by,
            };
        }
        6 => Note::MergeBegins,
        7 => Note::MergeEnds,
        8 => Note::Pin(Pin {
            point: maker.point(pick(number)),
            reason: format!("reason {}", number % 2),
        }),
        9 => match index.pins.first() {
            Some(pin) => Note::Unpin(pin.clone()),
            None => Note::Lineage(maker.lineage.clone()),
        },
        10 => Note::Lock {
            point: maker.point(pick(number)),
            until: Timestamp::new(i64::try_from(number % 100).expect("small"), 0).expect("a time"),
        },
        11 => Note::Moved {
            sequence: pick(number),
            place: Place::Pack {
                pack: 1 + u32::try_from(number % 9).expect("small"),
                at: 4096,
            },
        },
        _ => Note::ChangeSets {
            add: vec![ChangeSet {
                number,
                since: Since::Point(maker.point(1)),
                point: maker.point(2),
                len: Bytes(1),
                hash: Root([0; 32]),
            }],
            remove: index.changes.keys().take(1).copied().collect(),
        },
    };
    Change::Note(note)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(100), ..ProptestConfig::default() })]

    #[test]
    fn what_was_appended_or_written_anew_is_read_again(
        steps in proptest::collection::vec((0..14_u8, any::<u64>(), 0..12_u8), 1..60),
    ) {
        let folder = CutFolder::new();
        let mut index = seeding();
        let maker = Maker::of(&index);
        let mut log = Log::replace(&arc(&folder), &index, &alone()).expect("made");
        for (kind, number, then) in steps {
            let changes = vec![change(&index, &maker, kind, number)];
            if index.check(&changes).is_err() {
                continue;
            }
            log.append(&changes).expect("appended");
            index.apply(changes).expect("checked");
            match then {
                0 => log = Log::replace(&arc(&folder), &index, &alone()).expect("written"),
                1..=3 => log.is_flushed(),
                4..=6 => {
                    let opened = open(&folder, None).expect("good");
                    prop_assert_eq!(&opened.index, &index);
                    log = opened.log.expect("of this version");
                }
                _ => {}
            }
        }
        prop_assert_eq!(&open(&folder, None).expect("good").index, &index);
        prop_assert_eq!(read_bytes(bytes_of(&index).expect("made")).expect("good"), index);
    }
}

#[test]
fn a_day_of_points_is_read_and_searched_in_no_time() {
    const POINTS: u64 = 86_400;
    let scratch = tempfile::tempdir().expect("scratch");
    let folder = durable::OsFolder::open(scratch.path()).expect("a folder");
    let mut index = seeding();
    let maker = Maker::of(&index);
    let mut log = Log::replace(&arc(&folder), &index, &alone()).expect("made");
    for sequence in 1..=POINTS {
        let changes = vec![Change::Point(maker.entry(sequence))];
        log.append(&changes).expect("appended");
        // As if it had been synced.
        log.is_flushed();
        index.apply(changes).expect("fits");
        if log.is_long() {
            log = Log::replace(&arc(&folder), &index, &alone()).expect("written");
        }
    }
    let len = folder
        .open(INDEX)
        .and_then(|file| file.size())
        .expect("there");
    assert!(len < POINTS * 250, "{len} bytes");
    let began = Instant::now();
    let read = Index::load(&folder).expect("good");
    let taken = began.elapsed();
    println!("{len} bytes of {POINTS} points are read in {taken:?}");
    assert_eq!(read.segments.len() as u64, POINTS);
    assert!(read.segments.capacity() as u64 <= POINTS * 9 / 8 + 64);
    assert!(size_of::<Entry>() <= 256, "{}", size_of::<Entry>());
    assert_eq!(read, index);
    for sequence in 1..=POINTS {
        let (at, _) = read.find(maker.point(sequence)).expect("there");
        assert_eq!(at.map(|at| at as u64 + 1), Some(sequence));
    }
}

#[test]
fn an_index_of_the_first_format_is_read() {
    let index = seeding();
    let maker = Maker::of(&index);
    let (one, two) = (maker.entry(1), maker.entry(2));
    let old = |entry: &Entry| {
        serde_json::json!({
            "point": entry.point, "since": entry.since, "time": entry.time,
            "consistency": entry.consistency, "sizes": [index.disks[0].size], "root": entry.root,
            "file_len": entry.file_len, "content": entry.content, "zeroes": entry.zeroes,
        })
    };
    let body = serde_json::json!({
        "vm": index.vm, "disks": index.disks, "seed": index.seed, "base": {"point": old(&one)},
        "lineage": maker.lineage, "segments": [old(&two)],
        "pins": [{"point": two.point, "reason": "export"}],
    });
    let body = body.to_string();
    let hash = blake3::hash(body.as_bytes()).to_hex();
    let file = format!("pollux-journal 1 {hash}\n{body}");
    let read = read_bytes(file.clone().into_bytes()).expect("good");
    let own = |entry: &Entry| Entry {
        place: Place::Own,
        ..entry.clone()
    };
    assert_eq!(read.base, Base::Point(own(&one)));
    assert_eq!(read.segments, [own(&two)]);
    assert_eq!(read.pins.len(), 1);
    assert_eq!(
        read_bytes(bytes_of(&read).expect("made")).expect("good"),
        read
    );
    let bad = file.replace("export", "exporT");
    assert!(read_bytes(bad.into_bytes()).is_err());
}
