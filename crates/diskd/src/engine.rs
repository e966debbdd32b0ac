//! The disks of the VM together: what the control socket asks for.
//!
//! Runs on control threads. The thread that asks for an epoch is the one that compresses, hashes and
//! writes its segment; the owners only read.
//!
//! ```text
//!   Cut:  draft <file>.part -> all disks sealed -> pieces -> whole -> rename -> sealed becomes unconfirmed
//!                  |              | late: abandoned  | a write fails, a budget is spent
//!                  +--------------+------------------+--> part removed, marks folded back, refused
//! ```
//!
//! - A kill before the last step leaves the marks in the sealed maps; the next process folds them back and
//!   removes the part. So what is not in a whole segment is marked, always.
//! - A refusal means that there is no segment file, and that all marks are kept. Once the file has its
//!   name nothing can go wrong any more: an owner that is slow to take the last step is not waited for.
//! - No answer at all (this process was killed) says nothing: whoever asked looks into the outbox.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use model::{BLOCK_SIZE, Bytes, Code, DiskId, Problem, VmId};
use ring::Sender;

use crate::coarse::MOST_RUNS;
use crate::config::Config;
use crate::control::{DiskStatus, Reply, StoreKind};
use crate::owner::Order;
use crate::tally::Tally;
use crate::tracker::Stats;

use ahead::Ahead;

/// See [`Engine::patience`].
const ANSWER: Duration = Duration::from_secs(30);

/// A disk, as the engine reaches it.
pub struct Disk {
    /// Its identity.
    pub id: DiskId,
    /// What its guest sees in bytes.
    pub size: AtomicU64,
    /// Its owner.
    pub orders: Sender<Order>,
    /// Its counters.
    pub stats: Arc<Stats>,
}

/// An order that will be answered.
struct Asked<'a, T>(&'a Disk, mpsc::Receiver<T>);

/// See the module.
pub struct Engine {
    vm: VmId,
    term: u64,
    /// Of the configuration that is in force.
    generation: AtomicU64,
    /// The configuration file.
    file: PathBuf,
    copy_budget: Bytes,
    /// What of the sandbox is missing, in words.
    lacking: Vec<String>,
    disks: Vec<Disk>,
    /// How long an owner may take to answer what it answers at once; then it is stuck.
    patience: Duration,
    /// Runs of marks that an epoch may have.
    most_runs: u64,
    /// Held while marks move: one epoch at a time.
    epoch: Mutex<()>,
    /// The next part of an initial replication.
    ahead: Ahead,
    /// Held while stacks change: one reload or step of a merge at a time.
    stacks: Mutex<()>,
    /// Held while disks wait for each other: one instant at a time.
    instant: Mutex<()>,
    /// Counted since this process started.
    tally: Mutex<Tally>,
}

impl Engine {
    /// The disks of `config`, in its order, which was read from `file`. `lacking` is what of the
    /// sandbox is missing, in words.
    #[must_use]
    pub fn new(file: PathBuf, config: &Config, disks: Vec<Disk>, lacking: Vec<String>) -> Self {
        Self {
            vm: config.vm,
            term: config.term,
            generation: AtomicU64::new(config.generation),
            file,
            copy_budget: config.copy_budget,
            lacking,
            disks,
            patience: ANSWER,
            most_runs: MOST_RUNS,
            epoch: Mutex::new(()),
            ahead: Ahead::default(),
            stacks: Mutex::new(()),
            instant: Mutex::new(()),
            tally: Mutex::default(),
        }
    }

    fn problem(&self, code: Code, reason: impl std::fmt::Display, way_out: &str) -> Problem {
        Problem::new(
            code,
            format!("the disks of VM {}", self.vm),
            reason.to_string(),
            way_out,
        )
    }

    fn busy(&self, reason: &str) -> Problem {
        self.problem(
            Code::Conflict,
            reason,
            "ask again when it has been answered",
        )
    }

    fn invalid(&self, reason: impl std::fmt::Display) -> Problem {
        self.problem(Code::Invalid, reason, "")
    }

    /// Works on marks alone; a part that was made ahead is given up.
    fn alone(&self) -> Result<MutexGuard<'_, ()>, Problem> {
        loop {
            self.give_up_ahead();
            let alone = self.alone_beside()?;
            // Another one may have begun since; from now on none moves marks.
            if self.ahead.is_nothing() {
                return Ok(alone);
            }
        }
    }

    /// Works on marks alone but for a part that is made ahead.
    fn alone_beside(&self) -> Result<MutexGuard<'_, ()>, Problem> {
        loop {
            self.ahead.settle();
            let hold = || self.hold(&self.epoch, "another request works on their marks");
            let held = hold();
            // One that began since is waited for; if it moves no more, it has let go.
            if held.is_ok() || !self.ahead.is_moving() {
                return held.or_else(|_busy| hold());
            }
        }
    }

    fn hold<'a>(&self, what: &'a Mutex<()>, busy: &str) -> Result<MutexGuard<'a, ()>, Problem> {
        match what.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(self.busy(busy)),
        }
    }

    pub(crate) fn order(&self, disk: &Disk, order: Order) -> Result<(), Problem> {
        disk.orders
            .send(order)
            .map_err(|error| self.stuck(disk, &error.to_string()))
    }

    /// Gives an order that ends something, though the owner be far behind.
    pub(crate) fn insist(&self, disk: &Disk, order: Order) -> Result<(), Problem> {
        disk.orders
            .insist(order)
            .map_err(|error| self.stuck(disk, &error.to_string()))
    }

    fn stuck(&self, disk: &Disk, why: &str) -> Problem {
        self.problem(
            Code::Failed,
            format!("disk {} does not answer: {why}", disk.id),
            "look at the log of pollux-diskd",
        )
    }

    /// Gives an order to every one of `disks`, whatever becomes of the others, and collects the
    /// answers.
    pub(crate) fn ask<T>(
        &self,
        disks: &[&Disk],
        make: impl Fn(mpsc::Sender<T>) -> Order,
    ) -> Result<Vec<T>, Problem> {
        let asked: Vec<_> = disks
            .iter()
            .map(|disk| {
                let (answer, answered) = mpsc::channel();
                self.order(disk, make(answer)).map(|()| (*disk, answered))
            })
            .collect();
        let answers: Vec<_> = asked.into_iter().map(|asked| self.answer(asked?)).collect();
        answers.into_iter().collect()
    }

    /// Gives an order whose answer takes as long as the storage does.
    fn begin_to_ask<'a, T>(
        &self,
        disk: &'a Disk,
        make: impl FnOnce(mpsc::Sender<T>) -> Order,
    ) -> Result<Asked<'a, T>, Problem> {
        let (answer, answered) = mpsc::channel();
        self.order(disk, make(answer))?;
        Ok(Asked(disk, answered))
    }

    fn answer_at_length<T>(&self, Asked(disk, answered): Asked<'_, T>) -> Result<T, Problem> {
        let gone = |error: mpsc::RecvError| self.stuck(disk, &error.to_string());
        answered.recv().map_err(gone)
    }

    /// [`Engine::ask`] for what takes as long as the storage does.
    fn ask_at_length<T>(
        &self,
        disks: &[&Disk],
        make: impl Fn(mpsc::Sender<T>) -> Order,
    ) -> Result<Vec<T>, Problem> {
        let asked = disks.iter().map(|disk| self.begin_to_ask(disk, &make));
        let asked: Vec<_> = asked.collect();
        let answers: Vec<_> = asked
            .into_iter()
            .map(|asked| self.answer_at_length(asked?))
            .collect();
        answers.into_iter().collect()
    }

    fn answer<T>(&self, (disk, answered): (&Disk, mpsc::Receiver<T>)) -> Result<T, Problem> {
        answered
            .recv_timeout(self.patience)
            .map_err(|error| self.stuck(disk, &error.to_string()))
    }

    /// Ends an epoch on every one of `disks`. An owner that does not answer now does it when it goes
    /// on, before any later order; if it never does, the next process folds back what is sealed.
    pub(crate) fn end_epoch(&self, disks: &[&Disk], whole: bool) {
        let asked: Vec<_> = disks
            .iter()
            .map(|disk| {
                let (answer, answered) = mpsc::channel();
                self.insist(disk, Order::End(whole, answer))
                    .map(|()| (*disk, answered))
            })
            .collect();
        for asked in asked {
            if let Err(problem) = asked.and_then(|asked| self.answer(asked)) {
                tracing::error!(%problem, whole, "the end of an epoch is not carried out yet");
            }
        }
    }

    /// Two instants at once would wait for each other.
    fn one_instant(&self) -> MutexGuard<'_, ()> {
        self.instant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<&Disk> {
        self.disks.iter().collect()
    }

    /// How the disks are.
    ///
    /// # Errors
    /// When an owner does not answer.
    pub fn status(&self) -> Result<Reply, Problem> {
        let looks = self.ask(&self.all(), Order::Look)?;
        // All owners use the same.
        let store = looks.first().map_or(StoreKind::IoUring, |look| look.store);
        let disks = self.disks.iter().zip(looks);
        let disks = disks.map(|(disk, look)| DiskStatus {
            id: disk.id,
            size: look.size,
            connected: look.connected,
            waiting_for_room: look.waiting_for_room,
            overlays: look.overlays,
            dirty: Bytes(disk.stats.dirty.load(Relaxed) * BLOCK_SIZE),
            reads: disk.stats.reads.load(Relaxed),
            writes: disk.stats.writes.load(Relaxed),
            flushes: disk.stats.flushes.load(Relaxed),
            flush_failed: disk.stats.flush_failed.load(Relaxed) != 0,
            replaced: look.replaced,
            tracking: look.tracking,
        });
        Ok(Reply::Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.generation.load(Relaxed),
            store,
            lacking: self.lacking.clone(),
            disks: disks.collect(),
            epochs: self.tally().status(),
        })
    }

    /// Lets every request be answered, takes no more, makes everything durable; for as long as that
    /// takes. Afterwards the process must end, whatever the outcome.
    ///
    /// # Errors
    /// When a disk cannot be flushed.
    pub fn close(&self) -> Result<Reply, Problem> {
        let asked: Vec<_> = self
            .disks
            .iter()
            .map(|disk| {
                let (answer, answered) = mpsc::channel();
                self.insist(disk, Order::Close(answer))
                    .map(|()| (disk, answered))
            })
            .collect();
        let mut outcome = Ok(Reply::Done);
        for asked in asked {
            let closed = asked.and_then(|(disk, answered)| match answered.recv() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(fault)) => Err(self.problem(
                    Code::Failed,
                    format!(
                        "disk {} cannot be flushed, what the guest wrote last may be lost: {fault}",
                        disk.id
                    ),
                    "check the storage below it, then start the VM again: its disks are reopened",
                )),
                Err(gone) => Err(self.stuck(disk, &gone.to_string())),
            });
            if let Err(problem) = closed {
                tracing::error!(%problem, "closed, but not in order");
                outcome = Err(problem);
            }
        }
        outcome
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

mod ahead;
mod epochs;
mod marks;
mod reload;
mod seeds;

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
