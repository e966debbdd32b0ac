//! The network is away for a while under a guest that writes, and the replica is killed in the middle of
//! what it receives: what changed goes once, and no disk is copied again.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use pollux_tests::{Pair, churn, text, until};

const MIB: u64 = 1 << 20;
/// For a machine that is busy.
const LIMIT: Duration = Duration::from_secs(180);
/// Chunks that are on their way when the network is cut, and may have to be sent again.
const IN_FLIGHT: u64 = 4 * 2 * MIB;
/// Contact each second, points without content, and what TLS adds.
const BESIDES: u64 = MIB;

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
    let outbox = castor.state().join("vms").join(text(&details, "/spec/id")?);
    let mut lacks = 0;
    for entry in fs::read_dir(outbox.join("outbox"))? {
        lacks += entry?.metadata()?.len();
    }
    for field in ["marked", "sealed"] {
        lacks += churn::tracked(castor, field)?.iter().sum::<u64>();
    }
    ensure!(
        lacks >= bytes / 2,
        "{lacks} bytes are known to have changed"
    );
    Ok(lacks)
}

#[test]
fn an_outage_and_kills_of_the_replica_cost_what_changed_and_no_full_copy() -> Result<()> {
    let mut pair = Pair::new("outage")?;
    churn::create(&pair.castor, 7)?;
    churn::start(&pair.castor, 7)?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;

    let lacks = outage(&pair, 6 * MIB)?;
    let carried = pair.wire.carried();
    pair.wire.mend();
    churn::are_equal(&pair)?;
    let carried = pair.wire.carried() - carried;
    println!("an outage: {lacks} bytes changed, {carried} went over the network");
    ensure!(
        carried <= lacks + lacks / 50 + BESIDES,
        "{carried} of {lacks}"
    );

    churn::start(&pair.castor, 8)?;
    let count = pair.points("web").len();
    pair.wait_for_points("web", count + 2)?;
    let lacks = outage(&pair, 12 * MIB)?;
    let before = pair.wire.carried();
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
    churn::are_equal(&pair)?;
    let carried = pair.wire.carried() - before;
    println!("{kills} kills: {lacks} bytes changed, {carried} went over the network");
    let most = lacks + lacks / 50 + kills * IN_FLIGHT + BESIDES;
    ensure!(carried <= most, "{carried} of {lacks}");
    Ok(())
}
