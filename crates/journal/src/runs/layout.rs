//! The bytes of a run file's footer and of its list of segments.

use model::DiskId;

use super::RunError;
use super::entry::LEVELS;
use crate::Root;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Bytes of a segment in the list.
pub(super) const MEMBER: usize = 40;
/// Most segments.
pub(crate) const MAX_SEGMENTS: u32 = 1 << 24;
/// Most disks.
pub(super) const MAX_DISKS: usize = 128;
/// Most levels of pages.
pub(super) const MAX_HEIGHT: u8 = 6;

const MAGIC: &[u8; 8] = b"POLLUXRN";
const VERSION: u32 = 1;
const DISKS_AT: usize = 96;
const DISK: usize = 24;
const HASH_AT: usize = PAGE - 32;
const _: () = assert!(DISKS_AT + DISK * MAX_DISKS <= HASH_AT);

/// First bytes of a BLAKE3 hash.
pub(super) type PageHash = [u8; 16];

pub(super) fn page_hash(page: &[u8; PAGE]) -> PageHash {
    let mut hash = PageHash::default();
    hash.copy_from_slice(&blake3::hash(page).as_bytes()[..16]);
    hash
}

/// A segment that a run file covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// Sequence of its point.
    pub(crate) sequence: u64,
    pub(crate) root: Root,
}

impl Member {
    pub(super) fn to_bytes(self) -> [u8; MEMBER] {
        let mut bytes = [0; MEMBER];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..].copy_from_slice(&self.root.0);
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut root = Root([0; 32]);
        root.0.copy_from_slice(&bytes[8..MEMBER]);
        Self {
            sequence: u64_at(bytes, 0),
            root,
        }
    }
}

/// A disk, and the levels of pieces that the file has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunDisk {
    pub(crate) id: DiskId,
    /// A bit for each level.
    pub(crate) levels: u16,
}

/// The last page of a run file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    /// Pages before it.
    pub(super) pages: u32,
    pub(super) segments: u32,
    pub(super) entries: u64,
    /// The top page.
    pub(super) top: u32,
    /// Levels of pages above the leaves.
    pub(super) height: u8,
    pub(super) top_hash: PageHash,
    /// Hash of the list of segments.
    pub(super) list_hash: [u8; 32],
    pub(super) disks: Vec<RunDisk>,
}

/// Pages that a list of `segments` takes.
pub(super) fn list_pages(segments: u32) -> u64 {
    (u64::from(segments) * MEMBER as u64).div_ceil(PAGE as u64)
}

impl Footer {
    pub(super) fn to_bytes(&self) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.pages.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.segments.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.top.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.entries.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.top_hash);
        bytes[48..80].copy_from_slice(&self.list_hash);
        bytes[80] = self.height;
        bytes[81] = u8::try_from(self.disks.len()).unwrap_or(u8::MAX);
        let disks = bytes[DISKS_AT..HASH_AT].chunks_exact_mut(DISK);
        for (bytes, disk) in disks.zip(&self.disks) {
            bytes[..16].copy_from_slice(disk.id.0.as_bytes());
            bytes[16..18].copy_from_slice(&disk.levels.to_le_bytes());
        }
        Self::seal(&mut bytes);
        bytes
    }

    /// Puts the hash right.
    pub(super) fn seal(bytes: &mut [u8; PAGE]) {
        let hash = blake3::hash(&bytes[..HASH_AT]);
        bytes[HASH_AT..].copy_from_slice(hash.as_bytes());
    }

    /// The footer of a file of `len` bytes.
    pub(super) fn read(bytes: &[u8; PAGE], len: u64) -> Result<Self, RunError> {
        let damaged = |fault| Err(RunError::Damaged(fault));
        if &bytes[..8] != MAGIC {
            return damaged("it does not end as one");
        }
        if blake3::hash(&bytes[..HASH_AT]).as_bytes() != &bytes[HASH_AT..] {
            return damaged("its footer does not verify");
        }
        match u32_at(bytes, 8) {
            VERSION => {}
            other => return Err(RunError::Version(other)),
        }
        let disks = usize::from(bytes[81]);
        if disks > MAX_DISKS {
            return damaged("it names too many disks");
        }
        let footer = Self {
            pages: u32_at(bytes, 12),
            segments: u32_at(bytes, 16),
            entries: u64_at(bytes, 24),
            top: u32_at(bytes, 20),
            height: bytes[80],
            top_hash: part(bytes, 32),
            list_hash: part(bytes, 48),
            disks: bytes[DISKS_AT..HASH_AT]
                .chunks_exact(DISK)
                .take(disks)
                .map(|bytes| RunDisk {
                    id: DiskId(uuid_of(bytes)),
                    levels: u16::from_le_bytes([bytes[16], bytes[17]]),
                })
                .collect(),
        };
        if footer.to_bytes() != *bytes {
            return damaged("its footer has bytes set that mean nothing");
        }
        if (u64::from(footer.pages) + 1) * PAGE as u64 != len {
            return damaged("it states another length than it has");
        }
        if footer.segments > MAX_SEGMENTS || footer.height >= MAX_HEIGHT {
            return damaged("it states more than the format holds");
        }
        if !footer.disks.is_sorted_by(|a, b| a.id < b.id) {
            return damaged("it names its disks out of order");
        }
        if footer.disks.iter().any(|disk| disk.levels >> LEVELS != 0) {
            return damaged("it states levels that there are not");
        }
        // The top page is the last one that is written.
        if u64::from(footer.top) < list_pages(footer.segments)
            || footer.top.checked_add(1) != Some(footer.pages)
        {
            return damaged("it has no top page");
        }
        if footer.entries == 0 && footer.height != 0 {
            return damaged("it has pages above none");
        }
        Ok(footer)
    }
}

fn uuid_of(bytes: &[u8]) -> uuid::Uuid {
    uuid::Uuid::from_bytes(part(bytes, 0))
}

pub(super) fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(part(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(part(bytes, at))
}
