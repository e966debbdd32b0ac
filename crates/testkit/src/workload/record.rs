//! The blocks that the workload writes: records, commit records, and where they lie.

/// Bytes in a record, and in a commit record.
pub const BLOCK: usize = 4096;
/// Two commit records come first and are written in turn.
pub const FIRST_SLOT_BLOCK: u64 = 2;

const RECORD_MAGIC: &[u8; 8] = b"PLXREC01";
const COMMIT_MAGIC: &[u8; 8] = b"PLXCMT01";
const HASH_AT: usize = BLOCK - 32;
const FILL_AT: usize = 48;

/// Tells one run of the workload from another on the same disk.
pub type RunId = [u8; 16];

/// How far a run came: the newest valid one on the disk counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The run.
    pub run: RunId,
    /// Counts up with every commit record on this disk, whatever the run.
    pub generation: u64,
    /// Records 1 to this number are durable.
    pub committed: u64,
    /// Records in a batch.
    pub batch: u64,
    /// How many records are in flight at once.
    pub writers: u64,
    /// Slots for records.
    pub slots: u64,
}

/// A block of zeroes or words that can be written with `O_DIRECT`.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(super) struct Block(pub(super) [u8; BLOCK]);

impl Block {
    pub(super) fn zeroed() -> Self {
        Self([0; BLOCK])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn seal(&mut self) {
        let hash = blake3::hash(&self.0[..HASH_AT]);
        self.put(HASH_AT, hash.as_bytes());
    }
}

fn word(block: &[u8; BLOCK], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn is_sealed(block: &[u8; BLOCK], magic: &[u8; 8]) -> bool {
    block[..8] == magic[..] && *blake3::hash(&block[..HASH_AT]).as_bytes() == block[HASH_AT..]
}

fn run_of(block: &[u8; BLOCK]) -> RunId {
    let mut run = [0; 16];
    run.copy_from_slice(&block[8..24]);
    run
}

impl Commit {
    pub(super) fn to_block(self) -> Block {
        let mut block = Block::zeroed();
        block.put(0, COMMIT_MAGIC);
        block.put(8, &self.run);
        let words = [
            self.generation,
            self.committed,
            self.batch,
            self.writers,
            self.slots,
        ];
        for (n, word) in words.iter().enumerate() {
            block.put(24 + 8 * n, &word.to_le_bytes());
        }
        block.seal();
        block
    }

    /// None if the block is none, or its numbers are nonsense.
    pub(super) fn from_block(block: &[u8; BLOCK]) -> Option<Self> {
        let commit = Self {
            run: run_of(block),
            generation: word(block, 24),
            committed: word(block, 32),
            batch: word(block, 40),
            writers: word(block, 48),
            slots: word(block, 56),
        };
        let sound = commit.batch > 0
            && commit.slots >= commit.batch
            && commit.slots < u64::MAX / BLOCK as u64 - FIRST_SLOT_BLOCK
            && commit.committed < u64::MAX / 2;
        (is_sealed(block, COMMIT_MAGIC) && sound).then_some(commit)
    }

    /// The slot of record `number`, which counts from 1.
    pub(super) fn slot(&self, number: u64) -> u64 {
        permute((number - 1) % self.slots, self.slots, &self.run)
    }
}

/// A record as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) run: RunId,
    pub(super) number: u64,
    pub(super) slot: u64,
    /// Microseconds since 1970 by the guest's clock.
    pub(super) time: u64,
}

impl Record {
    pub(super) fn to_block(self) -> Block {
        let mut block = Block::zeroed();
        block.put(0, RECORD_MAGIC);
        block.put(8, &self.run);
        block.put(24, &self.number.to_le_bytes());
        block.put(32, &self.slot.to_le_bytes());
        block.put(40, &self.time.to_le_bytes());
        // Content that does not compress, different in every record.
        let mut state = key(&self.run) ^ self.number;
        for at in (FILL_AT..HASH_AT).step_by(8) {
            state = mix(state);
            block.put(at, &state.to_le_bytes());
        }
        block.seal();
        block
    }

    pub(super) fn from_block(block: &[u8; BLOCK]) -> Option<Self> {
        is_sealed(block, RECORD_MAGIC).then(|| Self {
            run: run_of(block),
            number: word(block, 24),
            slot: word(block, 32),
            time: word(block, 40),
        })
    }
}

/// A permutation of 0 to `size`: a Feistel network over the next even power of two, walked
/// until it falls inside.
fn permute(index: u64, size: u64, run: &RunId) -> u64 {
    let half = (64 - (size.max(4) - 1).leading_zeros()).div_ceil(2);
    let mask = (1 << half) - 1;
    let key = key(run);
    let mut value = index;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round in 0..4 {
            (left, right) = (
                right,
                left ^ (mix(right ^ key.rotate_left(round * 16)) & mask),
            );
        }
        value = left << half | right;
        if value < size {
            return value;
        }
    }
}

fn key(run: &RunId) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&run[..8]);
    u64::from_le_bytes(bytes)
}

/// splitmix64.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_used_once_before_any_is_used_again() {
        for size in [1, 2, 3, 5, 64, 1000] {
            let mut seen: Vec<u64> = (0..size).map(|n| permute(n, size, &[7; 16])).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..size).collect::<Vec<_>>());
        }
    }

    #[test]
    fn one_flipped_bit_anywhere_makes_it_no_record() {
        let record = Record {
            run: [1; 16],
            number: 5,
            slot: 9,
            time: 3,
        };
        let block = record.to_block();
        assert_eq!(Record::from_block(&block.0), Some(record));
        for at in (0..BLOCK).step_by(61) {
            let mut bad = block.clone();
            bad.0[at] ^= 4;
            assert_eq!(Record::from_block(&bad.0), None, "byte {at}");
        }
    }
}
