//! Stores: the folders, on whatever file systems, that the journals of twins lie in.
//!
//! ```text
//!   STATE/replicas/UUID/         a twin, and whatever it is above a point: who may run it is known here
//!     journal/                   in the default store
//!     store.toml                 or which store its journal lies in
//!   STORE/pollux-store.toml      which store this is, and whose
//!   STORE/UUID/journal/
//! ```
//!
//! A disk that is not mounted leaves an empty folder, and another one brings another store: the marker
//! is read before anything rests on what lies there, and what is not found there is *away*, not
//! absent. A twin whose journal is away is known by its folder all the same: its primary is refused
//! with a reason that goes away by itself, and nobody makes it anew.
//!
//! The note comes before what it speaks of and goes after it. While the folder of a twin is being made
//! or removed, its name begins with a dot ([`sweep`]): what its note leads to goes first, unless the note of
//! a folder by the lasting name leads there too. A folder of a store that no note leads to is not touched.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Code, Problem, StoreId, VmId};
use rustix::fs::{Access, access};
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::vm::create::{no_space_or, publish};

/// The file that tells a store.
const MARKER: &str = "pollux-store.toml";
/// In the folder of a twin: where its journal lies.
const NOTE: &str = "store.toml";
const VERSION: u32 = 1;
/// Of either file.
const MAX_LEN: u64 = 64 * 1024;

/// What [`MARKER`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    version: u32,
    id: StoreId,
    /// Name of the host that keeps twins there.
    host: String,
}

/// A store by its id, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    pub(crate) id: StoreId,
    pub(crate) path: PathBuf,
}

/// What [`NOTE`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    version: u32,
    store: Known,
}

/// A store other than the default one.
#[derive(Debug)]
pub(crate) struct Volume {
    known: Known,
    /// Name of this host, for messages.
    host: String,
    /// Why it could not be used when it was looked for last.
    away: Mutex<Option<Problem>>,
}

impl Volume {
    pub(crate) fn known(&self) -> &Known {
        &self.known
    }

    pub(crate) fn path(&self) -> &Path {
        &self.known.path
    }

    fn away(&self) -> MutexGuard<'_, Option<Problem>> {
        // It is replaced as a whole.
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is there, and not another one in its place. Blocking.
    ///
    /// # Errors
    /// [`Code::Failed`]: it may be back at any time.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        let found = self.look();
        let mut away = self.away();
        match (&*away, &found) {
            (None, Err(problem)) => tracing::error!(%problem, "a replica store is away"),
            (Some(_), Ok(())) => {
                tracing::info!(store = %self.known.path.display(), "a replica store is back");
            }
            _ => {}
        }
        *away = found.clone().err();
        found
    }

    fn look(&self) -> Result<(), Problem> {
        let path = self.known.path.display();
        let refuse = |reason: String| {
            let thing = format!("replica store {path} of host `{}`", self.host);
            let way_out = format!(
                "mount its disk at {path} on host `{}`; its twins go on by themselves then",
                self.host
            );
            Err(Problem::new(Code::Failed, thing, reason, way_out))
        };
        match read::<Marker>(&self.known.path.join(MARKER)) {
            Ok(Some(marker)) if marker.version == VERSION && marker.id == self.known.id => Ok(()),
            Ok(Some(_)) => refuse("is away: another store is mounted there".to_owned()),
            Ok(None) => refuse(format!("is away: there is no {MARKER} in it")),
            Err(error) => refuse(format!("cannot be told from another: {MARKER}: {error}")),
        }
    }
}

/// The stores that are used, each once.
#[derive(Debug)]
pub(crate) struct Stores {
    host: String,
    all: Mutex<BTreeMap<StoreId, Arc<Volume>>>,
    /// Held while folders of twins are made or removed, or looked for that were left half done.
    changing: Mutex<()>,
}

impl Stores {
    /// None yet, on the host of that name.
    pub(crate) fn new(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            all: Mutex::default(),
            changing: Mutex::default(),
        }
    }

    /// Nobody else makes or removes the folder of a twin until what this returns is dropped.
    pub(crate) fn alone(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for all of them, and removes below `replicas` what could not be removed while one was away.
    /// Blocking.
    pub(crate) fn look(&self, replicas: &Path) -> io::Result<()> {
        let all = self.all();
        for volume in &all {
            // Whoever needs it is told.
            let _ = volume.check();
        }
        match all.is_empty() {
            true => Ok(()),
            false => sweep(replicas, self),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StoreId, Arc<Volume>>> {
        // Each change is one call on the map.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store `known`; not looked for yet.
    pub(crate) fn get(&self, known: &Known) -> Arc<Volume> {
        let mut all = self.lock();
        let volume = all.entry(known.id).or_insert_with(|| {
            Arc::new(Volume {
                known: known.clone(),
                host: self.host.clone(),
                away: Mutex::default(),
            })
        });
        Arc::clone(volume)
    }

    /// Those that anybody asked for so far.
    pub(crate) fn all(&self) -> Vec<Arc<Volume>> {
        self.lock().values().cloned().collect()
    }
}

/// Where the journal of a twin lies.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    folder: PathBuf,
    volume: Option<Arc<Volume>>,
    trouble: Arc<Mutex<Trouble>>,
}

/// What is wrong with a journal that can be had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Why nothing more was taken in when something was offered last.
    pub(crate) full: Option<Problem>,
    /// What was found when it was verified last.
    pub(crate) damage: Option<Problem>,
    /// Why the points did not go that were too old last.
    pub(crate) stay: Option<Problem>,
}

impl Place {
    /// In the home of the twin.
    pub(crate) fn beside(home: &Path) -> Self {
        Self {
            folder: home.to_owned(),
            volume: None,
            trouble: Arc::default(),
        }
    }

    /// In `volume`, of the twin `id`.
    pub(crate) fn within(volume: Arc<Volume>, id: VmId) -> Self {
        Self {
            folder: volume.path().join(id.to_string()),
            volume: Some(volume),
            trouble: Arc::default(),
        }
    }

    /// What is wrong with the journal, as far as anybody noted it.
    pub(crate) fn trouble(&self) -> Trouble {
        self.noted().clone()
    }

    /// Notes what is wrong with the journal.
    pub(crate) fn note_trouble(&self, change: impl FnOnce(&mut Trouble)) {
        change(&mut self.noted());
    }

    fn noted(&self) -> MutexGuard<'_, Trouble> {
        // Each change replaces one field.
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the note in the home of the twin `id` says.
    ///
    /// # Errors
    /// The note cannot be read: then nobody knows.
    pub(crate) fn of(home: &Path, id: VmId, stores: &Stores) -> Result<Self, Problem> {
        Ok(match read_note(home)? {
            Some(known) => Self::within(stores.get(&known), id),
            None => Self::beside(home),
        })
    }

    /// What is the twin's there; of a twin in the default store its home.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Folder of the journal.
    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.join("journal")
    }

    /// The store, other than the default one.
    pub(crate) fn volume(&self) -> Option<&Arc<Volume>> {
        self.volume.as_ref()
    }

    /// Whether what lies there can be used now. Blocking.
    ///
    /// # Errors
    /// As [`Volume::check`].
    pub(crate) fn check(&self) -> Result<(), Problem> {
        self.volume.as_ref().map_or(Ok(()), |volume| volume.check())
    }

    /// Why it could not, when it was looked for last.
    pub(crate) fn away(&self) -> Option<Problem> {
        self.volume.as_ref()?.away().clone()
    }
}

/// Refuses a folder that cannot be a store, whatever it holds.
fn check_folder(path: &Path, layout: &Layout, known: &[Known]) -> Result<(), Problem> {
    let thing = format!("replica store {}", path.display());
    let refuse = |code, reason: String, way_out: &str| {
        Err(Problem::new(code, thing.as_str(), reason, way_out))
    };
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || path.to_str().is_none() || !path.components().all(plain) {
        let way_out = "Name the folder from the root on";
        return refuse(
            Code::Invalid,
            "is not an absolute path in UTF-8".to_owned(),
            way_out,
        );
    }
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let way_out = "Mount its disk and make the folder first";
            return refuse(Code::NotFound, "does not exist".to_owned(), way_out);
        }
        Err(error) => return Err(Problem::failed(&thing, &error)),
    };
    if real != path {
        let reason = format!("is {} by another name", real.display());
        let way_out = "Name the folder by its own path";
        return refuse(Code::Invalid, reason, way_out);
    }
    let meta = fs::metadata(path).map_err(|error| Problem::failed(&thing, &error))?;
    if !meta.is_dir() {
        let way_out = "Name a folder";
        return refuse(Code::Invalid, "is no folder".to_owned(), way_out);
    }
    if meta.mode() & 0o022 != 0 || ![0, geteuid().as_raw()].contains(&meta.uid()) {
        let reason = "can be written by others than polluxd".to_owned();
        let way_out = "Give it to polluxd's user, and take the others' right away: `chmod 700`";
        return refuse(Code::Forbidden, reason, way_out);
    }
    if let Err(errno) = access(path, Access::WRITE_OK | Access::EXEC_OK) {
        let reason = format!("cannot be written: {}", io::Error::from(errno));
        let way_out = "Mount its disk writable, for polluxd's user";
        return refuse(Code::Forbidden, reason, way_out);
    }
    let own = [&layout.state, &layout.run]
        .into_iter()
        .filter_map(|folder| fs::canonicalize(folder).ok());
    let others = known.iter().map(|one| one.path.clone());
    let apart = |other: &PathBuf| *other != path;
    for other in own.chain(others.filter(apart)) {
        if path.starts_with(&other) || other.starts_with(path) {
            let reason = format!("lies inside {} or around it", other.display());
            let way_out = "Name a folder apart from Pollux's own and from other stores";
            return refuse(Code::Conflict, reason, way_out);
        }
    }
    Ok(())
}

/// Makes the folder `path` a store of this host, or finds that it is one; tells which.
///
/// # Errors
/// Why it cannot be one, and the way out. Nothing was changed then.
pub(crate) fn add(
    path: &Path,
    layout: &Layout,
    host: &str,
    known: &[Known],
) -> Result<Known, Problem> {
    check_folder(path, layout, known)?;
    let thing = format!("replica store {}", path.display());
    let refuse = |code, reason: String, way_out: &str| {
        Err(Problem::new(code, thing.as_str(), reason, way_out))
    };
    let file = path.join(MARKER);
    let found = read::<Marker>(&file).and_then(|found| match found {
        Some(marker) if marker.version != VERSION => Err(io::Error::other(format!(
            "it has version {}, not {VERSION}",
            marker.version
        ))),
        found => Ok(found),
    });
    let marker = match found {
        Ok(found) => found,
        Err(error) => {
            let reason = format!("has a {MARKER} that cannot be read: {error}");
            let way_out = "Remove that file, if no host keeps twins there";
            return refuse(Code::Conflict, reason, way_out);
        }
    };
    let here = known.iter().find(|one| one.path == path);
    let id = match (marker, here) {
        (Some(marker), _) if marker.host != host => {
            let reason = format!("is a store of host `{}`", marker.host);
            let way_out = format!(
                "Name another folder; if that host keeps nothing there any more, remove {}",
                file.display()
            );
            return refuse(Code::Conflict, reason, &way_out);
        }
        (Some(marker), Some(here)) if marker.id != here.id => {
            let reason = "is away: another store is mounted there".to_owned();
            return refuse(Code::Conflict, reason, "Mount its own disk there");
        }
        (None, Some(_)) => {
            let reason = format!("is away: there is no {MARKER} in it");
            return refuse(Code::Conflict, reason, "Mount its own disk there");
        }
        (Some(marker), _) => marker.id,
        (None, None) => {
            mark(&file, host)
                .map_err(|error| no_space_or(&thing, &error))?
                .id
        }
    };
    if let Some(other) = known.iter().find(|one| one.id == id && one.path != path) {
        let reason = format!("is the store that belongs to {}", other.path.display());
        return refuse(Code::Conflict, reason, "Mount it there, and name it so");
    }
    Ok(Known {
        id,
        path: path.to_owned(),
    })
}

fn mark(file: &Path, host: &str) -> io::Result<Marker> {
    let marker = Marker {
        version: VERSION,
        id: StoreId::random(),
        host: host.to_owned(),
    };
    write(file, &marker)?;
    Ok(marker)
}

/// Notes in the folder `home` of a twin that its journal lies in that store, durably.
pub(crate) fn note(home: &Path, volume: &Volume) -> io::Result<()> {
    let note = Note {
        version: VERSION,
        store: volume.known.clone(),
    };
    write(&home.join(NOTE), &note)
}

fn read_note(home: &Path) -> Result<Option<Known>, Problem> {
    let file = home.join(NOTE);
    let refuse = |reason: String| {
        let way_out = "Restore the file from a backup: it says where the twin's journal lies";
        Problem::new(Code::Invalid, file.display().to_string(), reason, way_out)
    };
    let note = read::<Note>(&file).map_err(|error| refuse(error.to_string()))?;
    match note {
        None => Ok(None),
        Some(note) if note.version != VERSION => Err(refuse(format!(
            "has version {}, not {VERSION}",
            note.version
        ))),
        Some(note) if !note.store.path.is_absolute() => {
            Err(refuse("names no absolute path".to_owned()))
        }
        Some(note) => Ok(Some(note.store)),
    }
}

/// Removes the home of the twin `id` and what lies in its store, for good: after a crash they are
/// removed by [`sweep`]. What cannot be removed now is removed by it later. Blocking.
///
/// # Errors
/// The twin is as it was.
pub(crate) fn remove(home: &Path, stores: &Stores) -> Result<(), Problem> {
    let failed = |error: io::Error| Problem::failed(home.display().to_string(), &error);
    let _alone = stores.alone();
    let name = home.file_name().unwrap_or_default().to_string_lossy();
    let doomed = home.with_file_name(format!("{REMOVED}{name}"));
    clear(&doomed, stores)?;
    publish(home, &doomed).map_err(failed)?;
    if let Err(problem) = clear(&doomed, stores) {
        tracing::warn!(%problem, "is removed later");
    }
    Ok(())
}

/// Removes the home of a twin whose store is lost, durably. Should the store turn up again, what lies
/// there is as it was. Blocking.
///
/// # Errors
/// The twin is as it was.
pub(crate) fn forget(home: &Path, stores: &Stores) -> Result<(), Problem> {
    let failed = |error: io::Error| Problem::failed(home.display().to_string(), &error);
    let _alone = stores.alone();
    let name = home.file_name().unwrap_or_default().to_string_lossy();
    // No name by which anybody looks for what the note leads to.
    let doomed = home.with_file_name(format!(".lost-{name}"));
    clear(&doomed, stores)?;
    publish(home, &doomed).map_err(failed)?;
    if let Err(problem) = clear(&doomed, stores) {
        tracing::warn!(%problem, "is removed later");
    }
    Ok(())
}

/// How the name of a folder begins that is being made, and of one that is being removed.
pub(crate) const NEW: &str = ".new-";
const REMOVED: &str = ".removed-";

/// Makes way for a twin below `replicas`: removes what an earlier attempt left, or its removal. The
/// caller is [alone](Stores::alone). Blocking.
pub(crate) fn make_way(replicas: &Path, id: VmId, stores: &Stores) -> Result<(), Problem> {
    for begin in [NEW, REMOVED] {
        clear(&replicas.join(format!("{begin}{id}")), stores)?;
    }
    Ok(())
}

/// Removes what a crash left half made or half removed below `replicas`. What lies in a store that is
/// away stays, with its note. Blocking.
pub(crate) fn sweep(replicas: &Path, stores: &Stores) -> io::Result<()> {
    let _alone = stores.alone();
    for entry in fs::read_dir(replicas)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with('.') && entry.file_type()?.is_dir() {
            if let Err(problem) = clear(&entry.path(), stores) {
                tracing::warn!(folder = %entry.path().display(), %problem, "left for later");
            }
        }
    }
    Ok(())
}

/// Removes a folder whose name begins with a dot, if it is there, and before it what its note leads to.
fn clear(doomed: &Path, stores: &Stores) -> Result<(), Problem> {
    let failed = |error: io::Error| Problem::failed(doomed.display().to_string(), &error);
    if !doomed.exists() {
        return Ok(());
    }
    let name = doomed.file_name().unwrap_or_default().to_string_lossy();
    let id = [NEW, REMOVED]
        .iter()
        .find_map(|begin| name.strip_prefix(begin))
        .and_then(|id| id.parse::<VmId>().ok());
    if let (Some(known), Some(id)) = (read_note(doomed)?, id) {
        let volume = stores.get(&known);
        volume.check()?;
        let store = volume.path();
        let own = read_note(&doomed.with_file_name(id.to_string()))?;
        let kept = own.is_some_and(|own| own.id == known.id);
        let lasting = Some(id.to_string()).filter(|_| !kept);
        for name in [format!("{NEW}{id}")].into_iter().chain(lasting) {
            match fs::remove_dir_all(store.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(failed)?,
            }
        }
        // Before the note goes: nobody removes what no note leads to.
        let synced = fs::File::open(store).and_then(|store| store.sync_all());
        synced.map_err(failed)?;
    }
    tracing::info!(folder = %doomed.display(), "removing what was left half done");
    fs::remove_dir_all(doomed).map_err(failed)
}

fn write<T: Serialize>(file: &Path, what: &T) -> io::Result<()> {
    let text = toml::to_string_pretty(what).map_err(io::Error::other)?;
    durable::replace(file, text.as_bytes())
}

/// Reads one of the two files strictly; none if it is not there.
fn read<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    let opened = match fs::File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    opened.take(MAX_LEN + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_LEN {
        return Err(io::Error::other(format!(
            "it has more than {MAX_LEN} bytes"
        )));
    }
    let read = toml::from_str(&text);
    read.map(Some)
        .map_err(|error| io::Error::other(error.to_string().trim_end().to_owned()))
}

#[cfg(test)]
#[path = "stores_tests.rs"]
mod tests;
