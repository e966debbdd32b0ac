//! Changes to and from bytes. All numbers are little-endian.

use std::sync::Arc;

use jiff::Timestamp;
use model::{Bytes, PointId, Since, TermId};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::change::{Holds, check_entry};
use super::{Base, Change, DiskSet, Entry, Index, MAX_POINTS, Note, Place};
use crate::{Consistency, DiskExtent, JournalError, Root};

/// A term that gets a number, from 0.
const TERM: u8 = 1;
/// The disks of a point, which get a number, from 0.
const DISKS: u8 = 2;
const POINT: u8 = 3;
const SQUASH: u8 = 4;
const BASE_POINT: u8 = 5;
const NOTE: u8 = 6;

/// An entry without its second root.
const ENTRY: usize = 112;
/// The entry has a second root: that of the file.
const STORED: u8 = 1;
/// In place of a term: it builds on the initial replication.
const SEED: u32 = u32::MAX;

/// Points, or notes, in one record of a snapshot.
const BATCH: usize = 1024;
/// Most terms and most sets of disks.
const MAX_TABLE: usize = 1 << 16;

fn damaged(fault: &'static str) -> JournalError {
    JournalError::IndexDamaged(fault)
}

/// What entries name by number.
#[derive(Debug, Clone, Default)]
pub(super) struct Tables {
    terms: Vec<TermId>,
    sets: Vec<DiskSet>,
}

/// How much was in [`Tables`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(usize, usize);

impl Tables {
    pub(super) fn mark(&self) -> Mark {
        Mark(self.terms.len(), self.sets.len())
    }

    /// Forgets what came after `mark`: it was not written.
    pub(super) fn back_to(&mut self, mark: Mark) {
        self.terms.truncate(mark.0);
        self.sets.truncate(mark.1);
    }

    /// Whether a table is so full that the file has to be written anew.
    pub(super) fn are_full(&self) -> bool {
        self.terms.len().max(self.sets.len()) >= MAX_TABLE / 2
    }

    fn term(&mut self, id: TermId, out: &mut Vec<u8>) -> u32 {
        let known = self.terms.iter().rposition(|term| *term == id);
        let at = known.unwrap_or_else(|| {
            out.push(TERM);
            out.extend_from_slice(id.0.as_bytes());
            self.terms.push(id);
            self.terms.len() - 1
        });
        u32::try_from(at).expect("at most MAX_TABLE")
    }

    fn set(&mut self, set: &DiskSet, out: &mut Vec<u8>) -> Result<u32, JournalError> {
        let same = |known: &DiskSet| Arc::ptr_eq(known, set) || known == set;
        let at = match self.sets.iter().rposition(same) {
            Some(at) => at,
            None => {
                let json = serde_json::to_vec(&**set).map_err(JournalError::IndexSyntax)?;
                put_json(DISKS, &json, out)?;
                self.sets.push(set.clone());
                self.sets.len() - 1
            }
        };
        Ok(u32::try_from(at).expect("at most MAX_TABLE"))
    }
}

fn put_json(kind: u8, json: &[u8], out: &mut Vec<u8>) -> Result<(), JournalError> {
    let len = u32::try_from(json.len()).map_err(|_too_long| damaged("gets too long a change"))?;
    out.push(kind);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(json);
    Ok(())
}

/// Adds `changes` to the payload of a record.
pub(super) fn write(
    changes: &[Change],
    tables: &mut Tables,
    out: &mut Vec<u8>,
) -> Result<(), JournalError> {
    for change in changes {
        match change {
            Change::Point(entry) => write_entry(POINT, None, entry, tables, out)?,
            Change::Squash { first, by } => write_entry(SQUASH, Some(*first), by, tables, out)?,
            Change::BasePoint(entry) => write_entry(BASE_POINT, None, entry, tables, out)?,
            Change::Note(note) => {
                let json = serde_json::to_vec(note).map_err(JournalError::IndexSyntax)?;
                put_json(NOTE, &json, out)?;
            }
        }
    }
    Ok(())
}

fn write_entry(
    kind: u8,
    first: Option<u64>,
    entry: &Entry,
    tables: &mut Tables,
    out: &mut Vec<u8>,
) -> Result<(), JournalError> {
    let term = tables.term(entry.point.term, out);
    let (since_term, since) = match entry.since {
        Since::Seed { parts, .. } => (SEED, parts),
        Since::Point(point) => (tables.term(point.term, out), point.sequence),
    };
    let set = tables.set(&entry.disks, out)?;
    let (pack, at) = match entry.place {
        Place::Own => (0, 0),
        Place::Pack { pack, at } => (pack, at),
    };
    let has_stored = entry.stored != entry.root;
    out.push(kind);
    if let Some(first) = first {
        out.extend_from_slice(&first.to_le_bytes());
    }
    for number in [term, since_term] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for number in [entry.point.sequence, since] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&entry.time.as_second().to_le_bytes());
    out.extend_from_slice(&entry.time.subsec_nanosecond().to_le_bytes());
    out.extend_from_slice(&set.to_le_bytes());
    out.extend_from_slice(&entry.root.0);
    for number in [entry.file_len.0, entry.content.0, entry.zeroes.0, at] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&pack.to_le_bytes());
    let consistency = match entry.consistency {
        Consistency::Crash => 0,
        Consistency::Application => 1,
    };
    let flags = if has_stored { STORED } else { 0 };
    out.extend_from_slice(&[consistency, flags, 0, 0]);
    if has_stored {
        out.extend_from_slice(&entry.stored.0);
    }
    Ok(())
}

/// The payloads of the records that make a snapshot of `index`, and the tables after them.
pub(super) fn snapshot(index: &Index) -> Result<(Vec<Vec<u8>>, Tables), JournalError> {
    let mut tables = Tables::default();
    let mut records = Vec::new();
    let holds = match &index.base {
        Base::Seeding { parts, last } => Holds::Seeding {
            parts: *parts,
            last: *last,
        },
        Base::Seeded => Holds::Seeded,
        Base::Point(_) => Holds::Point,
        Base::Merging => Holds::Merging,
    };
    let mut first = vec![Change::Note(Note::Start {
        vm: index.vm,
        seed: index.seed,
        disks: index.disks.clone(),
        base: holds,
        next_pack: index.next_pack,
    })];
    first.extend(index.in_base().cloned().map(Change::BasePoint));
    first.extend(
        index
            .lineage
            .clone()
            .map(|it| Change::Note(Note::Lineage(it))),
    );
    let mut add = |changes: &[Change]| {
        let mut payload = Vec::new();
        write(changes, &mut tables, &mut payload)?;
        records.push(payload);
        Ok::<_, JournalError>(())
    };
    add(&first)?;
    let mut batch = Vec::with_capacity(BATCH.min(index.segments.len()));
    for entry in &index.segments {
        batch.push(Change::Point(entry.clone()));
        if batch.len() == BATCH {
            add(&batch)?;
            batch.clear();
        }
    }
    add(&batch)?;
    let points = index.points().map(|(_, entry)| entry.point);
    let locks = points.filter_map(|point| {
        let until = *index.locks.get(&point.sequence)?;
        Some(Note::Lock { point, until })
    });
    let mut notes: Vec<_> = index.pins.iter().cloned().map(Note::Pin).collect();
    notes.extend(locks);
    notes.extend(index.changes.values().map(|set| Note::ChangeSets {
        add: vec![*set],
        remove: vec![],
    }));
    let notes: Vec<_> = notes.into_iter().map(Change::Note).collect();
    for notes in notes.chunks(BATCH) {
        add(notes)?;
    }
    Ok((records, tables))
}

/// Reads one thing after the other.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], JournalError> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(damaged("has a change that is cut short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, JournalError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, JournalError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn json<T: DeserializeOwned>(&mut self) -> Result<T, JournalError> {
        let len = self.u32()? as usize;
        let (json, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(damaged("has a change that is cut short"))?;
        self.0 = rest;
        serde_json::from_slice(json).map_err(JournalError::IndexSyntax)
    }
}

/// An index that is being read: none before the first change.
#[derive(Debug)]
pub(super) struct Reading {
    index: Option<Index>,
    tables: Tables,
    /// About as many points come.
    expected: usize,
    /// The point of the base still comes.
    base_is_due: bool,
}

impl Reading {
    /// Of a file of `len` bytes, of which the first `snapshot` hold no single records.
    pub(super) fn new(snapshot: u64, len: u64) -> Self {
        let alone = ENTRY as u64 + 64;
        let expected = snapshot / ENTRY as u64 + len.saturating_sub(snapshot) / alone;
        Self {
            index: None,
            tables: Tables::default(),
            expected: usize::try_from(expected)
                .unwrap_or(MAX_POINTS)
                .min(MAX_POINTS),
            base_is_due: false,
        }
    }

    /// Makes the changes of a record. Notes the segments that came with it.
    pub(super) fn record(
        &mut self,
        payload: &[u8],
        mut entries: Option<&mut Vec<Entry>>,
    ) -> Result<(), JournalError> {
        let mut bytes = Cursor(payload);
        while !bytes.0.is_empty() {
            let [kind] = bytes.take()?;
            match kind {
                TERM => {
                    let id = TermId(Uuid::from_bytes(bytes.take()?));
                    room(self.tables.terms.len())?;
                    self.tables.terms.push(id);
                }
                DISKS => {
                    let disks: Vec<DiskExtent> = bytes.json()?;
                    room(self.tables.sets.len())?;
                    self.tables.sets.push(disks.into());
                }
                NOTE => match bytes.json()? {
                    note @ Note::Start { .. } => self.start(note)?,
                    note => {
                        let moved = match note {
                            Note::Moved { sequence, .. } => Some(sequence),
                            _ => None,
                        };
                        self.apply(Change::Note(note))?;
                        if let (Some(sequence), Some(entries)) = (moved, &mut entries) {
                            entries.extend(self.segment(sequence).cloned());
                        }
                    }
                },
                POINT => {
                    let entry = self.entry(&mut bytes)?;
                    if let Some(entries) = &mut entries {
                        entries.push(entry.clone());
                    }
                    self.apply(Change::Point(entry))?;
                }
                SQUASH => {
                    let first = bytes.u64()?;
                    let by = self.entry(&mut bytes)?;
                    if let Some(entries) = &mut entries {
                        entries.push(by.clone());
                    }
                    self.apply(Change::Squash { first, by })?;
                }
                BASE_POINT => {
                    let entry = self.entry(&mut bytes)?;
                    self.base_point(entry)?;
                }
                _ => return Err(damaged("has a change of an unknown kind")),
            }
        }
        Ok(())
    }

    fn segment(&self, sequence: u64) -> Option<&Entry> {
        let index = self.index.as_ref()?;
        let at = index.position(sequence).ok()?;
        index.segments.get(at)
    }

    fn start(&mut self, note: Note) -> Result<(), JournalError> {
        let Note::Start {
            vm,
            seed,
            disks,
            base,
            next_pack,
        } = note
        else {
            return Err(damaged("does not begin as one"));
        };
        if self.index.is_some() || next_pack == 0 {
            return Err(damaged("begins twice"));
        }
        let mut index = Index::new(vm, seed, disks);
        if let Some(fault) = index.bases_fault() {
            return Err(damaged(fault));
        }
        index.next_pack = next_pack;
        index.segments.reserve_exact(self.expected);
        self.base_is_due = base == Holds::Point;
        index.base = match base {
            Holds::Seeding { parts, last } => Base::Seeding { parts, last },
            Holds::Seeded | Holds::Point => Base::Seeded,
            Holds::Merging => Base::Merging,
        };
        self.index = Some(index);
        Ok(())
    }

    fn base_point(&mut self, entry: Entry) -> Result<(), JournalError> {
        let index = self.index.as_mut().ok_or(damaged("has no beginning"))?;
        if !std::mem::take(&mut self.base_is_due) {
            return Err(damaged("has two points in its base"));
        }
        check_entry(&index.disks, &entry).map_err(damaged)?;
        index.base = Base::Point(entry);
        Ok(())
    }

    fn apply(&mut self, change: Change) -> Result<(), JournalError> {
        let index = self.index.as_mut().ok_or(damaged("has no beginning"))?;
        if self.base_is_due {
            return Err(damaged("does not name the point of its base"));
        }
        index.apply(vec![change]).map_err(damaged)
    }

    fn entry(&self, bytes: &mut Cursor<'_>) -> Result<Entry, JournalError> {
        let seed = self.index.as_ref().ok_or(damaged("has no beginning"))?.seed;
        let mut bytes_of_entry = Cursor(&bytes.take::<ENTRY>()?);
        let from = &mut bytes_of_entry;
        let term = |number: u32| {
            let term = self.tables.terms.get(number as usize);
            term.copied().ok_or(damaged("has a point of no term"))
        };
        let (point_term, since_term) = (from.u32()?, from.u32()?);
        let (sequence, since) = (from.u64()?, from.u64()?);
        let second = i64::from_le_bytes(from.take()?);
        let nanosecond = i32::from_le_bytes(from.take()?);
        let set = from.u32()? as usize;
        let root = Root(from.take()?);
        let (file_len, content) = (from.u64()?, from.u64()?);
        let (zeroes, at) = (from.u64()?, from.u64()?);
        let pack = from.u32()?;
        let [consistency, flags, zero, nil] = from.take()?;
        if flags > STORED || zero != 0 || nil != 0 || (pack == 0 && at != 0) {
            return Err(damaged("has a point that says more than is known"));
        }
        let stored = match flags {
            STORED => Root(bytes.take()?),
            _ => root,
        };
        let time = Timestamp::new(second, nanosecond)
            .map_err(|_out_of_range| damaged("has a point at no time"))?;
        Ok(Entry {
            point: PointId {
                term: term(point_term)?,
                sequence,
            },
            since: match since_term {
                SEED => Since::Seed { seed, parts: since },
                number => Since::Point(PointId {
                    term: term(number)?,
                    sequence: since,
                }),
            },
            time,
            consistency: match consistency {
                0 => Consistency::Crash,
                1 => Consistency::Application,
                _ => return Err(damaged("has a point of unknown consistency")),
            },
            disks: self
                .tables
                .sets
                .get(set)
                .cloned()
                .ok_or(damaged("has a point with no disks"))?,
            root,
            stored,
            place: match pack {
                0 => Place::Own,
                pack => Place::Pack { pack, at },
            },
            file_len: Bytes(file_len),
            content: Bytes(content),
            zeroes: Bytes(zeroes),
        })
    }

    /// The index, once everything was read.
    pub(super) fn finish(self) -> Result<(Index, Tables), JournalError> {
        let index = self.index.ok_or(damaged("has no beginning"))?;
        if self.base_is_due {
            return Err(damaged("does not name the point of its base"));
        }
        match index.fault() {
            None => Ok((index, self.tables)),
            Some(fault) => Err(damaged(fault)),
        }
    }
}

fn room(len: usize) -> Result<(), JournalError> {
    if len < MAX_TABLE {
        Ok(())
    } else {
        Err(damaged("has too many terms or sets of disks"))
    }
}
