//! Change sets: which blocks changed between two points, without their content.
//!
//! ```text
//!   segments      3 -> 4 -> 5 -> 6 -> 7          7 and 6 are still there
//!   change sets   [3 .... 5]                     what 4 and 5 changed, for whoever is at 3
//!   difference of 3 and 7:  set 3..5, segments 6 and 7
//! ```
//!
//! A host that is at point X becomes like one that is at Y by getting the blocks of which
//! either side's history says that they changed on the way from X to Y ([`path`]): back from X to
//! the last point that both have in common, and on to Y. Segments say that as long as they are
//! there; when they are merged, squashed or given up, a change set says it in their place, until
//! every peer has passed it. A set may say more than changed: neighbouring sets are joined when
//! they are many, and blocks are told in larger units when they are too many ([`MAX_EXTENTS`]).
//! What none of them says has to be compared by hash.
//!
#![doc = include_str!("../../../docs/formats/changes.md")]

mod code;
mod gather;
mod keep;
mod path;
#[cfg(test)]
mod tests;

use std::ops::Range;

use model::{BLOCK_SIZE, Bytes, DiskId, MAX_DISKS, PointId, Since};

pub use code::SetError;
pub(crate) use code::forge;
pub(crate) use gather::Gather;
pub(crate) use keep::{NewSet, Sets};
use path::{Edge, path};

use crate::{Content, JournalError, SegmentReader};

/// Most extents of a set: they take 16 bytes each of memory and 2 to 20 of the file. Where there
/// are more, units get larger.
pub const MAX_EXTENTS: usize = 1 << 20;

/// Most disks of a set: more than a point has, as disks come and go.
const MAX_SET_DISKS: usize = 2 * MAX_DISKS;

/// Blocks that may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// After that,
    pub since: Since,
    /// up to that.
    pub point: PointId,
    /// Of each disk that was there all the time; of others nothing is known.
    pub disks: Vec<ChangedDisk>,
}

/// What changed of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedDisk {
    /// The disk.
    pub id: DiskId,
    /// Its size, at the later point.
    pub size: Bytes,
    /// Blocks in a unit, as a power of two.
    unit: u8,
    /// In units, sorted; between two of them is something that did not change.
    extents: Vec<Range<u64>>,
}

impl ChangedDisk {
    /// The blocks (of 4 KiB) that may have changed, sorted, without overlap.
    pub fn extents(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let end = self.size.0 / BLOCK_SIZE;
        let in_blocks = move |extent: &Range<u64>| {
            extent.start << self.unit..(extent.end << self.unit).min(end)
        };
        self.extents.iter().map(in_blocks)
    }

    /// Number of blocks that may have changed.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.extents().map(|extent| extent.end - extent.start).sum()
    }

    /// Blocks in the unit in which they are told: 1, unless they are very many.
    #[must_use]
    pub fn unit(&self) -> u64 {
        1 << self.unit
    }
}

impl Changes {
    /// What the segment of the file `name` says.
    fn of(segment: &SegmentReader, name: &str) -> Result<Self, JournalError> {
        let header = segment.header();
        let failed = |source| JournalError::segment(name, source);
        let (Some(point), Content::Delta { since, .. }) = (header.point(), header.content) else {
            return Err(JournalError::IndexDamaged(
                "names a segment that is no point",
            ));
        };
        let limit = limit(header.disks.len());
        let mut disks: Vec<_> = header
            .disks
            .iter()
            .map(|disk| (disk, Gather::new(limit)))
            .collect();
        for run in segment.runs() {
            let run = run.map_err(failed)?;
            if let Some((_, gather)) = disks.get_mut(usize::from(run.disk)) {
                gather.push(run.block..run.block + u64::from(run.count));
            }
        }
        // What else changed of a disk that is being copied, nobody knows.
        let disks = disks
            .into_iter()
            .filter(|(disk, _)| !disk.joining)
            .map(|(disk, gather)| gather.finish(disk.id, disk.size))
            .collect();
        Ok(Self {
            since,
            point,
            disks,
        })
    }

    /// What this and `newer`, which goes on where this ends or before, say together.
    fn join(&self, newer: &Self) -> Self {
        Self {
            since: self.since,
            point: newer.point,
            disks: union([&self.disks[..], &newer.disks[..]]),
        }
    }
}

/// The disks that all of `sets` have, with every block of each. The last one knows the sizes.
fn union<'a>(sets: impl IntoIterator<Item = &'a [ChangedDisk]>) -> Vec<ChangedDisk> {
    let mut sets = sets.into_iter();
    let Some(first) = sets.next() else {
        return Vec::new();
    };
    let limit = limit(first.len());
    let gathered = |disk: &ChangedDisk| {
        let mut gather = Gather::new(limit);
        disk.extents().for_each(|extent| gather.push(extent));
        gather
    };
    let mut all: Vec<_> = first
        .iter()
        .map(|disk| (disk.id, disk.size, gathered(disk)))
        .collect();
    for set in sets {
        all.retain_mut(|(id, size, gather)| {
            let Some(disk) = set.iter().find(|disk| disk.id == *id) else {
                return false;
            };
            *size = (*size).max(disk.size);
            disk.extents().for_each(|extent| gather.push(extent));
            true
        });
    }
    all.into_iter()
        .map(|(id, size, gather)| gather.finish(id, size))
        .collect()
}

/// Most extents of each of `disks` disks.
fn limit(disks: usize) -> usize {
    MAX_EXTENTS / disks.max(1)
}
