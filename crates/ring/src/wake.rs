//! Which tasks are ready, and how other threads say so.
#![allow(
    unsafe_code,
    reason = "the owner's own queue is reached without a lock"
)]

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use rustix::event::{EventfdFlags, eventfd};

/// Number of a task of one ring.
pub(crate) type TaskKey = u32;

static NEXT_THREAD: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Never used twice in a process, unlike thread ids of the operating system.
    static THREAD: u64 = NEXT_THREAD.fetch_add(1, Ordering::Relaxed);
}

/// The ready queue of a ring.
pub(crate) struct Ready {
    owner: u64,
    /// Touched by the owner thread only.
    local: UnsafeCell<VecDeque<TaskKey>>,
    remote: Mutex<Vec<TaskKey>>,
    /// Whether the eventfd was written since the owner last looked.
    signalled: AtomicBool,
    event: OwnedFd,
}

// SAFETY: `local` is reached only through `with_local` after comparing the thread; all else is Sync.
unsafe impl Sync for Ready {}
// SAFETY: every field may move between threads.
unsafe impl Send for Ready {}

impl Ready {
    /// The queue of a ring that lives on this thread.
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            owner: THREAD.with(|thread| *thread),
            local: UnsafeCell::new(VecDeque::new()),
            remote: Mutex::new(Vec::new()),
            signalled: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    /// Runs `act` on the local queue, if this is the owner thread.
    fn with_local<T>(&self, act: impl FnOnce(&mut VecDeque<TaskKey>) -> T) -> Option<T> {
        if THREAD.try_with(|thread| *thread) != Ok(self.owner) {
            return None;
        }
        // SAFETY: only the owner thread gets here, and `act` (below: a push, a pop, a length) never
        // comes back into this function.
        Some(act(unsafe { &mut *self.local.get() }))
    }

    fn push(&self, key: TaskKey) {
        if self.with_local(|local| local.push_back(key)).is_some() {
            return;
        }
        self.remote
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(key);
        if !self.signalled.swap(true, Ordering::AcqRel) {
            // Fails only when the counter is at its maximum: then it is readable anyway.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// How many tasks are ready now.
    pub(crate) fn len(&self) -> usize {
        self.with_local(|local| local.len()).unwrap_or(0)
    }

    /// The next ready task.
    pub(crate) fn pop(&self) -> Option<TaskKey> {
        self.with_local(VecDeque::pop_front).flatten()
    }

    /// Takes over what other threads made ready. Called when the event is readable.
    pub(crate) fn collect(&self) {
        let mut counter = [0; 8];
        // Nothing to read is as good: the point is that it is reset now.
        let _ = rustix::io::read(&self.event, &mut counter);
        // Before taking the keys: whoever pushes after this signals again.
        self.signalled.store(false, Ordering::Release);
        let keys = std::mem::take(&mut *self.remote.lock().unwrap_or_else(PoisonError::into_inner));
        self.with_local(|local| local.extend(keys));
    }

    /// Readable when another thread made something ready.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Makes one task ready, at most once until it runs.
pub(crate) struct TaskWaker {
    key: TaskKey,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl TaskWaker {
    pub(crate) fn new(key: TaskKey, ready: Arc<Ready>) -> Arc<Self> {
        Arc::new(Self {
            key,
            queued: AtomicBool::new(false),
            ready,
        })
    }

    /// The task is about to be polled; wakes from now on count again.
    pub(crate) fn running(&self) {
        self.queued.store(false, Ordering::Release);
    }

    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.push(self.key);
        }
    }
}
