//! Folders that are gone when this program is, interrupted or not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

/// Those that exist now.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn folders() -> MutexGuard<'static, Vec<PathBuf>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new folder, removed with everything in it when dropped.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new folder in `parent`.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        // Held while it is made, so that an interruption finds it.
        let mut folders = folders();
        let folder = tempfile::Builder::new()
            .prefix("pollux-bench-")
            .tempdir_in(parent)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        folders.push(folder.path().to_owned());
        Ok(Self(folder))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        folders().retain(|folder| folder != self.0.path());
    }
}

/// Removes all folders; for a program that is about to exit.
pub(crate) fn remove_all() {
    for folder in folders().iter() {
        // What cannot be removed cannot be helped any more.
        let _ = fs::remove_dir_all(folder);
    }
}
