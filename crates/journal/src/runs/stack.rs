//! Run files over each other, as one point sees them.
//!
//! ```text
//!   level 2   [ zeroes, segment 7          ]
//!   level 0        [5]  [9]  [6]                 one track for each level of each file
//!             -----|----|----|-------------> p   what is newest changes only where a piece of
//!             7    7    9    7                   some track begins, or the newest one ends
//! ```

use std::ops::{ControlFlow, Range};

use model::DiskId;

use super::entry::MAX_BLOCKS;
use super::{At, Key, Leaf, Member, Pages, RunError, RunFile};
use crate::{JournalError, Source};

/// Place of a segment that the point does not have (any more).
const NONE: u32 = u32::MAX;

/// The run files through which a point is read.
#[derive(Debug)]
pub(crate) struct Stack {
    disks: Vec<DiskId>,
    layers: Vec<Layer>,
    pages: Pages,
}

/// One file.
#[derive(Debug)]
struct Layer {
    name: String,
    file: RunFile,
    /// Of each of its segments, the position in the point's list.
    places: Vec<u32>,
    /// The first of its segments that the point has, and the first after the last one.
    segments: Range<u32>,
    /// Of each disk of the point, the number in this file and the levels that it has.
    disks: Vec<Option<(u8, u16)>>,
}

/// The newest that there is of some blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Position of the segment in the point's list.
    pub(crate) segment: u32,
    /// Of the first of the blocks.
    pub(crate) source: Source,
}

/// A level of a file, on the way through a disk.
struct Track<'a> {
    layer: &'a Layer,
    level: u32,
    /// Number of the disk in the file.
    disk: u8,
    leaf: Option<Leaf>,
    /// What was found last, and the blocks of its piece.
    found: Option<(Found, Range<u64>)>,
    /// Where the next piece begins, if `is_sure`; before that there is none.
    next: u64,
    is_sure: bool,
}

impl Stack {
    /// Through at least `pages` pages in memory, for a point with these `disks`.
    pub(crate) fn new(disks: Vec<DiskId>, pages: usize) -> Self {
        Self {
            disks,
            layers: Vec::new(),
            pages: Pages::new(pages),
        }
    }

    /// Number of files.
    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Puts a file there, for what it says of those of the `segments` of the point, the oldest first, of
    /// which `is_covered` does not hold yet; it does afterwards. A file that adds none is left out.
    ///
    /// # Errors
    /// A file that is damaged: nothing was changed.
    pub(crate) fn add(
        &mut self,
        name: String,
        file: RunFile,
        segments: &[Member],
        is_covered: &mut [bool],
    ) -> Result<(), RunError> {
        let mut places = Vec::with_capacity(file.segments() as usize);
        let mut at = 0;
        file.members(|_, member| {
            while segments
                .get(at)
                .is_some_and(|one| one.sequence < member.sequence)
            {
                at += 1;
            }
            let is_here = segments.get(at) == Some(&member);
            places.push(if is_here {
                u32::try_from(at).unwrap_or(NONE)
            } else {
                NONE
            });
        })?;
        let is_here = |place: &u32| *place != NONE;
        let new = places.iter().filter(|place| is_here(place));
        if new.clone().all(|place| is_covered[*place as usize]) {
            return Ok(());
        }
        for place in new {
            is_covered[*place as usize] = true;
        }
        let first = places.iter().position(is_here).unwrap_or(0);
        let end = places.iter().rposition(is_here).map_or(0, |last| last + 1);
        let number = |at| u32::try_from(at).unwrap_or(u32::MAX);
        let disks = self.disks.iter().map(|id| {
            let of = (0..).zip(file.disks()).find(|(_, disk)| disk.id == *id);
            of.map(|(number, disk)| (number, disk.levels))
        });
        self.layers.push(Layer {
            name,
            places,
            segments: number(first)..number(end),
            disks: disks.collect(),
            file: file.numbered(number(self.layers.len())),
        });
        Ok(())
    }

    /// Calls `visit` with consecutive parts that together are `blocks`, and the newest of each; none where
    /// no segment holds it. Neighbours may be of one kind.
    ///
    /// # Errors
    /// A damaged run file, a failed read.
    pub(crate) fn sweep(
        &self,
        disk: usize,
        blocks: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Option<Found>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, JournalError> {
        let mut block = blocks.start;
        let mut tracks: Vec<Track<'_>> = self.tracks(disk, block).collect();
        let inside = blocks.end.min(MAX_BLOCKS);
        while block < inside {
            for track in &mut tracks {
                track.enter(&self.pages, block)?;
            }
            let here = tracks.iter().filter_map(|track| track.found.as_ref());
            let here = here.filter(|(_, blocks)| block < blocks.end);
            let newest = here.max_by_key(|(found, _)| found.segment).cloned();
            let mut end = match &newest {
                Some((_, piece)) => piece.end.min(inside),
                None => inside,
            };
            for track in &mut tracks {
                end = end.min(track.next_before(&self.pages, end)?);
            }
            let newest = newest.map(|(found, piece)| found.from(block - piece.start));
            if visit(block..end, newest).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            block = end;
        }
        if block < blocks.end {
            return Ok(visit(block..blocks.end, None));
        }
        Ok(ControlFlow::Continue(()))
    }

    fn tracks(&self, disk: usize, block: u64) -> impl Iterator<Item = Track<'_>> {
        self.layers.iter().flat_map(move |layer| {
            let (number, levels) = layer.disks.get(disk).copied().flatten().unwrap_or_default();
            let levels = (0..u16::BITS).filter(move |level| levels >> level & 1 == 1);
            levels.map(move |level| Track {
                layer,
                level,
                disk: number,
                leaf: None,
                found: None,
                next: Key::of(level, number, block).start(),
                is_sure: false,
            })
        })
    }
}

impl Found {
    /// The same, `blocks` later.
    pub(crate) fn from(mut self, blocks: u64) -> Self {
        if let Source::Frame { skip, .. } = &mut self.source {
            // A piece of content has 16 blocks at most.
            *skip = skip.saturating_add(u8::try_from(blocks).unwrap_or(u8::MAX));
        }
        self
    }
}

impl Track<'_> {
    /// The leaf with the last entry until `at`.
    fn leaf(&mut self, pages: &Pages, at: At) -> Result<&Leaf, JournalError> {
        let leaf = match self.leaf.take() {
            Some(leaf) if leaf.has(at) => leaf,
            _ => {
                let leaf = self.layer.file.leaf(pages, at);
                leaf.map_err(|source| JournalError::run(&self.layer.name, source))?
            }
        };
        Ok(self.leaf.insert(leaf))
    }

    /// The newest of a piece that the point has.
    fn newest(&mut self, pages: &Pages, key: Key) -> Result<Option<Found>, JournalError> {
        let Range { start, mut end } = self.layer.segments;
        while let Some(segment) = end.checked_sub(1).filter(|last| *last >= start) {
            let at = At { key, segment };
            let entry = match self.leaf(pages, at)?.last_until(at) {
                Some(entry) if entry.at.key == key && entry.at.segment >= start => entry,
                _ => break,
            };
            // Was checked when the page was read.
            let place = self.layer.places[entry.at.segment as usize];
            if place != NONE {
                return Ok(Some(Found {
                    segment: place,
                    source: entry.source,
                }));
            }
            // Squashed, for example.
            end = entry.at.segment;
        }
        Ok(None)
    }

    /// Goes on to `block`, which is not past the next piece.
    fn enter(&mut self, pages: &Pages, block: u64) -> Result<(), JournalError> {
        while self.next <= block {
            self.find_next(pages)?;
            if self.next <= block {
                let key = Key::of(self.level, self.disk, self.next);
                let blocks = key.blocks();
                self.next = blocks.end;
                self.is_sure = false;
                self.found = self.newest(pages, key)?.map(|found| (found, blocks));
            }
        }
        Ok(())
    }

    /// Where the next piece begins, if that is before `end`; `end` or more if not.
    fn next_before(&mut self, pages: &Pages, end: u64) -> Result<u64, JournalError> {
        if self.next < end {
            self.find_next(pages)?;
        }
        Ok(self.next)
    }

    fn find_next(&mut self, pages: &Pages) -> Result<(), JournalError> {
        if self.is_sure {
            return Ok(());
        }
        let key = Key::of(self.level, self.disk, self.next);
        let at = At { key, segment: 0 };
        let leaf = self.leaf(pages, at)?;
        let next = leaf.first_from(at).map(|entry| entry.at).or(leaf.next());
        let next = next.filter(|next| next.key.is_beside(key));
        self.next = next.map_or(u64::MAX, |next| next.key.start());
        self.is_sure = true;
        Ok(())
    }
}
