//! For whom changes are tracked, and what is known of what was sent.
//!
//! ```text
//!   Cut --> outbox/N.delta --> replica has it: Confirm (nothing unconfirmed, then the file goes)
//!                         '--> will not be sent: FoldBack (marks, nothing unconfirmed, the file goes)
//!   Hashes --> compared with the replica's --> Compared (marks what differs, nothing suspect)
//!   Regions --> compared with the replica's, what changed left out --> Mark (what is damaged there)
//! ```
//!
//! A kill between two of those steps finds too much: blocks that are marked and in a file, a file whose
//! content the replica has.

use std::ops::Range;
use std::path::Path;

use block::Fault;
use journal::compare::{BlockHashes, Blocks};
use journal::{Run, SegmentError, SegmentReader};
use model::{BLOCK_SIZE, Bytes, Code, DiskId, Problem, REGION_SIZE, RelationshipId, VmId};

use super::{Disk, Engine, chain};
use crate::control::{
    ChangingRegion, Compared, MAX_DIFFERING, MAX_HASHES, MAX_REGIONS, RegionHashes, Reply, Sent,
};
use crate::outbox;
use crate::owner::Order;
use crate::suspects::{Changing, Content, Piece};

/// Blocks of a whole region.
const REGION_BLOCKS: u64 = REGION_SIZE / BLOCK_SIZE;
/// Regions whose content is in memory at once, twice: while one lot is hashed the next is read.
const LOT: u64 = 8;
/// Runs of a segment that are in memory at once, twice, and that a disk's owner marks without a break.
const RUNS: usize = 1 << 14;

type Runs = Vec<Range<u64>>;

impl Engine {
    /// Tracks changes for `relationship` on all disks `but` some. If its initial replication is not
    /// finished, this was `sent` of it.
    ///
    /// # Errors
    /// When another request works on the marks, or what is known of a disk that is left out cannot be
    /// removed.
    pub fn track(
        &self,
        relationship: RelationshipId,
        sent: Option<&[Sent]>,
        but: &[DiskId],
    ) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        let (out, disks): (Vec<&Disk>, Vec<&Disk>) =
            self.disks.iter().partition(|disk| but.contains(&disk.id));
        self.leave_out(&out)?;
        let known: Vec<bool> = (self.ask(&disks, Order::Look)?.iter())
            .map(|look| look.tracking.as_ref().map(|known| known.relationship))
            .map(|known| known == Some(relationship))
            .collect();
        let found = self.track_each(relationship, sent, &disks)?;
        // One that is new beside others says nothing of what was staged.
        let is_new = |known: bool| sent.is_none() && !known && found.len() > 1;
        let mut both = known.iter().zip(&found);
        let exact = known.contains(&true) && both.all(|(known, exact)| *exact || is_new(*known));
        if !exact {
            // Whoever asks may throw away all that was staged: nobody needs it any more then.
            let order = |answer| Order::FoldBack(None, answer);
            self.failures(self.ask_at_length(&disks, order)?)?;
            // Of that, what was never sent is marked.
            self.track_each(relationship, sent, &disks)?;
        }
        let looks = self.ask(&disks, Order::Look)?;
        let tracked = looks.iter().filter_map(|look| look.tracking.as_ref());
        let suspect = tracked.map(|tracking| tracking.suspect.0).sum();
        let suspect = Bytes(suspect);
        Ok(Reply::Tracking { exact, suspect })
    }

    /// Whether nothing was lost, of each of them.
    fn track_each(
        &self,
        relationship: RelationshipId,
        sent: Option<&[Sent]>,
        disks: &[&Disk],
    ) -> Result<Vec<bool>, Problem> {
        let mut all = Vec::new();
        for disk in disks {
            let begin = sent.map(|sent| {
                let of_it = sent.iter().filter(|sent| sent.disk == disk.id);
                of_it.map(|sent| sent.to).max().unwrap_or(0)
            });
            let found = self.ask_at_length(&[*disk], |answer| Order::Track {
                relationship,
                begin,
                answer,
            })?;
            all.extend(found);
        }
        Ok(all)
    }

    /// Tracks for `relationship` what was written above the point that every disk lies above.
    ///
    /// # Errors
    /// When another request works on the marks, or a disk lies above no point.
    pub fn track_above(&self, relationship: RelationshipId) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        let above = self.ask_at_length(&self.all(), |answer| {
            Order::TrackAbove(relationship, answer)
        })?;
        if above.contains(&false) {
            let reason = "a disk lies above no recovery point, or is being merged into it";
            return Err(self.problem(Code::Conflict, reason.to_owned(), ""));
        }
        Ok(Reply::Done)
    }

    /// Nobody can tell how these regions of a disk differ from the replica.
    ///
    /// # Errors
    /// When there is no such disk, or a write-intent log can neither be written nor removed.
    pub fn suspect_regions(&self, disk: DiskId, regions: &[Range<u64>]) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        let disk = self.disk(disk)?;
        let order = |answer| Order::SuspectRegions(regions.to_vec(), answer);
        self.failures(self.ask_at_length(&[disk], order)?)?;
        Ok(Reply::Done)
    }

    /// Where a disk may differ from what the replica confirmed last.
    ///
    /// # Errors
    /// When there is no such disk, or nothing is tracked of it.
    pub fn differing(&self, disk: DiskId, from: u64) -> Result<Reply, Problem> {
        let disk = self.disk(disk)?;
        let order = |answer| Order::Differing {
            from: from / REGION_SIZE,
            limit: MAX_DIFFERING,
            answer,
        };
        let Some(found) = self.ask(&[disk], order)?.pop().flatten() else {
            let reason = format!("nothing is tracked of disk {}", disk.id);
            return Err(self.problem(Code::Conflict, reason, ""));
        };
        let mut runs: Vec<Range<u64>> = Vec::new();
        for run in found.runs {
            let bytes = run.start * BLOCK_SIZE..run.end * BLOCK_SIZE;
            match runs.last_mut() {
                Some(last) if last.end >= bytes.start => last.end = last.end.max(bytes.end),
                _ => runs.push(bytes),
            }
        }
        Ok(Reply::Differing {
            runs,
            next: found.next.map(|region| region * REGION_SIZE),
        })
    }

    /// Forgets all marks.
    ///
    /// # Errors
    /// When another request works on the marks, or a write-intent log cannot be removed.
    pub fn untrack(&self) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        self.leave_out(&self.all())?;
        Ok(Reply::Done)
    }

    /// Tracks nothing of these disks.
    pub(super) fn leave_out(&self, disks: &[&Disk]) -> Result<(), Problem> {
        for (disk, outcome) in disks.iter().zip(self.ask(disks, Order::Untrack)?) {
            outcome.map_err(|why| {
                let reason = format!(
                    "the write-intent log of disk {} cannot be removed: {why}",
                    disk.id
                );
                self.problem(Code::Failed, reason, "check the storage of the VM's folder")
            })?;
        }
        Ok(())
    }

    /// Nobody can tell how the disks differ from the replica.
    ///
    /// # Errors
    /// When another request works on the marks, or a write-intent log can neither be written nor
    /// removed.
    pub fn suspect(&self) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        let all = self.all();
        let looks = self.ask(&all, Order::Look)?;
        let disks = all.into_iter().zip(looks);
        let tracked = disks.filter(|(_, look)| look.tracking.is_some());
        let tracked: Vec<&Disk> = tracked.map(|(disk, _)| disk).collect();
        self.failures(self.ask_at_length(&tracked, Order::Suspect)?)?;
        Ok(Reply::Done)
    }

    fn failures(&self, outcomes: Vec<Result<(), Fault>>) -> Result<(), Problem> {
        outcomes
            .into_iter()
            .collect::<Result<(), Fault>>()
            .map_err(|fault| {
                let reason =
                    format!("the write-intent log can neither be written nor removed: {fault}");
                self.problem(Code::Failed, reason, "check the storage of the VM's folder")
            })
    }

    /// The hashes of the next suspect regions of a disk.
    ///
    /// # Errors
    /// When there is no such disk, or it cannot be read.
    pub fn hashes(&self, disk: DiskId, from: u64, limit: u64) -> Result<Reply, Problem> {
        let disk = self.disk(disk)?;
        let limit = limit.clamp(1, MAX_HASHES);
        let mut regions: Vec<RegionHashes> = Vec::new();
        // One more than is told: whether there are more.
        let mut wanted = limit + 1;
        let (mut at, mut reading) = (from, self.read_suspects(disk, from, wanted.min(LOT))?);
        let next = loop {
            let lot = self.answer_at_length(reading)?.map_err(|fault| {
                let reason = format!("disk {} cannot be read: {fault}", disk.id);
                self.problem(Code::Failed, reason, "check the storage below it")
            })?;
            let asked = wanted.min(LOT);
            wanted -= lot.len() as u64;
            let whole = lot.len() as u64 == asked;
            at = lot.last().map_or(at, |last| last.region + 1);
            let goes_on = whole && wanted > 0;
            let following = if goes_on {
                Some(self.read_suspects(disk, at, wanted.min(LOT))?)
            } else {
                None
            };
            for content in lot {
                if regions.len() as u64 == limit {
                    return Ok(Reply::Hashes {
                        regions,
                        next: Some(content.region),
                    });
                }
                regions.push(hashed(&content));
            }
            match following {
                Some(following) => reading = following,
                None => break None,
            }
        };
        Ok(Reply::Hashes { regions, next })
    }

    fn read_suspects<'a>(
        &self,
        disk: &'a Disk,
        from: u64,
        limit: u64,
    ) -> Result<super::Asked<'a, Result<Vec<Content>, Fault>>, Problem> {
        self.begin_to_ask(disk, |answer| Order::ReadSuspects {
            from,
            limit,
            answer,
        })
    }

    /// Marks what differs in regions that were compared.
    ///
    /// # Errors
    /// When there is no such disk, or no such region.
    pub fn compared(&self, disk: DiskId, regions: &[Compared]) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        let disk = self.disk(disk)?;
        let found = self.runs_of(regions)?;
        self.failures(
            self.ask_at_length(&[disk], |answer| Order::Compared(found.clone(), answer))?,
        )?;
        Ok(Reply::Done)
    }

    /// What the next regions of a disk hold, and what may have changed in them.
    ///
    /// # Errors
    /// When there is no such disk, or it cannot be read.
    pub fn regions(&self, disk: DiskId, from: u64, limit: u64) -> Result<Reply, Problem> {
        let disk = self.disk(disk)?;
        let end = from.saturating_add(limit.clamp(1, MAX_REGIONS));
        let read = |from: u64| {
            let limit = end.saturating_sub(from).min(LOT);
            self.begin_to_ask(disk, |answer| Order::ReadChanging {
                from,
                limit,
                answer,
            })
        };
        let mut regions = Vec::new();
        let mut reading = read(from)?;
        loop {
            let lot = self.answer_at_length(reading)?.map_err(|fault| {
                let reason = format!("disk {} cannot be read: {fault}", disk.id);
                self.problem(Code::Failed, reason, "check the storage below it")
            })?;
            let Some(last) = lot.last().map(|last| last.content.region) else {
                return Ok(Reply::Regions {
                    regions,
                    next: None,
                });
            };
            let following = (last + 1 < end).then(|| read(last + 1)).transpose()?;
            regions.extend(lot.iter().map(changing));
            match following {
                Some(following) => reading = following,
                None => {
                    return Ok(Reply::Regions {
                        regions,
                        next: Some(end),
                    });
                }
            }
        }
    }

    /// Marks blocks that the replica has otherwise, though they did not change.
    ///
    /// # Errors
    /// When there is no such disk, or no such region.
    pub fn mark(&self, disk: DiskId, regions: &[Compared]) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        let disk = self.disk(disk)?;
        let found = self.runs_of(regions)?;
        let runs: Runs = found.into_iter().flat_map(|(_, runs)| runs).collect();
        let order = |answer| Order::FoldBack(Some(runs.clone()), answer);
        self.failures(self.ask_at_length(&[disk], order)?)?;
        Ok(Reply::Done)
    }

    /// The blocks of the disk that are named, region by region.
    fn runs_of(&self, regions: &[Compared]) -> Result<Vec<(u64, Runs)>, Problem> {
        let mut found = Vec::new();
        for Compared { region, differ } in regions {
            let no_such = || self.invalid(format!("region {region} has no such blocks"));
            let first = region.checked_mul(REGION_BLOCKS).ok_or_else(no_such)?;
            let mut runs = Runs::new();
            for blocks in differ {
                let end = blocks.first.saturating_add(blocks.count);
                if end > REGION_BLOCKS {
                    return Err(no_such());
                }
                let run = first.checked_add(blocks.first).zip(first.checked_add(end));
                let (start, end) = run.ok_or_else(no_such)?;
                runs.push(start..end);
            }
            found.push((*region, runs));
        }
        Ok(found)
    }

    pub(super) fn disk(&self, id: DiskId) -> Result<&Disk, Problem> {
        let found = self.disks.iter().find(|disk| disk.id == id);
        found.ok_or_else(|| self.invalid(format!("there is no disk {id}")))
    }

    /// The replica has what the segment `file` holds.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn confirm(&self, file: &Path) -> Result<Reply, Problem> {
        // What is made ahead is sealed, and not unconfirmed before it has its name.
        let _alone = self.alone_beside()?;
        self.forget_segment(file, outbox::spend)?;
        Ok(Reply::Done)
    }

    /// Nothing is unconfirmed any more, and the file is `dealt` with. Another segment beside it keeps what is
    /// unconfirmed so: its blocks are among that.
    fn forget_segment(
        &self,
        file: &Path,
        dealt: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<(), Problem> {
        let failed = |error: std::io::Error| {
            let reason = format!("cannot remove {}: {error}", file.display());
            self.problem(Code::Failed, reason, "")
        };
        if outbox::other(file).map_err(failed)?.is_none() {
            self.ask(&self.all(), Order::Confirm)?;
        }
        dealt(file).map_err(failed)
    }

    /// Marks what the segment `file` holds and removes it. If nobody can tell what it holds, what was
    /// unconfirmed is suspect.
    ///
    /// # Errors
    /// When it is another VM's, or cannot be removed; asked again it goes on.
    pub fn fold_back(&self, file: &Path) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        match self.mark_runs_of(file) {
            Ok(()) => {}
            Err(Unmarked::OtherVm(vm)) => {
                return Err(self.invalid(format!("the segment is one of VM {vm}")));
            }
            Err(Unmarked::Failed(problem)) => return Err(problem),
            Err(Unmarked::Unreadable(why)) => {
                tracing::warn!(
                    file = %file.display(), why,
                    "nobody can tell what a segment holds: what was unconfirmed is suspect"
                );
                let order = |answer| Order::FoldBack(None, answer);
                self.failures(self.ask_at_length(&self.all(), order)?)?;
            }
        }
        self.forget_segment(file, outbox::remove)?;
        let why = format!("{} is not shipped", file.display());
        self.tally().folded_back(why);
        Ok(Reply::Done)
    }

    /// Marks what the segment `file` holds, or some of it if it fails.
    fn mark_runs_of(&self, file: &Path) -> Result<(), Unmarked> {
        let unreadable = |error: SegmentError| Unmarked::Unreadable(chain(&error));
        let segment = SegmentReader::open(file).map_err(unreadable)?;
        if segment.header().vm != self.vm {
            return Err(Unmarked::OtherVm(segment.header().vm));
        }
        // One that was taken away meanwhile has no marks any more.
        let named = segment.header().disks.iter();
        let disks: Vec<Option<&Disk>> = named
            .map(|named| self.disks.iter().find(|disk| disk.id == named.id))
            .collect();
        // They come disk by disk.
        let mut runs = segment.runs().peekable();
        while let Some(first) = runs.next().transpose().map_err(unreadable)? {
            let mut lot = vec![blocks_of(&first)];
            while lot.len() < RUNS {
                let same =
                    |run: &Result<Run, _>| run.as_ref().is_ok_and(|run| run.disk == first.disk);
                match runs.next_if(same) {
                    Some(Ok(run)) => lot.push(blocks_of(&run)),
                    _ => break,
                }
            }
            if let Some(disk) = disks.get(usize::from(first.disk)).copied().flatten() {
                let order = |answer| Order::FoldBack(Some(lot.clone()), answer);
                let outcomes = self.ask_at_length(&[disk], order);
                outcomes
                    .and_then(|outcomes| self.failures(outcomes))
                    .map_err(Unmarked::Failed)?;
            }
        }
        Ok(())
    }
}

fn blocks_of(run: &Run) -> Range<u64> {
    run.block..run.block.saturating_add(u64::from(run.count))
}

/// Why what a segment holds is not marked.
enum Unmarked {
    OtherVm(VmId),
    /// Nobody can tell what it is.
    Unreadable(String),
    Failed(Problem),
}

fn changing(region: &Changing) -> ChangingRegion {
    let RegionHashes {
        region: number,
        hashes,
    } = hashed(&region.content);
    let first = number * REGION_BLOCKS;
    let changed = region.changed.iter().map(|run| Blocks {
        first: run.start.saturating_sub(first),
        count: run.end - run.start,
    });
    ChangingRegion {
        region: number,
        hashes,
        changed: changed.collect(),
    }
}

fn hashed(content: &Content) -> RegionHashes {
    let mut hashes = BlockHashes::new();
    for piece in &content.pieces {
        match piece {
            Piece::Zeroes(blocks) => hashes.push_zeroes(*blocks),
            Piece::Read(content) => hashes.push(&content.to_vec()),
        }
    }
    let region = content.region;
    RegionHashes { region, hashes }
}
