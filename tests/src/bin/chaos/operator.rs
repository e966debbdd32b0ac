//! A person who is told no, and goes the way out that the refusal names.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pollux_tests::{freeze, thaw, until};

use crate::steps::Trouble;
use crate::{MINUTE, Pair};

/// Longest way out.
const LIMIT: Duration = Duration::from_secs(120);
/// Who waits for what does not come while the network is away gives up after so long.
const PATIENCE: Duration = Duration::from_secs(15);
/// A refusal is taken at its word this often.
const AGAIN: Duration = Duration::from_millis(200);
/// Of what refusals name, the commands that lose nothing which is wanted.
const HARMLESS: [&str; 6] = [
    "failover complete web",
    "failover lost-writes web --drop",
    "failover start web",
    "replica server enable",
    "vm kill web",
    "vm start web",
];

/// What came of a command.
#[derive(Debug)]
pub(super) enum Came {
    Done,
    /// What it names is not there.
    NotFound(String),
}

impl Pair {
    /// Gives the host `at` a command while `trouble` comes, and then again, on the ways out that its
    /// refusals name, until it is done.
    pub(super) fn insist(
        &mut self,
        at: usize,
        command: &[&str],
        trouble: Trouble,
        is_done: impl Fn(&Self) -> Result<bool>,
    ) -> Result<Came> {
        self.disturbed(at, command, trouble)?;
        let begun = Instant::now();
        let mut last = String::new();
        loop {
            if is_done(self)? {
                return Ok(Came::Done);
            }
            let output = self.hosts[at].command(command)?.output()?;
            if output.status.success() {
                return Ok(Came::Done);
            }
            let refusal = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if output.status.code() == Some(3) {
                return Ok(Came::NotFound(refusal));
            }
            ensure!(!refusal.contains("QEMU did not answer"), "{refusal}");
            let is_new = refusal != last;
            if is_new {
                self.say(format_args!("         refused: {refusal}"));
                last.clone_from(&refusal);
            }
            self.go(ways_out(at, &refusal), is_new);
            ensure!(
                begun.elapsed() < LIMIT,
                "no way out of what host {} says to `pollux {}`: {refusal}",
                self.hosts[at].name(),
                command.join(" ")
            );
            sleep(AGAIN);
        }
    }

    /// Goes ways out, and those that their own refusals name.
    fn go(&self, mut ways: Vec<(usize, String)>, told: bool) {
        let mut went = BTreeSet::new();
        while let Some((host, way)) = ways.pop() {
            if !went.insert((host, way.clone())) {
                continue;
            }
            let command: Vec<&str> = way.split(' ').collect();
            let came = match self.hosts[host].pollux(&command) {
                Ok(_) => "done".to_owned(),
                Err(error) => {
                    let refusal = format!("{error:#}");
                    ways.extend(ways_out(host, &refusal));
                    refusal
                }
            };
            if told {
                let name = self.hosts[host].name();
                self.say(format_args!(
                    "         {name}$ pollux {way}: {}",
                    came.trim()
                ));
            }
        }
    }

    /// What `trouble` breaks is whole again afterwards.
    pub(super) fn disturbed(
        &mut self,
        at: usize,
        command: &[&str],
        trouble: Trouble,
    ) -> Result<()> {
        let there = 1 - at;
        let (was_up, was_cut) = (self.hosts[there].is_up(), self.network.is_cut());
        match trouble {
            Trouble::None => return Ok(()),
            Trouble::Cut(bytes) => self.network.cut_after(bytes),
            Trouble::FullThere(_) => self.rooms[there].fill(0)?,
            _ => {}
        }
        let mut asked = self.hosts[at]
            .command(command)?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let wait = |ms| sleep(Duration::from_millis(ms));
        match trouble {
            Trouble::None | Trouble::Cut(_) => {}
            Trouble::KillHere(ms) => {
                wait(ms);
                self.hosts[at].kill_daemon()?;
            }
            Trouble::KillThere(ms) => {
                wait(ms);
                self.hosts[there].kill_daemon()?;
            }
            Trouble::KillBoth(ms) => {
                wait(ms);
                self.hosts[at].kill_daemon()?;
                self.hosts[there].kill_daemon()?;
            }
            Trouble::FreezeThere(ms) => {
                if let Some(pid) = self.hosts[there].daemon_id() {
                    freeze(pid)?;
                    wait(ms);
                    thaw(pid)?;
                }
            }
            Trouble::FullThere(ms) => {
                wait(ms);
                self.rooms[there].make_room()?;
            }
        }
        has_patience(&mut asked, PATIENCE)?;
        if !self.hosts[at].is_up() {
            self.hosts[at].start_daemon()?;
        }
        if was_up && !self.hosts[there].is_up() {
            self.hosts[there].start_daemon()?;
        }
        if !was_cut {
            self.network.mend();
        }
        Ok(())
    }

    /// Gives a command that must be refused with this exit code, and a way out.
    pub(super) fn is_refused(&self, at: usize, command: &[&str], exit: i32) -> Result<()> {
        let refused = self.hosts[at].refused(command)?;
        ensure!(
            refused.exit == exit
                && (refused.message.contains("`pollux ") || refused.message.contains("--force")),
            "pollux {}: {refused:?}",
            command.join(" ")
        );
        Ok(())
    }

    /// How replication stands on a host.
    pub(super) fn replication(&self, at: usize) -> Result<String> {
        let status = self.hosts[at].json(&["replica", "status", "web"])?;
        let state = status.pointer("/0/state").and_then(|state| state.as_str());
        Ok(state.context("a state")?.to_owned())
    }

    /// What a VM does on a host; off where it is a twin.
    pub(super) fn state_on(&self, at: usize) -> Result<String> {
        let show = self.hosts[at].json(&["vm", "show", "web"])?;
        let state = show.pointer("/vm/state").and_then(|state| state.as_str());
        Ok(state.context("a state")?.to_owned())
    }

    /// The longest that anything may take which goes on by itself.
    pub(super) fn wait(&self, what: &str, look: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        pollux_tests::until(2 * MINUTE, what, || Ok(look(self)?.then_some(())))
    }
}

/// The commands in a refusal of the host `at` that lose nothing, and where they belong.
fn ways_out(at: usize, refusal: &str) -> Vec<(usize, String)> {
    // `from there` is a point, and no place.
    let elsewhere = refusal.replace("from there", "").contains(" there");
    let host = if elsewhere { 1 - at } else { at };
    let quoted = refusal.split('`').skip(1).step_by(2);
    let commands = quoted.filter_map(|text| text.strip_prefix("pollux "));
    commands
        .filter(|command| HARMLESS.contains(command))
        .map(|command| (host, command.to_owned()))
        .collect()
}

/// Waits for whoever asked for something, who goes away when it takes too long.
pub(super) fn has_patience(asked: &mut Child, limit: Duration) -> Result<()> {
    let since = Instant::now();
    let ended = until(MINUTE, "who asked gives up", || {
        let ended = asked.try_wait()?.is_some();
        Ok((ended || since.elapsed() > limit).then_some(ended))
    })?;
    if !ended {
        asked.kill()?;
        asked.wait()?;
    }
    Ok(())
}
