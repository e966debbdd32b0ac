//! The index of a journal, the root of a replica's folder; its hashes are put right first.

/// Magic numbers, and keys and values of notes.
pub const WORDS: &[&str] = &[
    "POLLUXJN",
    "PXJR",
    "\"start\"",
    "\"vm\"",
    "\"disks\"",
    "\"seed\"",
    "\"base\"",
    "\"next_pack\"",
    "\"seeding\"",
    "\"seeded\"",
    "\"merging\"",
    "\"merge-begins\"",
    "\"merge-ends\"",
    "\"point\"",
    "\"pin\"",
    "\"unpin\"",
    "\"lock\"",
    "\"until\"",
    "\"moved\"",
    "\"join\"",
    "\"joining\"",
    "\"change-sets\"",
    "\"lineage\"",
    "\"since\"",
    "\"parts\"",
    "\"reason\"",
    "4096",
];

/// One index.
pub fn run(data: &[u8]) {
    // Whatever is wrong is an error; what is right is written as it was read.
    let _error_or_canonical = journal::fuzzing::index(data);
}

/// Indexes of journals of every kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    journal::fuzzing::indexes()
}
