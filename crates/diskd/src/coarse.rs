//! Fewer and longer runs of marks, so that what is cut fits into one segment.
//!
//! ```text
//!   marked      ##.##....#.#......##
//!   coarsened   #####....###......##    the shortest gaps first, no more than needed
//! ```
//!
//! A segment's index has an entry for each run, and room for so many. A guest that writes at random for
//! days while nothing is sent marks more. Before such an epoch is cut, blocks between marked ones are marked
//! as well: they are read, saved before a write and sent like any other, with the content that they had
//! all along. So the point stays a point, and the twin gets some blocks that it has.
//!
//! It looks at the map twice, some thousand runs at a time, and the guest goes on in between: what it
//! marks meanwhile may add a few runs, for which [`MOST_RUNS`] leaves room.

use journal::segment::MAX_RUNS;

use crate::state::DiskState;

/// Runs of marks that an epoch may have, over all disks. A run can take several entries of the index: for
/// each 64 KiB, around blocks of zeroes, and around those that were saved before a write.
pub(crate) const MOST_RUNS: u64 = MAX_RUNS as u64 / 4;

/// Runs that are looked at without a break.
const LOT: usize = 1 << 12;

/// Lengths of gaps that are told apart, in blocks; with [`MOST_RUNS`] of them a disk of 64 TiB has none
/// that has to be joined and is longer.
const LENGTHS: usize = 1 << 12;

/// Marks blocks between marked ones of `state` until there are at most `most` runs. Waits for `pause`
/// now and then, so that others come in between.
pub(crate) async fn coarsen(state: &DiskState, most: u64, pause: impl AsyncFn()) {
    // No more runs than blocks.
    if state.dirty() <= most {
        return;
    }
    let (mut of_length, mut gaps) = (vec![0_u64; LENGTHS + 1], 0_u64);
    walk(state, &pause, |_, length| {
        of_length[length] += 1;
        gaps += 1;
    })
    .await;
    let mut left = (gaps + 1).saturating_sub(most.max(1));
    if left == 0 {
        return;
    }
    let longest = of_length.iter().position(|count| {
        let enough = left <= *count;
        if !enough {
            left -= count;
        }
        enough
    });
    let longest = longest.expect("fewer are joined than there are");
    walk(state, &pause, |gap, length| {
        if length < longest {
            state.mark(gap);
        } else if length == longest && left > 0 {
            left -= 1;
            state.mark(gap);
        }
    })
    .await;
}

/// Visits every gap between two marked runs: where it is, and its length as far as that is told apart.
async fn walk(
    state: &DiskState,
    pause: &impl AsyncFn(),
    mut visit: impl FnMut(std::ops::Range<u64>, usize),
) {
    let (mut at, mut last) = (0, None);
    loop {
        for _ in 0..LOT {
            let Some(run) = state.next_marked(at..state.blocks()) else {
                return;
            };
            // A guest may have marked what lies after the run that was seen last.
            if let Some(end) = last.filter(|end| *end < run.start) {
                let length = usize::try_from(run.start - end).unwrap_or(usize::MAX);
                visit(end..run.start, length.min(LENGTHS));
            }
            (at, last) = (run.end, Some(run.end));
        }
        pause().await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Range;

    use futures_util::FutureExt;
    use model::{BLOCK_SIZE, BootId, DiskId, RelationshipId};
    use proptest::prelude::*;

    use super::*;
    use crate::state::Marks;

    fn tracked(blocks: u64) -> DiskState {
        let folder = tempfile::tempdir_in("/dev/shm").expect("scratch in memory");
        let (path, size) = (folder.path().join("state"), blocks * BLOCK_SIZE);
        let state = DiskState::open(&path, BootId::random(), DiskId::random(), size, 1);
        let state = state.expect("opened");
        state.track(RelationshipId::random(), Marks::None);
        state
    }

    fn runs(state: &DiskState) -> Vec<Range<u64>> {
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(run) = state.next_marked(at..state.blocks()) {
            at = run.end;
            found.push(run);
        }
        found
    }

    fn at_once(state: &DiskState, most: u64) {
        let done = coarsen(state, most, async || ()).now_or_never();
        done.expect("nothing to wait for");
    }

    proptest! {
        #[test]
        fn the_shortest_gaps_are_marked_and_no_more_than_needed(
            marked in prop::collection::btree_set(0_u64..400, 0..120),
            most in 1_u64..40,
        ) {
            let state = tracked(400);
            for block in &marked {
                state.mark(*block..block + 1);
            }
            let before = runs(&state);
            at_once(&state, most);
            let after = runs(&state);
            let blocks = |runs: &[Range<u64>]| -> BTreeSet<u64> {
                runs.iter().cloned().flatten().collect()
            };
            let (had, has) = (blocks(&before), blocks(&after));
            prop_assert!(has.is_superset(&had));
            prop_assert_eq!(after.len() as u64, most.min(before.len() as u64));
            let mut gaps: Vec<u64> = before.windows(2).map(|two| two[1].start - two[0].end).collect();
            gaps.sort_unstable();
            let needed = before.len() - after.len();
            let least: u64 = gaps[..needed].iter().sum();
            prop_assert_eq!((has.len() - had.len()) as u64, least);
        }
    }

    #[test]
    fn more_runs_than_a_segment_has_room_for_become_as_many_as_may_be_cut() {
        // 5 million single blocks of a disk of 256 GiB, 2 to 22 apart.
        let state = tracked(1 << 26);
        let (mut at, mut rng) = (0, testkit::Rng::new(7));
        for _ in 0..5_000_000 {
            state.mark(at..at + 1);
            at += 2 + rng.below(21);
        }
        assert!(at <= state.blocks());
        at_once(&state, MOST_RUNS);
        assert_eq!(runs(&state).len() as u64, MOST_RUNS);
        // The million shortest gaps are of 1 to 4 blocks or so.
        let added = state.dirty() - 5_000_000;
        assert!(added < 3_000_000, "{added}");
    }
}
