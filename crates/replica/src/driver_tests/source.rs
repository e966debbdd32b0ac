//! What the primary does with its own disks and records: each step takes a while, and may fail.

use super::*;

impl Shared {
    /// Does `work` at one instant, with a pause on either side where it may be killed, and
    /// sometimes reports a failure before or after.
    async fn local<T>(&self, step: Step, work: impl FnOnce(&mut World) -> T) -> Result<T, Problem> {
        self.pause(20).await;
        self.at(step, When::Before).await?;
        let (before, after) = {
            let mut world = self.world();
            let percent = world.weather.failing;
            (world.chance.percent(percent), world.chance.percent(percent))
        };
        if before {
            self.world().happened("failed step");
            return Err(problem(Code::Failed, "failed before"));
        }
        let result = work(&mut self.world());
        self.pause(20).await;
        self.at(step, When::After).await?;
        if after {
            self.world().happened("failed step");
            return Err(problem(Code::Failed, "failed after"));
        }
        Ok(result)
    }
}

impl Source for Shared {
    async fn track(&self) -> Result<Tracking, Problem> {
        self.local(Step::Track, World::track).await
    }

    async fn reserve_sequence(&self, above: u64) -> Result<u64, Problem> {
        self.local(Step::Reserve, |world| {
            world.sequence = world.sequence.max(above) + 1;
            world.reserving = true;
            world.sequence
        })
        .await
    }

    async fn seed(&self, part: SeedPart) -> Result<StagedPart, Problem> {
        self.local(Step::Seed, |world| {
            assert!(!world.base_stays, "a part would be written to the base");
            if !world.suspect.is_empty() {
                return Err(problem(Code::Conflict, "something is suspect"));
            }
            let step = 1 + world.chance.below(8);
            let (from, to) = (part.at.from, (part.at.from + step).min(BLOCKS));
            let blocks = (from..to).map(|block| (part.at.disk, block)).collect();
            let content = Content::Seed {
                seed: part.seed,
                part: part.part,
            };
            Ok(StagedPart {
                segment: world.stage(content, blocks),
                next: (to < BLOCKS).then_some(to),
            })
        })
        .await?
    }

    async fn cut(
        &self,
        since: Since,
        sequence: u64,
        disks: Vec<CutDisk>,
    ) -> Result<StagedPart, Problem> {
        let staging = self.world().staging;
        tokio::time::sleep(staging).await;
        self.local(Step::Cut, |world| {
            world.reserving = false;
            world.cut(since, sequence, &disks)
        })
        .await?
    }

    async fn offer(&self, staged: &Staged) -> Result<Offer, Problem> {
        self.at(Step::ReadOffer, When::Before).await?;
        let world = self.world();
        let file = world.outbox.as_ref().filter(|file| file.staged == *staged);
        let file = file.ok_or_else(|| problem(Code::Failed, "no such file"))?;
        let count = file.content.len().max(1) as u64;
        Ok(Offer {
            header: staged.header.clone(),
            root: file.root,
            round: 0,
            file_len: count * CHUNK,
            chunks: (0..count).map(|n| Digest::of(&encode(file, n))).collect(),
        })
    }

    async fn chunk(&self, staged: &Staged, n: u64) -> Result<Bytes, Problem> {
        self.at(Step::ReadChunk, When::Before).await?;
        let world = self.world();
        let file = world.outbox.as_ref().filter(|file| file.staged == *staged);
        Ok(encode(
            file.ok_or_else(|| problem(Code::Failed, "no such file"))?,
            n,
        ))
    }

    async fn confirm(&self, staged: &Staged) -> Result<(), Problem> {
        self.local(Step::Confirm, |world| {
            if world
                .outbox
                .take_if(|file| file.staged == *staged)
                .is_some()
            {
                world.confirm();
            }
        })
        .await
    }

    async fn hashes(&self, disk: DiskId, from: u64) -> Result<Suspects, Problem> {
        self.local(Step::Hashes, |world| world.hashes(disk, from))
            .await
    }

    async fn compared(&self, disk: DiskId, regions: Vec<ComparedRegion>) -> Result<(), Problem> {
        self.local(Step::Compared, |world| world.note(disk, &regions))
            .await
    }

    async fn changing(&self, disk: DiskId, from: u64) -> Result<Changing, Problem> {
        self.local(Step::Changing, |world| world.changing(disk, from))
            .await
    }

    async fn mark(&self, disk: DiskId, regions: Vec<ComparedRegion>) -> Result<(), Problem> {
        self.local(Step::Mark, |world| world.mark(disk, &regions))
            .await
    }

    async fn suspect(&self, issued: u64) -> Result<model::Bytes, Problem> {
        self.local(Step::Suspect, |world| {
            world.suspect_all();
            world.sequence = world.sequence.max(issued);
            world.suspected()
        })
        .await
    }

    async fn fold_back(&self, staged: &Staged) -> Result<(), Problem> {
        self.local(Step::FoldBack, |world| {
            if let Some(file) = world.outbox.take_if(|file| file.staged == *staged) {
                let held = file.content.iter().map(|(key, _)| *key);
                if file.damaged && world.unreadable {
                    let lost = std::mem::take(&mut world.unconfirmed);
                    world.suspect.extend(lost);
                } else if world.lie != Some(Lie::FoldBack) {
                    world.marks.extend(held);
                }
                world.unconfirmed.clear();
            }
        })
        .await
    }

    async fn persist(&self, progress: Progress) -> Result<(), Problem> {
        self.local(Step::Persist, |world| {
            if world.lie != Some(Lie::Persist) {
                world.progress = progress;
            }
        })
        .await
    }

    async fn gate(&self, lineage: &Lineage) -> Result<(), Problem> {
        let lineage = lineage.clone();
        self.local(Step::Gate, |world| world.gated = Some(lineage))
            .await
    }

    fn wall(&self) -> Timestamp {
        self.world().clocks.primary.says()
    }
}

fn encode(file: &File, n: u64) -> Bytes {
    let index = usize::try_from(n).expect("small");
    let nothing = ((usize::MAX, 0), 0);
    let ((disk, block), value) = *file.content.get(index).unwrap_or(&nothing);
    [disk as u64, block, value]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}
