//! The change sets of a journal: written before content goes, and given up when nobody needs them.

use std::sync::Arc;

use durable::Folder;
use model::{Bytes, PointId, Since};

use super::code::MAX_LEN;
use super::{ChangedDisk, Changes, Edge, path, union};
use crate::index::{CHANGES, Change, ChangeSet, Entry, Note};
use crate::{Journal, JournalError, Root, SegmentReader};

/// Most sets of a journal: past it neighbours are joined, the oldest first.
const MAX_SETS: usize = if cfg!(test) { 4 } else { 256 };

/// What is written for a segment whose content goes. Borrows nothing.
#[derive(Debug)]
pub(crate) struct NewSet {
    folder: Arc<dyn Folder>,
    number: u64,
    room: Room,
}

/// How room is made for one more.
#[derive(Debug)]
enum Room {
    Enough,
    Join(ChangeSet, ChangeSet),
    Drop(u64),
}

/// Sets that came and went, to be published.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    add: Vec<ChangeSet>,
    remove: Vec<u64>,
}

impl NewSet {
    /// Writes what `segment`, of the file `name`, changed; durably. Without space nothing is
    /// written: then a difference has to be found by comparing, and merging goes on.
    pub(crate) fn write(self, segment: &SegmentReader, name: &str) -> Result<Sets, JournalError> {
        match self.try_write(segment, name) {
            Err(error) if error.is_full() => {
                tracing::warn!(%error, "no room for noting what a merged point changed");
                for number in [self.number, self.number + 1] {
                    // If it cannot be removed, opening the journal removes it.
                    let _ = self.folder.remove(&file_of(number));
                }
                Ok(Sets::default())
            }
            other => other,
        }
    }

    fn try_write(&self, segment: &SegmentReader, name: &str) -> Result<Sets, JournalError> {
        let changes = Changes::of(segment, name)?;
        let mut sets = Sets {
            add: vec![write(&*self.folder, self.number, &changes)?],
            remove: Vec::new(),
        };
        match &self.room {
            Room::Enough => {}
            Room::Drop(number) => sets.remove.push(*number),
            Room::Join(older, newer) => {
                let both = read(&*self.folder, older)
                    .and_then(|older| Ok(older.join(&read(&*self.folder, newer)?)));
                match both {
                    Ok(joined) => sets
                        .add
                        .push(write(&*self.folder, self.number + 1, &joined)?),
                    // Merging goes on without them.
                    Err(error) => tracing::warn!(%error, "gives up two change sets"),
                }
                sets.remove.extend([older.number, newer.number]);
            }
        }
        // The folder may be new.
        for name in [CHANGES, ""] {
            self.folder
                .sync(name)
                .map_err(|source| JournalError::io("sync", name, source))?;
        }
        Ok(sets)
    }
}

fn file_of(number: u64) -> String {
    format!("{CHANGES}/{number}.set")
}

fn write(folder: &dyn Folder, number: u64, changes: &Changes) -> Result<ChangeSet, JournalError> {
    let (name, bytes) = (file_of(number), changes.to_bytes());
    let write = || {
        let file = folder.create(&name)?;
        file.write_at(0, &bytes)?;
        file.sync()
    };
    write().map_err(|source| JournalError::io("write", &name, source))?;
    Ok(ChangeSet {
        number,
        since: changes.since,
        point: changes.point,
        len: Bytes(bytes.len() as u64),
        hash: Root(*blake3::hash(&bytes).as_bytes()),
    })
}

fn read(folder: &dyn Folder, set: &ChangeSet) -> Result<Changes, JournalError> {
    let name = set.file();
    let failed = |source| JournalError::io("read", &name, source);
    let len = usize::try_from(set.len.0).unwrap_or(usize::MAX);
    if len > MAX_LEN {
        return Err(JournalError::Missing(name));
    }
    let mut bytes = vec![0; len];
    let file = folder.open_read(&name).map_err(failed)?;
    file.read_at(0, &mut bytes).map_err(failed)?;
    if Root(*blake3::hash(&bytes).as_bytes()) != set.hash {
        return Err(JournalError::NotOffered(name));
    }
    Changes::from_bytes(&bytes).map_err(|source| JournalError::ChangeSet { name, source })
}

impl Journal {
    /// What to write before the content of `entry` goes; nothing if every peer has passed it.
    pub(crate) fn set_for(&self, entry: &Entry) -> Option<Box<NewSet>> {
        let passed = |upto: PointId| entry.point.sequence <= upto.sequence;
        if self.passed.is_some_and(passed) {
            return None;
        }
        let newest = self.index.changes.keys().next_back();
        Some(Box::new(NewSet {
            folder: self.folder.clone(),
            number: newest.map_or(1, |newest| newest + 1),
            room: self.room_for_set(),
        }))
    }

    fn room_for_set(&self) -> Room {
        let sets = &self.index.changes;
        if sets.len() < MAX_SETS {
            return Room::Enough;
        }
        let mut by_point: Vec<_> = sets.values().copied().collect();
        by_point.sort_by_key(|set| set.point.sequence);
        let follows = |pair: &&[ChangeSet]| {
            let on_lineage = |set: &ChangeSet| {
                let lineage = self.index.lineage.as_ref();
                lineage.is_some_and(|lineage| lineage.contains(set.point))
            };
            let joins = match pair[1].since {
                Since::Point(since) => since.sequence <= pair[0].point.sequence,
                Since::Seed { .. } => true,
            };
            joins && on_lineage(&pair[0]) && on_lineage(&pair[1])
        };
        match (by_point.windows(2).find(follows), by_point.first()) {
            (Some(pair), _) => Room::Join(pair[0], pair[1]),
            (None, Some(oldest)) => Room::Drop(oldest.number),
            (None, None) => Room::Enough,
        }
    }

    /// The change of the index that publishes `sets`, if there are any; and the files that it gives
    /// up.
    pub(crate) fn change_of(&self, mut sets: Sets) -> (Option<Change>, Vec<String>) {
        // A change that failed meanwhile had everything removed that the index does not name.
        let is_there = |set: &ChangeSet| self.folder.open_read(&set.file()).is_ok();
        if !sets.add.iter().all(is_there) {
            return (None, Vec::new());
        }
        // Some may have been given up meanwhile.
        let known = &self.index.changes;
        sets.remove.retain(|number| known.contains_key(number));
        let files = sets.remove.iter().map(|number| file_of(*number)).collect();
        let Sets { add, remove } = sets;
        let nothing = add.is_empty() && remove.is_empty();
        let change = Change::Note(Note::ChangeSets { add, remove });
        ((!nothing).then_some(change), files)
    }

    /// Gives up sets whose files are not there: then a difference has to be found by comparing.
    pub(crate) fn give_up(&mut self, remove: Vec<u64>) {
        if remove.is_empty() {
            return;
        }
        tracing::warn!(sets = ?remove, "change sets are not there any more");
        let add = Vec::new();
        let change = Change::Note(Note::ChangeSets { add, remove });
        if let Err(error) = self.publish(vec![change], vec![]) {
            tracing::warn!(%error, "they are still named, and given up later");
        }
    }

    /// Every peer has come to `upto`, or to a point that came from it: what changed up to there need
    /// not be known any more, and is not noted from now on. (To be said again after the journal was
    /// opened; until then more is noted than is needed.) Nothing happens if `upto` is not of this
    /// history.
    ///
    /// # Errors
    /// The index cannot be replaced. A file that cannot be removed is removed when the journal is
    /// opened next.
    pub fn release(&mut self, upto: PointId) -> Result<(), JournalError> {
        self.settle()?;
        let Some(lineage) = self.index.lineage.as_ref().filter(|it| it.contains(upto)) else {
            return Ok(());
        };
        let needed =
            |set: &ChangeSet| lineage.contains(set.point) && set.point.sequence > upto.sequence;
        let remove = self.index.changes.values().filter(|set| !needed(set));
        let sets = Sets {
            add: Vec::new(),
            remove: remove.map(|set| set.number).collect(),
        };
        let (change, files) = self.change_of(sets);
        if let Some(change) = change {
            self.publish(vec![change], vec![])?;
        }
        if self
            .passed
            .is_none_or(|passed| passed.sequence < upto.sequence)
        {
            self.passed = Some(upto);
        }
        files.iter().for_each(|file| self.discard(file));
        Ok(())
    }

    /// Notes what changed from `since` to the later point `point`, durably, so that the segments
    /// between them can be given up. Tells whether it did: not if that is not known.
    ///
    /// # Errors
    /// A failed read or write; damage; the index cannot be replaced.
    pub fn note_changes(&mut self, since: PointId, point: PointId) -> Result<bool, JournalError> {
        self.settle()?;
        if Arc::strong_count(&self.merge) > 1 {
            return Err(JournalError::Busy);
        }
        let Some(disks) = self.changes_between(since, point)? else {
            return Ok(false);
        };
        let changes = Changes {
            since: Since::Point(since),
            point,
            disks,
        };
        let newest = self.index.changes.keys().next_back();
        let number = newest.map_or(1, |newest| newest + 1);
        let set = write(&*self.folder, number, &changes)?;
        for name in [CHANGES, ""] {
            self.folder
                .sync(name)
                .map_err(|source| JournalError::io("sync", name, source))?;
        }
        let (add, remove) = (vec![set], Vec::new());
        self.publish(vec![Change::Note(Note::ChangeSets { add, remove })], vec![])?;
        Ok(true)
    }

    /// Every block in which `x` and `y`, points that this journal has or had, may differ, of the disks that both have and that
    /// were there all the time between them; blocks past the end of the smaller one among them
    /// only if they were written. None if it is not known, or if the change set that knows it cannot be
    /// read: then they are compared by hash.
    ///
    /// # Errors
    /// A failed read of a segment, or damage of one.
    pub fn changes_between(
        &self,
        x: PointId,
        y: PointId,
    ) -> Result<Option<Vec<ChangedDisk>>, JournalError> {
        let index = &self.index;
        // What older segments and sets say of a disk that was not whole then is not all of it.
        let first = x.sequence.min(y.sequence);
        let was_there = |disk: &&crate::index::BaseDisk| {
            disk.whole_from
                .is_some_and(|whole_from| whole_from <= first)
        };
        let there: Vec<_> = index.disks.iter().filter(was_there).collect();
        if x == y {
            let same = |disk: &&crate::index::BaseDisk| ChangedDisk {
                id: disk.id,
                size: disk.size,
                unit: 0,
                extents: Vec::new(),
            };
            return Ok(Some(there.iter().map(same).collect()));
        }
        let sets: Vec<_> = index.changes.values().collect();
        let of_set = |set: &&ChangeSet| Edge {
            since: set.since,
            point: set.point,
        };
        let of_segment = |entry: &Entry| Edge {
            since: entry.since,
            point: entry.point,
        };
        let edges: Vec<_> = sets
            .iter()
            .map(of_set)
            .chain(index.segments.iter().map(of_segment))
            .collect();
        let Some(path) = path(&edges, index.lineage.as_ref(), x, y) else {
            return Ok(None);
        };
        let mut all = Vec::new();
        for at in path {
            let changes = match sets.get(at) {
                Some(set) => match read(&*self.folder, set) {
                    Ok(changes) => changes,
                    Err(error) => {
                        tracing::warn!(%error, "a change set is not used");
                        return Ok(None);
                    }
                },
                None => self.changes_of(&index.segments[at - sets.len()])?,
            };
            // One by one: no more than two are in memory.
            all = match all.is_empty() {
                true => vec![changes.disks],
                false => vec![union([&all[0][..], &changes.disks[..]])],
            };
        }
        let mut all = all.pop();
        if let Some(disks) = &mut all {
            disks.retain(|disk| there.iter().any(|there| there.id == disk.id));
        }
        Ok(all)
    }

    fn changes_of(&self, entry: &Entry) -> Result<Changes, JournalError> {
        let name = entry.file();
        let reader = SegmentReader::of(entry.open(&*self.folder)?)
            .map_err(|source| JournalError::segment(&name, source))?;
        if reader.summary().root != entry.stored {
            return Err(JournalError::NotOffered(name));
        }
        Changes::of(&reader, &name)
    }
}
