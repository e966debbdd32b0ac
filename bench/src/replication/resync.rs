//! What is shipped after the primary lost its power, over what the twin lacked; and how much had to be read
//! and hashed to find that out.

use std::collections::HashSet;
use std::fs::File;

use anyhow::{Context, Result};
use model::BLOCK_SIZE;
use pollux_tests::json_u64;

use super::pair::{Pair, VM, bytes};
use crate::figures::{Goal, Rows, number};
use crate::load::{Client, Load, Pace, Pattern};
use crate::shipped::content;

/// Bytes of the disk, of which only what the guest writes to takes space.
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
    File::create(&disk)?.set_len(DISK)?;
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
        let points = pair.points()?;
        pair.castor.start_daemon()?;
        pair.castor.pollux(&["replica", "resume", VM])?;
        pair.wait_for_new_point(&points)?;
        pair.wait_until_sent()?;
        let status = pair.status()?;
        let newest = points.last().context("the twin has no point")?;
        let shipped = content(&pair.journal(), json_u64(newest, "/id/sequence")?)?;
        ratios.push(number(shipped) / number(changed));
        read.push(number(bytes(&status, "/compared")?) / number(changed));
    }
    let goal = Goal::AtMost(1.02);
    rows.add("resync_power_cut_ratio", "x", goal, &ratios);
    // What is hashed is read for that, once.
    let name = "resync_power_cut_read_and_hashed_per_changed";
    rows.add(name, "x", Goal::Reported, &read);
    Ok(())
}
