//! What is marked, and for whom.

use std::path::Path;

use journal::SegmentReader;
use model::{BLOCK_SIZE, Bytes, Code, DiskId, Problem, REGION_SIZE, RelationshipId};

use super::{Disk, Engine, chain};
use crate::control::{Compared, Reply};
use crate::owner::Order;

/// Blocks of a whole region.
const REGION_BLOCKS: u64 = REGION_SIZE / BLOCK_SIZE;

impl Engine {
    /// Tracks changes for `relationship`.
    ///
    /// # Errors
    /// When another request works on the marks.
    pub fn track(&self, relationship: RelationshipId) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        let found = self.ask(&self.all(), Order::Tracking)?;
        let exact = found.iter().all(|found| *found == Some(relationship));
        if !exact {
            self.ask(&self.all(), |answer| Order::TrackAll(relationship, answer))?;
        }
        let suspect = Bytes(0);
        Ok(Reply::Tracking { exact, suspect })
    }

    /// Nobody can tell how the disks differ from the replica.
    ///
    /// # Errors
    /// When another request works on the marks.
    pub fn suspect(&self) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        for (disk, found) in self
            .disks
            .iter()
            .zip(self.ask(&self.all(), Order::Tracking)?)
        {
            if let Some(relationship) = found {
                self.ask(&[disk], |answer| Order::TrackAll(relationship, answer))?;
            }
        }
        Ok(Reply::Done)
    }

    /// The hashes of the next suspect regions of a disk.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn hashes(&self, disk: DiskId) -> Result<Reply, Problem> {
        self.disk(disk)?;
        let (regions, next) = (Vec::new(), None);
        Ok(Reply::Hashes { regions, next })
    }

    /// Marks what differs in regions that were compared.
    ///
    /// # Errors
    /// When there is no such disk, or no such region.
    pub fn compared(&self, disk: DiskId, regions: &[Compared]) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        let disk = self.disk(disk)?;
        let mut runs = Vec::new();
        for compared in regions {
            for blocks in &compared.differ {
                let end = blocks.first.saturating_add(blocks.count);
                let first = compared.region.checked_mul(REGION_BLOCKS);
                let (Some(first), true) = (first, end <= REGION_BLOCKS) else {
                    let reason = format!("region {} has no such blocks", compared.region);
                    return Err(self.invalid(reason));
                };
                runs.push(first + blocks.first..first + end);
            }
        }
        self.ask(&[disk], |answer| Order::Mark(runs.clone(), answer))?;
        Ok(Reply::Done)
    }

    fn disk(&self, id: DiskId) -> Result<&Disk, Problem> {
        let found = self.disks.iter().find(|disk| disk.id == id);
        found.ok_or_else(|| self.invalid(format!("there is no disk {id}")))
    }

    /// The replica has what the segment `file` holds.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn confirm(&self, file: &Path) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.problem(
                Code::Failed,
                format!("cannot remove {}: {error}", file.display()),
                "",
            )),
            _ => Ok(Reply::Done),
        }
    }

    /// Forgets all marks.
    ///
    /// # Errors
    /// When another request works on the marks.
    pub fn untrack(&self) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        self.ask(&self.all(), Order::Untrack)?;
        Ok(Reply::Done)
    }

    /// Marks what the segment `file` holds and removes it.
    ///
    /// # Errors
    /// When it cannot be read; nothing was changed.
    pub fn fold_back(&self, file: &Path) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        let failed = |error: &dyn std::error::Error| {
            self.problem(
                Code::Failed,
                format!("cannot fold back {}: {}", file.display(), chain(error)),
                "",
            )
        };
        let segment = SegmentReader::open(file).map_err(|error| failed(&error))?;
        let mut marks = Vec::new();
        for named in &segment.header().disks {
            let disk = self.disks.iter().find(|disk| disk.id == named.id);
            let disk =
                disk.ok_or_else(|| self.invalid(format!("there is no disk {}", named.id)))?;
            marks.push((disk, Vec::new()));
        }
        for run in segment.runs() {
            let run = run.map_err(|error| failed(&error))?;
            if let Some((_, runs)) = marks.get_mut(usize::from(run.disk)) {
                runs.push(run.block..run.block + u64::from(run.count));
            }
        }
        for (disk, runs) in marks {
            self.ask(&[disk], |answer| Order::Mark(runs.clone(), answer))?;
        }
        // Only now: a kill in between marks too much, never too little.
        std::fs::remove_file(file).map_err(|error| failed(&error))?;
        self.tally()
            .folded_back(format!("{} is not shipped", file.display()));
        Ok(Reply::Done)
    }
}
