//! Initial replication of a disk, beside `qemu-img convert` over NBD with TLS.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};

use super::content::mixed;
use super::pair::Pair;
use super::peer::{Credentials, Order, Server};
use crate::figures::{Goal, Rows, number};
use crate::shipped::on_the_wire;

/// Bytes of the disk; half of them zeroes, a quarter compressible.
const DISK: u64 = 10 << 30;
const RUNS: usize = 3;

/// What a copy took.
#[derive(Debug, Clone, Copy)]
struct Taken {
    seconds: f64,
    wire: f64,
}

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("initial") {
        return Ok(());
    }
    let mut pair = Pair::new("initial")?;
    let disk = pair.folder().join("disk.raw");
    eprintln!("writing a disk of {} GiB", DISK >> 30);
    let nonzero = number(mixed(&disk, DISK)?);
    let credentials = Credentials::make(pair.folder())?;
    let copy = pair.folder().join("copy.raw");
    pair.create(&disk)?;
    let (mut ratios, mut own, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let mut orders = vec![Order::Usual, Order::Any];
    for run in 0..RUNS {
        eprintln!("initial replication, run {} of {RUNS}", run + 1);
        let pollux = timed(&disk, || {
            // No second point within the measurement.
            pair.enable("3600s")?;
            pair.wait_for_new_point(&[])
        })?;
        pair.remove()?;
        let server = Server::start(&disk, &credentials)?;
        let mut all = Vec::new();
        for order in orders {
            eprintln!("  qemu-img convert, {order:?} order");
            all.push((
                order,
                timed(&disk, || server.copy(&credentials, order, &copy))?,
            ));
            fs::remove_file(&copy)?;
        }
        let best = all
            .into_iter()
            .min_by(|(_, one), (_, other)| one.seconds.total_cmp(&other.seconds));
        let (order, peer) = best.context("it copied nothing")?;
        // The one that was faster at first.
        orders = vec![order];
        ratios.push(peer.seconds / pollux.seconds);
        own.push(pollux);
        theirs.push(peer);
    }
    let all = |of: &[Taken], value: fn(&Taken) -> f64| of.iter().map(value).collect::<Vec<_>>();
    rows.add("initial_vs_qemu_img", "x", Goal::AtLeast(1.5), &ratios);
    let reported = Goal::Reported;
    rows.add(
        "initial_s",
        "s",
        reported,
        &all(&own, |taken| taken.seconds),
    );
    rows.add(
        "initial_s.qemu_img",
        "s",
        reported,
        &all(&theirs, |taken| taken.seconds),
    );
    let of_content = |of: &[Taken]| -> Vec<f64> {
        let wire = of.iter().map(|taken| taken.wire);
        wire.map(|wire| wire / nonzero).collect()
    };
    let name = "initial_wire_per_content";
    rows.add(name, "x", reported, &of_content(&own));
    let name = "initial_wire_per_content.qemu_img";
    rows.add(name, "x", reported, &of_content(&theirs));
    Ok(())
}

/// Does `work` with nothing of `disk` in memory.
fn timed(disk: &Path, work: impl FnOnce() -> Result<()>) -> Result<Taken> {
    fadvise(File::open(disk)?, 0, None, Advice::DontNeed)?;
    let (wire, begin) = (on_the_wire()?, Instant::now());
    work()?;
    Ok(Taken {
        seconds: begin.elapsed().as_secs_f64(),
        wire: number(on_the_wire()? - wire),
    })
}
