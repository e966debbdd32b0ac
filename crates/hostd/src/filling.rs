//! A twin that is filled from a VM of this host before anything is sent to it.
//!
//! ```text
//!   enrolment: copy.toml, empty bases      (appear with the twin's folder)
//!        --> every disk copied into its base --> bases synced --> copy.toml removed
//! ```
//!
//! While `copy.toml` is there nothing is received, and nothing compared: a copy that is not whole is
//! never taken for one. Killed, it begins again. The other VM is free meanwhile: what lies in a base in
//! the end is compared with the primary's disk by hash, so whatever is written to the copy while it is read,
//! or should it be deleted before it was read again, costs bytes to be sent and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{Bytes, DiskId, DiskSpec, Problem, VmName};
use replica::wire;
use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

const FILE: &str = "copy.toml";
const VERSION: u32 = 1;
/// Copied at once: between two of them it is told how far it is, and seen whether it is wanted.
const PIECE: u64 = 16 << 20;
/// Read and written at once where the kernel does not copy by itself.
const BUFFER: usize = 1 << 20;
/// From one attempt to the next.
const AGAIN: Duration = Duration::from_secs(5);

/// What a twin is filled from: `copy.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Copy {
    /// Of this format.
    version: u32,
    /// The VM, for messages.
    pub(crate) from: VmName,
    pub(crate) disks: Vec<CopiedDisk>,
}

/// A disk that is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CopiedDisk {
    /// The twin's.
    disk: DiskId,
    /// Its size.
    size: Bytes,
    /// A raw file.
    file: PathBuf,
}

impl Copy {
    /// From the disks of the VM `from`, whose files lie in `home`, to these: each from the one of the same
    /// id, else of the same file name; if that does not find one for each, from the one in its place.
    ///
    /// # Errors
    /// A disk for which there is none: there are not as many.
    pub(crate) fn of(
        from: &VmName,
        home: &Path,
        theirs: &[DiskSpec],
        wanted: &[DiskSpec],
    ) -> Result<Self, DiskId> {
        let find = |disk: &DiskSpec| {
            let same_id = theirs.iter().find(|one| one.id == disk.id);
            same_id.or_else(|| theirs.iter().find(|one| one.file == disk.file))
        };
        let named: Vec<_> = wanted.iter().map(find).collect();
        let in_place = theirs.len() == wanted.len();
        let mut disks = Vec::new();
        let mut ids: Vec<_> = named.iter().flatten().map(|one| one.id).collect();
        ids.sort_unstable();
        ids.dedup();
        let whole = ids.len() == wanted.len();
        for (number, disk) in wanted.iter().enumerate() {
            let source = if whole {
                named[number]
            } else {
                // Not some by one rule and some by another: one could be taken twice.
                theirs.get(number).filter(|_| in_place)
            };
            let source = source.ok_or(disk.id)?;
            disks.push(CopiedDisk {
                disk: disk.id,
                size: disk.size,
                file: home.join(&source.file),
            });
        }
        Ok(Self {
            version: VERSION,
            from: from.clone(),
            disks,
        })
    }

    /// What it takes in the file system where nothing is shared.
    pub(crate) fn allocated(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let sizes = self.disks.iter().map(|disk| fs::metadata(&disk.file));
        sizes
            .map(|meta| Ok(meta?.blocks().saturating_mul(512)))
            .sum()
    }

    /// Records it durably in the folder of a twin.
    pub(crate) fn write(&self, home: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        durable::replace(&home.join(FILE), text.as_bytes())
    }

    fn read(home: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(home.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let copy: Self = toml::from_str(&text).map_err(io::Error::other)?;
        if copy.version != VERSION {
            let why = format!("{FILE} has version {}, not {VERSION}", copy.version);
            return Err(io::Error::other(why));
        }
        Ok(Some(copy))
    }
}

/// How far the twin in a folder is filled.
#[derive(Debug, Clone)]
pub(crate) struct Filling(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    home: PathBuf,
    thing: String,
    now: Mutex<Option<wire::Filling>>,
}

impl Filling {
    /// Of the twin whose home is `home`.
    pub(crate) fn of(home: &Path, thing: &str) -> Self {
        let waits = home.join(FILE).exists().then_some(wire::Filling {
            done: Bytes(0),
            total: Bytes(0),
            problem: None,
        });
        Self(Arc::new(Inner {
            home: home.to_owned(),
            thing: thing.to_owned(),
            now: Mutex::new(waits),
        }))
    }

    /// Of one that is not.
    pub(crate) fn none() -> Self {
        Self(Arc::new(Inner {
            home: PathBuf::new(),
            thing: String::new(),
            now: Mutex::new(None),
        }))
    }

    /// How far it is; none when it is done, or was never to be.
    pub(crate) fn now(&self) -> Option<wire::Filling> {
        self.0.lock().clone()
    }

    /// Fills it, if that is to be done, on a thread of its own. `journal` is its journal's folder.
    pub(crate) fn begin(&self, journal: PathBuf) {
        if self.now().is_none() {
            return;
        }
        let inner = Arc::clone(&self.0);
        let begun = std::thread::Builder::new()
            .name("fill".to_owned())
            .spawn(move || inner.work(&journal));
        if let Err(error) = begun {
            self.0.failed(&error);
        }
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<wire::Filling>> {
        // It is replaced as a whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries until it is done, or the twin is gone.
    fn work(&self, journal: &Path) {
        loop {
            match self.fill(journal) {
                Ok(()) => {
                    tracing::info!(thing = self.thing, "is filled from its copy");
                    *self.lock() = None;
                    return;
                }
                Err(_) if !self.is_wanted() => return,
                Err(error) => {
                    tracing::error!(thing = self.thing, %error, "cannot be filled from its copy");
                    self.failed(&error);
                }
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn is_wanted(&self) -> bool {
        self.home.join(FILE).exists()
    }

    fn failed(&self, error: &io::Error) {
        let way_out = "it goes on by itself when that is mended; `pollux replica cancel` on its \
                       primary host gives it up";
        let mut problem =
            Problem::failed(format!("the copy for the twin of {}", self.thing), error);
        way_out.clone_into(&mut problem.way_out);
        if let Some(now) = &mut *self.lock() {
            now.problem = Some(problem);
        }
    }

    fn told(&self, done: u64, total: u64) {
        *self.lock() = Some(wire::Filling {
            done: Bytes(done),
            total: Bytes(total),
            problem: None,
        });
    }

    fn fill(&self, journal: &Path) -> io::Result<()> {
        let Some(copy) = Copy::read(&self.home)? else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let total = copy.disks.iter().map(|disk| disk.size.0).sum();
        let mut before = 0;
        self.told(0, total);
        for disk in &copy.disks {
            let from = match File::open(&disk.file) {
                Ok(file) => file,
                // It was deleted since: what is there already is compared as well.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::warn!(thing = self.thing, file = %disk.file.display(), "is gone");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let name = journal::Journal::base_file(disk.disk);
            let into = OpenOptions::new()
                .read(true)
                .write(true)
                .open(journal.join(name))?;
            copy_sparse(&from, &into, disk.size.0, |done| {
                if !self.is_wanted() {
                    return Err(io::ErrorKind::NotFound.into());
                }
                self.told(before + done, total);
                Ok(())
            })?;
            into.sync_all()?;
            before += disk.size.0;
            self.told(before, total);
        }
        durable::remove(&self.home.join(FILE))
    }
}

/// Copies the data of the first `size` bytes of `from` to the same places of `into`, which is that long;
/// where there are holes nothing is written. Shares the space where the file system can.
fn copy_sparse(
    from: &File,
    into: &File,
    size: u64,
    mut done: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let end = from.metadata()?.len().min(size);
    let mut at = 0;
    let mut by_kernel = true;
    while at < end {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            // Nothing but a hole is left.
            Err(Errno::NXIO) => end,
            Err(errno) => return Err(errno.into()),
        };
        let hole = match seek(from, SeekFrom::Hole(at)) {
            Ok(hole) => hole.min(end),
            Err(Errno::NXIO) => end,
            Err(errno) => return Err(errno.into()),
        };
        while at < hole {
            let len = (hole - at).min(PIECE);
            let copied = if by_kernel {
                kernel_copies(from, into, at, len)?
            } else {
                None
            };
            at += match copied {
                Some(0) => break,
                Some(copied) => copied,
                None => {
                    by_kernel = false;
                    copy_by_hand(from, into, at, len)?
                }
            };
            done(at)?;
        }
        if at < hole {
            // It became shorter meanwhile.
            break;
        }
    }
    done(size)
}

/// How much the kernel copied; none if it does not between these files.
fn kernel_copies(from: &File, into: &File, at: u64, len: u64) -> io::Result<Option<u64>> {
    let (mut read, mut written) = (at, at);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    match copy_file_range(from, Some(&mut read), into, Some(&mut written), len) {
        Ok(copied) => Ok(Some(copied as u64)),
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_by_hand(from: &File, into: &File, at: u64, len: u64) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut copied = 0;
    while copied < len {
        let wanted = usize::try_from(len - copied).map_or(BUFFER, |left| left.min(BUFFER));
        let read = from.read_at(&mut buffer[..wanted], at + copied)?;
        if read == 0 {
            // It became shorter meanwhile: the rest is as it was.
            return Ok(len);
        }
        into.write_all_at(&buffer[..read], at + copied)?;
        copied += read as u64;
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use model::Bus;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(name: &str, slot: u8) -> DiskSpec {
        DiskSpec::new(name.into(), Bytes(MIB), Bus::Virtio, slot)
    }

    fn from() -> VmName {
        "web-old".parse().expect("a name")
    }

    #[test]
    fn a_disk_is_matched_by_its_id_then_by_its_file_and_else_by_its_place_if_that_is_plain() {
        let home = Path::new("/vms/web-old");
        let theirs = [disk("a.raw", 0), disk("b.raw", 1)];
        let files = |wanted: &[DiskSpec]| {
            let copy = Copy::of(&from(), home, &theirs, wanted)?;
            let name = |disk: &CopiedDisk| disk.file.strip_prefix(home).map(Path::to_owned);
            Ok(copy
                .disks
                .iter()
                .filter_map(|disk| name(disk).ok())
                .collect())
        };
        let paths = |names: &[&str]| -> Result<Vec<PathBuf>, DiskId> {
            Ok(names.iter().map(PathBuf::from).collect())
        };
        let mut renamed = disk("c.raw", 0);
        renamed.id = theirs[1].id;
        assert_eq!(files(&[renamed.clone()]), paths(&["b.raw"]));
        // Both are the same one: by their places.
        let twice = [disk("b.raw", 0), renamed];
        assert_eq!(files(&twice), paths(&["a.raw", "b.raw"]));
        assert_eq!(files(&[disk("b.raw", 0)]), paths(&["b.raw"]));
        let others = [disk("x.raw", 0), disk("b.raw", 1)];
        assert_eq!(files(&others), paths(&["a.raw", "b.raw"]));
        let one = [disk("x.raw", 0)];
        assert_eq!(files(&one), Err(one[0].id));
    }

    #[test]
    fn what_is_copied_is_the_same_and_holes_stay_holes_by_the_kernel_and_by_hand() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("scratch");
        let open = |name: &str, size: u64| {
            let path = folder.path().join(name);
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create_new(true);
            let file = options.open(&path).expect("made");
            file.set_len(size).expect("sized");
            (path, file)
        };
        let (path, source) = open("source", 40 * MIB);
        for (at, len) in [(0, 4096), (7 * MIB, 3 << 20), (40 * MIB - 5000, 5000)] {
            let bytes = vec![u8::try_from(at % 251 + 1).expect("small"); len];
            source.write_all_at(&bytes, at).expect("written");
        }
        // As large, larger and smaller than the disk.
        for (n, size) in [40 * MIB, 48 * MIB, 8 * MIB].into_iter().enumerate() {
            let (copied, file) = open(&format!("{n}"), size);
            let mut last = 0;
            copy_sparse(&source, &file, size, |done| {
                assert!(done >= last);
                last = done;
                Ok(())
            })
            .expect("copied");
            assert_eq!(last, size);
            let mut expected = fs::read(&path).expect("read");
            expected.resize(usize::try_from(size).expect("small"), 0);
            assert!(fs::read(&copied).expect("read") == expected, "{size}");
            let taken = file.metadata().expect("told").blocks() * 512;
            assert!(taken < 6 * MIB, "{taken}");
            let (by_hand, other) = open(&format!("{n}.by-hand"), size);
            copy_by_hand(&source, &other, 0, size.min(40 * MIB)).expect("copied");
            assert!(fs::read(by_hand).expect("read") == expected, "{size}");
        }
    }

    #[test]
    fn a_copy_that_is_not_whole_is_begun_again_and_one_that_is_gone_harms_nothing() {
        let folder = tempfile::tempdir().expect("scratch");
        let path = |name: &str| folder.path().join(name);
        for name in ["journal", "home", "source"] {
            fs::create_dir(path(name)).expect("made");
        }
        let wanted = [disk("a.raw", 0), disk("b.raw", 1)];
        fs::write(path("source/a.raw"), vec![7; 5000]).expect("written");
        let bases: Vec<PathBuf> = wanted
            .iter()
            .map(|disk| path("journal").join(journal::Journal::base_file(disk.id)))
            .collect();
        for base in &bases {
            File::create(base)
                .expect("made")
                .set_len(MIB)
                .expect("sized");
        }
        // Half of it, of before a kill.
        fs::write(&bases[0], vec![9; 100]).expect("written");
        File::options()
            .write(true)
            .open(&bases[0])
            .and_then(|file| file.set_len(MIB))
            .expect("sized");
        let copy = Copy::of(&from(), &path("source"), &wanted, &wanted).expect("matched");
        copy.write(&path("home")).expect("written");
        let filling = Filling::of(&path("home"), "VM `web`");
        assert!(filling.now().is_some());
        filling.0.work(&path("journal"));
        assert_eq!(filling.now(), None);
        let mut expected = vec![7; 5000];
        expected.resize(1 << 20, 0);
        assert!(fs::read(&bases[0]).expect("read") == expected);
        assert!(fs::read(&bases[1]).expect("read") == vec![0; 1 << 20]);
        // Nothing is to be done any more, nor after a restart.
        assert_eq!(Filling::of(&path("home"), "VM `web`").now(), None);
        // Where the base cannot be written it says why, and is tried again.
        copy.write(&path("home")).expect("written");
        let filling = Filling::of(&path("home"), "VM `web`");
        fs::remove_file(&bases[1]).expect("removed");
        fs::write(path("source/b.raw"), b"there").expect("written");
        let error = filling.0.fill(&path("journal")).expect_err("no base");
        filling.0.failed(&error);
        let told = filling.now().expect("not done").problem.expect("why");
        assert!(told.way_out.contains("cancel"), "{told}");
        assert!(path("home/copy.toml").exists());
    }
}
