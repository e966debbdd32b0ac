//! A store in memory whose power can be cut.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

use block::{Buffer, Done, Fault, Store};

use crate::Rng;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
/// In what units space is taken, in bytes.
const BLOCK: usize = 4096;

/// A part of a write that reached the store.
struct Pending {
    at: u64,
    bytes: Vec<u8>,
    /// Whether its write was acknowledged, or its process is gone; a sync covers it then.
    completed: bool,
    /// Of its write.
    number: u64,
}

impl Pending {
    fn range(&self) -> Range<u64> {
        self.at..self.at + self.bytes.len() as u64
    }

    /// What is left of it where `other` did not write.
    fn except(self, other: &Self) -> impl Iterator<Item = Self> {
        let (own, other) = (self.range(), other.range());
        let before = own.start..own.end.min(other.start);
        let after = own.start.max(other.end)..own.end;
        let parts = [before, after].into_iter().filter(|part| !part.is_empty());
        parts.map(move |part| {
            let index = |at: u64| usize::try_from(at - self.at).expect("inside a write");
            Self {
                at: part.start,
                bytes: self.bytes[index(part.start)..index(part.end)].to_vec(),
                completed: self.completed,
                number: self.number,
            }
        })
    }
}

struct Inner {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Not durable for sure, in the order in which they reached the store.
    pending: Vec<Pending>,
    /// Blocks that take space though they may read as zeroes.
    allocated: Vec<bool>,
    next: u64,
    rng: Rng,
    failing_syncs: u32,
    failing_reads: u32,
    syncs: u64,
    looks: u64,
    held: bool,
    held_syncs: bool,
}

/// A [`Store`] with a volatile and a durable half: writes may be lost or torn at 512 bytes until a
/// sync that began after they completed. Operations take a few turns of the executor each, as many
/// as the seed says. Clones are the same store.
#[derive(Clone)]
pub struct PowerCutStore {
    inner: Rc<RefCell<Inner>>,
    alignment: u64,
}

impl PowerCutStore {
    /// A store of `size` zeroes that needs `alignment`, with delays and losses decided by `seed`.
    #[must_use]
    pub fn new(size: usize, alignment: u64, seed: u64) -> Self {
        Self {
            inner: Rc::new(RefCell::new(Inner {
                durable: vec![0; size],
                current: vec![0; size],
                pending: Vec::new(),
                allocated: Vec::new(),
                next: 0,
                rng: Rng::new(seed),
                failing_syncs: 0,
                failing_reads: 0,
                syncs: 0,
                looks: 0,
                held: false,
                held_syncs: false,
            })),
            alignment,
        }
    }

    /// Cuts the power: a random subset of what was not synced survives, sector by sector. The
    /// store goes on with that.
    pub fn cut(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        let mut inner = self.inner.borrow_mut();
        let pending = std::mem::take(&mut inner.pending);
        for write in pending {
            // Some writes are lost whole, some survive whole, some are torn.
            let fate = rng.below(4);
            for (number, sector) in write.bytes.chunks(SECTOR).enumerate() {
                let survives = match fate {
                    0 => false,
                    1 => true,
                    _ => rng.once_in(2),
                };
                if survives {
                    put(
                        &mut inner.durable,
                        write.at + (number * SECTOR) as u64,
                        sector,
                    );
                }
            }
        }
        inner.current = inner.durable.clone();
    }

    /// What a reader would see now.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.inner.borrow().current.clone()
    }

    /// Somebody else stores `bytes` at `at`, durably.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        let mut inner = self.inner.borrow_mut();
        put(&mut inner.current, at, bytes);
        put(&mut inner.durable, at, bytes);
    }

    /// The next `count` syncs fail and make nothing durable.
    pub fn fail_syncs(&self, count: u32) {
        self.inner.borrow_mut().failing_syncs = count;
    }

    /// The next `count` reads fail.
    pub fn fail_reads(&self, count: u32) {
        self.inner.borrow_mut().failing_reads = count;
    }

    /// How many syncs began.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.inner.borrow().syncs
    }

    /// How often it was asked where it has data.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.inner.borrow().looks
    }

    /// While held, operations wait; the executor must be told to poll them again by another wake
    /// after the release, which [`PowerCutStore::delay`]'s self-waking does.
    pub fn hold(&self, held: bool) {
        self.inner.borrow_mut().held = held;
    }

    /// As [`PowerCutStore::hold`], for syncs only: what they cover is settled when they are held.
    pub fn hold_syncs(&self, held: bool) {
        self.inner.borrow_mut().held_syncs = held;
    }

    /// Waits for a random number of turns.
    async fn delay(&self) {
        self.wait(|inner| inner.held).await;
    }

    async fn wait(&self, is_held: impl Fn(&Inner) -> bool) {
        let mut turns = self.inner.borrow_mut().rng.below(4);
        poll_fn(|cx| {
            if turns == 0 && !is_held(&self.inner.borrow()) {
                return Poll::Ready(());
            }
            turns = turns.saturating_sub(1);
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn check(&self, at: u64, len: u64) -> Result<(), Fault> {
        if (at | len) % self.alignment != 0 {
            return Err(Fault::Os(22)); // EINVAL
        }
        Ok(())
    }

    async fn store(&self, at: u64, bytes: Vec<u8>, keeps_space: bool) {
        self.delay().await;
        // Torn in the store as well: half of it may be seen before the other half.
        let unit = if keeps_space { SECTOR } else { BLOCK };
        let middle = bytes.len() / 2 / unit * unit;
        let write = Reaching::begin(self);
        write.apply(at, &bytes[..middle], keeps_space);
        self.delay().await;
        write.apply(at + middle as u64, &bytes[middle..], keeps_space);
        self.delay().await;
    }

    /// How much space it takes, in bytes.
    #[must_use]
    pub fn space(&self) -> usize {
        let inner = self.inner.borrow();
        let blocks = inner.current.len().div_ceil(BLOCK);
        (0..blocks).filter(|block| inner.is_data(*block)).count() * BLOCK
    }
}

impl Inner {
    /// Whether `block` takes space.
    fn is_data(&self, block: usize) -> bool {
        let Some(bytes) = self.current.get(block * BLOCK..) else {
            return false;
        };
        let content = &bytes[..BLOCK.min(bytes.len())];
        self.allocated.get(block) == Some(&true) || content != &[0; BLOCK][..content.len()]
    }
}

/// A write on its way. However it ends, by completion or because its process was killed, what
/// reached the store lies in the page cache then: the next sync covers it.
struct Reaching<'a> {
    store: &'a PowerCutStore,
    number: u64,
}

impl<'a> Reaching<'a> {
    fn begin(store: &'a PowerCutStore) -> Self {
        let mut inner = store.inner.borrow_mut();
        let number = inner.next;
        inner.next += 1;
        drop(inner);
        Self { store, number }
    }

    fn apply(&self, at: u64, bytes: &[u8], keeps_space: bool) {
        if bytes.is_empty() {
            return;
        }
        let mut inner = self.store.inner.borrow_mut();
        let inner = &mut *inner;
        put(&mut inner.current, at, bytes);
        let start = usize::try_from(at).expect("a small store");
        let end = start + bytes.len();
        let blocks = if keeps_space {
            start / BLOCK..end.div_ceil(BLOCK)
        } else {
            start.div_ceil(BLOCK)..end / BLOCK
        };
        if inner.allocated.len() < blocks.end {
            inner.allocated.resize(blocks.end, false);
        }
        for block in blocks {
            inner.allocated[block] = keeps_space;
        }
        inner.pending.push(Pending {
            at,
            bytes: bytes.to_vec(),
            completed: false,
            number: self.number,
        });
    }
}

impl Drop for Reaching<'_> {
    fn drop(&mut self) {
        let mut inner = self.store.inner.borrow_mut();
        for part in &mut inner.pending {
            if part.number == self.number {
                part.completed = true;
            }
        }
    }
}

fn put(target: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).expect("a small store");
    if target.len() < at + bytes.len() {
        target.resize(at + bytes.len(), 0);
    }
    target[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Store for PowerCutStore {
    fn alignment(&self) -> u64 {
        self.alignment
    }

    async fn read(&self, at: u64, mut into: Buffer) -> Done {
        let refusal = self
            .check(at, into.len() as u64)
            .err()
            .or_else(|| (!into.is_aligned(self.alignment)).then_some(Fault::Os(22)));
        if let Some(fault) = refusal {
            return Done {
                outcome: Err(fault),
                buffer: Some(into),
            };
        }
        self.delay().await;
        let len = into.len();
        into.fill_zero(0, len);
        {
            let mut inner = self.inner.borrow_mut();
            if inner.failing_reads > 0 {
                inner.failing_reads -= 1;
                return Done {
                    outcome: Err(Fault::Os(5)), // EIO
                    buffer: Some(into),
                };
            }
            let from = usize::try_from(at).expect("a small store");
            let end = (from + len).min(inner.current.len());
            if from < end {
                into.copy_from_slice(0, &inner.current[from..end]);
            }
        }
        self.delay().await;
        Done {
            outcome: Ok(()),
            buffer: Some(into),
        }
    }

    async fn write(&self, at: u64, from: Buffer) -> Done {
        let refusal = self
            .check(at, from.len() as u64)
            .err()
            .or_else(|| (!from.is_aligned(self.alignment)).then_some(Fault::Os(22)));
        if let Some(fault) = refusal {
            return Done {
                outcome: Err(fault),
                buffer: Some(from),
            };
        }
        self.store(at, from.to_vec(), true).await;
        Done {
            outcome: Ok(()),
            buffer: Some(from),
        }
    }

    async fn punch(&self, at: u64, len: u64) -> Result<(), Fault> {
        // As of a file, which does not grow by it: what may be large is not in memory.
        let end = self.inner.borrow().current.len() as u64;
        let len = usize::try_from(len.min(end.saturating_sub(at))).expect("a small store");
        self.store(at, vec![0; len], false).await;
        Ok(())
    }

    async fn zero(&self, at: u64, len: u64) -> Result<(), Fault> {
        let len = usize::try_from(len).expect("a small store");
        self.store(at, vec![0; len], true).await;
        Ok(())
    }

    async fn sync(&self) -> Result<(), Fault> {
        let covered: BTreeSet<u64> = {
            let mut inner = self.inner.borrow_mut();
            inner.syncs += 1;
            inner
                .pending
                .iter()
                .filter(|write| write.completed)
                .map(|write| write.number)
                .collect()
        };
        self.wait(|inner| inner.held || inner.held_syncs).await;
        let mut inner = self.inner.borrow_mut();
        if inner.failing_syncs > 0 {
            inner.failing_syncs -= 1;
            return Err(Fault::Os(5)); // EIO
        }
        let pending = std::mem::take(&mut inner.pending);
        for write in pending {
            if covered.contains(&write.number) {
                put(&mut inner.durable, write.at, &write.bytes);
                // What it overwrote cannot come back.
                let older = std::mem::take(&mut inner.pending).into_iter();
                inner.pending = older.flat_map(|older| older.except(&write)).collect();
            } else {
                inner.pending.push(write);
            }
        }
        Ok(())
    }

    async fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>, Fault> {
        self.delay().await;
        let mut inner = self.inner.borrow_mut();
        inner.looks += 1;
        let unit = BLOCK as u64;
        let is_data = |block: u64| usize::try_from(block).is_ok_and(|block| inner.is_data(block));
        let end = range.end.min(inner.current.len() as u64);
        if range.start >= end {
            return Ok(None);
        }
        let blocks = range.start / unit..end.div_ceil(unit);
        let Some(first) = blocks.clone().find(|block| is_data(*block)) else {
            return Ok(None);
        };
        let last = (first..blocks.end).find(|block| !is_data(*block));
        let last = last.unwrap_or(blocks.end);
        Ok(Some(
            (first * unit).max(range.start)..(last * unit).min(end),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Schedule, store_conformance};

    #[test]
    fn it_is_a_store_like_a_file_whatever_it_needs() {
        for (seed, alignment) in (0..12).zip([1, 512, 4096].into_iter().cycle()) {
            let schedule = Schedule::new(seed);
            schedule.spawn(async move {
                let store = PowerCutStore::new(0, alignment, seed);
                store_conformance(&store, seed, 300).await;
            });
            assert_eq!(schedule.run(), 0, "it waits for ever (seed {seed})");
        }
    }
}
