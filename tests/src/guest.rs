//! The quick guest that writes records, as the tests make it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use model::Bytes;
use serde_json::Value;
use testkit::guest::GuestImages;

use crate::{Host, json_u64, kill, text, until};

/// Until a guest that boots its kernel directly writes its first records, on a machine that is busy.
pub const FIRST_WRITE: Duration = Duration::from_secs(600);
/// Until one that runs writes some more.
const WRITES: Duration = Duration::from_secs(300);

/// Makes the VM `name` with a disk of `size` on which its guest writes records, pausing
/// `pause_ms` after each batch.
///
/// # Errors
/// The guest images cannot be built, or the host refuses.
pub fn create_writer(host: &Host, name: &str, size: &str, pause_ms: u32) -> Result<()> {
    let option = format!(" pollux.workload=/dev/vda:pause-ms={pause_ms}");
    create(host, name, &["--disk", size], &option)
}

/// As [`create_writer`], but it writes to the first `span_mib` MiB of its disk only.
///
/// # Errors
/// As there.
pub fn create_local_writer(host: &Host, name: &str, size: &str, span_mib: u32) -> Result<()> {
    let option = format!(" pollux.workload=/dev/vda:pause-ms=50:span-mib={span_mib}");
    create(host, name, &["--disk", size], &option)
}

/// Makes the VM `name` with a disk of `size` which its guest only looks at.
///
/// # Errors
/// The guest images cannot be built, or the host refuses.
pub fn create_idle(host: &Host, name: &str, size: &str) -> Result<()> {
    create_shell(host, name, &["--disk", size])
}

/// Makes the VM `name` as `arguments` of `pollux vm create` say; its guest waits for what is typed.
///
/// # Errors
/// The guest images cannot be built, or the host refuses.
pub fn create_shell(host: &Host, name: &str, arguments: &[&str]) -> Result<()> {
    create(host, name, arguments, "")
}

fn create(host: &Host, name: &str, arguments: &[&str], option: &str) -> Result<()> {
    let images = GuestImages::build_or_get()?;
    let kernel = images.kernel.display().to_string();
    let initrd = images.initrd.display().to_string();
    // An emulator that gets no processor in time fails the kernel's check of the timer.
    let cmdline = format!("console=ttyS0 no_timer_check quiet{option}");
    let common = [
        "vm",
        "create",
        name,
        "--memory",
        "256MiB",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--cmdline",
        &cmdline,
    ];
    host.pollux(&[&common, arguments].concat())?;
    Ok(())
}

/// What a guest says when it saw an error, or found one.
pub const BAD_NEWS: [&str; 3] = ["FAILED", "FOUND DAMAGE", "I/O error"];

/// The number in the last whole `flushed` line of a serial log: records 1 to that are durable.
#[must_use]
pub fn flushed(log: &str) -> Option<u64> {
    flushed_on(log, "")
}

/// As [`flushed`], in lines that begin with the name of a device.
#[must_use]
pub fn flushed_on(log: &str, device: &str) -> Option<u64> {
    let whole = &log[..log.rfind('\n')?];
    let marker = format!("{device} pollux-workload: flushed ");
    let marker = marker.trim_start();
    whole.lines().rev().find_map(|line| {
        let (_, number) = line.split_once(marker)?;
        number.trim().parse().ok()
    })
}

/// What a guest said since it was started last: its log goes on where an earlier start's ended.
#[must_use]
pub fn since_start(log: &str) -> &str {
    log.rsplit_once("pollux-guest: kernel up")
        .map_or(log, |(_, now)| now)
}

/// Waits until the guest of `vm` flushed `more` records more than now; gives how many it has.
///
/// # Errors
/// It does not within five minutes, or saw an error.
pub fn writes_on(host: &Host, vm: &str, more: u64) -> Result<u64> {
    device_writes_on(host, vm, "", more)
}

/// As [`writes_on`], of a device that [`crate::write_on`] writes on.
///
/// # Errors
/// As there.
pub fn device_writes_on(host: &Host, vm: &str, device: &str, more: u64) -> Result<u64> {
    let start = flushed_on(since_start(&host.serial_log(vm)?), device).unwrap_or(0);
    until(WRITES, &format!("the guest writes on {device}"), || {
        let log = host.serial_log(vm)?;
        no_bad_news(&log)?;
        Ok(flushed_on(since_start(&log), device).filter(|now| *now >= start + more))
    })
}

/// Begins what a guest says of the records that it finds when it starts.
pub const FOUND: &str = "pollux-workload: found";

/// How many records the guest says that it found, all of them right.
///
/// # Errors
/// Some are not.
pub fn found_of(said: &str) -> Result<u64> {
    ensure!(said.ends_with(": right"), "the guest says: {said}");
    let count = said.split(" committed ").nth(1);
    let count = count.and_then(|rest| rest.split(' ').next());
    Ok(count.context("the guest says how many")?.parse()?)
}

/// # Errors
/// The guest saw an error, or found one: the first line that says so.
pub fn no_bad_news(log: &str) -> Result<()> {
    let bad = |line: &&str| BAD_NEWS.iter().any(|news| line.contains(news));
    match log.lines().find(bad) {
        Some(line) => bail!("the guest says: {line}"),
        None => Ok(()),
    }
}

/// Waits until the twin of `vm`, which does not write any more, lacks nothing.
///
/// # Errors
/// It lacks something after three minutes.
pub fn nothing_pending(host: &Host, vm: &str) -> Result<()> {
    const ALL: [&str; 4] = ["suspect", "marked", "sealed", "unconfirmed"];
    until(Duration::from_secs(180), "the twin lacks nothing", || {
        // It is not tracked yet just after a start.
        let left = tracked(host, vm, &ALL).ok();
        Ok((left == Some(0)).then_some(()))
    })
    .with_context(|| format!("{:?}", host.json(&["track", "status", vm])))
}

/// What `pollux track status` says of `vm` in these fields: bytes of all its disks.
///
/// # Errors
/// It cannot be asked.
pub fn tracked(host: &Host, vm: &str, fields: &[&str]) -> Result<u64> {
    let status = host.json(&["track", "status", vm])?;
    let disks = status.pointer("/disks").and_then(Value::as_array);
    let mut sum = 0;
    for disk in disks.context("a list of disks")? {
        for field in fields {
            sum += text(disk, &format!("/tracked/{field}"))?
                .parse::<Bytes>()?
                .0;
        }
    }
    Ok(sum)
}

/// `kill -9` of the diskd of `vm`; returns when another one runs.
///
/// # Errors
/// There is none, or none comes.
pub fn kill_diskd(host: &Host, vm: &str) -> Result<u32> {
    let pid = || json_u64(&host.json(&["vm", "show", vm])?, "/processes/diskd");
    let before = pid().context("diskd runs")?;
    let before = u32::try_from(before)?;
    kill(before)?;
    until(Duration::from_secs(60), "diskd is started again", || {
        Ok(pid()
            .is_ok_and(|now| now != u64::from(before))
            .then_some(()))
    })?;
    Ok(before)
}
