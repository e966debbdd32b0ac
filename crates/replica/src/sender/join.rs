//! Disks that are added and taken away while points are sent.
//!
//! ```text
//!   wanted a         cut [a]          configuration: replicate a
//!   wanted a b       cut [a, b 0-64M] [a, b 64M-128M] ... [a, b]     b is whole with the last one
//!   wanted b         cut [b]          a is not in it, and tracked no longer
//! ```
//!
//! A disk that the replica's newest point lacks is copied with the points: a slice of what is marked of
//! it comes with each, until one takes all that is left. Points follow each other at once meanwhile, with
//! slices that take less than half of the time from one to the next, so that none comes late. Nothing
//! of it is recorded here: what was not acknowledged is marked, whatever happens, and whether the disk
//! is whole the replica tells. A copy that begins again at the disk's first byte finds no marks there.

use std::time::Duration;

use journal::Header;
use model::{Bytes, DiskId, PointId};

use super::{Now, Sender};
use crate::report::Joining;
use crate::source::{CutDisk, Part, Progress};
use crate::wire::Tip;

/// The first slice, about; then they adapt to the connection.
const SLICE: u64 = 64 << 20;
const SHORTEST: u64 = 4 << 20;
const LONGEST: u64 = 1 << 30;

/// Which disks the replica has, and how far the copy of another one is.
#[derive(Debug, Default)]
pub(super) struct Join {
    /// Its newest point, and the disks that this has.
    known: Option<(PointId, Vec<DiskId>)>,
    /// What is tracked is not what is wanted.
    outdated: bool,
    copy: Option<Copying>,
    /// Bytes of a slice; none before the first.
    slice: Option<u64>,
    /// When the point with the last slice was cut, until it is acknowledged.
    cut: Option<Duration>,
}

/// The copy of one disk.
#[derive(Debug, Clone, Copy)]
struct Copying {
    disk: DiskId,
    /// First byte that was not looked at; none when its end was.
    from: Option<u64>,
}

impl Join {
    pub(super) fn told(&mut self, tip: Tip, disks: Vec<DiskId>) {
        self.known = match tip {
            Tip::Point { point, .. } => Some((point, disks)),
            Tip::Nothing | Tip::Seeding { .. } => None,
        };
    }

    /// The point `tip` is of this header.
    pub(super) fn has(&mut self, tip: PointId, header: &Header) {
        let disks = header.disks.iter().filter(|disk| !disk.joining);
        if header.point() == Some(tip) {
            self.known = Some((tip, disks.map(|disk| disk.id).collect()));
        }
    }

    /// Whether the disks of `tip` are known.
    pub(super) fn knows(&self, tip: PointId) -> bool {
        self.known.as_ref().is_some_and(|(known, _)| *known == tip)
    }

    fn is_whole(&self, disk: DiskId) -> bool {
        let known = self.known.as_ref();
        known.is_some_and(|(_, disks)| disks.contains(&disk))
    }

    pub(super) fn wanted(&mut self, before: &[DiskId], now: &[DiskId]) {
        self.outdated |= before != now;
    }

    pub(super) fn is_outdated(&self) -> bool {
        self.outdated
    }

    pub(super) fn tracked(&mut self) {
        self.outdated = false;
        self.begin_again();
    }

    /// What was staged may be marked again.
    pub(super) fn begin_again(&mut self) {
        self.copy = None;
    }

    /// The point of this header is staged, with a slice that ends at `next`.
    pub(super) fn staged(&mut self, header: &Header, next: Option<u64>) {
        if let Some(copy) = &mut self.copy {
            if header
                .disks
                .iter()
                .any(|disk| disk.id == copy.disk && disk.joining)
            {
                // A source that stands still would be asked for ever.
                let further = |next: &u64| copy.from.is_some_and(|from| *next > from);
                copy.from = next.filter(further);
            }
        }
    }
}

impl Sender {
    fn wanted_disks(&self) -> &[DiskId] {
        &self.plan.configuration.disks
    }

    /// The disks that are replicated and that the replica's newest point has.
    pub(super) fn members(&self) -> Vec<DiskId> {
        let wanted = self.wanted_disks().iter().copied();
        wanted.filter(|disk| self.join.is_whole(*disk)).collect()
    }

    /// Whether disks are being copied.
    pub(super) fn copies(&self) -> bool {
        let mut wanted = self.wanted_disks().iter();
        wanted.any(|disk| !self.join.is_whole(*disk))
    }

    /// The disks of the next point.
    pub(super) fn disks_to_cut(&mut self, now: Now) -> Vec<CutDisk> {
        let all = |id: &DiskId, part| CutDisk { id: *id, part };
        if let Progress::Seeding { .. } = self.progress {
            let disks = self.plan.disks.iter();
            return disks.map(|id| all(id, Part::Member)).collect();
        }
        let wanted = self.wanted_disks().to_vec();
        let Some(copied) = wanted.iter().find(|disk| !self.join.is_whole(**disk)) else {
            self.join.copy = None;
            return wanted.iter().map(|id| all(id, Part::Member)).collect();
        };
        let limit = Bytes(*self.join.slice.get_or_insert(SLICE));
        // A point has a disk.
        let at_once = self.members().is_empty();
        let copy = match self.join.copy {
            Some(copy) if copy.disk == *copied => copy,
            _ => Copying {
                disk: *copied,
                from: Some(0),
            },
        };
        self.join.copy = Some(copy);
        let part = |id: &DiskId| match copy.from {
            _ if self.join.is_whole(*id) => Part::Member,
            _ if at_once => Part::Joined,
            None if id == copied => Part::Joined,
            Some(from) if id == copied => Part::Slice { from, limit },
            _ => Part::Joining,
        };
        let disks: Vec<_> = wanted.iter().map(|id| all(id, part(id))).collect();
        self.join.cut = (!at_once && copy.from.is_some()).then_some(now.since_start);
        disks
    }

    /// A point was acknowledged: how long may the next slice be?
    pub(super) fn adapt(&mut self, now: Now) {
        let (Some(cut), Some(slice)) = (self.join.cut.take(), self.join.slice) else {
            return;
        };
        let (took, period) = (now.since_start.saturating_sub(cut), self.frequency());
        self.join.slice = Some(if took * 2 > period {
            (slice / 2).max(SHORTEST)
        } else if took * 4 < period {
            (slice * 2).min(LONGEST)
        } else {
            slice
        });
    }

    /// How far disks are that are being copied.
    pub(super) fn joining(&self) -> Vec<Joining> {
        let is_live = matches!(self.progress, Progress::Live { .. });
        if !is_live || self.join.known.is_none() {
            return Vec::new();
        }
        let disks = &self.plan.configuration.spec.disks;
        let wanted = self.wanted_disks().iter();
        let lacking = wanted.filter(|disk| !self.join.is_whole(**disk));
        let joining = lacking.filter_map(|id| {
            let total = disks.iter().find(|disk| disk.id == *id)?.size;
            let copy = self.join.copy.filter(|copy| copy.disk == *id);
            let done = copy.map_or(0, |copy| copy.from.unwrap_or(total.0));
            Some(Joining {
                disk: *id,
                done: Bytes(done),
                total,
            })
        });
        joining.collect()
    }
}
