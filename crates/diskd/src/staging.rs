//! Staging: the content of a sealed epoch is read while the guest runs.
//!
//! ```text
//!   blocks of the disk   |......####..####|---##--##------##------|
//!                         read, or being    not read: a guest write to a sealed block
//!                         read         cursor   saves the old content first
//! ```
//!
//! - Readers take the sealed blocks in order, up to 64 KiB at a time (256 KiB of an initial replication),
//!   and wait for room. Longer runs are looked at before, some MiB ahead: what reads as zeroes and takes no
//!   space is handed over as such, and never read. That stays true until the cursor comes there: what is
//!   written meanwhile is saved first.
//! - A write that meets a sealed block which was not read yet reads it first (copy-before-write) and
//!   hands it over past the queue; one that meets a block being read waits for that read.
//! - Saved content in memory, from the decision to read it on, is bounded by the copy budget. Past it
//!   the epoch is abandoned: its marks fold back and writes run free again.
//! - A part of an initial replication is read without all that: what is written meanwhile is marked
//!   again, and the first delta makes it consistent.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use block::{Device, Fault, Image, Op, Store};
use futures_util::future::join_all;
use model::BLOCK_SIZE;
use roaring::RoaringTreemap;
use smallvec::SmallVec;

use crate::flow::{Cause, Flow, Payload, Permit, Piece};
use crate::holes::{LOOK, first};
use crate::state::DiskState;
use crate::tracker::{Rule, Tracker};

/// Blocks read at once: what a frame holds. Guest writes to them wait.
const RUN: u64 = 16;
/// Blocks of a part of an initial replication that are read at once: no write waits for them, and a disk
/// gives more in few large reads.
const SEED_RUN: u64 = 64;
/// A shorter run costs one read, whatever is in it, and is not looked at. (In tests each is.)
const LOOKED_AT: u64 = if cfg!(test) { 1 } else { RUN };
/// Staging reads in flight.
const READERS: usize = 8;
/// Those of an initial replication: in all as many bytes as a disk takes in beside writes of others.
const SEED_READERS: usize = 4;

/// Why an epoch was given up. Its marks are in the current map again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Abandoned {
    /// The guest overwrote more than could be saved in time.
    #[error("the guest overwrites its disk faster than the old content can be written")]
    Budget,
    /// The disk could not be read.
    #[error("disk content cannot be read: {0}")]
    Read(Fault),
    /// A checkpoint was applied before all was read.
    #[error("the content of the disk was replaced by that of a checkpoint")]
    Replaced,
    /// The segment cannot be written, or another disk's part failed.
    #[error("the segment cannot be completed")]
    Elsewhere,
}

/// What staging did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StageReport {
    /// Bytes of old content saved before a guest write.
    pub copied: u64,
}

/// Takes content of sealed blocks. Called on the owner thread.
pub type Sink = Box<dyn Fn(Piece)>;

/// What an epoch needs.
pub struct Epoch {
    /// Position of the disk in the segment's header.
    pub disk: u16,
    /// Takes the content.
    pub sink: Sink,
    /// Counts it.
    pub flow: Arc<Flow>,
    /// Most bytes of saved old content in memory.
    pub budget: u64,
}

/// A sealed epoch, until it is confirmed or folded back.
pub(crate) struct Staging {
    number: u64,
    epoch: Epoch,
    /// Whether the content is that of one instant (a cut) or just recent (seeding).
    consistent: bool,
    /// Sealed blocks before this one were read, or are in `reading`.
    cursor: u64,
    /// What takes no space between the cursor and `looked`, rising.
    holes: VecDeque<Range<u64>>,
    /// Blocks before this one were looked at, as far as that is of use.
    looked: u64,
    /// A reader looks further.
    looking: bool,
    reading: SmallVec<[Range<u64>; 16]>,
    /// Blocks that were read because of a write before the cursor came to them.
    saved: RoaringTreemap,
    report: StageReport,
    abandoned: Option<Abandoned>,
}

impl Staging {
    pub(crate) fn new(number: u64, epoch: Epoch, consistent: bool) -> Self {
        Self {
            number,
            epoch,
            consistent,
            cursor: 0,
            holes: VecDeque::new(),
            looked: 0,
            looking: false,
            reading: SmallVec::new(),
            saved: RoaringTreemap::new(),
            report: StageReport::default(),
            abandoned: None,
        }
    }

    /// Most blocks that are read at once.
    fn longest(&self) -> u64 {
        if self.consistent { RUN } else { SEED_RUN }
    }

    /// Whether `block` was read or is being read although the cursor has not come to it.
    fn is_ahead(&self, block: u64) -> bool {
        self.saved.contains(block) || self.reading.iter().any(|run| run.contains(&block))
    }

    /// Counts the content of `run`, which is about to be read.
    fn read(&mut self, run: Range<u64>, cause: Cause) -> Read {
        let len = (run.end - run.start) * BLOCK_SIZE;
        self.reading.push(run.clone());
        Read {
            number: self.number,
            permit: self.epoch.flow.take(cause, len),
            run,
            len,
            cause,
        }
    }

    fn hand_over(&self, block: u64, content: Payload, cause: Cause, permit: Permit) {
        (self.epoch.sink)(Piece {
            disk: self.epoch.disk,
            block,
            content,
            cause,
            permit,
        });
    }

    /// The hole that begins at `block` or before it, or else where the next one begins.
    fn hole_at(&mut self, block: u64) -> Result<Range<u64>, u64> {
        while self.holes.front().is_some_and(|hole| hole.end <= block) {
            self.holes.pop_front();
        }
        match self.holes.front() {
            Some(hole) if hole.start <= block => Ok(hole.clone()),
            Some(hole) => Err(hole.start),
            None => Err(u64::MAX),
        }
    }

    /// What is to be done for the next sealed blocks that nobody has read; those that it gives are read,
    /// or being read, from now on.
    fn next_step(&mut self, state: &DiskState) -> Option<Step> {
        let mut from = self.cursor;
        loop {
            let run = first(from, state.blocks(), |within| state.next_sealed(within))?;
            let Some(start) = run.clone().find(|block| !self.is_ahead(*block)) else {
                from = run.end;
                continue;
            };
            if start >= self.looked && run.end - start >= LOOKED_AT {
                if self.looking {
                    return Some(Step::Wait);
                }
                self.looking = true;
                return Some(Step::Look(start..run.end.min(start + LOOK)));
            }
            let hole = self.hole_at(start);
            let most = match &hole {
                Ok(hole) => hole.end,
                Err(next) => (start + self.longest()).min(*next),
            };
            self.cursor = self.next_ahead(start..run.end.min(most));
            let blocks = start..self.cursor;
            return Some(if hole.is_ok() {
                // In memory until it is written, like what is read, but small.
                let permit = self.epoch.flow.take(Cause::Staged, BLOCK_SIZE);
                Step::Zeroes(blocks, permit)
            } else {
                Step::Read(self.read(blocks, Cause::Staged))
            });
        }
    }

    /// The first of `blocks` that is ahead of the cursor, or their end; the very first one is not.
    fn next_ahead(&self, blocks: Range<u64>) -> u64 {
        let reading = self.reading.iter().map(|run| run.start);
        let reading = reading.filter(|start| *start > blocks.start).min();
        let saved = self.saved.select(self.saved.rank(blocks.start));
        let first = saved.into_iter().chain(reading).min();
        first.map_or(blocks.end, |first| first.min(blocks.end))
    }

    /// The runs of `blocks` that must be saved before they change; they are being read from now
    /// on.
    fn runs_to_save(
        &mut self,
        state: &DiskState,
        blocks: &Range<u64>,
    ) -> Result<Vec<Read>, Abandoned> {
        let mut left = self.epoch.budget.saturating_sub(self.epoch.flow.copied()) / BLOCK_SIZE;
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut from = blocks.start.max(self.cursor);
        while from < blocks.end {
            let Some(sealed) = state.next_sealed(from..blocks.end) else {
                break;
            };
            from = sealed.end;
            for block in sealed {
                if self.saved.contains(block) {
                    continue;
                }
                if left == 0 {
                    return Err(Abandoned::Budget);
                }
                left -= 1;
                match runs.last_mut() {
                    Some(last) if last.end == block && last.end - last.start < RUN => {
                        last.end += 1;
                    }
                    _ => runs.push(block..block + 1),
                }
            }
        }
        let runs = runs.into_iter();
        Ok(runs.map(|run| self.read(run, Cause::Copied)).collect())
    }
}

/// What a reader does next.
enum Step {
    Read(Read),
    /// They take no space: that is handed over.
    Zeroes(Range<u64>, Permit),
    /// Nobody looked there yet; this reader does.
    Look(Range<u64>),
    /// Another one looks.
    Wait,
}

/// Blocks that are being read. They count from the moment at which that was decided, so that reads in
/// flight are inside the budget too.
struct Read {
    /// Of the epoch.
    number: u64,
    run: Range<u64>,
    len: u64,
    cause: Cause,
    permit: Permit,
}

impl<D: Device + Image, S: Store> Tracker<D, S> {
    /// Reads the sealed blocks into the sink.
    ///
    /// # Errors
    /// Why the epoch was abandoned.
    pub async fn stage(&self) -> Result<StageReport, Abandoned> {
        self.changed
            .until(|| (!self.waits_for_crossing()).then_some(()))
            .await;
        let readers = match &*self.staging.borrow() {
            Some(staging) if !staging.consistent => SEED_READERS,
            _ => READERS,
        };
        join_all((0..readers).map(|_| self.read_runs())).await;
        // Those that writes wait for.
        self.changed
            .until(|| {
                let staging = self.staging.borrow();
                let reading = staging
                    .as_ref()
                    .is_some_and(|staging| !staging.reading.is_empty());
                (!reading).then_some(())
            })
            .await;
        match &*self.staging.borrow() {
            Some(staging) => staging.abandoned.map_or(Ok(staging.report), Err),
            None => Err(Abandoned::Elsewhere),
        }
    }

    async fn read_runs(&self) {
        loop {
            let flow = match &*self.staging.borrow() {
                Some(staging) => Arc::clone(&staging.epoch.flow),
                None => return,
            };
            flow.room().await;
            let next = match &mut *self.staging.borrow_mut() {
                Some(staging) if staging.abandoned.is_none() => staging.next_step(&self.state),
                _ => None,
            };
            match next {
                Some(Step::Read(read)) => self.read_run(read).await,
                Some(Step::Zeroes(blocks, permit)) => {
                    if let Some(staging) = &*self.staging.borrow() {
                        let zeroes = Payload::Zeroes(blocks.end - blocks.start);
                        staging.hand_over(blocks.start, zeroes, Cause::Staged, permit);
                    }
                }
                Some(Step::Look(blocks)) => self.look(blocks).await,
                Some(Step::Wait) => {
                    let looked = || {
                        let staging = self.staging.borrow();
                        let looking = staging.as_ref().is_some_and(|staging| staging.looking);
                        (!looking).then_some(())
                    };
                    self.changed.until(looked).await;
                }
                None => return,
            }
        }
    }

    /// Looks where `blocks` of the epoch take no space.
    async fn look(&self, blocks: Range<u64>) {
        let (holes, looked) = self.holes(blocks).await;
        if let Some(staging) = &mut *self.staging.borrow_mut() {
            (staging.looked, staging.looking) = (looked, false);
            staging.holes.extend(holes);
        }
        self.changed.notify();
    }
}

impl<D: Device, S: Store> Tracker<D, S> {
    /// Whether a mutation of the sealed epoch is still in flight.
    fn waits_for_crossing(&self) -> bool {
        self.keeps(Rule::WaitForCrossing)
            && self.crossing.get() > 0
            && self
                .staging
                .borrow()
                .as_ref()
                .is_some_and(|staging| staging.consistent && staging.abandoned.is_none())
    }

    /// Gives the epoch up; its marks go back at once, and writes don't wait for it any more.
    pub fn abandon(&self, why: Abandoned) {
        if let Some(staging) = &mut *self.staging.borrow_mut() {
            if staging.abandoned.is_none() {
                staging.abandoned = Some(why);
                self.state.fold_back();
            }
        }
        self.publish();
        self.changed.notify();
    }

    /// The content of `runs` is about to be another one; their regions were armed. An epoch whose content is that of an instant
    /// and was not all read can't be had any more.
    pub fn replaced(&self, runs: &[Range<u64>]) {
        if runs.is_empty() {
            return;
        }
        let consistent = |staging: &Staging| staging.consistent;
        if self.staging.borrow().as_ref().is_some_and(consistent) {
            self.abandon(Abandoned::Replaced);
        }
        if self.state.relationship().is_some() {
            for run in runs {
                let end = run.end.min(self.state.blocks());
                let run = run.start.min(end)..end;
                self.ledger.touch(&run);
                self.state.mark(run);
            }
            self.publish();
        }
    }

    /// The disk has `size` bytes from now on, if that is more; reserved, and armed, before.
    pub fn grown(&self, size: u64) {
        let had = self.state.blocks();
        self.state.grow_reserved(size);
        let has = self.state.blocks();
        if has > had {
            self.ledger.touch(&(had..has));
        }
    }

    /// Ends the epoch after [`Tracker::stage`]: forgets its marks if its segment is whole, puts them
    /// back otherwise.
    pub fn end(&self, whole: bool) {
        if let Some(staging) = self.staging.take() {
            match (whole, staging.abandoned) {
                (true, None) => self.state.release(),
                (false, None) => self.state.fold_back(),
                // Folded back then.
                (_, Some(_)) => {}
            }
        }
        self.publish();
        self.changed.notify();
    }

    /// Reads blocks that are in `reading` and hands them over.
    async fn read_run(&self, read: Read) {
        let Read {
            number,
            run,
            len,
            cause,
            permit,
        } = read;
        let op = Op::Read {
            at: run.start * BLOCK_SIZE,
            into: permit.buffer(usize::try_from(len).expect("256 KiB at most")),
        };
        let done = self.below.run(op).await;
        let mut failed = None;
        if let Some(staging) = &mut *self.staging.borrow_mut() {
            // A later epoch has nothing to do with this read.
            if staging.number == number {
                staging.reading.retain(|one| *one != run);
                match (done.outcome, done.buffer) {
                    _ if staging.abandoned.is_some() => {}
                    (Ok(()), Some(content)) => {
                        if cause == Cause::Copied {
                            staging.saved.insert_range(run.clone());
                            staging.report.copied += len;
                        }
                        staging.hand_over(run.start, Payload::Read(content), cause, permit);
                    }
                    (Err(fault), _) => failed = Some(fault),
                    (Ok(()), None) => failed = Some(Fault::Os(libc::EIO)),
                }
            }
        }
        if let Some(fault) = failed {
            self.abandon(Abandoned::Read(fault));
        }
        self.changed.notify();
    }

    /// Waits until a mutation of `blocks` may be issued.
    pub(crate) async fn admit(&self, blocks: &Range<u64>) {
        loop {
            self.changed
                .until(|| (!self.is_held_up(blocks)).then_some(()))
                .await;
            let reads = match &mut *self.staging.borrow_mut() {
                Some(staging) if staging.consistent && staging.abandoned.is_none() => {
                    if self.keeps(Rule::CopyBeforeWrite) {
                        staging.runs_to_save(&self.state, blocks)
                    } else {
                        Ok(Vec::new())
                    }
                }
                _ => return,
            };
            match reads {
                Ok(reads) if reads.is_empty() => return,
                Ok(reads) => {
                    join_all(reads.into_iter().map(|read| self.read_run(read))).await;
                }
                Err(why) => {
                    self.abandon(why);
                    return;
                }
            }
        }
    }

    fn is_held_up(&self, blocks: &Range<u64>) -> bool {
        let meets = |other: &Range<u64>| other.start < blocks.end && blocks.start < other.end;
        if self.parked.get() {
            return true;
        }
        if let Some(staging) = &*self.staging.borrow() {
            let matters = staging.consistent && staging.abandoned.is_none();
            if matters && staging.reading.iter().any(meets) {
                return true;
            }
        }
        self.keeps(Rule::WaitForCrossing)
            && self.crossing.get() > 0
            && self
                .flights
                .borrow()
                .iter()
                .any(|(_, flight)| flight.crossing && meets(&flight.blocks))
    }
}
