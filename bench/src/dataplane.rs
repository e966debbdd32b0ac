//! pollux-diskd against qemu-storage-daemon in its better mode, and against itself with tracking.
//!
//! Each sample is a short run; the sides alternate, so that what else the machine does hits both.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use diskd::control::Request;
use model::RelationshipId;

use crate::client::{Client, Load, Pattern};
use crate::figures::{Figure, Goal, publish, target};
use crate::scratch::Scratch;
use crate::servers::{Aio, Server};

/// Bytes of the disk; written before it is measured.
const DISK: u64 = 512 << 20;
const DEPTH: usize = 32;
/// Pairs of runs for each figure.
const RUNS: usize = 5;
const RUN: Duration = Duration::from_millis(1000);
/// Run before the first sample of a server, and to find a peer's better mode.
const WARM_UP: Duration = Duration::from_millis(400);

/// Where the disk's file lies.
struct Place {
    name: &'static str,
    folder: PathBuf,
    /// Whether the file is opened with O_DIRECT: on tmpfs that would measure nothing that exists.
    direct: bool,
    /// Operations per second against the peer: reads, writes.
    goals: [Goal; 2],
}

/// One run of one server.
struct Sample {
    operations_per_second: f64,
    /// Microseconds of the server's processor time.
    cpu_per_operation: f64,
}

/// Measures and publishes.
pub(crate) fn run() -> Result<()> {
    let target = target()?;
    let places = [
        Place {
            name: "tmpfs",
            folder: PathBuf::from("/dev/shm"),
            direct: false,
            goals: [Goal::AtLeast(3.0); 2],
        },
        Place {
            name: "disk",
            folder: target.clone(),
            direct: true,
            goals: [Goal::AtLeast(1.0), Goal::AtLeast(1.5)],
        },
    ];
    let mut figures = Vec::new();
    for place in &places {
        let folder = Scratch::new(&place.folder)?;
        let file = folder.path().join("disk.raw");
        fill(&file).with_context(|| format!("cannot write {}", file.display()))?;
        for (pattern, goal) in [Pattern::RandRead, Pattern::RandWrite]
            .into_iter()
            .zip(place.goals)
        {
            against_peer(place, goal, pattern, &file, &mut figures)?;
        }
        tracking(place, &file, &mut figures)?;
    }
    publish("dataplane", &figures)
}

/// A file whose blocks are all there.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let chunk: Vec<u8> = (0..1_u32 << 20).map(|at| at.to_le_bytes()[0] | 1).collect();
    for _ in 0..DISK / chunk.len() as u64 {
        file.write_all(&chunk)?;
    }
    Ok(file.sync_all()?)
}

fn name(pattern: Pattern) -> &'static str {
    match pattern {
        Pattern::RandRead => "randread4k",
        Pattern::RandWrite => "randwrite4k",
    }
}

fn sample(
    server: &Server,
    client: &mut Client,
    pattern: Pattern,
    duration: Duration,
) -> Result<Sample> {
    let load = Load {
        pattern,
        depth: DEPTH,
        len: DISK,
        duration,
    };
    let before = server.cpu_time()?;
    let (operations, took) = client.run(load)?;
    let cpu = server.cpu_time()?.saturating_sub(before);
    // Far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let operations = operations as f64;
    Ok(Sample {
        operations_per_second: operations / took.as_secs_f64(),
        cpu_per_operation: cpu.as_secs_f64() * 1e6 / operations,
    })
}

/// Folder for the sockets and the state of one server, on tmpfs as in use.
fn run_folder() -> Result<Scratch> {
    Scratch::new(Path::new("/dev/shm"))
}

/// The mode in which the peer does most operations per second.
fn better_mode(place: &Place, pattern: Pattern, file: &Path) -> Result<Aio> {
    let mut best = (Aio::Threads, 0.0);
    for aio in Aio::modes(place.direct) {
        let folder = run_folder()?;
        let server = Server::qsd(folder.path(), file, *aio, place.direct)?;
        let mut client = Client::connect(server.socket(), DEPTH)?;
        let speed = sample(&server, &mut client, pattern, WARM_UP)?.operations_per_second;
        if speed > best.1 {
            best = (*aio, speed);
        }
    }
    Ok(best.0)
}

fn against_peer(
    place: &Place,
    goal: Goal,
    pattern: Pattern,
    file: &Path,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    let what = name(pattern);
    let aio = better_mode(place, pattern, file)?;
    eprintln!(
        "{what} on {}: qemu-storage-daemon with aio={}",
        place.name,
        aio.name()
    );
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // One server at a time: each locks the file.
    for _ in 0..RUNS {
        let folder = run_folder()?;
        let server = Server::diskd(folder.path(), file)?;
        ours.push(measure(&server, pattern)?);
        drop(server);
        let server = Server::qsd(folder.path(), file, aio, place.direct)?;
        theirs.push(measure(&server, pattern)?);
    }
    let prefix = format!("dataplane.vhost_user.{what}.qd{DEPTH}.{}", place.name);
    let both = || ours.iter().zip(&theirs);
    let speed: Vec<f64> = both()
        .map(|(ours, theirs)| ours.operations_per_second / theirs.operations_per_second)
        .collect();
    let cpu: Vec<f64> = both()
        .map(|(ours, theirs)| ours.cpu_per_operation / theirs.cpu_per_operation)
        .collect();
    let of =
        |samples: &[Sample], pick: fn(&Sample) -> f64| samples.iter().map(pick).collect::<Vec<_>>();
    let mut row = |suffix: &str, unit, goal, samples: &[f64]| {
        figures.push(Figure::of(
            format!("{prefix}.{suffix}"),
            unit,
            goal,
            samples,
        ));
    };
    row("vs_qsd", "x", goal, &speed);
    row("cpu_per_op_vs_qsd", "x", Goal::AtMost(0.6), &cpu);
    for (side, samples) in [("diskd", &ours), ("qsd", &theirs)] {
        let speed = of(samples, |sample| sample.operations_per_second);
        let cpu = of(samples, |sample| sample.cpu_per_operation);
        row(&format!("{side}.iops"), "1/s", Goal::Reported, &speed);
        row(&format!("{side}.cpu_per_op"), "us", Goal::Reported, &cpu);
    }
    Ok(())
}

/// A sample of a server that was warmed up.
fn measure(server: &Server, pattern: Pattern) -> Result<Sample> {
    let mut client = Client::connect(server.socket(), DEPTH)?;
    sample(server, &mut client, pattern, WARM_UP)?;
    sample(server, &mut client, pattern, RUN)
}

/// Random writes with and without tracking of changes, on one server.
fn tracking(place: &Place, file: &Path, figures: &mut Vec<Figure>) -> Result<()> {
    let folder = run_folder()?;
    let mut server = Server::diskd(folder.path(), file)?;
    let mut client = Client::connect(server.socket(), DEPTH)?;
    let pattern = Pattern::RandWrite;
    sample(&server, &mut client, pattern, WARM_UP)?;
    let mut ratios = Vec::new();
    for _ in 0..RUNS {
        let off = sample(&server, &mut client, pattern, RUN)?;
        server.ask(&Request::Track {
            relationship: RelationshipId::random(),
        })?;
        let on = sample(&server, &mut client, pattern, RUN)?;
        server.ask(&Request::Untrack)?;
        ratios.push(on.operations_per_second / off.operations_per_second);
    }
    let figure = format!(
        "dataplane.tracking.{}.qd{DEPTH}.{}.on_vs_off",
        name(pattern),
        place.name
    );
    figures.push(Figure::of(figure, "x", Goal::AtLeast(0.97), &ratios));
    fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))
}
