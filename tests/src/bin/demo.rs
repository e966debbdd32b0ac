//! `make demo`: two hosts, a guest, its twin, and the twin taking over.
//!
//! Everything is done with the commands that a user would type; they are printed as they run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use pollux_tests::{
    FIRST_WRITE, Host, Scratch, create_writer, flushed, json_u64, judge, kill_diskd, until,
    writes_on,
};
use serde_json::Value;
use testkit::guest::GuestImages;
use testkit::workload::{Cut, Verified};

const MINUTE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    title("Two hosts on loopback: castor is the primary, pollux the replica");
    GuestImages::build_or_get()?;
    let scratch = Scratch::new("demo")?;
    scratch.clean_up_on_signals()?;
    let mut castor = Host::start("castor", &scratch)?;
    let mut pollux = Host::start("pollux", &scratch)?;
    castor.echo();
    pollux.echo();
    pollux.pollux(&["host", "status"])?;
    castor.trust_each_other(&pollux, &format!("127.0.0.1:{}", pollux.port()))?;

    title("A guest that writes numbered, hashed records and flushes them");
    create_writer(&castor, "web", "512MiB", 100)?;
    castor.pollux(&["vm", "start", "web"])?;
    castor.serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;

    title("Its twin on the other host, while it writes: a recovery point every 5 s");
    castor.pollux(&[
        "replication",
        "enable",
        "web",
        "--to",
        "pollux",
        "--every",
        "5s",
    ])?;
    wait_for_points(&pollux, 3)?;
    castor.pollux(&["replication", "status"])?;

    title("kill -9 of the storage process in the middle of a write");
    let restart = kill_while_writing(&castor)?;
    let points = pollux
        .json(&["point", "list", "web"])?
        .as_array()
        .map_or(0, Vec::len);
    wait_for_points(&pollux, points + 2)?;
    castor.pollux(&["replication", "status"])?;
    pollux.pollux(&["point", "list", "web"])?;

    title("The whole primary dies");
    let before = last(&castor, "replication", "web")?;
    let written = flushed(&castor.serial_log("web")?).context("the guest wrote nothing")?;
    println!("kill -9 of polluxd, pollux-vmd, pollux-diskd and QEMU of castor");
    castor.kill_everything()?;

    title("The twin takes over");
    let refused = pollux.refused(&["failover", "start", "web"])?;
    println!(
        "\npollux$ pollux failover start web\n{}",
        refused.message.trim_end()
    );
    let start = Instant::now();
    pollux.pollux(&[
        "failover",
        "start",
        "web",
        "--force",
        "--because",
        "castor lost its power, I stood beside it",
    ])?;
    let running = start.elapsed();
    let found = pollux.serial_line("web", 0, "pollux-workload: found", 2 * MINUTE)?;
    let in_guest = start.elapsed();
    println!("the twin's guest says: {found}");
    ensure!(
        found.contains(": right"),
        "the twin's guest does not find its records"
    );

    title("What the twin has, judged from outside");
    let (judged, point) = judge_held_point(&pollux, &scratch)?;
    ensure!(
        judged.committed <= written,
        "the twin has more than was written"
    );
    pollux.pollux(&["vm", "list"])?;

    let shipped = json_u64(&before, "/shipped")
        .map_or_else(|_| before["shipped"].to_string(), |bytes| bytes.to_string());
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let list = pollux.json(&["point", "list", "web"])?;
    let rows = [
        ("records written and flushed at castor", written.to_string()),
        (
            "records at the twin, all verified",
            judged.committed.to_string(),
        ),
        (
            "written after the last point, lost with castor",
            (written - judged.committed).to_string(),
        ),
        ("shipped", shipped.trim_matches('"').to_owned()),
        (
            "recovery points",
            list.as_array().map_or(0, Vec::len).to_string(),
        ),
        (
            "longest hold-up of the guest by a cut",
            format!("{} us", before["longest_pause_us"]),
        ),
        ("lag when castor died", format!("{} s", before["lag_s"])),
        (
            "storage process killed, guest writing again after",
            seconds(restart),
        ),
        ("failover command to QEMU running", seconds(running)),
        (
            "failover command to the guest having read its records",
            seconds(in_guest),
        ),
        ("point taken", point),
        (
            "verification",
            format!("{} records right, none missing", judged.records_checked),
        ),
    ];
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_FULL_CONDENSED)
        .set_header(["castor to pollux", ""]);
    for (what, value) in rows {
        table.add_row([what.to_owned(), value]);
    }
    println!("\n{table}");
    Ok(())
}

fn title(text: &str) {
    println!("\n== {text}");
}

/// Waits until the twin has `count` points, and says how far it is.
fn wait_for_points(replica: &Host, count: usize) -> Result<()> {
    let mut shown = 0;
    until(3 * MINUTE, &format!("the twin has {count} points"), || {
        // There is no such VM yet when the first part is still on its way.
        let Ok(points) = replica.json(&["point", "list", "web"]) else {
            return Ok(None);
        };
        let points = points.as_array().map_or(0, Vec::len);
        if points > shown {
            shown = points;
            println!("the twin has {points} recovery points");
        }
        Ok((points >= count).then_some(()))
    })
}

/// Kills diskd and waits until the guest writes again; how long that took.
fn kill_while_writing(host: &Host) -> Result<Duration> {
    let start = Instant::now();
    let pid = kill_diskd(host, "web")?;
    println!("kill -9 {pid} (pollux-diskd)");
    writes_on(host, "web", 1, MINUTE)?;
    println!("the guest saw no error and goes on writing");
    Ok(start.elapsed())
}

fn last(host: &Host, noun: &str, vm: &str) -> Result<Value> {
    let all = host.json(&[noun, "status", vm])?;
    all.get(0).cloned().context("the status of a VM is one row")
}

/// Exports the point that the failover holds and judges it.
fn judge_held_point(host: &Host, scratch: &Scratch) -> Result<(Verified, String)> {
    let points = host.json(&["point", "list", "web"])?;
    let held = points
        .as_array()
        .and_then(|points| points.iter().find(|point| point["pinned"] == true))
        .context("a failover holds its point")?;
    let term = held
        .pointer("/id/term")
        .and_then(Value::as_str)
        .context("a point has a term")?;
    let name = format!("{}.{}", &term[..8], json_u64(held, "/id/sequence")?);
    let image = scratch.state().join("web-at-the-point.raw");
    host.pollux(&[
        "point",
        "export",
        "web",
        &name,
        &image.display().to_string(),
    ])?;
    Ok((judge(&image, Cut::Point)?, name))
}
