//! The end: the twin takes over.

use anyhow::{Context, Result, ensure};
use pollux_tests::{BAD_NEWS, FIRST_WRITE, flushed, json_u64, kill, until, writes_on};
use testkit::Rng;

use crate::invariants::name;
use crate::{BATCH, MINUTE, Pair};

impl Pair {
    pub(super) fn stand_down(&mut self) -> Result<()> {
        self.off()?;
        let written = flushed(&self.castor.serial_log("web")?).context("records")?;
        self.caught_up(written)?;
        let latest = name(self.points()?.last().context("a point")?)?;
        self.pollux
            .pollux(&["failover", "start", "web", "--point", &latest])?;
        self.taken_over(&latest)
    }

    pub(super) fn forced(&mut self, rng: &mut Rng) -> Result<()> {
        self.wire.cut();
        if rng.once_in(2) {
            self.castor.kill_everything()?;
        } else {
            // The guest runs on: two run until first contact.
            self.castor.kill_daemon()?;
        }
        let points = self.points()?;
        let chosen = name(&points[rng.index(points.len())])?;
        let refused = self
            .pollux
            .refused(&["failover", "start", "web", "--point", &chosen])?;
        ensure!(refused.exit == 6, "without a word: {refused:?}");
        let because = ["--force", "--because", "chaos"];
        let mut force = vec!["failover", "start", "web", "--point", &chosen];
        force.extend(because);
        self.pollux.pollux(&force)?;
        self.castor.start_daemon()?;
        self.wire.mend();
        self.taken_over(&chosen)
    }

    /// The twin's guest finds what the point holds and writes on; the old primary is held.
    fn taken_over(&mut self, point: &str) -> Result<()> {
        let judged = self.judge_point(point)?.context("a pinned point stays")?;
        let found = self
            .pollux
            .serial_line("web", 0, "pollux-workload: found", FIRST_WRITE)?;
        let expected = format!("committed {} newest", judged.committed);
        ensure!(
            found.ends_with(": right") && found.contains(&expected),
            "the twin's guest says `{found}`, and the point has {judged:?}"
        );
        writes_on(&self.pollux, "web", BATCH, MINUTE)?;
        until(MINUTE, "the old primary is held", || {
            let status = self.castor.json(&["replica", "status", "web"])?;
            let held = status.pointer("/0/state") == Some(&"stood-down".into());
            Ok((held && self.state()? != "running").then_some(()))
        })?;
        if self.state()? != "off" {
            self.castor.pollux(&["vm", "kill", "web"])?;
        }
        let refused = self.castor.refused(&["vm", "start", "web"])?;
        ensure!(refused.exit == 4, "the old primary starts: {refused:?}");
        until(MINUTE, "the old primary runs nothing", || {
            Ok(self.castor.processes()?.is_empty().then_some(()))
        })
        .with_context(|| format!("{:?}", self.castor.processes()))?;
        // The twin lives on through what a VM lives through.
        let show = self.pollux.json(&["vm", "show", "web"])?;
        kill(u32::try_from(json_u64(&show, "/processes/diskd")?)?)?;
        self.pollux.kill_daemon()?;
        self.pollux.start_daemon()?;
        writes_on(&self.pollux, "web", BATCH, MINUTE)?;
        self.pollux.pollux(&["vm", "kill", "web"])?;
        let before = self.pollux.serial_log("web")?;
        ensure!(
            !BAD_NEWS.iter().any(|bad| before.contains(bad)),
            "the twin's guest saw an error"
        );
        self.pollux.pollux(&["vm", "start", "web"])?;
        let found =
            self.pollux
                .serial_line("web", before.len(), "pollux-workload: found", FIRST_WRITE)?;
        ensure!(
            found.ends_with(": right"),
            "started again, the twin found: {found}"
        );
        self.pollux.pollux(&["vm", "kill", "web"])?;
        until(MINUTE, "the new primary runs nothing", || {
            Ok(self.pollux.processes()?.is_empty().then_some(()))
        })
    }
}
