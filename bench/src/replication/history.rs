//! A journal with a point for each second of a day: how long opening a point takes, what memory that
//! needs, and how fast its disk is read beside a raw file. Everything lies in memory, so that what the
//! journal costs is told and not what a disk does.
//!
//! `point_read_vs_raw` is what a guest's boot from the newest point asks for: blocks of 4 KiB anywhere on
//! the disk, of which a tenth changed within the day, block by block; the rest lies in the base. Beside it:
//! - `.base`: only what did not change;
//! - `.changed`: only what changed, the worst case: each block lies in a frame of its own and nothing is read
//!   twice soon;
//! - `.again`: few blocks that changed, again and again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use journal::{
    Consistency, Content, DiskExtent, Extent, Frame, Header, Journal, PointReader, SegmentWriter,
};
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, PointId, SeedId, Since, VmId};

use super::content::noise;
use crate::figures::{Goal, Rows, number};
use crate::load::xorshift;
use crate::scratch::Scratch;
use crate::side::Place;

/// A point each second of a day.
const POINTS: u64 = 86_400;
const DISK: u64 = 1 << 30;
/// Of so many blocks side by side one changes, now and then.
const HOT: u64 = 10;
/// Blocks that change from one point to the next.
const CHANGED: u64 = 16;
const RUNS: usize = 5;
/// Blocks in a frame, as diskd puts them there.
const IN_FRAME: usize = 4;
/// Reads of a slice.
const READS: u64 = 20_000;
/// Blocks that are read again and again.
const AGAIN: u64 = 1000;

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("open_point") && !rows.want("point_read") {
        return Ok(());
    }
    let folder = Scratch::new(&Place::tmpfs().folder)?;
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
    let goal = Goal::AtLeast(0.3);
    let kinds: [(&str, Goal, Which); 4] = [
        ("point_read_vs_raw", goal, |random| random % BLOCKS),
        ("point_read_vs_raw.base", Goal::Reported, |random| {
            // Any but the one that changes.
            let (group, other) = (random % (BLOCKS / HOT), 1 + random / BLOCKS % (HOT - 1));
            group * HOT + (hot(group) - group * HOT + other) % HOT
        }),
        ("point_read_vs_raw.changed", Goal::Reported, |random| {
            hot(random % (BLOCKS / HOT))
        }),
        ("point_read_vs_raw.again", Goal::Reported, |random| {
            hot(random % AGAIN)
        }),
    ];
    let mut random = 1;
    for (name, goal, block) in kinds {
        eprintln!("{name}");
        let mut ratios = Vec::new();
        for run in 0..RUNS {
            let mut content = [0; 4096];
            let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
            for is_ours in [run % 2 == 0, run % 2 == 1] {
                if is_ours {
                    ours = timed(&mut random, block, |at| {
                        Ok(reader.read_at(history.disk, at, &mut content)?)
                    })?;
                } else {
                    theirs = timed(&mut random, block, |at| {
                        Ok(raw.read_exact_at(&mut content, at)?)
                    })?;
                }
            }
            ratios.push(theirs.as_secs_f64() / ours.as_secs_f64());
        }
        rows.add(name, "x", goal, &ratios);
    }
    Ok(())
}

/// Blocks of the disk.
const BLOCKS: u64 = DISK / BLOCK_SIZE;
/// [`BLOCK_SIZE`] in memory.
const BLOCK: usize = 4096;

/// The block that changes of group `group` of [`HOT`] blocks.
fn hot(group: u64) -> u64 {
    group * HOT + group.wrapping_mul(0x9e37_79b9_7f4a_7c15) % HOT
}

/// The block that a random number stands for.
type Which = fn(u64) -> u64;

/// Reads of blocks that `block` makes of a random number.
fn timed(
    random: &mut u64,
    block: Which,
    mut read: impl FnMut(u64) -> Result<()>,
) -> Result<Duration> {
    let begin = Instant::now();
    for _ in 0..READS {
        read(block(xorshift(random)) * BLOCK_SIZE)?;
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
    vm: VmId,
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

    fn extent(&self) -> DiskExtent {
        DiskExtent {
            id: self.disk,
            size: Bytes(DISK),
            joining: false,
        }
    }

    fn header(&self, content: Content) -> Header {
        Header {
            vm: self.vm,
            disks: vec![self.extent()],
            lineage: self.lineage.clone(),
            content,
            time: Timestamp::now(),
            consistency: Consistency::Crash,
        }
    }

    /// Makes a journal of a full disk and `points` points in `folder`.
    fn write(folder: &Path, points: u64) -> Result<Self> {
        let seed = SeedId::random();
        let history = Self {
            vm: VmId::random(),
            disk: DiskId::random(),
            lineage: Lineage::begin("bench"),
        };
        let (vm, disks) = (history.vm, [history.extent()]);
        let mut journal = Journal::create(&folder.join("journal"), vm, &disks, seed)?;
        let mut random = 1;
        let header = history.header(Content::Seed { seed, part: 0 });
        take(&mut journal, folder, &header, |writer| {
            let mut content = vec![0; 16 * BLOCK];
            for block in (0..BLOCKS).step_by(16) {
                noise(&mut content, &mut random);
                writer.push_frame(0, block, &content)?;
            }
            Ok(())
        })?;
        for sequence in 1..=points {
            if sequence % (points / 10).max(1) == 0 {
                eprintln!("  {sequence} points");
            }
            let since = match sequence {
                1 => Since::Seed { seed, parts: 1 },
                _ => Since::Point(history.point(sequence - 1)),
            };
            let content = Content::Delta { sequence, since };
            let header = history.header(content);
            take(&mut journal, folder, &header, |writer| {
                change(writer, &mut random)
            })?;
            if let Some(tidy) = journal.begin_tidy() {
                journal.finish_tidy(tidy.run()?);
            }
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

/// Writes a segment and takes it in.
fn take(
    journal: &mut Journal,
    folder: &Path,
    header: &Header,
    fill: impl FnOnce(&mut SegmentWriter<File>) -> Result<()>,
) -> Result<()> {
    let name = "next.seg";
    let path = folder.join("journal").join(Journal::INCOMING).join(name);
    let mut writer = SegmentWriter::create(File::create(path)?, header)?;
    fill(&mut writer)?;
    let (summary, _) = writer.finish()?;
    journal.commit(name, summary.root)?;
    Ok(())
}

/// [`CHANGED`] of the blocks that change, scattered over the disk, none of them twice.
fn change(writer: &mut SegmentWriter<File>, random: &mut u64) -> Result<()> {
    let groups = BLOCKS / HOT / CHANGED;
    let blocks: Vec<u64> = (0..CHANGED)
        .map(|part| hot(part * groups + xorshift(random) % groups))
        .collect();
    let mut content = vec![0; IN_FRAME * BLOCK];
    for blocks in blocks.chunks(IN_FRAME) {
        let content = &mut content[..blocks.len() * BLOCK];
        for block in content.chunks_mut(BLOCK) {
            noise(&mut block[..BLOCK / 2], random);
        }
        let extents: Vec<Extent> = blocks
            .iter()
            .map(|block| Extent {
                disk: 0,
                block: *block,
                count: 1,
            })
            .collect();
        writer.push(&Frame::encode(content, Frame::LEVEL)?, &extents)?;
    }
    Ok(())
}
