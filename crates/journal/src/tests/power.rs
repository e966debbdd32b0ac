//! The power goes off at any call, again and again, and whatever was not synced is torn.

use super::*;
use crate::Begun;

/// Rounds of work that each end with a power cut or a kill.
const ROUNDS: u64 = 4;

/// Seeds; `POWER_CUTS` raises it.
fn seeds() -> u64 {
    let raised = std::env::var("POWER_CUTS").ok();
    raised.and_then(|seeds| seeds.parse().ok()).unwrap_or(300)
}

/// Parts of the initial replication: blocks of the disks by turns.
const PARTS: u64 = 3;

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
    next_part: u64,
    /// How often segments were put together.
    thinned: u64,
    /// Every point that the journal ever had.
    taken: std::collections::HashSet<PointId>,
}

#[test]
fn an_acknowledged_point_survives_every_power_cut_and_an_unacknowledged_one_is_whole_or_absent() {
    let (mut cuts, mut merged_when_cut, mut thinned) = (0, 0, 0);
    for seed in 0..seeds() {
        let folder = CutFolder::new();
        let primary = Primary::new();
        let mut trial = Trial {
            context: String::new(),
            chance: Chance::new(seed),
            sent: primary.disks.clone(),
            primary,
            folder,
            points: Vec::new(),
            allowed: vec![vec![]],
            pins: Vec::new(),
            next_part: 0,
            thinned: 0,
            taken: std::collections::HashSet::new(),
        };
        for round in 0..ROUNDS {
            trial.context = format!("seed {seed}, round {round}");
            let limit = [40, 150, 400][trial.chance.index(3)];
            let calls = trial.chance.below(limit);
            trial.folder.cut_after(calls);
            let outcome = trial.work();
            let killed = trial.chance.below(4) == 0;
            if killed {
                // Only the process died: what it wrote is there, and may be torn later.
                trial.folder.cut_after(u64::MAX - 1);
            } else {
                trial.folder = trial.folder.cut(seed * ROUNDS + round);
                cuts += 1;
            }
            merged_when_cut += u64::from(trial.check(outcome));
        }
        thinned += trial.thinned;
    }
    println!("{cuts} cuts, {merged_when_cut} in a merge, {thinned} times thinned");
    assert!(
        cuts > seeds() && merged_when_cut > 0 && thinned > seeds() / 4,
        "{cuts}, {merged_when_cut}, {thinned}"
    );
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

    /// Works until the power goes off, or for some time.
    fn work(&mut self) -> Result<(), JournalError> {
        let mut journal = match reopen(&self.folder) {
            Err(JournalError::NoIndex) => self.primary.create(&self.folder)?,
            other => other?,
        };
        for _ in 0..24 {
            if self.allowed[0].is_empty() {
                self.seed_or_first_point(&mut journal)?;
            } else {
                match self.chance.below(12) {
                    0..=3 => self.point(&mut journal)?,
                    4..=6 => drop(self.merge(&mut journal)?),
                    7 => self.pin(&mut journal)?,
                    8 => self.retain(&mut journal)?,
                    9 => journal = reopen(&self.folder)?,
                    _ => {
                        let tidied = journal.tidy_eagerly(1 + self.chance.index(3)).run()?;
                        journal.finish_tidy(tidied);
                    }
                }
            }
            assert!(ids(&journal) == self.allowed[0], "{}", self.context);
        }
        Ok(())
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
        take(journal, &self.folder, &bytes, summary.root)?;
        self.next_part += 1;
        Ok(())
    }

    fn point(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        self.primary.write(&mut self.chance);
        if self.chance.below(8) == 0 {
            let disk = self.chance.index(self.primary.disks.len());
            self.primary.grow(disk, 1 + self.chance.index(3));
        }
        let tip = self.tip();
        let (known, bytes) = self.primary.cut(Since::Point(tip.id), &tip.disks);
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

    /// What is left when the oldest point is given up, if a merge would do that.
    fn without_oldest(&self, journal: &Journal) -> Vec<PointId> {
        let skip = usize::from(journal.points()[0].in_base);
        self.allowed[0][skip..].to_vec()
    }

    /// Tells whether something was merged.
    fn merge(&mut self, journal: &mut Journal) -> Result<bool, JournalError> {
        let without = self.without_oldest(journal);
        self.allowed.push(without.clone());
        let Begun::Merge(merge) = journal.begin_merge(NOW)? else {
            self.allowed.truncate(1);
            return Ok(false);
        };
        self.allowed = vec![without];
        if self.chance.below(2) == 0 {
            self.point(journal)?;
        }
        let merged = merge.run()?;
        journal.finish_merge(merged)?;
        Ok(true)
    }

    /// Lets go of what a policy does not keep, step by step.
    fn retain(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        let policies = ["2:all", "4:all", "2s:all,9s:3s", "1:all,20s:2s,60s:10s"];
        let policy = keep(policies[self.chance.index(policies.len())]);
        let now = at(self.primary.sequence);
        while journal.wants_merge(&policy, now) && self.merge(journal)? {}
        while let Some(thin) = journal.begin_thin(&policy, now, Bytes(0))? {
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
            assert!(journal.finish_thin(thinned, now)?, "{}", self.context);
            self.allowed = vec![left];
            self.thinned += 1;
            if let Some(reader) = reader {
                let known = self.points.iter().find(|it| it.id == reader.point());
                let known = known.expect("known").disks.iter().zip(reader.disks());
                for (content, (id, _)) in known {
                    let mut read = vec![0; content.len()];
                    reader.read_at(id, 0, &mut read)?;
                    assert!(read == *content, "{}", self.context);
                }
            }
        }
        assert!(
            ids(journal).last() == self.allowed[0].last(),
            "{}",
            self.context
        );
        Ok(())
    }

    fn pin(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        if let Some(point) = self.pins.pop() {
            // Forgotten before: whether it took place is not known if it fails.
            return journal.unpin(point, "trial");
        }
        let all = &self.allowed[0];
        let point = all[self.chance.index(all.len())];
        journal.pin(point, "trial")?;
        self.pins.push(point);
        Ok(())
    }

    /// Opens what is left. Tells whether the cut left a merge unfinished.
    fn check(&mut self, outcome: Result<(), JournalError>) -> bool {
        let context = self.context.clone();
        let journal = match reopen(&self.folder) {
            Ok(journal) => journal,
            Err(JournalError::NoIndex) if self.next_part == 0 && self.points.is_empty() => {
                return false;
            }
            Err(error) => panic!("{context}: {error:?} after {outcome:?}"),
        };
        let found = ids(&journal);
        assert!(
            self.allowed.contains(&found),
            "{context}: {found:?} is none of {:?} after {outcome:?}",
            self.allowed
        );
        for pinned in &self.pins {
            assert!(found.contains(pinned), "{context}: a pinned point is gone");
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
        assert_points(&journal, &self.points, &context);
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
                    knows_changes(&journal, x, y).expect("read");
                }
            }
        }
        // Nothing is left that the index does not name.
        let files = self.folder.list("segments").expect("listed");
        let above = journal
            .points()
            .iter()
            .filter(|point| !point.in_base)
            .count();
        assert_eq!(files.len(), above, "{context}");
        let sets = self.folder.list("changes").expect("listed");
        assert_eq!(sets.len(), journal.index.changes.len(), "{context}");
        journal.index.base == crate::index::Base::Merging
    }
}
