//! The primary's tracking and the replica's comparison, as diskd and the receiver would do them.

use journal::compare::{BlockHashes, Blocks};

use super::*;
use crate::source::ChangingRegion;
use crate::wire::{Basis, RegionHashes};

/// Blocks of a region here.
const REGION: u64 = 4;
/// Regions of one answer, so that a comparison takes several.
const AT_ONCE: usize = 2;

pub(super) fn region_of((disk, block): (usize, u64)) -> Region {
    (disk, block / REGION)
}

/// The block that has this number in regions of their true size.
pub(super) fn block_of(block: u64) -> u64 {
    let whole = journal::compare::REGION_BLOCKS;
    block / whole * REGION + block % whole
}

/// The hashes of a region of disks with this content.
fn hashes(content: &Disks, (disk, region): Region) -> BlockHashes {
    let blocks = region * REGION..(region + 1) * REGION;
    let mut hashes = BlockHashes::new();
    for block in blocks {
        let value = content.get(&(disk, block)).copied().unwrap_or(0);
        hashes.push(&value.to_le_bytes().repeat(512));
    }
    hashes
}

/// A copy of the primary's storage, from which it may be restored.
pub(super) struct Primary {
    content: Disks,
    armed: BTreeSet<Region>,
    tracked: BTreeSet<usize>,
    progress: Progress,
    sequence: u64,
}

/// A copy of the replica's.
pub(super) struct Replica {
    tip: Tip,
    points: BTreeMap<u64, (Disks, Root)>,
    whole: BTreeMap<u64, Vec<DiskId>>,
    received: Disks,
    rotten: BTreeSet<(usize, u64)>,
}

impl World {
    fn all_regions(&self) -> BTreeSet<Region> {
        let tracked = self
            .content
            .keys()
            .filter(|key| self.tracked.contains(&key.0));
        tracked.copied().map(region_of).collect()
    }

    pub(super) fn suspected(&self) -> model::Bytes {
        model::Bytes(self.suspect.len() as u64 * model::REGION_SIZE)
    }

    pub(super) fn suspect_all(&mut self) {
        self.armed = self.all_regions();
        self.suspect = self.all_regions();
    }

    pub(super) fn flush(&mut self) {
        self.durable = self.content.clone();
    }

    /// The staged segment is confirmed; sometimes what is clean leaves the log.
    pub(super) fn confirm(&mut self) {
        self.unconfirmed.clear();
        if self.chance.percent(50) {
            return;
        }
        if self.lie != Some(Lie::Sweep) {
            self.flush();
        }
        let marked: BTreeSet<Region> = self.marks.iter().copied().map(region_of).collect();
        let suspect = &self.suspect;
        self.armed
            .retain(|region| marked.contains(region) || suspect.contains(region));
    }

    pub(super) fn track(&mut self) -> Tracking {
        let exact = std::mem::replace(&mut self.exact, true);
        self.track_disks();
        if self.outbox.is_none() {
            self.suspect.append(&mut self.unconfirmed);
        }
        if let Some(Position { disk, from }) = self.progress.sent() {
            // There is nothing to compare it with.
            let unsent = self.suspect.split_off(&(disk, from.div_ceil(REGION)));
            let blocks = self.content.keys().copied();
            let unsent = blocks.filter(|key| unsent.contains(&region_of(*key)));
            if self.lie != Some(Lie::Unsent) {
                self.marks.extend(unsent);
            }
        }
        Tracking {
            exact,
            suspect: self.suspected(),
            staged: self.outbox.as_ref().map(|file| file.staged.clone()),
            progress: self.progress,
            reserved: self.sequence,
        }
    }

    pub(super) fn hashes(&self, disk: DiskId, from: u64) -> Suspects {
        let disk = self.index_of(disk);
        let mut left = self.suspect.range((disk, from)..(disk + 1, 0));
        let regions = left.by_ref().take(AT_ONCE).map(|(disk, region)| {
            let hashes = hashes(&self.content, (*disk, *region));
            RegionHashes {
                region: *region,
                hashes,
            }
        });
        Suspects {
            size: model::Bytes(BLOCKS * 4096),
            regions: regions.collect(),
            next: left.next().map(|(_, region)| *region),
        }
    }

    pub(super) fn note(&mut self, disk: DiskId, regions: &[ComparedRegion]) {
        let disk = self.index_of(disk);
        for compared in regions {
            if !self.suspect.remove(&(disk, compared.region)) || self.lie == Some(Lie::Compared) {
                continue;
            }
            self.mark_runs(disk, compared);
        }
    }

    fn mark_runs(&mut self, disk: usize, compared: &ComparedRegion) {
        for run in &compared.differ {
            let first = compared.region * REGION + run.first;
            let blocks = first..first + run.count;
            self.marks.extend(blocks.map(|block| (disk, block)));
        }
    }

    pub(super) fn changing(&self, disk: DiskId, from: u64) -> Changing {
        let disk = self.index_of(disk);
        let end = BLOCKS / REGION;
        let until = (from + AT_ONCE as u64).min(end);
        let region = |region: u64| {
            let all = Blocks {
                first: 0,
                count: REGION,
            };
            let unknown = self.suspect.contains(&(disk, region))
                || self.unconfirmed.contains(&(disk, region));
            let marked = self
                .marks
                .range((disk, region * REGION)..(disk, (region + 1) * REGION))
                .map(|(_, block)| Blocks {
                    first: block - region * REGION,
                    count: 1,
                });
            let changed = if unknown { vec![all] } else { marked.collect() };
            ChangingRegion {
                region,
                hashes: hashes(&self.content, (disk, region)),
                changed: if self.lie == Some(Lie::Changing) {
                    Vec::new()
                } else {
                    changed
                },
            }
        };
        Changing {
            size: model::Bytes(BLOCKS * 4096),
            regions: (from..until).map(region).collect(),
            next: (until < end).then_some(until),
        }
    }

    pub(super) fn mark(&mut self, disk: DiskId, regions: &[ComparedRegion]) {
        let disk = self.index_of(disk);
        if self.lie == Some(Lie::Mark) {
            return;
        }
        for compared in regions {
            self.armed.insert((disk, compared.region));
            self.mark_runs(disk, compared);
        }
    }

    /// A block of the replica's newest point is not what it was any more, if there is one.
    pub(super) fn rot(&mut self) {
        if !matches!(self.tip, Tip::Point { .. }) {
            return;
        }
        let disks = self.disks_of_tip();
        let disks: BTreeSet<_> = disks.iter().map(|disk| self.index_of(*disk)).collect();
        let at = usize::try_from(self.chance.below(self.received.len() as u64)).expect("small");
        let mut held = self.received.iter_mut();
        if let Some((key, value)) = held.nth(at).filter(|(key, _)| disks.contains(&key.0)) {
            // No write has such a value.
            *value |= 1 << 60;
            self.rotten.insert(*key);
        }
    }

    /// The primary loses power: what is in memory is gone, and of every block what was not flushed may
    /// be; what was recorded is there.
    pub(super) fn power_cut(&mut self) {
        self.happened("primary lost power");
        self.outbox = None;
        self.exact = false;
        self.marks.clear();
        self.unconfirmed.clear();
        let mut chance = self.chance;
        for (key, value) in &mut self.content {
            if chance.percent(50) {
                *value = self.durable[key];
            }
        }
        self.chance = chance;
        self.flush();
        self.suspect = self.armed.clone();
        if self.lie == Some(Lie::PowerCut) {
            self.suspect.clear();
        }
    }

    /// The staged segment is removed behind everybody's back.
    pub(super) fn lose_outbox(&mut self) {
        self.outbox = None;
    }

    /// None while a number is reserved for a cut that was not made: a cut that is made between the
    /// copy and the restore could not be told from one that was made before. None during the initial
    /// replication: a person begins that anew.
    pub(super) fn copy_primary(&mut self) -> Option<Primary> {
        let live = matches!(self.progress, Progress::Live { .. });
        (live && !self.reserving).then(|| Primary {
            content: self.content.clone(),
            armed: self.armed.clone(),
            tracked: self.tracked.clone(),
            progress: self.progress,
            sequence: self.sequence,
        })
    }

    pub(super) fn restore_primary(&mut self, copy: Primary) {
        self.power_cut();
        self.happened("primary restored");
        self.content = copy.content;
        self.flush();
        self.armed = copy.armed;
        self.tracked = copy.tracked;
        self.suspect = self.armed.clone();
        self.progress = copy.progress;
        self.sequence = copy.sequence;
        let Tip::Point { point, .. } = self.tip else {
            return self.used.retain(|sequence| *sequence <= copy.sequence);
        };
        // Nobody knows of the others any more.
        let known = point.sequence.max(copy.sequence);
        self.used.retain(|sequence| *sequence <= known);
    }

    pub(super) fn copy_replica(&mut self) -> Option<Replica> {
        matches!(self.tip, Tip::Point { .. }).then(|| Replica {
            tip: self.tip,
            points: self.points.clone(),
            whole: self.whole.clone(),
            received: self.received.clone(),
            rotten: self.rotten.clone(),
        })
    }

    pub(super) fn restore_replica(&mut self, copy: Replica) {
        self.replica_restart();
        self.happened("replica restored");
        self.store.clear();
        if let Tip::Point { point, .. } = copy.tip {
            // Of those above, nobody knows if the primary was restored as well, and had not asked yet.
            let known = point.sequence.max(self.sequence);
            self.used.retain(|sequence| *sequence <= known);
        }
        self.tip = copy.tip;
        self.points = copy.points;
        self.whole = copy.whole;
        self.received = copy.received;
        self.rotten = copy.rotten;
    }

    pub(super) fn on_compare(&mut self, ask: &Compare) -> CompareAnswer {
        if let Some(lineage) = self.taken_over.clone() {
            return CompareAnswer::Superseded { lineage };
        }
        if let Basis::Seed { round, .. } = ask.basis {
            if round < self.round {
                return CompareAnswer::Late { round: self.round };
            }
            if self.lie != Some(Lie::Round) {
                self.round = round;
            }
        }
        let before = match (&self.pending, ask.basis) {
            (Some((offer, _)), Basis::Seed { round, .. }) if offer.header.point().is_none() => {
                offer.round < round
            }
            _ => true,
        };
        if before && self.lie != Some(Lie::Incoming) {
            self.pending = None;
            self.store.clear();
        }
        if !matches!(self.lie, Some(Lie::Incoming | Lie::Issued)) {
            self.issued = self.issued.max(ask.issued);
        }
        let holds = match (self.tip, ask.basis) {
            (Tip::Point { point, .. }, Basis::Point { point: named }) => point == named,
            (
                Tip::Seeding { seed, parts, .. },
                Basis::Seed {
                    seed: s, parts: p, ..
                },
            ) => (seed, parts) == (s, p),
            (Tip::Nothing, Basis::Seed { parts, .. }) => parts == 0,
            _ => false,
        };
        if !holds {
            return CompareAnswer::Moved { tip: self.tip };
        }
        let has = self.disks_of_tip().contains(&ask.disk);
        assert!(
            has || matches!(ask.basis, Basis::Seed { .. }),
            "a disk that the point lacks"
        );
        let disk = self.index_of(ask.disk);
        self.compared += ask.regions.len() as u64;
        let held = ask.regions.iter().map(|asked| {
            let hashes = hashes(&self.received, (disk, asked.region));
            let same = Digest(hashes.digest()) == asked.digest;
            let region = asked.region;
            (!same).then_some(RegionHashes { region, hashes })
        });
        let mut differ: Vec<RegionHashes> = held.flatten().collect();
        if self.strange_answers {
            let hashes = BlockHashes::new();
            let region = u64::MAX;
            differ.push(RegionHashes { region, hashes });
        }
        CompareAnswer::Compared { differ }
    }
}
