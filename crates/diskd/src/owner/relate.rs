//! For whom changes are tracked, and what is known of what was sent.
//!
//! What may wait for the write-intent log or for reads runs beside other orders; the control threads
//! give one at a time.

use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use block::Fault;

use super::{Order, Owner};
use crate::stack::FileTracker;
use crate::suspects::{Changing, Content};

/// Between two sweeps of the write-intent log.
const SWEEP: Duration = Duration::from_secs(30);

impl Owner {
    pub(super) fn relate(&self, order: Order) {
        let tracker = Rc::clone(&self.tracker);
        match order {
            Order::Track {
                relationship,
                begin,
                answer,
            } => self.beside(async move {
                let _ = answer.send(tracker.track(relationship, begin).await);
            }),
            Order::TrackAbove(relationship, answer) => {
                let stack = Rc::clone(&self.stack);
                self.beside(async move {
                    let known = tracker.state().relationship() == Some(relationship);
                    let above = known || stack.written_above_point().is_some();
                    if above {
                        let written = || stack.written_above_point().unwrap_or_default();
                        tracker.track_above(relationship, written).await;
                    }
                    let _ = answer.send(above);
                });
            }
            Order::Untrack(answer) => {
                let _ = answer.send(tracker.untrack().map_err(|error| error.to_string()));
            }
            Order::FoldBack(runs, answer) => self.beside(async move {
                let _ = answer.send(fold_back(&tracker, runs).await);
            }),
            Order::Confirm(answer) => {
                tracker.confirm();
                let _ = answer.send(());
                self.sweep();
            }
            Order::Suspect(answer) => self.beside(async move {
                let _ = answer.send(tracker.suspect_all().await);
            }),
            Order::SuspectRegions(runs, answer) => self.beside(async move {
                let mut outcome = Ok(());
                for run in runs {
                    outcome = tracker.suspect(run).await;
                    if outcome.is_err() {
                        break;
                    }
                }
                let _ = answer.send(outcome);
            }),
            Order::Differing {
                from,
                limit,
                answer,
            } => {
                let _ = answer.send(tracker.differing(from, limit));
            }
            Order::ReadSuspects {
                from,
                limit,
                answer,
            } => self.beside(async move {
                let _ = answer.send(read(&tracker, from, limit).await);
            }),
            Order::ReadChanging {
                from,
                limit,
                answer,
            } => self.beside(async move {
                let _ = answer.send(read_changing(&tracker, from, limit).await);
            }),
            Order::Compared(regions, answer) => self.beside(async move {
                let mut outcome = Ok(());
                for (region, differ) in regions {
                    outcome = tracker.compared(region, &differ).await;
                    if outcome.is_err() {
                        break;
                    }
                }
                let _ = answer.send(outcome);
            }),
            _ => unreachable!("the other orders are carried out elsewhere"),
        }
    }

    /// Sweeps if that was not done for a while.
    fn sweep(&self) {
        let swept = self.swept.get();
        if swept.is_some_and(|swept| swept.elapsed() < SWEEP) {
            return;
        }
        self.swept.set(Some(Instant::now()));
        let tracker = Rc::clone(&self.tracker);
        // A flush writes what an overlay says of itself.
        let hold = (!self.stack.overlays().is_empty()).then(|| self.rest.hold());
        self.beside(async move {
            let _hold = hold;
            if let Err(fault) = tracker.sweep(false).await {
                tracing::warn!(%fault, "nothing leaves the write-intent log");
            }
        });
    }
}

async fn fold_back(tracker: &FileTracker, runs: Option<Vec<Range<u64>>>) -> Result<(), Fault> {
    match runs {
        Some(runs) => {
            for run in runs {
                tracker.mark(run).await?;
            }
        }
        None => tracker.suspect_unconfirmed(),
    }
    Ok(())
}

async fn read(tracker: &FileTracker, from: u64, limit: u64) -> Result<Vec<Content>, Fault> {
    let mut found: Vec<Content> = Vec::new();
    for _ in 0..limit {
        let from = found.last().map_or(from, |last| last.region + 1);
        match tracker.read_suspect(from).await? {
            Some(content) => found.push(content),
            None => break,
        }
    }
    Ok(found)
}

async fn read_changing(
    tracker: &FileTracker,
    from: u64,
    limit: u64,
) -> Result<Vec<Changing>, Fault> {
    let mut found = Vec::new();
    for region in from..from.saturating_add(limit) {
        match tracker.read_changing(region).await? {
            Some(region) => found.push(region),
            None => break,
        }
    }
    Ok(found)
}
