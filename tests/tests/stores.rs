//! The disk that a twin lies on is taken away while points come, and over a start of its host. No guest
//! runs: the VM is off, its changes are sent all the same.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{Host, Pair, json_u64, text, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

fn health(host: &Host) -> Result<Value> {
    let all = host.json(&["replica", "health", "web"])?;
    all.get(0).cloned().context("one relationship")
}

/// Whether one of the reasons is this one and names the store.
fn says(health: &Value, reason: &str, store: &Path) -> bool {
    let store = store.to_string_lossy();
    let messages = health.get("messages").and_then(Value::as_array);
    messages.into_iter().flatten().any(|message| {
        let part = |name| {
            message
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        part("reason") == reason && part("what").contains(&*store)
    })
}

fn newest(pair: &Pair) -> Result<u64> {
    let points = pair.points("web");
    json_u64(points.last().context("a point")?, "/id/sequence")
}

/// Waits until points come again, newer than `before`, with nobody's help.
fn goes_on(pair: &Pair, before: u64) -> Result<()> {
    until(MINUTE, "newer points come", || {
        Ok(newest(pair).is_ok_and(|now| now > before + 1).then_some(()))
    })?;
    let normal = |host: &Host| -> Result<bool> { Ok(text(&health(host)?, "/health")? == "normal") };
    until(MINUTE, "both sides are well again", || {
        Ok((normal(&pair.castor)? && normal(&pair.pollux)?).then_some(()))
    })
}

/// Waits until both sides say that the store is away.
fn told(pair: &Pair, store: &Path) -> Result<()> {
    until(MINUTE, "both sides say that it is away", || {
        let there = says(&health(&pair.pollux)?, "store-away", store);
        let here = says(&health(&pair.castor)?, "cannot-write-log", store);
        Ok((there && here).then_some(()))
    })?;
    let (here, there) = (health(&pair.castor)?, health(&pair.pollux)?);
    ensure!(text(&here, "/health")? == "warning", "{here}");
    ensure!(text(&there, "/health")? == "critical", "{there}");
    let status = pair.castor.json(&["replica", "status", "web"])?;
    ensure!(text(&status, "/0/state")? == "suspended", "{status}");
    Ok(())
}

#[test]
fn a_store_that_is_taken_away_suspends_its_twins_until_it_is_back() -> Result<()> {
    let mut pair = Pair::new("stores")?;
    let store = pair.scratch.state().join("twins");
    let aside = pair.scratch.state().join("aside");
    fs::create_dir(&store)?;
    let store = fs::canonicalize(&store)?;
    let name = store.display().to_string();
    pair.pollux
        .pollux(&["replica", "authorize", "castor", "--store", &name])?;
    let create = ["vm", "create", "web", "--memory", "64MiB", "--bus", "scsi"];
    pair.castor
        .pollux(&[&create[..], &["--disk", "8MiB"]].concat())?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;
    goes_on(&pair, newest(&pair)?)?;

    // While points come, and the empty folder that it was mounted at stays.
    let before = newest(&pair)?;
    fs::rename(&store, &aside)?;
    fs::create_dir(&store)?;
    told(&pair, &store)?;
    ensure!(
        fs::read_dir(&store)?.next().is_none(),
        "nothing is made in its place"
    );
    fs::remove_dir(&store)?;
    fs::rename(&aside, &store)?;
    goes_on(&pair, before)?;

    // Over a start of its host.
    let before = newest(&pair)?;
    fs::rename(&store, &aside)?;
    pair.pollux.kill_daemon()?;
    pair.pollux.start_daemon()?;
    told(&pair, &store)?;
    let twins = pair.pollux.json(&["vm", "list"])?;
    ensure!(
        twins.as_array().is_some_and(|all| all.len() == 1),
        "{twins}"
    );
    let refused = pair.pollux.refused(&["failover", "start", "web"])?;
    ensure!(refused.message.contains(&name), "{}", refused.message);
    fs::rename(&aside, &store)?;
    goes_on(&pair, before)?;

    // It is there, and nothing more may come.
    let before = newest(&pair)?;
    let authorize = ["replica", "authorize", "castor", "--store", &name];
    pair.pollux
        .pollux(&[&authorize[..], &["--limit", "4KiB"]].concat())?;
    until(MINUTE, "both sides say that it is full", || {
        let there = health(&pair.pollux)?.to_string().contains("store-full");
        let here = health(&pair.castor)?.to_string().contains("--limit");
        Ok((there && here).then_some(()))
    })?;
    for host in [&pair.castor, &pair.pollux] {
        let status = host.json(&["replica", "status", "web"])?;
        ensure!(text(&status, "/0/state")? == "suspended", "{status}");
    }
    pair.pollux.pollux(&authorize)?;
    goes_on(&pair, before)
}
