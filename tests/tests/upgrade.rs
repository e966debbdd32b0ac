//! `pollux vm upgrade` under a guest that writes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use pollux_tests::{
    FIRST_WRITE, Host, Scratch, create_writer, json_u64, judge, no_bad_news, text, writes_on,
};
use testkit::workload::Cut;

fn diskd(host: &Host) -> Result<(u64, PathBuf)> {
    let pid = json_u64(&host.json(&["vm", "show", "web"])?, "/processes/diskd")?;
    Ok((pid, fs::read_link(format!("/proc/{pid}/exe"))?))
}

#[test]
fn a_disk_server_is_upgraded_under_a_guest_that_writes_and_a_broken_one_is_refused() -> Result<()> {
    let scratch = Scratch::new("system/upgrade")?;
    let host = Host::start_installed("castor", &scratch)?;
    create_writer(&host, "web", "32MiB", 5)?;
    host.pollux(&["vm", "start", "web"])?;
    host.serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    let before = host.json(&["vm", "show", "web"])?;
    let (old, program) = diskd(&host)?;

    // A new program under the same name, as a package manager puts it there.
    let new = program.with_extension("new");
    fs::copy(&program, &new)?;
    fs::rename(&new, &program)?;
    host.pollux(&["vm", "upgrade", "web"])?;
    let (upgraded, now) = diskd(&host)?;
    assert_ne!(upgraded, old);
    assert_eq!(now, program, "the program that is installed now");
    writes_on(&host, "web", 200)?;

    // One that ends before it serves: refused with what it said, and the old one goes on.
    let kept = program.with_extension("kept");
    fs::rename(&program, &kept)?;
    fs::write(
        &program,
        "#!/bin/sh\necho this program is broken >&2\nexit 1\n",
    )?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let refusal = host.refused(&["vm", "upgrade", "web"])?;
    assert!(
        refusal.message.contains("this program is broken"),
        "{}",
        refusal.message
    );
    writes_on(&host, "web", 200)?;
    fs::rename(&kept, &program)?;
    let written = writes_on(&host, "web", 200)?;

    let after = host.json(&["vm", "show", "web"])?;
    let guest = "/processes/guest";
    assert_eq!(json_u64(&after, guest)?, json_u64(&before, guest)?);
    host.pollux(&["vm", "kill", "web"])?;
    no_bad_news(&host.serial_log("web")?)?;
    let file = PathBuf::from(text(&after, "/disks/0/file").context("a disk")?);
    assert!(judge(&file, Cut::Point)?.committed >= written);
    Ok(())
}
