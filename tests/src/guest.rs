//! The quick guest that writes records, as the tests make it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use model::Bytes;
use serde_json::Value;
use testkit::guest::GuestImages;

use crate::{Host, json_u64, kill, until};

/// Until a guest that boots its kernel directly writes its first records.
pub const FIRST_WRITE: Duration = Duration::from_secs(180);

/// Makes the VM `name` with a disk of `size` on which its guest writes records, pausing
/// `pause_ms` after each batch.
///
/// # Errors
/// The guest images cannot be built, or the host refuses.
pub fn create_writer(host: &Host, name: &str, size: &str, pause_ms: u32) -> Result<()> {
    create(
        host,
        name,
        size,
        &format!(" pollux.workload=/dev/vda:pause-ms={pause_ms}"),
    )
}

/// Makes the VM `name` with a disk of `size` which its guest only looks at.
///
/// # Errors
/// The guest images cannot be built, or the host refuses.
pub fn create_idle(host: &Host, name: &str, size: &str) -> Result<()> {
    create(host, name, size, "")
}

fn create(host: &Host, name: &str, size: &str, option: &str) -> Result<()> {
    let images = GuestImages::build_or_get()?;
    let kernel = images.kernel.display().to_string();
    let initrd = images.initrd.display().to_string();
    let cmdline = format!("console=ttyS0 quiet{option}");
    host.pollux(&[
        "vm",
        "create",
        name,
        "--memory",
        "256MiB",
        "--disk",
        size,
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--cmdline",
        &cmdline,
    ])?;
    Ok(())
}

/// The number in the last whole `flushed` line of a serial log: records 1 to that are durable.
#[must_use]
pub fn flushed(log: &str) -> Option<u64> {
    let whole = &log[..log.rfind('\n')?];
    let line = whole
        .lines()
        .rev()
        .find(|line| line.contains("pollux-workload: flushed"))?;
    line.rsplit(' ').next()?.trim().parse().ok()
}

/// Waits until the guest of `vm` flushed `more` records more than now; gives how many it has.
///
/// # Errors
/// It does not within `limit`, or saw an error.
pub fn writes_on(host: &Host, vm: &str, more: u64, limit: Duration) -> Result<u64> {
    let start = flushed(&host.serial_log(vm)?).unwrap_or(0);
    until(limit, "the guest writes on", || {
        let log = host.serial_log(vm)?;
        ensure!(!log.contains("FAILED"), "the guest saw an error");
        Ok(flushed(&log).filter(|now| *now >= start + more))
    })
}

/// Waits until the twin of `vm`, which does not write any more, lacks nothing.
///
/// # Errors
/// Changes still wait after two minutes.
pub fn nothing_pending(host: &Host, vm: &str) -> Result<()> {
    until(Duration::from_secs(120), "all changes went out", || {
        let status = host.json(&["replication", "status", vm])?;
        let pending = status.pointer("/0/pending").and_then(Value::as_str);
        let pending = pending.map(str::parse::<Bytes>).transpose()?;
        Ok((pending == Some(Bytes(0))).then_some(()))
    })
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
