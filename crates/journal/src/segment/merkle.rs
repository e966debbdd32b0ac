//! The tree whose root is the identity of a segment: that of RFC 6962, section 2.1, with BLAKE3.

use super::layout::FrameEntry;
use crate::Root;

/// Leaves are pushed in order: header, frames, index. Memory: one hash per level.
pub(super) struct Tree {
    /// Roots of complete subtrees, the largest first, with their heights.
    subtrees: Vec<(u32, [u8; 32])>,
}

impl Tree {
    /// `header` is the hash that the prelude carries.
    pub(super) fn new(header: &[u8; 32]) -> Self {
        let mut tree = Self {
            subtrees: Vec::with_capacity(32),
        };
        tree.push(leaf(b'H', header));
        tree
    }

    pub(super) fn frame(&mut self, entry: &FrameEntry) {
        self.push(leaf(b'F', &entry.to_bytes()));
    }

    /// `index` is the hash of all bytes of the index.
    pub(super) fn finish(mut self, index: blake3::Hash) -> Root {
        self.push(leaf(b'I', index.as_bytes()));
        let mut subtrees = self.subtrees.into_iter().rev().map(|(_, hash)| hash);
        let last = subtrees.next().expect("the header was pushed");
        Root(subtrees.fold(last, |right, left| node(&left, &right)))
    }

    fn push(&mut self, leaf: [u8; 32]) {
        let (mut height, mut hash) = (0, leaf);
        while let Some((_, left)) = self.subtrees.last().filter(|(other, _)| *other == height) {
            hash = node(left, &hash);
            height += 1;
            self.subtrees.pop();
        }
        self.subtrees.push((height, hash));
    }
}

fn leaf(kind: u8, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[0, kind]).update(bytes);
    hasher.finalize().into()
}

fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[1]).update(left).update(right);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962 by the letter.
    fn by_definition(leaves: &[[u8; 32]]) -> [u8; 32] {
        if let [only] = leaves {
            return *only;
        }
        let split = leaves.len().next_power_of_two() / 2;
        node(
            &by_definition(&leaves[..split]),
            &by_definition(&leaves[split..]),
        )
    }

    #[test]
    fn the_tree_built_leaf_by_leaf_is_that_of_the_definition() {
        for frames in 0..40_u32 {
            let header = [7; 32];
            let index = blake3::hash(b"index");
            let mut tree = Tree::new(&header);
            let mut leaves = vec![leaf(b'H', &header)];
            for number in 0..frames {
                let entry = FrameEntry {
                    at: number.into(),
                    stored_len: 1,
                    content_len: 4096,
                    hash: [9; 32],
                };
                tree.frame(&entry);
                leaves.push(leaf(b'F', &entry.to_bytes()));
            }
            leaves.push(leaf(b'I', index.as_bytes()));
            assert_eq!(tree.finish(index), Root(by_definition(&leaves)), "{frames}");
        }
    }
}
