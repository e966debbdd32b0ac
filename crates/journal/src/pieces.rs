//! The blocks of one disk that the segments of a point hold: newest wins.

use crate::{Run, Source};

/// Consecutive blocks whose newest content is in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) block: u64,
    pub(crate) count: u32,
    /// Position of the segment in the point's list, the oldest first.
    pub(crate) segment: u32,
    pub(crate) source: Source,
}

impl Piece {
    pub(crate) fn new(segment: u32, run: &Run) -> Self {
        Self {
            block: run.block,
            count: run.count,
            segment,
            source: run.source,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.block + u64::from(self.count)
    }

    /// Its part from `block` on; `block` lies in it.
    fn from(mut self, block: u64) -> Self {
        let cut = u32::try_from(block - self.block).expect("less than its own count");
        self.block = block;
        self.count -= cut;
        if let Source::Frame { skip, .. } = &mut self.source {
            *skip += u8::try_from(cut).expect("a frame has 16 blocks");
        }
        self
    }

    /// Its part before `block`, which lies in it.
    fn until(mut self, block: u64) -> Self {
        self.count = u32::try_from(block - self.block).expect("less than its own count");
        self
    }
}

/// Lays `newer` over `older`; both sorted and without overlap, as is the result.
fn lay_over(older: Vec<Piece>, newer: &[Piece]) -> Vec<Piece> {
    let mut result = Vec::with_capacity(older.len() + newer.len());
    let mut newer = newer.iter().copied().peekable();
    for mut piece in older {
        loop {
            match newer.peek() {
                // Ends before the older piece begins.
                Some(top) if top.end() <= piece.block => {
                    result.push(*top);
                    newer.next();
                }
                // Covers something of it.
                Some(top) if top.block < piece.end() => {
                    if piece.block < top.block {
                        result.push(piece.until(top.block));
                    }
                    if top.end() >= piece.end() {
                        break;
                    }
                    piece = piece.from(top.end());
                    result.push(*top);
                    newer.next();
                }
                _ => {
                    result.push(piece);
                    break;
                }
            }
        }
    }
    result.extend(newer);
    result
}

/// Builds the pieces of a disk from its segments, the oldest first. Lists are joined in pairs of
/// equal age, so that n runs in m segments cost n log m steps; what is covered is dropped early.
/// (A logarithmic number of sorted files, merged in the background, takes the place of this when
/// journals have more segments than memory wants to hold.)
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// With the number of segments in each as a power of two, the largest first.
    levels: Vec<(u32, Vec<Piece>)>,
}

impl Layers {
    /// Adds the pieces of the next newer segment, sorted.
    pub(crate) fn push(&mut self, pieces: Vec<Piece>) {
        let (mut height, mut top) = (0, pieces);
        while self
            .levels
            .last()
            .is_some_and(|(other, _)| *other == height)
        {
            let (_, below) = self.levels.pop().unwrap_or_default();
            top = lay_over(below, &top);
            height += 1;
        }
        self.levels.push((height, top));
    }

    pub(crate) fn finish(self) -> Vec<Piece> {
        let mut levels = self.levels.into_iter().rev().map(|(_, pieces)| pieces);
        let top = levels.next().unwrap_or_default();
        let mut all = levels.fold(top, |top, below| lay_over(below, &top));
        all.shrink_to_fit();
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn runs() -> impl Strategy<Value = Vec<(u64, u32, bool)>> {
        // Distance to the run before, length, zero or not.
        vec((0..12_u64, 1..=16_u32, any::<bool>()), 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: crate::cases(300), ..ProptestConfig::default() })]

        #[test]
        fn each_block_comes_from_the_newest_segment_that_holds_it(segments in vec(runs(), 0..20)) {
            let mut layers = Layers::default();
            let mut model = BTreeMap::new();
            for (segment, runs) in (0..).zip(&segments) {
                let (mut block, mut pieces) = (0, Vec::new());
                for (frame, (distance, count, zero)) in (0..).zip(runs) {
                    block += distance;
                    let source = if *zero { Source::Zero } else { Source::Frame { frame, skip: 0 } };
                    pieces.push(Piece { block, count: *count, segment, source });
                    for number in 0..*count {
                        let skip = u8::try_from(number).expect("below 16");
                        let source = if *zero { Source::Zero } else { Source::Frame { frame, skip } };
                        model.insert(block + u64::from(number), (segment, source));
                    }
                    block += u64::from(*count);
                }
                layers.push(pieces);
            }
            let pieces = layers.finish();
            prop_assert!(pieces.windows(2).all(|pair| pair[0].end() <= pair[1].block));
            let mut found = BTreeMap::new();
            for piece in pieces {
                prop_assert!(piece.count > 0);
                for block in piece.block..piece.end() {
                    let part = piece.from(block);
                    found.insert(block, (part.segment, part.source));
                }
            }
            prop_assert_eq!(found, model);
        }
    }
}
