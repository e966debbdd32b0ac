//! pollux-diskd against qemu-storage-daemon in its better mode, and against the raw file: all on the
//! same file.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use diskd::config::Front;

use crate::figures::{Figure, Goal, publish, target};
use crate::load::{Load, Pattern};
use crate::raw::RawClient;
use crate::scratch::Scratch;
use crate::servers::{Aio, Format, Server, diskd_program};
use crate::side::{Place, RUNS, Sample, Side, WARM_UP, fill, run_folder};

/// Bytes of the disk; written before it is measured.
const DISK: u64 = 512 << 20;
/// Requests at once, of 4 KiB and of 1 MiB.
const DEPTHS: [usize; 2] = [1, 32];
const SEQUENTIAL_DEPTH: usize = 4;

/// One comparison.
struct Case<'a> {
    place: &'a Place,
    file: &'a Path,
    front: Front,
    load: Load,
}

/// Measures what has `only` in its name, and publishes.
pub(crate) fn run(only: &str) -> Result<()> {
    let target = target()?;
    let places = [Place::tmpfs(), Place::disk()?];
    let mut figures = vec![size_of_diskd(&target)?];
    for place in &places {
        let folder = Scratch::new(&place.folder)?;
        let file = folder.path().join("disk.raw");
        fill(&file, DISK)?;
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
            true => Some(self.raw()?),
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
        let (speed, cpu) = (Sample::speed, Sample::cpu);
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

    fn peer(&self, folder: &Path) -> Result<(Side, Aio)> {
        let direct = self.place.direct;
        Side::best(self.load, direct, |aio| {
            Server::qsd(folder, self.file, Format::Raw, self.front, aio, direct)
        })
    }

    fn raw(&self) -> Result<Side> {
        let client = RawClient::open(self.file, self.load, self.place.direct)?;
        Ok(Side::of_client(client, self.load))
    }
}
