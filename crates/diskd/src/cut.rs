//! The instant at which all disks of a VM are cut.
//!
//! ```text
//!   disk a   parked ---------waits--------> seals, goes on
//!   disk b        parked ----waits--------> seals, goes on
//!   disk c                 parked: the last one releases all
//!            deadline before that: abandoned, all go on without a cut
//! ```
//!
//! The last park comes before the first release, so that no disk takes a write of after the instant
//! into the epoch while another one left out a write of before it.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use jiff::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// So many disks are not parked yet.
    Parking(usize),
    /// All were parked at this time.
    Released(Timestamp),
    Abandoned,
}

/// One cut; shared by the owners of the disks and whoever asked for it.
#[derive(Debug)]
pub struct Cut(Mutex<(Phase, Vec<Waker>)>);

impl Cut {
    /// A cut of `disks` disks, at least one.
    #[must_use]
    pub fn new(disks: usize) -> Self {
        Self(Mutex::new((Phase::Parking(disks), Vec::new())))
    }

    fn lock(&self) -> MutexGuard<'_, (Phase, Vec<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the parking, if it was not ended before.
    fn end(&self, how: impl FnOnce(Phase) -> Phase) {
        let wakers = {
            let mut inner = self.lock();
            inner.0 = how(inner.0);
            if matches!(inner.0, Phase::Parking(_)) {
                return;
            }
            std::mem::take(&mut inner.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// This disk is parked. Waits for the others; true if the cut holds: the disk seals now and goes
    /// on. False if it was abandoned.
    pub async fn parked(&self) -> bool {
        self.end(|phase| match phase {
            Phase::Parking(0 | 1) => Phase::Released(Timestamp::now()),
            Phase::Parking(left) => Phase::Parking(left - 1),
            ended => ended,
        });
        poll_fn(|cx| {
            let mut inner = self.lock();
            match inner.0 {
                #[cfg(test)]
                Phase::Parking(_)
                    if crate::lab::broken() == Some(crate::tracker::Rule::OneInstant) =>
                {
                    Poll::Ready(true)
                }
                Phase::Parking(_) => {
                    inner.1.push(cx.waker().clone());
                    Poll::Pending
                }
                Phase::Released(_) => Poll::Ready(true),
                Phase::Abandoned => Poll::Ready(false),
            }
        })
        .await
    }

    /// Waits until it is abandoned.
    pub async fn abandoned(&self) {
        poll_fn(|cx| {
            let mut inner = self.lock();
            if inner.0 == Phase::Abandoned {
                return Poll::Ready(());
            }
            inner.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Gives up waiting for disks that are not parked. No effect once all are.
    pub fn abandon(&self) {
        self.end(|phase| match phase {
            Phase::Parking(_) => Phase::Abandoned,
            ended => ended,
        });
    }

    /// When all disks were parked.
    #[must_use]
    pub fn time(&self) -> Option<Timestamp> {
        match self.lock().0 {
            Phase::Released(time) => Some(time),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    #[test]
    fn nobody_goes_on_before_the_last_is_parked() {
        let cut = Cut::new(2);
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = pin!(cut.parked());
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert_eq!(cut.time(), None);
        let second = pin!(cut.parked());
        assert_eq!(second.poll(&mut cx), Poll::Ready(true));
        assert_eq!(first.poll(&mut cx), Poll::Ready(true));
        cut.abandon();
        assert!(cut.time().is_some(), "too late to abandon it");
    }

    #[test]
    fn an_abandoned_cut_holds_for_nobody() {
        let cut = Cut::new(2);
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = pin!(cut.parked());
        assert!(first.as_mut().poll(&mut cx).is_pending());
        cut.abandon();
        assert_eq!(first.poll(&mut cx), Poll::Ready(false));
        assert_eq!(pin!(cut.parked()).poll(&mut cx), Poll::Ready(false));
    }
}
