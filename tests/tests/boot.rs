//! Both generations boot from firmware through a boot loader and a kernel to a root file system
//! on a Pollux disk.

use std::time::Duration;

use anyhow::Result;
use pollux_tests::{Host, Scratch};
use testkit::guest::GuestImages;

const BOOT: Duration = Duration::from_secs(300);

fn boots(generation: &str, firmware: &str) -> Result<()> {
    let images = GuestImages::build_or_get()?;
    let scratch = Scratch::new(&format!("system/boot-{generation}"))?;
    let host = Host::start("castor", &scratch)?;
    let image = images.disk.display().to_string();
    host.pollux(&[
        "vm",
        "create",
        "guest",
        "--generation",
        generation,
        "--memory",
        "512MiB",
        "--image",
        &image,
    ])?;
    host.pollux(&["vm", "start", "guest"])?;
    let line = host.serial_line("guest", 0, "pollux-guest: firmware", BOOT)?;
    assert!(line.contains(firmware), "{line}");
    host.serial_line("guest", 0, "pollux-guest: root up", BOOT)?;
    host.pollux(&["vm", "stop", "guest"])?;
    let vms = host.json(&["vm", "list"])?;
    assert_eq!(vms.pointer("/0/state"), Some(&"off".into()), "{vms}");
    host.pollux(&["vm", "delete", "guest"])?;
    Ok(())
}

#[test]
fn generation_1_boots_from_bios_and_shuts_down_when_asked() -> Result<()> {
    boots("1", "bios")
}

#[test]
fn generation_2_boots_with_secure_boot_and_shuts_down_when_asked() -> Result<()> {
    boots("2", "uefi")
}
