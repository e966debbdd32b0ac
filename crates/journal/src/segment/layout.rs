//! The fixed structures of a segment, to and from bytes. All numbers are little-endian.

use model::Bytes;

use super::{
    BLOCK, MAX_CONTENT, MAX_FRAME_BLOCKS, MAX_HEADER, Run, SegmentError, Site, Source, Summary,
    VERSION,
};
use crate::Root;

const MAGIC: &[u8; 8] = b"POLLUXSG";
const END_MAGIC: &[u8; 8] = b"POLLUXSE";

/// Before the header: magic, version, length of the header, hash of these and the header.
pub(super) const PRELUDE_LEN: usize = 48;
/// A frame's entry in the table.
pub(super) const ENTRY_LEN: usize = 48;
/// A run in the index.
pub(super) const RUN_LEN: usize = 20;
/// The footer.
pub(super) const FOOTER_LEN: usize = 128;

/// The bytes of `slice` from `at` on, as an array.
fn part<const N: usize>(slice: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&slice[at..at + N]);
    bytes
}

fn u32_at(slice: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(part(slice, at))
}

fn u64_at(slice: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(part(slice, at))
}

/// What stands before the header.
pub(super) struct Prelude {
    pub(super) header_len: u32,
    pub(super) hash: [u8; 32],
}

impl Prelude {
    /// Prelude of `header`, and its bytes.
    pub(super) fn of(header: &[u8]) -> Result<(Self, [u8; PRELUDE_LEN]), SegmentError> {
        let header_len = u32::try_from(header.len())
            .ok()
            .filter(|len| *len <= MAX_HEADER)
            .ok_or(SegmentError::HeaderTooLong(header.len() as u64))?;
        let mut bytes = [0; PRELUDE_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&header_len.to_le_bytes());
        let hash = Self::hash(&bytes, header);
        bytes[16..].copy_from_slice(&hash);
        Ok((Self { header_len, hash }, bytes))
    }

    pub(super) fn read(bytes: &[u8; PRELUDE_LEN]) -> Result<Self, SegmentError> {
        if &bytes[..8] != MAGIC {
            return Err(SegmentError::Foreign("it does not begin as one"));
        }
        match u32_at(bytes, 8) {
            VERSION => {}
            other => return Err(SegmentError::Version(other)),
        }
        let header_len = u32_at(bytes, 12);
        if header_len > MAX_HEADER {
            return Err(SegmentError::HeaderTooLong(header_len.into()));
        }
        Ok(Self {
            header_len,
            hash: part(bytes, 16),
        })
    }

    /// Hash of the prelude before the hash itself, and of the header.
    pub(super) fn hash(prelude: &[u8; PRELUDE_LEN], header: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&prelude[..16]).update(header);
        hasher.finalize().into()
    }
}

/// Where a frame lies, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameEntry {
    /// First byte in the file.
    pub(super) at: u64,
    /// Bytes in the file.
    pub(super) stored_len: u32,
    /// Bytes of content; stored raw if that is `stored_len` too: see `decode`.
    pub(super) content_len: u32,
    /// BLAKE3 of the bytes in the file.
    pub(super) hash: [u8; 32],
}

impl FrameEntry {
    pub(super) fn to_bytes(self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..8].copy_from_slice(&self.at.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.content_len.to_le_bytes());
        bytes[16..].copy_from_slice(&self.hash);
        bytes
    }

    /// Entry `number`, with lengths that are safe to allocate.
    pub(super) fn read(number: u32, bytes: &[u8]) -> Result<Self, SegmentError> {
        let entry = Self {
            at: u64_at(bytes, 0),
            stored_len: u32_at(bytes, 8),
            content_len: u32_at(bytes, 12),
            hash: part(bytes, 16),
        };
        let content_len = entry.content_len as usize;
        let fault = if content_len == 0 || content_len > MAX_CONTENT || content_len % BLOCK != 0 {
            "does not hold 1 to 16 blocks"
        } else if entry.stored_len == 0 || entry.stored_len > entry.content_len {
            "is empty or longer than its content"
        } else {
            return Ok(entry);
        };
        Err(SegmentError::Invalid {
            site: Site::Frame(number),
            fault,
        })
    }
}

impl Run {
    pub(super) fn to_bytes(self) -> [u8; RUN_LEN] {
        let (kind, skip, frame) = match self.source {
            Source::Frame { frame, skip } => (0, skip, frame),
            Source::Zero => (1, 0, 0),
        };
        let mut bytes = [0; RUN_LEN];
        bytes[..8].copy_from_slice(&self.block.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.disk.to_le_bytes());
        bytes[14] = kind;
        bytes[15] = skip;
        bytes[16..].copy_from_slice(&frame.to_le_bytes());
        bytes
    }

    /// Run `number` of the index, checked as far as it can be alone.
    pub(super) fn read(number: u32, bytes: &[u8]) -> Result<Self, SegmentError> {
        let invalid = |fault| {
            Err(SegmentError::Invalid {
                site: Site::Run(number),
                fault,
            })
        };
        let (kind, skip, frame) = (bytes[14], bytes[15], u32_at(bytes, 16));
        let run = Self {
            disk: u16::from_le_bytes(part(bytes, 12)),
            block: u64_at(bytes, 0),
            count: u32_at(bytes, 8),
            source: match kind {
                0 => Source::Frame { frame, skip },
                1 if skip == 0 && frame == 0 => Source::Zero,
                1 => return invalid("reads as zeroes and names a frame"),
                _ => return invalid("is of an unknown kind"),
            },
        };
        if run.count == 0 {
            return invalid("is empty");
        }
        if kind == 0 && u64::from(skip) + u64::from(run.count) > MAX_FRAME_BLOCKS.into() {
            return invalid("is longer than a frame");
        }
        if run.block.checked_add(run.count.into()).is_none() {
            return invalid("lies outside its disk");
        }
        Ok(run)
    }
}

/// The end of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footer {
    /// First byte of the frame table.
    pub(super) table: u64,
    /// First byte of the index.
    pub(super) index: u64,
    pub(super) summary: Summary,
}

impl Footer {
    pub(super) fn to_bytes(self) -> [u8; FOOTER_LEN] {
        let summary = &self.summary;
        let mut bytes = [0; FOOTER_LEN];
        bytes[..8].copy_from_slice(&summary.file_len.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.table.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.index.to_le_bytes());
        bytes[24..28].copy_from_slice(&summary.frames.to_le_bytes());
        bytes[28..32].copy_from_slice(&summary.runs.to_le_bytes());
        bytes[32..40].copy_from_slice(&summary.content.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&summary.zeroes.0.to_le_bytes());
        // 48..52: length of the signature, 52..56: nothing. Both zero in this version.
        bytes[56..88].copy_from_slice(&summary.root.0);
        let hash = blake3::hash(&bytes[..88]);
        bytes[88..120].copy_from_slice(hash.as_bytes());
        bytes[120..].copy_from_slice(END_MAGIC);
        bytes
    }

    /// Checked as far as it can be without the rest of the file.
    pub(super) fn read(bytes: &[u8; FOOTER_LEN]) -> Result<Self, SegmentError> {
        if &bytes[120..] != END_MAGIC {
            return Err(SegmentError::Foreign(
                "it does not end as one (cut short, or never finished)",
            ));
        }
        if blake3::hash(&bytes[..88]).as_bytes() != &bytes[88..120] {
            return Err(SegmentError::Damaged(Site::Footer));
        }
        let invalid = |fault| {
            Err(SegmentError::Invalid {
                site: Site::Footer,
                fault,
            })
        };
        if u32_at(bytes, 48) != 0 {
            return invalid("announces a signature, which this build cannot check");
        }
        if u32_at(bytes, 52) != 0 {
            return invalid("has bytes set that mean nothing");
        }
        let summary = Summary {
            root: Root(part(bytes, 56)),
            content: Bytes(u64_at(bytes, 32)),
            zeroes: Bytes(u64_at(bytes, 40)),
            file_len: Bytes(u64_at(bytes, 0)),
            frames: u32_at(bytes, 24),
            runs: u32_at(bytes, 28),
        };
        Ok(Self {
            table: u64_at(bytes, 8),
            index: u64_at(bytes, 16),
            summary,
        })
    }
}
