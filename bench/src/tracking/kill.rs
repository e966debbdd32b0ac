//! What is shipped after `kill -9` of the disk server under a guest that writes as much as it can, over
//! the blocks that the guest wrote since the last epoch that was confirmed.
//!
//! Every second time an epoch is being staged at that moment. The next segment is read: it must hold
//! nothing that was not written, and all of it but for the writes that no server had taken up yet, of
//! which there are at most as many as the guest has in flight.
//!
//! Beside it, QEMU's persistent bitmap: after a kill it is marked as in use, and not to be trusted, so
//! that the whole disk has to be copied.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use diskd::config::Front;
use diskd::control::Request;
use journal::SegmentReader;
use model::BLOCK_SIZE;

use super::primary::Primary;
use super::{DISK, cost};
use crate::figures::Goal;
use crate::figures::{Rows, number};
use crate::load::{Client, Load, Pace, Pattern};
use crate::scratch::Scratch;
use crate::servers::{Aio, Diskd, Format, Server};
use crate::side::{Place, fill, run_folder};

const KILLS: u32 = 10;
/// NBD, whose client is told when the server is gone.
const FRONT: Front = Front::Nbd;
const LOAD: Load = Load {
    pattern: Pattern::RandWrite,
    depth: 32,
    len: DISK,
};
/// Longer than any server lives.
const LONG: Duration = Duration::from_secs(60);

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("resync_after_kill_ratio") {
        return Ok(());
    }
    eprintln!("kills under load");
    let folder = Scratch::new(&Place::disk()?.folder)?;
    let file = folder.path().join("disk.raw");
    fill(&file, DISK)?;
    let mut ratios = Vec::new();
    for kill in 0..KILLS {
        let ratio = after_a_kill(&file, folder.path(), kill);
        ratios.push(ratio.with_context(|| format!("kill {kill}"))?);
    }
    let goal = Goal::AtMost(1.05);
    rows.add("resync_after_kill_ratio", "x", goal, &ratios);
    let theirs = of_qemu(&file, folder.path())?;
    let name = "resync_after_kill_ratio.qemu_bitmap";
    rows.add(name, "x", Goal::Reported, &[theirs]);
    Ok(())
}

/// How long the server lives.
fn life(kill: u32) -> Duration {
    // No two alike, and none in step with anything.
    Duration::from_millis(400) + Duration::from_micros(u64::from(kill) * 37_123)
}

/// Writes until `server` is killed, while `beside` runs; the blocks that were written.
fn write_until_killed(
    server: &mut Server,
    client: &mut dyn Client,
    life: Duration,
    beside: impl FnOnce() + Send,
) -> Result<HashSet<u64>> {
    let mut pace = Pace::start(LOAD, LONG).noted();
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            thread::sleep(life);
            server.kill()
        });
        scope.spawn(beside);
        let ended = client.run(&mut pace);
        let killed = killer.join();
        killed.map_err(|_panic| anyhow!("a thread panicked"))??;
        match ended {
            Err(_gone) => Ok(()),
            Ok(()) => bail!("the server was killed, and the client did not notice"),
        }
    })?;
    Ok(pace.issued().iter().map(|at| at / BLOCK_SIZE).collect())
}

fn after_a_kill(file: &Path, outbox: &Path, kill: u32) -> Result<f64> {
    let run = run_folder()?;
    let diskd = Diskd::new(run.path(), file, FRONT)?;
    let mut primary = Primary::new(&diskd, outbox);
    primary.prepare(&diskd)?;
    let mut server = diskd.start()?;
    let mut client = server.connect(LOAD)?;
    let mut control = server.control()?;
    primary.go_on(&mut control)?;
    let life = life(kill);
    let mut staged = None;
    let written = write_until_killed(&mut server, &mut *client, life, || {
        if kill % 2 == 1 {
            thread::sleep(life * 4 / 5);
            // Killed meanwhile, in general.
            staged = primary.cut(&mut control).ok();
        }
    })?;

    let server = diskd.start()?;
    let mut control = server.control()?;
    primary.go_on(&mut control)?;
    if let Some((_, segment)) = staged {
        // The kill came too late: it was whole, and is taken back.
        control.ask(&Request::FoldBack { file: segment })?;
    }
    let (staged, segment) = primary.cut(&mut control)?;
    let shipped = blocks(&segment)?;
    primary.ship(&mut control, &segment)?;
    ensure!(staged.content.0 == shipped.len() as u64 * BLOCK_SIZE);
    let unwritten = shipped.difference(&written).count();
    ensure!(
        unwritten == 0,
        "{unwritten} blocks are shipped that nobody wrote"
    );
    let missing = written.difference(&shipped).count();
    ensure!(
        missing <= LOAD.depth,
        "{missing} blocks that were written are not shipped"
    );
    Ok(number(shipped.len() as u64) / number(written.len() as u64))
}

/// What a segment holds.
fn blocks(segment: &Path) -> Result<HashSet<u64>> {
    let mut blocks = HashSet::new();
    for run in SegmentReader::open(segment)?.runs() {
        let run = run?;
        blocks.extend(run.block..run.block + u64::from(run.count));
    }
    Ok(blocks)
}

/// The whole disk over what was written, if QEMU does not trust its bitmap any more.
fn of_qemu(file: &Path, folder: &Path) -> Result<f64> {
    let run = run_folder()?;
    let metadata = cost::metadata(folder, "kill.qcow2", DISK, true)?;
    let format = Format::Qcow2(&metadata);
    let mut server = Server::qsd(run.path(), file, format, FRONT, Aio::Threads, true)?;
    let mut client = server.connect(LOAD)?;
    let written = write_until_killed(&mut server, &mut *client, life(0), || ())?;
    // The content is not looked for.
    let mut info = Command::new("qemu-img");
    let info = info
        .args(["info", "--output=json"])
        .arg(&metadata)
        .output()?;
    let info: serde_json::Value = serde_json::from_slice(&info.stdout)
        .context("qemu-img does not say what the bitmap is like")?;
    let flags = info.pointer("/format-specific/data/bitmaps/0/flags");
    let flags = flags
        .and_then(|flags| flags.as_array())
        .context("there is no bitmap")?;
    let shipped = match flags.iter().any(|flag| flag == "in-use") {
        true => DISK / BLOCK_SIZE,
        // As ours then.
        false => written.len() as u64,
    };
    Ok(number(shipped) / number(written.len() as u64))
}
