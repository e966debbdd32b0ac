//! What the primary does next: a pure function of what happened. No I/O, no clock.
//!
//! ```text
//!   Starting --> Asking --+--> FoldingBack, Suspecting --> (decide again)
//!   (track)      (tip)    +--> Comparing, Noting, ... until nothing is suspect
//!      ^           ^      +--> Staging --> Recording? --> Offering --> Shipping --> Committing
//!      |           |      +--> Recording --> Confirming <---------------------------+
//!      |           |                             |
//!      |           |                     Looking, Marking: if a person wants it verified
//!      |           |                             |
//!   Waiting: own failure, link lost,  <----------+ until the next point is due
//!
//!   Asking --> Configuring --> ...   the replica follows another configuration
//!   Asking, anything remote --> Waiting   it is paused there, or filled from a copy, until it is not
//!
//!   any answer may say that the replica took over: Gating --> StoodDown
//! ```
//!
//! Invariants:
//! - at most one segment is staged, and it is offered, confirmed or folded back before another;
//! - a point is cut only when the replica's tip is known, nothing is staged, and nothing is
//!   suspect, and builds on that tip;
//! - progress is durable before the marks of what it confirms are dropped, so that a restart at
//!   any instant finds either the segment or its acknowledgement;
//! - at most one thing is under way, but for chunks and contact;
//! - the partner is asked every second how it stands, whatever else goes on, also while nothing
//!   is sent: an answer that says that it took over stops the guest at once, one that says that a
//!   person paused it there stops the sending, and one that says that there is no such relationship
//!   is told to a person;
//! - what the replica says of the configuration that it follows is compared with what is wanted, so
//!   that whatever was lost, repeated or restored, it is sent until they are the same.

mod answers;
mod contact;
mod join;
mod reception;
mod resync;
mod trouble;
mod verify;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use journal::Root;
use model::{Bytes, Code, DiskId, Lineage, PointId, Problem, ReplicationState, Since};

use crate::link::LinkError;
use crate::report::LinkReport;
use crate::source::{
    Changing, ComparedRegion, CutDisk, Plan, Progress, SeedPart, Staged, StagedPart, Suspects,
    Tracking,
};
use crate::wire::{
    Basis, CommitAnswer, CompareAnswer, Configuration, ConfigureAnswer, ContactAnswer, Digest,
    Offer, OfferAnswer, Tip, TipAnswer,
};
use contact::Contact;
use join::Join;
use resync::{At, Findings};
use verify::{Looked, Repair, Verifying};

pub use contact::{CONTACT, LONGEST_CONTACT};
pub(crate) use reception::{filled, paused};

/// Chunks on their way at one time.
pub const WINDOW: usize = 4;
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// So often an answer may contradict the one before until a person is asked.
const CONTRADICTIONS: u32 = 3;

/// The time of an event.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Since the driver started, on a clock that only rises.
    pub since_start: Duration,
    /// By the host's clock; for reports only.
    pub wall: Timestamp,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The time that [`Output::Sleep`] named has come.
    Tick,
    /// [`Output::Track`] ended.
    Tracked(Result<Tracking, Problem>),
    /// [`Output::AskTip`] ended.
    Tip(Result<TipAnswer, LinkError>),
    /// [`Output::Seed`] ended.
    SeedStaged(Result<StagedPart, Problem>),
    /// [`Output::Cut`] ended.
    CutStaged(Result<StagedPart, Problem>),
    /// [`Output::Compare`] ended: what the regions hold, and the answer.
    Answered(Result<(Suspects, Result<CompareAnswer, LinkError>), Problem>),
    /// [`Output::Note`] ended.
    Noted(Result<(), Problem>),
    /// [`Output::Look`] ended: what the regions hold, and the answer.
    Looked(Result<(Changing, Result<CompareAnswer, LinkError>), Problem>),
    /// [`Output::Mark`] ended.
    Marked(Result<(), Problem>),
    /// [`Output::Suspect`] ended.
    Suspected(Result<Bytes, Problem>),
    /// [`Output::Persist`] ended.
    Persisted(Result<(), Problem>),
    /// [`Output::Offer`] ended: what was offered, and the answer.
    Offered(Result<(Offer, Result<OfferAnswer, LinkError>), Problem>),
    /// [`Output::Put`] of this chunk ended; the outer error is that it cannot be read.
    Stored(u64, Result<Result<(), LinkError>, Problem>),
    /// [`Output::Commit`] ended.
    Committed(Result<CommitAnswer, LinkError>),
    /// [`Output::Confirm`] ended.
    Confirmed(Result<(), Problem>),
    /// [`Output::FoldBack`] ended.
    FoldedBack(Result<(), Problem>),
    /// [`Output::Gate`] ended.
    Gated(Result<(), Problem>),
    /// [`Output::Contact`] ended.
    Contacted(Result<ContactAnswer, LinkError>),
    /// [`Output::Configure`] ended.
    Configured(Result<ConfigureAnswer, LinkError>),
    /// From now on the replica is to follow this one.
    Changed(Arc<Configuration>),
    /// The next point is wanted now, whenever it is due.
    Hurry,
    /// A person wants it to stop for a while.
    Suspend,
    /// A person wants it to go on; also out of [`ReplicationState::Error`].
    Resume,
    /// A person wants the replica's newest point verified; nothing if that goes on already.
    Verify(u64),
    /// Nobody waits for that verification any more.
    VerifyNoMore(u64),
}

/// What to do now. Each but `Abandon`, `Sleep`, `Put` and `Contact` ends with its event before
/// the next is given; `Gate` may come beside anything else of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// [`Source::track`](crate::source::Source::track).
    Track,
    /// [`Link::tip`](crate::link::Link::tip).
    AskTip,
    /// [`Link::configure`](crate::link::Link::configure).
    Configure {
        /// What is wanted.
        configuration: Arc<Configuration>,
        /// Its revision.
        revision: Digest,
    },
    /// [`Source::seed`](crate::source::Source::seed).
    Seed(SeedPart),
    /// Reserve a sequence number, then [`Source::cut`](crate::source::Source::cut).
    Cut {
        /// What the point builds on.
        since: Since,
        /// The sequence number must be above this one.
        above: u64,
        /// The disks that it is cut of.
        disks: Vec<CutDisk>,
    },
    /// Hash the next suspect regions, then compare them with the replica.
    Compare {
        /// The disk.
        disk: DiskId,
        /// The first region to look at.
        region: u64,
        /// What the replica holds.
        basis: Basis,
        /// The highest sequence number that may have been used.
        issued: u64,
    },
    /// [`Source::compared`](crate::source::Source::compared).
    Note {
        /// The disk.
        disk: DiskId,
        /// What the comparison told.
        regions: Vec<ComparedRegion>,
    },
    /// Hash the next regions, then compare them with the replica.
    Look {
        /// The disk.
        disk: DiskId,
        /// The first region to look at.
        region: u64,
        /// The replica's newest point.
        tip: PointId,
        /// The highest sequence number that may have been used.
        issued: u64,
    },
    /// [`Source::mark`](crate::source::Source::mark).
    Mark {
        /// The disk.
        disk: DiskId,
        /// What is damaged.
        regions: Vec<ComparedRegion>,
    },
    /// [`Source::suspect`](crate::source::Source::suspect).
    Suspect {
        /// Sequence numbers up to this one may have been used.
        issued: u64,
    },
    /// [`Source::persist`](crate::source::Source::persist).
    Persist(Progress),
    /// Read what the file consists of, then offer it.
    Offer {
        /// What is staged.
        staged: Staged,
        /// [`Offer::round`]
        round: u64,
    },
    /// Read this chunk of the offered segment and store it at the replica.
    Put(u64),
    /// [`Link::commit`](crate::link::Link::commit) of the offered segment.
    Commit,
    /// [`Source::confirm`](crate::source::Source::confirm).
    Confirm(Staged),
    /// [`Source::fold_back`](crate::source::Source::fold_back).
    FoldBack(Staged),
    /// [`Source::gate`](crate::source::Source::gate).
    Gate(Lineage),
    /// [`Link::contact`](crate::link::Link::contact); beside everything else, one at a time.
    Contact,
    /// Drop every request to the partner that is under way but contact; no event comes of them.
    Abandon,
    /// Give [`Event::Tick`] when this much time has passed since the start, unless another
    /// `Sleep` came before.
    Sleep(Duration),
}

/// What is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Starting,
    Asking,
    /// The replica has this, and follows another configuration.
    Configuring(Tip),
    Staging,
    Comparing(At),
    Noting(Findings),
    Looking(At),
    Marking(Looked),
    Suspecting {
        tip: PointId,
        issued: u64,
    },
    /// The progress that is being persisted; then the staged segment is confirmed or offered.
    Recording {
        progress: Progress,
        then: Then,
    },
    Offering,
    Shipping {
        waiting: VecDeque<u64>,
        flying: BTreeSet<u64>,
    },
    Committing,
    Confirming,
    FoldingBack,
    Gating(Lineage),
    Waiting {
        until: Duration,
        wait: Wait,
    },
    Suspended,
    StoodDown,
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Then {
    Offer,
    Confirm,
    /// What came of the initial replication, from its beginning.
    Compare,
    Note(Findings),
}

/// What follows a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wait {
    /// The next point.
    Due,
    /// Asking for the tip again.
    Link,
    /// Asking whether it is paused there still.
    Paused,
    /// Asking whether it is filled from a copy still.
    Filling,
    /// Tracking again.
    Source,
    /// Stopping the guest again.
    Gate(Lineage),
}

/// The sending side of one relationship.
#[derive(Debug)]
pub struct Sender {
    plan: Plan,
    /// Of the plan's configuration.
    wanted: Digest,
    /// Of the one that the replica follows, as far as is known.
    followed: Option<Digest>,
    /// The replica refused what is wanted, and is not asked again before that time.
    refused: Option<Duration>,
    state: State,
    progress: Progress,
    staged: Option<Staged>,
    /// The staged segment that is to be folded back, whatever else is tried meanwhile.
    condemned: Option<Root>,
    /// Which disks the replica has, and which are being copied.
    join: Join,
    /// How much is to be compared before the next cut.
    suspect: Bytes,
    verifying: Option<Verifying>,
    /// The disks that are verified, and their sizes when that began.
    verified: Vec<(DiskId, Bytes)>,
    repair: Repair,
    /// Of these disks.
    comparing: Vec<DiskId>,
    /// How often the replica's tip could not be stood on.
    strange: u32,
    /// The last such tip.
    strange_tip: Option<PointId>,
    /// Highest sequence number that may have been used.
    reserved: u64,
    /// The replica lets in higher ones than this only.
    above: u64,
    /// The last round of comparisons that the replica knows of.
    round: u64,
    /// When the last point was cut, until it is acknowledged.
    cut: Option<Duration>,
    /// When the next point should be cut.
    due: Duration,
    /// Whether a due time passed unused.
    late: bool,
    contact: Contact,
    /// Contacts in a row that were not answered.
    unanswered: u32,
    /// What the last [`Output::Sleep`] said, until its tick.
    asleep: Option<Duration>,
    /// A person asked to stop; done when the source has nothing under way.
    suspend: bool,
    attempt: u32,
    contradictions: u32,
    chance: u64,
    report: LinkReport,
}

impl Sender {
    /// A sender that has not begun; `chance` seeds the jitter of its retries. Begin with
    /// [`Event::Resume`].
    #[must_use]
    pub fn new(plan: Plan, progress: Progress, chance: u64) -> Self {
        let wanted = plan.configuration.revision();
        Self {
            plan,
            wanted,
            followed: None,
            refused: None,
            state: State::Suspended,
            progress,
            staged: None,
            condemned: None,
            join: Join::default(),
            suspect: Bytes(0),
            verifying: None,
            verified: Vec::new(),
            repair: Repair::Done,
            comparing: Vec::new(),
            strange: 0,
            strange_tip: None,
            reserved: 0,
            above: 0,
            round: 0,
            cut: None,
            due: Duration::ZERO,
            late: false,
            // Not all relationships of a host at one instant.
            contact: Contact::Due(CONTACT / 16 * u32::try_from(chance % 16).unwrap_or(0)),
            unanswered: 0,
            asleep: None,
            suspend: false,
            attempt: 0,
            contradictions: 0,
            chance: chance | 1,
            report: LinkReport::new(ReplicationState::ReadyForInitialReplication),
        }
    }

    /// State and measures now.
    #[must_use]
    pub fn report(&self) -> &LinkReport {
        &self.report
    }

    /// Whether nothing is left to do: the guest was stopped for the partner's sake.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::StoodDown
    }

    /// Takes an event into account. One that does not belong to what is under way is ignored.
    pub fn apply(&mut self, now: Now, event: Event) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.count_missed(now);
        let ticked = matches!(event, Event::Tick);
        match event {
            Event::Contacted(answer) => self.contacted(now, answer, &mut outputs),
            Event::Changed(configuration) => self.changed(now, configuration, &mut outputs),
            Event::Verify(number) => self.verify(now, number, &mut outputs),
            Event::VerifyNoMore(number) => self.verify_no_more(number),
            event => self.step(now, event, &mut outputs),
        }
        self.keep_time(now, ticked, &mut outputs);
        self.describe();
        outputs
    }

    fn step(&mut self, now: Now, event: Event, out: &mut Vec<Output>) {
        match (std::mem::replace(&mut self.state, State::Error), event) {
            (State::Waiting { until, wait }, Event::Tick) if now.since_start >= until => match wait
            {
                Wait::Due => self.go_on(now, out),
                Wait::Link | Wait::Paused | Wait::Filling => self.ask(out),
                Wait::Source => self.track(out),
                Wait::Gate(lineage) => self.gate(lineage, out),
            },
            (State::Starting, Event::Tracked(Ok(found))) => self.tracked(found, out),
            (
                State::Asking,
                Event::Tip(Ok(TipAnswer::At {
                    tip,
                    issued,
                    disks,
                    reception,
                })),
            ) => {
                self.above = self.above.max(issued);
                self.join.told(tip, disks);
                self.told(now, tip, reception, out);
            }
            (State::Configuring(tip), Event::Configured(answer)) => {
                self.configured(now, tip, answer, out);
            }
            (State::Asking, Event::Tip(Ok(TipAnswer::Superseded { lineage })))
            | (State::Offering, Event::Offered(Ok((_, Ok(OfferAnswer::Superseded { lineage })))))
            | (State::Committing, Event::Committed(Ok(CommitAnswer::Superseded { lineage }))) => {
                self.gate(lineage, out);
            }
            (State::Staging, Event::SeedStaged(Ok(part))) => self.seed_staged(part, out),
            (State::Staging, Event::CutStaged(Ok(part))) => self.cut_staged(part, out),
            (State::Recording { progress, then }, Event::Persisted(Ok(()))) => {
                self.recorded(now, progress, then, out);
            }
            (State::Comparing(at), Event::Answered(Ok((ours, Ok(answer))))) => {
                self.answered(now, at, &ours, answer, out);
            }
            (State::Noting(findings), Event::Noted(Ok(()))) => self.noted(now, &findings, out),
            (State::Looking(at), Event::Looked(found)) => self.looked(now, at, found, out),
            (State::Marking(looked), Event::Marked(Ok(()))) => self.marked(now, looked, out),
            (State::Suspecting { tip, issued }, Event::Suspected(Ok(suspect))) => {
                self.suspected(tip, issued, suspect, out);
            }
            (State::Offering, Event::Offered(Ok((offer, Ok(answer))))) => {
                self.offered(now, &offer, answer, out);
            }
            (State::Shipping { .. }, Event::Stored(_, Ok(Err(LinkError::Refused(problem)))))
                if problem.code == Code::Invalid =>
            {
                // The file does not read as it did when it was offered.
                out.push(Output::Abandon);
                self.contradicted(problem, out);
            }
            (State::Shipping { .. }, Event::Stored(_, Ok(Err(LinkError::Refused(problem)))))
            | (State::Committing, Event::Committed(Ok(CommitAnswer::Again { problem })))
                if problem.code == Code::NotFound =>
            {
                // The replica's polluxd was restarted and waits for the offer. That is no fault,
                // however often it happens to a long one.
                out.push(Output::Abandon);
                self.report.transfer = None;
                self.wait(now, Wait::Link, problem);
            }
            (State::Shipping { waiting, flying }, Event::Stored(n, Ok(Ok(())))) => {
                self.stored(n, waiting, flying, out);
            }
            (State::Committing, Event::Committed(Ok(CommitAnswer::Committed { tip }))) => {
                self.attempt = 0;
                self.committed(now, tip, out);
            }
            (State::Committing, Event::Committed(Ok(CommitAnswer::Again { problem }))) => {
                self.contradicted(problem, out);
            }
            (State::Committing, Event::Committed(Err(LinkError::Refused(problem))))
            | (State::Offering, Event::Offered(Err(problem)))
                if problem.code == Code::Invalid =>
            {
                // It is damaged, or nobody can take it: its blocks are read from the disk again.
                if self.doubt(problem) {
                    self.drop_staged(out);
                }
            }
            (State::Confirming, Event::Confirmed(Ok(()))) => {
                self.staged = None;
                self.go_on(now, out);
            }
            (State::FoldingBack, Event::FoldedBack(Ok(()))) => {
                (self.staged, self.condemned) = (None, None);
                self.join.begin_again();
                // What it held may be suspect now.
                self.track(out);
            }
            (State::Gating(lineage), Event::Gated(outcome)) => {
                self.gated(now, lineage, outcome);
            }
            (state, Event::Hurry) => self.hurry(now, state, out),
            (state, Event::Suspend) => self.suspend(state, out),
            (state, Event::Resume) => self.resume(now, state, out),
            (state, event) => match trouble::trouble(&state, event) {
                Some(trouble) => self.trouble(now, state, trouble, out),
                None => self.state = state,
            },
        }
    }

    // -- What is next ---------------------------------------------------------------------

    fn track(&mut self, out: &mut Vec<Output>) {
        self.keep_damage();
        if self.pause_now() {
            return;
        }
        out.push(Output::Track);
        self.state = State::Starting;
    }

    fn tracked(&mut self, found: Tracking, out: &mut Vec<Output>) {
        self.progress = found.progress;
        self.reserved = found.reserved;
        self.staged = found.staged;
        self.suspect = found.suspect;
        self.join.tracked();
        self.ask(out);
    }

    fn ask(&mut self, out: &mut Vec<Output>) {
        if self.pause_now() {
            return;
        }
        out.push(Output::AskTip);
        self.state = State::Asking;
    }

    fn offer(&mut self, out: &mut Vec<Output>) {
        if self.pause_now() {
            return;
        }
        match self.staged.clone() {
            Some(staged) if self.condemned == Some(staged.root) => self.fold_back(staged, out),
            Some(staged) => {
                let round = match self.progress {
                    Progress::Seeding { round, .. } => round,
                    Progress::Live { .. } => 0,
                };
                out.push(Output::Offer { staged, round });
                self.state = State::Offering;
            }
            None => self.ask(out),
        }
    }

    fn gate(&mut self, lineage: Lineage, out: &mut Vec<Output>) {
        out.push(Output::Abandon);
        out.push(Output::Gate(lineage.clone()));
        self.state = State::Gating(lineage);
    }

    fn record(&mut self, progress: Progress, then: Then, out: &mut Vec<Output>) {
        out.push(Output::Persist(progress));
        self.state = State::Recording { progress, then };
    }

    fn recorded(&mut self, now: Now, progress: Progress, then: Then, out: &mut Vec<Output>) {
        self.progress = progress;
        match (then, &self.staged) {
            (Then::Offer, _) => self.offer(out),
            (Then::Note(findings), _) => self.note(findings, out),
            (Then::Compare, _) => self.compare_from(now, resync::FIRST, out),
            (Then::Confirm, Some(staged)) => {
                out.push(Output::Confirm(staged.clone()));
                self.state = State::Confirming;
            }
            (Then::Confirm, None) => self.go_on(now, out),
        }
    }

    fn fold_back(&mut self, staged: Staged, out: &mut Vec<Output>) {
        self.condemned = Some(staged.root);
        // What it held is to come with another point, now.
        self.late = true;
        out.push(Output::FoldBack(staged));
        self.state = State::FoldingBack;
    }

    /// Whether there is nothing to do until the next point is due.
    fn is_resting(&self) -> bool {
        matches!(
            self.state,
            State::Waiting {
                wait: Wait::Due,
                ..
            }
        )
    }

    /// The replica has all that was sent and nothing is staged: the next part or point.
    fn go_on(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.pause_now() {
            return;
        }
        match self.progress {
            Progress::Seeding { .. } if self.suspect.0 > 0 => self.compare(now, out),
            Progress::Seeding { seed, part, at, .. } if at.disk < self.plan.disks.len() => {
                out.push(Output::Seed(SeedPart { seed, part, at }));
                self.state = State::Staging;
            }
            Progress::Seeding { .. } => self.cut(now, out),
            Progress::Live { .. } if self.is_outdated(now) => self.ask(out),
            Progress::Live { .. } if self.join.is_outdated() => self.track(out),
            Progress::Live { .. } if self.suspect.0 > 0 => self.compare(now, out),
            Progress::Live { .. } if self.may_look(now) => self.look(now, out),
            Progress::Live { .. } if now.since_start >= self.due || self.late || self.copies() => {
                self.cut(now, out);
            }
            Progress::Live { .. } => {
                self.state = State::Waiting {
                    until: self.due,
                    wait: Wait::Due,
                };
            }
        }
    }

    fn cut_staged(&mut self, cut: StagedPart, out: &mut Vec<Output>) {
        let header = &cut.segment.header;
        self.join.staged(header, cut.next);
        let sequence = header.point().map_or(0, |point| point.sequence);
        self.reserved = self.reserved.max(sequence);
        self.staged = Some(cut.segment);
        self.offer(out);
    }

    fn cut(&mut self, now: Now, out: &mut Vec<Output>) {
        self.late = false;
        self.cut_damage();
        self.cut = Some(now.since_start);
        self.due = now.since_start + self.frequency();
        let since = match self.progress {
            Progress::Seeding { seed, part, .. } => Since::Seed { seed, parts: part },
            Progress::Live { acknowledged, .. } => Since::Point(acknowledged),
        };
        let disks = self.disks_to_cut(now);
        out.push(Output::Cut {
            since,
            above: self.above,
            disks,
        });
        self.state = State::Staging;
    }

    // -- Measures -------------------------------------------------------------------------

    fn count_missed(&mut self, now: Now) {
        let idle = matches!(
            self.state,
            State::Suspended
                | State::Error
                | State::StoodDown
                | State::Gating(_)
                // One lot of regions is looked at when a point is due.
                | State::Looking(_)
                | State::Marking(_)
                | State::Waiting {
                    wait: Wait::Due | Wait::Paused | Wait::Gate(_),
                    ..
                }
        );
        let live = matches!(self.progress, Progress::Live { .. });
        if idle || self.report.paused_there || !live || now.since_start < self.due {
            return;
        }
        let period = self.frequency().max(Duration::from_millis(1));
        let past = now.since_start - self.due;
        let times = past.as_millis() / period.as_millis() + 1;
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        // The one that is due at the very beginning was not missed.
        if self.due > Duration::ZERO {
            self.report.missed += u64::from(times);
        }
        self.due += period.saturating_mul(times);
        self.late = true;
    }

    fn describe(&mut self) {
        let by_cause = self
            .report
            .last_error
            .as_ref()
            .is_some_and(|problem| problem.code != Code::Unreachable);
        self.report.seeding = match self.progress {
            Progress::Seeding { at, .. } => Some(at),
            Progress::Live { .. } => None,
        };
        if self.suspect.0 == 0 {
            self.report.comparison = None;
        }
        if let State::Error | State::StoodDown | State::Gating(_) = self.state {
            let ended = || {
                let reason = "was verified in part: its replication stopped";
                Problem::new(Code::Failed, &self.plan.thing, reason, "")
            };
            let why = self.report.last_error.clone().unwrap_or_else(ended);
            self.end_verification(Err(why));
        }
        self.report.joining = self.joining();
        self.report.state = match (&self.state, self.progress) {
            (State::StoodDown | State::Gating(_), _)
            | (
                State::Waiting {
                    wait: Wait::Gate(_),
                    ..
                },
                _,
            ) => ReplicationState::StoodDown,
            (State::Error, _) => ReplicationState::Error,
            (State::Suspended, _) => ReplicationState::Suspended,
            (
                State::Waiting {
                    wait: Wait::Source | Wait::Paused,
                    ..
                },
                _,
            ) => ReplicationState::Suspended,
            (
                State::Waiting {
                    wait: Wait::Link, ..
                },
                _,
            ) if by_cause => ReplicationState::Suspended,
            // An attempt is no end of what keeps it, or each one would be told as two changes.
            _ if by_cause && (self.attempt > 0 || self.report.paused_there) => {
                ReplicationState::Suspended
            }
            (_, Progress::Seeding { .. }) => ReplicationState::InitialReplicationInProgress,
            (_, Progress::Live { .. }) if self.suspect.0 > 0 => ReplicationState::Resynchronizing,
            (_, Progress::Live { .. }) => ReplicationState::Replicating,
        };
    }
}
