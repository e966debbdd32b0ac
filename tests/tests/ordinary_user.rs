//! A host that an ordinary user runs. Where the tests are not root's, all of them show that.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use pollux_tests::{FIRST_WRITE, Host, Scratch, json_u64, kill_diskd, writes_on};
use testkit::guest::GuestImages;

/// `nobody`: a user that every system has.
const USER: u32 = 65_534;

#[test]
fn a_guest_runs_and_its_disk_server_is_killed_under_an_ordinary_user() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        eprintln!("not run as root: every other test shows it");
        return Ok(());
    }
    // The checkout may lie where only root may go.
    let home = tempfile::tempdir()?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711))?;
    let scratch = Scratch::new("system/ordinary_user")?;
    let host = Host::start_as(USER, "castor", home.path(), &scratch)?;
    let images = GuestImages::build_or_get()?;
    let put = |file: &Path| -> Result<String> {
        let copy = home.path().join(file.file_name().context("a file")?);
        fs::copy(file, &copy)?;
        Ok(copy.display().to_string())
    };
    let (kernel, initrd) = (put(&images.kernel)?, put(&images.initrd)?);
    let cmdline = "console=ttyS0 no_timer_check quiet pollux.workload=/dev/vda:pause-ms=5";
    host.pollux(&[
        "vm",
        "create",
        "web",
        "--memory",
        "256MiB",
        "--disk",
        "64MiB",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--cmdline",
        cmdline,
    ])?;
    host.pollux(&["vm", "start", "web"])?;
    host.serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    for process in ["diskd", "guest", "vmd"] {
        let shown = host.json(&["vm", "show", "web"])?;
        let pid = json_u64(&shown, &format!("/processes/{process}"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        assert!(
            status.contains(&format!("Uid:\t{USER}\t{USER}\t{USER}")),
            "{process}: {status}"
        );
    }
    kill_diskd(&host, "web")?;
    writes_on(&host, "web", 200)?;
    host.pollux(&["vm", "kill", "web"])?;
    Ok(())
}
