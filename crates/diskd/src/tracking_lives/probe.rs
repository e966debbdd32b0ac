//! What lies below the tracker: a disk that notes what is issued, and the place of a log.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use block::{Device, Done, Fault, Image, Op, Place};
use image::RawDevice;
use model::BLOCK_SIZE;
use testkit::{PowerCutStore, Rng};

use super::marks::{Model, size};
use super::pauses;
use crate::ledger;

/// Notes what is issued, in that order, before it goes on.
pub(super) struct Probe {
    pub(super) below: RawDevice<PowerCutStore>,
    pub(super) model: Rc<RefCell<Model>>,
    pub(super) rng: RefCell<Rng>,
}

impl Image for Probe {
    fn size(&self) -> u64 {
        Image::size(&self.below)
    }

    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        self.below.translate(range, visit).await
    }
}

impl Device for Probe {
    fn size(&self) -> u64 {
        Device::size(&self.below)
    }

    async fn run(&self, op: Op) -> Done {
        if !op.mutates() {
            let flush = matches!(op, Op::Flush);
            let done = self.below.run(op).await;
            if flush && done.outcome.is_ok() {
                // What is issued meanwhile may be sent before it ends.
                let turns = {
                    let mut rng = self.rng.borrow_mut();
                    let most = [1, 1, 1, 100, 2000][rng.index(5)];
                    rng.below(most)
                };
                pauses(turns).await;
            }
            return done;
        }
        let (at, len) = op.range();
        let number = {
            let mut model = self.model.borrow_mut();
            let place = &mut model.issued[size(at)..size(at + len)];
            match &op {
                Op::Write { from, .. } => from.copy_to_slice(0, place),
                _ => place.fill(0),
            }
            let blocks = at / BLOCK_SIZE..(at + len).div_ceil(BLOCK_SIZE);
            model.current.add(blocks.clone());
            model.next += 1;
            let number = model.next;
            model.flights.push((number, blocks));
            number
        };
        let done = self.below.run(op).await;
        let mut model = self.model.borrow_mut();
        model.flights.retain(|(flight, _)| *flight != number);
        done
    }
}

/// The folder of the write-intent log: what it does is durable.
pub(super) struct Folder {
    pub(super) log: Rc<RefCell<Option<PowerCutStore>>>,
    /// So many removals fail.
    pub(super) stuck: Rc<Cell<u32>>,
    pub(super) rng: RefCell<Rng>,
}

impl ledger::Place<PowerCutStore> for Folder {
    fn open(&self) -> io::Result<Option<PowerCutStore>> {
        Ok(self.log.borrow().clone())
    }

    fn make(&self) -> io::Result<PowerCutStore> {
        let store = PowerCutStore::new(0, 512, self.rng.borrow_mut().bits());
        self.log.replace(Some(store.clone()));
        Ok(store)
    }

    fn remove(&self) -> io::Result<()> {
        if let Some(left) = self.stuck.get().checked_sub(1) {
            self.stuck.set(left);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.log.take();
        Ok(())
    }
}
