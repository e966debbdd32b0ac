//! The replica server's settings: `replica-server.toml` in the state folder.
//!
//! Absent at first, and then the server is off. Changed as a whole, durably, before a change counts.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Code, Problem};
use replica::authorization::{MAX_ENTRIES, Rules};
use serde::{Deserialize, Serialize};

use crate::stores::{Known, Stores, Volume};

/// Name of the file.
const FILE: &str = "replica-server.toml";
const VERSION: u32 = 1;
const MAX_LEN: u64 = 1 << 20;

/// What is kept of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    version: u32,
    /// Where to listen, if not where polluxd was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<SocketAddr>,
    /// Whom to let in.
    pub(crate) rules: Rules,
    /// The stores that the rules name, other than the default one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) stores: Vec<Known>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            version: VERSION,
            listen: None,
            rules: Rules::default(),
            stores: Vec::new(),
        }
    }
}

/// The settings, in the file and in memory.
#[derive(Debug)]
pub(crate) struct Server {
    file: PathBuf,
    kept: Mutex<Kept>,
}

impl Server {
    /// Reads them in the folder `state`.
    pub(crate) fn open(state: &Path) -> Result<Self, Problem> {
        let file = state.join(FILE);
        let kept = Mutex::new(read(&file)?);
        Ok(Self { file, kept })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // It is replaced as a whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As they are now.
    pub(crate) fn get(&self) -> Kept {
        self.lock().clone()
    }

    /// Does something with the rules as they are now.
    pub(crate) fn rules<T>(&self, look: impl FnOnce(&Rules) -> T) -> T {
        look(&self.lock().rules)
    }

    /// The store for a new twin of the primary `name`, which is let in; none: the default one.
    pub(crate) fn store(
        &self,
        name: &str,
        stores: &Stores,
    ) -> Result<Option<Arc<Volume>>, Problem> {
        let kept = self.lock();
        let Some(wanted) = kept.rules.store(name) else {
            return Ok(None);
        };
        let known = kept.stores.iter().find(|one| one.path == wanted);
        let known = known.ok_or_else(|| {
            let thing = format!("replica store {}", wanted.display());
            Problem::new(Code::Failed, thing, "is not listed in the settings", "")
        })?;
        Ok(Some(stores.get(known)))
    }

    /// Changes them, durably; as they were if `change` or the disk refuses. Blocking.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&mut Kept) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        // Held over the write, so that file and memory change in the same order.
        let mut kept = self.lock();
        let mut changed = kept.clone();
        change(&mut changed)?;
        if changed == *kept {
            return Ok(());
        }
        let thing = "the settings of the replica server";
        let text =
            toml::to_string_pretty(&changed).map_err(|error| Problem::failed(thing, &error))?;
        durable::replace(&self.file, text.as_bytes())
            .map_err(|error| crate::vm::create::no_space_or(thing, &error))?;
        *kept = changed;
        Ok(())
    }
}

fn read(file: &Path) -> Result<Kept, Problem> {
    let refuse = |reason: String| {
        Problem::new(
            Code::Invalid,
            file.display().to_string(),
            reason,
            "Correct the file, or remove it: then the replica server is off",
        )
    };
    let failed = |error: io::Error| Problem::failed(file.display().to_string(), &error);
    match std::fs::metadata(file) {
        Ok(found) if found.len() > MAX_LEN => {
            return Err(refuse(format!("has more than {MAX_LEN} bytes")));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(failed(error)),
    }
    let text = std::fs::read_to_string(file).map_err(failed)?;
    let kept: Kept =
        toml::from_str(&text).map_err(|error| refuse(error.to_string().trim_end().to_owned()))?;
    if kept.version != VERSION {
        let version = kept.version;
        return Err(refuse(format!("has version {version}, not {VERSION}")));
    }
    let entries = &kept.rules.entries;
    let twice = |n: usize| {
        let earlier = &entries[..n];
        earlier.iter().any(|one| one.pattern == entries[n].pattern)
    };
    if let Some(n) = (0..entries.len()).find(|n| twice(*n)) {
        return Err(refuse(format!(
            "has two entries for {}",
            entries[n].pattern
        )));
    }
    let stores = &kept.stores;
    let own = entries.iter().filter_map(|entry| entry.store.as_ref());
    for named in own.chain(&kept.rules.store) {
        if !stores.iter().any(|store| store.path == *named) {
            let named = named.display();
            return Err(refuse(format!(
                "names the store {named}, and does not list it"
            )));
        }
    }
    let same = |a: &Known, b: &Known| a.id == b.id || a.path == b.path;
    if (1..stores.len()).any(|n| stores[..n].iter().any(|one| same(one, &stores[n]))) {
        return Err(refuse("lists a store twice".to_owned()));
    }
    if let Some(one) = stores.iter().find(|one| !one.path.is_absolute()) {
        let path = one.path.display();
        return Err(refuse(format!(
            "lists the store {path}, which is no absolute path"
        )));
    }
    if entries.len() > MAX_ENTRIES {
        return Err(refuse(format!("has more than {MAX_ENTRIES} entries")));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use replica::authorization::{Admits, Denied, Entry};

    use super::*;

    fn entry(pattern: &str) -> Entry {
        Entry {
            pattern: pattern.parse().expect("a pattern"),
            group: None,
            limit: None,
            store: None,
            copies: Vec::new(),
        }
    }

    #[test]
    fn the_server_is_off_until_it_is_switched_on_and_stays_as_it_was_left() {
        let folder = tempfile::tempdir().expect("scratch");
        let server = Server::open(folder.path()).expect("no file is no error");
        assert!(server.rules(|rules| rules.admit("castor") == Err(Denied::Off)));
        let change = |kept: &mut Kept| {
            kept.rules.enabled = true;
            kept.rules.admits = Admits::Authorized;
            kept.rules.entries.push(entry("*.example.com"));
            kept.listen = Some("127.0.0.1:8443".parse().expect("an address"));
            Ok(())
        };
        server.change(change).expect("changed");
        let again = Server::open(folder.path()).expect("reads");
        assert_eq!(again.get(), server.get());
        assert!(again.rules(|rules| rules.admit("a.example.com").is_ok()));
        let refused = server.change(|kept| {
            kept.rules.entries.clear();
            Err(Problem::new(Code::Invalid, "it", "is refused", ""))
        });
        refused.expect_err("refused");
        assert_eq!(again.get(), server.get(), "nothing changed");
    }

    #[test]
    fn a_change_that_cannot_be_written_does_not_count() {
        let folder = tempfile::tempdir().expect("scratch");
        let server = Server::open(folder.path()).expect("opens");
        drop(folder);
        let changed = server.change(|kept| {
            kept.rules.enabled = true;
            Ok(())
        });
        changed.expect_err("its folder is gone");
        assert_eq!(server.get(), Kept::default());
    }

    #[test]
    fn a_file_that_somebody_edited_wrongly_is_named_with_what_is_wrong() {
        let folder = tempfile::tempdir().expect("scratch");
        let good = "version = 1\n[rules]\nenabled = true\nadmits = \"authorized\"\n";
        let one = "[[rules.entries]]\npattern = \"castor\"\n";
        for (text, says) in [
            (format!("colour = 1\n{good}"), "colour"),
            (good.replace("version = 1", "version = 9"), "version 9"),
            (format!("{good}{one}{one}"), "two entries for castor"),
            (format!("{good}{}", one.replace("castor", "*")), "`*`"),
            (good.replace("authorized", "all"), "all"),
            ("x".repeat(2 << 20), "more than"),
        ] {
            std::fs::write(folder.path().join(FILE), text).expect("written");
            let problem = Server::open(folder.path()).expect_err(says);
            assert!(problem.reason.contains(says), "{problem}");
            assert!(problem.thing.contains(FILE), "{problem}");
        }
        std::fs::write(folder.path().join(FILE), format!("{good}{one}")).expect("written");
        Server::open(folder.path()).expect("good");
    }
}
