//! 4 KiB random writes, 32 at once, with tracking on and off.
//!
//! diskd is one process whose tracking is switched; before each slice with tracking everything was
//! shipped and confirmed, so that blocks are marked for the first time. The peers are two processes, or
//! two clients, of which one does without. All take turns.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use diskd::config::Front;
use diskd::control::Request;

use super::DISK;
use super::primary::Primary;
use crate::figures::Goal;
use crate::figures::Rows;
use crate::load::{Load, Pattern};
use crate::raw::RawClient;
use crate::scratch::Scratch;
use crate::servers::{Diskd, Format, Server};
use crate::side::{Place, RUN, Sample, Side, WARM_UP, fill, run_folder};

const LOAD: Load = Load {
    pattern: Pattern::RandWrite,
    depth: 32,
    len: DISK,
};

/// More than elsewhere: what is looked for is small.
const RUNS: usize = 15;
/// Run before each slice of ours, so that both begin alike whatever was done to the disk before.
const SETTLE: Duration = Duration::from_millis(50);

/// Somebody with tracking, and the same without.
struct Pair {
    on: Side,
    off: Side,
}

impl Pair {
    fn take(&mut self) -> Result<()> {
        self.off.take()?;
        self.on.take()
    }
}

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    let wanted = ["on_vs_off", "vs_qemu_bitmap", "vs_log_copy"].map(|name| rows.want(name));
    if !wanted.contains(&true) {
        return Ok(());
    }
    for place in [Place::tmpfs(), Place::disk()?] {
        at(rows, &place, wanted[1], wanted[2])?;
    }
    Ok(())
}

fn at(rows: &mut Rows, place: &Place, bitmap: bool, log: bool) -> Result<()> {
    eprintln!("tracking on and off, {}", place.name);
    let (folder, run, peers) = (Scratch::new(&place.folder)?, run_folder()?, run_folder()?);
    let file = folder.path().join("disk.raw");
    fill(&file, DISK)?;
    let mut bitmap = match bitmap {
        true => Some(qemu_pair(peers.path(), folder.path(), &file, place.direct)?),
        false => None,
    };
    let mut log = match log {
        true => Some(log_pair(folder.path(), &file, place.direct)?),
        false => None,
    };
    let diskd = Diskd::new(run.path(), &file, Front::VhostUser)?;
    let mut primary = Primary::new(&diskd, folder.path());
    let mut ours = Side::of_server(diskd.start()?, LOAD)?;
    let server = ours.server.as_ref().context("it is a server")?;
    let mut control = server.control()?;
    ours.slice(WARM_UP)?;
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.slice(SETTLE)?;
        off.push(ours.slice(RUN)?);
        primary.begin(&mut control)?;
        primary.seed(&mut control)?;
        ours.slice(SETTLE)?;
        on.push(ours.slice(RUN)?);
        for pair in bitmap.iter_mut().chain(&mut log) {
            pair.take()?;
        }
        control.ask(&Request::Untrack)?;
    }

    let ratios = |of: fn(&Sample) -> f64| -> Vec<f64> {
        let both = on.iter().zip(&off);
        both.map(|(on, off)| of(on) / of(off)).collect()
    };
    let against = |peer: &Side| -> Vec<f64> {
        let both = on.iter().zip(peer.all(Sample::speed));
        both.map(|(on, peer)| on.speed() / peer).collect()
    };
    let name = place.name;
    let goal = Goal::AtLeast(0.97);
    rows.add(
        format!("on_vs_off.{name}"),
        "x",
        goal,
        &ratios(Sample::speed),
    );
    let mut report = |what: &str, unit, samples: &[f64]| {
        rows.add(format!("{what}.{name}"), unit, Goal::Reported, samples);
    };
    report("on_vs_off.cpu_per_op", "x", &ratios(Sample::cpu));
    let speeds: Vec<f64> = on.iter().map(Sample::speed).collect();
    report("on_vs_off.iops", "1/s", &speeds);
    if let Some(pair) = &bitmap {
        report("vs_qemu_bitmap", "x", &against(&pair.on));
        let (speed, cpu) = (Sample::speed, Sample::cpu);
        report(
            "vs_qemu_bitmap.its_on_vs_off",
            "x",
            &pair.on.over(&pair.off, speed),
        );
        report(
            "vs_qemu_bitmap.its_cpu_per_op",
            "x",
            &pair.on.over(&pair.off, cpu),
        );
    }
    if let Some(pair) = &log {
        report("vs_log_copy", "x", &against(&pair.on));
        let speed = Sample::speed;
        report(
            "vs_log_copy.its_on_vs_off",
            "x",
            &pair.on.over(&pair.off, speed),
        );
    }
    Ok(())
}

/// A qcow2 file that holds nothing but metadata for content in a raw file; with a persistent bitmap of
/// blocks of 4 KiB, if `bitmap`.
pub(super) fn metadata(folder: &Path, name: &str, len: u64, bitmap: bool) -> Result<PathBuf> {
    let (file, content) = (folder.join(name), folder.join(format!("{name}.content")));
    let options = format!(
        "data_file={},data_file_raw=on,preallocation=metadata",
        content.display()
    );
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-o", &options]);
    run(create.arg(&file).arg(len.to_string()))?;
    if bitmap {
        let mut add = Command::new("qemu-img");
        run(add
            .args(["bitmap", "--add", "-g", "4096"])
            .arg(&file)
            .arg("changed"))?;
    }
    // Another one is put in its place when it is served.
    std::fs::remove_file(content)?;
    Ok(file)
}

fn run(command: &mut Command) -> Result<()> {
    let missing = "qemu-img is missing: `apt-get install qemu-utils` brings it";
    let status = command.status().context(missing)?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

fn qemu_pair(run: &Path, folder: &Path, file: &Path, direct: bool) -> Result<Pair> {
    let front = Front::VhostUser;
    let (on, aio) = Side::best(LOAD, direct, |aio| {
        // A bitmap that somebody else has open would be taken for inconsistent, and not be kept.
        let with = metadata(folder, &format!("with-{}.qcow2", aio.name()), DISK, true)?;
        Server::qsd(run, file, Format::Qcow2(&with), front, aio, direct)
    })?;
    let without = metadata(folder, "without.qcow2", DISK, false)?;
    // In a folder of its own, for its socket is called the same.
    let other = run.join("without");
    std::fs::create_dir(&other)?;
    let off = Server::qsd(&other, file, Format::Qcow2(&without), front, aio, direct)?;
    let off = Side::of_server(off, LOAD)?;
    Ok(Pair { on, off })
}

fn log_pair(folder: &Path, file: &Path, direct: bool) -> Result<Pair> {
    let log = folder.join("log");
    fill(&log, DISK)?;
    let raw = || RawClient::open(file, LOAD, direct);
    Ok(Pair {
        on: Side::of_client(raw()?.with_log(&log, direct)?, LOAD),
        off: Side::of_client(raw()?, LOAD),
    })
}
