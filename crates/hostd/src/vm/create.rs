//! Making a VM's folder, whole or not at all.
//!
//! Everything is made in a folder whose name begins with a dot, made durable, and renamed. A
//! crash before the rename leaves nothing that counts; [`sweep`] removes it at the next start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use api::{CreateVm, DiskContentFrom, NewDisk, Progress};
use durable::{Lock, LockError};
use model::{
    BLOCK_SIZE, Bus, Bytes, Code, DiskSpec, Generation, Lineage, Problem, VmSpec, free_slot,
};
use replica::standing::{self, Standing};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::folder::{VmFolder, thing};

/// Content is copied in parts of this many bytes, with progress told after each.
const PART: u64 = 32 << 20;

/// Makes the folder of a new VM below `vms`. `progress` is told how far the images are; when it
/// answers false, everything is undone.
pub(crate) fn create(
    vms: &Path,
    host: &str,
    wanted: &CreateVm,
    mut progress: impl FnMut(Progress) -> bool,
) -> Result<VmFolder, Problem> {
    let thing = thing(wanted.name.as_str());
    let spec = specification(&thing, wanted)?;
    let fail = |error: io::Error| no_space_or(&thing, &error);
    let temporary = vms.join(format!(".new-{}", spec.id));
    let mut undo = Undo(Some(temporary.clone()));
    durable::create_folder(&temporary).map_err(fail)?;
    for (disk, new) in spec.disks.iter().zip(&wanted.disks) {
        make_disk(&thing, &temporary, disk, new, &mut progress)?;
    }
    let mut folder = VmFolder {
        path: temporary.clone(),
        spec,
        origin: None,
    };
    folder.write().map_err(fail)?;
    Standing::primary(Lineage::begin(host))
        .store(&temporary.join(standing::FILE))
        .map_err(|error| Problem::failed(&thing, &error))?;
    let path = vms.join(folder.spec.id.to_string());
    publish(&temporary, &path).map_err(fail)?;
    undo.0 = None;
    folder.path = path;
    Ok(folder)
}

/// Gives a folder its lasting name, durably.
pub(crate) fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path)?;
    sync_parent(path)
}

/// Lets two folders that lie beside each other change their names, durably and at once.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?;
    sync_parent(other)
}

/// Removes a folder; it stays away after a crash, whole or not.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let doomed = removed(path);
    if doomed.exists() {
        fs::remove_dir_all(&doomed)?;
    }
    publish(path, &doomed)?;
    fs::remove_dir_all(&doomed)
}

/// What a folder is called while it is being removed.
pub(crate) fn removed(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".removed-{name}"))
}

/// Removes what a crash left half made or half removed below `folder`.
pub(crate) fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with('.') && entry.file_type()?.is_dir() {
            tracing::info!(folder = %entry.path().display(), "removing what was left half done");
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Stands beside a disk file until `vm.toml` names it or it is removed again: where a crash leaves
/// both, nobody ever wrote to the file.
pub(crate) struct Unnamed(PathBuf);

/// Begins the name of an [`Unnamed`]; the rest is the file's.
const UNNAMED: &str = ".new-";

impl Unnamed {
    pub(crate) fn mark(file: &Path) -> io::Result<Self> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mark = file.with_file_name(format!("{UNNAMED}{name}"));
        File::create(&mark)?;
        sync_parent(&mark)?;
        Ok(Self(mark))
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        // One that stays marks nothing: its file is named, or is not there.
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes disk files that were made for a VM and never became its disks.
pub(crate) fn sweep_unnamed(folder: &VmFolder) -> io::Result<()> {
    for entry in fs::read_dir(&folder.path)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(file) = name.to_str().and_then(|name| name.strip_prefix(UNNAMED)) else {
            continue;
        };
        let file = folder.path.join(file);
        let mut disks = folder.spec.disks.iter();
        if disks.all(|disk| folder.disk_file(disk) != file) {
            tracing::info!(file = %file.display(), "removing a disk that was never plugged in");
            durable::remove(&file)?;
        }
        fs::remove_file(entry.path())?;
    }
    Ok(())
}

pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .ok_or_else(|| io::Error::other("the root has no parent"))?;
    File::open(parent)?.sync_all()
}

struct Undo(Option<PathBuf>);

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // What cannot be removed now goes at the next start.
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn specification(thing: &str, wanted: &CreateVm) -> Result<VmSpec, Problem> {
    if wanted.generation == Generation::One && wanted.secure_boot == Some(true) {
        return Err(Problem::new(
            Code::Invalid,
            thing,
            "cannot have Secure Boot: generation 1 starts with BIOS",
            "Make it with `--generation 2`, or without `--secure-boot on`",
        ));
    }
    let mut disks = Vec::with_capacity(wanted.disks.len());
    for new in &wanted.disks {
        let bus = new.bus.unwrap_or(Bus::default_of(wanted.generation));
        let disk = disk_specification(thing, wanted.generation, &disks, new, bus)?;
        disks.push(disk);
    }
    VmSpec::new(
        wanted.name.clone(),
        wanted.generation,
        wanted.processors,
        wanted.memory,
        wanted
            .secure_boot
            .unwrap_or(wanted.generation == Generation::Two),
        wanted.direct_boot.clone(),
        disks,
    )
    .map_err(|error| Problem::new(Code::Invalid, thing, error.to_string(), ""))
}

/// A new disk on `bus`, beside `others`.
pub(crate) fn disk_specification(
    thing: &str,
    generation: Generation,
    others: &[DiskSpec],
    new: &NewDisk,
    bus: Bus,
) -> Result<DiskSpec, Problem> {
    if bus == Bus::Ide && generation == Generation::Two {
        return Err(Problem::new(
            Code::Invalid,
            thing,
            "is of generation 2, which has no IDE",
            "Choose `--bus virtio` or `--bus scsi`",
        ));
    }
    let n = free_slot(others, bus).ok_or_else(|| {
        let (reason, way_out) = match bus {
            Bus::Ide => (
                "has no free place on IDE, which has four",
                "Choose `--bus scsi` or `--bus virtio`",
            ),
            Bus::Virtio | Bus::Scsi => ("has 16 disks, as many as a VM can have", ""),
        };
        Problem::new(Code::Conflict, thing, reason, way_out)
    })?;
    let in_folder = || PathBuf::from(format!("disk{n}.raw"));
    let (file, size) = match &new.from {
        DiskContentFrom::Empty => {
            let size = new.size.ok_or_else(|| {
                Problem::new(
                    Code::Invalid,
                    thing,
                    format!("disk {n} has neither a size nor an image"),
                    "Say how large it is, such as `--disk 20GiB`",
                )
            })?;
            (in_folder(), size)
        }
        DiskContentFrom::Image(image) => {
            let len = length_of(image)?;
            let size = new.size.unwrap_or(whole_blocks(len));
            if size.0 < len {
                return Err(Problem::new(
                    Code::Invalid,
                    format!("image {}", image.display()),
                    format!("has {}, and the disk is to have {size}", Bytes(len)),
                    "Make the disk at least as large as its image",
                ));
            }
            (in_folder(), size)
        }
        DiskContentFrom::File(file) => {
            let len = length_of(file)?;
            if new.size.is_some_and(|size| size.0 != len) {
                return Err(Problem::new(
                    Code::Invalid,
                    format!("disk file {}", file.display()),
                    format!("has {len} bytes; its size cannot be chosen"),
                    "Leave the size out, or have it copied with `--image`",
                ));
            }
            free_to_use(file)?;
            (file.clone(), Bytes(len))
        }
    };
    Ok(DiskSpec::new(file, size, bus, n))
}

/// Length in bytes of a file or block device that can be read.
fn length_of(path: &Path) -> Result<u64, Problem> {
    let thing = || format!("disk file {}", path.display());
    if !path.is_absolute() {
        return Err(Problem::new(
            Code::Invalid,
            thing(),
            "is not an absolute path",
            "Name it from the root on",
        ));
    }
    let refuse = |error: &io::Error| {
        let (code, way_out) = match error.kind() {
            io::ErrorKind::NotFound => (Code::NotFound, "Check the path on the host of polluxd"),
            io::ErrorKind::PermissionDenied => (Code::Forbidden, "Let the user of polluxd read it"),
            _ => (Code::Failed, ""),
        };
        Problem::new(code, thing(), format!("cannot be opened: {error}"), way_out)
    };
    let mut file = open(path).map_err(|error| refuse(&error))?;
    let kind = file.metadata().map_err(|error| refuse(&error))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Problem::new(
            Code::Invalid,
            thing(),
            "is neither a file nor a block device",
            "Name a raw disk image",
        ));
    }
    if let Some(format) = other_format(&file).map_err(|error| refuse(&error))? {
        return Err(Problem::new(
            Code::Invalid,
            thing(),
            format!("is a {format} image, and only raw ones can be used"),
            "Convert it first: `qemu-img convert -O raw IMAGE RAW`",
        ));
    }
    let len = file
        .seek(SeekFrom::End(0))
        .map_err(|error| refuse(&error))?;
    if len == 0 {
        return Err(Problem::new(
            Code::Invalid,
            thing(),
            "is empty",
            "Name a raw disk image, or have an empty disk made with `--disk SIZE`",
        ));
    }
    Ok(len)
}

/// Opens for reading. Whatever a user names is opened: a pipe must not hold us up.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// The format of an image that is certainly meant to be something else than raw. A courtesy to
/// whoever mixes up files: formats are never chosen by content.
fn other_format(file: &File) -> io::Result<Option<&'static str>> {
    const FORMATS: [(&[u8], &str); 4] = [
        (b"QFI\xfb", "qcow2"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
        (b"KDMV", "VMDK"),
    ];
    let mut start = [0; 8];
    let read = file.read_at(&mut start, 0)?;
    let found = FORMATS
        .iter()
        .find(|(magic, _)| start[..read].starts_with(magic));
    Ok(found.map(|(_, name)| *name))
}

/// Whether no process works on the file. Only for the error message's sake: diskd takes the
/// lock that counts.
pub(crate) fn free_to_use(path: &Path) -> Result<(), Problem> {
    let thing = format!("disk file {}", path.display());
    let file = open(path).map_err(|error| Problem::failed(&thing, &error))?;
    match Lock::of(file, path) {
        Ok(_lock) => Ok(()),
        Err(LockError::Held { pid, .. }) => {
            let by = pid.map_or_else(
                || "another process".to_owned(),
                |pid| format!("process {pid}"),
            );
            Err(Problem::new(
                Code::Conflict,
                thing,
                format!("is in use by {by}"),
                "Stop what uses it: a VM, or a program such as qemu-img",
            ))
        }
        Err(error) => Err(Problem::failed(thing, &error)),
    }
}

fn make_disk(
    thing: &str,
    folder: &Path,
    disk: &DiskSpec,
    new: &NewDisk,
    progress: &mut impl FnMut(Progress) -> bool,
) -> Result<(), Problem> {
    if let DiskContentFrom::File(_) = new.from {
        return Ok(());
    }
    let path = folder.join(&disk.file);
    let fail = |error: io::Error| no_space_or(thing, &error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    if let DiskContentFrom::Image(image) = &new.from {
        free_to_use(image)?;
        let failed = |error: io::Error| Problem::failed(image.display().to_string(), &error);
        let source = open(image).map_err(failed)?;
        let before = end(&source).map_err(failed)?;
        copy(thing, &source, &file, progress)?;
        let shared = end(&file).map_err(fail)?;
        let after = end(&source).map_err(failed)?;
        // The disk's size was decided on an earlier look at the image.
        let as_decided = match new.size {
            Some(size) => before <= size.0,
            None => whole_blocks(before) == disk.size,
        };
        if !as_decided || after != before || shared > before {
            return Err(changed(image));
        }
    }
    file.set_len(disk.size.0).map_err(|error| {
        Problem::new(
            Code::Invalid,
            thing,
            format!("a disk of {} cannot be made: {error}", disk.size),
            "The file system may not hold files of that size; choose a smaller one",
        )
    })?;
    file.sync_all().map_err(fail)
}

fn whole_blocks(len: u64) -> Bytes {
    Bytes(len.div_ceil(BLOCK_SIZE).saturating_mul(BLOCK_SIZE))
}

/// Length in bytes of a file or block device.
fn end(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// The copy would be neither what the image was nor what it is.
fn changed(image: &Path) -> Problem {
    Problem::new(
        Code::Conflict,
        format!("image {}", image.display()),
        "changed its length while it was being copied",
        "Wait until nothing writes it, and try again",
    )
}

/// Copies the parts of `source` that hold data; shares them where the file system can.
fn copy(
    thing: &str,
    source: &File,
    target: &File,
    progress: &mut impl FnMut(Progress) -> bool,
) -> Result<(), Problem> {
    let fail = |error: io::Error| no_space_or(thing, &error);
    let meta = source.metadata().map_err(fail)?;
    if meta.is_file() && rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    let total = if meta.is_file() {
        (meta.blocks().saturating_mul(512)).min(meta.len())
    } else {
        0
    };
    let room = rustix::fs::fstatvfs(target).map_err(|errno| fail(errno.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if total > free {
        return Err(Problem::new(
            Code::Full,
            thing,
            format!(
                "the copy of its image takes {}, and {} are free in the state folder",
                Bytes(total),
                Bytes(free)
            ),
            "Make room there",
        ));
    }
    let (mut source, mut target) = (source, target);
    let (mut at, mut done) = (0, 0);
    while let Some((start, end)) = next_data(source, at).map_err(fail)? {
        source.seek(SeekFrom::Start(start)).map_err(fail)?;
        target.seek(SeekFrom::Start(start)).map_err(fail)?;
        at = end.min(start.saturating_add(PART));
        let mut part = io::Read::take(source, at - start);
        let copied = io::copy(&mut part, &mut target).map_err(fail)?;
        if copied == 0 {
            // Cut short while it was copied; its length tells.
            break;
        }
        done += copied;
        let told = progress(Progress {
            what: "copying the image".to_owned(),
            done: Bytes(done),
            total: Bytes(total.max(done)),
        });
        if !told {
            return Err(Problem::new(
                Code::Conflict,
                thing,
                "was not made: whoever asked for it went away",
                "",
            ));
        }
    }
    Ok(())
}

/// The next range that holds data at or after `at`.
fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A block device, or a file system without holes: all of it is data.
        Err(Errno::INVAL) => {
            let end = seek(file, SeekFrom::End(0))?;
            return Ok((at < end).then_some((at, end)));
        }
        Err(errno) => return Err(errno.into()),
    };
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?)))
}

/// A failure of the file system, with the way out when it is full.
pub(crate) fn no_space_or(thing: &str, error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Problem::new(
            Code::Full,
            thing,
            "the state folder's file system is full",
            "Make room there",
        ),
        _ => Problem::failed(thing, error),
    }
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
