//! The owner of a disk: one thread, one ring, everything that touches the disk.
//!
//! Orders come from the control threads through a mailbox; the guest's requests through the front
//! end, which runs as tasks of the same ring.

use std::cell::Cell;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use block::{Device, Fault, Op, Waiters};
use futures_util::future::{Either, select};
use model::{BootId, Bytes, CheckpointId, RelationshipId};
use ring::{Kind, Mailbox, Ring};

use crate::config::DiskConfig;
use crate::control::{OverlayStatus, StoreKind, TrackingStatus};
use crate::cut::Cut;
use crate::flow::{Flow, Piece};
use crate::fronts::{Fronts, Sockets};
use crate::stack::{FileTracker, MergeFault, Stack};
use crate::staging::{Abandoned, Epoch, StageReport};
use crate::tracker::{SealError, Stats, Tracker};

/// Submissions of a turn of an owner; a queue of a guest has up to 128 requests of several pieces.
const ENTRIES: u32 = 256;

/// What an owner is told. Answers go to the channel in the order; an asker that is gone is no
/// reason to stop.
pub enum Order {
    /// How the disk is.
    Look(mpsc::Sender<Look>),
    /// The relationship that changes are tracked for.
    Tracking(mpsc::Sender<Option<RelationshipId>>),
    /// Track, with every block marked.
    TrackAll(RelationshipId, mpsc::Sender<()>),
    /// Stop tracking.
    Untrack(mpsc::Sender<()>),
    /// Mark blocks.
    Mark(Vec<Range<u64>>, mpsc::Sender<()>),
    /// Take part in a cut, then stage.
    Cut(Arc<Cut>, StageOrder),
    /// Stage about so many marked blocks from a block on.
    Seed {
        /// First block to look at.
        from: u64,
        /// About how many.
        limit: u64,
        /// How to stage them.
        stage: StageOrder,
    },
    /// Give the epoch up.
    Abandon,
    /// The epoch's segment is whole (true) or will never be.
    End(bool, mpsc::Sender<()>),
    /// Open what this configuration has and the disk has not. The guest goes on.
    Prepare(Box<DiskConfig>, mpsc::Sender<Result<(), Unprepared>>),
    /// Go to what was prepared, at the instant of all disks; false if that was abandoned.
    Swap(Arc<Cut>, mpsc::Sender<bool>),
    /// Forget what was prepared.
    Forget(mpsc::Sender<()>),
    /// Merge about so many bytes of what was written since a checkpoint into what lies below.
    Drain {
        /// The checkpoint.
        checkpoint: CheckpointId,
        /// About how many.
        limit: Bytes,
        /// What is left.
        answer: mpsc::Sender<Result<Bytes, Unmerged>>,
    },
    /// Answer what runs, take nothing more, make everything durable. If that fails, and the guest is
    /// gone, the next process reopens the disk.
    Close(mpsc::Sender<Result<(), Fault>>),
}

/// How a disk is.
#[derive(Debug)]
pub struct Look {
    /// Whether a guest is connected.
    pub connected: bool,
    /// Its requests that wait for room.
    pub waiting_for_room: u64,
    /// The size that it sees.
    pub size: Bytes,
    /// Its checkpoints, the oldest first.
    pub overlays: Vec<OverlayStatus>,
    /// How its files are read and written.
    pub store: StoreKind,
    /// What is tracked of it.
    pub tracking: Option<TrackingStatus>,
}

/// Why another stack cannot be had, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unprepared(String);

/// Why a checkpoint cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum Unmerged {
    /// The stack does not allow it.
    #[error("{0}")]
    Refused(String),
    /// There is no room for it.
    #[error("there is no room for it")]
    Full,
    /// It was tried.
    #[error("{0}")]
    Failed(String),
}

/// How an epoch is staged.
pub struct StageOrder {
    /// Position of the disk in the segment's header.
    pub disk: u16,
    /// Most bytes of saved old content in memory.
    pub budget: u64,
    /// Where everything goes.
    pub deliveries: mpsc::Sender<Delivery>,
}

/// What an owner sends while an epoch is staged. A disk that was sealed sends [`Delivery::Staged`]
/// once, after its last piece; one that was not sends nothing more.
#[derive(Debug)]
pub enum Delivery {
    /// The disk was sealed, or why not.
    Sealed {
        /// Position of the disk in the segment's header.
        disk: u16,
        /// For a part of an initial replication: the next block to look at, if any.
        outcome: Result<Option<u64>, SealFault>,
        /// How long mutations were held up.
        pause: Duration,
    },
    /// Content.
    Piece(Piece),
    /// Every sealed block was read, or why not.
    Staged {
        /// Position of the disk in the segment's header.
        disk: u16,
        /// What was done.
        outcome: Result<StageReport, Abandoned>,
    },
}

/// Why a disk was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealFault {
    /// Some disk was not parked in time.
    #[error("a disk did not stop issuing writes in time")]
    Late,
    /// Its state does not allow it.
    #[error(transparent)]
    Seal(#[from] SealError),
}

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
    let (stack, state) = ring.block_on(opening)?;
    let tracker = Tracker::new(Rc::clone(stack.gate()), state, owned.stats);
    let (stack, tracker) = (Rc::new(stack), Rc::new(tracker));
    let fronts = Fronts::serve(&ring, &tracker, &stack, id, front, owned.sockets)?;
    ready();
    let owner = Owner {
        ring: ring.clone(),
        tracker,
        stack,
        fronts,
        work: Rc::default(),
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
}

impl Owner {
    /// Obeys orders until nobody can give any more.
    async fn obey(mut self, orders: Mailbox<Order>) {
        while let Some(order) = orders.recv().await {
            self.carry_out(order).await;
        }
    }

    async fn carry_out(&mut self, order: Order) {
        let tracker = &self.tracker;
        match order {
            Order::Look(answer) => {
                let _ = answer.send(self.look());
            }
            Order::Tracking(answer) => {
                let _ = answer.send(tracker.state().relationship());
            }
            Order::TrackAll(relationship, answer) => {
                tracker.track_all(relationship);
                let _ = answer.send(());
            }
            Order::Untrack(answer) => {
                tracker.untrack();
                let _ = answer.send(());
            }
            Order::Mark(runs, answer) => {
                runs.into_iter().for_each(|run| tracker.mark(run));
                let _ = answer.send(());
            }
            Order::Cut(cut, stage) => cut_epoch(&self.ring, tracker, &cut, stage).await,
            Order::Seed { from, limit, stage } => {
                let outcome = tracker
                    .seal_part(epoch(&stage), from, limit)
                    .map_err(SealFault::Seal);
                sealed(&self.ring, tracker, stage, outcome, Duration::ZERO);
            }
            Order::Abandon => tracker.abandon(Abandoned::Elsewhere),
            Order::End(whole, answer) => {
                tracker.end(whole);
                let _ = answer.send(());
            }
            Order::Prepare(config, answer) => {
                let (stack, tracker) = (Rc::clone(&self.stack), Rc::clone(tracker));
                self.beside(async move {
                    let prepared = stack.prepare(*config, tracker.state()).await;
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
            store: match self.ring.kind() {
                Kind::IoUring => StoreKind::IoUring,
                Kind::Threads => StoreKind::Threads,
            },
            tracking: None,
        }
    }

    /// Nothing is issued to the layers any more; when all disks are there, they are exchanged.
    async fn swap(&self, cut: &Cut) -> bool {
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
        self.beside(async move {
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
        let state = self.tracker.state();
        match outcome {
            // Without a look the next process finds it as after a kill: exact.
            Ok(()) => {
                if let Some(looks) = self.stack.looks() {
                    state.close(looks);
                }
            }
            // Whose writes may be lost goes on: it must not be told that all is well.
            Err(_) if guest => tracing::warn!("closed under a guest that runs"),
            Err(_) => state.close_failed(),
        }
        outcome
    }
}

/// Parks the disk, waits for the others, seals, goes on.
async fn cut_epoch<D: Device + 'static>(
    ring: &Ring,
    tracker: &Rc<Tracker<D>>,
    cut: &Cut,
    stage: StageOrder,
) {
    #[cfg(test)]
    crate::lab::late(ring).await;
    let parked = Instant::now();
    tracker.park();
    let outcome = if cut.parked().await {
        let sealed = tracker.seal(epoch(&stage));
        sealed.map(|()| None).map_err(SealFault::Seal)
    } else {
        Err(SealFault::Late)
    };
    tracker.unpark();
    sealed(ring, tracker, stage, outcome, parked.elapsed());
}

fn epoch(stage: &StageOrder) -> Epoch {
    let deliveries = stage.deliveries.clone();
    Epoch {
        disk: stage.disk,
        sink: Box::new(move |piece| {
            // Nobody receives: the piece and its permit are dropped, the epoch ends by itself.
            let _ = deliveries.send(Delivery::Piece(piece));
        }),
        flow: Arc::new(Flow::default()),
        budget: stage.budget,
    }
}

/// Tells that the disk was sealed and stages it beside everything else.
fn sealed<D: Device + 'static>(
    ring: &Ring,
    tracker: &Rc<Tracker<D>>,
    stage: StageOrder,
    outcome: Result<Option<u64>, SealFault>,
    pause: Duration,
) {
    let StageOrder {
        disk, deliveries, ..
    } = stage;
    let begins = outcome.is_ok();
    let told = deliveries.send(Delivery::Sealed {
        disk,
        outcome,
        pause,
    });
    if !begins {
        return;
    }
    #[cfg(test)]
    crate::lab::sealed();
    if told.is_err() {
        tracker.end(false);
        return;
    }
    let tracker = Rc::clone(tracker);
    ring.spawn(async move {
        let outcome = tracker.stage().await;
        if deliveries.send(Delivery::Staged { disk, outcome }).is_err() {
            tracker.end(false);
        }
    });
}
