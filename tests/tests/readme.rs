//! The tour in README.md does what it says: each of its commands is run, in its order.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{Host, Scratch, nothing_pending, text, until};
use testkit::guest::{GuestImages, ROOT_UP};

const README: &str = include_str!("../../README.md");
const LIMIT: Duration = Duration::from_secs(300);

/// The commands of the tour: the host, and the words after `pollux`.
fn tour() -> Vec<(&'static str, Vec<&'static str>)> {
    README
        .lines()
        .filter_map(|line| line.trim().split_once("$ pollux "))
        .map(|(host, command)| (host, command.split_whitespace().collect()))
        .collect()
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
    let tour = tour();
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
        host.pollux(&words)
            .with_context(|| format!("{name}$ pollux {}", words.join(" ")))?;
        // What a reader sees happen before the next command.
        match words[..] {
            ["vm", "start", vm] => drop(host.serial_line(vm, 0, ROOT_UP, LIMIT)?),
            ["vm", "stop", vm] => nothing_pending(host, vm)?,
            ["replication", "enable", ..] => until(LIMIT, "there is a point", || {
                let points = pollux.json(&["point", "list", "web"]);
                Ok(points
                    .is_ok_and(|points| points.get(0).is_some())
                    .then_some(()))
            })?,
            _ => {}
        }
    }
    pollux.serial_line("web", 0, ROOT_UP, LIMIT)?;
    Ok(())
}
