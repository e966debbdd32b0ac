//! The loop of an owner thread: tasks, one `io_uring_enter` a turn, completions.
#![allow(unsafe_code, reason = "entries are pushed to the submission queue")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use slab::Slab;

use crate::operation::{Cancel, Completion, Operation, Payload, Slot};
use crate::wake::{Ready, TaskKey, TaskWaker};

/// Completion of a cancellation: nobody waits for it.
const NOBODY: u64 = u64::MAX;
/// Completion of the poll on the event of [`Ready`].
const EVENT: u64 = u64::MAX - 1;
/// The future that [`Ring::block_on`] drives.
const MAIN: TaskKey = TaskKey::MAX;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[error(
    "this host does not let pollux use io_uring (Linux 5.15 or newer is needed, the sysctl \
     kernel.io_uring_disabled must be 0, and a container's seccomp profile must allow io_uring_setup)"
)]
pub struct Unavailable {
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// An io_uring and the tasks of the one thread that owns it.
///
/// Clones are the same ring. Tasks hold clones of it, so an owner that ends before its process
/// calls [`Ring::abandon_tasks`] last.
#[derive(Clone)]
pub struct Ring(pub(crate) Rc<Core>);

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    future: Option<LocalFuture>,
    /// Stays with the slot, so that a spawn allocates nothing but its future. A stale wake of an
    /// earlier task in the slot is a spurious poll of the new one.
    handle: Arc<TaskWaker>,
    waker: Option<Waker>,
}

pub(crate) struct Core {
    uring: RefCell<IoUring>,
    pub(crate) slots: RefCell<Slab<Slot>>,
    generation: Cell<u32>,
    /// Entries that found the submission queue full.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    tasks: RefCell<Vec<Task>>,
    free: RefCell<Vec<TaskKey>>,
    ready: Arc<Ready>,
    /// Kept for its capacity.
    wakers: RefCell<Vec<Waker>>,
    running: Cell<bool>,
    event_armed: Cell<bool>,
}

impl Ring {
    /// A ring with room for `entries` submissions a turn; more wait for the next turn.
    ///
    /// # Errors
    /// [`Unavailable`] inside when the kernel refuses.
    pub fn new(entries: u32) -> io::Result<Self> {
        let uring = build(entries)
            .map_err(|source| io::Error::new(source.kind(), Unavailable { source }))?;
        Ok(Self(Rc::new(Core {
            uring: RefCell::new(uring),
            slots: RefCell::new(Slab::new()),
            generation: Cell::new(0),
            backlog: RefCell::new(VecDeque::new()),
            tasks: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            ready: Ready::new()?,
            wakers: RefCell::new(Vec::new()),
            running: Cell::new(false),
            event_armed: Cell::new(false),
        })))
    }

    /// Runs `f` beside the caller. It makes progress inside [`Ring::block_on`].
    pub fn spawn(&self, f: impl Future<Output = ()> + 'static) {
        let core = &self.0;
        let future: LocalFuture = Box::pin(f);
        let mut tasks = core.tasks.borrow_mut();
        let key = if let Some(key) = core.free.borrow_mut().pop() {
            key
        } else {
            let key = TaskKey::try_from(tasks.len()).expect("far fewer tasks than 4 billion");
            let handle = TaskWaker::new(key, Arc::clone(&core.ready));
            tasks.push(Task {
                future: None,
                waker: Some(handle.waker()),
                handle,
            });
            key
        };
        let task = &mut tasks[key as usize];
        task.future = Some(future);
        if let Some(waker) = &task.waker {
            waker.wake_by_ref();
        }
    }

    /// Drives `f`, every task and every completion until `f` is done. Tasks that are not done
    /// then stay and go on in the next call.
    ///
    /// # Panics
    /// When called from inside itself.
    pub fn block_on<T>(&self, f: impl Future<Output = T>) -> T {
        let core = &self.0;
        assert!(
            !core.running.replace(true),
            "block_on inside block_on of one ring"
        );
        let _running = Running(&core.running);
        let mut main = pin!(f);
        let handle = TaskWaker::new(MAIN, Arc::clone(&core.ready));
        let waker = handle.waker();
        waker.wake_by_ref();
        loop {
            // Only those ready now: who wakes itself again waits for the next turn.
            for _ in 0..core.ready.len() {
                match core.ready.pop() {
                    Some(MAIN) => {
                        handle.running();
                        if let Poll::Ready(value) =
                            main.as_mut().poll(&mut Context::from_waker(&waker))
                        {
                            return value;
                        }
                    }
                    Some(key) => core.run(key),
                    None => break,
                }
            }
            core.turn();
        }
    }

    /// Drops every task. Operations that the kernel still works on keep their memory until
    /// they complete.
    pub fn abandon_tasks(&self) {
        let futures: Vec<_> = self
            .0
            .tasks
            .borrow_mut()
            .iter_mut()
            .enumerate()
            .filter_map(|(key, task)| Some((key, task.future.take()?)))
            .collect();
        for (key, future) in futures {
            drop(future);
            let key = TaskKey::try_from(key).expect("came from a key");
            self.0.free.borrow_mut().push(key);
        }
    }

    /// Waits until `fd` can be read, or was closed or failed at the other end.
    ///
    /// # Errors
    /// When the kernel cannot poll `fd`.
    pub async fn readable(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.polled(fd, libc::POLLIN).await
    }

    /// Waits until `fd` can be written, or was closed or failed at the other end.
    ///
    /// # Errors
    /// When the kernel cannot poll `fd`.
    pub async fn writable(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.polled(fd, libc::POLLOUT).await
    }

    async fn polled(&self, fd: BorrowedFd<'_>, events: libc::c_short) -> io::Result<()> {
        let events = u32::from(events.unsigned_abs());
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events).build();
        loop {
            let (result, _) = self
                .start(entry.clone(), Payload::Nothing, Cancel::Poll)
                .await;
            match result {
                0.. => return Ok(()),
                error if -error == libc::EINTR || -error == libc::EAGAIN => {}
                error => return Err(io::Error::from_raw_os_error(-error)),
            }
        }
    }

    /// Waits for `d` on the monotonic clock.
    pub async fn sleep(&self, d: Duration) {
        let time = Box::new(types::Timespec::from(d));
        let entry = opcode::Timeout::new(&raw const *time).build();
        self.start(entry, Payload::Time { _time: time }, Cancel::Timeout)
            .await;
    }

    /// Lets every other ready task and the completions go first.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Starts an operation. `payload` owns whatever memory `entry` points to.
    pub(crate) fn start(
        &self,
        entry: squeue::Entry,
        payload: Payload,
        cancel: Cancel,
    ) -> Operation {
        let core = &self.0;
        let generation = core.generation.get().wrapping_add(1);
        core.generation.set(generation);
        let key = core
            .slots
            .borrow_mut()
            .insert(Slot::new(generation, payload));
        let user_data = (u64::from(generation) << 32) | key as u64;
        core.push(entry.user_data(user_data));
        Operation::new(self.clone(), key, user_data, cancel)
    }
}

/// Says that no `block_on` runs any more, however it ended.
struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

fn build(entries: u32) -> io::Result<IoUring> {
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
    Ok(uring)
}

impl Core {
    /// Hands `entry` to the kernel in this turn, or a later one if the queue is full.
    pub(crate) fn push(&self, entry: squeue::Entry) {
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

    fn run(&self, key: TaskKey) {
        let (mut future, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(key as usize) else {
                return;
            };
            task.handle.running();
            match (task.future.take(), task.waker.take()) {
                (Some(future), Some(waker)) => (future, waker),
                (future, waker) => {
                    (task.future, task.waker) = (future, waker);
                    return;
                }
            }
        };
        let done = future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready();
        // A task may own the last handle of something whose drop comes back here: no borrow is held.
        let rest = if done {
            drop(future);
            None
        } else {
            Some(future)
        };
        let mut tasks = self.tasks.borrow_mut();
        let task = &mut tasks[key as usize];
        task.waker = Some(waker);
        task.future = rest;
        if done {
            self.free.borrow_mut().push(key);
        }
    }

    /// One `io_uring_enter` and the completions.
    fn turn(&self) {
        if !self.event_armed.replace(true) {
            let event = types::Fd(self.ready.event().as_raw_fd());
            let events = u32::from(libc::POLLIN.unsigned_abs());
            self.push(opcode::PollAdd::new(event, events).build().user_data(EVENT));
        }
        let idle = self.ready.len() == 0;
        self.enter(idle);
        self.reap();
    }

    fn enter(&self, idle: bool) {
        let mut uring = self.uring.borrow_mut();
        let mut backlog = self.backlog.borrow_mut();
        let submitted = {
            let (submitter, mut queue, completions) = uring.split();
            while let Some(entry) = backlog.front() {
                // SAFETY: as in `push`.
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

    /// Takes all completions that have arrived.
    fn reap(&self) {
        let mut event = false;
        // Wakers and abandoned memory may run foreign code: only after the borrows.
        let mut wakers = self.wakers.take();
        let mut abandoned = Vec::new();
        {
            let mut uring = self.uring.borrow_mut();
            let mut slots = self.slots.borrow_mut();
            for completion in uring.completion() {
                let key = match completion.user_data() {
                    NOBODY => continue,
                    EVENT => {
                        event = true;
                        continue;
                    }
                    user_data => usize::try_from(user_data & u64::from(u32::MAX))
                        .expect("a usize has 32 bits"),
                };
                match slots[key].complete(completion.result()) {
                    Completion::Wake(waker) => wakers.extend(waker),
                    Completion::Remove => abandoned.push(slots.remove(key)),
                }
            }
        }
        drop(abandoned);
        wakers.drain(..).for_each(Waker::wake);
        self.wakers.replace(wakers);
        if event {
            self.event_armed.set(false);
            self.ready.collect();
        }
    }

    /// Asks the kernel to end an operation early.
    pub(crate) fn cancel(&self, user_data: u64, cancel: Cancel) {
        let entry = match cancel {
            Cancel::Never => return,
            Cancel::Poll => opcode::PollRemove::new(user_data).build(),
            Cancel::Timeout => opcode::TimeoutRemove::new(user_data).build(),
        };
        self.push(entry.user_data(NOBODY));
    }
}

impl Drop for Core {
    /// The kernel may still write into memory of the operations: waits for them. Polls and
    /// timeouts were cancelled when their futures were dropped, and own no memory it writes to.
    fn drop(&mut self) {
        let busy = |core: &Self| core.slots.borrow().iter().any(|(_, slot)| slot.has_bytes());
        while busy(self) {
            self.enter(true);
            self.reap();
        }
    }
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
