//! Two hosts, a guest that writes, and everything around it breaking at random.
//!
//! ```text
//!   chaos --seed N --rounds M      exit 0: every promise held
//!         --only STEP              draws only steps of which the name begins so
//!
//!   round: some steps, each breaks something and may leave it broken, or is a person's command
//!          after each: what must hold at any time; points that are listed are exported and judged
//!          then all is mended: the twin catches up, the status is true, nothing is left behind
//! ```
//!
//! One step is the whole way to the other host: failed over as planned or by force, perhaps to another point
//! and completed, replicated back, what was lost looked into. The roles have changed then, and the next step
//! goes on from there. All the time it is watched whether two run.
//!
//! The seed decides what is done and for how long; when it hits is the machine's business, so
//! a seed is a good place to begin looking and no recording.

mod another;
mod call_off;
mod circle;
mod commands;
mod faults;
mod invariants;
mod lost;
mod network;
mod operator;
mod steps;
mod successor;
mod vm;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use model::{Bytes, PointId};
use network::Network;
use pollux_tests::{FIRST_WRITE, Host, Scratch, clean_up_on_signals, create_writer, text};
use steps::{Side, Step};
use testkit::workload::Verified;
use testkit::{Rng, SmallDisk};
use watch::{Twice, Watch};

const MINUTE: Duration = Duration::from_secs(60);
/// Of the VM.
const DISK: Bytes = Bytes(32 << 20);
/// Of each host's file system. As long as what was never sent is kept, nothing is merged into the base.
const ROOM_MIB: u64 = 1200;
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
    if let Err(error) = testkit::in_own_mounts() {
        eprintln!("chaos: cannot run unshare, to mount small file systems: {error}");
        return ExitCode::from(2);
    }
    let mut done = Done::default();
    let result = chaos(&options, &mut done);
    let violations = u32::from(result.is_err());
    if let Err(error) = result {
        println!("violation: {error:#}");
    }
    println!("seed {}: {done}, {violations} violations", options.seed);
    if violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    /// Rounds at the end of which all was well.
    rounds: u32,
    /// What was killed, cut, stopped or filled, or asked for by a person.
    faults: u32,
    /// Of them, how often the VM went to the other host.
    failovers: u32,
    /// How often it went to another point there.
    others: u32,
    /// How often the failover was called off.
    called_off: u32,
    /// How often what was never sent was looked into.
    looks: u32,
    /// How often nothing was kept, because nothing was lost.
    needless: u32,
    /// How often the host was lost to which it was to go as planned.
    successors: u32,
    twice: Twice,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rounds,
            faults,
            failovers,
            others,
            called_off,
            looks,
            needless,
            successors,
            twice,
        } = self;
        write!(
            f,
            "{rounds} rounds, {faults} faults, {failovers} failovers, {others} to other points, {called_off} \
             called off, {looks} looks at lost writes, {needless} times none were lost, {successors} \
             successors lost, {} times two ran ({:.1} s in contact)",
            twice.times,
            twice.longest.as_secs_f64()
        )
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
        let number = || {
            let number = value.parse::<u64>();
            number.with_context(|| format!("{name} takes a number, not {value}"))
        };
        match name.as_str() {
            "--seed" => options.seed = number()?,
            "--rounds" => options.rounds = number()?.try_into()?,
            "--only" => options.only = value,
            _ => bail!("{name} is unknown"),
        }
    }
    // A name that none has is a wrong argument, and no promise that was broken.
    Step::draw(&mut Rng::new(options.seed), &options.only)?;
    Ok(options)
}

fn chaos(options: &Options, done: &mut Done) -> Result<()> {
    let mut rng = Rng::new(options.seed);
    let mut pair = Pair::new(options.seed)?;
    clean_up_on_signals(|| ())?;
    let all_well = rounds(&mut pair, &mut rng, options);
    pair.done.twice = pair.watch.as_ref().map(Watch::twice).unwrap_or_default();
    *done = std::mem::take(&mut pair.done);
    if all_well.is_err() {
        pair.keep()?;
    }
    all_well
}

fn rounds(pair: &mut Pair, rng: &mut Rng, options: &Options) -> Result<()> {
    pair.begin(rng)?;
    for round in 1..=options.rounds {
        for _ in 0..=rng.below(3) {
            let step = Step::draw(rng, &options.only)?;
            pair.say(format_args!("round {round}: {step:?}"));
            pair.take(step)
                .with_context(|| format!("round {round}: {step:?}"))?;
            pair.check()
                .with_context(|| format!("round {round}: after {step:?}"))?;
            pair.done.faults += 1;
            pair.done.failovers += u32::from(matches!(step, Step::Circle(_)));
        }
        pair.mend_all()
            .with_context(|| format!("round {round}: mending"))?;
        pair.done.rounds = round;
    }
    Ok(())
}

/// Two hosts that trust each other and reach each other through the network.
struct Pair {
    hosts: [Host; 2],
    /// The number of the host to which the VM belongs.
    primary: usize,
    network: Network,
    /// The file systems of the hosts' states.
    rooms: [SmallDisk; 2],
    scratch: Scratch,
    suspended: bool,
    /// From the VM's first start on.
    watch: Option<Watch>,
    done: Done,
    /// The newest point that the primary was told that the twin has.
    acknowledged: Option<PointId>,
    /// What each point proved the first time: it must prove the same for ever.
    judged: BTreeMap<String, Verified>,
    begun: Instant,
}

impl Pair {
    fn new(seed: u64) -> Result<Self> {
        let scratch = Scratch::new(&format!("chaos/{seed}"))?;
        let mut rooms = Vec::new();
        let mut hosts = Vec::new();
        for name in ["castor", "pollux"] {
            let state = scratch.state().join(name);
            rooms.push(SmallDisk::mount(state.clone(), ROOM_MIB)?);
            let settings = format!("keep = \"{POINTS}:all\"\nstore_reserve = \"8MiB\"\n");
            std::fs::write(state.join("host.toml"), settings)?;
            hosts.push(Host::start(name, &scratch)?);
        }
        let (Ok(hosts), Ok(rooms)) = (<[Host; 2]>::try_from(hosts), rooms.try_into()) else {
            bail!("there are two hosts");
        };
        let network = Network::to([hosts[0].port(), hosts[1].port()])?;
        for (here, there) in [(0, 1), (1, 0)] {
            hosts[here].pollux(&["replica", "server", "enable"])?;
            hosts[here].trust(&hosts[there], &network.address(there))?;
        }
        Ok(Self {
            hosts,
            primary: 0,
            network,
            rooms,
            scratch,
            suspended: false,
            watch: None,
            done: Done::default(),
            acknowledged: None,
            judged: BTreeMap::new(),
            begun: Instant::now(),
        })
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        println!("{:7.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    fn primary(&self) -> &Host {
        &self.hosts[self.primary]
    }

    fn replica(&self) -> &Host {
        &self.hosts[1 - self.primary]
    }

    fn number(&self, side: Side) -> usize {
        match side {
            Side::Primary => self.primary,
            Side::Replica => 1 - self.primary,
        }
    }

    fn host(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[self.number(side)]
    }

    fn watch(&self) -> Result<&Watch> {
        self.watch.as_ref().context("the VM was started")
    }

    /// Copies the states of the hosts to where they can be looked at: file systems of ours end with us.
    fn keep(&self) -> Result<()> {
        for host in &self.hosts {
            let kept = host.state().with_extension("kept");
            let copied = Command::new("cp")
                .arg("-a")
                .args([host.state(), &kept])
                .status()?;
            ensure!(copied.success(), "{} cannot be kept", kept.display());
        }
        Ok(())
    }

    /// The guest writes, and its twin is made while the network breaks once.
    fn begin(&mut self, rng: &mut Rng) -> Result<()> {
        let pause = 100 + u32::try_from(rng.below(150))?;
        create_writer(self.primary(), "web", &DISK.to_string(), pause)?;
        let details = self.primary().json(&["vm", "show", "web"])?;
        self.watch = Some(Watch::of(text(&details, "/spec/id")?, &self.hosts));
        self.primary().pollux(&["vm", "start", "web"])?;
        self.primary()
            .serial_line("web", 0, "pollux-workload: flushed", FIRST_WRITE)?;
        self.network.cut_after(20_000 + rng.below(2_000_000));
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
        while let Err(error) = self.primary().pollux(&enable) {
            ensure!(self.network.is_cut(), "{error:#}");
            self.network.mend();
        }
        self.say(format_args!("pause {pause} ms; replica enabled"));
        self.mend_all().context("the first points")
    }
}
