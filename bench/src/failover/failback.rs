//! What is shipped of a VM that goes home after an unplanned failover, over what differs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use model::BLOCK_SIZE;
use pollux_tests::{FIRST_WRITE, point_name};
use pollux_tests::{
    Host, Pair, Scratch, create_shell, shell_waits, start_shell, text, type_in, until,
};

use crate::figures::{Goal, Rows, number};
use crate::shipped::{content, on_the_wire};

/// Size of the disk, of which only what the guest writes takes space.
const DISK: &str = "10GiB";
/// MiB that lie on both hosts, and MiB that each writes alone, in one piece.
const COMMON: u64 = 256;
const ALONE: u64 = 48;
/// Blocks that each writes alone, scattered.
const SCATTERED: u64 = 256;
const LIMIT: Duration = Duration::from_secs(600);

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("failback") {
        return Ok(());
    }
    let mut pair = Pair::start_in(Scratch::new("bench/failback")?)?;
    eprintln!("a guest that writes {COMMON} MiB, and its twin");
    create_shell(&pair.castor, "web", &["--disk", DISK])?;
    start_shell(&pair.castor, "web")?;
    write(&pair.castor, 0, COMMON)?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;
    // Whatever is cut from now on has all of it.
    let newest = pair.points("web").len();
    pair.wait_for_points("web", newest + 2)?;

    eprintln!("castor writes {ALONE} MiB more, which pollux never gets");
    pair.wire.cut();
    write(&pair.castor, 64, ALONE)?;
    scatter(&pair.castor, 1)?;
    pair.castor.kill_everything()?;
    eprintln!("pollux takes over and writes {ALONE} MiB");
    let word = ["--force", "--because", "a benchmark killed castor"];
    let start = ["failover", "start", "web"];
    pair.pollux.pollux(&[&start[..], &word[..]].concat())?;
    shell_waits(&pair.pollux, "web", 0, FIRST_WRITE)?;
    write(&pair.pollux, 160, ALONE)?;
    scatter(&pair.pollux, 2)?;
    pair.pollux.pollux(&["vm", "kill", "web"])?;

    eprintln!("castor is back and becomes the replica");
    pair.castor.start_daemon()?;
    pair.wire.mend();
    let castor = &pair.castor;
    castor.pollux(&["replica", "server", "enable"])?;
    until(LIMIT, "castor stands down", || {
        let status = castor.json(&["replica", "status", "web"])?;
        Ok((text(&status, "/0/state")? == "stood-down").then_some(()))
    })?;
    let wire = on_the_wire()?;
    pair.pollux.pollux(&["failover", "reverse", "web"])?;
    let point = until(LIMIT, "castor has a recovery point", || {
        let points = castor.json(&["point", "list", "web"]).ok();
        let newest = points.as_ref().and_then(|points| points.get(0));
        newest.map(point_name).transpose()
    })?;
    let wire = number(on_the_wire()? - wire);

    let details = castor.json(&["vm", "show", "web"])?;
    let twin = castor.state().join("replicas");
    let twin = twin.join(text(&details, "/vm/id").or_else(|_| text(&details, "/spec/id"))?);
    let shipped = number(content(&twin.join("journal"), 0)?);
    let report = castor.json(&["failover", "lost-writes", "web"])?;
    let former = PathBuf::from(text(&report, "/disks/0/file")?);
    let home = pair.scratch.state().join("home.raw");
    let path = home.to_str().context("the file's path is not UTF-8")?;
    castor.pollux(&["point", "export", "web", &point, path])?;
    let differs = number(differing(&former, &home)?);
    fs::remove_file(&home)?;
    let ratio = shipped / differs;
    rows.add("failback_bytes_ratio", "x", Goal::AtMost(1.1), &[ratio]);
    let reported = Goal::Reported;
    rows.add("failback_wire_ratio", "x", reported, &[wire / differs]);
    rows.add(
        "failback_differing",
        "MiB",
        reported,
        &[differs / f64::from(1 << 20)],
    );
    Ok(())
}

/// Lets the guest of `web` write what cannot be compressed.
fn write(host: &Host, at_mib: u64, mib: u64) -> Result<()> {
    run(
        host,
        &format!(
            "dd if=/dev/urandom of=/dev/vda bs=1M seek={at_mib} count={mib} conv=notrunc,fsync"
        ),
    )
}

/// Lets the guest of `web` write single blocks, those of each `lane` others.
fn scatter(host: &Host, lane: u64) -> Result<()> {
    let one = "dd if=/dev/urandom of=/dev/vda bs=4k count=1 conv=notrunc";
    run(
        host,
        &format!(
            "i=0; while [ $i -lt {SCATTERED} ]; do {one} seek=$((70000 + i * 8999 + {lane} * 3001)) || break; i=$((i + 1)); done; [ $i = {SCATTERED} ] && sync"
        ),
    )
}

fn run(host: &Host, command: &str) -> Result<()> {
    let line = format!("{{ {command}; }} 2>/dev/null && echo all-writ''ten || echo not-writ''ten");
    let answer = type_in(host, "web", &line, "-written")?;
    ensure!(
        answer.contains("all-written"),
        "the guest did not write: {command}"
    );
    Ok(())
}

/// Bytes of the blocks in which two files differ.
fn differing(one: &Path, other: &Path) -> Result<u64> {
    let files = [File::open(one)?, File::open(other)?];
    let len = files[0].metadata()?.len();
    ensure!(files[1].metadata()?.len() == len, "of different length");
    let mut parts = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut differ = 0;
    for at in (0..len).step_by(1 << 20) {
        let part = usize::try_from((len - at).min(1 << 20))?;
        for (file, part_of) in files.iter().zip(&mut parts) {
            file.read_exact_at(&mut part_of[..part], at)?;
        }
        let block = usize::try_from(BLOCK_SIZE)?;
        let [one, other] = &parts;
        let blocks = one[..part].chunks(block).zip(other[..part].chunks(block));
        differ += blocks.filter(|(one, other)| one != other).count() as u64 * BLOCK_SIZE;
    }
    Ok(differ)
}
