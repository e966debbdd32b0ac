//! What a disk is made of, and how that changes while it is used.
//!
//! ```text
//!   Reload:  prepare (opens what is new, flushes)     the guest goes on; a refusal changes nothing
//!            close the gate, drain it                  nothing runs below the tracker
//!            all disks have: swap                      one instant for all disks
//!              marks of what is thrown away, the new size, the layers, the note of the stack
//!            open the gate
//! ```
//!
//! - Nothing in a swap can fail: what can was done while it was prepared.
//! - An overlay is dropped only when it was drained and that is durable.
//! - What a swap will mark is armed in the write-intent log when it is prepared, and stays so.
//! - The stack in force is noted in the tracking folder, with what its files are. A process that finds
//!   another one in its configuration than was in force goes there if no content changes by that (pushed,
//!   drained); if it may have, every block is suspect. So it is after a power cut too: the note and
//!   those of merges are durable.
//! - A recovery point below everything is exchanged for the file of its journal that holds all of it: what
//!   is read stays the same. That it is that file is made sure of, here and by the next process.
//! - The merging of an overlay, once begun, goes on in the next process: what was drained stays empty.
//!
//! **Files that are changed from outside.** Whoever cuts off or replaces a file under a diskd that runs
//! takes the content away: reads of what is gone give zeroes, as a hole does, or go on in the file that
//! has no name any more. Lengths are looked at when a disk is opened and at every reload, which refuses
//! then. What was changed while no diskd ran is found by its times, or by its inode: every block is suspect.

mod prepare;

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use block::{Fault, Gate};
use model::{BootId, Bytes, CheckpointId};
use ring::{Ring, RingStore};

use self::prepare::Prepared;
use crate::assemble::{Assembler, DYING, FileLayer, lock};
use crate::config::{DiskConfig, Front};
use crate::control::OverlayStatus;
use crate::intent::Looks;
use crate::layer::{Below, layers, restack, thrown_away};
use crate::ledger::Ledger;
use crate::note::{Note, identity, inodes, looks, same_files, try_looks};
use crate::plan::{Base, Flat, Over, Plan};
use crate::recall::{Doubt, recall};
use crate::state::DiskState;
use crate::tracker::Tracker;

/// The device that front ends serve.
pub(crate) type FileTracker = Tracker<Rc<Gate<FileLayer>>>;

/// A disk's layers. On its owner thread.
pub(crate) struct Stack {
    tools: Assembler,
    gate: Rc<Gate<FileLayer>>,
    /// In force.
    config: RefCell<DiskConfig>,
    flat: RefCell<Flat>,
    /// Of its files, when it came in force.
    inodes: RefCell<Vec<u64>>,
    prepared: RefCell<Option<Prepared>>,
}

impl Stack {
    /// Opens the disk for the first time.
    ///
    /// # Errors
    /// Why not; nothing of its content was touched.
    pub(crate) async fn open(
        ring: &Ring,
        config: DiskConfig,
        boot: BootId,
        term: u64,
    ) -> Result<(Self, DiskState, Ledger<RingStore>)> {
        let DiskConfig { id, size, .. } = config;
        let tools = Assembler {
            ring: ring.clone(),
            boot,
            id,
            state: config.state.clone(),
            tracking: config.tracking.clone(),
        };
        if !tools.tracking.is_dir() {
            durable::create_folder(&tools.tracking)
                .with_context(|| format!("cannot make {}", tools.tracking.display()))?;
        }
        let flat = Flat::of(&config.stack).context("this is no stack of a disk")?;
        if flat.is_read_only() && config.front != Front::Nbd {
            bail!("a guest cannot use a recovery point with nothing above it: it needs an overlay");
        }
        // A predecessor that dies holds the locks until its last write has ended.
        let mut locks = Vec::new();
        for (number, file) in flat.files().into_iter().enumerate() {
            let raw = number == 0 && matches!(flat.base, Base::Raw(_));
            locks.push(lock(file, !raw, DYING)?);
        }
        let last = Note::read(&tools.last_stack());
        let stack_was = last.as_ref().map(|(flat, _)| flat);
        let looks = looks(stack_was.unwrap_or(&flat));
        let state = DiskState::open(&config.state, boot, id, size.0, term)?;
        if state.is_reopening() {
            tools.forget_cached(&flat)?;
        }
        let mut locks = locks.into_iter();
        let base_lock = match flat.base {
            Base::Raw(_) => locks.next().map(Rc::new),
            Base::Point { .. } => None,
        };
        let mut top = Rc::new(tools.base(&flat.base, size, base_lock)?);
        for (over, lock) in flat.overlays.iter().zip(locks) {
            let layer = tools.overlay(over, &flat.base, top, lock).await?;
            top = Rc::new(layer.into());
        }
        let doubt = if state.is_reopening() {
            Some(Doubt::FailedFlush)
        } else {
            match &last {
                Some((last, files)) if same_content(&tools, last, &flat, &layers(&top)) => {
                    (!same_files(last, files, &flat)).then_some(Doubt::Replaced)
                }
                _ => Some(Doubt::Stack),
            }
        };
        let ledger = Ledger::new(id, identity(&flat), Box::new(tools.log()));
        recall(&ledger, &state, looks, doubt)
            .await
            .context("the write-intent log can neither be written nor removed")?;
        state.reopened();
        let stack = Self {
            tools,
            gate: Rc::new(Gate::new(top)),
            config: RefCell::new(config),
            flat: RefCell::new(flat),
            inodes: RefCell::default(),
            prepared: RefCell::default(),
        };
        stack.note().context("cannot note the stack of the disk")?;
        // Of a process that was killed before it went to this stack.
        if let Some((last, _)) = last {
            let flat = stack.flat.borrow();
            let gone = |over: &&Over| !flat.overlays.contains(over);
            stack.forget(last.overlays.iter().filter(gone));
        }
        Ok((stack, state, ledger))
    }

    /// Whether nothing in it can be written.
    pub(crate) fn is_read_only(&self) -> bool {
        self.flat.borrow().is_read_only()
    }

    /// What lies below the tracker.
    pub(crate) fn gate(&self) -> &Rc<Gate<FileLayer>> {
        &self.gate
    }

    /// Notes what is in force.
    fn note(&self) -> std::io::Result<()> {
        let inodes = inodes(&self.flat.borrow());
        self.inodes.replace(inodes.clone());
        let stack = self.config.borrow().stack.clone();
        Note { stack, inodes }.write(&self.tools.last_stack())
    }

    /// What the files look like once nothing writes to them any more.
    pub(crate) fn looks(&self) -> Option<Looks> {
        looks(&self.flat.borrow())
    }

    /// As [`looks`](Self::looks), and says nothing of a file that is not there.
    pub(crate) fn looks_now(&self) -> Option<Looks> {
        try_looks(&self.flat.borrow()).ok()
    }

    /// Whether another file, or none, has the name of one that is open.
    pub(crate) fn is_replaced(&self) -> bool {
        inodes(&self.flat.borrow()) != *self.inodes.borrow()
    }

    /// Forgets what was prepared.
    pub(crate) fn forget_prepared(&self) {
        drop(self.prepared.take());
    }

    /// What lies below everything.
    pub(crate) fn identity(&self) -> Looks {
        identity(&self.flat.borrow())
    }

    /// Goes to what was prepared. The gate is closed and drained. Whether there was anything.
    pub(crate) fn swap(&self, tracker: &FileTracker) -> bool {
        let Some(prepared) = self.prepared.take() else {
            return false;
        };
        let Prepared {
            config,
            flat,
            plan,
            base,
            fresh,
            _hold,
        } = prepared;
        let before = layers(&self.gate.below());
        // Marked before anybody can see the new content.
        tracker.replaced(&thrown_away(&before, &plan));
        tracker.grown(config.size.0);
        let top = restack(&before, &plan, base, fresh);
        // All that may differ is marked already.
        drop(self.gate.swap(top, Vec::new()));
        let old = self.flat.replace(flat);
        self.config.replace(config);
        if let Err(error) = self.note() {
            // The next process then finds a stack that it does not know.
            tracing::warn!(%error, "cannot note the stack of the disk");
        }
        let gone = plan.dropped.iter().chain(&plan.thrown_away);
        self.forget(gone.map(|number| &old.overlays[*number]));
        true
    }

    /// Gives back what lies beside the state for overlays that are gone.
    fn forget<'a>(&self, gone: impl Iterator<Item = &'a Over>) {
        for over in gone {
            if let Err(error) = self.tools.forget(over) {
                tracing::warn!(%error, "cannot remove the maps of an overlay");
            }
        }
    }

    /// The checkpoints of the disk, the oldest first.
    pub(crate) fn overlays(&self) -> Vec<OverlayStatus> {
        let layers = layers(&self.gate.below());
        let overlays = layers.iter().filter_map(|layer| layer.overlay());
        overlays
            .filter_map(|layer| {
                Some(OverlayStatus {
                    checkpoint: layer.over.checkpoint?,
                    present: layer.present(),
                    draining: layer.is_draining(),
                })
            })
            .collect()
    }

    /// The blocks that were written above the recovery point that the disk lies above; none if it lies
    /// above no point, or what lies above it is being merged.
    pub(crate) fn written_above_point(&self) -> Option<Vec<Range<u64>>> {
        if !matches!(self.flat.borrow().base, Base::Point { .. }) {
            return None;
        }
        let layers = layers(&self.gate.below());
        let overlays: Vec<_> = layers.iter().filter_map(|layer| layer.overlay()).collect();
        let moves = overlays.iter().any(|overlay| overlay.is_draining());
        (!moves).then(|| overlays.iter().flat_map(|overlay| overlay.held()).collect())
    }

    /// What each checkpoint holds, the oldest first. Without those that are being merged: theirs
    /// changes.
    pub(crate) fn frozen(&self) -> Vec<(CheckpointId, Rc<Below<RingStore>>)> {
        let layers = layers(&self.gate.below());
        let overlays = layers.iter().filter_map(|layer| layer.overlay());
        overlays
            .filter(|layer| !layer.is_draining())
            .filter_map(|layer| Some((layer.over.checkpoint?, Rc::clone(layer.below()))))
            .collect()
    }

    /// Notes that an overlay is merged into what it lies above.
    ///
    /// # Errors
    /// When there is no such overlay, or nothing below it that could be written.
    pub(crate) fn begin_merge(&self, checkpoint: CheckpointId) -> Result<()> {
        let layer = self.find(checkpoint)?;
        let overlay = layer.overlay().context("it was found as an overlay")?;
        if matches!(*overlay.below().layer(), FileLayer::Point(_)) {
            bail!(
                "checkpoint {checkpoint} lies right above a recovery point, which is never written"
            );
        }
        if !overlay.is_draining() {
            self.tools
                .note_merging(&overlay.over, false)
                .context("cannot note that a checkpoint is being merged")?;
            overlay.will_drain();
        }
        Ok(())
    }

    fn find(&self, checkpoint: CheckpointId) -> Result<Rc<FileLayer>> {
        let found = layers(&self.gate.below()).into_iter().find(|layer| {
            let overlay = layer.overlay();
            overlay.is_some_and(|overlay| overlay.over.checkpoint == Some(checkpoint))
        });
        found.with_context(|| format!("it has no checkpoint {checkpoint}"))
    }

    /// Copies about `limit` bytes of an overlay that is being merged down. What is left; with nothing
    /// left, all of it is durable below.
    ///
    /// # Errors
    /// What the files say.
    pub(crate) async fn merge(
        &self,
        checkpoint: CheckpointId,
        limit: Bytes,
        state: &DiskState,
    ) -> Result<Bytes, MergeFault> {
        let layer = self.find(checkpoint).map_err(MergeFault::Gone)?;
        let Some(overlay) = layer.overlay() else {
            return Ok(Bytes(0));
        };
        let left = overlay.drain(limit.0, state).await?;
        if left == Bytes(0) && !self.tools.was_drained(&overlay.over) {
            let noted = self.tools.note_merging(&overlay.over, true);
            noted.map_err(MergeFault::Note)?;
        }
        Ok(left)
    }
}

/// Why a step of a merge failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MergeFault {
    #[error("{0:#}")]
    Gone(anyhow::Error),
    #[error(transparent)]
    Disk(#[from] Fault),
    #[error("cannot note that a checkpoint was merged")]
    Note(#[source] std::io::Error),
}

/// Whether the disk reads the same in the stack `now`, of which `layers` are open, as in the one that
/// was in force `last`.
fn same_content(tools: &Assembler, last: &Flat, now: &Flat, layers: &[Rc<FileLayer>]) -> bool {
    let Ok(plan) = Plan::between(last, now) else {
        return false;
    };
    if plan.flattened {
        if let Err(error) = tools.check_holds(&last.base, &now.base) {
            tracing::warn!(
                error = format!("{error:#}"),
                "the point below the disk is another one"
            );
            return false;
        }
    }
    let fresh = &layers[layers.len() - plan.fresh..];
    let empty = |layer: &Rc<FileLayer>| {
        let overlay = layer.overlay();
        overlay.is_some_and(|overlay| overlay.present() == Bytes(0))
    };
    let mut gone = plan.dropped.iter().chain(&plan.thrown_away);
    fresh.iter().all(empty) && gone.all(|number| tools.was_drained(&last.overlays[*number]))
}
