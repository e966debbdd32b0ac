//! Records of the index that nobody knows to be durable.
//!
//! A commit is acknowledged after one flush of all that it wrote, in no order. So after a crash the last
//! record may be there and the segment that it names not, or only in part. It stays if every byte of the
//! segment verifies. What is found in the page cache after a flush failed may verify as well and never
//! have reached the disk: it is written once more, and flushed, before it counts.

use std::io;
use std::sync::Arc;

use durable::{File, Folder, Group};

use crate::index::{self, Entry, Index, Log};
use crate::rules::{Rule, hold};
use crate::{JournalError, SegmentError, SegmentReader};

/// Bytes written at once.
const PIECE: u64 = 1 << 20;

/// Opens the index and leaves no doubt. The names in the folder are durable.
pub(crate) fn open(
    folder: &Arc<dyn Folder>,
    group: &Group,
) -> Result<(Index, Option<Log>), JournalError> {
    let mut opened = index::open(&**folder, None)?;
    if opened.doubts.is_empty() && !opened.is_torn {
        return Ok((opened.index, opened.log));
    }
    let doubts = std::mem::take(&mut opened.doubts);
    for doubt in doubts {
        let mut whole = true;
        for entry in &doubt.entries {
            whole = whole && (!hold(Rule::VerifyDoubts) || is_whole(&**folder, entry)?);
        }
        if !whole {
            tracing::info!(
                at = doubt.at,
                "a commit that a crash interrupted did not take place"
            );
            opened = index::open(&**folder, Some(doubt.at))?;
            break;
        }
    }
    // Nothing is in doubt in a file that is put there durably.
    let log = Log::replace(folder, &opened.index, group)?;
    Ok((opened.index, Some(log)))
}

/// Whether all of the segment is there; then it is durable.
fn is_whole(folder: &dyn Folder, entry: &Entry) -> Result<bool, JournalError> {
    let name = entry.file();
    let outcome = verify(folder, entry);
    match outcome {
        Ok(()) => {}
        Err(JournalError::Io { source, .. }) if is_absent(&source) => return Ok(false),
        Err(JournalError::Segment {
            source: SegmentError::Io { source, .. },
            ..
        }) if !is_absent(&source) => {
            return Err(JournalError::io("read", &name, source));
        }
        Err(JournalError::Segment { .. } | JournalError::NotOffered(_)) => return Ok(false),
        Err(error) => return Err(error),
    }
    let failed = |source| JournalError::io("write again", &name, source);
    let file = folder.open(&name).map_err(failed)?;
    write_again(&*file, entry).map_err(failed)?;
    Ok(true)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
    )
}

fn verify(folder: &dyn Folder, entry: &Entry) -> Result<(), JournalError> {
    let name = entry.file();
    let failed = |source| JournalError::segment(&name, source);
    let reader = SegmentReader::of(entry.open(folder)?).map_err(failed)?;
    if reader.summary().root != entry.stored {
        return Err(JournalError::NotOffered(name));
    }
    reader.verify_all().map_err(failed)
}

/// Writes what is there, and flushes it.
fn write_again(file: &dyn File, entry: &Entry) -> io::Result<()> {
    let (start, end) = (entry.start(), entry.start() + entry.file_len.0);
    let mut piece = Vec::new();
    let mut at = start;
    while at < end {
        let len = (end - at).min(PIECE);
        piece.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        file.read_at(at, &mut piece)?;
        file.write_at(at, &piece)?;
        at += len;
    }
    file.sync()
}
