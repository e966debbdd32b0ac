//! A journal with a point for each second of a day: how long opening a point takes, what memory that
//! needs, and how fast its disk is read beside a raw file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use journal::{
    Consistency, Content, DiskExtent, Header, Journal, PointReader, Root, SegmentWriter,
};
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, PointId, SeedId, Since, VmId};

use super::content::noise;
use crate::figures::{Goal, Rows, number};
use crate::load::xorshift;
use crate::scratch::Scratch;
use crate::side::Place;

/// A point each second of a day.
const POINTS: u64 = 86_400;
const DISK: u64 = 4 << 30;
/// Blocks that change from one point to the next.
const CHANGED: u64 = 16;
const RUNS: usize = 5;
/// Reads of a slice.
const READS: u64 = 20_000;

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("open_point") && !rows.want("point_read") {
        return Ok(());
    }
    let folder = Scratch::new(&Place::disk()?.folder)?;
    eprintln!("a journal with {POINTS} points");
    let history = History::write(folder.path(), POINTS)?;
    let path = folder.path().join("journal");
    let journal = Journal::open(&path)?;
    let (mut seconds, mut memory) = (Vec::new(), Vec::new());
    for part in 1..=RUNS as u64 {
        let point = history.point(POINTS * part / RUNS as u64);
        let before = anonymous()?;
        let begin = Instant::now();
        let reader = journal.open_point(point)?;
        seconds.push(begin.elapsed().as_secs_f64() * 1e3);
        memory.push(number(anonymous()?.saturating_sub(before)) / f64::from(1 << 20));
        drop(reader);
    }
    rows.add("open_point_ms", "ms", Goal::AtMost(200.0), &seconds);
    rows.add("open_point_mib", "MiB", Goal::AtMost(64.0), &memory);
    let begin = Instant::now();
    drop(journal);
    let journal = Journal::open(&path)?;
    let opened = begin.elapsed().as_secs_f64() * 1e3;
    rows.add("open_journal_ms", "ms", Goal::Reported, &[opened]);
    let reader = journal.open_point(history.point(POINTS))?;
    let raw = folder.path().join("raw");
    history.flat(&reader, &raw)?;
    let raw = File::open(&raw)?;
    let mut ratios = Vec::new();
    let mut random = 1;
    for _ in 0..RUNS {
        let mut block = [0; 4096];
        let ours = timed(&mut random, |at| {
            Ok(reader.read_at(history.disk, at, &mut block)?)
        })?;
        let theirs = timed(&mut random, |at| Ok(raw.read_exact_at(&mut block, at)?))?;
        ratios.push(theirs.as_secs_f64() / ours.as_secs_f64());
    }
    rows.add("point_read_vs_raw", "x", Goal::AtLeast(0.3), &ratios);
    Ok(())
}

/// Random reads of a block.
fn timed(random: &mut u64, mut read: impl FnMut(u64) -> Result<()>) -> Result<Duration> {
    let begin = Instant::now();
    for _ in 0..READS {
        read(xorshift(random) % (DISK / BLOCK_SIZE) * BLOCK_SIZE)?;
    }
    Ok(begin.elapsed())
}

/// Memory of this process that no file can take back, in bytes.
fn anonymous() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("the kernel does not tell the memory of a process")?
        .parse()?;
    Ok(kib << 10)
}

/// What the journal was filled with.
struct History {
    disk: DiskId,
    lineage: Lineage,
}

impl History {
    fn point(&self, sequence: u64) -> PointId {
        PointId {
            term: self.lineage.current().id,
            sequence,
        }
    }

    /// Makes a journal of `points` points in `folder`.
    fn write(folder: &Path, points: u64) -> Result<Self> {
        let vm = VmId::random();
        let seed = SeedId::random();
        let history = Self {
            disk: DiskId::random(),
            lineage: Lineage::begin("bench"),
        };
        let extent = DiskExtent {
            id: history.disk,
            size: Bytes(DISK),
            joining: false,
        };
        let mut journal = Journal::create(&folder.join("journal"), vm, &[extent], seed)?;
        let mut content = vec![0; usize::try_from(BLOCK_SIZE)?];
        let mut random = 1;
        for sequence in 1..=points {
            let since = match sequence {
                1 => Since::Seed { seed, parts: 0 },
                _ => Since::Point(history.point(sequence - 1)),
            };
            let header = Header {
                vm,
                disks: vec![extent],
                lineage: history.lineage.clone(),
                content: Content::Delta { sequence, since },
                time: Timestamp::now(),
                consistency: Consistency::Crash,
            };
            let name = format!("{sequence}.seg");
            let path = folder.join("journal").join(Journal::INCOMING).join(&name);
            let mut writer = SegmentWriter::create(File::create(path)?, &header)?;
            let blocks = DISK / BLOCK_SIZE / CHANGED;
            for part in 0..CHANGED {
                // Scattered over the disk, never the same block twice in a point.
                let block = part * blocks + xorshift(&mut random) % blocks;
                noise(&mut content[..2048], &mut random);
                writer.push_frame(0, block, &content)?;
            }
            let (summary, _) = writer.finish()?;
            let root: Root = summary.root;
            journal.commit(&name, root)?;
        }
        Ok(history)
    }

    /// The disk of `reader` as a raw file.
    fn flat(&self, reader: &std::sync::Arc<PointReader>, path: &Path) -> Result<()> {
        let file = File::create(path)?;
        let mut part = vec![0; 1 << 20];
        for at in (0..DISK).step_by(part.len()) {
            reader.read_at(self.disk, at, &mut part)?;
            file.write_all_at(&part, at)?;
        }
        file.sync_all()?;
        Ok(())
    }
}
