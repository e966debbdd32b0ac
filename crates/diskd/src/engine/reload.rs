//! Stacks that change: [`Request::Reload`](crate::control::Request::Reload) and
//! [`Request::Drain`](crate::control::Request::Drain).
//!
//! A reload prepares every disk, then swaps all of them at one instant. The last disk is still before
//! the first goes on; a disk that does not come to a stop in time ends it, and nothing was changed.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use model::{Bytes, CheckpointId, Code, DiskId, Problem};

use super::{Disk, Engine, chain};
use crate::config::Config;
use crate::control::Reply;
use crate::cut::Cut;
use crate::owner::{Order, Unmerged};

/// How long a swap waits for what runs to end. The guest's requests are held up meanwhile.
const SWAPPING: Duration = Duration::from_secs(5);
/// Most bytes that a step of a merge copies, whatever is asked for: others wait for it.
const STEP: u64 = 1 << 30;

impl Engine {
    /// Goes to what the configuration file says now.
    ///
    /// # Errors
    /// Why not; nothing was changed.
    pub fn reload(&self) -> Result<Reply, Problem> {
        let _alone = self.hold(&self.stacks, "another request changes their stacks")?;
        let mut config = self.read()?;
        let disks = self.all();
        let wanted = std::mem::take(&mut config.disks);
        let sizes: Vec<u64> = wanted.iter().map(|disk| disk.size.0).collect();
        // However long they take: what the guest wrote is flushed first.
        let asked: Vec<_> = disks
            .iter()
            .zip(wanted)
            .map(|(disk, wanted)| {
                let (answer, answered) = mpsc::channel();
                self.order(disk, Order::Prepare(Box::new(wanted), answer))
                    .map(|()| (*disk, answered))
            })
            .collect();
        let prepared: Vec<_> = asked
            .into_iter()
            .map(|asked| {
                let (disk, answered) = asked?;
                let prepared = answered
                    .recv()
                    .map_err(|gone| self.stuck(disk, &gone.to_string()))?;
                prepared.map_err(|why| {
                    let reason = format!("disk {}: {why}", disk.id);
                    self.problem(Code::Conflict, reason, "nothing was changed")
                })
            })
            .collect();
        let outcome: Result<(), Problem> = prepared.into_iter().collect();
        if let Err(problem) = outcome.and_then(|()| self.swap(&disks)) {
            self.ask(&disks, Order::Forget)?;
            return Err(problem);
        }
        for (disk, size) in disks.iter().zip(sizes) {
            disk.size.store(size, Relaxed);
        }
        self.generation.store(config.generation, Relaxed);
        tracing::info!(generation = config.generation, "reloaded");
        Ok(Reply::Done)
    }

    /// The configuration file, if it is about what is served.
    fn read(&self) -> Result<Config, Problem> {
        let file = self.file.display();
        let text = std::fs::read(&self.file)
            .map_err(|error| self.invalid(format!("cannot read {file}: {error}")))?;
        let config: Config = serde_json::from_slice(&text)
            .map_err(|error| self.invalid(format!("{file} is not a configuration: {error}")))?;
        let named: Vec<DiskId> = config.disks.iter().map(|disk| disk.id).collect();
        let served: Vec<DiskId> = self.disks.iter().map(|disk| disk.id).collect();
        let same =
            (config.vm, config.term, config.copy_budget) == (self.vm, self.term, self.copy_budget);
        if !same || named != served {
            return Err(self.problem(
                Code::Conflict,
                format!("{file} is not about the disks that are served, or another term"),
                "start pollux-diskd anew for that",
            ));
        }
        Ok(config)
    }

    fn swap(&self, disks: &[&Disk]) -> Result<(), Problem> {
        if disks.is_empty() {
            return Ok(());
        }
        let _instant = self.one_instant();
        let cut = Arc::new(Cut::new(disks.len()));
        let mut asked = Vec::new();
        let mut outcome = Ok(());
        for disk in disks {
            let (answer, answered) = mpsc::channel();
            match self.order(disk, Order::Swap(Arc::clone(&cut), answer)) {
                Ok(()) => asked.push((*disk, answered)),
                Err(problem) => {
                    cut.abandon();
                    outcome = Err(problem);
                    break;
                }
            }
        }
        let deadline = Instant::now() + SWAPPING;
        for (disk, answered) in asked {
            let left = deadline.saturating_duration_since(Instant::now());
            let swapped = answered.recv_timeout(left).or_else(|_late| {
                // Every owner answers from now on: it was held, or it goes on as it was.
                cut.abandon();
                answered.recv()
            });
            let swapped = match swapped {
                Ok(true) => Ok(()),
                Ok(false) => Err(self.problem(
                    Code::Conflict,
                    format!("what disk {} runs did not end in time", disk.id),
                    "nothing was changed; ask again when the storage is less busy",
                )),
                Err(gone) => Err(self.stuck(disk, &gone.to_string())),
            };
            outcome = outcome.and(swapped);
        }
        outcome
    }

    /// Merges a step of a checkpoint.
    ///
    /// # Errors
    /// When there is nothing to merge it into, no room, or another request changes the stacks.
    pub fn drain(
        &self,
        disk: DiskId,
        checkpoint: CheckpointId,
        limit: Bytes,
    ) -> Result<Reply, Problem> {
        let _alone = self.hold(&self.stacks, "another request changes their stacks")?;
        let found = self.disks.iter().find(|one| one.id == disk);
        let disk = found.ok_or_else(|| self.invalid(format!("there is no disk {disk}")))?;
        let (answer, answered) = mpsc::channel();
        let limit = Bytes(limit.0.clamp(1, STEP));
        self.order(
            disk,
            Order::Drain {
                checkpoint,
                limit,
                answer,
            },
        )?;
        let drained = answered
            .recv()
            .map_err(|gone| self.stuck(disk, &gone.to_string()))?;
        let left = drained.map_err(|why| {
            let reason = format!(
                "checkpoint {checkpoint} of disk {}: {}",
                disk.id,
                chain(&why)
            );
            match why {
                Unmerged::Refused(_) => self.problem(Code::Conflict, reason, ""),
                Unmerged::Full => self.problem(
                    Code::Full,
                    reason,
                    "make room, then ask again: nothing is lost",
                ),
                Unmerged::Failed(_) => self.problem(
                    Code::Failed,
                    reason,
                    "check the storage, then ask again: nothing is lost",
                ),
            }
        })?;
        Ok(Reply::Drained { left })
    }
}
