//! The suite of stores.

use block::{Buffer, Store};

use super::size;
use crate::Rng;

/// Checks an empty `store` against an array of bytes.
///
/// # Panics
/// When it does not conform.
pub async fn store_conformance<S: Store>(store: &S, seed: u64, rounds: usize) {
    const SIZE: u64 = 1 << 20;
    let unit = store.alignment().max(512);
    assert!(store.alignment().is_power_of_two(), "a power of two");
    let mut model = vec![0; size(SIZE)];
    let mut rng = Rng::new(seed);
    for _ in 0..rounds {
        let at = rng.below(SIZE / unit) * unit;
        let len = (1 + rng.below(32.min((SIZE - at) / unit))) * unit;
        let place = size(at)..size(at + len);
        match rng.below(6) {
            0 => {
                assert_eq!(store.punch(at, len).await, Ok(()));
                model[place].fill(0);
            }
            1 => {
                assert_eq!(store.zero(at, len).await, Ok(()));
                model[place].fill(0);
            }
            2 => assert_eq!(store.sync().await, Ok(())),
            3 => {
                let done = store.read(at, Buffer::zeroed(size(len))).await;
                assert_eq!(done.outcome, Ok(()));
                assert!(done.buffer.expect("given back").to_vec() == model[place]);
            }
            _ => {
                let bytes = rng.bytes(size(len));
                let done = store.write(at, Buffer::from_slice(&bytes)).await;
                assert_eq!(done.outcome, Ok(()));
                assert_eq!(done.buffer.map(|buffer| buffer.len()), Some(size(len)));
                model[place].copy_from_slice(&bytes);
            }
        }
    }
    holes(store, &model).await;
    // Across the end: the rest reads as zeroes.
    let done = store.read(SIZE / 2, Buffer::zeroed(size(SIZE))).await;
    assert_eq!(done.outcome, Ok(()));
    let seen = done.buffer.expect("given back").to_vec();
    assert!(seen[..size(SIZE / 2)] == model[size(SIZE / 2)..]);
    assert!(seen[size(SIZE / 2)..].iter().all(|byte| *byte == 0));
}

/// What takes no space reads as zeroes, and parts that are told to take space lie inside what was
/// asked for.
async fn holes<S: Store>(store: &S, model: &[u8]) {
    let end = model.len() as u64;
    // Beyond the end of the file as well.
    for range in [
        0..end,
        1..end - 1,
        end / 2..end / 2 + 1,
        end..2 * end,
        end..end,
    ] {
        let mut at = range.start;
        while at < range.end {
            let data = store.next_data(at..range.end).await.expect("told");
            let hole = at..data.as_ref().map_or(range.end, |data| data.start);
            let inside = size(hole.start.min(end))..size(hole.end.min(end));
            assert!(
                model[inside].iter().all(|byte| *byte == 0),
                "{hole:?} is no hole"
            );
            let Some(data) = data else { break };
            assert!(
                at <= data.start && data.start < data.end && data.end <= range.end,
                "{data:?}"
            );
            at = data.end;
        }
    }
}
