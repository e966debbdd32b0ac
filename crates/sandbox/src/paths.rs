//! The files a process may use, as a Landlock ruleset.
#![allow(unsafe_code, reason = "Landlock's version has no safe binding")]

use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use crate::Rights;

/// The newest that is known here; of what the kernel does not know yet, it takes what it knows.
const NEWEST: ABI = ABI::V10;

/// Programs' libraries and data: read by every program.
const READ: [&str; 17] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/gnutls",
    "/etc/ssl/openssl.cnf",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/vm/overcommit_memory",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system",
    "/sys/kernel/mm",
    "/sys/module/kvm",
    "/sys/fs/cgroup",
];
/// The dynamic loader is executed by the kernel, for the program.
const LOADER: [&str; 2] = ["/lib", "/lib64"];
/// Devices that hold nothing.
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];
/// Given with a VM's rights, to be opened by whoever its file mode lets.
const KVM: &str = "/dev/kvm";

/// The ruleset, or none when the kernel has no Landlock; and what is lacking.
pub(crate) fn ruleset(
    rights: &Rights,
    program: &Path,
    lacking: &mut Vec<String>,
) -> Result<Option<OwnedFd>, RulesetError> {
    let Some(version) = version() else {
        lacking.push(
            "Landlock: this kernel has none or it is switched off, so files are guarded by their \
             owner and mode alone"
                .to_owned(),
        );
        return Ok(None);
    };
    lacking.extend(missing(version).map(str::to_owned));

    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile;
    for path in READ {
        ruleset = allow(ruleset, path, read)?;
    }
    for path in LOADER {
        ruleset = allow(ruleset, path, read | AccessFs::Execute)?;
    }
    for path in DEVICES {
        ruleset = allow(ruleset, path, device)?;
    }
    ruleset = allow(ruleset, KVM, device | AccessFs::IoctlDev)?;
    ruleset = allow(ruleset, program, AccessFs::Execute | AccessFs::ReadFile)?;
    for path in &rights.read {
        ruleset = allow(ruleset, path, read | AccessFs::ResolveUnix)?;
    }
    // What nobody here makes could only lead others astray.
    let never = AccessFs::Execute
        | AccessFs::MakeSym
        | AccessFs::MakeChar
        | AccessFs::MakeBlock
        | AccessFs::MakeFifo;
    for path in &rights.write {
        ruleset = allow(ruleset, path, AccessFs::from_all(NEWEST) & !never)?;
    }
    Ok(ruleset.into())
}

/// The kernel's version of Landlock, if it has any.
fn version() -> Option<u32> {
    /// LANDLOCK_CREATE_RULESET_VERSION, linux/landlock.h.
    const VERSION: u32 = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag it takes no attributes and only tells a number.
    let told = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) };
    u32::try_from(told).ok().filter(|version| *version > 0)
}

/// What a kernel with this version of Landlock cannot refuse.
fn missing(version: u32) -> impl Iterator<Item = &'static str> {
    [
        (
            3,
            "Landlock: this kernel (before 6.2) does not guard the truncation of files",
        ),
        (4, "Landlock: this kernel (before 6.7) does not guard TCP"),
        (
            6,
            "Landlock: this kernel (before 6.12) does not guard signals and abstract sockets",
        ),
    ]
    .into_iter()
    .filter(move |(since, _)| version < *since)
    .map(|(_, text)| text)
}

/// Adds a rule for `path`; one that does not exist needs none.
fn allow(
    ruleset: RulesetCreated,
    path: impl AsRef<Path>,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let path = path.as_ref();
    let Ok(opened) = PathFd::new(path) else {
        return Ok(ruleset);
    };
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(NEWEST)
    };
    ruleset.add_rule(PathBeneath::new(opened, access))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_kernel_lacks_more() {
        let lacks = |version| missing(version).count();
        assert_eq!(lacks(1), 3);
        assert_eq!(lacks(3), 2);
        assert_eq!(lacks(4), 1);
        assert_eq!(lacks(6), 0);
    }
}
