//! Parts of an initial replication: [`Request::Seed`](crate::control::Request::Seed) and
//! [`Request::Prepare`](crate::control::Request::Prepare).

use std::path::Path;
use std::sync::mpsc;

use journal::{Content, Header};
use model::{BLOCK_SIZE, Bytes, DiskId, Problem};

use super::ahead::{Made, Part};
use super::{Disk, Engine, chain};
use crate::control::Reply;
use crate::epoch::{EpochFault, Underway};
use crate::outbox::{Draft, Filler};
use crate::owner::Order;

impl Engine {
    /// Stages a part of an initial replication, or gives the one that was made ahead its name.
    ///
    /// # Errors
    /// Why there is no segment file; what was marked is marked, or is again once its owner goes on.
    pub fn seed(
        &self,
        header: &Header,
        disk: DiskId,
        from: u64,
        limit: Bytes,
        file: &Path,
    ) -> Result<Reply, Problem> {
        let (part, number) = self.part(header, disk, from, file)?;
        let _alone = loop {
            if let Some(made) = self.take_ahead(Some(&part)) {
                let alone = self.alone_beside();
                let _alone = alone.inspect_err(|_| self.drop_made(&made))?;
                return self.publish(*made);
            }
            let alone = self.alone_beside()?;
            // It may have been begun since.
            if self.ahead.is_nothing() {
                break alone;
            }
        };
        let (draft, opened) = Draft::begin(file).map_err(|error| self.outbox(&error))?;
        let disk = &self.disk(disk)?;
        let mut epoch = self.seal_part(disk, number, from, limit)?;
        epoch.await_seals(None);
        let filler = Filler::begin(file, opened, header);
        self.finish(epoch, draft, filler)
    }

    /// Makes the part of an initial replication that will be asked for next.
    ///
    /// # Errors
    /// Why it is not made: it is then when it is asked for.
    pub fn prepare(
        &self,
        header: &Header,
        disk: DiskId,
        from: u64,
        limit: Bytes,
        file: &Path,
    ) -> Result<Reply, Problem> {
        let (part, number) = self.part(header, disk, from, file)?;
        if !self.ahead.begin(part.clone()) {
            return Err(self.busy("another part is made already"));
        }
        let made = self.make(part, header, number, limit);
        // Whoever waits for it goes on, whatever came of it.
        match made.map(|made| self.ahead.made(Box::new(made))) {
            Ok(Ok(())) => Ok(Reply::Done),
            Ok(Err(made)) => {
                self.drop_made(&made);
                // With its file, whose name the next one may have.
                drop(made);
                self.ahead.ended();
                Err(self.busy("another request was made meanwhile"))
            }
            Err(problem) => {
                self.ahead.ended();
                Err(problem)
            }
        }
    }

    /// What a part is known by, and the number of its disk.
    fn part(
        &self,
        header: &Header,
        disk: DiskId,
        from: u64,
        file: &Path,
    ) -> Result<(Part, u16), Problem> {
        let Content::Seed { seed, part } = header.content else {
            return Err(self.invalid("a seed is asked for, the header is of another kind"));
        };
        if from % BLOCK_SIZE != 0 {
            return Err(self.invalid(format!("byte {from} is not the first of a block")));
        }
        let disks = self.disks_of(header)?;
        let Some(number) = disks.iter().position(|one| one.id == disk) else {
            return Err(self.invalid(format!("the header does not name disk {disk}")));
        };
        let number = u16::try_from(number).map_err(|error| self.invalid(error))?;
        let part = Part {
            seed,
            number: part,
            disk,
            from,
            file: file.to_owned(),
        };
        Ok((part, number))
    }

    fn seal_part<'a>(
        &'a self,
        disk: &'a Disk,
        number: u16,
        from: u64,
        limit: Bytes,
    ) -> Result<Underway<'a>, Problem> {
        let (deliveries, delivered) = mpsc::channel();
        let stage = self.stage_order(number, &deliveries);
        drop(deliveries);
        let order = Order::Seed {
            from: from / BLOCK_SIZE,
            limit: limit.0.div_ceil(BLOCK_SIZE),
            joins: false,
            stage,
        };
        self.order(disk, order)?;
        Ok(Underway::new(self, &[disk], delivered))
    }

    fn make(
        &self,
        part: Part,
        header: &Header,
        number: u16,
        limit: Bytes,
    ) -> Result<Made, Problem> {
        let alone = self.hold(&self.epoch, "another request works on their marks")?;
        let begun = Draft::begin_beside(&part.file);
        let (draft, opened) = begun.map_err(|error| self.outbox(&error))?;
        let disk = self.disk(part.disk)?;
        let mut epoch = self.seal_part(disk, number, part.from, limit)?;
        epoch.await_seals(None);
        drop(alone);
        if !self.ahead.sealed() {
            epoch.give_up();
            return Err(self.busy("another request was made meanwhile"));
        }
        let filler = Filler::begin(&part.file, opened, header).map_err(EpochFault::Outbox);
        let written = filler.and_then(|mut filler| {
            epoch.write(&mut filler)?;
            let summary = filler.finish().map_err(EpochFault::Outbox)?;
            let cut_off = draft.cut_off(summary.file_len.0);
            cut_off.map(|()| summary).map_err(EpochFault::Outbox)
        });
        match written {
            Ok(summary) => Ok(Made {
                part,
                draft,
                staged: epoch.report(&summary),
            }),
            Err(fault) => {
                epoch.give_up();
                Err(self.unfinished(&fault))
            }
        }
    }

    /// Takes what was made ahead if it is `wanted`; anything else is given up.
    fn take_ahead(&self, wanted: Option<&Part>) -> Option<Box<Made>> {
        let made = self.ahead.take(wanted, |disk| {
            let abandoned = self
                .disk(disk)
                .and_then(|disk| self.insist(disk, Order::Abandon));
            if let Err(problem) = abandoned {
                tracing::error!(%problem, "cannot abandon an epoch");
            }
        })?;
        if Some(&made.part) == wanted {
            return Some(made);
        }
        self.drop_made(&made);
        None
    }

    /// Gives up what was made ahead, or is.
    pub(super) fn give_up_ahead(&self) {
        self.take_ahead(None);
    }

    fn drop_made(&self, made: &Made) {
        match self.disk(made.part.disk) {
            Ok(disk) => self.end_epoch(&[disk], false),
            Err(problem) => tracing::error!(%problem, "an epoch is not ended"),
        }
    }

    fn publish(&self, made: Made) -> Result<Reply, Problem> {
        let disk = self.disk(made.part.disk)?;
        match made.draft.publish_alone() {
            Ok(()) => {
                self.end_epoch(&[disk], true);
                Ok(Reply::Staged(made.staged))
            }
            Err(error) => {
                self.end_epoch(&[disk], false);
                self.tally().folded_back(chain(&error));
                Err(self.outbox(&error))
            }
        }
    }
}
