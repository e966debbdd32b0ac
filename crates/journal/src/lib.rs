//! Segments, recovery points, retention, point-in-time images.
//!
//! - [`segment`]: the one format that is staged, shipped, stored and forwarded
//!   (docs/formats/segment.md).
//! - [`Journal`]: the folder of a replica VM (docs/formats/journal.md): takes segments
//!   in, keeps points, merges the oldest into the base.
//! - [`PointReader`]: reads any point of it, over base and segments at once.
//! - [`compare`]: which blocks of it differ from what another host has.
//!
//! Everything here blocks; callers that may not wait run it on a thread that may.

pub mod accept;
mod bases;
mod changes;
pub mod compare;
mod cutoff;
mod doubt;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod header;
mod index;
mod journal;
#[doc(hidden)]
pub mod large;
mod laying;
mod merge;
mod packs;
mod point;
mod receive;
mod recent;
mod room;
mod root;
mod rules;
mod runs;
mod seed;
pub mod segment;
mod squash;
mod stored;
#[cfg(test)]
mod tests;
mod thin;
mod tidy;
mod verify;
mod view;

pub use changes::{ChangedDisk, Changes, MAX_EXTENTS, SetError};
pub use error::{JournalError, Refusal};
pub use header::{Consistency, Content, DiskExtent, Header, HeaderError};
pub use journal::{Journal, Leases, PointInfo, Tip};
pub use merge::{Begun, Held, Merge, Merged};
pub use point::{PointImage, PointReader};
pub use receive::Verdict;
pub use room::{NoRoom, Room};
pub use root::{ParseRootError, Root};
pub use runs::{RunError, Tidied, Tidy};
pub use seed::SeedReader;
pub use segment::{
    Extent, Frame, Run, SegmentError, SegmentReader, SegmentWriter, Source, Summary,
};
pub use thin::{Thin, Thinned};
pub use verify::{Damage, Progress, Report, Verify};

/// Number of cases of a property test: `PROPTEST_CASES` raises it.
#[cfg(test)]
fn cases(usual: u32) -> u32 {
    let raised = std::env::var("PROPTEST_CASES").ok();
    raised.and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}
