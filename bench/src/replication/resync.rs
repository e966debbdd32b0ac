//! What is shipped after the primary lost its power, over what the twin lacked.

use std::collections::HashSet;
use std::fs;

use anyhow::{Context, Result};
use model::BLOCK_SIZE;

use super::pair::{Pair, VM, bytes};
use crate::figures::{Goal, Rows, number};
use crate::load::{Client, Load, Pace, Pattern};

const DISK: u64 = 4 << 30;
/// The guest writes to this much of its disk.
const LOAD: Load = Load {
    pattern: Pattern::RandWrite,
    depth: 32,
    len: 256 << 20,
};
/// Writes that the twin has, and those that it lacks.
const SENT: u64 = 32768;
const UNSENT: u64 = 8192;
const RUNS: usize = 3;

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("resync_power_cut") {
        return Ok(());
    }
    let mut pair = Pair::new("resync")?;
    let disk = pair.folder().join("disk.raw");
    crate::side::fill(&disk, DISK)?;
    pair.create(&disk)?;
    pair.enable("1s")?;
    pair.wait_for_new_point(&[])?;
    let (mut ratios, mut read) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        eprintln!("power cut {}", run + 1);
        pair.wait_until_sent()?;
        pair.client(LOAD)?.run(&mut Pace::of(LOAD, SENT))?;
        pair.wait_until_sent()?;
        pair.castor.pollux(&["replica", "pause", VM])?;
        let mut pace = Pace::of(LOAD, UNSENT).noted();
        pair.client(LOAD)?.run(&mut pace)?;
        let blocks: HashSet<&u64> = pace.issued().iter().collect();
        let changed = blocks.len() as u64 * BLOCK_SIZE;
        pair.castor.kill_everything()?;
        pair.castor.lose_memory()?;
        let before = received(&pair)?;
        pair.castor.start_daemon()?;
        let points = pair.points()?;
        pair.castor.pollux(&["replica", "resume", VM])?;
        pair.wait_for_new_point(&points)?;
        pair.wait_until_sent()?;
        let shipped = received(&pair)? - before;
        let status = pair.status()?;
        ratios.push(number(shipped) / number(changed));
        read.push(number(bytes(&status, "/compared")?) / number(changed));
    }
    let goal = Goal::AtMost(1.02);
    rows.add("resync_power_cut_ratio", "x", goal, &ratios);
    let name = "resync_power_cut_hashed_per_changed";
    rows.add(name, "x", Goal::Reported, &read);
    Ok(())
}

/// Content of all points that the twin took in, before compression.
fn received(pair: &Pair) -> Result<u64> {
    let folder = pair.journal().join("segments");
    let mut content = 0;
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let reader = journal::SegmentReader::open(&entry?.path())?;
        content += reader.summary().content.0;
    }
    Ok(content)
}
