//! The engine for hosts without io_uring: poll(2), timers, and threads that block in the
//! owner's stead.
//!
//! ```text
//!   owner: push --> jobs (mutex, condition) --> threads: pread, pwrite, fdatasync, fallocate
//!          take <-- done (mutex, eventfd) <-----'
//!          polls, timers: its own, looked after in one poll(2) a turn
//! ```
//!
//! The rules are those of io_uring. The memory and the file of a job belong to its slot in the
//! ring, which stays until the owner has taken the completion; the ring drains all before it
//! goes, and only then the threads end.
#![allow(unsafe_code, reason = "poll(2) on numbers of descriptors")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::call::Call;
use crate::operation::Cancel;

/// Calls that are made at once. More than a disk's queue is deep gains nothing.
const THREADS: usize = 16;
/// They only make system calls.
const STACK: usize = 128 << 10;

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<(u64, Call)>,
    closed: bool,
}

struct Shared {
    jobs: Mutex<Jobs>,
    more: Condvar,
    done: Mutex<Vec<(u64, i32)>>,
    /// Written when `done` gets its first entry.
    event: OwnedFd,
}

/// Polls and timers.
#[derive(Default)]
struct Own {
    polls: Vec<(u64, libc::pollfd)>,
    timers: Vec<(u64, Instant)>,
    /// Of any kind; not yet taken.
    completed: Vec<(u64, i32)>,
}

pub(crate) struct Pool {
    shared: Arc<Shared>,
    own: RefCell<Own>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn new() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            jobs: Mutex::default(),
            more: Condvar::new(),
            done: Mutex::default(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let mut pool = Self {
            shared,
            own: RefCell::default(),
            threads: Vec::with_capacity(THREADS),
        };
        for _ in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name("store".to_owned())
                .stack_size(STACK)
                .spawn(move || shared.work())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub(crate) fn push(&self, call: &Call, user_data: u64) {
        let mut own = self.own.borrow_mut();
        match *call {
            Call::Poll { fd, events } => {
                let revents = 0;
                let poll = libc::pollfd {
                    fd,
                    events,
                    revents,
                };
                own.polls.push((user_data, poll));
            }
            Call::Sleep { length, .. } => match Instant::now().checked_add(length) {
                Some(end) => own.timers.push((user_data, end)),
                None => own.completed.push((user_data, -libc::EINVAL)),
            },
            call => {
                lock(&self.shared.jobs).waiting.push_back((user_data, call));
                self.shared.more.notify_one();
            }
        }
    }

    pub(crate) fn cancel(&self, user_data: u64, cancel: Cancel) {
        let mut own = self.own.borrow_mut();
        let before = own.polls.len() + own.timers.len();
        match cancel {
            Cancel::Never => return,
            Cancel::Poll => own.polls.retain(|(key, _)| *key != user_data),
            Cancel::Timeout => own.timers.retain(|(key, _)| *key != user_data),
        }
        // What had completed already is not told twice.
        if own.polls.len() + own.timers.len() < before {
            own.completed.push((user_data, -libc::ECANCELED));
        }
    }

    /// Looks what completed; waits for that if there is nothing yet and `idle`.
    pub(crate) fn enter(&self, idle: bool) {
        let own = &mut *self.own.borrow_mut();
        own.completed.append(&mut lock(&self.shared.done));
        let wait = idle && own.completed.is_empty();
        let limit = if wait {
            own.next_timer()
        } else {
            Some(Duration::ZERO)
        };
        let ready = own.poll(&self.shared.event, limit);
        if ready {
            own.completed.append(&mut lock(&self.shared.done));
        }
        own.end_timers();
    }

    /// Tells `each` what completed, and how.
    pub(crate) fn take(&self, mut each: impl FnMut(u64, i32)) {
        for (user_data, result) in self.own.borrow_mut().completed.drain(..) {
            each(user_data, result);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.jobs).closed = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // It has nothing that panics, and nothing to tell if it did.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some((user_data, call)) = self.next() {
            let result = call.perform();
            let mut done = lock(&self.done);
            done.push((user_data, result));
            if done.len() == 1 {
                // Fails only when the counter is at its maximum: then it is readable anyway.
                let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
            }
        }
    }

    /// The next job; none when there is none and no more will come.
    fn next(&self) -> Option<(u64, Call)> {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            if jobs.closed {
                return None;
            }
            jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Own {
    /// How long nothing is due; none if nothing ever is.
    fn next_timer(&self) -> Option<Duration> {
        let first = self.timers.iter().map(|(_, end)| *end).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Waits for a poll or the threads, at most for `limit`. Whether the threads have something.
    fn poll(&mut self, event: &OwnedFd, limit: Option<Duration>) -> bool {
        let mut watched: Vec<_> = self.polls.iter().map(|(_, poll)| *poll).collect();
        watched.push(libc::pollfd {
            fd: event.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let time = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the array and the time are locals.
        let ready = unsafe {
            libc::ppoll(
                watched.as_mut_ptr(),
                watched.len() as libc::nfds_t,
                time,
                std::ptr::null(),
            )
        };
        if ready < 0 {
            let error = io::Error::last_os_error();
            let again = [Some(libc::EINTR), Some(libc::EAGAIN), Some(libc::ENOMEM)];
            // Every argument is ours, so anything else will not get better.
            assert!(
                again.contains(&error.raw_os_error()),
                "poll failed: {error}"
            );
            return false;
        }
        let threads = watched.pop().is_some_and(|event| event.revents != 0);
        if threads {
            let mut counter = [0; 8];
            // Before the list is looked at: whoever adds to it after that signals again.
            let _ = rustix::io::read(event, &mut counter);
        }
        let mut answers = watched.iter().map(|poll| poll.revents);
        let completed = &mut self.completed;
        self.polls.retain(|(user_data, _)| {
            let events = answers.next().unwrap_or(0);
            if events != 0 {
                let invalid = events & libc::POLLNVAL != 0;
                let result = if invalid { -libc::EBADF } else { events.into() };
                completed.push((*user_data, result));
            }
            events == 0
        });
        threads
    }

    fn end_timers(&mut self) {
        if self.timers.is_empty() {
            return;
        }
        let now = Instant::now();
        // In the order in which they are due.
        self.timers.sort_by_key(|(_, end)| *end);
        let due = self.timers.partition_point(|(_, end)| *end <= now);
        let ended = self.timers.drain(..due);
        self.completed
            .extend(ended.map(|(user_data, _)| (user_data, -libc::ETIME)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
