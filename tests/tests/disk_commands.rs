//! `pollux disk ...` under a guest that writes: it notices what it should and nothing else, and what
//! was kept is what was there.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pollux_tests::{
    Host, Scratch, ask, create_shell, device, device_writes_on, flushed_on, json_u64, judge, kill,
    no_bad_news, start_shell, type_in, until, write_on, writes_on,
};
use serde_json::Value;
use testkit::workload::Cut;

const MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn hash(file: &Path) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut File::open(file)?, &mut hasher)?;
    Ok(hasher.finalize())
}

/// What the disk in `slot` of `web` holds as it is now, or at a checkpoint.
fn export(
    host: &Host,
    slot: &str,
    name: &str,
    checkpoint: Option<&str>,
) -> Result<std::path::PathBuf> {
    let file = host.state().join(name);
    let path = file.display().to_string();
    let mut args = vec!["disk", "export", "web", slot, &path];
    args.extend(checkpoint.iter().flat_map(|name| ["--checkpoint", name]));
    host.pollux(&args)?;
    Ok(file)
}

/// The number that the guest flushed last on `device`.
fn on(host: &Host, device: &str) -> Result<u64> {
    flushed_on(&host.serial_log("web")?, device).context("it writes")
}

fn checkpoints(host: &Host) -> Result<Vec<Value>> {
    let details = host.json(&["vm", "show", "web"])?;
    let list = details.pointer("/checkpoints").and_then(Value::as_array);
    Ok(list.context("a list of checkpoints")?.clone())
}

/// Detaches the disk in `slot`, which the guest may let go later than anybody waits.
fn detach(host: &Host, slot: u64) -> Result<()> {
    let detached = host.pollux(&["disk", "detach", "web", &slot.to_string()]);
    let Err(refused) = detached else {
        return Ok(());
    };
    let late = refused.to_string().contains("let go by the guest in time");
    ensure!(late, "{refused:#}");
    until(5 * MINUTE, "the guest lets it go", || {
        let disks = host.json(&["disk", "info", "web"])?;
        let mut disks = disks.as_array().context("a list")?.iter();
        Ok(disks.all(|disk| disk["slot"] != slot).then_some(()))
    })
}

/// Begins to merge the only checkpoint, and returns when that is on its way; none if it was done
/// before it was seen.
fn begin_merge(host: &Host) -> Result<Option<Child>> {
    let spawn = || -> Result<Child> {
        let mut merge = host.command(&["disk", "merge", "web", "one"])?;
        let merge = merge.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(merge.spawn()?)
    };
    let mut merge = spawn()?;
    let begun = until(MINUTE, "the merge begins", || {
        if merge.try_wait()?.is_some_and(|ended| !ended.success()) {
            // The host was busy.
            merge = spawn()?;
        }
        Ok(match checkpoints(host)?.first() {
            None => Some(false),
            Some(one) => (one.pointer("/merging") == Some(&true.into())).then_some(true),
        })
    })?;
    if begun {
        return Ok(Some(merge));
    }
    merge.wait()?;
    Ok(None)
}

/// Writes much above a checkpoint `one`, and begins to merge it.
fn in_a_merge(host: &Host) -> Result<(Child, blake3::Hash)> {
    for round in 0..20 {
        if checkpoints(host)?.is_empty() {
            host.insist(&["disk", "checkpoint", "web", "one"])?;
        }
        let fill = "dd if=/dev/vda of=/dev/vdb bs=1M oflag=direct 2>/dev/null; echo fil''led";
        type_in(host, "web", fill, "filled")?;
        let name = format!("filled-{round}.raw");
        let file = export(host, "1", &name, None)?;
        let filled = hash(&file)?;
        std::fs::remove_file(file)?;
        if let Some(merge) = begin_merge(host)? {
            return Ok((merge, filled));
        }
    }
    bail!("each merge was done before it could be seen")
}

/// Waits for the end of the merge, and looks at what came of it.
fn merged(host: &Host, filled: blake3::Hash) -> Result<()> {
    until(MINUTE, "the checkpoint is merged", || {
        Ok(checkpoints(host)?.is_empty().then_some(()))
    })?;
    let file = export(host, "1", "merged.raw", None)?;
    assert_eq!(hash(&file)?, filled, "merged into what it was");
    Ok(std::fs::remove_file(file)?)
}

#[test]
fn disks_are_made_attached_resized_and_detached_under_a_guest_that_writes() -> Result<()> {
    let scratch = Scratch::new("system/disk-commands")?;
    let host = Host::start("castor", &scratch)?;
    create_shell(&host, "web", &["--disk", "24MiB"])?;
    start_shell(&host, "web")?;
    write_on(&host, "web", "vda", "pause-ms=5")?;

    // A disk that the guest did not find yet has no name: that is an answer too.
    assert_eq!(ask(&host, "web", "true")?, "");

    // Made and plugged in, on both buses that can do that.
    host.insist(&["disk", "create", "web", "28MiB", "--bus", "scsi"])?;
    let scsi = device(&host, "web", 28 * MIB)?;
    assert!(scsi.starts_with("sd"), "{scsi} is not on the SCSI bus");
    write_on(&host, "web", &scsi, "pause-ms=5")?;
    let foreign = scratch.state().join("foreign.raw");
    File::create_new(&foreign)?.set_len(32 * MIB)?;
    let path = foreign.display().to_string();
    host.insist(&["disk", "attach", "web", &path, "--bus", "virtio"])?;
    let foreign_device = device(&host, "web", 32 * MIB)?;
    type_in(
        &host,
        "web",
        &format!("pollux-workload /dev/{foreign_device} batches=20; echo all-''done"),
        "all-done",
    )?;

    // Larger, while the guest writes on it; a SCSI disk only at its next start, and that is said.
    let resized = host.insist_json(&["disk", "resize", "web", "0", "40MiB"])?;
    assert_eq!(resized.pointer("/at_next_start"), Some(&false.into()));
    device(&host, "web", 40 * MIB)?;
    let resized = host.insist_json(&["disk", "resize", "web", "1", "44MiB"])?;
    assert_eq!(resized.pointer("/at_next_start"), Some(&true.into()));
    device_writes_on(&host, "web", &scsi, 200)?;

    // What is let go is whole, and is the user's again.
    detach(&host, 2)?;
    let found = judge(&foreign, Cut::Point)?;
    assert_eq!(found.committed, 20 * 64);
    let gone = ask(
        &host,
        "web",
        &format!("ls /sys/block | grep -c {foreign_device}"),
    )?;
    assert_eq!(gone, "0", "the guest still has {foreign_device}");
    device_writes_on(&host, "web", "vda", 200)?;
    let written = device_writes_on(&host, "web", &scsi, 200)?;
    host.pollux(&["vm", "kill", "web"])?;
    no_bad_news(&host.serial_log("web")?)?;
    let found = judge(&export(&host, "1", "scsi.raw", None)?, Cut::Point)?;
    assert!(found.committed >= written);
    Ok(())
}

#[test]
fn a_checkpoint_is_exported_merged_and_applied_as_it_was() -> Result<()> {
    let scratch = Scratch::new("system/checkpoints")?;
    let mut host = Host::start("castor", &scratch)?;
    create_shell(&host, "web", &["--disk", "32MiB", "--disk", "32MiB"])?;
    start_shell(&host, "web")?;
    write_on(&host, "web", "vda", "pause-ms=10")?;
    writes_on(&host, "web", 400)?;

    let before = on(&host, "vda")?;
    host.insist(&["disk", "checkpoint", "web", "one"])?;
    writes_on(&host, "web", 400)?;
    let first = export(&host, "0", "one.raw", Some("one"))?;
    let kept = judge(&first, Cut::Point)?;
    assert!(kept.committed >= before, "{} of {before}", kept.committed);
    writes_on(&host, "web", 400)?;
    assert!(kept.newest < on(&host, "vda")?, "it holds what came later");
    let again = export(&host, "0", "one-again.raw", Some("one"))?;
    assert_eq!(hash(&first)?, hash(&again)?, "it changed meanwhile");

    // diskd is killed in the middle of a merge; the command notices nothing.
    let (mut merge, filled) = in_a_merge(&host)?;
    let diskd = json_u64(&host.json(&["vm", "show", "web"])?, "/processes/diskd")?;
    kill(u32::try_from(diskd)?)?;
    ensure!(merge.wait()?.success(), "the merge goes on by itself");
    merged(&host, filled)?;
    writes_on(&host, "web", 200)?;

    // polluxd is: the next one goes on.
    let (mut merge, filled) = in_a_merge(&host)?;
    host.kill_daemon()?;
    merge.wait()?;
    host.start_daemon()?;
    merged(&host, filled)?;
    let written = writes_on(&host, "web", 200)?;
    host.pollux(&["vm", "kill", "web"])?;
    no_bad_news(&host.serial_log("web")?)?;

    // Of a VM that is off, and taken back after it wrote on.
    host.pollux(&["disk", "checkpoint", "web", "off"])?;
    let off = export(&host, "0", "off.raw", Some("off"))?;
    assert!(judge(&off, Cut::Point)?.committed >= written);
    start_shell(&host, "web")?;
    write_on(&host, "web", "vda", "pause-ms=10")?;
    writes_on(&host, "web", 400)?;
    host.pollux(&["vm", "kill", "web"])?;
    let later = export(&host, "0", "later.raw", None)?;
    assert_ne!(hash(&off)?, hash(&later)?);
    host.pollux(&["disk", "apply", "web", "off"])?;
    let back = export(&host, "0", "back.raw", None)?;
    assert_eq!(hash(&off)?, hash(&back)?, "taken back to what it was");
    Ok(())
}
