//! An executor that runs tasks in an order that a seed decides.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use crate::Rng;

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    ready: Arc<Flag>,
}

/// Tasks of one thread. Of those that are ready a random one is polled next. Dropping it drops
/// every task where it stands, as `kill -9` does. Clones are the same schedule.
#[derive(Clone)]
pub struct Schedule {
    tasks: Rc<RefCell<Vec<Task>>>,
    new: Rc<RefCell<Vec<Task>>>,
    rng: Rc<RefCell<Rng>>,
}

impl Schedule {
    /// A schedule decided by `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            tasks: Rc::default(),
            new: Rc::default(),
            rng: Rc::new(RefCell::new(Rng::new(seed))),
        }
    }

    /// Adds a task.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.new.borrow_mut().push(Task {
            future: Box::pin(future),
            ready: Arc::new(Flag(AtomicBool::new(true))),
        });
    }

    /// Polls one ready task. False if there is none.
    pub fn step(&self) -> bool {
        let mut tasks = self.tasks.borrow_mut();
        tasks.append(&mut self.new.borrow_mut());
        let ready: Vec<usize> = (0..tasks.len())
            .filter(|at| tasks[*at].ready.0.load(Ordering::Acquire))
            .collect();
        if ready.is_empty() {
            return false;
        }
        let at = ready[self.rng.borrow_mut().index(ready.len())];
        let task = &mut tasks[at];
        task.ready.0.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&task.ready));
        if task
            .future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
        {
            let done = tasks.swap_remove(at);
            drop(tasks);
            drop(done);
        }
        true
    }

    /// Runs until nothing is ready any more. Returns how many tasks are left waiting.
    pub fn run(&self) -> usize {
        while self.step() {}
        self.tasks.borrow().len()
    }

    /// Drops every task where it stands.
    pub fn kill(&self) {
        let killed = (self.tasks.take(), self.new.take());
        drop(killed);
    }
}
