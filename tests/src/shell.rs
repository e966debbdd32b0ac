//! What a test types into the shell on a guest's serial port, and what the guest answers.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{Host, until};

/// For what a guest does at once, on a machine that is busy.
const MINUTE: Duration = Duration::from_secs(60);
/// Nothing of a line is shown after this long: it is typed again.
const LOST: Duration = Duration::from_secs(15);
/// So much of a line tells that it is shown.
const SHOWN: usize = 6;
/// The shell waits for the next line.
const PROMPT: &str = "/ # ";

/// Types `line` into the shell of `vm` and waits until the guest says `marker` in a line that comes
/// after it; gives that line. What is typed is shown too, so it must not hold the marker as it is.
///
/// # Errors
/// There is no shell, or no such line in time.
pub fn type_in(host: &Host, vm: &str, line: &str, marker: &str) -> Result<String> {
    let before = host.serial_log(vm)?.len();
    let mut console: Option<Child> = None;
    let mut typed = Instant::now();
    let start: String = line.chars().take(SHOWN).collect();
    let found = until(2 * MINUTE, &format!("the guest answers `{line}`"), || {
        let log = host.serial_log(vm)?;
        let new = log.get(before..).unwrap_or_default();
        // What comes before the shell has its terminal again is lost.
        if typed.elapsed() > LOST && !new.contains(&start) {
            if let Some(mut lost) = console.take() {
                lost.kill()?;
                lost.wait()?;
            }
        }
        if console.is_none() {
            console = keyboard(host, vm, line)?;
            typed = Instant::now();
        }
        let whole = &new[..new.rfind('\n').map_or(0, |end| end + 1)];
        let answer = whole.lines().find(|line| line.contains(marker));
        Ok(answer.filter(|_| new.contains(PROMPT)).map(str::to_owned))
    });
    if let Some(mut console) = console {
        console.kill()?;
        console.wait()?;
    }
    found
}

/// A connected console into which `line` was typed; none while the one before it is being closed.
fn keyboard(host: &Host, vm: &str, line: &str) -> Result<Option<Child>> {
    let mut console = host
        .command(&["vm", "console", vm])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let typed = console.stdin.as_mut().context("a pipe")?;
    // Fails only when it was refused.
    let _ = typed.write_all(format!("{line}\n").as_bytes());
    // The shell shows what is typed: the first byte tells that the line is on its way.
    let mut first = [0];
    let shown = console.stdout.as_mut().context("a pipe")?;
    if shown.read(&mut first)? == 1 {
        return Ok(Some(console));
    }
    let refusal = console.wait_with_output()?;
    let said = String::from_utf8_lossy(&refusal.stderr).into_owned();
    ensure!(said.contains("open elsewhere"), "no console: {said}");
    Ok(None)
}

/// What `command` prints in the shell of `vm`: one line.
///
/// # Errors
/// As [`type_in`].
pub fn ask(host: &Host, vm: &str, command: &str) -> Result<String> {
    const MARKER: &str = "pollux-answer: ";
    let line = format!("echo pollux-ans''wer: $({command})");
    let answer = type_in(host, vm, &line, MARKER)?;
    let (_, answer) = answer.split_once(MARKER).context("it was found by it")?;
    Ok(answer.trim().to_owned())
}

/// The name in the guest's `/dev` of the disk with `size` bytes: which name a disk gets depends on
/// which one is found first.
///
/// # Errors
/// It does not appear within a minute.
pub fn device(host: &Host, vm: &str, size: u64) -> Result<String> {
    let sectors = size / 512;
    let look = format!("grep -lx {sectors} /sys/block/[sv]d*/size | cut -d/ -f4");
    until(MINUTE, &format!("a disk of {sectors} sectors"), || {
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
