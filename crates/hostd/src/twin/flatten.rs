//! The journal's part in completing a failover: it comes to hold one point, and that becomes the disks of
//! the VM.
//!
//! ```text
//!   points 3 4 5 6 7, failed over to 5
//!     close      from here on nobody holds a point; refused while somebody does
//!     keep_only  6 and 7 are given up, 3 and 4 merged into the base, which is 5 then
//!     link       the base files get the names of the VM's disk files as well
//!     end        what is read of the journal from here on is no point: the VM writes to its base
//!     remove     its folder goes
//! ```
//!
//! Each may be done again after a crash, whole or not, and finds what was done.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use journal::{Begun, Held, Journal, JournalError};
use model::{Code, DiskId, PointId, Problem};

use super::{Store, Timestamp};
use crate::vm::branch::Branch;
use crate::vm::create;
use crate::vm::folder::VmFolder;
use crate::vm::takeover::{FAILOVER, TEST};

/// Whether points are to be had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    #[default]
    Open,
    /// A failover is being completed: nobody may hold one any more.
    Closed,
    /// The journal is a VM's disks, or gone.
    Ended,
}

impl Store {
    /// Refuses what would hold a point when the failover is being completed.
    pub(super) fn check_open(&self) -> Result<(), Problem> {
        match self.fate() {
            Fate::Open => Ok(()),
            Fate::Closed | Fate::Ended => Err(self.completed()),
        }
    }

    /// For whoever wants something of points that are gone.
    pub(super) fn completed(&self) -> Problem {
        let reason = "has no recovery points any more: its failover is complete";
        let way_out = "Take checkpoints of it with `pollux disk checkpoint`";
        Problem::new(Code::Conflict, &self.thing, reason, way_out)
    }

    /// Lets nobody hold a point any more. Blocking.
    ///
    /// # Errors
    /// Somebody but the failover does, or one is locked; nothing was changed.
    pub(crate) fn close(&self) -> Result<(), Problem> {
        let before = self.set_fate(Fate::Closed);
        let closed = self.nothing_locked().and_then(|()| self.nothing_held());
        if closed.is_err() {
            self.set_fate(before);
        }
        closed
    }

    /// Lets points be held again: it was not decided after all.
    pub(crate) fn reopen(&self) {
        self.set_fate(Fate::Open);
    }

    fn nothing_held(&self) -> Result<(), Problem> {
        if Branch::holds(&self.folder) {
            let reason = "keeps what this host wrote and never sent, which lies in the same files";
            let name = replica::run::name(&self.thing);
            let way_out = format!(
                "`pollux failover lost-writes {name}` shows it, `pollux point export {name} lost-writes FILE` \
                 takes it out, and `pollux failover lost-writes {name} --drop` keeps it no longer"
            );
            return Err(Problem::new(Code::Conflict, &self.thing, reason, way_out));
        }
        for point in self.points()? {
            let Some(pin) = point.pins.iter().find(|pin| *pin != FAILOVER) else {
                continue;
            };
            let name = replica::run::name(&self.thing);
            let (what, way_out) = holder(pin, name, &point.id.to_string());
            let reason = format!("has point {}, {what}", point.id);
            return Err(Problem::new(Code::Conflict, &self.thing, reason, way_out));
        }
        Ok(())
    }

    /// Makes `point`, which the failover has pinned, all that the journal holds. `told` is told how many
    /// points are gone, and of how many. Blocking, for as long as it takes to write them.
    ///
    /// # Errors
    /// Somebody holds one, or it cannot be read or written: it can be gone on with.
    pub(crate) fn keep_only(
        &self,
        point: PointId,
        told: impl Fn(usize, usize),
    ) -> Result<(), Problem> {
        let _alone = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        self.hold(true)?;
        let kept = self.keep_only_held(point, told);
        self.hold(false)?;
        kept
    }

    fn keep_only_held(&self, point: PointId, told: impl Fn(usize, usize)) -> Result<(), Problem> {
        let failed = |error: JournalError| match error.is_full() {
            true => Problem {
                code: Code::Full,
                ..Problem::failed(&self.thing, &error)
            },
            false => Problem::failed(&self.thing, &error),
        };
        let total = self.with(|journal| Ok(journal.count()))?.max(1);
        let now = Timestamp::now();
        let held = self.with(|journal| journal.cut_off_after(point, now).map_err(failed))?;
        if let Some(held) = held {
            return Err(self.held(held));
        }
        loop {
            let begun = self.with(|journal| {
                told(total - journal.count().min(total), total);
                // Nobody is told any more what changed since older points.
                journal.release(point).map_err(failed)?;
                journal.begin_merge(Timestamp::now()).map_err(failed)
            })?;
            let merge = match begun {
                Begun::Merge(merge) => merge,
                Begun::Held(Held::Nothing) => return Ok(()),
                Begun::Held(held) => return Err(self.held(held)),
            };
            let merged = merge.run().map_err(failed)?;
            self.with(|journal| {
                journal.finish_merge(merged).map_err(failed)?;
                self.note_debt(journal)
            })?;
        }
    }

    fn held(&self, held: Held) -> Problem {
        let reason = match held {
            Held::Nothing => "has nothing to be merged".to_owned(),
            Held::Point(point) => format!("has point {point}, which somebody reads"),
            Held::Locked(point, until) => {
                format!("has point {point}, which is locked until {until}")
            }
        };
        Problem::new(
            Code::Conflict,
            &self.thing,
            reason,
            "Wait until that is over",
        )
    }

    /// Gives the base files the names of the disk files of `machine`, which nothing was ever written to. Those
    /// that cannot lie in its folder, being on another file system, lie beside the journal; they are told.
    /// Blocking.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn link(&self, machine: &VmFolder) -> Result<Vec<(DiskId, PathBuf)>, Problem> {
        self.place.check()?;
        let mut elsewhere = Vec::new();
        for disk in &machine.spec.disks {
            let base = self.folder.join(Journal::base_file(disk.id));
            let own = machine.disk_file(disk);
            let failed = |error: io::Error| Problem::failed(base.display().to_string(), &error);
            match link(&base, &own) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    let name = own.file_name().unwrap_or_default();
                    let beside = self.place.folder().join(name);
                    link(&base, &beside).map_err(failed)?;
                    elsewhere.push((disk.id, beside));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(elsewhere)
    }

    /// The VM writes to what the base was. Blocking.
    pub(crate) fn end(&self) {
        let mut shelf = self.lock();
        *shelf = None;
        self.set_fate(Fate::Ended);
    }

    /// Whether something of the journal is there still. Blocking.
    pub(crate) fn is_left(&self) -> bool {
        self.folder.exists() || create::removed(&self.folder).exists()
    }

    /// Removes the journal for good. Blocking.
    ///
    /// # Errors
    /// What the operating system says; it can be done again.
    pub(crate) fn remove(&self) -> Result<(), Problem> {
        self.place.check()?;
        self.end();
        let failed = |error: io::Error| Problem::failed(self.folder.display().to_string(), &error);
        if self.folder.exists() {
            create::remove(&self.folder).map_err(failed)?;
        }
        match fs::remove_dir_all(create::removed(&self.folder)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

/// What holds the `point` of the VM `name` with this pin, and how that ends.
pub(super) fn holder(pin: &str, name: &str, point: &str) -> (&'static str, String) {
    if pin.starts_with(TEST) {
        (
            "which a test failover runs from",
            format!("End it with `pollux failover stop-test {name}`"),
        )
    } else {
        (
            "which is open or exported",
            format!(
                "Close it with `pollux point close {name} {point}`, or wait for the end of the export"
            ),
        )
    }
}

/// Gives `base` the name `file` as well, durably.
fn link(base: &Path, file: &Path) -> io::Result<()> {
    let which = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let base_is = which(base)?;
    match which(file) {
        Ok(found) if found == base_is => {}
        Ok(_) => {
            fs::remove_file(file)?;
            fs::hard_link(base, file)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::hard_link(base, file)?,
        Err(error) => return Err(error),
    }
    create::sync_parent(file)
}
