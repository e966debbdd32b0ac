//! System calls, as seccomp programs.
//!
//! Two kinds: [`denied`] takes from any program what no program of a VM needs, before exec;
//! [`allow_only`] leaves a program that knows itself what it needs.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads, sock_filter,
};

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;
#[cfg(target_arch = "riscv64")]
const ARCH: TargetArch = TargetArch::riscv64;

/// What reaches beyond the process: other processes, mounts, modules, clocks, keys, namespaces.
const DENIED: &[c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // What is mounted where, and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_syslog,
    libc::SYS_reboot,
    libc::SYS_userfaultfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    // The host.
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_vhangup,
    // Keys.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];

/// Not of a thread, so not of anybody here.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The programs that take from any process what no process of a VM needs. They are applied one
/// after the other; the strictest answer holds.
pub(crate) fn denied(io_uring: bool) -> Result<Vec<BpfProgram>, BackendError> {
    let mut rules: Rules = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let no_unix = compare(0, SeccompCmpOp::Ne, libc::AF_UNIX)?;
    rules.insert(libc::SYS_socket, vec![no_unix]);
    let spaces = NAMESPACES.map(|flag| compare(0, SeccompCmpOp::MaskedEq(bits(flag)), flag));
    let spaces: Result<Vec<_>, _> = spaces.into_iter().collect();
    rules.insert(libc::SYS_clone, spaces?);
    if !io_uring {
        for call in [
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ] {
            rules.insert(call, Vec::new());
        }
    }
    let refused = SeccompFilter::new(rules, SeccompAction::Allow, errno(libc::EPERM), ARCH)?;
    let mut programs: Vec<BpfProgram> = vec![refused.try_into()?, no_clone3()?];
    programs.extend(no_x32());
    Ok(programs)
}

/// What a process leaves itself, [`allow_only`].
#[derive(Debug, Clone, Copy)]
pub struct Allowed<'a> {
    /// System calls that it makes.
    pub calls: &'a [c_long],
    /// System calls that are answered with `EPERM`: libraries try them and do without. Any other
    /// ends the process.
    pub refused: &'a [c_long],
}

/// Leaves this process, with all its threads and those to come, only the system calls of
/// `allowed`. Besides, it may start threads (no processes), and make Unix sockets if `socket` is
/// among the calls. A call that is in neither list ends the process with SIGSYS, which the kernel
/// logs: it is either a bug or an attack, and the supervisor starts another.
///
/// # Errors
/// When the kernel has no seccomp, or refused it.
pub fn allow_only(allowed: Allowed<'_>) -> io::Result<()> {
    let programs = only(allowed).map_err(io::Error::other)?;
    for program in &programs {
        apply_filter_all_threads(program).map_err(io::Error::other)?;
    }
    Ok(())
}

fn only(allowed: Allowed<'_>) -> Result<Vec<BpfProgram>, BackendError> {
    let mut rules: Rules = allowed
        .calls
        .iter()
        .map(|call| (*call, Vec::new()))
        .collect();
    if let Some(socket) = rules.get_mut(&libc::SYS_socket) {
        socket.push(compare(0, SeccompCmpOp::Eq, libc::AF_UNIX)?);
    }
    let thread = SeccompCmpOp::MaskedEq(bits(libc::CLONE_THREAD));
    rules.insert(
        libc::SYS_clone,
        vec![compare(0, thread, libc::CLONE_THREAD)?],
    );
    // The next two programs answer for these.
    rules.insert(libc::SYS_clone3, Vec::new());
    rules.extend(allowed.refused.iter().map(|call| (*call, Vec::new())));
    let kill = SeccompAction::KillProcess;
    let only = SeccompFilter::new(rules, kill, SeccompAction::Allow, ARCH)?;
    let mut programs: Vec<BpfProgram> = Vec::new();
    if !allowed.refused.is_empty() {
        let rules: Rules = allowed
            .refused
            .iter()
            .map(|call| (*call, Vec::new()))
            .collect();
        let refused = SeccompFilter::new(rules, SeccompAction::Allow, errno(libc::EPERM), ARCH)?;
        programs.push(refused.try_into()?);
    }
    programs.push(no_clone3()?);
    programs.extend(no_x32());
    // Last, because it may not allow what installs a filter.
    programs.push(only.try_into()?);
    Ok(programs)
}

/// The flags of clone3 lie in memory, where a filter cannot look; libraries fall back to clone
/// when the kernel does not have it.
fn no_clone3() -> Result<BpfProgram, BackendError> {
    let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, errno(libc::ENOSYS), ARCH)?.try_into()
}

/// The x32 interface reaches the same calls by other numbers, and seccompiler does not tell it
/// apart: it ends the process.
fn no_x32() -> Option<BpfProgram> {
    const X32_BIT: u32 = 0x4000_0000;
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, of seccomp_data.nr at 0
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    cfg!(target_arch = "x86_64").then(|| {
        vec![
            step(LOAD_NUMBER, 0, 0, 0),
            step(JUMP_IF_AT_LEAST, 0, 1, X32_BIT),
            step(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ]
    })
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

fn bits(flag: i32) -> u64 {
    u64::from(flag.unsigned_abs())
}

/// A rule on the argument `index`, as an int.
fn compare(index: u8, op: SeccompCmpOp, value: i32) -> Result<SeccompRule, BackendError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, bits(value))?;
    SeccompRule::new(vec![condition])
}
