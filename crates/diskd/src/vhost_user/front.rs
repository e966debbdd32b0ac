//! The owner's side: carries out what the message thread orders.
//!
//! The message thread waits for the reply of each order, so that the front end's next message
//! finds the effect of the last one.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use block::{Device, Waiters};
use ring::{Mailbox, Ring};

use super::log::DirtyLog;
use super::memory::Memory;
use super::queue::{Queue, QueueError, QueueSetup, Shared};
use super::room::Room;
use super::{DiskShape, MAX_QUEUES};

/// Where the answer to an order goes; it holds one.
pub(super) type Reply<T> = SyncSender<T>;

/// What the message thread asks the owner to do.
pub(super) enum Order {
    /// A front end connected.
    Connected,
    /// Use this memory table.
    Memory(Arc<Memory>, Reply<()>),
    /// Run a queue.
    Start(Box<QueueSetup>, Reply<Result<(), QueueError>>),
    /// Mark memory that is written in this log, or in none any more. Replies when no other log
    /// is used.
    Log(Option<DirtyLog>, Reply<()>),
    /// Mark a queue's used ring from this guest address on, or not any more.
    LogUsed(u16, Option<u64>, Reply<()>),
    /// Stop a queue, if it runs. Replies with the next index of its available ring once
    /// everything that it ran is answered, but what waits for room.
    Stop(u16, Reply<Option<u16>>),
    /// Notify through another descriptor.
    Call(u16, Option<OwnedFd>, Reply<()>),
    /// Tell of a broken queue through another descriptor.
    Error(u16, Option<OwnedFd>, Reply<()>),
    /// The front end is gone. Replies when nothing of it runs any more.
    Gone(Reply<()>),
}

/// The queues of one disk's front end.
pub(super) struct Front<D> {
    shared: Rc<Shared<D>>,
    queues: RefCell<Vec<Option<Rc<Queue<D>>>>>,
    connected: Cell<bool>,
    /// No queue starts any more.
    closing: Cell<bool>,
    /// The message thread has ended and nothing runs any more.
    ended: Cell<bool>,
    end: Waiters,
}

impl<D: Device + 'static> Front<D> {
    pub(super) fn new(ring: &Ring, device: Rc<D>, disk: Arc<DiskShape>) -> Self {
        let room = Room::new(disk.id);
        Self {
            shared: Rc::new(Shared {
                ring: ring.clone(),
                device,
                disk,
                room,
                log: RefCell::default(),
            }),
            queues: RefCell::new((0..MAX_QUEUES).map(|_| None).collect()),
            connected: Cell::new(false),
            closing: Cell::new(false),
            ended: Cell::new(false),
            end: Waiters::default(),
        }
    }

    pub(super) fn connected(&self) -> bool {
        self.connected.get()
    }

    /// How many requests wait for room below.
    pub(super) fn waiting_for_room(&self) -> u64 {
        self.shared.room.waiting()
    }

    /// Carries out orders until the message thread ends.
    pub(super) async fn serve(self: Rc<Self>, orders: Mailbox<Order>) {
        while let Some(order) = orders.recv().await {
            self.carry_out(order).await;
        }
        self.sever_all().await;
        self.connected.set(false);
        self.ended.set(true);
        self.end.notify();
    }

    /// Waits until [`Self::serve`] has ended.
    pub(super) async fn ended(&self) {
        self.end.until(|| self.ended.get().then_some(())).await;
    }

    /// Answers everything that runs, but what waits for room, and starts nothing any more.
    pub(super) async fn close(&self) {
        self.closing.set(true);
        for index in 0..MAX_QUEUES {
            // It stays in its place: the front end may still ask where it stopped.
            if let Some(queue) = self.queue(index) {
                queue.stop().await;
            }
        }
    }

    async fn carry_out(&self, order: Order) {
        // Replies go nowhere when the message thread has given up; that changes nothing here.
        match order {
            Order::Connected => self.connected.set(true),
            Order::Memory(memory, reply) => {
                for queue in self.queues.borrow().iter().flatten() {
                    queue.set_memory(Arc::clone(&memory));
                }
                let _ = reply.send(());
            }
            Order::Start(setup, reply) => {
                let _ = reply.send(self.start(*setup));
            }
            Order::Log(log, reply) => {
                self.shared.log.replace(log.clone());
                for queue in self.queues.borrow().iter().flatten() {
                    queue.set_log(log.clone());
                }
                let _ = reply.send(());
            }
            Order::LogUsed(index, used, reply) => {
                if let Some(queue) = self.queue(index) {
                    queue.log_used_at(used);
                }
                let _ = reply.send(());
            }
            Order::Stop(index, reply) => {
                let next = self.stop(index).await;
                let _ = reply.send(next);
            }
            Order::Call(index, call, reply) => {
                if let Some(queue) = self.queue(index) {
                    queue.set_call(call);
                }
                let _ = reply.send(());
            }
            Order::Error(index, error, reply) => {
                if let Some(queue) = self.queue(index) {
                    queue.set_error(error);
                }
                let _ = reply.send(());
            }
            Order::Gone(reply) => {
                self.sever_all().await;
                self.shared.log.replace(None);
                self.connected.set(false);
                let _ = reply.send(());
            }
        }
    }

    fn queue(&self, index: u16) -> Option<Rc<Queue<D>>> {
        self.queues.borrow().get(usize::from(index))?.clone()
    }

    fn start(&self, setup: QueueSetup) -> Result<(), QueueError> {
        if self.closing.get() {
            return Err(QueueError::Closing);
        }
        let index = usize::from(setup.index);
        let queue = Queue::start(&self.shared, setup)?;
        self.queues.borrow_mut()[index] = Some(queue);
        Ok(())
    }

    async fn stop(&self, index: u16) -> Option<u16> {
        // It stays in its place until it is drained, so that a loss of the front end finds it.
        let queue = self.queue(index)?;
        let next = queue.stop().await;
        self.queues.borrow_mut()[usize::from(index)] = None;
        Some(next)
    }

    async fn sever_all(&self) {
        for index in 0..MAX_QUEUES {
            if let Some(queue) = self.queue(index) {
                queue.sever().await;
                self.queues.borrow_mut()[usize::from(index)] = None;
            }
        }
    }
}
