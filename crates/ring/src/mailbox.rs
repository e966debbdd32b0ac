//! Messages from other threads to an owner.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// A message that was not delivered; given back.
#[derive(Debug, thiserror::Error)]
pub enum SendError<T> {
    /// So many wait already that there is no room.
    #[error("the mailbox is full")]
    Full(T),
    /// The receiver is gone.
    #[error("the receiver of the mailbox is gone")]
    Closed(T),
}

struct Inner<T> {
    queue: VecDeque<T>,
    capacity: usize,
    /// The task that waits in [`Mailbox::recv`].
    waker: Option<Waker>,
    senders: usize,
    open: bool,
}

struct Shared<T>(Mutex<Inner<T>>);

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends from any thread, without waiting.
pub struct Sender<T>(Arc<Shared<T>>);

/// Receives; moves to the owner thread and is awaited in one task there.
pub struct Mailbox<T>(Arc<Shared<T>>);

/// A queue of at most `capacity` messages.
#[must_use]
pub fn mailbox<T: Send>(capacity: usize) -> (Sender<T>, Mailbox<T>) {
    let shared = Arc::new(Shared(Mutex::new(Inner {
        queue: VecDeque::new(),
        capacity,
        waker: None,
        senders: 1,
        open: true,
    })));
    (Sender(Arc::clone(&shared)), Mailbox(shared))
}

impl<T: Send> Sender<T> {
    /// Delivers `message` and wakes the receiver.
    ///
    /// # Errors
    /// [`SendError`] gives the message back.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.deliver(message, false)
    }

    /// Delivers `message` though the mailbox be full: for what ends something that the receiver has
    /// begun, so that there are never more of these than of those.
    ///
    /// # Errors
    /// [`SendError::Closed`] gives the message back.
    pub fn insist(&self, message: T) -> Result<(), SendError<T>> {
        self.deliver(message, true)
    }

    fn deliver(&self, message: T, insist: bool) -> Result<(), SendError<T>> {
        let waker = {
            let mut inner = self.0.lock();
            if !inner.open {
                return Err(SendError::Closed(message));
            }
            if inner.queue.len() >= inner.capacity && !insist {
                return Err(SendError::Full(message));
            }
            inner.queue.push_back(message);
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut inner = self.0.lock();
            inner.senders -= 1;
            if inner.senders == 0 {
                inner.waker.take()
            } else {
                None
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Mailbox<T> {
    /// The next message; none when there is none and every sender is gone.
    pub async fn recv(&self) -> Option<T> {
        poll_fn(|cx| {
            let mut inner = self.0.lock();
            if let Some(message) = inner.queue.pop_front() {
                return Poll::Ready(Some(message));
            }
            if inner.senders == 0 {
                return Poll::Ready(None);
            }
            inner.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        let left = {
            let mut inner = self.0.lock();
            inner.open = false;
            std::mem::take(&mut inner.queue)
        };
        // Messages may own senders of this very mailbox.
        drop(left);
    }
}
