//! The note of the stack that is in force, and what its files look like.
//!
//! A file of JSON in the tracking folder, replaced as a whole and durable: `stack` as the configuration
//! has it, and `inodes`, of the files that hold content, the lowest first.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::config::StackSpec;
use crate::intent::Looks;
use crate::plan::{Base, Flat};

/// See the module.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    pub(crate) stack: StackSpec,
    pub(crate) inodes: Vec<u64>,
}

impl Note {
    /// What was in force last, if that is known, and the inodes of its files.
    pub(crate) fn read(path: &Path) -> Option<(Flat, Vec<u64>)> {
        let text = std::fs::read(path).ok()?;
        let note: Self = serde_json::from_slice(&text).ok()?;
        let flat = Flat::of(&note.stack).ok()?;
        Some((flat, note.inodes))
    }

    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec(self)?;
        // A process that comes after a killed one needs no room.
        if std::fs::read(path).is_ok_and(|noted| noted == text) {
            return Ok(());
        }
        durable::replace(path, &text)
    }
}

fn inode(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |meta| meta.ino())
}

/// Those of the files of a stack; 0 for one that cannot be looked at.
pub(crate) fn inodes(flat: &Flat) -> Vec<u64> {
    flat.files().into_iter().map(inode).collect()
}

/// What lies below everything: of a file its inode and when that was made, since file systems give the number
/// of a file that was removed to the next one. Of a point [`at_a_point`].
pub(crate) fn identity(flat: &Flat) -> Looks {
    match &flat.base {
        Base::Raw(file) => Looks::of(&[inode(file), birth(file)]),
        Base::Point { .. } => at_a_point(),
    }
}

/// Of a point: nothing that could be another one.
pub(crate) fn at_a_point() -> Looks {
    Looks::of(&[])
}

/// In nanoseconds since 1970; 0 where the file system does not know.
fn birth(file: &Path) -> u64 {
    let made = std::fs::metadata(file).and_then(|meta| meta.created());
    let since = made
        .ok()
        .and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Whether the files that the stack `last` had and `now` has are those that had `inodes`.
pub(crate) fn same_files(last: &Flat, inodes: &[u64], now: &Flat) -> bool {
    let files = last.files();
    let kept = now.files();
    files.len() == inodes.len()
        && files
            .iter()
            .zip(inodes)
            .filter(|(file, _)| kept.contains(file))
            .all(|(file, noted)| inode(file) == *noted)
}

/// What a file looks like. The number of the device is no part of it: a reboot may give the same device
/// another one.
struct Stamp {
    /// Inode, size and time of modification in nanoseconds.
    content: [u64; 3],
    /// When anything of it was changed, in nanoseconds.
    changed: u64,
    names: u64,
}

fn stamp(file: &Path) -> std::io::Result<Stamp> {
    let meta = std::fs::metadata(file)?;
    // Only compared: that a time before 1970 wraps does no harm.
    let nanoseconds = |seconds: i64, nanos: i64| {
        let sum = seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
        u64::from_ne_bytes(sum.to_ne_bytes())
    };
    let modified = nanoseconds(meta.mtime(), meta.mtime_nsec());
    Ok(Stamp {
        content: [meta.ino(), meta.size(), modified],
        changed: nanoseconds(meta.ctime(), meta.ctime_nsec()),
        names: meta.nlink(),
    })
}

/// What the files of a stack look like, to tell whether they were touched while they were closed; none
/// if one of them is gone.
pub(crate) fn looks(flat: &Flat) -> Option<Looks> {
    let said = |(file, error): (&Path, std::io::Error)| {
        tracing::warn!(file = %file.display(), %error, "cannot look at a disk");
    };
    try_looks(flat).map_err(said).ok()
}

/// As [`looks`]; the file that cannot be looked at, and why.
pub(crate) fn try_looks(flat: &Flat) -> Result<Looks, (&Path, std::io::Error)> {
    let (mut content, mut changed, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for file in flat.files() {
        let stamp = stamp(file).map_err(|error| (file, error))?;
        content.extend(stamp.content);
        changed.push(stamp.changed);
        names.push(stamp.names);
    }
    Ok(Looks::of_files(&content, &changed, &names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_got_the_inode_of_the_one_it_replaced_is_another_one() {
        let folder = tempfile::tempdir().expect("scratch");
        let file = folder.path().join("raw");
        let flat = Flat {
            base: Base::Raw(file.clone()),
            overlays: Vec::new(),
        };
        std::fs::write(&file, "what was there").expect("written");
        let (number, before) = (inode(&file), identity(&flat));
        std::fs::write(&file, "changed in its place").expect("written");
        assert_eq!(identity(&flat), before);
        // Nothing is shown where numbers are not given again, nor where births are not known.
        for _ in 0..100 {
            std::fs::remove_file(&file).expect("removed");
            std::fs::write(&file, "from a backup").expect("written");
            if inode(&file) == number && birth(&file) != 0 {
                assert_ne!(identity(&flat), before);
            }
        }
    }
}
