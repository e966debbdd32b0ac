//! What can happen to an index.

use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, Lineage, MAX_DISKS, PointId, SeedId, VmId};
use serde::{Deserialize, Serialize};

use super::{
    Base, BaseDisk, ChangeSet, Entry, Index, MAX_BASES, MAX_FILES, MAX_PINS, MAX_POINTS,
    MAX_REASON, Pin, Place,
};
use crate::Root;

/// One change. Those of one record take place together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A new newest point. The initial replication is over with the first one.
    Point(Entry),
    /// The segments from number `first` to that of `by` are one now, which holds what the newest of
    /// them says of each block. Only the last one's point is left.
    Squash { first: u64, by: Entry },
    /// In a snapshot, after [`Note::Start`]: the point that the base holds.
    BasePoint(Entry),
    /// Something smaller.
    Note(Note),
}

/// A change that has the form of JSON in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Note {
    /// Begins a snapshot, and is nowhere else.
    Start {
        vm: VmId,
        seed: SeedId,
        disks: Vec<BaseDisk>,
        base: Holds,
        next_pack: u32,
    },
    /// The initial replication is that far.
    Seeding { parts: u64, last: Option<Root> },
    /// All base files.
    Disks(Vec<BaseDisk>),
    /// That of the newest segment.
    Lineage(Lineage),
    /// The base is a mixture from now on; its point is gone.
    MergeBegins,
    /// The base holds the oldest segment's point.
    MergeEnds,
    /// A point must stay.
    Pin(Pin),
    /// Not for this reason any more.
    Unpin(Pin),
    /// A point must stay until then.
    Lock { point: PointId, until: Timestamp },
    /// A segment is somewhere else.
    Moved { sequence: u64, place: Place },
    /// Change sets that came and went.
    ChangeSets {
        add: Vec<ChangeSet>,
        remove: Vec<u64>,
    },
}

/// What the base holds, in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Holds {
    Seeding { parts: u64, last: Option<Root> },
    Seeded,
    Point,
    Merging,
}

type Checked = Result<(), &'static str>;

fn ensure(holds: bool, fault: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(fault) }
}

impl Index {
    /// Whether all of `changes` can take place, one after the other. Nothing is changed. A change
    /// may rest on the disks that one before it names, and on nothing else of those.
    pub(crate) fn check(&self, changes: &[Change]) -> Checked {
        let mut disks = &self.disks;
        for change in changes {
            self.check_one(disks, change)?;
            if let Change::Note(Note::Disks(named)) = change {
                disks = named;
            }
        }
        Ok(())
    }

    fn check_one(&self, disks: &[BaseDisk], change: &Change) -> Checked {
        match change {
            Change::Point(entry) => {
                check_entry(disks, entry)?;
                let rises = |newest: &Entry| newest.point.sequence < entry.point.sequence;
                ensure(
                    self.newest().is_none_or(rises),
                    "has a point that is not newer than the one before it",
                )?;
                ensure(self.segments.len() < MAX_POINTS, "has too many points")
            }
            Change::Squash { first: start, by } => {
                check_entry(disks, by)?;
                let last = self.position(by.point.sequence);
                let good = match (self.position(*start), last) {
                    (Ok(first), Ok(last)) => {
                        let newest = &self.segments[last];
                        // The oldest one hides the mixture of a merge.
                        let free = first > 0 || self.base != Base::Merging;
                        let gone = *start..by.point.sequence;
                        let pinned = |pin: &Pin| gone.contains(&pin.point.sequence);
                        first <= last
                            && free
                            && !self.pins.iter().any(pinned)
                            && newest.point == by.point
                            && newest.root == by.root
                            && newest.disks == by.disks
                    }
                    _ => false,
                };
                ensure(good, "puts segments together that there are not")
            }
            Change::BasePoint(_) => Err("names the point of the base outside its beginning"),
            Change::Note(note) => self.check_note(note),
        }
    }

    fn check_note(&self, note: &Note) -> Checked {
        match note {
            Note::Start { .. } => Err("begins twice"),
            Note::Seeding { .. } => ensure(
                matches!(self.base, Base::Seeding { .. }),
                "is seeded after its end",
            ),
            Note::Disks(disks) => {
                check_disks(disks)?;
                let named = |id| disks.iter().any(|base| base.id == id);
                ensure(
                    self.disk_sets()
                        .all(|set| set.iter().all(|disk| named(disk.id))),
                    "gives up the base of a disk that a point has",
                )
            }
            Note::Lineage(_) | Note::Unpin(_) => Ok(()),
            Note::MergeBegins => ensure(
                !self.segments.is_empty() && self.base != Base::Merging,
                "begins a merge of nothing",
            ),
            Note::MergeEnds => ensure(
                !self.segments.is_empty() && self.base == Base::Merging,
                "ends a merge that was not begun",
            ),
            Note::Pin(pin) => {
                ensure(self.pins.len() < MAX_PINS, "has too many pins")?;
                ensure(
                    pin.reason.len() <= MAX_REASON,
                    "has a pin with a long reason",
                )?;
                ensure(self.find(pin.point).is_some(), "pins a point that is not")
            }
            Note::Lock { point, until } => {
                ensure(self.find(*point).is_some(), "locks a point that is not")?;
                let longer = |locked: &Timestamp| locked <= until;
                ensure(
                    self.locks.get(&point.sequence).is_none_or(longer),
                    "shortens a lock",
                )
            }
            Note::Moved { sequence, place } => {
                let entry = self.position(*sequence).map(|at| &self.segments[at]);
                ensure(
                    entry.is_ok_and(|entry| in_bounds(*place, entry.file_len)),
                    "moves a segment that is not, or to no place",
                )
            }
            Note::ChangeSets { add, remove } => {
                let known = |number: &u64| self.changes.contains_key(number);
                ensure(remove.iter().all(known), "removes a change set that is not")?;
                ensure(
                    self.changes.len() + add.len() <= MAX_FILES,
                    "has too many change sets",
                )
            }
        }
    }

    /// Makes all of `changes`, one after the other.
    ///
    /// # Errors
    /// What [`Index::check`] says of one of them; those before it took place.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) -> Checked {
        for change in changes {
            self.check_one(&self.disks, &change)?;
            self.apply_one(change);
        }
        Ok(())
    }

    fn apply_one(&mut self, change: Change) {
        match change {
            Change::Point(entry) => {
                if let Base::Seeding { .. } = self.base {
                    self.base = Base::Seeded;
                }
                self.push(entry);
            }
            Change::Squash { first, by } => {
                let first = self.position(first).unwrap_or_else(|at| at);
                let last = match self.position(by.point.sequence) {
                    Ok(last) => last,
                    Err(_) => return,
                };
                self.took(by.place);
                for entry in self.segments.range(first..=last) {
                    self.sums.take(entry);
                }
                self.sums.add(&by);
                let gone: Vec<_> = self
                    .segments
                    .range(first..last)
                    .map(|entry| entry.point)
                    .collect();
                self.segments[last] = by;
                self.segments.drain(first..last);
                for point in gone {
                    self.forget(point);
                }
            }
            Change::BasePoint(entry) => self.base = Base::Point(entry),
            Change::Note(note) => self.apply_note(note),
        }
    }

    fn apply_note(&mut self, note: Note) {
        match note {
            Note::Start { .. } => {}
            Note::Seeding { parts, last } => self.base = Base::Seeding { parts, last },
            Note::Disks(disks) => self.disks = disks,
            Note::Lineage(lineage) => self.lineage = Some(lineage),
            Note::MergeBegins => {
                let gone = self.in_base().map(|base| base.point);
                self.base = Base::Merging;
                if let Some(point) = gone {
                    self.forget(point);
                }
            }
            Note::MergeEnds => {
                if let Some(entry) = self.segments.pop_front() {
                    self.sums.take(&entry);
                    for disk in &mut self.disks {
                        let at_point = entry.disks.iter().find(|other| other.id == disk.id);
                        if let Some(at_point) = at_point {
                            disk.size = at_point.size;
                        }
                    }
                    self.base = Base::Point(entry);
                }
            }
            Note::Pin(pin) => {
                if !self.pins.contains(&pin) {
                    self.pins.push(pin);
                }
            }
            Note::Unpin(pin) => self.pins.retain(|other| *other != pin),
            Note::Lock { point, until } => {
                self.locks.insert(point.sequence, until);
            }
            Note::Moved { sequence, place } => {
                if let Ok(at) = self.position(sequence) {
                    self.sums.take(&self.segments[at]);
                    self.segments[at].place = place;
                    self.sums.add(&self.segments[at]);
                    self.took(place);
                }
            }
            Note::ChangeSets { add, remove } => {
                for number in remove {
                    self.changes.remove(&number);
                }
                self.changes
                    .extend(add.into_iter().map(|set| (set.number, set)));
            }
        }
    }

    /// Adds an entry above the others.
    pub(super) fn push(&mut self, entry: Entry) {
        self.took(entry.place);
        self.sums.add(&entry);
        if self.segments.len() == self.segments.capacity() {
            // Doubling would cost tens of MiB.
            self.segments.reserve_exact(64.max(self.segments.len() / 8));
        }
        self.segments.push_back(entry);
    }

    /// A number of a pack is never used twice.
    fn took(&mut self, place: Place) {
        if let Place::Pack { pack, .. } = place {
            self.next_pack = self.next_pack.max(pack.saturating_add(1));
        }
    }

    /// What was said of a point that is gone.
    fn forget(&mut self, point: PointId) {
        self.pins.retain(|pin| pin.point != point);
        self.locks.remove(&point.sequence);
    }
}

fn in_bounds(place: Place, len: Bytes) -> bool {
    match place {
        Place::Own => true,
        Place::Pack { pack, at } => {
            pack > 0 && pack < u32::MAX && at % BLOCK_SIZE == 0 && at.checked_add(len.0).is_some()
        }
    }
}

fn check_disks(disks: &[BaseDisk]) -> Checked {
    ensure(
        !disks.is_empty() && disks.len() <= MAX_BASES,
        "names no disk or too many",
    )
}

/// What is wrong with an entry by itself.
pub(super) fn check_entry(disks: &[BaseDisk], entry: &Entry) -> Checked {
    let whole = |size: Bytes| size.0 > 0 && size.0 % BLOCK_SIZE == 0;
    ensure(
        !entry.disks.is_empty() && entry.disks.len() <= MAX_DISKS,
        "has a point with no disk or too many",
    )?;
    for (at, disk) in entry.disks.iter().enumerate() {
        let twice = entry.disks[..at].iter().any(|other| other.id == disk.id);
        ensure(
            whole(disk.size) && !twice && disks.iter().any(|base| base.id == disk.id),
            "has a point with a disk that cannot be",
        )?;
    }
    ensure(
        in_bounds(entry.place, entry.file_len) && entry.zeroes.0 <= entry.content.0,
        "has a segment that cannot be",
    )
}
