//! For the fuzz targets: the hashes of a segment, put right.

use super::layout::{ENTRY_LEN, FOOTER_LEN, Footer, FrameEntry, PRELUDE_LEN, Prelude};
use super::merkle::Tree;

/// Makes every hash in `bytes` that of what it stands for. What does not lie inside is left.
pub(crate) fn mend(bytes: &mut [u8]) {
    let (Some(prelude), Some(footer_at)) = (
        bytes.first_chunk::<PRELUDE_LEN>().copied(),
        bytes.len().checked_sub(FOOTER_LEN),
    ) else {
        return;
    };
    let Ok(read) = Prelude::read(&prelude) else {
        return;
    };
    let frames_at = PRELUDE_LEN + read.header_len as usize;
    let Some(header) = bytes.get(PRELUDE_LEN..frames_at) else {
        return;
    };
    let header_hash = Prelude::hash(&prelude, header);
    bytes[16..PRELUDE_LEN].copy_from_slice(&header_hash);
    let mut end = [0; FOOTER_LEN];
    end.copy_from_slice(&bytes[footer_at..]);
    let hash = blake3::hash(&end[..88]);
    end[88..120].copy_from_slice(hash.as_bytes());
    let Ok(mut footer) = Footer::read(&end) else {
        return;
    };
    if let Some(root) = root(bytes, &header_hash, &footer, footer_at) {
        footer.summary.root = root;
    }
    bytes[footer_at..].copy_from_slice(&footer.to_bytes());
}

/// The root of what the footer points at, with the hash of each frame put right.
fn root(
    bytes: &mut [u8],
    header_hash: &[u8; 32],
    footer: &Footer,
    footer_at: usize,
) -> Option<crate::Root> {
    let (table, index) = (
        usize::try_from(footer.table).ok()?,
        usize::try_from(footer.index).ok()?,
    );
    bytes.get(table..index)?;
    bytes.get(index..footer_at)?;
    let mut tree = Tree::new(header_hash);
    for (number, at) in (0..).zip((table..index).step_by(ENTRY_LEN)) {
        let mut entry = FrameEntry::read(number, bytes.get(at..at + ENTRY_LEN)?).ok()?;
        let from = usize::try_from(entry.at).ok()?;
        let stored = bytes.get(from..from.checked_add(entry.stored_len as usize)?)?;
        entry.hash = *blake3::hash(stored).as_bytes();
        bytes[at..at + ENTRY_LEN].copy_from_slice(&entry.to_bytes());
        tree.frame(&entry);
    }
    Some(tree.finish(blake3::hash(&bytes[index..footer_at])))
}
