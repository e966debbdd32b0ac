//! `make demo`: two hosts, a guest, its twin, the twin taking over, and the way home.
//!
//! Everything is done with the commands that a user would type; they are printed as they run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use model::Bytes;
use pollux_tests::{
    FIRST_WRITE, FOUND, Host, Scratch, clean_up_on_signals, create_writer, flushed, found_of,
    json_u64, judge, kill_diskd, text, until, writes_on,
};
use serde_json::Value;
use testkit::guest::{FLUSHED, GuestImages};
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
    GuestImages::build_or_get()?;
    let scratch = Scratch::new("demo")?;
    clean_up_on_signals(|| ())?;
    let mut pair = Pair::meet(&scratch)?;
    pair.protect()?;
    let tested = pair.test_failover()?;
    let restart = pair.kill_storage()?;
    let lost = pair.lose_primary()?;
    let taken = pair.take_over()?;
    let (point, judged) = pair.judge_twin(&scratch)?;
    let back = pair.replicate_back(&scratch)?;
    let home = pair.go_home()?;
    ensure!(
        judged.committed <= lost.written,
        "the twin has more than was written"
    );
    report(&[
        (
            "records written and flushed at castor",
            lost.written.to_string(),
        ),
        ("records at the twin", judged.committed.to_string()),
        (
            "written after the last point, lost with castor",
            (lost.written - judged.committed).to_string(),
        ),
        ("shipped", lost.shipped.to_string()),
        ("lag when castor died", format!("{} s", lost.lag_s)),
        ("recovery points", lost.points.to_string()),
        (
            "longest hold-up of the guest by a cut",
            format!("{} us", lost.pause_us),
        ),
        (
            "records found by the guest of the test failover",
            tested.to_string(),
        ),
        (
            "storage process killed, guest writing again after",
            seconds(restart),
        ),
        ("failover command to QEMU running", seconds(taken.running)),
        (
            "failover command to all records read by the twin's guest",
            seconds(taken.read),
        ),
        ("point taken", point),
        (
            "verification",
            format!("{} records right, none missing", judged.records_checked),
        ),
        (
            "of a disk of 64 MiB sent back to castor",
            back.shipped.to_string(),
        ),
        (
            "kept at castor of what it never sent",
            back.never_sent.to_string(),
        ),
        (
            "records at pollux when it was shut down",
            home.written.to_string(),
        ),
        (
            "of those found by the guest at castor",
            home.found.to_string(),
        ),
    ]);
    println!("State is kept in {}.", scratch.state().display());
    Ok(())
}

/// The two hosts.
struct Pair {
    castor: Host,
    pollux: Host,
}

/// What there was when the primary died.
struct Lost {
    written: u64,
    shipped: Bytes,
    lag_s: u64,
    points: usize,
    pause_us: u64,
}

/// What came of replicating back.
struct Back {
    shipped: Bytes,
    never_sent: Bytes,
}

/// What came of the planned failover.
struct Home {
    written: u64,
    found: u64,
}

/// How long the twin took, from the command on.
struct Taken {
    running: Duration,
    read: Duration,
}

impl Pair {
    fn meet(scratch: &Scratch) -> Result<Self> {
        title("Two hosts on loopback that trust each other: castor and pollux");
        let mut castor = Host::start("castor", scratch)?;
        let mut pollux = Host::start("pollux", scratch)?;
        castor.echo();
        pollux.echo();
        pollux.pollux(&["host", "status"])?;
        pollux.pollux(&["replica", "server", "enable"])?;
        castor.trust_each_other(&pollux, &format!("127.0.0.1:{}", pollux.port()))?;
        Ok(Self { castor, pollux })
    }

    fn protect(&self) -> Result<()> {
        title("A guest on castor that writes numbered, hashed records and flushes them");
        create_writer(&self.castor, "web", "64MiB", 100)?;
        self.castor.pollux(&["vm", "start", "web"])?;
        self.castor.serial_line("web", 0, FLUSHED, FIRST_WRITE)?;

        title("Its twin on pollux, seeded while it writes: a recovery point every 5 s");
        self.castor.pollux(&[
            "replica",
            "enable",
            "web",
            "--to",
            "pollux",
            "--frequency",
            "5s",
        ])?;
        self.wait_for_points(3)?;
        self.castor.pollux(&["replica", "status"])?;
        Ok(())
    }

    /// How many records the copy's guest found.
    fn test_failover(&self) -> Result<u64> {
        title("A test of the newest point: a copy without a network, while points go on");
        let pollux = &self.pollux;
        pollux.pollux(&["failover", "test", "web"])?;
        let found = pollux.serial_line("web - Test", 0, FOUND, FIRST_WRITE)?;
        println!("the copy's guest says: {found}");
        pollux.pollux(&["vm", "list"])?;
        self.wait_for_points(self.points()?.len() + 1)?;
        pollux.pollux(&["failover", "stop-test", "web"])?;
        found_of(&found)
    }

    fn kill_storage(&self) -> Result<Duration> {
        title("kill -9 of the storage process in the middle of a write");
        let start = Instant::now();
        let pid = kill_diskd(&self.castor, "web")?;
        println!("kill -9 {pid} (pollux-diskd)");
        writes_on(&self.castor, "web", 1)?;
        let took = start.elapsed();
        println!("the guest saw no error and goes on writing");
        self.wait_for_points(self.points()?.len() + 2)?;
        self.castor.pollux(&["replica", "status"])?;
        self.pollux.pollux(&["point", "list", "web"])?;
        Ok(took)
    }

    fn lose_primary(&mut self) -> Result<Lost> {
        title("The whole primary dies");
        let status = self.castor.json(&["replica", "status", "web"])?;
        let written =
            flushed(&self.castor.serial_log("web")?).context("the guest wrote nothing")?;
        println!("kill -9 of polluxd, pollux-vmd, pollux-diskd and QEMU of castor");
        self.castor.kill_everything()?;
        Ok(Lost {
            written,
            shipped: text(&status, "/0/shipped")?.parse()?,
            lag_s: json_u64(&status, "/0/lag_s")?,
            points: self.points()?.len(),
            pause_us: json_u64(&status, "/0/longest_pause_us")?,
        })
    }

    fn take_over(&self) -> Result<Taken> {
        title("The twin takes over; since castor cannot be asked, a person vouches for it");
        let pollux = &self.pollux;
        pollux.refused(&["failover", "start", "web"])?;
        let start = Instant::now();
        let word = "castor lost its power, I stood beside it";
        pollux.pollux(&["failover", "start", "web", "--force", "--because", word])?;
        let running = start.elapsed();
        let found = pollux.serial_line("web", 0, FOUND, FIRST_WRITE)?;
        let read = start.elapsed();
        println!("the twin's guest says: {found}");
        found_of(&found)?;
        Ok(Taken { running, read })
    }

    /// Exports the point that the failover holds and judges it.
    fn judge_twin(&self, scratch: &Scratch) -> Result<(String, Verified)> {
        title("What the twin was started from, judged from outside");
        let points = self.points()?;
        let held = points.iter().find(|point| point["pinned"] == true);
        let held = held.context("a failover holds its point")?;
        let name = format!(
            "{}.{}",
            &text(held, "/id/term")?[..8],
            json_u64(held, "/id/sequence")?
        );
        let image = scratch.state().join("web-at-the-point.raw");
        self.pollux.pollux(&[
            "point",
            "export",
            "web",
            &name,
            &image.display().to_string(),
        ])?;
        self.pollux.pollux(&["vm", "list"])?;
        Ok((name, judge(&image, Cut::Point)?))
    }

    fn replicate_back(&mut self, scratch: &Scratch) -> Result<Back> {
        title("castor is back, hears that it was succeeded, and stands down");
        writes_on(&self.pollux, "web", 20)?;
        self.castor.start_daemon()?;
        let (castor, pollux) = (&self.castor, &self.pollux);
        until(MINUTE, "castor stands down", || {
            let status = castor.json(&["replica", "status", "web"])?;
            Ok((text(&status, "/0/state")? == "stood-down").then_some(()))
        })?;
        castor.refused(&["vm", "start", "web"])?;

        title("Its own disks are the beginning of the new twin: only the difference is sent");
        castor.pollux(&["replica", "server", "enable"])?;
        pollux.pollux(&["failover", "reverse", "web"])?;
        let written = flushed(&pollux.serial_log("web")?).context("it writes")?;
        let image = scratch.state().join("web-at-castor.raw");
        let file = image.display().to_string();
        until(3 * MINUTE, "castor has what was written at pollux", || {
            let points = castor.json(&["point", "list", "web"]);
            if points.is_ok_and(|points| points.get(0).is_none()) {
                return Ok(None);
            }
            castor.pollux(&["point", "export", "web", "latest", &file])?;
            let judged = judge(&image, Cut::Point)?;
            std::fs::remove_file(&image)?;
            Ok((judged.committed >= written).then_some(()))
        })?;
        pollux.pollux(&["replica", "status"])?;
        castor.pollux(&["point", "list", "web"])?;
        castor.pollux(&["failover", "lost-writes", "web"])?;
        let report = castor.json(&["failover", "lost-writes", "web"])?;
        let ranges = report.pointer("/disks/0/ranges").and_then(Value::as_array);
        let lengths = ranges.context("it is known what castor wrote")?.iter();
        let never_sent = lengths
            .map(|range| Ok(text(range, "/len")?.parse::<Bytes>()?.0))
            .sum::<Result<u64>>()?;
        let points = castor.json(&["point", "list", "web"])?;
        let first = text(&points, "/0/size")?.parse()?;
        Ok(Back {
            shipped: first,
            never_sent: Bytes(never_sent),
        })
    }

    fn go_home(&self) -> Result<Home> {
        title("Home, as planned: shut down at pollux, its last changes sent, started at castor");
        let (castor, pollux) = (&self.castor, &self.pollux);
        pollux.pollux(&["failover", "prepare", "web"])?;
        let written = flushed(&pollux.serial_log("web")?).context("it wrote")?;
        castor.pollux(&["failover", "start", "web"])?;
        let found = castor.serial_line("web", 0, FOUND, FIRST_WRITE)?;
        println!("the guest at castor says: {found}");
        let found = found_of(&found)?;
        ensure!(found >= written, "{found} of {written} records came home");
        pollux.refused(&["vm", "start", "web"])?;
        castor.pollux(&["vm", "list"])?;
        Ok(Home { written, found })
    }

    fn points(&self) -> Result<Vec<Value>> {
        let points = self.pollux.json(&["point", "list", "web"])?;
        points.as_array().cloned().context("points are a list")
    }

    /// Waits until the twin has `count` points, and says how far it is.
    fn wait_for_points(&self, count: usize) -> Result<()> {
        let mut shown = 0;
        until(3 * MINUTE, &format!("the twin has {count} points"), || {
            // There is no twin before the replica agreed to have one.
            let points = self.points().map_or(0, |points| points.len());
            if points > shown {
                shown = points;
                println!("recovery points at the twin: {points}");
            }
            Ok((points >= count).then_some(()))
        })
    }
}

fn title(text: &str) {
    println!("\n== {text}");
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn report(rows: &[(&str, String)]) {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_FULL_CONDENSED)
        .set_header(["castor to pollux", ""]);
    for (what, value) in rows {
        table.add_row([(*what).to_owned(), value.clone()]);
    }
    println!("\n{table}");
}
