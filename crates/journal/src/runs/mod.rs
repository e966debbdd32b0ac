//! Run files: which segment holds the newest content of a block, found without reading segments.
//!
//! ```text
//!   segments   1 .............. 64 65 .. 80 81 .. 96 97 98
//!   run files  [ 1 .......... 64 ] [65..80] [81..96]          the newest few are read themselves
//!                  |
//!     entries  (level, disk, number of the piece, segment) -> frame or zeroes, sorted
//!     tree     leaf leaf leaf [inner] leaf leaf [inner] [root] footer      4 KiB a page
//! ```
//!
//! - An entry stands for a *piece*: 16^level blocks of a disk that begin at a multiple of that. What a
//!   segment holds is cut into such pieces ([`split`]), so each of its blocks lies in one entry,
//!   and "the newest up to a point that holds this block" is exactly one search for each level that
//!   the file has. Levels grow by 16, not by 2: content then has two levels (a block, a whole
//!   frame), and a discard of a terabyte some ten entries.
//! - A file is written once, front to back, in bounded memory ([`RunWriter`]), from segments
//!   ([`build`]) or from other run files ([`join`]), and a page is read when it is needed
//!   ([`RunFile`]), not mapped: the pages that are kept are bounded, and no `unsafe` is needed.
//! - Each page is named with its hash by the page above it, the top one by the footer, and is
//!   checked against it, and for order and bounds, when it is read. A damaged file gives an error,
//!   never wrong content. (A checksum in the page itself would not tell an old page in its place.)
//! - A file says itself which segments it covers, by sequence and root. So it needs no mention in the
//!   journal's index: whatever is in `runs/` and whole may be used, for those of its segments that the
//!   journal still has; the others' entries are passed over. What was merged into the base,
//!   squashed or written by somebody else never counts. All of them may be removed at any time:
//!   they are made again from the segments ([`Tidy`](crate::Tidy)), which are read themselves meanwhile.
//!
//! An embedded store (redb, fjall) would not do: it locks other processes out, and diskd reads pinned
//! points from its sandbox while polluxd goes on merging. Nor could one be used in part, checked page
//! by page, or made again from the segments when some of it is damaged.
//!
#![doc = include_str!("../../../../docs/formats/run.md")]

mod build;
mod entry;
mod error;
pub(crate) mod folder;
pub(crate) mod forged;
mod held;
mod join;
mod layout;
mod page;
mod reader;
mod stack;
#[cfg(test)]
mod tests;
mod tidy;
mod writer;

pub use error::RunError;

pub(crate) use build::{Input, build};
#[cfg(test)]
pub(crate) use entry::Entry;
pub(crate) use entry::{At, Key};
pub(crate) use held::Held;
pub(crate) use join::join;
pub(crate) use layout::Member;
pub(crate) use page::Pages;
pub(crate) use reader::{Leaf, RunFile};
pub(crate) use stack::{Found, Stack};
pub(crate) use tidy::Tended;
pub use tidy::{Tidied, Tidy};
pub(crate) use writer::RunWriter;
