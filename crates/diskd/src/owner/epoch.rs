//! Cuts and what is staged after them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{Device, Image, Store};
use ring::Ring;

use super::{Delivery, SealFault, StageOrder};
use crate::cut::Cut;
use crate::flow::Flow;
use crate::staging::Epoch;
use crate::tracker::Tracker;

/// Parks the disk, waits for the others, seals, goes on.
pub(super) async fn cut_epoch<D: Device + Image + 'static, S: Store + 'static>(
    ring: &Ring,
    tracker: &Rc<Tracker<D, S>>,
    cut: &Cut,
    stage: StageOrder,
) {
    #[cfg(test)]
    crate::lab::late(ring).await;
    let parked = Instant::now();
    tracker.park();
    if stage.whole {
        tracker.mark_suspects(0);
    }
    let outcome = if cut.parked().await {
        let sealed = tracker.seal(epoch(&stage));
        sealed.map(|()| None).map_err(SealFault::Seal)
    } else {
        Err(SealFault::Late)
    };
    tracker.unpark();
    sealed(ring, tracker, stage, outcome, parked.elapsed());
}

pub(super) fn epoch(stage: &StageOrder) -> Epoch {
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
pub(super) fn sealed<D: Device + Image + 'static, S: Store + 'static>(
    ring: &Ring,
    tracker: &Rc<Tracker<D, S>>,
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
