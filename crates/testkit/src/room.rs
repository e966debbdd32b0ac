//! Small file systems, so that a test can take all the room there is.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

const MIB: u64 = 1 << 20;
/// Set where a test may mount.
const MAY_MOUNT: &str = "POLLUX_MAY_MOUNT";

/// Runs the test `name` again where it may mount: as itself when it is root, else in a mount
/// namespace. Whether the caller is that run.
///
/// # Errors
/// It failed there, or cannot be started.
pub fn may_mount(name: &str) -> io::Result<bool> {
    if rustix::process::geteuid().is_root() || std::env::var_os(MAY_MOUNT).is_some() {
        return Ok(true);
    }
    let possible = Command::new("unshare").args(["-rm", "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: not root, and `unshare -rm` gives no mount namespace here");
        return Ok(false);
    }
    let status = Command::new("unshare")
        .arg("-rm")
        .arg(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .env(MAY_MOUNT, "1")
        .status()?;
    if status.success() {
        Ok(false)
    } else {
        Err(io::Error::other("it failed in its mount namespace"))
    }
}

/// Goes on, with the same arguments, where the caller may mount and what it mounts ends with it: in a
/// mount namespace.
///
/// # Errors
/// There is no `unshare`. One that refuses says so itself, and ends the caller.
pub fn in_own_mounts() -> io::Result<()> {
    if std::env::var_os(MAY_MOUNT).is_some() {
        return Ok(());
    }
    let root = rustix::process::geteuid().is_root();
    let error = Command::new("unshare")
        .arg(if root { "-m" } else { "-rm" })
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(MAY_MOUNT, "1")
        .exec();
    Err(error)
}

/// A small file system that is mounted while this lives. See [`may_mount`].
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// An empty one of `mib` MiB at the folder `at`, which is made if it is not there; who may use
    /// that may use this.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount(at: PathBuf, mib: u64) -> io::Result<Self> {
        fs::create_dir_all(&at)?;
        let before = fs::metadata(&at)?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(&at)
            .status()?;
        if !status.success() {
            let reason = format!("cannot mount on {}", at.display());
            return Err(io::Error::other(reason));
        }
        let disk = Self(at);
        fs::set_permissions(&disk.0, fs::Permissions::from_mode(before.mode() & 0o7777))?;
        std::os::unix::fs::chown(&disk.0, Some(before.uid()), Some(before.gid()))?;
        Ok(disk)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes all room but for `free` bytes, at most. In small parts: a process that writes takes some
    /// of it too.
    ///
    /// # Errors
    /// I/O
    pub fn fill(&self, free: u64) -> io::Result<()> {
        let ballast = self.0.join("ballast");
        let ballast = File::options().create(true).append(true).open(ballast)?;
        let mut taken = ballast.metadata()?.len();
        loop {
            let space = rustix::fs::statvfs(&self.0)?;
            let left = (space.f_bavail * space.f_frsize).saturating_sub(free);
            if left == 0 {
                return Ok(());
            }
            let part = left.min(MIB);
            match rustix::fs::fallocate(&ballast, FallocateFlags::empty(), taken, part) {
                Ok(()) => taken += part,
                // Somebody else was first.
                Err(Errno::NOSPC) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Gives back what [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// Nothing was taken.
    pub fn make_room(&self) -> io::Result<()> {
        fs::remove_file(self.0.join("ballast"))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is still open there goes with its process.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
