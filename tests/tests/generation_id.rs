//! When the VM-Generation ID changes, and when it must not: Hyper-V's table, with a row for each
//! operation that Pollux has, read inside the guest from the table that its firmware gave it.

use anyhow::{Context, Result};
use pollux_tests::{Host, Pair, create_shell, shell_waits, start_shell, text, type_in};
use testkit::guest::GENERATION_ID;

const LIMIT: std::time::Duration = std::time::Duration::from_secs(300);

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
];

#[test]
fn the_generation_id_changes_exactly_as_the_table_says() -> Result<()> {
    let mut pair = Pair::new("generation-id")?;
    create_shell(&pair.castor, "web", &["--disk", "64MiB"])?;
    start_shell(&pair.castor, "web")?;
    // Of the VM, as it was before; and every one that any guest had.
    let mut before = seen((&pair.castor, "web"))?;
    let mut all = vec![before.clone()];
    for (what, rule, operate) in TABLE {
        let guest = operate(&mut pair).context(*what)?;
        let id = seen(guest).context(*what)?;
        println!("{what:<45} {rule:?} {id}");
        match rule {
            MustNotChange => assert_eq!(id, before, "{what}"),
            MustChange => assert!(!all.contains(&id), "{what}: {id} of {all:?}"),
        }
        if *rule == MustChange {
            all.push(id.clone());
        }
        // A copy does not touch the VM that it was made of.
        if !guest.1.contains("Test") {
            before = id;
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

fn restart_host(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.kill_everything()?;
    pair.castor.lose_memory()?;
    pair.castor.start_daemon()?;
    start_shell(&pair.castor, "web")?;
    Ok((&pair.castor, "web"))
}

fn take_checkpoint(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.pollux(&["disk", "checkpoint", "web", "one"])?;
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

fn fail_over(pair: &mut Pair) -> Result<Guest<'_>> {
    pair.castor.pollux(&["vm", "kill", "web"])?;
    pair.pollux.pollux(&["failover", "start", "web"])?;
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
    pair.pollux.pollux(&["failover", "reverse", "web"])?;
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
        .pollux(&[&start[..], &["--drop-writes"]].concat())?;
    shell_waits(&pair.pollux, "web", 0, LIMIT)?;
    Ok((&pair.pollux, "web"))
}
