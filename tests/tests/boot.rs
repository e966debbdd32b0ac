//! Both generations boot from firmware through a boot loader and a kernel to a root file system
//! on a Pollux disk.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{Host, Scratch, json_u64, shell_waits, text, until};
use testkit::guest::{FIRMWARE, GENERATION_ID, GuestImages, ROOT_UP, SECURE_BOOT};

const BOOT: Duration = Duration::from_secs(900);
const MINUTE: Duration = Duration::from_secs(60);

fn boots(generation: &str, firmware: &str, secure_boot: &str) -> Result<()> {
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
    let said = |marker: &str| host.serial_line("guest", 0, marker, BOOT);
    assert!(said(FIRMWARE)?.ends_with(firmware));
    assert!(said(SECURE_BOOT)?.ends_with(secure_boot));
    let id = host.json(&["vm", "show", "guest"])?;
    let id = id
        .pointer("/spec/generation_id")
        .and_then(|id| id.as_str())
        .context("an id")?;
    assert!(
        said(GENERATION_ID)?.ends_with(id),
        "the guest sees its VM-Generation ID {id}"
    );
    said(ROOT_UP)?;
    confined(&host, "diskd")?;
    confined(&host, "guest")?;

    // The shell on the serial port is up; what is typed there is run there.
    shell_waits(&host, "guest", 0, BOOT)?;
    let mut console = host
        .command(&["vm", "console", "guest"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let keyboard = console.stdin.as_mut().context("a pipe")?;
    keyboard.write_all(b"echo typed-$((40 + 2))\n")?;
    said("typed-42")?;

    host.pollux(&["vm", "stop", "guest"])?;
    assert!(console.wait()?.success(), "the console ends with the guest");
    let vms = host.json(&["vm", "list"])?;
    assert_eq!(vms.pointer("/0/state"), Some(&"off".into()), "{vms}");
    host.pollux(&["vm", "delete", "guest"])?;
    Ok(())
}

#[test]
fn generation_1_boots_from_bios_and_shuts_down_when_asked() -> Result<()> {
    boots("1", "bios", "off")
}

#[test]
fn generation_2_boots_with_secure_boot_and_shuts_down_when_asked() -> Result<()> {
    boots("2", "uefi", "on")
}

/// Kills a VM at twenty instants of its start.
#[test]
fn a_vm_that_is_killed_while_it_starts_is_off() -> Result<()> {
    let scratch = Scratch::new("system/boot-killed")?;
    let host = Host::start("castor", &scratch)?;
    let create = [
        "vm",
        "create",
        "web",
        "--generation",
        "1",
        "--memory",
        "32MiB",
    ];
    host.pollux(&[&create[..], &["--disk", "1MiB"]].concat())?;
    let state = || -> Result<String> {
        let details = host.json(&["vm", "show", "web"])?;
        Ok(text(&details, "/vm/state")?.to_owned())
    };
    for step in 0..20 {
        let mut start = host.command(&["vm", "start", "web"])?;
        let start = start.stdout(Stdio::null()).stderr(Stdio::null());
        let mut start = start.spawn()?;
        until(MINUTE, "its start begins", || {
            Ok((state()? != "off").then_some(()))
        })?;
        thread::sleep(Duration::from_millis(10 * step));
        host.pollux(&["vm", "kill", "web"])?;
        ensure!(state()? == "off", "killed {} ms after", 10 * step);
        start.wait()?;
        ensure!(state()? == "off", "killed {} ms after", 10 * step);
    }
    Ok(())
}

/// The process of the VM has a user and a network of its own if this is root, and in any case no
/// capabilities, no way to get any, and filtered system calls.
fn confined(host: &Host, process: &str) -> Result<()> {
    let vm = host.json(&["vm", "show", "guest"])?;
    let pid = json_u64(&vm, &format!("/processes/{process}"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<Vec<&str>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.context("a field")?.split_whitespace().collect())
    };
    assert_eq!(field("NoNewPrivs:")?, ["1"]);
    assert_eq!(field("Seccomp:")?, ["2"]);
    assert_eq!(field("CapEff:")?, ["0000000000000000"]);
    let own: u32 = field("Uid:")?[0].parse()?;
    let polluxd = fs::metadata("/proc/self")?.uid();
    let lacking = vm
        .pointer("/processes/lacking")
        .context("what is lacking")?;
    if lacking.to_string().contains("run as polluxd's own user") {
        // Say, the checkout lies in /root, where nobody else may go.
        assert_eq!(own, polluxd, "as it was told");
    } else {
        assert!(own >= 2_010_000_000, "{process} runs as {own}");
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
        assert_ne!(network(&pid.to_string())?, network("self")?);
    }
    Ok(())
}
