//! What went from one host to another.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use journal::SegmentReader;

/// Bytes that went over the loopback interface, headers included, both ways.
pub(crate) fn on_the_wire() -> Result<u64> {
    let counter = "/sys/class/net/lo/statistics/tx_bytes";
    let text = fs::read_to_string(counter).with_context(|| format!("cannot read {counter}"))?;
    Ok(text.trim().parse()?)
}

/// Content, before compression, of the points of a journal whose sequence number is above `after`. Those
/// that hold next to nothing lie in packs, and are not counted.
pub(crate) fn content(journal: &Path, after: u64) -> Result<u64> {
    let folder = journal.join("segments");
    let mut content = 0;
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let reader = SegmentReader::open(&entry?.path())?;
        let point = reader.header().point();
        if point.is_some_and(|point| point.sequence > after) {
            content += reader.summary().content.0;
        }
    }
    Ok(content)
}
