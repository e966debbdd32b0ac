//! One operation in the kernel, and what it owns.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use block::Buffer;
use io_uring::types::Timespec;

use crate::Ring;

/// What the kernel may touch or needs; kept until the completion.
pub(crate) enum Payload {
    Nothing,
    /// Nothing is written to, but the file that was meant must be found.
    File {
        _file: Rc<OwnedFd>,
    },
    Bytes {
        buffer: Buffer,
        /// The rest of the pieces, when there is more than one.
        _pieces: Option<Box<[libc::iovec]>>,
        _file: Rc<OwnedFd>,
    },
    Time {
        _time: Box<Timespec>,
    },
}

/// How an operation is ended early when nobody waits for it any more.
#[derive(Clone, Copy)]
pub(crate) enum Cancel {
    /// It completes by itself.
    Never,
    Poll,
    Timeout,
}

enum State {
    /// In the kernel, or about to be.
    Started(Option<Waker>),
    Completed(i32),
    /// In the kernel, and nobody waits for it.
    Abandoned,
}

/// What follows from a completion.
pub(crate) enum Completion {
    Wake(Option<Waker>),
    /// Nobody waits: the slot must go.
    Remove,
}

/// An operation in the ring's table.
pub(crate) struct Slot {
    generation: u32,
    state: State,
    payload: Payload,
}

impl Slot {
    pub(crate) fn new(generation: u32, payload: Payload) -> Self {
        Self {
            generation,
            state: State::Started(None),
            payload,
        }
    }

    /// Notes the result. The one to wake, if any.
    pub(crate) fn complete(&mut self, result: i32) -> Completion {
        match std::mem::replace(&mut self.state, State::Completed(result)) {
            State::Started(waker) => Completion::Wake(waker),
            State::Completed(_) => Completion::Wake(None),
            State::Abandoned => Completion::Remove,
        }
    }

    /// Whether memory or a file that this owns may be in use.
    pub(crate) fn is_owed(&self) -> bool {
        matches!(self.payload, Payload::Bytes { .. } | Payload::File { .. })
            && !matches!(self.state, State::Completed(_))
    }
}

/// Resolves to the result (a negative `errno` for a failure) and the payload.
pub(crate) struct Operation {
    ring: Ring,
    key: usize,
    user_data: u64,
    cancel: Cancel,
    taken: bool,
}

impl Operation {
    pub(crate) fn new(ring: Ring, key: usize, user_data: u64, cancel: Cancel) -> Self {
        Self {
            ring,
            key,
            user_data,
            cancel,
            taken: false,
        }
    }
}

impl Future for Operation {
    type Output = (i32, Payload);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let core = Rc::clone(&self.ring.0);
        let mut slots = core.slots.borrow_mut();
        let slot = &mut slots[self.key];
        debug_assert_eq!(u64::from(slot.generation), self.user_data >> 32);
        match &mut slot.state {
            State::Completed(result) => {
                let result = *result;
                let slot = slots.remove(self.key);
                self.taken = true;
                Poll::Ready((result, slot.payload))
            }
            state => {
                match state {
                    State::Started(Some(waker)) => waker.clone_from(cx.waker()),
                    _ => *state = State::Started(Some(cx.waker().clone())),
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let done = {
            let mut slots = self.ring.0.slots.borrow_mut();
            if matches!(slots[self.key].state, State::Completed(_)) {
                Some(slots.remove(self.key))
            } else {
                slots[self.key].state = State::Abandoned;
                None
            }
        };
        if done.is_none() {
            self.ring.0.cancel(self.user_data, self.cancel);
        }
    }
}
