//! The system calls that diskd leaves itself.
//!
//! What is not in [`CALLS`] ends the process with SIGSYS: diskd never makes it, so whoever does is not
//! diskd any more. [`REFUSED`] are calls that a library may try and does without. The supervisor
//! has already taken the network, other processes and most files ([`sandbox`]); what is left here is
//! to read, write and map the files that Landlock lets it open, and to wait.
//!
//! The list holds for the C libraries of Debian 12 and 13, for the ring and for the threads that stand
//! in where there is none. io_uring does its work past any filter, and is confined by the rest: the
//! descriptors that it works on were opened by this process, with this process's rights.

use libc::c_long;
use sandbox::{Allowed, allow_only};

/// What is made.
#[rustfmt::skip]
const CALLS: &[c_long] = &[
    // Memory.
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect,
    libc::SYS_madvise, libc::SYS_msync, libc::SYS_mincore, libc::SYS_mlock, libc::SYS_mlock2,
    libc::SYS_munlock, libc::SYS_memfd_create, libc::SYS_membarrier,
    // Files.
    libc::SYS_openat, libc::SYS_close, libc::SYS_close_range, libc::SYS_read, libc::SYS_write,
    libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_preadv,
    libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_fstat,
    libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs,
    libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fadvise64, libc::SYS_readahead,
    libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_syncfs,
    libc::SYS_copy_file_range, libc::SYS_sendfile, libc::SYS_flock, libc::SYS_fcntl,
    libc::SYS_dup, libc::SYS_dup3, libc::SYS_getdents64, libc::SYS_mkdirat, libc::SYS_unlinkat,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_faccessat, libc::SYS_faccessat2,
    libc::SYS_readlinkat, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_umask,
    libc::SYS_getcwd, libc::SYS_ioctl,
    // Unix sockets.
    libc::SYS_socket, libc::SYS_socketpair, libc::SYS_accept, libc::SYS_accept4,
    libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    libc::SYS_shutdown, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    // Waiting.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime, libc::SYS_signalfd4,
    libc::SYS_pipe2, libc::SYS_pidfd_open, libc::SYS_nanosleep, libc::SYS_clock_nanosleep,
    libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    // Threads and signals of this process.
    libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_set_robust_list, libc::SYS_get_robust_list,
    libc::SYS_set_tid_address, libc::SYS_rseq, libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler, libc::SYS_prctl, libc::SYS_gettid, libc::SYS_getpid,
    libc::SYS_getppid, libc::SYS_tgkill, libc::SYS_exit, libc::SYS_exit_group,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigsuspend, libc::SYS_rt_sigpending,
    libc::SYS_sigaltstack, libc::SYS_restart_syscall,
    // What it is and what time it is.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday,
    libc::SYS_getrusage, libc::SYS_times, libc::SYS_prlimit64, libc::SYS_getrlimit,
    libc::SYS_getrandom, libc::SYS_sysinfo, libc::SYS_uname, libc::SYS_getuid,
    libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
    // Installing this filter's parts, and more of them.
    libc::SYS_seccomp,
    // Older names of the above.
    #[cfg(target_arch = "x86_64")] libc::SYS_open,
    #[cfg(target_arch = "x86_64")] libc::SYS_stat,
    #[cfg(target_arch = "x86_64")] libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")] libc::SYS_access,
    #[cfg(target_arch = "x86_64")] libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")] libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")] libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_rename,
    #[cfg(target_arch = "x86_64")] libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")] libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")] libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")] libc::SYS_poll,
    #[cfg(target_arch = "x86_64")] libc::SYS_select,
    #[cfg(target_arch = "x86_64")] libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")] libc::SYS_time,
    #[cfg(target_arch = "x86_64")] libc::SYS_arch_prctl,
];

/// What is tried now and then and may fail: placement and priority of threads and memory.
#[rustfmt::skip]
const REFUSED: &[c_long] = &[
    libc::SYS_setpriority, libc::SYS_getpriority, libc::SYS_sched_setscheduler,
    libc::SYS_sched_setattr, libc::SYS_sched_getattr, libc::SYS_mbind, libc::SYS_set_mempolicy,
    libc::SYS_get_mempolicy, libc::SYS_kill, libc::SYS_tkill, libc::SYS_connect, libc::SYS_bind,
];

/// Gives up all other system calls, for all threads that are and will be.
///
/// # Errors
/// When the kernel has no seccomp, or refused.
pub fn give_up_others() -> std::io::Result<()> {
    let (calls, refused) = (CALLS, REFUSED);
    allow_only(Allowed { calls, refused })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_both_allowed_and_refused_and_nothing_reaches_beyond_the_process() {
        assert!(CALLS.iter().all(|call| !REFUSED.contains(call)));
        for beyond in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_setuid,
            libc::SYS_bpf,
            libc::SYS_chown,
            libc::SYS_symlinkat,
            libc::SYS_mknodat,
        ] {
            assert!(!CALLS.contains(&beyond) && !REFUSED.contains(&beyond));
        }
    }
}
