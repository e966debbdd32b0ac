//! What must hold.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blake3::{Hash, Hasher};
use model::PointId;
use pollux_tests::churn::differ;
use pollux_tests::{BAD_NEWS, Host, flushed, json_u64, judge, text, until, writes_on};
use serde_json::Value;
use testkit::workload::{Cut, Verified};

use crate::steps::Trouble;
use crate::{BATCH, MINUTE, Pair};

/// Keeps the space in which a journal writes its index anew; it stays.
const JOURNAL_RESERVE: &str = ".index.new";
/// A twin that lost its primary for a while asks again within half of this.
const CATCH_UP: Duration = MINUTE;

impl Pair {
    pub(super) fn points(&self) -> Result<Vec<Value>> {
        let points = self.replica().json(&["point", "list", "web"])?;
        Ok(points.as_array().context("a list")?.clone())
    }

    /// Exports a point and judges it; none if it was merged before. It proves what it proved
    /// the first time.
    pub(super) fn judge_point(&mut self, name: &str) -> Result<Option<Verified>> {
        self.judge_point_on(1 - self.primary, name)
    }

    pub(super) fn judge_point_on(&mut self, at: usize, name: &str) -> Result<Option<Verified>> {
        let (image, file) = self.image(name);
        let exported = self.hosts[at].pollux(&["point", "export", "web", name, &file]);
        if let Err(error) = exported {
            let points = self.hosts[at].json(&["point", "list", "web"])?;
            let listed = points.as_array().context("a list")?.iter();
            let listed = listed.filter(|point| self::name(point).is_ok_and(|n| n == name));
            ensure!(
                listed.count() == 0,
                "point {name} is not exported: {error:#}"
            );
            return Ok(None);
        }
        let now = judge(&image, Cut::Point).with_context(|| format!("point {name}"))?;
        std::fs::remove_file(&image)?;
        let first = *self.judged.entry(name.to_owned()).or_insert(now);
        ensure!(first == now, "point {name} was {first:?} and is {now:?}");
        Ok(Some(now))
    }

    /// A file beside the hosts, and its path as text.
    pub(super) fn image(&self, name: &str) -> (PathBuf, String) {
        let image = self.scratch.state().join(format!("{name}.raw"));
        let file = image.display().to_string();
        (image, file)
    }

    /// A hash of what a command of the host `at` exports into the file at its end.
    pub(super) fn hash(&self, at: usize, export: &[&str]) -> Result<Hash> {
        let (image, file) = self.image("hashed");
        self.hosts[at].pollux(&[export, &[&file]].concat())?;
        let hash = hash_of(&image)?;
        std::fs::remove_file(&image)?;
        Ok(hash)
    }

    /// Of the VM's disk as it is now.
    pub(super) fn disk_hash(&self, at: usize) -> Result<Hash> {
        self.hash(at, &["disk", "export", "web", "0"])
    }

    /// The VM is off and its twin lacks nothing: so both have the same, byte by byte. Points come all the
    /// same, and are equal.
    pub(super) fn are_equal(&self) -> Result<()> {
        let (here, file) = self.image("primary");
        self.primary()
            .pollux(&["disk", "export", "web", "0", &file])?;
        let (there, file) = self.image("twin");
        self.replica()
            .pollux(&["point", "export", "web", "latest", &file])?;
        let differing = differ(&here, &there)?;
        std::fs::remove_file(&here)?;
        std::fs::remove_file(&there)?;
        ensure!(
            differing.is_empty(),
            "the blocks {differing:?} differ from the newest point"
        );
        Ok(())
    }

    /// The newest point is no older than what the primary was told last.
    pub(super) fn nothing_acknowledged_is_lost(&self, newest: &Value) -> Result<()> {
        let newest: PointId = serde_json::from_value(newest["id"].clone())?;
        if let Some(told) = self.acknowledged {
            ensure!(
                newest.term == told.term && newest.sequence >= told.sequence,
                "the twin's newest point is {newest}, and {told} was acknowledged"
            );
        }
        Ok(())
    }

    /// Without a person's word it runs on one host at most.
    pub(super) fn check_alone(&self) -> Result<()> {
        let watch = self.watch()?;
        watch.check()?;
        let both_up = self.hosts.iter().all(Host::is_up);
        if both_up && !watch.is_overridden() {
            let runs = [self.state_on(0)?, self.state_on(1)?];
            ensure!(
                runs.iter().any(|state| state != "running"),
                "it runs on both hosts"
            );
        }
        Ok(())
    }

    /// What must hold at any time, as far as it can be asked.
    pub(super) fn check(&mut self) -> Result<()> {
        self.check_alone()?;
        if self.primary().is_up() {
            let log = self.primary().serial_log("web")?;
            for bad in BAD_NEWS {
                let line = log.lines().find(|line| line.contains(bad));
                ensure!(
                    line.is_none(),
                    "the guest says: {}",
                    line.unwrap_or_default()
                );
            }
            let status = self.primary().json(&["replica", "status", "web"])?;
            let state = text(&status, "/0/state")?;
            ensure!(state != "error", "replication needs a person: {status}");
            ensure!(
                (state == "suspended") || !self.suspended,
                "suspended by a person, and the status says: {status}"
            );
            if let Some(latest) = status.pointer("/0/latest").filter(|id| !id.is_null()) {
                self.acknowledged = Some(serde_json::from_value(latest.clone())?);
            }
        }
        if self.replica().is_up() {
            self.check_points()?;
        }
        Ok(())
    }

    /// The points are right, and none is behind the one before it.
    fn check_points(&mut self) -> Result<()> {
        let mut before: Option<(String, usize, Verified)> = None;
        let listed = self.points()?;
        for (number, point) in listed.iter().enumerate() {
            let name = name(point)?;
            // What lies above the base changes for none but the oldest, into which others are merged; of
            // those in between some are enough.
            let is_end = number == 0 || number + 1 == listed.len();
            if !is_end && (number % 3 != 0 || self.judged.contains_key(&name)) {
                continue;
            }
            let Some(judged) = self.judge_point(&name)? else {
                continue;
            };
            if !self.primary().is_up() {
                continue;
            }
            let runs = runs(&self.primary().serial_log("web")?);
            let run = hex(judged.run);
            let Some(at) = runs.iter().position(|known| *known == run) else {
                // It said so after its first record was durable, and perhaps was killed before.
                continue;
            };
            if let Some((last, run, earlier)) = &before {
                let order = (*run, earlier.committed, earlier.newest);
                ensure!(
                    order <= (at, judged.committed, judged.newest),
                    "point {name} ({judged:?}) is behind {last} ({earlier:?})"
                );
            }
            if at + 1 == runs.len() {
                let written = flushed(&self.primary().serial_log("web")?).unwrap_or(0);
                ensure!(
                    judged.committed <= written + BATCH,
                    "point {name} has {} records, and {written} were written",
                    judged.committed
                );
            }
            before = Some((name, at, judged));
        }
        if let Some((name, run, judged)) = before {
            self.say(format_args!(
                "         {} points, the newest {name}: record {} of run {}",
                listed.len(),
                judged.committed,
                run + 1
            ));
        }
        Ok(())
    }

    /// Waits until the twin has what is flushed now, of the run that writes now.
    pub(super) fn caught_up(&mut self, written: u64) -> Result<Duration> {
        let run = runs(&self.primary().serial_log("web")?);
        let run = run.last().context("a run began")?;
        let start = Instant::now();
        let mut latest = None;
        while start.elapsed() < CATCH_UP {
            // None while the twin is being made.
            let points = self.points().unwrap_or_default();
            if let Some(point) = points.last() {
                latest = self.judge_point(&name(point)?)?;
                let there = latest.is_some_and(|l| hex(l.run) == *run && l.committed >= written);
                if there {
                    return Ok(start.elapsed());
                }
            }
            sleep(Duration::from_millis(100));
        }
        let status = self.primary().json(&["replica", "status", "web"])?;
        bail!("the twin does not catch up with {written} of run {run}: {latest:?}; {status}")
    }

    /// All is made good, and then all is well.
    pub(super) fn mend_all(&mut self) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        let written = writes_on(self.primary(), "web", BATCH)?;
        let took = self.caught_up(written)?;
        self.say(format_args!(
            "         the twin caught up in {:.1} s",
            took.as_secs_f64()
        ));
        self.check()?;
        until(MINUTE, "the status says that all is well", || {
            self.is_well()
        })
        .with_context(|| format!("{:?}", self.primary().json(&["replica", "status", "web"])))?;
        let names = |host: &Host| -> Result<Vec<String>> {
            Ok(host
                .processes()?
                .into_iter()
                .map(|(_, name)| name)
                .collect())
        };
        let mut here = names(self.primary())?;
        here.sort();
        ensure!(
            here == ["pollux-diskd", "pollux-vmd", "qemu-system-x86"],
            "the primary runs {:?}",
            self.primary().processes()?
        );
        until(MINUTE, "the replica runs nothing", || {
            Ok(self.replica().processes()?.is_empty().then_some(()))
        })
        .with_context(|| format!("{:?}", self.replica().processes()))?;
        self.lies_on_disks_of_its_own()?;
        self.nothing_left_behind()
    }

    /// The last failover is final, and nothing is left of it.
    fn lies_on_disks_of_its_own(&mut self) -> Result<()> {
        let details = self.primary().json(&["vm", "show", "web"])?;
        let twin = self.primary().state().join("replicas");
        let journal = twin.join(text(&details, "/spec/id")?).join("journal");
        let complete = ["failover", "complete", "web"];
        let is_done = |_: &Self| Ok(!journal.exists());
        self.insist(self.primary, &complete, Trouble::None, is_done)?;
        until(MINUTE, "what the failover grew from is gone", || {
            Ok((!journal.exists()).then_some(()))
        })
    }

    /// Whether both hosts say the truth about a relationship that is well.
    fn is_well(&self) -> Result<Option<()>> {
        let here = self.primary().json(&["replica", "status", "web"])?;
        let there = self.replica().json(&["replica", "status", "web"])?;
        let points = self.points()?;
        let latest = here.pointer("/0/latest");
        let known = points.iter().any(|point| Some(&point["id"]) == latest);
        let lag = here.pointer("/0/lag_s").and_then(Value::as_u64);
        let well = here.pointer("/0/state") == Some(&"replicating".into())
            && here.pointer("/0/last_error").is_none_or(Value::is_null)
            && there.pointer("/0/state") == Some(&"replicating".into())
            && lag.is_some_and(|lag| lag <= 5)
            && known;
        Ok(well.then_some(()))
    }

    /// No temporary or staged file stays for longer than it is worked on.
    fn nothing_left_behind(&self) -> Result<()> {
        let mut suspects = passing(self.scratch.state())?;
        until(MINUTE, "temporary files go", || {
            let now = passing(self.scratch.state())?;
            suspects.retain(|path| now.contains(path));
            Ok(suspects.is_empty().then_some(()))
        })
        .with_context(|| format!("{:?}", passing(self.scratch.state())))
    }
}

/// A hash of what a file holds.
pub(super) fn hash_of(file: &Path) -> Result<Hash> {
    let mut hasher = Hasher::new();
    hasher.update_reader(File::open(file)?)?;
    Ok(hasher.finalize())
}

/// A point as it is written on the command line.
pub(super) fn name(point: &Value) -> Result<String> {
    short(&point["id"])
}

/// As a point with this identity is printed.
pub(super) fn short(id: &Value) -> Result<String> {
    let term = text(id, "/term")?;
    let number = json_u64(id, "/sequence")?;
    Ok(format!("{}.{number}", &term[..8]))
}

pub(super) fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files below `folder` that are there only while something is done.
fn passing(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let output = Command::new("find").arg(folder).output()?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let path = PathBuf::from(line);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == JOURNAL_RESERVE {
            continue;
        }
        let hidden = name.starts_with('.');
        let kind = path.extension().unwrap_or_default().to_string_lossy();
        let inside = |folder: &str| path.components().any(|part| part.as_os_str() == folder);
        let staged =
            inside("outbox") && name != "outbox" || inside("incoming") && name != "incoming";
        if hidden || staged || kind == "new" || kind == "part" || kind == "tmp" {
            found.insert(path);
        }
    }
    Ok(found)
}

/// The runs of the workload that a serial log tells of, in order.
pub(super) fn runs(log: &str) -> Vec<String> {
    let begins = log.lines().filter_map(|line| {
        let rest = line.split_once("pollux-workload: run ")?.1;
        Some(rest.split_once(" begins")?.0.to_owned())
    });
    begins.collect()
}
