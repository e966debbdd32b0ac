//! What is asked of a server or a file, the same for all of them.

use std::sync::atomic::{AtomicU64, Ordering};
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
}

impl Pattern {
    /// As it is spelled in figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RandRead => "randread4k",
            Self::RandWrite => "randwrite4k",
            Self::SeqRead => "seqread1m",
            Self::SeqWrite => "seqwrite1m",
        }
    }

    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::RandWrite | Self::SeqWrite)
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

/// The offsets of a run, and its end.
pub(crate) struct Pace {
    start: Instant,
    duration: Duration,
    blocks: u64,
    block: u64,
    random: Option<u64>,
    next: u64,
    done: u64,
}

impl Pace {
    /// Starts now.
    pub(crate) fn start(load: Load, duration: Duration) -> Self {
        let block = load.pattern.block() as u64;
        // Odd, for xorshift never leaves zero.
        let seed = SEED.fetch_add(0x632b_e59b_d9b4_e01a, Ordering::Relaxed) | 1;
        Self {
            start: Instant::now(),
            duration,
            blocks: load.len / block,
            block,
            random: (!load.pattern.is_sequential()).then_some(seed),
            next: 0,
            done: 0,
        }
    }

    /// Where the next request goes.
    pub(crate) fn offset(&mut self) -> u64 {
        let block = match &mut self.random {
            Some(random) => {
                // xorshift64: a server cannot guess it, and it costs nothing.
                *random ^= *random << 13;
                *random ^= *random >> 7;
                *random ^= *random << 17;
                *random
            }
            None => self.next,
        };
        self.next += 1;
        block % self.blocks * self.block
    }

    /// Counts `completed` requests; whether others follow.
    pub(crate) fn completed(&mut self, completed: usize) -> bool {
        self.done += completed as u64;
        self.start.elapsed() < self.duration
    }

    /// Requests that completed, and since when the run goes on.
    pub(crate) fn end(self) -> (u64, Duration) {
        (self.done, self.start.elapsed())
    }
}
