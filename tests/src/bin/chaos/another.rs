//! The point that the VM was failed over to was a bad choice: another one takes its place.
//!
//! ```text
//!   above 5, killed --> failover start --point 3 --drop-writes --> its disk is point 3, the guest finds that
//!                         polluxd killed: above 5 with all that was written, or above 3
//! ```

use anyhow::{Context, Result, ensure};
use pollux_tests::{FIRST_WRITE, until};
use serde_json::Value;

use crate::circle::{BECAUSE, START};
use crate::invariants::name;
use crate::operator::Came;
use crate::steps::{Another, Trouble};
use crate::{MINUTE, Pair};

impl Pair {
    /// The VM runs above a point on the host that is not its primary, and goes to another one, which is told.
    pub(super) fn go_to_another(&mut self, another: Another) -> Result<String> {
        let (from, to) = (self.primary, 1 - self.primary);
        self.hosts[to].pollux(&["vm", "kill", "web"])?;
        let left = self.stands_on(to)?;
        let killed = !matches!(another.trouble, Trouble::None);
        let written = killed.then(|| self.disk_hash(to)).transpose()?;
        let listed = self.listed(to)?;
        let at = usize::try_from(another.point)? * listed.len() / 1000;
        let newest = listed.last().context("there are points")?;
        let point = listed.get(at).unwrap_or(newest).clone();
        let mut start = vec!["failover", "start", "web", "--point"];
        start.push(if at < listed.len() { &point } else { "latest" });
        // It is asked about what was written.
        self.is_refused(to, &start, 4)?;
        start.push("--drop-writes");
        let alone = !self.hosts[from].is_up() || self.network.is_cut();
        let word: &[&str] = if alone { &BECAUSE } else { &[] };
        start.extend(word);
        self.disturbed(to, &start, another.trouble)?;

        let stands = self.stands_on(to)?;
        ensure!(
            stands == left || stands == point,
            "on the way from point {left} to {point} it is above {stands}"
        );
        let state = until(MINUTE, "what was begun comes to an end", || {
            let state = self.state_on(to)?;
            Ok((state != "starting" && state != "stopping").then_some(state))
        })?;
        if let Some(written) = written.filter(|_| state == "off") {
            let disk = self.disk_hash(to)?;
            let stayed = stands == left && disk == written;
            let went = stands == point && disk == self.point_hash(to, &point)?;
            ensure!(
                stayed || went,
                "killed on the way from point {left} to {point}, it is above {stands} with other content"
            );
            self.say(format_args!(
                "         killed on the way from {left} to {point}: above {stands}"
            ));
            if went {
                self.insist(to, &START, Trouble::None, |_| Ok(false))?;
            }
        }
        let runs = |pair: &Self| Ok(pair.state_on(to)? == "running");
        let came = self.insist(to, &start, Trouble::None, runs)?;
        ensure!(matches!(came, Came::Done), "{came:?}");
        self.is_at(to, &point)?;
        let still = self.listed(to)?;
        let gone = listed.iter().find(|point| !still.contains(point));
        ensure!(
            gone.is_none(),
            "point {gone:?} is gone since the VM went from {left} to {point}"
        );
        self.done.others += 1;
        self.say(format_args!("         went from {left} to {point}"));
        Ok(point)
    }

    /// The VM runs above this point, which its disk was when it was started, and its guest found that.
    fn is_at(&mut self, at: usize, point: &str) -> Result<()> {
        let stands = self.stands_on(at)?;
        ensure!(stands == point, "it is above {stands} and not {point}");
        ensure!(
            self.checkpoint_hash(at)? == self.point_hash(at, point)?,
            "its disk was something else than point {point}"
        );
        let judged = self.judge_point_on(at, point)?;
        let judged = judged.context("a pinned point stays")?;
        // Its folder is another one, so its log begins there.
        let found = self.hosts[at].serial_line("web", 0, "pollux-workload: found", FIRST_WRITE)?;
        let expected = format!("committed {} newest", judged.committed);
        ensure!(
            found.ends_with(": right") && found.contains(&expected),
            "above point {point}, which has {judged:?}, the guest says `{found}`"
        );
        self.hosts[at].serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
        Ok(())
    }

    /// The point that the VM is failed over to.
    fn stands_on(&self, at: usize) -> Result<String> {
        until(MINUTE, "one point is pinned", || {
            let points = self.hosts[at].json(&["point", "list", "web"])?;
            let pinned = points.as_array().into_iter().flatten();
            let pinned: Vec<&Value> = pinned.filter(|point| point["pinned"] == true).collect();
            match pinned[..] {
                [point] => Ok(Some(name(point)?)),
                _ => Ok(None),
            }
        })
    }

    fn listed(&self, at: usize) -> Result<Vec<String>> {
        let points = self.hosts[at].json(&["point", "list", "web"])?;
        points
            .as_array()
            .context("a list")?
            .iter()
            .map(name)
            .collect()
    }

    pub(super) fn point_hash(&self, at: usize, point: &str) -> Result<blake3::Hash> {
        self.hash(at, &["point", "export", "web", point])
    }

    /// What the disk was when the VM was started after the failover.
    fn checkpoint_hash(&self, at: usize) -> Result<blake3::Hash> {
        let export = ["disk", "export", "--checkpoint", "failover", "web", "0"];
        self.hash(at, &export)
    }
}
