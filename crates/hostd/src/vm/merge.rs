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
        loop {
            for (disk, left) in self.disks.iter().zip(&mut left) {
                while *left != Some(Bytes(0)) {
                    match self.supervisor.drain(*disk, self.checkpoint, PART).await {
                        Ok(now) => *left = Some(now),
                        Err(problem) => {
                            self.stuck(problem);
                            if self.is_gone() {
                                return;
                            }
                            sleep(AGAIN).await;
                            continue;
                        }
                    }
                    self.tell(left.unwrap_or_default());
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

    /// Whether there is nothing to merge any more.
    fn is_gone(&self) -> bool {
        self.seen.is_closed() || self.seen.borrow().merging_checkpoint().is_none()
    }

    fn tell(&self, left: Bytes) {
        self.seen.send_modify(|view| {
            if let Some(merge) = &mut view.merge {
                // What the guest writes goes below: what is left only becomes less.
                let reached = merge.done.0.saturating_add(left.0);
                merge.total = Bytes(merge.total.0.max(reached));
                merge.done = Bytes(merge.total.0.saturating_sub(left.0));
                merge.stuck = None;
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
