//! Guests whose disks lie on a file system that has no room any more: held, told, and let go on.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{
    Host, Scratch, create_shell, device, device_writes_on, flushed_on, judge, no_bad_news,
    since_start, start_shell, text, type_in, until, write_on,
};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use testkit::workload::Cut;

const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// Set where this test may mount.
const MAY_MOUNT: &str = "POLLUX_MAY_MOUNT";

/// A small file system that is mounted while this lives.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, mib: u64) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(&at)
            .status()?;
        ensure!(status.success(), "cannot mount on {}", at.display());
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755))?;
        Ok(Self(at))
    }

    /// Takes all room but for `free` MiB. In small parts: a guest that writes takes some of it too.
    fn fill(&self, free: u64) -> Result<()> {
        let ballast = File::create(self.0.join("ballast"))?;
        let mut taken = 0;
        loop {
            let space = rustix::fs::statvfs(&self.0)?;
            let left = (space.f_bavail * space.f_frsize).saturating_sub(free * MIB);
            if left == 0 {
                return Ok(());
            }
            let part = left.min(MIB);
            match rustix::fs::fallocate(&ballast, FallocateFlags::empty(), taken, part) {
                Ok(()) => taken += part,
                // The guest was first.
                Err(Errno::NOSPC) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("ballast"))?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What is still open there goes with its process.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Runs the test `name` again where it may mount: as itself when it is root, else in a mount
/// namespace. Whether the caller is that run.
fn may_mount(name: &str) -> Result<bool> {
    if rustix::process::geteuid().is_root() || std::env::var_os(MAY_MOUNT).is_some() {
        return Ok(true);
    }
    let possible = Command::new("unshare").args(["-rm", "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: not root, and `unshare -rm` gives no mount namespace here");
        return Ok(false);
    }
    let status = Command::new("unshare")
        .arg("-rm")
        .arg(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .env(MAY_MOUNT, "1")
        .status()?;
    ensure!(status.success(), "it failed in its mount namespace");
    Ok(false)
}

/// Waits until the guest is held because `place` has no room, makes room, and sees it go on.
fn held_and_let_go(host: &Host, place: &Small, devices: &[String]) -> Result<Vec<u64>> {
    let shown = until(LIMIT, "the guest is held", || {
        let vm = host.json(&["vm", "show", "web"])?;
        let held = vm.pointer("/vm/state") == Some(&"paused".into());
        // Told a moment later when QEMU stopped by itself.
        let told = text(&vm, "/vm/status")?.contains("no room");
        Ok((held && told).then_some(vm))
    })?;
    let status = text(&shown, "/vm/status")?;
    let mount = place.0.display().to_string();
    assert!(status.contains(&mount), "{status}");
    let log = host.serial_log("web")?;
    no_bad_news(&log)?;
    let said = since_start(&log);
    let before: Vec<_> = devices.iter().map(|name| flushed_on(said, name)).collect();
    place.make_room()?;
    until(LIMIT, "the guest goes on by itself", || {
        let vm = host.json(&["vm", "show", "web"])?;
        Ok((vm.pointer("/vm/state") == Some(&"running".into())).then_some(()))
    })?;
    let mut written = Vec::new();
    for (device, before) in devices.iter().zip(before) {
        let now = device_writes_on(host, "web", device, 200, LIMIT)?;
        assert!(Some(now) > before, "{device}");
        written.push(now);
    }
    Ok(written)
}

fn disk_file(folder: &Path, name: &str, size: u64) -> Result<String> {
    let path = folder.join(name);
    File::create_new(&path)?.set_len(size)?;
    path.into_os_string().into_string().ok().context("UTF-8")
}

#[test]
fn a_guest_without_room_is_held_and_goes_on_when_there_is_some() -> Result<()> {
    if !may_mount("a_guest_without_room_is_held_and_goes_on_when_there_is_some")? {
        return Ok(());
    }
    let scratch = Scratch::new("system/full")?;
    let small = Small::mount(scratch.state().join("small"), 96)?;
    let host = Host::start("castor", &scratch)?;
    let ide = disk_file(&small.0, "ide.raw", 24 * MIB)?;
    let virtio = disk_file(&small.0, "virtio.raw", 28 * MIB)?;
    create_shell(&host, "web", &["--generation", "1", "--disk-file", &ide])?;
    host.pollux(&["disk", "attach", "web", &virtio, "--bus", "virtio"])?;
    start_shell(&host, "web")?;
    let mut devices = Vec::new();
    for size in [24, 28] {
        devices.push(device(&host, "web", size * MIB)?);
    }
    // Each bus is the first that has no room; the other one is held with it.
    let order = [&devices[0], &devices[1]];
    write_on(&host, "web", order[0], "pause-ms=5")?;
    small.fill(2)?;
    held_and_let_go(&host, &small, &devices[..1])?;
    write_on(&host, "web", order[1], "pause-ms=5")?;
    small.fill(1)?;
    let written = held_and_let_go(&host, &small, &devices)?;
    host.pollux(&["vm", "kill", "web"])?;
    no_bad_news(&host.serial_log("web")?)?;
    for (file, written) in [ide, virtio].iter().zip(written) {
        let judged = judge(file.as_ref(), Cut::Point)?;
        assert!(judged.committed >= written, "{file}");
    }

    // Overlays: their maps grow in the same place, and must not fail a flush.
    let id = host.json(&["vm", "show", "web"])?;
    let folder = PathBuf::from(text(&id, "/folder")?).join("checkpoints");
    let overlays = Small::mount(folder, 96)?;
    host.pollux(&["disk", "checkpoint", "web", "one"])?;
    start_shell(&host, "web")?;
    let mut devices = Vec::new();
    for size in [24, 28] {
        devices.push(device(&host, "web", size * MIB)?);
    }
    // Nothing was written above the checkpoint yet: the first page of a map finds no room either.
    overlays.fill(0)?;
    let writers: Vec<_> = devices.iter().map(|name| writer(name)).collect();
    type_in(
        &host,
        "web",
        &format!("{} echo be''gun", writers.concat()),
        "begun",
    )?;
    let written = held_and_let_go(&host, &overlays, &devices)?;
    host.pollux(&["vm", "kill", "web"])?;
    no_bad_news(&host.serial_log("web")?)?;
    for (slot, written) in written.iter().enumerate() {
        let file = host.state().join(format!("{slot}.raw"));
        let path = file.display().to_string();
        host.pollux(&["disk", "export", "web", &slot.to_string(), &path])?;
        let judged = judge(&file, Cut::Point)?;
        assert!(judged.committed >= *written, "slot {slot}");
    }
    drop(host);
    Ok(())
}

/// What begins to write on a device; it may be held in its first write.
fn writer(device: &str) -> String {
    let name = format!("while read -r line; do echo \"{device} $line\"; done");
    format!("pollux-workload /dev/{device} pause-ms=5 | {name} & ")
}
