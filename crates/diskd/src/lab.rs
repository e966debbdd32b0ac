//! What tests inject into the threads of owners: a broken rule, slow writes, owners that come late.
//!
//! A thread without a [`Lab`] runs as it does outside tests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::{Buffer, Device, Done, Op, Waiters};
use ring::Ring;
use testkit::Rng;

use crate::tracker::Rule;
use crate::turn::give_way;

thread_local! {
    static LAB: RefCell<Option<Lab>> = const { RefCell::new(None) };
}

/// What is injected into a thread.
pub(crate) struct Lab {
    broken: Option<Rule>,
    rng: Rng,
    seals: Rc<Seals>,
    /// How many writes were held until a later seal.
    slow: Arc<AtomicU64>,
}

/// The epochs that began on this thread.
#[derive(Default)]
struct Seals {
    count: Cell<u64>,
    changed: Waiters,
}

/// What becomes of a write.
enum Fate {
    Fast,
    /// It reaches the file after the next seal.
    Later,
    /// It is in the file, and is answered after the next seal.
    Unanswered,
    /// Half of it is in the file at the next seal.
    Torn,
}

impl Lab {
    /// Slow writes, counted in `slow`, and lateness, as `seed` decides.
    pub(crate) fn new(broken: Option<Rule>, seed: u64, slow: Arc<AtomicU64>) -> Self {
        Self {
            broken,
            rng: Rng::new(seed),
            seals: Rc::default(),
            slow,
        }
    }

    /// For this thread, from now on.
    pub(crate) fn enter(self) {
        LAB.set(Some(self));
    }

    fn fate(&mut self, op: &Op) -> Fate {
        if !op.mutates() || !self.rng.once_in(5) {
            return Fate::Fast;
        }
        self.slow.fetch_add(1, Ordering::Relaxed);
        match self.rng.below(3) {
            0 => Fate::Later,
            1 => Fate::Unanswered,
            _ => Fate::Torn,
        }
    }
}

fn with<T>(look: impl FnOnce(&mut Lab) -> T) -> Option<T> {
    LAB.with_borrow_mut(|lab| lab.as_mut().map(look))
}

/// The rule that is broken on this thread.
pub(crate) fn broken() -> Option<Rule> {
    with(|lab| lab.broken).flatten()
}

/// An epoch began on this thread.
pub(crate) fn sealed() {
    if let Some(seals) = with(|lab| Rc::clone(&lab.seals)) {
        seals.count.set(seals.count.get() + 1);
        seals.changed.notify();
    }
}

/// An owner is told to park: it may not come to that at once.
pub(crate) async fn late(ring: &Ring) {
    let wait = with(|lab| lab.rng.once_in(2).then(|| lab.rng.below(600)));
    if let Some(micros) = wait.flatten() {
        ring.sleep(Duration::from_micros(micros)).await;
    }
}

async fn next_seal() {
    if let Some(seals) = with(|lab| Rc::clone(&lab.seals)) {
        let begun = seals.count.get();
        let over = || (seals.count.get() > begun).then_some(());
        seals.changed.until(over).await;
    }
    // Before staging reads, among it, and after it.
    for _ in 0..with(|lab| lab.rng.below(30)).unwrap_or(0) {
        give_way().await;
    }
}

/// Runs `op` on a device that is slow now and then.
pub(crate) async fn slowly<D: Device>(device: &D, op: Op) -> Done {
    match with(|lab| lab.fate(&op)).unwrap_or(Fate::Fast) {
        Fate::Fast => device.run(op).await,
        Fate::Later => {
            next_seal().await;
            device.run(op).await
        }
        Fate::Unanswered => {
            let done = device.run(op).await;
            next_seal().await;
            done
        }
        Fate::Torn => {
            if let Op::Write { at, from } = &op {
                let bytes = from.to_vec();
                let half = Buffer::from_slice(&bytes[..bytes.len() / 1024 * 512]);
                if !half.is_empty() {
                    let first = Op::Write {
                        at: *at,
                        from: half,
                    };
                    let done = device.run(first).await;
                    if done.outcome.is_err() {
                        return op.refuse(done.outcome.expect_err("looked at"));
                    }
                }
            }
            next_seal().await;
            device.run(op).await
        }
    }
}
