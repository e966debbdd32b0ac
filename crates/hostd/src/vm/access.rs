//! Whose the files of a VM are, and what its processes may do.
//!
//! When polluxd is root, diskd and QEMU of a VM run as a user that is the VM's alone
//! ([`sandbox::user_of`], U below), and what they need is given to it:
//!
//! ```text
//!   STATE/ vms/ replicas/ ...  root  0711   others pass, and see nothing
//!     vms/UUID/                root:U 0750  U reads names; it cannot make or replace a file
//!       vm.toml standing.toml  root  0600
//!       checkpoints/           root:U 0750
//!       disk0.raw, overlays    U     0600   made by polluxd if they are not there yet
//!       serial.log uefi-...fd  U     0600
//!       outbox/ tracking/      U     0700
//!   RUN/                       root  0711
//!     SHORT-ID/                root:U 0750
//!       vmd.json vmd.sock      root  0600
//!       diskd.json             root:U 0640
//!       disk0.sock ...         U     0600   given by vmd
//!       own/                   U     0700   what they make: QMP, console, state of diskd
//! ```
//!
//! A folder that U can write holds nothing that root trusts: what it makes there under another's
//! name leads nobody astray. Outside of Pollux's folders nothing is given away but a disk's own file,
//! and that is given back when the disk is detached ([`give_back`]).
//!
//! If U cannot reach something (the state lies in `/root`, say), the VM's processes run as polluxd's
//! own user, without capabilities, and that is said. So they do when polluxd is not root. Landlock
//! and seccomp hold in all three cases. Access lists (ACLs) are not looked at: who is let in only by
//! one is taken for shut out.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use diskd::config::StackSpec;
use model::Problem;
use qemu::{Firmware, RunPaths};
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use sandbox::Rights;

use super::folder::VmFolder;
use super::source::DiskdSource;
use super::takeover::FAILOVER;
use super::tracking;
use crate::programs::Programs;

const KVM: &str = "/dev/kvm";
const READ: u32 = 0o4;
const READ_WRITE: u32 = 0o6;
const EXECUTE: u32 = 0o1;

/// The folder in a VM's run folder that belongs to its processes.
pub(crate) fn own(run: &Path) -> PathBuf {
    run.join("own")
}

/// Lets others pass through one of Pollux's folders, to what they were given; only root gives.
pub(crate) fn let_pass(folder: &Path) -> io::Result<()> {
    let mode = fs::metadata(folder)?.mode() & 0o7777;
    set_mode(folder, mode | 0o011)
}

/// Gives a disk file that was given to a VM back to whom it belonged, when it is detached.
pub(crate) fn give_back(file: &Path) -> io::Result<()> {
    let Some((user, group)) = remembered(file) else {
        return give(file, None);
    };
    chown(file, Some(user), Some(group))?;
    Ok(removexattr(file, OWNER)?)
}

/// Where a disk file from elsewhere keeps whose it was; only root reads and writes it.
const OWNER: &str = "trusted.pollux.owner";

/// Notes whose a file is before it is given away. Where the file system keeps no such notes, it is
/// given back to polluxd's own user.
fn remember(file: &Path, user: Option<u32>) -> io::Result<()> {
    if !geteuid().is_root() || remembered(file).is_some() {
        return Ok(());
    }
    let meta = fs::metadata(file)?;
    if Some(meta.uid()) == user {
        return Ok(());
    }
    let owner = format!("{}:{}", meta.uid(), meta.gid());
    match setxattr(file, OWNER, owner.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        done => Ok(done?),
    }
}

fn remembered(file: &Path) -> Option<(u32, u32)> {
    let mut noted = [0; 32];
    let len = getxattr(file, OWNER, &mut noted).ok()?;
    let noted = std::str::from_utf8(noted.get(..len)?).ok()?;
    let (user, group) = noted.split_once(':')?;
    Some((user.parse().ok()?, group.parse().ok()?))
}

/// Writes a file that is the VM's to read, as a whole or not at all. For what need not survive a
/// reboot.
pub(crate) fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let group = fs::metadata(folder)?.gid();
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    if geteuid().is_root() {
        std::os::unix::fs::fchown(&file, None, Some(group))?;
        file.set_permissions(fs::Permissions::from_mode(0o640))?;
    }
    fs::rename(temporary, path)
}

/// Who the processes of a VM are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    /// Their user; none: polluxd's own.
    pub(crate) user: Option<u32>,
    /// Why it is polluxd's own.
    pub(crate) notice: Option<String>,
}

impl Access {
    /// Decides who the processes of the VM in `folder` are, and gives them what they need. To be done
    /// before they start, and again before they are told of a file that is new; the run folder is
    /// there. With `kvm`, QEMU needs that.
    pub(crate) fn settle(
        folder: &VmFolder,
        run: &Path,
        programs: &Programs,
        kvm: bool,
    ) -> Result<Self, Problem> {
        let user = sandbox::user_of(folder.spec.id);
        let settled = sandbox::can_become(user).and_then(|()| {
            let passed = [run.parent(), folder.path.parent()];
            passed
                .into_iter()
                .flatten()
                .try_for_each(let_pass)
                .map_err(|error| error.to_string())?;
            reachable(folder, run, programs, user, kvm)?;
            give_all(folder, run, Some(user)).map_err(|(path, error)| {
                format!("{} cannot be given to user {user}: {error}", path.display())
            })
        });
        let Err(reason) = settled else {
            let notice = None;
            return Ok(Self {
                user: Some(user),
                notice,
            });
        };
        give_all(folder, run, None)
            .map_err(|(path, error)| Problem::failed(path.display().to_string(), &error))?;
        let notice = format!("the VM's processes run as polluxd's own user: {reason}");
        tracing::warn!(vm = %folder.spec.id, "{notice}");
        Ok(Self {
            user: None,
            notice: Some(notice),
        })
    }

    /// What was settled for the VM with this run folder.
    pub(crate) fn settled(run: &Path) -> Self {
        let owner = fs::metadata(own(run)).map_or(geteuid().as_raw(), |meta| meta.uid());
        Self {
            user: (owner != geteuid().as_raw()).then_some(owner),
            notice: None,
        }
    }

    /// What diskd may do.
    pub(crate) fn diskd(&self, folder: &VmFolder, run: &Path) -> Rights {
        let stacks = stacks(folder);
        let mut write = vec![own(run), tracking::folder(folder)];
        if !folder.is_read_only() {
            write.extend([folder.path.clone(), outbox(folder)]);
        }
        let files = stacks.iter().flat_map(files);
        write.extend(files.filter(|file| !file.starts_with(&folder.path)));
        let mut read = vec![run.to_owned()];
        // Of disks that are that journal's base files, to make sure that they are.
        let journal = folder
            .journal()
            .filter(|journal| !folder.lies_on_files() || journal.is_dir());
        read.extend(journal.map(Path::to_owned));
        Rights {
            user: self.user,
            groups: Vec::new(),
            write,
            // A journal is polluxd's, and grows.
            read_any: self.user.is_some() && read.len() > 1,
            read,
            io_uring: true,
        }
    }

    /// What QEMU may do.
    pub(crate) fn qemu(
        &self,
        folder: &VmFolder,
        run: &Path,
        paths: &RunPaths,
        firmware: Option<&Firmware>,
    ) -> Rights {
        let mut read = vec![run.to_owned()];
        read.extend(boot_files(folder));
        read.extend(firmware.map(|firmware| firmware.code.clone()));
        Rights {
            user: self.user,
            groups: kvm_group().into_iter().collect(),
            write: vec![own(run), paths.serial_log.clone(), paths.variables.clone()],
            read,
            read_any: false,
            io_uring: false,
        }
    }
}

/// Checks that `user` can reach all that it would be given and all that it reads.
fn reachable(
    folder: &VmFolder,
    run: &Path,
    programs: &Programs,
    user: u32,
    kvm: bool,
) -> Result<(), String> {
    let passer = Passer { user };
    let made = stacks(folder).iter().flat_map(files).collect::<Vec<_>>();
    // Neither Pollux's own folders nor what lies in them are given yet.
    let outside = made.iter().filter(|file| !file.starts_with(&folder.path));
    for path in outside.chain([&folder.path, &run.to_owned()]) {
        passer.passes_to(path)?;
    }
    passer.may(&programs.diskd, EXECUTE)?;
    for file in boot_files(folder) {
        passer.may(&file, READ)?;
    }
    if kvm {
        passer.may(Path::new(KVM), READ_WRITE)?;
    }
    Ok(())
}

/// Somebody on the way to a file.
struct Passer {
    user: u32,
}

impl Passer {
    /// Every folder above `path` lets it through.
    fn passes_to(&self, path: &Path) -> Result<(), String> {
        let real = fs::canonicalize(path.parent().unwrap_or(path))
            .map_err(|error| format!("{} cannot be reached: {error}", path.display()))?;
        for folder in real.ancestors() {
            self.allowed(folder, EXECUTE)?;
        }
        Ok(())
    }

    /// It may do `what` with the file.
    fn may(&self, path: &Path, what: u32) -> Result<(), String> {
        let real = fs::canonicalize(path)
            .map_err(|error| format!("{} cannot be reached: {error}", path.display()))?;
        self.passes_to(&real)?;
        self.allowed(&real, what)
    }

    fn allowed(&self, path: &Path, what: u32) -> Result<(), String> {
        let meta = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mode = meta.mode();
        let mode = if meta.uid() == self.user {
            mode >> 6
        } else if meta.gid() == self.user || Some(meta.gid()) == kvm_group() {
            mode >> 3
        } else {
            mode
        };
        if mode & what == what {
            return Ok(());
        }
        Err(format!(
            "user {} is not let into {} (mode {:04o})",
            self.user,
            path.display(),
            meta.mode() & 0o7777
        ))
    }
}

/// The group that may use KVM; never root's.
fn kvm_group() -> Option<u32> {
    let meta = fs::metadata(KVM).ok()?;
    let shared = meta.mode() >> 3 & READ_WRITE == READ_WRITE;
    (shared && meta.gid() != 0).then(|| meta.gid())
}

fn stacks(folder: &VmFolder) -> Vec<StackSpec> {
    let disks = folder.spec.disks.iter();
    disks.map(|disk| folder.stack(disk)).collect()
}

/// The files that a disk is written to, from the top down.
fn files(stack: &StackSpec) -> Vec<PathBuf> {
    match stack {
        StackSpec::Raw { file } => vec![file.clone()],
        StackSpec::Point { .. } => Vec::new(),
        StackSpec::Overlay {
            file, map, below, ..
        } => {
            let mut all = vec![file.clone(), map.clone()];
            all.extend(files(below));
            all
        }
    }
}

/// Whether the file is the raw one below all overlays.
fn is_bottom(stack: &StackSpec, wanted: &Path) -> bool {
    match stack {
        StackSpec::Raw { file } => file == wanted,
        StackSpec::Point { .. } => false,
        StackSpec::Overlay { below, .. } => is_bottom(below, wanted),
    }
}

fn boot_files(folder: &VmFolder) -> Vec<PathBuf> {
    let boot = folder.spec.direct_boot.iter();
    boot.flat_map(|boot| [Some(boot.kernel.clone()), boot.initrd.clone()])
        .flatten()
        .collect()
}

/// Where the VM's segments wait: in the folder of the VM, or in that of the twin it was made from.
fn outbox(folder: &VmFolder) -> PathBuf {
    let failed_over = folder.path.file_name().is_some_and(|name| name == FAILOVER);
    match folder.path.parent() {
        Some(twin) if failed_over || folder.origin.is_some() => DiskdSource::outbox(twin),
        _ => DiskdSource::outbox(&folder.path),
    }
}

/// Gives everything to `user`; to polluxd's own if there is none.
fn give_all(folder: &VmFolder, run: &Path, user: Option<u32>) -> Result<(), (PathBuf, io::Error)> {
    let shared = |path: &Path| -> io::Result<()> {
        if geteuid().is_root() {
            chown(path, Some(0), Some(user.unwrap_or(0)))?;
        }
        set_mode(path, if user.is_some() { 0o750 } else { 0o700 })
    };
    let owned_folder = |path: &Path| -> io::Result<()> {
        durable::create_folder(path)?;
        give(path, user)?;
        set_mode(path, 0o700)?;
        for entry in fs::read_dir(path)? {
            give_entry(&entry?.path(), user)?;
        }
        Ok(())
    };
    let owned_file = |path: &Path, make: bool| -> io::Result<()> {
        if make {
            // It cannot make files itself: the folder is not its own, or Landlock lets it write only
            // to files that are there.
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600).open(path)?;
        }
        let outside = !path.starts_with(&folder.path);
        let noted = if outside {
            remember(path, user)
        } else {
            Ok(())
        };
        match noted.and_then(|()| give(path, user)) {
            // Whoever opens it says so.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    };
    let at = |path: PathBuf, done: io::Result<()>| done.map_err(|error| (path, error));
    at(run.to_owned(), shared(run))?;
    at(own(run), owned_folder(&own(run)))?;
    at(folder.path.clone(), shared(&folder.path))?;
    if !folder.is_read_only() {
        at(outbox(folder), owned_folder(&outbox(folder)))?;
    }
    let kept = tracking::folder(folder);
    at(kept.clone(), owned_folder(&kept))?;
    for stack in stacks(folder) {
        for file in files(&stack) {
            let parent = file.parent().filter(|parent| *parent != folder.path);
            if let Some(parent) = parent.filter(|parent| parent.starts_with(&folder.path)) {
                let made = durable::create_folder(parent).and_then(|()| shared(parent));
                at(parent.to_owned(), made)?;
            }
            let done = owned_file(&file, !is_bottom(&stack, &file));
            at(file, done)?;
        }
    }
    if folder.is_read_only() {
        return Ok(());
    }
    for (name, make) in [("serial.log", true), ("uefi-variables.fd", false)] {
        let file = folder.path.join(name);
        let done = owned_file(&file, make);
        at(file, done)?;
    }
    Ok(())
}

/// Makes a file or a folder `user`'s, or polluxd's own; only root can, and only root needs to.
fn give(path: &Path, user: Option<u32>) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let wanted = owner(user);
    let meta = fs::metadata(path)?;
    if (meta.uid(), meta.gid()) == wanted {
        return Ok(());
    }
    chown(path, Some(wanted.0), Some(wanted.1))
}

/// As [`give`], of what lies in a folder that is another's: no link is followed or given away.
fn give_entry(path: &Path, user: Option<u32>) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let wanted = owner(user);
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    if (meta.uid(), meta.gid()) == wanted || !meta.is_file() || meta.nlink() != 1 {
        return Ok(());
    }
    lchown(path, Some(wanted.0), Some(wanted.1))
}

fn owner(user: Option<u32>) -> (u32, u32) {
    user.map_or((geteuid().as_raw(), getegid().as_raw()), |user| {
        (user, user)
    })
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    if !geteuid().is_root() || fs::metadata(path)?.mode() & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::folder::{Made, Origin};

    /// Only root gives files away, and not every file system keeps notes of whose they were.
    #[test]
    fn a_file_that_was_given_away_twice_goes_back_to_whom_it_belonged_first() {
        let folder = tempfile::tempdir().expect("scratch");
        let file = folder.path().join("data.raw");
        fs::write(&file, "content").expect("written");
        let owner = || {
            let meta = fs::metadata(&file).expect("there");
            (meta.uid(), meta.gid())
        };
        let first = if geteuid().is_root() {
            (1234, 5678)
        } else {
            owner()
        };
        chown(&file, Some(first.0), Some(first.1)).expect("given");
        for user in [Some(70_001), Some(70_002), None] {
            remember(&file, user).expect("noted");
            give(&file, user).expect("given");
        }
        let noted = remembered(&file).is_some();
        give_back(&file).expect("given back");
        let wanted = match (geteuid().is_root(), noted) {
            (true, false) => (0, 0),
            _ => first,
        };
        assert_eq!(owner(), wanted);
        assert!(remembered(&file).is_none());
    }

    fn vm(path: PathBuf) -> VmFolder {
        let spec = model::VmSpec::new(
            "web".parse().expect("a good name"),
            model::Generation::Two,
            1,
            model::Bytes(64 << 20),
            true,
            None,
            Vec::new(),
        );
        VmFolder {
            path,
            spec: spec.expect("good"),
            origin: None,
        }
    }

    /// Landlock lets nobody write to a file that was not there when the rights were taken.
    #[test]
    fn what_processes_write_is_there_before_they_start_whoever_they_are() {
        let scratch = tempfile::tempdir().expect("scratch");
        let folder = vm(scratch.path().join("vm"));
        let run = scratch.path().join("run");
        for path in [&folder.path, &run] {
            fs::create_dir(path).expect("made");
        }
        give_all(&folder, &run, None).expect("given");
        assert!(folder.path.join("serial.log").exists());
        assert!(tracking::folder(&folder).is_dir());
    }

    #[test]
    fn whoever_reads_a_point_may_read_its_journal_and_write_nothing_of_the_twin() {
        let (twin, run) = (PathBuf::from("/replicas/1"), Path::new("/run/1"));
        let journal = twin.join("journal");
        let point = model::PointId {
            term: model::TermId::random(),
            sequence: 1,
        };
        let mut folder = vm(twin.join("open-1"));
        let disk = model::DiskSpec::new("disk0".into(), model::Bytes(4096), model::Bus::Virtio, 0);
        folder.spec.disks.push(disk);
        let twin = model::VmId::random();
        let origin = Origin::new(Made::Open, twin, journal.clone(), point);
        folder.origin = Some(origin);
        let access = Access {
            user: Some(70_001),
            notice: None,
        };
        let rights = access.diskd(&folder, run);
        assert_eq!(rights.read, [run.to_owned(), journal]);
        assert_eq!(rights.write, [own(run), tracking::folder(&folder)]);
        assert!(rights.read_any, "the journal is polluxd's");
    }

    #[test]
    fn only_diskd_may_write_what_must_survive_a_power_cut() {
        let (folder, run) = (vm("/vms/1".into()), Path::new("/run/1"));
        let access = Access {
            user: Some(70_001),
            notice: None,
        };
        let kept = tracking::folder(&folder);
        let writes = |rights: Rights| rights.write.iter().any(|path| kept.starts_with(path));
        assert!(writes(access.diskd(&folder, run)));
        let paths = RunPaths::new(run, &folder.path);
        assert!(!writes(access.qemu(&folder, run, &paths, None)));
    }
}
