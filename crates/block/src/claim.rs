//! Claims on ranges, local to one owner thread.
//!
//! Operations that must be alone on a range (read-modify-write of a part of a block, copy-up)
//! hold an exclusive claim; those that only must not meet such a one hold a shared claim.
//! First come, first served: nobody waits for ever behind a stream of others.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;

use crate::Waiters;

#[derive(Debug)]
struct Entry {
    number: u64,
    range: Range<u64>,
    exclusive: bool,
}

/// The claims on one device.
#[derive(Debug, Default)]
pub struct Claims {
    /// In the order of arrival.
    entries: RefCell<VecDeque<Entry>>,
    exclusive: Cell<usize>,
    next: Cell<u64>,
    released: Waiters,
}

/// A claim, until dropped.
#[derive(Debug)]
pub struct Claim<'a> {
    claims: &'a Claims,
    number: u64,
}

impl Claims {
    /// Waits until nobody holds an exclusive claim on a part of `range`.
    pub async fn shared(&self, range: Range<u64>) -> Claim<'_> {
        self.claim(range, false).await
    }

    /// Waits until nobody holds any claim on a part of `range`.
    pub async fn exclusive(&self, range: Range<u64>) -> Claim<'_> {
        self.claim(range, true).await
    }

    async fn claim(&self, range: Range<u64>, exclusive: bool) -> Claim<'_> {
        let number = self.next.replace(self.next.get() + 1);
        let free = if self.exclusive.get() == 0 && !exclusive {
            true
        } else {
            self.is_free(number, &range, exclusive)
        };
        self.entries.borrow_mut().push_back(Entry {
            number,
            range: range.clone(),
            exclusive,
        });
        self.exclusive
            .set(self.exclusive.get() + usize::from(exclusive));
        // From here on a drop takes the entry away, granted or not.
        let claim = Claim {
            claims: self,
            number,
        };
        if !free {
            self.released
                .until(|| self.is_free(number, &range, exclusive).then_some(()))
                .await;
        }
        claim
    }

    /// Whether nothing that came before `number` is in the way.
    fn is_free(&self, number: u64, range: &Range<u64>, exclusive: bool) -> bool {
        !self.entries.borrow().iter().any(|other| {
            other.number < number
                && (exclusive || other.exclusive)
                && other.range.start < range.end
                && range.start < other.range.end
        })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let claims = self.claims;
        let gone = {
            let mut entries = claims.entries.borrow_mut();
            let at = entries.iter().position(|entry| entry.number == self.number);
            at.and_then(|at| entries.remove(at))
        };
        if gone.is_some_and(|entry| entry.exclusive) {
            claims.exclusive.set(claims.exclusive.get() - 1);
        }
        claims.released.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn an_exclusive_claim_waits_for_those_before_it_and_stops_those_after_it() {
        let claims = Claims::default();
        let first = pin!(claims.shared(0..8));
        let Poll::Ready(first) = poll(first) else {
            panic!("nobody was there");
        };
        let mut alone = pin!(claims.exclusive(4..12));
        assert!(poll(alone.as_mut()).is_pending());
        let mut later = pin!(claims.shared(8..16));
        assert!(
            poll(later.as_mut()).is_pending(),
            "first come, first served"
        );
        let elsewhere = pin!(claims.exclusive(16..20));
        assert!(poll(elsewhere).is_ready());
        drop(first);
        let Poll::Ready(alone) = poll(alone) else {
            panic!("it is its turn");
        };
        assert!(poll(later.as_mut()).is_pending());
        drop(alone);
        assert!(poll(later).is_ready());
    }

    #[test]
    fn a_claim_that_is_given_up_while_waiting_stops_nobody() {
        let claims = Claims::default();
        let Poll::Ready(_first) = poll(pin!(claims.shared(0..8))) else {
            panic!("nobody was there");
        };
        {
            let mut alone = pin!(claims.exclusive(0..8));
            assert!(poll(alone.as_mut()).is_pending());
        }
        assert!(poll(pin!(claims.shared(0..8))).is_ready());
    }
}
