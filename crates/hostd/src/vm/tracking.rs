//! The folder of what must survive a power cut while changes are tracked. diskd writes it, as the
//! VM's user; polluxd makes it before diskd starts ([`super::access`]) and takes out what belongs
//! to nobody any more.
//!
//! ```text
//!   tracking/
//!     DISK.intent             write-intent log: which regions may differ from the twin
//!     DISK.stack              what the disk was made of
//!     DISK.OVERLAY.merge      how far a checkpoint is merged
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::DiskId;

use super::folder::VmFolder;

const INTENT: &str = "intent";

/// The folder, for the disks of a VM that can be started.
pub(crate) fn folder(of: &VmFolder) -> PathBuf {
    of.path.join("tracking")
}

/// Removes what belongs to disks that the VM has no more.
pub(super) fn sweep(of: &VmFolder) -> io::Result<()> {
    remove(of, |file| {
        let disks = of.spec.disks.iter();
        disk_of(file).is_some_and(|id| disks.clone().all(|disk| disk.id != id))
    })
}

/// Removes the write-intent logs: nothing is replicated any more, so nothing can differ.
pub(super) fn forget(of: &VmFolder) -> io::Result<()> {
    remove(of, |file| {
        disk_of(file).is_some() && file.extension().is_some_and(|ending| ending == INTENT)
    })
}

fn remove(of: &VmFolder, doomed: impl Fn(&Path) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(folder(of)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // The VM's processes make what is in here: what is no file of theirs is left alone.
        if doomed(&entry.path()) && entry.file_type()?.is_file() {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The disk that a file belongs to, by its name.
fn disk_of(file: &Path) -> Option<DiskId> {
    let name = file.file_name()?.to_str()?;
    name.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::{Bus, Bytes, DiskSpec, Generation, VmSpec};

    use super::*;

    #[test]
    fn what_belongs_to_other_disks_goes_and_logs_go_with_the_relationship() {
        let scratch = tempfile::tempdir().expect("scratch");
        let disk = DiskSpec::new("disk0.raw".into(), Bytes(1 << 20), Bus::Virtio, 0);
        let (id, gone) = (disk.id, DiskId::random());
        let name = "web".parse().expect("a good name");
        let memory = Bytes(64 << 20);
        let spec = VmSpec::new(name, Generation::Two, 1, memory, true, None, vec![disk]);
        let of = VmFolder {
            path: scratch.path().to_owned(),
            spec: spec.expect("a good one"),
            origin: None,
        };
        sweep(&of).expect("there is no such folder yet");
        fs::create_dir(folder(&of)).expect("made");
        let kinds = ["intent", "stack", "3f1b.merge"];
        for id in [id, gone] {
            for kind in kinds {
                fs::write(folder(&of).join(format!("{id}.{kind}")), "").expect("written");
            }
        }
        fs::write(folder(&of).join("notes.intent"), "").expect("written");
        fs::create_dir(folder(&of).join(format!("{gone}.d"))).expect("made");
        let left = || -> BTreeSet<String> {
            let entries = fs::read_dir(folder(&of)).expect("listed");
            let names = entries.map(|entry| entry.expect("read").file_name());
            names
                .map(|name| name.into_string().expect("text"))
                .collect()
        };
        sweep(&of).expect("swept");
        let mut expected: BTreeSet<String> = kinds.map(|kind| format!("{id}.{kind}")).into();
        expected.extend(["notes.intent".to_owned(), format!("{gone}.d")]);
        assert_eq!(left(), expected);
        forget(&of).expect("forgotten");
        expected.remove(&format!("{id}.intent"));
        assert_eq!(left(), expected);
    }
}
