//! What is left of hosts when the program that runs them is told to end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::host::kill_all_that_name;

/// Folders of sockets that exist now: every process of a host names its own.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn folders() -> MutexGuard<'static, Vec<PathBuf>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn remember(folder: &Path) {
    folders().push(folder.to_owned());
}

pub(crate) fn forget(folder: &Path) {
    folders().retain(|one| one != folder);
}

/// When SIGINT or SIGTERM asks this program to end: kills every process of its hosts, removes their
/// sockets, does `more`, and ends with exit code 130.
///
/// # Errors
/// Signals cannot be waited for.
pub fn clean_up_on_signals(more: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        eprintln!("\ninterrupted: cleaning up");
        for folder in folders().iter() {
            if let Err(error) = kill_all_that_name(folder) {
                eprintln!("{error:#}");
            }
            // What is left of it is a few sockets.
            let _ = fs::remove_dir_all(folder);
        }
        more();
        std::process::exit(130);
    });
    Ok(())
}
