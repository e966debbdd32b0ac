//! What a replica takes in before its power is cut, and what its journal must hold afterwards.
//!
//! ```text
//!   session s:  a part of an initial replication that holds the whole disk
//!     point 1, 2, ...: some blocks, in a pack or in a file of its own -> commit -> "acknowledged 1"
//!     every few points the oldest ones go into the base
//!   power cut, boot, judge: every acknowledged point that did not go is there, and what each point that
//!                           is there reads as is what was sent
//! ```

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use journal::{Consistency, Content, DiskExtent, Header, Journal, Root, SegmentWriter, Tip};
use model::{BLOCK_SIZE, Bytes, DiskId, Lineage, PointId, SeedId, Since, Term, TermId, VmId};
use testkit::Rng;
use uuid::Uuid;

/// Size of the disk in blocks.
const BLOCKS: u64 = 512;
const BLOCK: usize = 4096;
/// Most blocks of a point: few of them are packed, many are a file.
const LONGEST: u64 = 48;
/// After how many points the oldest ones go.
const MERGED: u64 = 3;
/// Points that stay.
const KEPT: usize = 4;

const DISK: DiskId = DiskId(Uuid::from_u128(1));

fn lineage() -> Result<Lineage> {
    let first = Term {
        number: 1,
        id: TermId(Uuid::from_u128(2)),
        opener: "primary".to_owned(),
        parent: None,
    };
    Ok(Lineage::try_from(vec![first])?)
}

fn disks() -> Vec<DiskExtent> {
    vec![DiskExtent {
        id: DISK,
        size: Bytes(BLOCKS * BLOCK_SIZE),
        joining: false,
    }]
}

fn seed(session: u64) -> SeedId {
    SeedId(Uuid::from_u128(3 + u128::from(session)))
}

fn vm() -> VmId {
    VmId(Uuid::from_u128(4))
}

/// Blocks that point `number` changes, each once; point 0 is the initial replication.
fn changed(session: u64, number: u64) -> Vec<u64> {
    if number == 0 {
        return (0..BLOCKS).collect();
    }
    let mut rng = Rng::new(session << 32 | number);
    let few = rng.below(2) == 0;
    let count = 1 + rng.below(if few { 8 } else { LONGEST });
    let mut blocks: Vec<u64> = (0..count).map(|_| rng.below(BLOCKS)).collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// What point `number` leaves in `block`: nothing makes it smaller.
fn content(session: u64, number: u64, block: u64) -> Vec<u8> {
    Rng::new(session << 40 ^ number << 20 ^ block).bytes(BLOCK)
}

/// Writes what is sent for point `number` to `file`.
fn segment(session: u64, number: u64, file: File) -> Result<Root> {
    let lineage = lineage()?;
    let term = lineage.current().id;
    let held = match number {
        0 => Content::Seed {
            seed: seed(session),
            part: 0,
        },
        _ => Content::Delta {
            sequence: number,
            since: match number {
                1 => Since::Seed {
                    seed: seed(session),
                    parts: 1,
                },
                _ => Since::Point(PointId {
                    term,
                    sequence: number - 1,
                }),
            },
        },
    };
    let header = Header {
        vm: vm(),
        disks: disks(),
        lineage,
        content: held,
        time: Timestamp::from_second(i64::try_from(number)?)?,
        consistency: Consistency::Crash,
    };
    let mut writer = SegmentWriter::create(file, &header)?;
    for block in changed(session, number) {
        writer.push_frame(0, block, &content(session, number, block))?;
    }
    let (summary, _file) = writer.finish()?;
    Ok(summary.root)
}

/// Takes in points until `acknowledged`, which is told of each, does not go on.
///
/// # Errors
/// The journal refuses one.
pub fn take_in(
    folder: &Path,
    session: u64,
    acknowledged: impl Fn(u64) -> ControlFlow<()>,
) -> Result<()> {
    let mut journal = Journal::create(folder, vm(), &disks(), seed(session))?;
    for number in 0.. {
        let name = format!("{number}.segment");
        let incoming = folder.join(Journal::INCOMING);
        std::fs::create_dir_all(&incoming)?;
        let root = segment(session, number, File::create(incoming.join(&name))?)?;
        journal.commit(&name, root)?;
        if acknowledged(number).is_break() {
            break;
        }
        while number % MERGED == 0 && journal.count() > KEPT {
            let held = journal.merge_oldest(Timestamp::UNIX_EPOCH)?;
            ensure!(held.is_none(), "the oldest point is held: {held:?}");
        }
    }
    Ok(())
}

/// Judges what a session left that acknowledged points up to `acknowledged`; how many points there are.
///
/// # Errors
/// What is wrong.
pub fn judge(folder: &Path, session: u64, acknowledged: u64) -> Result<usize> {
    let journal = Journal::open(folder)?;
    let newest = match journal.tip() {
        Tip::Point { point, .. } => point.sequence,
        Tip::Seeding { next_part: 1, .. } => 0,
        Tip::Seeding { .. } => bail!("the initial replication is lost"),
    };
    // The next one may have been durable before that was said.
    ensure!(
        (acknowledged..=acknowledged + 1).contains(&newest),
        "the newest point is {newest}"
    );
    let points = journal.points();
    let least = usize::try_from(newest)?.min(KEPT);
    ensure!(points.len() >= least, "{} points", points.len());
    let mut expected: Vec<Vec<u8>> = (0..BLOCKS).map(|at| content(session, 0, at)).collect();
    for number in 1..=newest {
        for block in changed(session, number) {
            expected[usize::try_from(block)?] = content(session, number, block);
        }
        let Some(point) = points.iter().find(|point| point.id.sequence == number) else {
            let later = points
                .first()
                .is_none_or(|first| first.id.sequence > number);
            ensure!(later, "point {number} is lost");
            continue;
        };
        let image = journal.open_point(point.id)?.image(DISK)?;
        let mut found = vec![0; BLOCK];
        for (block, right) in (0..).zip(&expected) {
            image
                .read_at(block * BLOCK_SIZE, &mut found)
                .with_context(|| format!("point {number}"))?;
            ensure!(found == *right, "point {number} differs in block {block}");
        }
    }
    Ok(points.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_judge_takes_what_was_acknowledged_and_nothing_less_or_else() {
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path().join("journal");
        let last = |number| match number {
            11 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        take_in(&folder, 7, last).expect("taken in");
        let held = judge(&folder, 7, 11).expect("all of it");
        assert_eq!(held, KEPT + 2);
        judge(&folder, 7, 10).expect("the next one");
        assert!(judge(&folder, 7, 12).is_err(), "one is lost");
        assert!(judge(&folder, 7, 9).is_err(), "two ahead");
        assert!(judge(&folder, 8, 11).is_err(), "another content");
    }
}
