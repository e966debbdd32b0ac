//! When the VM-Generation ID changes, and when it must not: Hyper-V's table, with a row for each
//! operation that Pollux has, read inside the guest from the table that its firmware gave it. What a guest
//! does that runs while it changes is seen in `crates/qemu/tests/generation_id.rs`: no operation does that.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use pollux_tests::{Host, Pair, create_shell, shell_waits, start_shell, text, type_in, until};
use testkit::guest::GENERATION_ID;

const LIMIT: std::time::Duration = std::time::Duration::from_secs(600);

/// What Hyper-V's table says of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The guest must not be told of anything.
    MustNotChange,
    /// The guest's past is not what it remembers, or somebody else has the same past.
    MustChange,
}
use Rule::{MustChange, MustNotChange};

/// The host and the name of the guest that is looked at after an operation, which runs then.
type Guest<'a> = (&'a Host, &'static str);
type Operation = fn(&mut Pair) -> Result<Guest<'_>>;

const TABLE: &[(&str, Rule, Operation)] = &[
    ("the guest restarts itself", MustNotChange, reboot),
    ("turned off and started", MustNotChange, stop_and_start),
    (
        "polluxd is replaced under it",
        MustNotChange,
        replace_polluxd,
    ),
    ("its disk server is replaced", MustNotChange, upgrade),
    ("the host restarts", MustNotChange, restart_host),
    ("a checkpoint is taken", MustNotChange, take_checkpoint),
    ("a checkpoint is applied", MustChange, apply_checkpoint),
    (
        "the same checkpoint is applied again",
        MustChange,
        apply_checkpoint,
    ),
    ("replication begins", MustNotChange, replicate),
    ("test failover: the copy", MustChange, test_failover),
    (
        "test failover: another copy",
        MustChange,
        another_test_failover,
    ),
    ("test failover: the primary", MustNotChange, end_tests),
    (
        "planned failover, cancelled: the primary",
        MustNotChange,
        cancel_failover,
    ),
    ("unplanned failover", MustChange, fail_over),
    (
        "turned off and started where it failed over to",
        MustNotChange,
        start_there,
    ),
    (
        "unplanned failover: another point",
        MustChange,
        go_to_another_point,
    ),
    (
        "what was never sent, tested: the copy",
        MustChange,
        test_lost_writes,
    ),
    ("forced failover", MustChange, force_over),
    // It goes on with what it had when it stood down, and the other host runs under another ID.
    ("taken back by force", MustNotChange, take_back),
    ("planned failover, home", MustChange, go_home),
];

#[test]
fn the_generation_id_changes_exactly_as_the_table_says() -> Result<()> {
    let mut pair = Pair::new("generation-id")?;
    create_shell(&pair.castor, "web", &["--disk", "64MiB"])?;
    start_shell(&pair.castor, "web")?;
    // Of the VM, as it was before on each host; and every one that any guest had.
    let id = seen((&pair.castor, "web"))?;
    let mut before = BTreeMap::from([("castor".to_owned(), id.clone())]);
    let mut all = vec![id];
    for (what, rule, operate) in TABLE {
        let guest = operate(&mut pair).context(*what)?;
        let id = seen(guest).context(*what)?;
        println!("{what:<47} {rule:?} {id}");
        match rule {
            MustNotChange => assert_eq!(Some(&id), before.get(guest.0.name()), "{what}"),
            MustChange => assert!(!all.contains(&id), "{what}: {id} of {all:?}"),
        }
        if *rule == MustChange {
            all.push(id.clone());
        }
        // A copy does not touch the VM that it was made of.
        if !guest.1.contains("Test") {
            before.insert(guest.0.name().to_owned(), id);
        }
    }
    Ok(())
}

/// The VM-Generation ID that the guest finds now, which is the one that its host tells of.
fn seen((host, vm): Guest) -> Result<String> {
    let line = ". /etc/pollux-guest; tell_machine";
    let said = type_in(host, vm, line, GENERATION_ID)?;
    let id = said.rsplit(' ').next().context("an id")?.trim().to_owned();
    let details = host.json(&["vm", "show", vm])?;
    assert_eq!(text(&details, "/spec/generation_id")?, id, "{vm}");
    Ok(id)
}

fn reboot(pair: &mut Pair) -> Result<Guest<'_>> {
    let before = pair.castor.serial_log("web")?.len();
    type_in(&pair.castor, "web", "reboot -f", GENERATION_ID)?;
    shell_waits(&pair.castor, "web", before, LIMIT)?;
    Ok((&pair.castor, "web"))
}

fn stop_and_start(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.pollux(&["vm", "kill", "web"])?;
    start_shell(&pair.castor, "web")?;
    Ok((&pair.castor, "web"))
}

fn replace_polluxd(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.kill_daemon()?;
    pair.castor.start_daemon()?;
    Ok((&pair.castor, "web"))
}

fn upgrade(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.pollux(&["vm", "upgrade", "web"])?;
    Ok((&pair.castor, "web"))
}

fn restart_host(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.kill_everything()?;
    pair.castor.lose_memory()?;
    pair.castor.start_daemon()?;
    start_shell(&pair.castor, "web")?;
    Ok((&pair.castor, "web"))
}

fn take_checkpoint(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.insist(&["disk", "checkpoint", "web", "one"])?;
    Ok((&pair.castor, "web"))
}

fn apply_checkpoint(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.pollux(&["vm", "kill", "web"])?;
    pair.castor.pollux(&["disk", "apply", "web", "one"])?;
    start_shell(&pair.castor, "web")?;
    Ok((&pair.castor, "web"))
}

fn replicate(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;
    Ok((&pair.castor, "web"))
}

fn test_failover(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.pollux.pollux(&["failover", "test", "web"])?;
    shell_waits(&pair.pollux, "web - Test", 0, LIMIT)?;
    Ok((&pair.pollux, "web - Test"))
}

fn another_test_failover(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.pollux.pollux(&["failover", "test", "web"])?;
    shell_waits(&pair.pollux, "web - Test 2", 0, LIMIT)?;
    Ok((&pair.pollux, "web - Test 2"))
}

fn end_tests(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.pollux.pollux(&["failover", "stop-test", "web"])?;
    for copy in ["web - Test", "web - Test 2"] {
        assert_eq!(pair.pollux.refused(&["vm", "show", copy])?.exit, 3);
    }
    let points = pair.points("web").len();
    pair.wait_for_points("web", points + 1)?;
    Ok((&pair.castor, "web"))
}

fn cancel_failover(pair: &mut Pair) -> Result<Guest<'_>> {
    let prepare = ["failover", "prepare", "web", "--keep-checkpoints"];
    pair.castor.insist(&prepare)?;
    pair.castor.pollux(&["failover", "cancel", "web"])?;
    start_shell(&pair.castor, "web")?;
    Ok((&pair.castor, "web"))
}

fn fail_over(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.pollux(&["vm", "kill", "web"])?;
    pair.pollux.insist(&["failover", "start", "web"])?;
    shell_waits(&pair.pollux, "web", 0, LIMIT)?;
    Ok((&pair.pollux, "web"))
}

fn start_there(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.pollux.pollux(&["vm", "kill", "web"])?;
    start_shell(&pair.pollux, "web")?;
    Ok((&pair.pollux, "web"))
}

/// On the host that was taken over from, once it is the replica.
fn test_lost_writes(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.pollux(&["replica", "server", "enable"])?;
    // A twin cannot have a checkpoint.
    pair.castor.pollux(&["disk", "merge", "web", "one"])?;
    pair.pollux.insist(&["failover", "reverse", "web"])?;
    let test = ["failover", "test", "web", "--point", "lost-writes"];
    pair.castor.pollux(&test)?;
    shell_waits(&pair.castor, "web - Test", 0, LIMIT)?;
    Ok((&pair.castor, "web - Test"))
}

/// The same point once more: what the guest did since is undone.
fn go_to_another_point(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.pollux.pollux(&["vm", "kill", "web"])?;
    let start = ["failover", "start", "web", "--point", "latest"];
    pair.pollux
        .insist(&[&start[..], &["--drop-writes"]].concat())?;
    shell_waits(&pair.pollux, "web", 0, LIMIT)?;
    Ok((&pair.pollux, "web"))
}

/// Starts it on that host, as `command` says, which is done when its shell waits.
fn starts_by(host: &Host, command: &[&str]) -> Result<()> {
    // One that was never started there has no log.
    let before = host.serial_log("web").map_or(0, |log| log.len());
    host.insist(command)?;
    shell_waits(host, "web", before, LIMIT)
}

/// Waits until that host can take over.
fn has_points(host: &Host) -> Result<()> {
    until(LIMIT, "points come back", || {
        let points = host.json(&["point", "list", "web"]).ok();
        let points = points.and_then(|points| points.as_array().map(Vec::len));
        Ok((points > Some(0)).then_some(()))
    })
}

/// Home, while nobody answers for the host on which it ran.
fn force_over(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.pollux(&["failover", "stop-test", "web"])?;
    let drop = ["failover", "lost-writes", "web", "--drop"];
    pair.castor.pollux(&drop)?;
    has_points(&pair.castor)?;
    pair.pollux.kill_everything()?;
    let because = ["--force", "--because", "pollux is dark"];
    let start = [&["failover", "start", "web"][..], &because].concat();
    starts_by(&pair.castor, &start)?;
    Ok((&pair.castor, "web"))
}

/// By the host that was taken over from by force.
fn take_back(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.pollux.start_daemon()?;
    until(LIMIT, "pollux hears that it was succeeded", || {
        let all = pair.pollux.json(&["replica", "status", "web"])?;
        Ok((text(&all, "/0/state")? == "stood-down").then_some(()))
    })?;
    pair.castor.pollux(&["vm", "kill", "web"])?;
    let because = ["--force", "--because", "castor has what nobody wants"];
    let start = [&["vm", "start", "web"][..], &because].concat();
    starts_by(&pair.pollux, &start)?;
    Ok((&pair.pollux, "web"))
}

/// Once the host that it belongs to is the replica again.
fn go_home(pair: &mut Pair) -> Result<Guest<'_>> {
    let (castor, pollux) = (&pair.castor, &pair.pollux);
    castor.pollux(&["failover", "complete", "web"])?;
    until(LIMIT, "it is replicated back", || {
        let reversed = pollux.pollux(&["failover", "reverse", "web"]);
        Ok(reversed.inspect_err(|error| println!("{error:#}")).ok())
    })?;
    has_points(castor)?;
    pollux.insist(&["failover", "prepare", "web"])?;
    starts_by(castor, &["failover", "start", "web"])?;
    Ok((castor, "web"))
}
