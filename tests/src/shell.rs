//! What a test types into the shell on a guest's serial port, and what the guest answers.
//!
//! The shell and the programs that it started share the port. Each line is one write of one of
//! them, so lines are whole, but they come in any order. A line is typed only where the shell
//! waits for one: what comes before it has its terminal is lost.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{FIRST_WRITE, Host, until};

/// For what a guest does at once, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(600);
/// The shell waits for the next line.
const PROMPT: &str = "/ # ";

/// Starts `vm` and waits until its shell does.
///
/// # Errors
/// It does not come up.
pub fn start_shell(host: &Host, vm: &str) -> Result<()> {
    let before = host.serial_log(vm)?.len();
    // Of one that is replicated the other host is asked, which may be busy.
    host.insist(&["vm", "start", vm])?;
    shell_waits(host, vm, before, FIRST_WRITE)
}

/// Waits until the shell of `vm` waits for a line, after the first `after` bytes of the serial log.
///
/// # Errors
/// It does not within `limit`.
pub fn shell_waits(host: &Host, vm: &str, after: usize, limit: Duration) -> Result<()> {
    host.serial(vm, after, PROMPT, limit, |new| {
        Ok(new.contains(PROMPT).then_some(()))
    })
}

/// Types `line` into the shell of `vm` and waits until the guest says `marker` in a line that comes
/// after it, and the shell waits for the next; gives the line with the marker. What is typed is
/// shown too, so it must not hold the marker as it is.
///
/// # Errors
/// There is no shell, or no such line in time.
pub fn type_in(host: &Host, vm: &str, line: &str, marker: &str) -> Result<String> {
    let before = host.serial_log(vm)?.len();
    let mut console = Console::type_in(host, vm, line)?;
    let found = host.serial(vm, before, marker, LIMIT, |new| {
        if console.was_refused()? {
            console = Console::type_in(host, vm, line)?;
        }
        let whole = &new[..new.rfind('\n').map_or(0, |end| end + 1)];
        let answer = whole.lines().find(|line| line.contains(marker));
        Ok(answer.filter(|_| new.contains(PROMPT)).map(str::to_owned))
    });
    found.with_context(|| format!("typed: {line}"))
}

/// A console into which a line was typed; closed when dropped.
struct Console(Child);

impl Console {
    fn type_in(host: &Host, vm: &str, line: &str) -> Result<Self> {
        let mut console = host
            .command(&["vm", "console", vm])?
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut keys = console.stdin.take().context("a pipe")?;
        // Fails only when it was refused.
        let _ = keys.write_all(format!("{line}\n").as_bytes());
        Ok(Self(console))
    }

    /// Whether the console before it was still being closed.
    fn was_refused(&mut self) -> Result<bool> {
        if self.0.try_wait()?.is_none() {
            return Ok(false);
        }
        let mut said = String::new();
        let errors = self.0.stderr.as_mut().context("a pipe")?;
        errors.read_to_string(&mut said)?;
        ensure!(said.contains("open elsewhere"), "no console: {said}");
        Ok(true)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `command` prints in the shell of `vm`: one line, or nothing.
///
/// # Errors
/// As [`type_in`].
pub fn ask(host: &Host, vm: &str, command: &str) -> Result<String> {
    // Nothing follows it where the command prints nothing, not even a space.
    const MARKER: &str = "pollux-answer:";
    let line = format!("echo pollux-ans''wer: $({command})");
    let answer = type_in(host, vm, &line, MARKER)?;
    let (_, answer) = answer.split_once(MARKER).context("it was found by it")?;
    Ok(answer.trim().to_owned())
}

/// The name in the guest's `/dev` of the disk with `size` bytes: which name a disk gets depends on
/// which one is found first.
///
/// # Errors
/// It does not appear within ten minutes.
pub fn device(host: &Host, vm: &str, size: u64) -> Result<String> {
    let sectors = size / 512;
    let look = format!("grep -lx {sectors} /sys/block/[sv]d*/size | cut -d/ -f4");
    until(LIMIT, &format!("a disk of {sectors} sectors"), || {
        let name = ask(host, vm, &look)?;
        Ok((!name.is_empty()).then_some(name))
    })
}

/// Begins to write records on `device` of `vm`; the lines about it begin with its name.
///
/// # Errors
/// It does not begin.
pub fn write_on(host: &Host, vm: &str, device: &str, arguments: &str) -> Result<()> {
    let line = format!(
        "pollux-workload /dev/{device} {arguments} | while read -r line; do echo \"{device} $line\"; done &"
    );
    type_in(
        host,
        vm,
        &line,
        &format!("{device} pollux-workload: flushed"),
    )?;
    Ok(())
}
