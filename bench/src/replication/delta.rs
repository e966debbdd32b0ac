//! What is shipped of a large disk of which little changed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use journal::SegmentReader;
use model::BLOCK_SIZE;

use super::pair::Pair;
use crate::figures::{Goal, Rows, number};
use crate::load::{Client, Load, Pace, Pattern};
use crate::shipped::on_the_wire;

/// Bytes of the disk, which is sparse.
const DISK: u64 = 100 << 30;
const LOAD: Load = Load {
    pattern: Pattern::RandWrite,
    depth: 32,
    len: DISK,
};
/// Of it, bytes that change.
const CHANGED: u64 = DISK / 100;

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("delta") {
        return Ok(());
    }
    let mut pair = Pair::new("delta")?;
    let disk = pair.folder().join("disk.raw");
    File::create(&disk)?.set_len(DISK)?;
    pair.create(&disk)?;
    eprintln!("copying an empty disk of {} GiB", DISK >> 30);
    pair.enable("3600s")?;
    pair.wait_for_new_point(&[])?;
    eprintln!("changing {} MiB of it", CHANGED >> 20);
    let mut pace = Pace::of(LOAD, CHANGED / BLOCK_SIZE).noted();
    pair.client(LOAD)?.run(&mut pace)?;
    let blocks: HashSet<&u64> = pace.issued().iter().collect();
    let changed = blocks.len() as u64 * BLOCK_SIZE;
    let before = pair.points()?;
    let wire = on_the_wire()?;
    // The next point is due in an hour, or now.
    pair.castor.pollux(&["replica", "pause", super::pair::VM])?;
    pair.castor
        .pollux(&["replica", "resume", super::pair::VM])?;
    pair.wait_for_new_point(&before)?;
    let wire = on_the_wire()? - wire;
    let segment = largest(&pair.journal().join("segments"))?;
    let summary = *SegmentReader::open(&segment)?.summary();
    ensure!(summary.content.0 >= changed, "blocks are missing");
    // As if nothing had been compressed: content, and what says where it belongs.
    let (frames, runs) = (u64::from(summary.frames), u64::from(summary.runs));
    let plain = summary.content.0 - summary.zeroes.0 + 48 * frames + 20 * runs;
    let ratio = number(plain) / number(changed);
    rows.add("delta_bytes_ratio", "x", Goal::AtMost(1.02), &[ratio]);
    let ratio = number(wire) / number(changed);
    rows.add("delta_wire_ratio", "x", Goal::Reported, &[ratio]);
    Ok(())
}

/// The largest file in `folder`.
fn largest(folder: &Path) -> Result<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    files.sort();
    let (_, path) = files.pop().context("the journal has no segment")?;
    Ok(path)
}
