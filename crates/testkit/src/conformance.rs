//! What every device and every store has to do, whatever runs them.

use std::future::{Future, poll_fn};
use std::ops::{ControlFlow, Range};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use block::{Buffer, Device, Fault, Image, Op, Place, Store};

use crate::Rng;

const SECTOR: u64 = 512;

/// Runs all `futures` at once and waits for all of them.
pub async fn join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                if let Poll::Ready(value) = future.as_mut().poll(cx) {
                    *output = Some(value);
                }
            }
        }
        if outputs.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

/// The outcome of a future that never waits.
///
/// # Panics
/// When it does.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("small")
}

/// Memory that O_DIRECT does not take: two pieces that begin at odd addresses.
#[allow(unsafe_code, reason = "crooked memory is made of raw pieces")]
fn crooked(bytes: &[u8]) -> Buffer {
    use std::sync::Arc;
    let half = bytes.len() / 2;
    let owner = Arc::new(Memory(Buffer::zeroed(bytes.len() + 16)));
    let start = owner.0.pieces()[0].iov_base.cast::<u8>();
    // SAFETY: both pieces lie inside the buffer and do not overlap.
    let pieces = unsafe {
        [
            (start.add(1), half),
            (start.add(half + 2), bytes.len() - half),
        ]
    };
    let pieces = pieces
        .into_iter()
        .map(|(start, len)| libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        })
        .collect();
    // SAFETY: the owner keeps the memory.
    let mut buffer = unsafe { Buffer::borrowed(pieces, owner) };
    buffer.copy_from_slice(0, bytes);
    buffer
}

/// Only kept for its memory.
struct Memory(Buffer);

// SAFETY: nothing reaches the buffer through a shared reference once it is in its `Arc`.
#[allow(unsafe_code, reason = "as above")]
unsafe impl Sync for Memory {}

async fn write<D: Device>(device: &D, at: u64, bytes: &[u8]) {
    let from = if bytes.len() % 1024 == 0 {
        crooked(bytes)
    } else {
        Buffer::from_slice(bytes)
    };
    let done = device.run(Op::Write { at, from }).await;
    assert_eq!(done.outcome, Ok(()), "write of {} at {at}", bytes.len());
    assert_eq!(
        done.buffer.map(|buffer| buffer.to_vec()).as_deref(),
        Some(bytes)
    );
}

async fn read<D: Device>(device: &D, at: u64, len: u64) -> Vec<u8> {
    let into = Buffer::zeroed(size(len));
    let done = device.run(Op::Read { at, into }).await;
    assert_eq!(done.outcome, Ok(()), "read of {len} at {at}");
    done.buffer.expect("a read gives its memory back").to_vec()
}

async fn command<D: Device>(device: &D, op: Op) {
    let said = format!("{op:?}");
    assert_eq!(device.run(op).await.outcome, Ok(()), "{said}");
}

/// A random range of sectors of a disk of `disk` bytes, mostly small.
fn range(rng: &mut Rng, disk: u64) -> (u64, u64) {
    let sectors = disk / SECTOR;
    let at = rng.below(sectors);
    let longest = if rng.once_in(4) { 128 } else { 12 };
    let len = 1 + rng.below(longest.min(sectors - at));
    (at * SECTOR, len * SECTOR)
}

/// Checks `device`, which reads as zeroes and is at least 1 MiB, against an array of bytes.
///
/// # Panics
/// When it does not conform.
pub async fn device_conformance<D: Device>(device: &D, seed: u64, rounds: usize) {
    let disk = device.size();
    assert!(disk >= 1 << 20, "too small for this suite");
    let mut model = vec![0; size(disk)];
    outside(device).await;
    let mut rng = Rng::new(seed);
    for _ in 0..rounds {
        random_op(device, &mut model, &mut rng).await;
    }
    neighbours(device, &mut model, &mut rng).await;
    command(device, Op::Flush).await;
    assert!(read(device, 0, disk).await == model, "the whole disk");
}

/// Ranges outside the disk or between sectors are refused and change nothing.
async fn outside<D: Device>(device: &D) {
    let disk = device.size();
    for (at, len) in [
        (disk, 512),
        (disk - 512, 1024),
        (1, 512),
        (0, 100),
        (u64::MAX - 511, 512),
    ] {
        let into = Buffer::zeroed(size(len));
        let done = device.run(Op::Read { at, into }).await;
        assert_eq!(done.outcome, Err(Fault::Range), "read of {len} at {at}");
        assert!(done.buffer.is_some(), "its memory comes back");
        let from = Buffer::from_slice(&vec![0xee; size(len)]);
        let done = device.run(Op::Write { at, from }).await;
        assert_eq!(done.outcome, Err(Fault::Range), "write of {len} at {at}");
        assert!(done.buffer.is_some(), "its memory comes back");
        let done = device.run(Op::Discard { at, len }).await;
        assert_eq!(done.outcome, Err(Fault::Range), "discard of {len} at {at}");
    }
    let len = u64::MAX - 511;
    let done = device.run(Op::Discard { at: 512, len }).await;
    assert_eq!(done.outcome, Err(Fault::Range), "a length that overflows");
}

async fn random_op<D: Device>(device: &D, model: &mut [u8], rng: &mut Rng) {
    let (at, len) = range(rng, device.size());
    let place = size(at)..size(at + len);
    match rng.below(10) {
        0 => {
            command(device, Op::Discard { at, len }).await;
            model[place].fill(0);
        }
        1 => {
            let unmap = rng.once_in(2);
            command(device, Op::WriteZeroes { at, len, unmap }).await;
            model[place].fill(0);
        }
        2 => command(device, Op::Flush).await,
        3..=5 => {
            let seen = read(device, at, len).await;
            assert!(seen == model[place], "read of {len} at {at}");
        }
        _ => {
            let bytes = rng.bytes(size(len));
            write(device, at, &bytes).await;
            model[place].copy_from_slice(&bytes);
        }
    }
}

/// Concurrent writes of different sectors of the same blocks don't undo each other.
async fn neighbours<D: Device>(device: &D, model: &mut [u8], rng: &mut Rng) {
    for _ in 0..8 {
        let first = rng.below(device.size() / 8192 - 1) * 8192;
        let parts: Vec<(u64, Vec<u8>)> = (0..16)
            .map(|sector| (first + sector * SECTOR, rng.bytes(512)))
            .collect();
        join(
            parts
                .iter()
                .map(|(at, bytes)| write(device, *at, bytes))
                .collect(),
        )
        .await;
        for (at, bytes) in parts {
            model[size(at)..size(at) + 512].copy_from_slice(&bytes);
        }
        let seen = read(device, first, 8192).await;
        assert!(
            seen == model[size(first)..size(first) + 8192],
            "neighbouring sectors at {first}"
        );
    }
}

/// Writes for a while, notes what was durable at the last flush and what came after, cuts the
/// power with `cut`, and checks through a device that `reopen` makes that every sector holds either
/// its flushed content or a later one.
///
/// # Panics
/// When it does not.
pub async fn power_cut_conformance<D: Device>(
    device: D,
    reopen: impl FnOnce(u64) -> D,
    seed: u64,
    rounds: usize,
) {
    let disk = device.size();
    let sectors = size(disk / SECTOR);
    let mut rng = Rng::new(seed);
    // What each sector may hold; one possibility after a flush.
    let mut possible: Vec<Vec<Vec<u8>>> = vec![vec![vec![0; 512]]; sectors];
    for _ in 0..rounds {
        let (at, len) = range(&mut rng, disk);
        let content = match rng.below(8) {
            0 => {
                command(&device, Op::Flush).await;
                for sector in &mut possible {
                    let last = sector.pop().expect("never empty");
                    *sector = vec![last];
                }
                continue;
            }
            1 => {
                command(&device, Op::Discard { at, len }).await;
                vec![0; size(len)]
            }
            2 => {
                let unmap = false;
                command(&device, Op::WriteZeroes { at, len, unmap }).await;
                vec![0; size(len)]
            }
            _ => {
                let bytes = rng.bytes(size(len));
                write(&device, at, &bytes).await;
                bytes
            }
        };
        for (number, bytes) in content.chunks(512).enumerate() {
            possible[size(at / SECTOR) + number].push(bytes.to_vec());
        }
    }
    drop(device);
    let device = reopen(rng.bits());
    let seen = read(&device, 0, disk).await;
    for (number, (bytes, possible)) in seen.chunks(512).zip(&possible).enumerate() {
        assert!(
            possible.iter().any(|one| one == bytes),
            "sector {number} holds what was never written there after the flush (seed {seed})"
        );
    }
    // And it goes on.
    write(&device, 512, &[9; 1024]).await;
    assert_eq!(read(&device, 512, 1024).await, [9; 1024]);
}

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

/// Checks that `image`, whose content is `content` and does not change, tells the places of random
/// ranges without gaps, and never calls a range zero that is not.
///
/// # Panics
/// When it does not conform.
pub async fn image_conformance<I: Image>(image: &I, content: &[u8], seed: u64, rounds: usize) {
    let disk = image.size();
    assert_eq!(disk, content.len() as u64, "its size");
    let mut ranges = vec![0..disk, 0..0, disk..disk];
    let mut rng = Rng::new(seed);
    for _ in 0..rounds {
        let (a, b) = (rng.below(disk + 1), rng.below(disk + 1));
        let sectors = if rng.once_in(2) { SECTOR } else { 1 };
        ranges.push((a.min(b) / sectors * sectors)..(a.max(b) / sectors * sectors));
    }
    for range in ranges {
        let (mut at, mut pieces) = (range.start, 0);
        let outcome = image
            .translate(range.clone(), &mut |piece, place| {
                assert_eq!(piece.start, at, "a gap in {range:?}");
                assert!(
                    piece.start < piece.end && piece.end <= range.end,
                    "{piece:?} of {range:?}"
                );
                at = piece.end;
                let inner = piece.end % SECTOR == 0 || piece.end == range.end;
                assert!(inner, "{piece:?} of {range:?} ends inside a sector");
                if place == Place::Zero {
                    let bytes = &content[size(piece.start)..size(piece.end)];
                    assert!(bytes.iter().all(|byte| *byte == 0), "{piece:?} is not zero");
                }
                pieces += 1;
                ControlFlow::Continue(())
            })
            .await;
        assert_eq!(outcome, Ok(ControlFlow::Continue(())), "{range:?}");
        assert_eq!(at, range.end, "{range:?} ends early");
        if pieces > 0 {
            stops(image, range, 1 + rng.below(pieces)).await;
        }
    }
    for range in [disk..disk + SECTOR, disk + SECTOR..disk + 2 * SECTOR] {
        let outcome = image
            .translate(range.clone(), &mut |_, _| ControlFlow::Continue(()))
            .await;
        assert_eq!(outcome, Err(Fault::Range), "{range:?} lies outside");
    }
}

/// When its visitor breaks at piece `last`, `image` tells no more pieces, and that it broke.
async fn stops<I: Image>(image: &I, range: Range<u64>, last: u64) {
    let mut seen = 0;
    let outcome = image
        .translate(range.clone(), &mut |_, _| {
            seen += 1;
            if seen < last {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
        .await;
    assert_eq!(outcome, Ok(ControlFlow::Break(())), "{range:?}");
    assert_eq!(seen, last, "{range:?} goes on after a break");
}
