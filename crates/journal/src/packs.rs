//! A segment wherever it lies: in a file of its own, or in a pack.
//!
//! ```text
//!   packs/7.pack   | segment | gone | segment | gone | gone |         full: nothing is appended
//!   packs/8.pack   | segment | segment | ...                          the current one
//! ```
//!
//! A pack is only appended to, and its number is never used again. It is removed when all of its segments
//! are gone; when most of it is gone the others are copied to the current one before, or to a new one if it is
//! the current one, so that a store which is full of points that go has room. Nothing of it is durable, nor known to be whole, before the flush of the record that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use durable::{File, Folder, Need};
use model::{BLOCK_SIZE, Bytes};

use crate::index::{Change, Entry, Index, Note, PACKS, Place, pack_file};
use crate::{Journal, JournalError, Root, SegmentReader};

/// Longest segment that is put into a pack.
const SMALL: u64 = 1 << 20;
/// A pack that is this long is full.
const FULL: u64 = 64 << 20;
/// A pack of which less than this part is left is mostly gone.
const LEFT: u64 = 4;
/// The current pack is not copied before it is this long: that would be done again and again.
const WORTH: u64 = 64 << 10;

/// Where the next segment after one of `len` bytes begins: no block of a file holds two.
pub(crate) fn aligned(len: u64) -> u64 {
    len.div_ceil(BLOCK_SIZE).saturating_mul(BLOCK_SIZE)
}

/// The packs of a journal.
#[derive(Debug)]
pub(crate) struct Packs {
    /// [`SMALL`], [`FULL`], [`LEFT`] and [`WORTH`]; tests have less.
    pub(crate) small: u64,
    pub(crate) full: u64,
    pub(crate) left: u64,
    pub(crate) worth: u64,
    lens: BTreeMap<u32, u64>,
    current: Option<Current>,
    /// Those of which something cannot be read: they stay until they are empty, or the journal is
    /// opened next.
    unfit: BTreeSet<u32>,
}

/// The one that is appended to.
#[derive(Debug)]
struct Current {
    number: u32,
    file: Arc<dyn File>,
    end: u64,
    /// Its name is durable.
    is_named: bool,
}

impl Packs {
    /// Those that `index` names.
    pub(crate) fn of(folder: &dyn Folder, index: &Index) -> Result<Self, JournalError> {
        let mut packs = Self {
            small: SMALL,
            full: FULL,
            left: LEFT,
            worth: WORTH,
            lens: BTreeMap::new(),
            current: None,
            unfit: BTreeSet::new(),
        };
        for number in index.sums.packs.keys().copied() {
            let name = pack_file(number);
            let opened = folder.open(&name).and_then(|file| {
                let len = file.size()?;
                Ok((file, len))
            });
            let (file, len) = opened.map_err(|source| JournalError::io("open", &name, source))?;
            packs.lens.insert(number, len);
            // Whatever a crash left at its end is not written over.
            packs.current = Some(Current {
                number,
                file,
                end: aligned(len),
                is_named: true,
            });
        }
        Ok(packs)
    }

    /// Bytes of packs that hold no segment.
    pub(crate) fn gone(&self, index: &Index) -> u64 {
        let lens: u64 = self.lens.values().sum();
        let live: u64 = index.sums.packs.values().map(|live| live.bytes).sum();
        lens.saturating_sub(live)
    }

    /// Most bytes of segments that go one by one which their packs keep meanwhile: a pack is removed when the
    /// last one goes, and copied before that if there is room.
    pub(crate) fn most_kept(&self, index: &Index) -> u64 {
        let live: u64 = index.sums.packs.values().map(|live| live.bytes).sum();
        // One from which the oldest go, and one with others from among them that were put together.
        live.min(self.full.saturating_mul(2))
    }

    /// Puts a segment at the end of the current pack, or of a new one. Gives the place, and what has
    /// to be flushed.
    fn append(
        &mut self,
        folder: &Arc<dyn Folder>,
        index: &Index,
        bytes: &[u8],
    ) -> Result<(Place, Vec<Need>), JournalError> {
        let len = bytes.len() as u64;
        let limit = self.full;
        let is_full = |current: &Current| current.end.saturating_add(len) > limit;
        if self.current.as_ref().is_some_and(is_full) {
            self.current = None;
        }
        let current = match &mut self.current {
            Some(current) => current,
            none => {
                let number = index
                    .next_pack
                    .max(self.lens.keys().max().map_or(1, |last| last + 1));
                let name = pack_file(number);
                let file = folder
                    .create(&name)
                    .map_err(|source| JournalError::io("create", &name, source))?;
                self.lens.insert(number, 0);
                none.insert(Current {
                    number,
                    file,
                    end: 0,
                    is_named: false,
                })
            }
        };
        let at = current.end;
        current
            .file
            .write_at(at, bytes)
            .map_err(|source| JournalError::io("append to", &pack_file(current.number), source))?;
        current.end = at + aligned(len);
        self.lens.insert(current.number, current.end);
        let mut needs = vec![Need::Content(current.file.clone())];
        if !current.is_named {
            needs.push(Need::Names(folder.clone(), PACKS));
        }
        let place = Place::Pack {
            pack: current.number,
            at,
        };
        Ok((place, needs))
    }

    /// The next segment begins a new pack.
    pub(crate) fn close(&mut self) {
        self.current = None;
    }

    fn is_current(&self, number: u32) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|current| current.number == number)
    }

    /// The current one, and where it ends.
    fn end(&self) -> Option<(u32, u64)> {
        self.current
            .as_ref()
            .map(|current| (current.number, current.end))
    }

    /// What was appended since `end` was where it ended is written over.
    fn back_to(&mut self, end: Option<(u32, u64)>) {
        if let (Some(current), Some((number, end))) = (&mut self.current, end) {
            if current.number == number {
                current.end = end;
                self.lens.insert(number, end);
            }
        }
    }

    /// The names of all of them are durable.
    pub(crate) fn are_named(&mut self) {
        if let Some(current) = &mut self.current {
            current.is_named = true;
        }
    }

    /// Forgets packs that hold nothing any more; their numbers.
    fn take_empty(&mut self, index: &Index) -> Vec<u32> {
        if self.lens.len() == index.sums.packs.len() {
            return Vec::new();
        }
        let empty = self.lens.keys().copied();
        let empty: Vec<_> = empty
            .filter(|number| !index.sums.packs.contains_key(number))
            .collect();
        for number in &empty {
            self.lens.remove(number);
        }
        if let Some(current) = &self.current {
            if empty.contains(&current.number) {
                self.current = None;
            }
        }
        empty
    }

    /// A pack that is mostly gone.
    fn mostly_gone(&self, index: &Index) -> Option<u32> {
        let live = |number: &u32| index.sums.packs.get(number).map_or(0, |live| live.bytes);
        let mut packs = self.lens.iter().filter(|(number, len)| {
            (!self.is_current(**number) || **len >= self.worth)
                && !self.unfit.contains(number)
                && live(number).saturating_mul(self.left) < **len
        });
        packs.next().map(|(number, _)| *number)
    }
}

impl Journal {
    /// Puts a segment into a pack. Gives the place, and what has to be flushed with the record that
    /// names it.
    pub(crate) fn pack(&mut self, bytes: &[u8]) -> Result<(Place, Vec<Need>), JournalError> {
        self.packs.append(&self.folder, &self.index, bytes)
    }

    /// Removes the files of segments that the index does not name any more, durably, and packs of which
    /// nothing is left. A file that cannot be removed is when the journal is opened next.
    pub(crate) fn remove_files(&mut self, gone: &[Entry]) {
        let own = gone.iter().filter(|entry| entry.place == Place::Own);
        let packs = self.packs.take_empty(&self.index);
        let packs = packs.into_iter().map(pack_file);
        for name in own.map(Entry::file).chain(packs) {
            if let Err(error) = self.folder.remove(&name) {
                tracing::warn!(file = name, %error, "cannot remove what is not needed any more");
            }
        }
    }

    /// After segments went: makes room in packs that are mostly gone. Without that everything is as
    /// good, but for the space.
    pub(crate) fn tidy_packs(&mut self) {
        if let Err(error) = self.repack() {
            tracing::warn!(%error, "a pack of segments takes more space than it holds");
        }
    }

    /// Copies what is left of a pack that is mostly gone to the current one, and removes it.
    fn repack(&mut self) -> Result<(), JournalError> {
        let Some(number) = self.packs.mostly_gone(&self.index) else {
            return Ok(());
        };
        let left = self.left_of(number).inspect_err(|_| {
            self.packs.unfit.insert(number);
        })?;
        if self.packs.is_current(number) {
            self.packs.close();
        }
        let end = self.packs.end();
        if let Err(error) = self.move_to_current(&left) {
            // Nothing names what was appended.
            self.packs.back_to(end);
            return Err(error);
        }
        self.remove_files(&[]);
        Ok(())
    }

    /// The segments in pack `number`, with their points' sequence numbers. They are verified: what is
    /// damaged stays where it is, because after a crash its copy would be taken for one that was torn.
    fn left_of(&self, number: u32) -> Result<Vec<(u64, Arc<Memory>)>, JournalError> {
        let mut left = Vec::new();
        for entry in &self.index.segments {
            if !matches!(entry.place, Place::Pack { pack, .. } if pack == number) {
                continue;
            }
            let name = entry.file();
            let failed = |source| JournalError::segment(&name, source);
            let bytes = whole(&*entry.open(&*self.folder)?)
                .map_err(|source| JournalError::io("read", &name, source))?;
            let bytes = Arc::new(Memory(bytes));
            let reader = SegmentReader::of(bytes.clone()).map_err(failed)?;
            if reader.summary().root != entry.stored {
                return Err(JournalError::NotOffered(name));
            }
            reader.verify_all().map_err(failed)?;
            left.push((entry.point.sequence, bytes));
        }
        Ok(left)
    }

    fn move_to_current(&mut self, segments: &[(u64, Arc<Memory>)]) -> Result<(), JournalError> {
        let (mut changes, mut needs) = (Vec::new(), Vec::new());
        for (sequence, bytes) in segments {
            let (place, more) = self.pack(&bytes.0)?;
            changes.push(Change::Note(Note::Moved {
                sequence: *sequence,
                place,
            }));
            needs.extend(more);
        }
        self.publish(changes, needs)
    }
}

/// All of a file.
pub(crate) fn whole(file: &dyn File) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.size()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// A file in memory that is only read.
#[derive(Debug)]
pub(crate) struct Memory(pub(crate) Vec<u8>);

impl File for Memory {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let end = start.saturating_add(into.len());
        match self.0.get(start..end) {
            Some(bytes) => into.copy_from_slice(bytes),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn write_at(&self, _at: u64, _from: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.size()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A part of a file, as if it were the whole. It is only read.
#[derive(Debug)]
struct Part {
    file: Arc<dyn File>,
    at: u64,
    len: u64,
}

impl File for Part {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_at(self.at + at, into)
    }

    fn write_at(&self, _at: u64, _from: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn size(&self) -> io::Result<u64> {
        // As much of it as there is: a file that was cut short is found by its reader.
        let left = self.file.size()?.saturating_sub(self.at);
        Ok(self.len.min(left))
    }

    fn allocated(&self) -> io::Result<u64> {
        self.size()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl Entry {
    /// First byte of the segment in its file.
    pub(crate) fn start(&self) -> u64 {
        match self.place {
            Place::Own => 0,
            Place::Pack { at, .. } => at,
        }
    }

    /// The stored segment, for reading.
    pub(crate) fn open(&self, folder: &dyn Folder) -> Result<Arc<dyn File>, JournalError> {
        self.place.open(folder, self.stored, self.file_len)
    }
}

impl Place {
    /// The segment `stored` of `len` bytes, for reading.
    pub(crate) fn open(
        self,
        folder: &dyn Folder,
        stored: Root,
        len: Bytes,
    ) -> Result<Arc<dyn File>, JournalError> {
        let name = self.file(stored);
        let file = folder
            .open_read(&name)
            .map_err(|source| JournalError::io("open", &name, source))?;
        Ok(self.within(file, len))
    }

    /// The segment of `len` bytes in the file that holds it.
    pub(crate) fn within(self, file: Arc<dyn File>, len: Bytes) -> Arc<dyn File> {
        match self {
            Self::Own => file,
            Self::Pack { at, .. } => Arc::new(Part {
                file,
                at,
                len: len.0,
            }),
        }
    }
}
