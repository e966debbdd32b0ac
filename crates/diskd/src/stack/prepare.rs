//! What a reload swaps in, opened and judged while the guest goes on.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use block::{Device, Gate, Op};
use model::Bytes;
use ring::RingStore;

use super::{FileTracker, Stack};
use crate::assemble::{FileLayer, lock};
use crate::config::DiskConfig;
use crate::layer::{OverlayLayer, layers, thrown_away};
use crate::plan::{Base, Flat, Plan};
use crate::state::DiskState;
use crate::sweep::Hold;

/// What a reload swaps in.
pub(super) struct Prepared {
    pub(super) config: DiskConfig,
    pub(super) flat: Flat,
    pub(super) plan: Plan,
    /// The base once more, when it has grown; or the file that holds the point that it was.
    pub(super) base: Option<Rc<FileLayer>>,
    /// The lowest first.
    pub(super) fresh: Vec<OverlayLayer<RingStore>>,
    /// What the swap marks stays armed until it has.
    pub(super) _hold: Hold<Rc<Gate<FileLayer>>, RingStore>,
}

impl Stack {
    /// Opens what `wanted` has and this has not. The guest goes on.
    ///
    /// # Errors
    /// Why `wanted` cannot be reached; nothing was changed.
    pub(crate) async fn prepare(
        &self,
        wanted: DiskConfig,
        tracker: &Rc<FileTracker>,
    ) -> Result<()> {
        // First: what is armed below stays so.
        let hold = tracker.hold();
        let prepared = self.prepare_for(wanted, tracker, hold).await?;
        self.prepared.replace(Some(prepared));
        Ok(())
    }

    async fn prepare_for(
        &self,
        wanted: DiskConfig,
        tracker: &FileTracker,
        hold: Hold<Rc<Gate<FileLayer>>, RingStore>,
    ) -> Result<Prepared> {
        let state = tracker.state();
        let config = self.config.borrow().clone();
        let same = DiskConfig {
            size: config.size,
            stack: config.stack.clone(),
            ..wanted.clone()
        };
        if same != config {
            bail!("only its size and its overlays can be changed while it is served");
        }
        let flat = Flat::of(&wanted.stack)?;
        let old = self.flat.borrow().clone();
        let plan = Plan::between(&old, &flat)?;
        self.look_at_lengths(&old, config.size)?;
        let layers = layers(&self.gate.below());
        if let Some(over) = plan
            .thrown_away
            .first()
            .map(|lowest| &old.overlays[*lowest])
        {
            let mut found = layers.iter().filter_map(|layer| layer.overlay());
            if found.any(|layer| layer.over == *over && layer.is_draining()) {
                bail!(
                    "the overlay {} is being merged: what lies below it is not what it was",
                    over.file.display()
                );
            }
        }
        for number in &plan.dropped {
            let over = &old.overlays[*number];
            let drained = layers
                .iter()
                .filter_map(|layer| layer.overlay())
                .any(|layer| {
                    layer.over == *over && layer.is_draining() && layer.present() == Bytes(0)
                });
            // Noted once that is durable.
            if !drained || !self.tools.was_drained(over) {
                bail!(
                    "the overlay {} is not drained: what it holds would be lost",
                    over.file.display()
                );
            }
        }
        let base = if wanted.size != config.size {
            Some(Rc::new(self.grown(&wanted, &config, &old, state)?))
        } else if plan.flattened {
            Some(Rc::new(self.flattened(
                &old.base,
                &flat.base,
                wanted.size,
            )?))
        } else {
            None
        };
        let mut fresh = Vec::new();
        let first = flat.overlays.len() - plan.fresh;
        for over in &flat.overlays[first..] {
            let lock = lock(&over.file, true, Duration::ZERO)?;
            let below = base.clone().unwrap_or_else(|| self.gate.below());
            let layer = self.tools.overlay(over, &flat.base, below, lock).await?;
            if layer.present() != Bytes(0) || layer.is_draining() {
                bail!("the overlay {} is not a new one", over.file.display());
            }
            fresh.push(layer);
        }
        tracker
            .arm_for(&thrown_away(&layers, &plan), wanted.size.0)
            .await
            .context("the write-intent log can neither be written nor removed")?;
        // What the guest has not flushed yet is made durable before it waits, not while it waits.
        if let Err(fault) = self.gate.run(Op::Flush).await.outcome {
            // Noted before anybody hears of it, as one of the guest's.
            state.fail_flush();
            return Err(fault).context("the disk cannot be flushed");
        }
        Ok(Prepared {
            config: wanted,
            flat,
            plan,
            base,
            fresh,
            _hold: hold,
        })
    }

    /// The base at its new size.
    fn grown(
        &self,
        wanted: &DiskConfig,
        config: &DiskConfig,
        old: &Flat,
        state: &DiskState,
    ) -> Result<FileLayer> {
        if wanted.size < config.size {
            bail!("a disk cannot become smaller: it has {}", config.size);
        }
        if !old.overlays.is_empty() {
            bail!("a disk above checkpoints or a recovery point keeps its size: merge them first");
        }
        let layers = layers(&self.gate.below());
        let Some(FileLayer::Raw { lock, .. }) = layers.first().map(|base| &**base) else {
            bail!("only a raw file can grow");
        };
        state.reserve(wanted.size.0)?;
        self.tools.base(&old.base, wanted.size, lock.clone())
    }

    /// The file that holds the point that was the base.
    fn flattened(&self, was: &Base, now: &Base, size: Bytes) -> Result<FileLayer> {
        self.tools.check_holds(was, now)?;
        let lock = match now {
            Base::Raw(file) => Some(Rc::new(lock(file, false, Duration::ZERO)?)),
            Base::Point { .. } => None,
        };
        self.tools.base(now, size, lock)
    }

    fn look_at_lengths(&self, flat: &Flat, size: Bytes) -> Result<()> {
        for file in flat.files() {
            let meta = std::fs::metadata(file)
                .with_context(|| format!("cannot look at {}", file.display()))?;
            if meta.len() < size.0 {
                bail!(
                    "{} has {} bytes, its disk has {size}: it was cut off while it was used",
                    file.display(),
                    meta.len()
                );
            }
        }
        Ok(())
    }
}
