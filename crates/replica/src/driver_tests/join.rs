//! Disks are replicated and not replicated any more while points are sent. The guest writes to all.

use super::*;
use crate::source::Part;

/// Disks of the VM that are not replicated at first.
const MORE: usize = 2;

impl World {
    pub(super) fn add_disks(&mut self) {
        self.disks.extend((0..MORE).map(|_| DiskId::random()));
        let mut next = reception::configuration(self.vm, &self.disks, 5);
        next.disks.truncate(DISKS);
        self.configuration = Arc::new(next);
        for disk in DISKS..DISKS + MORE {
            for block in 0..BLOCKS {
                self.content.insert((disk, block), 1);
                self.durable.insert((disk, block), 1);
            }
        }
    }

    pub(super) fn index_of(&self, disk: DiskId) -> usize {
        let found = self.disks.iter().position(|other| *other == disk);
        found.expect("a disk of the VM")
    }

    pub(super) fn replicated(&self) -> BTreeSet<usize> {
        let disks = self.configuration.disks.iter();
        disks.map(|disk| self.index_of(*disk)).collect()
    }

    /// What the point of this header has of `content`.
    pub(super) fn of_point(&self, header: &Header, content: &Disks) -> Disks {
        let whole = header.disks.iter().filter(|disk| !disk.joining);
        let whole: BTreeSet<_> = whole.map(|disk| self.index_of(disk.id)).collect();
        let mut held = content.clone();
        held.retain(|(disk, _), _| whole.contains(disk));
        held
    }

    /// The replica keeps what it likes of a disk that a point does not name.
    pub(super) fn leave_out(&mut self, header: &Header) {
        if let Some(point) = header.point() {
            let whole = header.disks.iter().filter(|disk| !disk.joining);
            let whole = whole.map(|disk| disk.id).collect();
            self.whole.insert(point.sequence, whole);
        }
        let named: BTreeSet<_> = header
            .disks
            .iter()
            .map(|disk| self.index_of(disk.id))
            .collect();
        self.rotten.retain(|(disk, _)| named.contains(disk));
        let mut chance = self.chance;
        self.received
            .retain(|(disk, _), _| named.contains(disk) || chance.percent(50));
        self.chance = chance;
    }

    pub(super) fn disks_of_tip(&self) -> Vec<DiskId> {
        match self.tip {
            Tip::Point { point, .. } => {
                let known = self.whole.get(&point.sequence).cloned();
                // One that a test made up.
                known.unwrap_or_else(|| self.disks[..DISKS].to_vec())
            }
            _ => Vec::new(),
        }
    }

    fn untrack(&mut self, disk: usize) {
        self.tracked.remove(&disk);
        self.marks.retain(|(other, _)| *other != disk);
        for regions in [&mut self.suspect, &mut self.unconfirmed, &mut self.armed] {
            regions.retain(|(other, _)| *other != disk);
        }
    }

    /// Tracks what is to be replicated: of what is new nobody can tell how it differs.
    pub(super) fn track_disks(&mut self) {
        let wanted = self.replicated();
        for disk in 0..self.disks.len() {
            if !wanted.contains(&disk) {
                self.untrack(disk);
            } else if self.tracked.insert(disk) {
                let all = (0..BLOCKS).map(|block| tracking::region_of((disk, block)));
                self.armed.extend(all.clone());
                self.suspect.extend(all);
            }
        }
    }

    fn mark_suspects(&mut self, disk: usize) {
        let suspect = std::mem::take(&mut self.suspect);
        let (mark, keep) = suspect.into_iter().partition(|(other, _)| *other == disk);
        let mark: BTreeSet<_> = mark;
        self.suspect = keep;
        let blocks = (0..BLOCKS).map(|block| (disk, block));
        self.marks
            .extend(blocks.filter(|key| mark.contains(&tracking::region_of(*key))));
    }

    pub(super) fn cut(
        &mut self,
        since: Since,
        sequence: u64,
        disks: &[CutDisk],
    ) -> Result<StagedPart, Problem> {
        let numbers: Vec<_> = disks.iter().map(|disk| self.index_of(disk.id)).collect();
        if !numbers.iter().all(|number| self.tracked.contains(number)) {
            return Err(problem(Code::Conflict, "it is not tracked"));
        }
        for number in 0..self.disks.len() {
            if !numbers.contains(&number) {
                self.untrack(number);
            }
        }
        let mut header = self.header(Content::Delta { sequence, since });
        let extent = header.disks[0];
        header.disks.clear();
        let (mut blocks, mut next) = (Vec::new(), None);
        for (number, disk) in numbers.iter().zip(disks) {
            let joining = matches!(disk.part, Part::Joining | Part::Slice { .. });
            header.disks.push(DiskExtent {
                id: disk.id,
                joining,
                ..extent
            });
            if disk.part != Part::Member {
                self.mark_suspects(*number);
            }
            let from = match disk.part {
                Part::Slice { from, .. } => from,
                _ => 0,
            };
            let marked = self.marks.range((*number, from)..(*number + 1, 0)).copied();
            match disk.part {
                Part::Member | Part::Joined => blocks.extend(marked),
                Part::Joining => {}
                Part::Slice { .. } => {
                    let mut marked = marked.collect::<Vec<_>>();
                    let limit = usize::try_from(1 + self.chance.below(9)).expect("small");
                    if marked.len() > limit {
                        next = Some(marked[limit].1);
                        marked.truncate(limit);
                    }
                    blocks.extend(marked);
                }
            }
        }
        header.check().expect("a point");
        let member = |(disk, _): &Region| {
            let at = numbers.iter().position(|number| number == disk);
            at.is_some_and(|at| disks[at].part == Part::Member)
        };
        if self.suspect.iter().any(member) {
            return Err(problem(Code::Conflict, "something is suspect"));
        }
        let new = self.used.insert(sequence);
        assert!(new, "a sequence number was used twice");
        Ok(StagedPart {
            segment: self.stage_as(header, blocks),
            next,
        })
    }
}

impl Shared {
    /// A disk is added or taken away, once there are points.
    pub(super) fn change_disks(&self, running: &Running) {
        let mut world = self.world();
        if !matches!(world.progress, Progress::Live { .. }) {
            return;
        }
        let disk = usize::try_from(world.chance.below((DISKS + MORE) as u64)).expect("small");
        let id = world.disks[disk];
        let mut next = (*world.configuration).clone();
        if !next.disks.contains(&id) {
            next.disks.push(id);
        } else if next.disks.len() > 1 {
            next.disks.retain(|other| *other != id);
        }
        world.configuration = Arc::new(next);
        let configuration = world.configuration.clone();
        running.configurations.send_replace(configuration);
    }
}

#[test]
fn a_disk_that_is_added_comes_with_the_points_and_is_in_them_once_it_is_whole() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(11))));
        shared.world().add_disks();
        let running = start(&shared);
        wait_for(&running, "a point", |report| report.cycles >= 2).await;
        let (id, before, compared) = {
            let mut world = shared.world();
            let id = world.disks[2];
            let mut next = (*world.configuration).clone();
            next.disks.insert(0, id);
            world.configuration = Arc::new(next);
            (id, world.points.len(), world.compared)
        };
        running
            .configurations
            .send_replace(shared.world().configuration.clone());
        wait_for(&running, "it joins", |report| {
            report
                .joining
                .iter()
                .any(|joining| joining.disk == id && joining.done.0 > 0)
        })
        .await;
        shared.world().write_all();
        wait_for(&running, "it is whole", |report| report.joining.is_empty()).await;
        let whole = shared.world().sequence;
        wait_for(&running, "one more", |report| {
            report
                .acknowledged
                .is_some_and(|point| point.sequence > whole)
        })
        .await;
        let report = running.reports.borrow().clone();
        assert_eq!((report.missed, report.failures), (0, 0));
        {
            let world = shared.world();
            check_points(&world);
            assert_eq!(world.compared, compared, "no other disk was compared");
            let with = world
                .whole
                .values()
                .filter(|disks| disks.contains(&id))
                .count();
            assert!(
                with >= 1 && world.points.len() - before > with,
                "some of it with each"
            );
            assert_eq!(
                world.whole.values().next_back(),
                Some(&world.configuration.disks)
            );
        }
        let others = shared.world().disks[..2].to_vec();
        let last = shared.world().sequence;
        let mut only = (*shared.world().configuration).clone();
        only.disks.retain(|disk| !others.contains(disk));
        shared.world().configuration = Arc::new(only);
        running
            .configurations
            .send_replace(shared.world().configuration.clone());
        wait_for(&running, "the others are gone", |report| {
            report
                .acknowledged
                .is_some_and(|point| point.sequence > last + 1)
        })
        .await;
        let world = shared.world();
        check_points(&world);
        assert_eq!(world.whole.values().next_back(), Some(&vec![id]));
        assert_eq!(world.tracked, BTreeSet::from([2]));
    });
}
