//! Folders that are gone when this program is, interrupted or not.
#![allow(unsafe_code, reason = "signals are waited for")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

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

/// Removes all folders and exits on SIGINT and SIGTERM. To be called before any thread is started.
pub(crate) fn remove_when_interrupted() -> Result<()> {
    // SAFETY: a zeroed set is a valid place for `sigemptyset`; the calls only touch the set.
    let signals = unsafe {
        let mut signals = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGINT);
        libc::sigaddset(&raw mut signals, libc::SIGTERM);
        // Children get an empty mask from the standard library.
        if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) != 0 {
            bail!("cannot block signals");
        }
        signals
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to locals of this thread.
        let failed = unsafe { libc::sigwait(&raw const signals, &raw mut signal) };
        if failed == 0 {
            for folder in folders().iter() {
                // What cannot be removed cannot be helped any more.
                let _ = fs::remove_dir_all(folder);
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
