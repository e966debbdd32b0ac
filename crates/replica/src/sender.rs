//! What the primary does next: a pure function of what happened. No I/O, no clock.
//!
//! ```text
//!   Starting --> Asking --+--> FoldingBack --> (decide again)
//!   (track)      (tip)    +--> Staging --> Recording? --> Offering --> Shipping --> Committing
//!      ^           ^      +--> Recording --> Confirming <---------------------------+
//!      |           |                             |
//!   Waiting: own failure, link lost,  <----------+ until the next point is due
//!
//!   any answer may say that the replica took over: Gating --> StoodDown
//! ```
//!
//! Invariants:
//! - at most one segment is staged, and it is offered, confirmed or folded back before another;
//! - a point is cut only when the replica's tip is known and nothing is staged, and builds on
//!   that tip;
//! - progress is durable before the marks of what it confirms are dropped, so that a restart at
//!   any instant finds either the segment or its acknowledgement;
//! - at most one thing is under way, but for chunks.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use journal::Content;
use model::{Bytes, Code, Lineage, PointId, Problem, ReplicationState, Since};

use crate::link::LinkError;
use crate::report::{LinkReport, Transfer};
use crate::source::{Plan, Position, Progress, SeedPart, Staged, StagedPart, Tracking};
use crate::wire::{CommitAnswer, Offer, OfferAnswer, Tip, TipAnswer};

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
    CutStaged(Result<Staged, Problem>),
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
    /// A person wants it to stop for a while.
    Suspend,
    /// A person wants it to go on; also out of [`ReplicationState::Error`].
    Resume,
}

/// What to do now. Each but `Abandon`, `Sleep` and `Put` ends with its event before the next
/// is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// [`Source::track`](crate::source::Source::track).
    Track,
    /// [`Link::tip`](crate::link::Link::tip).
    AskTip,
    /// [`Source::seed`](crate::source::Source::seed).
    Seed(SeedPart),
    /// Reserve a sequence number, then [`Source::cut`](crate::source::Source::cut).
    Cut {
        /// What the point builds on.
        since: Since,
    },
    /// [`Source::persist`](crate::source::Source::persist).
    Persist(Progress),
    /// Read what the file consists of, then offer it.
    Offer(Staged),
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
    /// Drop every request to the partner that is under way; no event comes of them.
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
    Staging,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Offer,
    Confirm,
}

/// What follows a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wait {
    /// The next point.
    Due,
    /// Asking for the tip again.
    Link,
    /// Tracking again.
    Source,
    /// Stopping the guest again.
    Gate(Lineage),
}

/// The sending side of one relationship.
#[derive(Debug)]
pub struct Sender {
    plan: Plan,
    state: State,
    progress: Progress,
    staged: Option<Staged>,
    /// Highest sequence number that may have been used.
    reserved: u64,
    /// When the next point should be cut.
    due: Duration,
    /// Whether a due time passed unused.
    late: bool,
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
        Self {
            plan,
            state: State::Suspended,
            progress,
            staged: None,
            reserved: 0,
            due: Duration::ZERO,
            late: false,
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
        self.step(now, event, &mut outputs);
        self.describe();
        outputs
    }

    fn step(&mut self, now: Now, event: Event, out: &mut Vec<Output>) {
        match (std::mem::replace(&mut self.state, State::Error), event) {
            (State::Waiting { until, wait }, Event::Tick) if now.since_start >= until => match wait
            {
                Wait::Due => self.cut(now, out),
                Wait::Link => self.ask(out),
                Wait::Source => self.track(out),
                Wait::Gate(lineage) => self.gate(lineage, out),
            },
            (State::Starting, Event::Tracked(Ok(found))) => {
                self.progress = found.progress;
                self.reserved = found.reserved;
                self.staged = found.staged;
                self.ask(out);
            }
            (State::Asking, Event::Tip(Ok(TipAnswer::At { tip }))) => self.decide(now, tip, out),
            (State::Asking, Event::Tip(Ok(TipAnswer::Superseded { lineage })))
            | (State::Offering, Event::Offered(Ok((_, Ok(OfferAnswer::Superseded { lineage })))))
            | (State::Committing, Event::Committed(Ok(CommitAnswer::Superseded { lineage }))) => {
                self.gate(lineage, out);
            }
            (State::Staging, Event::SeedStaged(Ok(part))) => self.seed_staged(part, out),
            (State::Staging, Event::CutStaged(Ok(staged))) => {
                let point = staged.header.point();
                self.reserved = self.reserved.max(point.map_or(0, |p| p.sequence));
                self.staged = Some(staged);
                self.offer(out);
            }
            (State::Recording { progress, then }, Event::Persisted(Ok(()))) => {
                self.progress = progress;
                match (then, &self.staged) {
                    (Then::Offer, _) => self.offer(out),
                    (Then::Confirm, Some(staged)) => {
                        out.push(Output::Confirm(staged.clone()));
                        self.state = State::Confirming;
                    }
                    (Then::Confirm, None) => self.go_on(now, out),
                }
            }
            (State::Offering, Event::Offered(Ok((offer, Ok(answer))))) => {
                self.offered(now, &offer, answer, out);
            }
            (State::Shipping { .. }, Event::Stored(_, Ok(Err(LinkError::Refused(problem)))))
                if problem.code == Code::NotFound =>
            {
                // The replica's polluxd was restarted and waits for the offer.
                out.push(Output::Abandon);
                self.contradicted(problem, out);
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
            (State::Confirming, Event::Confirmed(Ok(()))) => {
                self.staged = None;
                self.go_on(now, out);
            }
            (State::FoldingBack, Event::FoldedBack(Ok(()))) => {
                self.staged = None;
                self.ask(out);
            }
            (State::Gating(lineage), Event::Gated(outcome)) => {
                self.gated(now, lineage, outcome, out);
            }
            (state, Event::Suspend) => self.suspend(state, out),
            (state, Event::Resume) => self.resume(now, state, out),
            (state, event) => match trouble(&state, event) {
                Some(trouble) => self.trouble(now, state, trouble, out),
                None => self.state = state,
            },
        }
    }

    // -- What is next ---------------------------------------------------------------------

    fn track(&mut self, out: &mut Vec<Output>) {
        if self.pause_now() {
            return;
        }
        out.push(Output::Track);
        self.state = State::Starting;
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
            Some(staged) => {
                out.push(Output::Offer(staged));
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

    fn fold_back(&mut self, staged: Staged, out: &mut Vec<Output>) {
        out.push(Output::FoldBack(staged));
        self.state = State::FoldingBack;
    }

    /// The replica has all that was sent and nothing is staged: the next part or point.
    fn go_on(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.pause_now() {
            return;
        }
        match self.progress {
            Progress::Seeding { seed, part, at, .. } if at.disk < self.plan.disks.len() => {
                out.push(Output::Seed(SeedPart { seed, part, at }));
                self.state = State::Staging;
            }
            Progress::Seeding { .. } => self.cut(now, out),
            Progress::Live { .. } if now.since_start >= self.due || self.late => {
                self.cut(now, out);
            }
            Progress::Live { .. } => {
                out.push(Output::Sleep(self.due));
                self.state = State::Waiting {
                    until: self.due,
                    wait: Wait::Due,
                };
            }
        }
    }

    fn cut(&mut self, now: Now, out: &mut Vec<Output>) {
        self.late = false;
        self.due = now.since_start + self.plan.frequency;
        let since = match self.progress {
            Progress::Seeding { seed, .. } => Since::Seed(seed),
            Progress::Live { acknowledged } => Since::Point(acknowledged),
        };
        out.push(Output::Cut { since });
        self.state = State::Staging;
    }

    // -- Answers --------------------------------------------------------------------------

    /// The replica says what it has; compares that with what was sent.
    fn decide(&mut self, now: Now, tip: Tip, out: &mut Vec<Output>) {
        if self.pause_now() {
            return;
        }
        match (self.progress, tip) {
            (_, Tip::Point { point }) => self.decide_live(now, point, out),
            (Progress::Seeding { part: 0, .. }, Tip::Nothing) => self.decide_seed(now, 0, out),
            (
                Progress::Seeding { seed, .. },
                Tip::Seeding {
                    seed: theirs,
                    parts,
                },
            ) if seed == theirs => {
                self.decide_seed(now, parts, out);
            }
            (Progress::Seeding { .. }, Tip::Seeding { .. }) => {
                self.give_up("holds another initial replication than the one being sent");
            }
            _ => self.give_up("has lost content that it had acknowledged"),
        }
    }

    fn decide_seed(&mut self, now: Now, parts: u64, out: &mut Vec<Output>) {
        let Progress::Seeding {
            seed,
            part,
            at,
            end,
        } = self.progress
        else {
            return self.give_up("has lost content that it had acknowledged");
        };
        let staged = self.staged.as_ref().map(|staged| staged.header.content);
        let this_part = Content::Seed { seed, part };
        let first_delta = matches!(
            staged,
            Some(Content::Delta { since, .. }) if since == Since::Seed(seed)
        );
        let next = |at| Progress::Seeding {
            seed,
            part: part + 1,
            at,
            end: None,
        };
        if parts == part {
            match staged {
                Some(content) if content == this_part && end.is_some() => self.offer(out),
                Some(_) if first_delta && at.disk >= self.plan.disks.len() => self.offer(out),
                Some(_) => self.drop_staged(out),
                None => self.go_on(now, out),
            }
        } else if part.checked_add(1) == Some(parts) {
            match (staged, end) {
                (Some(content), Some(end)) if content == this_part => {
                    self.acknowledged(now, None);
                    self.record(next(end), Then::Confirm, out);
                }
                (Some(_), _) => self.drop_staged(out),
                // It was received, and lost here with an unclean boot: its blocks are marked
                // again, so it only costs sending them twice.
                (None, _) => self.record(next(at), Then::Confirm, out),
            }
        } else {
            self.give_up("has parts of the initial replication that this host never sent");
        }
    }

    fn decide_live(&mut self, now: Now, tip: PointId, out: &mut Vec<Output>) {
        let known = match self.progress {
            Progress::Live { acknowledged } => acknowledged.sequence,
            Progress::Seeding { .. } => 0,
        };
        if !self.plan.lineage.contains(tip) || tip.sequence > self.reserved {
            return self.give_up("has a point that this host never issued");
        }
        if tip.sequence < known {
            return self.give_up("has lost points that it had acknowledged");
        }
        let progress = Progress::Live { acknowledged: tip };
        if let Some(staged) = &self.staged {
            let header = &staged.header;
            let fits = match header.content {
                Content::Delta {
                    since: Since::Point(since),
                    sequence,
                } => {
                    self.plan.lineage.contains(since)
                        && since.sequence <= tip.sequence
                        && tip.sequence < sequence
                }
                _ => false,
            };
            return if header.point() == Some(tip) {
                let cut = header.time;
                self.acknowledged(now, Some((tip, cut)));
                self.record(progress, Then::Confirm, out);
            } else if fits {
                self.offer(out);
            } else {
                self.drop_staged(out);
            };
        }
        self.report.acknowledged = Some(tip);
        if self.progress == progress {
            self.go_on(now, out);
        } else {
            // Acknowledged, and lost here with an unclean boot.
            self.record(progress, Then::Confirm, out);
        }
    }

    fn drop_staged(&mut self, out: &mut Vec<Output>) {
        match self.staged.clone() {
            Some(staged) => self.fold_back(staged, out),
            None => self.ask(out),
        }
    }

    fn seed_staged(&mut self, staged: StagedPart, out: &mut Vec<Output>) {
        let Progress::Seeding { seed, part, at, .. } = self.progress else {
            return self.track(out);
        };
        self.staged = Some(staged.segment);
        let end = match staged.next {
            // A source that stands still would be asked for ever.
            Some(from) if from > at.from => Position {
                disk: at.disk,
                from,
            },
            _ => Position {
                disk: at.disk + 1,
                from: 0,
            },
        };
        let progress = Progress::Seeding {
            seed,
            part,
            at,
            end: Some(end),
        };
        self.record(progress, Then::Offer, out);
    }

    fn offered(&mut self, now: Now, offer: &Offer, answer: OfferAnswer, out: &mut Vec<Output>) {
        match answer {
            OfferAnswer::Missing { chunks } => {
                let count = Offer::chunk_count(offer.file_len);
                let mut waiting: VecDeque<u64> = chunks.into_iter().collect();
                let rising = waiting
                    .iter()
                    .zip(waiting.iter().skip(1))
                    .all(|(a, b)| a < b);
                if !rising || waiting.back().is_some_and(|n| *n >= count) {
                    return self.give_up("asks for chunks that the segment does not have");
                }
                let bytes = |n: &u64| Offer::chunk_len(offer.file_len, *n);
                let missing: u64 = waiting.iter().map(bytes).sum();
                let had = offer.file_len.saturating_sub(missing);
                self.report.spared.0 += had;
                self.report.transfer = Some(Transfer {
                    sent: Bytes(had),
                    total: Bytes(offer.file_len),
                });
                let first = waiting.len().min(WINDOW);
                let flying: BTreeSet<u64> = waiting.drain(..first).collect();
                if flying.is_empty() {
                    out.push(Output::Commit);
                    self.state = State::Committing;
                } else {
                    out.extend(flying.iter().map(|n| Output::Put(*n)));
                    self.state = State::Shipping { waiting, flying };
                }
            }
            OfferAnswer::Committed { tip } => self.committed(now, tip, out),
            OfferAnswer::Unfit { problem } => self.contradicted(problem, out),
            OfferAnswer::Superseded { lineage } => self.gate(lineage, out),
        }
    }

    fn stored(
        &mut self,
        n: u64,
        mut waiting: VecDeque<u64>,
        mut flying: BTreeSet<u64>,
        out: &mut Vec<Output>,
    ) {
        if flying.remove(&n) {
            self.attempt = 0;
            if let Some(transfer) = &mut self.report.transfer {
                let len = Offer::chunk_len(transfer.total.0, n);
                transfer.sent.0 += len;
                self.report.shipped.0 += len;
            }
        }
        if let Some(next) = waiting.pop_front() {
            flying.insert(next);
            out.push(Output::Put(next));
        }
        if flying.is_empty() {
            out.push(Output::Commit);
            self.state = State::Committing;
        } else {
            self.state = State::Shipping { waiting, flying };
        }
    }

    /// The replica says that it has the segment. Its tip shows whether that is so; if not, it
    /// would be offered for ever.
    fn committed(&mut self, now: Now, tip: Tip, out: &mut Vec<Output>) {
        self.contradictions += 1;
        if self.contradictions > CONTRADICTIONS {
            return self.give_up("says that it has a segment which its newest point lacks");
        }
        self.decide(now, tip, out);
    }

    fn acknowledged(&mut self, now: Now, point: Option<(PointId, Timestamp)>) {
        self.contradictions = 0;
        self.report.last_success = Some(now.wall);
        self.report.last_error = None;
        let size = self.report.transfer.take().map(|transfer| transfer.total);
        if let Some((point, cut)) = point {
            self.report.last_size = size.unwrap_or(self.report.last_size);
            self.report.cycles += 1;
            self.report.acknowledged = Some(point);
            self.report.acknowledged_cut = Some(cut);
            self.report.last_latency = Duration::try_from(now.wall.duration_since(cut)).ok();
        }
    }

    // -- Trouble --------------------------------------------------------------------------

    fn trouble(&mut self, now: Now, state: State, trouble: Trouble, out: &mut Vec<Output>) {
        if matches!(state, State::Shipping { .. }) {
            out.push(Output::Abandon);
        }
        self.report.transfer = None;
        match trouble {
            Trouble::Link(LinkError::Lost(problem)) => {
                self.report.link_losses += 1;
                self.wait(now, Wait::Link, problem, out);
            }
            Trouble::Link(LinkError::Refused(problem)) => match problem.code {
                Code::Full | Code::Failed | Code::Unreachable => {
                    self.wait(now, Wait::Link, problem, out);
                }
                Code::Invalid | Code::NotFound | Code::Conflict | Code::Forbidden => {
                    self.report.last_error = Some(problem);
                    self.state = State::Error;
                }
            },
            Trouble::Source(problem) => self.wait(now, Wait::Source, problem, out),
        }
    }

    fn wait(&mut self, now: Now, wait: Wait, problem: Problem, out: &mut Vec<Output>) {
        self.report.last_error = Some(problem);
        if self.pause_now() {
            return;
        }
        let until = now.since_start + self.backoff();
        out.push(Output::Sleep(until));
        self.state = State::Waiting { until, wait };
    }

    /// Doubles with each attempt, then anything from half of it to all of it.
    fn backoff(&mut self) -> Duration {
        let full = FIRST_BACKOFF
            .saturating_mul(1 << self.attempt.min(10))
            .min(LONGEST_BACKOFF);
        self.attempt = self.attempt.saturating_add(1);
        // xorshift64: hosts that lost one replica at one instant shall not come back at one.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        let share = u32::try_from(self.chance >> 48).unwrap_or(0);
        full / 2 + full * share / (2 * u32::from(u16::MAX))
    }

    /// The replica's answer does not go with its last one: ask for its tip, but not for ever.
    fn contradicted(&mut self, problem: Problem, out: &mut Vec<Output>) {
        self.report.transfer = None;
        self.contradictions += 1;
        self.report.last_error = Some(problem);
        if self.contradictions < CONTRADICTIONS {
            self.ask(out);
        } else {
            self.state = State::Error;
        }
    }

    fn give_up(&mut self, reason: &str) {
        let way_out = "look at the replica first; then remove the relationship and enable it \
                       again, which copies everything";
        let thing = format!(
            "the replica of {} on `{}`",
            self.plan.thing, self.plan.partner
        );
        self.report.last_error = Some(Problem::new(Code::Conflict, thing, reason, way_out));
        self.state = State::Error;
    }

    fn gated(
        &mut self,
        now: Now,
        lineage: Lineage,
        outcome: Result<(), Problem>,
        out: &mut Vec<Output>,
    ) {
        match outcome {
            Ok(()) => self.state = State::StoodDown,
            Err(problem) => {
                self.report.last_error = Some(problem);
                // The guest must not run on: no backoff.
                let until = now.since_start + Duration::from_millis(100);
                out.push(Output::Sleep(until));
                self.state = State::Waiting {
                    until,
                    wait: Wait::Gate(lineage),
                };
            }
        }
    }

    // -- People ---------------------------------------------------------------------------

    /// Between two steps: whether a person wants it to stop here.
    fn pause_now(&mut self) -> bool {
        if self.suspend {
            self.state = State::Suspended;
        }
        self.suspend
    }

    fn suspend(&mut self, state: State, out: &mut Vec<Output>) {
        match state {
            // What the source does runs to its end.
            State::Starting
            | State::Staging
            | State::Recording { .. }
            | State::Confirming
            | State::FoldingBack => {
                self.suspend = true;
                self.state = state;
            }
            State::Asking | State::Offering | State::Shipping { .. } | State::Committing => {
                self.suspend = true;
                self.report.transfer = None;
                out.push(Output::Abandon);
                self.state = State::Suspended;
            }
            State::Gating(_)
            | State::StoodDown
            | State::Waiting {
                wait: Wait::Gate(_),
                ..
            } => {
                self.state = state;
            }
            State::Waiting { .. } | State::Suspended | State::Error => {
                self.suspend = true;
                self.state = State::Suspended;
            }
        }
    }

    fn resume(&mut self, now: Now, state: State, out: &mut Vec<Output>) {
        self.suspend = false;
        match state {
            State::Suspended | State::Error => {
                self.attempt = 0;
                self.contradictions = 0;
                self.due = now.since_start;
                self.late = false;
                self.track(out);
            }
            // Whoever resumes it wants it now.
            State::Waiting {
                wait: Wait::Link, ..
            } => self.ask(out),
            State::Waiting {
                wait: Wait::Source, ..
            } => self.track(out),
            other => self.state = other,
        }
    }

    // -- Measures -------------------------------------------------------------------------

    fn count_missed(&mut self, now: Now) {
        let idle = matches!(
            self.state,
            State::Suspended
                | State::Error
                | State::StoodDown
                | State::Gating(_)
                | State::Waiting {
                    wait: Wait::Due | Wait::Gate(_),
                    ..
                }
        );
        let live = matches!(self.progress, Progress::Live { .. });
        if idle || !live || now.since_start < self.due {
            return;
        }
        let period = self.plan.frequency.max(Duration::from_millis(1));
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
                    wait: Wait::Source, ..
                },
                _,
            ) => ReplicationState::Suspended,
            (
                State::Waiting {
                    wait: Wait::Link, ..
                },
                _,
            ) if by_cause => ReplicationState::Suspended,
            (_, Progress::Seeding { .. }) => ReplicationState::InitialReplicationInProgress,
            (_, Progress::Live { .. }) => ReplicationState::Replicating,
        };
    }
}

enum Trouble {
    Link(LinkError),
    Source(Problem),
}

/// What went wrong, if `event` says so and belongs to `state`.
fn trouble(state: &State, event: Event) -> Option<Trouble> {
    Some(match (state, event) {
        (State::Asking, Event::Tip(Err(error)))
        | (State::Offering, Event::Offered(Ok((_, Err(error)))))
        | (State::Shipping { .. }, Event::Stored(_, Ok(Err(error))))
        | (State::Committing, Event::Committed(Err(error))) => Trouble::Link(error),
        (State::Starting, Event::Tracked(Err(problem)))
        | (State::Staging, Event::SeedStaged(Err(problem)) | Event::CutStaged(Err(problem)))
        | (State::Recording { .. }, Event::Persisted(Err(problem)))
        | (State::Offering, Event::Offered(Err(problem)))
        | (State::Shipping { .. }, Event::Stored(_, Err(problem)))
        | (State::Confirming, Event::Confirmed(Err(problem)))
        | (State::FoldingBack, Event::FoldedBack(Err(problem))) => Trouble::Source(problem),
        _ => return None,
    })
}
