//! Format 1: one JSON object that was replaced as a whole. It is read, and written no more.

use std::sync::Arc;

use jiff::Timestamp;
use model::{Bytes, Lineage, PointId, SeedId, Since, VmId};
use serde::Deserialize;

use super::change::check_entry;
use super::{Base, BaseDisk, Change, DiskSet, Entry, Index, Note, Pin, Place};
use crate::{Consistency, DiskExtent, JournalError, Root};

/// Its first bytes; the version, the hash of the object and a line feed follow.
pub(super) const MAGIC: &str = "pollux-journal ";
const VERSION: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstIndex {
    vm: VmId,
    disks: Vec<BaseDisk>,
    seed: SeedId,
    base: FirstBase,
    #[serde(default)]
    lineage: Option<Lineage>,
    segments: Vec<FirstEntry>,
    pins: Vec<Pin>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum FirstBase {
    Seeding { parts: u64, last: Option<Root> },
    Seeded,
    Point(FirstEntry),
    Merging,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstEntry {
    point: PointId,
    since: Since,
    time: Timestamp,
    consistency: Consistency,
    sizes: Vec<Bytes>,
    root: Root,
    file_len: Bytes,
    content: Bytes,
    zeroes: Bytes,
}

pub(super) fn is_first(bytes: Option<&[u8]>) -> bool {
    bytes == Some(MAGIC.as_bytes())
}

/// Reads a whole file.
pub(super) fn read(bytes: &[u8]) -> Result<Index, JournalError> {
    let damaged = || JournalError::IndexDamaged("does not begin as one");
    let end = bytes.iter().take(128).position(|byte| *byte == b'\n');
    let (head, body) = end
        .map(|end| (&bytes[..end], &bytes[end + 1..]))
        .ok_or_else(damaged)?;
    let head = std::str::from_utf8(head)
        .ok()
        .and_then(|head| head.strip_prefix(MAGIC));
    let (version, hash) = head
        .and_then(|head| head.split_once(' '))
        .ok_or_else(damaged)?;
    match version.parse() {
        Ok(VERSION) => {}
        Ok(other) => return Err(JournalError::Version(other)),
        Err(_) => return Err(damaged()),
    }
    if blake3::hash(body).to_hex().as_str() != hash {
        return Err(JournalError::IndexDamaged("does not verify"));
    }
    let read: FirstIndex = serde_json::from_slice(body).map_err(JournalError::IndexSyntax)?;
    let index = converted(read).map_err(JournalError::IndexDamaged)?;
    match index.fault() {
        None => Ok(index),
        Some(fault) => Err(JournalError::IndexDamaged(fault)),
    }
}

fn converted(read: FirstIndex) -> Result<Index, &'static str> {
    let mut sets: Vec<DiskSet> = Vec::new();
    let disks = read.disks.clone();
    let mut entry = |old: FirstEntry| {
        if old.sizes.len() != disks.len() {
            return Err("has a point with other disks than the journal");
        }
        let set: Vec<_> = disks
            .iter()
            .zip(&old.sizes)
            .map(|(disk, size)| DiskExtent {
                id: disk.id,
                size: *size,
                joining: false,
            })
            .collect();
        let known = sets.iter().rfind(|known| known[..] == set[..]).cloned();
        let disks = known.unwrap_or_else(|| {
            let set: DiskSet = Arc::from(set);
            sets.push(set.clone());
            set
        });
        Ok(Entry {
            point: old.point,
            since: old.since,
            time: old.time,
            consistency: old.consistency,
            disks,
            root: old.root,
            stored: old.root,
            place: Place::Own,
            file_len: old.file_len,
            content: old.content,
            zeroes: old.zeroes,
        })
    };
    let mut index = Index::new(read.vm, read.seed, read.disks);
    if let Some(fault) = index.bases_fault() {
        return Err(fault);
    }
    index.lineage = read.lineage;
    index.base = match read.base {
        FirstBase::Seeding { parts, last } => Base::Seeding { parts, last },
        FirstBase::Seeded => Base::Seeded,
        FirstBase::Merging => Base::Merging,
        FirstBase::Point(point) => {
            let point = entry(point)?;
            check_entry(&index.disks, &point)?;
            Base::Point(point)
        }
    };
    if matches!(index.base, Base::Seeding { .. }) && !read.segments.is_empty() {
        return Err("has points above an unfinished seed");
    }
    for old in read.segments {
        let point = entry(old)?;
        index.apply(vec![Change::Point(point)])?;
    }
    for pin in read.pins {
        // Those of points that are gone were kept.
        if index.find(pin.point).is_some() {
            index.apply(vec![Change::Note(Note::Pin(pin))])?;
        }
    }
    Ok(index)
}
