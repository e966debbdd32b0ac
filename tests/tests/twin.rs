//! A twin is made, kept and started, over a network that breaks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use model::Bytes;
use pollux_tests::{
    FIRST_WRITE, Host, Pair, Wire, create_writer, flushed, freeze, json_u64, judge,
    nothing_pending, point_name, text, thaw, until, writes_on,
};
use serde_json::Value;
use testkit::workload::Cut;

const MINUTE: Duration = Duration::from_secs(60);

/// A VM that writes, replicated every second.
fn replicate(pair: &Pair) -> Result<()> {
    create_writer(&pair.castor, "web", "64MiB", 50)?;
    pair.castor.pollux(&["vm", "start", "web"])?;
    pair.castor
        .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    pair.replicate("web")
}

/// Exports a point and gives how many records it proves.
fn committed(pair: &Pair, point: &Value) -> Result<u64> {
    let name = point_name(point)?;
    let image = pair.scratch.state().join(format!("{name}.raw"));
    let path = image.display().to_string();
    pair.pollux
        .pollux(&["point", "export", "web", &name, &path])?;
    let judged = judge(&image, Cut::Point)?;
    std::fs::remove_file(&image)?;
    Ok(judged.committed)
}

fn generation_id(host: &Host, vm: &str) -> Result<String> {
    let details = host.json(&["vm", "show", vm])?;
    Ok(text(&details, "/spec/generation_id")?.to_owned())
}

#[test]
fn the_initial_copy_and_the_deltas_go_on_where_a_cut_network_stopped_them() -> Result<()> {
    let pair = Pair::new("cut")?;
    // Every so many bytes the network breaks in the middle of whatever it carries.
    let mut cuts = 0;
    pair.wire.cut_after(300_000);
    replicate(&pair)?;
    until(
        3 * MINUTE,
        "the first point arrives through a network that breaks",
        || {
            if pair.wire.is_cut() {
                cuts += 1;
                pair.wire.mend();
                // More than a chunk of 2 MiB: one that did not come whole is sent again.
                pair.wire.cut_after(3_000_000);
            }
            Ok((!pair.points("web").is_empty() && cuts >= 2).then_some(()))
        },
    )?;
    pair.wire.mend();
    let before = pair.wait_for_points("web", 2)?.len();

    // A network that is away for a while: the guest goes on, and so does the twin afterwards.
    pair.wire.cut();
    until(MINUTE, "the primary says what is wrong", || {
        let status = pair.castor.json(&["replica", "status", "web"])?;
        Ok(status
            .pointer("/0/last_error")
            .is_some_and(|error| !error.is_null())
            .then_some(()))
    })?;
    // A guest tells of a record after it is written: of all that was before the cut.
    let before_cut = writes_on(&pair.castor, "web", 1)?;
    let written = writes_on(&pair.castor, "web", 500)?;
    // What the replica had begun to take in before that may come.
    let newest = pair.points("web").last().cloned().context("a point")?;
    ensure!(
        committed(&pair, &newest)? <= before_cut,
        "something arrives"
    );
    pair.wire.mend();
    pair.wait_for_points("web", before + 2)?;
    let latest = until(2 * MINUTE, "the twin catches up", || {
        let latest = pair.points("web").last().cloned().context("a point")?;
        let committed = committed(&pair, &latest)?;
        Ok((committed >= written).then_some(committed))
    })?;
    // A guest tells of it after it is done.
    until(MINUTE, "no more is there than was written", || {
        let written = flushed(&pair.castor.serial_log("web")?).unwrap_or(0);
        Ok((latest <= written).then_some(()))
    })?;
    for point in pair.points("web") {
        committed(&pair, &point)?;
    }
    Ok(())
}

#[test]
fn a_twin_is_tested_and_then_takes_over_when_the_primary_stood_down() -> Result<()> {
    let pair = Pair::new("failover")?;
    replicate(&pair)?;
    let points = pair.wait_for_points("web", 3)?;
    let (castor, pollux) = (&pair.castor, &pair.pollux);

    // Nothing but a failover starts a twin, and none while the primary runs.
    assert_eq!(pollux.refused(&["vm", "start", "web"])?.exit, 4);
    let refused = pollux.refused_with(4, &["failover", "start", "web"])?;
    assert!(refused.message.contains("castor"), "{}", refused.message);
    let refused = pollux.refused(&["failover", "test", "web", "--point", "00000000.1"])?;
    assert_eq!(refused.exit, 3, "{}", refused.message);

    // A test of an older point runs beside the replication, with an id of its own.
    let old = point_name(&points[0])?;
    pollux.pollux(&["failover", "test", "web", "--point", &old])?;
    // Another one beside it, of another point; neither keeps the other from ending.
    pollux.pollux(&["failover", "test", "web"])?;
    let found = pollux.serial_line("web - Test 2", 0, "pollux-workload: found", FIRST_WRITE)?;
    assert!(found.ends_with(": right"), "{found}");
    pollux.pollux(&["failover", "stop-test", "web - Test 2"])?;
    assert_eq!(pollux.refused(&["vm", "show", "web - Test 2"])?.exit, 3);
    let found = pollux.serial_line("web - Test", 0, "pollux-workload: found", FIRST_WRITE)?;
    assert!(found.ends_with(": right"), "{found}");
    let id = generation_id(pollux, "web - Test")?;
    assert_ne!(id, generation_id(castor, "web")?);
    pollux.serial_line("web - Test", 0, "pollux-guest: generation-id", MINUTE)?;
    let during = pair.points("web").len();
    pair.wait_for_points("web", during + 2)?;
    pollux.pollux(&["failover", "stop-test", "web"])?;
    assert_eq!(pollux.refused(&["vm", "show", "web - Test"])?.exit, 3);
    let twin = pollux.json(&["vm", "show", "web"])?;
    let home = pollux
        .state()
        .join("replicas")
        .join(text(&twin, "/spec/id")?);
    for entry in std::fs::read_dir(&home)? {
        let name = entry?.file_name();
        assert!(!name.to_string_lossy().contains("test"), "{name:?} is left");
    }
    assert!(
        pair.points("web")
            .iter()
            .all(|point| point["pinned"] == false)
    );

    // The primary is shut down while its last changes cannot go out: they are not given up.
    pair.wire.cut();
    writes_on(castor, "web", 100)?;
    castor.pollux(&["vm", "kill", "web"])?;
    let refused = pollux.refused_with(4, &["failover", "start", "web"])?;
    let said = "that the twin does not have yet";
    assert!(refused.message.contains(said), "{}", refused.message);
    assert!(refused.message.contains("--force"), "{}", refused.message);

    // A planned failover needs the replica to answer.
    let refused = castor.refused(&["failover", "prepare", "web"])?;
    assert_eq!(refused.exit, 6, "{}", refused.message);

    // They go out while it is prepared; until that is cancelled it does not start here.
    pair.wire.mend();
    let prepared = castor.insist_json(&["failover", "prepare", "web"])?;
    assert_eq!(text(&prepared, "/replica_host")?, "pollux", "{prepared}");
    let steps = prepared["steps"].as_array().context("its steps")?;
    assert_eq!(steps.len(), 6, "{prepared}");
    let back = text(&steps[2], "/result")?;
    assert!(back.contains("pollux replica server enable"), "{prepared}");
    nothing_pending(castor, "web")?;
    let refused = castor.refused_with(4, &["vm", "start", "web"])?;
    assert!(
        refused.message.contains("failover cancel web"),
        "{}",
        refused.message
    );
    castor.pollux(&["failover", "cancel", "web"])?;
    let before = castor.serial_log("web")?.len();
    castor.insist(&["vm", "start", "web"])?;
    castor.serial_line("web", before, "pollux-workload: flushed", FIRST_WRITE)?;
    writes_on(castor, "web", 100)?;
    // It is shut down, and its last changes are sent without waiting for the next cycle.
    castor.pollux(&["replica", "set", "web", "--frequency", "15m"])?;
    castor.insist(&["failover", "prepare", "web"])?;
    // It counts from the beginning since it was started again.
    let written = flushed(&castor.serial_log("web")?).context("it writes")?;
    let latest = until(2 * MINUTE, "what was written last is at the twin", || {
        let latest = pair.points("web").last().cloned().context("a point")?;
        Ok((committed(&pair, &latest)? >= written).then_some(latest))
    })?;
    let before = generation_id(castor, "web")?;
    pollux.insist(&["failover", "start", "web", "--point", &point_name(&latest)?])?;
    let found = pollux.serial_line("web", 0, "pollux-workload: found", FIRST_WRITE)?;
    assert!(found.ends_with(": right"), "{found}");
    assert_ne!(generation_id(pollux, "web")?, before);
    let refused = castor.refused_with(4, &["vm", "start", "web"])?;
    assert!(refused.message.contains("pollux"), "{}", refused.message);
    let older = pair.points("web").first().cloned().context("a point")?;
    let proved = committed(&pair, &older)?;
    let Pair {
        castor,
        mut pollux,
        wire: _wire,
        ..
    } = pair;
    go_to_another_point(&castor, &mut pollux, &point_name(&older)?, proved)
}

/// The point was a bad choice: an `older` one, which proves so many records, takes its place while polluxd
/// is killed on the way. What was written since the failover goes with the one that is left.
fn go_to_another_point(castor: &Host, pollux: &mut Host, older: &str, proved: u64) -> Result<()> {
    let start = ["failover", "start", "web"];
    let other = [&start[..], &["--point", older]].concat();
    let drop = [&other[..], &["--drop-writes"]].concat();
    for (asked, way_out) in [
        (&start[..], "--point POINT"),
        // As a client of an older Pollux asks.
        (
            &[&start[..], &["--point", "latest"]].concat(),
            "--drop-writes",
        ),
        (&drop, "pollux vm kill web"),
        (&["failover", "stop-test", "web"], "--point POINT"),
        (&["failover", "cancel", "web"], "pollux vm kill web"),
    ] {
        let refused = pollux.refused_with(4, asked)?;
        assert!(refused.message.contains(way_out), "{}", refused.message);
    }
    pollux.serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    pollux.pollux(&["vm", "kill", "web"])?;
    let refused = pollux.refused_with(4, &other)?;
    for part in ["has written", "--drop-writes", "disk export"] {
        assert!(refused.message.contains(part), "{}", refused.message);
    }

    let details = pollux.json(&["vm", "show", "web"])?;
    let home = pollux
        .state()
        .join("replicas")
        .join(text(&details, "/spec/id")?);
    let term = || -> Result<String> {
        let standing = std::fs::read_to_string(home.join("standing.toml"))?;
        let opened = standing.lines().find(|line| line.starts_with("opened"));
        Ok(opened.context("a term was opened")?.to_owned())
    };
    let gave_way_to = || json_u64(&castor.json(&["vm", "show", "web"])?, "/succeeded/term");
    let first = gave_way_to()?;
    let (opened, before) = (term()?, text(&details, "/spec/generation_id")?);
    let mut asked = pollux.command(&drop)?.spawn()?;
    until(MINUTE, "it is decided", || {
        Ok((term()? != opened).then_some(()))
    })?;
    pollux.kill_daemon()?;
    asked.wait()?;
    pollux.start_daemon()?;
    if state(pollux)? == "off" {
        pollux.insist(&["vm", "start", "web"])?;
    }
    let found = pollux.serial_line("web", 0, "pollux-workload: found", FIRST_WRITE)?;
    ensure!(found.ends_with(": right"), "{found}");
    let committed = found.split(" committed ").nth(1);
    let committed = committed.and_then(|rest| rest.split(' ').next());
    assert_eq!(committed, Some(&*proved.to_string()), "{found}");
    assert_ne!(generation_id(pollux, "web")?, before);
    let points = pollux.json(&["point", "list", "web"])?;
    let held = points.as_array().into_iter().flatten();
    let held = held.filter(|point| point["pinned"] == true);
    let held = held.map(point_name).collect::<Result<Vec<_>>>()?;
    assert_eq!(held, [older], "{points}");

    let told = pollux.json(&["event", "list", "--vm", "web"])?;
    // One that is killed when it has decided need not tell.
    let said = format!("goes to point {older} instead of");
    let events = told.as_array().context("a list")?.iter();
    let went = events.filter_map(|event| event["what"].as_str());
    let mut went = went.filter(|what| what.contains("goes to point"));
    assert!(went.all(|what| what.contains(&said)), "{told}");

    // The former primary hears of the new term, so that its replica may be started from there.
    until(MINUTE, "it gives way to the new term", || {
        Ok((gave_way_to()? > first).then_some(()))
    })?;
    castor.refused_with(4, &["vm", "start", "web"])?;
    // There is no way back from what is final.
    pollux.pollux(&["failover", "complete", "web"])?;
    pollux.pollux(&["vm", "kill", "web"])?;
    let refused = pollux.refused_with(4, &drop)?;
    assert!(
        refused.message.contains("disk checkpoint"),
        "{}",
        refused.message
    );
    Ok(())
}

#[test]
fn a_forced_takeover_is_recorded_and_gates_the_primary_at_first_contact() -> Result<()> {
    let pair = Pair::new("forced")?;
    replicate(&pair)?;
    pair.wait_for_points("web", 2)?;
    let (castor, mut pollux) = (pair.castor, pair.pollux);
    let points_of = |host: &Host| -> Result<Vec<Value>> {
        let points = host.json(&["point", "list", "web"])?;
        points.as_array().cloned().context("a list")
    };

    // Neither host can reach the other, and the primary runs on.
    pair.wire.cut();
    let mut castor = castor;
    // One that hangs is given up.
    let hangs = castor.daemon_id().context("polluxd runs")?;
    freeze(hangs)?;
    let refused = pollux.refused(&["failover", "start", "web"])?;
    assert_eq!(refused.exit, 6, "{}", refused.message);
    thaw(hangs)?;
    castor.kill_daemon()?;
    let refused = pollux.refused(&["failover", "start", "web"])?;
    assert_eq!(refused.exit, 6, "{}", refused.message);
    assert!(refused.message.contains("--force"), "{}", refused.message);
    pollux.pollux(&[
        "failover",
        "start",
        "web",
        "--force",
        "--because",
        "the site of castor is dark",
    ])?;
    pollux.serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    let newest = point_name(points_of(&pollux)?.last().context("a point")?)?;
    // What was decided outlives the daemon that decided it.
    pollux.kill_daemon()?;
    pollux.start_daemon()?;
    writes_on(&pollux, "web", 50)?;

    // First contact: the old primary is held, and does not start again.
    // It cannot reach the twin itself, but is told.
    castor.start_daemon()?;
    let begun = Instant::now();
    until(2 * MINUTE, "the old primary is held", || {
        let status = castor.json(&["replica", "status", "web"])?;
        Ok((status.pointer("/0/state") == Some(&"stood-down".into())).then_some(()))
    })?;
    println!("held, and told so, {:?} after it was up", begun.elapsed());
    // How much it wrote meanwhile is counted while it is held.
    let (vm, unsent) = until(MINUTE, "it does not run, and all is known of it", || {
        let vm = castor.json(&["vm", "show", "web"])?;
        let runs = vm.pointer("/vm/state") == Some(&"running".into());
        let unsent = text(&vm, "/succeeded/unsent").map(str::to_owned).ok();
        Ok(unsent.filter(|_| !runs).map(|unsent| (vm, unsent)))
    })?;
    // It says what happened: by whom it was succeeded, from where, since when, and what is kept.
    assert_eq!(text(&vm, "/succeeded/host")?, "pollux");
    // Above those that were attempted before, in vain.
    let term = json_u64(&vm, "/succeeded/term")?;
    ensure!(term >= 4, "{vm}");
    let from = vm.pointer("/succeeded/from").cloned().context("a point")?;
    assert_eq!(point_name(&serde_json::json!({ "id": from }))?, newest);
    let (opened, held) = (
        text(&vm, "/succeeded/opened")?.to_owned(),
        text(&vm, "/succeeded/held")?.to_owned(),
    );
    ensure!(opened < held, "{opened} {held}");
    ensure!(unsent.parse::<Bytes>()? > Bytes(0), "{vm}");
    let said = format!("took over in term {term} from point {newest}");
    let event = until(MINUTE, "there is an event", || {
        let told = castor.json(&["event", "list", "--vm", "web"])?;
        let told = told.as_array().context("a list")?;
        let event = told.iter().find(|event| event["kind"] == "stood-down");
        Ok(event.map(|event| event["what"].to_string()))
    })?;
    let status = castor.json(&["replica", "status", "web"])?.to_string();
    for text in [event.as_str(), &status, text(&vm, "/vm/status")?] {
        for part in [said.as_str(), "Both ran from"] {
            ensure!(text.contains(part), "{part}: {text}");
        }
        // An event tells what was known then.
        let counted = text == event || text.contains("never sent are kept");
        ensure!(counted, "{text}");
    }
    pair.wire.mend();
    castor.pollux(&["vm", "kill", "web"]).ok();
    let refused = castor.refused(&["vm", "start", "web"])?;
    assert_eq!(refused.exit, 4, "{}", refused.message);
    writes_on(&pollux, "web", 50)?;
    complete(&mut pollux)
}

/// The failover is made final under a guest that writes, while polluxd is killed on the way.
fn complete(host: &mut Host) -> Result<()> {
    let state = |host: &Host| -> Result<String> {
        let status = host.json(&["replica", "status", "web"])?;
        Ok(text(&status, "/0/state")?.to_owned())
    };
    let checkpoints = |host: &Host| -> Result<usize> {
        let vm = host.json(&["vm", "show", "web"])?;
        let all = vm.pointer("/checkpoints").and_then(Value::as_array);
        Ok(all.context("a list of checkpoints")?.len())
    };
    assert_eq!(state(host)?, "failed-over-waiting-completion");
    assert_eq!(checkpoints(host)?, 1);
    // What was written since cannot go to where nothing is ever written to.
    let refused = host.refused(&["disk", "merge", "web", "failover"])?;
    assert_eq!(refused.exit, 4, "{}", refused.message);
    let way_out = "pollux failover complete web";
    assert!(refused.message.contains(way_out), "{}", refused.message);

    let mut asked = host.command(&["failover", "complete", "web"])?.spawn()?;
    until(MINUTE, "it is decided", || {
        Ok((state(host)? == "failed-over").then_some(()))
    })?;
    host.kill_daemon()?;
    asked.wait()?;
    host.start_daemon()?;
    writes_on(host, "web", 50)?;
    host.pollux(&["failover", "complete", "web"])?;
    assert_eq!(state(host)?, "failed-over");
    assert_eq!(checkpoints(host)?, 0);
    assert_eq!(
        host.refused(&["point", "export", "web", "latest", "x.raw"])?
            .exit,
        4
    );
    let replicas = std::fs::read_dir(host.state().join("replicas"))?;
    let homes: Vec<_> = replicas.collect::<std::io::Result<_>>()?;
    let [home] = &homes[..] else {
        anyhow::bail!("{homes:?}");
    };
    assert!(!home.path().join("journal").exists(), "the journal is gone");
    assert!(home.path().join("failover/disk0.raw").exists());
    assert!(!home.path().join("failover/origin.toml").exists());

    // It is a VM like any other, with all that was written.
    writes_on(host, "web", 50)?;
    host.insist(&["disk", "checkpoint", "web", "of-its-own"])?;
    host.insist(&["disk", "merge", "web", "of-its-own"])?;
    host.pollux(&["vm", "kill", "web"])?;
    let before = host.serial_log("web")?.len();
    host.insist(&["vm", "start", "web"])?;
    let found = host.serial_line("web", before, "pollux-workload: found", FIRST_WRITE)?;
    ensure!(found.ends_with(": right"), "{found}");
    Ok(())
}

/// Milliseconds of the lease that a host tells.
fn lease_ms(host: &Host, key: &str) -> Result<Option<u64>> {
    let status = host.json(&["replica", "status", "web"])?;
    Ok(status
        .pointer(&format!("/0/lease/{key}"))
        .and_then(Value::as_u64))
}

/// Whether the health of the relationship has this reason.
fn has_reason(host: &Host, reason: &str) -> Result<bool> {
    let status = host.json(&["replica", "status", "web"])?;
    let messages = status.pointer("/0/messages").and_then(Value::as_array);
    Ok(messages
        .into_iter()
        .flatten()
        .any(|message| message["reason"] == reason))
}

fn state(host: &Host) -> Result<String> {
    let vm = host.json(&["vm", "show", "web"])?;
    Ok(text(&vm, "/vm/state")?.to_owned())
}

/// Whether a process is stopped: proc(5), `stat`.
fn is_stopped(pid: u64) -> Result<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let state = stat.rsplit(") ").next();
    Ok(state.is_some_and(|rest| rest.starts_with('T')))
}

/// How often an event of this kind is told.
fn events(host: &Host, kind: &str) -> Result<usize> {
    let all = host.json(&["event", "list", "--vm", "web"])?;
    let all = all.as_array().context("a list")?;
    Ok(all.iter().filter(|event| event["kind"] == kind).count())
}

#[test]
fn a_primary_under_a_lease_is_held_without_its_replica_which_takes_over_when_that_is_over()
-> Result<()> {
    let pair = Pair::new("lease")?;
    // Both directions can be cut.
    let back = Wire::to(pair.castor.port())?;
    pair.pollux.trust(&pair.castor, &back.address())?;
    let cut = || {
        pair.wire.cut();
        back.cut();
    };
    let mend = || {
        pair.wire.mend();
        back.mend();
    };
    create_writer(&pair.castor, "web", "64MiB", 50)?;
    pair.castor.pollux(&["vm", "start", "web"])?;
    pair.castor
        .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    pair.replicate("web")?;
    let lease = ["replica", "set", "web", "--fence", "lease=4"];
    pair.castor.pollux(&lease)?;
    pair.wait_for_points("web", 2)?;
    until(MINUTE, "both know the lease", || {
        let left = lease_ms(&pair.castor, "left_ms")? > Some(0);
        let waits = lease_ms(&pair.pollux, "takeover_in_ms")? > Some(4000);
        Ok((left && waits).then_some(()))
    })?;
    writes_on(&pair.castor, "web", 20)?;

    // Without its replica it is held within a second after its lease, and both hosts say so.
    let begun = Instant::now();
    cut();
    until(MINUTE, "the guest is held, and its host says why", || {
        let held = state(&pair.castor)? == "paused";
        Ok((held && has_reason(&pair.castor, "lease-over")?).then_some(()))
    })?;
    println!(
        "held {:?} after it was cut off, of a lease of 4 s",
        begun.elapsed()
    );
    let held = flushed(&pair.castor.serial_log("web")?);
    until(MINUTE, "its replica says that it is over", || {
        Ok(has_reason(&pair.pollux, "primary-silent")?.then_some(()))
    })?;
    ensure!(
        flushed(&pair.castor.serial_log("web")?) == held,
        "it writes nothing"
    );
    // Nobody took over, so it goes on by itself.
    mend();
    until(MINUTE, "the guest goes on", || {
        Ok((state(&pair.castor)? == "running").then_some(()))
    })?;
    writes_on(&pair.castor, "web", 20)?;
    for host in [&pair.castor, &pair.pollux] {
        for kind in ["lease-over", "lease-renewed"] {
            let told = || Ok((events(host, kind)? >= 1).then_some(()));
            until(MINUTE, kind, told)?;
        }
    }

    // A polluxd that is dead holds nothing: the guest's supervisor does.
    let (mut castor, pollux, wire) = (pair.castor, pair.pollux, pair.wire);
    let vm = castor.json(&["vm", "show", "web"])?;
    let qemu = json_u64(&vm, "/processes/guest")?;
    castor.kill_daemon()?;
    let begun = Instant::now();
    until(MINUTE, "the process of the guest is stopped", || {
        Ok(is_stopped(qemu)?.then_some(()))
    })?;
    println!("stopped {:?} after its polluxd was killed", begun.elapsed());
    castor.start_daemon()?;
    until(MINUTE, "the guest goes on", || {
        Ok((!is_stopped(qemu)? && state(&castor)? == "running").then_some(()))
    })?;
    writes_on(&castor, "web", 20)?;
    taken_over_after_the_lease(&castor, &pollux, [&wire, &back], qemu)
}

/// Cut off for good: the replica waits for the end of the lease, and no person has to say a word. The guest is
/// the process `qemu`.
fn taken_over_after_the_lease(
    castor: &Host,
    pollux: &Host,
    wires: [&Wire; 2],
    qemu: u64,
) -> Result<()> {
    // Long enough to ask meanwhile.
    castor.pollux(&["replica", "set", "web", "--fence", "lease=20"])?;
    until(MINUTE, "both know the longer lease", || {
        let left = lease_ms(castor, "left_ms")? > Some(10_000);
        let waits = lease_ms(pollux, "takeover_in_ms")? > Some(10_000);
        Ok((left && waits).then_some(()))
    })?;
    for wire in wires {
        wire.cut();
    }
    let refused = pollux.refused(&["failover", "start", "web"])?;
    assert_eq!(refused.exit, 6, "{}", refused.message);
    for part in ["holds to a lease", "s more", "--wait"] {
        assert!(refused.message.contains(part), "{}", refused.message);
    }
    pollux.pollux(&["failover", "start", "web", "--wait"])?;
    let is_held = is_stopped(qemu)? || state(castor)? == "paused";
    ensure!(is_held, "before the other one ran");
    // Its supervisor may have been faster than its polluxd.
    until(MINUTE, "its host says so", || {
        Ok((state(castor)? == "paused").then_some(()))
    })?;
    let held = flushed(&castor.serial_log("web")?);
    let found = pollux.serial_line("web", 0, "pollux-workload: found", FIRST_WRITE)?;
    assert!(found.ends_with(": right"), "{found}");
    assert_eq!(state(castor)?, "paused");

    // It learns that it was succeeded, and never goes on.
    for wire in wires {
        wire.mend();
    }
    until(MINUTE, "the old primary stood down", || {
        let status = castor.json(&["replica", "status", "web"])?;
        Ok((status.pointer("/0/state") == Some(&"stood-down".into())).then_some(()))
    })?;
    writes_on(pollux, "web", 20)?;
    assert_eq!(state(castor)?, "paused");
    assert_eq!(flushed(&castor.serial_log("web")?), held, "it never ran on");
    castor.pollux(&["vm", "kill", "web"])?;
    castor.refused_with(4, &["vm", "start", "web"])?;
    Ok(())
}
