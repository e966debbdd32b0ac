//! The layers of a disk's stack.
//!
//! ```text
//!   Gate -> Overlay -> Below -> Overlay -> Below -> Raw
//!                        |                   |
//!                        '-- what a checkpoint's export reads: frozen, as long as the overlay above
//!                            is not being merged into it
//! ```
//!
//! - Layers are shared: what is pushed or dropped leaves the others as they are, with the operations
//!   that run in them.
//! - The first flush of an overlay goes down to the bottom: what lies below was perhaps written and not
//!   flushed when it was put on top, or by a process that was killed.
//! - A raw file alone costs nothing: only what passes an overlay allocates.

use std::cell::{Cell, RefCell};
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use block::{Device, Done, Fault, Image, Op, Place, Store};
use durable::Lock;
use image::{Overlay, RawDevice};
use model::{BLOCK_SIZE, Bytes};

use crate::plan::{Over, Plan};
use crate::point::PointDevice;
use crate::state::DiskState;

/// A part of a stack, with everything below it.
pub(crate) enum Layer<S> {
    /// A raw file.
    Raw {
        device: RawDevice<S>,
        /// Kept as long as the file is used.
        lock: Option<Rc<Lock>>,
    },
    /// A disk of a recovery point.
    Point(PointDevice),
    /// What was written above something else.
    Overlay(Box<OverlayLayer<S>>),
}

/// See [`Layer::Overlay`].
pub(crate) struct OverlayLayer<S> {
    overlay: Overlay<S, S, Rc<Below<S>>>,
    below: Rc<Below<S>>,
    /// What it is in the configuration.
    pub(crate) over: Over,
    draining: Cell<bool>,
    _lock: Option<Lock>,
}

/// What an overlay lies above; exchanged while nothing runs in the overlay.
pub(crate) struct Below<S>(RefCell<Rc<Layer<S>>>);

impl<S> Below<S> {
    pub(crate) fn new(layer: Rc<Layer<S>>) -> Rc<Self> {
        Rc::new(Self(RefCell::new(layer)))
    }

    pub(crate) fn layer(&self) -> Rc<Layer<S>> {
        Rc::clone(&self.0.borrow())
    }
}

impl<S: Store> Device for Below<S> {
    fn size(&self) -> u64 {
        Device::size(&*self.layer())
    }

    async fn run(&self, op: Op) -> Done {
        let layer = self.layer();
        // In a box: layers lie above layers.
        Box::pin(layer.run(op)).await
    }
}

impl<S: Store> Image for Below<S> {
    fn size(&self) -> u64 {
        Device::size(self)
    }

    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        let layer = self.layer();
        Box::pin(layer.translate(range, visit)).await
    }
}

impl<S: Store> OverlayLayer<S> {
    pub(crate) fn new(
        overlay: Overlay<S, S, Rc<Below<S>>>,
        below: Rc<Below<S>>,
        over: Over,
        lock: Option<Lock>,
    ) -> Self {
        Self {
            overlay,
            below,
            over,
            draining: Cell::new(false),
            _lock: lock,
        }
    }

    /// What it lies above.
    pub(crate) fn below(&self) -> &Rc<Below<S>> {
        &self.below
    }

    /// Puts it above something else, which has the same content where this has none. Nothing may
    /// run in it.
    pub(crate) fn put_above(&self, layer: Rc<Layer<S>>) {
        self.below.0.replace(layer);
    }

    /// What it holds.
    pub(crate) fn present(&self) -> Bytes {
        Bytes(self.overlay.present_bytes())
    }

    /// The blocks that it holds.
    pub(crate) fn held(&self) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        self.overlay
            .held(|range| runs.push(range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE)));
        runs
    }

    /// Whether it is being merged into what it lies above.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// What is below is not frozen any more: [`OverlayLayer::drain`] comes next.
    pub(crate) fn will_drain(&self) {
        self.draining.set(true);
    }

    /// From when this returns on everything goes below.
    pub(crate) async fn start_draining(&self) {
        self.draining.set(true);
        self.overlay.start_draining().await;
    }

    /// Copies about `limit` bytes of what it holds down. What is left; with nothing left, all of it is
    /// durable below. A flush that fails is noted in `state`: what may be lost below is still above, but is
    /// not looked for there until the disk is reopened.
    pub(crate) async fn drain(&self, limit: u64, state: &DiskState) -> Result<Bytes, Fault> {
        let left = self.overlay.drain(limit).await;
        if self.overlay.flush_failed() {
            state.fail_flush();
        }
        left.map(Bytes)
    }
}

impl<S> From<OverlayLayer<S>> for Layer<S> {
    fn from(layer: OverlayLayer<S>) -> Self {
        Self::Overlay(Box::new(layer))
    }
}

/// The layers of a stack, the lowest first.
pub(crate) fn layers<S>(top: &Rc<Layer<S>>) -> Vec<Rc<Layer<S>>> {
    let mut layers = vec![Rc::clone(top)];
    while let Some(overlay) = layers.last().and_then(|layer| layer.overlay()) {
        let below = overlay.below.layer();
        layers.push(below);
    }
    layers.reverse();
    layers
}

/// The blocks whose content may be another one when `plan` has been carried out on `layers`.
pub(crate) fn thrown_away<S: Store>(layers: &[Rc<Layer<S>>], plan: &Plan) -> Vec<Range<u64>> {
    let thrown_away = plan.thrown_away.iter().map(|number| &layers[number + 1]);
    thrown_away
        .filter_map(|layer| layer.overlay())
        .flat_map(OverlayLayer::held)
        .collect()
}

/// Carries `plan` out on `layers`, in which nothing runs; the top of what comes of it. The base is `base`,
/// if it is another one; `fresh` is put on top, the lowest first.
pub(crate) fn restack<S: Store>(
    layers: &[Rc<Layer<S>>],
    plan: &Plan,
    base: Option<Rc<Layer<S>>>,
    fresh: Vec<OverlayLayer<S>>,
) -> Rc<Layer<S>> {
    let mut top = base.unwrap_or_else(|| Rc::clone(&layers[0]));
    for number in &plan.kept {
        let layer = &layers[number + 1];
        if let Some(overlay) = layer.overlay() {
            if !Rc::ptr_eq(&overlay.below.layer(), &top) {
                overlay.put_above(top);
            }
        }
        top = Rc::clone(layer);
    }
    for overlay in fresh {
        overlay.put_above(top);
        top = Rc::new(overlay.into());
    }
    top
}

impl<S> Layer<S> {
    /// The overlay that this is.
    pub(crate) fn overlay(&self) -> Option<&OverlayLayer<S>> {
        match self {
            Self::Overlay(overlay) => Some(overlay),
            Self::Raw { .. } | Self::Point(_) => None,
        }
    }
}

impl<S: Store> Device for Layer<S> {
    fn size(&self) -> u64 {
        match self {
            Self::Raw { device, .. } => Device::size(device),
            Self::Point(point) => Device::size(point),
            Self::Overlay(layer) => Device::size(&layer.overlay),
        }
    }

    async fn run(&self, op: Op) -> Done {
        match self {
            #[cfg(test)]
            Self::Raw { device, .. } => crate::lab::slowly(device, op).await,
            #[cfg(not(test))]
            Self::Raw { device, .. } => device.run(op).await,
            Self::Point(point) => point.run(op).await,
            Self::Overlay(layer) => layer.overlay.run(op).await,
        }
    }
}

impl<S: Store> Image for Layer<S> {
    fn size(&self) -> u64 {
        Device::size(self)
    }

    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        match self {
            Self::Raw { device, .. } => device.translate(range, visit).await,
            Self::Point(point) => point.translate(range, visit).await,
            Self::Overlay(layer) => layer.overlay.translate(range, visit).await,
        }
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
