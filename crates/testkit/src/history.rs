//! What a disk may read as, after operations that overlapped in time.
//!
//! Every write has content of its own in every sector, so that a sector tells who wrote it. A sector
//! may read as a change that was begun, unless another one was begun after it ended and ended before
//! the read began. After a power cut only those count as ended that a later flush covered.

use std::ops::Range;

use crate::Rng;

const SECTOR: usize = 512;

struct Change {
    sectors: Range<usize>,
    bytes: Vec<u8>,
    begun: u64,
    /// When it was answered.
    ended: Option<u64>,
    /// When its process was killed before.
    killed: Option<u64>,
}

impl Change {
    fn content(&self, sector: usize) -> &[u8] {
        &self.bytes[(sector - self.sectors.start) * SECTOR..][..SECTOR]
    }
}

/// See the module.
pub struct History {
    salt: u64,
    initial: Vec<u8>,
    changes: Vec<Change>,
    by_sector: Vec<Vec<usize>>,
    /// When the latest flush that succeeded was begun.
    flushed: u64,
    time: u64,
}

fn sectors(at: u64, len: usize) -> Range<usize> {
    let first = usize::try_from(at).expect("small") / SECTOR;
    first..first + len / SECTOR
}

impl History {
    /// Of a disk that reads as `content`, durably.
    #[must_use]
    pub fn new(content: Vec<u8>, salt: u64) -> Self {
        let by_sector = vec![Vec::new(); content.len() / SECTOR];
        Self {
            salt,
            initial: content,
            changes: Vec::new(),
            by_sector,
            flushed: 0,
            time: 1,
        }
    }

    /// The instant, which is another one at each call.
    pub fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// A change is issued. Its number, and what it writes.
    pub fn begin(&mut self, at: u64, len: usize, zero: bool) -> (usize, Vec<u8>) {
        let number = self.changes.len();
        let begun = self.now();
        let sectors = sectors(at, len);
        for sector in sectors.clone() {
            self.by_sector[sector].push(number);
        }
        let bytes = if zero {
            vec![0; len]
        } else {
            Rng::new(self.salt ^ ((number as u64) << 32)).bytes(len)
        };
        self.changes.push(Change {
            sectors,
            bytes: bytes.clone(),
            begun,
            ended: None,
            killed: None,
        });
        (number, bytes)
    }

    /// A change was answered.
    pub fn end(&mut self, number: usize) {
        self.changes[number].ended = Some(self.now());
    }

    /// A flush that was begun at `begun` was answered.
    pub fn flushed(&mut self, begun: u64) {
        self.flushed = self.flushed.max(begun);
    }

    /// What was not answered never will be.
    pub fn kill(&mut self) {
        let now = self.now();
        for change in &mut self.changes {
            if change.ended.is_none() && change.killed.is_none() {
                change.killed = Some(now);
            }
        }
    }

    /// Checks what a read from byte `at` on gave, which was begun at `begun`.
    ///
    /// # Panics
    /// When a sector holds what it cannot.
    pub fn check(&self, at: u64, bytes: &[u8], begun: u64) {
        self.check_as(at, bytes, |ended| ended < begun);
    }

    /// Checks what the whole disk reads as after a power cut.
    ///
    /// # Panics
    /// When a sector holds what it cannot.
    pub fn check_durable(&self, bytes: &[u8]) {
        self.check_as(0, bytes, |ended| ended < self.flushed);
    }

    fn check_as(&self, at: u64, bytes: &[u8], counts: impl Fn(u64) -> bool) {
        for (sector, seen) in sectors(at, bytes.len()).zip(bytes.chunks(SECTOR)) {
            let changes = || self.by_sector[sector].iter().map(|n| &self.changes[*n]);
            let last = changes()
                .filter(|change| change.ended.is_some_and(&counts))
                .map(|change| change.begun)
                .max();
            let well = changes().any(|change| {
                let over = change.ended.or(change.killed);
                let current = over.is_none_or(|over| last.is_none_or(|last| over > last));
                current && seen == change.content(sector)
            });
            let initial = || last.is_none() && seen == &self.initial[sector * SECTOR..][..SECTOR];
            assert!(
                well || initial(),
                "sector {sector} holds {}",
                self.tell(sector, seen)
            );
        }
    }

    fn tell(&self, sector: usize, seen: &[u8]) -> String {
        let who = self.by_sector[sector]
            .iter()
            .find(|number| seen == self.changes[**number].content(sector));
        match who {
            Some(number) => {
                let Change {
                    sectors,
                    begun,
                    ended,
                    killed,
                    ..
                } = &self.changes[*number];
                format!(
                    "change {number} of sectors {sectors:?}, begun at {begun}, ended at {ended:?}, \
                     killed at {killed:?}, which was overwritten; the last flush began at {}",
                    self.flushed
                )
            }
            None if seen == &self.initial[sector * SECTOR..][..SECTOR] => {
                "what it held at first, which was overwritten".to_owned()
            }
            None => format!("what was never written there: {:02x?}...", &seen[..8]),
        }
    }
}
