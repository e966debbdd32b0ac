//! One flush for everybody who waits for one.
//!
//! ```text
//!   journal a: write, write ---> wait ---.                      .---> acknowledge
//!   journal b: write ----------> wait ----+---> one flush ------+---> acknowledge
//!   journal c: write, write ---> wait ---'   of all their files '---> acknowledge
//! ```
//!
//! Whoever comes while a flush runs waits for the next one, which flushes for all who came meanwhile: so
//! their number does not grow with the number of those who commit. A few files are flushed one by one;
//! for more than [`FEW`] the whole file system is, once ([`FileSystem`]).
//!
//! A file system tells once that a write failed, and not of which file. Somebody who wrote before that and
//! asks afterwards would not be told; each file tells itself. So after such a failure files are flushed one
//! by one, as long as the group lives.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::{File, Folder};

/// Most files that are flushed one by one.
pub const FEW: usize = 16;

/// What can be flushed as a whole.
pub trait FileSystem: Send + Sync + fmt::Debug {
    /// Makes everything in it durable.
    ///
    /// # Errors
    /// What the operating system says; also of a write that failed since the last call.
    fn sync_all(&self) -> io::Result<()>;
}

/// A file system of the operating system.
#[derive(Debug)]
pub struct OsFileSystem(fs::File);

impl OsFileSystem {
    /// The one that `path` is on. Made before anything is written there: it tells of what failed since.
    ///
    /// # Errors
    /// What the operating system says; `Unsupported` if it does not tell that a write failed.
    pub fn of(path: &Path) -> io::Result<Self> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        if !tells_of_failures(&release) {
            let reason = format!(
                "Linux {} does not tell of failed writes when a file system is flushed; {}.{} does",
                release.trim(),
                TELLS.0,
                TELLS.1
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        fs::File::open(path).map(Self)
    }
}

/// The first Linux of which syncfs(2) tells that a write failed.
const TELLS: (u32, u32) = (5, 8);

/// Of `release`, such as `6.1.0-13-amd64`. Not if it cannot be told.
fn tells_of_failures(release: &str) -> bool {
    let mut numbers = release.split(|it: char| !it.is_ascii_digit());
    let mut next = || numbers.next()?.parse::<u32>().ok();
    next().zip(next()).is_some_and(|version| version >= TELLS)
}

impl FileSystem for OsFileSystem {
    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }
}

/// Something that has to be durable.
#[derive(Debug, Clone)]
pub enum Need {
    /// Content and length of a file.
    Content(Arc<dyn File>),
    /// The names in a folder of a folder.
    Names(Arc<dyn Folder>, &'static str),
}

impl Need {
    fn flush(&self) -> io::Result<()> {
        match self {
            Self::Content(file) => file.sync(),
            Self::Names(folder, name) => folder.sync(name),
        }
    }
}

/// Those whose files lie on one file system. Any thread may wait for a flush.
#[derive(Debug, Default)]
pub struct Group {
    system: Option<Arc<dyn FileSystem>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Of the flush that comes next.
    number: u64,
    needs: Vec<Need>,
    waiting: usize,
    /// Somebody flushes.
    is_running: bool,
    /// A flush of the whole file system failed.
    is_doubtful: bool,
    /// Of flushes that are over, for those who have not seen it yet.
    outcomes: BTreeMap<u64, (usize, Outcome)>,
    flushed: Flushed,
}

type Outcome = Result<(), Arc<io::Error>>;

/// How much was flushed so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Flushed {
    /// Calls of [`Group::flush`].
    pub asked: u64,
    /// Files and folders that were flushed one by one.
    pub single: u64,
    /// Flushes of the whole file system.
    pub whole: u64,
}

/// What everybody is told whose flush failed.
#[derive(Debug, thiserror::Error)]
#[error("the flush failed")]
struct Failed(#[source] Arc<io::Error>);

impl Group {
    /// Those on `system`.
    #[must_use]
    pub fn new(system: Arc<dyn FileSystem>) -> Self {
        Self {
            system: Some(system),
            ..Self::default()
        }
    }

    /// Makes all of `needs` durable, in no order.
    ///
    /// # Errors
    /// The flush failed, for this caller or for another one of the group: nobody's files are known to
    /// be durable then, and what was written may be lost. Flushing them again proves nothing.
    pub fn flush(&self, needs: Vec<Need>) -> io::Result<()> {
        let mut state = self.lock();
        let mine = state.number;
        state.needs.extend(needs);
        state.waiting += 1;
        state.flushed.asked += 1;
        self.changed.notify_all();
        loop {
            if let Some(outcome) = state.outcome(mine) {
                return outcome.map_err(|error| io::Error::new(error.kind(), Failed(error)));
            }
            if state.is_running {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            } else {
                drop(state);
                self.lead();
                state = self.lock();
            }
        }
    }

    /// Number of callers who wait and for whom no flush runs yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Returns when so many callers wait at once.
    pub fn gathered(&self, callers: usize) {
        let mut state = self.lock();
        while state.waiting < callers {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How much was flushed so far.
    #[must_use]
    pub fn flushed(&self) -> Flushed {
        self.lock().flushed
    }

    /// Flushes for everybody who waits.
    fn lead(&self) {
        let mut state = self.lock();
        if state.is_running {
            return;
        }
        let mut lead = Lead {
            group: self,
            number: state.number,
            callers: std::mem::take(&mut state.waiting),
            is_whole: false,
            outcome: Err(Arc::new(io::Error::other("it was given up"))),
        };
        let needs = std::mem::take(&mut state.needs);
        state.number += 1;
        state.is_running = true;
        let may_be_whole = needs.len() > FEW && !state.is_doubtful;
        let system = self.system.as_ref().filter(|_| may_be_whole);
        lead.is_whole = system.is_some();
        match system {
            Some(_) => state.flushed.whole += 1,
            None => state.flushed.single += needs.len() as u64,
        }
        drop(state);
        let flushed = match system {
            Some(system) => system.sync_all(),
            None => needs.iter().try_for_each(Need::flush),
        };
        lead.finish(flushed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn outcome(&mut self, number: u64) -> Option<Outcome> {
        let (left, outcome) = self.outcomes.get_mut(&number)?;
        let outcome = outcome.clone();
        *left -= 1;
        if *left == 0 {
            self.outcomes.remove(&number);
        }
        Some(outcome)
    }
}

/// Tells everybody, even if the flush panicked.
struct Lead<'a> {
    group: &'a Group,
    number: u64,
    callers: usize,
    /// The whole file system is flushed.
    is_whole: bool,
    outcome: Outcome,
}

impl Lead<'_> {
    fn finish(mut self, flushed: io::Result<()>) {
        self.outcome = flushed.map_err(Arc::new);
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        state.is_running = false;
        state.is_doubtful |= self.is_whole && self.outcome.is_err();
        if self.callers > 0 {
            let outcome = (self.callers, self.outcome.clone());
            state.outcomes.insert(self.number, outcome);
        }
        drop(state);
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;

    /// Holds the first flush of a file until so many wait for the next one.
    #[derive(Debug)]
    struct Gate {
        group: Arc<Group>,
        callers: usize,
        begun: Barrier,
    }

    #[derive(Debug, Default)]
    struct System {
        syncs: AtomicU64,
        fails: AtomicBool,
    }

    impl FileSystem for System {
        fn sync_all(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            if self.fails.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
    }

    #[derive(Debug)]
    struct Plain;

    macro_rules! never_written {
        () => {
            fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
                Err(io::ErrorKind::Unsupported.into())
            }
            fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
                Err(io::ErrorKind::Unsupported.into())
            }
            fn punch(&self, _: u64, _: u64) -> io::Result<()> {
                Err(io::ErrorKind::Unsupported.into())
            }
            fn size(&self) -> io::Result<u64> {
                Ok(0)
            }
            fn allocated(&self) -> io::Result<u64> {
                Ok(0)
            }
            fn set_len(&self, _: u64) -> io::Result<()> {
                Err(io::ErrorKind::Unsupported.into())
            }
        };
    }

    impl File for Plain {
        never_written!();
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    impl File for Gate {
        never_written!();
        fn sync(&self) -> io::Result<()> {
            self.begun.wait();
            self.group.gathered(self.callers);
            Ok(())
        }
    }

    /// What so many callers are told who come while a flush runs, and the number of flushes.
    fn together(callers: usize, system: Arc<System>) -> (Vec<io::Result<()>>, Flushed) {
        let group = Arc::new(Group::new(system));
        let gate = Arc::new(Gate {
            group: group.clone(),
            callers,
            begun: Barrier::new(2),
        });
        std::thread::scope(|scope| {
            let first = scope.spawn(|| group.flush(vec![Need::Content(gate.clone())]));
            gate.begun.wait();
            let others: Vec<_> = (0..callers)
                .map(|_| {
                    scope.spawn(|| {
                        let file: Arc<dyn File> = Arc::new(Plain);
                        group.flush(vec![Need::Content(file.clone()), Need::Content(file)])
                    })
                })
                .collect();
            first.join().expect("no panic").expect("flushed");
            let outcomes = others.into_iter().map(|one| one.join().expect("no panic"));
            let outcomes = outcomes.collect();
            (outcomes, group.flushed())
        })
    }

    #[test]
    fn a_kernel_that_does_not_tell_of_failed_writes_flushes_no_whole_file_system() {
        for good in ["5.8", "5.10.0-26-amd64", "6.1.0-13-amd64\n", "10.0-rc1"] {
            assert!(tells_of_failures(good), "{good}");
        }
        for bad in ["5.7.19", "4.19.0-25-amd64", "3.10", "", "Linux", "6", "6.x"] {
            assert!(!tells_of_failures(bad), "{bad}");
        }
    }

    #[test]
    fn those_who_come_while_a_flush_runs_share_the_next_one() {
        let system = Arc::new(System::default());
        let (outcomes, flushed) = together(200, system.clone());
        assert!(outcomes.iter().all(Result::is_ok));
        let expected = Flushed {
            asked: 201,
            single: 1,
            whole: 1,
        };
        assert_eq!(flushed, expected);
        assert_eq!(system.syncs.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn everybody_is_told_of_a_flush_that_failed() {
        let system = Arc::new(System::default());
        system.fails.store(true, Ordering::SeqCst);
        let (outcomes, flushed) = together(100, system);
        assert_eq!(flushed.whole, 1);
        for outcome in outcomes {
            let error = outcome.expect_err("the flush failed");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }

    #[test]
    fn after_the_file_system_told_of_a_failure_each_file_is_asked() {
        let system = Arc::new(System::default());
        let group = Group::new(system.clone());
        let many = || {
            let file: Arc<dyn File> = Arc::new(Plain);
            group.flush(vec![Need::Content(file); 2 * FEW])
        };
        many().expect("flushed");
        system.fails.store(true, Ordering::SeqCst);
        many().expect_err("the flush failed");
        // It has told, and would say no more of who wrote before.
        system.fails.store(false, Ordering::SeqCst);
        many().expect("flushed");
        let flushed = group.flushed();
        assert_eq!((flushed.whole, flushed.single), (2, 2 * FEW as u64));
    }

    #[test]
    fn a_few_files_are_flushed_one_by_one() {
        let system = Arc::new(System::default());
        let group = Group::new(system.clone());
        let file: Arc<dyn File> = Arc::new(Plain);
        group
            .flush(vec![Need::Content(file); FEW])
            .expect("flushed");
        assert_eq!(group.flushed().single, FEW as u64);
        assert_eq!(system.syncs.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn the_file_system_of_a_folder_is_flushed() {
        let scratch = tempfile::tempdir().expect("scratch");
        let system = OsFileSystem::of(scratch.path()).expect("opened");
        system.sync_all().expect("flushed");
    }
}
