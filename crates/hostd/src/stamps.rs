//! Whether the folder of a VM is the one that this host stored last.
//!
//! The right to run lies in the folder, and who restores the folder restores a right that may have passed to
//! the other host since. So every storing of it has a stamp of its own, of which a copy is kept outside:
//!
//! ```text
//!   store:   UUID/standing.toml: stamp {new, after: last}  -->  stamps/UUID.toml: new
//!   open:    stamp is the copy, or comes after it   the one that was stored last
//!            any other                              restored
//! ```
//!
//! | killed | the next polluxd finds | |
//! |---|---|---|
//! | before the folder's file | the last stamp in both | |
//! | between the two | a stamp that comes after the copy | stored last; nothing rested on it yet |
//! | after both | the new stamp in both | |
//!
//! A folder whose stamp comes after the copy is never an old one: as soon as it is opened the copy is its
//! stamp, and no copy comes back. Folders that get their names when they are whole (`vm::create`, `twin`,
//! `former`) are told apart in the same way, when they are opened.
//!
//! A folder without a stamp was stored by an older Pollux. It is taken as it is where there is no copy yet:
//! that is the first start after an upgrade, and cannot be told from a backup that the older one left. A
//! backup of all of the host's state has the copies too, and passes.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use model::{Code, Problem, StampId, VmId};
use replica::standing::{self, Role, Standing};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// The copies of all VMs of a host.
#[derive(Debug)]
pub(crate) struct Stamps {
    folder: PathBuf,
}

/// What is kept of the last storing.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    version: u32,
    stamp: StampId,
    /// The other host that had to do with the VM then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shared_with: Option<String>,
}

impl Stamps {
    /// Those that lie in `folder`, which is made if it is not there.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        durable::create_folder(&folder)?;
        Ok(Self { folder })
    }

    /// Stores a standing durably in the folder `home`: what is stored. For messages the VM is `thing`.
    pub(crate) fn store(
        &self,
        vm: VmId,
        thing: &str,
        home: &Path,
        next: &Standing,
    ) -> Result<Standing, Problem> {
        let stored = next
            .store(&home.join(standing::FILE))
            .map_err(|error| Problem::failed(thing, &error))?;
        self.keep(vm, thing, &stored)?;
        Ok(stored)
    }

    /// Takes up what lies in the folder `home` when it is opened. `found`: as it was read; `next`: as it is
    /// to be, if the folder is the one that was stored last. As it is from now on, durably.
    pub(crate) fn take_up(
        &self,
        vm: VmId,
        thing: &str,
        home: &Path,
        found: &Standing,
        next: Standing,
    ) -> Result<Standing, Problem> {
        let last = self.last(vm)?;
        let shared_with = last.as_ref().and_then(|last| last.shared_with.as_deref());
        let next = match is_last(found, last.as_ref()) {
            true => next,
            false => next.restore(Timestamp::now(), shared_with),
        };
        let Some(stamp) = found.stamp.filter(|_| next == *found) else {
            return self.store(vm, thing, home, &next);
        };
        if last.is_none_or(|last| last.stamp != stamp.id) {
            self.keep(vm, thing, &next)?;
        }
        Ok(next)
    }

    /// The VM is gone.
    pub(crate) fn forget(&self, vm: VmId) -> io::Result<()> {
        durable::remove(&self.file(vm))
    }

    fn file(&self, vm: VmId) -> PathBuf {
        self.folder.join(format!("{vm}.toml"))
    }

    fn last(&self, vm: VmId) -> Result<Option<Last>, Problem> {
        let file = self.file(vm);
        let unusable = |reason: String| {
            let way_out = "Move the file away, and start polluxd again: the VM's folder then counts as restored";
            Problem::new(Code::Failed, file.display().to_string(), reason, way_out)
        };
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(format!("cannot be read: {error}"))),
        };
        match toml::from_str::<Last>(&text) {
            Ok(last) if last.version == VERSION => Ok(Some(last)),
            Ok(last) => Err(unusable(format!("has version {}", last.version))),
            Err(error) => Err(unusable(format!("is not a copy of a stamp: {error}"))),
        }
    }

    fn keep(&self, vm: VmId, thing: &str, stored: &Standing) -> Result<(), Problem> {
        let Some(stamp) = stored.stamp else {
            return Ok(());
        };
        let last = Last {
            version: VERSION,
            stamp: stamp.id,
            shared_with: stored.shared_with().map(str::to_owned),
        };
        let text = toml::to_string_pretty(&last).expect("every field has a TOML form");
        durable::replace(&self.file(vm), text.as_bytes())
            .map_err(|error| Problem::failed(thing, &error))
    }
}

/// Whether the standing in a folder is the one that was stored last.
fn is_last(found: &Standing, last: Option<&Last>) -> bool {
    match (found.stamp, last) {
        (Some(stamp), Some(last)) => stamp.id == last.stamp || stamp.after == Some(last.stamp),
        // A twin that was just made; it gives no right to run.
        (Some(stamp), None) => stamp.after.is_none() && found.role == Role::Replica,
        (None, last) => last.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use model::Lineage;
    use replica::standing::Warrant;

    use super::*;

    const THING: &str = "VM `web`";

    /// The folder of a VM and the copies of its host.
    struct Scratch {
        folder: tempfile::TempDir,
        stamps: Stamps,
        vm: VmId,
    }

    impl Scratch {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("scratch");
            let stamps = Stamps::open(folder.path().join("stamps")).expect("made");
            let vm = VmId::random();
            Self { folder, stamps, vm }
        }

        fn home(&self) -> &Path {
            self.folder.path()
        }

        fn found(&self) -> Standing {
            let found = Standing::load(&self.home().join(standing::FILE));
            found.expect("read").expect("there")
        }

        fn store(&self, next: &Standing) -> Standing {
            let stored = self.stamps.store(self.vm, THING, self.home(), next);
            stored.expect("stored")
        }

        /// As a polluxd that starts now finds it, and leaves it for the next.
        fn opened(&self) -> Standing {
            let open = || {
                let found = self.found();
                let next = found.clone();
                let opened = self
                    .stamps
                    .take_up(self.vm, THING, self.home(), &found, next);
                opened.expect("usable")
            };
            let opened = open();
            assert_eq!(open(), opened, "it is noticed once");
            opened
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.home().join(standing::FILE)).expect("read")
        }

        fn put(&self, text: &str) {
            std::fs::write(self.home().join(standing::FILE), text).expect("written");
        }
    }

    /// One that may start here without an answer.
    fn taken_over() -> Standing {
        let mut standing = Standing::replica("castor", Lineage::begin("castor"));
        standing.role = Role::FailedOver;
        standing.warrant = Some(Warrant::StoodDown);
        standing
    }

    #[test]
    fn what_was_stored_last_is_taken_as_it_is_and_any_older_folder_is_restored() {
        let scratch = Scratch::new();
        let mut standing = scratch.store(&taken_over());
        let mut older = vec![scratch.text()];
        for _ in 0..3 {
            standing = scratch.store(&standing);
            assert_eq!(scratch.opened(), standing);
            older.push(scratch.text());
        }
        let last = older.pop().expect("stored");
        // Also the one right before the last.
        for text in older {
            scratch.put(&text);
            let opened = scratch.opened();
            assert_eq!(opened.warrant, None);
            let restored = opened.restored.expect("noticed");
            assert_eq!(restored.shared_with, "castor");
        }
        // And the one that was the last until another was restored.
        scratch.put(&last);
        assert!(scratch.opened().restored.is_some());
    }

    #[test]
    fn killed_between_the_folder_and_the_copy_it_is_what_was_stored_last() {
        let scratch = Scratch::new();
        let standing = scratch.store(&taken_over());
        let before = scratch.text();
        let file = scratch.home().join(standing::FILE);
        let stored = standing.store(&file).expect("stored");
        assert_eq!(scratch.opened(), stored);
        // Once that is taken up, the one before is an old one.
        scratch.put(&before);
        assert!(scratch.opened().restored.is_some());
        // Killed again and again, before anybody takes it up: only the last counts.
        let standing = scratch.store(&taken_over());
        let first = standing.store(&file).expect("stored");
        assert_eq!(scratch.opened(), first);
        let second = first.store(&file).expect("stored");
        assert_eq!(scratch.opened(), second);
    }

    #[test]
    fn without_a_copy_a_vm_that_is_shared_was_restored_and_any_other_is_not() {
        let scratch = Scratch::new();
        scratch.store(&taken_over());
        scratch.stamps.forget(scratch.vm).expect("forgotten");
        scratch.stamps.forget(scratch.vm).expect("once more");
        let opened = scratch.opened();
        assert_eq!(opened.restored.expect("noticed").shared_with, "castor");
        // One that is shared with nobody is like any other, wherever it comes from.
        let scratch = Scratch::new();
        let alone = scratch.store(&Standing::primary(Lineage::begin("castor")));
        let text = scratch.text();
        assert_eq!(scratch.opened(), alone);
        scratch.stamps.forget(scratch.vm).expect("forgotten");
        assert_eq!(scratch.opened(), alone);
        scratch.store(&alone);
        scratch.put(&text);
        assert_eq!(scratch.opened(), alone);
        // Until it is shared: a backup of before that does not say with whom.
        let mut shared = alone;
        shared.partner = Some("pollux".to_owned());
        scratch.store(&shared);
        scratch.put(&text);
        let opened = scratch.opened();
        assert_eq!(opened.restored.expect("noticed").shared_with, "pollux");
        // A twin that was just made has no copy yet.
        let scratch = Scratch::new();
        let twin = Standing::replica("castor", Lineage::begin("castor"));
        let file = scratch.home().join(standing::FILE);
        let twin = twin.store(&file).expect("stored");
        assert_eq!(scratch.opened(), twin);
    }

    #[test]
    fn the_folder_of_an_older_pollux_is_taken_as_it_is_once() {
        let scratch = Scratch::new();
        let text = toml::to_string_pretty(&taken_over()).expect("text");
        assert!(!text.contains("stamp"));
        scratch.put(&text);
        let opened = scratch.opened();
        assert_eq!(opened.warrant, Some(Warrant::StoodDown));
        assert!(opened.stamp.is_some());
        scratch.put(&text);
        let opened = scratch.opened();
        assert_eq!(opened.warrant, None);
        assert!(opened.restored.is_some());
    }

    #[test]
    fn a_copy_that_cannot_be_read_is_named_with_the_way_out() {
        let scratch = Scratch::new();
        let stored = scratch.store(&taken_over());
        std::fs::write(scratch.stamps.file(scratch.vm), "stamp = 1").expect("written");
        let again = stored.clone();
        let problem = scratch
            .stamps
            .take_up(scratch.vm, THING, scratch.home(), &stored, again)
            .expect_err("unreadable");
        assert!(problem.thing.contains("stamps"), "{problem}");
        assert!(problem.way_out.contains("restored"), "{problem}");
    }
}
