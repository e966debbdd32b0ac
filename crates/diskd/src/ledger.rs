//! The write-intent log of a disk, for as long as it can be kept.
//!
//! ```text
//!              begin                    a write or sync fails
//!   untracked -------> kept ------------------------------------> condemned
//!       ^               |   ^                                         |  its file is removed,
//!       |     end       |   | begin                                   v  durably
//!       +---------------+   +---------------------------------------- lost
//! ```
//!
//! - **Kept:** what is armed in it may be written to at once, the rest waits for a commit.
//! - **Condemned:** nobody knows what the file says, so nothing may change that it might not tell of:
//!   every mutation is refused until the file is gone.
//! - **Lost:** without a file everything is suspect after a power cut, so there is nothing to arm.
//!
//! Regions that were touched since the last sweep began are *hot*: they would be armed again soon, and
//! what was written there may be newer than what that sweep makes durable.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;

use block::{Fault, Store};
use model::{BLOCK_SIZE, DiskId, RelationshipId};

use crate::control::LogStatus;
use crate::engine::chain;
use crate::intent::{Armed, IntentLog, LogError, Looks, Tag, Unknown, regions};
use crate::sparse::Sparse;

/// Where a log lies.
pub trait Place<S> {
    /// Opens the file, if there is one.
    ///
    /// # Errors
    /// What the operating system says.
    fn open(&self) -> io::Result<Option<S>>;

    /// Makes the file anew and its name durable. Who has the old one open goes on in a file without
    /// a name.
    ///
    /// # Errors
    /// What the operating system says.
    fn make(&self) -> io::Result<S>;

    /// Removes the file, if there is one; it stays away after a power cut.
    ///
    /// # Errors
    /// What the operating system says.
    fn remove(&self) -> io::Result<()>;
}

enum Phase<S> {
    Untracked,
    Kept(Rc<IntentLog<S>>),
    Condemned(String),
    Lost(String),
}

/// See the module. Used by the owner thread of its disk only.
pub struct Ledger<S> {
    disk: DiskId,
    place: Box<dyn Place<S>>,
    /// What the files of the disk are, for a log that is begun.
    identity: Cell<Looks>,
    kept: RefCell<Phase<S>>,
    hot: RefCell<Hot>,
    /// Commits of logs that were ended.
    commits: Cell<u64>,
    faults: Sparse,
}

impl<S: Store> Ledger<S> {
    /// No log is kept yet of `disk`, whose files are `identity`.
    #[must_use]
    pub fn new(disk: DiskId, identity: Looks, place: Box<dyn Place<S>>) -> Self {
        Self {
            disk,
            place,
            identity: Cell::new(identity),
            kept: RefCell::new(Phase::Untracked),
            hot: RefCell::default(),
            commits: Cell::new(0),
            faults: Sparse::default(),
        }
    }

    /// The log that an earlier process left. It is not kept yet.
    ///
    /// # Errors
    /// Why nobody knows what it says.
    pub async fn find(&self) -> Result<Option<IntentLog<S>>, NotFound> {
        match self.place.open().map_err(NotFound::Open)? {
            Some(store) => Ok(Some(IntentLog::open(store, self.disk).await?)),
            None => Ok(None),
        }
    }

    /// What the files of the disk are.
    pub fn identity(&self) -> Looks {
        self.identity.get()
    }

    /// What lies below everything is `identity` now, with the same content.
    ///
    /// # Errors
    /// The log can neither be written nor removed.
    pub async fn identify(&self, identity: Looks) -> Result<(), Fault> {
        if self.identity.replace(identity) == identity {
            return Ok(());
        }
        match self.log() {
            Some(log) => {
                let noted = log.opened(identity).await;
                self.or_lose(&log, noted)
            }
            None => Ok(()),
        }
    }

    /// Keeps a log that was found.
    pub fn keep(&self, log: IntentLog<S>) -> Rc<IntentLog<S>> {
        let log = Rc::new(log);
        self.put(Phase::Kept(Rc::clone(&log)));
        log
    }

    /// Begins a log for `relationship` of a disk of `size` bytes, with everything armed. If that
    /// cannot be, it is lost.
    pub async fn begin(&self, relationship: RelationshipId, size: u64) {
        // Until it is there, a power cut finds no log, or one that was not finished.
        if let Err(why) = self.place.remove() {
            self.condemn(format!("it cannot be made anew: {why}"));
            return;
        }
        self.put(Phase::Lost("it is being made".to_owned()));
        match self.make(relationship, size).await {
            Ok(log) => drop(self.keep(log)),
            Err(why) => self.condemn(why),
        }
    }

    async fn make(&self, relationship: RelationshipId, size: u64) -> Result<IntentLog<S>, String> {
        let store = self.place.make();
        let store = store.map_err(|error| format!("it cannot be made: {error}"))?;
        let disk = self.disk;
        let tag = Tag { disk, relationship };
        let made = async {
            let log = IntentLog::create(store, tag, size, Armed::All).await?;
            log.opened(self.identity.get()).await?;
            Ok(log)
        };
        made.await.map_err(|error: LogError| chain(&error))
    }

    /// Nothing is tracked any more: the log is removed.
    ///
    /// # Errors
    /// When that cannot be; nothing was changed.
    pub fn end(&self) -> io::Result<()> {
        self.place.remove()?;
        self.put(Phase::Untracked);
        Ok(())
    }

    fn put(&self, kept: Phase<S>) {
        if let Some(old) = self.log() {
            self.commits.set(self.commits.get() + old.commits());
        }
        self.kept.replace(kept);
    }

    /// The log, if it is kept.
    pub fn log(&self) -> Option<Rc<IntentLog<S>>> {
        match &*self.kept.borrow() {
            Phase::Kept(log) => Some(Rc::clone(log)),
            _ => None,
        }
    }

    /// Whether `blocks` may change now.
    pub fn is_armed(&self, blocks: &Range<u64>) -> bool {
        match &*self.kept.borrow() {
            Phase::Kept(log) => log.is_armed(blocks),
            Phase::Condemned(_) => false,
            Phase::Untracked | Phase::Lost(_) => true,
        }
    }

    /// Waits until `regions` are armed, or there is nothing to arm any more. They may be disarmed again
    /// when the caller goes on: it looks once more.
    ///
    /// # Errors
    /// The log cannot be written, and not be removed either.
    pub async fn arm(&self, regions: Range<u64>) -> Result<(), Fault> {
        match self.log() {
            Some(log) => {
                let armed = log.arm(regions).await;
                self.or_lose(&log, armed)
            }
            None => self.remove_condemned(),
        }
    }

    /// The outcome of something that `log` did; if it failed, that log is lost.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn or_lose(&self, log: &Rc<IntentLog<S>>, done: Result<(), LogError>) -> Result<(), Fault> {
        let Err(error) = done else { return Ok(()) };
        if self.log().is_some_and(|kept| Rc::ptr_eq(&kept, log)) {
            self.condemn(chain(&error));
        }
        self.remove_condemned()
    }

    fn condemn(&self, why: String) {
        tracing::error!(
            why,
            "the write-intent log of the disk is not kept any more: after a power cut the whole disk is \
             compared with its replica"
        );
        self.put(Phase::Condemned(why));
        let _ = self.remove_condemned();
    }

    fn remove_condemned(&self) -> Result<(), Fault> {
        let why = match &*self.kept.borrow() {
            Phase::Condemned(why) => why.clone(),
            _ => return Ok(()),
        };
        match self.place.remove() {
            Ok(()) => {
                self.kept.replace(Phase::Lost(why));
                Ok(())
            }
            Err(error) => {
                if let Some(so_far) = self.faults.next() {
                    tracing::error!(
                        %error, so_far,
                        "the write-intent log can neither be written nor removed: the guest cannot write; \
                         check the storage of the VM's folder"
                    );
                }
                Err(Fault::Os(libc::EIO))
            }
        }
    }

    /// The content of blocks changes: in the step in which they are marked and the change is issued.
    pub(crate) fn touch(&self, blocks: &Range<u64>) {
        if matches!(&*self.kept.borrow(), Phase::Kept(_)) {
            self.hot.borrow_mut().add(regions(blocks));
        }
    }

    pub(crate) fn is_hot(&self, region: u64) -> bool {
        self.hot.borrow().has(region)
    }

    /// What was touched before is not hot any more; gives what that was.
    pub(crate) fn cool(&self) -> Hot {
        let mut hot = self.hot.borrow_mut();
        let cold = Hot(vec![0; hot.0.len()]);
        std::mem::replace(&mut hot, cold)
    }

    /// Whether there should be a log and is none.
    pub fn is_lost(&self) -> bool {
        matches!(&*self.kept.borrow(), Phase::Lost(_) | Phase::Condemned(_))
    }

    /// Regions of a disk of so many that are armed.
    pub fn armed(&self, regions: u64) -> u64 {
        match &*self.kept.borrow() {
            Phase::Kept(log) => log.armed(),
            Phase::Untracked => 0,
            Phase::Condemned(_) | Phase::Lost(_) => regions,
        }
    }

    /// How it is.
    pub fn status(&self) -> LogStatus {
        match &*self.kept.borrow() {
            Phase::Kept(_) | Phase::Untracked => LogStatus::Kept,
            Phase::Condemned(why) | Phase::Lost(why) => LogStatus::Lost { why: why.clone() },
        }
    }

    /// Commits of its logs.
    pub fn commits(&self) -> u64 {
        self.commits.get() + self.log().map_or(0, |log| log.commits())
    }
}

/// Regions, a bit for each.
#[derive(Default)]
pub(crate) struct Hot(Vec<u64>);

impl Hot {
    fn add(&mut self, regions: Range<u64>) {
        for region in regions {
            let (word, bit) = place(region);
            if self.0.len() <= word {
                self.0.resize(word + 1, 0);
            }
            self.0[word] |= bit;
        }
    }

    pub(crate) fn has(&self, region: u64) -> bool {
        let (word, bit) = place(region);
        self.0.get(word).is_some_and(|bits| bits & bit != 0)
    }
}

/// Why nobody knows what a log says.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// Its file cannot be opened.
    #[error("the write-intent log cannot be opened")]
    Open(#[source] io::Error),
    /// It says nothing.
    #[error(transparent)]
    Unknown(#[from] Unknown),
}

/// The word of a region, and its bit.
fn place(region: u64) -> (usize, u64) {
    let word = usize::try_from(region / 64).expect("a region of a disk of 64 TiB at most");
    (word, 1 << (region % 64))
}

/// The blocks of `regions` that a disk of so many blocks has.
pub(crate) fn blocks_of(regions: &Range<u64>, blocks: u64) -> Range<u64> {
    const BLOCKS: u64 = model::REGION_SIZE / BLOCK_SIZE;
    let end = regions.end.saturating_mul(BLOCKS).min(blocks);
    (regions.start * BLOCKS).min(end)..end
}

#[cfg(test)]
pub(crate) struct Nowhere;

#[cfg(test)]
impl<S> Place<S> for Nowhere {
    fn open(&self) -> io::Result<Option<S>> {
        Ok(None)
    }

    fn make(&self) -> io::Result<S> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
impl Ledger<ring::RingStore> {
    /// Keeps no log.
    pub(crate) fn nowhere() -> Self {
        Self::new(DiskId::random(), Looks::of(&[]), Box::new(Nowhere))
    }
}
