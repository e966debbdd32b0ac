//! Retention: which points go, and those in the middle are put into their next newer ones.
//!
//! ```text
//!   points    3    4    5    6    7            the policy keeps 3, 6 and 7
//!     begin   nothing is changed
//!     run     one file with what segments 4, 5 and 6 hold; read back, synced
//!     finish  index: 3, 6 (since 3), 7         points 4 and 5 are gone from here on
//!             remove the files of segments 4, 5 and 6
//! ```
//!
//! The oldest ones go by a [merge](crate::Merge). Until `finish` the journal is what it was; a crash
//! leaves a file that the index does not name.
//!
//! Whoever reads a point reads the segments up to it, whose files would be gone. So nothing at or
//! below a point that is pinned or open is touched, and `finish` does nothing if one was pinned
//! or opened meanwhile. A lock only keeps its own point.
//!
//! However long a point is open, segments do not pile up below it: none comes there any more. Those at or
//! below it are at most what the policy left when it was opened; what comes later lies above, and is
//! thinned as ever. What is below is thinned once the point is closed.
//!
//! Where the base has to stay as it is, the oldest points go into each other instead
//! ([`Journal::begin_thin_oldest`]), so that they take no more for it than about twice what differs from
//! the base:
//!
//! ```text
//!   base (stays)   [1 . . . 9]   10 11 12 .. 40    50 51 52     the policy keeps 50 and newer
//!                  [1 . . . . . . . . . . . . 40]  50 51 52     once 10 to 40 are as long as 1 to 9
//! ```
//!
//! Some more points are kept than the policy wants, [`PARTS`] and a few: what is short waits for more
//! of it, what is long for as much again. So a byte is written again when what it lies in doubles, and no
//! more often. What one segment does not hold (256 GiB) stays apart.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use durable::{File, Folder, Need};
use jiff::Timestamp;
use model::{Bytes, Going, Keep, PointId};

use crate::index::{Base, Change, Entry, Place, SEGMENTS};
use crate::packs::whole;
use crate::squash::{MAX_SEGMENTS, Plan, SquashError};
use crate::{Journal, JournalError, SegmentReader, Summary};

/// What is being written. It is none of the journal's: removed when it is opened.
pub(crate) const NEW: &str = "segments/new";

/// Most segments of points that are to go, where these cannot go into the base, before short ones are put
/// together without the long ones beside them.
pub(crate) const PARTS: usize = if cfg!(test) { 4 } else { 64 };

/// Neighbouring segments on their way into one. Borrows nothing, so that it can run on another
/// thread while the journal goes on taking points in.
#[derive(Debug)]
pub struct Thin {
    folder: Arc<dyn Folder>,
    /// The oldest first; the last one's point stays.
    entries: Vec<Entry>,
    /// Only one merge at a time.
    token: Arc<()>,
}

/// One segment that is durable, and can take the place of others.
#[derive(Debug)]
pub struct Thinned {
    entries: Vec<Entry>,
    /// None: one segment does not hold as much.
    summary: Option<Summary>,
    _token: Arc<()>,
}

/// Of neighbours, which are so long, those to put together: all of them if it is worth it, so that none of
/// their bytes is written again before there is as much beside it. Where it is not, or `can` says no to
/// all, some of them on one side of the longest; if it is not, only if `parts`.
fn worthwhile<E>(
    lens: &[u64],
    among: Range<usize>,
    parts: bool,
    can: &impl Fn(Range<usize>) -> Result<bool, E>,
) -> Result<Option<Range<usize>>, E> {
    let of = |at: &usize| lens[*at];
    let Some(longest) = among.clone().max_by_key(of).filter(|_| among.len() > 1) else {
        return Ok(None);
    };
    let sum: u64 = lens[among.clone()].iter().sum();
    let worth = sum - lens[longest] >= lens[longest];
    if worth && can(among.clone())? {
        return Ok(Some(among));
    }
    if !worth && !parts {
        return Ok(None);
    }
    for side in [among.start..longest, longest + 1..among.end] {
        if let Some(found) = worthwhile(lens, side, parts, can)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Segments that one does not hold, by the numbers of the first and the last. They are not tried again
/// while the journal is open.
pub(crate) type Unfit = std::collections::BTreeSet<(u64, u64)>;

impl Thin {
    /// The points that will be gone, the oldest first.
    pub fn gone(&self) -> impl Iterator<Item = PointId> + '_ {
        let stays = self.entries.len().saturating_sub(1);
        self.entries[..stays].iter().map(|entry| entry.point)
    }

    /// Writes the one segment beside the others, reads it back and syncs it.
    ///
    /// # Errors
    /// A damaged segment, no space, a failed read or write. The journal is what it was.
    pub fn run(self) -> Result<Thinned, JournalError> {
        let outcome = self.write();
        if !matches!(outcome, Ok(Some(_))) {
            // If it cannot be removed, opening the journal removes it.
            let _ = self.folder.remove(NEW);
        }
        Ok(Thinned {
            summary: outcome?,
            entries: self.entries,
            _token: self.token,
        })
    }

    fn write(&self) -> Result<Option<Summary>, JournalError> {
        let mut readers = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            // Checked as if it came from outside: it is about to be the only copy.
            let name = entry.file();
            let reader = SegmentReader::of(entry.open(&*self.folder)?)
                .map_err(|source| JournalError::segment(&name, source))?;
            if reader.summary().root != entry.stored {
                return Err(JournalError::NotOffered(name));
            }
            readers.push(reader);
        }
        let failed = |error| match error {
            SquashError::Read { number, source } => {
                JournalError::segment(&self.entries[number].file(), source)
            }
            SquashError::Write(source) => JournalError::segment(NEW, source),
            SquashError::Unfit(fault) => JournalError::Impossible(fault),
        };
        let plan = match Plan::of(&readers) {
            Ok(plan) => plan,
            Err(SquashError::Unfit(fault)) => {
                tracing::debug!(fault, "segments stay apart");
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let file = self
            .folder
            .create(NEW)
            .map_err(|source| JournalError::io("create", NEW, source))?;
        let into = Appended {
            file: file.clone(),
            len: 0,
        };
        let header = plan.header().clone();
        let (summary, _) = plan.write(into).map_err(failed)?;
        let wrong = |source| JournalError::segment(NEW, source);
        let written = SegmentReader::of(file.clone()).map_err(wrong)?;
        if *written.summary() != summary || *written.header() != header {
            return Err(JournalError::NotOffered(NEW.to_owned()));
        }
        written.verify_all().map_err(wrong)?;
        file.sync()
            .map_err(|source| JournalError::io("sync", NEW, source))?;
        Ok(Some(summary))
    }
}

/// A file that is written from its beginning.
struct Appended {
    file: Arc<dyn File>,
    len: u64,
}

impl Write for Appended {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(self.len, bytes)?;
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Journal {
    /// What `keep` wants to go.
    fn going(&self, keep: &Keep, now: Timestamp) -> Vec<Going> {
        self.going_with(None, keep, now)
    }

    /// The same with a point more, which is the newest.
    fn going_with(
        &self,
        next: Option<(PointId, Timestamp)>,
        keep: &Keep,
        now: Timestamp,
    ) -> Vec<Going> {
        let points = self.index.points();
        let points = points.map(|(_, entry)| (entry.point, entry.time));
        let points: Vec<_> = points.chain(next).collect();
        let held = |point: PointId| {
            let pinned = self.index.pins.iter().any(|pin| pin.point == point);
            pinned || self.leases.holds(point) || self.locked(point, now).is_some()
        };
        keep.judge(&points, held, now)
    }

    /// Whether [`Journal::begin_merge`] is to be called: the oldest point goes by `keep`, or a merge
    /// was interrupted.
    #[must_use]
    pub fn wants_merge(&self, keep: &Keep, now: Timestamp) -> bool {
        self.merges_due(keep, now) > 0
    }

    /// How often [`Journal::begin_merge`] may be called without asking again, which looks at all points: so
    /// many of the oldest go by `keep`, or a merge was interrupted. Points that come meanwhile change
    /// nothing of that.
    #[must_use]
    pub fn merges_due(&self, keep: &Keep, now: Timestamp) -> usize {
        let going = self.going(keep, now);
        let merges = going.iter().take_while(|it| matches!(it, Going::Merge(_)));
        usize::from(self.index.base == Base::Merging) + merges.count()
    }

    /// The same as if a point that waits for room had come at `now`: points go that are too old then, which
    /// they never are while none comes. The newest one stays.
    #[must_use]
    pub fn merges_due_before_next(&self, keep: &Keep, now: Timestamp) -> usize {
        let Some(newest) = self.index.newest() else {
            return 0;
        };
        let next = PointId {
            sequence: newest.point.sequence.saturating_add(1),
            ..newest.point
        };
        let going = self.going_with(Some((next, now)), keep, now);
        let merges = going.iter().take_while(|it| matches!(it, Going::Merge(_)));
        merges.count().min(self.index.segments.len())
    }

    /// What the segments take that would go into the base by `keep`.
    #[must_use]
    pub fn due_len(&self, keep: &Keep, now: Timestamp) -> Bytes {
        let going = self.going(keep, now);
        let len = |step: &Going| match step {
            Going::Merge(point) => match self.index.find(*point) {
                Some((Some(_), entry)) => Some(entry.file_len.0),
                _ => Some(0),
            },
            Going::Squash { .. } => None,
        };
        Bytes(going.iter().map_while(len).sum())
    }

    /// The next points to put into a newer one by `keep`; none if there are none, or if the file
    /// system has less left than that takes and `reserve`. What this journal [owes](Journal::owed) need not be
    /// free meanwhile: nothing else is merged in it, and it owes less afterwards.
    ///
    /// # Errors
    /// [`JournalError::Busy`] while something is merged; the space that is left cannot be told.
    pub fn begin_thin(
        &mut self,
        keep: &Keep,
        now: Timestamp,
        reserve: Bytes,
    ) -> Result<Option<Thin>, JournalError> {
        self.settle()?;
        if self.is_merging() {
            return Err(JournalError::Busy);
        }
        for step in self.going(keep, now) {
            let Going::Squash {
                points,
                into,
                lasts,
            } = step
            else {
                continue;
            };
            let Some(entries) = self.group(&points, into, lasts) else {
                continue;
            };
            if self.has_room(&entries.iter().collect::<Vec<_>>(), reserve)? {
                return Ok(Some(self.thin(entries)));
            }
        }
        Ok(None)
    }

    /// The next of the oldest points that go by `keep` to put together, where the base has to stay as it
    /// is; as [`Journal::begin_thin`]. The newest of them stays, until it goes with others.
    ///
    /// # Errors
    /// As [`Journal::begin_thin`].
    pub fn begin_thin_oldest(
        &mut self,
        keep: &Keep,
        now: Timestamp,
        reserve: Bytes,
    ) -> Result<Option<Thin>, JournalError> {
        self.settle()?;
        if self.is_merging() {
            return Err(JournalError::Busy);
        }
        let untouched = self.read_up_to();
        let mut entries = Vec::new();
        for step in self.going(keep, now) {
            let Going::Merge(point) = step else {
                break;
            };
            match self.index.find(point) {
                Some((Some(position), entry))
                    if Some(point.sequence) > untouched && self.is_free(position) =>
                {
                    entries.push(entry);
                }
                // The base is, or somebody reads what lies above it.
                _ => {}
            }
        }
        let parts = entries.len() > PARTS;
        for some in entries.chunks(MAX_SEGMENTS) {
            let lens: Vec<_> = some.iter().map(|entry| entry.file_len.0).collect();
            let can = |range: Range<usize>| {
                let some = &some[range];
                Ok::<_, JournalError>(!self.is_unfit(some) && self.has_room(some, reserve)?)
            };
            if let Some(found) = worthwhile(&lens, 0..some.len(), parts, &can)? {
                let entries = some[found].iter().copied().cloned().collect();
                return Ok(Some(self.thin(entries)));
            }
        }
        Ok(None)
    }

    fn thin(&self, entries: Vec<Entry>) -> Thin {
        Thin {
            folder: self.folder.clone(),
            entries,
            token: self.merge.clone(),
        }
    }

    /// Whether the file system has room for all of `entries` once more, and `reserve`.
    fn has_room(&self, entries: &[&Entry], reserve: Bytes) -> Result<bool, JournalError> {
        let len: u64 = entries.iter().map(|entry| entry.file_len.0).sum();
        let free = self
            .folder
            .free()
            .map_err(|source| JournalError::io("measure", "", source))?;
        let has = len.saturating_add(reserve.0) <= free;
        if !has {
            tracing::debug!(len, free, "no room for putting segments together");
        }
        Ok(has)
    }

    /// Whether one segment is known not to hold these, or some of them.
    fn is_unfit(&self, entries: &[&Entry]) -> bool {
        let numbers = |entry: &&Entry| entry.point.sequence;
        let (Some(first), Some(last)) = (entries.first().map(numbers), entries.last().map(numbers))
        else {
            return false;
        };
        let mut unfit = self.unfit.iter();
        unfit.any(|(from, to)| first <= *from && *to <= last)
    }

    /// The segments to put together now, the oldest first, if it is worth that.
    fn group(&self, points: &[PointId], into: PointId, lasts: bool) -> Option<Vec<Entry>> {
        let untouched = self.read_up_to();
        let mut entries = Vec::new();
        for point in points.iter().chain([&into]) {
            // Below what somebody reads.
            if Some(point.sequence) <= untouched {
                continue;
            }
            match self.index.find(*point) {
                Some((Some(position), entry)) if self.is_free(position) => {
                    entries.push(entry.clone());
                }
                _ => return None,
            }
        }
        let lens = || entries.iter().map(|entry| entry.file_len.0);
        let (sum, largest): (u64, u64) = (lens().sum(), lens().max().unwrap_or(0));
        // Each byte is written again only when it comes to twice as many.
        if !lasts && sum - largest < largest {
            return None;
        }
        entries.truncate(MAX_SEGMENTS);
        let unfit = |entries: &[Entry]| match (entries.first(), entries.last()) {
            (Some(first), Some(last)) => {
                let numbers = (first.point.sequence, last.point.sequence);
                self.unfit.contains(&numbers)
            }
            _ => false,
        };
        while entries.len() > 1 && unfit(&entries) {
            entries.truncate(entries.len().div_ceil(2).max(1));
        }
        (entries.len() > 1).then_some(entries)
    }

    /// The number of the newest point that somebody reads, or may: segments up to it stay as they are.
    fn read_up_to(&self) -> Option<u64> {
        let pins = self.index.pins.iter().map(|pin| pin.point.sequence);
        pins.chain(self.leases.newest()).max()
    }

    /// Whether the segment at `position` does not hide a mixture.
    fn is_free(&self, position: usize) -> bool {
        position > 0 || self.index.base != Base::Merging
    }

    /// Publishes that one segment is in the place of others, and removes their files. Tells whether it
    /// is: not if one segment does not hold as much, or if a point in the way was pinned, locked or
    /// opened meanwhile.
    ///
    /// # Errors
    /// The index cannot be replaced, or the segments are not of this journal. Files that cannot be
    /// removed are removed when the journal is opened next.
    pub fn finish_thin(&mut self, thinned: Thinned, now: Timestamp) -> Result<bool, JournalError> {
        self.settle()?;
        let (Some(oldest), Some(newest)) = (thinned.entries.first(), thinned.entries.last()) else {
            return Err(JournalError::NotBegun);
        };
        let (first, last) = (oldest.point.sequence, newest.point.sequence);
        let Some(summary) = thinned.summary else {
            self.unfit.insert((first, last));
            return Ok(false);
        };
        let mut by = Entry {
            since: oldest.since,
            stored: summary.root,
            place: Place::Own,
            file_len: summary.file_len,
            content: summary.content,
            zeroes: summary.zeroes,
            ..newest.clone()
        };
        let gone = &thinned.entries[..thinned.entries.len() - 1];
        let in_the_way = self.read_up_to() >= Some(first)
            || gone
                .iter()
                .any(|entry| self.locked(entry.point, now).is_some());
        if in_the_way {
            self.discard(NEW);
            return Ok(false);
        }
        let start = self.index.position(first).unwrap_or(usize::MAX);
        let here = self.index.segments.iter().skip(start);
        let stored = |entry: &Entry| (entry.point, entry.stored);
        if !here
            .take(thinned.entries.len())
            .map(stored)
            .eq(thinned.entries.iter().map(stored))
        {
            return Err(JournalError::NotBegun);
        }
        // They may lie elsewhere by now.
        let mut files: Vec<_> = self
            .index
            .segments
            .range(start..start + thinned.entries.len())
            .cloned()
            .collect();
        let mut needs = Vec::new();
        if by.file_len.0 <= self.packs.small {
            let file = self
                .folder
                .open_read(NEW)
                .and_then(|file| whole(&*file))
                .map_err(|source| JournalError::io("read", NEW, source))?;
            (by.place, needs) = self.pack(&file)?;
            self.discard(NEW);
        } else {
            let name = by.file();
            self.folder
                .rename(NEW, &name)
                .map_err(|source| JournalError::io("publish", &name, source))?;
            needs.push(Need::Names(self.folder.clone(), SEGMENTS));
        }
        let file = by.file();
        self.publish(vec![Change::Squash { first, by }], needs)?;
        // If the newest one hides all the others, it is what it was.
        files.retain(|entry| entry.file() != file);
        self.remove_files(&files);
        self.drop_bases();
        self.tidy_packs();
        Ok(true)
    }

    /// Merges and thins until `keep` holds or points are in the way. Gives the numbers of merges, and
    /// of times that segments were put together.
    ///
    /// # Errors
    /// As [`Journal::merge_oldest`], [`Journal::begin_thin`], [`Thin::run`] and
    /// [`Journal::finish_thin`].
    pub fn retain(&mut self, keep: &Keep, now: Timestamp) -> Result<(u32, u32), JournalError> {
        let (mut merges, mut thinned) = (0, 0);
        while self.wants_merge(keep, now) && self.merge_oldest(now)?.is_none() {
            merges += 1;
        }
        while let Some(thin) = self.begin_thin(keep, now, Bytes(0))? {
            let done = thin.run()?;
            thinned += u32::from(self.finish_thin(done, now)?);
        }
        Ok((merges, thinned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Chance;

    /// Each point changes some of so many bytes; put together, the same bytes are there once.
    #[test]
    fn what_goes_is_at_most_twice_what_differs_in_few_segments_and_is_not_written_often() {
        const DIFFERS: u64 = 1 << 24;
        for seed in 0..20 {
            let mut chance = Chance::new(seed);
            let (mut lens, mut came, mut written) = (Vec::<u64>::new(), 0, 0);
            for number in 0..4000 {
                // Little for long, then much; the first one is what a failover left to send.
                let limit = [64, 1 << 10, 1 << 17][chance.index(3)];
                let len = match number {
                    0 => DIFFERS / 2,
                    _ => 1 + chance.below(limit),
                };
                lens.push(len);
                came += len;
                let can = |_| Ok::<_, ()>(true);
                while let Some(found) =
                    worthwhile(&lens, 0..lens.len(), lens.len() > PARTS, &can).expect("none")
                {
                    let sum: u64 = lens[found.clone()].iter().sum();
                    let one = sum.min(DIFFERS);
                    written += one;
                    lens.splice(found, [one]);
                }
                let sum: u64 = lens.iter().sum();
                assert!(sum < 2 * DIFFERS, "{sum} after {number}");
                assert!(lens.len() <= PARTS + 40, "{lens:?}");
            }
            assert!(
                came > 4 * DIFFERS && written < 8 * came,
                "{written} of {came}"
            );
        }
    }

    #[test]
    fn what_may_not_be_put_together_is_left_out_and_its_neighbours_are_not() {
        let lens = [5, 9, 1, 1, 2, 9, 4, 4];
        let all = |range: Range<usize>| Ok::<_, ()>(range.len() < 8);
        let found = worthwhile(&lens, 0..8, false, &all).expect("none");
        assert_eq!(
            found,
            Some(0..5),
            "older than the newest of the two longest"
        );
        let none = |_: Range<usize>| Ok::<_, ()>(false);
        assert_eq!(worthwhile(&lens, 0..8, true, &none), Ok(None));
        assert_eq!(
            worthwhile(&[9, 1, 1], 0..3, false, &|_| Ok::<_, ()>(true)),
            Ok(None)
        );
        assert_eq!(
            worthwhile(&[9, 1, 1], 0..3, true, &|_| Ok::<_, ()>(true)),
            Ok(Some(1..3))
        );
    }
}
