//! A twin: what this host keeps of another host's VM.
//!
//! ```text
//!   replicas/UUID/
//!     vm.toml            as received
//!     standing.toml replication.toml
//!     copy.toml          while it is filled from another VM ([`crate::filling`])
//!     journal/           base, segments, index; or store.toml: where they are (`stores`)
//!     failover/  test/   VMs above a pinned point
//!     branch/            of a former primary: the VM as it was, what it never sent ([`crate::vm::branch`],
//!                        [`lost`])
//!     open-ID/           a pinned point that is open for reading (`vm::opened`)
//! ```
//!
//! The journal is open while this host is the replica: on the [`Shelf`], where the receiver
//! commits. After a failover it is opened for the moment when something is wanted of it, and it goes when
//! that is completed ([`flatten`]).

mod debt;
mod flatten;
mod lost;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use jiff::{SignedDuration, Timestamp};
use journal::{Begun, ChangedDisk, DiskExtent, Journal, JournalError, Leases, PointInfo, Tip};
use model::{Bytes, Code, DiskId, Keep, PointId, Problem, RelationshipId, VmSpec};
use replica::host::Shelf;
use replica::standing::{self, Role, Standing, StandingError};
use replica::wire::Enrol;

use self::debt::Debt;
pub(crate) use self::debt::device_of;
use self::flatten::Fate;
pub(crate) use self::lost::{LOST, Lost, nothing_lost};
use crate::filling::{Copy, Filling};
use crate::flushes::Flushes;
use crate::stores::{self, Place, Stores, Volume};
use crate::vm::View;
use crate::vm::branch::Branch;
use crate::vm::create::{no_space_or, publish};
use crate::vm::folder::{VmFolder, thing};
use crate::vm::opened::Openings;
use crate::vm::relation::Relation;

/// Where twins are made.
#[derive(Debug)]
pub(crate) struct Into<'a> {
    /// Folder of all twins.
    pub(crate) replicas: &'a Path,
    pub(crate) stores: &'a Stores,
    /// The store for the journal, other than the default one.
    pub(crate) volume: Option<Arc<Volume>>,
}

/// Makes the folder of a twin, durably, whole or not at all. Blocking.
pub(crate) fn make(
    into: &Into<'_>,
    partner: &str,
    enrol: &Enrol,
    copy: Option<&Copy>,
) -> Result<(PathBuf, Place), Problem> {
    let spec = &enrol.spec;
    let thing = thing(spec.name.as_str());
    let failed = |error: std::io::Error| no_space_or(&thing, &error);
    let disks = extents(&thing, spec, enrol)?;
    let home = into.replicas.join(spec.id.to_string());
    if home.exists() {
        return Err(Problem::new(
            Code::Conflict,
            &thing,
            format!(
                "has a folder already that cannot be used: {}",
                home.display()
            ),
            "`pollux host status` there tells what is wrong with it",
        ));
    }
    let _alone = into.stores.alone();
    stores::make_way(into.replicas, spec.id, into.stores)?;
    let temporary = into.replicas.join(format!("{}{}", stores::NEW, spec.id));
    durable::create_folder(&temporary).map_err(failed)?;
    let journal = |folder: &Path| {
        Journal::create(&folder.join("journal"), spec.id, &disks, enrol.seed)
            .map(drop)
            .map_err(|error| journal_failed(&thing, &error))
    };
    let fill_all = || {
        let place = match &into.volume {
            None => {
                journal(&temporary)?;
                Place::beside(&home)
            }
            Some(volume) => {
                volume.check()?;
                let place = Place::within(Arc::clone(volume), spec.id);
                check_unknown(&thing, place.folder())?;
                // First: whoever finds it removes what is made now.
                stores::note(&temporary, volume).map_err(failed)?;
                let half = volume.path().join(format!("{}{}", stores::NEW, spec.id));
                durable::create_folder(&half).map_err(failed)?;
                journal(&half)?;
                publish(&half, place.folder()).map_err(failed)?;
                place
            }
        };
        fill(&temporary, partner, enrol, Vec::new())?;
        if let Some(copy) = copy {
            copy.write(&temporary).map_err(failed)?;
        }
        publish(&temporary, &home).map_err(failed)?;
        Ok(place)
    };
    match fill_all() {
        Ok(place) => Ok((home, place)),
        Err(problem) => {
            if let Err(left) = stores::make_way(into.replicas, spec.id, into.stores) {
                tracing::warn!(problem = %left, "is removed at the next start");
            }
            Err(problem)
        }
    }
}

/// Refuses to make a journal where one lies that no twin of this host leads to.
fn check_unknown(thing: &str, folder: &Path) -> Result<(), Problem> {
    if !folder.exists() {
        return Ok(());
    }
    let reason = format!("would be received into {}, which exists", folder.display());
    let way_out =
        "Look at that folder on the replica host, and move it away: no twin there uses it";
    Err(Problem::new(Code::Conflict, thing, reason, way_out))
}

pub(crate) fn journal_failed(thing: &str, error: &JournalError) -> Problem {
    let problem = Problem::failed(thing, error);
    if error.is_full() {
        let code = Code::Full;
        return Problem { code, ..problem };
    }
    problem
}

pub(crate) fn fill(
    folder: &Path,
    partner: &str,
    enrol: &Enrol,
    earlier: Vec<RelationshipId>,
) -> Result<(), Problem> {
    let thing = thing(enrol.spec.name.as_str());
    let received = VmFolder {
        path: folder.to_owned(),
        spec: enrol.spec.clone(),
        origin: None,
    };
    received
        .write()
        .map_err(|error| no_space_or(&thing, &error))?;
    let relation = Relation {
        keep: enrol.keep.clone(),
        revision: Some(enrol.revision),
        earlier,
        ..Relation::new(
            enrol.relationship,
            partner,
            enrol.frequency_s,
            enrol.seed,
            enrol.disks.clone(),
        )
    };
    relation
        .write(folder)
        .map_err(|error| no_space_or(&thing, &error))?;
    Standing::replica(partner, enrol.lineage.clone())
        .store(&folder.join(standing::FILE))
        .map(drop)
        .map_err(|error| match error {
            StandingError::Io { source, .. } => no_space_or(&thing, &source),
            error => Problem::failed(&thing, &error),
        })
}

/// The replicated disks with their sizes.
fn extents(thing: &str, spec: &VmSpec, enrol: &Enrol) -> Result<Vec<DiskExtent>, Problem> {
    let size_of = |id| spec.disks.iter().find(|disk| disk.id == id);
    enrol
        .disks
        .iter()
        .map(|id| {
            let disk = size_of(*id).ok_or_else(|| {
                let reason = format!("is to be replicated with {id:?}, which it does not have");
                Problem::new(Code::Invalid, thing, reason, "")
            })?;
            Ok(DiskExtent {
                joining: false,
                id: disk.id,
                size: disk.size,
            })
        })
        .collect()
}

/// Most merges after one look at all points: meanwhile the policy may change.
const MERGES: usize = 64;

/// What people call the newest point.
pub(crate) const LATEST: &str = "latest";

/// The journal of one twin.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    place: Place,
    folder: PathBuf,
    thing: String,
    shelf: Shelf<Journal>,
    /// Points that are being read, through whichever `Journal` they were opened.
    leases: Leases,
    /// Those on the same file system flush together.
    flushes: Flushes,
    /// Held while points are merged, so that it is done once at a time.
    merging: Arc<Mutex<()>>,
    /// Whether points that an earlier polluxd had begun to work with were looked for.
    adopted: Arc<AtomicBool>,
    /// The bytes that it took when that was measured last.
    took: Arc<AtomicU64>,
    /// What it owes its file system.
    debt: Arc<Mutex<Option<Debt>>>,
    /// Points that are served to whoever asked for them.
    pub(crate) opened: Openings,
    /// Before anything is received.
    pub(crate) filling: Filling,
    /// The journal while a failover is completed, opened once for all of it. Locked with the shelf only.
    aside: Arc<Mutex<Option<Journal>>>,
    fate: Arc<Mutex<Fate>>,
    /// The journal of what this host wrote and never sent.
    lost: Arc<OnceLock<Store>>,
}

impl Store {
    /// The journal that lies in `place`; not opened yet.
    pub(crate) fn new(place: Place, thing: String, flushes: Flushes) -> Self {
        Self {
            folder: place.journal(),
            place,
            filling: Filling::none(),
            thing,
            shelf: Shelf::default(),
            leases: Leases::default(),
            flushes,
            merging: Arc::default(),
            adopted: Arc::default(),
            took: Arc::default(),
            debt: Arc::default(),
            opened: Openings::default(),
            aside: Arc::default(),
            fate: Arc::default(),
            lost: Arc::default(),
        }
    }

    /// The same, of a VM that was failed over: its failover is being `completed`; it lies on disks of its own
    /// if it is `flat`.
    pub(crate) fn after_failover(self, completed: bool, flat: bool) -> Self {
        let fate = match (completed, flat) {
            (_, true) => Fate::Ended,
            (true, false) => Fate::Closed,
            (false, false) => Fate::Open,
        };
        self.set_fate(fate);
        self
    }

    fn fate(&self) -> Fate {
        *self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what it is, and gives what it was.
    fn set_fate(&self, fate: Fate) -> Fate {
        let mut held = self.fate.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *held, fate)
    }

    /// The same, of the twin whose home is `home`: it is filled first, if that is to be done.
    pub(crate) fn filled(mut self, home: &Path) -> Self {
        self.filling = Filling::of(home, &self.thing);
        self.filling.begin(self.folder.clone());
        self
    }

    /// For messages: ``VM `web` ``.
    pub(crate) fn thing(&self) -> &str {
        &self.thing
    }

    /// Where it lies.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The journal's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn lock(&self) -> MutexGuard<'_, Option<Journal>> {
        // A journal that a panic left half changed notices that itself when it is used next.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Journal, Problem> {
        let group = self.flushes.of(&self.folder);
        let journal = Journal::open_beside(&self.folder, self.leases.clone(), group)
            .map_err(|error| Problem::failed(&self.thing, &error))?;
        self.note_debt(&journal)?;
        Ok(match Branch::holds(&self.folder) {
            true => journal.keeping_base(),
            false => journal,
        })
    }

    /// Whether to look for points that an earlier polluxd had begun to work with: true once, as soon as
    /// the journal can be had. Blocking.
    pub(crate) fn adopt_once(&self) -> bool {
        !self.adopted.load(Ordering::Relaxed)
            && self.fate() != Fate::Ended
            && self.place.check().is_ok()
            && !self.adopted.swap(true, Ordering::Relaxed)
    }

    /// Takes the journal off the shelf if its store is away: what is open there is not what comes back.
    fn check_place(&self, shelf: &mut Option<Journal>) -> Result<(), Problem> {
        self.place.check().inspect_err(|_| *shelf = None)
    }

    /// The shelf with the journal on it, while this host is the replica. Blocking.
    pub(crate) fn shelf(&self, role: impl FnOnce() -> Role) -> Result<Shelf<Journal>, Problem> {
        let mut shelf = self.lock();
        self.check_place(&mut shelf)?;
        // Looked at under the lock: whoever takes over holds it while the role changes.
        if shelf.is_none() && role() == Role::Replica {
            *shelf = Some(self.open()?);
        }
        drop(shelf);
        Ok(Arc::clone(&self.shelf))
    }

    /// Returns when no commit is under way that began before. Blocking.
    pub(crate) fn wait_quiet(&self) {
        drop(self.lock());
    }

    /// Does something with the journal, wherever it is. Blocking.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&mut Journal) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let mut shelf = self.lock();
        if self.fate() == Fate::Ended {
            return Err(self.completed());
        }
        self.check_place(&mut shelf)?;
        if let Some(journal) = shelf.as_mut() {
            return work(journal);
        }
        match self.aside().as_mut() {
            Some(journal) => work(journal),
            None => work(&mut self.open()?),
        }
    }

    fn aside(&self) -> MutexGuard<'_, Option<Journal>> {
        // As on the shelf.
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the journal open for [`with`](Self::with), or not any more.
    fn hold(&self, held: bool) -> Result<(), Problem> {
        let mut shelf = self.lock();
        let mut aside = self.aside();
        *aside = None;
        if held && shelf.is_none() {
            self.check_place(&mut shelf)?;
            *aside = Some(self.open()?);
        }
        Ok(())
    }

    /// Changes the role while nothing can be committed; afterwards nothing is on the shelf, if
    /// it was changed. `change` is told the newest point. Blocking.
    pub(crate) fn take_over(
        &self,
        change: impl FnOnce(Option<PointId>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let mut shelf = self.lock();
        self.check_place(&mut shelf)?;
        if shelf.is_none() {
            *shelf = Some(self.open()?);
        }
        let newest = match shelf.as_ref().map(Journal::tip) {
            Some(journal::Tip::Point { point, .. }) => Some(point),
            _ => None,
        };
        change(newest)?;
        *shelf = None;
        Ok(())
    }

    /// What `measure` finds that it takes in its store; while that is away, what it took when it was
    /// measured last. Blocking.
    pub(crate) fn taken(
        &self,
        measure: impl FnOnce(&mut Journal) -> Result<u64, Problem>,
    ) -> Result<u64, Problem> {
        if self.fate() == Fate::Ended {
            return Ok(0);
        }
        if self.place.check().is_err() {
            return Ok(self.took.load(Ordering::Relaxed));
        }
        let taken = self.with(measure)?;
        self.took.store(taken, Ordering::Relaxed);
        Ok(taken)
    }

    /// The points, the oldest first. Blocking.
    pub(crate) fn points(&self) -> Result<Vec<PointInfo>, Problem> {
        if self.fate() == Fate::Ended {
            return Ok(Vec::new());
        }
        self.with(|journal| Ok(journal.points()))
    }

    /// What points take that would have gone by `keep` if nothing had to stay that was written here and
    /// never sent; none if nothing has to. Blocking.
    pub(crate) fn held_back(&self, keep: &Keep) -> Result<Option<Bytes>, Problem> {
        match Branch::holds(&self.folder) {
            true => self.with(|journal| Ok(Some(journal.due_len(keep, Timestamp::now())))),
            false => Ok(None),
        }
    }

    /// The newest point. Blocking.
    pub(crate) fn newest(&self) -> Result<PointId, Problem> {
        Ok(self.newest_info()?.id)
    }

    /// The newest point, and when it was cut. Blocking.
    pub(crate) fn newest_info(&self) -> Result<PointInfo, Problem> {
        Ok(self.some_points()?.1)
    }

    /// The points, the oldest first, and the newest of them.
    fn some_points(&self) -> Result<(Vec<PointInfo>, PointInfo), Problem> {
        let points = self.points()?;
        if self.fate() == Fate::Ended {
            return Err(self.completed());
        }
        match points.last().cloned() {
            Some(latest) => Ok((points, latest)),
            None => {
                let has_disks = Branch::holds(&self.folder);
                Err(replica::run::no_point(&self.thing, has_disks))
            }
        }
    }

    /// Where two points differ, of the disks that both have; none if that is not known. Blocking.
    pub(crate) fn changes_between(
        &self,
        x: PointId,
        y: PointId,
    ) -> Result<Option<Vec<ChangedDisk>>, Problem> {
        self.with(|journal| {
            let changes = journal.changes_between(x, y);
            changes.map_err(|error| Problem::failed(&self.thing, &error))
        })
    }

    /// The disks that a point has, and their sizes then. Blocking.
    pub(crate) fn disks(&self, point: PointId) -> Result<Vec<(DiskId, Bytes)>, Problem> {
        let failed = |error| Problem::failed(&self.thing, &error);
        let reader = self.with(|journal| journal.open_point(point).map_err(failed))?;
        Ok(reader.disks().collect())
    }

    /// The point that a person means: [`LATEST`], or as it is printed.
    pub(crate) fn find(&self, wanted: &str) -> Result<PointId, Problem> {
        if wanted == LOST {
            let reason = format!("does not have {LOST} among its points");
            let way_out = "What was written here and never sent can be tested, opened and exported; \
                           `pollux vm create --image` makes another VM of what was exported";
            return Err(Problem::new(Code::Conflict, &self.thing, reason, way_out));
        }
        let (points, latest) = self.some_points()?;
        if wanted == LATEST {
            return Ok(latest.id);
        }
        let mut matching = points.iter().filter(|point| point.id.to_string() == wanted);
        match (matching.next(), matching.next()) {
            (Some(point), None) => Ok(point.id),
            _ => Err(Problem::new(
                Code::NotFound,
                format!("point `{wanted}` of {}", self.thing),
                "does not exist on this host",
                "`pollux point list` shows the points, and `latest` is the newest",
            )),
        }
    }

    /// Keeps a point for `reason`, durably. Blocking.
    pub(crate) fn pin(&self, point: PointId, reason: &str) -> Result<(), Problem> {
        self.with(|journal| {
            self.check_open()?;
            journal
                .pin(point, reason)
                .map_err(|error| Problem::failed(&self.thing, &error))
        })
    }

    /// Keeps it no longer, durably. Blocking.
    pub(crate) fn unpin(&self, point: PointId, reason: &str) -> Result<(), Problem> {
        self.with(|journal| {
            journal
                .unpin(point, reason)
                .map_err(|error| Problem::failed(&self.thing, &error))
        })
    }

    /// Keeps a point until then, durably, whatever the policy says and whoever wants it gone.
    /// Blocking.
    pub(crate) fn lock_point(&self, point: PointId, until: Timestamp) -> Result<(), Problem> {
        let thing = || format!("point {point} of {}", self.thing);
        check_lock(&thing(), until, Timestamp::now())?;
        self.with(|journal| {
            self.check_open()?;
            journal.lock(point, until).map_err(|error| match error {
                JournalError::LockedLonger { until, .. } => {
                    let reason = format!("is locked until {until}, and a lock is never shortened");
                    Problem::new(Code::Conflict, thing(), reason, "Name a later time")
                }
                error => Problem::failed(thing(), &error),
            })
        })
    }

    /// Refuses while a point is locked. Blocking.
    pub(crate) fn nothing_locked(&self) -> Result<(), Problem> {
        let now = Timestamp::now();
        let points = self.points()?;
        let locks = points
            .iter()
            .filter_map(|point| Some((point.locked?, point.id)));
        match locks
            .filter(|(until, _)| *until > now)
            .max_by_key(|(until, _)| *until)
        {
            None => Ok(()),
            Some((until, point)) => {
                let reason = format!("has point {point}, which is locked until {until}");
                let way_out = "Wait until then; a lock cannot be taken back";
                Err(Problem::new(Code::Conflict, &self.thing, reason, way_out))
            }
        }
    }

    /// Lets go of the points that `keep` does not want: the oldest ones into the base, others into the
    /// next newer one while more than `reserve` is free. While what was written here and never sent lies
    /// in the base, which has to stay, the oldest ones go into each other. The journal takes points in
    /// meanwhile. Blocking.
    pub(crate) fn retain(&self, keep: &Keep, reserve: Bytes) -> Result<(), Problem> {
        if let Some(journal) = self.lock().as_ref() {
            self.note_debt(journal)?;
        }
        let Ok(_alone) = self.merging.try_lock() else {
            return Ok(());
        };
        while self.merge_some(|journal| journal.merges_due(keep, Timestamp::now()))? {}
        while self.thin(keep, reserve)? {}
        Ok(())
    }

    /// Lets go of the oldest points that would be too old by `keep` if the one that waits for room, which was
    /// cut at `next`, were here. Blocking.
    pub(crate) fn make_room(&self, keep: &Keep, next: Timestamp) -> Result<(), Problem> {
        let Ok(_alone) = self.merging.try_lock() else {
            return Ok(());
        };
        // A clock that is wrong, on one host only, makes no point older than it is.
        let next = next.min(Timestamp::now());
        let due = |journal: &Journal| journal.merges_due_before_next(keep, next);
        while self.merge_some(due)? {}
        Ok(())
    }

    /// What has to be merged now, [`MERGES`] at most. Tells whether there may be more to do.
    fn merge_some(&self, due: impl Fn(&Journal) -> usize) -> Result<bool, Problem> {
        let due = match self.lock().as_ref() {
            // What was written here and never sent lies in the base.
            _ if Branch::holds(&self.folder) => 0,
            Some(journal) => due(journal),
            None => 0,
        };
        for _ in 0..due.min(MERGES) {
            if !self.merge()? {
                return Ok(false);
            }
        }
        Ok(due > 0)
    }

    /// One merge. Tells whether it was done; not if a point is in the way, or if the journal was taken
    /// over meanwhile: the next to open it begins again.
    fn merge(&self) -> Result<bool, Problem> {
        let failed = |error| Problem::failed(&self.thing, &error);
        let begun = match self.lock().as_mut() {
            Some(journal) => {
                if let Tip::Point { point, .. } = journal.tip() {
                    // The primary, which is the only peer, cut it.
                    journal.release(point).map_err(failed)?;
                }
                journal.begin_merge(Timestamp::now()).map_err(failed)?
            }
            None => return Ok(false),
        };
        let Begun::Merge(merge) = begun else {
            return Ok(false);
        };
        let merged = merge.run().map_err(failed)?;
        match self.lock().as_mut() {
            Some(journal) => {
                journal.finish_merge(merged).map_err(failed)?;
                self.note_debt(journal)?;
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Puts some points into a newer one, and tells as [`Store::merge`] does.
    fn thin(&self, keep: &Keep, reserve: Bytes) -> Result<bool, Problem> {
        let failed = |error| Problem::failed(&self.thing, &error);
        let now = Timestamp::now();
        let begun = match self.lock().as_mut() {
            Some(journal) => match journal.begin_thin(keep, now, reserve).map_err(failed)? {
                None if Branch::holds(&self.folder) => journal
                    .begin_thin_oldest(keep, now, reserve)
                    .map_err(failed)?,
                begun => begun,
            },
            None => None,
        };
        let Some(thin) = begun else {
            return Ok(false);
        };
        let thinned = match thin.run() {
            // There was room a moment ago. What is merged goes on without any.
            Err(error) if error.is_full() => return Ok(false),
            other => other.map_err(failed)?,
        };
        match self.lock().as_mut() {
            Some(journal) => {
                journal.finish_thin(thinned, now).map_err(failed)?;
                self.note_debt(journal)?;
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Makes run files of new segments and joins them, so that points are opened at once and in little
    /// memory. The journal takes points in meanwhile. Blocking.
    pub(crate) fn tidy(&self) -> Result<(), Problem> {
        let Some(tidy) = self.lock().as_ref().and_then(Journal::begin_tidy) else {
            return Ok(());
        };
        let tidied = tidy
            .run()
            .map_err(|error| Problem::failed(&self.thing, &error))?;
        if let Some(journal) = self.lock().as_mut() {
            journal.finish_tidy(tidied);
        }
        Ok(())
    }
}

/// A lock cannot be taken back, so that a slip of the finger must not make one for ever.
fn check_lock(thing: &str, until: Timestamp, now: Timestamp) -> Result<(), Problem> {
    let refuse = |reason: String| {
        let way_out = format!("Name a time after now and before {}", longest(now));
        Err(Problem::new(Code::Invalid, thing, reason, way_out))
    };
    if until <= now {
        return refuse(format!("cannot be locked until {until}: that is past"));
    }
    if until > longest(now) {
        return refuse(format!("cannot be locked until {until}: that is too far"));
    }
    Ok(())
}

/// The end of the longest lock: ten years.
fn longest(now: Timestamp) -> Timestamp {
    let years = SignedDuration::from_hours(10 * 366 * 24);
    let then = now.checked_add(years).unwrap_or(Timestamp::MAX);
    Timestamp::from_second(then.as_second()).unwrap_or(then)
}

/// A refusal for what only a twin has.
pub(crate) fn not_a_twin(view: &View) -> Problem {
    match &view.relation {
        Some(relation) => Problem::new(
            Code::Conflict,
            view.thing(),
            format!("has its recovery points on host `{}`", relation.partner),
            "Ask there",
        ),
        None => Problem::new(
            Code::Conflict,
            view.thing(),
            "is no twin of another host's VM, so it has no recovery points",
            "`pollux replica enable` makes a twin on another host",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_lies_ahead_and_ends_within_ten_years() {
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let after = |hours| now + SignedDuration::from_hours(hours);
        check_lock("point", after(1), now).expect("an hour");
        check_lock("point", after(10 * 365 * 24), now).expect("ten years");
        for (hours, says) in [(0, "past"), (-1, "past"), (11 * 366 * 24, "too far")] {
            let refused = check_lock("point", after(hours), now).expect_err(says);
            assert_eq!(refused.code, Code::Invalid);
            assert!(refused.reason.contains(says), "{refused}");
        }
    }
}
