//! Pages of a run file: checked once, when they are read, and some of them kept.

use std::sync::Arc;

use super::RunError;
use super::entry::{At, ENTRY, Entry};
use super::layout::{MAX_HEIGHT, PAGE, PageHash, RunDisk, part, u32_at};
use crate::recent::Shards;

/// Bytes before the slots.
const HEAD: usize = 16;
/// Bytes of what an inner page says of one below.
const CHILD: usize = 32;
/// Most entries in a leaf.
pub(super) const LEAF_SLOTS: usize = (PAGE - HEAD) / ENTRY;
/// Most pages that an inner page names.
pub(super) const INNER_SLOTS: usize = (PAGE - HEAD) / CHILD;

const ANOTHER: &str = "a page is another than the one above it names";

/// What an inner page says of a page below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Child {
    /// Its first entry.
    pub(super) first: At,
    /// Its place in the file.
    pub(super) page: u32,
    pub(super) hash: PageHash,
}

/// A page that is being filled.
pub(super) struct Filling {
    bytes: Box<[u8; PAGE]>,
    height: u8,
    count: u16,
    first: Option<At>,
}

impl Filling {
    pub(super) fn new(height: u8) -> Self {
        Self {
            bytes: Box::new([0; PAGE]),
            height,
            count: 0,
            first: None,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count.into()
    }

    pub(super) fn is_full(&self) -> bool {
        let slots = if self.height == 0 {
            LEAF_SLOTS
        } else {
            INNER_SLOTS
        };
        self.count() >= slots
    }

    /// The only child, if there is one.
    pub(super) fn only(&self) -> Option<Child> {
        (self.height > 0 && self.count == 1).then(|| child(&self.bytes[..], 0))
    }

    /// Into a leaf that is not full.
    pub(super) fn entry(&mut self, entry: &Entry) {
        self.first.get_or_insert(entry.at);
        let at = HEAD + self.count() * ENTRY;
        self.bytes[at..at + ENTRY].copy_from_slice(&entry.to_bytes());
        self.count += 1;
    }

    /// Into an inner page that is not full.
    pub(super) fn child(&mut self, child: &Child) {
        self.first.get_or_insert(child.first);
        let at = HEAD + self.count() * CHILD;
        let bytes = &mut self.bytes[at..at + CHILD];
        bytes[..8].copy_from_slice(&child.first.key.raw().to_le_bytes());
        bytes[8..12].copy_from_slice(&child.first.segment.to_le_bytes());
        bytes[12..16].copy_from_slice(&child.page.to_le_bytes());
        bytes[16..].copy_from_slice(&child.hash);
        self.count += 1;
    }

    /// The page as it is at `page` in the file, with its first entry; empty from now on.
    pub(super) fn take(&mut self, page: u32) -> (Box<[u8; PAGE]>, Option<At>) {
        let mut bytes = std::mem::replace(&mut self.bytes, Box::new([0; PAGE]));
        bytes[0] = self.height;
        bytes[2..4].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..12].copy_from_slice(&page.to_le_bytes());
        self.count = 0;
        (bytes, self.first.take())
    }
}

fn child(bytes: &[u8], number: usize) -> Child {
    let bytes = &bytes[HEAD + number * CHILD..][..CHILD];
    Child {
        first: At::read(&part(bytes, 0)),
        page: u32_at(bytes, 12),
        hash: part(bytes, 16),
    }
}

/// A page that was checked.
#[derive(Debug)]
pub(super) struct Page {
    bytes: Box<[u8; PAGE]>,
    count: usize,
}

/// What a page has to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) page: u32,
    pub(super) height: u8,
    /// First page that belongs to the tree.
    pub(super) tree: u32,
    pub(super) segments: u32,
    pub(super) disks: &'a [RunDisk],
    /// Whether it is the top page of a file without entries.
    pub(super) empty: bool,
}

impl Page {
    /// Checks bytes whose hash is right.
    pub(super) fn check(
        bytes: Box<[u8; PAGE]>,
        expected: &Expected<'_>,
    ) -> Result<Self, &'static str> {
        let count = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        let head_is_right = bytes[0] == expected.height
            && bytes[1] == 0
            && bytes[4..8] == [0; 4]
            && u32_at(&bytes[..], 8) == expected.page
            && bytes[12..HEAD] == [0; 4];
        if !head_is_right || (count == 0) != expected.empty {
            return Err(ANOTHER);
        }
        let (slots, slot) = if expected.height == 0 {
            (LEAF_SLOTS, ENTRY)
        } else {
            (INNER_SLOTS, CHILD)
        };
        if count > slots || bytes[HEAD + count * slot..].iter().any(|byte| *byte != 0) {
            return Err("a page has bytes set that mean nothing");
        }
        let page = Self { bytes, count };
        let mut before: Option<At> = None;
        for number in 0..count {
            let at = if expected.height == 0 {
                page.sound_entry(number, expected)?
            } else {
                page.sound_child(number, expected)?
            };
            if before.is_some_and(|before| before >= at) {
                return Err("a page is not in order");
            }
            before = Some(at);
        }
        Ok(page)
    }

    /// Whether it is the page that the one above it means: at this height, with this first entry, and
    /// all of it before `before`. A page that was read for one that names it may be named by another.
    pub(super) fn fits(
        &self,
        height: u8,
        first: At,
        before: Option<At>,
    ) -> Result<(), &'static str> {
        if self.bytes[0] != height {
            return Err(ANOTHER);
        }
        if self.count == 0 || self.at(0) != first {
            return Err("a page begins elsewhere than the one above it says");
        }
        if before.is_some_and(|end| self.at(self.count - 1) >= end) {
            return Err("two pages overlap");
        }
        Ok(())
    }

    /// Where the entry in slot `number` stands, or the first one of the page below that it names.
    fn at(&self, number: usize) -> At {
        if self.bytes[0] == 0 {
            self.entry(number).at
        } else {
            self.child(number).first
        }
    }

    fn sound_entry(&self, number: usize, expected: &Expected<'_>) -> Result<At, &'static str> {
        let entry =
            Entry::read(&self.slot(number)).map_err(|_fault| "it has an impossible entry")?;
        let key = entry.at.key;
        let disk = expected.disks.get(usize::from(key.disk()));
        if disk.is_none_or(|disk| disk.levels >> key.level() & 1 == 0) {
            return Err("an entry lies on a disk or a level that its footer does not name");
        }
        if entry.at.segment >= expected.segments {
            return Err("an entry names a segment that it does not list");
        }
        Ok(entry.at)
    }

    fn sound_child(&self, number: usize, expected: &Expected<'_>) -> Result<At, &'static str> {
        let child = self.child(number);
        // Pages are written after those that they name, so there can be no circle.
        if child.page < expected.tree || child.page >= expected.page {
            return Err("a page names one that lies outside");
        }
        Ok(child.first)
    }

    fn slot(&self, number: usize) -> [u8; ENTRY] {
        part(&self.bytes[..], HEAD + number * ENTRY)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Entry `number` of a leaf.
    pub(super) fn entry(&self, number: usize) -> Entry {
        Entry::read_unchecked(&self.slot(number))
    }

    /// Number of entries of a leaf that come before `at`, or are at it.
    pub(super) fn entries_until(&self, at: At) -> usize {
        self.partition(|number| At::read(&self.slot(number)) <= at)
    }

    /// Number of entries of a leaf that come before `at`.
    pub(super) fn entries_before(&self, at: At) -> usize {
        self.partition(|number| At::read(&self.slot(number)) < at)
    }

    /// Child `number` of an inner page.
    pub(super) fn child(&self, number: usize) -> Child {
        child(&self.bytes[..], number)
    }

    /// Number of children of an inner page that begin before `at`, or there.
    pub(super) fn children_until(&self, at: At) -> usize {
        self.partition(|number| At::read(&part(&self.bytes[..], HEAD + number * CHILD)) <= at)
    }

    /// The first slot for which `is_before` does not hold.
    fn partition(&self, is_before: impl Fn(usize) -> bool) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = usize::midpoint(low, high);
            if is_before(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// Pages that were used last, of any number of files: 4 KiB each.
#[derive(Debug)]
pub(crate) struct Pages(Shards<Arc<Page>>);

impl Pages {
    /// Keeps at least `pages`, and some more at most.
    pub(crate) fn new(pages: usize) -> Self {
        Self(Shards::new(pages))
    }

    /// Page `page` of the file that has the number `file` among those that share these pages; made
    /// with `read` if it is not here.
    pub(super) fn get(
        &self,
        file: u32,
        page: u32,
        read: impl FnOnce() -> Result<Page, RunError>,
    ) -> Result<Arc<Page>, RunError> {
        let key = u64::from(file) << 32 | u64::from(page);
        if let Some(page) = self.0.get(key) {
            return Ok(page);
        }
        let page = Arc::new(read()?);
        self.0.put(key, page.clone());
        Ok(page)
    }
}

/// Bytes of the file from page `page` on.
pub(super) fn offset(page: u32) -> u64 {
    u64::from(page) * PAGE as u64
}

const _: () = assert!(MAX_HEIGHT > 1 && LEAF_SLOTS < 1 << 16);
