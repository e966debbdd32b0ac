//! The power goes off, the process is killed or an operation fails at any call, again and again, while points
//! are open; whatever was not synced is torn.
//!
//! `POLLUX_SEEDS` says how many seeds are tried, `POLLUX_SEED` names a single one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jiff::SignedDuration;

use super::*;
use crate::index::{Base, Entry};
use crate::journal::Leases;
use crate::rules::{self, Rule};
use crate::{Begun, Held};

/// Rounds of work that each end with a power cut or a kill.
const ROUNDS: u64 = 4;
/// Parts of the initial replication: blocks of the disks by turns.
const PARTS: u64 = 3;

/// What seeds came to.
#[derive(Debug, Default)]
struct Seen {
    cuts: u64,
    kills: u64,
    faults: u64,
    merging_when_cut: u64,
    read_while_open: u64,
    /// Steps on a disk without space.
    full: u64,
    in_packs: u64,
    in_files: u64,
    repacked: u64,
    rewritten: u64,
    locked: u64,
    /// How often segments were put together.
    thinned: u64,
    /// How often the oldest ones were, above a base that stays.
    stacked: u64,
    /// Disks that were added, and had a point that has them whole.
    joined: u64,
    /// Disks that were taken away.
    left: u64,
    /// Such that were added again.
    returned: u64,
    /// Bases that went with the last point of their disk.
    dropped: u64,
    /// Points with a disk that was not whole.
    joining: u64,
    /// Commits of which only a part was there after a crash.
    torn: u64,
    /// How often the newest points were given up.
    cut_off: u64,
    /// How often what had come of a part was laid down before its commit.
    ahead: u64,
    /// Parts that were laid down in part, and came otherwise afterwards.
    withdrawn: u64,
}

struct Trial {
    context: String,
    chance: Chance,
    primary: Primary,
    folder: CutFolder,
    /// What the base has of the seed, as acknowledged.
    sent: Disks,
    points: Vec<Known>,
    /// The points that must be found: one of these lists.
    allowed: Vec<Vec<PointId>>,
    pins: Vec<PointId>,
    locks: Vec<(PointId, Timestamp)>,
    next_part: u64,
    /// Disks that were taken away.
    gone: Vec<(DiskId, Vec<u8>)>,
    /// Whether newest points may be given up: the next one is cut in a term of its own.
    branches: bool,
    /// Whether the base stays as it was sent; and its disks, with their numbers in `sent`.
    stays: bool,
    bases: Vec<(DiskId, usize)>,
    now: Timestamp,
    leases: Leases,
    open: Vec<(Arc<PointReader>, Known)>,
    /// Every point that the journal ever had.
    taken: std::collections::HashSet<PointId>,
    seen: Seen,
}

fn trial(seed: u64, seen: &mut Seen) {
    let primary = Primary::new();
    let mut trial = Trial {
        context: String::new(),
        chance: Chance::new(seed),
        sent: primary.disks.clone(),
        stays: seed % 4 == 3,
        bases: primary.ids.iter().copied().zip(0..).collect(),
        primary,
        folder: CutFolder::new(),
        points: Vec::new(),
        allowed: vec![vec![]],
        pins: Vec::new(),
        locks: Vec::new(),
        next_part: 0,
        gone: Vec::new(),
        branches: false,
        now: NOW,
        leases: Leases::default(),
        open: Vec::new(),
        taken: std::collections::HashSet::new(),
        seen: std::mem::take(seen),
    };
    for round in 0..ROUNDS {
        trial.context = format!("seed {seed}, round {round}");
        let limit = [40, 150, 400][trial.chance.index(3)];
        let calls = trial.chance.below(limit);
        trial.folder.cut_after(calls);
        let outcome = trial.work();
        // The process is gone, and its readers.
        trial.open.clear();
        trial.leases = Leases::default();
        if trial.chance.below(4) == 0 {
            // What it wrote is there, and may be torn later.
            trial.folder.cut_after(u64::MAX - 1);
            trial.folder.limit(None);
            trial.seen.kills += 1;
        } else {
            trial.folder = trial.folder.cut(seed * ROUNDS + round);
            trial.seen.cuts += 1;
        }
        trial.check(outcome);
    }
    *seen = trial.seen;
}

#[test]
fn an_acknowledged_point_survives_every_power_cut_and_an_unacknowledged_one_is_whole_or_absent() {
    let seeds = seeds(200);
    let count = seeds.end - seeds.start;
    let mut seen = Seen::default();
    for seed in seeds {
        let outcome = catch_unwind(AssertUnwindSafe(|| trial(seed, &mut seen)));
        assert!(outcome.is_ok(), "try it again with POLLUX_SEED={seed}");
    }
    println!("{count} seeds: {seen:?}");
    // The test must come to the places that it is about.
    if count >= 100 {
        let rare = [seen.cuts, seen.kills, seen.faults, seen.merging_when_cut];
        let more = [seen.read_while_open, seen.in_packs, seen.in_files];
        let last = [
            seen.repacked,
            seen.rewritten,
            seen.locked,
            seen.thinned,
            seen.stacked,
            seen.cut_off,
            seen.ahead,
            seen.withdrawn,
        ];
        assert!(seen.full > count, "{seen:?}");
        let disks = [
            seen.joining,
            seen.joined,
            seen.left,
            seen.returned,
            seen.dropped,
        ];
        let least = rare.into_iter().chain(more).chain(last).chain(disks).min();
        assert!(seen.torn > 0, "{seen:?}");
        assert!(least > Some(count / 20), "{seen:?}");
    }
}

#[test]
fn each_rule_of_a_commit_is_missed_when_it_is_broken() {
    for rule in [Rule::FlushBeforeAcknowledgement, Rule::VerifyDoubts] {
        let missed = rules::broken(rule, || {
            (0..400).any(|seed| {
                catch_unwind(AssertUnwindSafe(|| trial(seed, &mut Seen::default()))).is_err()
            })
        });
        assert!(missed, "no seed needs {rule:?}");
    }
}

#[test]
fn a_journal_whose_creation_was_cut_is_whole_or_none_and_can_be_made_again() {
    let (mut whole, mut none) = (0, 0);
    for calls in 0..20 {
        for seed in 0..60 {
            let (folder, mut primary) = (CutFolder::new(), Primary::new());
            folder.cut_after(calls);
            let made = primary.create(&folder).is_ok();
            let folder = folder.cut(seed);
            match reopen(&folder) {
                Ok(_) => whole += 1,
                Err(JournalError::NoIndex) if !made => {
                    none += 1;
                    seeded(&folder, &mut primary);
                }
                other => panic!("{calls}, {seed}: {other:?}"),
            }
        }
    }
    assert!(whole > 0 && none > 0, "{whole}, {none}");
}

impl Trial {
    fn tip(&self) -> Known {
        let id = self.allowed[0].last().expect("live");
        self.points
            .iter()
            .find(|known| known.id == *id)
            .expect("known")
            .clone()
    }

    /// Opens the journal, with files so small that segments lie everywhere.
    fn reopen(&mut self) -> Result<Journal, JournalError> {
        let mut journal = reopen(&self.folder)?;
        journal.leases = self.leases.clone();
        self.choose(&mut journal);
        Ok(journal)
    }

    fn choose(&mut self, journal: &mut Journal) {
        journal.packs.small = [0, 4 << 10, 1 << 20, 1 << 20][self.chance.index(4)];
        journal.packs.full = [24 << 10, 48 << 10][self.chance.index(2)];
        (journal.packs.left, journal.packs.worth) = (1, 16 << 10);
    }

    /// Works until the power goes off, or for some time.
    fn work(&mut self) -> Result<(), JournalError> {
        let mut journal = match self.reopen() {
            Err(JournalError::NoIndex) => {
                let mut made = self.primary.create(&self.folder)?;
                made.leases = self.leases.clone();
                self.choose(&mut made);
                made
            }
            other => other?,
        };
        for _ in 0..24 {
            self.now = at(self.primary.sequence).max(self.now + SignedDuration::from_secs(1));
            let fault = self.chance.below(6) == 0;
            if fault {
                let calls = self.chance.below(10);
                self.folder.fail_after(calls);
            }
            if self.chance.below(4) == 0 {
                journal.shorten_soon();
                self.seen.rewritten += 1;
            }
            let full = self.chance.below(6) == 0;
            if full {
                let blocks = [0, 1, 8][self.chance.index(3)];
                self.folder.limit(Some(blocks * 4096));
                self.seen.full += 1;
            }
            let outcome = self.step(&mut journal);
            if fault {
                self.folder.fail_after(u64::MAX);
                self.folder.limit(None);
            }
            match outcome {
                Err(error) if (fault || full) && error.is_full() => {
                    self.after_fault(&mut journal)?;
                }
                other => other?,
            }
            self.folder.limit(None);
            assert!(ids(&journal) == self.allowed[0], "{}", self.context);
            self.read_open();
        }
        Ok(())
    }

    fn step(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        if self.allowed[0].is_empty() {
            return self.seed_or_first_point(journal);
        }
        match self.chance.below(15) {
            0..=4 => self.point(journal),
            5..=7 if self.stays => self.retain(journal),
            5..=7 => self.merge(journal).map(drop),
            8 => self.pin(journal),
            9 => self.retain(journal),
            10 => self.lock(journal),
            11 => self.open_or_close(journal),
            12 => {
                let tidied = journal.tidy_eagerly(1 + self.chance.index(3)).run()?;
                journal.finish_tidy(tidied);
                Ok(())
            }
            13 => self.cut_off(journal),
            _ => {
                // Whoever opens it anew has no faults: see `after_fault`.
                self.folder.fail_after(u64::MAX);
                *journal = self.reopen()?;
                Ok(())
            }
        }
    }

    /// Finds out what became of an operation that failed.
    fn after_fault(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        self.seen.faults += 1;
        let way = self.chance.below(3);
        if way == 0 && !journal.is_stale() {
            // Nothing took place: it goes on.
        } else if way < 2 {
            journal.reload()?;
        } else {
            // Opening it may fail as well.
            let calls = self.chance.below(10);
            self.folder.fail_after(calls);
            let opened = self.reopen();
            self.folder.fail_after(u64::MAX);
            *journal = match opened {
                Err(error) if error.is_full() => self.reopen()?,
                other => other?,
            };
        }
        if self.is_powered() {
            self.settle(journal);
        }
        Ok(())
    }

    /// What is found is what must be found from now on.
    fn settle(&mut self, journal: &Journal) {
        let context = self.context.clone();
        let found = ids(journal);
        assert!(
            self.allowed.contains(&found),
            "{context}: {found:?} is none of {:?}",
            self.allowed
        );
        for pinned in &self.pins {
            assert!(found.contains(pinned), "{context}: a pinned point is gone");
        }
        let now = self.now;
        self.locks.retain(|(_, until)| now < *until);
        for (locked, until) in &self.locks {
            let point = journal.point(*locked).expect("a locked point stays");
            assert!(point.locked >= Some(*until), "{context}: a lock is gone");
        }
        let taken = match journal.tip() {
            Tip::Seeding { next_part, .. } => {
                assert!(
                    (self.next_part..=self.next_part + 1).contains(&next_part),
                    "{context}"
                );
                next_part
            }
            Tip::Point { point, .. } => {
                assert_eq!(found.last(), Some(&point), "{context}");
                PARTS
            }
        };
        self.next_part = taken;
        assert_points(journal, &self.points, &context);
        self.allowed = vec![found];
        if !self.points.is_empty() {
            // Of those that it ever had: what lies between two of them is known, or not told.
            self.taken.extend(&self.allowed[0]);
            let taken = |known: &&Known| self.taken.contains(&known.id);
            let points: Vec<_> = self.points.iter().filter(taken).cloned().collect();
            let any = |chance: &mut Chance| points.get(chance.index(points.len().max(1)));
            for _ in 0..4 {
                let (x, y) = (any(&mut self.chance), any(&mut self.chance));
                if let (Some(x), Some(y)) = (x, y) {
                    knows_changes(journal, x, y).expect("read");
                }
            }
        }
    }

    fn seed_or_first_point(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        let seed = self.primary.seed;
        self.primary.write(&mut self.chance);
        if self.next_part == PARTS {
            let before = self.sent.clone();
            let since = self.primary.seeded(PARTS);
            let (known, bytes) = self.primary.cut(since, &before);
            return self.commit(journal, known, &bytes);
        }
        // The part as it is now; an earlier attempt may have been written in part.
        let header = self.primary.header(Content::Seed {
            seed,
            part: self.next_part,
        });
        let mut writer = SegmentWriter::create(Vec::new(), &header).expect("a good header");
        let mut sent = self.sent.clone();
        for (number, disk) in (0..).zip(&self.primary.disks) {
            for (block, content) in (0_u64..).zip(disk.chunks(BLOCK)) {
                if block % PARTS != self.next_part {
                    continue;
                }
                if crate::segment::is_zero(content) {
                    writer.push_zero(number, block, 1).expect("fits");
                } else {
                    writer.push_frame(number, block, content).expect("fits");
                }
                let at = usize::try_from(block).expect("small") * BLOCK;
                sent[usize::from(number)][at..at + BLOCK].copy_from_slice(content);
            }
        }
        let (summary, bytes) = writer.finish().expect("finished");
        // Noted before: whether it was taken is asked of the tip, and nothing is lost if it was
        // not, as all of the part is sent again.
        self.sent = sent;
        if self.chance.below(2) == 0 {
            let received = receive(&self.folder, &bytes);
            let name =
                received.map_err(|source| JournalError::io("receive", "incoming", source))?;
            for _ in 0..1 + self.chance.below(3) {
                let come = Bytes(self.chance.below(bytes.len() as u64 + 1));
                journal.lay_ahead(name, summary.root, come)?;
                self.seen.ahead += 1;
            }
            if self.chance.below(3) == 0 {
                self.seen.withdrawn += 1;
                return Ok(());
            }
        }
        take(journal, &self.folder, &bytes, summary.root)?;
        self.next_part += 1;
        Ok(())
    }

    fn point(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        if std::mem::take(&mut self.branches) {
            let tip = self.tip().id;
            let branch = self.primary.lineage.branch(tip, "host-b");
            self.primary.lineage = branch.expect("the tip lies on it");
        }
        self.primary.write(&mut self.chance);
        if self.chance.below(8) == 0 {
            let disk = self.chance.index(self.primary.disks.len());
            self.primary.grow(disk, 1 + self.chance.index(3));
        }
        match self.chance.below(12) {
            0 if self.primary.ids.len() < 5 => {
                let blocks = 1 + self.chance.index(12);
                self.primary.attach(blocks, &mut self.chance);
            }
            1 if self.primary.ids.len() > 1 => {
                let disk = self.chance.index(self.primary.ids.len());
                let gone = self.primary.detach(disk);
                // Should it come back, its base is another one.
                self.bases.retain(|(id, _)| *id != gone.0);
                self.gone.push(gone);
                self.seen.left += 1;
            }
            2 if self.primary.ids.len() < 5 && !self.gone.is_empty() => {
                let disk = self.chance.index(self.gone.len());
                let id = self.gone[disk].0;
                // One that was never missed goes on instead.
                if !self.tip().ids.contains(&id) && self.tip().copied.iter().all(|of| of.0 != id) {
                    let (id, content) = self.gone.remove(disk);
                    self.primary.ids.push(id);
                    self.primary.disks.push(content);
                    self.seen.returned += 1;
                }
            }
            _ => {}
        }
        let tip = self.tip();
        let (known, bytes) = if tip.ids == self.primary.ids {
            self.primary.cut(Since::Point(tip.id), &tip.disks)
        } else {
            self.primary.cut_after(&tip, 3)
        };
        self.seen.joining += u64::from(!known.copied.is_empty());
        let new = known.ids.iter().filter(|id| !tip.ids.contains(id));
        self.seen.joined += new.count() as u64;
        self.commit(journal, known, &bytes)
    }

    fn commit(
        &mut self,
        journal: &mut Journal,
        known: Known,
        bytes: &[u8],
    ) -> Result<(), JournalError> {
        let mut with = self.allowed[0].clone();
        with.push(known.id);
        let root = known.root;
        self.points.push(known);
        self.allowed.push(with.clone());
        take(journal, &self.folder, bytes, root)?;
        self.taken.extend(with.last());
        self.allowed = vec![with];
        Ok(())
    }

    /// Gives up the newest points, down to any.
    fn cut_off(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        let last = self.any_point();
        let mut left = self.allowed[0].clone();
        let kept = left.iter().position(|point| *point == last).unwrap_or(0) + 1;
        let gone = left.split_off(kept);
        let held = |point: &PointId| {
            let mut locks = self.locks.iter();
            self.pins.contains(point)
                || self.open.iter().any(|(_, known)| known.id == *point)
                || locks.any(|(locked, until)| locked == point && self.now < *until)
        };
        let in_the_way = gone.iter().find(|point| held(point)).copied();
        self.branches = true;
        if in_the_way.is_none() {
            self.allowed.push(left.clone());
        }
        let found = journal.cut_off_after(last, self.now)?;
        let context = &self.context;
        match (found, in_the_way) {
            (None, None) => {
                self.seen.cut_off += u64::from(!gone.is_empty());
                self.allowed = vec![left];
            }
            // A pin that could not be taken back is not known here.
            (Some(Held::Point(held)), None) if gone.contains(&held) => self.allowed.truncate(1),
            (Some(Held::Point(held) | Held::Locked(held, _)), Some(_)) => {
                assert!(gone.contains(&held), "{context}: {held} was to stay");
            }
            other => panic!("{context}: {other:?}"),
        }
        Ok(())
    }

    /// What is left when the oldest point is given up, if a merge would do that.
    fn without_oldest(&self, journal: &Journal) -> Vec<PointId> {
        let skip = usize::from(journal.points()[0].in_base);
        self.allowed[0][skip..].to_vec()
    }

    /// Tells whether something was merged.
    fn merge(&mut self, journal: &mut Journal) -> Result<bool, JournalError> {
        let without = self.without_oldest(journal);
        self.allowed.push(without.clone());
        let Begun::Merge(merge) = journal.begin_merge(self.now)? else {
            self.allowed.truncate(1);
            return Ok(false);
        };
        self.allowed = vec![without];
        if self.chance.below(2) == 0 {
            self.point(journal)?;
        }
        let merged = merge.run()?;
        self.read_open();
        let before: Vec<_> = journal.index.segments.iter().skip(1).cloned().collect();
        let bases = journal.index.disks.len();
        journal.finish_merge(merged)?;
        self.seen.dropped += (bases - journal.index.disks.len()) as u64;
        let moved = journal.index.segments.iter().zip(&before);
        let moved = moved.filter(|(now, before)| now.place != before.place);
        self.seen.repacked += moved.count() as u64;
        Ok(true)
    }

    /// Lets go of what a policy does not keep, step by step.
    fn retain(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        let policies = ["2:all", "4:all", "2s:all,9s:3s", "1:all,20s:2s,60s:10s"];
        let policy = match self.stays {
            true => keep("1:all"),
            false => keep(policies[self.chance.index(policies.len())]),
        };
        while !self.stays && journal.wants_merge(&policy, self.now) && self.merge(journal)? {}
        loop {
            let oldest = match self.stays {
                true => journal.begin_thin_oldest(&policy, self.now, Bytes(0))?,
                false => None,
            };
            let is_oldest = oldest.is_some();
            let thin = match oldest {
                None => journal.begin_thin(&policy, self.now, Bytes(0))?,
                oldest => oldest,
            };
            let Some(thin) = thin else {
                break;
            };
            let gone: Vec<_> = thin.gone().collect();
            assert!(gone.iter().all(|point| !self.pins.contains(point)));
            let before = self.allowed[0].clone();
            if self.chance.below(4) == 0 {
                self.point(journal)?;
            }
            let thinned = thin.run()?;
            let mut left = self.allowed[0].clone();
            left.retain(|point| !gone.contains(point));
            self.allowed.push(left.clone());
            // Readers of points below go on reading.
            let below = before
                .iter()
                .rfind(|point| point.sequence < gone[0].sequence);
            let reader = below.map(|point| journal.open_point(*point)).transpose()?;
            if journal.finish_thin(thinned, self.now)? {
                self.allowed = vec![left];
                self.seen.thinned += 1;
                self.seen.stacked += u64::from(is_oldest);
            } else {
                // A disk came back between them: they stay apart.
                assert!(self.seen.returned > 0, "{}", self.context);
                self.allowed.truncate(1);
            }
            if let Some(reader) = reader.filter(|_| self.is_powered()) {
                let known = self.points.iter().find(|it| it.id == reader.point());
                assert_content(&reader, known.expect("known"), &self.context);
            }
            self.read_open();
        }
        Ok(())
    }

    fn any_point(&mut self) -> PointId {
        let all = &self.allowed[0];
        all[self.chance.index(all.len())]
    }

    fn pin(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        if let Some(point) = self.pins.pop() {
            // Forgotten before: whether it took place is not known if it fails.
            return journal.unpin(point, "trial");
        }
        let point = self.any_point();
        journal.pin(point, "trial")?;
        self.pins.push(point);
        Ok(())
    }

    fn lock(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        let point = self.any_point();
        let seconds = i64::try_from(self.chance.below(12)).expect("small");
        let until = self.now + SignedDuration::from_secs(seconds);
        match journal.lock(point, until) {
            Err(JournalError::LockedLonger { until: longer, .. }) => assert!(longer > until),
            other => other?,
        }
        self.seen.locked += 1;
        self.locks.push((point, until));
        Ok(())
    }

    fn open_or_close(&mut self, journal: &Journal) -> Result<(), JournalError> {
        if self.open.len() == 2 || (!self.open.is_empty() && self.chance.below(2) == 0) {
            self.open.remove(0);
            return Ok(());
        }
        let point = self.any_point();
        let known = self.points.iter().find(|known| known.id == point);
        let known = known.expect("known").clone();
        self.open.push((journal.open_point(point)?, known));
        Ok(())
    }

    fn is_powered(&self) -> bool {
        self.folder.list("").is_ok()
    }

    /// Points that are open have their content, whatever happened meanwhile.
    fn read_open(&mut self) {
        if !self.is_powered() {
            return;
        }
        for (reader, known) in &self.open {
            assert_content(reader, known, &self.context);
            self.seen.read_while_open += 1;
        }
    }

    /// Opens what is left.
    fn check(&mut self, outcome: Result<(), JournalError>) {
        let context = self.context.clone();
        let torn = crate::index::open(&self.folder, None).is_ok_and(|opened| opened.is_torn);
        let journal = match self.reopen() {
            Ok(journal) => journal,
            Err(JournalError::NoIndex) if self.next_part == 0 && self.points.is_empty() => {
                return;
            }
            Err(error) => panic!("{context}: {error:?} after {outcome:?}"),
        };
        self.settle(&journal);
        self.seen.torn += u64::from(torn);
        self.seen.merging_when_cut += u64::from(journal.index.base == Base::Merging);
        if self.stays && !self.allowed[0].is_empty() {
            for (disk, number) in &self.bases {
                let base = self.folder.content(&Journal::base_file(*disk));
                let is_as_sent = base.is_none_or(|base| base == self.sent[*number]);
                assert!(is_as_sent, "{context}: the base was written to");
            }
        }
        // Nothing is left that the index does not name.
        let mut bases = self.folder.list("").expect("listed");
        bases.retain(|name| name.starts_with("base-"));
        assert_eq!(bases.len(), journal.index.disks.len(), "{context}");
        let mut named: Vec<_> = journal.index.segments.iter().map(Entry::file).collect();
        named.sort_unstable();
        named.dedup();
        let (own, packed): (Vec<_>, Vec<_>) = named
            .into_iter()
            .partition(|name| name.starts_with("segments"));
        let files = |name| self.folder.list(name).expect("listed").len();
        assert_eq!(files("segments"), own.len(), "{context}");
        assert_eq!(files("packs"), packed.len(), "{context}");
        assert_eq!(files("changes"), journal.index.changes.len(), "{context}");
        self.seen.in_files += own.len() as u64;
        self.seen.in_packs += packed.len() as u64;
    }
}
