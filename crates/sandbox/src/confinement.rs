//! Between fork and exec: everything prepared before, system calls only after.
#![allow(unsafe_code, reason = "what a child does between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use landlock::RulesetError;
use rustix::io::{read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::geteuid;
use rustix::thread::CapabilitySet;
use seccompiler::{BackendError, BpfProgram, apply_filter};

use crate::users::{can_become, holds};
use crate::{Rights, filter, paths};

/// Why a confinement could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be given the user that its files were given to.
    #[error("cannot run as user {user}: {reason}")]
    User {
        /// The user.
        user: u32,
        /// Why not.
        reason: String,
    },
    /// The kernel refused the rules for files.
    #[error("the rules for files were refused")]
    Ruleset(#[source] RulesetError),
    /// A filter of system calls could not be made.
    #[error("the filter of system calls cannot be made")]
    Filter(#[source] BackendError),
    /// No pipe.
    #[error("no pipe")]
    Pipe(#[source] io::Error),
}

/// `CAP_DAC_READ_SEARCH`, linux/capability.h.
const DAC_READ_SEARCH: u32 = 2;

/// What may fail without ending the child; one byte each in the pipe to the parent.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Step {
    Network = 1,
    OwnProc,
    Files,
    Calls,
}

impl Step {
    fn text(byte: u8) -> &'static str {
        const ALL: [(Step, &str); 4] = [
            (Step::Network, "a network namespace of its own was refused"),
            (Step::OwnProc, "its own /proc could not be given to it"),
            (
                Step::Files,
                "Landlock was refused: files are guarded by their owner and mode alone",
            ),
            (
                Step::Calls,
                "seccomp was refused: system calls are not filtered",
            ),
        ];
        ALL.iter()
            .find(|(step, _)| *step as u8 == byte)
            .map_or("something was refused", |(_, text)| text)
    }
}

/// All that it takes to confine a child, made before the fork.
#[derive(Debug)]
pub struct Confinement {
    user: Option<u32>,
    groups: Vec<libc::gid_t>,
    network: bool,
    bounding: bool,
    read_any: bool,
    ruleset: Option<OwnedFd>,
    filters: Vec<BpfProgram>,
    lacking: Vec<String>,
    refusals: OwnedFd,
    refuse: OwnedFd,
}

impl Confinement {
    /// Prepares `rights` for a child that will execute `program`; nothing for rights that restrict
    /// nothing.
    ///
    /// # Errors
    /// [`Error`]; a feature that the kernel lacks is none.
    pub fn prepare(rights: &Rights, program: &Path) -> Result<Option<Self>, Error> {
        if rights.is_unconfined() {
            return Ok(None);
        }
        if let Some(user) = rights.user {
            can_become(user).map_err(|reason| Error::User { user, reason })?;
        }
        let mut lacking = Vec::new();
        let ruleset = paths::ruleset(rights, program, &mut lacking).map_err(Error::Ruleset)?;
        let network = holds(CapabilitySet::SYS_ADMIN);
        if geteuid().is_root() && rights.user.is_none() {
            lacking.push("runs as root, without its capabilities".to_owned());
        }
        let (refusals, refuse) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| Error::Pipe(error.into()))?;
        Ok(Some(Self {
            user: rights.user,
            groups: rights.groups.clone(),
            network,
            bounding: holds(CapabilitySet::SETPCAP),
            read_any: rights.read_any && holds(CapabilitySet::DAC_READ_SEARCH),
            ruleset,
            filters: filter::denied(rights.io_uring).map_err(Error::Filter)?,
            lacking,
            refusals,
            refuse,
        }))
    }

    /// Confines the calling process, which is between fork and exec and has one thread. Makes
    /// system calls only; allocates nothing.
    ///
    /// # Errors
    /// When the user or the capabilities could not be given up; what else was refused, the parent
    /// learns from [`lacking`](Self::lacking).
    pub fn enter(&self) -> io::Result<()> {
        // Before capabilities go.
        if self.network {
            // SAFETY: changes only which network this process sees.
            self.note(Step::Network, unsafe { libc::unshare(libc::CLONE_NEWNET) });
        }
        self.give_up_capabilities_to_come()?;
        if let Some(user) = self.user {
            self.become_user(user)?;
        }
        leave_capabilities(self.read_any)?;
        // SAFETY: umask and this prctl take numbers only.
        unsafe {
            libc::umask(0o077);
            checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        }
        if let Some(ruleset) = &self.ruleset {
            self.note(Step::OwnProc, allow_own_proc(ruleset));
            // SAFETY: takes a descriptor and flags.
            let refused =
                unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
            self.note(Step::Files, i32::from(refused != 0));
        }
        for filter in &self.filters {
            // Its errors are numbers, so nothing is allocated.
            self.note(Step::Calls, i32::from(apply_filter(filter).is_err()));
        }
        Ok(())
    }

    /// What a child that has executed its program does without.
    #[must_use]
    pub fn lacking(mut self) -> Vec<String> {
        let mut bytes = [0; 16];
        let count = read(&self.refusals, &mut bytes).unwrap_or_default();
        bytes[..count].sort_unstable();
        let told = bytes[..count]
            .iter()
            .map(|byte| Step::text(*byte).to_owned());
        self.lacking.extend(told);
        self.lacking.dedup();
        self.lacking
    }

    fn note(&self, step: Step, result: i32) {
        if result != 0 {
            // The pipe has room for every step.
            let _ = write(&self.refuse, &[step as u8]);
        }
    }

    /// What a later exec could give back.
    fn give_up_capabilities_to_come(&self) -> io::Result<()> {
        if !self.bounding {
            return Ok(());
        }
        for capability in 0.. {
            if self.read_any && capability == DAC_READ_SEARCH {
                // Its successor inherits it, which takes it to be here.
                continue;
            }
            // SAFETY: takes numbers only.
            let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            match checked(dropped) {
                Ok(()) => {}
                // Past the last one that this kernel knows.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn become_user(&self, user: u32) -> io::Result<()> {
        // SAFETY: `groups` is valid for reads of its length; the rest are numbers.
        unsafe {
            checked(libc::prctl(libc::PR_SET_KEEPCAPS, i64::from(self.read_any)))?;
            checked(libc::setgroups(self.groups.len(), self.groups.as_ptr()))?;
            checked(libc::setresgid(user, user, user))?;
            checked(libc::setresuid(user, user, user))
        }
    }
}

/// What it has now: none is left to root either, but for reading when `read_any`.
fn leave_capabilities(read_any: bool) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`, linux/capability.h: two words each of effective, permitted
    /// and inheritable.
    const VERSION: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let word = u32::from(read_any) << DAC_READ_SEARCH;
    let sets = [word, word, word, 0, 0, 0];
    // SAFETY: both pointers are valid for reads of what this version has; the rest are numbers.
    unsafe {
        let refused = libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr());
        checked(i32::from(refused != 0))?;
        if read_any {
            // Or exec would take it away.
            let raise = libc::PR_CAP_AMBIENT_RAISE;
            checked(libc::prctl(
                libc::PR_CAP_AMBIENT,
                raise,
                DAC_READ_SEARCH,
                0,
                0,
            ))?;
        }
    }
    Ok(())
}

/// `/proc/self` is another folder in each process, so it is opened by the child.
fn allow_own_proc(ruleset: &OwnedFd) -> i32 {
    #[repr(C, packed)]
    struct PathBeneath {
        access: u64,
        parent: i32,
    }
    /// `LANDLOCK_RULE_PATH_BENEATH`, and read a file or a folder: linux/landlock.h.
    const RULE: i32 = 1;
    const READ: u64 = 1 << 2 | 1 << 3;
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the path ends with NUL; the rule is valid for reads, and the descriptor is closed
    // by the one who opened it.
    unsafe {
        let parent = libc::open(c"/proc/self".as_ptr(), flags);
        if parent < 0 {
            return -1;
        }
        let rule = PathBeneath {
            access: READ,
            parent,
        };
        let fd = ruleset.as_raw_fd();
        let refused = libc::syscall(libc::SYS_landlock_add_rule, fd, RULE, &raw const rule, 0);
        libc::close(parent);
        i32::from(refused != 0)
    }
}

fn checked(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
