//! A segment that is on its way in: two files named by its root.
//!
//! ```text
//!   incoming/<root>.offer      what it consists of
//!            <root>.segment    its chunks, each at its place
//! ```
//!
//! No record is kept of which chunks have come: a chunk is there if the bytes at its place have
//! the offered hash. So nothing is synced here, the journal does it with the commit, and what a crash or a
//! power cut left is found by reading it again: an offer that was torn is not the one that comes again. What is not offered again is removed by the next offer: a primary has one staged segment at a time.
//!
//! Everything here blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use journal::{Content, SegmentReader};
use model::{Code, Problem};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::host::full;
use crate::wire::{CHUNK, Digest, MAX_OFFER_BODY, Offer};

/// Parts that are written in one call: `IOV_MAX`.
const AT_ONCE: usize = 1024;

/// A segment that is on its way in.
#[derive(Debug)]
pub(crate) struct Incoming {
    folder: PathBuf,
    path: PathBuf,
    offer: Offer,
    file: File,
    present: Mutex<Present>,
    /// How what has come is [taken in](Self::ahead) before the rest.
    ahead: tokio::sync::Mutex<Ahead>,
    /// That there is room for what it holds, also after a restart: what is in the base then would count
    /// twice.
    admitted: PathBuf,
    /// Nobody receives it any more.
    over: AtomicBool,
}

/// The chunks that have come.
#[derive(Debug)]
struct Present {
    chunks: Vec<bool>,
    /// All before this one have.
    first_missing: usize,
}

impl Present {
    fn of(chunks: Vec<bool>) -> Self {
        let mut present = Self {
            chunks,
            first_missing: 0,
        };
        present.skip();
        present
    }

    fn skip(&mut self) {
        while self.chunks.get(self.first_missing) == Some(&true) {
            self.first_missing += 1;
        }
    }
}

/// How a part of an initial replication is taken in while it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// Its tables have not come.
    NotYet,
    /// There is room for what it holds.
    Admitted,
    /// There is, and no more of it before the commit, which tells what went wrong.
    Stopped,
    /// As a whole only.
    Never,
}

fn failed(error: &io::Error) -> Problem {
    let thing = "the segment that is being received";
    if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
        return full(thing, error);
    }
    Problem::failed(thing, error)
}

impl Incoming {
    /// Goes on receiving what `offer` names, or begins to; `incoming` holds nothing else after.
    pub(crate) fn open(incoming: &Path, offer: Offer) -> Result<Self, Problem> {
        if !incoming.is_dir() {
            durable::create_folder(incoming).map_err(|e| failed(&e))?;
        }
        let path = incoming.join(format!("{}.segment", offer.root));
        let record = incoming.join(format!("{}.offer", offer.root));
        let known = stored(&record).map_err(|e| failed(&e))?;
        let goes_on = known.is_some_and(|known| known == offer);
        let admitted = incoming.join(format!("{}.admitted", offer.root));
        let keep = [path.as_path(), record.as_path(), admitted.as_path()];
        clear(incoming, if goes_on { &keep } else { &[] }).map_err(|e| failed(&e))?;
        if !goes_on {
            let text = serde_json::to_vec(&offer).map_err(|e| failed(&e.into()))?;
            fs::write(&record, &text).map_err(|e| failed(&e))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failed(&e))?;
        if let Err(error) = allocate(&file, offer.file_len) {
            // Nothing of it may take the place that others need.
            let _ = clear(incoming, &[]);
            return Err(failed(&error));
        }
        let ahead = match offer.header.content {
            Content::Seed { .. } if goes_on && admitted.exists() => Ahead::Admitted,
            Content::Seed { .. } => Ahead::NotYet,
            Content::Delta { .. } => Ahead::Never,
        };
        let present = if goes_on {
            find_present(&file, &offer).map_err(|error| {
                // It would fail again with every offer: the next one begins anew.
                let _ = clear(incoming, &[]);
                failed(&error)
            })?
        } else {
            vec![false; offer.chunks.len()]
        };
        Ok(Self {
            folder: incoming.to_owned(),
            path,
            offer,
            file,
            present: Mutex::new(Present::of(present)),
            ahead: tokio::sync::Mutex::new(ahead),
            admitted,
            over: AtomicBool::new(false),
        })
    }

    pub(crate) fn offer(&self) -> &Offer {
        &self.offer
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Numbers of the chunks that have not come.
    pub(crate) fn missing(&self) -> Vec<u64> {
        (0..)
            .zip(&self.present().chunks)
            .filter(|(_, there)| !**there)
            .map(|(n, _)| n)
            .collect()
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes of the beginning have come.
    pub(crate) fn come(&self) -> u64 {
        let chunks = self.present().first_missing as u64;
        chunks.saturating_mul(CHUNK).min(self.offer.file_len)
    }

    /// Whether the header has come, and the chunks that are sent [first](Offer::TABLES).
    pub(crate) fn has_tables(&self) -> bool {
        let present = self.present();
        let end = present.chunks.iter().rev().take(Offer::TABLES);
        present.first_missing > 0 && end.copied().all(|there| there)
    }

    /// The turn to take in what has come; none while another one does.
    pub(crate) fn ahead(&self) -> Option<tokio::sync::MutexGuard<'_, Ahead>> {
        self.ahead.try_lock().ok()
    }

    /// What it holds was found to have room.
    pub(crate) fn note_admitted(&self) -> io::Result<()> {
        fs::write(&self.admitted, [])
    }

    /// Whether what it holds was found to have room already; waits for whoever takes it in.
    pub(crate) async fn is_admitted(&self) -> bool {
        matches!(*self.ahead.lock().await, Ahead::Admitted | Ahead::Stopped)
    }

    /// Nobody receives it any more: nothing of it is taken in from the next time on that the lock of
    /// the journal is taken.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Whether it [ended](Self::end); asked under the lock of the journal.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Stores a chunk that came in `parts`, if it is the offered one.
    pub(crate) fn store(&self, n: u64, parts: &[Bytes]) -> Result<(), Problem> {
        let wrong = |reason: &str| {
            let thing = format!("chunk {n} of segment {}", self.offer.root);
            Problem::new(Code::Invalid, thing, reason, "")
        };
        let index = usize::try_from(n).unwrap_or(usize::MAX);
        let digest = self
            .offer
            .chunks
            .get(index)
            .ok_or_else(|| wrong("was not offered"))?;
        let len: usize = parts.iter().map(Bytes::len).sum();
        if len as u64 != Offer::chunk_len(self.offer.file_len, n) {
            return Err(wrong("has another length than was offered"));
        }
        if Digest::of_parts(parts) != *digest {
            return Err(wrong("has another content than was offered"));
        }
        write_at(&self.file, n.saturating_mul(CHUNK), parts).map_err(|e| failed(&e))?;
        let mut present = self.present();
        present.chunks[index] = true;
        present.skip();
        Ok(())
    }

    /// Bytes of its content that are not zeroes; none if it is no segment, or not as far as it has come.
    pub(crate) fn content(&self) -> Option<u64> {
        let reader = SegmentReader::open(&self.path).ok()?;
        let summary = reader.summary();
        Some(summary.content.0.saturating_sub(summary.zeroes.0))
    }

    /// Forgets it; the file may have been moved away before.
    pub(crate) fn remove(&self) -> Result<(), Problem> {
        clear(&self.folder, &[]).map_err(|e| failed(&e))
    }
}

/// Writes `parts` one after the other from byte `at` on.
fn write_at(file: &File, mut at: u64, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        let most = left.len().min(AT_ONCE);
        match rustix::io::pwritev(file, &left[..most], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Removes everything in `incoming` but `keep`.
fn clear(incoming: &Path, keep: &[&Path]) -> io::Result<()> {
    for entry in fs::read_dir(incoming)? {
        let path = entry?.path();
        if keep.contains(&path.as_path()) {
            continue;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// The offer in the file `record`; none if there is none that can be read.
fn stored(record: &Path) -> io::Result<Option<Offer>> {
    match fs::metadata(record) {
        Ok(meta) if meta.len() <= MAX_OFFER_BODY as u64 * 2 => {
            Ok(serde_json::from_slice(&fs::read(record)?).ok())
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the space now, so that a full disk refuses an offer and not its last chunk.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len > 0 {
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => {}
            // Not every file system can; then a chunk that does not fit is refused.
            Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    file.set_len(len)
}

fn find_present(file: &File, offer: &Offer) -> io::Result<Vec<bool>> {
    let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(usize::MAX)];
    (0..)
        .zip(&offer.chunks)
        .map(|(n, digest)| {
            let len = usize::try_from(Offer::chunk_len(offer.file_len, n)).unwrap_or(0);
            file.read_exact_at(&mut buffer[..len], n * CHUNK)?;
            Ok(Digest::of(&buffer[..len]) == *digest)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_written_one_after_the_other_however_many_and_however_long() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("sized");
        let mut expected = vec![0; 1 << 20];
        for (at, count, len) in [(7, 1, 70_000), (100_000, 5000, 1), (200_000, 3000, 100)] {
            let part = |n: usize| Bytes::from(vec![u8::try_from(n % 251).expect("small"); len]);
            let mut parts: Vec<_> = (0..count).map(part).collect();
            // Empty ones are no end.
            parts.insert(0, Bytes::new());
            parts.insert(count / 2 + 1, Bytes::new());
            parts.push(Bytes::new());
            write_at(&file, at, &parts).expect("written");
            let at = usize::try_from(at).expect("small");
            expected[at..at + count * len].copy_from_slice(&parts.concat());
        }
        let mut read = vec![1; 1 << 20];
        file.read_exact_at(&mut read, 0).expect("read");
        assert!(read == expected);
        write_at(&file, 0, &[]).expect("nothing");
    }
}
