//! pollux-diskd against qemu-storage-daemon in its better mode, against the raw file, and against
//! itself with tracking.
//!
//! All sides are up at once on the same file, and take turns in short slices, so that what else the
//! machine does hits them alike; a figure is the median of the ratios of neighbouring slices.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use diskd::config::Front;
use diskd::control::Request;
use model::RelationshipId;

use crate::figures::{Figure, Goal, publish, target};
use crate::load::{Client, Load, Pace, Pattern};
use crate::raw::RawClient;
use crate::scratch::Scratch;
use crate::servers::{Aio, Server, diskd_program};

/// Bytes of the disk; written before it is measured.
const DISK: u64 = 512 << 20;
/// Requests at once, of 4 KiB and of 1 MiB.
const DEPTHS: [usize; 2] = [1, 32];
const SEQUENTIAL_DEPTH: usize = 4;
/// Slices of each side for each figure.
const RUNS: usize = 9;
const RUN: Duration = Duration::from_millis(400);
/// Run before the first slice, and to find a peer's better mode.
const WARM_UP: Duration = Duration::from_millis(200);

/// Where the disk's file lies.
struct Place {
    name: &'static str,
    folder: PathBuf,
    /// Whether the file is opened with O_DIRECT: on tmpfs that would measure nothing that exists.
    direct: bool,
}

/// One comparison.
struct Case<'a> {
    place: &'a Place,
    file: &'a Path,
    front: Front,
    load: Load,
}

/// One slice of one side.
struct Sample {
    operations_per_second: f64,
    /// Microseconds of the server's processor time; none where there is no server.
    cpu_per_operation: f64,
}

/// Someone who is measured.
struct Side {
    server: Option<Server>,
    client: Box<dyn Client>,
    load: Load,
    samples: Vec<Sample>,
}

/// Measures what has `only` in its name, and publishes.
pub(crate) fn run(only: &str) -> Result<()> {
    let target = target()?;
    let places = [
        Place {
            name: "tmpfs",
            folder: PathBuf::from("/dev/shm"),
            direct: false,
        },
        Place {
            name: "disk",
            folder: target.clone(),
            direct: true,
        },
    ];
    let mut figures = vec![size_of_diskd(&target)?];
    for place in &places {
        let folder = Scratch::new(&place.folder)?;
        let file = folder.path().join("disk.raw");
        fill(&file).with_context(|| format!("cannot write {}", file.display()))?;
        for front in [Front::VhostUser, Front::Nbd] {
            for load in loads() {
                let case = Case {
                    place,
                    file: &file,
                    front,
                    load,
                };
                if !case.name().contains(only) {
                    continue;
                }
                case.measure(&mut figures)
                    .with_context(|| format!("cannot measure {}", case.name()))?;
            }
        }
        if tracking_name(place).contains(only) {
            tracking(place, &file, &mut figures)?;
        }
    }
    publish("dataplane", &figures)
}

fn loads() -> impl Iterator<Item = Load> {
    let random = [Pattern::RandRead, Pattern::RandWrite];
    let random = random
        .into_iter()
        .flat_map(|pattern| DEPTHS.map(|depth| (pattern, depth)));
    let sequential =
        [Pattern::SeqRead, Pattern::SeqWrite].map(|pattern| (pattern, SEQUENTIAL_DEPTH));
    random.chain(sequential).map(|(pattern, depth)| Load {
        pattern,
        depth,
        len: DISK,
    })
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

/// Size of the program as it is installed: without symbols.
fn size_of_diskd(target: &Path) -> Result<Figure> {
    let folder = Scratch::new(target)?;
    let stripped = folder.path().join("pollux-diskd");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(diskd_program()?);
    let status = strip
        .status()
        .context("`strip` is missing: `apt-get install binutils` brings it")?;
    if !status.success() {
        bail!("strip failed: {status}");
    }
    // Far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let size = fs::metadata(&stripped)?.len() as f64 / f64::from(1 << 20);
    let figure = "dataplane.diskd_size_mib".to_owned();
    Ok(Figure::of(figure, "MiB", Goal::Reported, &[size]))
}

/// Folder for the sockets and the state of one server, on tmpfs as in use.
fn run_folder() -> Result<Scratch> {
    Scratch::new(Path::new("/dev/shm"))
}

impl Side {
    fn of_server(server: Server, load: Load) -> Result<Self> {
        let client = server.connect(load)?;
        Ok(Self {
            server: Some(server),
            client,
            load,
            samples: Vec::new(),
        })
    }

    fn raw(case: &Case) -> Result<Self> {
        let client = RawClient::open(case.file, case.load, case.place.direct)?;
        Ok(Self {
            server: None,
            client: Box::new(client),
            load: case.load,
            samples: Vec::new(),
        })
    }

    fn slice(&mut self, duration: Duration) -> Result<Sample> {
        let cpu_time =
            |server: &Option<Server>| server.as_ref().map_or(Ok(Duration::ZERO), Server::cpu_time);
        let before = cpu_time(&self.server)?;
        let mut pace = Pace::start(self.load, duration);
        self.client.run(&mut pace)?;
        let (operations, took) = pace.end();
        let cpu = cpu_time(&self.server)?.saturating_sub(before);
        // Far below 2^52.
        #[allow(clippy::cast_precision_loss)]
        let operations = operations as f64;
        Ok(Sample {
            operations_per_second: operations / took.as_secs_f64(),
            cpu_per_operation: cpu.as_secs_f64() * 1e6 / operations,
        })
    }

    fn take(&mut self) -> Result<()> {
        let sample = self.slice(RUN)?;
        self.samples.push(sample);
        Ok(())
    }

    fn all(&self, of: fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(of).collect()
    }

    /// Ratios of slices that were taken one after the other.
    fn over(&self, other: &Self, of: fn(&Sample) -> f64) -> Vec<f64> {
        let both = self.samples.iter().zip(&other.samples);
        both.map(|(own, other)| of(own) / of(other)).collect()
    }
}

impl Case<'_> {
    fn name(&self) -> String {
        let Load { pattern, depth, .. } = self.load;
        let front = match self.front {
            Front::VhostUser => "vhost_user",
            Front::Nbd => "nbd",
        };
        let (pattern, place) = (pattern.name(), self.place.name);
        if self.load.pattern.is_sequential() {
            format!("dataplane.{front}.{pattern}.{place}")
        } else {
            format!("dataplane.{front}.{pattern}.qd{depth}.{place}")
        }
    }

    /// Operations per second against the peer.
    fn goal(&self) -> Goal {
        let Load { pattern, depth, .. } = self.load;
        if pattern.is_sequential() {
            return Goal::AtLeast(1.0);
        }
        match (self.front, self.place.direct, pattern) {
            _ if depth == 1 => Goal::Reported,
            (Front::Nbd, ..) => Goal::AtLeast(1.5),
            (Front::VhostUser, false, _) => Goal::AtLeast(3.0),
            (Front::VhostUser, true, Pattern::RandRead) => Goal::AtLeast(1.0),
            (Front::VhostUser, true, _) => Goal::AtLeast(1.5),
        }
    }

    /// Whether this is the case that the goals for processor time and the raw file are about.
    fn is_busy_guest(&self) -> bool {
        self.front == Front::VhostUser && self.load.depth == 32
    }

    fn measure(&self, figures: &mut Vec<Figure>) -> Result<()> {
        let (ours_folder, theirs_folder) = (run_folder()?, run_folder()?);
        let (mut theirs, aio) = self.peer(theirs_folder.path())?;
        let server = Server::diskd(ours_folder.path(), self.file, self.front)?;
        let mut ours = Side::of_server(server, self.load)?;
        // On tmpfs the raw file is memory: nobody's disk.
        let mut raw = match self.place.direct {
            true => Some(Side::raw(self)?),
            false => None,
        };
        eprintln!("{} (qemu-storage-daemon: aio={})", self.name(), aio.name());
        ours.slice(WARM_UP)?;
        for _ in 0..RUNS {
            ours.take()?;
            theirs.take()?;
            if let Some(raw) = &mut raw {
                raw.take()?;
            }
        }
        let speed = |sample: &Sample| sample.operations_per_second;
        let cpu = |sample: &Sample| sample.cpu_per_operation;
        let mut row = |suffix: &str, unit, goal, samples: &[f64]| {
            let figure = format!("{}.{suffix}", self.name());
            figures.push(Figure::of(figure, unit, goal, samples));
        };
        let goal_if_busy = |goal| {
            if self.is_busy_guest() {
                goal
            } else {
                Goal::Reported
            }
        };
        row("vs_qsd", "x", self.goal(), &ours.over(&theirs, speed));
        let goal = goal_if_busy(Goal::AtMost(0.6));
        row("cpu_per_op_vs_qsd", "x", goal, &ours.over(&theirs, cpu));
        if let Some(raw) = &raw {
            let goal = goal_if_busy(Goal::AtLeast(0.85));
            row("vs_raw", "x", goal, &ours.over(raw, speed));
            row("raw.iops", "1/s", Goal::Reported, &raw.all(speed));
        }
        for (name, side) in [("diskd", &ours), ("qsd", &theirs)] {
            let iops = format!("{name}.iops");
            row(&iops, "1/s", Goal::Reported, &side.all(speed));
            let cpu_per_op = format!("{name}.cpu_per_op");
            row(&cpu_per_op, "us", Goal::Reported, &side.all(cpu));
        }
        Ok(())
    }

    /// The peer in the mode in which it does most operations per second.
    fn peer(&self, folder: &Path) -> Result<(Side, Aio)> {
        let mut best = None;
        let mut most = 0.0;
        for aio in Aio::modes(self.place.direct) {
            let server = Server::qsd(folder, self.file, self.front, *aio, self.place.direct)?;
            let mut side = Side::of_server(server, self.load)?;
            side.slice(WARM_UP)?;
            let speed = side.slice(WARM_UP)?.operations_per_second;
            if speed > most {
                (best, most) = (Some((side, *aio)), speed);
            }
        }
        best.context("the peer completes nothing")
    }
}

fn tracking_name(place: &Place) -> String {
    format!(
        "dataplane.tracking.randwrite4k.qd32.{}.on_vs_off",
        place.name
    )
}

/// Random writes with and without tracking of changes, on one server.
fn tracking(place: &Place, file: &Path, figures: &mut Vec<Figure>) -> Result<()> {
    let folder = run_folder()?;
    let load = Load {
        pattern: Pattern::RandWrite,
        depth: 32,
        len: DISK,
    };
    let server = Server::diskd(folder.path(), file, Front::VhostUser)?;
    let mut side = Side::of_server(server, load)?;
    side.slice(WARM_UP)?;
    let mut ratios = Vec::new();
    for _ in 0..RUNS {
        let off = side.slice(RUN)?.operations_per_second;
        ask(
            &mut side,
            &Request::Track {
                relationship: RelationshipId::random(),
                begin: true,
            },
        )?;
        let on = side.slice(RUN)?.operations_per_second;
        ask(&mut side, &Request::Untrack)?;
        ratios.push(on / off);
    }
    let name = tracking_name(place);
    figures.push(Figure::of(name, "x", Goal::AtLeast(0.97), &ratios));
    Ok(())
}

fn ask(side: &mut Side, request: &Request) -> Result<()> {
    let server = side.server.as_mut().context("only a server can be asked")?;
    server.ask(request).map(drop)
}
