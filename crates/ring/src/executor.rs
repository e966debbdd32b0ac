//! The loop of an owner thread: tasks, one call into the kernel a turn, completions.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::types::Timespec;
use slab::Slab;

use crate::call::Call;
use crate::engine::{Engine, Kind, Unavailable};
use crate::operation::{Cancel, Completion, Operation, Payload, Slot};
use crate::wake::{Ready, TaskKey, TaskWaker};

/// Completion of the poll on the event of [`Ready`].
const EVENT: u64 = u64::MAX - 1;
/// The future that [`Ring::block_on`] drives.
const MAIN: TaskKey = TaskKey::MAX;

/// An io_uring, or what stands in for it, and the tasks of the one thread that owns it.
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
    engine: Engine,
    /// Why the engine is not io_uring, if it was wanted.
    notice: Option<Unavailable>,
    pub(crate) slots: RefCell<Slab<Slot>>,
    generation: Cell<u32>,
    tasks: RefCell<Vec<Task>>,
    free: RefCell<Vec<TaskKey>>,
    ready: Arc<Ready>,
    /// Kept for its capacity.
    wakers: RefCell<Vec<Waker>>,
    running: Cell<bool>,
    event_armed: Cell<bool>,
}

impl Ring {
    /// A ring with room for `entries` submissions a turn; more wait for the next turn. It has
    /// [`Kind::Threads`] where the kernel does not give an io_uring.
    ///
    /// # Errors
    /// When the process has no more descriptors or threads.
    pub fn new(entries: u32) -> io::Result<Self> {
        let (engine, notice) = Engine::best(entries)?;
        Self::over(engine, notice)
    }

    /// A ring of this kind and no other, for tests and comparisons.
    ///
    /// # Errors
    /// [`Unavailable`] inside when the kernel gives no io_uring; otherwise as [`Ring::new`].
    pub fn of_kind(kind: Kind, entries: u32) -> io::Result<Self> {
        Self::over(Engine::of_kind(kind, entries)?, None)
    }

    fn over(engine: Engine, notice: Option<Unavailable>) -> io::Result<Self> {
        Ok(Self(Rc::new(Core {
            engine,
            notice,
            slots: RefCell::new(Slab::new()),
            generation: Cell::new(0),
            tasks: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            ready: Ready::new()?,
            wakers: RefCell::new(Vec::new()),
            running: Cell::new(false),
            event_armed: Cell::new(false),
        })))
    }

    /// What does the work.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.engine.kind()
    }

    /// Why it is not io_uring, to be told to the user; none if it is, or was not wanted.
    #[must_use]
    pub fn notice(&self) -> Option<&Unavailable> {
        self.0.notice.as_ref()
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
        let fd = fd.as_raw_fd();
        loop {
            let call = Call::Poll { fd, events };
            let (result, _) = self.start(call, Payload::Nothing, Cancel::Poll).await;
            match result {
                0.. => return Ok(()),
                error if -error == libc::EINTR || -error == libc::EAGAIN => {}
                error => return Err(io::Error::from_raw_os_error(-error)),
            }
        }
    }

    /// Waits for `d` on the monotonic clock.
    pub async fn sleep(&self, d: Duration) {
        let time = Box::new(Timespec::from(d));
        let call = Call::Sleep {
            time: &raw const *time,
            length: d,
        };
        self.start(call, Payload::Time { _time: time }, Cancel::Timeout)
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

    /// Starts an operation. `payload` owns whatever memory `call` points to.
    pub(crate) fn start(&self, call: Call, payload: Payload, cancel: Cancel) -> Operation {
        let core = &self.0;
        let generation = core.generation.get().wrapping_add(1);
        core.generation.set(generation);
        let key = core
            .slots
            .borrow_mut()
            .insert(Slot::new(generation, payload));
        let user_data = (u64::from(generation) << 32) | key as u64;
        core.engine.push(&call, user_data);
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

impl Core {
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

    /// One call into the kernel and the completions.
    fn turn(&self) {
        if !self.event_armed.replace(true) {
            let call = Call::Poll {
                fd: self.ready.event().as_raw_fd(),
                events: libc::POLLIN,
            };
            self.engine.push(&call, EVENT);
        }
        self.engine.enter(self.ready.len() == 0);
        self.reap();
    }

    /// Takes all completions that have arrived.
    fn reap(&self) {
        let mut event = false;
        // Wakers and abandoned memory may run foreign code: only after the borrows.
        let mut wakers = self.wakers.take();
        let mut abandoned = Vec::new();
        {
            let mut slots = self.slots.borrow_mut();
            self.engine.take(|user_data, result| {
                if user_data == EVENT {
                    event = true;
                    return;
                }
                let key =
                    usize::try_from(user_data & u64::from(u32::MAX)).expect("a usize has 32 bits");
                match slots[key].complete(result) {
                    Completion::Wake(waker) => wakers.extend(waker),
                    Completion::Remove => abandoned.push(slots.remove(key)),
                }
            });
        }
        drop(abandoned);
        wakers.drain(..).for_each(Waker::wake);
        self.wakers.replace(wakers);
        if event {
            self.event_armed.set(false);
            self.ready.collect();
        }
    }

    /// Asks for an operation to end early.
    pub(crate) fn cancel(&self, user_data: u64, cancel: Cancel) {
        self.engine.cancel(user_data, cancel);
    }
}

impl Drop for Core {
    /// The kernel or a thread may still use memory and files of the operations: waits for them.
    /// Polls and timeouts were cancelled when their futures were dropped, and nobody uses theirs.
    fn drop(&mut self) {
        let busy = |core: &Self| core.slots.borrow().iter().any(|(_, slot)| slot.is_owed());
        while busy(self) {
            self.engine.enter(true);
            self.reap();
        }
    }
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
