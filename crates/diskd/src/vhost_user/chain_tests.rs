use std::fs::File;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::vhost_user::memory::RegionSpec;

const GUEST: u64 = 0x1000_0000;
const LEN: u64 = 1 << 16;
/// A second region right behind the first, and a third after a gap.
const FAR: u64 = GUEST + 3 * LEN;

fn memory() -> (Arc<Memory>, File) {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(3 * LEN).unwrap();
    let mut memory = Memory::default();
    for (index, guest) in [GUEST, GUEST + LEN, FAR].into_iter().enumerate() {
        let spec = RegionSpec {
            guest,
            user: guest << 8,
            len: LEN,
            // In reverse, so that neighbours in the guest are none in the file.
            offset: (2 - index as u64) * LEN,
        };
        memory = memory.with(spec, &file).unwrap();
    }
    (Arc::new(memory), file)
}

fn put(table: &Area, index: u16, address: u64, len: u32, flags: u32, next: u16) {
    let at = usize::from(index) * DESCRIPTOR;
    table.write(at, &address.to_le_bytes());
    table.write(at + 8, &len.to_le_bytes());
    table.write(at + 12, &flags.to_le_bytes()[..2]);
    table.write(at + 14, &next.to_le_bytes());
}

fn table(memory: &Memory) -> Area {
    memory.area(FAR, 8 * DESCRIPTOR).unwrap()
}

const NEXT: u32 = VRING_DESC_F_NEXT;
const WRITE: u32 = VRING_DESC_F_WRITE;
const INDIRECT: u32 = VRING_DESC_F_INDIRECT;

#[test]
fn a_chain_is_followed_across_regions_in_its_own_order() {
    let (memory, _file) = memory();
    let table = table(&memory);
    put(&table, 5, GUEST + LEN - 4, 8, NEXT, 2);
    put(&table, 2, GUEST, 4, NEXT | WRITE, 7);
    put(&table, 7, GUEST + 100, 1, WRITE, 0);
    memory.area(GUEST + LEN - 4, 4).unwrap().write(0, b"over");
    memory.area(GUEST + LEN, 4).unwrap().write(0, b"seas");
    let chain = walk(&table, 5, &memory, false).unwrap();
    assert!(chain.answerable && !chain.outside);
    assert_eq!((chain.readable.len(), chain.writable.len()), (8, 5));
    let mut bytes = [0; 8];
    assert!(chain.readable.read(0, &mut bytes));
    assert_eq!(&bytes, b"overseas");
    assert!(!chain.readable.read(1, &mut bytes), "past the end");
    assert!(chain.writable.write(3, b"xy"));
    assert_eq!(memory.area(GUEST + 3, 1).unwrap().read::<1>(0), *b"x");
    assert_eq!(memory.area(GUEST + 100, 1).unwrap().read::<1>(0), *b"y");
    assert!(!chain.writable.write(4, b"xy"), "past the end");
}

#[test]
fn memory_that_the_guest_does_not_have_is_noted_and_the_walk_goes_on() {
    let (memory, _file) = memory();
    let table = table(&memory);
    for (address, len) in [
        (0, 16),
        (GUEST - 1, 2),
        (GUEST + 2 * LEN - 1, 2),
        (FAR + LEN, 1),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (GUEST, u32::MAX),
    ] {
        put(&table, 0, address, len, NEXT, 1);
        put(&table, 1, GUEST, 1, WRITE, 0);
        let chain = walk(&table, 0, &memory, false).unwrap();
        assert!(chain.outside && chain.answerable, "{address:#x} {len}");
        assert_eq!(chain.readable.len(), 0);
    }
    // The status byte itself.
    put(&table, 0, GUEST, 16, NEXT, 1);
    put(&table, 1, GUEST - 1, 1, WRITE, 0);
    let chain = walk(&table, 0, &memory, false).unwrap();
    assert!(chain.outside && !chain.answerable);
}

#[test]
fn a_chain_that_cannot_be_followed_is_malformed() {
    let (memory, _file) = memory();
    let table = table(&memory);
    put(&table, 0, GUEST, 1, NEXT, 0);
    assert_eq!(
        walk(&table, 0, &memory, true).err(),
        Some(Malformed::TooLong)
    );
    put(&table, 0, GUEST, 1, NEXT, 8);
    assert_eq!(
        walk(&table, 0, &memory, true).err(),
        Some(Malformed::Index(8))
    );
    put(&table, 0, GUEST, 1, NEXT | WRITE, 1);
    put(&table, 1, GUEST, 1, 0, 0);
    assert_eq!(walk(&table, 0, &memory, true).err(), Some(Malformed::Order));
    put(&table, 0, GUEST, 32, INDIRECT, 0);
    let without = walk(&table, 0, &memory, false);
    assert_eq!(without.err(), Some(Malformed::NoIndirect));
    for len in [0, 15, 17, u32::MAX, u32::MAX - 15] {
        put(&table, 0, GUEST, len, INDIRECT, 0);
        let refused = walk(&table, 0, &memory, true).err();
        assert_eq!(refused, Some(Malformed::Table(len)));
    }
    put(&table, 0, GUEST, 16, INDIRECT | NEXT, 0);
    assert_eq!(
        walk(&table, 0, &memory, true).err(),
        Some(Malformed::Nested)
    );
}

#[test]
fn an_indirect_table_ends_where_its_length_says() {
    let (memory, _file) = memory();
    let table = table(&memory);
    let inner = memory.area(GUEST, 3 * DESCRIPTOR).unwrap();
    put(&inner, 0, GUEST + 512, 16, NEXT, 1);
    put(&inner, 1, GUEST + 528, 1, WRITE | NEXT, 2);
    put(&inner, 2, GUEST + 529, 1, WRITE, 0);
    put(&table, 0, GUEST, 48, INDIRECT, 0);
    let chain = walk(&table, 0, &memory, true).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (16, 2));
    put(&table, 0, GUEST, 32, INDIRECT, 0);
    assert_eq!(
        walk(&table, 0, &memory, true).err(),
        Some(Malformed::Index(2))
    );
}

#[test]
fn regions_that_overlap_or_reach_past_their_file_are_refused() {
    let (memory, file) = memory();
    let spec = |guest, len, offset| RegionSpec {
        guest,
        user: guest,
        len,
        offset,
    };
    for (guest, len) in [(GUEST - 1, 2), (GUEST + 5, 1), (FAR - 1, 4096), (FAR, LEN)] {
        assert!(
            memory.with(spec(guest, len, 0), &file).is_err(),
            "{guest:#x}"
        );
    }
    for (len, offset) in [(3 * LEN + 1, 0), (LEN, 2 * LEN + 1), (1, u64::MAX), (0, 0)] {
        assert!(memory.with(spec(0, len, offset), &file).is_err(), "{len}");
    }
    assert!(memory.with(spec(u64::MAX - 1, 4, 0), &file).is_err());
    assert!(memory.without(GUEST, GUEST << 8, LEN - 1).is_err());
    let less = memory.without(GUEST, GUEST << 8, LEN).unwrap();
    assert!(less.area(GUEST, 1).is_none() && less.area(FAR, 1).is_some());
    assert!(memory.area(GUEST, 1).is_some(), "the old snapshot stays");
    // Not on a page boundary of the file.
    let odd = less.with(spec(0, 100, 777), &file).unwrap();
    odd.area(0, 1).unwrap().write(0, b"!");
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_at(&file, &mut byte, 777).unwrap();
    assert_eq!(&byte, b"!");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(512)
    ))]

    /// Whatever stands in the tables, the walk ends, and what it gives lies in guest memory.
    #[test]
    fn random_tables_never_hang_or_leave_guest_memory(
        entries in prop::collection::vec(
            (
                prop_oneof![
                    Just(0), Just(u64::MAX), GUEST - 8..GUEST + 8,
                    GUEST + LEN - 8..GUEST + LEN + 8, FAR + LEN - 8..FAR + LEN + 8, any::<u64>(),
                ],
                prop_oneof![0u32..64, any::<u32>()],
                0u32..8,
                0u16..10,
            ),
            8,
        ),
        inner in prop::collection::vec((0u32..64, 0u32..8, 0u16..10), 4),
        head in 0u16..8,
    ) {
        let (memory, _file) = memory();
        let table = table(&memory);
        for (index, (address, len, flags, next)) in (0..).zip(&entries) {
            put(&table, index, *address, *len, *flags, *next);
        }
        let second = memory.area(GUEST, 4 * DESCRIPTOR).unwrap();
        for (index, (len, flags, next)) in (0..).zip(&inner) {
            put(&second, index, GUEST, *len, *flags, *next);
        }
        if let Ok(chain) = walk(&table, head, &memory, true) {
            for span in [&chain.readable, &chain.writable] {
                prop_assert!(span.len() <= u64::from(MAX_CHAIN) * 3 * LEN);
                // Every byte can be touched.
                let len = span.len().min(1 << 20);
                let mut bytes = vec![0; usize::try_from(len).unwrap()];
                prop_assert!(span.read(span.len() - len, &mut bytes));
            }
            prop_assert!(!chain.answerable || chain.writable.len() > 0);
        }
    }
}
