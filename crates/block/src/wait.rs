//! Tasks of one owner that wait for something to change.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Tasks that wait until a condition holds. Whoever changes what a condition looks at calls
/// [`Waiters::notify`]; each waiter then looks again.
#[derive(Debug, Default)]
pub struct Waiters(RefCell<Vec<Waker>>);

impl Waiters {
    /// Waits until `condition` gives a value.
    pub async fn until<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| match condition() {
            Some(value) => Poll::Ready(value),
            None => {
                let mut wakers = self.0.borrow_mut();
                if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    /// Makes every waiter look at its condition again.
    pub fn notify(&self) {
        if self.0.borrow().is_empty() {
            return;
        }
        // Taken first: a woken task may wait again at once.
        for waker in self.0.take() {
            waker.wake();
        }
    }
}
