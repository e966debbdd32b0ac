//! A primary of whose disks everything is known, and a journal that follows it.

mod bases;
mod changes;
mod cutoff;
mod flushes;
mod full;
mod power;
mod readers;
mod receive;
mod retention;
mod runs;
mod thin;
mod verify;

use std::ops::Range;
use std::sync::Arc;

use durable::Folder;
use jiff::Timestamp;
use model::{BLOCK_SIZE, Bytes, DiskId, Keep, Lineage, PointId, SeedId, Since, VmId};
use testkit::CutFolder;

use crate::segment::SegmentWriter;
use crate::{
    Consistency, Content, DiskExtent, Header, Journal, JournalError, PointReader, Root, Tip,
};

const BLOCK: usize = 4096;
/// Locks of before are over.
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Blocks of each disk when the journal is made.
const BLOCKS: [usize; 2] = [24, 5];

/// Chance that repeats.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    pub(crate) fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).expect("below a usize")
    }
}

/// Those that were asked for, or the `usual` number of them.
fn seeds(usual: u64) -> Range<u64> {
    let told = std::env::var("POLLUX_SEED").ok();
    match told.and_then(|told| told.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => testkit::seeds(usual),
    }
}

/// The content of all disks.
type Disks = Vec<Vec<u8>>;

/// A point as it must be found.
#[derive(Clone)]
struct Known {
    id: PointId,
    root: Root,
    /// Those that it has, and their content.
    ids: Vec<DiskId>,
    disks: Disks,
    /// What was sent of disks that join.
    copied: Vec<(DiskId, Copied)>,
}

/// The blocks of a disk, as far as they were sent.
type Copied = Vec<Option<Vec<u8>>>;

#[derive(Clone)]
struct Primary {
    vm: VmId,
    ids: Vec<DiskId>,
    disks: Disks,
    lineage: Lineage,
    seed: SeedId,
    sequence: u64,
    writes: u64,
}

impl Primary {
    fn new() -> Self {
        Self {
            vm: VmId::random(),
            ids: BLOCKS.iter().map(|_| DiskId::random()).collect(),
            disks: BLOCKS
                .iter()
                .map(|blocks| vec![0; blocks * BLOCK])
                .collect(),
            lineage: Lineage::begin("host-a"),
            seed: SeedId::random(),
            sequence: 0,
            writes: 0,
        }
    }

    fn extents(&self) -> Vec<DiskExtent> {
        let sizes = self.disks.iter().map(|disk| Bytes(disk.len() as u64));
        let disks = self.ids.iter().zip(sizes);
        disks
            .map(|(id, size)| DiskExtent {
                joining: false,
                id: *id,
                size,
            })
            .collect()
    }

    fn create(&self, folder: &CutFolder) -> Result<Journal, JournalError> {
        Journal::create_in(arc(folder), None, self.vm, &self.extents(), self.seed).map(unpacked)
    }

    fn header(&self, content: Content) -> Header {
        Header {
            vm: self.vm,
            disks: self.extents(),
            lineage: self.lineage.clone(),
            content,
            // A second from one to the next.
            time: at(self.sequence),
            consistency: Consistency::Crash,
        }
    }

    /// Some writes and discards.
    fn write(&mut self, chance: &mut Chance) {
        for _ in 0..1 + chance.below(6) {
            let disk = chance.index(self.disks.len());
            let blocks = self.disks[disk].len() / BLOCK;
            let first = chance.index(blocks);
            let count = 1 + chance.index((blocks - first).min(6));
            self.writes += 1;
            let zero = chance.below(4) == 0;
            let target = &mut self.disks[disk][first * BLOCK..(first + count) * BLOCK];
            for (number, block) in (0..).zip(target.chunks_mut(BLOCK)) {
                if zero {
                    block.fill(0);
                } else {
                    fill(block, self.writes * 100 + number);
                }
            }
        }
    }

    fn grow(&mut self, disk: usize, blocks: usize) {
        let len = self.disks[disk].len() + blocks * BLOCK;
        self.disks[disk].resize(len, 0);
    }

    /// A segment of what differs from `before`, which may be smaller.
    fn segment(&self, header: &Header, before: &[Vec<u8>]) -> (Vec<u8>, Root) {
        let mut writer = SegmentWriter::create(Vec::new(), header).expect("a good header");
        for (number, disk) in (0..).zip(&self.disks) {
            let old = &before[usize::from(number)];
            let mut blocks = (0_u64..).zip(disk.chunks(BLOCK)).peekable();
            let differs = |block: u64, content: &[u8]| {
                let at = usize::try_from(block).expect("small") * BLOCK;
                old.get(at..at + BLOCK).unwrap_or(&[0; BLOCK]) != content
            };
            while let Some((block, content)) = blocks.next() {
                if !differs(block, content) {
                    continue;
                }
                if crate::segment::is_zero(content) {
                    writer.push_zero(number, block, 1).expect("fits");
                    continue;
                }
                let mut frame = content.to_vec();
                while let Some((_, content)) = blocks.next_if(|(block, content)| {
                    frame.len() < 4 * BLOCK
                        && differs(*block, content)
                        && !crate::segment::is_zero(content)
                }) {
                    frame.extend_from_slice(content);
                }
                writer.push_frame(number, block, &frame).expect("fits");
            }
        }
        let (summary, bytes) = writer.finish().expect("no block twice");
        (bytes, summary.root)
    }

    /// The initial replication in this many parts.
    fn seeded(&self, parts: u64) -> Since {
        Since::Seed {
            seed: self.seed,
            parts,
        }
    }

    /// The next point, with everything that changed since `since` had the content `before`.
    fn cut(&mut self, since: Since, before: &[Vec<u8>]) -> (Known, Vec<u8>) {
        self.sequence += 1;
        let header = self.header(Content::Delta {
            sequence: self.sequence,
            since,
        });
        let (bytes, root) = self.segment(&header, before);
        let known = Known {
            id: header.point().expect("a delta is one"),
            root,
            ids: self.ids.clone(),
            disks: self.disks.clone(),
            copied: Vec::new(),
        };
        (known, bytes)
    }

    /// A new disk of random content, or of none.
    fn attach(&mut self, blocks: usize, chance: &mut Chance) {
        self.ids.push(DiskId::random());
        self.disks.push(vec![0; blocks * BLOCK]);
        for _ in 0..chance.below(4) {
            self.write(chance);
        }
    }

    fn detach(&mut self, disk: usize) -> (DiskId, Vec<u8>) {
        (self.ids.remove(disk), self.disks.remove(disk))
    }

    /// The next point after `tip`, with at most `slice` blocks of each disk that joins; one is whole when
    /// that is all that is left of it. If no other is, it is whole at once.
    fn cut_after(&mut self, tip: &Known, slice: usize) -> (Known, Vec<u8>) {
        self.sequence += 1;
        let mut header = self.header(Content::Delta {
            sequence: self.sequence,
            since: Since::Point(tip.id),
        });
        let none_stays = !self.ids.iter().any(|id| tip.ids.contains(id));
        let (mut whole, mut copied, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        for (number, id) in self.ids.iter().enumerate() {
            let content: Vec<_> = self.disks[number].chunks(BLOCK).collect();
            let mut sent: Copied = if let Some(at) = tip.ids.iter().position(|other| other == id) {
                let blocks = tip.disks[at].chunks(BLOCK);
                blocks.map(|block| Some(block.to_vec())).collect()
            } else {
                let joining = tip.copied.iter().find(|(other, _)| other == id);
                joining.map_or(Vec::new(), |(_, copied)| copied.clone())
            };
            let had = sent.len();
            sent.resize(content.len(), None);
            if tip.ids.contains(id) {
                // It grew with zeroes.
                sent[had..].fill(Some(vec![0; BLOCK]));
            }
            let differs = |at: &usize| sent[*at].as_deref() != Some(content[*at]);
            let left: Vec<_> = (0..content.len()).filter(differs).collect();
            let is_whole = tip.ids.contains(id) || left.len() <= slice || none_stays;
            header.disks[number].joining = !is_whole;
            let taken = if is_whole { left.len() } else { slice };
            for at in &left[..taken] {
                sent[*at] = Some(content[*at].to_vec());
            }
            blocks.push(left[..taken].to_vec());
            if is_whole {
                whole.push((*id, self.disks[number].clone()));
            } else {
                copied.push((*id, sent));
            }
        }
        let mut writer = SegmentWriter::create(Vec::new(), &header).expect("a good header");
        for (number, blocks) in (0..).zip(blocks) {
            for at in blocks {
                let content = &self.disks[usize::from(number)][at * BLOCK..(at + 1) * BLOCK];
                if crate::segment::is_zero(content) {
                    writer.push_zero(number, at as u64, 1).expect("fits");
                } else {
                    writer.push_frame(number, at as u64, content).expect("fits");
                }
            }
        }
        let (summary, bytes) = writer.finish().expect("no block twice");
        let (ids, disks) = whole.into_iter().unzip();
        let known = Known {
            id: header.point().expect("a delta is one"),
            root: summary.root,
            ids,
            disks,
            copied,
        };
        (known, bytes)
    }
}

fn keep(text: &str) -> Keep {
    text.parse().expect("a policy")
}

/// When point number `sequence` is cut.
fn at(sequence: u64) -> Timestamp {
    Timestamp::from_second(i64::try_from(sequence).expect("small")).expect("in range")
}

/// Half of the blocks compress.
fn fill(block: &mut [u8], number: u64) {
    if number % 2 == 0 {
        for (at, byte) in block.iter_mut().enumerate() {
            *byte = number.to_le_bytes()[at % 8];
        }
        block[0] = 1;
    } else {
        blake3::Hasher::new()
            .update(&number.to_le_bytes())
            .finalize_xof()
            .fill(block);
    }
}

fn arc(folder: &CutFolder) -> Arc<dyn Folder> {
    Arc::new(folder.clone())
}

/// Each segment gets a file of its own.
fn unpacked(mut journal: Journal) -> Journal {
    journal.packs.small = 0;
    journal
}

/// Small ones lie in packs, as they do outside of tests.
fn packed(journal: &mut Journal) {
    journal.packs.small = 1 << 20;
}

fn reopen(folder: &CutFolder) -> Result<Journal, JournalError> {
    Journal::open_in(arc(folder), None, Arc::default()).map(unpacked)
}

/// Puts a file where received ones are.
fn receive(folder: &CutFolder, bytes: &[u8]) -> std::io::Result<&'static str> {
    folder.create("incoming/offered")?.write_at(0, bytes)?;
    Ok("offered")
}

fn take(
    journal: &mut Journal,
    folder: &CutFolder,
    bytes: &[u8],
    root: Root,
) -> Result<Tip, JournalError> {
    let name =
        receive(folder, bytes).map_err(|source| JournalError::io("receive", "incoming", source))?;
    journal.commit(name, root)
}

/// A journal with the primary's content as its first point.
fn seeded(folder: &CutFolder, primary: &mut Primary) -> (Journal, Vec<Known>) {
    let mut journal = primary.create(folder).expect("made");
    let empty: Disks = primary
        .disks
        .iter()
        .map(|disk| vec![0; disk.len()])
        .collect();
    let header = primary.header(Content::Seed {
        seed: primary.seed,
        part: 0,
    });
    let (bytes, root) = primary.segment(&header, &empty);
    let before = primary.disks.clone();
    take(&mut journal, folder, &bytes, root).expect("the first part");
    let since = primary.seeded(1);
    let known = follow(&mut journal, folder, primary, since, &before);
    (journal, vec![known])
}

/// Commits the next point.
fn follow(
    journal: &mut Journal,
    folder: &CutFolder,
    primary: &mut Primary,
    since: Since,
    before: &[Vec<u8>],
) -> Known {
    let (known, bytes) = primary.cut(since, before);
    let tip = take(journal, folder, &bytes, known.root).expect("it fits");
    let (point, root) = (known.id, known.root);
    assert_eq!(tip, Tip::Point { point, root });
    known
}

/// Writes and commits `count` more points.
fn more(
    journal: &mut Journal,
    folder: &CutFolder,
    primary: &mut Primary,
    points: &mut Vec<Known>,
    count: usize,
) {
    let mut chance = Chance::new(points.len() as u64);
    for _ in 0..count {
        primary.write(&mut chance);
        let tip = points.last().expect("there is one").clone();
        let since = Since::Point(tip.id);
        points.push(follow(journal, folder, primary, since, &tip.disks));
    }
}

fn assert_content(reader: &Arc<PointReader>, known: &Known, context: &str) {
    let disks: Vec<_> = reader.disks().collect();
    let ids: Vec<_> = disks.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, known.ids, "{context}: disks at {}", known.id);
    for ((id, size), content) in disks.into_iter().zip(&known.disks) {
        assert_eq!(
            size.0,
            content.len() as u64,
            "{context}: size at {}",
            known.id
        );
        let mut read = vec![0xaa; content.len()];
        reader.read_at(id, 0, &mut read).expect("read");
        // All at once, and each on its own: these are looked up in another way.
        for (block, (read, content)) in read.chunks(BLOCK).zip(content.chunks(BLOCK)).enumerate() {
            let mut alone = vec![0xaa; content.len()];
            let at = (block * BLOCK) as u64;
            reader.read_at(id, at, &mut alone).expect("read");
            assert!(
                read == content && alone == content,
                "{context}: block {block} of {id} at {}",
                known.id
            );
        }
    }
}

/// Every point of the journal has the content that it had at the primary.
fn assert_points(journal: &Journal, known: &[Known], context: &str) {
    for point in journal.points() {
        let known = known
            .iter()
            .find(|known| known.id == point.id)
            .expect("a known point");
        assert_eq!(known.root, point.root, "{context}");
        let reader = journal.open_point(point.id).expect("it is listed");
        assert_content(&reader, known, context);
    }
}

/// Whether the changes between two points, if they are known, have all in which these differ. Tells
/// whether they are known.
fn knows_changes(journal: &Journal, x: &Known, y: &Known) -> Result<bool, JournalError> {
    let Some(changed) = journal.changes_between(x.id, y.id)? else {
        return Ok(false);
    };
    for changed in &changed {
        if x.id == y.id {
            // One that was given up may have lacked a disk that is whole again from an older one on.
            assert_eq!(changed.blocks(), 0);
            continue;
        }
        let of = |known: &Known| {
            let at = known.ids.iter().position(|id| *id == changed.id);
            known.disks[at.expect("both have it")].clone()
        };
        let (x, y) = (&of(x), &of(y));
        let blocks: std::collections::BTreeSet<u64> = changed.extents().flatten().collect();
        let zeroes = vec![0; BLOCK];
        for block in 0..x.len().max(y.len()) / BLOCK {
            let of = |disk: &Vec<u8>| {
                let range = block * BLOCK..(block + 1) * BLOCK;
                disk.get(range).unwrap_or(&zeroes).to_vec()
            };
            assert!(
                of(x) == of(y) || blocks.contains(&(block as u64)),
                "block {block}"
            );
        }
    }
    Ok(true)
}

fn ids(journal: &Journal) -> Vec<PointId> {
    journal.points().iter().map(|point| point.id).collect()
}

fn block_count(blocks: usize) -> u64 {
    blocks as u64 * BLOCK_SIZE
}
