//! Those whose journals lie on one file system flush together.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use durable::{Group, OsFileSystem};

/// One group for each file system.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flushes(Arc<Mutex<BTreeMap<u64, Arc<Group>>>>);

impl Flushes {
    /// That of the file system that the folder `path` is on.
    pub(crate) fn of(&self, path: &Path) -> Arc<Group> {
        let opened =
            std::fs::metadata(path).and_then(|folder| Ok((folder.dev(), OsFileSystem::of(path)?)));
        match opened {
            Ok((device, system)) => {
                let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let group = groups.entry(device);
                group
                    .or_insert_with(|| Arc::new(Group::new(Arc::new(system))))
                    .clone()
            }
            Err(error) => {
                // Its files are flushed one by one.
                tracing::warn!(path = %path.display(), %error, "flushes alone");
                Arc::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_one_file_system_share_a_group_and_one_that_is_not_there_has_its_own() {
        let scratch = tempfile::tempdir().expect("scratch");
        let flushes = Flushes::default();
        let made = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::create_dir(&path).expect("made");
            flushes.of(&path)
        };
        let (one, two) = (made("one"), made("two"));
        assert!(Arc::ptr_eq(&one, &two));
        let other = flushes.of(&scratch.path().join("absent"));
        assert!(!Arc::ptr_eq(&one, &other));
        other.flush(vec![]).expect("nothing to flush");
    }
}
