//! The VM goes to the other host and is replicated back from there: the roles have changed.
//!
//! ```text
//!   planned: prepare (cancel, prepare) --.
//!   forced:  primary lost ---------------+--> failover start --> (another point) --> (complete) --.
//!                                                                                                 v
//!            lost writes looked at, dropped <-- (cancel, reverse) <-- reverse <-- the former comes back,
//!                                                                                 stands down
//!   called off, before it is complete: the former primary goes on with its twin
//! ```

use anyhow::{Context, Result, bail, ensure};
use pollux_tests::{FIRST_WRITE, flushed, since_start, writes_on};

use crate::invariants::{hex, name, runs};
use crate::lost::{Stopped, TakenOver};
use crate::operator::Came;
use crate::steps::{Again, Circle, Loss, Trouble, Way};
use crate::{BATCH, Pair};

pub(super) const BECAUSE: [&str; 3] = ["--force", "--because", "chaos"];
pub(super) const START: [&str; 3] = ["vm", "start", "web"];

impl Pair {
    pub(super) fn circle(&mut self, circle: Circle) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        let written = writes_on(self.primary(), "web", BATCH)?;
        self.caught_up(written)?;
        self.check()?;
        let (from, to) = (self.primary, 1 - self.primary);
        let [preparation, failover, completion, reversal, _] = circle.troubles;
        let [at_once, later] = circle.others;
        match circle.way {
            Way::Planned(cancelled) => self.prepare(cancelled, preparation)?,
            Way::Forced(loss) => self.lose(loss)?,
        }
        let mut point = self.fail_over(circle, failover)?;
        if let Some(another) = at_once {
            point = self.go_to_another(another).context("to another point")?;
        }
        if let (Way::Forced(_), Again::Successor) = (circle.way, circle.again) {
            self.lose_successor().context("the successor is lost")?;
        }
        let mut disk = self.point_hash(to, &point)?;
        if circle.complete {
            let complete = ["failover", "complete", "web"];
            self.insist(to, &complete, completion, |_| Ok(false))?;
            let state = self.replication(to)?;
            ensure!(state == "failed-over", "completed, it is {state}");
        }
        let lost = self.former_stands_down()?;
        // A failover that is complete has no other point.
        if let Some(another) = later.filter(|_| !circle.complete) {
            let went = self.go_to_another(another);
            point = went.context("to another point, with the former primary")?;
            disk = self.point_hash(to, &point)?;
        }
        if let Some(trouble) = circle.call_off.filter(|_| !circle.complete) {
            let done = self.call_off(trouble, &lost);
            return done.context("the failover is called off");
        }
        self.reverse(to, reversal)?;
        let given = |pair: &mut Self| pair.give_back(circle, from, to);
        if circle.give_back && given(self).context("disks are given back")? {
            return Ok(());
        }
        self.lost_writes(from, circle, &lost, &TakenOver { point, disk })
    }

    /// The primary is off, and its twin lacks nothing.
    fn prepare(&mut self, cancelled: bool, trouble: Trouble) -> Result<()> {
        let from = self.primary;
        let prepare = ["failover", "prepare", "web"];
        self.insist(from, &prepare, trouble, |_| Ok(false))?;
        self.are_equal()?;
        if cancelled {
            self.is_refused(from, &START, 4)?;
            self.primary().pollux(&["failover", "cancel", "web"])?;
            self.running()?;
            self.insist(from, &prepare, Trouble::None, |_| Ok(false))?;
            self.are_equal()?;
        }
        Ok(())
    }

    fn lose(&mut self, loss: Loss) -> Result<()> {
        let (from, to) = (self.primary, 1 - self.primary);
        match loss {
            Loss::Host => self.hosts[from].kill_everything()?,
            Loss::Daemon => self.hosts[from].kill_daemon()?,
            Loss::Network => self.network.cut(),
        }
        // Without a word.
        self.is_refused(to, &["failover", "start", "web"], 6)?;
        self.watch()?.word();
        Ok(())
    }

    /// The twin's guest finds what the point holds, which is told, and writes on.
    fn fail_over(&mut self, circle: Circle, trouble: Trouble) -> Result<String> {
        let to = 1 - self.primary;
        let before = self.hosts[to].serial_log("web").map_or(0, |log| log.len());
        let mut trouble = trouble;
        let newest = loop {
            let points = self.points()?;
            let at = usize::try_from(circle.point)? * points.len() / 1000;
            let newest = points.last().context("the twin has points")?;
            let point = name(points.get(at).unwrap_or(newest))?;
            let mut start = vec!["failover", "start", "web"];
            if at < points.len() {
                start.extend(["--point", &point]);
            } else {
                self.nothing_acknowledged_is_lost(newest)?;
            }
            if let Way::Forced(_) = circle.way {
                start.extend(BECAUSE);
            }
            let runs = |pair: &Self| Ok(pair.state_on(to)? == "running");
            match self.insist(to, &start, trouble, runs)? {
                Came::Done => break at >= points.len(),
                // It may have been merged meanwhile.
                Came::NotFound(why) if at < points.len() => {
                    self.say(format_args!("         {why}"));
                }
                Came::NotFound(why) => bail!("{why}"),
            }
            trouble = Trouble::None;
        };
        // A newer one may have come while the newest was being taken over.
        let points = self.points()?;
        let mut pinned = points.iter().filter(|point| point["pinned"] == true);
        let point = name(pinned.next().context("a point is pinned")?)?;
        let judged = self
            .judge_point_on(to, &point)?
            .context("a pinned point stays")?;
        if newest && matches!(circle.way, Way::Planned(_)) {
            let log = self.primary().serial_log("web")?;
            let written = flushed(since_start(&log)).context("it wrote")?;
            let run = runs(&log).pop().context("a run began")?;
            ensure!(
                hex(judged.run) == run && judged.committed >= written,
                "a planned failover has {judged:?} of {written} of run {run}"
            );
        }
        let found =
            self.hosts[to].serial_line("web", before, "pollux-workload: found", FIRST_WRITE)?;
        let expected = format!("committed {} newest", judged.committed);
        ensure!(
            found.ends_with(": right") && found.contains(&expected),
            "the twin's guest says `{found}`, and point {point} has {judged:?}"
        );
        self.hosts[to].serial_line("web", before, "pollux-workload: flushed", FIRST_WRITE)?;
        self.say(format_args!("         failed over to {point}"));
        Ok(point)
    }

    /// The host that took over dies; the former one runs until it is back.
    fn lose_successor(&mut self) -> Result<()> {
        let (from, to) = (self.primary, 1 - self.primary);
        self.hosts[to].kill_everything()?;
        if !self.hosts[from].is_up() {
            self.hosts[from].start_daemon()?;
        }
        if self.state_on(from)? == "off" {
            let before = self.hosts[from].serial_log("web")?.len();
            self.is_refused(from, &START, 6)?;
            self.hosts[from].pollux(&[&START[..], &BECAUSE[..]].concat())?;
            self.writes_after(from, before)?;
        }
        writes_on(&self.hosts[from], "web", BATCH)?;
        self.hosts[to].start_daemon()?;
        self.network.mend();
        self.watch()?.meet();
        self.wait("the former primary is held", |pair| {
            Ok(pair.replication(from)? == "stood-down")
        })?;
        let before = self.hosts[to].serial_log("web")?.len();
        self.insist(to, &START, Trouble::None, |_| Ok(false))?;
        self.writes_after(to, before)
    }

    /// The former primary is there again, held, and off; what it has.
    pub(super) fn former_stands_down(&mut self) -> Result<Stopped> {
        let (from, to) = (self.primary, 1 - self.primary);
        if !self.hosts[from].is_up() {
            self.hosts[from].start_daemon()?;
        }
        self.network.mend();
        self.watch()?.meet();
        self.wait("the former primary stands down", |pair| {
            let stood_down = pair.replication(from)? == "stood-down";
            Ok(stood_down && pair.state_on(from)? != "running")
        })?;
        self.watch()?.alone();
        self.check_alone()?;
        if self.state_on(from)? == "paused" {
            self.hosts[from].pollux(&["vm", "kill", "web"])?;
        }
        self.is_refused(from, &START, 4)?;
        let log = self.hosts[from].serial_log("web")?;
        let stopped = Stopped {
            run: runs(&log).pop().context("a run began")?,
            written: flushed(since_start(&log)).unwrap_or(0),
            disk: self.disk_hash(from)?,
        };
        writes_on(&self.hosts[to], "web", BATCH)?;
        Ok(stopped)
    }

    pub(super) fn reverse(&mut self, to: usize, trouble: Trouble) -> Result<()> {
        let reverse = ["failover", "reverse", "web"];
        self.insist(to, &reverse, trouble, |_| Ok(false))?;
        self.primary = to;
        self.acknowledged = None;
        self.say(format_args!(
            "         replicated back from {}",
            self.primary().name()
        ));
        Ok(())
    }

    /// The new replica takes its disks back, if it has no point yet, and becomes the replica again, or a twin
    /// is made anew. False: its disks are those that it had.
    fn give_back(&mut self, circle: Circle, from: usize, to: usize) -> Result<bool> {
        self.network.cut();
        let cancel = self.hosts[from]
            .command(&["failover", "cancel", "web"])?
            .output()?;
        if !cancel.status.success() {
            let refusal = String::from_utf8_lossy(&cancel.stderr);
            // With the first point those of which nothing was lost are gone, too.
            let known = ["has recovery points already", "has no disks of its own"];
            ensure!(known.iter().any(|part| refusal.contains(part)), "{refusal}");
            self.network.mend();
            return Ok(false);
        }
        self.say(format_args!(
            "         disks given back before the first point"
        ));
        self.is_refused(from, &START, 4)?;
        self.network.mend();
        self.wait("the new primary says that it stands still", |pair| {
            Ok(pair.replication(to)? == "error")
        })?;
        if circle.drop {
            self.reverse(to, Trouble::None)?;
            return Ok(false);
        }
        // The other way out, and the one that `replica enable` names then.
        self.hosts[to].pollux(&["replica", "remove", "web"])?;
        let former = self.hosts[from].name().to_owned();
        let enable = [
            "replica",
            "enable",
            "web",
            "--to",
            &former,
            "--frequency",
            "1s",
        ];
        self.is_refused(to, &enable, 4)?;
        self.hosts[from].pollux(&["vm", "delete", "web"])?;
        let is_enabled = |pair: &Self| Ok(pair.replication(to).is_ok());
        self.insist(to, &enable, Trouble::None, is_enabled)?;
        Ok(true)
    }
}
