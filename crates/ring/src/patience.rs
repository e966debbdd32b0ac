//! When it pays to look again before sleeping.
//!
//! A producer that answers within microseconds is faster than its wake-up: two processes that
//! hand batches to each other would spend most of the time waking. So who waited only shortly
//! the last time looks for a moment before it sleeps the next time. Who waited long sleeps at
//! once: an idle disk costs nothing, and at most [`MOMENT`] is wasted for each change of mind.

use std::cell::Cell;
use std::future::Future;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::Ring;

/// A wait of this is short, and for so long somebody looks. About two wake-ups of a thread on
/// another core of a virtual machine.
const MOMENT: Duration = Duration::from_micros(40);

/// How somebody who waits for another process again and again does so.
#[derive(Debug, Default)]
pub struct Patience {
    worthwhile: Cell<bool>,
}

impl Patience {
    /// Asks `look` turn by turn, for a moment, if the last wait was short. True when `look` breaks
    /// with true; false when it breaks with false or the moment is over.
    pub async fn look(&self, ring: &Ring, look: impl Fn() -> ControlFlow<bool>) -> bool {
        if !self.worthwhile.get() {
            return false;
        }
        let end = Instant::now() + MOMENT;
        loop {
            ring.yield_now().await;
            if let ControlFlow::Break(found) = look() {
                return found;
            }
            if Instant::now() >= end {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Awaits what the looking did not find, and learns from how long that took.
    pub async fn wait<T>(&self, event: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let result = event.await;
        self.worthwhile.set(start.elapsed() <= 2 * MOMENT);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_short_wait_makes_the_next_one_look_first() {
        let ring = Ring::new(8).expect("a ring");
        let patience = Patience::default();
        let looks = Cell::new(0);
        let never = || {
            looks.set(looks.get() + 1);
            ControlFlow::Continue(())
        };
        ring.block_on(async {
            assert!(!patience.look(&ring, never).await);
            assert_eq!(looks.get(), 0, "nothing is known yet");
            // Again, should this thread have lost its processor meanwhile.
            while !patience.worthwhile.get() {
                patience.wait(async {}).await;
            }
            assert!(!patience.look(&ring, never).await, "the moment is over");
            assert!(looks.get() > 0);
            assert!(patience.look(&ring, || ControlFlow::Break(true)).await);
            assert!(!patience.look(&ring, || ControlFlow::Break(false)).await);
            patience.wait(ring.sleep(Duration::from_millis(1))).await;
            looks.set(0);
            assert!(!patience.look(&ring, never).await);
            assert_eq!(looks.get(), 0, "it was long");
        });
    }
}
