//! A disk as it was at a point, into a raw, sparse file.

use std::path::{Path, PathBuf};

use api::DiskContent;
use model::{Bytes, Code, Problem};
use serde::Serialize;

use crate::new_file::NewFile;

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
    let mut target = NewFile::new(path)?;
    let mut hash = blake3::Hasher::new();
    let total = content.len();
    while let Some(chunk) = content.next().await {
        let chunk = chunk?;
        hash.update(&chunk);
        target.append(&chunk)?;
        progress(target.len(), total);
    }
    if target.len() != total {
        let reason = format!("{} of {total} bytes arrived", target.len());
        let thing = format!("file {}", path.display());
        return Err(Problem::new(Code::Failed, thing, reason, "Export it again"));
    }
    Ok(Exported {
        file: path.to_owned(),
        size: Bytes(total),
        written: target.finish(path)?,
        blake3: hash.finalize().to_hex().to_string(),
    })
}
