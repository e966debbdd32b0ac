//! How long a twin takes to come up: from the command to QEMU running, and to its first read.
//!
//! The twin is a real one, replicated from a real primary; its journal is then filled with
//! points until it has [`POINTS`]. A test failover can be repeated, so it gives the runs; the
//! forced one, with the primary dead, is done once at the end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use diskd::control::{Reply, Request};
use journal::{Content, Header, Journal, SegmentWriter, Tip};
use model::{BLOCK_SIZE, PointId, Since};
use pollux_tests::{FIRST_WRITE, Host, Scratch, create_idle, text, until};

use crate::figures::{Goal, Rows};

/// Size of the disk.
const DISK: &str = "100GiB";
/// Points of the twin.
const POINTS: u64 = 1000;
/// Blocks that change from one point to the next.
const CHANGED: u64 = 16;
/// Test failovers that are measured.
const RUNS: usize = 5;
const SEEDED: Duration = Duration::from_secs(900);

/// Seconds from the command on.
struct Taken {
    running: f64,
    first_read: f64,
}

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("takeover") {
        return Ok(());
    }
    let scratch = Scratch::new("bench/failover")?;
    let mut castor = Host::start("castor", &scratch)?;
    let mut pollux = Host::start("pollux", &scratch)?;
    pollux.pollux(&["replica", "server", "enable"])?;
    castor.trust_each_other(&pollux, &format!("127.0.0.1:{}", pollux.port()))?;
    create_idle(&castor, "web", DISK)?;
    println!("copying a disk of {DISK} to the twin ...");
    let begin = Instant::now();
    castor.pollux(&[
        "replica",
        "enable",
        "web",
        "--to",
        "pollux",
        "--frequency",
        "3600s",
    ])?;
    until(SEEDED, "the twin has its first point", || {
        let points = pollux.json(&["point", "list", "web"]);
        Ok(points
            .is_ok_and(|points| points.get(0).is_some())
            .then_some(()))
    })?;
    let seeded = begin.elapsed().as_secs_f64();
    let id = castor.json(&["vm", "show", "web"])?;
    let folder = pollux.state().join("replicas").join(text(&id, "/vm/id")?);
    println!("filling its journal up to {POINTS} points ...");
    // The primary is gone for good: what is added here was never its own.
    castor.kill_everything()?;
    pollux.kill_daemon()?;
    let opened = fill(&folder.join("journal"))?;
    pollux.start_daemon()?;

    let mut taken = Vec::new();
    for _ in 0..RUNS {
        let test = ["failover", "test", "web"];
        taken.push(timed(&pollux, "web - Test", || {
            pollux.pollux(&test).map(drop)
        })?);
        pollux.pollux(&["failover", "stop-test", "web"])?;
    }
    let word = [
        "failover",
        "start",
        "web",
        "--force",
        "--because",
        "a benchmark killed castor",
    ];
    let forced = timed(&pollux, "web", || pollux.pollux(&word).map(drop))?;

    let each = |value: fn(&Taken) -> f64| taken.iter().map(value).collect::<Vec<_>>();
    let second = Goal::AtMost(1.0);
    let reported = Goal::Reported;
    let mut add = |what: &str, goal, samples: &[f64]| {
        rows.add(format!("{what}_s.points{POINTS}"), "s", goal, samples);
    };
    add("takeover", second, &[forced.running]);
    add("takeover_first_read", reported, &[forced.first_read]);
    add("takeover_test", second, &each(|taken| taken.running));
    let first_reads = each(|taken| taken.first_read);
    add("takeover_test_first_read", reported, &first_reads);
    add("takeover_open_point", Goal::AtMost(0.2), &opened);
    let name = "takeover_seed_of_empty_disk_s";
    rows.add(name, "s", reported, &[seeded]);
    Ok(())
}

/// Runs `start` and waits until the guest of `vm` has read from its disk.
fn timed(host: &Host, vm: &str, start: impl FnOnce() -> Result<()>) -> Result<Taken> {
    let begin = Instant::now();
    start()?;
    let running = begin.elapsed().as_secs_f64();
    let details = host.json(&["vm", "show", vm])?;
    let socket = host.diskd_socket(text(&details, "/vm/id")?);
    let first_read = until(FIRST_WRITE, "the guest reads from its disk", || {
        Ok((reads(&socket)? > 0).then(|| begin.elapsed().as_secs_f64()))
    })?;
    Ok(Taken {
        running,
        first_read,
    })
}

/// Reads that diskd completed.
fn reads(socket: &PathBuf) -> Result<u64> {
    let mut stream = UnixStream::connect(socket)?;
    let mut line = serde_json::to_string(&Request::Status)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str(&answer)? {
        Reply::Status { disks, .. } => Ok(disks.iter().map(|disk| disk.reads).sum()),
        other => bail!("diskd answered {other:?}"),
    }
}

/// Adds points until there are [`POINTS`]; seconds that opening the last one takes, a few times.
fn fill(folder: &Path) -> Result<Vec<f64>> {
    let mut journal = Journal::open(folder)?;
    let Tip::Point { mut point, .. } = journal.tip() else {
        bail!("the twin has no point")
    };
    let newest = journal.point(point).context("the newest point is there")?;
    let lineage = journal.lineage().context("a point has a lineage")?;
    let first = Header {
        vm: journal.vm(),
        disks: newest.disks,
        lineage: lineage.clone(),
        content: Content::Delta {
            sequence: point.sequence,
            since: newest.since,
        },
        time: newest.time,
        consistency: newest.consistency,
    };
    let blocks = first.disks[0].size.0 / BLOCK_SIZE;
    let mut content = vec![0; usize::try_from(BLOCK_SIZE)?];
    while (journal.count() as u64) < POINTS {
        let sequence = point.sequence + 1;
        let header = Header {
            content: Content::Delta {
                sequence,
                since: Since::Point(point),
            },
            ..first.clone()
        };
        let name = format!("{sequence}.seg");
        let path = folder.join(Journal::INCOMING).join(&name);
        let mut writer = SegmentWriter::create(File::create(path)?, &header)?;
        for at in 0..CHANGED {
            // Scattered over the disk, never the same block twice in a point.
            let block = (sequence * 7919 + at * (blocks / CHANGED)) % blocks;
            content[..8].copy_from_slice(&block.to_le_bytes());
            content[8..16].copy_from_slice(&sequence.to_le_bytes());
            writer.push_frame(0, block, &content)?;
        }
        let (summary, _) = writer.finish()?;
        journal.commit(&name, summary.root)?;
        point = PointId { sequence, ..point };
    }
    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        let begin = Instant::now();
        drop(journal.open_point(point)?);
        seconds.push(begin.elapsed().as_secs_f64());
    }
    Ok(seconds)
}
