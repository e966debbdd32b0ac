//! A host that was taken over from becomes the replica by difference, and takes the VM home.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use model::Bytes;
use pollux_tests::{
    FIRST_WRITE, FOUND, Host, Pair, Refusal, create_local_writer, flushed, found_of, judge,
    planned, point_name, text, until, writes_on,
};
use serde_json::Value;
use testkit::workload::Cut;

const MINUTE: Duration = Duration::from_secs(60);
const DISK: Bytes = Bytes(256 << 20);
/// To which the guest writes.
const SPAN_MIB: u32 = 16;

fn points(host: &Host) -> Vec<Value> {
    let points = host.json(&["point", "list", "web"]).ok();
    let points = points.and_then(|points| points.as_array().cloned());
    points.unwrap_or_default()
}

/// Exports the newest point of a host and gives how many records it proves.
fn committed(host: &Host, scratch: &Path) -> Result<u64> {
    loop {
        let listed = points(host);
        let newest = listed.last().context("a point")?;
        let name = point_name(newest)?;
        let image = scratch.join(format!("{name}.raw"));
        let path = image.display().to_string();
        let exported = host.pollux(&["point", "export", "web", &name, &path]);
        let listed = points(host);
        if exported.is_err() && listed.iter().all(|point| point["id"] != newest["id"]) {
            // Newer ones came, and it went.
            continue;
        }
        exported?;
        let judged = judge(&image, Cut::Point)?;
        std::fs::remove_file(&image)?;
        return Ok(judged.committed);
    }
}

/// How many checkpoints there are.
fn checkpoints(host: &Host) -> Result<usize> {
    count(host, |_| true)
}

/// How many of them are to be merged.
fn merging_checkpoints(host: &Host) -> Result<usize> {
    count(host, |one| one["merging"] == true)
}

fn count(host: &Host, which: impl Fn(&&Value) -> bool) -> Result<usize> {
    let details = host.json(&["vm", "show", "web"])?;
    let all = details.pointer("/checkpoints").and_then(Value::as_array);
    Ok(all.context("checkpoints")?.iter().filter(which).count())
}

fn state(host: &Host) -> Result<String> {
    let all = host.json(&["replica", "status", "web"])?;
    Ok(text(&all, "/0/state")?.to_owned())
}

/// Bytes of all recovery points of a host, as they came.
fn received(host: &Host) -> Result<u64> {
    let sizes = points(host)
        .iter()
        .map(|point| Ok(text(point, "/size")?.parse::<Bytes>()?.0))
        .collect::<Result<Vec<u64>>>()?;
    Ok(sizes.iter().sum())
}

/// What a host wrote to the first disk and never sent.
fn lost_bytes(host: &Host) -> Result<u64> {
    let report = host.json(&["failover", "lost-writes", "web"])?;
    let ranges = report.pointer("/disks/0/ranges");
    let ranges = ranges.and_then(Value::as_array).context("ranges")?;
    let lengths = ranges.iter();
    lengths
        .map(|range| Ok(text(range, "/len")?.parse::<Bytes>()?.0))
        .sum()
}

/// A copy is started from them and they are read, while polluxd is killed; they are kept as long, and stay
/// as they were: `proved` records in the disk that is `kept`.
fn look_into_lost_writes(castor: &mut Host, kept: &Path, proved: u64) -> Result<()> {
    let drop = ["failover", "lost-writes", "web", "--drop"];
    let kept_for = |castor: &Host, way_out: &str| -> Result<()> {
        let refused = castor.refused(&drop)?;
        ensure!(refused.exit == 4, "{}", refused.message);
        ensure!(refused.message.contains(way_out), "{}", refused.message);
        Ok(())
    };
    let before = content(kept)?;
    castor.pollux(&["failover", "test", "web", "--point", "lost-writes"])?;
    castor.pollux(&["point", "open", "web", "lost-writes"])?;
    castor.kill_daemon()?;
    castor.start_daemon()?;
    let found = castor.serial_line("web - Test", 0, "pollux-workload: found", FIRST_WRITE)?;
    ensure!(found.ends_with(": right"), "{found}");
    ensure!(found.contains(&format!(" committed {proved} ")), "{found}");
    writes_on(castor, "web - Test", 100)?;
    kept_for(castor, "pollux failover stop-test")?;
    castor.pollux(&["failover", "stop-test", "web"])?;
    ensure!(castor.refused(&["vm", "show", "web - Test"])?.exit == 3);

    kept_for(castor, "pollux point close")?;
    let report = castor.json(&["failover", "lost-writes", "web"])?;
    let same = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .args([text(&report, "/open/0/uri")?.as_ref(), kept.as_os_str()])
        .status()?;
    ensure!(same.success(), "{same}");
    castor.pollux(&["point", "close", "web", "lost-writes"])?;
    ensure!(content(kept)? == before, "it was written to");
    // They are no point to go on from.
    let start = ["failover", "start", "web", "--point", "lost-writes"];
    let refused = castor.refused(&start)?;
    ensure!(refused.message.contains("vm create"), "{}", refused.message);
    let left = std::fs::read_dir(kept.parent().context("a folder")?)?;
    let left = left.map(|entry| entry.map(|entry| entry.file_name()));
    let mut left = left.collect::<std::io::Result<Vec<_>>>()?;
    left.retain(|name| {
        let name = name.to_string_lossy();
        ["test-", "open-", "."]
            .iter()
            .any(|kind| name.starts_with(kind))
    });
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// `pollux failover COMMAND` is refused, and says so.
fn refused(host: &Host, command: &str, way_out: &str) -> Result<()> {
    let says = |refused: &Refusal| refused.message.contains(way_out);
    let refused = host.refused_for(&["failover", command, "web"], says)?;
    ensure!(says(&refused), "{}", refused.message);
    Ok(())
}

/// A hash of what a file holds.
fn content(file: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let (mut file, mut block) = (File::open(file)?, vec![0; 1 << 20]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hasher.finish()),
            read => hasher.write(&block[..read]),
        }
    }
}

/// While lost writes are kept nothing is merged into the twin, which takes no more for every point all the
/// same.
fn points_go_into_each_other(pair: &Pair) -> Result<()> {
    pair.pollux
        .pollux(&["replica", "set", "web", "--keep", "2:all"])?;
    let oldest = |host: &Host| points(host).first().map(|point| point["id"].clone());
    let first = oldest(&pair.castor).context("a point")?;
    until(3 * MINUTE, "the oldest points go into each other", || {
        Ok((oldest(&pair.castor) != Some(first.clone())).then_some(()))
    })?;
    let report = pair.castor.json(&["failover", "lost-writes", "web"])?;
    println!("held: {}", text(&report, "/held")?);
    Ok(())
}

/// A host with checkpoints could not become the replica afterwards: that is said while nothing is stopped.
/// They stay if a person wants that.
fn prepare_with_checkpoints(host: &Host) -> Result<()> {
    let prepare = ["failover", "prepare", "web"];
    host.insist(&["disk", "checkpoint", "web", "one"])?;
    host.insist(&["disk", "checkpoint", "web", "two"])?;
    let refused = host.refused_with(4, &prepare)?;
    for said in ["`one`, `two`", "disk merge web --all", "--keep-checkpoints"] {
        ensure!(refused.message.contains(said), "{}", refused.message);
    }
    writes_on(host, "web", 100)?;
    host.insist(&["disk", "merge", "web", "--all"])?;
    ensure!(checkpoints(host)? == 0);
    host.insist(&["disk", "checkpoint", "web", "three"])?;
    host.insist(&["disk", "checkpoint", "web", "four"])?;
    writes_on(host, "web", 100)?;
    host.insist(&["failover", "prepare", "web", "--keep-checkpoints"])?;
    Ok(())
}

/// They are gone, and points are merged again.
fn drop_lost_writes(castor: &Host) -> Result<()> {
    castor.pollux(&["failover", "lost-writes", "web", "--drop"])?;
    ensure!(castor.refused(&["failover", "lost-writes", "web"])?.exit == 3);
    ensure!(
        castor
            .refused(&["point", "open", "web", "lost-writes"])?
            .exit
            == 3
    );

    until(MINUTE, "points are merged again", || {
        Ok((points(castor).len() <= 3).then_some(()))
    })
}

/// Checkpoints of the former primary go when a person says so, there, and are gone whatever is killed then.
fn merge_all(pair: &mut Pair) -> Result<()> {
    refused(&pair.castor, "reverse", "disk merge web --all")?;
    let merge = ["disk", "merge", "web", "--all"];
    let mut merging = pair.pollux.command(&merge)?.spawn()?;
    until(MINUTE, "they are to be merged", || {
        let left = checkpoints(&pair.pollux)?;
        Ok((left == 0 || merging_checkpoints(&pair.pollux)? == left).then_some(()))
    })?;
    pair.pollux.kill_everything()?;
    merging.wait()?;
    pair.pollux.start_daemon()?;
    until(2 * MINUTE, "the checkpoints are merged", || {
        Ok((checkpoints(&pair.pollux)? == 0).then_some(()))
    })
}

#[test]
fn after_a_forced_takeover_only_the_difference_goes_back_and_nothing_written_is_lost() -> Result<()>
{
    let mut pair = Pair::new("failback")?;
    create_local_writer(&pair.castor, "web", &DISK.to_string(), SPAN_MIB)?;
    pair.castor.pollux(&["vm", "start", "web"])?;
    pair.castor
        .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;

    // Both run for a while, and neither hears of the other.
    pair.wire.cut();
    writes_on(&pair.castor, "web", 200)?;
    pair.castor.kill_daemon()?;
    let because = ["--force", "--because", "the site of castor is dark"];
    let start = ["failover", "start", "web"];
    pair.pollux.pollux(&[&start[..], &because[..]].concat())?;
    pair.pollux
        .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    writes_on(&pair.pollux, "web", 200)?;

    pair.castor.start_daemon()?;
    pair.wire.mend();
    let (castor, pollux) = (&pair.castor, &pair.pollux);
    until(2 * MINUTE, "the old primary is held", || {
        Ok((state(castor)? == "stood-down").then_some(()))
    })?;
    let lost = flushed(&castor.serial_log("web")?).context("it wrote")?;
    // It is still there, held: only a person ends it.
    refused(pollux, "reverse", "pollux replica server enable")?;
    castor.pollux(&["replica", "server", "enable"])?;
    refused(pollux, "reverse", "pollux vm kill web")?;
    castor.pollux(&["vm", "kill", "web"])?;
    // Nothing lies above a point any more, and what goes back is known all the same.
    pollux.pollux(&["failover", "complete", "web"])?;
    pollux.insist(&["failover", "reverse", "web"])?;
    until(3 * MINUTE, "points come back", || {
        Ok((points(castor).len() >= 2).then_some(()))
    })?;
    let shipped = received(castor)?;
    println!("shipped {} of {DISK}", Bytes(shipped));
    ensure!(shipped < DISK.0 / 4, "{shipped}");
    let written = flushed(&pollux.serial_log("web")?).context("it writes")?;
    until(2 * MINUTE, "what is written arrives", || {
        Ok((committed(castor, pair.scratch.state())? >= written).then_some(()))
    })?;

    // What was written here meanwhile is listed, and kept as it was.
    let sum = lost_bytes(castor)?;
    println!("lost writes: {}", Bytes(sum));
    ensure!(sum > 0 && sum < 4 * (u64::from(SPAN_MIB) << 20), "{sum}");
    let report = castor.json(&["failover", "lost-writes", "web"])?;
    let kept = text(&report, "/disks/0/file")?;
    let proved = judge(Path::new(kept), Cut::Point)?.committed;
    ensure!(proved >= lost, "{proved} of {lost}");
    points_go_into_each_other(&pair)?;
    look_into_lost_writes(&mut pair.castor, Path::new(kept), proved)?;
    let (castor, pollux) = (&pair.castor, &pair.pollux);
    drop_lost_writes(castor)?;

    // Home, as planned: nothing is lost.
    prepare_with_checkpoints(pollux)?;
    let written = flushed(&pollux.serial_log("web")?).context("it wrote")?;
    ensure!(committed(castor, pair.scratch.state())? >= written);
    castor.insist(&["failover", "start", "web"])?;
    let found = castor.serial_line("web", 0, "pollux-workload: found", FIRST_WRITE)?;
    ensure!(found.ends_with(": right"), "{found}");
    let refused = pollux.refused(&["vm", "start", "web"])?;
    ensure!(refused.message.contains("castor"), "{}", refused.message);

    // Once more the other way. Nothing was written there that castor does not have.
    merge_all(&mut pair)?;
    let (castor, pollux) = (&pair.castor, &pair.pollux);
    until(3 * MINUTE, "it is replicated to pollux again", || {
        let reversed = castor.pollux(&["failover", "reverse", "web"]);
        Ok(reversed.inspect_err(|error| println!("{error:#}")).ok())
    })?;
    let written = writes_on(castor, "web", 100)?;
    until(3 * MINUTE, "what is written arrives", || {
        let newest = points(pollux).len() >= 2;
        Ok((newest && committed(pollux, pair.scratch.state())? >= written).then_some(()))
    })?;
    until(MINUTE, "nothing is kept where nothing was lost", || {
        let shown = pollux
            .command(&["failover", "lost-writes", "web"])?
            .output()?;
        Ok((shown.status.code() == Some(3)).then_some(()))
    })?;
    let shipped = received(pollux)?;
    println!("shipped {} of {DISK} after a merge", Bytes(shipped));
    ensure!(shipped < DISK.0 / 4, "{shipped}");
    // By that the failover was final: it lies on disks of its own.
    let details = castor.json(&["vm", "show", "web"])?;
    let id = text(&details, "/spec/id")?;
    let journal = castor.state().join("replicas").join(id).join("journal");
    until(2 * MINUTE, "the journal is gone", || {
        Ok((!journal.exists()).then_some(()))
    })?;
    castor.insist(&["disk", "checkpoint", "web"])?;
    writes_on(castor, "web", 100)?;
    Ok(())
}

#[test]
fn a_host_that_was_taken_over_from_before_its_own_failover_was_final_becomes_the_replica()
-> Result<()> {
    let mut pair = Pair::new("failback-again")?;
    create_local_writer(&pair.castor, "web", "64MiB", 8)?;
    pair.castor.pollux(&["vm", "start", "web"])?;
    pair.castor
        .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    pair.castor.pollux(&["replica", "server", "enable"])?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;
    pair.castor.kill_everything()?;
    let because = ["--force", "--because", "castor is dark"];
    pair.pollux
        .pollux(&[&["failover", "start", "web"][..], &because[..]].concat())?;
    // Before it listens for its power button it does not shut down.
    pair.pollux
        .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    pair.castor.start_daemon()?;
    let (castor, pollux) = (&pair.castor, &pair.pollux);
    until(2 * MINUTE, "the old primary stands down", || {
        Ok((state(castor)? == "stood-down").then_some(()))
    })?;
    let points_of = |host: &Host| {
        until(3 * MINUTE, "there are points", || {
            Ok((points(host).len() >= 2).then_some(()))
        })
    };
    pollux.insist(&["failover", "reverse", "web"])?;
    points_of(castor)?;

    // Home, where what was never sent lies in the files of the point: that failover is not final yet.
    planned(pollux, castor)?;
    castor.insist(&["failover", "reverse", "web"])?;
    points_of(pollux)?;
    // What the failover has above its point is no checkpoint that a person could merge.
    let said = castor.refused(&["disk", "merge", "web", "--all"])?.message;
    ensure!(said.contains("pollux failover complete web"), "{said}");
    planned(castor, pollux)?;

    // The way out, from one refusal to the next.
    refused(pollux, "reverse", "pollux failover complete web")?;
    refused(castor, "complete", "pollux failover lost-writes web --drop")?;
    castor.pollux(&["failover", "lost-writes", "web", "--drop"])?;
    castor.pollux(&["failover", "complete", "web"])?;
    pollux.insist(&["failover", "reverse", "web"])?;
    let written = writes_on(pollux, "web", 100)?;
    until(3 * MINUTE, "what is written arrives", || {
        let there = !points(castor).is_empty();
        Ok((there && committed(castor, pair.scratch.state())? >= written).then_some(()))
    })
}

#[test]
fn a_planned_failover_is_called_off_and_the_guest_goes_on_at_home_as_it_was() -> Result<()> {
    let mut pair = Pair::new("failover-called-off")?;
    create_local_writer(&pair.castor, "web", &DISK.to_string(), SPAN_MIB)?;
    pair.castor.pollux(&["vm", "start", "web"])?;
    pair.castor
        .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;
    pair.castor.insist(&["failover", "prepare", "web"])?;
    pair.pollux.insist(&["failover", "start", "web"])?;
    let before = points(&pair.pollux);
    ensure!(!before.is_empty(), "it has points");
    let moved = found_of(&pair.pollux.serial_line("web", 0, FOUND, FIRST_WRITE)?)?;
    writes_on(&pair.pollux, "web", 100)?;
    refused(&pair.pollux, "cancel", "pollux vm kill web")?;
    pair.pollux.pollux(&["vm", "kill", "web"])?;
    refused(&pair.pollux, "cancel", "--drop-writes")?;
    let start = ["vm", "start", "web"];
    let says = |refused: &Refusal| refused.message.contains("pollux failover cancel web");
    let said = pair.castor.refused_for(&start, says)?;
    ensure!(says(&said), "{}", said.message);

    // Killed on the way it is one of the two, and asked again it is the replica.
    let details = pair.pollux.json(&["vm", "show", "web"])?;
    let home = pair.pollux.state().join("replicas");
    let home = home.join(text(&details, "/spec/id")?);
    let cancel = ["failover", "cancel", "web", "--drop-writes"];
    let mut asked = pair.pollux.command(&cancel)?.spawn()?;
    let run = pair.pollux.diskd_socket(text(&details, "/spec/id")?);
    let run = run.parent().context("a folder")?.to_owned();
    until(MINUTE, "it has begun", || {
        Ok((!run.exists() || asked.try_wait()?.is_some()).then_some(()))
    })?;
    pair.pollux.kill_daemon()?;
    asked.wait()?;
    pair.pollux.start_daemon()?;
    let standing = std::fs::read_to_string(home.join("standing.toml"))?;
    let is_replica = standing.contains("role = \"replica\"");
    println!("killed when it was decided: {is_replica}");
    ensure!(is_replica != home.join("failover").exists(), "{standing}");
    if !is_replica {
        pair.castor.refused_with(4, &start)?;
        pair.pollux.pollux(&cancel)?;
    }

    let log = pair.castor.serial_log("web")?.len();
    pair.castor.insist(&start)?;
    let there = found_of(&pair.castor.serial_line("web", log, FOUND, FIRST_WRITE)?)?;
    ensure!(there == moved, "{there} of {moved}");
    let written = writes_on(&pair.castor, "web", 100)?;
    until(2 * MINUTE, "what is written arrives", || {
        Ok((committed(&pair.pollux, pair.scratch.state())? >= written).then_some(()))
    })?;
    // In the first point; the guest writes on.
    let known = |point: &&Value| before.iter().any(|one| one["id"] == point["id"]);
    let now = points(&pair.pollux);
    let first = now.iter().find(|point| !known(point)).context("a point")?;
    let shipped: Bytes = text(first, "/size")?.parse()?;
    println!("shipped {shipped} of {DISK}");
    ensure!(shipped.0 < DISK.0 / 4, "{shipped}");
    Ok(())
}
