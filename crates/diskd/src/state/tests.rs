use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, memfd_create};

use super::layout::MAX_DISK;
use super::*;

pub(super) const SIZE: u64 = 1000 * BLOCK_SIZE;

pub(super) struct Scratch {
    /// Of a tmpfs, as the state's folder is.
    pub(super) file: File,
    boot: BootId,
    disk: DiskId,
}

impl Scratch {
    pub(super) fn new() -> Self {
        let file = memfd_create("state", MemfdFlags::CLOEXEC).expect("memory");
        Self {
            file: file.into(),
            boot: BootId::random(),
            disk: DiskId::random(),
        }
    }

    pub(super) fn open(&self, term: u64) -> Result<DiskState, StateError> {
        self.open_sized(term, SIZE)
    }

    pub(super) fn open_sized(&self, term: u64, size: u64) -> Result<DiskState, StateError> {
        DiskState::open(&self.path(), self.boot, self.disk, size, term)
    }

    /// Another disk that has the same file.
    pub(super) fn beside(&self) -> Self {
        Self {
            file: self.file.try_clone().expect("a descriptor"),
            boot: self.boot,
            disk: DiskId::random(),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// Everything that `next` finds in `0..end`.
pub(super) fn all(end: u64, next: impl Fn(Range<u64>) -> Option<Range<u64>>) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut from = 0;
    while let Some(run) = next(from..end) {
        assert!(from <= run.start && run.start < run.end && run.end <= end);
        from = run.end;
        found.extend(run);
    }
    found
}

fn marked(state: &DiskState) -> Vec<u64> {
    let found = all(state.blocks(), |within| state.next_marked(within));
    assert_eq!(found.len() as u64, state.dirty());
    found.into_iter().collect()
}

#[test]
fn marks_and_a_sealed_epoch_survive_the_process_and_come_back_as_one_set() {
    let scratch = Scratch::new();
    let relationship = RelationshipId::random();
    let state = scratch.open(1).expect("opened");
    state.track(relationship, Marks::All);
    assert_eq!(state.dirty(), 1000);
    state.seal();
    state.release();
    state.mark(60..70);
    state.mark(999..1000);
    state.seal();
    state.mark(3..5);
    assert_eq!(state.next_sealed(0..1000), Some(60..70));
    assert_eq!(state.next_sealed(65..68), Some(65..68));
    drop(state);
    let state = scratch.open(1).expect("opened again");
    assert_eq!(state.relationship(), Some(relationship));
    let expected: Vec<u64> = [3, 4].into_iter().chain(60..70).chain([999]).collect();
    assert_eq!(marked(&state), expected);
    assert_eq!(state.next_sealed(0..1000), None);
}

#[test]
fn another_boot_another_disk_or_another_size_begins_anew() {
    let scratch = Scratch::new();
    scratch
        .open(1)
        .expect("opened")
        .track(RelationshipId::random(), Marks::All);
    let rebooted = Scratch {
        boot: BootId::random(),
        ..scratch
    };
    let state = rebooted.open(1).expect("opened");
    assert_eq!((state.relationship(), state.dirty()), (None, 0));
    state.track(RelationshipId::random(), Marks::All);
    drop(state);
    let other = Scratch {
        disk: DiskId::random(),
        ..rebooted
    };
    assert_eq!(other.open(1).expect("opened").relationship(), None);
}

#[test]
fn a_disk_that_grows_keeps_its_marks_and_what_is_new_counts_as_changed() {
    // 40,000 blocks: the maps have one page, then two.
    let (small, large) = (30_000 * BLOCK_SIZE, 40_000 * BLOCK_SIZE);
    let scratch = Scratch::new();
    let state = scratch.open_sized(1, small).expect("opened");
    state.grow(small + BLOCK_SIZE).expect("room");
    assert_eq!(state.dirty(), 0, "it is not tracked");
    state.track(RelationshipId::random(), Marks::All);
    state.seal();
    state.release();
    state.mark(5..7);
    state.seal();
    state.mark(29_999..30_000);
    state.grow(large).expect("room");
    assert_eq!(state.blocks(), 40_000);
    let expected: Vec<u64> = [29_999].into_iter().chain(30_001..40_000).collect();
    assert_eq!(marked(&state), expected);
    assert_eq!(state.next_sealed(0..40_000), Some(5..7));
    state.fold_back();
    drop(state);
    let state = scratch.open_sized(1, large).expect("opened again");
    assert_eq!(state.dirty(), 2 + 1 + 9_999);
    drop(state);
    // The next process grows it: this one was killed in between.
    let state = scratch
        .open_sized(1, large + 9 * BLOCK_SIZE)
        .expect("opened larger");
    assert_eq!(state.dirty(), 2 + 1 + 9_999 + 9);
    drop(state);
    let state = scratch.open_sized(1, small).expect("opened smaller");
    assert_eq!(state.relationship(), None, "another disk");
    assert!(matches!(
        state.grow(MAX_DISK + BLOCK_SIZE),
        Err(StateError::Io { .. })
    ));
    assert_eq!(state.blocks(), 30_000);
}

#[test]
fn a_lower_term_than_the_one_written_in_is_refused() {
    let scratch = Scratch::new();
    drop(scratch.open(3).expect("opened"));
    assert!(matches!(
        scratch.open(2),
        Err(StateError::Term {
            written: 3,
            granted: 2
        })
    ));
    assert!(scratch.open(4).is_ok());
}

#[test]
fn a_failed_flush_is_over_only_after_a_close_and_an_opening_that_says_so() {
    let scratch = Scratch::new();
    let state = scratch.open(1).expect("opened");
    state.track(RelationshipId::random(), Marks::All);
    state.close_failed();
    assert!(!state.is_reopening(), "none failed");
    state.fail_flush();
    drop(state);
    let state = scratch.open(1).expect("after a kill");
    assert!(state.flush_failed() && !state.is_reopening());
    state.reopened();
    assert!(state.flush_failed(), "it was not closed");
    state.close_failed();
    drop(state);
    // Killed before it was done: the next one begins again.
    for _ in 0..2 {
        let state = scratch.open(1).expect("after a close");
        assert!(state.is_reopening() && !state.flush_failed());
    }
    let state = scratch.open(1).expect("after a close");
    state.reopened();
    drop(state);
    let state = scratch.open(1).expect("once more");
    assert!(!state.is_reopening() && !state.flush_failed());
}

#[test]
fn moving_marks_to_the_sealed_map_loses_none() {
    let scratch = Scratch::new();
    let state = scratch.open(1).expect("opened");
    state.mark(10..200);
    state.seal_nothing();
    state.move_to_sealed(0..100);
    assert_eq!(state.next_sealed(0..1000), Some(10..100));
    assert_eq!(state.next_marked(0..1000), Some(100..200));
    state.mark(50..51);
    state.fold_back();
    assert_eq!(marked(&state), (10..200).collect::<Vec<u64>>());
}

#[test]
fn a_released_epoch_is_unconfirmed_by_region_until_it_is_confirmed_and_in_the_next_process_too() {
    let scratch = Scratch::new();
    let state = scratch.open(1).expect("opened");
    assert!(!state.was_found());
    state.track(RelationshipId::random(), Marks::None);
    state.mark(255..257);
    state.mark(999..1000);
    state.seal();
    assert_eq!((state.dirty(), state.sealed()), (0, 3));
    state.release();
    assert_eq!((state.dirty(), state.sealed()), (0, 0));
    drop(state);
    let state = scratch.open(1).expect("opened again");
    assert!(state.was_found());
    assert_eq!(state.unconfirmed(), 3);
    assert_eq!(state.next_unconfirmed(0..4), Some(0..2));
    assert_eq!(state.next_unconfirmed(2..4), Some(3..4));
    assert!(!state.is_clean(1) && state.is_clean(2));
    state.confirm();
    assert_eq!(state.next_unconfirmed(0..4), None);
    assert!((0..4).all(|region| state.is_clean(region)));
}

#[test]
fn suspicion_lasts_until_a_region_was_compared() {
    let scratch = Scratch::new();
    let state = scratch.open(1).expect("opened");
    let relationship = RelationshipId::random();
    state.track(relationship, Marks::Suspect(&[0..1, 2..4]));
    state.suspect(2..3);
    assert_eq!((state.suspects(), state.dirty()), (3, 0));
    state.clear_suspect(2);
    drop(state);
    let state = scratch.open(1).expect("opened again");
    assert_eq!(state.relationship(), Some(relationship));
    assert_eq!(state.next_suspect(0..4), Some(0..1));
    assert_eq!(state.next_suspect(1..4), Some(3..4));
    assert_eq!(state.suspects(), 2);
    assert!(!state.is_clean(0) && state.is_clean(2));
    state.track(relationship, Marks::All);
    assert_eq!((state.suspects(), state.dirty()), (0, 1000));
}
