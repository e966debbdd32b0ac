//! A segment is written to the base files: when it is merged, or as a part of an initial replication
//! while that still comes.
//!
//! ```text
//!   the file    | frame 0 | frame 1 | ..... | not there yet ... | frame table | index |
//!   the base    <---------------------------|                      came first, verified
//! ```
//!
//! Frame by frame, each of which is verified before. May be repeated, in whole or in part, any number of
//! times: what is there of a segment that turns out to be damaged, or never comes whole, counts as little
//! as what a power cut left.

use std::fmt;
use std::sync::Arc;

use durable::{Aligned, File, Need};
use model::BLOCK_SIZE;

use crate::journal::BaseFile;
use crate::segment::{BLOCK, MAX_CONTENT, Site};
use crate::{JournalError, Root, Run, SegmentError, SegmentReader, Source};

/// Bytes written to a base in the usual way after which the operating system is asked to begin with making
/// them durable.
const BEGIN_SYNC: u64 = 32 << 20;
/// What lies together in a base is written in pieces of so many bytes.
const PIECE: usize = 2 << 20;
/// A piece goes past the page cache from this length on: less would wait for the disk longer than that saves.
const PAST_CACHE: usize = 256 << 10;
/// Bytes that are written of what has come of a part before whoever sent the last of it is answered.
pub(crate) const AT_ONCE: u64 = 16 << 20;

/// A segment on its way into the base files. After an error it is of no more use.
pub(crate) struct Laying {
    reader: SegmentReader,
    /// Of the segment, for errors.
    name: String,
    /// The bases, in the order of the header's disks.
    files: Vec<Arc<dyn File>>,
    /// Runs of the index before this one are written.
    next: u32,
    /// What of them is to be written next; nothing but while [`Laying::advance`] works.
    piece: Piece,
    shared: Shared,
    since_sync: u64,
}

/// Content that lies together in a base.
#[derive(Default)]
struct Piece {
    content: Aligned,
    /// So much of it is to be written.
    len: usize,
    /// Position of the base.
    disk: u16,
    /// Where it begins there, in bytes.
    at: u64,
}

/// The frame read last of those whose content belongs to more than one run.
#[derive(Default)]
struct Shared {
    number: Option<u32>,
    content: Vec<u8>,
}

impl fmt::Debug for Laying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Laying({} from run {})", self.name, self.next)
    }
}

impl Laying {
    /// Nothing is written yet, but that the base files are as long as the disks.
    ///
    /// # Errors
    /// A disk that has no base, or a base that cannot be made longer.
    pub(crate) fn begin(
        reader: SegmentReader,
        name: &str,
        bases: &[BaseFile],
    ) -> Result<Self, JournalError> {
        let mut files = Vec::with_capacity(reader.header().disks.len());
        for disk in &reader.header().disks {
            let (base, file) = bases
                .iter()
                .find(|(base, _)| base.id == disk.id)
                .ok_or_else(|| JournalError::Missing(name.to_owned()))?;
            if disk.size.0 > base.size.0 {
                file.set_len(disk.size.0)
                    .map_err(|source| JournalError::io("write the base from", name, source))?;
            }
            files.push(file.clone());
        }
        Ok(Self {
            reader,
            name: name.to_owned(),
            files,
            next: 0,
            piece: Piece::default(),
            shared: Shared::default(),
            since_sync: 0,
        })
    }

    /// Of the segment.
    pub(crate) fn root(&self) -> Root {
        self.reader.summary().root
    }

    /// Writes what lies in the first `come` bytes of the segment's file, up to the first frame that is not
    /// there yet, or to about `most` bytes.
    ///
    /// # Errors
    /// A damaged frame, or a failed read or write.
    pub(crate) fn advance(&mut self, come: u64, most: u64) -> Result<(), JournalError> {
        let laid = self.lay(come, most);
        // Whoever waits for more of the segment needs no memory meanwhile.
        (self.piece, self.shared) = (Piece::default(), Shared::default());
        laid
    }

    fn lay(&mut self, come: u64, most: u64) -> Result<(), JournalError> {
        self.piece.content = Aligned::new(self.longest_piece());
        let reader = self.reader.clone();
        let mut left = most;
        for run in reader.runs_from(self.next) {
            let run = run.map_err(|source| self.damaged(source))?;
            match run.source {
                Source::Zero => {
                    let (at, len) = (run.block * BLOCK_SIZE, u64::from(run.count) * BLOCK_SIZE);
                    let punched = self.file(run.disk)?.punch(at, len);
                    punched.map_err(|source| self.unwritten(source))?;
                }
                Source::Frame { frame, skip } => {
                    if !self.follows(&run) {
                        self.write()?;
                        self.piece.disk = run.disk;
                        self.piece.at = run.block * BLOCK_SIZE;
                    }
                    if !self.add(&run, frame, skip.into(), come)? {
                        break;
                    }
                    left = left.saturating_sub(u64::from(run.count) * BLOCK_SIZE);
                }
            }
            self.next += 1;
            if left == 0 {
                break;
            }
        }
        self.write()
    }

    /// Room for a piece: all of what the segment holds, if that is little, and a frame of which only a part
    /// belongs there.
    fn longest_piece(&self) -> usize {
        let summary = self.reader.summary();
        let content = summary.content.0.saturating_sub(summary.zeroes.0);
        usize::try_from(content).map_or(PIECE, |content| {
            PIECE.min(content.saturating_add(MAX_CONTENT))
        })
    }

    /// Whether the content of `run` comes after that of the piece, and has room there.
    fn follows(&self, run: &Run) -> bool {
        let (len, disk, at) = (self.piece.len, self.piece.disk, self.piece.at);
        let comes_after = disk == run.disk && at + len as u64 == run.block * BLOCK_SIZE;
        comes_after && len + MAX_CONTENT <= self.piece.content.len()
    }

    /// Adds the content of a run, from block `skip` of a frame on, to the piece. False if it has not come.
    fn add(&mut self, run: &Run, frame: u32, skip: usize, come: u64) -> Result<bool, JournalError> {
        let failed = |source| JournalError::segment(&self.name, source);
        let (from, len) = (skip * BLOCK, run.count as usize * BLOCK);
        let (piece, shared) = (&mut self.piece, &mut self.shared);
        let into = &mut piece.content[piece.len..][..MAX_CONTENT];
        if shared.number != Some(frame) {
            let read = self.reader.frame_within(frame, come, into);
            let Some(content) = read.map_err(failed)? else {
                return Ok(false);
            };
            if (skip, content) == (0, len) {
                piece.len += len;
                return Ok(true);
            }
            shared.number = Some(frame);
            shared.content.clear();
            shared.content.extend_from_slice(&into[..content]);
        }
        let content = shared.content.get(from..from + len);
        let content = content.ok_or_else(|| failed(SegmentError::Damaged(Site::Frame(frame))))?;
        into[..len].copy_from_slice(content);
        piece.len += len;
        Ok(true)
    }

    /// Writes the piece.
    fn write(&mut self) -> Result<(), JournalError> {
        let (len, at) = (std::mem::take(&mut self.piece.len), self.piece.at);
        if len == 0 {
            return Ok(());
        }
        let base = self.file(self.piece.disk)?.clone();
        let content = &self.piece.content[..len];
        if len >= PAST_CACHE {
            let written = base.write_past_cache(at, content);
            return written.map_err(|source| self.unwritten(source));
        }
        let written = base.write_at(at, content);
        written.map_err(|source| self.unwritten(source))?;
        self.since_sync += len as u64;
        if self.since_sync >= BEGIN_SYNC {
            base.begin_sync();
            self.since_sync = 0;
        }
        Ok(())
    }

    fn file(&self, disk: u16) -> Result<&Arc<dyn File>, JournalError> {
        let file = self.files.get(usize::from(disk));
        file.ok_or_else(|| JournalError::Missing(self.name.clone()))
    }

    fn damaged(&self, source: SegmentError) -> JournalError {
        JournalError::segment(&self.name, source)
    }

    fn unwritten(&self, source: std::io::Error) -> JournalError {
        JournalError::io("write the base from", &self.name, source)
    }

    /// What has to be flushed.
    pub(crate) fn needs(&self) -> Vec<Need> {
        self.files.iter().cloned().map(Need::Content).collect()
    }
}

#[cfg(test)]
mod tests {
    use durable::{Folder, OsFolder};
    use jiff::Timestamp;
    use model::{Bytes, DiskId, Lineage, SeedId, VmId};
    use testkit::Rng;

    use super::*;
    use crate::index::BaseDisk;
    use crate::packs::Memory;
    use crate::{Consistency, Content, DiskExtent, Extent, Frame, Header, SegmentWriter};

    const DISKS: [usize; 2] = [3 << 20, 5 << 20];

    /// What is expected of a segment in a base.
    struct Wanted {
        segment: SegmentReader,
        disks: Vec<Vec<u8>>,
        /// Its longest content that lies together, in bytes.
        longest: usize,
    }

    /// A segment of runs of all lengths, over what the `disks` hold, of which some share frames, in
    /// whatever order.
    fn segment(rng: &mut Rng, disks: &[Vec<u8>], ids: &[DiskId]) -> Wanted {
        let header = Header {
            vm: VmId::random(),
            disks: (ids.iter().zip(disks))
                .map(|(id, disk)| DiskExtent {
                    joining: false,
                    id: *id,
                    size: Bytes(disk.len() as u64),
                })
                .collect(),
            lineage: Lineage::begin("host-a"),
            content: Content::Seed {
                seed: SeedId::random(),
                part: 0,
            },
            time: Timestamp::UNIX_EPOCH,
            consistency: Consistency::Crash,
        };
        let mut writer = SegmentWriter::create(Vec::new(), &header).expect("begun");
        let (mut disks, mut longest) = (disks.to_vec(), 0);
        // Of a frame that is not full yet.
        let (mut content, mut extents) = (Vec::new(), Vec::new());
        for (number, disk) in (0..).zip(&mut disks) {
            let mut at = 0;
            while at < disk.len() / BLOCK {
                let most = [1, 3, 16, 100, 1000][rng.index(5)];
                let blocks = (1 + rng.index(most)).min(disk.len() / BLOCK - at);
                let part = &mut disk[at * BLOCK..][..blocks * BLOCK];
                match rng.index(4) {
                    // Left as it is.
                    0 => {}
                    1 => {
                        part.fill(0);
                        let (first, count) = (at as u64, blocks as u64);
                        writer.push_zero(number, first, count).expect("room");
                    }
                    kind => {
                        longest = longest.max(part.len());
                        let noise = rng.bytes(part.len());
                        part.copy_from_slice(&noise);
                        if kind == 2 {
                            // It can be compressed.
                            part.chunks_mut(64).for_each(|record| record[8..].fill(7));
                        }
                        for (n, block) in (at as u64..).zip(part.chunks(BLOCK)) {
                            content.extend_from_slice(block);
                            extents.push(Extent {
                                disk: number,
                                block: n,
                                count: 1,
                            });
                            if content.len() == MAX_CONTENT {
                                let frame = Frame::encode(&content, Frame::LEVEL).expect("made");
                                writer.push(&frame, &joined(&extents)).expect("room");
                                content.clear();
                                extents.clear();
                            }
                        }
                    }
                }
                at += blocks;
            }
        }
        if !content.is_empty() {
            let frame = Frame::encode(&content, Frame::LEVEL).expect("made");
            writer.push(&frame, &joined(&extents)).expect("room");
        }
        let (_, bytes) = writer.finish().expect("whole");
        Wanted {
            segment: SegmentReader::of(Arc::new(Memory(bytes))).expect("whole"),
            disks,
            longest,
        }
    }

    /// Neighbours as one.
    fn joined(blocks: &[Extent]) -> Vec<Extent> {
        let mut all: Vec<Extent> = Vec::new();
        for block in blocks {
            match all.last_mut() {
                Some(last)
                    if last.disk == block.disk
                        && last.block + u64::from(last.count) == block.block =>
                {
                    last.count += 1;
                }
                _ => all.push(*block),
            }
        }
        all
    }

    #[test]
    fn a_base_holds_what_its_segments_say_however_they_are_laid_down() {
        let scratch = tempfile::tempdir().expect("scratch");
        let folder = OsFolder::open(scratch.path()).expect("a folder");
        let ids = [DiskId::random(), DiskId::random()];
        let (mut past_cache, mut over_pieces) = (0, 0);
        for seed in testkit::seeds(12) {
            let mut rng = Rng::new(seed);
            let mut disks: Vec<Vec<u8>> = DISKS.map(|len| vec![0; len]).to_vec();
            let bases: Vec<BaseFile> = (ids.iter().zip(DISKS))
                .map(|(id, len)| {
                    let file = folder.create(&id.to_string()).expect("made");
                    file.set_len(len as u64).expect("sized");
                    let (id, size) = (*id, Bytes(len as u64));
                    let whole_from = Some(0);
                    (
                        BaseDisk {
                            id,
                            size,
                            whole_from,
                        },
                        file,
                    )
                })
                .collect();
            for _ in 0..3 {
                let wanted = segment(&mut rng, &disks, &ids);
                disks = wanted.disks;
                past_cache += u32::from(wanted.longest >= PAST_CACHE);
                over_pieces += u32::from(wanted.longest > PIECE);
                let len = wanted.segment.summary().file_len.0;
                let begun = Laying::begin(wanted.segment, "a segment", &bases);
                let mut laying = begun.expect("begun");
                let mut come = 0;
                while come < len {
                    come += rng.below(len / 2) + 1;
                    laying.advance(come, rng.below(1 << 20)).expect("laid");
                }
                laying.advance(u64::MAX, u64::MAX).expect("laid");
                for ((_, file), disk) in bases.iter().zip(&disks) {
                    let mut read = vec![1; disk.len()];
                    file.read_at(0, &mut read).expect("read");
                    assert!(read == *disk, "seed {seed}");
                }
            }
        }
        assert!(
            past_cache > 20 && over_pieces > 3,
            "{past_cache}, {over_pieces}"
        );
    }
}
