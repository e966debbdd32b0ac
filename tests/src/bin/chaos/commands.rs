//! What a person asks for while all is well.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{FIRST_WRITE, json_u64, judge, kill, text, until, writes_on};
use serde_json::Value;
use testkit::workload::Cut;

use crate::invariants::name;
use crate::steps::Side;
use crate::{BATCH, MINUTE, POINTS, Pair};

impl Pair {
    pub(super) fn suspend(&mut self, lasting: Option<u64>) -> Result<()> {
        self.up(Side::Primary)?;
        self.primary().pollux(&["replica", "pause", "web"])?;
        self.suspended = true;
        until(MINUTE, "the status says that it is suspended", || {
            let status = self.primary().json(&["replica", "status", "web"])?;
            Ok((status.pointer("/0/state") == Some(&"suspended".into())).then_some(()))
        })?;
        if let Some(ms) = lasting {
            sleep(Duration::from_millis(ms));
            self.resume()?;
        }
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<()> {
        if self.suspended {
            self.primary().pollux(&["replica", "resume", "web"])?;
            self.suspended = false;
        }
        Ok(())
    }

    pub(super) fn restart(&mut self) -> Result<()> {
        self.connected()?;
        self.running()?;
        self.primary().pollux(&["vm", "stop", "web"])?;
        ensure!(
            self.state()? == "off",
            "a VM that was stopped is {}",
            self.state()?
        );
        self.running()
    }

    /// A point that is open stays as it is and where it is while points are taken in and merged.
    pub(super) fn open(&mut self, daemon: bool) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        self.up(Side::Replica)?;
        self.has_points()?;
        // A point may be merged away before it is open.
        let oldest = until(MINUTE, "the oldest point is opened", || {
            let oldest = name(self.points()?.first().context("there are points")?)?;
            let open = ["point", "open", "web", &oldest];
            Ok(self.replica().json(&open).is_ok().then_some(oldest))
        })?;
        if daemon {
            self.host(Side::Replica).kill_daemon()?;
            self.up(Side::Replica)?;
        }
        let newest = |points: &[Value]| -> Result<u64> {
            json_u64(points.last().context("there are points")?, "/id/sequence")
        };
        let before = newest(&self.points()?)?;
        let more = before + u64::from(POINTS) + 3;
        until(2 * MINUTE, "newer points come", || {
            Ok((newest(&self.points()?)? >= more).then_some(()))
        })?;
        let points = self.points()?;
        let opened = points
            .iter()
            .find(|point| name(point).is_ok_and(|name| name == oldest))
            .with_context(|| format!("point {oldest} is gone while it is open"))?;
        let image = self.scratch.state().join("open.raw");
        let copied = Command::new("nbdcopy")
            .arg(text(opened, "/open/0/uri")?)
            .arg(&image)
            .status()?;
        ensure!(copied.success(), "point {oldest} cannot be read");
        self.replica().pollux(&["point", "close", "web", &oldest])?;
        let judged = judge(&image, Cut::Point).with_context(|| format!("point {oldest}"))?;
        std::fs::remove_file(&image)?;
        let first = *self.judged.entry(oldest.clone()).or_insert(judged);
        ensure!(
            first == judged,
            "point {oldest} was {first:?} and is {judged:?}"
        );
        Ok(())
    }

    /// A twin that was made just now gets its first point.
    fn has_points(&mut self) -> Result<()> {
        if self.points()?.is_empty() {
            self.connected()?;
            self.resume()?;
            self.running()?;
        }
        until(MINUTE, "the twin has points", || {
            Ok((!self.points()?.is_empty()).then_some(()))
        })
    }

    pub(super) fn test(&mut self, part: u64, daemon: bool, diskd: bool) -> Result<()> {
        self.up(Side::Replica)?;
        self.has_points()?;
        let copy = "web - Test";
        let name = until(MINUTE, "a point stays while its test begins", || {
            let points = self.points()?;
            let at = usize::try_from(part)? * points.len() / 1000;
            let name = name(points.get(at).context("there are points")?)?;
            let test = ["failover", "test", "web", "--point", &name];
            match self.replica().pollux(&test) {
                Ok(_) => Ok(Some(name)),
                // It may have been merged meanwhile.
                Err(error) if format!("{error:#}").contains("does not exist") => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        if daemon {
            self.host(Side::Replica).kill_daemon()?;
            self.up(Side::Replica)?;
        }
        if diskd {
            let show = self.replica().json(&["vm", "show", copy])?;
            kill(u32::try_from(json_u64(&show, "/processes/diskd")?)?)?;
        }
        let found = self
            .replica()
            .serial_line(copy, 0, "pollux-workload: found", FIRST_WRITE)?;
        ensure!(found.ends_with(": right"), "the test found: {found}");
        let point = self.judge_point(&name)?.context("a pinned point stays")?;
        let expected = format!("committed {} newest", point.committed);
        ensure!(
            found.contains(&expected),
            "{found}, and the point: {expected}"
        );
        let listed = self.points()?;
        let pinned = listed
            .iter()
            .filter(|point| point["pinned"] == true)
            .count();
        ensure!(pinned == 1, "{pinned} points are pinned during a test");
        writes_on(self.replica(), copy, BATCH)?;
        self.replica().pollux(&["failover", "stop-test", "web"])?;
        let pinned = self.points()?.iter().any(|point| point["pinned"] == true);
        ensure!(!pinned, "a point is pinned after the test");
        // A supervisor answers before it exits.
        until(MINUTE, "the test leaves no process", || {
            let left = self.replica().processes()?;
            Ok(left.is_empty().then_some(()))
        })?;
        Ok(())
    }
}
