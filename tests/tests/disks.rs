//! Disks on every bus under a guest that writes, while their server is killed at random.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{
    Host, Scratch, create_shell, device, device_writes_on, json_u64, judge, kill, no_bad_news,
    start_shell, text, until, write_on,
};
use testkit::Rng;
use testkit::workload::Cut;

const MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// The longest time from one kill to the next, in milliseconds.
const CALM: u64 = 300;
/// Every so many kills, polluxd goes with diskd.
const WITH_POLLUXD: u64 = 5;

/// The number in the environment variable `name`, or `otherwise`.
fn setting(name: &str, otherwise: u64) -> Result<u64> {
    let value = std::env::var(name).ok();
    let value = value.map(|value| value.parse().with_context(|| format!("{name}={value}")));
    Ok(value.transpose()?.unwrap_or(otherwise))
}

/// The file of the disk in `slot`.
fn file(host: &Host, slot: u64) -> Result<PathBuf> {
    let disks = host.json(&["disk", "info", "web"])?;
    let mut disks = disks.as_array().context("a list")?.iter();
    let disk = disks.find(|disk| disk.pointer("/slot") == Some(&slot.into()));
    Ok(text(disk.context("the disk")?, "/file")?.into())
}

#[test]
fn ide_scsi_and_virtio_disks_of_one_guest_survive_kills_of_their_server_at_random() -> Result<()> {
    let (kills, seed) = (setting("POLLUX_KILLS", 20)?, setting("POLLUX_SEED", 1)?);
    let mut rng = Rng::new(seed);
    let scratch = Scratch::new("system/disks")?;
    let mut host = Host::start("castor", &scratch)?;
    create_shell(&host, "web", &["--generation", "1", "--disk", "24MiB"])?;
    host.pollux(&["disk", "create", "web", "28MiB", "--bus", "scsi"])?;
    host.pollux(&["disk", "create", "web", "32MiB", "--bus", "virtio"])?;
    start_shell(&host, "web")?;
    let mut devices = Vec::new();
    for size in [24, 28, 32] {
        let device = device(&host, "web", size * MIB)?;
        write_on(&host, "web", &device, "pause-ms=5")?;
        devices.push(device);
    }
    let guest = json_u64(&host.json(&["vm", "show", "web"])?, "/processes/guest")?;

    for number in 1..=kills {
        sleep(Duration::from_millis(rng.below(CALM)));
        let diskd = until(MINUTE, "diskd runs", || {
            let details = host.json(&["vm", "show", "web"])?;
            Ok(json_u64(&details, "/processes/diskd").ok())
        })?;
        let polluxd = number % WITH_POLLUXD == 0;
        if polluxd {
            host.kill_daemon()?;
        }
        // It may be the one before, which has ended: then it was killed in its first moments.
        let _ = kill(u32::try_from(diskd)?);
        if polluxd {
            sleep(Duration::from_millis(rng.below(CALM)));
            host.start_daemon()?;
        }
        no_bad_news(&host.serial_log("web")?).with_context(|| format!("kill {number}"))?;
    }
    let mut written = Vec::new();
    for device in &devices {
        let more = device_writes_on(&host, "web", device, 200);
        written.push(more.with_context(|| format!("seed {seed}"))?);
    }
    let details = host.json(&["vm", "show", "web"])?;
    assert_eq!(json_u64(&details, "/processes/guest")?, guest, "one QEMU");
    assert!(json_u64(&details, "/processes/diskd_restarts")? >= kills / 2);
    host.pollux(&["vm", "kill", "web"])?;
    no_bad_news(&host.serial_log("web")?)?;
    for ((slot, device), written) in (0..).zip(&devices).zip(written) {
        let judged = judge(&file(&host, slot)?, Cut::Point)
            .with_context(|| format!("{device}, seed {seed}"))?;
        ensure!(
            judged.committed >= written,
            "{} of {written} flushed records on {device}, seed {seed}",
            judged.committed
        );
    }
    Ok(())
}
