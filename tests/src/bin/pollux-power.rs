//! Runs in a test guest, on a file system whose power is cut: see [`pollux_tests::power`].
//!
//! `pollux-power FOLDER SESSION SEED FLUSHED|none KIND`: judges what session SESSION - 1 left, which flushed
//! so many batches, then runs SESSION until the power is cut. KIND is `io-uring` or `threads`: a disk over
//! that; or `twin`: what takes in points, which are batches then.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use block::{Buffer, Device, Fault, Op, Store};
use diskd::intent::{Armed, IntentLog, Tag};
use image::{Overlay, OverlayFiles, RawDevice};
use model::{DiskId, REGION_SIZE, RelationshipId};
use pollux_tests::power::{
    CONFIRMED, DRAINED_FROM, REGIONS, SECTORS, Step, batch, drains, is_confirmed, judge, tracked,
    twin,
};
use ring::{Kind, Ring, RingStore};
use uuid::Uuid;

const SIZE: u64 = SECTORS * 512;
/// How much is drained in a batch, in bytes: little, so that it takes several.
const DRAINED: u64 = 32 << 10;

type Disk = Overlay<RingStore, RingStore, RawDevice<RingStore>>;

/// A raw disk and the log of where it may differ from its twin.
struct Tracked {
    disk: RingStore,
    log: IntentLog<RingStore>,
}

impl Tracked {
    fn id() -> DiskId {
        DiskId(Uuid::from_u128(1))
    }

    fn stores(ring: &Ring, folder: &Path, number: u64) -> Result<[RingStore; 2]> {
        let store = |name: &str| {
            RingStore::open(ring, &folder.join(format!("{name}{number}")), false, true)
        };
        Ok([store("tracked")?, store("intent")?])
    }

    /// A disk of zeroes, as its twin is.
    async fn begin(ring: &Ring, folder: &Path, number: u64) -> Result<Self> {
        let [disk, log] = Self::stores(ring, folder, number)?;
        let tag = Tag {
            disk: Self::id(),
            relationship: RelationshipId(Uuid::from_u128(2)),
        };
        let log = IntentLog::create(log, tag, REGIONS * REGION_SIZE, Armed::None).await?;
        File::open(folder)?.sync_all()?;
        Ok(Self { disk, log })
    }

    /// What session `number` left; how many regions are armed.
    async fn judge(
        ring: &Ring,
        folder: &Path,
        number: u64,
        session: u64,
        flushed: u64,
    ) -> Result<u64> {
        let [disk, log] = Self::stores(ring, folder, number)?;
        let log = IntentLog::open(log, Self::id()).await?;
        for region in 0..REGIONS {
            let into = Buffer::zeroed(usize::try_from(REGION_SIZE)?);
            let done = disk.read(region * REGION_SIZE, into).await;
            done.outcome?;
            let content = done.buffer.context("no content")?.to_vec();
            let armed = log.next_armed(region..region + 1).is_some();
            ensure!(
                armed || is_confirmed(session, flushed, region, &content),
                "DAMAGE after {flushed} batches: region {region} differs and is not armed"
            );
        }
        Ok(log.armed())
    }

    async fn write(&self, block: u64, content: &[u8]) -> Result<(), Fault> {
        let blocks = block..block + 1;
        while !self.log.is_armed(&blocks) {
            let armed = self.log.arm(diskd::intent::regions(&blocks)).await;
            armed.map_err(|_error| Fault::FlushFailed)?;
        }
        let done = self.disk.write(block * 4096, Buffer::from_slice(content));
        done.await.outcome
    }

    /// The twin has all of it.
    async fn confirmed(&self) -> Result<()> {
        self.disk.sync().await?;
        self.log.disarm(std::slice::from_ref(&(0..REGIONS))).await?;
        Ok(())
    }
}

fn main() {
    if let Err(error) = run() {
        say(&format!("FAILED: {error:#}"));
    }
}

/// Returns when the line has left the guest.
fn say(text: &str) {
    let mut out = io::stdout();
    // Nobody could be told.
    let _ = out.write_all(format!("pollux-power: {text}\n").as_bytes());
    let _ = rustix::termios::tcdrain(&out);
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, session, seed, flushed, kind] = &arguments[..] else {
        bail!("it takes FOLDER SESSION SEED FLUSHED KIND");
    };
    let folder = Path::new(folder);
    let number: u64 = session.parse()?;
    let seed: u64 = seed.parse()?;
    if kind == "twin" {
        return take_in(folder, number, seed, flushed);
    }
    let kind = match &kind[..] {
        "io-uring" => Kind::IoUring,
        "threads" => Kind::Threads,
        other => bail!("there is no kind `{other}`"),
    };
    let ring = Ring::of_kind(kind, 64)?;
    ring.block_on(async {
        if flushed != "none" {
            let flushed = flushed.parse()?;
            let armed = Tracked::judge(&ring, folder, number - 1, seed + number - 1, flushed).await?;
            let disk = open(&ring, folder, number - 1).await?;
            let into = Buffer::zeroed(usize::try_from(SIZE)?);
            let done = disk.run(Op::Read { at: 0, into }).await;
            done.outcome?;
            let content = done.buffer.context("no content")?.to_vec();
            match judge(seed + number - 1, flushed, &content) {
                Ok(()) => say(&format!(
                    "right after {flushed} batches, {} KiB present, {armed} of {REGIONS} regions armed",
                    disk.present_bytes() >> 10
                )),
                Err(fault) => bail!("DAMAGE after {flushed} batches: {fault}"),
            }
        }
        begin(folder, number, seed + number)?;
        let disk = open(&ring, folder, number).await?;
        let tracked = Tracked::begin(&ring, folder, number).await?;
        say(&format!("session {number} begins over {kind}"));
        work(&disk, &tracked, seed + number, drains(number)).await
    })
}

fn take_in(folder: &Path, number: u64, seed: u64, acknowledged: &str) -> Result<()> {
    let journal = |number: u64| folder.join(format!("journal{number}"));
    if acknowledged != "none" {
        let (left, acknowledged) = (journal(number - 1), acknowledged.parse()?);
        match twin::judge(&left, seed + number - 1, acknowledged) {
            Ok(points) => say(&format!("right after {acknowledged} points, {points} held")),
            Err(fault) => bail!("DAMAGE after {acknowledged} points: {fault:#}"),
        }
        fs::remove_dir_all(left)?;
    }
    say(&format!("session {number} begins"));
    twin::take_in(&journal(number), seed + number, |point| {
        say(&format!("acknowledged {point}"));
        ControlFlow::Continue(())
    })
}

async fn open(ring: &Ring, folder: &Path, number: u64) -> Result<Disk> {
    let store = |name: &str| {
        RingStore::open(ring, &folder.join(format!("{name}{number}")), false, true).context("open")
    };
    let below = RawDevice::new(store("below")?, SIZE, false)?;
    let volatile = Path::new("/run/volatile").with_extension(number.to_string());
    let files = OverlayFiles {
        data: store("data")?,
        map: store("map")?,
        volatile: &volatile,
    };
    let boot = durable::boot_id()?;
    Ok(Overlay::open(files, below, boot, &[7; 32]).await?)
}

/// What lies below, durable; nothing of earlier sessions.
fn begin(folder: &Path, number: u64, session: u64) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            fs::remove_file(path)?;
        }
    }
    let below = Step::below();
    let content: Vec<u8> = (0..SECTORS)
        .flat_map(|sector| below.leaves(session, sector))
        .collect();
    let mut file = File::create(folder.join(format!("below{number}")))?;
    file.write_all(&content)?;
    file.sync_all()?;
    for name in ["data", "map"] {
        File::create(folder.join(format!("{name}{number}")))?.sync_all()?;
    }
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// What a batch does at once.
enum Job {
    Op(Op),
    Drain,
    Tracked(u64, Vec<u8>),
}

async fn work(disk: &Disk, twin: &Tracked, session: u64, drained: bool) -> Result<()> {
    for number in 1.. {
        let steps = batch(session, number);
        let mut jobs: Vec<Job> = steps.iter().map(|step| Job::Op(step.op(session))).collect();
        if number % 3 == 0 {
            jobs.insert(jobs.len() / 2, Job::Op(Op::Flush));
        }
        let draining = drained && number >= DRAINED_FROM;
        if draining {
            jobs.insert(jobs.len() / 3, Job::Drain);
        }
        let writes = tracked(session, number).into_iter();
        jobs.extend(writes.map(|(block, content)| Job::Tracked(block, content)));
        let run = |job: Job| async {
            match job {
                Job::Op(op) => disk.run(op).await.outcome,
                Job::Drain => disk.drain(DRAINED).await.map(drop),
                Job::Tracked(block, content) => twin.write(block, &content).await,
            }
        };
        for outcome in testkit::join(jobs.into_iter().map(run).collect()).await {
            outcome.map_err(|fault| anyhow!("batch {number}: {fault}"))?;
        }
        disk.run(Op::Flush).await.outcome?;
        if number % CONFIRMED == 0 {
            twin.confirmed().await?;
        }
        let left = disk.present_bytes() >> 10;
        let how = if draining { "draining" } else { "filling" };
        say(&format!("flushed {number} {how} {left} KiB"));
        ensure!(number < u64::MAX, "enough");
    }
    Ok(())
}
