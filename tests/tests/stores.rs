//! The disk that a twin lies on is taken away while points come, and over a start of its host; and
//! either host has no room at all for a while. No guest runs: the VM is off, its changes are sent all the
//! same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{Host, Pair, Scratch, json_u64, text, until};
use serde_json::Value;
use testkit::{SmallDisk, may_mount};

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
    // Points that were missed are told of for hours.
    let is_well = |host: &Host| -> Result<bool> {
        let health = health(host)?;
        let messages = health["messages"].as_array().context("messages")?;
        Ok(messages.iter().all(|one| one["reason"] == "points-missed"))
    };
    let well = until(3 * MINUTE, "both sides are well again", || {
        Ok((is_well(&pair.castor)? && is_well(&pair.pollux)?).then_some(()))
    });
    let told = || {
        Ok::<_, anyhow::Error>(format!(
            "{}{}",
            health(&pair.castor)?,
            health(&pair.pollux)?
        ))
    };
    well.with_context(|| told().unwrap_or_else(|error| error.to_string()))
}

/// Waits until both sides say that the store is away.
fn told(pair: &Pair, store: &Path) -> Result<()> {
    let (here, there) = until(MINUTE, "both sides say that it is away", || {
        let (here, there) = (health(&pair.castor)?, health(&pair.pollux)?);
        let told = says(&there, "store-away", store) && says(&here, "cannot-write-log", store);
        Ok((told && here["state"] == "suspended").then_some((here, there)))
    })?;
    ensure!(text(&here, "/health")? == "warning", "{here}");
    ensure!(text(&there, "/health")? == "critical", "{there}");
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
    until(MINUTE, "both sides stand still, and say why", || {
        let (here, there) = (health(&pair.castor)?, health(&pair.pollux)?);
        let told = |health: &Value, why: &str| {
            health["state"] == "suspended" && health.to_string().contains(why)
        };
        Ok((told(&there, "store-full") && told(&here, "--limit")).then_some(()))
    })?;
    pair.pollux.pollux(&authorize)?;
    goes_on(&pair, before)?;
    full_of_its_own_points(&pair, &store, &authorize)
}

/// What the files below a folder take, in bytes.
fn taken(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += match meta.is_dir() {
            true => taken(&entry.path())?,
            false => meta.blocks() * 512,
        };
    }
    Ok(sum)
}

/// Nobody makes room: fewer points are kept, and those that go make it.
fn full_of_its_own_points(pair: &Pair, store: &Path, authorize: &[&str]) -> Result<()> {
    let room = format!("{}KiB", taken(store)? / 1024 + 4);
    pair.pollux
        .pollux(&[authorize, &["--limit", &room]].concat())?;
    until(2 * MINUTE, "it is full", || {
        let full = health(&pair.pollux)?.to_string().contains("store-full");
        Ok(full.then_some(()))
    })?;
    let before = newest(pair)?;
    pair.castor
        .pollux(&["replica", "set", "web", "--keep", "3s:all"])?;
    goes_on(pair, before)
}

/// Waits until the primary says that something has no room, and why; health says so too. Of `full` all but
/// `free` bytes are taken: what is cleared away on it would make a little room again.
fn suspended(pair: &Pair, full: &SmallDisk, free: u64) -> Result<String> {
    let (status, why) = until(MINUTE, "the primary is suspended, and says why", || {
        full.fill(free)?;
        let status = pair.castor.json(&["replica", "status", "web"])?;
        let why = status.pointer("/0/last_error").map(Value::to_string);
        let why = why.filter(|_| text(&status, "/0/state").is_ok_and(|it| it == "suspended"));
        Ok(why.map(|why| (status, why)))
    })?;
    ensure!(text(&status, "/0/health")? == "warning", "{status}");
    ensure!(status.to_string().contains("cannot-write-log"), "{status}");
    Ok(why)
}

#[test]
fn a_host_without_room_refuses_or_suspends_and_goes_on_by_itself_when_there_is_some() -> Result<()>
{
    const NAME: &str =
        "a_host_without_room_refuses_or_suspends_and_goes_on_by_itself_when_there_is_some";
    if !may_mount(NAME)? {
        return Ok(());
    }
    let scratch = Scratch::new("system/room")?;
    let disk = |name: &str| SmallDisk::mount(scratch.state().join(name), 96);
    let (here, there) = (disk("castor")?, disk("pollux")?);
    fs::write(there.path().join("host.toml"), "store_reserve = \"0B\"\n")?;
    let noise = scratch.state().join("noise.raw");
    fs::write(&noise, testkit::Rng::new(3).bytes(6 << 20))?;
    let image = noise.display().to_string();
    let mut pair = Pair::start_in(scratch)?;
    let create = ["vm", "create", "web", "--memory", "64MiB", "--disk", "8MiB"];
    pair.castor
        .pollux(&[&create[..], &["--image", &image]].concat())?;
    let enable = ["replica", "enable", "web", "--to", "pollux"];
    // The one that is empty: those of images come first.
    let enable = [&enable[..], &["--disks", "1", "--frequency", "1s"]].concat();

    // Whoever wants a twin made there is told, and nothing is left of it.
    there.fill(0)?;
    let refused = pair.castor.refused(&enable)?;
    for says in ["`web`", "Make room on host `pollux`"] {
        ensure!(refused.message.contains(says), "{}", refused.message);
    }
    let vms = pair.pollux.json(&["vm", "list"])?;
    ensure!(vms.as_array().is_some_and(Vec::is_empty), "{vms}");
    pair.castor.refused(&["replica", "status", "web"])?;
    there.make_room()?;
    pair.castor.pollux(&enable)?;
    pair.wait_for_points("web", 2)?;

    // Points, and another configuration; its polluxd is killed meanwhile.
    let before = newest(&pair)?;
    for says in ["left", "host `pollux`"] {
        let why = suspended(&pair, &there, 0)?;
        ensure!(why.contains(says), "{why}");
    }
    pair.castor
        .pollux(&["replica", "set", "web", "--frequency", "2s"])?;
    pair.pollux.kill_daemon()?;
    pair.pollux.start_daemon()?;
    suspended(&pair, &there, 0)?;
    ensure!(newest(&pair)? >= before, "no point is lost");
    there.make_room()?;
    goes_on(&pair, before)?;
    until(MINUTE, "the other host follows", || {
        let status = pair.pollux.json(&["replica", "status", "web"])?;
        Ok((json_u64(&status, "/0/every_s")? == 2).then_some(()))
    })?;

    // Room for all but the content of the next point; then for nothing.
    let before = newest(&pair)?;
    here.fill(3 << 20)?;
    pair.castor
        .pollux(&["replica", "set", "web", "--disks", "all"])?;
    let why = suspended(&pair, &here, 3 << 20)?;
    ensure!(why.contains("outbox"), "{why}");
    here.fill(0)?;
    pair.castor.kill_daemon()?;
    pair.castor.start_daemon()?;
    suspended(&pair, &here, 0)?;
    here.make_room()?;
    goes_on(&pair, before)?;
    let twin = pair.scratch.state().join("twin.raw");
    let path = twin.display().to_string();
    let export = ["point", "export", "web", "latest", &path, "--disk", "0"];
    until(MINUTE, "a point has the disk that was added", || {
        Ok(pair.pollux.pollux(&export).is_ok().then_some(()))
    })?;
    ensure!(fs::read(&twin)? == fs::read(&noise)?, "the twin is the VM");
    Ok(())
}
