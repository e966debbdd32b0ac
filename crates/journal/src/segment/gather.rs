//! The runs of a segment that is being written, packed until its index can be.
//!
//! ```text
//!   push, in any order --> open lot --> sorted, packed --> lots --> merged --> sorted
//!                          64 Ki runs   some bytes a run
//! ```
//!
//! An epoch that is dirty at random has millions of runs of a block each, and they come nearly in the order
//! of the disk and of the frames. So a packed run says where it begins after the one before it in its lot,
//! and of its content only whether it follows that of the run before: 2 or 3 bytes mostly, 7 when they come
//! in no order at all.
//!
//! ```text
//!   (count - 1) * 4 + kind | start - start of the run before | where the content is, if ELSEWHERE
//! ```
//!
//! Each is a number of 7 bits a byte, the lowest first; the last byte has its highest bit clear. A start is
//! disk and block in one, the content's place frame and skip, as far as possible from where it was expected,
//! with the sign in the lowest bit.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::{MAX_FRAME_BLOCKS, Run, Source};

/// Runs in a lot: 1.5 MiB while it is open.
const LOT: usize = 1 << 16;

/// Bits of a start that are the block's: the largest disk has 2^34.
const BLOCK_BITS: u32 = 48;

/// Blocks that a frame has room for.
const FRAME: i64 = MAX_FRAME_BLOCKS as i64;

const ZERO: u64 = 0;
/// The content follows that of the last run of the lot that has some.
const FOLLOWS: u64 = 1;
const ELSEWHERE: u64 = 2;

/// Runs in the order in which they were pushed.
pub(super) struct Gathered {
    lot: usize,
    open: Vec<Run>,
    packed: Vec<Vec<u8>>,
    len: usize,
}

impl Gathered {
    pub(super) fn new() -> Self {
        Self::in_lots_of(LOT)
    }

    /// The outcome is the same whatever the size of a lot.
    pub(super) fn in_lots_of(lot: usize) -> Self {
        Self {
            lot,
            open: Vec::new(),
            packed: Vec::new(),
            len: 0,
        }
    }

    /// Number of runs.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, run: Run) {
        self.open.push(run);
        self.len += 1;
        if self.open.len() == self.lot {
            self.pack();
        }
    }

    fn pack(&mut self) {
        self.open.sort_unstable_by_key(start);
        let mut bytes = Vec::with_capacity(4 * self.open.len());
        let mut before = Before::default();
        for run in self.open.drain(..) {
            before.write(&run, &mut bytes);
        }
        bytes.shrink_to_fit();
        self.packed.push(bytes);
    }

    /// All of them by disk and block. A lot is freed when the last of it is given out.
    pub(super) fn sorted(mut self) -> Sorted {
        if !self.open.is_empty() {
            self.pack();
        }
        drop(self.open);
        let mut sorted = Sorted {
            lots: Vec::with_capacity(self.packed.len()),
            next: BinaryHeap::with_capacity(self.packed.len()),
        };
        for (number, bytes) in self.packed.into_iter().enumerate() {
            let (mut bytes, mut before) = (bytes.into_iter(), Before::default());
            if let Some(run) = before.read(&mut bytes) {
                sorted.next.push((Reverse(start(&run)), number));
                sorted.lots.push(Lot { run, before, bytes });
            }
        }
        sorted
    }
}

/// Where a run begins, in the order of the index.
fn start(run: &Run) -> u64 {
    u64::from(run.disk) << BLOCK_BITS | run.block
}

/// What a packed run is relative to.
#[derive(Default)]
struct Before {
    start: u64,
    /// Where the content of the next run is if it follows: 16 to a frame.
    expected: i64,
}

impl Before {
    fn write(&mut self, run: &Run, into: &mut Vec<u8>) {
        let (kind, apart) = match run.source {
            Source::Zero => (ZERO, 0),
            Source::Frame { frame, skip } => {
                let place = i64::from(frame) * FRAME + i64::from(skip);
                let apart = place - self.expected;
                self.expected = place + i64::from(run.count);
                (if apart == 0 { FOLLOWS } else { ELSEWHERE }, apart)
            }
        };
        put(into, (u64::from(run.count) - 1) << 2 | kind);
        put(into, start(run) - self.start);
        if kind == ELSEWHERE {
            put(into, apart.unsigned_abs() << 1 | u64::from(apart < 0));
        }
        self.start = start(run);
    }

    /// The next of the runs that [`Before::write`] wrote; none at the end.
    fn read(&mut self, bytes: &mut impl Iterator<Item = u8>) -> Option<Run> {
        let head = take(bytes)?;
        let count = u32::try_from((head >> 2) + 1).ok()?;
        self.start += take(bytes)?;
        let kind = head & 3;
        if kind == ELSEWHERE {
            let apart = take(bytes)?;
            let distance = i64::try_from(apart >> 1).ok()?;
            self.expected += if apart & 1 == 0 { distance } else { -distance };
        }
        let source = if kind == ZERO {
            Source::Zero
        } else {
            let (frame, skip) = (self.expected / FRAME, self.expected % FRAME);
            self.expected += i64::from(count);
            Source::Frame {
                frame: u32::try_from(frame).ok()?,
                skip: u8::try_from(skip).ok()?,
            }
        };
        Some(Run {
            disk: u16::try_from(self.start >> BLOCK_BITS).ok()?,
            block: self.start & ((1 << BLOCK_BITS) - 1),
            count,
            source,
        })
    }
}

fn put(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    into.push(number.to_le_bytes()[0]);
}

fn take(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = bytes.next()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
        shift += 7;
    }
}

/// A lot that is being merged with others.
struct Lot {
    /// The next one.
    run: Run,
    before: Before,
    bytes: std::vec::IntoIter<u8>,
}

/// The runs by disk and block.
pub(super) struct Sorted {
    lots: Vec<Lot>,
    /// Where the next run of each lot begins; none of one that is used up.
    next: BinaryHeap<(Reverse<u64>, usize)>,
}

impl Iterator for Sorted {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        // In place: the lot that had the first run mostly has the next one too.
        let mut first = self.next.peek_mut()?;
        let lot = &mut self.lots[first.1];
        let run = lot.run;
        match lot.before.read(&mut lot.bytes) {
            Some(next) => {
                first.0 = Reverse(start(&next));
                lot.run = next;
            }
            None => {
                PeekMut::pop(first);
                lot.bytes = Vec::new().into_iter();
            }
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn runs() -> impl Strategy<Value = Vec<Run>> {
        let source = prop_oneof![
            Just(Source::Zero),
            (any::<u32>(), 0..16_u8).prop_map(|(frame, skip)| Source::Frame { frame, skip }),
            (0..3_u32, 0..16_u8).prop_map(|(frame, skip)| Source::Frame { frame, skip }),
        ];
        let block = prop_oneof![0..20_u64, 0..1_u64 << 34, Just((1 << BLOCK_BITS) - 1)];
        let count = prop_oneof![Just(1), 1..17_u32, 1..=u32::MAX];
        let run = (0..16_u16, block, count, source).prop_map(|(disk, block, count, source)| Run {
            disk,
            block,
            count,
            source,
        });
        vec(run, 0..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: crate::cases(200), ..ProptestConfig::default() })]

        #[test]
        fn runs_in_any_order_come_back_sorted_whatever_the_size_of_a_lot(
            runs in runs(), lot in 1..80_usize,
        ) {
            let mut gathered = Gathered::in_lots_of(lot);
            for run in &runs {
                gathered.push(*run);
            }
            prop_assert_eq!(gathered.len(), runs.len());
            let sorted: Vec<Run> = gathered.sorted().collect();
            prop_assert!(sorted.is_sorted_by_key(start));
            // Runs that begin at one block may change places: the segment is refused anyway.
            let whole = |mut runs: Vec<Run>| {
                runs.sort_by_key(|run| run.to_bytes());
                runs
            };
            prop_assert_eq!(whole(sorted), whole(runs));
        }
    }
}
