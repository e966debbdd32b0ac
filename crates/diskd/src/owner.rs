//! The owner of a disk: one thread, one ring, everything that touches the disk.
//!
//! Orders come from the control threads through a mailbox; the guest's requests through the front
//! end, which runs as tasks of the same ring.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use block::{Device, Fault, Op};
use model::RelationshipId;
use ring::{Mailbox, Ring};

use crate::cut::Cut;
use crate::flow::{Flow, Piece};
use crate::staging::{Abandoned, Epoch, StageReport};
use crate::state::{DiskState, Stamp};
use crate::tracker::{SealError, Tracker};
use crate::vhost_user::Handle;

/// What an owner is told. Answers go to the channel in the order; an asker that is gone is no
/// reason to stop.
pub enum Order {
    /// Whether a guest is connected.
    Connected(mpsc::Sender<bool>),
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
    /// Answer what runs, take nothing more, make everything durable. If that fails, and the guest is
    /// gone, the next process reopens the disk.
    Close(mpsc::Sender<Result<(), Fault>>),
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

/// Obeys orders until nobody can give any more. `file` holds what was written to the disk.
pub async fn obey<D: Device + 'static>(
    ring: Ring,
    tracker: Rc<Tracker<D>>,
    front: Handle<Tracker<D>>,
    orders: Mailbox<Order>,
    file: PathBuf,
) {
    let mut front = Some(front);
    while let Some(order) = orders.recv().await {
        match order {
            Order::Connected(answer) => {
                let connected = front.as_ref().is_some_and(Handle::connected);
                let _ = answer.send(connected);
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
            Order::Cut(cut, stage) => cut_epoch(&ring, &tracker, &cut, stage).await,
            Order::Seed { from, limit, stage } => {
                let outcome = tracker
                    .seal_part(epoch(&stage), from, limit)
                    .map_err(SealFault::Seal);
                sealed(&ring, &tracker, stage, outcome, Duration::ZERO);
            }
            Order::Abandon => tracker.abandon(Abandoned::Elsewhere),
            Order::End(whole, answer) => {
                tracker.end(whole);
                let _ = answer.send(());
            }
            Order::Close(answer) => {
                let mut guest = false;
                if let Some(front) = front.take() {
                    guest = front.guest_is_there();
                    front.shutdown().await;
                }
                let outcome = tracker.run(Op::Flush).await.outcome;
                match outcome {
                    Ok(()) => close(tracker.state(), &file),
                    // Whose writes may be lost goes on: it must not be told that all is well.
                    Err(_) if guest => tracing::warn!("closed under a guest that runs"),
                    Err(_) => tracker.state().close_failed(),
                }
                let _ = answer.send(outcome);
            }
        }
    }
}

/// The disk was closed in order and is durable: notes what its file looks like.
fn close(state: &DiskState, file: &Path) {
    match Stamp::of(file) {
        Ok(looks) => state.close(looks),
        // The next process then finds it as after a kill: exact.
        Err(error) => tracing::warn!(file = %file.display(), %error, "cannot look at a disk"),
    }
}

/// Parks the disk, waits for the others, seals, goes on.
async fn cut_epoch<D: Device + 'static>(
    ring: &Ring,
    tracker: &Rc<Tracker<D>>,
    cut: &Cut,
    stage: StageOrder,
) {
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
