//! The VM on its primary.

use anyhow::{Result, ensure};
use pollux_tests::{FIRST_WRITE, text, until};
use serde_json::Value;

use crate::steps::Part;
use crate::{MINUTE, Pair};

impl Pair {
    pub(super) fn state(&self) -> Result<String> {
        let show = self.primary().json(&["vm", "show", "web"])?;
        Ok(text(&show, "/vm/state")?.to_owned())
    }

    pub(super) fn becomes(&self, state: &str) -> Result<()> {
        until(MINUTE, &format!("the VM is {state}"), || {
            Ok((self.state()? == state).then_some(()))
        })
    }

    pub(super) fn process(&self, part: Part) -> Result<Option<u32>> {
        let show = self.primary().json(&["vm", "show", "web"])?;
        let field = match part {
            Part::Vmd => "/processes/vmd",
            Part::Diskd => "/processes/diskd",
            Part::Guest => "/processes/guest",
        };
        let pid = show.pointer(field).and_then(Value::as_u64);
        Ok(pid.map(u32::try_from).transpose()?)
    }

    pub(super) fn off(&self) -> Result<()> {
        if self.state()? != "off" {
            self.primary().pollux(&["vm", "kill", "web"])?;
        }
        ensure!(
            self.state()? == "off",
            "a VM that was killed is {}",
            self.state()?
        );
        Ok(())
    }

    /// The guest runs; started if it does not, and then it finds its records right.
    pub(super) fn running(&mut self) -> Result<()> {
        let state = until(MINUTE, "the VM is off or runs", || {
            let state = self.state()?;
            Ok((state != "starting" && state != "stopping").then_some(state))
        })?;
        if state == "running" {
            return Ok(());
        }
        ensure!(state == "off", "the VM is {state}");
        let before = self.primary().serial_log("web")?.len();
        let started = self.primary().pollux(&["vm", "start", "web"]);
        if let Err(error) = started {
            let cut = self.network.is_cut() || !self.replica().is_up();
            let unasked = format!("{error:#}").contains("does not answer");
            ensure!(cut && unasked, "a start was refused: {error:#}");
            self.say(format_args!("         not started unasked; mended first"));
            self.connected()?;
            self.primary().pollux(&["vm", "start", "web"])?;
        }
        self.writes_after(self.primary, before)
    }

    /// A guest that was started when its serial log had so many bytes finds its records right, and writes.
    pub(super) fn writes_after(&self, at: usize, before: usize) -> Result<()> {
        let line = |what| self.hosts[at].serial_line("web", before, what, FIRST_WRITE);
        let found = line("pollux-workload: found")?;
        ensure!(found.ends_with(": right"), "the guest found: {found}");
        line("pollux-workload: flushed").map(drop)
    }
}
