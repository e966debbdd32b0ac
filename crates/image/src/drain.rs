//! Draining an overlay into what is below it: see `overlay`.

use block::{Device, Fault, Store};
use model::BLOCK_SIZE;

use crate::Overlay;

/// Most blocks that are claimed and copied at once: 1 MiB.
const AT_ONCE: u64 = 256;

impl<S: Store, M: Store, B: Device> Overlay<S, M, B> {
    /// From when this returns on, mutations go below, which must be writable, and nothing becomes
    /// present any more. There is no way back but opening it again.
    pub async fn start_draining(&self) {
        let end = Device::size(&self.data) / BLOCK_SIZE;
        // Mutations that were begun above end there; those that wait see the mode when they are let on.
        let _all = self.claims.exclusive(0..end).await;
        self.draining.set(true);
    }

    /// Copies about `limit` bytes below and tells how many bytes are left. With none left everything
    /// below is durable, and so is that nothing is here: the overlay may be left out, and its files
    /// deleted. Starts draining if that was not done.
    ///
    /// # Errors
    /// Why something cannot be read, or written below; what was copied is copied.
    pub async fn drain(&self, limit: u64) -> Result<u64, Fault> {
        if !self.draining.get() {
            self.start_draining().await;
        }
        let end = Device::size(&self.data) / BLOCK_SIZE;
        let mut left = limit.div_ceil(BLOCK_SIZE);
        while left > 0 {
            if self.flushes.failed() {
                return Err(Fault::FlushFailed);
            }
            let Some(block) = self.presence.next(self.drained.get()..end, true) else {
                break;
            };
            self.drained.set(block);
            let few = end.min(block + left.min(AT_ONCE));
            let (run, _) = self.presence.run(block..few);
            let _alone = self.claims.exclusive(run.clone()).await;
            let mut from = run.start;
            // What was overwritten meanwhile is absent.
            while let Some(block) = self.presence.next(from..run.end, true) {
                let (part, _) = self.presence.run(block..run.end);
                from = part.end;
                self.copy_down(part).await?;
            }
            left = left.saturating_sub(run.end - run.start);
        }
        if self.is_empty() {
            self.flush().await?;
        }
        Ok(self.present_bytes())
    }
}

#[cfg(test)]
#[path = "drain_tests.rs"]
mod tests;
