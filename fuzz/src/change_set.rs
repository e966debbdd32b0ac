//! A change set of a journal; its hash is put right first.

/// One file.
pub fn run(data: &[u8]) {
    // Whatever is wrong is an error; what is right has one form.
    let _error_or_read = journal::fuzzing::change_set(data);
}

/// Sets of some disks.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    journal::fuzzing::change_sets()
}
