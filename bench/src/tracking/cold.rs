//! 4 KiB random writes, 32 at once, each the first in its region: what the write-intent log costs when
//! it is asked every time.
//!
//! The disk has a region for every write of a slice; in each the one block that is written was written
//! before, so that the file system has nothing to allocate, and the disk without tracking is as fast as
//! it can be. Each slice has a diskd of its own, and each with tracking a log in which nothing is armed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use diskd::config::Front;

use super::primary::Primary;
use crate::figures::Goal;
use crate::figures::{Rows, number};
use crate::load::{Load, Pace, Pattern};
use crate::scratch::Scratch;
use crate::servers::Diskd;
use crate::side::{Place, RUN, RUNS, Sample, Side, run_folder};

const LOAD: Load = Load {
    pattern: Pattern::ColdWrite,
    depth: 32,
    len: 64 << 30,
};

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("cold_vs_off") {
        return Ok(());
    }
    eprintln!("first writes in their regions");
    let folder = Scratch::new(&Place::disk()?.folder)?;
    let file = folder.path().join("disk.raw");
    lay_out(&file).with_context(|| format!("cannot write {}", file.display()))?;
    let (mut ratios, mut cpu, mut speeds, mut commits) = (vec![], vec![], vec![], vec![]);
    for _ in 0..RUNS {
        let (off, _) = slice(&file, folder.path(), false)?;
        let (on, commits_per_write) = slice(&file, folder.path(), true)?;
        ratios.push(on.speed() / off.speed());
        cpu.push(on.cpu() / off.cpu());
        speeds.push(on.speed());
        commits.push(commits_per_write);
    }
    let report = Goal::Reported;
    rows.add("cold_vs_off.disk", "x", Goal::AtLeast(0.8), &ratios);
    rows.add("cold_vs_off.cpu_per_op.disk", "x", report, &cpu);
    rows.add("cold_vs_off.iops.disk", "1/s", report, &speeds);
    rows.add("cold_vs_off.commits_per_write.disk", "x", report, &commits);
    Ok(())
}

/// A sparse file with one block in each region.
fn lay_out(path: &Path) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(LOAD.len)?;
    for region in 0..LOAD.len >> 20 {
        file.write_all_at(&[0x5a; 4096], region << 20)?;
    }
    Ok(file.sync_all()?)
}

fn slice(file: &Path, outbox: &Path, tracked: bool) -> Result<(Sample, f64)> {
    let run = run_folder()?;
    let diskd = Diskd::new(run.path(), file, Front::VhostUser)?;
    let primary = Primary::new(&diskd, outbox);
    if tracked {
        primary.prepare(&diskd)?;
    }
    let server = diskd.start()?;
    let mut control = server.control()?;
    if tracked {
        primary.go_on(&mut control)?;
    }
    let mut side = Side::of_server(server, LOAD)?;
    let mut pace = Pace::start(LOAD, RUN);
    let sample = side.run(&mut pace)?;
    let commits = match tracked {
        true => Primary::status(&mut control)?.commits,
        false => 0,
    };
    Ok((sample, number(commits) / number(pace.end().0)))
}
