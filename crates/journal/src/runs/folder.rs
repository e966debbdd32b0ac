//! The run files of a journal.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use durable::{File, Folder};

use super::{RunError, RunFile};
use crate::JournalError;
use crate::index::RUNS;

/// How the name of a run file ends.
const SUFFIX: &str = ".run";
/// How the names of files that are being written begin. Each has its own: a journal that is opened again
/// may be tidied while what its predecessor began goes on.
const UNFINISHED: &str = ".new";
/// How often the folder is listed again because a file went meanwhile.
const ATTEMPTS: u32 = 16;

/// The names of the run files, sorted; none if there is no such folder.
pub(crate) fn list(folder: &dyn Folder) -> Result<Vec<String>, JournalError> {
    let names = match folder.list(RUNS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| JournalError::io("list", RUNS, source))?,
    };
    let is_run = |name: &String| name.ends_with(SUFFIX) && !name.starts_with('.');
    let mut names: Vec<String> = names
        .into_iter()
        .filter(is_run)
        .map(|name| format!("{RUNS}/{name}"))
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Name of the run file whose footer has this hash.
fn name_of(hash: &blake3::Hash) -> String {
    format!("{RUNS}/{}{SUFFIX}", hash.to_hex())
}

/// Opens all run files but the `unwanted` ones, with their names; those with most segments first.
/// Damaged ones are left out: what they say is found in the segments too.
///
/// # Errors
/// A failed read.
pub(crate) fn open_all(
    folder: &dyn Folder,
    unwanted: &[String],
) -> Result<Vec<(String, RunFile)>, JournalError> {
    let mut attempt = 0;
    'again: loop {
        attempt += 1;
        let mut files = Vec::new();
        for name in list(folder)? {
            if unwanted.contains(&name) {
                continue;
            }
            let file = match folder.open_read(&name) {
                // Joined with others since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {
                    continue 'again;
                }
                other => other.map_err(|source| JournalError::io("open", &name, source))?,
            };
            match RunFile::open(file) {
                Ok(file) if name == name_of(&file.hash()) => files.push((name, file)),
                Ok(_) => tracing::warn!(file = name, "a run file of another name is not used"),
                Err(error) if error.is_damage() => {
                    tracing::warn!(file = name, %error, "a run file is not used");
                }
                Err(source) => return Err(JournalError::run(&name, source)),
            }
        }
        files.sort_by_key(|(_, file)| std::cmp::Reverse(file.segments()));
        return Ok(files);
    }
}

/// Makes a run file with what `fill` writes, durably. Gives its name, which follows from its
/// content.
///
/// # Errors
/// What `fill` says; a failed write.
pub(crate) fn publish(
    folder: &dyn Folder,
    fill: impl FnOnce(Appended) -> Result<(blake3::Hash, Appended), RunError>,
) -> Result<String, JournalError> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let new = format!("{RUNS}/{UNFINISHED}-{number}");
    let failed = |source| JournalError::io("write", &new, source);
    if folder.list(RUNS).is_err() {
        folder
            .create_folder(RUNS)
            .and_then(|()| folder.sync(""))
            .map_err(|source| JournalError::io("create", RUNS, source))?;
    }
    let file = folder.create(&new).map_err(failed)?;
    let appended = Appended {
        file: file.clone(),
        at: 0,
    };
    let filled = fill(appended).map_err(|source| JournalError::run(&new, source));
    let published = filled.and_then(|(hash, _)| {
        let name = name_of(&hash);
        file.sync()
            .and_then(|()| folder.rename(&new, &name))
            .and_then(|()| folder.sync(RUNS))
            .map_err(failed)?;
        Ok(name)
    });
    if published.is_err() {
        // If it cannot be removed, opening the journal removes it.
        let _ = folder.remove(&new);
    }
    published
}

/// Removes what an interrupted process has left half written.
pub(crate) fn remove_unfinished(folder: &dyn Folder) {
    for name in folder.list(RUNS).unwrap_or_default() {
        if name.starts_with(UNFINISHED) {
            // Only its space is lost.
            let _ = folder.remove(&format!("{RUNS}/{name}"));
        }
    }
}

/// A file that is written from front to back.
pub(crate) struct Appended {
    file: Arc<dyn File>,
    at: u64,
}

impl Write for Appended {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
