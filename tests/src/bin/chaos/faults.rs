//! What is done, step by step.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{FIRST_WRITE, Host, json_u64, judge, kill, text, until, writes_on};
use serde_json::Value;
use testkit::workload::Cut;

use crate::invariants::name;
use crate::steps::{Part, Side, Step};
use crate::{BATCH, MINUTE, POINTS, Pair};

impl Pair {
    pub(super) fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::KillDaemon(side, lasting) => {
                self.host(side).kill_daemon()?;
                if let Some(ms) = lasting {
                    sleep(Duration::from_millis(ms));
                    self.up(side)?;
                }
                Ok(())
            }
            Step::Kill(part, daemon) => self.kill_part(part, daemon),
            Step::KillAll(part, ms) => self.kill_all(part, ms),
            Step::KillInStart(ms) => self.kill_in_start(ms),
            Step::KillWhileOff(part) => self.kill_while_off(part),
            Step::Cut(lasting) => {
                self.wire.cut();
                if let Some(ms) = lasting {
                    sleep(Duration::from_millis(ms));
                    self.wire.mend();
                }
                Ok(())
            }
            Step::Flicker(bytes, times) => {
                for _ in 0..times {
                    self.break_after(bytes)?;
                    self.wire.mend();
                }
                Ok(())
            }
            Step::FlickerAndKill(bytes) => {
                self.break_after(bytes)?;
                self.pollux.kill_daemon()?;
                self.wire.mend();
                self.up(Side::Replica)
            }
            Step::Suspend(lasting) => self.suspend(lasting),
            Step::Restart => self.restart(),
            Step::Open(daemon) => self.open(daemon),
            Step::Test(part, daemon, diskd) => self.test(part, daemon, diskd),
        }
    }

    fn host(&mut self, side: Side) -> &mut Host {
        match side {
            Side::Primary => &mut self.castor,
            Side::Replica => &mut self.pollux,
        }
    }

    pub(super) fn up(&mut self, side: Side) -> Result<()> {
        let host = self.host(side);
        if host.is_up() {
            return Ok(());
        }
        host.start_daemon()
    }

    pub(super) fn connected(&mut self) -> Result<()> {
        self.up(Side::Primary)?;
        self.up(Side::Replica)?;
        self.wire.mend();
        Ok(())
    }

    /// Waits until the network broke after `bytes`: something must be on its way.
    fn break_after(&mut self, bytes: u64) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        self.wire.cut_after(bytes);
        until(2 * MINUTE, "the network carries something", || {
            Ok(self.wire.is_cut().then_some(()))
        })
    }

    fn kill_part(&mut self, part: Part, daemon: bool) -> Result<()> {
        self.up(Side::Primary)?;
        self.running()?;
        let pid = self
            .process(part)?
            .with_context(|| format!("{part:?} runs"))?;
        if daemon {
            self.castor.kill_daemon()?;
        }
        kill(pid)?;
        self.up(Side::Primary)?;
        match part {
            Part::Diskd => {
                writes_on(&self.castor, "web", BATCH, MINUTE)?;
            }
            Part::Vmd | Part::Guest => {
                self.becomes("off")?;
                self.running()?;
            }
        }
        Ok(())
    }

    fn kill_all(&mut self, part: Part, ms: u64) -> Result<()> {
        self.up(Side::Primary)?;
        self.running()?;
        let pid = self
            .process(part)?
            .with_context(|| format!("{part:?} runs"))?;
        self.pollux.kill_daemon()?;
        self.castor.kill_daemon()?;
        kill(pid)?;
        sleep(Duration::from_millis(ms));
        self.connected()?;
        if part != Part::Diskd {
            self.becomes("off")?;
        }
        self.running()
    }

    fn kill_in_start(&mut self, ms: u64) -> Result<()> {
        self.connected()?;
        self.off()?;
        let mut start = self
            .castor
            .command(&["vm", "start", "web"])?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        sleep(Duration::from_millis(ms));
        self.castor.kill_daemon()?;
        start.wait()?;
        self.up(Side::Primary)?;
        self.running()
    }

    fn kill_while_off(&mut self, part: Part) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        let written = writes_on(&self.castor, "web", BATCH, MINUTE)?;
        self.off()?;
        let pid = until(MINUTE, "the disks are served while the VM is off", || {
            self.process(part)
        })?;
        kill(pid)?;
        self.caught_up(written)?;
        self.running()
    }

    fn suspend(&mut self, lasting: Option<u64>) -> Result<()> {
        self.up(Side::Primary)?;
        self.castor.pollux(&["replica", "pause", "web"])?;
        self.suspended = true;
        until(MINUTE, "the status says that it is suspended", || {
            let status = self.castor.json(&["replica", "status", "web"])?;
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
            self.castor.pollux(&["replica", "resume", "web"])?;
            self.suspended = false;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.connected()?;
        self.running()?;
        self.castor.pollux(&["vm", "stop", "web"])?;
        ensure!(
            self.state()? == "off",
            "a VM that was stopped is {}",
            self.state()?
        );
        self.running()
    }

    /// A point that is open stays as it is and where it is while points are taken in and merged.
    fn open(&mut self, daemon: bool) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        self.up(Side::Replica)?;
        // A point may be merged away before it is open.
        let oldest = until(MINUTE, "the oldest point is opened", || {
            let oldest = name(self.points()?.first().context("there are points")?)?;
            let open = ["point", "open", "web", &oldest];
            Ok(self.pollux.json(&open).is_ok().then_some(oldest))
        })?;
        if daemon {
            self.pollux.kill_daemon()?;
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
        self.pollux.pollux(&["point", "close", "web", &oldest])?;
        let judged = judge(&image, Cut::Point).with_context(|| format!("point {oldest}"))?;
        std::fs::remove_file(&image)?;
        let first = *self.judged.entry(oldest.clone()).or_insert(judged);
        ensure!(
            first == judged,
            "point {oldest} was {first:?} and is {judged:?}"
        );
        Ok(())
    }

    fn test(&mut self, part: u64, daemon: bool, diskd: bool) -> Result<()> {
        self.up(Side::Replica)?;
        let copy = "web - Test";
        let name = until(MINUTE, "a point stays while its test begins", || {
            let points = self.points()?;
            let at = usize::try_from(part)? * points.len() / 1000;
            let name = name(points.get(at).context("there are points")?)?;
            let test = ["failover", "test", "web", "--point", &name];
            match self.pollux.pollux(&test) {
                Ok(_) => Ok(Some(name)),
                // It may have been merged meanwhile.
                Err(error) if format!("{error:#}").contains("does not exist") => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        if daemon {
            self.pollux.kill_daemon()?;
            self.up(Side::Replica)?;
        }
        if diskd {
            let show = self.pollux.json(&["vm", "show", copy])?;
            kill(u32::try_from(json_u64(&show, "/processes/diskd")?)?)?;
        }
        let found = self
            .pollux
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
        writes_on(&self.pollux, copy, BATCH, MINUTE)?;
        self.pollux.pollux(&["failover", "stop-test", "web"])?;
        let pinned = self.points()?.iter().any(|point| point["pinned"] == true);
        ensure!(!pinned, "a point is pinned after the test");
        let left = self.pollux.processes()?;
        ensure!(left.is_empty(), "the test leaves {left:?}");
        Ok(())
    }
}
