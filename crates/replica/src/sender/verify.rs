//! Verifying the replica's newest point against the disks, between points and without a copy.
//!
//! ```text
//!   a point is acknowledged --> Looking: some regions --> Marking, if damaged --> the next point
//!            ^                     |   ^_________ until it is due ______|             |
//!            '---------------------+--------------------------------------------------'
//! ```
//!
//! A block that did not change since that point must be there what it is here: what differs is
//! *damage*, of storage or of software. It is marked, so that the next point holds it; older points
//! keep it. A block that changed since is left out: the next point replaces it anyway, with content
//! that is verified when it arrives. So once every region was looked at, whatever was wrong is
//! right in the next point.
//!
//! Nothing stands still for it: between two points at least one lot of regions is looked at, and a point
//! that is due waits for one lot at most.

use model::{BLOCK_SIZE, Bytes, Code, PointId, Problem, REGION_SIZE};

use super::resync::{At, FIRST};
use super::trouble::Trouble;
use super::{Now, Output, Sender, State};
use crate::link::LinkError;
use crate::report::{Damage, Verification};
use crate::source::{Changing, ComparedRegion, Progress};
use crate::wire::{CompareAnswer, RegionHashes};

/// So many damaged ranges are told; the others are counted.
const TOLD: usize = 64;

/// The verification that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verifying {
    at: At,
    /// Whether anything was looked at since the last cut.
    looked: bool,
}

/// What becomes of damage that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repair {
    /// Nothing is to be repaired.
    Done,
    /// Marked: the next cut takes it along.
    Marked,
    /// In the segment that is staged.
    Staged,
}

/// What looking at some regions told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Looked {
    at: At,
    next: At,
    done: Bytes,
    changed: Bytes,
    damaged: Vec<ComparedRegion>,
}

impl Looked {
    /// None if the answer does not belong to the question.
    fn new(at: At, ours: &Changing, theirs: &[RegionHashes]) -> Option<Self> {
        let mut theirs = theirs.iter().peekable();
        let (mut changed, mut damaged) = (0, Vec::new());
        for ours in &ours.regions {
            changed += ours.changed.iter().map(|run| run.count).sum::<u64>();
            let differ = match theirs.next_if(|theirs| theirs.region == ours.region) {
                Some(theirs) if theirs.hashes.blocks() != ours.hashes.blocks() => return None,
                Some(theirs) => ours.hashes.differ(&theirs.hashes),
                None => Vec::new(),
            };
            let differ = journal::compare::without(&differ, &ours.changed);
            if !differ.is_empty() {
                damaged.push(ComparedRegion {
                    region: ours.region,
                    differ,
                });
            }
        }
        let last = ours.regions.last().map(|last| last.region);
        let next = at.after(last, ours.next);
        theirs.next().is_none().then_some(Self {
            at,
            next,
            done: Bytes(REGION_SIZE * ours.regions.len() as u64),
            changed: Bytes(changed * BLOCK_SIZE),
            damaged,
        })
    }
}

impl Sender {
    /// A person wants the newest point verified, under this number.
    pub(super) fn verify(&mut self, now: Now, number: u64, out: &mut Vec<Output>) {
        if self.verifying.is_some() {
            return;
        }
        let sized = |id: model::DiskId| {
            let mut disks = self.plan.configuration.spec.disks.iter();
            let size = disks
                .find(|disk| disk.id == id)
                .map_or(0, |disk| disk.size.0);
            (id, Bytes(size))
        };
        self.verified = self.members().into_iter().map(sized).collect();
        let total = self.verified.iter().map(|(_, size)| size.0).sum();
        self.report.verification = Some(Verification::begin(number, Bytes(total)));
        self.verifying = Some(Verifying {
            at: FIRST,
            looked: false,
        });
        if matches!(self.progress, Progress::Seeding { .. }) {
            let reason = "has no point on its replica yet to verify";
            let problem = Problem::new(Code::Conflict, &self.plan.thing, reason, "");
            return self.end_verification(Err(problem));
        }
        if self.is_resting() {
            self.go_on(now, out);
        }
    }

    /// Nobody waits for it any more. What was found stays marked.
    pub(super) fn verify_no_more(&mut self, number: u64) {
        let known = self.report.verification.as_ref();
        if known.is_some_and(|known| known.number == number) {
            let reason = "was verified in part: that was given up";
            let problem = Problem::new(Code::Failed, &self.plan.thing, reason, "");
            self.end_verification(Err(problem));
        }
    }

    /// Whether there is something to look at before anything else is done.
    pub(super) fn may_look(&self, now: Now) -> bool {
        let is_due = now.since_start >= self.due || self.late;
        self.verifying
            .is_some_and(|verifying| !is_due || !verifying.looked)
    }

    /// Leaves out what the newest point lacks: disks that were taken away meanwhile.
    fn pass_over(&mut self, verifying: &mut Verifying) {
        let members = self.members();
        while let Some((disk, size)) = self.verified.get(verifying.at.disk) {
            if members.contains(disk) {
                return;
            }
            let left = size.0.saturating_sub(verifying.at.region * REGION_SIZE);
            if let Some(verification) = &mut self.report.verification {
                verification.total.0 = verification.total.0.saturating_sub(left);
                verification.done = verification.done.min(verification.total);
            }
            verifying.at = verifying.at.after(None, None);
        }
    }

    pub(super) fn look(&mut self, now: Now, out: &mut Vec<Output>) {
        let (Some(mut verifying), Progress::Live { acknowledged, .. }) =
            (self.verifying, self.progress)
        else {
            return self.track(out);
        };
        verifying.looked = true;
        self.pass_over(&mut verifying);
        self.verifying = Some(verifying);
        let at = verifying.at;
        let Some((disk, _)) = self.verified.get(at.disk).copied() else {
            self.end_verification(Ok(acknowledged));
            if self.repair == Repair::Marked {
                self.late = true;
            }
            return self.go_on(now, out);
        };
        out.push(Output::Look {
            disk,
            region: at.region,
            tip: acknowledged,
            issued: self.reserved.max(self.above),
        });
        self.state = State::Looking(at);
    }

    pub(super) fn looked(
        &mut self,
        now: Now,
        at: At,
        found: Result<(Changing, Result<CompareAnswer, LinkError>), Problem>,
        out: &mut Vec<Output>,
    ) {
        let (ours, theirs) = match found {
            Ok((ours, Ok(CompareAnswer::Compared { differ }))) => (ours, differ),
            Ok((_, Ok(CompareAnswer::Moved { tip }))) => return self.moved(now, tip, out),
            Ok((_, Ok(CompareAnswer::Superseded { lineage }))) => return self.gate(lineage, out),
            Ok((_, Ok(CompareAnswer::Late { .. }))) => {
                return self.give_up("answers a comparison with what it was not asked about");
            }
            Ok((_, Err(LinkError::Lost(problem)))) => {
                let lost = Trouble::Link(LinkError::Lost(problem));
                return self.trouble(now, State::Looking(at), lost, out);
            }
            // Whatever keeps it from being compared need not keep it from being sent: asking finds out.
            Ok((_, Err(LinkError::Refused(problem)))) | Err(problem) => {
                self.end_verification(Err(problem));
                return self.ask(out);
            }
        };
        self.attempt = 0;
        self.contradictions = 0;
        let Some(looked) = Looked::new(at, &ours, &theirs) else {
            return self.give_up("answers a comparison with what it was not asked about");
        };
        if looked.damaged.is_empty() {
            return self.looked_at(now, looked, out);
        }
        let Some((disk, _)) = self.verified.get(looked.at.disk).copied() else {
            return self.looked_at(now, looked, out);
        };
        out.push(Output::Mark {
            disk,
            regions: looked.damaged.clone(),
        });
        self.state = State::Marking(looked);
    }

    /// What is damaged is marked.
    pub(super) fn marked(&mut self, now: Now, looked: Looked, out: &mut Vec<Output>) {
        self.repair = Repair::Marked;
        if let Some(verification) = &mut self.report.verification {
            verification.repaired = None;
        }
        self.looked_at(now, looked, out);
    }

    fn looked_at(&mut self, now: Now, looked: Looked, out: &mut Vec<Output>) {
        let current = self.verifying.as_mut();
        // Or what was given up meanwhile, and begun again.
        let Some(verifying) = current.filter(|current| current.at == looked.at) else {
            return self.go_on(now, out);
        };
        verifying.at = looked.next;
        let disk = self.verified.get(looked.at.disk).copied();
        if let (Some(verification), Some((disk, _))) = (&mut self.report.verification, disk) {
            verification.done.0 = verification.done.0.saturating_add(looked.done.0);
            verification.changed.0 += looked.changed.0;
            // The last region of a disk may be a short one.
            verification.done = verification.done.min(verification.total);
            for region in &looked.damaged {
                for run in &region.differ {
                    let len = Bytes(run.count * BLOCK_SIZE);
                    verification.damaged.0 += len.0;
                    if verification.damage.len() < TOLD {
                        let at = region.region * REGION_SIZE + run.first * BLOCK_SIZE;
                        verification.damage.push(Damage { disk, at, len });
                    } else {
                        verification.more += 1;
                    }
                }
            }
        }
        self.go_on(now, out);
    }

    /// A cut is made: what was marked is part of it.
    pub(super) fn cut_damage(&mut self) {
        if self.repair == Repair::Marked {
            self.repair = Repair::Staged;
        }
        if let Some(verifying) = &mut self.verifying {
            verifying.looked = false;
        }
    }

    /// What was staged is folded back, or nobody knows what became of it.
    pub(super) fn keep_damage(&mut self) {
        if self.repair == Repair::Staged {
            self.repair = Repair::Marked;
        }
    }

    /// The replica has `point`.
    pub(super) fn repaired(&mut self, point: PointId) {
        if self.repair == Repair::Staged {
            self.repair = Repair::Done;
            if let Some(verification) = &mut self.report.verification {
                verification.repaired = Some(point);
            }
        }
    }

    pub(super) fn end_verification(&mut self, outcome: Result<PointId, Problem>) {
        if self.verifying.take().is_some() {
            if let Some(verification) = &mut self.report.verification {
                verification.outcome = Some(outcome);
            }
        }
    }
}
