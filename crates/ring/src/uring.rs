//! The engine of choice: one `io_uring_enter` a turn.
#![allow(unsafe_code, reason = "entries are pushed to the submission queue")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use crate::call::{Call, Pieces};
use crate::operation::Cancel;

/// Completion of a cancellation: nobody waits for it.
const NOBODY: u64 = u64::MAX;

pub(crate) struct Uring {
    uring: RefCell<IoUring>,
    /// Entries that found the submission queue full.
    backlog: RefCell<VecDeque<squeue::Entry>>,
}

impl Uring {
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let uring = IoUring::builder()
            .dontfork()
            .setup_clamp()
            .setup_cqsize(entries.saturating_mul(4))
            .setup_r_disabled()
            .build(entries)?;
        let mut allowed = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::PollAdd::CODE,
            opcode::PollRemove::CODE,
            opcode::Timeout::CODE,
            opcode::TimeoutRemove::CODE,
        ]
        .map(Restriction::sqe_op);
        uring.submitter().register_restrictions(&mut allowed)?;
        uring.submitter().register_enable_rings()?;
        Ok(Self {
            uring: RefCell::new(uring),
            backlog: RefCell::new(VecDeque::new()),
        })
    }

    /// Hands `call` to the kernel in this turn, or a later one if the queue is full.
    pub(crate) fn push(&self, call: &Call, user_data: u64) {
        self.push_entry(entry(call).user_data(user_data));
    }

    /// Asks the kernel to end an operation early.
    pub(crate) fn cancel(&self, user_data: u64, cancel: Cancel) {
        let entry = match cancel {
            Cancel::Never => return,
            Cancel::Poll => opcode::PollRemove::new(user_data).build(),
            Cancel::Timeout => opcode::TimeoutRemove::new(user_data).build(),
        };
        self.push_entry(entry.user_data(NOBODY));
    }

    fn push_entry(&self, entry: squeue::Entry) {
        let mut backlog = self.backlog.borrow_mut();
        if !backlog.is_empty() {
            backlog.push_back(entry);
            return;
        }
        let mut uring = self.uring.borrow_mut();
        // SAFETY: what the entry points to is in the slot of its operation, which is kept until
        // the completion; cancellations point to nothing.
        if unsafe { uring.submission().push(&entry) }.is_err() {
            backlog.push_back(entry);
        }
    }

    /// Submits what was pushed; waits for a completion if there is none and `idle`.
    pub(crate) fn enter(&self, idle: bool) {
        let mut uring = self.uring.borrow_mut();
        let mut backlog = self.backlog.borrow_mut();
        let submitted = {
            let (submitter, mut queue, completions) = uring.split();
            while let Some(entry) = backlog.front() {
                // SAFETY: as in `push_entry`.
                if unsafe { queue.push(entry) }.is_err() {
                    break;
                }
                backlog.pop_front();
            }
            queue.sync();
            let wait = idle && backlog.is_empty() && completions.is_empty();
            if wait {
                submitter.submit_and_wait(1)
            } else if queue.is_empty() && !queue.cq_overflow() {
                return;
            } else {
                submitter.submit()
            }
        };
        // A signal, memory pressure, or more completions than fit: the completions are taken,
        // and the next turn submits what is left.
        if let Err(error) = submitted {
            let again = [Errno::INTR, Errno::AGAIN, Errno::BUSY];
            let passing = Errno::from_io_error(&error).is_some_and(|errno| again.contains(&errno));
            // Every argument is ours, so anything else means that the ring itself is broken; no I/O
            // can ever complete again.
            assert!(passing, "io_uring_enter failed: {error}");
        }
    }

    /// Tells `each` what completed, and how.
    pub(crate) fn take(&self, mut each: impl FnMut(u64, i32)) {
        for completion in self.uring.borrow_mut().completion() {
            if completion.user_data() != NOBODY {
                each(completion.user_data(), completion.result());
            }
        }
    }
}

fn entry(call: &Call) -> squeue::Entry {
    let length = |piece: &libc::iovec| u32::try_from(piece.iov_len).expect("1 GiB at most");
    match call {
        Call::Read { fd, at, into } => match into {
            Pieces::One(piece) => {
                opcode::Read::new(types::Fd(*fd), piece.iov_base.cast(), length(piece))
                    .offset(*at)
                    .build()
            }
            Pieces::Many { first, count } => opcode::Readv::new(types::Fd(*fd), *first, *count)
                .offset(*at)
                .build(),
        },
        Call::Write { fd, at, from } => match from {
            Pieces::One(piece) => {
                opcode::Write::new(types::Fd(*fd), piece.iov_base.cast(), length(piece))
                    .offset(*at)
                    .build()
            }
            Pieces::Many { first, count } => opcode::Writev::new(types::Fd(*fd), *first, *count)
                .offset(*at)
                .build(),
        },
        Call::Sync { fd } => opcode::Fsync::new(types::Fd(*fd))
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Call::Allocate { fd, mode, at, len } => opcode::Fallocate::new(types::Fd(*fd), *len)
            .offset(*at)
            .mode(*mode)
            .build(),
        Call::Poll { fd, events } => {
            opcode::PollAdd::new(types::Fd(*fd), u32::from(events.unsigned_abs())).build()
        }
        Call::Sleep { time, .. } => opcode::Timeout::new(*time).build(),
    }
}
