//! How much of one client may be in memory.
//!
//! A request holds its place from when it is taken until its reply is sent; content holds its bytes
//! from when there is memory for it until it is written, or sent. A client that gets ahead of the
//! disk, or doesn't read its replies, is not read from.

use std::cell::Cell;
use std::rc::Rc;

use block::Waiters;

/// Most requests of a client that are not answered.
pub(super) const REQUESTS: usize = 256;
/// Most bytes of content of a client. Every client may use all of its own, so nobody can use up
/// what another one needs.
pub(super) const BYTES: usize = 8 << 20;

/// What one client uses.
#[derive(Debug, Default)]
pub(super) struct Window {
    requests: Cell<usize>,
    bytes: Cell<usize>,
    /// Notified when something is given back. Also by the connection when it ends.
    pub(super) changed: Waiters,
}

/// A part of the window, until dropped.
#[derive(Debug)]
pub(super) struct Permit {
    window: Rc<Window>,
    requests: usize,
    bytes: usize,
}

impl Window {
    /// A place for a request, if there is one.
    pub(super) fn request(self: &Rc<Self>) -> Option<Permit> {
        self.take(1, 0)
    }

    /// Room for `bytes` of content, if there is any.
    pub(super) fn content(self: &Rc<Self>, bytes: usize) -> Option<Permit> {
        self.take(0, bytes)
    }

    fn take(self: &Rc<Self>, requests: usize, bytes: usize) -> Option<Permit> {
        let all = (self.requests.get() + requests, self.bytes.get() + bytes);
        if all.0 > REQUESTS || all.1 > BYTES {
            return None;
        }
        self.requests.set(all.0);
        self.bytes.set(all.1);
        Some(Permit {
            window: Rc::clone(self),
            requests,
            bytes,
        })
    }

    /// Whether there is one request, and no content.
    pub(super) fn is_alone(&self) -> bool {
        self.requests.get() == 1 && self.bytes.get() == 0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let window = &self.window;
        window.requests.set(window.requests.get() - self.requests);
        window.bytes.set(window.bytes.get() - self.bytes);
        window.changed.notify();
    }
}
