//! Reads a run file that may be damaged.

use std::sync::Arc;

use durable::File;

use super::RunError;
use super::entry::{At, Entry};
use super::layout::{Footer, MEMBER, Member, PAGE, PageHash, RunDisk, list_pages, page_hash};
use super::page::{Expected, Page, Pages, offset};

/// Bytes of the list of segments read at once.
const BATCH: usize = 1600 * MEMBER;

/// An open run file. It keeps the file, the footer and the top page. Any thread may read.
#[derive(Debug)]
pub(crate) struct RunFile {
    file: Arc<dyn File>,
    footer: Footer,
    /// Of the footer.
    hash: blake3::Hash,
    top: Arc<Page>,
    /// Its number among the files that share [`Pages`].
    number: u32,
}

/// A leaf, and what surrounds it.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    page: Arc<Page>,
    /// The first entry of the next leaf.
    next: Option<At>,
}

impl RunFile {
    /// Opens a file that does not change from now on. Footer and top page are checked, other pages
    /// when they are read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn open(file: Arc<dyn File>) -> Result<Self, RunError> {
        let len = file.size().map_err(|source| RunError::Io {
            action: "read",
            source,
        })?;
        let at = len
            .checked_sub(PAGE as u64)
            .ok_or(RunError::Damaged("it is shorter than an empty one"))?;
        let mut bytes = Box::new([0; PAGE]);
        read(&*file, at, &mut bytes[..])?;
        let footer = Footer::read(&bytes, len)?;
        let hash = blake3::hash(&bytes[..]);
        let (page, height, top_hash) = (footer.top, footer.height, &footer.top_hash);
        let bytes = read_page(&*file, page, top_hash)?;
        let top = checked(bytes, &footer, page, height)?;
        Ok(Self {
            file,
            hash,
            top: Arc::new(top),
            footer,
            number: 0,
        })
    }

    /// The same, with a number of its own among the files that are read with the same [`Pages`].
    pub(super) fn numbered(self, number: u32) -> Self {
        Self { number, ..self }
    }

    /// That of its footer: names all that it says.
    pub(crate) fn hash(&self) -> blake3::Hash {
        self.hash
    }

    /// Number of entries, as it states.
    pub(crate) fn entries(&self) -> u64 {
        self.footer.entries
    }

    /// Number of segments that it covers.
    pub(crate) fn segments(&self) -> u32 {
        self.footer.segments
    }

    /// The disks, in the order in which entries count them.
    pub(crate) fn disks(&self) -> &[RunDisk] {
        &self.footer.disks
    }

    /// Calls `visit` with each segment that it covers, the oldest first. What was visited counts only
    /// when this succeeds.
    ///
    /// # Errors
    /// A list that does not verify, a failed read.
    pub(crate) fn members(&self, mut visit: impl FnMut(u32, Member)) -> Result<(), RunError> {
        let mut hasher = blake3::Hasher::new();
        let mut left = self.footer.segments as usize * MEMBER;
        let (mut at, mut number, mut before) = (0, 0, None);
        let mut bytes = vec![0; BATCH.min(left)];
        while left > 0 {
            let bytes = &mut bytes[..BATCH.min(left)];
            read(&*self.file, at, bytes)?;
            hasher.update(bytes);
            for bytes in bytes.chunks_exact(MEMBER) {
                let member = Member::read(bytes);
                if before.is_some_and(|before| before >= member.sequence) {
                    return Err(RunError::Damaged("it lists its segments out of order"));
                }
                before = Some(member.sequence);
                visit(number, member);
                number += 1;
            }
            at += bytes.len() as u64;
            left -= bytes.len();
        }
        if hasher.finalize() != self.footer.list_hash {
            return Err(RunError::Damaged("its list of segments does not verify"));
        }
        // To the end of its last page.
        let mut rest = [0; PAGE];
        let len = usize::try_from(at.next_multiple_of(PAGE as u64) - at).unwrap_or(PAGE);
        let rest = &mut rest[..len];
        read(&*self.file, at, rest)?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(RunError::Damaged("it has bytes set that mean nothing"));
        }
        Ok(())
    }

    /// The last entry that is at `at` or before it.
    ///
    /// # Errors
    /// A damaged page, a failed read.
    #[cfg(test)]
    pub(crate) fn last_until(&self, pages: &Pages, at: At) -> Result<Option<Entry>, RunError> {
        Ok(self.leaf(pages, at)?.last_until(at))
    }

    /// The leaf that has the last entry at `at` or before it; the first leaf if there is none.
    ///
    /// # Errors
    /// A damaged page, a failed read.
    pub(crate) fn leaf(&self, pages: &Pages, at: At) -> Result<Leaf, RunError> {
        let mut page = self.top.clone();
        let mut next = None;
        for height in (0..self.footer.height).rev() {
            let number = page.children_until(at).saturating_sub(1);
            if number + 1 < page.count() {
                next = Some(page.child(number + 1).first);
            }
            let child = page.child(number);
            page = pages.get(self.number, child.page, || {
                let bytes = read_page(&*self.file, child.page, &child.hash)?;
                checked(bytes, &self.footer, child.page, height)
            })?;
            page.fits(height, child.first, next)
                .map_err(RunError::Damaged)?;
        }
        Ok(Leaf { page, next })
    }

    /// All entries, in order.
    pub(crate) fn iter(&self) -> Entries<'_> {
        Entries {
            file: self,
            // What is above a leaf is needed for each of them.
            pages: Pages::new(16),
            leaf: None,
            used: 0,
            ended: false,
        }
    }
}

impl Leaf {
    /// Whether the last entry of the file that is at `at` or before it is here, if there is one.
    pub(crate) fn has(&self, at: At) -> bool {
        self.page.count() > 0
            && self.page.entry(0).at <= at
            && self.next.is_none_or(|next| at < next)
    }

    /// The last entry of this leaf that is at `at` or before it.
    pub(crate) fn last_until(&self, at: At) -> Option<Entry> {
        let number = self.page.entries_until(at).checked_sub(1)?;
        Some(self.page.entry(number))
    }

    /// The first entry of this leaf that is at `at` or after it.
    pub(crate) fn first_from(&self, at: At) -> Option<Entry> {
        let number = self.page.entries_before(at);
        (number < self.page.count()).then(|| self.page.entry(number))
    }

    /// The first entry of the next leaf.
    pub(crate) fn next(&self) -> Option<At> {
        self.next
    }
}

/// The entries of a file, in order. Ends after the first error.
pub(crate) struct Entries<'a> {
    file: &'a RunFile,
    pages: Pages,
    leaf: Option<Leaf>,
    used: usize,
    ended: bool,
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, RunError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let from = match &self.leaf {
            Some(leaf) if self.used < leaf.page.count() => None,
            Some(leaf) => Some(leaf.next),
            None => Some(Some(At {
                key: super::Key::from_raw(0),
                segment: 0,
            })),
        };
        match from {
            None => {}
            Some(None) => return None,
            Some(Some(at)) => match self.file.leaf(&self.pages, at) {
                Ok(leaf) => (self.leaf, self.used) = (Some(leaf), 0),
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            },
        }
        let leaf = self.leaf.as_ref()?;
        let entry = (self.used < leaf.page.count()).then(|| leaf.page.entry(self.used));
        self.used += 1;
        entry.map(Ok)
    }
}

fn checked(
    bytes: Box<[u8; PAGE]>,
    footer: &Footer,
    page: u32,
    height: u8,
) -> Result<Page, RunError> {
    let expected = Expected {
        page,
        height,
        tree: u32::try_from(list_pages(footer.segments)).unwrap_or(u32::MAX),
        segments: footer.segments,
        disks: &footer.disks,
        empty: footer.entries == 0,
    };
    Page::check(bytes, &expected).map_err(RunError::Damaged)
}

fn read_page(file: &dyn File, page: u32, hash: &PageHash) -> Result<Box<[u8; PAGE]>, RunError> {
    let mut bytes = Box::new([0; PAGE]);
    read(file, offset(page), &mut bytes[..])?;
    if page_hash(&bytes) == *hash {
        Ok(bytes)
    } else {
        Err(RunError::Damaged("a page does not verify"))
    }
}

fn read(file: &dyn File, at: u64, into: &mut [u8]) -> Result<(), RunError> {
    file.read_at(at, into).map_err(|source| RunError::Io {
        action: "read",
        source,
    })
}
