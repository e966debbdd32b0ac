//! The write-intent log: which regions of a disk may differ from what its twin has, after a power cut.
//!
//! ```text
//!   write --> is its region armed? --yes--------------------------------> mark, issue
//!               | no                                                       ^
//!               v                                                          |
//!             wanted --> commit: pages that changed, then one sync --> armed
//! ```
//!
//! A file on durable storage, of one disk and one relationship. A region (1 MiB) is *armed* when the
//! log durably says that it may differ. What survives a power cut of the disk and of the log, whatever
//! was not flushed is lost or torn: every region whose [`IntentLog::arm`] returned and that was not
//! disarmed is armed. More may be armed, never less.
//!
//! # Format (version 1; `docs/formats/intent.md` has it byte by byte)
//!
//! ```text
//!   | header | header | bits 1 | bits 1 | bits 2 | bits 2 | ...       pages of 4 KiB, two copies of each
//! ```
//!
//! A page has 128 bytes of head: magic, disk, relationship, page number, generation, BLAKE3 of the
//! rest. The content of the header is the size of the disk, what its files look like, and what they
//! looked like when it was closed in order. That of others is a bit for each of 31,744 regions.
//!
//! # Rules
//!
//! - **The older copy is written**, the newest valid one counts: a torn write leaves what was true
//!   before. A page of which neither copy is valid arms all its regions. Without a header nothing is
//!   known.
//! - **Synced before anybody goes on.** A region is armed in memory when the sync after its page was
//!   written has succeeded, and is still wanted then.
//! - **Forgotten at once.** A region that is disarmed is not armed in memory from this instant on; the
//!   page says so when it is next written. Whoever wants it in between waits for a commit.
//! - **Synced before it is trusted.** A process that was killed may have left pages that were written
//!   and not synced.
//! - **Both copies say the same** after a sweep ([`IntentLog::disarm`]), when the disk was opened, and
//!   when it was closed: a page that rots later is no loss. Between, one that rots before the next
//!   sweep leaves the older one: the checksum tells a page that rotted from none that was torn.
//! - A write or sync that failed is never tried again: nobody knows what the pages are then. Every
//!   later commit is refused, and whoever has the path removes the file, syncs its folder, and goes on
//!   without a log, or refuses the write. A process that is killed before it did so leaves pages that
//!   can be read and are not durable, and a sync that succeeds says nothing of them; their copies
//!   differ, so that [`IntentLog::opened`] writes them again.
//!
//! # Commits
//!
//! Whoever comes first leads: it gives way once, so that all who come in the same turn are carried,
//! takes the pages that changed, writes them, syncs, and wakes the others. Who comes meanwhile is
//! carried by the next commit. There is no task of the log: leaders are operations of guests, which run
//! to completion.
//!
//! A guest that writes where it never wrote would wait for a commit with every write. Two things keep
//! that rare; what they arm in vain is clean, and the next sweep disarms it:
//!
//! - Ahead: with a region that follows armed ones as many are armed behind it as there are before it,
//!   up to [`FARTHEST`]. Who writes from one end to the other waits once in a doubling, then once in
//!   1 GiB; and never more is armed ahead than was armed before.
//! - Around: while one commit follows the other without a pause, each arms more of the neighbourhood of
//!   what is wanted: an aligned group of 2, 4, ... up to [`WIDEST`] regions; when they come apart, it
//!   narrows step by step.

mod bits;
mod commit;
mod open;
mod page;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;

use block::{Fault, Store, Waiters};
use model::{BLOCK_SIZE, DiskId, REGION_SIZE, RelationshipId};

use bits::Bits;
pub use page::Tag;
use page::{REGIONS, place};

/// Largest disk in bytes.
const MAX_DISK: u64 = 64 << 40;
/// The page of the header.
const HEADER: usize = 0;
/// Most regions that one cold region arms, with itself; a power of two. They lie in one page.
pub const WIDEST: u64 = 1 << MAX_PRESSURE;
const MAX_PRESSURE: u32 = 6;
/// Most regions that are armed ahead of one that follows others.
pub const FARTHEST: u64 = 1024;

/// What a new log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Armed {
    /// Everything may differ.
    All,
    /// Nothing does.
    None,
}

/// What the files of a disk look like: a digest of whatever tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looks([u64; 4]);

impl Looks {
    /// Of these words, such as inode numbers, sizes and times; their number counts too.
    #[must_use]
    pub fn of(words: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for word in words {
            hasher.update(&word.to_le_bytes());
        }
        let mut looks = [0; 4];
        let digest = hasher.finalize();
        for (word, bytes) in looks.iter_mut().zip(digest.as_bytes().chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        }
        Self(looks)
    }

    /// Of files: by `content`, whatever tells that they were written to, such as sizes and times; by when
    /// they were `changed` in any way; and by how many `names` they have.
    #[must_use]
    pub fn of_files(content: &[u64], changed: &[u64], names: &[u64]) -> Self {
        let [first, second, ..] = Self::of(content).0;
        Self([first, second, Self::of(changed).0[0], Self::of(names).0[0]])
    }

    /// Whether what looked like `before` was changed since, as far as one can see. That files got or lost
    /// names is a change of them too, and none of what they hold.
    #[must_use]
    pub fn is_changed_since(&self, before: &Self) -> bool {
        let [first, second, changed, names] = self.0;
        let content = [first, second] != before.0[..2];
        content || (changed != before.0[2] && names == before.0[3])
    }
}

/// Why nothing is known from a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// It cannot be read, or made durable.
    #[error("the write-intent log cannot be read")]
    Unreadable(#[source] Fault),
    /// Both copies of the header are torn or rotten, or it was never finished, or is none.
    #[error("the write-intent log has no valid header")]
    NoHeader,
    /// It was put in the place of another.
    #[error("the write-intent log is that of disk {0}")]
    OtherDisk(DiskId),
}

/// Why the log can no longer be trusted. The file must be removed before anything is written to a
/// region that is not armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// It cannot be made, written or made durable.
    #[error("the write-intent log cannot be written")]
    Write(#[source] Fault),
    /// The disk ends before; the log itself is all right.
    #[error("region {region} is outside the write-intent log, which has {end}")]
    Outside {
        /// The first that is.
        region: u64,
        /// Number of regions.
        end: u64,
    },
    /// A disk is a multiple of 4 KiB, of 64 TiB at most; the log itself is all right.
    #[error(
        "a write-intent log of {0} bytes is not possible: 4 KiB to 64 TiB are, in steps of 4 KiB"
    )]
    Size(u64),
}

/// The regions that blocks touch.
#[must_use]
pub fn regions(blocks: &Range<u64>) -> Range<u64> {
    const BLOCKS: u64 = REGION_SIZE / BLOCK_SIZE;
    if blocks.start >= blocks.end {
        return 0..0;
    }
    blocks.start / BLOCKS..blocks.end.div_ceil(BLOCKS)
}

/// Which copy of a page is the newest.
#[derive(Debug, Clone, Copy, Default)]
struct Page {
    /// 0: neither copy is valid.
    generation: u64,
    newest: usize,
}

/// See the module. Used by the owner thread of its disk only.
pub struct IntentLog<S> {
    store: S,
    tag: Tag,
    size: Cell<u64>,
    identity: Cell<Option<Looks>>,
    closed: Cell<Option<Looks>>,
    /// What the next commit writes.
    wanted: Bits,
    /// What is durable, and wanted.
    armed: Bits,
    pages: RefCell<Vec<Page>>,
    /// Pages whose newest copy says something else than what is wanted.
    changed: RefCell<BTreeSet<usize>>,
    /// Pages whose copies differ.
    uneven: RefCell<BTreeSet<usize>>,
    /// The next commit makes copies alike.
    evens: Cell<bool>,
    leading: Cell<bool>,
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// Commits that wrote something.
    made: Cell<u64>,
    failed: Cell<Option<Fault>>,
    /// Somebody waits for a region.
    cold: Cell<bool>,
    /// How many commits followed one another without a pause, up to [`MAX_PRESSURE`].
    pressure: Cell<u32>,
    waiting: Waiters,
}

/// Rules that tests break on purpose, to see that they would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    SyncBeforeRelease,
    OlderCopy,
    ForgetAtOnce,
    SyncAtOpening,
}

#[cfg(test)]
thread_local! {
    static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
}

/// Always true outside tests.
fn keeps(rule: Rule) -> bool {
    #[cfg(test)]
    return BROKEN.get() != Some(rule);
    #[cfg(not(test))]
    {
        let _ = rule;
        true
    }
}

/// Number of regions of a disk.
fn count(size: u64) -> u64 {
    size.div_ceil(REGION_SIZE)
}

/// Number of pages of bits of a disk.
fn bit_pages(size: u64) -> usize {
    usize::try_from(count(size).div_ceil(REGIONS)).expect("a few thousand")
}

fn check(size: u64) -> Result<(), LogError> {
    if size == 0 || size > MAX_DISK || size % BLOCK_SIZE != 0 {
        return Err(LogError::Size(size));
    }
    Ok(())
}

impl<S: Store> IntentLog<S> {
    /// For which twin changes are tracked.
    pub fn relationship(&self) -> RelationshipId {
        self.tag.relationship
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size.get()
    }

    /// How many regions the disk has; the last may be shorter.
    pub fn regions(&self) -> u64 {
        count(self.size.get())
    }

    /// Whether every region of `blocks` is armed.
    pub fn is_armed(&self, blocks: &Range<u64>) -> bool {
        self.armed.all(regions(blocks))
    }

    /// How many regions are.
    pub fn armed(&self) -> u64 {
        self.armed.count()
    }

    /// The first run in `within` of regions that are.
    pub fn next_armed(&self, within: Range<u64>) -> Option<Range<u64>> {
        self.armed.next(within)
    }

    /// How often something was made durable.
    pub fn commits(&self) -> u64 {
        self.made.get()
    }

    /// What the disk's files looked like when it was opened last; none before it was.
    pub fn identity(&self) -> Option<Looks> {
        self.identity.get()
    }

    /// What they looked like when it was closed in order; none if it was not.
    pub fn closed(&self) -> Option<Looks> {
        self.closed.get()
    }

    /// Returns when `regions` are armed.
    ///
    /// # Errors
    /// [`LogError`]
    pub async fn arm(&self, regions: Range<u64>) -> Result<(), LogError> {
        let end = self.regions();
        if regions.end > end {
            let region = regions.start.max(end);
            return Err(LogError::Outside { region, end });
        }
        // Again if they were disarmed meanwhile.
        while !self.armed.all(regions.clone()) {
            self.want(regions.clone());
            self.commit().await?;
        }
        Ok(())
    }

    /// Forgets `regions`: in memory at once, durably before it returns. Both copies of what changed
    /// say the same then, unless more was armed meanwhile.
    ///
    /// # Errors
    /// [`LogError`]
    pub async fn disarm(&self, regions: &[Range<u64>]) -> Result<(), LogError> {
        let end = self.regions();
        let inside = |range: &Range<u64>| range.start.min(end)..range.end.min(end);
        for range in regions.iter().map(inside) {
            self.put(range.clone(), false);
            if keeps(Rule::ForgetAtOnce) {
                self.armed.put(range, false, |_| {});
            }
        }
        let settled = self.settle().await;
        for range in regions.iter().map(inside) {
            if !keeps(Rule::ForgetAtOnce) {
                self.armed.put(range, false, |_| {});
            }
        }
        settled
    }

    /// The disk is open and looks like `identity`: it is not closed any more, durably. Before
    /// anything is written to it.
    ///
    /// # Errors
    /// [`LogError`]
    pub async fn opened(&self, identity: Looks) -> Result<(), LogError> {
        self.identity.set(Some(identity));
        self.closed.set(None);
        self.changed.borrow_mut().insert(HEADER);
        self.settle().await
    }

    /// The disk was closed in order, flushed, and looks like `stamp`. Nothing is written to it until
    /// [`IntentLog::opened`].
    ///
    /// # Errors
    /// [`LogError`]
    pub async fn close(&self, stamp: Looks) -> Result<(), LogError> {
        self.closed.set(Some(stamp));
        self.changed.borrow_mut().insert(HEADER);
        self.settle().await
    }

    /// The disk is about to grow to `size` bytes; its new regions are armed, and the one in which it
    /// ended. A smaller size changes nothing.
    ///
    /// # Errors
    /// [`LogError`]
    pub async fn grow(&self, size: u64) -> Result<(), LogError> {
        check(size)?;
        let old = self.size.get();
        if size <= old {
            return Ok(());
        }
        let known = self.pages.borrow().len();
        let pages = bit_pages(size) + 1;
        if pages > known {
            let (at, end) = (place(known, 0), place(pages, 0));
            let made = self.store.zero(at, end - at).await;
            made.map_err(|fault| self.fail(fault))?;
        }
        self.make_room(size);
        self.put(old / REGION_SIZE..count(size), true);
        self.changed.borrow_mut().extend(known..pages);
        self.settle().await?;
        // Not before its pages: without them a cut would arm more, not less, but it need not.
        self.size.set(size);
        self.changed.borrow_mut().insert(HEADER);
        self.settle().await
    }
}
