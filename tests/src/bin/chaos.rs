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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pollux_tests::{
    BAD_NEWS, FIRST_WRITE, Host, Scratch, Wire, create_writer, flushed, json_u64, judge, kill,
    text, until, writes_on,
};
use serde_json::Value;
use testkit::Rng;
use testkit::workload::{Cut, Verified};

const MINUTE: Duration = Duration::from_secs(60);
/// Points that the twin keeps: few, so that merging never rests.
const POINTS: u32 = 8;
/// Records of a batch: so far may the serial log lag behind the disk.
const BATCH: u64 = 64;
/// A twin that lost its primary for a while asks again within half of this.
const CATCH_UP: Duration = MINUTE;

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
    pair.scratch.clean_up_on_signals()?;
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

/// A host of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Primary,
    Replica,
}

/// A process of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Vmd,
    Diskd,
    Guest,
}

/// Something that is done to the pair; durations in milliseconds.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// `kill -9` of a polluxd, which is away for so long; or until all is mended.
    KillDaemon(Side, Option<u64>),
    /// `kill -9` of a process of the VM; with it, of the polluxd.
    Kill(Part, bool),
    /// `kill -9` of both polluxd and of a process of the VM; so long until they are back.
    KillAll(Part, u64),
    /// `kill -9` of the primary's polluxd while the VM is being started for so long.
    KillInStart(u64),
    /// `kill -9` of a process of the VM while the guest is off.
    KillWhileOff(Part),
    /// The network is away for so long; or until all is mended.
    Cut(Option<u64>),
    /// The network breaks after so many bytes, a few times.
    Flicker(u64, u64),
    /// As above, and the replica's polluxd is killed when it breaks.
    FlickerAndKill(u64),
    /// Suspended for so long, or until all is mended.
    Suspend(Option<u64>),
    /// The guest shuts down, and starts again.
    Restart,
    /// The oldest point is open while newer ones come; and polluxd is killed meanwhile, or not.
    Open(bool),
    /// Test failover of the point at this part of the list (of 1000); meanwhile the replica's
    /// polluxd or the test's diskd may be killed.
    Test(u64, bool, bool),
}

impl Step {
    /// One of which the name begins with `only`.
    fn draw(rng: &mut Rng, only: &str) -> Result<Self> {
        let mut steps = std::iter::repeat_with(|| Self::any(rng)).take(1000);
        steps
            .find(|step| format!("{step:?}").starts_with(only))
            .with_context(|| format!("no step begins with {only}"))
    }

    fn any(rng: &mut Rng) -> Self {
        let side = if rng.once_in(2) {
            Side::Primary
        } else {
            Side::Replica
        };
        let part = [Part::Vmd, Part::Diskd, Part::Diskd, Part::Guest][rng.index(4)];
        let short = rng.below(3000);
        let lasting = (!rng.once_in(3)).then_some(short);
        match rng.below(16) {
            0..=2 => Self::KillDaemon(side, lasting),
            3 | 4 => Self::Kill(part, rng.once_in(2)),
            5 => Self::KillInStart(short / 3),
            6 => Self::KillWhileOff(if part == Part::Guest { Part::Vmd } else { part }),
            7 => Self::Cut(lasting),
            8 | 9 => Self::Flicker(1 + rng.below(400_000), 1 + rng.below(4)),
            10 => Self::FlickerAndKill(1 + rng.below(400_000)),
            11 => Self::Suspend(lasting),
            12 => Self::Restart,
            13 => Self::KillAll(part, short),
            14 => Self::Open(rng.once_in(2)),
            _ => Self::Test(rng.below(1000), rng.once_in(2), rng.once_in(2)),
        }
    }
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

    // -- What is done ---------------------------------------------------------------------

    fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::KillDaemon(side, lasting) => {
                self.host(side).kill_daemon()?;
                if let Some(ms) = lasting {
                    sleep(Duration::from_millis(ms));
                    self.up(side)?;
                }
                Ok(())
            }
            Step::Kill(part, daemon) => self.kill_part(part, daemon),
            Step::KillAll(part, ms) => self.kill_all(part, ms),
            Step::KillInStart(ms) => self.kill_in_start(ms),
            Step::KillWhileOff(part) => self.kill_while_off(part),
            Step::Cut(lasting) => {
                self.wire.cut();
                if let Some(ms) = lasting {
                    sleep(Duration::from_millis(ms));
                    self.wire.mend();
                }
                Ok(())
            }
            Step::Flicker(bytes, times) => {
                for _ in 0..times {
                    self.break_after(bytes)?;
                    self.wire.mend();
                }
                Ok(())
            }
            Step::FlickerAndKill(bytes) => {
                self.break_after(bytes)?;
                self.pollux.kill_daemon()?;
                self.wire.mend();
                self.up(Side::Replica)
            }
            Step::Suspend(lasting) => self.suspend(lasting),
            Step::Restart => self.restart(),
            Step::Open(daemon) => self.open(daemon),
            Step::Test(part, daemon, diskd) => self.test(part, daemon, diskd),
        }
    }

    fn host(&mut self, side: Side) -> &mut Host {
        match side {
            Side::Primary => &mut self.castor,
            Side::Replica => &mut self.pollux,
        }
    }

    fn up(&mut self, side: Side) -> Result<()> {
        let host = self.host(side);
        if host.is_up() {
            return Ok(());
        }
        host.start_daemon()
    }

    fn connected(&mut self) -> Result<()> {
        self.up(Side::Primary)?;
        self.up(Side::Replica)?;
        self.wire.mend();
        Ok(())
    }

    /// Waits until the network broke after `bytes`: something must be on its way.
    fn break_after(&mut self, bytes: u64) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        self.wire.cut_after(bytes);
        until(2 * MINUTE, "the network carries something", || {
            Ok(self.wire.is_cut().then_some(()))
        })
    }

    fn kill_part(&mut self, part: Part, daemon: bool) -> Result<()> {
        self.up(Side::Primary)?;
        self.running()?;
        let pid = self
            .process(part)?
            .with_context(|| format!("{part:?} runs"))?;
        if daemon {
            self.castor.kill_daemon()?;
        }
        kill(pid)?;
        self.up(Side::Primary)?;
        match part {
            Part::Diskd => {
                writes_on(&self.castor, "web", BATCH, MINUTE)?;
            }
            Part::Vmd | Part::Guest => {
                self.becomes("off")?;
                self.running()?;
            }
        }
        Ok(())
    }

    fn kill_all(&mut self, part: Part, ms: u64) -> Result<()> {
        self.up(Side::Primary)?;
        self.running()?;
        let pid = self
            .process(part)?
            .with_context(|| format!("{part:?} runs"))?;
        self.pollux.kill_daemon()?;
        self.castor.kill_daemon()?;
        kill(pid)?;
        sleep(Duration::from_millis(ms));
        self.connected()?;
        if part != Part::Diskd {
            self.becomes("off")?;
        }
        self.running()
    }

    fn kill_in_start(&mut self, ms: u64) -> Result<()> {
        self.connected()?;
        self.off()?;
        let mut start = self
            .castor
            .command(&["vm", "start", "web"])?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        sleep(Duration::from_millis(ms));
        self.castor.kill_daemon()?;
        start.wait()?;
        self.up(Side::Primary)?;
        self.running()
    }

    fn kill_while_off(&mut self, part: Part) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        let written = writes_on(&self.castor, "web", BATCH, MINUTE)?;
        self.off()?;
        let pid = until(MINUTE, "the disks are served while the VM is off", || {
            self.process(part)
        })?;
        kill(pid)?;
        self.caught_up(written)?;
        self.running()
    }

    fn suspend(&mut self, lasting: Option<u64>) -> Result<()> {
        self.up(Side::Primary)?;
        self.castor.pollux(&["replica", "pause", "web"])?;
        self.suspended = true;
        until(MINUTE, "the status says that it is suspended", || {
            let status = self.castor.json(&["replica", "status", "web"])?;
            Ok((status.pointer("/0/state") == Some(&"suspended".into())).then_some(()))
        })?;
        if let Some(ms) = lasting {
            sleep(Duration::from_millis(ms));
            self.resume()?;
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        if self.suspended {
            self.castor.pollux(&["replica", "resume", "web"])?;
            self.suspended = false;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.connected()?;
        self.running()?;
        self.castor.pollux(&["vm", "stop", "web"])?;
        ensure!(
            self.state()? == "off",
            "a VM that was stopped is {}",
            self.state()?
        );
        self.running()
    }

    /// A point that is open stays as it is and where it is while points are taken in and merged.
    fn open(&mut self, daemon: bool) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        self.up(Side::Replica)?;
        // A point may be merged away before it is open.
        let oldest = until(MINUTE, "the oldest point is opened", || {
            let oldest = name(self.points()?.first().context("there are points")?)?;
            let open = ["point", "open", "web", &oldest];
            Ok(self.pollux.json(&open).is_ok().then_some(oldest))
        })?;
        if daemon {
            self.pollux.kill_daemon()?;
            self.up(Side::Replica)?;
        }
        let newest = |points: &[Value]| -> Result<u64> {
            json_u64(points.last().context("there are points")?, "/id/sequence")
        };
        let before = newest(&self.points()?)?;
        let more = before + u64::from(POINTS) + 3;
        until(2 * MINUTE, "newer points come", || {
            Ok((newest(&self.points()?)? >= more).then_some(()))
        })?;
        let points = self.points()?;
        let opened = points
            .iter()
            .find(|point| name(point).is_ok_and(|name| name == oldest))
            .with_context(|| format!("point {oldest} is gone while it is open"))?;
        let image = self.scratch.state().join("open.raw");
        let copied = Command::new("nbdcopy")
            .arg(text(opened, "/open/0/uri")?)
            .arg(&image)
            .status()?;
        ensure!(copied.success(), "point {oldest} cannot be read");
        self.pollux.pollux(&["point", "close", "web", &oldest])?;
        let judged = judge(&image, Cut::Point).with_context(|| format!("point {oldest}"))?;
        std::fs::remove_file(&image)?;
        let first = *self.judged.entry(oldest.clone()).or_insert(judged);
        ensure!(
            first == judged,
            "point {oldest} was {first:?} and is {judged:?}"
        );
        Ok(())
    }

    fn test(&mut self, part: u64, daemon: bool, diskd: bool) -> Result<()> {
        self.up(Side::Replica)?;
        let copy = "web - Test";
        let name = until(MINUTE, "a point stays while its test begins", || {
            let points = self.points()?;
            let at = usize::try_from(part)? * points.len() / 1000;
            let name = name(points.get(at).context("there are points")?)?;
            let test = ["failover", "test", "web", "--point", &name];
            match self.pollux.pollux(&test) {
                Ok(_) => Ok(Some(name)),
                // It may have been merged meanwhile.
                Err(error) if format!("{error:#}").contains("does not exist") => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        if daemon {
            self.pollux.kill_daemon()?;
            self.up(Side::Replica)?;
        }
        if diskd {
            let show = self.pollux.json(&["vm", "show", copy])?;
            kill(u32::try_from(json_u64(&show, "/processes/diskd")?)?)?;
        }
        let found = self
            .pollux
            .serial_line(copy, 0, "pollux-workload: found", FIRST_WRITE)?;
        ensure!(found.ends_with(": right"), "the test found: {found}");
        let point = self.judge_point(&name)?.context("a pinned point stays")?;
        let expected = format!("committed {} newest", point.committed);
        ensure!(
            found.contains(&expected),
            "{found}, and the point: {expected}"
        );
        let listed = self.points()?;
        let pinned = listed
            .iter()
            .filter(|point| point["pinned"] == true)
            .count();
        ensure!(pinned == 1, "{pinned} points are pinned during a test");
        writes_on(&self.pollux, copy, BATCH, MINUTE)?;
        self.pollux.pollux(&["failover", "stop-test", "web"])?;
        let pinned = self.points()?.iter().any(|point| point["pinned"] == true);
        ensure!(!pinned, "a point is pinned after the test");
        let left = self.pollux.processes()?;
        ensure!(left.is_empty(), "the test leaves {left:?}");
        Ok(())
    }

    // -- The VM ---------------------------------------------------------------------------

    fn state(&self) -> Result<String> {
        let show = self.castor.json(&["vm", "show", "web"])?;
        Ok(text(&show, "/vm/state")?.to_owned())
    }

    fn becomes(&self, state: &str) -> Result<()> {
        until(MINUTE, &format!("the VM is {state}"), || {
            Ok((self.state()? == state).then_some(()))
        })
    }

    fn process(&self, part: Part) -> Result<Option<u32>> {
        let show = self.castor.json(&["vm", "show", "web"])?;
        let field = match part {
            Part::Vmd => "/processes/vmd",
            Part::Diskd => "/processes/diskd",
            Part::Guest => "/processes/guest",
        };
        let pid = show.pointer(field).and_then(Value::as_u64);
        Ok(pid.map(u32::try_from).transpose()?)
    }

    fn off(&self) -> Result<()> {
        if self.state()? != "off" {
            self.castor.pollux(&["vm", "kill", "web"])?;
        }
        ensure!(
            self.state()? == "off",
            "a VM that was killed is {}",
            self.state()?
        );
        Ok(())
    }

    /// The guest runs; started if it does not, and then it finds its records right.
    fn running(&mut self) -> Result<()> {
        let state = until(MINUTE, "the VM is off or runs", || {
            let state = self.state()?;
            Ok((state != "starting" && state != "stopping").then_some(state))
        })?;
        if state == "running" {
            return Ok(());
        }
        ensure!(state == "off", "the VM is {state}");
        let before = self.castor.serial_log("web")?.len();
        let started = self.castor.pollux(&["vm", "start", "web"]);
        if let Err(error) = started {
            let cut = self.wire.is_cut() || !self.pollux.is_up();
            let unasked = format!("{error:#}").contains("does not answer");
            ensure!(cut && unasked, "a start was refused: {error:#}");
            self.say(format_args!("         not started unasked; mended first"));
            self.connected()?;
            self.castor.pollux(&["vm", "start", "web"])?;
        }
        let found =
            self.castor
                .serial_line("web", before, "pollux-workload: found", FIRST_WRITE)?;
        ensure!(found.ends_with(": right"), "the guest found: {found}");
        self.castor
            .serial_line("web", before, "pollux-workload: flushed", FIRST_WRITE)?;
        Ok(())
    }

    // -- What must hold -------------------------------------------------------------------

    fn points(&self) -> Result<Vec<Value>> {
        let points = self.pollux.json(&["point", "list", "web"])?;
        Ok(points.as_array().context("a list")?.clone())
    }

    /// Exports a point and judges it; none if it was merged before. It proves what it proved
    /// the first time.
    fn judge_point(&mut self, name: &str) -> Result<Option<Verified>> {
        let image = self.scratch.state().join(format!("{name}.raw"));
        let file = image.display().to_string();
        let exported = self.pollux.pollux(&["point", "export", "web", name, &file]);
        if let Err(error) = exported {
            let listed = self
                .points()?
                .iter()
                .any(|point| self::name(point).is_ok_and(|n| n == name));
            ensure!(!listed, "point {name} is not exported: {error:#}");
            return Ok(None);
        }
        let now = judge(&image, Cut::Point).with_context(|| format!("point {name}"))?;
        std::fs::remove_file(&image)?;
        let first = *self.judged.entry(name.to_owned()).or_insert(now);
        ensure!(first == now, "point {name} was {first:?} and is {now:?}");
        Ok(Some(now))
    }

    /// The runs of the workload, in order.
    fn runs(&self) -> Result<Vec<String>> {
        let log = self.castor.serial_log("web")?;
        let begins = log.lines().filter_map(|line| {
            let rest = line.split_once("pollux-workload: run ")?.1;
            Some(rest.split_once(" begins")?.0.to_owned())
        });
        Ok(begins.collect())
    }

    /// What must hold at any time, as far as it can be asked.
    fn check(&mut self) -> Result<()> {
        if self.castor.is_up() {
            let log = self.castor.serial_log("web")?;
            for bad in BAD_NEWS {
                let line = log.lines().find(|line| line.contains(bad));
                ensure!(
                    line.is_none(),
                    "the guest says: {}",
                    line.unwrap_or_default()
                );
            }
            let status = self.castor.json(&["replica", "status", "web"])?;
            let state = text(&status, "/0/state")?;
            ensure!(state != "error", "replication needs a person: {status}");
            ensure!(
                (state == "suspended") || !self.suspended,
                "suspended by a person, and the status says: {status}"
            );
        }
        if self.pollux.is_up() {
            self.check_points()?;
        }
        Ok(())
    }

    /// Every point is right, and none is behind the one before it.
    fn check_points(&mut self) -> Result<()> {
        let mut before: Option<(String, usize, Verified)> = None;
        let listed = self.points()?;
        for point in &listed {
            let name = name(point)?;
            let Some(judged) = self.judge_point(&name)? else {
                continue;
            };
            if !self.castor.is_up() {
                continue;
            }
            let runs = self.runs()?;
            let run = hex(judged.run);
            let Some(at) = runs.iter().position(|known| *known == run) else {
                // It said so after its first record was durable, and perhaps was killed before.
                continue;
            };
            if let Some((last, run, earlier)) = &before {
                let order = (*run, earlier.committed, earlier.newest);
                ensure!(
                    order <= (at, judged.committed, judged.newest),
                    "point {name} ({judged:?}) is behind {last} ({earlier:?})"
                );
            }
            if at + 1 == runs.len() {
                let written = flushed(&self.castor.serial_log("web")?).unwrap_or(0);
                ensure!(
                    judged.committed <= written + BATCH,
                    "point {name} has {} records, and {written} were written",
                    judged.committed
                );
            }
            before = Some((name, at, judged));
        }
        if let Some((name, run, judged)) = before {
            self.say(format_args!(
                "         {} points right, the newest {name}: record {} of run {}",
                listed.len(),
                judged.committed,
                run + 1
            ));
        }
        Ok(())
    }

    /// Waits until the twin has what is flushed now, of the run that writes now.
    fn caught_up(&mut self, written: u64) -> Result<Duration> {
        let run = self.runs()?.pop().context("a run began")?;
        let start = Instant::now();
        let mut latest = None;
        while start.elapsed() < CATCH_UP {
            // None while the twin is being made.
            let points = self.points().unwrap_or_default();
            if let Some(point) = points.last() {
                latest = self.judge_point(&name(point)?)?;
                let there = latest.is_some_and(|l| hex(l.run) == run && l.committed >= written);
                if there {
                    return Ok(start.elapsed());
                }
            }
            sleep(Duration::from_millis(100));
        }
        let status = self.castor.json(&["replica", "status", "web"])?;
        bail!("the twin does not catch up with {written} of run {run}: {latest:?}; {status}")
    }

    /// All is made good, and then all is well.
    fn mend_all(&mut self) -> Result<()> {
        self.connected()?;
        self.resume()?;
        self.running()?;
        let written = writes_on(&self.castor, "web", BATCH, MINUTE)?;
        let took = self.caught_up(written)?;
        self.say(format_args!(
            "         the twin caught up in {:.1} s",
            took.as_secs_f64()
        ));
        self.check()?;
        until(MINUTE, "the status says that all is well", || {
            self.is_well()
        })
        .with_context(|| format!("{:?}", self.castor.json(&["replica", "status", "web"])))?;
        let names = |host: &Host| -> Result<Vec<String>> {
            Ok(host
                .processes()?
                .into_iter()
                .map(|(_, name)| name)
                .collect())
        };
        let mut here = names(&self.castor)?;
        here.sort();
        ensure!(
            here == ["pollux-diskd", "pollux-vmd", "qemu-system-x86"],
            "the primary runs {:?}",
            self.castor.processes()?
        );
        let there = self.pollux.processes()?;
        ensure!(there.is_empty(), "the replica runs {there:?}");
        self.nothing_left_behind()
    }

    /// Whether both hosts say the truth about a relationship that is well.
    fn is_well(&self) -> Result<Option<()>> {
        let here = self.castor.json(&["replica", "status", "web"])?;
        let there = self.pollux.json(&["replica", "status", "web"])?;
        let points = self.points()?;
        let latest = here.pointer("/0/latest");
        let known = points.iter().any(|point| Some(&point["id"]) == latest);
        let lag = here.pointer("/0/lag_s").and_then(Value::as_u64);
        let well = here.pointer("/0/state") == Some(&"replicating".into())
            && here.pointer("/0/last_error").is_none_or(Value::is_null)
            && there.pointer("/0/state") == Some(&"replicating".into())
            && lag.is_some_and(|lag| lag <= 5)
            && known;
        Ok(well.then_some(()))
    }

    /// No temporary or staged file stays for longer than it is worked on.
    fn nothing_left_behind(&self) -> Result<()> {
        let mut suspects = passing(self.scratch.state())?;
        until(MINUTE, "temporary files go", || {
            let now = passing(self.scratch.state())?;
            suspects.retain(|path| now.contains(path));
            Ok(suspects.is_empty().then_some(()))
        })
        .with_context(|| format!("{:?}", passing(self.scratch.state())))
    }

    // -- The end --------------------------------------------------------------------------

    fn stand_down(&mut self) -> Result<()> {
        self.off()?;
        let written = flushed(&self.castor.serial_log("web")?).context("records")?;
        self.caught_up(written)?;
        let latest = name(self.points()?.last().context("a point")?)?;
        self.pollux
            .pollux(&["failover", "start", "web", "--point", &latest])?;
        self.taken_over(&latest)
    }

    fn forced(&mut self, rng: &mut Rng) -> Result<()> {
        self.wire.cut();
        if rng.once_in(2) {
            self.castor.kill_everything()?;
        } else {
            // The guest runs on: two run until first contact.
            self.castor.kill_daemon()?;
        }
        let points = self.points()?;
        let chosen = name(&points[rng.index(points.len())])?;
        let refused = self
            .pollux
            .refused(&["failover", "start", "web", "--point", &chosen])?;
        ensure!(refused.exit == 6, "without a word: {refused:?}");
        let because = ["--force", "--because", "chaos"];
        let mut force = vec!["failover", "start", "web", "--point", &chosen];
        force.extend(because);
        self.pollux.pollux(&force)?;
        self.castor.start_daemon()?;
        self.wire.mend();
        self.taken_over(&chosen)
    }

    /// The twin's guest finds what the point holds and writes on; the old primary is held.
    fn taken_over(&mut self, point: &str) -> Result<()> {
        let judged = self.judge_point(point)?.context("a pinned point stays")?;
        let found = self
            .pollux
            .serial_line("web", 0, "pollux-workload: found", FIRST_WRITE)?;
        let expected = format!("committed {} newest", judged.committed);
        ensure!(
            found.ends_with(": right") && found.contains(&expected),
            "the twin's guest says `{found}`, and the point has {judged:?}"
        );
        writes_on(&self.pollux, "web", BATCH, MINUTE)?;
        until(MINUTE, "the old primary is held", || {
            let status = self.castor.json(&["replica", "status", "web"])?;
            let held = status.pointer("/0/state") == Some(&"stood-down".into());
            Ok((held && self.state()? != "running").then_some(()))
        })?;
        if self.state()? != "off" {
            self.castor.pollux(&["vm", "kill", "web"])?;
        }
        let refused = self.castor.refused(&["vm", "start", "web"])?;
        ensure!(refused.exit == 4, "the old primary starts: {refused:?}");
        until(MINUTE, "the old primary runs nothing", || {
            Ok(self.castor.processes()?.is_empty().then_some(()))
        })
        .with_context(|| format!("{:?}", self.castor.processes()))?;
        // The twin lives on through what a VM lives through.
        let show = self.pollux.json(&["vm", "show", "web"])?;
        kill(u32::try_from(json_u64(&show, "/processes/diskd")?)?)?;
        self.pollux.kill_daemon()?;
        self.pollux.start_daemon()?;
        writes_on(&self.pollux, "web", BATCH, MINUTE)?;
        self.pollux.pollux(&["vm", "kill", "web"])?;
        let before = self.pollux.serial_log("web")?;
        ensure!(
            !BAD_NEWS.iter().any(|bad| before.contains(bad)),
            "the twin's guest saw an error"
        );
        self.pollux.pollux(&["vm", "start", "web"])?;
        let found =
            self.pollux
                .serial_line("web", before.len(), "pollux-workload: found", FIRST_WRITE)?;
        ensure!(
            found.ends_with(": right"),
            "started again, the twin found: {found}"
        );
        self.pollux.pollux(&["vm", "kill", "web"])?;
        until(MINUTE, "the new primary runs nothing", || {
            Ok(self.pollux.processes()?.is_empty().then_some(()))
        })
    }
}

/// A point as it is written on the command line.
fn name(point: &Value) -> Result<String> {
    let term = text(point, "/id/term")?;
    let number = json_u64(point, "/id/sequence")?;
    Ok(format!("{}.{number}", &term[..8]))
}

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files below `folder` that are there only while something is done.
fn passing(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let output = Command::new("find").arg(folder).output()?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let path = PathBuf::from(line);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hidden = name.starts_with('.');
        let kind = path.extension().unwrap_or_default().to_string_lossy();
        let inside = |folder: &str| path.components().any(|part| part.as_os_str() == folder);
        let staged =
            inside("outbox") && name != "outbox" || inside("incoming") && name != "incoming";
        if hidden || staged || kind == "new" || kind == "part" || kind == "tmp" {
            found.insert(path);
        }
    }
    Ok(found)
}
