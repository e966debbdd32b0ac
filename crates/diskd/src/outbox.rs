//! A segment file on its way into the outbox: `<file>.part`, renamed when it is whole.
//!
//! The outbox is a cache: nothing is synced, and after an unclean boot it is dropped. A part of an initial
//! replication is written over one that was sent: that costs a copy, where a new file has to be given memory
//! and space for every block.
//!
//! Blocks that come in ones and twos share frames of 16 KiB, neighbours such of 64 KiB; blocks of zeroes cost
//! an index entry. Once half of the index is used up, those between others are content like them.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use journal::segment::is_zero;
use journal::{Extent, Frame, Header, SegmentError, SegmentWriter, Summary};
use model::BLOCK_SIZE;

use crate::flow::{Payload, Piece};

/// Content of a full frame, in bytes.
const FRAME: usize = journal::segment::MAX_CONTENT;
/// Runs of an index from which on it is saved.
const SAVED: usize = journal::segment::MAX_RUNS as usize / 2;
/// Content from which on a frame takes in no more blocks but neighbours. Whoever reads one block reads,
/// checks and decompresses its whole frame; and what lies far apart on a disk has little in common
/// that would compress it better together.
const SCATTERED: usize = FRAME / 4;
/// A block, in bytes.
const BLOCK: usize = FRAME / 16;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE);

/// A part of an initial replication that was sent: the place of a later one.
const SPENT: &str = "spent";

/// Why a segment file cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// There is one already, and the next one would not say what it holds.
    #[error("the segment {} waits", .0.display())]
    Exists(PathBuf),
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The segment cannot be written.
    #[error("cannot write the segment {}", path.display())]
    Segment {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SegmentError,
    },
}

impl OutboxError {
    /// The folder of the file that could not be made.
    #[must_use]
    pub fn folder(&self) -> &Path {
        let (Self::Exists(path) | Self::Io { path, .. } | Self::Segment { path, .. }) = self;
        path.parent().unwrap_or(path)
    }

    /// Whether it is more than a segment may hold.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        let source = match self {
            Self::Segment { source, .. } => source,
            _ => return false,
        };
        matches!(source, SegmentError::Full)
    }

    /// Whether there is no space left for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let io = match self {
            Self::Io { source, .. }
            | Self::Segment {
                source: SegmentError::Io { source, .. },
                ..
            } => source,
            _ => return false,
        };
        matches!(
            io.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }
}

/// The place of a segment that is not whole yet. Removed when dropped before [`Draft::publish`].
#[derive(Debug)]
pub struct Draft {
    file: PathBuf,
    part: PathBuf,
    published: bool,
}

impl Draft {
    /// Makes room for `file`: parts that an earlier process left in its folder are removed.
    ///
    /// # Errors
    /// [`OutboxError::Exists`] if there is a whole segment in its folder. Whoever asks does not know of
    /// it then: what it holds is not marked any more, and a point on top of one that lacks it would be
    /// wrong.
    pub fn begin(file: &Path) -> Result<(Self, File), OutboxError> {
        look_alone(file)?;
        remove_parts(file)?;
        let spent = file.with_file_name(SPENT);
        remove(&spent).map_err(fail("remove", &spent))?;
        Self::open(file, false)
    }

    /// [`Draft::begin`] of a part of an initial replication that is published after the segment that is
    /// there went. What it is written over may be longer: [`Draft::cut_off`] ends it.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn begin_beside(file: &Path) -> Result<(Self, File), OutboxError> {
        remove_parts(file)?;
        let (spent, part) = (file.with_file_name(SPENT), part_of(file));
        let taken = unless_absent(fs::rename(spent, &part)).map_err(fail("make", &part))?;
        Self::open(file, taken)
    }

    /// The place of `file`, which is `taken` from another one or is made.
    fn open(file: &Path, taken: bool) -> Result<(Self, File), OutboxError> {
        let part = part_of(file);
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(!taken)
            .mode(0o600)
            .open(&part)
            .map_err(fail("make", &part))?;
        let draft = Self {
            file: file.to_owned(),
            part,
            published: false,
        };
        Ok((draft, opened))
    }

    /// It was written, and has `len` bytes.
    ///
    /// # Errors
    /// When it cannot be cut there.
    pub fn cut_off(&self, len: u64) -> Result<(), OutboxError> {
        let file = OpenOptions::new().write(true).open(&self.part);
        let cut = file.and_then(|file| file.set_len(len));
        cut.map_err(fail("cut off", &self.part))
    }

    /// [`Draft::publish`] of one that was begun beside another segment.
    ///
    /// # Errors
    /// [`OutboxError::Exists`] if that is still there, or as [`Draft::publish`]; it is removed then.
    pub fn publish_alone(self) -> Result<(), OutboxError> {
        look_alone(&self.file)?;
        self.publish()
    }

    /// The segment is whole: gives it its name.
    ///
    /// # Errors
    /// When it cannot be renamed; it is removed then.
    pub fn publish(mut self) -> Result<(), OutboxError> {
        fs::rename(&self.part, &self.file).map_err(|source| OutboxError::Io {
            action: "publish",
            path: self.file.clone(),
            source,
        })?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            if let Err(error) = fs::remove_file(&self.part) {
                tracing::warn!(part = %self.part.display(), %error, "cannot remove");
            }
        }
    }
}

/// Removes the parts of segments that somebody did not make whole beside `file`.
fn remove_parts(file: &Path) -> Result<(), OutboxError> {
    let folder = file.parent().unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder).map_err(fail("list", folder))? {
        let stale = entry.map_err(fail("list", folder))?.path();
        if stale.extension() == Some(OsStr::new("part")) {
            fs::remove_file(&stale).map_err(fail("remove", &stale))?;
        }
    }
    Ok(())
}

/// The replica has what the segment `file` holds: it goes, if it is there, or is the place of a later one.
pub(crate) fn spend(file: &Path) -> io::Result<()> {
    if file.extension() == Some(OsStr::new("seed")) {
        unless_absent(fs::rename(file, file.with_file_name(SPENT))).map(drop)
    } else {
        remove(file)
    }
}

/// Removes `file`, if it is there.
pub(crate) fn remove(file: &Path) -> io::Result<()> {
    unless_absent(fs::remove_file(file)).map(drop)
}

/// Whether there was something; an error only if that is not known.
fn unless_absent(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true),
    }
}

/// Where `file` lies until it has its name.
#[must_use]
pub fn part_of(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    file.with_file_name(name)
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutboxError {
    let path = path.to_owned();
    move |source| OutboxError::Io {
        action,
        path,
        source,
    }
}

/// Looks that there is no whole segment in the folder of `file`.
fn look_alone(file: &Path) -> Result<(), OutboxError> {
    if file.try_exists().map_err(fail("look for", file))? {
        return Err(OutboxError::Exists(file.to_owned()));
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    match other(file).map_err(fail("list", folder))? {
        Some(other) => Err(OutboxError::Exists(other)),
        None => Ok(()),
    }
}

/// Another whole segment in the folder of `file`, if there is one.
pub(crate) fn other(file: &Path) -> io::Result<Option<PathBuf>> {
    let folder = file.parent().unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder)? {
        let entry = entry?.path();
        let is_segment = file.extension() == entry.extension()
            || entry
                .extension()
                .is_some_and(|kind| kind == "seed" || kind == "delta");
        if is_segment && entry.file_name() != file.file_name() {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn failed(path: &Path) -> impl Fn(SegmentError) -> OutboxError {
    move |source| OutboxError::Segment {
        path: path.to_owned(),
        source,
    }
}

/// Turns pieces into frames.
pub struct Filler<W: Write = File> {
    path: PathBuf,
    writer: SegmentWriter<W>,
    /// Content of the frame that is being filled, and where it belongs.
    content: Vec<u8>,
    extents: Vec<Extent>,
    /// Disk, first block and number of the zero blocks seen last.
    zeroes: (u16, u64, u64),
    /// See [`SAVED`].
    saved_from: usize,
}

impl<W: Write> Filler<W> {
    /// Begins the segment of `header` in `file`, which is called `path` in errors.
    ///
    /// # Errors
    /// [`OutboxError::Segment`]
    pub fn begin(path: &Path, file: W, header: &Header) -> Result<Self, OutboxError> {
        Ok(Self {
            writer: SegmentWriter::create(file, header).map_err(failed(path))?,
            path: path.to_owned(),
            content: Vec::with_capacity(FRAME),
            extents: Vec::new(),
            zeroes: (0, 0, 0),
            saved_from: SAVED,
        })
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// [`OutboxError::Segment`]
    pub fn push(&mut self, piece: &Piece) -> Result<(), OutboxError> {
        let saves = self.writer.runs() >= self.saved_from;
        match &piece.content {
            // Few of them between others are content like them.
            Payload::Zeroes(blocks) if saves && *blocks < FRAME as u64 / BLOCK_SIZE => {
                for block in piece.block..piece.block + blocks {
                    self.add(piece.disk, block, &[0; BLOCK])?;
                }
                Ok(())
            }
            Payload::Zeroes(blocks) => self.add_zeroes(piece.disk, piece.block, *blocks),
            Payload::Read(content) => match content.as_slice() {
                Some(bytes) => self.add_read(piece, bytes, saves),
                None => self.add_read(piece, &content.to_vec(), saves),
            },
        }
    }

    fn add_read(&mut self, piece: &Piece, bytes: &[u8], saves: bool) -> Result<(), OutboxError> {
        let firsts = (piece.block..).step_by(FRAME / BLOCK);
        for (first, bytes) in firsts.zip(bytes.chunks(FRAME)) {
            self.add_blocks(piece.disk, first, bytes, saves)?;
        }
        Ok(())
    }

    fn add_blocks(
        &mut self,
        disk: u16,
        first: u64,
        bytes: &[u8],
        saves: bool,
    ) -> Result<(), OutboxError> {
        // What fills a frame is encoded where it is, unless that leaves a frame of next to nothing behind.
        let alone = self.content.is_empty() || self.content.len() >= SCATTERED;
        if alone && bytes.len() == FRAME && !bytes.chunks(BLOCK).any(is_zero) {
            if !self.content.is_empty() {
                self.frame()?;
            }
            let count = u32::try_from(FRAME / BLOCK).expect("few");
            let extent = Extent {
                disk,
                block: first,
                count,
            };
            return self.encode(bytes, &[extent]);
        }
        let split = !saves || is_zero(bytes);
        for (block, content) in (first..).zip(bytes.chunks(BLOCK)) {
            if split && is_zero(content) {
                self.add_zeroes(disk, block, 1)?;
            } else {
                self.add(disk, block, content)?;
            }
        }
        Ok(())
    }

    /// Adds blocks of zeroes to those that were seen last, or notes these.
    fn add_zeroes(&mut self, disk: u16, block: u64, blocks: u64) -> Result<(), OutboxError> {
        let (last, first, count) = self.zeroes;
        if (last, first + count) == (disk, block) {
            self.zeroes.2 += blocks;
        } else {
            self.zero_run()?;
            self.zeroes = (disk, block, blocks);
        }
        Ok(())
    }

    /// Adds a block to the frame that is being filled.
    fn add(&mut self, disk: u16, block: u64, content: &[u8]) -> Result<(), OutboxError> {
        let follows =
            |last: &&mut Extent| last.disk == disk && last.block + u64::from(last.count) == block;
        match self.extents.last_mut().filter(follows) {
            Some(last) => last.count += 1,
            None => {
                if self.content.len() >= SCATTERED {
                    self.frame()?;
                }
                self.extents.push(Extent {
                    disk,
                    block,
                    count: 1,
                });
            }
        }
        self.content.extend_from_slice(content);
        if self.content.len() == FRAME {
            self.frame()?;
        }
        Ok(())
    }

    /// Notes the zero blocks seen last: a disk of them must not cost an entry each.
    fn zero_run(&mut self) -> Result<(), OutboxError> {
        let (disk, first, count) = std::mem::take(&mut self.zeroes);
        if count == 0 {
            return Ok(());
        }
        self.writer
            .push_zero(disk, first, count)
            .map_err(failed(&self.path))
    }

    fn frame(&mut self) -> Result<(), OutboxError> {
        let (mut content, mut extents) = (
            std::mem::take(&mut self.content),
            std::mem::take(&mut self.extents),
        );
        self.encode(&content, &extents)?;
        content.clear();
        extents.clear();
        (self.content, self.extents) = (content, extents);
        Ok(())
    }

    fn encode(&mut self, content: &[u8], extents: &[Extent]) -> Result<(), OutboxError> {
        let encoded = Frame::encode(content, Frame::LEVEL);
        encoded
            .and_then(|frame| self.writer.push(&frame, extents))
            .map_err(failed(&self.path))
    }

    /// Completes the segment.
    ///
    /// # Errors
    /// [`OutboxError::Segment`]
    pub fn finish(mut self) -> Result<Summary, OutboxError> {
        if !self.content.is_empty() {
            self.frame()?;
        }
        self.zero_run()?;
        let (summary, _file) = self.writer.finish().map_err(failed(&self.path))?;
        Ok(summary)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block::Buffer;
    use journal::{Consistency, Content, DiskExtent};
    use model::{Bytes, DiskId, Lineage, SeedId, VmId};

    use super::*;
    use crate::flow::{Cause, Flow};

    /// A file on a file system with so much space left, in bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn header(blocks: u64) -> Header {
        Header {
            vm: VmId::random(),
            disks: vec![DiskExtent {
                joining: false,
                id: DiskId::random(),
                size: Bytes(blocks * BLOCK_SIZE),
            }],
            lineage: Lineage::begin("host-a"),
            content: Content::Seed {
                seed: SeedId::random(),
                part: 0,
            },
            time: jiff::Timestamp::UNIX_EPOCH,
            consistency: Consistency::Crash,
        }
    }

    fn staged(block: u64, content: &[u8]) -> Piece {
        Piece {
            disk: 0,
            block,
            content: Payload::Read(Buffer::from_slice(content)),
            cause: Cause::Staged,
            permit: Arc::new(Flow::default()).take(Cause::Staged, content.len() as u64),
        }
    }

    /// Writes a segment of 64 blocks that cannot be compressed.
    fn fill(space: usize) -> Result<Summary, OutboxError> {
        let mut filler = Filler::begin(Path::new("1.seed"), Full(space), &header(64))?;
        let mut rng = testkit::Rng::new(1);
        for block in 0..64 {
            filler.push(&staged(block, &rng.bytes(BLOCK)))?;
        }
        filler.finish()
    }

    #[test]
    fn a_part_is_written_over_one_that_was_sent_and_holds_nothing_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let names = || -> Vec<_> {
            let entries = fs::read_dir(folder.path()).expect("listed");
            let name = |entry: io::Result<fs::DirEntry>| entry.expect("listed").file_name();
            entries.map(name).collect()
        };
        let (mut rng, header) = (testkit::Rng::new(1), header(64));
        // Longer and shorter than what was there.
        for (number, blocks) in (1..).zip([40, 9, 60, 60, 1]) {
            let file = path(&format!("{number}.seed"));
            let (draft, opened) = Draft::begin_beside(&file).expect("begun");
            let content = rng.bytes(blocks * BLOCK);
            let mut filler = Filler::begin(&file, opened, &header).expect("begun");
            filler.push(&staged(0, &content)).expect("room");
            let summary = filler.finish().expect("whole");
            draft.cut_off(summary.file_len.0).expect("cut off");
            draft.publish_alone().expect("published");
            let reader = journal::SegmentReader::open(&file).expect("a segment");
            let frames = (0..reader.summary().frames).map(|n| reader.read_frame(n).expect("read"));
            assert!(frames.flatten().eq(content), "{number}");
            spend(&file).expect("spent");
            assert_eq!(names(), [SPENT]);
        }
        spend(&path("5.seed")).expect("gone already");
        // A point takes its own place, and leaves none.
        let file = path("6.delta");
        let (draft, opened) = Draft::begin(&file).expect("begun");
        assert_eq!(opened.metadata().expect("told").len(), 0);
        draft.publish().expect("published");
        assert_eq!(names(), ["6.delta"]);
        spend(&file).expect("spent");
        assert_eq!(names().len(), 0);
    }

    #[test]
    fn scattered_blocks_share_frames_of_four_and_neighbours_such_of_sixteen() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("1.seed");
        let made = File::create(&path).expect("made");
        let mut filler = Filler::begin(&path, made, &header(256)).expect("begun");
        let mut rng = testkit::Rng::new(1);
        // Ten on their own, twenty neighbours, two on their own.
        let alone = |first: u64, count: u64| (0..count).map(move |n| (first + 2 * n, 1));
        for (block, count) in alone(0, 10)
            .chain([(100, 16), (116, 4)])
            .chain(alone(200, 2))
        {
            let content = rng.bytes(usize::try_from(count).expect("few") * BLOCK);
            filler.push(&staged(block, &content)).expect("room");
        }
        filler.finish().expect("whole");
        let reader = journal::SegmentReader::open(&path).expect("a segment");
        let frames = (0..reader.summary().frames).map(|n| reader.read_frame(n).expect("read"));
        let blocks: Vec<usize> = frames.map(|frame| frame.len() / BLOCK).collect();
        // Two of the ten share theirs with the neighbours, of which six are left for the last one.
        assert_eq!(blocks, [4, 4, 16, 6, 2]);
    }

    #[test]
    fn blocks_of_zeroes_between_others_cost_no_entries_once_half_of_the_index_is_used_up() {
        let (folder, blocks) = (tempfile::tempdir().expect("a folder"), 640);
        let path = folder.path().join("1.seed");
        let made = File::create(&path).expect("made");
        let header = header(blocks);
        let mut filler = Filler::begin(&path, made, &header).expect("begun");
        filler.saved_from = 100;
        // Zeroes and noise by turns, and 16 blocks of zeroes at the end.
        let mut rng = testkit::Rng::new(1);
        let mut content = vec![0; usize::try_from(blocks * BLOCK_SIZE).expect("small")];
        for block in content.chunks_mut(2 * BLOCK).take(312) {
            block[BLOCK..].copy_from_slice(&rng.bytes(BLOCK));
        }
        for (number, piece) in (0..).zip(content.chunks(FRAME)) {
            filler.push(&staged(number * 16, piece)).expect("room");
        }
        let summary = filler.finish().expect("whole");
        assert!((100..150).contains(&summary.runs), "{}", summary.runs);
        assert_eq!(summary.content.0, blocks * BLOCK_SIZE);
        let reader = journal::SegmentReader::open(&path).expect("a segment");
        let mut read = vec![7; content.len()];
        for run in reader.runs() {
            let run = run.expect("read");
            let at = usize::try_from(run.block).expect("small") * BLOCK;
            let len = run.count as usize * BLOCK;
            let into = &mut read[at..at + len];
            match run.source {
                journal::Source::Zero => into.fill(0),
                journal::Source::Frame { frame, skip } => {
                    let frame = reader.read_frame(frame).expect("read");
                    let skip = usize::from(skip) * BLOCK;
                    into.copy_from_slice(&frame[skip..skip + len]);
                }
            }
        }
        assert!(read == content);
    }

    #[test]
    fn a_file_system_that_is_full_at_any_byte_of_a_segment_is_told_as_such() {
        let needed = usize::try_from(fill(usize::MAX).expect("room").file_len.0).expect("small");
        for space in (0..needed).step_by(997).chain([needed - 1]) {
            let error = fill(space).expect_err("no room");
            assert!(error.is_full(), "{space} of {needed}: {error:?}");
        }
        assert!(fill(needed).is_ok());
    }
}
