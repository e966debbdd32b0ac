//! The suites of devices.

use block::{Buffer, Device, Fault, Op};

use super::{SECTOR, join, size};
use crate::Rng;

/// Memory that O_DIRECT does not take: two pieces that begin at odd addresses, with `bytes` in them.
#[must_use]
#[allow(unsafe_code, reason = "crooked memory is made of raw pieces")]
pub fn crooked(bytes: &[u8]) -> Buffer {
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

/// Checks `device`, which is read-only and holds `content`.
///
/// # Panics
/// When it does not conform.
pub async fn read_only_conformance<D: Device>(
    device: &D,
    content: &[u8],
    seed: u64,
    rounds: usize,
) {
    let disk = device.size();
    assert_eq!(disk, content.len() as u64, "its size");
    outside(device).await;
    let mut rng = Rng::new(seed);
    for _ in 0..rounds {
        let (at, len) = range(&mut rng, disk);
        let place = size(at)..size(at + len);
        if rng.once_in(4) {
            refused(device, at, &rng.bytes(size(len))).await;
        }
        let seen = read(device, at, len).await;
        assert!(seen == content[place], "read of {len} at {at}");
    }
    command(device, Op::Flush).await;
    assert!(read(device, 0, disk).await == content, "the whole disk");
}

/// Every change of the range of `bytes` is refused.
async fn refused<D: Device>(device: &D, at: u64, bytes: &[u8]) {
    let len = bytes.len() as u64;
    let from = Buffer::from_slice(bytes);
    let done = device.run(Op::Write { at, from }).await;
    assert_eq!(done.outcome, Err(Fault::ReadOnly), "write of {len} at {at}");
    let back = done.buffer.expect("its memory comes back");
    assert!(back.to_vec() == bytes, "and holds what it held");
    for op in [
        Op::Discard { at, len },
        Op::WriteZeroes {
            at,
            len,
            unmap: false,
        },
        Op::WriteZeroes {
            at,
            len,
            unmap: true,
        },
    ] {
        let said = format!("{op:?}");
        let done = device.run(op).await;
        assert_eq!(done.outcome, Err(Fault::ReadOnly), "{said}");
    }
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
