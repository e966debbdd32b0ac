#![allow(clippy::single_range_in_vec_init, reason = "runs are compared")]

use std::rc::Rc;

use block::{Buffer, Fault, Store};
use model::{BLOCK_SIZE, DiskId, REGION_SIZE, RelationshipId};
use testkit::{PowerCutStore, Rng, Schedule, finish};
use uuid::Uuid;

use super::page::{Content, PAGE, REGIONS, WORDS, place};
use super::{Armed, FARTHEST, IntentLog, LogError, Looks, Tag, Unknown, WIDEST, regions};

const TAG: Tag = Tag {
    disk: DiskId(Uuid::from_u128(1)),
    relationship: RelationshipId(Uuid::from_u128(2)),
};
/// Two pages of bits, the last region of one block.
const SIZE: u64 = (REGIONS + 3000) * REGION_SIZE + BLOCK_SIZE;

type Log = IntentLog<PowerCutStore>;

fn run<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    finish(&Schedule::new(7), future)
}

fn create(size: u64, armed: Armed) -> (PowerCutStore, Rc<Log>) {
    let store = PowerCutStore::new(0, 4096, 3);
    let at = store.clone();
    let log = run(async move { IntentLog::create(at, TAG, size, armed).await });
    (store, Rc::new(log.expect("created")))
}

fn open(store: &PowerCutStore) -> Result<Log, Unknown> {
    let store = store.clone();
    run(async move { IntentLog::open(store, TAG.disk).await })
}

fn arm(log: &Rc<Log>, regions: std::ops::Range<u64>) -> Result<(), LogError> {
    let log = Rc::clone(log);
    run(async move { log.arm(regions).await })
}

fn overwrite(store: &PowerCutStore, at: u64, bytes: &[u8]) {
    let (store, from) = (store.clone(), Buffer::from_slice(bytes));
    run(async move {
        assert_eq!(store.write(at, from).await.outcome, Ok(()));
    });
}

fn all(log: &Log) -> Vec<std::ops::Range<u64>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(run) = log.next_armed(from..log.regions()) {
        from = run.end;
        found.push(run);
    }
    found
}

#[test]
fn a_block_belongs_to_the_regions_that_it_touches() {
    assert_eq!(regions(&(0..1)), 0..1);
    assert_eq!(regions(&(255..257)), 0..2);
    assert_eq!(regions(&(256..512)), 1..2);
    assert!(regions(&(700..700)).is_empty());
}

#[test]
fn a_log_says_the_same_when_it_is_opened_again() {
    for armed in [Armed::None, Armed::All] {
        let (store, log) = create(SIZE, armed);
        assert_eq!(log.regions(), REGIONS + 3001);
        let wanted = [0, log.regions()][usize::from(armed == Armed::All)];
        assert_eq!(log.armed(), wanted);
        for region in [5, REGIONS - 1, REGIONS + 3000] {
            arm(&log, region..region + 1).expect("armed");
            assert!(log.is_armed(&(region * 256..region * 256 + 1)));
        }
        let told = (all(&log), log.armed());
        // Nothing more is needed.
        store.cut(1);
        let log = open(&store).expect("opened");
        assert_eq!((all(&log), log.armed()), told);
        assert_eq!((log.size(), log.relationship()), (SIZE, TAG.relationship));
        assert_eq!((log.identity(), log.closed()), (None, None));
    }
}

#[test]
fn an_armed_region_costs_nothing() {
    let (store, log) = create(SIZE, Armed::None);
    arm(&log, 5..7).expect("armed");
    let (commits, syncs) = (log.commits(), store.syncs());
    arm(&log, 5..7).expect("armed");
    assert_eq!((log.commits(), store.syncs()), (commits, syncs));
}

#[test]
fn those_who_come_at_once_share_commits() {
    for seed in 0..200 {
        let (_, log) = create(SIZE, Armed::None);
        let schedule = Schedule::new(seed);
        let before = log.commits();
        for region in 0..64 {
            let log = Rc::clone(&log);
            let region = region * 400;
            schedule.spawn(async move {
                log.arm(region..region + 1).await.expect("armed");
                assert!(log.is_armed(&(256 * region..256 * region + 256)));
            });
        }
        assert_eq!(schedule.run(), 0);
        // Whoever had no turn before the first one took its pages is carried by a later one.
        let commits = log.commits() - before;
        assert!((1..=8).contains(&commits), "{commits} of seed {seed}");
    }
}

#[test]
fn what_is_armed_ahead_doubles_and_is_bounded() {
    let (_, log) = create(SIZE, Armed::None);
    arm(&log, 100..101).expect("armed");
    assert_eq!(all(&log), [100..101]);
    let before = log.commits();
    let mut region = 100;
    while region < 30_000 {
        let (end, were) = (all(&log)[0].end, log.armed());
        if region == end {
            arm(&log, region..region + 1).expect("armed");
            let more = log.armed() - were;
            assert!(more <= were + 1 && more <= FARTHEST + 1, "{more} at {were}");
        }
        region += 1;
    }
    // Ten doublings, then one for each GiB.
    assert!(log.commits() - before < 12 + 30, "{}", log.commits());
    assert_eq!(all(&log)[0].start, 100);
}

#[test]
fn a_guest_that_writes_everywhere_widens_what_is_armed_and_one_that_pauses_narrows_it() {
    let (_, log) = create(SIZE, Armed::None);
    let schedule = Schedule::new(1);
    let done = Rc::new(std::cell::Cell::new(0));
    for guest in 0..8 {
        let (log, done) = (Rc::clone(&log), Rc::clone(&done));
        schedule.spawn(async move {
            let mut rng = Rng::new(guest);
            for _ in 0..200 {
                let region = rng.below(REGIONS);
                log.arm(region..region + 1).await.expect("armed");
                done.set(done.get() + 1);
            }
        });
    }
    assert_eq!(schedule.run(), 0);
    assert_eq!(done.get(), 1600);
    let commits = log.commits();
    assert!(commits < 400, "{commits} commits for 1600 cold regions");
    let bound = 1600 * WIDEST + FARTHEST;
    assert!(log.armed() < bound, "{} armed", log.armed());
    // With pauses it narrows, a step each.
    let mut last = 0;
    for (number, at) in (REGIONS + 100..).step_by(200).take(10).enumerate() {
        let before = log.armed();
        arm(&log, at..at + 1).expect("armed");
        last = log.armed() - before;
        assert!(last <= WIDEST >> number.min(6), "{last} at {number}");
    }
    assert_eq!(last, 1);
}

#[test]
fn what_was_disarmed_stays_so_and_both_copies_say_it() {
    let (store, log) = create(SIZE, Armed::All);
    let sweep = Rc::clone(&log);
    let regions = log.regions();
    run(async move { sweep.disarm(&[3..5, 9..10, 40_000..90_000]).await }).expect("disarmed");
    let told = all(&log);
    assert_eq!(told, [0..3, 5..9, 10..regions]);
    for copy in 0..2 {
        // The other one rots.
        let rotten = PowerCutStore::new(0, 1, 1);
        overwrite(&rotten, 0, &store.content());
        overwrite(&rotten, place(1, copy) + 100, b"rot");
        assert_eq!(all(&open(&rotten).expect("opened")), told);
    }
}

#[test]
fn a_page_without_a_valid_copy_arms_its_regions_and_no_others() {
    let (store, log) = create(SIZE, Armed::None);
    arm(&log, 7..8).expect("armed");
    let page = [0xff; PAGE];
    overwrite(&store, place(2, 0), &page);
    overwrite(&store, place(2, 1), &page);
    let log = Rc::new(open(&store).expect("opened"));
    assert_eq!(all(&log), [7..8, REGIONS..REGIONS + 3001]);
    // It is valid again when the disk was opened, and says the same.
    let opened = Rc::clone(&log);
    run(async move { opened.opened(Looks::of(&[])).await }).expect("noted");
    store.cut(2);
    let again = open(&store).expect("opened");
    assert_eq!(all(&again), all(&log));
    assert_eq!(again.uneven.borrow().len(), 0);
}

#[test]
fn without_a_header_nothing_is_known() {
    let empty = PowerCutStore::new(0, 512, 1);
    assert_eq!(open(&empty).err(), Some(Unknown::NoHeader));
    let (store, _) = create(SIZE, Armed::None);
    overwrite(&store, 0, &[0; PAGE]);
    assert!(open(&store).is_ok(), "one copy is left");
    overwrite(&store, place(0, 1), &[0; PAGE]);
    assert_eq!(open(&store).err(), Some(Unknown::NoHeader));
}

#[test]
fn a_log_of_another_disk_is_refused_and_pages_of_another_relationship_do_not_count() {
    let (store, _) = create(SIZE, Armed::None);
    let other = DiskId(Uuid::from_u128(9));
    let at = store.clone();
    let refused = run(async move { IntentLog::open(at, other).await });
    assert_eq!(refused.err(), Some(Unknown::OtherDisk(TAG.disk)));
    let relationship = RelationshipId(Uuid::from_u128(77));
    let foreign = Content {
        tag: Tag {
            relationship,
            ..TAG
        },
        number: 1,
        generation: 1000,
        words: vec![0; WORDS],
    };
    for copy in 0..2 {
        overwrite(&store, place(1, copy), &foreign.seal().to_vec());
    }
    assert_eq!(all(&open(&store).expect("opened")), [0..REGIONS]);
}

#[test]
fn a_page_in_the_place_of_another_does_not_count() {
    let (store, _) = create(SIZE, Armed::None);
    let content = store.content();
    let from = usize::try_from(place(1, 0)).expect("small");
    overwrite(&store, place(2, 0), &content[from..from + 2 * PAGE]);
    let log = open(&store).expect("opened");
    assert_eq!(all(&log), [REGIONS..log.regions()]);
}

#[test]
fn a_header_that_says_the_impossible_is_none() {
    let header = |size: u64, generation: u64| {
        let store = PowerCutStore::new(0, 1, 1);
        let mut words = vec![0; WORDS];
        words[0] = size;
        let (number, tag) = (0, TAG);
        let page = Content {
            tag,
            number,
            generation,
            words,
        };
        overwrite(&store, 0, &page.seal().to_vec());
        open(&store).err()
    };
    for size in [0, 4095, (64 << 40) + 4096, u64::MAX - 4095] {
        assert_eq!(header(size, 1), Some(Unknown::NoHeader), "{size}");
    }
    assert_eq!(header(4096, 0), Some(Unknown::NoHeader));
    assert_eq!(header(4096, u64::MAX), Some(Unknown::NoHeader));
    assert_eq!(header(4096, 1 << 62), Some(Unknown::NoHeader));
    assert_eq!(header(4096, 1), None);
}

#[test]
fn two_pages_of_one_generation_that_differ_are_none() {
    let (store, _) = create(SIZE, Armed::None);
    for copy in 0..2 {
        let page = Content {
            tag: TAG,
            number: 1,
            generation: 50,
            words: vec![copy; WORDS],
        };
        let at = place(1, usize::try_from(copy).expect("small"));
        overwrite(&store, at, &page.seal().to_vec());
    }
    assert_eq!(all(&open(&store).expect("opened")), [0..REGIONS]);
}

#[test]
fn a_grown_disk_has_its_new_regions_armed() {
    for size in [SIZE + BLOCK_SIZE, SIZE + REGION_SIZE, 4 * SIZE] {
        let (store, log) = create(SIZE, Armed::None);
        let growing = Rc::clone(&log);
        run(async move { growing.grow(size).await }).expect("grown");
        let end = size.div_ceil(REGION_SIZE);
        assert_eq!(all(&log), [REGIONS + 3000..end]);
        store.cut(5);
        let log = open(&store).expect("opened");
        assert_eq!(all(&log), [REGIONS + 3000..end]);
        assert_eq!(log.size(), size);
    }
    let (_, log) = create(SIZE, Armed::None);
    let smaller = Rc::clone(&log);
    run(async move { smaller.grow(4096).await }).expect("nothing to do");
    assert_eq!(log.size(), SIZE);
}

#[test]
fn a_disk_is_closed_until_it_is_opened() {
    let (store, log) = create(SIZE, Armed::None);
    let (first, last) = (Looks::of(&[1, 2]), Looks::of(&[1, 2, 3]));
    assert_ne!(first, last);
    let using = Rc::clone(&log);
    run(async move {
        using.opened(first).await.expect("opened");
        using.close(last).await.expect("closed");
    });
    store.cut(1);
    let log = open(&store).expect("opened");
    assert_eq!((log.identity(), log.closed()), (Some(first), Some(last)));
    run(async move { log.opened(last).await }).expect("opened");
    store.cut(2);
    let log = open(&store).expect("opened");
    assert_eq!((log.identity(), log.closed()), (Some(last), None));
}

#[test]
fn a_failed_sync_fails_all_who_wait_and_everything_later() {
    for seed in 0..100 {
        let (store, log) = create(SIZE, Armed::None);
        arm(&log, 3..4).expect("armed");
        store.fail_syncs(1);
        let schedule = Schedule::new(seed);
        for region in 10..20 {
            let log = Rc::clone(&log);
            schedule.spawn(async move {
                let region = region * 300;
                let failed = Err(LogError::Write(Fault::Os(5)));
                assert_eq!(log.arm(region..region + 1).await, failed);
                assert!(!log.is_armed(&(256 * region..256 * region + 1)));
                assert_eq!(log.disarm(&[3..4]).await, failed);
                assert_eq!(log.close(Looks::of(&[])).await, failed);
            });
        }
        assert_eq!(schedule.run(), 0, "nobody waits for ever");
    }
}

#[test]
fn pages_of_a_sync_that_failed_are_written_again_by_the_next_process() {
    let (store, log) = create(SIZE, Armed::None);
    store.fail_syncs(1);
    assert!(arm(&log, 3..4).is_err());
    let log = Rc::new(open(&store).expect("what was written can be read"));
    assert_eq!(all(&log), [3..4]);
    let before = store.content();
    run(async move { log.opened(Looks::of(&[])).await }).expect("opened");
    let page = |content: &[u8], copy| {
        let at = usize::try_from(place(1, copy)).expect("small");
        content[at..at + PAGE].to_vec()
    };
    let now = store.content();
    let again = (0..2).any(|copy| page(&before, copy) != page(&now, copy));
    assert!(again, "a copy was written after the failure");
}

#[test]
fn a_region_that_the_disk_does_not_have_is_refused() {
    let (_, log) = create(4096, Armed::None);
    let outside = LogError::Outside { region: 1, end: 1 };
    assert_eq!(arm(&log, 0..2), Err(outside));
    assert_eq!(arm(&log, 0..1), Ok(()), "the log is all right");
    for size in [0, 4095, 65 << 40] {
        let store = PowerCutStore::new(0, 1, 1);
        let refused = run(async move { IntentLog::create(store, TAG, size, Armed::All).await });
        assert_eq!(refused.err(), Some(LogError::Size(size)));
    }
}
