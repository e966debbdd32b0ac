//! A planned failover whose successor is lost on the way: the VM stays, and lost nothing.
//!
//! ```text
//!   prepare --> failover start --> it writes there
//!      `---------------`-----------------`---------> the other host is lost
//!   cancel --> start, by a word --> the guest has all that it wrote here
//!                |-- the other host is back as it was: its twin again, or replicated to it again
//!                `-- it is lost for good: another one by its name, and a new twin there
//! ```

use std::fs;
use std::process::{Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{FIRST_WRITE, flushed, since_start, until, writes_on};

use crate::circle::{BECAUSE, START};
use crate::operator::has_patience;
use crate::steps::{Stage, Successor, Trouble};
use crate::{BATCH, MINUTE, Pair};

const PREPARE: [&str; 3] = ["failover", "prepare", "web"];
const TAKE_OVER: [&str; 3] = ["failover", "start", "web"];
/// Who waits for the last changes to be sent gives up after so long.
const PATIENCE: Duration = Duration::from_secs(5);

impl Pair {
    pub(super) fn successor_lost(&mut self, successor: Successor) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        let written = writes_on(self.primary(), "web", BATCH)?;
        self.caught_up(written)?;
        self.check()?;
        let (from, to) = (self.primary, 1 - self.primary);
        self.lose_in(successor.stage)?;
        if successor.daemon {
            self.hosts[from].kill_daemon()?;
            self.hosts[from].start_daemon()?;
        }
        let gave_way = self.take_back(successor.stage)?;
        if !successor.back {
            self.replace(to)?;
        } else if gave_way {
            self.comes_back(to)?;
        } else {
            self.hosts[to].start_daemon()?;
            self.watch()?.meet();
            self.wait("its twin is there again", |pair| {
                Ok(pair.replication(from)? == "replicating")
            })?;
            self.watch()?.alone();
        }
        self.done.successors += 1;
        Ok(())
    }

    /// The way of a planned failover, until the host dies on it.
    fn lose_in(&mut self, stage: Stage) -> Result<()> {
        let (from, to) = (self.primary, 1 - self.primary);
        let wait = |ms| sleep(Duration::from_millis(ms));
        if let Stage::Preparing(ms) = stage {
            let mut asked = self.spawn(from, &PREPARE)?;
            wait(ms);
            self.hosts[to].kill_everything()?;
            return has_patience(&mut asked, PATIENCE);
        }
        self.insist(from, &PREPARE, Trouble::None, |_| Ok(false))?;
        self.are_equal()?;
        let before = self.hosts[to].serial_log("web").map_or(0, |log| log.len());
        match stage {
            Stage::Preparing(_) | Stage::Prepared => {}
            Stage::Starting(ms) => {
                let mut asked = self.spawn(to, &TAKE_OVER)?;
                wait(ms);
                self.hosts[to].kill_everything()?;
                asked.wait()?;
            }
            Stage::Started => {
                self.hosts[to].pollux(&TAKE_OVER)?;
                self.writes_after(to, before)?;
            }
        }
        self.hosts[to].kill_everything()
    }

    fn spawn(&self, at: usize, command: &[&str]) -> Result<std::process::Child> {
        let mut command = self.hosts[at].command(command)?;
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(child?)
    }

    /// The primary is given its VM back. Whether it had given way to the host that is lost.
    fn take_back(&mut self, stage: Stage) -> Result<bool> {
        let from = self.primary;
        let state = until(2 * MINUTE, "the guest is off, or runs on", || {
            let state = self.state_on(from)?;
            Ok((state == "off" || state == "running").then_some(state))
        })?;
        let gave_way = self.replication(from)? == "stood-down";
        let mut cancel = self.hosts[from].command(&["failover", "cancel", "web"])?;
        let Output { status, stderr, .. } = cancel.output()?;
        let refusal = String::from_utf8_lossy(&stderr).trim().to_owned();
        match stage {
            // It may not have been prepared yet, or not any more.
            Stage::Preparing(_) => ensure!(
                status.success() || refusal.contains("is not prepared"),
                "{refusal}"
            ),
            _ => ensure!(status.success() || gave_way, "{refusal}"),
        }
        let way = if gave_way {
            "had given way"
        } else {
            "is prepared"
        };
        let told = refusal.split_terminator(". ").next().unwrap_or("free");
        self.say(format_args!(
            "         successor lost; the primary, {state}, {way}; cancelled: {told}"
        ));
        if state == "running" && self.state_on(from)? == "running" {
            writes_on(&self.hosts[from], "web", BATCH)?;
            return Ok(gave_way);
        }
        let log = self.hosts[from].serial_log("web")?;
        let written = flushed(since_start(&log)).unwrap_or(0);
        let refused = self.hosts[from].refused(&START)?;
        ensure!(
            [4, 6].contains(&refused.exit) && refused.message.contains("--force"),
            "{refused:?}"
        );
        self.watch()?.word();
        self.hosts[from].pollux(&[&START[..], &BECAUSE[..]].concat())?;
        let found = self.hosts[from].serial_line(
            "web",
            log.len(),
            "pollux-workload: found",
            FIRST_WRITE,
        )?;
        let committed = found.split(" committed ").nth(1);
        let committed = committed.and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        ensure!(
            found.ends_with(": right") && committed.is_some_and(|committed| committed >= written),
            "{written} were written, and the guest says `{found}`"
        );
        self.writes_after(from, log.len())?;
        Ok(gave_way)
    }

    /// The host that is lost is back, and learns that the VM was taken back from it; it becomes the replica
    /// again.
    fn comes_back(&mut self, to: usize) -> Result<()> {
        let from = 1 - to;
        self.hosts[to].start_daemon()?;
        self.watch()?.meet();
        self.wait("it learns that it was succeeded", |pair| {
            let stands = [pair.replication(from)?, pair.replication(to)?];
            let stood_down = stands[1] == "stood-down" && pair.state_on(to)? != "running";
            Ok(stood_down || stands == ["replicating"; 2])
        })?;
        self.watch()?.alone();
        self.check_alone()?;
        if self.replication(to)? != "stood-down" {
            // It was lost before it took over.
            return Ok(());
        }
        // The way out that it names.
        self.is_refused(to, &START, 4)?;
        for host in [from, to] {
            let gone = |pair: &Self| Ok(pair.replication(host).is_err());
            self.insist(host, &["replica", "remove", "web"], Trouble::None, gone)?;
        }
        self.insist(to, &["vm", "delete", "web"], Trouble::None, |_| Ok(false))?;
        self.enable(from)
    }

    /// The VM gets a new twin.
    fn enable(&mut self, from: usize) -> Result<()> {
        let name = self.hosts[1 - from].name().to_owned();
        let mut enable = vec!["replica", "enable", "web", "--to", &name];
        enable.extend(["--frequency", "1s"]);
        let is_enabled = |pair: &Self| Ok(pair.replication(from).is_ok());
        self.insist(from, &enable, Trouble::None, is_enabled)?;
        self.acknowledged = None;
        Ok(())
    }

    /// Another host by the same name takes the place of one that is lost for good.
    fn replace(&mut self, to: usize) -> Result<()> {
        let from = 1 - to;
        let name = self.hosts[to].name().to_owned();
        let state = self.hosts[to].state().to_owned();
        for entry in fs::read_dir(&state)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else if entry.file_name() != "host.toml" {
                fs::remove_file(entry.path())?;
            }
        }
        self.hosts[to].lose_memory()?;
        self.hosts[to].start_daemon()?;
        let remove = [&["replica", "remove", "web"][..], &BECAUSE[..]].concat();
        self.insist(from, &remove, Trouble::None, |_| Ok(false))?;
        self.watch()?.alone();
        self.hosts[from].pollux(&["host", "untrust", &name])?;
        self.hosts[to].pollux(&["replica", "server", "enable"])?;
        for (here, there) in [(from, to), (to, from)] {
            self.hosts[here].trust(&self.hosts[there], &self.network.address(there))?;
        }
        self.enable(from).context("a new twin")
    }
}
