//! Merging a checkpoint: what was written since goes into what lies below, part by part.
//!
//! It goes on until all is there, whatever is killed meanwhile: a part that was copied is told
//! durably by the overlay's map, and `vm.toml` says that the checkpoint is to go.

use std::time::Duration;

use model::{Bytes, CheckpointId, Code, DiskId, Problem, VmId};
use tokio::sync::watch;
use tokio::time::sleep;

use super::handle::View;
use super::supervisor::Supervisor;

/// How much is copied before progress is told.
const PART: Bytes = Bytes(32 << 20);
/// After a failure it is tried again this often.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// How far a merge is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Merging {
    pub(crate) done: Bytes,
    pub(crate) total: Bytes,
    /// Why it does not go on at the moment.
    pub(crate) stuck: Option<Problem>,
}

impl Merging {
    /// So much is left on all disks. What the guest writes goes below, so that it only becomes
    /// less; where more is left than was known, there was more from the beginning.
    fn is_left(&mut self, left: Bytes) {
        let reached = self.done.0.saturating_add(left.0);
        self.total = Bytes(self.total.0.max(reached));
        self.done = Bytes(self.total.0.saturating_sub(left.0));
        self.stuck = None;
    }
}

fn sum(all: &[Bytes]) -> Bytes {
    let sum = all.iter().fold(0_u64, |sum, one| sum.saturating_add(one.0));
    Bytes(sum)
}

/// A merge.
pub(super) struct Merge {
    pub(super) vm: VmId,
    pub(super) supervisor: Supervisor,
    pub(super) checkpoint: CheckpointId,
    pub(super) disks: Vec<DiskId>,
    pub(super) seen: watch::Sender<View>,
}

impl Merge {
    /// Merges until nothing is left, or until the VM is gone.
    pub(super) async fn run(&self) {
        let mut left = vec![None; self.disks.len()];
        let mut told = self.present().await;
        loop {
            for (number, disk) in self.disks.iter().enumerate() {
                while left[number] != Some(Bytes(0)) {
                    match self.supervisor.drain(*disk, self.checkpoint, PART).await {
                        Ok(now) => {
                            left[number] = Some(now);
                            told[number] = now;
                        }
                        Err(problem) => {
                            self.stuck(problem);
                            if self.is_gone() {
                                return;
                            }
                            sleep(AGAIN).await;
                            continue;
                        }
                    }
                    self.tell(sum(&told));
                    if self.is_gone() {
                        return;
                    }
                }
            }
            // Once more around: a diskd that was started again meanwhile wrote above.
            let mut all = true;
            for (disk, left) in self.disks.iter().zip(&mut left) {
                let now = self.supervisor.drain(*disk, self.checkpoint, PART).await;
                all &= matches!(now, Ok(Bytes(0)));
                *left = now.ok();
            }
            if all {
                return;
            }
        }
    }

    /// What each disk holds of the checkpoint; nothing when nobody can tell.
    async fn present(&self) -> Vec<Bytes> {
        let status = self.supervisor.diskd_status().await;
        let served = status.map_or_else(Vec::new, |status| status.disks);
        let present = |id: &DiskId| {
            let disk = served.iter().find(|disk| disk.id == *id)?;
            let mut overlays = disk.overlays.iter();
            let overlay = overlays.find(|overlay| overlay.checkpoint == self.checkpoint)?;
            Some(overlay.present)
        };
        let all = self.disks.iter();
        all.map(|id| present(id).unwrap_or_default()).collect()
    }

    /// Whether there is nothing to merge any more.
    fn is_gone(&self) -> bool {
        self.seen.is_closed() || self.seen.borrow().merging_checkpoint().is_none()
    }

    fn tell(&self, left: Bytes) {
        self.seen.send_modify(|view| {
            if let Some(merge) = &mut view.merge {
                merge.is_left(left);
            }
        });
    }

    fn stuck(&self, problem: Problem) {
        self.seen.send_modify(|view| {
            let Some(merge) = &mut view.merge else { return };
            if merge.stuck.as_ref() != Some(&problem) {
                if problem.code == Code::Full {
                    tracing::warn!(vm = %self.vm, %problem, "the merge waits for room");
                } else {
                    tracing::info!(vm = %self.vm, %problem, "the merge is tried again");
                }
                merge.stuck = Some(problem);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_all_disks_and_never_goes_back() {
        let mut merge = Merging::default();
        let mut before = Bytes(0);
        // Two disks; the second tells only later that it holds more than was known.
        for (left, done, total) in [
            ([100, 50], 0, 150),
            ([60, 50], 40, 150),
            ([0, 50], 100, 150),
            ([0, 80], 100, 180),
            ([0, 0], 180, 180),
        ] {
            merge.is_left(sum(&left.map(Bytes)));
            assert_eq!((merge.done, merge.total), (Bytes(done), Bytes(total)));
            assert!(merge.done >= before);
            before = merge.done;
        }
    }
}
