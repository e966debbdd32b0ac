//! Segments, recovery points, retention, point-in-time images.
//!
//! - [`segment`]: the one format that is staged, shipped, stored and forwarded
//!   (docs/formats/segment.md).

mod header;
mod root;
pub mod segment;

pub use header::{Consistency, Content, DiskExtent, Header, HeaderError};
pub use root::{ParseRootError, Root};
pub use segment::{
    Extent, Frame, Run, SegmentError, SegmentReader, SegmentWriter, Source, Summary,
};

/// Number of cases of a property test: `PROPTEST_CASES` raises it.
#[cfg(test)]
fn cases(usual: u32) -> u32 {
    let raised = std::env::var("PROPTEST_CASES").ok();
    raised.and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}
