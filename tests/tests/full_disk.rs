//! Guests whose disks lie on a file system that has no room any more: held, told, and let go on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use pollux_tests::{
    Host, Scratch, create_shell, device, device_writes_on, flushed_on, judge, no_bad_news,
    since_start, start_shell, text, type_in, until, write_on,
};
use testkit::workload::Cut;
use testkit::{SmallDisk, may_mount};

const LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

/// Waits until the guest is held because `place` has no room, makes room, and sees it go on.
fn held_and_let_go(host: &Host, place: &SmallDisk, devices: &[String]) -> Result<Vec<u64>> {
    let shown = until(LIMIT, "the guest is held", || {
        let vm = host.json(&["vm", "show", "web"])?;
        let held = vm.pointer("/vm/state") == Some(&"paused".into());
        // Told a moment later when QEMU stopped by itself.
        let told = text(&vm, "/vm/status")?.contains("no room");
        Ok((held && told).then_some(vm))
    })?;
    let status = text(&shown, "/vm/status")?;
    let mount = place.path().display().to_string();
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
        let now = device_writes_on(host, "web", device, 200)?;
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
    let small = SmallDisk::mount(scratch.state().join("small"), 96)?;
    let host = Host::start("castor", &scratch)?;
    let ide = disk_file(small.path(), "ide.raw", 24 * MIB)?;
    let virtio = disk_file(small.path(), "virtio.raw", 28 * MIB)?;
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
    small.fill(2 * MIB)?;
    held_and_let_go(&host, &small, &devices[..1])?;
    write_on(&host, "web", order[1], "pause-ms=5")?;
    small.fill(MIB)?;
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
    let overlays = SmallDisk::mount(folder, 96)?;
    host.pollux(&["disk", "checkpoint", "web", "one"])?;
    start_shell(&host, "web")?;
    let mut devices = Vec::new();
    for size in [24, 28] {
        devices.push(device(&host, "web", size * MIB)?);
    }
    // Nothing was written above the checkpoint yet: the first page of a map finds no room either.
    overlays.fill(0)?;
    let writers: Vec<_> = devices.iter().map(|name| writer(name)).collect();
    // What they write holds the shell up, too: it answers before they begin.
    let line = format!("(sleep 10; {}wait) & echo be''gun", writers.concat());
    type_in(&host, "web", &line, "begun")?;
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
