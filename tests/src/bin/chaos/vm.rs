//! The VM on its primary.

use anyhow::{Result, ensure};
use pollux_tests::{FIRST_WRITE, text, until};
use serde_json::Value;

use crate::steps::Part;
use crate::{MINUTE, Pair};

impl Pair {
    pub(super) fn state(&self) -> Result<String> {
        let show = self.castor.json(&["vm", "show", "web"])?;
        Ok(text(&show, "/vm/state")?.to_owned())
    }

    pub(super) fn becomes(&self, state: &str) -> Result<()> {
        until(MINUTE, &format!("the VM is {state}"), || {
            Ok((self.state()? == state).then_some(()))
        })
    }

    pub(super) fn process(&self, part: Part) -> Result<Option<u32>> {
        let show = self.castor.json(&["vm", "show", "web"])?;
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
            self.castor.pollux(&["vm", "kill", "web"])?;
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
        let before = self.castor.serial_log("web")?.len();
        let started = self.castor.pollux(&["vm", "start", "web"]);
        if let Err(error) = started {
            let cut = self.wire.is_cut() || !self.pollux.is_up();
            let unasked = format!("{error:#}").contains("does not answer");
            ensure!(cut && unasked, "a start was refused: {error:#}");
            self.say(format_args!("         not started unasked; mended first"));
            self.connected()?;
            self.castor.pollux(&["vm", "start", "web"])?;
        }
        let found =
            self.castor
                .serial_line("web", before, "pollux-workload: found", FIRST_WRITE)?;
        ensure!(found.ends_with(": right"), "the guest found: {found}");
        self.castor
            .serial_line("web", before, "pollux-workload: flushed", FIRST_WRITE)?;
        Ok(())
    }
}
