//! Runs in a test guest: changes a disk at random, in ways that a tracker of changes may get wrong.
//!
//! `pollux-churn DEVICE SEED [writers=2] [pause-ms=25]`, until it is killed. Each writer goes its
//! own way over the whole disk: writes of 512 B to 1 MiB, most of them small and many of them no
//! whole blocks; zeroes and discards; flushes now and then. What two writers do at once may overlap.
//! The content proves nothing by itself: it is for comparing two disks. Lines are
//! `pollux-churn: vda changed N`, N bytes of whole blocks of 4 KiB that were touched, as often as
//! they were.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use testkit::Rng;

const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;
/// Direct I/O wants memory at such an address.
const ALIGNED: usize = 4096;
const LONGEST: u64 = 1 << 20;
/// Operations of a writer from one line to the next.
const LINE: u64 = 16;

fn main() {
    if let Err(error) = run() {
        say(&format!("FAILED: {error:#}"));
    }
}

/// One write per line: others share the serial line.
fn say(text: &str) {
    // Nobody could be told.
    let _ = io::stdout().write_all(format!("pollux-churn: {text}\n").as_bytes());
}

struct Churn {
    device: PathBuf,
    size: u64,
    pause: Duration,
    /// Bytes of whole blocks touched.
    changed: AtomicU64,
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, seed, options @ ..] = &arguments[..] else {
        bail!("it takes DEVICE SEED");
    };
    let seed: u64 = seed.parse()?;
    let (mut writers, mut pause) = (2, 25);
    for option in options {
        let (name, value) = option.split_once('=').context("NAME=VALUE")?;
        match name {
            "writers" => writers = value.parse()?,
            "pause-ms" => pause = value.parse()?,
            _ => bail!("`{option}` is not understood"),
        }
    }
    let churn = Churn {
        device: device.into(),
        size: File::open(device)?.seek(SeekFrom::End(0))?,
        pause: Duration::from_millis(pause),
        changed: AtomicU64::new(0),
    };
    scope(|scope| {
        let writers: Vec<_> = (0..writers)
            .map(|number| {
                let rng = Rng::new(seed << 8 | number);
                let churn = &churn;
                scope.spawn(move || churn.write(rng, number == 0))
            })
            .collect();
        // The first that fails ends all: its line is what the test looks for.
        for writer in writers {
            match writer.join() {
                Ok(Err(error)) => say(&format!("FAILED: {error:#}")),
                Ok(Ok(())) => {}
                Err(_panic) => say("FAILED: a writer panicked"),
            }
        }
    });
    Ok(())
}

impl Churn {
    /// Changes the disk until something fails; `first`: also says how far all are.
    fn write(&self, mut rng: Rng, first: bool) -> Result<()> {
        let direct = i32::try_from(OFlags::DIRECT.bits())?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(direct)
            .open(&self.device)?;
        let mut memory = vec![0; usize::try_from(LONGEST)? + ALIGNED];
        let start = memory.as_ptr().align_offset(ALIGNED);
        for number in 1_u64.. {
            let (at, len) = self.place(&mut rng);
            match rng.below(40) {
                0..30 => {
                    let content = &mut memory[start..][..usize::try_from(len)?];
                    fill(&mut rng, content);
                    file.write_all_at(content, at)
                        .with_context(|| format!("write of {len} at {at}"))?;
                }
                30..33 => {
                    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&file, hole, at, len)
                        .with_context(|| format!("zeroes of {len} at {at}"))?;
                }
                // Its program wants to be the only one of its kind.
                33 if first => discard(&self.device, at, len)?,
                _ => {
                    file.sync_data().context("flush")?;
                    continue;
                }
            }
            let blocks = (at + len).div_ceil(BLOCK) - at / BLOCK;
            let changed = blocks * BLOCK;
            let changed = self.changed.fetch_add(changed, Ordering::Relaxed) + changed;
            if first && number % LINE == 0 {
                let name = self.device.file_name().unwrap_or_default();
                say(&format!("{} changed {changed}", name.to_string_lossy()));
            }
            sleep(self.pause);
        }
        Ok(())
    }

    /// Sectors at random, mostly few.
    fn place(&self, rng: &mut Rng) -> (u64, u64) {
        let longest = match rng.below(32) {
            0 => LONGEST,
            1..6 => 64 << 10,
            6..20 => 8 << 10,
            _ => BLOCK,
        };
        let len = (1 + rng.below(longest / SECTOR)) * SECTOR;
        let at = rng.below((self.size - len) / SECTOR + 1) * SECTOR;
        (at, len)
    }
}

/// Content that was never there before, and compresses a little.
fn fill(rng: &mut Rng, content: &mut [u8]) {
    let mut word = rng.bits();
    for part in content.chunks_mut(8) {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        part.copy_from_slice(&(word >> 8).to_le_bytes()[..part.len()]);
    }
}

/// The kernel offers a discard that may leave anything only by an ioctl: busybox knows it.
fn discard(device: &Path, at: u64, len: u64) -> Result<()> {
    let (at, len) = (at.to_string(), len.to_string());
    let status = Command::new("blkdiscard")
        .args(["-o", &at, "-l", &len])
        .arg(device)
        .status()?;
    ensure!(status.success(), "discard of {len} at {at}: {status}");
    Ok(())
}
