//! How much of the mapping is in this process's memory.

use testkit::Rng;

use super::tests::Scratch;
use super::*;

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

/// Bytes of the mapping of `state` that are in memory (`proc_pid_smaps(5)`).
fn resident(state: &DiskState) -> u64 {
    let at = state.file.bits(Map::A).words.as_ptr().addr();
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("read");
    let mut lines = smaps.lines();
    let holds = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let parse = |text| usize::from_str_radix(text, 16).ok();
        Some((parse(from)?..parse(to)?).contains(&at))
    };
    lines
        .by_ref()
        .find(|line| holds(line) == Some(true))
        .expect("mapped");
    let rss = lines.find_map(|line| line.strip_prefix("Rss:"));
    let kib = rss.and_then(|rss| rss.trim().strip_suffix(" kB"));
    kib.expect("a figure").parse::<u64>().expect("of KiB") << 10
}

fn dirty_at_random(state: &DiskState, rng: &mut Rng, blocks: u64) {
    for _ in 0..blocks {
        let at = rng.below(state.blocks());
        state.mark(at..at + 1);
    }
}

#[test]
fn a_disk_of_1_tib_dirty_at_random_takes_half_of_its_maps_and_the_other_half_while_it_is_staged() {
    let scratch = Scratch::new();
    let mut rng = Rng::new(7);
    let state = scratch.open_sized(1, TIB).expect("opened");
    state.track(RelationshipId::random(), Marks::None);
    assert!(resident(&state) < MIB, "a clean disk: {}", resident(&state));
    // 10 GiB, in every page of the map.
    dirty_at_random(&state, &mut rng, 2_621_440);
    let full = resident(&state);
    assert!((32 * MIB..34 * MIB).contains(&full), "dirty: {full}");
    let dirty = state.dirty();
    state.seal();
    dirty_at_random(&state, &mut rng, 500);
    let cut = resident(&state);
    // A page each, not their neighbours.
    assert!(cut < full + 3 * MIB, "cut: {cut}");
    assert_eq!(state.sealed(), dirty);
    state.release();
    let released = resident(&state);
    assert!(released < 4 * MIB, "released: {released}");
    // From now on every page of both maps was touched once.
    for _ in 0..4 {
        dirty_at_random(&state, &mut rng, 500);
        state.seal();
        state.release();
        let released = resident(&state);
        assert!(released < 2 * MIB, "released: {released}");
    }
    dirty_at_random(&state, &mut rng, 500);
    state.seal();
    dirty_at_random(&state, &mut rng, 500);
    let cut = resident(&state);
    assert!(cut < 6 * MIB, "cut again: {cut}");
    // What is reserved was not given back.
    let reserved = scratch.file.metadata().expect("there");
    assert!(std::os::unix::fs::MetadataExt::blocks(&reserved) * 512 >= 64 * MIB);
    drop(state);
    let state = scratch.open_sized(1, TIB).expect("opened again");
    assert!(state.dirty() >= 990);
    let opened = resident(&state);
    assert!(opened < 34 * MIB, "opened: {opened}");
}
