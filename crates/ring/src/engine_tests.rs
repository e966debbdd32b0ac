#![allow(unsafe_code, reason = "a seccomp filter is set up")]

use super::*;
use crate::Ring;

/// Has the kernel answer io_uring_setup(2) of this thread with `errno` from now on, as a container does.
fn forbid_io_uring(errno: i32) {
    let statement = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).expect("a code has 16 bits"),
        jt,
        jf,
        k,
    };
    let number = u32::try_from(libc::SYS_io_uring_setup).expect("a small number");
    let answer = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).expect("positive");
    let mut filter = [
        // The number of the call is the first word of seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, answer),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is a local; both calls affect this thread only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program),
            0
        );
    }
}

#[test]
fn where_the_kernel_gives_no_io_uring_threads_stand_in_and_the_reason_is_told() {
    for errno in REFUSALS {
        let thread = std::thread::spawn(move || {
            forbid_io_uring(errno);
            let ring = Ring::new(8).expect("threads stand in");
            assert_eq!(ring.kind(), Kind::Threads);
            let notice = ring.notice().expect("it is told");
            assert_eq!(notice.source.raw_os_error(), Some(errno));
            assert_eq!(ring.block_on(async { 7 }), 7);
            assert!(
                Ring::of_kind(Kind::IoUring, 8).is_err(),
                "nothing else was asked for"
            );
        });
        thread.join().expect("no panic");
    }
}

#[test]
fn a_host_that_is_out_of_descriptors_is_not_taken_for_one_without_io_uring() {
    let thread = std::thread::spawn(|| {
        forbid_io_uring(libc::EMFILE);
        let error = Ring::new(8).err().expect("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    });
    thread.join().expect("no panic");
}

#[test]
fn what_was_asked_for_has_no_notice() {
    for kind in [Kind::IoUring, Kind::Threads] {
        let ring = Ring::of_kind(kind, 8).expect("this host has io_uring");
        assert_eq!(ring.kind(), kind);
        assert!(ring.notice().is_none());
    }
}
