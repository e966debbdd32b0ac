//! Changes are tracked through whatever kills: two hosts, and a guest that changes its disks at random.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use model::Bytes;
use pollux_tests::{Host, Pair, churn, json_u64, kill, nothing_pending, text, tracked, until};
use serde_json::Value;
use testkit::Rng;

const MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// The longest time from one kill to the next, in milliseconds.
const CALM: u64 = 1200;
/// Of so many kills one waits until points come again.
const LOOK: usize = 10;

/// A process that is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Diskd,
    Polluxd,
    Vmd,
    Qemu,
    /// The polluxd of the twin.
    Replica,
}

use Victim::{Diskd, Polluxd, Qemu, Replica, Vmd};

/// What is killed in one go, and how often.
const KILLS: [(usize, &[Victim]); 10] = [
    (24, &[Diskd]),
    (10, &[Polluxd]),
    (5, &[Polluxd, Diskd]),
    (3, &[Replica]),
    (3, &[Vmd]),
    (1, &[Qemu]),
    (1, &[Vmd, Diskd]),
    (1, &[Polluxd, Qemu, Diskd]),
    (1, &[Polluxd, Vmd, Diskd]),
    (1, &[Replica, Polluxd, Diskd, Vmd, Qemu]),
];

/// The kills in an order that the seed decides.
fn shuffled(rng: &mut Rng) -> Vec<&'static [Victim]> {
    let all = KILLS.iter();
    let mut all: Vec<_> = all
        .flat_map(|(times, victims)| vec![*victims; *times])
        .collect();
    for last in (1..all.len()).rev() {
        all.swap(last, rng.index(last + 1));
    }
    all
}

/// The process of `web`, once it runs.
fn process(host: &Host, name: &str) -> Result<u32> {
    let pid = until(MINUTE, &format!("{name} runs"), || {
        let show = host.json(&["vm", "show", "web"])?;
        Ok(json_u64(&show, &format!("/processes/{name}")).ok())
    });
    Ok(u32::try_from(pid?)?)
}

/// Whether the guest goes with them.
fn ends_guest(victims: &[Victim]) -> bool {
    victims.contains(&Vmd) || victims.contains(&Qemu)
}

/// `kill -9` of all of them; then what does not come back by itself is started again.
fn strike(pair: &mut Pair, victims: &[Victim], seed: u64) -> Result<()> {
    let mut pids = Vec::new();
    for victim in victims {
        match victim {
            Diskd => pids.push(process(&pair.castor, "diskd")?),
            Vmd => pids.push(process(&pair.castor, "vmd")?),
            Qemu => pids.push(process(&pair.castor, "guest")?),
            Polluxd | Replica => {}
        }
    }
    if victims.contains(&Replica) {
        pair.pollux.kill_daemon()?;
    }
    if victims.contains(&Polluxd) {
        pair.castor.kill_daemon()?;
    }
    for pid in pids {
        // One may have ended with another.
        let _ = kill(pid);
    }
    if victims.contains(&Replica) {
        pair.pollux.start_daemon()?;
    }
    if victims.contains(&Polluxd) {
        pair.castor.start_daemon()?;
    }
    if ends_guest(victims) {
        until(MINUTE, "the VM is off", || {
            let show = pair.castor.json(&["vm", "show", "web"])?;
            Ok((text(&show, "/vm/state")? == "off").then_some(()))
        })?;
        churn::start(&pair.castor, seed)?;
    }
    Ok(())
}

fn newest(pair: &Pair) -> Result<u64> {
    json_u64(
        pair.points("web").last().context("a point")?,
        "/id/sequence",
    )
}

fn points_come(pair: &Pair) -> Result<()> {
    let before = newest(pair)?;
    until(2 * MINUTE, "points come", || {
        Ok((newest(pair).unwrap_or(0) >= before + 2).then_some(()))
    })
    .with_context(|| format!("{:?}", pair.castor.json(&["replica", "status", "web"])))
}

/// Bytes of the segments of points; the base has none.
fn sizes(points: &[Value]) -> Result<u64> {
    let sizes = points.iter().map(|point| {
        let size: Bytes = text(point, "/size")?.parse()?;
        Ok(size.0)
    });
    sizes.sum()
}

/// Most that is sent through fifty kills, when guests of so many lives said that they changed so many bytes:
/// a block that was changed twice in an epoch is sent once, and what a kill makes go again is less than that.
/// What a guest changed last it did not say, and both hosts talk every second. One disk sent again would be
/// beyond it.
fn most_sent(changed: u64, lives: u64, seconds: u64) -> u64 {
    changed + changed / 10 + lives * MIB + seconds * 16 * 1024
}

#[test]
fn fifty_kills_at_random_instants_cost_no_comparison_and_the_twin_stays_exact() -> Result<()> {
    let seed = std::env::var("POLLUX_SEED").map_or(Ok(1), |seed| seed.parse())?;
    let mut rng = Rng::new(seed);
    let mut pair = Pair::new("tracking-kills")?;
    churn::create(&pair.castor, seed)?;
    churn::start(&pair.castor, rng.below(1 << 40))?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;
    let first = newest(&pair)?;
    let (carried, changed) = (pair.wire.carried(), churn::changed(&pair.castor)?);
    let (begun, mut lives) = (Instant::now(), 1);

    for (number, victims) in (1..).zip(shuffled(&mut rng)) {
        sleep(Duration::from_millis(rng.below(CALM)));
        // What it says begins with its polluxd, which may be killed now.
        ensure!(
            so_far(&pair, "compared")? == 0,
            "compared before kill {number}"
        );
        strike(&mut pair, victims, rng.below(1 << 40))
            .and_then(|()| churn::changed(&pair.castor))
            .with_context(|| format!("seed {seed}, kill {number}: {victims:?}"))?;
        lives += u64::from(ends_guest(victims));
        if number % LOOK == 0 {
            points_come(&pair).with_context(|| format!("seed {seed}, kill {number}"))?;
        }
    }
    points_come(&pair)?;
    churn::stop(&pair.castor)?;
    nothing_pending(&pair.castor, "web")?;
    let (carried, seconds) = (pair.wire.carried() - carried, begun.elapsed().as_secs());
    churn::are_equal(&pair).with_context(|| format!("seed {seed}"))?;
    ensure!(
        so_far(&pair, "compared")? == 0,
        "compared after the last kill"
    );

    let changed = churn::changed(&pair.castor)? - changed;
    let mut points = pair.points("web");
    points.retain(|point| json_u64(point, "/id/sequence").is_ok_and(|number| number > first));
    let (segments, count) = (sizes(&points)?, points.len());
    println!(
        "seed {seed}: 50 kills; the guest changed {}, {count} segments have {}, {} were carried",
        Bytes(changed),
        Bytes(segments),
        Bytes(carried)
    );
    let most = most_sent(changed, lives, seconds);
    ensure!(carried <= most, "{} at most", Bytes(most));
    Ok(())
}

/// The points that the twin has.
fn ids(pair: &Pair) -> Vec<Value> {
    pair.points("web").iter().map(|p| p["id"].clone()).collect()
}

/// What the relationship says in `field`, since polluxd started.
fn so_far(pair: &Pair, field: &str) -> Result<u64> {
    let status = pair.castor.json(&["replica", "status", "web"])?;
    let size: Bytes = text(&status, &format!("/0/{field}"))?.parse()?;
    Ok(size.0)
}

/// The file of a disk that is one raw file.
fn raw_file(host: &Host, slot: &str) -> Result<PathBuf> {
    let disks = host.json(&["disk", "info", "web", slot])?;
    Ok(text(&disks, "/0/file")?.into())
}

/// What the comparison after a start cost.
struct Cost {
    compared: u64,
    differed: u64,
    /// In points that were not there before.
    shipped: u64,
}

/// Waits until the twin is equal, of which no point may be gone, and looks at what it cost.
fn repaired(pair: &Pair, what: &str, before: &[Value]) -> Result<Cost> {
    churn::are_equal(pair).with_context(|| what.to_owned())?;
    let after = ids(pair);
    ensure!(
        before.iter().all(|point| after.contains(point)),
        "{what}: points of the twin are gone"
    );
    let (compared, differed) = (so_far(pair, "compared")?, so_far(pair, "differed")?);
    let mut points = pair.points("web");
    points.retain(|point| !before.contains(&point["id"]));
    let shipped = sizes(&points)?;
    println!(
        "{what}: compared {}, differed {}, shipped {}",
        Bytes(compared),
        Bytes(differed),
        Bytes(shipped)
    );
    Ok(Cost {
        compared,
        differed,
        shipped,
    })
}

/// The guest changes its disks for a while, and its plug is pulled.
fn changes(pair: &Pair, seed: u64) -> Result<()> {
    churn::start(&pair.castor, seed)?;
    let before = churn::changed(&pair.castor)?;
    until(MINUTE, "the guest changes its disks", || {
        Ok((churn::changed(&pair.castor)? > before + churn::BLOCK).then_some(()))
    })?;
    pair.castor.pollux(&["vm", "kill", "web"])?;
    Ok(())
}

#[test]
fn after_reboots_under_changes_flips_applied_and_merged_checkpoints_the_twin_is_exact() -> Result<()>
{
    let mut pair = Pair::new("tracking-reboots")?;
    churn::create(&pair.castor, 2)?;
    churn::start(&pair.castor, 2)?;
    pair.replicate("web")?;
    pair.wait_for_points("web", 3)?;

    // The power fails under the guest, which is started again at once.
    let before = ids(&pair);
    let changed = churn::changed(&pair.castor)?;
    let files = [raw_file(&pair.castor, "0")?, raw_file(&pair.castor, "1")?];
    pair.castor.kill_everything()?;
    pair.castor.lose_memory()?;
    let differ = churn::differ_from_twin(&pair, &files)?;
    pair.wire.cut();
    pair.castor.start_daemon()?;
    until(MINUTE, "it is said what nobody can tell", || {
        let suspect = tracked(&pair.castor, "web", &["suspect"]);
        Ok((suspect.unwrap_or_default() > 0).then_some(()))
    })?;
    until(MINUTE, "the state says that it is compared", || {
        let status = pair.castor.json(&["replica", "status", "web"])?;
        Ok((text(&status, "/0/state")? == "resynchronizing").then_some(()))
    })?;
    pair.wire.mend();
    churn::start(&pair.castor, 3)?;
    until(2 * MINUTE, "points come again", || {
        Ok((ids(&pair).len() > before.len() + 2).then_some(()))
    })?;
    churn::stop(&pair.castor)?;
    let cost = repaired(&pair, "power lost", &before)?;
    // The log of the serial port goes on, so this is what was changed since, and what the guest had
    // not said yet.
    let changed = churn::changed(&pair.castor)? - changed + SLACK;
    println!(
        "power lost: {} differed, {} were changed since",
        Bytes(differ),
        Bytes(changed)
    );
    ensure!(cost.differed <= differ + changed, "more than what differed");
    ensure!(cost.shipped <= differ + changed, "more than what differed");

    // In order: it is known that nothing differs, so nothing is compared.
    let before = ids(&pair);
    pair.castor.shut_down()?;
    pair.castor.lose_memory()?;
    pair.castor.start_daemon()?;
    let cost = repaired(&pair, "shut down", &before)?;
    ensure!(cost.differed == 0, "{} differed", cost.differed);

    // A byte of a disk is changed by something else while nobody serves it.
    pair.castor.shut_down()?;
    pair.castor.lose_memory()?;
    flip(&files[1], churn::DISKS[1] / 2 + 5)?;
    pair.castor.start_daemon()?;
    let cost = repaired(&pair, "byte flipped", &before)?;
    ensure!(cost.compared >= churn::DISKS[1], "only {}", cost.compared);
    ensure!(cost.differed == churn::BLOCK, "{} differed", cost.differed);

    // A checkpoint is applied, or merged, right before the power fails.
    pair.castor.pollux(&["disk", "checkpoint", "web", "one"])?;
    changes(&pair, 4)?;
    pair.castor.pollux(&["disk", "apply", "web", "one"])?;
    reboot(&mut pair)?;
    repaired(&pair, "checkpoint applied", &before)?;
    changes(&pair, 5)?;
    let merge = pair.castor.command(&["disk", "merge", "web", "one"])?;
    reboot_in(&mut pair, merge)?;
    until(2 * MINUTE, "the merge is done", || {
        let show = pair.castor.json(&["vm", "show", "web"])?;
        let left = show.pointer("/checkpoints").and_then(Value::as_array);
        Ok(left.context("a list")?.is_empty().then_some(()))
    })?;
    repaired(&pair, "checkpoint merged", &before)?;
    Ok(())
}

/// What two guests had changed and not said.
const SLACK: u64 = 4 << 20;

fn reboot(pair: &mut Pair) -> Result<()> {
    pair.castor.kill_everything()?;
    pair.castor.lose_memory()?;
    pair.castor.start_daemon()
}

/// As [`reboot`], a moment after the command began.
fn reboot_in(pair: &mut Pair, mut command: Command) -> Result<()> {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    until(MINUTE, "the merge begins", || {
        let show = pair.castor.json(&["vm", "show", "web"])?;
        let merging = show.pointer("/checkpoints/0/merging");
        // None when it is done already.
        Ok((merging != Some(&false.into())).then_some(()))
    })?;
    pair.castor.kill_everything()?;
    child.wait()?;
    pair.castor.lose_memory()?;
    pair.castor.start_daemon()
}

fn flip(file: &Path, at: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[!byte[0]], at)?)
}
