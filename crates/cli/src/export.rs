//! A disk as it was at a point, into a raw, sparse file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use api::DiskContent;
use model::{BLOCK_SIZE, Bytes, Code, Problem};
use serde::Serialize;

/// What was exported.
#[derive(Debug, Serialize)]
pub(crate) struct Exported {
    /// The file.
    pub(crate) file: PathBuf,
    /// Its size.
    pub(crate) size: Bytes,
    /// Of it, what is not zero.
    pub(crate) written: Bytes,
    /// Hash of the whole content.
    pub(crate) blake3: String,
}

/// Writes `content` into the new file `path`, which appears when it is whole.
pub(crate) async fn write(
    mut content: DiskContent,
    path: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Exported, Problem> {
    let mut target = Target::new(path)?;
    let total = content.len();
    while let Some(chunk) = content.next().await {
        target.append(&chunk?)?;
        progress(target.at, total);
    }
    if target.at != total {
        let reason = format!("{} of {total} bytes arrived", target.at);
        return Err(Problem::new(
            Code::Failed,
            &target.thing,
            reason,
            "Export it again",
        ));
    }
    target.finish(path)
}

/// The file while it is not whole; removed unless finished.
struct Target {
    thing: String,
    temporary: PathBuf,
    file: File,
    at: u64,
    written: u64,
    hash: blake3::Hasher,
    /// What does not fill a block yet.
    rest: Vec<u8>,
}

const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE);

impl Target {
    fn new(path: &Path) -> Result<Self, Problem> {
        let thing = format!("file {}", path.display());
        if path.exists() {
            let way_out = "Name another file, or remove that one";
            return Err(Problem::new(
                Code::Conflict,
                thing,
                "exists already",
                way_out,
            ));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|error| failed(&thing, &error))?;
        Ok(Self {
            thing,
            temporary,
            file,
            at: 0,
            written: 0,
            hash: blake3::Hasher::new(),
            rest: Vec::with_capacity(BLOCK),
        })
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        self.hash.update(bytes);
        while !bytes.is_empty() {
            let take = (BLOCK - self.rest.len()).min(bytes.len());
            self.rest.extend_from_slice(&bytes[..take]);
            self.at += take as u64;
            bytes = &bytes[take..];
            if self.rest.len() == BLOCK {
                self.block()?;
            }
        }
        Ok(())
    }

    /// Writes the gathered block, unless it is zero.
    fn block(&mut self) -> Result<(), Problem> {
        if self.rest.iter().any(|byte| *byte != 0) {
            let start = self.at - self.rest.len() as u64;
            self.file
                .write_all_at(&self.rest, start)
                .map_err(|error| failed(&self.thing, &error))?;
            self.written += self.rest.len() as u64;
        }
        self.rest.clear();
        Ok(())
    }

    fn finish(mut self, path: &Path) -> Result<Exported, Problem> {
        self.block()?;
        self.file
            .set_len(self.at)
            .and_then(|()| self.file.sync_all())
            // Unlike rename, it never replaces a file that was made meanwhile.
            .and_then(|()| fs::hard_link(&self.temporary, path))
            .map_err(|error| failed(&self.thing, &error))?;
        Ok(Exported {
            file: path.to_owned(),
            size: Bytes(self.at),
            written: Bytes(self.written),
            blake3: self.hash.finalize().to_hex().to_string(),
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Its lasting name, if it got one, stays.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn failed(thing: &str, error: &io::Error) -> Problem {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::Full,
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::PermissionDenied => Code::Forbidden,
        io::ErrorKind::AlreadyExists => Code::Conflict,
        _ => Code::Failed,
    };
    Problem::new(code, thing, format!("cannot be written: {error}"), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_become_holes_and_the_content_is_whole() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("scratch");
        let path = folder.path().join("disk.raw");
        let mut content = vec![0; 1 << 20];
        content[70_000] = 7;
        content.extend_from_slice(b"an odd end");
        let mut target = Target::new(&path).expect("new");
        for part in content.chunks(10_007) {
            target.append(part).expect("append");
        }
        let exported = target.finish(&path).expect("finish");
        assert_eq!(fs::read(&path).expect("read"), content);
        assert_eq!(exported.blake3, blake3::hash(&content).to_hex().to_string());
        assert_eq!(exported.written, Bytes(4096 + 10));
        assert!(fs::metadata(&path).expect("stat").blocks() * 512 < 1 << 20);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_file_that_exists_is_never_replaced() {
        let folder = tempfile::tempdir().expect("scratch");
        let path = folder.path().join("disk.raw");
        let target = Target::new(&path).expect("free");
        fs::write(&path, "precious").expect("write");
        assert!(Target::new(&path).is_err());
        assert!(target.finish(&path).is_err());
        assert_eq!(fs::read(&path).expect("read"), b"precious");
    }

    #[test]
    fn an_export_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().expect("scratch");
        let mut target = Target::new(&folder.path().join("disk.raw")).expect("free");
        target.append(&[1; 5000]).expect("append");
        drop(target);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
    }
}
