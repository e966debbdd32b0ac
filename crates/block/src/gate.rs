//! A device below which the stack is exchanged while it is used.
//!
//! ```text
//!   open --close--> closed --drain--> closed, nothing runs --swap--> ... --open--> open
//!     ^  operations run   ^ new ones wait, old ones go on        ^ those that waited run
//! ```
//!
//! - Whatever is issued while the gate is closed waits, reads and flushes too, and runs on what is
//!   below when the gate opens. Nothing is refused or lost.
//! - Operations that wait have no order among each other, as operations of a guest that run at the
//!   same time have none; a flush covers what completed before it was issued, on either side of a
//!   swap, if what is put below flushes what was there before.
//! - Open, it costs two counters: nothing is allocated, nobody is woken.
//!
//! Nothing here survives a crash, and nothing has to: the gate holds no content.

use std::cell::{Cell, RefCell};
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use crate::{Device, Done, Fault, Image, Op, Place, Waiters};

/// See the module.
pub struct Gate<D> {
    below: RefCell<Rc<D>>,
    closed: Cell<bool>,
    running: Cell<usize>,
    changed: Waiters,
    /// A test swaps too early on purpose.
    #[cfg(test)]
    careless: Cell<bool>,
}

/// What a swap gives back.
#[derive(Debug)]
pub struct Swapped<D> {
    /// What was below.
    pub old: Rc<D>,
    /// Byte ranges whose visible content may have changed: those that the swap was given, and what
    /// the disk grew by.
    pub changed: Vec<Range<u64>>,
}

/// An operation that runs below, until dropped.
struct Pass<'a, D> {
    gate: &'a Gate<D>,
    below: Rc<D>,
}

impl<D> Drop for Pass<'_, D> {
    fn drop(&mut self) {
        let running = self.gate.running.get() - 1;
        self.gate.running.set(running);
        if running == 0 && self.gate.closed.get() {
            self.gate.changed.notify();
        }
    }
}

impl<D> Gate<D> {
    /// An open gate above `below`.
    pub fn new(below: Rc<D>) -> Self {
        Self {
            below: RefCell::new(below),
            closed: Cell::new(false),
            running: Cell::new(0),
            changed: Waiters::default(),
            #[cfg(test)]
            careless: Cell::new(false),
        }
    }

    /// What is below now. An operation that is run on it past the gate is not waited for.
    pub fn below(&self) -> Rc<D> {
        Rc::clone(&self.below.borrow())
    }

    /// From now on operations wait; those that run go on.
    pub fn close(&self) {
        self.closed.set(true);
    }

    /// Waits until nothing runs below. The gate must be closed, or this may take for ever.
    pub async fn drain(&self) {
        self.changed
            .until(|| (self.running.get() == 0).then_some(()))
            .await;
    }

    /// Puts `new` below. `changed` are the byte ranges whose visible content may differ; they come
    /// back with what was below and with what the disk grew by. The gate stays closed.
    ///
    /// # Panics
    /// When the gate is open or not drained: writes would land on what is no longer the disk.
    pub fn swap(&self, new: Rc<D>, mut changed: Vec<Range<u64>>) -> Swapped<D>
    where
        D: Device,
    {
        assert!(
            self.closed.get() && (self.running.get() == 0 || self.is_careless()),
            "a gate is closed and drained before what is below is swapped"
        );
        let (before, after) = (self.below.borrow().size(), new.size());
        if before < after {
            changed.push(before..after);
        }
        let old = self.below.replace(new);
        Swapped { old, changed }
    }

    /// Lets run what waited and what comes.
    pub fn open(&self) {
        self.closed.set(false);
        self.changed.notify();
    }

    #[cfg(test)]
    fn is_careless(&self) -> bool {
        self.careless.get()
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "a test breaks the rule")]
    fn is_careless(&self) -> bool {
        false
    }

    async fn pass(&self) -> Pass<'_, D> {
        if self.closed.get() {
            self.changed
                .until(|| (!self.closed.get()).then_some(()))
                .await;
        }
        // No await since it was seen open.
        self.running.set(self.running.get() + 1);
        Pass {
            gate: self,
            below: self.below(),
        }
    }
}

impl<D: Device> Device for Gate<D> {
    fn size(&self) -> u64 {
        self.below.borrow().size()
    }

    async fn run(&self, op: Op) -> Done {
        let pass = self.pass().await;
        pass.below.run(op).await
    }
}

impl<D: Image> Image for Gate<D> {
    fn size(&self) -> u64 {
        self.below.borrow().size()
    }

    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        let pass = self.pass().await;
        pass.below.translate(range, visit).await
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
