use std::collections::BTreeSet;

use model::{Lineage, SeedId};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
    vec((0..300_u64, 1..20_u64), 0..40).prop_map(|starts| {
        let ranges = starts.into_iter();
        ranges.map(|(start, len)| start..start + len).collect()
    })
}

fn gathered(id: DiskId, blocks: u64, limit: usize, ranges: &[Range<u64>]) -> ChangedDisk {
    let mut gather = Gather::new(limit);
    ranges.iter().for_each(|range| gather.push(range.clone()));
    gather.finish(id, Bytes(blocks * BLOCK_SIZE))
}

fn blocks_of(disk: &ChangedDisk) -> BTreeSet<u64> {
    disk.extents().flatten().collect()
}

fn changes(disks: Vec<ChangedDisk>) -> Changes {
    let point = |sequence| PointId {
        term: Lineage::begin("host-a").current().id,
        sequence,
    };
    Changes {
        since: Since::Point(point(3)),
        point: point(9),
        disks,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(400), ..ProptestConfig::default() })]

    #[test]
    fn no_changed_block_is_left_out_and_extents_are_bounded(
        ranges in ranges(), limit in 1..60_usize, blocks in 1..330_u64,
    ) {
        let pushed: BTreeSet<u64> =
            ranges.iter().cloned().flatten().filter(|block| *block < blocks).collect();
        let id = DiskId::random();
        let disk = gathered(id, blocks, limit, &ranges);
        let found = blocks_of(&disk);
        prop_assert!(disk.extents.len() <= limit);
        prop_assert!(found.is_superset(&pushed));
        prop_assert!(found.iter().all(|block| *block < blocks));
        prop_assert_eq!(disk.blocks(), found.len() as u64);
        // Each unit that is told has a block that changed.
        let told_for_some_reason = |block: &u64| {
            let unit = block / disk.unit() * disk.unit();
            let changed = |range: &Range<u64>| range.start < unit + disk.unit() && unit < range.end;
            ranges.iter().any(changed)
        };
        prop_assert!(found.iter().all(told_for_some_reason));
        // None is told in vain if there is room for all of them.
        prop_assert_eq!(&blocks_of(&gathered(id, blocks, 1000, &ranges)), &pushed);
    }

    #[test]
    fn a_set_is_read_as_it_was_written(
        disks in vec((ranges(), 1..330_u64, 1..60_usize), 0..5), seed in any::<bool>(),
    ) {
        let disks = disks
            .into_iter()
            .map(|(ranges, blocks, limit)| gathered(DiskId::random(), blocks, limit, &ranges));
        let mut set = changes(disks.collect());
        if seed {
            set.since = Since::Seed { seed: SeedId::random(), parts: 7 };
        }
        let bytes = set.to_bytes();
        prop_assert!(bytes.len() <= code::MAX_LEN);
        prop_assert_eq!(Changes::from_bytes(&bytes), Ok(set));
    }

    #[test]
    fn what_somebody_forges_is_refused_or_read_as_it_would_be_written(
        ranges in ranges(), limit in 1..60_usize,
        changes_at in vec((any::<usize>(), any::<u8>()), 1..6), cut in any::<usize>(),
    ) {
        let disk = gathered(DiskId::random(), 330, limit, &ranges);
        let mut bytes = changes(vec![disk]).to_bytes();
        for (at, byte) in changes_at {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - (cut % bytes.len()) * usize::from(cut % 3 == 0));
        code::forge(&mut bytes);
        if let Ok(set) = Changes::from_bytes(&bytes) {
            prop_assert_eq!(set.to_bytes(), bytes);
        }
    }

    #[test]
    fn sets_together_have_what_each_of_them_has_of_the_disks_that_all_know(
        sets in vec((ranges(), ranges(), any::<bool>(), 1..40_usize), 1..6),
    ) {
        let ids = [DiskId::random(), DiskId::random()];
        let made: Vec<Vec<ChangedDisk>> = sets
            .iter()
            .map(|(first, second, has_second, limit)| {
                let mut disks = vec![gathered(ids[0], 330, *limit, first)];
                if *has_second {
                    disks.insert(0, gathered(ids[1], 330, *limit, second));
                }
                disks
            })
            .collect();
        let joined = union(made.iter().map(|set| &set[..]));
        let all_have_second = sets.iter().all(|set| set.2);
        prop_assert_eq!(joined.len(), if all_have_second { 2 } else { 1 });
        for disk in &joined {
            let each = made.iter().flatten().filter(|one| one.id == disk.id);
            let expected: BTreeSet<u64> = each.flat_map(blocks_of).collect();
            prop_assert_eq!(blocks_of(disk), expected);
        }
    }
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_set_is_found() {
    let disk = |blocks| gathered(DiskId::random(), blocks, 9, &[1..2, 5..9, 40..300]);
    let bytes = changes(vec![disk(330), disk(290)]).to_bytes();
    Changes::from_bytes(&bytes).expect("good");
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(Changes::from_bytes(&flipped).is_err(), "byte {at}");
        }
        assert!(Changes::from_bytes(&bytes[..at]).is_err(), "{at} bytes");
    }
}

#[test]
fn numbers_and_lengths_that_lie_are_refused() {
    let disk = gathered(DiskId::random(), 330, 9, &[1..2, 5..9]);
    let good = changes(vec![disk]).to_bytes();
    let list = good.len() - 32 - 4;
    assert_eq!(good[list..list + 4], [1, 0, 3, 3]);
    let forged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        code::forge(&mut bytes);
        Changes::from_bytes(&bytes)
    };
    assert!(forged(&|_| {}).is_ok());
    let count_at = 64 + 24;
    type Lie<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>));
    let lies: [Lie<'_>; 18] = [
        ("too many extents", &|bytes| bytes[count_at + 3] = 0xff),
        ("fewer extents", &|bytes| bytes[count_at] = 3),
        ("more extents", &|bytes| bytes[count_at] = 1),
        ("cannot be there", &|bytes| bytes[list + 2] = 0),
        ("cannot be there", &|bytes| {
            bytes.splice(list + 3..list + 4, [0xff, 0x7f]);
            bytes[64 + 32] += 1;
        }),
        ("written as it should", &|bytes| bytes[list + 3] = 0x80),
        ("written as it should", &|bytes| {
            bytes.splice(list + 3..list + 4, [0x83, 0]);
            bytes[64 + 32] += 1;
        }),
        ("cut short", &|bytes| bytes[64 + 32 + 7] = 0xff),
        ("units", &|bytes| bytes[64 + 28] = 35),
        ("units", &|bytes| bytes[64 + 30] = 1),
        ("size", &|bytes| bytes[64 + 16] = 1),
        ("size", &|bytes| bytes[64 + 23] = 1),
        ("too many disks", &|bytes| bytes[12] = 33),
        ("begins nowhere", &|bytes| bytes[14] = 2),
        ("mean nothing", &|bytes| bytes.insert(list + 4, 0)),
        ("version 2", &|bytes| bytes[8] = 2),
        ("no change set", &|bytes| bytes[0] = 0),
        ("no change set", &|bytes| bytes.truncate(70)),
    ];
    for (told, change) in lies {
        let error = forged(change).expect_err(told).to_string();
        assert!(error.contains(told), "{error}: {told}");
    }
}

/// A history with branches, of which everything is known.
struct Tree {
    /// Point, what it grew from, and the blocks that changed with it.
    points: Vec<(PointId, Option<usize>, u64)>,
    lineages: Vec<Lineage>,
}

impl Tree {
    /// `choices` says where each term leaves the one before it, and how long it is.
    fn grow(choices: &[(usize, usize)]) -> Self {
        let mut tree = Self {
            points: Vec::new(),
            lineages: Vec::new(),
        };
        for (from, len) in choices {
            let (lineage, mut parent) = match tree.lineages.last() {
                None => (Lineage::begin("host-a"), None),
                Some(last) => {
                    // From a point of any lineage that there is.
                    let at = from % tree.points.len();
                    let point = tree.points[at].0;
                    let of = tree.lineages.iter().rfind(|it| it.contains(point));
                    let lineage = of.unwrap_or(last).branch(point, "host-b");
                    (lineage.expect("it lies there"), Some(at))
                }
            };
            let term = lineage.current().id;
            let before = parent.map_or(0, |at| tree.points[at].0.sequence);
            for sequence in before + 1..=before + 1 + *len as u64 {
                let block = tree.points.len() as u64;
                tree.points
                    .push((PointId { term, sequence }, parent, block));
                parent = Some(tree.points.len() - 1);
            }
            tree.lineages.push(lineage);
        }
        tree
    }

    fn ancestors(&self, at: usize) -> Vec<usize> {
        let mut path = vec![at];
        while let Some(parent) = self.points[path[path.len() - 1]].1 {
            path.push(parent);
        }
        path
    }

    /// What the edge from `since` (none: the beginning) to `point` has.
    fn blocks(&self, since: Option<usize>, point: usize) -> BTreeSet<u64> {
        let path = self.ancestors(point).into_iter();
        path.take_while(|at| Some(*at) != since)
            .map(|at| self.points[at].2)
            .collect()
    }

    fn difference(&self, x: usize, y: usize) -> BTreeSet<u64> {
        let (x, y) = (self.blocks(None, x), self.blocks(None, y));
        x.symmetric_difference(&y).copied().collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(400), ..ProptestConfig::default() })]

    #[test]
    fn a_path_has_every_block_that_differs_and_is_found_if_nothing_is_missing(
        choices in vec((any::<usize>(), 0..6_usize), 1..5),
        wide in vec((any::<usize>(), any::<usize>()), 0..8),
        missing in vec(any::<usize>(), 0..5),
        known in any::<usize>(),
    ) {
        let tree = Tree::grow(&choices);
        let seed = Since::Seed { seed: SeedId::random(), parts: 1 };
        let since = |at: Option<usize>| at.map_or(seed, |at| Since::Point(tree.points[at].0));
        let mut edges: Vec<(Edge, BTreeSet<u64>)> = Vec::new();
        let mut add = |from: Option<usize>, point: usize| {
            let edge = Edge { since: since(from), point: tree.points[point].0 };
            edges.push((edge, tree.blocks(from, point)));
        };
        for (at, (_, parent, _)) in tree.points.iter().enumerate() {
            add(*parent, at);
        }
        // Sets that were joined.
        for (point, back) in wide {
            let path = tree.ancestors(point % tree.points.len());
            let back = 1 + back % path.len();
            add(path.get(back).copied(), path[0]);
        }
        let whole = missing.is_empty();
        for at in missing {
            let at = at % edges.len();
            edges.swap_remove(at);
            if edges.is_empty() {
                return Ok(());
            }
        }
        // Any of the lineages may be the present one: other terms are known from their edges.
        let lineage = &tree.lineages[known % tree.lineages.len()];
        let plain: Vec<Edge> = edges.iter().map(|(edge, _)| *edge).collect();
        for x in 0..tree.points.len() {
            for y in 0..tree.points.len() {
                let found = path(&plain, Some(lineage), tree.points[x].0, tree.points[y].0);
                let Some(found) = found else {
                    let on_lineage = |at: usize| lineage.contains(tree.points[at].0);
                    prop_assert!(
                        !(whole && on_lineage(x) && on_lineage(y)),
                        "nothing is missing between {x} and {y}"
                    );
                    continue;
                };
                let has: BTreeSet<u64> =
                    found.iter().flat_map(|at| edges[*at].1.iter().copied()).collect();
                let expected = tree.difference(x, y);
                prop_assert!(has.is_superset(&expected), "{x} to {y}: {has:?}, {expected:?}");
                let on_lineage = [x, y].iter().all(|at| lineage.contains(tree.points[*at].0));
                let exact = whole && on_lineage && plain.len() == tree.points.len();
                if exact && on_one_line(&tree, x, y) {
                    prop_assert_eq!(has, expected);
                }
            }
        }
    }
}

fn on_one_line(tree: &Tree, x: usize, y: usize) -> bool {
    tree.ancestors(x).contains(&y) || tree.ancestors(y).contains(&x)
}
