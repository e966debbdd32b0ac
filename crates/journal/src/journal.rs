//! The journal of a replica VM: a folder, and what may be done with it.
//!
//! ```text
//!   index                   the root: what it does not name does not exist
//!   .index.new              keeps the space for writing it anew on a full disk
//!   base-<disk>.raw         one sparse file per disk: the seed, later the oldest point
//!   segments/<root>.seg     immutable, one per point above the base
//!   packs/<number>.pack     or many small ones in one file
//!   runs/<hash>.run         derived from segments: where the newest content of a block is
//!   incoming/               what is being received; not the journal's until committed
//!   lock                    at most one process changes the journal
//!
//!   base (point 3) <- segment 4 <- segment 5 <- segment 6 (tip)
//!        oldest point                               newest point
//! ```
//!
//! Invariants:
//! - a change is published by one record of the index, and counts from the flush on that makes
//!   it durable, and the segments that it names with it; everything else that it names is
//!   durable before; files are removed after it;
//! - the base differs from its point only in blocks that the oldest segment hides
//!   ([`Merge`](crate::Merge));
//! - a point that is pinned, or open in this process, is never merged past. Such a
//!   reader stays right while older segments are merged into the base: a block that
//!   it reads from the base is in none of its segments, so no merge up to its point
//!   writes it.
//!
//! After a crash at any instant, every point that a commit returned for is there
//! with its content, and a commit that did not return took place wholly or not at
//! all. Files that the index does not name are removed when the journal is opened.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use durable::{File, Folder, Group, Lock, Need, OsFolder};
use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, MAX_DISKS, PointId, SeedId, Since, VmId};

use crate::bases::make_bases;
use crate::doubt;
use crate::index::{
    Base, BaseDisk, CHANGES, Change, Entry, INDEX, Index, Log, MAX_REASON, Note, PACKS, Pin,
    Prepared, RUNS, SEGMENTS, reserve,
};
use crate::laying::Laying;
use crate::packs::Packs;
use crate::room::Lacking;
use crate::rules::{Rule, hold};
use crate::runs::Tended;
use crate::thin::Unfit;
use crate::{Consistency, DiskExtent, JournalError, PointReader, Root};

/// A disk's base, and its file.
pub(crate) type BaseFile = (BaseDisk, Arc<dyn File>);

/// An open journal. One process at a time; what it does blocks.
#[derive(Debug)]
pub struct Journal {
    pub(crate) folder: Arc<dyn Folder>,
    _lock: Option<Lock>,
    /// What is durable.
    pub(crate) index: Index,
    /// None: the file has an older format, and is written anew with the next change.
    log: Option<Log>,
    /// Points that this process reads.
    pub(crate) leases: Leases,
    /// Those who flush together.
    pub(crate) group: Arc<Group>,
    pub(crate) packs: Packs,
    /// Held by a running merge as well.
    pub(crate) merge: Arc<()>,
    /// Segments that stay apart.
    pub(crate) unfit: Unfit,
    /// What is known of the run files.
    pub(crate) tended: Tended,
    /// Every peer has come so far.
    pub(crate) passed: Option<PointId>,
    /// A change could not be made durable: the file may say more than `index`.
    stale: bool,
    /// The space for writing the index anew is taken.
    reserved: bool,
    /// No part of an initial replication is let in.
    pub(crate) base_stays: bool,
    /// The part of an initial replication that is written to the base while it comes.
    pub(crate) ahead: Option<Laying>,
    /// What segments have that the base has not, if that was counted.
    pub(crate) lacking: Lacking,
}

/// What a journal has, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tip {
    /// Parts of an initial replication.
    Seeding {
        /// The initial replication.
        seed: SeedId,
        /// The part that comes next: this many were received.
        next_part: u64,
        /// Root of the last one of them.
        last: Option<Root>,
    },
    /// Points, the newest of which is this.
    Point {
        /// The newest point.
        point: PointId,
        /// Root of its segment.
        root: Root,
    },
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointInfo {
    /// Its name.
    pub id: PointId,
    /// When it was cut, by the primary's clock.
    pub time: Timestamp,
    /// How consistent it is.
    pub consistency: Consistency,
    /// What its segment builds on.
    pub since: Since,
    /// Root of its segment.
    pub root: Root,
    /// What its segment holds before compression, zeroes included.
    pub content: Bytes,
    /// Length of its segment's file, which the base took in for the oldest point.
    pub file_len: Bytes,
    /// Whether the base holds it: reading it needs no segment.
    pub in_base: bool,
    /// Its disks.
    pub disks: Vec<DiskExtent>,
    /// Why it is pinned; not pinned if there is none.
    pub pins: Vec<String>,
    /// Until when it is locked against deletion, if it was.
    pub locked: Option<Timestamp>,
}

impl Journal {
    /// Folder, in the journal's, of files that are being received; [`Journal::commit`] takes
    /// them from here. The journal never removes what is in it.
    pub const INCOMING: &str = "incoming";
    const LOCK: &str = "lock";

    /// Name of the base file of a disk, in the journal's folder. Before anything of an initial
    /// replication came, and while nobody else works on it, a copy may be put there: what
    /// [`Journal::open_seed`] reads is what the file holds.
    #[must_use]
    pub fn base_file(disk: DiskId) -> String {
        BaseDisk::new(disk, Bytes(0)).file()
    }

    /// Makes the journal of a VM with these disks in the folder `path`, which is made if it is
    /// absent, for the initial replication `seed`.
    ///
    /// # Errors
    /// [`JournalError::Exists`], disks that cannot be, or what the operating system says. What a
    /// failed or interrupted creation leaves is no journal, and can be created over.
    pub fn create(
        path: &Path,
        vm: VmId,
        disks: &[DiskExtent],
        seed: SeedId,
    ) -> Result<Self, JournalError> {
        durable::create_folder(path).map_err(|source| JournalError::io("create", "", source))?;
        let (folder, lock) = lock(path)?;
        Self::create_in(folder, Some(lock), vm, disks, seed)
    }

    /// Opens the journal in the folder `path`.
    ///
    /// # Errors
    /// In use, damaged, or what the operating system says.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        Self::open_beside(path, Leases::default(), Arc::default())
    }

    /// Opens the journal in the folder `path`, of which this process may still read points that
    /// it opened through an earlier `Journal`: all of them were opened with these `leases`. It flushes
    /// together with the others of `group`, which lie on the same file system.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_beside(
        path: &Path,
        leases: Leases,
        group: Arc<Group>,
    ) -> Result<Self, JournalError> {
        if path.is_dir() && !path.join(INDEX).exists() {
            // Before a lock file is left there.
            return Err(JournalError::NoIndex);
        }
        let (folder, lock) = lock(path)?;
        Ok(Self {
            leases,
            ..Self::open_in(folder, Some(lock), group)?
        })
    }

    /// What the base files held when the journal was made is to stay until there is a point: no part of an
    /// initial replication is let in through this `Journal`.
    #[must_use]
    pub fn keeping_base(mut self) -> Self {
        self.base_stays = true;
        self
    }

    /// After a change that could not be made durable: makes the file say again what was durable before.
    /// Points that are open stay open. The next change does it too.
    ///
    /// # Errors
    /// The index cannot be replaced.
    pub fn reload(&mut self) -> Result<(), JournalError> {
        self.reserved = false;
        self.log = Some(Log::replace(&self.folder, &self.index, &self.group)?);
        self.stale = false;
        self.remove_strays()?;
        self.reserve();
        // Nothing is appended to a file whose flush failed.
        self.packs.close();
        Ok(())
    }

    /// As [`Journal::create`], in a `folder` that is not one of the operating system and that nobody else
    /// works with: one whose power a test cuts.
    ///
    /// # Errors
    /// As [`Journal::create`].
    pub fn create_on(
        folder: Arc<dyn Folder>,
        vm: VmId,
        disks: &[DiskExtent],
        seed: SeedId,
    ) -> Result<Self, JournalError> {
        Self::create_in(folder, None, vm, disks, seed)
    }

    /// As [`Journal::open`], in a `folder` as of [`Journal::create_on`].
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_on(folder: Arc<dyn Folder>) -> Result<Self, JournalError> {
        Self::open_in(folder, None, Arc::default())
    }

    pub(crate) fn create_in(
        folder: Arc<dyn Folder>,
        lock: Option<Lock>,
        vm: VmId,
        disks: &[DiskExtent],
        seed: SeedId,
    ) -> Result<Self, JournalError> {
        check_disks(disks)?;
        match folder.open_read(INDEX) {
            Ok(_) => return Err(JournalError::Exists),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(JournalError::io("open", INDEX, source)),
        }
        for name in [SEGMENTS, PACKS, RUNS, CHANGES, Self::INCOMING] {
            folder
                .create_folder(name)
                .map_err(|source| JournalError::io("create", name, source))?;
        }
        let disks: Vec<_> = disks
            .iter()
            .map(|disk| BaseDisk::new(disk.id, disk.size))
            .collect();
        make_bases(&*folder, &disks)?;
        let index = Index::new(vm, seed, disks);
        let group = Arc::<Group>::default();
        let log = Log::replace(&folder, &index, &group)?;
        let mut journal = Self::with(folder, lock, index, Some(log), group)?;
        journal.reserve();
        Ok(journal)
    }

    pub(crate) fn open_in(
        folder: Arc<dyn Folder>,
        lock: Option<Lock>,
        group: Arc<Group>,
    ) -> Result<Self, JournalError> {
        // A process that was killed may have left names that are not durable yet. What the index
        // does not name is removed below, so it has to be.
        folder
            .sync("")
            .and_then(|()| folder.sync(SEGMENTS))
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound => JournalError::NoIndex,
                _ => JournalError::io("sync", "", source),
            })?;
        for name in [PACKS, RUNS, CHANGES] {
            sync_or_make(&*folder, name)
                .map_err(|source| JournalError::io("sync", name, source))?;
        }
        // Never named, and perhaps the space that the next step needs.
        let _ = folder.remove(crate::thin::NEW);
        crate::runs::folder::remove_unfinished(&*folder);
        let (index, log) = doubt::open(&folder, &group)?;
        let mut journal = Self::with(folder, lock, index, log, group)?;
        journal.remove_strays()?;
        journal.reserve();
        for disk in &journal.index.disks {
            let name = disk.file();
            let len = journal.folder.open(&name).and_then(|file| file.size());
            match len {
                Ok(len) if len >= disk.size.0 => {}
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(JournalError::io("open", &name, error));
                }
                _ => return Err(JournalError::Missing(name)),
            }
        }
        Ok(journal)
    }

    fn with(
        folder: Arc<dyn Folder>,
        lock: Option<Lock>,
        index: Index,
        log: Option<Log>,
        group: Arc<Group>,
    ) -> Result<Self, JournalError> {
        Ok(Self {
            packs: Packs::of(&*folder, &index)?,
            folder,
            _lock: lock,
            index,
            log,
            leases: Leases::default(),
            group,
            merge: Arc::new(()),
            unfit: Unfit::new(),
            tended: Tended::default(),
            passed: None,
            stale: false,
            reserved: false,
            base_stays: false,
            ahead: None,
            lacking: Lacking::default(),
        })
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.index.vm
    }

    /// The lineage of the newest point.
    #[must_use]
    pub fn lineage(&self) -> Option<&Lineage> {
        self.index.lineage.as_ref()
    }

    /// What is there.
    #[must_use]
    pub fn tip(&self) -> Tip {
        match (&self.index.base, self.index.newest()) {
            (Base::Seeding { parts, last }, _) => Tip::Seeding {
                seed: self.index.seed,
                next_part: *parts,
                last: *last,
            },
            (_, Some(entry)) => Tip::Point {
                point: entry.point,
                root: entry.root,
            },
            (_, None) => unreachable!("checked when the index was read: see Index::fault"),
        }
    }

    /// The recovery points, the oldest first.
    #[must_use]
    pub fn points(&self) -> Vec<PointInfo> {
        let mut pins: HashMap<PointId, Vec<String>> = HashMap::new();
        for pin in &self.index.pins {
            pins.entry(pin.point).or_default().push(pin.reason.clone());
        }
        self.index
            .points()
            .map(|(position, entry)| {
                let pins = pins.remove(&entry.point).unwrap_or_default();
                self.index.info(position, entry, pins)
            })
            .collect()
    }

    /// The recovery point `id`, if there is one.
    #[must_use]
    pub fn point(&self, id: PointId) -> Option<PointInfo> {
        let (position, entry) = self.index.find(id)?;
        let pins = self.index.pins.iter().filter(|pin| pin.point == id);
        let pins = pins.map(|pin| pin.reason.clone()).collect();
        Some(self.index.info(position, entry, pins))
    }

    /// The disks of the newest recovery point.
    #[must_use]
    pub fn newest_disks(&self) -> Vec<DiskExtent> {
        let newest = self.index.newest();
        let disks = newest.into_iter().flat_map(|entry| entry.disks.iter());
        disks.filter(|disk| !disk.joining).copied().collect()
    }

    /// Number of recovery points.
    #[must_use]
    pub fn count(&self) -> usize {
        self.index.count()
    }

    /// Opens a point for reading. Until the reader and all its images are dropped it is not
    /// merged past.
    ///
    /// # Errors
    /// [`JournalError::NoSuchPoint`], a damaged segment, or a failed read.
    pub fn open_point(&self, point: PointId) -> Result<Arc<PointReader>, JournalError> {
        if self.index.find(point).is_none() {
            return Err(JournalError::NoSuchPoint(point));
        }
        let lease = self.leases.take(point);
        PointReader::of(&self.folder, &self.index, point, Some(lease))
    }

    /// Keeps `point` until it is unpinned for this `reason`, durably.
    ///
    /// # Errors
    /// [`JournalError::NoSuchPoint`], or the index cannot be replaced.
    pub fn pin(&mut self, point: PointId, reason: &str) -> Result<(), JournalError> {
        self.settle()?;
        if self.index.find(point).is_none() {
            return Err(JournalError::NoSuchPoint(point));
        }
        if reason.len() > MAX_REASON {
            return Err(JournalError::LongReason(reason.len()));
        }
        let pin = Pin {
            point,
            reason: reason.to_owned(),
        };
        if self.index.pins.contains(&pin) {
            return Ok(());
        }
        self.publish(vec![Change::Note(Note::Pin(pin))], vec![])
    }

    /// Takes back the pin of `point` for this `reason`, if there is one.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn unpin(&mut self, point: PointId, reason: &str) -> Result<(), JournalError> {
        self.settle()?;
        let pin = Pin {
            point,
            reason: reason.to_owned(),
        };
        if !self.index.pins.contains(&pin) {
            return Ok(());
        }
        self.publish(vec![Change::Note(Note::Unpin(pin))], vec![])
    }

    /// Keeps `point` until then, durably: it is not merged past, squashed away or deleted before.
    ///
    /// # Errors
    /// [`JournalError::NoSuchPoint`]; [`JournalError::LockedLonger`]; the index cannot be written.
    pub fn lock(&mut self, point: PointId, until: Timestamp) -> Result<(), JournalError> {
        self.settle()?;
        if self.index.find(point).is_none() {
            return Err(JournalError::NoSuchPoint(point));
        }
        match self.index.locks.get(&point.sequence) {
            Some(locked) if *locked == until => Ok(()),
            Some(locked) if *locked > until => Err(JournalError::LockedLonger {
                point,
                until: *locked,
            }),
            _ => self.publish(vec![Change::Note(Note::Lock { point, until })], vec![]),
        }
    }

    /// Makes `changes`, all of them or none, and durably: together with `needs`, in one flush. The
    /// segments that they name may be among those. Everything else that they name is durable already.
    ///
    /// # Errors
    /// Nothing was changed, unless it is known only after [`Journal::reload`].
    pub(crate) fn publish(
        &mut self,
        changes: Vec<Change>,
        mut needs: Vec<Need>,
    ) -> Result<(), JournalError> {
        self.index
            .check(&changes)
            .map_err(JournalError::Impossible)?;
        let log = match &mut self.log {
            Some(log) => log,
            none => none.insert(Log::replace(&self.folder, &self.index, &self.group)?),
        };
        let log = match log.append(&changes) {
            Ok(()) => log,
            Err(error) if error.is_full() => {
                tracing::debug!(%error, "the journal's index is written anew for room");
                self.rewrite()?;
                let log = self.log.as_mut().ok_or(error)?;
                log.append(&changes)?;
                log
            }
            Err(error) => return Err(error),
        };
        needs.push(Need::Content(log.file().clone()));
        if !hold(Rule::FlushBeforeAcknowledgement) {
            needs.clear();
        }
        let names_packs = needs
            .iter()
            .any(|need| matches!(need, Need::Names(_, name) if *name == PACKS));
        if let Err(source) = self.group.flush(needs) {
            self.stale = true;
            return Err(JournalError::io("sync", INDEX, source));
        }
        log.is_flushed();
        if names_packs {
            self.packs.are_named();
        }
        if let Err(fault) = self.index.apply(changes) {
            self.stale = true;
            return Err(JournalError::Impossible(fault));
        }
        self.shorten();
        Ok(())
    }

    /// Whether the last change may be in the file although it failed.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// Writes the file anew if its records outgrew the snapshot.
    fn shorten(&mut self) {
        if !self.log.as_ref().is_some_and(Log::is_long) {
            return self.reserve();
        }
        if let Err(error) = self.rewrite() {
            if self.stale {
                tracing::warn!(%error, "the journal's index is written again with the next change");
            } else {
                tracing::warn!(%error, "the journal's index stays as long as it is");
                if let Some(log) = &mut self.log {
                    log.put_off();
                }
            }
        }
    }

    /// Writes the file anew, in the space that is kept for that.
    ///
    /// # Errors
    /// It is as it was, unless `stale` is set.
    pub(crate) fn rewrite(&mut self) -> Result<(), JournalError> {
        self.reserved = false;
        let prepared = Prepared::write(&*self.folder, &self.index, &self.group)?;
        match prepared.publish(&self.folder, &self.group) {
            Ok(fresh) => {
                self.log = Some(fresh);
                self.reserve();
                Ok(())
            }
            Err(error) => {
                self.stale = true;
                Err(error)
            }
        }
    }

    /// Takes the space for writing the file anew, if there is so much; tried again with each change.
    fn reserve(&mut self) {
        let wanted = !self.reserved && hold(Rule::ReserveIndex);
        let Some(log) = self.log.as_ref().filter(|_| wanted) else {
            return;
        };
        match reserve(&*self.folder, log) {
            Ok(()) => self.reserved = true,
            Err(error) => tracing::debug!(%error, "no space is kept for the journal's index"),
        }
    }

    /// The next change writes the file anew.
    #[cfg(test)]
    pub(crate) fn shorten_soon(&mut self) {
        if let Some(log) = &mut self.log {
            log.shorten_soon();
        }
    }

    /// Before a change: makes sure that the file says what `index` says.
    pub(crate) fn settle(&mut self) -> Result<(), JournalError> {
        if self.stale { self.reload() } else { Ok(()) }
    }

    /// The base files.
    pub(crate) fn bases(&self) -> Result<Vec<BaseFile>, JournalError> {
        let open = |disk: &BaseDisk| {
            let name = disk.file();
            let file = self.folder.open(&name);
            file.map(|file| (*disk, file))
                .map_err(|source| JournalError::io("open", &name, source))
        };
        self.index.disks.iter().map(open).collect()
    }
}

impl Index {
    /// About a point at `position` of the segments, or in the base.
    fn info(&self, position: Option<usize>, entry: &Entry, pins: Vec<String>) -> PointInfo {
        let mut disks = entry.disks.to_vec();
        disks.retain(|disk| !disk.joining);
        PointInfo {
            id: entry.point,
            time: entry.time,
            consistency: entry.consistency,
            since: entry.since,
            root: entry.root,
            content: entry.content,
            file_len: entry.file_len,
            in_base: position.is_none(),
            disks,
            pins,
            locked: self.locks.get(&entry.point.sequence).copied(),
        }
    }
}

/// Makes the names in a folder durable. Older versions did not make all of them.
fn sync_or_make(folder: &dyn Folder, name: &str) -> std::io::Result<()> {
    match folder.sync(name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            folder.create_folder(name)?;
            folder.sync("")
        }
        other => other,
    }
}

fn lock(path: &Path) -> Result<(Arc<dyn Folder>, Lock), JournalError> {
    let folder =
        OsFolder::open(path).map_err(|source| JournalError::io("open the folder", "", source))?;
    let lock = Lock::exclusive(&path.join(Journal::LOCK)).map_err(JournalError::Locked)?;
    Ok((Arc::new(folder), lock))
}

fn check_disks(disks: &[DiskExtent]) -> Result<(), JournalError> {
    let good = |(position, disk): (usize, &DiskExtent)| {
        disk.size.0 > 0
            && disk.size.0 % BLOCK_SIZE == 0
            && !disks[..position].iter().any(|other| other.id == disk.id)
    };
    if disks.is_empty() || disks.len() > MAX_DISKS || !disks.iter().enumerate().all(good) {
        return Err(JournalError::Disks);
    }
    Ok(())
}

/// The points that are open for reading in this process. A reader may outlive the [`Journal`]
/// that opened it: see [`Journal::open_beside`].
#[derive(Debug, Clone, Default)]
pub struct Leases(Arc<Mutex<Vec<PointId>>>);

impl Leases {
    fn take(&self, point: PointId) -> Lease {
        self.with(|points| points.push(point));
        Lease {
            leases: self.clone(),
            point,
        }
    }

    pub(crate) fn holds(&self, point: PointId) -> bool {
        self.with(|points| points.contains(&point))
    }

    /// The number of the newest one.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.with(|points| points.iter().map(|point| point.sequence).max())
    }

    fn with<T>(&self, change: impl FnOnce(&mut Vec<PointId>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps a point from being merged past until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    leases: Leases,
    point: PointId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.with(|points| {
            if let Some(at) = points.iter().position(|point| *point == self.point) {
                points.swap_remove(at);
            }
        });
    }
}
