//! The failover was a mistake: it is called off, and the VM goes on where it was.
//!
//! ```text
//!   above a point, killed --> cancel --drop-writes --> its twin again
//!   the former primary, stood down ------------------> started, without a word; it has all that it had
//! ```

use anyhow::{Result, ensure};
use pollux_tests::{json_u64, writes_on};

use crate::circle::START;
use crate::lost::Stopped;
use crate::steps::Trouble;
use crate::{BATCH, Pair};

const CANCEL: [&str; 4] = ["failover", "cancel", "web", "--drop-writes"];

impl Pair {
    /// The VM runs on the host that is not its primary, which is `stopped`.
    pub(super) fn call_off(&mut self, trouble: Trouble, stopped: &Stopped) -> Result<()> {
        let (from, to) = (self.primary, 1 - self.primary);
        self.hosts[to].pollux(&["vm", "kill", "web"])?;
        // It is asked about what was written.
        self.is_refused(to, &CANCEL[..3], 4)?;
        let is_twin = |pair: &Self| {
            let state = pair.replication(to)?;
            Ok(!state.starts_with("failed-over") && state != "stood-down")
        };
        self.insist(to, &CANCEL, trouble, is_twin)?;
        ensure!(
            self.disk_hash(from)? == stopped.disk,
            "the former primary's disk changed"
        );
        let before = self.hosts[from].serial_log("web")?.len();
        self.insist(from, &START, Trouble::None, |_| Ok(false))?;
        self.writes_after(from, before)?;
        let written = writes_on(self.primary(), "web", BATCH)?;
        self.caught_up(written)?;
        let status = self.primary().json(&["replica", "status", "web"])?;
        ensure!(json_u64(&status, "/0/points")? > 0, "{status}");
        self.done.called_off += 1;
        self.say(format_args!("         called off; it goes on where it was"));
        Ok(())
    }
}
