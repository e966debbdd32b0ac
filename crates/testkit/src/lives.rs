//! Lives of a disk: guests that overlap, kills, power cuts, and what the next life finds.
//!
//! ```text
//!   open --> check all --> guests at once, and what the world does beside them
//!    ^                          |  to the end, or to any instant
//!    +--- kill -9, or power cut-+
//! ```

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use block::{Buffer, Device, Op};

use crate::{History, Rng, Schedule};

/// Guests that issue operations at the same time.
const GUESTS: u64 = 6;

/// What a disk is made of and what becomes of it.
#[allow(async_fn_in_trait, reason = "on one thread")]
pub trait World: 'static {
    /// The disk; its size never changes, and need not be more than a few blocks.
    type Disk: Device + 'static;

    /// Opens the disk as a new process does.
    async fn open(self: Rc<Self>) -> Rc<Self::Disk>;

    /// Spawns what goes on beside the guests: drains, swaps. It must end by itself.
    fn beside(self: Rc<Self>, disk: Rc<Self::Disk>, schedule: &Schedule, rng: &mut Rng);

    /// Cuts the power of everything that the disk is made of.
    fn cut(&self, rng: &mut Rng);
}

/// The seeds of a test: `usual` many from 0 on, or as many as the variable `POLLUX_SEEDS` says.
#[must_use]
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    let told = std::env::var("POLLUX_SEEDS").ok();
    0..told.and_then(|told| told.parse().ok()).unwrap_or(usual)
}

/// Runs `future` to its end, among what else is on the schedule.
///
/// # Panics
/// When it waits for ever.
pub fn finish<T: 'static>(schedule: &Schedule, future: impl Future<Output = T> + 'static) -> T {
    let slot = Rc::new(RefCell::new(None));
    let into = Rc::clone(&slot);
    schedule.spawn(async move {
        let output = future.await;
        into.replace(Some(output));
    });
    while slot.borrow().is_none() {
        assert!(schedule.step(), "it waits for ever");
    }
    slot.take().expect("it is there")
}

/// Lives `count` lives of a disk that reads as `content`, as `seed` decides.
///
/// # Panics
/// When a guest sees what it must not, or something waits for ever.
pub fn lives<W: World>(world: &Rc<W>, content: Vec<u8>, seed: u64, count: u32) {
    let mut rng = Rng::new(seed);
    let history = Rc::new(RefCell::new(History::new(content, rng.bits())));
    let mut was_cut = false;
    for _ in 0..=count {
        let schedule = Schedule::new(rng.bits());
        let disk = finish(&schedule, Rc::clone(world).open());
        let seen = finish(&schedule, read_all(Rc::clone(&disk)));
        if was_cut {
            history.borrow().check_durable(&seen);
            history.replace(History::new(seen, rng.bits()));
        } else {
            let now = history.borrow_mut().now();
            history.borrow().check(0, &seen, now);
        }
        for _ in 0..GUESTS {
            let guest = guest(Rc::clone(&disk), Rc::clone(&history), Rng::new(rng.bits()));
            schedule.spawn(guest);
        }
        Rc::clone(world).beside(disk, &schedule, &mut rng);
        if rng.once_in(4) {
            assert_eq!(schedule.run(), 0, "something waits for ever");
        } else {
            // Any instant; a life takes a few thousand steps.
            let longest = [200, 4000][rng.index(2)];
            for _ in 0..rng.below(longest) {
                schedule.step();
            }
        }
        schedule.kill();
        history.borrow_mut().kill();
        was_cut = rng.once_in(2);
        if was_cut {
            world.cut(&mut rng);
        }
    }
}

async fn read_all<D: Device>(disk: Rc<D>) -> Vec<u8> {
    let into = Buffer::zeroed(usize::try_from(disk.size()).expect("small"));
    let done = disk.run(Op::Read { at: 0, into }).await;
    assert_eq!(done.outcome, Ok(()), "a read of the whole disk");
    done.buffer.expect("given back").to_vec()
}

async fn guest<D: Device>(disk: Rc<D>, history: Rc<RefCell<History>>, mut rng: Rng) {
    let sectors = disk.size() / 512;
    for _ in 0..rng.below(24) {
        let most = [8, 24, sectors][rng.index(3)];
        let first = rng.below(sectors);
        let count = 1 + rng.below(most.min(sectors - first));
        let (at, len) = (first * 512, count * 512);
        let bytes = usize::try_from(len).expect("small");
        let begun = history.borrow_mut().now();
        let kind = rng.below(10);
        if kind < 2 {
            assert_eq!(disk.run(Op::Flush).await.outcome, Ok(()), "a flush");
            history.borrow_mut().flushed(begun);
        } else if kind < 5 {
            let into = Buffer::zeroed(bytes);
            let done = disk.run(Op::Read { at, into }).await;
            assert_eq!(done.outcome, Ok(()), "a read of {len} at {at}");
            let seen = done.buffer.expect("given back").to_vec();
            history.borrow().check(at, &seen, begun);
        } else {
            let (number, content) = history.borrow_mut().begin(at, bytes, kind < 7);
            let op = match kind {
                5 => Op::Discard { at, len },
                6 => Op::WriteZeroes {
                    at,
                    len,
                    unmap: rng.once_in(2),
                },
                _ => Op::Write {
                    at,
                    from: Buffer::from_slice(&content),
                },
            };
            assert_eq!(disk.run(op).await.outcome, Ok(()), "a change at {at}");
            history.borrow_mut().end(number);
        }
    }
}
