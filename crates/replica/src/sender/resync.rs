//! What may differ from the replica, and nobody knows whether: it is compared, and what differs is
//! marked; the next cut takes it along like any other change.
//!
//! ```text
//!   suspects left --> hashes of the next ones --> the replica compares --> [Recording] --> Noting
//!        ^                                                                                   |
//!        '-----------------------------------------------------------------------------------'
//!   none left --> cut
//!
//!   the tip is none that the marks can stand on --> Suspecting (all of it) --> Recording --> as above
//! ```
//!
//! Until blocks were found equal to the replica's tip, what is marked, staged or suspect holds
//! everything in which the primary differs from that point and from every later one that it issued: a
//! late commit changes nothing. From then on it holds for that point only
//! ([`Progress::Live`]`::compared`), and should the tip be another one later, everything is suspect.
//!
//! While the initial replication goes on, what came of it takes the place of the point: after a power cut
//! what was sent is compared with it, and what was never sent is marked; a twin that was filled from a
//! copy counts as sent. Each time that this begins is a round, recorded first, and no part that was
//! offered in an earlier one comes any more. When nothing is suspect the parts begin again at the first
//! disk: they hold what is marked only. A twin that began with the disks of its host gets no part: all
//! of it comes with the first point, and until then those disks are as they were.
//!
//! That is so as well when the replica lost points (it was restored), or has one that this host never
//! issued in its own term (this host was): both have the same history, the replica keeps every point
//! that it has, and the next one holds the whole difference. A point of another history is not
//! written over.

use model::{Bytes, DiskId, PointId, REGION_SIZE};

use super::{CONTRADICTIONS, Now, Output, Sender, State, Then};
use crate::report::Comparison;
use crate::source::{ComparedRegion, Position, Progress, Suspects};
use crate::wire::{Basis, CompareAnswer, RegionHashes, Tip};

/// A host that was restored may have used so many more numbers before than the replica knows of: each
/// is a segment that never came to be its tip.
const GAP: u64 = 1024;

/// Where a comparison goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    /// Position of the disk among those that are compared.
    pub(super) disk: usize,
    /// The first region to look at.
    pub(super) region: u64,
}

impl At {
    /// Where it goes on after what was looked at from here on: its `last` region, if there was one, and
    /// the `next` one that the source names.
    pub(super) fn after(self, last: Option<u64>, next: Option<u64>) -> Self {
        let last = last.unwrap_or(self.region);
        match next {
            // A source that stands still would be asked for ever.
            Some(region) if region > last => Self { region, ..self },
            _ => Self {
                disk: self.disk + 1,
                region: 0,
            },
        }
    }
}

/// Where it begins.
pub(super) const FIRST: At = At { disk: 0, region: 0 };

/// What a comparison told, to be handed to the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Findings {
    disk: DiskId,
    regions: Vec<ComparedRegion>,
    next: At,
}

impl Findings {
    /// None if the answer does not belong to the question.
    fn new(disk: DiskId, at: At, ours: &Suspects, theirs: &[RegionHashes]) -> Option<Self> {
        let mut theirs = theirs.iter().peekable();
        let mut regions = Vec::with_capacity(ours.regions.len());
        for ours in &ours.regions {
            let differ = match theirs.next_if(|theirs| theirs.region == ours.region) {
                Some(theirs) if theirs.hashes.blocks() != ours.hashes.blocks() => return None,
                Some(theirs) => ours.hashes.differ(&theirs.hashes),
                None => Vec::new(),
            };
            regions.push(ComparedRegion {
                region: ours.region,
                differ,
            });
        }
        let last = regions.last().map(|last| last.region);
        let next = at.after(last, ours.next);
        theirs.next().is_none().then_some(Self {
            disk,
            regions,
            next,
        })
    }
}

impl Sender {
    /// Whether nobody can tell from what is marked and suspect how this host differs from `tip`,
    /// which is of its history.
    pub(super) fn is_strange(&self, tip: PointId) -> bool {
        let moved = match self.progress {
            Progress::Live {
                acknowledged,
                compared,
            } => tip.sequence < acknowledged.sequence || (compared && tip != acknowledged),
            Progress::Seeding { .. } => false,
        };
        moved || self.never_issued(tip)
    }

    fn never_issued(&self, tip: PointId) -> bool {
        tip.term == self.plan.lineage.current().id && tip.sequence > self.reserved
    }

    /// Makes everything suspect: the replica is at `tip`, and nothing is staged.
    pub(super) fn suspect_all(&mut self, tip: PointId, out: &mut Vec<Output>) {
        // What fails here before all is suspect is no word about the replica.
        if self.strange_tip != Some(tip) {
            self.strange += 1;
            self.strange_tip = Some(tip);
        }
        if self.strange > CONTRADICTIONS {
            return self.give_up(
                "has a newest point again and again that this host did not send last: another \
                 host may send under its name",
            );
        }
        let issued = if self.never_issued(tip) {
            tip.sequence.saturating_add(GAP)
        } else {
            self.reserved
        };
        out.push(Output::Suspect { issued });
        self.state = State::Suspecting { tip, issued };
    }

    pub(super) fn suspected(
        &mut self,
        tip: PointId,
        issued: u64,
        suspect: Bytes,
        out: &mut Vec<Output>,
    ) {
        self.suspect = suspect;
        self.reserved = self.reserved.max(issued);
        self.report.comparison = None;
        self.report.acknowledged = Some(tip);
        self.report.acknowledged_cut = None;
        let progress = Progress::Live {
            acknowledged: tip,
            compared: true,
        };
        self.record(progress, Then::Confirm, out);
    }

    /// Compares what is suspect, from the beginning.
    pub(super) fn compare(&mut self, now: Now, out: &mut Vec<Output>) {
        let done = self.report.comparison.map_or(0, |before| before.done.0);
        self.report.comparison = Some(Comparison {
            done: Bytes(done),
            total: Bytes(done.saturating_add(self.suspect.0)),
        });
        self.comparing = match self.progress {
            Progress::Seeding { .. } => self.plan.disks.clone(),
            Progress::Live { .. } => self.members(),
        };
        let Progress::Seeding {
            seed,
            part,
            sent,
            round,
            ..
        } = self.progress
        else {
            return self.compare_from(now, FIRST, out);
        };
        let progress = Progress::Seeding {
            seed,
            part,
            at: match self.plan.base_stays {
                true => Position {
                    disk: self.plan.disks.len(),
                    from: 0,
                },
                false => Position::BEGIN,
            },
            end: None,
            sent: self.progress.sent().unwrap_or(sent),
            round: round.max(self.round).saturating_add(1),
        };
        self.record(progress, Then::Compare, out);
    }

    pub(super) fn compare_from(&mut self, now: Now, at: At, out: &mut Vec<Output>) {
        let basis = match self.progress {
            Progress::Live { acknowledged, .. } => Basis::Point {
                point: acknowledged,
            },
            Progress::Seeding {
                seed, part, round, ..
            } => Basis::Seed {
                seed,
                parts: part,
                round,
            },
        };
        let Some(disk) = self.comparing.get(at.disk).copied() else {
            self.suspect = Bytes(0);
            self.contradictions = 0;
            // Both sides were heard: what kept it is over, and the next point may be an hour away.
            self.report.last_error = None;
            return self.go_on(now, out);
        };
        if self.pause_now() {
            return;
        }
        out.push(Output::Compare {
            disk,
            region: at.region,
            basis,
            issued: self.reserved.max(self.above),
        });
        self.state = State::Comparing(at);
    }

    pub(super) fn answered(
        &mut self,
        now: Now,
        at: At,
        ours: &Suspects,
        answer: CompareAnswer,
        out: &mut Vec<Output>,
    ) {
        let theirs = match answer {
            CompareAnswer::Compared { differ } => differ,
            CompareAnswer::Moved { tip } => return self.moved(now, tip, out),
            CompareAnswer::Late { round } => return self.late(now, round, out),
            CompareAnswer::Superseded { lineage } => return self.gate(lineage, out),
        };
        let disk = self.comparing.get(at.disk).copied();
        let Some(findings) = disk.and_then(|disk| Findings::new(disk, at, ours, &theirs)) else {
            return self.give_up("answers a comparison with what it was not asked about");
        };
        match self.progress {
            _ if findings.regions.is_empty() => self.compare_from(now, findings.next, out),
            Progress::Live {
                acknowledged,
                compared: false,
            } => {
                // Before anything is cleared that another tip would need.
                let progress = Progress::Live {
                    acknowledged,
                    compared: true,
                };
                self.record(progress, Then::Note(findings), out);
            }
            _ => self.note(findings, out),
        }
    }

    /// The replica knows a later round: this host was restored.
    fn late(&mut self, now: Now, round: u64, out: &mut Vec<Output>) {
        self.contradictions += 1;
        if self.contradictions > CONTRADICTIONS {
            return self.give_up("was compared by another host under this one's name");
        }
        self.round = self.round.max(round);
        self.go_on(now, out);
    }

    /// The tip is not the one that was named: a segment of before arrived, or a host was restored.
    pub(super) fn moved(&mut self, now: Now, tip: Tip, out: &mut Vec<Output>) {
        self.contradictions += 1;
        if self.contradictions > CONTRADICTIONS {
            return self.give_up("has another newest point whenever it is compared");
        }
        self.decide(now, tip, out);
    }

    pub(super) fn note(&mut self, findings: Findings, out: &mut Vec<Output>) {
        out.push(Output::Note {
            disk: findings.disk,
            regions: findings.regions.clone(),
        });
        self.state = State::Noting(findings);
    }

    pub(super) fn noted(&mut self, now: Now, findings: &Findings, out: &mut Vec<Output>) {
        // Not before: an answer that cannot be noted is asked for again, and not without a pause.
        self.attempt = 0;
        let regions = &findings.regions;
        let done = REGION_SIZE.saturating_mul(regions.len() as u64);
        let runs = regions.iter().flat_map(|region| &region.differ);
        let differed: u64 = runs.map(|run| run.count * model::BLOCK_SIZE).sum();
        self.suspect.0 = self.suspect.0.saturating_sub(done);
        self.report.compared.0 += done;
        self.report.differed.0 += differed;
        self.report.last_error = None;
        if let Some(comparison) = &mut self.report.comparison {
            comparison.done.0 = comparison.done.0.saturating_add(done);
            // The last region of a disk may be a short one.
            comparison.total = comparison.total.max(comparison.done);
        }
        self.compare_from(now, findings.next, out);
    }
}
