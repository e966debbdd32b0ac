//! The tour in README.md and the pages about disks, points, tracking and receiving do what they say:
//! each of their commands is run, in its order.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{Host, Scratch, json_u64, text, until};
use testkit::guest::{GuestImages, ROOT_UP};

const README: &str = include_str!("../../README.md");
const DISKS: &str = include_str!("../../docs/disks.md");
const POINTS: &str = include_str!("../../docs/points.md");
const TRACKING: &str = include_str!("../../docs/tracking.md");
const RECEIVING: &str = include_str!("../../docs/replica-server.md");
const LIMIT: Duration = Duration::from_secs(300);

/// The commands of a page: the host, and the words after `pollux`.
fn commands(page: &'static str) -> Vec<(&'static str, Vec<&'static str>)> {
    page.lines()
        .filter_map(|line| line.trim().split_once("$ pollux "))
        .map(|(host, command)| (host, command.split_whitespace().collect()))
        .collect()
}

/// Waits for a recovery point of `web`.
fn has_point(host: &Host) -> Result<()> {
    until(LIMIT, "there is a point", || {
        let points = host.json(&["point", "list", "web"]);
        Ok(points
            .is_ok_and(|points| points.get(0).is_some())
            .then_some(()))
    })
}

#[test]
fn every_command_of_the_tour_works_in_its_order() -> Result<()> {
    let scratch = Scratch::new("system/readme")?;
    let (castor, pollux) = (
        Host::start("castor", &scratch)?,
        Host::start("pollux", &scratch)?,
    );
    let image = GuestImages::build_or_get()?.disk.display().to_string();
    let exported = scratch.state().join("web.raw").display().to_string();
    let tour = commands(README);
    ensure!(
        tour.len() >= 15,
        "the tour has only {} commands",
        tour.len()
    );
    for (name, mut words) in tour {
        let (host, other) = if name == "castor" {
            (&castor, &pollux)
        } else {
            (&pollux, &castor)
        };
        assert_eq!(host.name(), name, "the tour has two hosts");
        let address = format!("127.0.0.1:{}", other.port());
        let identity = other.json(&["host", "identity"])?;
        for word in &mut words {
            match *word {
                "192.0.2.1:8443" | "192.0.2.2:8443" => *word = &address,
                "debian.raw" => *word = &image,
                "web.raw" => *word = &exported,
                word_ if word_.starts_with("sha256:") => *word = text(&identity, "/fingerprint")?,
                _ => {}
            }
        }
        // These may be refused for a moment: the guest runs, or the other host is asked.
        let done = match words[..] {
            ["vm", "start", ..]
            | ["disk", "checkpoint" | "merge", ..]
            | ["failover", "prepare" | "start" | "reverse", ..] => host.insist(&words),
            _ => host.pollux(&words),
        };
        done.with_context(|| format!("{name}$ pollux {}", words.join(" ")))?;
        // What a reader sees happen before the next command.
        match words[..] {
            ["vm", "start", vm] => drop(host.serial_line(vm, 0, ROOT_UP, LIMIT)?),
            ["replica", "enable", ..] | ["failover", "reverse", ..] => has_point(other)?,
            _ => {}
        }
    }
    pollux.serial_line("web", 0, ROOT_UP, LIMIT)?;
    Ok(())
}

#[test]
fn every_command_of_the_page_about_disks_works_in_its_order() -> Result<()> {
    let scratch = Scratch::new("system/disks-page")?;
    let host = Host::start("castor", &scratch)?;
    let file = |name: &str| scratch.state().join(name).display().to_string();
    File::create(file("data.raw"))?.set_len(64 << 20)?;
    let all = commands(DISKS);
    ensure!(all.len() >= 15, "the page has only {} commands", all.len());
    for (prompt, words) in all {
        ensure!(prompt.is_empty(), "the page has one host");
        // `disk detach` is given the file's name alone.
        let named = |word: &&str| word.contains('.') && !words.contains(&"detach");
        let words: Vec<String> = words
            .iter()
            .map(|word| match Some(word).filter(|word| named(word)) {
                Some(name) => file(name),
                None => (*word).to_owned(),
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        host.pollux(&words)
            .with_context(|| format!("$ pollux {}", words.join(" ")))?;
    }
    let exported = file("shop.vhdx");
    ensure!(std::fs::metadata(&exported)?.len() > 0, "{exported}");
    Ok(())
}

#[test]
fn every_command_of_the_page_about_receiving_works_in_its_order() -> Result<()> {
    let scratch = Scratch::new("system/receiving-page")?;
    let castor = Host::start("castor", &scratch)?;
    let pollux = Host::start("pollux", &scratch)?;
    castor.trust_each_other(&pollux, &format!("127.0.0.1:{}", pollux.port()))?;
    castor.pollux(&[
        "vm", "create", "web", "--memory", "64MiB", "--disk", "64MiB",
    ])?;
    let all = commands(RECEIVING);
    ensure!(all.len() >= 10, "the page has only {} commands", all.len());
    // Folders of the page: disks that are mounted.
    let state = std::fs::canonicalize(scratch.state())?;
    let stores = ["/srv/replicas", "/mnt/fast"].map(|named| {
        let folder = state.join(named.trim_start_matches('/').replace('/', "-"));
        (named, folder.display().to_string())
    });
    for (_, folder) in &stores {
        std::fs::create_dir(folder)?;
    }
    let copy = state.join("web.raw");
    File::create(&copy)?.set_len(64 << 20)?;
    let copy = ("/backup/web.raw", copy.display().to_string());
    let files: Vec<_> = stores.iter().chain([&copy]).collect();
    for (name, words) in all {
        let host = if name == "castor" { &castor } else { &pollux };
        assert_eq!(host.name(), name, "the page has two hosts");
        let words = words.iter().map(|word| {
            let file = files.iter().find(|(named, _)| named == word);
            file.map_or_else(|| word.trim_matches('\''), |(_, file)| file)
        });
        let words: Vec<&str> = words.collect();
        let said = host.pollux(&words)?;
        println!("{name}$ pollux {}\n{said}", words.join(" "));
    }
    let server = pollux.json(&["replica", "server", "show"])?;
    assert_eq!(text(&server, "/admits")?, "authorized");
    assert_eq!(text(&server, "/stores/1/path")?, stores[0].1);
    assert_eq!(text(&server, "/stores/2/path")?, stores[1].1);
    Ok(())
}

#[test]
fn every_command_of_the_page_about_tracking_works_in_its_order() -> Result<()> {
    let scratch = Scratch::new("system/tracking-page")?;
    let castor = Host::start("castor", &scratch)?;
    let pollux = Host::start("pollux", &scratch)?;
    pollux.pollux(&["replica", "server", "enable"])?;
    castor.trust_each_other(&pollux, &format!("127.0.0.1:{}", pollux.port()))?;
    // Changes are tracked whether it runs or not.
    castor.pollux(&[
        "vm", "create", "web", "--memory", "64MiB", "--disk", "64MiB", "--bus", "scsi",
    ])?;
    let enable = ["replica", "enable", "web", "--to", "pollux"];
    castor.pollux(&[&enable[..], &["--frequency", "1s"]].concat())?;
    until(LIMIT, "there is a point", || {
        let points = pollux.json(&["point", "list", "web"]);
        Ok(points
            .is_ok_and(|points| points.get(0).is_some())
            .then_some(()))
    })?;
    write_in_place_of_the_guest(&castor, "web")?;
    let segment = until(LIMIT, "the twin has a segment", || Ok(a_segment(&pollux)))?;
    let segment = segment.display().to_string();
    let changes = scratch.state().join("changes.raw").display().to_string();
    let all = commands(TRACKING);
    ensure!(all.len() >= 6, "the page has only {} commands", all.len());
    for (name, mut words) in all {
        let host = if name == "castor" { &castor } else { &pollux };
        assert_eq!(host.name(), name, "the page has two hosts");
        for word in &mut words {
            match *word {
                "point.seg" => *word = &segment,
                "changes.raw" => *word = &changes,
                _ => {}
            }
        }
        host.pollux(&words)
            .with_context(|| format!("{name}$ pollux {}", words.join(" ")))?;
    }
    ensure!(std::fs::metadata(&changes)?.len() == 64 << 20, "{changes}");
    let status = castor.json(&["track", "status", "web"])?;
    ensure!(json_u64(&status, "/epochs/cuts")? > 0, "{status}");
    ensure!(
        text(&status, "/disks/0/tracked/suspect")? == "0 B",
        "{status}"
    );
    Ok(())
}

#[test]
fn every_command_of_the_page_about_points_works_in_its_order() -> Result<()> {
    let scratch = Scratch::new("system/points-page")?;
    let castor = Host::start("castor", &scratch)?;
    let pollux = Host::start("pollux", &scratch)?;
    pollux.pollux(&["replica", "server", "enable"])?;
    castor.trust_each_other(&pollux, &format!("127.0.0.1:{}", pollux.port()))?;
    castor.pollux(&[
        "vm", "create", "web", "--memory", "64MiB", "--disk", "64MiB",
    ])?;
    castor.pollux(&["replica", "enable", "web", "--to", "pollux"])?;
    until(LIMIT, "there is a point", || {
        let points = pollux.json(&["point", "list", "web"]);
        Ok(points
            .is_ok_and(|points| points.get(0).is_some())
            .then_some(()))
    })?;
    // The twin is left as it is: `latest` is the same throughout.
    castor.pollux(&["replica", "pause", "web"])?;
    let file = |name: &str| scratch.state().join(name).display().to_string();
    std::fs::create_dir(file("exported"))?;
    let mut address = String::new();
    let all: Vec<&str> = POINTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pollux$ "))
        .collect();
    ensure!(all.len() >= 9, "the page has only {} commands", all.len());
    for command in all {
        let words: Vec<String> = command
            .split_whitespace()
            .map(|word| match word {
                _ if word.starts_with("'nbd+unix:") => address.clone(),
                "exported" => file(word),
                _ if word.contains('.') => file(word),
                _ => word.to_owned(),
            })
            .collect();
        let (program, words) = words.split_first().context("a command")?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if program != "pollux" {
            let output = Command::new(program).args(&words).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{command}: {said}");
            continue;
        }
        let said = pollux.pollux(&words).with_context(|| command.to_owned())?;
        if words.contains(&"open") {
            let uri = |word: &&str| word.starts_with("nbd+unix:");
            let printed = said.split_whitespace().find(uri);
            address = printed.context("an address is printed")?.to_owned();
        }
    }
    for made in ["web.raw", "web.vhdx", "exported/disk0.qcow2"] {
        ensure!(std::fs::metadata(file(made))?.len() > 0, "{made}");
    }
    Ok(())
}

/// Writes 4 MiB that cannot be compressed to the disk of a VM that is off: too much to share a file with
/// others at the twin.
fn write_in_place_of_the_guest(host: &Host, vm: &str) -> Result<()> {
    let details = host.json(&["vm", "show", vm])?;
    let socket = host.diskd_socket(text(&details, "/vm/id")?);
    let socket = socket.with_file_name("nbd0.sock").display().to_string();
    let kernel = GuestImages::build_or_get()?.kernel.display().to_string();
    let status = Command::new("qemu-io")
        .args(["-f", "raw", "-c", &format!("write -s {kernel} 0 4M")])
        .arg(format!("nbd+unix:///guest?socket={socket}"))
        .status()?;
    ensure!(status.success(), "qemu-io ended with {status}");
    Ok(())
}

/// A segment in the journal of the host's only twin.
fn a_segment(host: &Host) -> Option<PathBuf> {
    let twin = std::fs::read_dir(host.state().join("replicas"))
        .ok()?
        .next()?;
    let segments = twin.ok()?.path().join("journal/segments");
    let mut found = std::fs::read_dir(segments).ok()?.flatten();
    found.next().map(|entry| entry.path())
}
