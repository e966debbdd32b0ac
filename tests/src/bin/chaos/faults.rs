//! What is done, step by step.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use pollux_tests::{freeze, kill, thaw, until, writes_on};

use crate::steps::{Part, Side, Step};
use crate::{BATCH, MINUTE, Pair};

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
                self.network.cut();
                if let Some(ms) = lasting {
                    sleep(Duration::from_millis(ms));
                    self.network.mend();
                }
                Ok(())
            }
            Step::Flicker(bytes, times) => {
                for _ in 0..times {
                    self.break_after(bytes)?;
                    self.network.mend();
                }
                Ok(())
            }
            Step::FlickerAndKill(bytes) => {
                self.break_after(bytes)?;
                self.host(Side::Replica).kill_daemon()?;
                self.network.mend();
                self.up(Side::Replica)
            }
            Step::KillHost(side, lasting, power) => {
                self.host(side).kill_everything()?;
                if power {
                    self.host(side).lose_memory()?;
                }
                if let Some(ms) = lasting {
                    sleep(Duration::from_millis(ms));
                    self.up(side)?;
                }
                Ok(())
            }
            Step::FreezeDaemon(side, ms) => {
                self.up(side)?;
                let pid = self.host(side).daemon_id().context("polluxd runs")?;
                self.freeze(pid, ms)
            }
            Step::Freeze(part, ms) => {
                self.up(Side::Primary)?;
                self.running()?;
                let pid = self.process(part)?;
                self.freeze(pid.with_context(|| format!("{part:?} runs"))?, ms)
            }
            Step::Full(side, ms) => self.full(side, ms),
            Step::Suspend(lasting) => self.suspend(lasting),
            Step::Restart => self.restart(),
            Step::Open(daemon) => self.open(daemon),
            Step::Test(part, daemon, diskd) => self.test(part, daemon, diskd),
            Step::Successor(successor) => self.successor_lost(successor),
            Step::Circle(circle) => self.circle(circle),
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
        self.network.mend();
        Ok(())
    }

    /// Waits until the network broke after `bytes`: something must be on its way.
    fn break_after(&mut self, bytes: u64) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        self.network.cut_after(bytes);
        until(2 * MINUTE, "the network carries something", || {
            Ok(self.network.is_cut().then_some(()))
        })
    }

    fn kill_part(&mut self, part: Part, daemon: bool) -> Result<()> {
        self.up(Side::Primary)?;
        self.running()?;
        let pid = self
            .process(part)?
            .with_context(|| format!("{part:?} runs"))?;
        if daemon {
            self.host(Side::Primary).kill_daemon()?;
        }
        kill(pid)?;
        self.up(Side::Primary)?;
        match part {
            Part::Diskd => {
                writes_on(self.primary(), "web", BATCH)?;
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
        self.host(Side::Replica).kill_daemon()?;
        self.host(Side::Primary).kill_daemon()?;
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
        let before = self.primary().serial_log("web")?.len();
        let mut start = self
            .primary()
            .command(&["vm", "start", "web"])?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        sleep(Duration::from_millis(ms));
        self.host(Side::Primary).kill_daemon()?;
        start.wait()?;
        self.up(Side::Primary)?;
        self.running()?;
        // It may have gone on starting by itself.
        self.writes_after(self.primary, before)
    }

    fn kill_while_off(&mut self, part: Part) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        let written = writes_on(self.primary(), "web", BATCH)?;
        self.off()?;
        let pid = until(MINUTE, "the disks are served while the VM is off", || {
            self.process(part)
        })?;
        kill(pid)?;
        self.caught_up(written)?;
        self.running()
    }

    fn freeze(&self, pid: u32, ms: u64) -> Result<()> {
        freeze(pid)?;
        sleep(Duration::from_millis(ms));
        thaw(pid)
    }

    /// Nothing is lost, and everything goes on by itself.
    fn full(&mut self, side: Side, ms: u64) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        let room = &self.rooms[self.number(side)];
        room.fill(0)?;
        sleep(Duration::from_millis(ms));
        room.make_room()?;
        until(MINUTE, "the guest goes on when there is room", || {
            Ok((self.state()? == "running").then_some(()))
        })?;
        writes_on(self.primary(), "web", BATCH)?;
        Ok(())
    }
}
