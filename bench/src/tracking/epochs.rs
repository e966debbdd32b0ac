//! What epochs cost the guest: its throughput while one is cut, staged, read and confirmed every second,
//! and how long a cut holds up its writes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use diskd::config::Front;
use model::Problem;

use super::DISK;
use super::primary::Primary;
use crate::figures::{Figure, Goal};
use crate::figures::{Rows, number};
use crate::load::{Load, Pace, Pattern};
use crate::scratch::Scratch;
use crate::servers::{Control, Diskd};
use crate::side::{Place, Sample, Side, WARM_UP, fill, run_folder};

const LOAD: Load = Load {
    pattern: Pattern::RandWrite,
    depth: 32,
    len: DISK,
};
/// What the guest writes when it is not all that it can.
const CHURN: f64 = 20e6;
/// From one cut to the next.
const EPOCH: Duration = Duration::from_secs(1);
/// Slices of so many epochs, with and without.
const EPOCHS: u32 = 3;
const RUNS: usize = 3;
/// Cuts whose pause is measured.
const CUTS: usize = 500;
/// The guest writes to this much while they are: less is staged, and the next cut comes sooner.
const HOT: Load = Load {
    len: 8 << 20,
    ..LOAD
};

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    for place in [Place::tmpfs(), Place::disk()?] {
        let folder = Scratch::new(&place.folder)?;
        let file = folder.path().join("disk.raw");
        let loads = [
            ("epochs_1s_vs_none", true),
            ("epochs_1s_vs_none.saturated", false),
        ];
        let wanted = loads.map(|(name, _)| rows.want(name));
        let pauses = rows.want("cut_pause");
        if !pauses && !wanted.contains(&true) {
            continue;
        }
        fill(&file, DISK)?;
        let name = place.name;
        for ((what, paced), _) in loads.into_iter().zip(wanted).filter(|(_, wanted)| *wanted) {
            eprintln!(
                "epochs, {name}, {}",
                if paced { "20 MB/s" } else { "saturated" }
            );
            let (ratios, lost) = with_and_without(&file, folder.path(), paced)?;
            let goal = match paced {
                true => Goal::AtLeast(0.95),
                false => Goal::Reported,
            };
            rows.add(format!("{what}.{name}"), "x", goal, &ratios);
            rows.add(
                format!("{what}.given_up.{name}"),
                "x",
                Goal::Reported,
                &lost,
            );
        }
        if pauses {
            eprintln!("pauses of cuts, {name}");
            let pauses = pauses_of_cuts(&file, folder.path())?;
            for (what, goal, percent) in [
                ("p50", Goal::Reported, 50),
                ("p99", Goal::AtMost(1.0), 99),
                ("max", Goal::Reported, 100),
            ] {
                let row = format!("tracking.cut_pause_{what}_ms.{name}");
                let figure = Figure::percentile(row, "ms", goal, &pauses, percent);
                rows.figures.push(figure);
            }
        }
    }
    Ok(())
}

/// A tracked disk under a guest, everything of which was shipped before.
struct Guest {
    // Dropped first, with its server.
    side: Side,
    control: Control,
    primary: Primary,
    _run: Scratch,
}

impl Guest {
    fn new(file: &Path, outbox: &Path, load: Load) -> Result<Self> {
        let run = run_folder()?;
        let diskd = Diskd::new(run.path(), file, Front::VhostUser)?;
        let primary = Primary::new(&diskd, outbox);
        primary.prepare(&diskd)?;
        let mut side = Side::of_server(diskd.start()?, load)?;
        let mut control = side.server.as_ref().context("it is a server")?.control()?;
        primary.go_on(&mut control)?;
        side.slice(WARM_UP)?;
        Ok(Self {
            side,
            control,
            primary,
            _run: run,
        })
    }

    /// Ships what is marked.
    fn settle(&mut self) -> Result<()> {
        let (_, file) = self.primary.cut(&mut self.control)?;
        self.primary.ship(&mut self.control, &file)
    }

    /// Has the guest write at `pace` while `work` is done beside it.
    fn write_during<T: Send>(
        &mut self,
        pace: &mut Pace,
        work: impl FnOnce(&mut Primary, &mut Control) -> Result<T> + Send,
    ) -> Result<(Sample, T)> {
        let Self {
            side,
            control,
            primary,
            ..
        } = self;
        thread::scope(|scope| {
            let work = scope.spawn(|| work(primary, control));
            let sample = side.run(pace);
            let done = work.join().map_err(|_panic| anyhow!("a thread panicked"))?;
            Ok((sample?, done?))
        })
    }
}

/// Ratios of the guest's throughput, and which part of the epochs was given up.
fn with_and_without(file: &Path, outbox: &Path, paced: bool) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut guest = Guest::new(file, outbox, LOAD)?;
    let pace = || {
        let pace = Pace::start(LOAD, EPOCH * EPOCHS);
        match paced {
            true => pace.at_most(CHURN / 4096.0),
            false => pace,
        }
    };
    let (mut ratios, mut lost) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        guest.settle()?;
        let without = guest.side.run(&mut pace())?;
        guest.settle()?;
        let (with, given_up) = guest.write_during(&mut pace(), epochs)?;
        ratios.push(with.speed() / without.speed());
        lost.push(f64::from(given_up) / f64::from(EPOCHS));
    }
    Ok((ratios, lost))
}

/// Cuts and ships once a second; how many epochs were given up, for the guest was too fast.
fn epochs(primary: &mut Primary, control: &mut Control) -> Result<u32> {
    let begin = Instant::now();
    let mut given_up = 0;
    for number in 0..EPOCHS {
        thread::sleep((EPOCH * number).saturating_sub(begin.elapsed()));
        match primary.cut(control) {
            Ok((_, file)) => primary.ship(control, &file)?,
            Err(error) if error.is::<Problem>() => given_up += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(given_up)
}

/// Milliseconds for which cuts held up a guest that writes as much as it can.
fn pauses_of_cuts(file: &Path, outbox: &Path) -> Result<Vec<f64>> {
    let mut guest = Guest::new(file, outbox, HOT)?;
    let over = Arc::new(AtomicBool::new(false));
    let cuts = |primary: &mut Primary, control: &mut Control| {
        let mut pauses = Vec::with_capacity(CUTS);
        for _ in 0..CUTS {
            let (staged, file) = primary.cut(control)?;
            pauses.push(number(staged.pause_us) / 1e3);
            primary.confirm(control, &file)?;
        }
        Ok(pauses)
    };
    let mut pace = Pace::until(HOT, Arc::clone(&over));
    let (_, pauses) = guest.write_during(&mut pace, |primary, control| {
        let pauses = cuts(primary, control);
        over.store(true, Ordering::Relaxed);
        pauses
    })?;
    Ok(pauses)
}
