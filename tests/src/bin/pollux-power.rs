//! Runs in a test guest, on a file system whose power is cut: see [`pollux_tests::power`].
//!
//! `pollux-power FOLDER SESSION SEED FLUSHED|none KIND`: judges what session SESSION - 1 left, which flushed
//! so many batches, then runs SESSION until the power is cut. KIND is `io-uring` or `threads`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use block::{Buffer, Device, Op};
use image::{Overlay, OverlayFiles, RawDevice};
use pollux_tests::power::{DRAINED_FROM, SECTORS, Step, batch, drains, judge};
use ring::{Kind, Ring, RingStore};

const SIZE: u64 = SECTORS * 512;
/// How much is drained in a batch, in bytes: little, so that it takes several.
const DRAINED: u64 = 32 << 10;

type Disk = Overlay<RingStore, RingStore, RawDevice<RingStore>>;

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
    let kind = match &kind[..] {
        "io-uring" => Kind::IoUring,
        "threads" => Kind::Threads,
        other => bail!("there is no kind `{other}`"),
    };
    let ring = Ring::of_kind(kind, 64)?;
    ring.block_on(async {
        if flushed != "none" {
            let flushed = flushed.parse()?;
            let disk = open(&ring, folder, number - 1).await?;
            let into = Buffer::zeroed(usize::try_from(SIZE)?);
            let done = disk.run(Op::Read { at: 0, into }).await;
            done.outcome?;
            let content = done.buffer.context("no content")?.to_vec();
            match judge(seed + number - 1, flushed, &content) {
                Ok(()) => say(&format!(
                    "right after {flushed} batches, {} KiB present",
                    disk.present_bytes() >> 10
                )),
                Err(fault) => bail!("DAMAGE after {flushed} batches: {fault}"),
            }
        }
        begin(folder, number, seed + number)?;
        let disk = open(&ring, folder, number).await?;
        say(&format!("session {number} begins over {kind}"));
        work(&disk, seed + number, drains(number)).await
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

async fn work(disk: &Disk, session: u64, drained: bool) -> Result<()> {
    for number in 1.. {
        let steps = batch(session, number);
        let mut jobs: Vec<Option<Op>> = steps.iter().map(|step| Some(step.op(session))).collect();
        if number % 3 == 0 {
            jobs.insert(jobs.len() / 2, Some(Op::Flush));
        }
        let draining = drained && number >= DRAINED_FROM;
        if draining {
            jobs.insert(jobs.len() / 3, None);
        }
        let run = |job: Option<Op>| async {
            match job {
                Some(op) => disk.run(op).await.outcome,
                None => disk.drain(DRAINED).await.map(drop),
            }
        };
        for outcome in testkit::join(jobs.into_iter().map(run).collect()).await {
            outcome.map_err(|fault| anyhow!("batch {number}: {fault}"))?;
        }
        disk.run(Op::Flush).await.outcome?;
        let left = disk.present_bytes() >> 10;
        let how = if draining { "draining" } else { "filling" };
        say(&format!("flushed {number} {how} {left} KiB"));
        ensure!(number < u64::MAX, "enough");
    }
    Ok(())
}
