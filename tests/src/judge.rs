//! What a recovery point proves about the guest's records.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use testkit::workload::{Cut, Verified, verify};

/// Judges a raw image of the workload's disk.
///
/// # Errors
/// What is wrong with it, and where.
pub fn judge(image: &Path, cut: Cut) -> Result<Verified> {
    let file = File::open(image)?;
    let len = file.metadata()?.len();
    verify(len, cut, |offset, block| file.read_exact_at(block, offset))
        .with_context(|| format!("the records in {} are not right", image.display()))
}
