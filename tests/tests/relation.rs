//! A relationship is changed while it goes on, on either host. The VM is off: its disks are served,
//! tracked and sent all the same.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use model::Bytes;
use pollux_tests::{Pair, json_u64, point_name, text, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// The relationship, as a host tells it.
fn status(pair: &Pair, on_pollux: bool) -> Result<Value> {
    let host = if on_pollux {
        &pair.pollux
    } else {
        &pair.castor
    };
    let all = host.json(&["replica", "status", "db"])?;
    Ok(all.get(0).cloned().unwrap_or_default())
}

/// Length of a disk at the newest point.
fn exported(pair: &Pair, disk: &str) -> Result<u64> {
    let image = pair.scratch.state().join("exported.raw");
    let path = image.display().to_string();
    pair.pollux
        .pollux(&["point", "export", "db", "latest", "--disk", disk, &path])?;
    let len = std::fs::metadata(&image)?.len();
    std::fs::remove_file(&image)?;
    Ok(len)
}

#[test]
fn disks_policy_and_frequency_travel_and_either_host_pauses_and_ends_it() -> Result<()> {
    let pair = Pair::new("relation")?;
    let (castor, pollux) = (&pair.castor, &pair.pollux);
    castor.pollux(&["vm", "create", "db", "--disk", "8MiB", "--disk", "4MiB"])?;
    let enable = ["replica", "enable", "db", "--to", "pollux", "--disks", "0"];
    castor.pollux(&[&enable[..], &["--frequency", "1s"]].concat())?;
    pair.wait_for_points("db", 2)?;
    ensure!(exported(&pair, "0")? == 8 * MIB, "the disk as it was made");
    let image = pair.scratch.state().join("none.raw");
    let path = image.display().to_string();
    pollux.refused(&["point", "export", "db", "latest", "--disk", "1", &path])?;

    // The disk grows, and its twin by itself; the one that is left out comes and goes.
    castor.refused(&["disk", "detach", "db", "0"])?;
    castor.pollux(&["disk", "resize", "db", "0", "12MiB"])?;
    castor.pollux(&["disk", "detach", "db", "1"])?;
    castor.pollux(&["disk", "create", "db", "2MiB"])?;
    until(MINUTE, "a point has the disk as it is now", || {
        Ok((exported(&pair, "0")? == 12 * MIB).then_some(()))
    })?;
    until(
        MINUTE,
        "the twin has the VM's disks as they are now",
        || {
            let twin = pollux.json(&["vm", "show", "db"])?;
            let size = |n: &str| twin.pointer(&format!("/spec/disk/{n}/size")).cloned();
            let primary = castor.json(&["vm", "show", "db"])?;
            let wanted = |n: &str| primary.pointer(&format!("/spec/disk/{n}/size")).cloned();
            let same = |n: &str| size(n).is_some() && size(n) == wanted(n);
            Ok((same("0") && same("1")).then_some(()))
        },
    )?;

    // It is replicated from now on; then it is taken away, and stays in the points that have it.
    castor.pollux(&["replica", "set", "db", "--disks", "all"])?;
    until(MINUTE, "a point has the disk that was added", || {
        Ok((exported(&pair, "1").ok() == Some(2 * MIB)).then_some(()))
    })?;
    pollux.pollux(&["point", "export", "db", "latest", "--disk", "1", &path])?;
    std::fs::remove_file(&image)?;
    let points = pair.points("db");
    let with = point_name(points.last().context("a point")?)?;
    castor.pollux(&["disk", "detach", "db", "1"])?;
    until(MINUTE, "a point has it no longer", || {
        Ok(exported(&pair, "1").is_err().then_some(()))
    })?;
    pollux.pollux(&["point", "export", "db", &with, "--disk", "1", &path])?;
    ensure!(
        std::fs::metadata(&image)?.len() == 2 * MIB,
        "as it was then"
    );
    ensure!(exported(&pair, "0")? == 12 * MIB, "the other one goes on");

    castor.pollux(&[
        "replica",
        "set",
        "db",
        "--frequency",
        "2s",
        "--keep",
        "1h:all",
    ])?;
    until(MINUTE, "the other host follows", || {
        Ok((json_u64(&status(&pair, true)?, "/every_s")? == 2).then_some(()))
    })?;

    // Paused there, and told here.
    pollux.pollux(&["replica", "pause", "db"])?;
    until(MINUTE, "the primary says that it is paused there", || {
        let told = status(&pair, false)?;
        let why = told.pointer("/last_error").and_then(Value::as_str);
        let paused = why.is_some_and(|why| why.contains("paused on its replica"));
        Ok((paused && text(&told, "/state")? == "suspended").then_some(()))
    })?;
    let before = pair.points("db").len();
    pollux.pollux(&["replica", "resume", "db"])?;
    pair.wait_for_points("db", before + 2)?;
    ensure!(
        status(&pair, false)?["last_error"].is_null(),
        "what was made good is not told any more"
    );

    pollux.pollux(&["replica", "remove", "db"])?;
    castor.refused(&["replica", "status", "db"])?;
    Ok(())
}

/// Content that does not compress.
fn noise(len: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words
        .take(usize::try_from(len / 8).unwrap_or(0))
        .flatten()
        .collect()
}

#[test]
fn a_twin_that_is_seeded_from_a_copy_is_sent_only_the_blocks_that_differ() -> Result<()> {
    let pair = Pair::new("seeded")?;
    let (castor, pollux) = (&pair.castor, &pair.pollux);
    let (old, mut new) = (noise(16 * MIB), noise(16 * MIB));
    let differ = [0, 5, 6, 3000, 4095];
    for block in differ {
        new[block * 4096 + 7] ^= 1;
    }
    let image = |name: &str| pair.scratch.state().join(name);
    for (host, name, content) in [(castor, "db", &new), (pollux, "db-old", &old)] {
        let file = image(name);
        std::fs::write(&file, content)?;
        let path = file.display().to_string();
        host.pollux(&["vm", "create", name, "--image", &path])?;
        std::fs::remove_file(&file)?;
    }
    let enable = [
        "replica",
        "enable",
        "db",
        "--to",
        "pollux",
        "--frequency",
        "1s",
    ];
    let enable = [&enable[..], &["--seed-from", "db-old"]].concat();
    castor.refused(&enable)?;
    pollux.pollux(&["replica", "authorize", "castor", "--copy", "db-old"])?;
    castor.pollux(&enable)?;
    pair.wait_for_points("db", 1)?;
    let told = status(&pair, false)?;
    let bytes = |key: &str| -> Result<u64> { Ok(text(&told, key)?.parse::<Bytes>()?.0) };
    ensure!(bytes("/compared")? == 16 * MIB, "{told}");
    ensure!(bytes("/differed")? == 4096 * differ.len() as u64, "{told}");
    ensure!(
        bytes("/shipped")? < 4096 * (differ.len() as u64 + 8),
        "{told}"
    );
    let file = image("exported.raw");
    let path = file.display().to_string();
    pollux.pollux(&["point", "export", "db", "latest", "--disk", "0", &path])?;
    ensure!(std::fs::read(&file)? == new, "the twin is the VM");
    // The copy is a VM like any other again.
    pollux.pollux(&["vm", "delete", "db-old"])?;
    Ok(())
}
