//! The calls that crash-safe formats are made of.
//!
//! What a power cut leaves, and so what an implementation for tests must model:
//! a file's content is durable up to its last [`File::sync`] and any part of
//! what came later may be lost; a name (made, renamed, removed) is durable
//! after the [`Folder::sync`] of the folder it is in. Syncing a file says
//! nothing of its name, and the other way round. One rename is never half done.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Advice, FallocateFlags, SeekFrom, seek};

use crate::direct;

/// A folder and what is in it. Names are relative to it, parts separated by `/`, without `..`;
/// the empty name is the folder itself.
pub trait Folder: Send + Sync + std::fmt::Debug {
    /// Makes the file `name` (mode 0600) or empties it, and opens it for reading and writing.
    ///
    /// # Errors
    /// What the operating system says.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// What the operating system says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading.
    ///
    /// # Errors
    /// What the operating system says.
    fn open_read(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Makes the folder `name` (mode 0700); it may exist.
    ///
    /// # Errors
    /// What the operating system says.
    fn create_folder(&self, name: &str) -> io::Result<()>;

    /// Renames a file, over what is there.
    ///
    /// # Errors
    /// What the operating system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes the name of a file; whoever has it open keeps its content.
    ///
    /// # Errors
    /// What the operating system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of the files (not folders) in the folder `name`, in no order.
    ///
    /// # Errors
    /// What the operating system says.
    fn list(&self, name: &str) -> io::Result<Vec<String>>;

    /// Makes every change of names in the folder `name` durable.
    ///
    /// # Errors
    /// What the operating system says.
    fn sync(&self, name: &str) -> io::Result<()>;

    /// Bytes that its file system has left for this process.
    ///
    /// # Errors
    /// What the operating system says.
    fn free(&self) -> io::Result<u64>;
}

/// An open file. All calls may be made from any thread.
pub trait File: Send + Sync + std::fmt::Debug {
    /// Fills `into` from byte `at` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()>;

    /// Stores all of `from` at byte `at`; the file grows as needed.
    ///
    /// # Errors
    /// What the operating system says.
    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()>;

    /// [`File::write_at`] of much that nobody reads soon: past the page cache where that can be, if `from` is
    /// [`Aligned`](crate::Aligned), and `at` and its length are multiples of 4 KiB. It waits for the disk
    /// then.
    ///
    /// # Errors
    /// What the operating system says.
    fn write_past_cache(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.write_at(at, from)
    }

    /// Makes `len` bytes at `at`, inside the file, read as zeroes and gives their space back
    /// where it can.
    ///
    /// # Errors
    /// What the operating system says.
    fn punch(&self, at: u64, len: u64) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// What the operating system says.
    fn size(&self) -> io::Result<u64>;

    /// Bytes that it takes in the file system; less than its length if it has holes.
    ///
    /// # Errors
    /// What the operating system says.
    fn allocated(&self) -> io::Result<u64>;

    /// Bytes of the `len` at `at` for which it takes no space, or more where that cannot be told.
    ///
    /// # Errors
    /// What the operating system says.
    fn holes(&self, _at: u64, len: u64) -> io::Result<u64> {
        Ok(len)
    }

    /// Cuts the file or grows it with zeroes.
    ///
    /// # Errors
    /// What the operating system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Begins to write out what was stored and is not durable yet, so that [`File::sync`] has less to wait
    /// for. Says nothing of when it is.
    fn begin_sync(&self) {}

    /// Makes content and length durable.
    ///
    /// # Errors
    /// What the operating system says. What was written before may be lost then, and calling
    /// again proves nothing.
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the operating system.
#[derive(Debug, Clone)]
pub struct OsFolder {
    path: PathBuf,
}

impl OsFolder {
    /// The existing folder at `path`.
    ///
    /// # Errors
    /// `NotADirectory`, or what the operating system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path)?.is_dir() {
            Ok(Self {
                path: path.to_owned(),
            })
        } else {
            Err(io::ErrorKind::NotADirectory.into())
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str, options: &OpenOptions) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OsFile::from(options.open(self.path.join(name))?)))
    }
}

impl Folder for OsFolder {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        self.file(name, options.mode(0o600))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.file(name, OpenOptions::new().read(true).write(true))
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.file(name, OpenOptions::new().read(true))
    }

    fn create_folder(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn list(&self, name: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path.join(name))? {
            let entry = entry?;
            // A name that is not UTF-8 is none of ours.
            if let (false, Ok(name)) =
                (entry.file_type()?.is_dir(), entry.file_name().into_string())
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        fs::File::open(self.path.join(name))?.sync_all()
    }

    fn free(&self) -> io::Result<u64> {
        let space = rustix::fs::statvfs(&self.path)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }
}

/// A file of the operating system.
#[derive(Debug)]
pub struct OsFile {
    file: fs::File,
    /// The same one, opened when it is first needed.
    past_cache: OnceLock<Option<fs::File>>,
}

impl From<fs::File> for OsFile {
    fn from(file: fs::File) -> Self {
        Self {
            file,
            past_cache: OnceLock::new(),
        }
    }
}

impl OsFile {
    fn past_cache(&self) -> Option<&fs::File> {
        let opened = self.past_cache.get_or_init(|| direct::reopened(&self.file));
        opened.as_ref()
    }
}

impl File for OsFile {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, at)
    }

    fn write_past_cache(&self, at: u64, from: &[u8]) -> io::Result<()> {
        match self.past_cache() {
            Some(file) if direct::write(file, at, from)? => Ok(()),
            _ => self.write_at(at, from),
        }
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, at, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeroes(self, at, len),
            other => Ok(other?),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        // Always of 512 bytes: inode(7).
        Ok(self.file.metadata()?.blocks() * 512)
    }

    fn holes(&self, at: u64, len: u64) -> io::Result<u64> {
        let end = at.saturating_add(len);
        let next = |from| match seek(&self.file, from) {
            Ok(at) => Ok(at.min(end)),
            // None before the end of the file.
            Err(rustix::io::Errno::NXIO) => Ok(end),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let (mut at, mut holes) = (at, 0);
        while at < end {
            let data = next(SeekFrom::Data(at))?;
            holes += data - at;
            at = match data < end {
                true => next(SeekFrom::Hole(data))?,
                false => end,
            };
        }
        Ok(holes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn begin_sync(&self) {
        // Linux writes out what is to be forgotten. It is advice: what comes of it the sync tells.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// For file systems without holes.
fn write_zeroes(file: &OsFile, at: u64, len: u64) -> io::Result<()> {
    static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut done = 0;
    while done < len {
        let part = usize::try_from(len - done).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
        file.write_at(at + done, &ZEROES[..part])?;
        done += part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Aligned;

    #[test]
    fn a_punched_range_reads_as_zeroes_and_the_length_stays() {
        let scratch = tempfile::tempdir().expect("scratch");
        let folder = OsFolder::open(scratch.path()).expect("a folder");
        let file = folder.create("file").expect("made");
        file.write_at(0, &[7; 16384]).expect("written");
        file.punch(4096, 4096).expect("punched");
        let mut read = [1; 16384];
        file.read_at(0, &mut read).expect("read");
        assert!(read[..4096].iter().all(|&byte| byte == 7));
        assert!(read[4096..8192].iter().all(|&byte| byte == 0));
        assert!(read[8192..].iter().all(|&byte| byte == 7));
        assert_eq!(file.size().expect("length"), 16384);
        // Holes are those that the file system makes: all of these are, or none.
        file.set_len(20480).expect("longer");
        let holes = |at, len| file.holes(at, len).expect("told");
        assert_eq!((holes(0, 4096), holes(16384, 4096)), (0, 4096));
        assert_eq!(holes(16384, 1 << 20), 1 << 20, "past its end");
        let punched = holes(4096, 4096);
        assert!([0, 4096].contains(&punched), "{punched}");
        assert_eq!(holes(2048, 16384), punched + 2048);
        file.set_len(16384).expect("as it was");
        let beyond = file.read_at(16000, &mut read).expect_err("beyond");
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn only_files_are_listed() {
        let scratch = tempfile::tempdir().expect("scratch");
        let folder = OsFolder::open(scratch.path()).expect("a folder");
        folder.create_folder("below").expect("made");
        folder.create_folder("below").expect("there already");
        folder.create("below/file").expect("made");
        assert_eq!(folder.list("").expect("listed"), Vec::<String>::new());
        assert_eq!(folder.list("below").expect("listed"), ["file"]);
        assert!(OsFolder::open(&scratch.path().join("below/file")).is_err());
    }

    #[test]
    fn what_is_written_past_the_cache_is_read_at_once_beside_what_was_not() {
        let scratch = tempfile::tempdir().expect("scratch");
        let folder = OsFolder::open(scratch.path()).expect("a folder");
        let file = folder.create("file").expect("made");
        file.set_len(1 << 20).expect("sized");
        let mut expected = vec![0; 1 << 20];
        let mut from = Aligned::new(256 << 10);
        // In memory from here on, dirty and clean.
        file.write_at(1000, &[9; 300_000]).expect("written");
        expected[1000..301_000].fill(9);
        let mut read = vec![1; 1 << 20];
        file.read_at(0, &mut read).expect("read");
        assert!(read == expected);
        // The last two are nowhere aligned.
        for (n, at) in [(1, 0), (2, 131_072), (3, 786_432), (4, 77), (5, 400_001)] {
            from.fill(n);
            let len = if n == 5 { 12_345 } else { from.len() };
            file.write_past_cache(at, &from[..len]).expect("written");
            let at = usize::try_from(at).expect("small");
            expected[at..at + len].fill(n);
            file.read_at(0, &mut read).expect("read");
            assert!(read == expected, "{n}");
        }
        // It is written although nobody may open it any more.
        folder.remove("file").expect("removed");
        file.write_past_cache(4096, &from).expect("written");
        file.read_at(4096, &mut read[..from.len()]).expect("read");
        assert!(read[..from.len()] == *from);
    }
}
