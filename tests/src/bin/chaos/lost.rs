//! What the former primary wrote and never sent: kept as its disk was when it stopped, looked into like any
//! point, and dropped.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pollux_tests::{FIRST_WRITE, json_u64, judge, kill, text, until, writes_on};
use serde_json::Value;
use testkit::workload::Cut;

use crate::invariants::{hash_of, hex, short};
use crate::operator::Came;
use crate::steps::{Circle, Look, Trouble};
use crate::{BATCH, MINUTE, Pair};

const SHOW: [&str; 3] = ["failover", "lost-writes", "web"];
const DROP: [&str; 4] = ["failover", "lost-writes", "web", "--drop"];
const OPEN: [&str; 4] = ["point", "open", "web", "lost-writes"];
const TEST: [&str; 5] = ["failover", "test", "web", "--point", "lost-writes"];
const COPY: &str = "web - Test";

/// A former primary when it had stopped.
pub(super) struct Stopped {
    /// Of its guest.
    pub(super) run: String,
    /// Records of that run which were durable.
    pub(super) written: u64,
    /// Of its disk.
    pub(super) disk: blake3::Hash,
}

/// What its successor began with.
pub(super) struct TakenOver {
    pub(super) point: String,
    /// Of the point's disk.
    pub(super) disk: blake3::Hash,
}

impl Pair {
    /// What the host `from` wrote and never sent is kept as it was, until it is dropped; if there is nothing
    /// of that it goes by itself.
    pub(super) fn lost_writes(
        &mut self,
        from: usize,
        circle: Circle,
        stopped: &Stopped,
        taken: &TakenOver,
    ) -> Result<()> {
        let Some(report) = self.lost_more_than_nothing(from, stopped, taken)? else {
            self.say(format_args!("         nothing was lost, nothing is kept"));
            self.done.needless += 1;
            return Ok(());
        };
        let file = Path::new(text(&report, "/disks/0/file")?).to_owned();
        let kept = judge(&file, Cut::PowerLoss)?;
        ensure!(
            hex(kept.run) != stopped.run || kept.committed >= stopped.written,
            "{kept:?} is kept of {} of run {}",
            stopped.written,
            stopped.run
        );
        ensure!(
            hash_of(&file)? == stopped.disk,
            "{} changed",
            file.display()
        );
        if let Some(look) = circle.look {
            let looked = self.look(from, look, stopped, kept.committed);
            looked.context("what was never sent is looked into")?;
            ensure!(
                hash_of(&file)? == stopped.disk,
                "{} changed when it was looked into",
                file.display()
            );
            self.done.looks += 1;
        }
        if circle.drop {
            let [.., trouble] = circle.troubles;
            self.disturbed(from, &DROP, trouble)?;
            until(
                MINUTE,
                "there is a point instead of what was never sent",
                || {
                    // When it was killed it may be gone already.
                    let shown = self.hosts[from].command(&SHOW)?.output()?;
                    let gone = shown.status.code() == Some(3);
                    Ok((gone || self.hosts[from].pollux(&DROP).is_ok()).then_some(()))
                },
            )?;
            let gone = self.hosts[from].refused(&SHOW)?;
            ensure!(gone.exit == 3, "what was dropped is shown: {gone:?}");
            ensure!(!file.exists(), "what was dropped is there");
        }
        Ok(())
    }

    /// What is said of it, unless it goes by itself with the first point.
    fn lost_more_than_nothing(
        &self,
        from: usize,
        stopped: &Stopped,
        taken: &TakenOver,
    ) -> Result<Option<Value>> {
        until(MINUTE, "nothing is kept if nothing was lost", || {
            let shown = self.hosts[from]
                .command(&["-o", "json"])?
                .args(SHOW)
                .output()?;
            if shown.status.code() == Some(3) {
                ensure!(
                    stopped.disk == taken.disk,
                    "nothing is kept of a disk that was not point {}",
                    taken.point
                );
                return Ok(Some(None));
            }
            ensure!(shown.status.success(), "{shown:?}");
            let report: Value = serde_json::from_slice(&shown.stdout)?;
            let disks = report["disks"].as_array().context("its disks")?;
            let unwritten = |disk: &Value| disk["ranges"].as_array().is_some_and(Vec::is_empty);
            let nothing = disks.iter().all(unwritten) && short(&report["since"])? == taken.point;
            Ok((!nothing).then_some(Some(report)))
        })
    }

    /// It is exported, opened and tested, and is what the disk was; it is kept for as long.
    fn look(&mut self, from: usize, look: Look, stopped: &Stopped, committed: u64) -> Result<()> {
        let export = ["point", "export", "web", "lost-writes"];
        ensure!(
            self.hash(from, &export)? == stopped.disk,
            "what is exported is not what the disk was"
        );
        let [opening, testing, ending] = look.troubles;
        if look.open {
            self.disturbed(from, &OPEN, opening)?;
            // Once more when it was killed; that it is open is as good.
            let _ = self.hosts[from].command(&OPEN)?.output()?;
        }
        if look.test {
            self.test_lost(from, testing)?;
        }
        if look.kill {
            self.hosts[from].kill_daemon()?;
            self.hosts[from].start_daemon()?;
        }
        let refused = self.hosts[from].refused(&DROP)?;
        let names_who = ["failover stop-test", "point close", "no recovery point yet"];
        ensure!(
            names_who.iter().any(|who| refused.message.contains(who)),
            "{refused:?}"
        );
        if look.open {
            let (image, file) = self.image("lost");
            let report = self.hosts[from].json(&SHOW)?;
            let uri = text(&report, "/open/0/uri")?;
            let copied = Command::new("nbdcopy").args([uri, &file]).status()?;
            ensure!(copied.success(), "it cannot be read: {report}");
            let hash = hash_of(&image)?;
            std::fs::remove_file(&image)?;
            ensure!(
                hash == stopped.disk,
                "what is open is not what the disk was"
            );
        }
        if look.test {
            let host = &self.hosts[from];
            let found = host.serial_line(COPY, 0, "pollux-workload: found", FIRST_WRITE)?;
            ensure!(
                found.ends_with(": right") && found.contains(&format!("committed {committed} ")),
                "the copy's guest says `{found}`, and {committed} were committed"
            );
            if look.kill {
                let show = host.json(&["vm", "show", COPY])?;
                kill(u32::try_from(json_u64(&show, "/processes/diskd")?)?)?;
            }
            writes_on(host, COPY, BATCH)?;
            self.end_test(from, ending)?;
        }
        if look.open {
            self.hosts[from].pollux(&["point", "close", "web", "lost-writes"])?;
        }
        Ok(())
    }

    /// A copy of it runs.
    fn test_lost(&mut self, from: usize, trouble: Trouble) -> Result<()> {
        self.disturbed(from, &TEST, trouble)?;
        let show = self.hosts[from].command(&["vm", "show", COPY])?.output()?;
        if show.status.success() && !matches!(trouble, Trouble::None) {
            // It was killed on the way, perhaps before the copy was started.
            self.end_test(from, Trouble::None)?;
        }
        if !show.status.success() || !matches!(trouble, Trouble::None) {
            self.hosts[from].pollux(&TEST)?;
        }
        Ok(())
    }

    fn end_test(&mut self, from: usize, trouble: Trouble) -> Result<()> {
        let end = ["failover", "stop-test", "web"];
        self.disturbed(from, &end, trouble)?;
        if self.hosts[from]
            .command(&["vm", "show", COPY])?
            .output()?
            .status
            .success()
        {
            let came = self.insist(from, &end, Trouble::None, |_| Ok(false))?;
            ensure!(matches!(came, Came::Done), "{came:?}");
        }
        let gone = self.hosts[from].refused(&["vm", "show", COPY])?;
        ensure!(gone.exit == 3, "the test is there still: {gone:?}");
        Ok(())
    }
}
