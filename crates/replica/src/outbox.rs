//! Segment files of the outbox, as [`Source`](crate::source::Source) implementations offer them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use journal::{SegmentError, SegmentReader};
use model::{Code, Problem};
use rustix::io::Errno;

use crate::sender::WINDOW;
use crate::source::Staged;
use crate::wire::{CHUNK, Digest, MAX_CHUNKS, Offer};

fn failed(path: &Path, error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::failed(format!("the staged segment {}", path.display()), error)
}

/// The staged segment in `file`, by what its header says. Blocking.
///
/// # Errors
/// [`Code::Invalid`] when it is not a whole segment, and so nobody can tell which blocks it
/// holds; another [`Problem`] when it cannot be read now.
pub fn read(file: &Path) -> Result<Staged, Problem> {
    let reader = SegmentReader::open(file).map_err(|error| {
        let damaged = match &error {
            SegmentError::Io { source, .. } => {
                source.kind() == io::ErrorKind::UnexpectedEof
                    || source.raw_os_error() == Some(Errno::IO.raw_os_error())
            }
            _ => true,
        };
        let problem = failed(file, &error);
        let code = if damaged { Code::Invalid } else { problem.code };
        Problem { code, ..problem }
    })?;
    Ok(Staged {
        file: file.to_owned(),
        header: reader.header().clone(),
        root: reader.summary().root,
    })
}

/// What the segment in `file` consists of: reads all of it.
///
/// # Errors
/// [`Problem`] when it cannot be read, or is longer than a segment may be.
pub async fn offer(file: &Path) -> Result<Offer, Problem> {
    blocking(file.to_owned(), offer_now).await
}

fn offer_now(path: &Path) -> Result<Offer, Problem> {
    let reader = SegmentReader::open(path).map_err(|e| failed(path, &e))?;
    let mut file = File::open(path).map_err(|e| failed(path, &e))?;
    let file_len = file.metadata().map_err(|e| failed(path, &e))?.len();
    let count = Offer::chunk_count(file_len);
    if count > MAX_CHUNKS {
        let reason = format!("has {file_len} bytes, more than a segment may have");
        return Err(Problem::new(
            Code::Invalid,
            "the staged segment",
            reason,
            "",
        ));
    }
    let mut chunks = Vec::new();
    let Buffer(buffer) = &mut Buffer::take();
    for n in 0..count {
        let len = usize::try_from(Offer::chunk_len(file_len, n)).unwrap_or(buffer.len());
        file.read_exact(&mut buffer[..len])
            .map_err(|e| failed(path, &e))?;
        chunks.push(Digest::of(&buffer[..len]));
    }
    Ok(Offer {
        round: 0,
        header: reader.header().clone(),
        root: reader.summary().root,
        file_len,
        chunks,
    })
}

/// Chunk `n` of a staged segment.
///
/// # Errors
/// [`Problem`] when it cannot be read.
pub async fn chunk(staged: &Staged, n: u64) -> Result<Bytes, Problem> {
    let file = staged.file.clone();
    blocking(file, move |path| {
        chunk_now(path, n).map_err(|e| failed(path, &e))
    })
    .await
}

fn chunk_now(path: &Path, n: u64) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let len = Offer::chunk_len(file.metadata()?.len(), n);
    let len = usize::try_from(len).unwrap_or(0);
    if (len as u64) < CHUNK / 2 {
        // Most points are that small, and the room of a whole chunk would wait with each.
        let mut small = vec![0; len];
        file.read_exact_at(&mut small, n.saturating_mul(CHUNK))?;
        return Ok(small.into());
    }
    let mut buffer = Buffer::take();
    file.read_exact_at(&mut buffer.0[..len], n.saturating_mul(CHUNK))?;
    Ok(Bytes::from_owner(buffer).slice(..len))
}

/// Room for a chunk.
struct Buffer(Vec<u8>);

/// Those of chunks that were sent, for the next ones: memory that is given back and asked for again costs
/// more than what is done with it. As many as one relationship uses.
static SENT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

impl Buffer {
    fn take() -> Self {
        let sent = SENT.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let made = || vec![0; usize::try_from(CHUNK).unwrap_or(usize::MAX)];
        Self(sent.unwrap_or_else(made))
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut sent = SENT.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.len() < WINDOW {
            sent.push(std::mem::take(&mut self.0));
        }
    }
}

async fn blocking<T: Send + 'static>(
    file: PathBuf,
    work: impl FnOnce(&Path) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(move || work(&file)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Problem::failed("the outbox", &error)),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use journal::{Consistency, Content, DiskExtent, Header, SegmentWriter};
    use model::{Bytes, DiskId, Lineage, SeedId, VmId};

    use super::*;

    #[test]
    fn a_segment_that_nobody_can_read_is_told_from_one_that_is_not_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("1.delta");
        let error = read(&path).expect_err("absent");
        assert_eq!(error.code, Code::Failed, "{error}");
        let header = Header {
            vm: VmId::random(),
            disks: vec![DiskExtent {
                joining: false,
                id: DiskId::random(),
                size: Bytes(1 << 20),
            }],
            lineage: Lineage::begin("host-a"),
            content: Content::Seed {
                seed: SeedId::random(),
                part: 0,
            },
            time: Timestamp::UNIX_EPOCH,
            consistency: Consistency::Crash,
        };
        let out = File::create(&path).expect("made");
        let mut writer = SegmentWriter::create(out, &header).expect("a good header");
        writer.push_frame(0, 0, &[7; 4096]).expect("fits");
        writer.finish().expect("finished");
        assert_eq!(read(&path).expect("whole").header, header);
        let bytes = std::fs::read(&path).expect("there");
        for damaged in [&bytes[..bytes.len() - 1], &[0; 4096][..], b""] {
            std::fs::write(&path, damaged).expect("written");
            let error = read(&path).expect_err("damaged");
            assert_eq!(error.code, Code::Invalid, "{error}");
        }
    }
}
