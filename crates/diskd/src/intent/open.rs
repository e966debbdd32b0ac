//! A log that is begun, and one that is found.

use std::cell::{Cell, RefCell};

use block::{Buffer, Store, Waiters};
use model::DiskId;

use super::bits::Bits;
use super::page::{Content, PAGE, REGIONS, WORDS, newest, place};
use super::{
    Armed, HEADER, IntentLog, LogError, Looks, Page, Rule, Tag, Unknown, bit_pages, check, keeps,
};

impl<S: Store> IntentLog<S> {
    /// Begins a log of a disk of `size` bytes in `store`; what was in it is gone. The caller syncs the
    /// folder of a new file.
    ///
    /// # Errors
    /// [`LogError`]. A log that was not finished is [`Unknown::NoHeader`] later.
    pub async fn create(store: S, tag: Tag, size: u64, armed: Armed) -> Result<Self, LogError> {
        check(size)?;
        let log = Self::empty(store, tag, size);
        // What was there must not be taken for a part of this one. It takes its space, too.
        let pages = log.pages.borrow().len();
        let cleared = log.store.zero(0, place(pages, 0)).await;
        cleared.map_err(LogError::Write)?;
        log.store.sync().await.map_err(LogError::Write)?;
        if armed == Armed::All {
            log.wanted.put(0..log.regions(), true, |_| {});
        }
        log.changed.borrow_mut().extend(1..pages);
        log.settle().await?;
        log.changed.borrow_mut().insert(HEADER);
        log.settle().await?;
        Ok(log)
    }

    /// Opens the log of `disk` in `store`.
    ///
    /// # Errors
    /// [`Unknown`]: everything may differ.
    pub async fn open(store: S, disk: DiskId) -> Result<Self, Unknown> {
        if keeps(Rule::SyncAtOpening) {
            store.sync().await.map_err(Unknown::Unreadable)?;
        }
        let copies = read(&store, HEADER).await?;
        let uneven = !are_even(&copies);
        let (copy, header) = newest(copies).ok_or(Unknown::NoHeader)?;
        if header.tag.disk != disk {
            return Err(Unknown::OtherDisk(header.tag.disk));
        }
        let size = header.words[0];
        if check(size).is_err() {
            return Err(Unknown::NoHeader);
        }
        let log = Self::empty(store, header.tag, size);
        log.closed.set(looks(&header.words[1..]));
        log.identity.set(looks(&header.words[6..]));
        log.found(HEADER, Some((copy, &header)), uneven);
        let mut invalid = 0;
        for number in 1..=bit_pages(size) {
            if !log.load(number).await? {
                invalid += 1;
            }
        }
        // Bits behind the end of the disk are none: it was about to grow.
        let room = bit_pages(size) as u64 * REGIONS;
        log.wanted.put(log.regions()..room, false, |_| {});
        log.armed.join(0, &log.wanted.all_words(), &log.wanted);
        if invalid > 0 {
            let of = bit_pages(size);
            tracing::warn!(
                %disk, invalid, of,
                "pages of the write-intent log are not valid: all that they cover may differ"
            );
        }
        Ok(log)
    }

    /// Takes over what the copies of a page of bits say. False if neither is valid.
    async fn load(&self, number: usize) -> Result<bool, Unknown> {
        let copies = read(&self.store, number).await?;
        let copies = copies.map(|copy| copy.filter(|copy| copy.tag == self.tag));
        let uneven = !are_even(&copies);
        let newest = newest(copies);
        if let Some((copy, content)) = &newest {
            self.found(number, Some((*copy, content)), uneven);
            self.wanted.fill(number - 1, &content.words);
        } else {
            self.found(number, None, uneven);
            self.wanted.fill(number - 1, &[u64::MAX; WORDS]);
            // Both are to be written.
            self.changed.borrow_mut().insert(number);
        }
        Ok(newest.is_some())
    }

    fn found(&self, number: usize, newest: Option<(usize, &Content)>, uneven: bool) {
        if let Some((copy, content)) = newest {
            self.pages.borrow_mut()[number] = Page {
                generation: content.generation,
                newest: copy,
            };
        }
        if uneven {
            self.uneven.borrow_mut().insert(number);
        }
    }

    fn empty(store: S, tag: Tag, size: u64) -> Self {
        let log = Self {
            store,
            tag,
            size: Cell::new(size),
            identity: Cell::new(None),
            closed: Cell::new(None),
            wanted: Bits::default(),
            armed: Bits::default(),
            pages: RefCell::default(),
            changed: RefCell::default(),
            uneven: RefCell::default(),
            evens: Cell::new(false),
            leading: Cell::new(false),
            begun: Cell::new(0),
            ended: Cell::new(0),
            made: Cell::new(0),
            failed: Cell::new(None),
            cold: Cell::new(false),
            pressure: Cell::new(0),
            waiting: Waiters::default(),
        };
        log.make_room(size);
        log
    }

    pub(super) fn make_room(&self, size: u64) {
        let pages = bit_pages(size);
        self.wanted.grow(pages);
        self.armed.grow(pages);
        self.pages.borrow_mut().resize(pages + 1, Page::default());
    }
}

/// As [`IntentLog::header`] writes them.
fn looks(words: &[u64]) -> Option<Looks> {
    let looks = words[1..5].try_into().map(Looks).ok()?;
    (words[0] == 1).then_some(looks)
}

/// Both copies of a page, as far as they are valid.
async fn read<S: Store>(store: &S, number: usize) -> Result<[Option<Content>; 2], Unknown> {
    let done = store.read(place(number, 0), Buffer::zeroed(2 * PAGE)).await;
    done.outcome.map_err(Unknown::Unreadable)?;
    let bytes = done
        .buffer
        .map(|buffer| buffer.to_vec())
        .unwrap_or_default();
    let copy = |at: usize| {
        let content = bytes.get(at * PAGE..(at + 1) * PAGE);
        let content = content.and_then(Content::unseal);
        content.filter(|content| content.number == number as u64)
    };
    Ok([copy(0), copy(1)])
}

fn are_even(copies: &[Option<Content>; 2]) -> bool {
    match copies {
        [Some(first), Some(second)] => first.words == second.words && first.tag == second.tag,
        _ => false,
    }
}
