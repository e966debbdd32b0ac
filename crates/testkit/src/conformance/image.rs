//! The suite of images.

use std::ops::{ControlFlow, Range};

use block::{Fault, Image, Place};

use super::{SECTOR, size};
use crate::Rng;

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
