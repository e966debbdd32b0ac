//! Two hosts, a guest that writes, and everything around it breaking at random.
//!
//! ```text
//!   chaos --seed N --rounds M      exit 0: every promise held
//!         --only STEP              draws only steps of which the name begins so
//!
//!   round: some steps, each breaks something and may leave it broken
//!          after each: every point that is listed is exported and judged
//!          then all is mended: the twin catches up, the status is true, nothing is left behind
//!   end:   the twin takes over, by stand-down or by force, and the old primary is held
//! ```
//!
//! The seed decides what is done and for how long; when it hits is the machine's business, so
//! a seed is a good place to begin looking and no recording.

mod faults;
mod invariants;
mod steps;
mod takeover;
mod vm;

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pollux_tests::{FIRST_WRITE, Host, Scratch, Wire, clean_up_on_signals, create_writer};
use steps::Step;
use testkit::Rng;
use testkit::workload::Verified;

const MINUTE: Duration = Duration::from_secs(60);
/// Points that the twin keeps: few, so that merging never rests.
const POINTS: u32 = 8;
/// Records of a batch: so far may the serial log lag behind the disk.
const BATCH: u64 = 64;

fn main() -> ExitCode {
    let options = match arguments() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error:#}\nusage: chaos [--seed N] [--rounds M] [--only STEP]");
            return ExitCode::from(2);
        }
    };
    let seed = options.seed;
    match chaos(&options) {
        Ok(()) => {
            println!("seed {seed}: every promise held");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("seed {seed} FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    seed: u64,
    rounds: u32,
    only: String,
}

fn arguments() -> Result<Options> {
    let mut options = Options {
        seed: 1,
        rounds: 5,
        only: String::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{name} has no value"))?;
        match name.as_str() {
            "--seed" => options.seed = value.parse()?,
            "--rounds" => options.rounds = value.parse()?,
            "--only" => options.only = value,
            _ => bail!("{name} is unknown"),
        }
    }
    Ok(options)
}

fn chaos(options: &Options) -> Result<()> {
    let mut rng = Rng::new(options.seed);
    let mut pair = Pair::new(options.seed)?;
    clean_up_on_signals(|| ())?;
    pair.begin(&mut rng)?;
    for round in 1..=options.rounds {
        for _ in 0..=rng.below(3) {
            let step = Step::draw(&mut rng, &options.only)?;
            pair.say(format_args!("round {round}: {step:?}"));
            pair.take(step)
                .with_context(|| format!("round {round}: {step:?}"))?;
            pair.check()
                .with_context(|| format!("round {round}: after {step:?}"))?;
        }
        pair.mend_all()
            .with_context(|| format!("round {round}: mending"))?;
    }
    if rng.once_in(2) {
        pair.say(format_args!("end: the primary stands down"));
        pair.stand_down().context("the end: stand-down")?;
    } else {
        pair.say(format_args!("end: a forced takeover"));
        pair.forced(&mut rng)
            .context("the end: a forced takeover")?;
    }
    Ok(())
}

/// Two hosts that trust each other; the primary reaches the replica through the wire.
struct Pair {
    castor: Host,
    pollux: Host,
    wire: Wire,
    scratch: Scratch,
    suspended: bool,
    /// What each point proved the first time: it must prove the same for ever.
    judged: BTreeMap<String, Verified>,
    begun: Instant,
}

impl Pair {
    fn new(seed: u64) -> Result<Self> {
        let scratch = Scratch::new(&format!("chaos/{seed}"))?;
        let settings = scratch.state().join("pollux");
        std::fs::create_dir_all(&settings)?;
        std::fs::write(
            settings.join("host.toml"),
            format!("keep = \"{POINTS}:all\"\n"),
        )?;
        let castor = Host::start("castor", &scratch)?;
        let pollux = Host::start("pollux", &scratch)?;
        let wire = Wire::to(pollux.port())?;
        pollux.pollux(&["replica", "server", "enable"])?;
        castor.trust_each_other(&pollux, &wire.address())?;
        Ok(Self {
            castor,
            pollux,
            wire,
            scratch,
            suspended: false,
            judged: BTreeMap::new(),
            begun: Instant::now(),
        })
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        println!("{:7.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    /// The guest writes, and its twin is made while the network breaks once.
    fn begin(&mut self, rng: &mut Rng) -> Result<()> {
        let pause = u32::try_from(rng.below(80))?;
        create_writer(&self.castor, "web", "64MiB", pause)?;
        self.castor.pollux(&["vm", "start", "web"])?;
        self.castor
            .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
        self.wire.cut_after(20_000 + rng.below(2_000_000));
        let enable = [
            "replica",
            "enable",
            "web",
            "--to",
            "pollux",
            "--frequency",
            "1s",
        ];
        // The cut may hit the agreement itself.
        while let Err(error) = self.castor.pollux(&enable) {
            ensure!(self.wire.is_cut(), "{error:#}");
            self.wire.mend();
        }
        self.say(format_args!("pause {pause} ms; replica enabled"));
        self.mend_all().context("the first points")
    }
}
