//! The owner of a disk: one thread, one ring, everything that touches the disk.
//!
//! Orders come from the control threads through a mailbox; the guest's requests through the front
//! end, which runs as tasks of the same ring.

mod epoch;
mod order;
mod relate;
mod rest;

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use block::{Device, Fault, Op, Waiters};
use futures_util::future::{Either, select};
use model::{BootId, Bytes, CheckpointId};
use ring::{Kind, Mailbox, Ring};

use crate::coarse::coarsen;
use crate::config::DiskConfig;
use crate::control::StoreKind;
use crate::cut::Cut;
use crate::fronts::{Fronts, Sockets};
use crate::stack::{FileTracker, MergeFault, Stack};
use crate::staging::Abandoned;
use crate::tracker::{Stats, Tracker};

use epoch::{cut_epoch, epoch, sealed};
use rest::Rest;

pub use order::{Delivery, Look, Order, SealFault, StageOrder, Unmerged, Unprepared};

/// Submissions of a turn of an owner; a queue of a guest has up to 128 requests of several pieces.
const ENTRIES: u32 = 256;

/// What an owner thread is given.
pub struct Owned {
    /// The disk.
    pub config: DiskConfig,
    /// This boot.
    pub boot: BootId,
    /// The term in which this process may write.
    pub term: u64,
    /// Where guests and others connect.
    pub sockets: Sockets,
    /// What it is told.
    pub orders: Mailbox<Order>,
    /// What others see of it.
    pub stats: Arc<Stats>,
}

/// Opens the disk, calls `ready`, and serves it until its orders end.
///
/// # Errors
/// Why the disk cannot be opened; nothing of it was touched.
pub fn run(owned: Owned, ready: impl FnOnce()) -> Result<()> {
    let ring = Ring::new(ENTRIES)?;
    let DiskConfig { id, front, .. } = owned.config;
    // On every line that this thread logs.
    let _span = tracing::error_span!("disk", %id).entered();
    if let Some(why) = ring.notice() {
        tracing::warn!(
            why = crate::engine::chain(why),
            "threads read and write: slower"
        );
    }
    let opening = Stack::open(&ring, owned.config, owned.boot, owned.term);
    let (stack, state, ledger) = ring.block_on(opening)?;
    let tracker = Tracker::new(Rc::clone(stack.gate()), state, owned.stats, ledger);
    let (stack, tracker) = (Rc::new(stack), Rc::new(tracker));
    let fronts = Fronts::serve(&ring, &tracker, &stack, id, front, owned.sockets)?;
    ready();
    let owner = Owner {
        ring: ring.clone(),
        tracker,
        stack,
        fronts,
        work: Rc::default(),
        swept: Cell::new(None),
        rest: Rc::default(),
    };
    ring.block_on(owner.obey(owned.orders));
    Ok(())
}

/// What works on the stack beside the orders.
#[derive(Default)]
struct Work {
    running: Cell<usize>,
    ended: Waiters,
}

struct Owner {
    ring: Ring,
    tracker: Rc<FileTracker>,
    stack: Rc<Stack>,
    fronts: Fronts,
    work: Rc<Work>,
    swept: Cell<Option<Instant>>,
    rest: Rc<Rest>,
}

impl Owner {
    /// Obeys orders until nobody can give any more.
    async fn obey(mut self, orders: Mailbox<Order>) {
        while let Some(order) = orders.recv().await {
            let guest = self.fronts.guest_is_there();
            let looked = self.rest.look(guest, &self.stack, &self.tracker).await;
            if let Err(fault) = looked {
                tracing::error!(%fault, "what was changed beside the disk's server cannot be noted");
            }
            self.carry_out(order).await;
        }
    }

    async fn carry_out(&mut self, order: Order) {
        let tracker = &self.tracker;
        match order {
            Order::Look(answer) => {
                let _ = answer.send(self.look());
            }
            Order::Track { .. }
            | Order::TrackAbove(..)
            | Order::Untrack(_)
            | Order::FoldBack(..)
            | Order::Confirm(_)
            | Order::Suspect(_)
            | Order::SuspectRegions(..)
            | Order::Differing { .. }
            | Order::ReadSuspects { .. }
            | Order::ReadChanging { .. }
            | Order::Compared(..) => self.relate(order),
            Order::Coarsen(most, answer) => {
                let pause = async || self.ring.yield_now().await;
                coarsen(tracker.state(), most, pause).await;
                tracker.publish();
                let _ = answer.send(());
            }
            Order::Content(most, answer) => {
                let _ = answer.send(tracker.content(most).await);
            }
            Order::Cut(cut, stage) => cut_epoch(&self.ring, tracker, &cut, stage).await,
            Order::Seed {
                from,
                limit,
                joins,
                stage,
            } => {
                if joins {
                    // There is nothing to compare it with.
                    tracker.mark_suspects(0);
                }
                let limit = tracker.reach(from, limit).await;
                let outcome = tracker
                    .seal_part(epoch(&stage), from, limit)
                    .map_err(SealFault::Seal);
                if joins {
                    if let Err(fault) = tracker.mark(0..1).await {
                        tracing::warn!(%fault, "nothing of a disk that joins stays marked");
                    }
                }
                sealed(&self.ring, tracker, stage, outcome, Duration::ZERO);
            }
            Order::Abandon => tracker.abandon(Abandoned::Elsewhere),
            Order::End(whole, answer) => {
                tracker.end(whole);
                let _ = answer.send(());
            }
            Order::Prepare(config, answer) => {
                let (stack, tracker) = (Rc::clone(&self.stack), Rc::clone(tracker));
                let hold = self.rest.hold();
                self.beside(async move {
                    let _hold = hold;
                    let prepared = stack.prepare(*config, &tracker).await;
                    tracker.publish();
                    let _ = answer.send(prepared.map_err(|error| Unprepared(format!("{error:#}"))));
                });
            }
            Order::Forget(answer) => {
                self.stack.forget_prepared();
                let _ = answer.send(());
            }
            Order::Swap(cut, answer) => {
                let _ = answer.send(self.swap(&cut).await);
            }
            Order::Drain {
                checkpoint,
                limit,
                answer,
            } => self.drain(checkpoint, limit, answer),
            Order::Close(answer) => {
                let _ = answer.send(self.close().await);
            }
        }
    }

    /// Runs `work` while other orders are carried out.
    fn beside(&self, work: impl Future<Output = ()> + 'static) {
        let count = Rc::clone(&self.work);
        count.running.set(count.running.get() + 1);
        self.ring.spawn(async move {
            work.await;
            count.running.set(count.running.get() - 1);
            count.ended.notify();
        });
    }

    fn look(&self) -> Look {
        Look {
            connected: self.fronts.connected(),
            waiting_for_room: self.fronts.waiting_for_room(),
            size: Bytes(self.tracker.size()),
            overlays: self.stack.overlays(),
            replaced: self.stack.is_replaced(),
            store: match self.ring.kind() {
                Kind::IoUring => StoreKind::IoUring,
                Kind::Threads => StoreKind::Threads,
            },
            tracking: self.tracker.tracking(),
        }
    }

    /// Nothing is issued to the layers any more; when all disks are there, they are exchanged.
    async fn swap(&self, cut: &Cut) -> bool {
        let _hold = self.rest.hold();
        let gate = self.stack.gate();
        gate.close();
        let drained = matches!(
            select(pin!(gate.drain()), pin!(cut.abandoned())).await,
            Either::Left(_)
        );
        let held = drained && cut.parked().await;
        if held {
            let size = self.tracker.size();
            self.stack.swap(&self.tracker);
            self.tracker.publish();
            gate.open();
            self.fronts.swapped(&self.tracker, &self.stack, size);
            let identified = self.tracker.ledger.identify(self.stack.identity());
            if let Err(fault) = identified.await {
                tracing::error!(%fault, "what lies below the disk cannot be noted in its write-intent log");
            }
        } else {
            gate.open();
            self.stack.forget_prepared();
        }
        held
    }

    fn drain(
        &self,
        checkpoint: CheckpointId,
        limit: Bytes,
        answer: mpsc::Sender<Result<Bytes, Unmerged>>,
    ) {
        if let Err(error) = self.stack.begin_merge(checkpoint) {
            let _ = answer.send(Err(Unmerged::Refused(format!("{error:#}"))));
            return;
        }
        // What lies below changes from now on.
        self.fronts.serve_frozen(&self.tracker, &self.stack);
        let (stack, tracker) = (Rc::clone(&self.stack), Rc::clone(&self.tracker));
        let hold = self.rest.hold();
        self.beside(async move {
            let _hold = hold;
            let left = stack.merge(checkpoint, limit, tracker.state()).await;
            tracker.publish();
            let _ = answer.send(left.map_err(|fault| match fault {
                MergeFault::Disk(Fault::Os(libc::ENOSPC | libc::EDQUOT)) => Unmerged::Full,
                fault => Unmerged::Failed(crate::engine::chain(&fault)),
            }));
        });
    }

    async fn close(&mut self) -> Result<(), Fault> {
        let guest = self.fronts.guest_is_there();
        self.fronts.shutdown().await;
        let work = &self.work;
        let idle = || (work.running.get() == 0).then_some(());
        work.ended.until(idle).await;
        let outcome = self.tracker.run(Op::Flush).await.outcome;
        match outcome {
            // Without a look the next process finds it as after a kill: exact.
            Ok(()) => match self.stack.looks() {
                Some(looks) => self.tracker.close(looks, guest).await,
                None => Ok(()),
            },
            // Whose writes may be lost goes on: it must not be told that all is well.
            Err(_) if guest => {
                tracing::warn!("closed under a guest that runs");
                outcome
            }
            Err(_) => {
                self.tracker.state().close_failed();
                outcome
            }
        }
    }
}
