//! Epochs: [`Request::Cut`](crate::control::Request::Cut), and what every epoch needs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;

use journal::segment::FITTING;
use journal::{Content, Header, Summary};
use model::{BLOCK_SIZE, Bytes, Code, DiskId, Problem};

use super::{Disk, Engine, chain};
use crate::control::{Reply, Slice};
use crate::cut::Cut;
use crate::epoch::{EpochFault, Underway};
use crate::outbox::{Draft, Filler, OutboxError};
use crate::owner::{Delivery, Order, SealFault, StageOrder};
use crate::staging::Abandoned;

impl Engine {
    /// The disks that `header` names, in its order.
    pub(super) fn disks_of(&self, header: &Header) -> Result<Vec<&Disk>, Problem> {
        header.check().map_err(|error| self.invalid(error))?;
        if header.vm != self.vm {
            return Err(self.invalid(format!("the header is that of VM {}", header.vm)));
        }
        let term = header.lineage.current().number;
        if term != self.term {
            return Err(self.problem(
                Code::Conflict,
                format!(
                    "the header is of term {term}, this process may write in term {}",
                    self.term
                ),
                "",
            ));
        }
        header
            .disks
            .iter()
            .map(|named| {
                self.disks
                    .iter()
                    .find(|disk| disk.id == named.id && disk.size.load(Relaxed) == named.size.0)
                    .ok_or_else(|| {
                        self.invalid(format!("there is no disk {} of {}", named.id, named.size))
                    })
            })
            .collect()
    }

    /// Cuts an epoch on all disks of the header and writes its segment, with a `slice` of a disk that
    /// joins. Disks that are `whole` for the first time are told so.
    ///
    /// # Errors
    /// Why there is no segment file; what was marked is marked, or is again once its owner goes on.
    pub fn cut(
        &self,
        mut header: Header,
        whole: &[DiskId],
        slice: Option<Slice>,
        file: &Path,
    ) -> Result<Reply, Problem> {
        let _alone = self.alone()?;
        if !matches!(header.content, Content::Delta { .. }) {
            return Err(self.invalid("a cut makes a delta, the header is of another kind"));
        }
        let named = self.disks_of(&header)?;
        let numbered = || (0_u16..).zip(header.disks.iter().zip(&named));
        let of_slice = match &slice {
            Some(slice) if slice.from % BLOCK_SIZE != 0 => {
                let from = slice.from;
                return Err(self.invalid(format!("byte {from} is not the first of a block")));
            }
            Some(slice) => {
                let mut found = numbered().filter(|(_, (named, _))| named.joining);
                let found = found.find(|(_, (named, _))| named.id == slice.disk);
                let id = slice.disk;
                let no_such = || self.invalid(format!("disk {id} joins not with this header"));
                let (number, (_, disk)) = found.ok_or_else(no_such)?;
                Some((number, *disk, slice))
            }
            None => None,
        };
        let cut_ones: Vec<_> = numbered()
            .filter(|(_, (named, _))| !named.joining)
            .collect();
        let cut = Arc::new(Cut::new(cut_ones.len()));
        let mut orders: Vec<_> = Vec::new();
        let (deliveries, delivered) = mpsc::channel();
        for (number, (_, disk)) in cut_ones {
            let mut stage = self.stage_order(number, &deliveries);
            stage.whole = whole.contains(&disk.id);
            orders.push((*disk, Order::Cut(Arc::clone(&cut), stage)));
        }
        // Not of the instant: it does not hold the others up, nor they it.
        if let Some((number, disk, slice)) = of_slice {
            let stage = self.stage_order(number, &deliveries);
            let (from, limit) = (slice.from / BLOCK_SIZE, slice.limit.0.div_ceil(BLOCK_SIZE));
            let joins = true;
            orders.push((
                disk,
                Order::Seed {
                    from,
                    limit,
                    joins,
                    stage,
                },
            ));
        }
        drop(deliveries);
        let (draft, opened) = Draft::begin(file).map_err(|error| self.outbox(&error))?;
        // Were it tracked on, it would be taken for one of which the replica has all that is not marked.
        let mut others = self.all();
        others.retain(|disk| named.iter().all(|named| named.id != disk.id));
        self.leave_out(&others)?;
        let disks: Vec<_> = orders.iter().map(|(disk, _)| *disk).collect();
        self.check_content(&disks)?;
        self.coarsen(&disks)?;
        let mut epoch = Underway::new(self, &disks, delivered);
        let instant = self.one_instant();
        let mut orders = orders.into_iter();
        while let Some((disk, order)) = orders.next() {
            if let Err(problem) = self.order(disk, order) {
                cut.abandon();
                drop(orders);
                epoch.give_up();
                return Err(problem);
            }
        }
        epoch.await_seals(Some(&cut));
        drop(instant);
        if let Some(time) = cut.time() {
            header.time = time;
            self.tally().cut(epoch.pause());
        }
        let filler = Filler::begin(file, opened, &header);
        self.finish(epoch, draft, filler)
    }

    /// Refuses to cut more than a segment holds, before all of it was read.
    fn check_content(&self, disks: &[&Disk]) -> Result<(), Problem> {
        let most = FITTING / BLOCK_SIZE;
        if marked(disks) <= most {
            return Ok(());
        }
        let content = self.ask_at_length(disks, |answer| Order::Content(most, answer))?;
        if content.iter().sum::<u64>() <= most {
            return Ok(());
        }
        Err(self.too_large())
    }

    fn too_large(&self) -> Problem {
        let marked = Bytes(marked(&self.all()).saturating_mul(BLOCK_SIZE));
        self.problem(
            Code::Full,
            format!(
                "so much changed since their newest recovery point that no other one can hold it: \
                 {marked} are marked, and one holds {} that take space",
                Bytes(FITTING)
            ),
            "the changes stay marked, and it goes on by itself should the guest discard enough of them; if \
             not, make a VM of the newest point on the other host (`pollux point export`, `pollux vm create \
             --image`), end the replication with `pollux replica remove`, and enable it anew with \
             `--seed-from` that VM: what differs is sent in parts, of whatever size",
        )
    }

    /// Lets what is marked on `disks` fit into one segment.
    fn coarsen(&self, disks: &[&Disk]) -> Result<(), Problem> {
        if marked(disks) <= self.most_runs {
            return Ok(());
        }
        let most = self.most_runs / (disks.len() as u64).max(1);
        let done = self.ask_at_length(disks, |answer| Order::Coarsen(most, answer));
        done.map(drop)
    }

    pub(super) fn stage_order(&self, disk: u16, deliveries: &mpsc::Sender<Delivery>) -> StageOrder {
        StageOrder {
            disk,
            budget: self.copy_budget.0,
            whole: false,
            deliveries: deliveries.clone(),
        }
    }

    /// Writes what the owners deliver, until the segment is whole or will never be.
    pub(super) fn finish(
        &self,
        mut epoch: Underway<'_>,
        draft: Draft,
        filler: Result<Filler, OutboxError>,
    ) -> Result<Reply, Problem> {
        let mut filler = match filler {
            Ok(filler) => filler,
            Err(error) => {
                epoch.give_up();
                self.tally().folded_back(chain(&error));
                drop(draft);
                return Err(self.outbox(&error));
            }
        };
        if let Err(fault) = epoch.write(&mut filler) {
            epoch.give_up();
            self.count(&fault);
            // What it took is free again, before it is told how much is.
            drop((filler, draft));
            return Err(self.unfinished(&fault));
        }
        let published: Result<Summary, OutboxError> = filler.finish().and_then(|summary| {
            draft.publish()?;
            Ok(summary)
        });
        match published {
            Ok(summary) => {
                // From here on nothing is an error: the file is there, with all that is sealed.
                epoch.end(true);
                self.tally().copied(epoch.copied());
                Ok(Reply::Staged(epoch.report(&summary)))
            }
            Err(error) => {
                epoch.give_up();
                self.tally().folded_back(chain(&error));
                Err(self.outbox(&error))
            }
        }
    }

    pub(super) fn count(&self, fault: &EpochFault) {
        match fault {
            EpochFault::Seal(SealFault::Late) => self.tally().abandoned(),
            // Nothing was sealed.
            EpochFault::Seal(SealFault::Seal(_)) => {}
            EpochFault::Outbox(error) => self.tally().folded_back(chain(error)),
            EpochFault::Staging(fault) => self.tally().folded_back(fault.to_string()),
            EpochFault::Gone => self.tally().folded_back("an owner thread ended"),
        }
    }

    pub(super) fn unfinished(&self, fault: &EpochFault) -> Problem {
        let tracked = "the changes stay marked; ask again";
        match fault {
            EpochFault::Outbox(error) => self.outbox(error),
            EpochFault::Seal(fault @ SealFault::Late) => {
                self.problem(Code::Conflict, fault, tracked)
            }
            EpochFault::Seal(fault) => self.problem(Code::Conflict, fault, "track changes first"),
            EpochFault::Staging(fault @ Abandoned::Budget) => self.problem(
                Code::Full,
                format!("{fault} (copy budget {})", self.copy_budget),
                tracked,
            ),
            EpochFault::Staging(fault) => self.problem(Code::Failed, fault, tracked),
            EpochFault::Gone => self.problem(
                Code::Failed,
                "an owner thread ended",
                "look at the log of pollux-diskd",
            ),
        }
    }

    pub(super) fn outbox(&self, error: &OutboxError) -> Problem {
        match error {
            OutboxError::Exists(_) => {
                self.problem(Code::Conflict, chain(error), "fold it back or remove it")
            }
            error if error.is_too_large() => self.too_large(),
            error if error.is_full() => {
                let way_out = "the changes stay marked; make room";
                self.problem(Code::Full, self.lack(error), way_out)
            }
            _ => {
                let way_out = "the changes stay marked; ask again";
                self.problem(Code::Failed, chain(error), way_out)
            }
        }
    }

    /// What does not fit, and how much room there is.
    fn lack(&self, error: &OutboxError) -> String {
        let marked = Bytes(marked(&self.all()).saturating_mul(BLOCK_SIZE));
        let folder = error.folder();
        let free = rustix::fs::statvfs(folder)
            .map(|space| Bytes(space.f_bavail.saturating_mul(space.f_frsize)));
        match free {
            Ok(free) => format!(
                "{}; {marked} are to be written, before compression, and {free} are free in {}",
                chain(error),
                folder.display()
            ),
            Err(_) => chain(error),
        }
    }
}

/// Blocks that are marked on `disks`.
fn marked(disks: &[&Disk]) -> u64 {
    let marked = disks.iter().map(|disk| disk.stats.dirty.load(Relaxed));
    marked.sum()
}
