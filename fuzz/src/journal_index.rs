//! The index of a journal, the root of a replica's folder; its hash is put right first.

/// Keys and values.
pub const WORDS: &[&str] = &[
    "\"vm\"",
    "\"disks\"",
    "\"seed\"",
    "\"base\"",
    "\"seeding\"",
    "\"seeded\"",
    "\"merging\"",
    "\"point\"",
    "\"segments\"",
    "\"pins\"",
    "\"lineage\"",
    "\"since\"",
    "\"root\"",
    "\"sizes\"",
    "\"time\"",
    "\"parts\"",
    "\"reason\"",
    "\"zeroes\"",
    "\"file_len\"",
    "4096",
];

/// One index without its first line.
pub fn run(data: &[u8]) {
    // Whatever is wrong is an error; what is right is written as it was read.
    let _error_or_canonical = journal::fuzzing::index(data);
}

/// Indexes of journals of every kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    journal::fuzzing::indexes()
}
