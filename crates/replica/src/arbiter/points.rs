//! Recovery points on their way: cut, offered, taken in by the journal's own rule, acknowledged.

use journal::accept::{Held, Offered, accept};
use journal::{Refusal, Root, Verdict};
use model::{Lineage, PointId, SeedId, Since};
use uuid::Uuid;

use super::pair::{Acked, Disk, Lives, Pair, Say, Stored, seed_of};
use super::rule::Rule;
use super::step::Arbiter;
use crate::standing::Role;
use crate::wire::PartnerStanding;

fn seed(of: u64) -> SeedId {
    SeedId(Uuid::from_u128(of.into()))
}

fn root(of: u8) -> Root {
    Root([of; 32])
}

impl Arbiter {
    /// The primary `x` cuts a point above what was acknowledged, and offers it.
    pub(super) fn cut(&self, pair: &Pair, x: usize) -> Option<Pair> {
        let memory = &pair.hosts[x].memory;
        let standing = &memory.standing;
        if standing.role != Role::Primary || standing.stood_down.is_some() || !memory.linked {
            return None;
        }
        let lineage = standing.lineage.clone();
        let sequence = lineage.next_sequence(memory.reserved)?;
        let since = memory.acknowledged;
        if seed_of(since).is_none() && !lineage.contains(since) {
            return None;
        }
        let mut next = pair.clone();
        let disk = Disk {
            reserved: sequence,
            ..(**memory).clone()
        };
        next.keep(x, disk, self.on(Rule::ReserveBeforeCut));
        next.cuts += 1;
        let root = next.cuts + 1;
        let offer = Say::Offer {
            lineage,
            sequence,
            since,
            root,
        };
        next.send(1 - x, offer);
        Some(next)
    }

    /// A segment comes to `x`, whole.
    pub(super) fn offered(
        &self,
        pair: &Pair,
        x: usize,
        lineage: &Lineage,
        sequence: u64,
        since: PointId,
        root: u8,
    ) -> Option<Pair> {
        let mut next = pair.clone();
        let theirs = PartnerStanding {
            role: Role::Primary,
            lineage: lineage.clone(),
            runs: true,
            stood_down: None,
            opened: None,
        };
        // It may have been cut before an override in the same term.
        self.meet(&mut next, x, &theirs, true);
        if next.hosts[x].standing().role != Role::Replica && self.on(Rule::OnlyReplicaTakes) {
            let says = Self::tell(&next, x);
            next.send(
                1 - x,
                Say::Lives(Lives {
                    says,
                    overridden: next.unsettled[x],
                    question: false,
                    asks: None,
                    answers: None,
                }),
            );
            return Some(next);
        }
        let point = Stored {
            id: PointId {
                term: lineage.current().id,
                sequence,
            },
            since,
            root,
        };
        match self.judge_offer(&next, x, lineage, point) {
            Ok(Verdict::Fits) => self.take(&mut next, x, lineage, point),
            Ok(_) => {}
            Err(refusal) => {
                if refusal.is_alarm() && pair.restored == [false; 2] {
                    next.fault = Some("one point has two contents");
                }
                return Some(next);
            }
        }
        if !next.hosts[x].standing().lineage.contains(point.id) && pair.restored == [false; 2] {
            next.fault = Some("a point is acknowledged that a takeover has passed over");
        }
        next.send(1 - x, Say::Committed(point.id));
        let acked = Acked {
            point,
            by: x,
            passed: false,
        };
        if !next.acked.iter().any(|known| known.point == point) {
            next.acked.push(acked);
        }
        Some(next)
    }

    fn judge_offer(
        &self,
        pair: &Pair,
        x: usize,
        lineage: &Lineage,
        point: Stored,
    ) -> Result<Verdict, Refusal> {
        let disk = &pair.hosts[x].memory;
        let known = disk.points.iter().find(|known| known.id == point.id);
        let held = Held {
            seed: seed(disk.seed.into()),
            parts: disk.points.is_empty().then_some(0),
            lineage: (!disk.points.is_empty()).then_some(&disk.history),
            newest: disk.points.last().map(|newest| newest.id),
            known: known.map(|known| root(known.root)),
        };
        let offered = Offered {
            lineage,
            sequence: point.id.sequence,
            since: match seed_of(point.since) {
                Some(of) => Since::Seed {
                    seed: seed(of),
                    parts: 0,
                },
                None => Since::Point(point.since),
            },
            root: root(point.root),
        };
        match accept(&held, &offered) {
            Err(Refusal::NotNewer(_)) if !self.on(Rule::NotNewer) => Ok(Verdict::Fits),
            Err(Refusal::Gap { .. }) if !self.on(Rule::NoGap) => Ok(Verdict::Fits),
            Err(Refusal::Diverged(_)) if !self.on(Rule::OneHistory) => Ok(Verdict::Fits),
            Err(Refusal::OtherRoot(_)) if !self.on(Rule::OneContent) => Ok(Verdict::Have),
            Err(Refusal::OtherSeed(_)) if !self.on(Rule::OneSeed) => Ok(Verdict::Fits),
            verdict => verdict,
        }
    }

    fn take(&self, pair: &mut Pair, x: usize, lineage: &Lineage, point: Stored) {
        let mut disk = (*pair.hosts[x].memory).clone();
        if let Some(newest) = disk.points.last() {
            let of_disks = seed_of(point.since).is_some();
            if !of_disks && point.since.sequence > newest.id.sequence {
                pair.fault = Some("a point lacks what it builds on");
            }
        }
        if seed_of(point.since).is_some_and(|of| of != u64::from(disk.seed)) {
            pair.fault = Some("a point builds on disks that were used since");
        }
        disk.points.push(point);
        disk.history = lineage.clone();
        if !disk.points.iter().all(|point| lineage.contains(point.id)) {
            pair.fault = Some("the journal holds two histories");
        }
        if !disk.points.is_sorted_by_key(|point| point.id.sequence) {
            pair.fault = Some("the newest point is not the last");
        }
        pair.keep(x, disk, self.on(Rule::CommitBeforeAck));
    }

    /// The primary learns that a point was taken in.
    pub(super) fn committed(pair: &Pair, x: usize, point: PointId) -> Option<Pair> {
        let memory = &pair.hosts[x].memory;
        let known = memory.acknowledged;
        let newer = seed_of(known).is_some() || point.sequence > known.sequence;
        if !newer || !memory.standing.lineage.contains(point) {
            return None;
        }
        let disk = Disk {
            acknowledged: point,
            ..(**memory).clone()
        };
        let mut next = pair.clone();
        next.keep(x, disk, true);
        Some(next)
    }
}
