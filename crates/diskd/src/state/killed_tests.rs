//! Every operation, killed before each of its stores.

use std::collections::BTreeSet;

use super::killed::after;
use super::tests::{SIZE, Scratch, all};
use super::*;

type Set = BTreeSet<u64>;

/// What a state says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    relationship: Option<RelationshipId>,
    marked: Set,
    unconfirmed: Set,
    suspect: Set,
}

/// Of the next process.
fn told(state: &DiskState) -> Told {
    let (blocks, regions) = (state.blocks(), state.regions());
    assert_eq!(state.next_sealed(0..blocks), None, "folded back");
    let told = Told {
        relationship: state.relationship(),
        marked: all(blocks, |within| state.next_marked(within)),
        unconfirmed: all(regions, |within| state.next_unconfirmed(within)),
        suspect: all(regions, |within| state.next_suspect(within)),
    };
    let counts = [state.dirty(), state.unconfirmed(), state.suspects()];
    let sets = [&told.marked, &told.unconfirmed, &told.suspect];
    assert_eq!(counts, sets.map(|set| set.len() as u64), "counted");
    told
}

fn set(of: impl IntoIterator<Item = u64>) -> Set {
    of.into_iter().collect()
}

/// Two pages of each map of blocks.
const BLOCKS: u64 = 40_000;
const REGIONS: u64 = 157;

/// A state in which everything is something: what is marked, sealed, unconfirmed, suspect.
fn scene(scratch: &Scratch, relationship: RelationshipId, sealed: bool) -> DiskState {
    let state = scratch.open_sized(1, BLOCKS * BLOCK_SIZE).expect("opened");
    state.track(relationship, Marks::Suspect(&[3..5, 150..151]));
    state.mark(700..701);
    state.seal();
    state.release();
    state.mark(60..70);
    state.mark(32_760..32_780);
    state.seal();
    state.mark(65..66);
    state.mark(39_999..40_000);
    if !sealed {
        state.fold_back();
    }
    state
}

/// How many stores come before the kill: of the long runs of equal ones, some.
fn stops() -> impl Iterator<Item = u64> {
    (0..40).chain((40..).step_by(29))
}

/// Runs `work` killed before its first store, its second, and so on to its end; `check` gets what was
/// before, what the next process finds, and whether it was killed.
fn at_every_store(sealed: bool, work: impl Fn(&DiskState), check: impl Fn(&Told, &Told, bool)) {
    let scratch = Scratch::new();
    let relationship = RelationshipId::random();
    let open = || scratch.open_sized(1, BLOCKS * BLOCK_SIZE).expect("opened");
    for stores in stops() {
        drop(scene(&scratch, relationship, sealed));
        let before = told(&open());
        let state = scene(&scratch, relationship, sealed);
        let killed = after(stores, || work(&state)).is_none();
        drop(state);
        check(&before, &told(&open()), killed);
        if !killed {
            assert!(stores > 0, "it stores something");
            break;
        }
    }
}

/// The epoch of [`scene`].
fn epoch() -> Set {
    set((60..70).chain(32_760..32_780))
}

#[test]
fn a_kill_while_an_epoch_is_sealed_or_folded_back_changes_nothing() {
    let same = |before: &Told, found: &Told, _: bool| assert_eq!(before, found);
    at_every_store(false, DiskState::seal, same);
    at_every_store(true, DiskState::fold_back, same);
    let parts = |state: &DiskState| {
        state.seal_nothing();
        state.move_to_sealed(62..32_770);
        state.move_to_sealed(32_770..40_000);
    };
    at_every_store(false, parts, same);
}

#[test]
fn a_kill_while_an_epoch_is_released_leaves_each_of_its_blocks_marked_or_unconfirmed() {
    at_every_store(true, DiskState::release, |before, found, killed| {
        assert_eq!(found.suspect, before.suspect);
        assert_eq!(found.relationship, before.relationship);
        assert!(found.marked.is_subset(&before.marked));
        for block in &before.marked {
            let kept = found.marked.contains(block);
            let staged = found.unconfirmed.contains(&(block / REGION_BLOCKS));
            assert!(kept || (staged && epoch().contains(block)), "block {block}");
        }
        let most = set((0..1).chain(2..3).chain(127..129));
        assert!(found.unconfirmed.is_superset(&before.unconfirmed));
        assert!(found.unconfirmed.is_subset(&most));
        if !killed {
            // What was written since the cut.
            assert_eq!(found.marked, set((65..66).chain(39_999..40_000)));
            assert_eq!(found.unconfirmed, most);
        }
    });
}

#[test]
fn a_kill_while_something_is_marked_suspected_or_confirmed_leaves_a_part_of_it() {
    let other = |before: &Told, found: &Told| {
        assert_eq!(found.relationship, before.relationship);
    };
    let work = |state: &DiskState| state.mark(32_700..33_000);
    at_every_store(true, work, |before, found, killed| {
        other(before, found);
        let most = &before.marked | &set(32_700..33_000);
        assert!(found.marked.is_superset(&before.marked) && found.marked.is_subset(&most));
        assert!(killed || found.marked == most);
        assert_eq!(found.unconfirmed, before.unconfirmed);
        assert_eq!(found.suspect, before.suspect);
    });
    let work = |state: &DiskState| state.suspect(0..REGIONS);
    at_every_store(true, work, |before, found, killed| {
        other(before, found);
        assert!(found.suspect.is_superset(&before.suspect));
        assert!(killed || found.suspect == set(0..REGIONS));
        assert_eq!(found.marked, before.marked);
        assert_eq!(found.unconfirmed, before.unconfirmed);
    });
    let work = |state: &DiskState| {
        state.clear_suspect(4);
        state.confirm();
    };
    at_every_store(true, work, |before, found, killed| {
        other(before, found);
        assert!(found.unconfirmed.is_subset(&before.unconfirmed));
        assert!(killed || found.unconfirmed.is_empty());
        let least = &before.suspect - &set(4..5);
        assert!(found.suspect == least || (killed && found.suspect == before.suspect));
        assert_eq!(found.marked, before.marked);
    });
}

#[test]
fn a_kill_while_tracking_begins_leaves_all_of_it_or_no_relationship() {
    let next = RelationshipId::random();
    let (every, some) = (set(0..BLOCKS), set((7..9).chain(130..131)));
    let none = Set::new();
    let check = |marked: &Set, suspect: &Set, found: &Told, killed: bool| {
        assert!(found.unconfirmed.is_empty() || killed);
        match found.relationship {
            Some(relationship) if relationship == next => {
                assert_eq!((&found.marked, &found.suspect), (marked, suspect));
            }
            None => assert!(killed && found.marked.is_empty() && found.suspect.is_empty()),
            Some(_) => assert!(killed),
        }
    };
    let work = |state: &DiskState| state.track(next, Marks::All);
    at_every_store(true, work, |before, found, killed| {
        check(&every, &none, found, killed);
        assert!(found.relationship != before.relationship || found == before);
    });
    let work = |state: &DiskState| state.track(next, Marks::Suspect(&[7..9, 130..131]));
    at_every_store(true, work, |before, found, killed| {
        check(&none, &some, found, killed);
        assert!(found.relationship != before.relationship || found == before);
    });
    at_every_store(true, DiskState::forget, |before, found, killed| {
        let gone = found.relationship.is_none() && found.marked.is_empty();
        assert!(gone || (killed && found == before));
    });
}

#[test]
fn a_kill_while_a_disk_grows_leaves_its_marks_and_the_next_opening_grows_it() {
    let scratch = Scratch::new();
    let relationship = RelationshipId::random();
    let large = 66_000;
    for stores in stops() {
        let before = told(&scene(&scratch, relationship, false));
        let state = scratch.open_sized(1, BLOCKS * BLOCK_SIZE).expect("opened");
        let grown = after(stores, || state.grow(large * BLOCK_SIZE).expect("room"));
        drop(state);
        let found = told(&scratch.open_sized(1, large * BLOCK_SIZE).expect("opened"));
        assert_eq!(found.marked, &before.marked | &set(BLOCKS..large));
        assert_eq!(found.suspect, before.suspect);
        if grown.is_some() {
            break;
        }
    }
}

#[test]
fn a_kill_while_a_state_is_opened_changes_nothing() {
    let scratch = Scratch::new();
    let relationship = RelationshipId::random();
    let open = || scratch.open_sized(1, BLOCKS * BLOCK_SIZE).expect("opened");
    drop(scene(&scratch, relationship, true));
    let before = told(&open());
    for stores in stops() {
        drop(scene(&scratch, relationship, true));
        let ended = after(stores, open).is_some();
        assert_eq!(told(&open()), before);
        if ended {
            break;
        }
    }
    // Of another disk, whose marks are nobody's.
    for stores in stops() {
        drop(scene(&scratch, relationship, true));
        let other = scratch.beside();
        let begun = after(stores, || drop(other.open(1).expect("begun"))).is_some();
        let state = other.open(1).expect("begun");
        assert_eq!(state.relationship(), None);
        assert!(told(&state).marked.is_empty());
        assert_eq!(state.blocks() * BLOCK_SIZE, SIZE);
        if begun {
            break;
        }
    }
}
