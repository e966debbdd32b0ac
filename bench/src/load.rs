//! What is asked of a server or a file, the same for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Every run takes another way, so that none finds what the one before has warmed up.
static SEED: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);

/// Which requests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    RandRead,
    RandWrite,
    SeqRead,
    SeqWrite,
    /// Writes of 4 KiB, each the only one in its MiB, in random order. A run ends when all had one.
    ColdWrite,
    /// Blocks of 4 KiB that are discarded at random.
    Discard,
}

impl Pattern {
    /// As it is spelled in figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RandRead => "randread4k",
            Self::RandWrite => "randwrite4k",
            Self::SeqRead => "seqread1m",
            Self::SeqWrite => "seqwrite1m",
            Self::ColdWrite => "coldwrite4k",
            Self::Discard => "discard4k",
        }
    }

    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::RandWrite | Self::SeqWrite | Self::ColdWrite)
    }

    pub(crate) fn is_sequential(self) -> bool {
        matches!(self, Self::SeqRead | Self::SeqWrite)
    }

    /// Bytes of a request.
    pub(crate) fn block(self) -> usize {
        if self.is_sequential() { 1 << 20 } else { 4096 }
    }
}

/// `depth` requests at once over the first `len` bytes of the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) pattern: Pattern,
    pub(crate) depth: usize,
    pub(crate) len: u64,
}

/// Somebody who makes requests.
pub(crate) trait Client {
    /// Makes requests for as long as `pace` says.
    fn run(&mut self, pace: &mut Pace) -> Result<()>;
}

/// When a run ends.
enum End {
    After(Duration),
    /// When this is set.
    Told(Arc<AtomicBool>),
    /// When so many requests were made.
    Made(u64),
}

/// Where requests go.
enum Order {
    Sequential,
    /// State of a generator that a server cannot guess and that costs nothing.
    Random(u64),
    Listed(Vec<u64>),
}

/// xorshift64; the state is never zero.
pub(crate) fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Another one with each call. Odd, for [`xorshift`] never leaves zero.
pub(crate) fn seed() -> u64 {
    SEED.fetch_add(0x632b_e59b_d9b4_e01a, Ordering::Relaxed) | 1
}

/// The offsets of a run, and its end.
pub(crate) struct Pace {
    start: Instant,
    end: End,
    blocks: u64,
    block: u64,
    order: Order,
    depth: u64,
    /// From the beginning of one request to that of the next, if they don't come at once.
    gap: Option<Duration>,
    /// Requests that were made and that completed.
    next: u64,
    done: u64,
    /// Where requests were made, if that is wanted.
    issued: Option<Vec<u64>>,
}

impl Pace {
    /// Starts now, for a while.
    pub(crate) fn start(load: Load, duration: Duration) -> Self {
        Self::new(load, End::After(duration))
    }

    /// Starts now, until `told` is set.
    pub(crate) fn until(load: Load, told: Arc<AtomicBool>) -> Self {
        Self::new(load, End::Told(told))
    }

    /// Starts now, for so many requests.
    pub(crate) fn of(load: Load, requests: u64) -> Self {
        Self::new(load, End::Made(requests))
    }

    fn new(load: Load, end: End) -> Self {
        let block = load.pattern.block() as u64;
        let mut seed = seed();
        let order = match load.pattern {
            Pattern::SeqRead | Pattern::SeqWrite => Order::Sequential,
            Pattern::RandRead | Pattern::RandWrite | Pattern::Discard => Order::Random(seed),
            Pattern::ColdWrite => Order::Listed(one_in_each_mib(load.len, &mut seed)),
        };
        Self {
            start: Instant::now(),
            end,
            blocks: load.len / block,
            block,
            order,
            depth: load.depth as u64,
            gap: None,
            next: 0,
            done: 0,
            issued: None,
        }
    }

    /// Not more than so many requests a second. Only clients that ask [`Pace::early`] keep to it.
    pub(crate) fn at_most(mut self, per_second: f64) -> Self {
        self.gap = Some(Duration::from_secs_f64(1.0 / per_second));
        self
    }

    /// Notes where requests are made.
    pub(crate) fn noted(mut self) -> Self {
        self.issued = Some(Vec::new());
        self
    }

    /// How long the next request has to wait.
    pub(crate) fn early(&self) -> Option<Duration> {
        let due = self
            .gap?
            .saturating_mul(u32::try_from(self.next).unwrap_or(u32::MAX));
        let early = due.checked_sub(self.start.elapsed())?;
        (!early.is_zero()).then_some(early)
    }

    /// Where the next request goes.
    pub(crate) fn offset(&mut self) -> u64 {
        let block = match &mut self.order {
            Order::Sequential => self.next % self.blocks,
            Order::Random(state) => xorshift(state) % self.blocks,
            // The list is longer than what is made of it.
            Order::Listed(list) => list[usize::try_from(self.next).unwrap_or(0) % list.len()],
        };
        self.next += 1;
        let at = block * self.block;
        if let Some(issued) = &mut self.issued {
            issued.push(at);
        }
        at
    }

    /// Counts `completed` requests; whether others follow.
    pub(crate) fn completed(&mut self, completed: usize) -> bool {
        self.done += completed as u64;
        let exhausted = match &self.order {
            Order::Listed(list) => self.next + self.depth > list.len() as u64,
            _ => false,
        };
        let over = match &self.end {
            End::After(duration) => self.start.elapsed() >= *duration,
            End::Told(told) => told.load(Ordering::Relaxed),
            End::Made(made) => self.next >= *made,
        };
        !over && !exhausted
    }

    /// Requests that completed, and since when the run goes on.
    pub(crate) fn end(&self) -> (u64, Duration) {
        (self.done, self.start.elapsed())
    }

    /// Where requests were made, if that was to be noted.
    pub(crate) fn issued(&self) -> &[u64] {
        self.issued.as_deref().unwrap_or_default()
    }
}

/// A block in each MiB of `len` bytes, in random order.
fn one_in_each_mib(len: u64, state: &mut u64) -> Vec<u64> {
    let mut list: Vec<u64> = (0..len >> 20).map(|mib| mib << 8).collect();
    for last in (1..list.len()).rev() {
        let other = usize::try_from(xorshift(state) % (last as u64 + 1)).unwrap_or(last);
        list.swap(last, other);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_run_writes_once_in_each_mib_and_ends() {
        let load = Load {
            pattern: Pattern::ColdWrite,
            depth: 4,
            len: 100 << 20,
        };
        let mut pace = Pace::start(load, Duration::MAX).noted();
        for _ in 0..load.depth {
            pace.offset();
        }
        while pace.completed(1) {
            pace.offset();
        }
        let mut regions: Vec<u64> = pace.issued().iter().map(|at| at >> 20).collect();
        assert!(!regions.is_sorted(), "in random order");
        regions.sort_unstable();
        regions.dedup();
        assert_eq!(regions.len(), pace.issued().len());
        assert!(regions.len() > 100 - load.depth && regions.len() <= 100);
    }

    #[test]
    fn a_paced_run_waits_for_its_turn() {
        let load = Load {
            pattern: Pattern::RandWrite,
            depth: 1,
            len: 1 << 20,
        };
        let mut pace = Pace::start(load, Duration::MAX).at_most(0.001);
        assert_eq!(pace.early(), None, "the first comes at once");
        pace.offset();
        assert!(pace.early() > Some(Duration::from_secs(100)));
    }
}
