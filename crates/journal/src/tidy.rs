//! Files that the index does not name.

use std::collections::{HashMap, HashSet};

use crate::index::{BaseDisk, CHANGES, Entry, PACKS, SEGMENTS};
use crate::{Journal, JournalError};

impl Journal {
    /// Removes what the index does not name, and finds what it names. A change set that is not there is
    /// given up.
    pub(crate) fn remove_strays(&mut self) -> Result<(), JournalError> {
        let bases: HashSet<_> = self.index.disks.iter().map(BaseDisk::file).collect();
        for name in self.list("")? {
            let old_base = name.starts_with("base-") && name.ends_with(".raw");
            if old_base && !bases.contains(&name) {
                self.remove_stray(&name)?;
            }
        }
        let mut named: HashSet<_> = self.index.segments.iter().map(Entry::file).collect();
        let sets = self.index.changes.values();
        let mut sets: HashMap<_, _> = sets.map(|set| (set.file(), set.number)).collect();
        for folder in [SEGMENTS, PACKS, CHANGES] {
            for name in self.list(folder)? {
                let name = format!("{folder}/{name}");
                if !named.remove(&name) && sets.remove(&name).is_none() {
                    self.remove_stray(&name)?;
                }
            }
        }
        match named.into_iter().min() {
            Some(name) => Err(JournalError::Missing(name)),
            None => {
                self.give_up(sets.into_values().collect());
                Ok(())
            }
        }
    }

    /// The files in a folder, which older versions may not have made.
    fn list(&self, name: &str) -> Result<Vec<String>, JournalError> {
        let listed = match self.folder.list(name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.folder.create_folder(name).map(|()| Vec::new())
            }
            other => other,
        };
        listed.map_err(|source| JournalError::io("list", name, source))
    }

    fn remove_stray(&self, name: &str) -> Result<(), JournalError> {
        tracing::info!(file = name, "removed a file that the journal does not name");
        self.folder
            .remove(name)
            .map_err(|source| JournalError::io("remove", name, source))
    }
}
