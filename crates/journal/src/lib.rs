//! Segments, recovery points, retention, point-in-time images.

mod header;

pub use header::{Consistency, Content, DiskExtent, Header};
