//! A new file that appears when it is whole, with holes where it is zero.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use model::{BLOCK_SIZE, Bytes, Code, Problem};

const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE);

/// The file while it is not whole; removed unless finished.
pub(crate) struct NewFile {
    thing: String,
    temporary: PathBuf,
    file: File,
    at: u64,
    written: u64,
    /// What does not fill a block yet.
    rest: Vec<u8>,
}

impl NewFile {
    /// Begins the file that is to be `path`; it must not exist.
    pub(crate) fn new(path: &Path) -> Result<Self, Problem> {
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
            rest: Vec::with_capacity(BLOCK),
        })
    }

    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
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

    /// Appends `len` bytes that read as zeroes.
    pub(crate) fn skip(&mut self, len: u64) -> Result<(), Problem> {
        let zeroes = [0; BLOCK];
        let part = |len: u64| &zeroes[..usize::try_from(len).map_or(BLOCK, |len| len.min(BLOCK))];
        let first = len.min(self.at.next_multiple_of(BLOCK_SIZE) - self.at);
        self.append(part(first))?;
        let blocks = (len - first) / BLOCK_SIZE * BLOCK_SIZE;
        self.at += blocks;
        self.append(part(len - first - blocks))
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

    /// Makes it durable and gives it its name; returns how much of it is not zero.
    pub(crate) fn finish(mut self, path: &Path) -> Result<Bytes, Problem> {
        self.block()?;
        self.file
            .set_len(self.at)
            .and_then(|()| self.file.sync_all())
            // Unlike rename, it never replaces a file that was made meanwhile.
            .and_then(|()| fs::hard_link(&self.temporary, path))
            .map_err(|error| failed(&self.thing, &error))?;
        Ok(Bytes(self.written))
    }
}

impl Drop for NewFile {
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
        let mut target = NewFile::new(&path).expect("new");
        for part in content.chunks(10_007) {
            target.append(part).expect("append");
        }
        let written = target.finish(&path).expect("finish");
        assert_eq!(fs::read(&path).expect("read"), content);
        assert_eq!(written, Bytes(4096 + 10));
        assert!(fs::metadata(&path).expect("stat").blocks() * 512 < 1 << 20);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn what_is_skipped_reads_as_zeroes_wherever_it_begins_and_ends() {
        let folder = tempfile::tempdir().expect("scratch");
        for (number, (before, skipped)) in [
            (0, 4096),
            (1, 1),
            (1, 4095),
            (1, 4096),
            (4095, 10_000),
            (4096, 3 << 20),
            (5000, 0),
        ]
        .into_iter()
        .enumerate()
        {
            let path = folder.path().join(number.to_string());
            let mut target = NewFile::new(&path).expect("new");
            target.append(&vec![7; before]).expect("append");
            target.skip(skipped).expect("skip");
            assert_eq!(target.at, before as u64 + skipped);
            target.append(b"after").expect("append");
            target.finish(&path).expect("finish");
            let mut content = vec![7; before];
            content.resize(before + usize::try_from(skipped).expect("small"), 0);
            content.extend_from_slice(b"after");
            assert!(
                fs::read(&path).expect("read") == content,
                "{before}, {skipped}"
            );
        }
    }

    #[test]
    fn a_file_that_exists_is_never_replaced() {
        let folder = tempfile::tempdir().expect("scratch");
        let path = folder.path().join("disk.raw");
        let target = NewFile::new(&path).expect("free");
        fs::write(&path, "precious").expect("write");
        assert!(NewFile::new(&path).is_err());
        assert!(target.finish(&path).is_err());
        assert_eq!(fs::read(&path).expect("read"), b"precious");
    }

    #[test]
    fn an_export_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().expect("scratch");
        let mut target = NewFile::new(&folder.path().join("disk.raw")).expect("free");
        target.append(&[1; 5000]).expect("append");
        drop(target);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
    }
}
