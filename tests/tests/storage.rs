//! `kill -9` of the processes around a guest that writes: it notices nothing, and nothing is lost.

use anyhow::{Context, Result};
use pollux_tests::{
    FIRST_WRITE, Host, Scratch, create_writer, json_u64, judge, kill_diskd, writes_on,
};
use testkit::workload::Cut;

const KILLS: usize = 5;

#[test]
fn a_guest_that_writes_survives_kills_of_diskd_and_polluxd_and_loses_nothing() -> Result<()> {
    let scratch = Scratch::new("system/storage")?;
    let mut host = Host::start("castor", &scratch)?;
    create_writer(&host, "web", "64MiB", 0)?;
    host.pollux(&["vm", "start", "web"])?;
    host.serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    for _ in 0..KILLS {
        writes_on(&host, "web", 200)?;
        kill_diskd(&host, "web")?;
    }
    writes_on(&host, "web", 200)?;
    let details = host.json(&["vm", "show", "web"])?;
    // One that waits too long for the one before to end is started once more.
    let restarts = json_u64(&details, "/processes/diskd_restarts")?;
    let kills = KILLS as u64;
    assert!((kills..=kills + 1).contains(&restarts), "{restarts}");

    // polluxd alone, then polluxd and diskd at once.
    let guest = json_u64(&details, "/processes/guest")?;
    host.kill_daemon()?;
    host.start_daemon()?;
    let adopted = host.json(&["vm", "show", "web"])?;
    assert_eq!(
        json_u64(&adopted, "/processes/guest")?,
        guest,
        "the same QEMU is adopted"
    );
    assert_eq!(adopted.pointer("/vm/state"), Some(&"running".into()));
    let diskd = json_u64(&adopted, "/processes/diskd")?;
    host.kill_daemon()?;
    pollux_tests::kill(u32::try_from(diskd)?)?;
    host.start_daemon()?;
    let written = writes_on(&host, "web", 200)?;

    host.pollux(&["vm", "kill", "web"])?;
    let log = host.serial_log("web")?;
    assert!(
        !log.contains("FAILED") && !log.contains("I/O error"),
        "the guest saw an error: {log}"
    );
    let file = host.json(&["vm", "show", "web"])?;
    let file = file
        .pointer("/disks/0/file")
        .and_then(|file| file.as_str())
        .context("a disk file")?;
    // QEMU was killed, the host was not: every write that was issued is there or not, in order.
    let judged = judge(file.as_ref(), Cut::Point)?;
    assert!(
        judged.committed >= written,
        "{} of {written} flushed records",
        judged.committed
    );

    // The next start finds them too.
    let before = log.len();
    host.pollux(&["vm", "start", "web"])?;
    let found = host.serial_line("web", before, "pollux-workload: found", FIRST_WRITE)?;
    assert!(found.ends_with(": right"), "{found}");
    Ok(())
}

#[test]
fn a_second_polluxd_on_the_same_state_folder_is_refused() -> Result<()> {
    let scratch = Scratch::new("system/second")?;
    let host = Host::start("castor", &scratch)?;
    let second = host.daemon_command()?.output()?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(said.contains(&host.state().display().to_string()), "{said}");
    host.pollux(&["host", "status"])?;
    Ok(())
}
