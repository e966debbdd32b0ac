//! The index of a journal: the root of its folder.
//!
//! What it does not name does not exist. It is replaced as a whole, so that
//! each change of the journal happens at one instant, and it says its own hash.
//! (It grows by some 400 bytes a point; a log of changes takes over when
//! journals keep tens of thousands.)

use durable::Folder;
use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, MAX_DISKS, PointId, SeedId, Since, VmId};
use serde::{Deserialize, Serialize};

use crate::{Consistency, JournalError, Root};

/// Its name.
pub(crate) const INDEX: &str = "index";
/// The folder of the segments.
pub(crate) const SEGMENTS: &str = "segments";

const VERSION: u32 = 1;
/// Longest index in bytes: more than 500,000 points.
const MAX_INDEX: u64 = 256 << 20;
/// `pollux-journal 1 `, the hash, a line feed.
const HEAD: &str = "pollux-journal ";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Index {
    pub(crate) vm: VmId,
    pub(crate) disks: Vec<BaseDisk>,
    pub(crate) seed: SeedId,
    pub(crate) base: Base,
    /// That of the newest segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lineage: Option<Lineage>,
    /// Those above the base, the oldest first.
    pub(crate) segments: Vec<Entry>,
    pub(crate) pins: Vec<Pin>,
}

/// A disk and the size of its base file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BaseDisk {
    pub(crate) id: DiskId,
    pub(crate) size: Bytes,
}

impl BaseDisk {
    pub(crate) fn file(&self) -> String {
        format!("base-{}.raw", self.id)
    }
}

/// What the base files hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Base {
    /// The first `parts` parts of the initial replication, and perhaps some of the next one.
    Seeding {
        parts: u64,
        /// Root of the last of them.
        last: Option<Root>,
    },
    /// The initial replication, which is no point.
    Seeded,
    /// A point.
    Point(Entry),
    /// A mixture of what it held before and of the oldest segment, which hides the difference.
    Merging,
}

/// A segment, or the point that the base holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) point: PointId,
    pub(crate) since: Since,
    pub(crate) time: Timestamp,
    pub(crate) consistency: Consistency,
    /// Of each disk, in the journal's order.
    pub(crate) sizes: Vec<Bytes>,
    pub(crate) root: Root,
    pub(crate) file_len: Bytes,
    pub(crate) content: Bytes,
    pub(crate) zeroes: Bytes,
}

impl Entry {
    /// Name of the segment's file in the journal's folder.
    pub(crate) fn file(&self) -> String {
        format!("{SEGMENTS}/{}", self.file_name())
    }

    pub(crate) fn file_name(&self) -> String {
        format!("{}.seg", self.root)
    }
}

/// A point that must stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pin {
    pub(crate) point: PointId,
    pub(crate) reason: String,
}

impl Index {
    /// The points with their positions in the list of segments (none: the base), oldest first.
    pub(crate) fn points(&self) -> impl Iterator<Item = (Option<usize>, &Entry)> {
        let base = match &self.base {
            Base::Point(entry) => Some((None, entry)),
            Base::Seeding { .. } | Base::Seeded | Base::Merging => None,
        };
        let segments = self.segments.iter().enumerate();
        base.into_iter()
            .chain(segments.map(|(position, entry)| (Some(position), entry)))
    }

    pub(crate) fn find(&self, point: PointId) -> Option<(Option<usize>, &Entry)> {
        self.points().find(|(_, entry)| entry.point == point)
    }

    pub(crate) fn newest(&self) -> Option<&Entry> {
        self.points().last().map(|(_, entry)| entry)
    }

    pub(crate) fn load(folder: &dyn Folder) -> Result<Self, JournalError> {
        let failed = |source| JournalError::io("read", INDEX, source);
        let file = match folder.open_read(INDEX) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(JournalError::NoIndex);
            }
            other => other.map_err(failed)?,
        };
        let len = file.size().map_err(failed)?;
        let len = match usize::try_from(len) {
            Ok(bytes) if len <= MAX_INDEX => bytes,
            _ => return Err(JournalError::IndexDamaged("is too long")),
        };
        let mut bytes = vec![0; len];
        file.read_at(0, &mut bytes).map_err(failed)?;
        Self::from_bytes(&bytes)
    }

    pub(crate) fn store(&self, folder: &dyn Folder) -> Result<(), JournalError> {
        durable::replace_in(folder, INDEX, &self.to_bytes()?)
            .map_err(|source| JournalError::io("replace", INDEX, source))
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, JournalError> {
        let body = serde_json::to_vec(self).map_err(JournalError::IndexSyntax)?;
        Ok(Self::with_hash(&body))
    }

    pub(crate) fn with_hash(body: &[u8]) -> Vec<u8> {
        let hash = blake3::hash(body).to_hex();
        let mut bytes = format!("{HEAD}{VERSION} {hash}\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, JournalError> {
        let damaged = || JournalError::IndexDamaged("does not begin as one");
        let end = bytes.iter().take(128).position(|byte| *byte == b'\n');
        let (head, body) = end
            .map(|end| (&bytes[..end], &bytes[end + 1..]))
            .ok_or_else(damaged)?;
        let head = std::str::from_utf8(head)
            .ok()
            .and_then(|head| head.strip_prefix(HEAD));
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
        let index: Self = serde_json::from_slice(body).map_err(JournalError::IndexSyntax)?;
        match index.fault() {
            None => Ok(index),
            Some(fault) => Err(JournalError::IndexDamaged(fault)),
        }
    }

    /// What contradicts what the rest of the code relies on.
    fn fault(&self) -> Option<&'static str> {
        let whole = |size: &Bytes| size.0 > 0 && size.0 % BLOCK_SIZE == 0;
        let sizes = |entry: &Entry| {
            let pairs = entry.sizes.iter().zip(&self.disks);
            entry.sizes.len() == self.disks.len()
                && pairs
                    .into_iter()
                    .all(|(size, disk)| whole(size) && disk.size.0 <= size.0)
        };
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            Some("names no disk or too many")
        } else if !self.disks.iter().all(|disk| whole(&disk.size)) {
            Some("has a disk whose size is no multiple of 4 KiB")
        } else if !self.points().all(|(_, entry)| sizes(entry)) {
            Some("has a point whose disks are smaller than the base")
        } else {
            match self.base {
                Base::Seeding { .. } => {
                    (!self.segments.is_empty()).then_some("has points above an unfinished seed")
                }
                Base::Seeded | Base::Merging => self
                    .segments
                    .is_empty()
                    .then_some("misses the segment above its base"),
                Base::Point(_) => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index {
            vm: VmId::random(),
            disks: vec![BaseDisk {
                id: DiskId::random(),
                size: Bytes(8192),
            }],
            seed: SeedId::random(),
            base: Base::Seeding {
                parts: 3,
                last: None,
            },
            lineage: None,
            segments: vec![],
            pins: vec![],
        }
    }

    #[test]
    fn every_flipped_bit_of_an_index_is_found() {
        let index = index();
        let bytes = index.to_bytes().expect("made");
        assert_eq!(Index::from_bytes(&bytes).expect("good"), index);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(Index::from_bytes(&flipped).is_err(), "byte {at}, bit {bit}");
            }
            assert!(Index::from_bytes(&bytes[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn an_index_that_contradicts_itself_is_refused() {
        let mut bad = index();
        bad.base = Base::Merging;
        assert!(Index::from_bytes(&bad.to_bytes().expect("made")).is_err());
        let mut bad = index();
        bad.disks[0].size = Bytes(4095);
        assert!(Index::from_bytes(&bad.to_bytes().expect("made")).is_err());
    }
}
