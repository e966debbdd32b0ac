//! Pages of the log: how one is written, and how bytes that may be anything are read.

use block::Buffer;
use model::{DiskId, RelationshipId};
use uuid::Uuid;

/// Of a page, in bytes.
pub(super) const PAGE: usize = 4096;
/// What a page says about itself, in bytes.
const HEAD: usize = 128;
/// Words of its content.
pub(super) const WORDS: usize = (PAGE - HEAD) / 8;
/// How many regions a page has bits for.
pub(super) const REGIONS: u64 = 64 * WORDS as u64;

const MAGIC: [u8; 8] = *b"PLXINTE1";
/// Where the checksum is; it covers the rest of the page.
const CHECKSUM: std::ops::Range<usize> = 64..96;
/// Generations are below it: none that was counted, one commit after the other, gets there.
const GENERATIONS: u64 = 1 << 62;

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The disk.
    pub disk: DiskId,
    /// For which twin its changes are tracked.
    pub relationship: RelationshipId,
}

/// What a valid page says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) tag: Tag,
    pub(super) number: u64,
    pub(super) generation: u64,
    pub(super) words: Vec<u64>,
}

impl Content {
    /// The bytes of it.
    pub(super) fn seal(&self) -> Buffer {
        let mut page = [0; PAGE];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, self.tag.disk.0.as_bytes());
        put(24, self.tag.relationship.0.as_bytes());
        put(40, &self.number.to_le_bytes());
        put(48, &self.generation.to_le_bytes());
        for (at, word) in (HEAD..).step_by(8).zip(&self.words) {
            put(at, &word.to_le_bytes());
        }
        let checksum = checksum(&page);
        page[CHECKSUM].copy_from_slice(&checksum);
        Buffer::from_slice(&page)
    }

    /// What `page` says; none if it is not valid. `page` has [`PAGE`] bytes.
    pub(super) fn unseal(page: &[u8]) -> Option<Self> {
        if page.len() != PAGE || page[..8] != MAGIC || page[CHECKSUM] != checksum(page) {
            return None;
        }
        let word = |at: usize| page[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let uuid = |at: usize| Uuid::from_slice(&page[at..at + 16]).ok();
        let content = Self {
            tag: Tag {
                disk: DiskId(uuid(8)?),
                relationship: RelationshipId(uuid(24)?),
            },
            number: word(40)?,
            generation: word(48)?,
            words: (HEAD..PAGE).step_by(8).map_while(word).collect(),
        };
        (1..GENERATIONS)
            .contains(&content.generation)
            .then_some(content)
    }
}

fn checksum(page: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&page[..CHECKSUM.start]);
    hasher.update(&page[CHECKSUM.end..]);
    hasher.finalize().into()
}

/// Where copy `copy` (0 or 1) of page `number` lies, in bytes.
pub(super) fn place(number: usize, copy: usize) -> u64 {
    ((2 * number + copy) * PAGE) as u64
}

/// The newer of two copies of a page and which of them it is; none if neither is valid. They are
/// never of one generation, unless they say the same.
pub(super) fn newest(copies: [Option<Content>; 2]) -> Option<(usize, Content)> {
    match copies {
        [Some(first), Some(second)] if first.generation == second.generation => {
            (first == second).then_some((1, second))
        }
        [Some(first), Some(second)] if first.generation > second.generation => Some((0, first)),
        [_, Some(second)] => Some((1, second)),
        [Some(first), None] => Some((0, first)),
        [None, None] => None,
    }
}
