//! The outbox has no room, then the network is away for a while, under a guest that writes, a disk grows
//! meanwhile, and the replica is killed in the middle of what it receives: what changed goes once, and no disk
//! is copied again.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pollux_tests::{Pair, churn, nothing_pending, text, tracked, until};
use serde_json::Value;
use testkit::{SmallDisk, may_mount};

const MIB: u64 = 1 << 20;
/// For a machine that is busy.
const LIMIT: Duration = Duration::from_secs(180);
/// Chunks that are on their way when the network is cut, and may have to be sent again.
const IN_FLIGHT: u64 = 4 * 2 * MIB;

/// Contact each second, points without content, and what TLS adds, since then.
fn besides(begun: Instant) -> u64 {
    MIB + 16 * 1024 * begun.elapsed().as_secs()
}

/// What the files in a folder hold, in bytes; none if one got another name meanwhile.
fn held(folder: &Path) -> Result<Option<u64>> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        match entry?.metadata() {
            Ok(meta) => sum += meta.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(sum))
}

/// Cuts the wire, lets the guest change so many bytes and ends it. What the twin lacks now, in bytes.
fn outage(pair: &Pair, bytes: u64) -> Result<u64> {
    pair.wire.cut();
    let castor = &pair.castor;
    let before = churn::changed(castor)?;
    until(LIMIT, "the guest goes on without the network", || {
        Ok((churn::changed(castor)? >= before + bytes).then_some(()))
    })?;
    churn::stop(castor)?;
    let details = castor.json(&["vm", "show", "web"])?;
    let folder = castor.state().join("vms").join(text(&details, "/spec/id")?);
    let staged = until(LIMIT, "the outbox rests", || held(&folder.join("outbox")))?;
    let lacks = staged + tracked(castor, "web", &["marked", "sealed"])?;
    ensure!(
        lacks >= bytes / 2,
        "{lacks} bytes are known to have changed"
    );
    Ok(lacks)
}

/// Takes all room of the outbox for a while: the guest and the tracking go on, and then the points do.
fn no_room(pair: &Pair, outbox: &SmallDisk) -> Result<()> {
    let castor = &pair.castor;
    let count = pair.points("web").len();
    let status = until(LIMIT, "it is suspended, and says why", || {
        outbox.fill(0)?;
        let status = castor.json(&["replica", "status", "web"])?;
        let why = status.pointer("/0/last_error").map(Value::to_string);
        let told = why.is_some_and(|why| why.contains("outbox") && why.contains("make room"));
        let suspended = text(&status, "/0/state")? == "suspended";
        Ok((told && suspended).then_some(status))
    })?;
    ensure!(text(&status, "/0/health")? == "warning", "{status}");
    ensure!(status.to_string().contains("cannot-write-log"), "{status}");
    let before = churn::changed(castor)?;
    until(
        LIMIT,
        "the guest goes on, and its changes are tracked",
        || {
            let marked = tracked(castor, "web", &["marked"])?;
            let goes_on = churn::changed(castor)? >= before + 2 * MIB;
            Ok((goes_on && marked > MIB).then_some(()))
        },
    )?;
    outbox.make_room()?;
    pair.wait_for_points("web", count + 3)?;
    Ok(())
}

#[test]
fn an_outage_and_kills_of_the_replica_cost_what_changed_and_no_full_copy() -> Result<()> {
    if !may_mount("an_outage_and_kills_of_the_replica_cost_what_changed_and_no_full_copy")? {
        return Ok(());
    }
    let mut pair = Pair::new("outage")?;
    churn::create(&pair.castor, 7)?;
    let shown = pair.castor.json(&["vm", "show", "web"])?;
    let outbox = Path::new(text(&shown, "/folder")?).join("outbox");
    let outbox = SmallDisk::mount(outbox, 96)?;
    churn::start(&pair.castor, 7)?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;
    no_room(&pair, &outbox)?;

    let lacks = outage(&pair, 6 * MIB)?;
    let (before, begun) = (pair.wire.carried(), Instant::now());
    pair.wire.mend();
    nothing_pending(&pair.castor, "web")?;
    let carried = pair.wire.carried() - before;
    println!("an outage: {lacks} bytes changed, {carried} went over the network");
    let most = lacks + lacks / 50 + besides(begun);
    ensure!(carried <= most, "{carried} of {lacks}");
    churn::are_equal(&pair)?;

    churn::start(&pair.castor, 8)?;
    let count = pair.points("web").len();
    pair.wait_for_points("web", count + 2)?;
    pair.wire.cut();
    churn::grow(&pair.castor)?;
    let lacks = outage(&pair, 12 * MIB)?;
    let (before, begun) = (pair.wire.carried(), Instant::now());
    let kills = 3;
    for _ in 0..kills {
        pair.wire.mend();
        pair.wire.cut_after(lacks / 4);
        until(LIMIT, "the network breaks in the middle of it", || {
            Ok(pair.wire.is_cut().then_some(()))
        })?;
        pair.pollux.kill_daemon()?;
        pair.pollux.start_daemon()?;
    }
    pair.wire.mend();
    nothing_pending(&pair.castor, "web")?;
    let carried = pair.wire.carried() - before;
    println!("{kills} kills: {lacks} bytes changed, {carried} went over the network");
    let most = lacks + lacks / 50 + kills * IN_FLIGHT + besides(begun);
    ensure!(carried <= most, "{carried} of {lacks}");
    churn::are_equal(&pair)
}
