//! The state against a model of sets, with kills between operations and inside them; and against files
//! that are not what they should be.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use testkit::Rng;

use super::killed::after;
use super::layout::FILE;
use super::tests::{Scratch, all};
use super::*;

type Set = BTreeSet<u64>;

/// Most blocks of the disk: two pages of a map of blocks.
const BLOCKS: u64 = 34_000;
const SEEDS: u64 = 100;

/// What a state should say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Model {
    relationship: Option<RelationshipId>,
    blocks: u64,
    marked: Set,
    /// Of the epoch, if one is sealed.
    sealed: Option<Set>,
    unconfirmed: Set,
    suspect: Set,
}

#[derive(Debug, Clone)]
enum Step {
    Mark(Range<u64>),
    Seal,
    SealPart(Range<u64>),
    FoldBack,
    Release,
    Confirm,
    Suspect(Range<u64>),
    ClearSuspect(u64),
    Grow(u64),
    TrackAll(RelationshipId),
    TrackSuspect(RelationshipId, Range<u64>),
    Forget,
}

impl Model {
    fn found(state: &DiskState) -> Self {
        let (blocks, regions) = (state.blocks(), state.regions());
        let sealed = all(blocks, |within| state.next_sealed(within));
        assert_eq!(sealed.len() as u64, state.sealed());
        let found = Self {
            relationship: state.relationship(),
            blocks,
            marked: all(blocks, |within| state.next_marked(within)),
            sealed: state.is_sealed_phase().then_some(sealed),
            unconfirmed: all(regions, |within| state.next_unconfirmed(within)),
            suspect: all(regions, |within| state.next_suspect(within)),
        };
        assert_eq!(found.marked.len() as u64, state.dirty());
        assert_eq!(found.unconfirmed.len() as u64, state.unconfirmed());
        assert_eq!(found.suspect.len() as u64, state.suspects());
        for region in 0..regions {
            let blocks = region * REGION_BLOCKS..(region + 1) * REGION_BLOCKS;
            let clean = found.is_clean(blocks, region);
            assert_eq!(state.is_clean(region), clean, "region {region}");
        }
        found
    }

    fn is_clean(&self, blocks: Range<u64>, region: u64) -> bool {
        let sealed = self.sealed.iter();
        sealed
            .chain([&self.marked])
            .all(|set| set.range(blocks.clone()).next().is_none())
            && !self.unconfirmed.contains(&region)
            && !self.suspect.contains(&region)
    }

    fn regions(&self) -> u64 {
        self.blocks.div_ceil(REGION_BLOCKS)
    }

    /// Blocks that may not be taken for what the twin has.
    fn unsent(&self) -> Set {
        let of_regions = self.unconfirmed.union(&self.suspect);
        of_regions
            .flat_map(|region| region * REGION_BLOCKS..(region + 1) * REGION_BLOCKS)
            .filter(|block| *block < self.blocks)
            .chain(self.marked.iter().copied())
            .chain(self.sealed.iter().flatten().copied())
            .collect()
    }

    /// After a kill: nothing is sealed any more, what is not tracked has no marks.
    fn next_process(mut self) -> Self {
        if self.relationship.is_none() {
            return Self {
                blocks: self.blocks,
                ..Self::default()
            };
        }
        self.marked.extend(self.sealed.take().into_iter().flatten());
        self
    }

    /// A step that is allowed now; `large` ones too.
    fn random(&self, rng: &mut Rng, large: bool) -> Step {
        let relationship = RelationshipId::random();
        let run = |rng: &mut Rng, end: u64, most: u64| {
            // Often across the border of two pages.
            let at = match rng.below(4) {
                0 => 32_700,
                _ => rng.below(end),
            };
            let at = at.min(end - 1);
            at..end.min(at + 1 + rng.below(most))
        };
        let sealed = self.sealed.is_some();
        match rng.below(40) {
            0 => Step::Grow((self.blocks + rng.below(300)).min(BLOCKS)),
            1 => Step::Forget,
            2 if large => Step::TrackAll(relationship),
            2 | 3 => Step::TrackSuspect(relationship, run(rng, self.regions(), 20)),
            4..8 => Step::Suspect(run(rng, self.regions(), 5)),
            8..12 => Step::ClearSuspect(rng.below(self.regions())),
            12..16 if !sealed => Step::Seal,
            12..16 => Step::Release,
            16..19 if !sealed => Step::SealPart(run(rng, self.blocks, 3000)),
            16..19 => Step::FoldBack,
            19..22 => Step::Confirm,
            _ => Step::Mark(run(rng, self.blocks, 200)),
        }
    }

    fn apply(&mut self, step: &Step) {
        match step.clone() {
            Step::Mark(run) => self.marked.extend(run),
            Step::Seal => self.sealed = Some(std::mem::take(&mut self.marked)),
            Step::SealPart(run) => {
                let part = self.marked.range(run).copied().collect::<Set>();
                self.marked = &self.marked - &part;
                self.sealed = Some(part);
            }
            Step::FoldBack => self.marked.extend(self.sealed.take().into_iter().flatten()),
            Step::Release => {
                let sealed = self.sealed.take().into_iter().flatten();
                let regions = sealed.map(|block| block / REGION_BLOCKS);
                self.unconfirmed.extend(regions);
            }
            Step::Confirm => self.unconfirmed.clear(),
            Step::Suspect(run) => self.suspect.extend(run),
            Step::ClearSuspect(region) => {
                self.suspect.remove(&region);
            }
            Step::Grow(blocks) => {
                if self.relationship.is_some() {
                    self.marked.extend(self.blocks..blocks);
                }
                self.blocks = blocks;
            }
            Step::TrackAll(relationship) => {
                self.apply(&Step::Forget);
                self.relationship = Some(relationship);
                self.marked.extend(0..self.blocks);
            }
            Step::TrackSuspect(relationship, run) => {
                self.apply(&Step::Forget);
                self.relationship = Some(relationship);
                self.suspect.extend(run);
            }
            Step::Forget => {
                *self = Self {
                    blocks: self.blocks,
                    ..Self::default()
                }
            }
        }
    }
}

fn carry_out(state: &DiskState, step: &Step) {
    match step.clone() {
        Step::Mark(run) => state.mark(run),
        Step::Seal => state.seal(),
        Step::SealPart(run) => {
            state.seal_nothing();
            state.move_to_sealed(run);
        }
        Step::FoldBack => state.fold_back(),
        Step::Release => state.release(),
        Step::Confirm => state.confirm(),
        Step::Suspect(run) => state.suspect(run),
        Step::ClearSuspect(region) => state.clear_suspect(region),
        Step::Grow(blocks) => state.grow(blocks * BLOCK_SIZE).expect("room"),
        Step::TrackAll(relationship) => state.track(relationship, Marks::All),
        Step::TrackSuspect(relationship, run) => {
            state.track(relationship, Marks::Suspect(std::slice::from_ref(&run)));
        }
        Step::Forget => state.forget(),
    }
}

/// What the next process finds lies between what was and what was to be.
fn check_killed(was: &Model, to_be: &Model, found: &Model, step: &Step) {
    let known = [None, was.relationship, to_be.relationship];
    assert!(known.contains(&found.relationship), "{step:?}");
    let [a, b, c] = [was, to_be, found].map(Model::unsent);
    // Who finds another relationship than its own trusts nothing.
    if was.relationship == to_be.relationship {
        assert!(c.is_superset(&(&a & &b)), "{step:?} lost some");
        assert!(c.is_subset(&(&a | &b)), "{step:?} invented some");
        assert!(was.relationship == found.relationship, "{step:?}");
    } else if found.relationship.is_some() {
        assert!(found == was || found == to_be, "{step:?} did a half");
    }
}

#[test]
fn the_state_says_what_a_model_of_sets_says_whenever_it_is_killed() {
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed);
        let scratch = Scratch::new();
        let open = |blocks: u64| scratch.open_sized(1, blocks * BLOCK_SIZE).expect("opened");
        let mut model = Model {
            blocks: 32_000 + rng.below(1_000),
            ..Model::default()
        };
        let mut state = open(model.blocks);
        for _ in 0..60 {
            let step = model.random(&mut rng, seed % 16 == 0);
            let mut next = model.clone();
            next.apply(&step);
            // At once, after some stores, or after it and before the next one.
            let kill = match rng.below(10) {
                0 => Some(rng.below(6)),
                1 => Some(rng.below(700)),
                2 => Some(u64::MAX),
                _ => None,
            };
            let Some(stores) = kill else {
                carry_out(&state, &step);
                assert_eq!(Model::found(&state), next, "seed {seed}, {step:?}");
                model = next;
                continue;
            };
            let ended = after(stores, || carry_out(&state, &step)).is_some();
            drop(state);
            state = open(next.blocks);
            let found = Model::found(&state);
            if model.blocks < next.blocks {
                // The opening grew it.
                model.apply(&Step::Grow(next.blocks));
            }
            let (was, to_be) = (model.next_process(), next.next_process());
            if ended {
                assert_eq!(found, to_be, "seed {seed}, {step:?}");
            } else {
                check_killed(&was, &to_be, &found, &step);
            }
            model = found;
        }
    }
}

/// Fills a part of the file with random bytes, or gives it another length.
fn spoil(scratch: &Scratch, rng: &mut Rng) {
    let len = 1 + rng.index(300);
    let bytes = rng.bytes(len);
    let page = 4096 * rng.below(3);
    let at = match rng.below(8) {
        0 => {
            let len = [0, 1, 4096, FILE - 1, FILE + 1, 2 * FILE][rng.index(6)];
            scratch.file.set_len(len).expect("set");
            return;
        }
        1 | 2 => rng.below(200),
        3 => (8 << 20) + page,
        4 => (16 << 20) + page,
        5 => (2 << 30) + page,
        6 => (4 << 30) + page,
        // A bit behind the last one of the disk.
        _ => (4 << 30) + BLOCKS / 8,
    };
    scratch.file.write_all_at(&bytes, at).expect("spoiled");
}

#[test]
fn a_file_of_random_bytes_or_another_length_is_begun_anew_or_counted_anew() {
    let (mut begun, mut found) = (0, 0);
    for seed in 0..3 * SEEDS {
        let mut rng = Rng::new(seed);
        let scratch = Scratch::new();
        let open = || scratch.open_sized(u64::MAX, BLOCKS * BLOCK_SIZE);
        let state = open().expect("opened");
        state.track(RelationshipId::random(), Marks::Suspect(&[1..4, 7..8]));
        state.mark(32_000..33_000);
        state.seal();
        state.mark(5..6);
        drop(state);
        spoil(&scratch, &mut rng);
        let state = open().expect("opened");
        let mut model = Model::found(&state);
        assert_eq!(model.blocks, BLOCKS);
        if state.was_found() {
            found += 1;
        } else {
            begun += 1;
            assert_eq!(
                model,
                Model {
                    blocks: BLOCKS,
                    ..Model::default()
                }
            );
        }
        for _ in 0..20 {
            let step = model.random(&mut rng, false);
            model.apply(&step);
            carry_out(&state, &step);
            assert_eq!(Model::found(&state), model, "seed {seed}, {step:?}");
        }
        // To a page more, of what may have been spoiled too.
        let more = if seed % 16 == 0 { 32_000 } else { 300 };
        let more = Step::Grow(BLOCKS + more);
        model.apply(&more);
        carry_out(&state, &more);
        assert_eq!(Model::found(&state), model, "seed {seed}, what was behind");
    }
    assert!(begun > 50 && found > 50, "{begun} begun, {found} found");
}

#[test]
fn bits_that_were_added_to_a_file_take_none_away() {
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed);
        let scratch = Scratch::new();
        let open = || scratch.open_sized(1, BLOCKS * BLOCK_SIZE).expect("opened");
        let state = open();
        state.track(RelationshipId::random(), Marks::Suspect(&[1..4, 7..8]));
        state.mark(32_000..33_000);
        state.seal();
        state.mark(5..6);
        drop(state);
        let before = Model::found(&open());
        for map in Map::ALL {
            let at = map.offset() + rng.below(map.bytes(BLOCKS));
            let mut byte = [0];
            scratch.file.read_exact_at(&mut byte, at).expect("read");
            byte[0] |= 1 << rng.below(8);
            scratch.file.write_all_at(&byte, at).expect("added");
        }
        let found = Model::found(&open());
        assert_eq!(found.relationship, before.relationship);
        assert!(found.unsent().is_superset(&before.unsent()), "seed {seed}");
        assert!(found.unsent().len() <= before.unsent().len() + 1 + 2 * 256);
    }
}

#[test]
fn what_lay_behind_the_maps_of_a_disk_is_nothing_to_the_disk_that_grew() {
    let scratch = Scratch::new();
    let open = || scratch.open_sized(1, BLOCKS * BLOCK_SIZE).expect("opened");
    open().track(RelationshipId::random(), Marks::None);
    for map in Map::ALL {
        let behind = map.offset() + map.bytes(BLOCKS);
        scratch.file.write_all_at(&[0xff; 64], behind).expect("put");
    }
    let state = open();
    let blocks = BLOCKS + 32_000;
    state.grow(blocks * BLOCK_SIZE).expect("room");
    let model = Model::found(&state);
    assert_eq!(model.marked, (BLOCKS..blocks).collect());
    state.seal();
    state.mark(65_537..65_538);
    assert_eq!(Model::found(&state).marked, Set::from([65_537]));
}
