//! For the fuzz target: files, their hashes put right, and all of them read.

use std::collections::BTreeMap;
use std::sync::Arc;

use durable::File;
use model::DiskId;

use super::entry::{Entry, LEVELS};
use super::layout::{Footer, MEMBER, PAGE, page_hash, part, u32_at};
use super::page::offset;
use super::{At, Key, Member, Pages, RunError, RunFile, RunWriter};
use crate::Source;

/// Makes every hash in `bytes` that of what it stands for, if what it stands for lies inside.
pub(crate) fn mend(bytes: &mut [u8]) {
    let Some(at) = bytes.len().checked_sub(PAGE) else {
        return;
    };
    let (body, footer) = bytes.split_at_mut(at);
    let Some(footer) = footer.first_chunk_mut::<PAGE>() else {
        return;
    };
    let list = u32_at(footer, 16) as usize * MEMBER;
    if let Some(list) = body.get(..list) {
        footer[48..80].copy_from_slice(blake3::hash(list).as_bytes());
    }
    let (top, height) = (u32_at(footer, 20), footer[80].min(8));
    if let Some(hash) = mend_page(body, top, height, &mut BTreeMap::new()) {
        footer[32..48].copy_from_slice(&hash);
    }
    Footer::seal(footer);
}

/// The hash of the page, after those of the pages that it names were put right. Each is done once.
fn mend_page(
    body: &mut [u8],
    page: u32,
    height: u8,
    done: &mut BTreeMap<u32, [u8; 16]>,
) -> Option<[u8; 16]> {
    if let Some(hash) = done.get(&page) {
        return Some(*hash);
    }
    let at = usize::try_from(offset(page)).ok()?;
    let mut bytes: [u8; PAGE] = part(body.get(at..at + PAGE)?, 0);
    if height > 0 {
        let count = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        for child in bytes[16..].chunks_exact_mut(32).take(count) {
            let below = u32_at(child, 12);
            // As a reader wants it, so that this ends.
            if below < page {
                if let Some(hash) = mend_page(body, below, height - 1, done) {
                    child[16..].copy_from_slice(&hash);
                }
            }
        }
        body[at..at + PAGE].copy_from_slice(&bytes);
    }
    let hash = page_hash(&bytes);
    done.insert(page, hash);
    Some(hash)
}

/// Reads all of a run file in each way that there is.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// When two ways do not agree.
pub(crate) fn read(file: Arc<dyn File>) -> Result<u64, RunError> {
    let file = RunFile::open(file)?;
    file.members(|_, _| {})?;
    let pages = Pages::new(4);
    let mut before: Option<At> = None;
    let mut count = 0;
    for entry in file.iter() {
        let entry = entry?;
        let at = entry.at;
        let order = before.is_none_or(|before| before < at);
        assert!(order, "entries come in order");
        assert!(at.key.disk() < u8::try_from(file.disks().len()).unwrap_or(u8::MAX));
        assert!(at.segment < file.segments());
        assert!(at.key.blocks().contains(&at.key.start()));
        let leaf = file.leaf(&pages, at)?;
        assert!(leaf.has(at));
        assert_eq!(leaf.last_until(at), Some(entry), "each is found");
        assert_eq!(leaf.first_from(at), Some(entry), "each is found");
        (before, count) = (Some(at), count + 1);
    }
    let end = At {
        key: Key::from_raw(u64::MAX),
        segment: u32::MAX,
    };
    let last = file.leaf(&pages, end)?.last_until(end);
    assert_eq!(last.map(|entry| entry.at), before);
    Ok(count)
}

/// A file with `blocks` single blocks of one disk, and some zeroes, in two segments.
///
/// # Errors
/// None that is expected.
pub(crate) fn example(blocks: u64) -> Result<Vec<u8>, RunError> {
    let members = (1..=2).map(|sequence| Member {
        sequence,
        root: crate::Root([7; 32]),
    });
    let mut writer = RunWriter::create(Vec::new(), &[DiskId(uuid::Uuid::from_u128(7))], members)?;
    for block in 0..blocks {
        let at = At {
            key: Key::of(0, 0, block * 3),
            segment: u32::from(block % 2 == 1),
        };
        let source = Source::Frame { frame: 5, skip: 1 };
        writer.push(&Entry { at, source })?;
    }
    for level in 1..if blocks == 0 { 1 } else { LEVELS } {
        for segment in 0..2 {
            let key = Key::of(level, 0, 1 << 40);
            let at = At { key, segment };
            let source = Source::Zero;
            writer.push(&Entry { at, source })?;
        }
    }
    Ok(writer.finish()?.1)
}
