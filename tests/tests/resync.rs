//! The primary loses everything that is in memory: what may differ from the twin is compared with
//! it, nothing that is equal is sent, and every point stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use model::Bytes;
use pollux_tests::{
    FIRST_WRITE, Host, Scratch, create_local_writer, flushed, json_u64, judge, nothing_pending,
    text, until,
};
use serde_json::Value;
use testkit::workload::Cut;

const MINUTE: Duration = Duration::from_secs(60);
const DISK: Bytes = Bytes(512 << 20);
/// To which its guest writes.
const SPAN_MIB: u32 = 16;

/// Two hosts, a VM that writes, and its twin.
struct Pair {
    castor: Host,
    pollux: Host,
    scratch: Scratch,
}

impl Pair {
    fn new(what: &str) -> Result<Self> {
        let scratch = Scratch::new(&format!("system/{what}"))?;
        let castor = Host::start("castor", &scratch)?;
        let pollux = Host::start("pollux", &scratch)?;
        pollux.pollux(&["replica", "server", "enable"])?;
        castor.trust_each_other(&pollux, &format!("127.0.0.1:{}", pollux.port()))?;
        create_local_writer(&castor, "web", "512MiB", SPAN_MIB)?;
        castor.pollux(&["vm", "start", "web"])?;
        castor.serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
        let to = ["--to", "pollux", "--frequency", "1s"];
        castor.pollux(&[&["replica", "enable", "web"], &to[..]].concat())?;
        Ok(Self {
            castor,
            pollux,
            scratch,
        })
    }

    fn points(&self) -> Vec<Value> {
        let points = self.pollux.json(&["point", "list", "web"]);
        let points = points.ok().and_then(|points| points.as_array().cloned());
        points.unwrap_or_default()
    }

    fn wait_for_points(&self, count: usize) -> Result<Vec<Value>> {
        until(3 * MINUTE, &format!("the twin has {count} points"), || {
            Ok(Some(self.points()).filter(|points| points.len() >= count))
        })
    }

    /// Waits until the write-intent log holds little more than what the guest writes to.
    fn wait_for_sweeps(&self) -> Result<()> {
        let few = Bytes(4 * (u64::from(SPAN_MIB) << 20));
        until(3 * MINUTE, "what the twin has leaves the log", || {
            let status = self.castor.json(&["track", "status", "web"])?;
            Ok((size(&status, "/disks/0/tracked/armed")? < few).then_some(()))
        })
    }

    fn status(&self) -> Result<Value> {
        let all = self.castor.json(&["replica", "status", "web"])?;
        all.get(0).cloned().context("one relationship")
    }

    /// Kills everything of the primary and removes what a reboot would; with `log` set, what survives
    /// one too. Gives how many records the guest knew to be on its disk, and the points that the twin had.
    fn reboot(&mut self, id: &str, log: bool) -> Result<(u64, Vec<Value>)> {
        let written = flushed(&self.castor.serial_log("web")?).context("it wrote")?;
        self.castor.kill_everything()?;
        let points = self.points();
        let socket = self.castor.diskd_socket(id);
        let run = socket.parent().context("in the VM's folder")?;
        fs::remove_dir_all(run).with_context(|| format!("cannot remove {}", run.display()))?;
        if log {
            for log in files_of(self.castor.state(), "intent")? {
                fs::remove_file(log)?;
            }
        }
        self.castor.start_daemon()?;
        Ok((written, points))
    }

    /// Exports the newest point and gives how many records it proves.
    fn committed(&self) -> Result<u64> {
        let points = self.points();
        let point = points.last().context("a point")?;
        let term = &text(point, "/id/term")?[..8];
        let name = format!("{term}.{}", json_u64(point, "/id/sequence")?);
        let image = self.scratch.state().join(format!("{name}.raw"));
        let file = image.display().to_string();
        self.pollux
            .pollux(&["point", "export", "web", &name, &file])?;
        let judged = judge(&image, Cut::Point)?;
        fs::remove_file(&image)?;
        Ok(judged.committed)
    }
}

/// The files below `folder` whose names end in `.ending`.
fn files_of(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_of(&path, ending)?);
        } else if path
            .extension()
            .is_some_and(|extension| extension == ending)
        {
            found.push(path);
        }
    }
    Ok(found)
}

fn size(status: &Value, key: &str) -> Result<Bytes> {
    Ok(text(status, key)?.parse()?)
}

fn ids(points: &[Value]) -> Vec<Value> {
    points.iter().map(|point| point["id"].clone()).collect()
}

#[test]
fn after_a_reboot_only_what_differs_is_sent_and_every_point_is_kept() -> Result<()> {
    let mut pair = Pair::new("resync")?;
    pair.wait_for_points(3)?;
    let details = pair.castor.json(&["vm", "show", "web"])?;
    let id = text(&details, "/spec/id")?.to_owned();
    for log in [false, true] {
        pair.wait_for_sweeps()?;
        let (written, before) = pair.reboot(&id, log)?;
        // One that was on its way may come as well.
        let status = until(3 * MINUTE, "points come again", || {
            let status = pair.status()?;
            let compared = size(&status, "/compared")? > Bytes(0);
            Ok((compared && pair.points().len() > before.len()).then_some(status))
        })?;
        nothing_pending(&pair.castor, "web")?;
        let compared = size(&status, "/compared")?;
        let differed = size(&status, "/differed")?;
        let had = ids(&before);
        let mut shipped = Bytes(0);
        for point in pair
            .points()
            .iter()
            .filter(|point| !had.contains(&point["id"]))
        {
            shipped.0 += size(point, "/size")?.0;
        }
        println!("log lost: {log}: compared {compared}, differed {differed}, shipped {shipped}");
        // Without its log all of it; with it what was written to lately.
        ensure!(compared > Bytes(0) && compared <= DISK, "{compared}");
        ensure!(log || compared < Bytes(DISK.0 / 4), "{compared}");
        ensure!(!log || compared == DISK, "{compared}");
        // What the guest writes to at most, not what was compared; and that in two points at most.
        let most = u64::from(SPAN_MIB + 1) << 20;
        ensure!(differed <= Bytes(most), "{differed}");
        ensure!(shipped <= Bytes(2 * most), "{shipped}");
        let after = ids(&pair.points());
        ensure!(
            had.iter().all(|point| after.contains(point)),
            "points are gone: {before:?}, {after:?}"
        );
        let committed = pair.committed()?;
        ensure!(committed >= written, "{committed} of {written} records");
        // It writes again, for the next round.
        pair.castor.insist(&["vm", "start", "web"])?;
        let count = pair.points().len() + 2;
        pair.wait_for_points(count)?;
    }
    Ok(())
}
