//! A folder in memory whose power can be cut.
//!
//! Beside what every reader sees it keeps what a power cut is sure to leave,
//! and the changes in between. [`CutFolder::cut`] keeps a random subset of
//! those: of the content in pieces of 512 bytes, of the names one change at a
//! time, in no agreement with each other. That is more than real file systems
//! do to their users, and all that they may.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use durable::{File, FileSystem, Folder};

/// What a disk writes in one piece.
const SECTOR: usize = 512;
/// What a file takes space in.
const BLOCK: usize = 4096;

/// See the module. Clones are the same folder.
#[derive(Debug, Clone, Default)]
pub struct CutFolder {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Changing calls that still succeed, then none; `None` when the power is safe.
    left: Option<u64>,
    /// Changing calls until one fails.
    fault: Option<u64>,
    /// So many after it fail too.
    more_faults: u64,
    /// What it says to have left; everything is written all the same.
    free: Option<u64>,
    /// Bytes that files can take beyond what they take.
    room: Option<u64>,
    calls: u64,
    nodes: Vec<Node>,
    seen: Names,
    safe: Names,
    pending: Vec<NameChange>,
}

#[derive(Debug, Default, Clone)]
struct Names {
    files: BTreeMap<String, usize>,
    folders: BTreeSet<String>,
}

#[derive(Debug, Default, Clone)]
struct Node {
    seen: Vec<u8>,
    safe: Vec<u8>,
    pending: Vec<Change>,
    /// Blocks of what is seen that are no holes.
    taken: BTreeSet<usize>,
}

impl Node {
    /// What a power cut leaves: where it reads as zeroes there are holes.
    fn left(content: Vec<u8>) -> Self {
        let blocks = (0..).zip(content.chunks(BLOCK));
        let taken = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
        Self {
            taken: taken.map(|(number, _)| number).collect(),
            seen: content.clone(),
            safe: content,
            pending: Vec::new(),
        }
    }

    fn allocated(&self) -> u64 {
        (self.taken.len() * BLOCK) as u64
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Zero { at: usize, len: usize },
    Len(usize),
}

#[derive(Debug, Clone)]
enum NameChange {
    Link {
        name: String,
        node: usize,
    },
    Rename {
        from: String,
        to: String,
        node: usize,
    },
    Unlink {
        name: String,
    },
    Folder {
        name: String,
    },
}

impl NameChange {
    /// Whether a sync of `folder` makes this durable.
    fn is_in(&self, folder: &str) -> bool {
        match self {
            Self::Link { name, .. } | Self::Unlink { name } | Self::Folder { name } => {
                parent(name) == folder
            }
            Self::Rename { from, to, .. } => parent(from) == folder || parent(to) == folder,
        }
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Names {
    fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Link { name, node } => {
                self.files.insert(name.clone(), *node);
            }
            NameChange::Rename { from, to, node } => {
                // Of the file that had the name then: its making may have been lost.
                if self.files.get(from) == Some(node) {
                    self.files.remove(from);
                }
                self.files.insert(to.clone(), *node);
            }
            NameChange::Unlink { name } => {
                self.files.remove(name);
            }
            NameChange::Folder { name } => {
                self.folders.insert(name.clone());
            }
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => {
                if content.len() < at + bytes.len() {
                    content.resize(at + bytes.len(), 0);
                }
                content[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Zero { at, len } => {
                let end = (at + len).min(content.len());
                if let Some(range) = content.get_mut(*at..end) {
                    range.fill(0);
                }
            }
            Self::Len(len) => content.resize(*len, 0),
        }
    }

    /// The pieces of which a power cut may keep any.
    fn pieces(&self) -> Vec<Self> {
        let (at, len) = match self {
            Self::Write { at, bytes } => (*at, bytes.len()),
            Self::Zero { at, len } => (*at, *len),
            Self::Len(_) => return vec![self.clone()],
        };
        let mut pieces = Vec::new();
        let mut start = at;
        while start < at + len {
            let end = ((start / SECTOR + 1) * SECTOR).min(at + len);
            pieces.push(match self {
                Self::Write { bytes, .. } => Self::Write {
                    at: start,
                    bytes: bytes[start - at..end - at].to_vec(),
                },
                _ => Self::Zero {
                    at: start,
                    len: end - start,
                },
            });
            start = end;
        }
        pieces
    }
}

/// xorshift64*: chance that repeats.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    /// True `percent` times of a hundred.
    fn hit(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

impl CutFolder {
    /// An empty folder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The power goes off at the changing call after the next `calls` ones: that one and all
    /// later calls, reads too, fail.
    pub fn cut_after(&self, calls: u64) {
        self.lock().left = Some(calls);
    }

    /// The changing call after the next `calls` ones changes nothing and fails for want of space;
    /// later ones work again.
    pub fn fail_after(&self, calls: u64) {
        self.fail_in_a_row(calls, 1);
    }

    /// The same of `count` calls in a row.
    pub fn fail_in_a_row(&self, calls: u64, count: u64) {
        let mut state = self.lock();
        state.fault = Some(calls);
        state.more_faults = count.saturating_sub(1);
    }

    /// From now on it says that it has this many bytes left; nothing fails for that.
    pub fn say_free(&self, bytes: u64) {
        self.lock().free = Some(bytes);
    }

    /// From now on files can take this many bytes more together, in blocks of 4096, and those of what is
    /// removed, cut or punched; what would take more changes nothing and fails for want of space. What is
    /// no hole is written over all the same. Without `room`: no limit any more.
    pub fn limit(&self, room: Option<u64>) {
        self.lock().room = room;
    }

    /// Number of changing calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// What is found after a power cut now: everything that was synced, and of the rest what
    /// `seed` decides. The folder itself is left as it is.
    #[must_use]
    pub fn cut(&self, seed: u64) -> Self {
        let state = self.lock();
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Nearly nothing, about half, nearly everything.
        let percent = [5, 50, 95][(chance.next() % 3) as usize];
        let mut names = state.safe.clone();
        for change in &state.pending {
            if chance.hit(percent) {
                names.apply(change);
            }
        }
        let folders = names.folders.clone();
        names.files.retain(|name, _| {
            let parent = parent(name);
            parent.is_empty() || folders.contains(parent)
        });
        let nodes = state.nodes.iter().map(|node| {
            let mut content = node.safe.clone();
            for piece in node.pending.iter().flat_map(Change::pieces) {
                if chance.hit(percent) {
                    piece.apply(&mut content);
                }
            }
            Node::left(content)
        });
        let nodes = nodes.collect();
        Self {
            state: Arc::new(Mutex::new(State {
                nodes,
                seen: names.clone(),
                safe: names,
                ..State::default()
            })),
        }
    }

    /// Content of the file `name`; none if it is absent.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        let node = *state.seen.files.get(name)?;
        Some(state.nodes[node].seen.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn file(&self, state: &State, name: &str) -> io::Result<Arc<dyn File>> {
        let node = *state.seen.files.get(name).ok_or_else(absent)?;
        Ok(Arc::new(CutFile {
            folder: self.clone(),
            node,
        }))
    }

    /// A change of names: kept as pending even when the power goes off at it.
    fn change(&self, make: impl FnOnce(&mut State) -> io::Result<NameChange>) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        let change = make(&mut state)?;
        let gone = match &change {
            NameChange::Unlink { name } | NameChange::Rename { to: name, .. } => {
                state.seen.files.get(name).copied()
            }
            _ => None,
        };
        let freed = gone.map_or(0, |node| state.nodes[node].allocated());
        state.give_back(freed);
        state.seen.apply(&change);
        state.pending.push(change);
        state.spend()
    }
}

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl State {
    fn powered(&self) -> io::Result<()> {
        match self.left {
            Some(u64::MAX) => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    /// Before a changing call.
    fn begin(&mut self) -> io::Result<()> {
        self.powered()?;
        match self.fault {
            None => Ok(()),
            Some(0) => {
                self.fault = (self.more_faults > 0).then_some(0);
                self.more_faults = self.more_faults.saturating_sub(1);
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(left) => {
                self.fault = Some(left - 1);
                Ok(())
            }
        }
    }

    /// Counts a changing call.
    fn spend(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.left {
            None => {}
            Some(0) => self.left = Some(u64::MAX),
            Some(u64::MAX) => {}
            Some(left) => self.left = Some(left - 1),
        }
        self.powered()
    }

    fn give_back(&mut self, bytes: u64) {
        if let Some(room) = &mut self.room {
            *room = room.saturating_add(bytes);
        }
    }

    /// Takes the space that `change` of a file needs, or gives back what it does not need any more.
    fn take_room(&mut self, node: usize, change: &Change) -> io::Result<()> {
        let taken = &mut self.nodes[node].taken;
        let before = taken.len();
        let more: Vec<usize> = match change {
            Change::Write { bytes, .. } if bytes.is_empty() => return Ok(()),
            Change::Write { at, bytes } => {
                let blocks = at / BLOCK..(at + bytes.len()).div_ceil(BLOCK);
                blocks.filter(|block| !taken.contains(block)).collect()
            }
            Change::Zero { at, len } => {
                let whole = at.div_ceil(BLOCK)..(at + len) / BLOCK;
                taken.retain(|block| !whole.contains(block));
                Vec::new()
            }
            Change::Len(len) => {
                taken.retain(|block| block * BLOCK < *len);
                Vec::new()
            }
        };
        let freed = ((before - taken.len()) * BLOCK) as u64;
        self.give_back(freed);
        let needed = (more.len() * BLOCK) as u64;
        match &mut self.room {
            Some(room) if *room < needed => return Err(io::ErrorKind::StorageFull.into()),
            Some(room) => *room -= needed,
            None => {}
        }
        self.nodes[node].taken.extend(more);
        Ok(())
    }

    fn has_folder(&self, name: &str) -> io::Result<()> {
        if name.is_empty() || self.seen.folders.contains(name) {
            Ok(())
        } else {
            Err(absent())
        }
    }
}

impl Folder for CutFolder {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        if let Ok(file) = self.open(name) {
            file.set_len(0)?;
            return Ok(file);
        }
        self.change(|state| {
            state.has_folder(parent(name))?;
            state.nodes.push(Node::default());
            Ok(NameChange::Link {
                name: name.to_owned(),
                node: state.nodes.len() - 1,
            })
        })?;
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let state = self.lock();
        state.powered()?;
        self.file(&state, name)
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.open(name)
    }

    fn create_folder(&self, name: &str) -> io::Result<()> {
        self.change(|state| {
            state.has_folder(parent(name))?;
            Ok(NameChange::Folder {
                name: name.to_owned(),
            })
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state| {
            state.has_folder(parent(to))?;
            let node = *state.seen.files.get(from).ok_or_else(absent)?;
            Ok(NameChange::Rename {
                from: from.to_owned(),
                to: to.to_owned(),
                node,
            })
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|state| {
            state.seen.files.get(name).ok_or_else(absent)?;
            Ok(NameChange::Unlink {
                name: name.to_owned(),
            })
        })
    }

    fn list(&self, name: &str) -> io::Result<Vec<String>> {
        let state = self.lock();
        state.powered()?;
        state.has_folder(name)?;
        let files = state.seen.files.keys();
        Ok(files
            .filter(|file| parent(file) == name)
            .map(|file| file.rsplit('/').next().unwrap_or(file).to_owned())
            .collect())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        state.has_folder(name)?;
        state.spend()?;
        let pending = std::mem::take(&mut state.pending);
        for change in pending {
            if change.is_in(name) {
                state.safe.apply(&change);
                if let NameChange::Rename { from, node, .. } = &change {
                    // A rename is never half done: the old name cannot come back.
                    state.pending.retain(|earlier| {
                        !matches!(earlier, NameChange::Link { name, node: of }
                            if name == from && of == node)
                    });
                }
            } else {
                state.pending.push(change);
            }
        }
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.free.or(state.room).unwrap_or(u64::MAX))
    }
}

impl FileSystem for CutFolder {
    fn sync_all(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        state.spend()?;
        let state = &mut *state;
        state.pending.clear();
        state.safe = state.seen.clone();
        for node in &mut state.nodes {
            if !node.pending.is_empty() {
                node.safe.clone_from(&node.seen);
                node.pending.clear();
            }
        }
        Ok(())
    }
}

/// An open file of a [`CutFolder`].
#[derive(Debug)]
struct CutFile {
    folder: CutFolder,
    node: usize,
}

impl CutFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.folder.lock();
        state.begin()?;
        state.take_room(self.node, &change)?;
        let node = &mut state.nodes[self.node];
        change.apply(&mut node.seen);
        node.pending.push(change);
        state.spend()
    }
}

fn index(at: u64) -> io::Result<usize> {
    usize::try_from(at).map_err(io::Error::other)
}

impl File for CutFile {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let state = self.folder.lock();
        state.powered()?;
        let at = index(at)?;
        let range = at.checked_add(into.len()).map(|end| at..end);
        match range.and_then(|range| state.nodes[self.node].seen.get(range)) {
            Some(bytes) => into.copy_from_slice(bytes),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.change(Change::Write {
            at: index(at)?,
            bytes: from.to_vec(),
        })
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.change(Change::Zero {
            at: index(at)?,
            len: index(len)?,
        })
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.folder.lock();
        state.powered()?;
        Ok(state.nodes[self.node].seen.len() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        let state = self.folder.lock();
        state.powered()?;
        Ok(state.nodes[self.node].allocated())
    }

    fn holes(&self, at: u64, len: u64) -> io::Result<u64> {
        let state = self.folder.lock();
        state.powered()?;
        let (at, end) = (index(at)?, index(at.saturating_add(len))?);
        let blocks = at / BLOCK..end.div_ceil(BLOCK);
        let taken = &state.nodes[self.node].taken;
        let holes = blocks.filter(|block| !taken.contains(block));
        let within = |block: usize| end.min((block + 1) * BLOCK) - at.max(block * BLOCK);
        Ok(holes.map(|block| within(block) as u64).sum())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Len(index(len)?))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.folder.lock();
        state.begin()?;
        state.spend()?;
        let node = &mut state.nodes[self.node];
        node.safe.clone_from(&node.seen);
        node.pending.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &CutFolder, name: &str, content: &[u8]) -> Arc<dyn File> {
        let file = folder.create(name).expect("made");
        file.write_at(0, content).expect("written");
        file
    }

    #[test]
    fn what_was_synced_survives_every_cut() {
        let folder = CutFolder::new();
        folder.create_folder("below").expect("made");
        folder.sync("").expect("synced");
        file(&folder, "below/new", &[1; 2000])
            .sync()
            .expect("synced");
        folder.rename("below/new", "below/a").expect("renamed");
        folder.sync("below").expect("synced");
        file(&folder, "below/b", &[2; 2000]);
        for seed in 0..100 {
            let left = folder.cut(seed);
            assert_eq!(left.content("below/a"), Some(vec![1; 2000]), "{seed}");
            assert_eq!(left.content("below/new"), None, "{seed}");
        }
    }

    #[test]
    fn a_name_that_was_not_synced_is_lost_or_kept() {
        let folder = CutFolder::new();
        file(&folder, "a", &[1; 10]).sync().expect("synced");
        folder.sync("").expect("synced");
        file(&folder, "new", &[2; 10]).sync().expect("synced");
        folder.rename("new", "a").expect("renamed");
        let contents: BTreeSet<_> = (0..50).map(|seed| folder.cut(seed).content("a")).collect();
        assert_eq!(
            contents,
            BTreeSet::from([Some(vec![1; 10]), Some(vec![2; 10])])
        );
    }

    #[test]
    fn cuts_tear_what_was_not_synced_in_different_ways() {
        let folder = CutFolder::new();
        let file = file(&folder, "a", &[1; 4096]);
        file.sync().expect("synced");
        let lost = (0..50).filter(|seed| folder.cut(*seed).content("a").is_none());
        assert!((5..45).contains(&lost.count()), "the name was not synced");
        folder.sync("").expect("synced");
        file.write_at(0, &[2; 4096]).expect("written");
        let contents: BTreeSet<_> = (0..50).map(|seed| folder.cut(seed).content("a")).collect();
        assert!(contents.len() > 10, "{}", contents.len());
        file.sync().expect("synced");
        assert!((0..50).all(|seed| folder.cut(seed).content("a") == Some(vec![2; 4096])));
    }

    #[test]
    fn a_fault_strikes_once_and_changes_nothing() {
        let folder = CutFolder::new();
        let file = file(&folder, "a", b"content");
        folder.fail_after(1);
        file.sync().expect("one call is left");
        assert!(file.write_at(0, b"other").is_err());
        assert_eq!(folder.content("a"), Some(b"content".to_vec()));
        file.write_at(0, b"another").expect("works again");
    }

    #[test]
    fn room_is_taken_by_blocks_that_are_written_and_given_back_by_what_is_punched_cut_or_removed() {
        let folder = CutFolder::new();
        let one = folder.create("a").expect("made");
        one.set_len(16 * 4096).expect("all of it a hole");
        folder.limit(Some(3 * 4096));
        one.write_at(4096, &[1; 2 * 4096]).expect("two of three");
        assert!(one.write_at(6 * 4096 - 1, b"xy").is_err(), "two blocks");
        one.write_at(6 * 4096, b"y").expect("the last");
        one.write_at(4096, &[2; 4096]).expect("it is there");
        assert!(one.write_at(0, b"x").is_err());
        assert_eq!(one.allocated().expect("told"), 3 * 4096);
        one.punch(4096, 6000).expect("one whole block");
        one.write_at(0, b"x").expect("in its place");
        assert!(one.write_at(4096, b"x").is_err());
        one.set_len(4096).expect("cut");
        file(&folder, "b", &[3; 2 * 4096]);
        assert!(folder.create("c").expect("made").write_at(0, b"x").is_err());
        folder.remove("b").expect("removed");
        file(&folder, "c", &[4; 2 * 4096]);
        one.set_len(16 * 4096).expect("a hole more");
        one.sync().expect("synced");
        folder.sync("").expect("synced");
        let left = folder.cut(1).open("a").expect("there");
        assert_eq!(left.allocated().expect("told"), 4096);
    }

    #[test]
    fn after_the_power_went_off_nothing_works() {
        let folder = CutFolder::new();
        let file = file(&folder, "a", b"content");
        folder.cut_after(1);
        file.sync().expect("one call is left");
        assert!(folder.sync("").is_err());
        assert!(file.read_at(0, &mut [0]).is_err());
        assert!(folder.list("").is_err());
        assert!(folder.cut(1).list("").is_ok());
    }
}
