//! A guest that changes two disks at random, and what its twin has of them.
//!
//! Disk 0 is on virtio, served over vhost-user; disk 1 is on SCSI, served over NBD. Both begin full of
//! content that compresses badly, so that sending a disk again costs as much as the disk.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use testkit::Rng;

use crate::{
    Host, Pair, create_shell, device, no_bad_news, nothing_pending, point_name, start_shell,
    type_in,
};

const MIB: u64 = 1 << 20;
/// Sizes of the two disks.
pub const DISKS: [u64; 2] = [48 * MIB, 32 * MIB];
/// A block of the tracker.
pub const BLOCK: u64 = 4096;
/// What the guest says before the number of bytes that it changed.
const CHANGED: &str = " changed ";

/// Makes the VM `web` with both disks.
///
/// # Errors
/// The host refuses.
pub fn create(host: &Host, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    let mut files = Vec::new();
    for (number, size) in DISKS.iter().enumerate() {
        let path = host.state().with_extension(format!("disk{number}.raw"));
        let mut file = File::create_new(&path)?;
        for _ in 0..size / MIB {
            file.write_all(&rng.bytes(usize::try_from(MIB)?))?;
        }
        files.push(path.display().to_string());
    }
    create_shell(host, "web", &["--image", &files[0]])?;
    host.pollux(&["disk", "attach", "web", &files[1], "--bus", "scsi"])?;
    Ok(())
}

/// Starts `web`; its guest changes both disks.
///
/// # Errors
/// It does not come up.
pub fn start(host: &Host, seed: u64) -> Result<()> {
    start_shell(host, "web")?;
    for (number, size) in (0..).zip(DISKS) {
        let device = device(host, "web", size)?;
        let line = format!("pollux-churn /dev/{device} {} &", seed << 1 | number);
        type_in(host, "web", &line, &format!("{device}{CHANGED}"))?;
    }
    Ok(())
}

/// Grows disk 0 under the guest, which writes where there was nothing before. It is not [started](start) again
/// after that.
///
/// # Errors
/// The host refuses; the guest does not see it.
pub fn grow(host: &Host) -> Result<()> {
    const GROWN: u64 = 56;
    let size = format!("{GROWN}MiB");
    host.insist(&["disk", "resize", "web", "0", &size])?;
    let device = device(host, "web", GROWN * MIB)?;
    let at = DISKS[0] / MIB + 2;
    let write =
        format!("dd if=/dev/urandom of=/dev/{device} bs=1M seek={at} count=4 conv=notrunc,fsync");
    type_in(host, "web", &format!("{write} && echo gr''own"), "grown")?;
    Ok(())
}

/// Ends what changes the disks of `web`, then shuts it down.
///
/// # Errors
/// It does not do as it is told.
pub fn stop(host: &Host) -> Result<()> {
    // What still writes while the kernel shuts its devices down gets errors.
    let end = "killall pollux-churn; wait; echo sti''ll";
    type_in(host, "web", end, "still")?;
    host.pollux(&["vm", "stop", "web"])?;
    Ok(())
}

/// Bytes of whole blocks that the guest changed since it was made, as often as it did: what it said.
///
/// # Errors
/// It saw an error.
pub fn changed(host: &Host) -> Result<u64> {
    let log = host.serial_log("web")?;
    no_bad_news(&log)?;
    let last = |life: &str, device: &str| {
        let marker = format!("{device}{CHANGED}");
        let numbers = life.lines().filter_map(|line| line.split_once(&marker));
        let mut numbers = numbers.filter_map(|(_, number)| number.trim().parse::<u64>().ok());
        numbers.next_back().unwrap_or(0)
    };
    let lives = log.split("pollux-guest: kernel up");
    Ok(lives
        .map(|life| last(life, "vda") + last(life, "sda"))
        .sum())
}

/// The disks of the newest point, as files.
fn newest(pair: &Pair) -> Result<Vec<PathBuf>> {
    let points = pair.points("web");
    let newest = point_name(points.last().context("the twin has a point")?)?;
    let disk = |disk: usize| {
        let number = disk.to_string();
        let (path, text) = file(pair, &format!("twin{disk}.raw"))?;
        let export = ["point", "export", "web", &newest, &text, "--disk", &number];
        pair.pollux.pollux(&export)?;
        Ok(path)
    };
    (0..DISKS.len()).map(disk).collect()
}

/// A file that is not there yet.
fn file(pair: &Pair, name: &str) -> Result<(PathBuf, String)> {
    let path = pair.scratch.state().join(name);
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    let text = path.display().to_string();
    Ok((path, text))
}

/// Bytes of blocks of `disks` that differ from the newest point of the twin.
///
/// # Errors
/// They cannot be read, or have other sizes.
pub fn differ_from_twin(pair: &Pair, disks: &[PathBuf]) -> Result<u64> {
    let twin = newest(pair)?;
    let mut sum = 0;
    for (here, there) in disks.iter().zip(&twin) {
        sum += differ(here, there)?.len() as u64 * BLOCK;
    }
    Ok(sum)
}

/// The blocks in which two files differ.
///
/// # Errors
/// They cannot be read, or have other sizes.
pub fn differ(here: &Path, there: &Path) -> Result<Vec<u64>> {
    let (mut here, mut there) = (File::open(here)?, File::open(there)?);
    let size = here.metadata()?.len();
    ensure!(size == there.metadata()?.len(), "the sizes differ");
    let mut found = Vec::new();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let part = 256 * BLOCK;
    for first in (0..size).step_by(usize::try_from(part)?) {
        for (file, into) in [(&mut here, &mut ours), (&mut there, &mut theirs)] {
            into.clear();
            io::Read::by_ref(file).take(part).read_to_end(into)?;
        }
        let block = usize::try_from(BLOCK)?;
        let blocks = ours.chunks(block).zip(theirs.chunks(block));
        let differs = (first / BLOCK..).zip(blocks).filter(|(_, (a, b))| a != b);
        found.extend(differs.map(|(number, _)| number));
    }
    Ok(found)
}

/// Waits until the twin lacks nothing of `web`, which is off, and compares every byte.
///
/// # Errors
/// Something differs.
pub fn are_equal(pair: &Pair) -> Result<()> {
    nothing_pending(&pair.castor, "web")?;
    for (disk, there) in newest(pair)?.iter().enumerate() {
        let (here, text) = file(pair, &format!("primary{disk}.raw"))?;
        let export = ["disk", "export", "web", &disk.to_string(), &text];
        pair.castor.pollux(&export)?;
        let found = differ(&here, there)?;
        ensure!(
            found.is_empty(),
            "disk {disk} of the twin: {found:?} differ"
        );
    }
    Ok(())
}
