use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::Buffer;

/// Sectors that take `turns` polls to be written, torn in the middle.
struct Slow {
    content: RefCell<Vec<u8>>,
    turns: u32,
}

impl Slow {
    fn new(sectors: usize, turns: u32) -> Rc<Self> {
        let content = RefCell::new(vec![0; sectors * 512]);
        Rc::new(Self { content, turns })
    }
}

impl Device for Slow {
    fn size(&self) -> u64 {
        self.content.borrow().len() as u64
    }

    async fn run(&self, op: Op) -> Done {
        let mut left = self.turns;
        poll_fn(|_| {
            left = left.saturating_sub(1);
            if left == 0 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        let (at, len) = op.range();
        let place = usize::try_from(at).expect("small")..usize::try_from(at + len).expect("small");
        let buffer = match op {
            Op::Read { mut into, .. } => {
                into.copy_from_slice(0, &self.content.borrow()[place]);
                Some(into)
            }
            Op::Write { from, .. } => {
                self.content.borrow_mut()[place].copy_from_slice(&from.to_vec());
                Some(from)
            }
            _ => None,
        };
        Done {
            outcome: Ok(()),
            buffer,
        }
    }
}

type Running<'a> = Pin<Box<dyn Future<Output = Done> + 'a>>;

fn poll<T>(future: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Poll<T> {
    future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}

fn finish(mut future: Running<'_>) -> Done {
    for _ in 0..100 {
        if let Poll::Ready(done) = poll(&mut future) {
            return done;
        }
    }
    panic!("it waits for ever");
}

fn write(gate: &Gate<Slow>, at: u64, fill: u8) -> Running<'_> {
    let from = Buffer::from_slice(&[fill; 512]);
    Box::pin(gate.run(Op::Write { at, from }))
}

fn first(device: &Slow) -> u8 {
    device.content.borrow()[0]
}

/// Exchanges a disk for a copy of it while a write runs. Whether the write is on the new one.
fn a_write_across_a_swap_is_kept(careless: bool) -> bool {
    let old = Slow::new(1, 3);
    let gate = Gate::new(Rc::clone(&old));
    gate.careless.set(careless);
    let mut running = write(&gate, 0, 1);
    assert!(poll(&mut running).is_pending());
    gate.close();
    let mut drained: Pin<Box<dyn Future<Output = ()>>> = Box::pin(gate.drain());
    if !careless {
        assert!(poll(&mut drained).is_pending(), "a write runs");
        assert!(poll(&mut running).is_pending());
        assert!(poll(&mut running).is_ready(), "it goes on");
        assert!(poll(&mut drained).is_ready());
    }
    let new = Slow::new(1, 1);
    new.content
        .borrow_mut()
        .copy_from_slice(&old.content.borrow());
    drop(gate.swap(Rc::clone(&new), Vec::new()));
    gate.open();
    if careless {
        finish(running);
    }
    first(&new) == 1
}

#[test]
fn a_swap_waits_for_what_runs_and_a_test_sees_it_if_not() {
    assert!(a_write_across_a_swap_is_kept(false));
    assert!(
        !a_write_across_a_swap_is_kept(true),
        "the check sees a swap without a drain"
    );
}

#[test]
#[should_panic(expected = "closed and drained")]
fn a_swap_of_a_gate_that_is_not_drained_panics() {
    let gate = Gate::new(Slow::new(1, 3));
    let mut running = write(&gate, 0, 1);
    assert!(poll(&mut running).is_pending());
    gate.close();
    drop(gate.swap(Slow::new(1, 1), Vec::new()));
}

#[test]
fn what_comes_while_it_is_closed_waits_and_runs_on_what_is_below_when_it_opens() {
    let old = Slow::new(2, 1);
    let gate = Gate::new(Rc::clone(&old));
    gate.close();
    let mut writes: Vec<Running<'_>> = (0..2).map(|at| write(&gate, at * 512, 7)).collect();
    let into = Buffer::zeroed(512);
    let mut read: Running<'_> = Box::pin(gate.run(Op::Read { at: 0, into }));
    let mut flush: Running<'_> = Box::pin(gate.run(Op::Flush));
    for waiting in writes.iter_mut().chain([&mut read, &mut flush]) {
        assert!(poll(waiting).is_pending());
    }
    let mut drained: Pin<Box<dyn Future<Output = ()>>> = Box::pin(gate.drain());
    assert!(poll(&mut drained).is_ready(), "what waits does not run");
    let new = Slow::new(4, 1);
    let swapped = gate.swap(Rc::clone(&new), std::iter::once(512..1024).collect());
    assert!(Rc::ptr_eq(&swapped.old, &old));
    assert_eq!(swapped.changed, [512..1024, 1024..2048], "and it grew");
    assert_eq!(gate.size(), 2048);
    assert!(
        writes.iter_mut().all(|write| poll(write).is_pending()),
        "a swap does not open it"
    );
    gate.open();
    for write in writes {
        assert_eq!(finish(write).outcome, Ok(()));
    }
    assert_eq!(finish(read).outcome, Ok(()));
    assert_eq!(finish(flush).outcome, Ok(()));
    assert_eq!(new.content.borrow()[..1024], [7; 1024]);
    assert_eq!(first(&old), 0);
}
