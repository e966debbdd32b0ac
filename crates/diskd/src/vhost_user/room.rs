//! What happens to a mutation that finds no room below (`ENOSPC`, `EDQUOT`).
//!
//! The guest cannot do anything about it, so it is not told: the request is not answered, but
//! run again after a pause, until it works. Meanwhile it is counted, so that somebody can stop
//! the guest and look for room. What was done of it before stays done: it is the same again.
//!
//! ```text
//!   no room --> pause 10 ms, doubling to 1 s --> run again --> answered
//!                 |  cut short when another request found room
//!                 '--queue stopped--> left in flight, unanswered: it runs again when the queue starts,
//!                                     in this process or another
//! ```
//!
//! A request cannot be left without an in-flight area, nor during a live migration, which does not
//! take the area along: then it is answered with an I/O error when the queue is stopped.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use block::{Fault, Waiters};
use model::DiskId;
use ring::Ring;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Whether `fault` says that there is no room.
pub(super) fn is_lacking(fault: Fault) -> bool {
    matches!(fault, Fault::Os(libc::ENOSPC | libc::EDQUOT))
}

/// The requests of a disk that wait for room.
#[derive(Debug)]
pub(super) struct Room {
    disk: DiskId,
    waiting: Cell<u64>,
    /// How many times one of them found room.
    found: Cell<u64>,
    waiters: Waiters,
}

impl Room {
    pub(super) fn new(disk: DiskId) -> Self {
        Self {
            disk,
            waiting: Cell::new(0),
            found: Cell::new(0),
            waiters: Waiters::default(),
        }
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.get()
    }

    /// Makes everyone who waits ask again whether to go on.
    pub(super) fn wake(&self) {
        self.waiters.notify();
    }
}

/// What a request does when there is no room.
pub(super) trait Patience {
    /// Waits a while. False if the request shall be given up.
    async fn wait(&mut self) -> bool;
}

/// The patience of one request: it goes on until `gives_up`.
pub(super) struct Waiting<'a, F> {
    ring: &'a Ring,
    room: &'a Room,
    gives_up: F,
    /// The next pause; none as long as the request did not wait.
    pause: Option<Duration>,
}

impl<'a, F: Fn() -> bool> Waiting<'a, F> {
    pub(super) fn new(ring: &'a Ring, room: &'a Room, gives_up: F) -> Self {
        Self {
            ring,
            room,
            gives_up,
            pause: None,
        }
    }

    /// The request was run.
    pub(super) fn done(self) {
        if self.pause.is_some() {
            self.room.found.set(self.room.found.get() + 1);
            self.room.wake();
        }
    }
}

impl<F: Fn() -> bool> Patience for Waiting<'_, F> {
    async fn wait(&mut self) -> bool {
        let pause = self.pause.unwrap_or_else(|| {
            let waiting = self.room.waiting.get();
            self.room.waiting.set(waiting + 1);
            if waiting == 0 {
                tracing::warn!(disk = %self.room.disk, "no room for what the guest writes; it waits");
            }
            FIRST_PAUSE
        });
        self.pause = Some((pause * 2).min(LONGEST_PAUSE));
        let found = self.room.found.get();
        let mut sleep = pin!(self.ring.sleep(pause));
        let mut woken = pin!(self.room.waiters.until(|| {
            let now = (self.gives_up)() || self.room.found.get() != found;
            now.then_some(())
        }));
        poll_fn(|cx| match woken.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => sleep.as_mut().poll(cx),
        })
        .await;
        !(self.gives_up)()
    }
}

impl<F> Drop for Waiting<'_, F> {
    fn drop(&mut self) {
        if self.pause.is_none() {
            return;
        }
        let waiting = self.room.waiting.get() - 1;
        self.room.waiting.set(waiting);
        if waiting == 0 {
            tracing::info!(disk = %self.room.disk, "no request waits for room any more");
        }
    }
}
