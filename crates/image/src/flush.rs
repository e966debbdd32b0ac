//! One sync of the store for all flushes that came before it.

use std::cell::Cell;
use std::future::Future;

use block::{Fault, Waiters};

/// Coalesces flushes and remembers a failed one.
///
/// ```text
///   flush A --> sync 1 runs ----------> A done
///     flush B, flush C wait: sync 1 began before they came
///                                sync 2 runs --> B and C done
/// ```
#[derive(Debug, Default)]
pub struct FlushGate {
    /// Syncs begun and ended; at most one more was begun than ended.
    begun: Cell<u64>,
    ended: Cell<u64>,
    failed: Cell<bool>,
    changed: Waiters,
}

impl FlushGate {
    /// Whether a flush failed.
    pub fn failed(&self) -> bool {
        self.failed.get()
    }

    /// Everything that completed before this call is durable when it returns. `sync` is called for
    /// at most one of the flushes that wait at the same time.
    ///
    /// # Errors
    /// What `sync` says, to all flushes that it served; [`Fault::FlushFailed`] to all later ones.
    pub async fn flush<F>(&self, sync: impl FnOnce() -> F) -> Result<(), Fault>
    where
        F: Future<Output = Result<(), Fault>>,
    {
        let needed = self.begun.get() + 1;
        let leads = self
            .changed
            .until(|| {
                if self.failed.get() || self.ended.get() >= needed {
                    Some(false)
                } else if self.begun.get() == self.ended.get() {
                    Some(true)
                } else {
                    None
                }
            })
            .await;
        if !leads {
            return if self.failed.get() {
                Err(Fault::FlushFailed)
            } else {
                Ok(())
            };
        }
        self.begun.set(self.begun.get() + 1);
        let outcome = sync().await;
        if outcome.is_err() {
            // Before anybody hears of it.
            self.failed.set(true);
        }
        self.ended.set(self.begun.get());
        self.changed.notify();
        outcome
    }
}
