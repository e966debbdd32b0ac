//! The file of a change set: to and from bytes that nobody vouches for.

use model::{BLOCK_SIZE, Bytes, DiskId, PointId, SeedId, Since, TermId};
use uuid::Uuid;

use super::gather::MAX_UNIT;
use super::{ChangedDisk, Changes, MAX_EXTENTS, MAX_SET_DISKS};

const MAGIC: &[u8; 8] = b"POLLUXCH";
const VERSION: u32 = 1;
const HEAD: usize = 64;
const DISK: usize = 40;
const HASH: usize = 32;
const SEED: u8 = 0;
const POINT: u8 = 1;

/// Longest file in bytes.
pub(crate) const MAX_LEN: usize = HEAD + MAX_SET_DISKS * DISK + MAX_EXTENTS * 2 * MAX_NUMBER + HASH;

/// Longest number in bytes: 7 bits in each.
const MAX_NUMBER: usize = 10;

/// Largest disk in bytes, as in a segment.
const MAX_DISK: u64 = 64 << 40;

/// Why a file is no change set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// It does not begin as one, or is cut short.
    #[error("it is no change set")]
    Foreign,
    /// Made by another version.
    #[error("it has format version {0}; this build reads version {VERSION}")]
    Version(u32),
    /// It is not as it was written.
    #[error("it is damaged: it does not verify")]
    Damaged,
    /// It contradicts the format.
    #[error("it is not valid: it {0}")]
    Invalid(&'static str),
}

impl Changes {
    /// The whole file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + self.disks.len() * DISK + HASH);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        let disks = u16::try_from(self.disks.len()).expect("at most MAX_SET_DISKS");
        out.extend_from_slice(&disks.to_le_bytes());
        let (kind, id, number) = match self.since {
            Since::Seed { seed, parts } => (SEED, seed.0, parts),
            Since::Point(point) => (POINT, point.term.0, point.sequence),
        };
        out.extend_from_slice(&[kind, 0]);
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(self.point.term.0.as_bytes());
        out.extend_from_slice(&self.point.sequence.to_le_bytes());
        let mut lists = Vec::new();
        for disk in &self.disks {
            let start = lists.len();
            let mut end = 0;
            for extent in &disk.extents {
                put(&mut lists, extent.start - end);
                put(&mut lists, extent.end - extent.start - 1);
                end = extent.end;
            }
            let count = u32::try_from(disk.extents.len()).expect("at most MAX_EXTENTS");
            out.extend_from_slice(disk.id.0.as_bytes());
            out.extend_from_slice(&disk.size.0.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
            out.extend_from_slice(&[disk.unit, 0, 0, 0]);
            out.extend_from_slice(&((lists.len() - start) as u64).to_le_bytes());
        }
        out.extend_from_slice(&lists);
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    /// Reads a whole file. Allocates no more than it says in as many bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, SetError> {
        let end = bytes.len().checked_sub(HASH).filter(|end| *end >= HEAD);
        let (body, hash) = bytes.split_at(end.ok_or(SetError::Foreign)?);
        if &body[..8] != MAGIC {
            return Err(SetError::Foreign);
        }
        match u32::from_le_bytes(part(body, 8)) {
            VERSION => {}
            other => return Err(SetError::Version(other)),
        }
        if bytes.len() > MAX_LEN {
            return Err(SetError::Invalid("is too long"));
        }
        if blake3::hash(body).as_bytes() != hash {
            return Err(SetError::Damaged);
        }
        let count = usize::from(u16::from_le_bytes(part(body, 12)));
        let (id, number) = (Uuid::from_bytes(part(body, 16)), u64_at(body, 32));
        let since = match (body[14], body[15]) {
            (SEED, 0) => Since::Seed {
                seed: SeedId(id),
                parts: number,
            },
            (POINT, 0) => Since::Point(PointId {
                term: TermId(id),
                sequence: number,
            }),
            _ => return Err(SetError::Invalid("begins nowhere")),
        };
        let point = PointId {
            term: TermId(Uuid::from_bytes(part(body, 40))),
            sequence: u64_at(body, 56),
        };
        if count > MAX_SET_DISKS {
            return Err(SetError::Invalid("has too many disks"));
        }
        let lists = HEAD + count * DISK;
        let table = body.get(HEAD..lists).ok_or(SetError::Foreign)?;
        let mut rest = &body[lists..];
        let (mut disks, mut extents): (Vec<ChangedDisk>, usize) = (Vec::with_capacity(count), 0);
        for entry in table.chunks_exact(DISK) {
            let disk = read_disk(entry, &mut rest, &mut extents)?;
            if disks.iter().any(|other| other.id == disk.id) {
                return Err(SetError::Invalid("has a disk twice"));
            }
            disks.push(disk);
        }
        if !rest.is_empty() {
            return Err(SetError::Invalid("has bytes that mean nothing"));
        }
        Ok(Self {
            since,
            point,
            disks,
        })
    }
}

/// The disk of a table entry, whose list is the first of `rest`. `before` counts the extents.
fn read_disk(entry: &[u8], rest: &mut &[u8], before: &mut usize) -> Result<ChangedDisk, SetError> {
    let size = u64_at(entry, 16);
    let count = u32::from_le_bytes(part(entry, 24)) as usize;
    let unit = entry[28];
    if size == 0 || size % BLOCK_SIZE != 0 || size > MAX_DISK {
        return Err(SetError::Invalid("has a disk with a size that cannot be"));
    }
    if unit > MAX_UNIT || entry[29..32] != [0; 3] {
        return Err(SetError::Invalid("has a disk with units that cannot be"));
    }
    *before = before.saturating_add(count);
    if *before > MAX_EXTENTS {
        return Err(SetError::Invalid("has too many extents"));
    }
    let len = usize::try_from(u64_at(entry, 32)).unwrap_or(usize::MAX);
    let (mut list, after) = rest
        .split_at_checked(len)
        .ok_or(SetError::Invalid("is cut short"))?;
    // Two bytes at least for each: not more is allocated than there is.
    if count > list.len() / 2 {
        return Err(SetError::Invalid("has fewer extents than it says"));
    }
    let units = (size / BLOCK_SIZE).div_ceil(1 << unit);
    let mut extents = Vec::with_capacity(count);
    let mut end = 0_u64;
    for number in 0..count {
        let (gap, more) = (take(&mut list)?, take(&mut list)?);
        let start = end.checked_add(gap).filter(|_| gap > 0 || number == 0);
        let next = start.and_then(|start| start.checked_add(more)?.checked_add(1));
        match (start, next) {
            (Some(start), Some(next)) if next <= units => {
                extents.push(start..next);
                end = next;
            }
            _ => return Err(SetError::Invalid("has an extent that cannot be there")),
        }
    }
    if !list.is_empty() {
        return Err(SetError::Invalid("has more extents than it says"));
    }
    *rest = after;
    Ok(ChangedDisk {
        id: DiskId(Uuid::from_bytes(part(entry, 0))),
        size: Bytes(size),
        unit,
        extents,
    })
}

fn part<const N: usize>(slice: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&slice[at..at + N]);
    bytes
}

fn u64_at(slice: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(part(slice, at))
}

fn put(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    into.push(number.to_le_bytes()[0]);
}

/// The one form of a number that [`put`] writes.
fn take(bytes: &mut &[u8]) -> Result<u64, SetError> {
    let bad = SetError::Invalid("has a number that is not written as it should be");
    let (mut number, mut shift) = (0_u64, 0);
    loop {
        let Some((byte, rest)) = bytes.split_first() else {
            return Err(bad);
        };
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(bad);
        }
        number |= bits << shift;
        if *byte < 0x80 {
            let is_shortest = *byte > 0 || shift == 0;
            return if is_shortest { Ok(number) } else { Err(bad) };
        }
        shift += 7;
        if shift > 63 {
            return Err(bad);
        }
    }
}

/// Puts the hash right, for the fuzz target.
pub(crate) fn forge(bytes: &mut [u8]) {
    if let Some(end) = bytes.len().checked_sub(HASH) {
        let hash = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(hash.as_bytes());
    }
}
