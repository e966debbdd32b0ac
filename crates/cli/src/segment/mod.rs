//! What a segment file holds, read without a polluxd: in an outbox, in a journal, or wherever a copy
//! lies. Nothing in it is believed (docs/formats/segment.md says what is checked).
//!
//! ```text
//!   FILE --open--> SegmentReader --> info     what it says of itself
//!    structure and root are right    verify   every frame against its hash, and what it is part of
//!                                    cat      content of a range: pieces, one after the other
//! ```

mod cat;
mod info;
mod pieces;
mod verify;

use std::fs;
use std::io;
use std::path::Path;

use journal::{DiskExtent, Run, SegmentError, SegmentReader};
use model::{BLOCK_SIZE, Bytes, Code, Problem};
use serde::Serialize;

pub(crate) use cat::{copy, list};
pub(crate) use info::SegmentInfo;
pub(crate) use verify::verify;

const WHOLE: &str =
    "Take a whole segment; `pollux segment verify` says of any file whether it is one";

/// Opens a segment and checks all of it but the content of its frames.
pub(crate) fn open(path: &Path) -> Result<SegmentReader, Problem> {
    let thing = thing(path);
    let unreadable = |error: &io::Error| {
        let (code, way_out) = match error.kind() {
            io::ErrorKind::NotFound => (
                Code::NotFound,
                "A segment is removed from its outbox once the twin has it",
            ),
            io::ErrorKind::PermissionDenied => (
                Code::Forbidden,
                "Files of VMs belong to their own users; read them as root",
            ),
            _ => (Code::Failed, ""),
        };
        Problem::new(code, &thing, format!("cannot be read: {error}"), way_out)
    };
    let meta = fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !meta.is_file() {
        let what = if meta.is_dir() { "a folder" } else { "no file" };
        let reason = format!("is {what}, so it is no segment");
        return Err(Problem::new(Code::Invalid, thing, reason, "Name a file"));
    }
    match SegmentReader::open(path) {
        Err(SegmentError::Io {
            action: "open",
            source,
            ..
        }) => Err(unreadable(&source)),
        opened => opened.map_err(|error| wrong(path, &error)),
    }
}

/// For messages.
fn thing(path: &Path) -> String {
    format!("file {}", path.display())
}

/// What is wrong with a segment.
fn wrong(path: &Path, error: &SegmentError) -> Problem {
    let problem = Problem::failed(thing(path), error);
    match error {
        SegmentError::Foreign(_) | SegmentError::Version(_) => Problem {
            code: Code::Invalid,
            way_out: WHOLE.to_owned(),
            ..problem
        },
        SegmentError::Io { .. } => problem,
        _ => Problem {
            way_out: "Do not use it: take another copy of the segment".to_owned(),
            ..problem
        },
    }
}

/// Bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Range {
    /// The first.
    pub(crate) at: Bytes,
    /// How many.
    pub(crate) length: Bytes,
}

impl Range {
    pub(crate) fn new(from: u64, to: u64) -> Self {
        Self {
            at: Bytes(from),
            length: Bytes(to - from),
        }
    }

    /// What a run names.
    fn of(run: &Run) -> Self {
        let first = run.block * BLOCK_SIZE;
        Self::new(first, first + u64::from(run.count) * BLOCK_SIZE)
    }

    pub(crate) fn end(self) -> u64 {
        self.at.0 + self.length.0
    }

    /// Whether `next` begins where this ends; then this becomes both.
    pub(crate) fn join(&mut self, next: Self) -> bool {
        let joins = next.at.0 == self.end();
        if joins {
            self.length.0 += next.length.0;
        }
        joins
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", exact(self.length), exact(self.at))
    }
}

/// With the largest unit that divides it: what was rounded could not be asked for.
pub(crate) fn exact(bytes: Bytes) -> String {
    String::from(bytes)
}

/// The position of the disk that a person means: a number, or the beginning of an id. None was
/// named: the only one.
fn find_disk(path: &Path, disks: &[DiskExtent], wanted: Option<&str>) -> Result<usize, Problem> {
    let refuse = |reason: String| {
        let way_out = "`pollux segment info` lists its disks; name one with --disk by its number or \
                       the first digits of its id";
        Err(Problem::new(Code::Invalid, thing(path), reason, way_out))
    };
    let Some(wanted) = wanted else {
        return match disks {
            [_] => Ok(0),
            _ => refuse(format!("holds blocks of {} disks", disks.len())),
        };
    };
    if let Some(number) = wanted.parse().ok().filter(|number| *number < disks.len()) {
        return Ok(number);
    }
    let begins = |disk: &&DiskExtent| {
        let (id, wanted) = (disk.id.to_string(), wanted.to_ascii_lowercase());
        wanted.len() >= 4 && (id.starts_with(&wanted) || id.replace('-', "").starts_with(&wanted))
    };
    let mut matching = (0..).zip(disks).filter(|(_, disk)| begins(disk));
    match (matching.next(), matching.next()) {
        (Some((number, _)), None) => Ok(number),
        (Some(_), Some(_)) => refuse(format!(
            "has more than one disk whose id begins with `{wanted}`"
        )),
        (None, _) => refuse(format!("has no disk `{wanted}`")),
    }
}

#[cfg(test)]
mod tests;
