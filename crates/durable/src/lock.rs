//! At most one process works on a file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Why a file could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("{} is locked by {}", path.display(), holder(*pid))]
    Held {
        /// The file.
        path: PathBuf,
        /// The process that took the lock, if the kernel tells.
        pid: Option<u32>,
    },
    /// The file cannot be opened or made, or its file system has no locks.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

/// An exclusive lock (flock(2)) on a file, held until dropped or until the process ends,
/// however it ends.
///
/// It belongs to the open file, not to the name: never lock a file that is published with
/// [`crate::replace`], lock one beside it. Two locks in one process exclude each other too.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Locks the file at `path`, made empty (mode 0600) if absent, without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] if somebody has it.
    pub fn exclusive(path: &Path) -> Result<Self, LockError> {
        let fail = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        Self::of(file, path)
    }

    /// Locks the open `file`, called `path` in errors, without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] if somebody has it.
    pub fn of(file: File, path: &Path) -> Result<Self, LockError> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file }),
            Err(Errno::WOULDBLOCK) => Err(LockError::Held {
                path: path.to_owned(),
                pid: taker(&file),
            }),
            Err(errno) => Err(LockError::Io {
                path: path.to_owned(),
                source: errno.into(),
            }),
        }
    }

    /// The locked file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Who took the flock on `file`, by proc_locks(5). None when the kernel does not tell: another
/// pid namespace, or a file system whose device number differs there (btrfs).
fn taker(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let device = metadata.dev();
    let place = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device),
        metadata.ino()
    );
    fs::read_to_string("/proc/locks")
        .ok()?
        .lines()
        .find_map(|line| {
            // 1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF
            let mut words = line.split_whitespace().skip(1);
            let taken = words.next() == Some("FLOCK") && words.nth(1) == Some("WRITE");
            let pid = words.next()?.parse().ok()?;
            (taken && pid > 0 && words.next() == Some(&place)).then_some(pid)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_first_holder() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join("lock");
        let first = Lock::exclusive(&path).expect("free");
        match Lock::exclusive(&path) {
            Err(LockError::Held { pid, .. }) => {
                // Some file systems hide it; a wrong one would be worse than none.
                assert!(pid.is_none_or(|pid| pid == std::process::id()), "{pid:?}");
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        Lock::exclusive(&path).expect("free again");
    }

    #[test]
    fn locking_in_an_absent_folder_says_which_file() {
        let error = Lock::exclusive(Path::new("/absent/lock")).expect_err("absent");
        assert_eq!(error.to_string(), "cannot lock /absent/lock");
    }
}
