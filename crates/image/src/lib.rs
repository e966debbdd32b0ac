//! From ranges of a virtual disk to places: raw and overlay.
//!
//! - [`RawDevice`]: block n of the disk lies at offset n of a store.
//! - [`Overlay`]: the same for what was written; the rest is read from below.
//!
//! Both take operations on 512-byte sectors whatever the store below needs, and both make a
//! failed flush sticky: what it should have made durable may be lost, so nothing is written any
//! more until the device is opened again.

mod drain;
mod flush;
mod overlay;
mod presence;
mod raw;

pub use flush::FlushGate;
pub use overlay::{Overlay, OverlayError, OverlayFiles};
pub use presence::{PresenceError, Tag};
pub use raw::{RawDevice, SizeError};

#[cfg(test)]
mod lives_tests;
