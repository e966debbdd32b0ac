//! Failback, cell by cell: the twin is started from the newest point or from an older one, something
//! happens to one of the hosts, and the VM is replicated back. In each cell the twin that comes of it is the
//! primary's disk, by the hash of all of it, and what was received follows from what was written.
//!
//! ```text
//!   castor   create  write  point: older  write  point: newest  write, never sent
//!   pollux                                                      started from one of them   write
//!   castor   stands down, and becomes the replica: its disk is the base
//!   pollux --what differs--> castor, a point more; its hash is that of the disk
//! ```
//!
//! No guest writes, for its disk holds no system: what it would write comes through the export that it uses.

mod called_off;
mod given_back;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use model::Bytes;
use pollux_tests::{
    Host, Pair, Refusal, Scratch, Wire, json_u64, nothing_pending, point_name, text, until,
};
use serde_json::Value;
use testkit::{Rng, SmallDisk, may_mount};

const MINUTE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const KIB: u64 = 1 << 10;
const BLOCK: usize = 4096;
const SIZE: usize = 24 * MIB;
/// Of a disk that was made larger.
const GROWN: usize = 28 * MIB;
/// What says on a command line that a host is lost.
const LOST: [&str; 3] = ["--force", "--because", "the other site is dark"];

/// From which point the twin is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chosen {
    Newest,
    Older,
}

/// What happens besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Nothing,
    /// The power of the former primary fails: what was marked is gone, the log is there.
    PowerCut,
    /// As that, and the log is gone too.
    LogLost,
    /// Both hosts are killed while the reversal is answered, and while the first point is sent; with an older
    /// point they lose their power.
    BothKilled,
    /// The disk grows on the former primary, and points have that.
    GrownBefore,
    /// The disk grows where the VM was taken over.
    GrownAfter,
    /// The former primary took its disk back to a checkpoint, which is merged when that is asked for.
    AppliedBefore,
    /// Whoever took over took its disk back to a checkpoint, while nobody served it.
    AppliedAfter,
    /// The twin keeps few points, so that they are merged all the time, and the failover is completed.
    BaseMerged,
    /// The replica takes over again, and the VM is replicated back the other way.
    SecondFailover,
}

use Fate::{
    AppliedAfter, AppliedBefore, BaseMerged, BothKilled, GrownAfter, GrownBefore, LogLost, Nothing,
    PowerCut, SecondFailover,
};

const FATES: [Fate; 10] = [
    Nothing,
    PowerCut,
    LogLost,
    BothKilled,
    GrownBefore,
    GrownAfter,
    AppliedBefore,
    AppliedAfter,
    BaseMerged,
    SecondFailover,
];

/// What was sent back, in bytes, and what bounds it.
#[derive(Debug)]
struct Cost {
    /// Of the blocks that differed, or were written since the takeover.
    changed: u64,
    /// Of points, as they came.
    shipped: u64,
    /// How many there are.
    points: u64,
    /// Of regions of which nobody can tell whether they differ.
    unknown: u64,
    /// Of regions of which hashes were compared.
    compared: u64,
    /// All that went over the wire.
    carried: u64,
    /// What the two hosts may have said besides.
    talk: u64,
}

impl Cost {
    /// The index of a segment.
    const INDEX: u64 = 64 * KIB;

    fn is_bounded(&self) -> Result<()> {
        let most = self.changed + self.points * Self::INDEX;
        ensure!(self.shipped <= most, "more was sent than changed: {self}");
        ensure!(self.compared <= self.unknown, "more was compared: {self}");
        // A hash of a block has 32 bytes.
        let most = most + self.compared / 128 + self.talk;
        ensure!(self.carried <= most, "more went over the wire: {self}");
        Ok(())
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: u64| bytes.div_ceil(KIB);
        write!(
            f,
            "shipped {:>5} of {:>5} changed, compared {:>5} of {:>5}, carried {:>5} KiB",
            kib(self.shipped),
            kib(self.changed),
            kib(self.compared),
            kib(self.unknown),
            kib(self.carried),
        )
    }
}

/// Two hosts, each reached through a wire of its own.
struct Hosts {
    pair: Pair,
    /// To castor.
    back: Wire,
}

impl Hosts {
    fn new(what: &str) -> Result<Self> {
        Self::start_in(Scratch::new(&format!("system/{what}"))?)
    }

    fn start_in(scratch: Scratch) -> Result<Self> {
        let pair = Pair::start_in(scratch)?;
        let back = Wire::to(pair.castor.port())?;
        pair.pollux.trust(&pair.castor, &back.address())?;
        pair.castor.pollux(&["replica", "server", "enable"])?;
        Ok(Self { pair, back })
    }

    fn part(&self) {
        self.pair.wire.cut();
        self.back.cut();
    }

    fn join(&self) {
        self.pair.wire.mend();
        self.back.mend();
    }

    /// Starts what does not run.
    fn start(&mut self) -> Result<()> {
        for host in [&mut self.pair.castor, &mut self.pair.pollux] {
            if !host.is_up() {
                host.start_daemon()?;
            }
        }
        Ok(())
    }
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Castor,
    Pollux,
}

use Side::{Castor, Pollux};

/// A VM of one disk, and what it holds where it belongs at the moment.
struct Cell<'a> {
    hosts: &'a mut Hosts,
    vm: String,
    rng: Rng,
    disk: Vec<u8>,
}

/// What happened before the loss.
struct History {
    older: Point,
    newest: Point,
    /// The blocks that were written in all that time,
    written: BTreeSet<usize>,
    /// after the older point and sent,
    since: BTreeSet<usize>,
    /// and not sent any more.
    unsent: BTreeSet<usize>,
}

/// Bytes that went over a wire, and when they were counted.
type Carried = (u64, Instant);

/// A point, and what it holds.
struct Point {
    name: String,
    disk: Vec<u8>,
}

impl<'a> Cell<'a> {
    fn new(hosts: &'a mut Hosts, vm: String, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            hosts,
            vm,
            disk: rng.bytes(SIZE),
            rng,
        }
    }

    fn host(&self, side: Side) -> &Host {
        match side {
            Castor => &self.hosts.pair.castor,
            Pollux => &self.hosts.pair.pollux,
        }
    }

    fn on(&self, side: Side, words: &[&str], rest: &[&str]) -> Result<()> {
        let all = [words, &[self.vm.as_str()], rest].concat();
        self.host(side).pollux(&all).map(drop)
    }

    fn insist(&self, side: Side, words: &[&str]) -> Result<()> {
        let all = [words, &[self.vm.as_str()]].concat();
        self.host(side).insist(&all).map(drop)
    }

    fn file(&self, name: &str) -> Result<(PathBuf, String)> {
        let path = self.hosts.pair.scratch.state().join(name);
        if path.exists() {
            fs::remove_file(&path)?;
        }
        let text = path.display().to_string();
        Ok((path, text))
    }

    fn id(&self, side: Side) -> Result<String> {
        let details = self.host(side).json(&["vm", "show", &self.vm])?;
        Ok(text(&details, "/spec/id")?.to_owned())
    }

    /// Writes to the disk: into a few regions, and into `also`. The blocks that were touched.
    fn write(&mut self, side: Side, also: Range<usize>) -> Result<BTreeSet<usize>> {
        const LONGEST: usize = 96 * 1024;
        let noise = self.rng.bytes(LONGEST);
        let (file, name) = self.file("noise")?;
        fs::write(&file, &noise)?;
        let mut ranges = Vec::new();
        for _ in 0..3 {
            let region = self.rng.index(SIZE / MIB) * MIB;
            ranges.extend([(); 4].map(|()| region..region + MIB));
        }
        if !also.is_empty() {
            ranges.push(also);
        }
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(["-f", "raw"]);
        let mut touched = BTreeSet::new();
        for range in ranges {
            let len = 512 * (1 + self.rng.index(LONGEST.min(range.len()) / 512));
            let at = range.start + 512 * self.rng.index((range.len() - len) / 512 + 1);
            let command = match self.rng.once_in(5) {
                true => {
                    self.disk[at..at + len].fill(0);
                    format!("write -z -u {at} {len}")
                }
                false => {
                    self.disk[at..at + len].copy_from_slice(&noise[..len]);
                    format!("write -s {name} {at} {len}")
                }
            };
            qemu_io.args(["-c", &command]);
            touched.extend(at / BLOCK..(at + len).div_ceil(BLOCK));
        }
        let socket = self.host(side).diskd_socket(&self.id(side)?);
        let socket = socket.with_file_name("nbd0.sock");
        until(MINUTE, "the disk is served", || {
            Ok(UnixStream::connect(&socket).ok())
        })?;
        let uri = format!("nbd+unix:///guest?socket={}", socket.display());
        let done = qemu_io.args(["-c", "flush", &uri]).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success() && said.is_empty(), "qemu-io: {said}");
        Ok(touched)
    }

    fn points(&self, side: Side) -> Result<Vec<Value>> {
        let points = self.host(side).json(&["point", "list", &self.vm])?;
        Ok(points.as_array().context("a list")?.clone())
    }

    /// Waits until the twin on the other host lacks nothing; its newest point, which is the disk.
    fn settled(&self, primary: Side) -> Result<Point> {
        let twin = other(primary);
        until(3 * MINUTE, "there is a point", || {
            Ok(self
                .points(twin)
                .is_ok_and(|all| !all.is_empty())
                .then_some(()))
        })?;
        nothing_pending(self.host(primary), &self.vm)?;
        let points = self.points(twin)?;
        let name = point_name(points.last().context("a point")?)?;
        Ok(Point {
            name,
            disk: self.disk.clone(),
        })
    }

    fn export(&self, twin: Side, point: &str) -> Result<Vec<u8>> {
        let (path, name) = self.file("point.raw")?;
        self.on(twin, &["point", "export"], &[point, &name])?;
        Ok(fs::read(path)?)
    }

    /// The newest point of the twin is what was written, and so is the disk.
    fn equal(&self, primary: Side) -> Result<()> {
        let newest = self.settled(primary)?;
        let (path, name) = self.file("disk.raw")?;
        until(MINUTE, "the failover is complete", || {
            match self.on(primary, &["disk", "export"], &["0", &name]) {
                Err(refused) if refused.to_string().contains("is merging") => Ok(None),
                exported => exported.map(Some),
            }
        })?;
        let hash = |disk: &[u8]| (disk.len(), blake3::hash(disk));
        let disk = fs::read(path)?;
        let twin = self.export(other(primary), &newest.name)?;
        let expected = hash(&self.disk);
        ensure!(
            hash(&disk) == expected && hash(&twin) == expected,
            "not what was written: the disk in the blocks {:?}, the twin in {:?}",
            differ(&self.disk, &disk),
            differ(&self.disk, &twin)
        );
        Ok(())
    }

    fn create(&mut self, fate: Fate) -> Result<()> {
        let (file, name) = self.file("image.raw")?;
        fs::write(file, &self.disk)?;
        let create = ["--generation", "1", "--memory", "32MiB", "--image", &name];
        self.on(Castor, &["vm", "create"], &create)?;
        let keep: &[&str] = match fate {
            BaseMerged => &["--keep", "4:all"],
            _ => &[],
        };
        let enable = ["--to", "pollux", "--frequency", "1s"];
        self.on(Castor, &["replica", "enable"], &[&enable, keep].concat())
    }

    fn grow(&mut self, side: Side) -> Result<()> {
        let size = Bytes(GROWN as u64).to_string();
        let resize = ["disk", "resize", self.vm.as_str(), "0", &size];
        self.host(side).insist(&resize)?;
        self.disk.resize(GROWN, 0);
        Ok(())
    }

    /// Takes the disk back to a checkpoint above which something was written; the blocks of that.
    fn apply(&mut self, side: Side) -> Result<BTreeSet<usize>> {
        let checkpoint = ["disk", "checkpoint", self.vm.as_str(), "one"];
        self.host(side).insist(&checkpoint)?;
        let before = self.disk.clone();
        let written = self.write(side, 0..0)?;
        if side == Pollux {
            self.on(side, &["vm", "kill"], &[])?;
        }
        self.on(side, &["disk", "apply"], &["one"])?;
        self.disk = before;
        Ok(written)
    }

    /// The points that there are before the loss: an older one, and the newest; then something is written
    /// that is never sent.
    fn history(&mut self, fate: Fate) -> Result<History> {
        self.settled(Castor)?;
        let mut written = self.write(Castor, 0..0)?;
        let mut older = self.settled(Castor)?;
        let mut since = BTreeSet::new();
        match fate {
            GrownBefore => {
                self.grow(Castor)?;
                since.extend(self.write(Castor, SIZE..GROWN)?);
            }
            AppliedBefore => {
                since.extend(self.apply(Castor)?);
                since.extend(self.write(Castor, 0..0)?);
            }
            BaseMerged => {
                for _ in 0..6 {
                    since.extend(self.write(Castor, 0..0)?);
                    self.settled(Castor)?;
                }
            }
            _ => since.extend(self.write(Castor, 0..0)?),
        }
        let newest = self.settled(Castor)?;
        self.hosts.part();
        if fate == BaseMerged {
            // What had begun to come, comes; then no more is merged.
            let points = until(MINUTE, "four points are kept", || {
                let points = self.points(Pollux)?;
                Ok((points.len() == 4).then_some(points))
            })?;
            older.name = point_name(points.first().context("a point")?)?;
            older.disk = self.export(Pollux, &older.name)?;
            ensure!(older.disk != newest.disk, "all points are the same");
        }
        let unsent = self.write(Castor, 0..0)?;
        written.extend(since.union(&unsent));
        Ok(History {
            older,
            newest,
            written,
            since,
            unsent,
        })
    }

    /// Starts the twin from a point, without the host that is lost.
    fn take_over(&mut self, side: Side, point: &Point) -> Result<()> {
        let start = [&["--point", point.name.as_str()][..], &LOST].concat();
        self.on(side, &["failover", "start"], &start)?;
        self.disk.clone_from(&point.disk);
        Ok(())
    }

    /// The lost host hears that it was succeeded.
    fn gives_way(&self, side: Side) -> Result<()> {
        self.hosts.join();
        until(2 * MINUTE, "the host that was lost stands down", || {
            let status = self.host(side).json(&["replica", "status", &self.vm]);
            let state = status.as_ref().ok().map(|all| text(all, "/0/state"));
            Ok(state
                .is_some_and(|state| state.is_ok_and(|state| state == "stood-down"))
                .then_some(()))
        })
    }

    /// Both hosts are killed, or lose their power.
    fn crash(&mut self, power: bool) -> Result<()> {
        let Pair { castor, pollux, .. } = &mut self.hosts.pair;
        for host in [castor, pollux] {
            host.kill_everything()?;
            if power {
                host.lose_memory()?;
            }
        }
        self.hosts.start()
    }

    /// Replicates back to the host that was lost.
    fn reverse(&mut self, from: Chosen, fate: Fate) -> Result<()> {
        let reverse = ["failover", "reverse"];
        match (fate, from) {
            (GrownBefore, Chosen::Older) => {
                self.refused(Pollux, &reverse, &[], "pollux disk resize")?;
                self.complete()?;
                self.grow(Pollux)?;
            }
            (AppliedBefore, _) => {
                self.refused(Pollux, &reverse, &[], "pollux disk merge")?;
                self.on(Castor, &["disk", "merge"], &["--all"])?;
            }
            (BothKilled, _) => {
                let twin = self.host(Castor).state().join("replicas");
                let twin = twin.join(self.id(Castor)?);
                // At some place it is asked, and not answered.
                for bytes in (1..).map(|part| 500 * part) {
                    self.hosts.back.cut_after(bytes);
                    let answered = self.on(Pollux, &reverse, &[]).is_ok();
                    if answered || twin.exists() {
                        break;
                    }
                    self.hosts.back.mend();
                }
                self.hosts.part();
                self.crash(from == Chosen::Older)?;
                // Some of the first point comes.
                self.hosts.join();
                self.hosts.back.cut_after(100_000);
                self.on(Pollux, &reverse, &[])?;
                until(MINUTE, "the point is on its way", || {
                    Ok(self.hosts.back.is_cut().then_some(()))
                })?;
                ensure!(self.points(Castor)?.is_empty(), "it has a point already");
                self.crash(from == Chosen::Older)?;
                self.hosts.join();
                return Ok(());
            }
            _ => {}
        }
        self.insist(Pollux, &reverse)
    }

    /// What it costs until the other host, which had the disk `there`, has all of it; `written` was written
    /// since it was lost, and of `unknown` nobody can tell.
    fn cost(
        &self,
        primary: Side,
        before: Carried,
        there: &[u8],
        written: &BTreeSet<usize>,
        unknown: u64,
    ) -> Result<Cost> {
        self.settled(primary)?;
        let (carried, talk) = self.carried_since(primary, before);
        self.equal(primary)?;
        let mut changed = differ(&self.disk, there);
        changed.extend(written);
        let status = self.host(primary).json(&["replica", "status", &self.vm])?;
        let points = self.points(other(primary))?;
        let sizes = points.iter().map(|point| size(point, "/size"));
        let cost = Cost {
            changed: (changed.len() * BLOCK) as u64,
            shipped: sizes.sum::<Result<u64>>()?,
            points: points.len() as u64,
            unknown,
            compared: size(&status, "/0/compared")?,
            carried,
            talk,
        };
        cost.is_bounded().map(|()| cost)
    }

    /// The report of what was never sent names all of that, and no region besides, and when it was written.
    fn is_reported(&self, unsent: &BTreeSet<usize>) -> Result<()> {
        let report = ["failover", "lost-writes", &self.vm];
        let report = self.host(Castor).json(&report)?;
        let ranges = report.pointer("/disks/0/ranges").and_then(Value::as_array);
        let mut listed = BTreeSet::new();
        for range in ranges.context("it is known")? {
            let at = usize::try_from(json_u64(range, "/at")?)?;
            let end = at + usize::try_from(size(range, "/len")?)?;
            listed.extend(at / BLOCK..end.div_ceil(BLOCK));
        }
        let region = |block: &usize| block * BLOCK / MIB;
        let regions: BTreeSet<usize> = unsent.iter().map(region).collect();
        ensure!(!unsent.is_empty() && unsent.is_subset(&listed), "{report}");
        let besides = listed
            .iter()
            .find(|block| !regions.contains(&region(block)));
        ensure!(besides.is_none(), "block {besides:?}: {report}");
        let (from, until) = (text(&report, "/from")?, text(&report, "/until")?);
        ensure!(from < until, "{report}");
        Ok(())
    }

    /// What went over the wire to the other host until now.
    fn carried(&self, primary: Side) -> Carried {
        let wire = match primary {
            Castor => &self.hosts.pair.wire,
            Pollux => &self.hosts.back,
        };
        (wire.carried(), Instant::now())
    }

    /// Bytes that went there since then, and how many of them the two hosts may have said to each other
    /// besides: the more, the longer it took.
    fn carried_since(&self, primary: Side, (before, begun): Carried) -> (u64, u64) {
        let (now, _) = self.carried(primary);
        let talk = MIB as u64 + 16 * KIB * begun.elapsed().as_secs();
        (now - before, talk)
    }

    fn run(&mut self, from: Chosen, fate: Fate) -> Result<Vec<Cost>> {
        self.create(fate)?;
        let History {
            older,
            newest,
            mut written,
            since,
            unsent,
        } = self.history(fate)?;
        let (there, lost) = (self.disk.clone(), unsent.clone());
        if matches!(fate, PowerCut | LogLost) {
            self.hosts.pair.castor.kill_everything()?;
            self.hosts.pair.castor.lose_memory()?;
        }
        let (point, unknown) = match from {
            Chosen::Newest => (newest, unsent),
            Chosen::Older => (older, &since | &unsent),
        };
        self.take_over(Pollux, &point)?;
        let mut since = self.write(Pollux, 0..0)?;
        match fate {
            LogLost => self.lose_logs()?,
            GrownAfter => {
                self.complete()?;
                self.grow(Pollux)?;
                since.extend(self.write(Pollux, SIZE..GROWN)?);
            }
            AppliedAfter => {
                self.complete()?;
                since.extend(self.apply(Pollux)?);
            }
            BaseMerged => self.complete()?,
            _ => {}
        }
        self.hosts.start()?;
        self.gives_way(Castor)?;
        written.extend(&since);
        let unknown = match (fate, from) {
            (LogLost | AppliedAfter, _) => there.len() as u64,
            // A log begins with all of the disk, until the first sweep.
            (BothKilled, Chosen::Older) => there.len() as u64,
            (PowerCut, _) => regions(&written),
            _ => regions(&unknown),
        };
        let carried = self.carried(Pollux);
        self.reverse(from, fate)?;
        let mut costs = vec![self.cost(Pollux, carried, &there, &since, unknown)?];
        if matches!(fate, Nothing | BaseMerged) {
            self.is_reported(&lost)?;
        }
        let later = self.write(Pollux, 0..0)?;
        self.equal(Pollux)?;
        if fate == SecondFailover {
            costs.push(self.second(from, &later)?);
            self.on(Castor, &["failover", "lost-writes"], &["--drop"])?;
            self.end(Castor)?;
        } else {
            self.end(Pollux)?;
        }
        Ok(costs)
    }

    /// The replica takes over again, and the VM is replicated back the other way.
    fn second(&mut self, from: Chosen, since: &BTreeSet<usize>) -> Result<Cost> {
        let older = self.points(Castor)?;
        let name = point_name(older.first().context("a point")?)?;
        let older = Point {
            disk: self.export(Castor, &name)?,
            name,
        };
        let newest = self.settled(Pollux)?;
        ensure!(older.disk != newest.disk, "all points are the same");
        self.hosts.part();
        let unsent = self.write(Pollux, 0..0)?;
        let there = self.disk.clone();
        let (point, unknown) = match from {
            Chosen::Newest => (newest, unsent),
            Chosen::Older => (older, since | &unsent),
        };
        self.take_over(Castor, &point)?;
        let since = self.write(Castor, 0..0)?;
        self.gives_way(Pollux)?;
        self.on(Pollux, &["vm", "kill"], &[])?;
        let carried = self.carried(Castor);
        self.insist(Castor, &["failover", "reverse"])?;
        let cost = self.cost(Castor, carried, &there, &since, regions(&unknown))?;
        self.write(Castor, 0..0)?;
        self.equal(Castor)?;
        Ok(cost)
    }

    /// Nothing of it stays on either host.
    fn end(&self, primary: Side) -> Result<()> {
        self.on(primary, &["replica", "remove"], &[])?;
        let details = self.host(primary).json(&["vm", "show", &self.vm])?;
        if text(&details, "/vm/state")? != "off" {
            self.on(primary, &["vm", "kill"], &[])?;
        }
        self.on(primary, &["vm", "delete"], &[])?;
        let twin = other(primary);
        self.on(twin, &["failover", "lost-writes"], &["--drop"])?;
        self.on(twin, &["vm", "delete"], &[])
    }

    fn complete(&self) -> Result<()> {
        self.on(Pollux, &["failover", "complete"], &[])
    }

    /// What says in which regions the disk may differ is gone. It is not served.
    fn lose_logs(&self) -> Result<()> {
        let folder = self.host(Castor).state().join("vms").join(self.id(Pollux)?);
        let mut lost = 0;
        for entry in fs::read_dir(folder.join("tracking"))? {
            let file = entry?.path();
            if file.extension().is_some_and(|ending| ending == "intent") {
                fs::remove_file(file)?;
                lost += 1;
            }
        }
        ensure!(lost == 1, "{lost} logs");
        Ok(())
    }
}

/// Bytes of the regions that hold the blocks.
fn regions(blocks: &BTreeSet<usize>) -> u64 {
    let regions: BTreeSet<_> = blocks.iter().map(|block| block * BLOCK / MIB).collect();
    (regions.len() * MIB) as u64
}

fn size(value: &Value, field: &str) -> Result<u64> {
    Ok(text(value, field)?.parse::<Bytes>()?.0)
}

fn other(side: Side) -> Side {
    match side {
        Castor => Pollux,
        Pollux => Castor,
    }
}

/// The blocks of which the content differs; those that one lacks are zeroes there.
fn differ(one: &[u8], other: &[u8]) -> BTreeSet<usize> {
    let block = |disk: &[u8], number: usize| -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let rest = disk.get(number * BLOCK..).unwrap_or_default();
        let len = rest.len().min(BLOCK);
        block[..len].copy_from_slice(&rest[..len]);
        block
    };
    let blocks = one.len().max(other.len()).div_ceil(BLOCK);
    (0..blocks)
        .filter(|number| block(one, *number) != block(other, *number))
        .collect()
}

#[test]
fn whatever_happened_only_the_difference_goes_back_and_the_twin_is_the_disk() -> Result<()> {
    let mut hosts = Hosts::new("failback-matrix")?;
    let mut wrong = Vec::new();
    for (number, fate) in (0..).zip(FATES) {
        for from in [Chosen::Newest, Chosen::Older] {
            let name = format!("{fate:?}, {from:?}");
            let vm = format!("{fate:?}-{from:?}").to_lowercase();
            match Cell::new(&mut hosts, vm, number).run(from, fate) {
                Ok(costs) => costs.iter().for_each(|cost| println!("{name:<22} {cost}")),
                Err(error) => {
                    println!("{name:<22} {error:#}");
                    wrong.push(name);
                    hosts.join();
                    hosts.start()?;
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

/// Lets castor make its twins on pollux in the folder `store`.
fn twins_lie_in(hosts: &Hosts, store: &Path) -> Result<()> {
    let store = fs::canonicalize(store)?.display().to_string();
    let authorize = ["replica", "authorize", "castor", "--store", &store];
    hosts.pair.pollux.pollux(&authorize).map(drop)
}

#[test]
fn a_twin_in_another_folder_goes_there_and_back_and_leaves_nothing_in_it() -> Result<()> {
    let mut hosts = Hosts::new("failback-store")?;
    let store = hosts.pair.scratch.state().join("twins");
    fs::create_dir(&store)?;
    twins_lie_in(&hosts, &store)?;
    let mut cell = Cell::new(&mut hosts, "web".to_owned(), 1);
    let costs = cell.run(Chosen::Newest, SecondFailover)?;
    costs.iter().for_each(|cost| println!("{cost}"));
    let left: Vec<_> = fs::read_dir(&store)?
        .flatten()
        .map(|one| one.file_name())
        .collect();
    ensure!(left == ["pollux-store.toml"], "left behind: {left:?}");
    Ok(())
}

#[test]
fn a_vm_in_a_store_on_another_file_system_goes_there_and_back_by_what_differs() -> Result<()> {
    const NAME: &str = "a_vm_in_a_store_on_another_file_system_goes_there_and_back_by_what_differs";
    if !may_mount(NAME)? {
        return Ok(());
    }
    let scratch = Scratch::new("system/failback-mounted")?;
    let store = SmallDisk::mount(scratch.state().join("twins"), 128)?;
    let settings = scratch.state().join("pollux");
    fs::create_dir(&settings)?;
    fs::write(settings.join("host.toml"), "store_reserve = \"0B\"\n")?;
    let mut hosts = Hosts::start_in(scratch)?;
    twins_lie_in(&hosts, store.path())?;
    let mut cell = Cell::new(&mut hosts, "web".to_owned(), 1);
    cell.create(Nothing)?;
    let newest = cell.history(Nothing)?.newest;
    cell.take_over(Pollux, &newest)?;
    cell.write(Pollux, 0..0)?;
    cell.gives_way(Castor)?;
    cell.insist(Pollux, &["failover", "reverse"])?;
    cell.equal(Pollux)?;
    // The disk stays where the journal was.
    let own = store.path().join(cell.id(Pollux)?);
    let named = |name: &str| own.join(name).exists();
    let merged = || Ok((!named("journal")).then_some(()));
    until(MINUTE, "the journal is gone", merged)?;
    ensure!(named("disk0.raw"));
    cell.on(Castor, &["failover", "lost-writes"], &["--drop"])?;

    // Taken back, and what was written there and never sent is kept there.
    let newest = cell.settled(Pollux)?;
    cell.hosts.part();
    let unsent = cell.write(Pollux, 0..0)?;
    let never_sent = cell.disk.clone();
    cell.take_over(Castor, &newest)?;
    let since = cell.write(Castor, 0..0)?;
    cell.gives_way(Pollux)?;
    cell.on(Pollux, &["vm", "kill"], &[])?;
    let reverse = ["failover", "reverse"];
    // It has its own disks back before the first point, and is made the replica once more.
    cell.hosts.pair.wire.cut_after(100_000);
    cell.on(Castor, &reverse, &[])?;
    until(MINUTE, "the point is on its way", || {
        Ok(cell.hosts.pair.wire.is_cut().then_some(()))
    })?;
    ensure!(named("journal") && named("branch"));
    cell.on(Pollux, &["failover", "cancel"], &[])?;
    ensure!(named("disk0.raw") && !named("journal") && !named("branch"));
    cell.hosts.pair.pollux.kill_daemon()?;
    cell.hosts.start()?;
    cell.hosts.join();
    let before = cell.carried(Castor);
    cell.insist(Castor, &reverse)?;
    cell.settled(Castor)?;
    let (carried, talk) = cell.carried_since(Castor, before);
    cell.equal(Castor)?;
    let points = cell.points(Pollux)?.len() as u64;
    let differs: BTreeSet<_> = unsent.union(&since).collect();
    let most = (differs.len() * BLOCK) as u64 + points * Cost::INDEX;
    let most = most + cell.disk.len() as u64 / 128 + talk;
    println!("carried {carried} of {most} bytes");
    ensure!(carried <= most, "carried {carried} of {most}");
    ensure!(named("journal") && named("branch"));
    let (path, name) = cell.file("unsent.raw")?;
    let export = ["lost-writes", &name];
    cell.on(Pollux, &["point", "export"], &export)?;
    ensure!(fs::read(path)? == never_sent, "what was never sent is kept");
    cell.on(Pollux, &["failover", "lost-writes"], &["--drop"])?;
    ensure!(named("journal") && !named("branch") && !named("disk0.raw"));

    // And home again.
    cell.on(Castor, &["vm", "kill"], &[])?;
    cell.insist(Castor, &["failover", "prepare"])?;
    cell.insist(Pollux, &["failover", "start"])?;
    cell.write(Pollux, 0..0)?;
    cell.insist(Pollux, &reverse)?;
    cell.equal(Pollux)?;
    until(MINUTE, "the journal is gone", merged)?;
    ensure!(named("disk0.raw"));
    cell.on(Pollux, &["replica", "remove"], &[])?;
    cell.on(Pollux, &["vm", "kill"], &[])?;
    cell.on(Pollux, &["vm", "delete"], &[])?;
    ensure!(!own.exists(), "the disk is deleted");
    Ok(())
}

impl Cell<'_> {
    fn refused(&self, side: Side, words: &[&str], rest: &[&str], part: &str) -> Result<()> {
        let all = [words, &[self.vm.as_str()], rest].concat();
        let says = |refused: &Refusal| refused.message.contains(part);
        let refused = self.host(side).refused_for(&all, says)?;
        ensure!(says(&refused), "{refused:?}");
        Ok(())
    }

    /// Pollux takes over from castor, which stands down with the disk that is given, and something in it that
    /// was never sent.
    fn succeed(&mut self) -> Result<(History, Vec<u8>)> {
        self.create(Nothing)?;
        let history = self.history(Nothing)?;
        let own = self.disk.clone();
        self.take_over(Pollux, &history.newest)?;
        self.write(Pollux, 0..0)?;
        self.gives_way(Castor)?;
        Ok((history, own))
    }

    fn state(&self, side: Side) -> Result<String> {
        let details = self.host(side).json(&["vm", "show", &self.vm])?;
        Ok(text(&details, "/vm/state")?.to_owned())
    }

    /// What is told of its replication: the state, and all that is not as it should be.
    fn replication(&self, side: Side) -> Result<(String, String)> {
        let status = self.host(side).json(&["replica", "status", &self.vm])?;
        Ok((text(&status, "/0/state")?.to_owned(), status.to_string()))
    }
}
