//! What travels, and the twin that it reaches.

use std::cell::RefCell;
use std::rc::Rc;

use model::BLOCK_SIZE;

use super::marks::{Set, size};
use crate::flow::Piece;

/// A segment.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) pieces: Vec<(u64, Vec<u8>)>,
    /// What the disk was at the cut; a part of an initial replication is no point.
    pub(super) point: Option<Vec<u8>>,
}

impl Segment {
    pub(super) fn blocks(&self) -> Set {
        let mut set = Set::none();
        for (block, content) in &self.pieces {
            set.add(*block..block + content.len() as u64 / BLOCK_SIZE);
        }
        set
    }

    pub(super) fn apply(&self, content: &mut [u8]) {
        for (block, bytes) in &self.pieces {
            let at = size(block * BLOCK_SIZE);
            content[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

/// The other host.
pub(super) struct Twin {
    pub(super) content: Vec<u8>,
    /// Number of the segment that was applied last.
    pub(super) tip: u64,
    /// A point was committed.
    pub(super) live: bool,
}

/// What was handed over, and of it what was written into the segment.
#[derive(Default)]
pub(super) struct Written {
    pub(super) queue: RefCell<Vec<Piece>>,
    pieces: RefCell<Vec<(u64, Vec<u8>)>>,
}

pub(super) type Pieces = Rc<Written>;

impl Written {
    /// Writes one piece, if there is one.
    pub(super) fn write(&self, at: usize) {
        let mut queue = self.queue.borrow_mut();
        if queue.is_empty() {
            return;
        }
        let len = queue.len();
        let piece = queue.swap_remove(at % len);
        let bytes = piece.content.to_vec();
        self.pieces.borrow_mut().push((piece.block, bytes));
    }

    pub(super) fn finish(&self) -> Vec<(u64, Vec<u8>)> {
        while !self.queue.borrow().is_empty() {
            self.write(0);
        }
        self.pieces.take()
    }
}
