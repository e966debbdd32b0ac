//! The engine of one disk on a store in memory, under schedules that a seed decides.

use std::path::PathBuf;
use std::rc::Rc;

use block::{Buffer, Place};
use image::RawDevice;
use model::{BootId, DiskId, RelationshipId};
use testkit::{PowerCutStore, Rng, Schedule};

use super::*;
use crate::coarse::coarsen;
use crate::flow::Flow;
use crate::staging::Abandoned;
use crate::state::Marks;

const BLOCKS: u64 = 64;
const SIZE: u64 = BLOCKS * BLOCK_SIZE;
/// Guests whose operations run at once, each in a lane of its own: what overlapping writes give is
/// undefined. The lanes' ends share blocks.
const GUESTS: u64 = 8;
const LANE: u64 = SIZE / SECTOR_SIZE / GUESTS;

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("small")
}

/// A mutation that can be issued again.
#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Discard(u64, u64),
    Zero(u64, u64),
}

impl Change {
    fn random(rng: &mut Rng, guest: u64) -> Self {
        // Not aligned to blocks.
        let first = (guest * LANE + 3) * SECTOR_SIZE;
        let room = if guest + 1 == GUESTS { LANE - 3 } else { LANE };
        let skip = rng.below(room);
        let len = (1 + rng.below((room - skip).min(24))) * SECTOR_SIZE;
        let at = first + skip * SECTOR_SIZE;
        match rng.below(8) {
            0 => Self::Discard(at, len),
            1 => Self::Zero(at, len),
            _ => Self::Write(at, rng.bytes(size(len))),
        }
    }

    fn op(&self) -> Op {
        match self {
            Self::Write(at, bytes) => Op::Write {
                at: *at,
                from: Buffer::from_slice(bytes),
            },
            Self::Discard(at, len) => Op::Discard { at: *at, len: *len },
            Self::Zero(at, len) => Op::WriteZeroes {
                at: *at,
                len: *len,
                unmap: false,
            },
        }
    }
}

/// Notes what is issued, in that order, before it goes on.
struct Probe {
    below: RawDevice<PowerCutStore>,
    issued: Rc<RefCell<Vec<u8>>>,
}

impl Device for Probe {
    fn size(&self) -> u64 {
        Device::size(&self.below)
    }
    async fn run(&self, op: Op) -> Done {
        let (at, len) = op.range();
        if op.mutates() {
            let mut issued = self.issued.borrow_mut();
            let place = &mut issued[size(at)..size(at + len)];
            match &op {
                Op::Write { from, .. } => place.copy_from_slice(&from.to_vec()),
                _ => place.fill(0),
            }
        }
        self.below.run(op).await
    }
}

impl Image for Probe {
    fn size(&self) -> u64 {
        Device::size(&self.below)
    }
    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        self.below.translate(range, visit).await
    }
}

/// A primary, its guests, and a replica that segments are applied to.
struct World {
    rule: Option<Rule>,
    rng: Rng,
    store: PowerCutStore,
    folder: tempfile::TempDir,
    boot: BootId,
    disk: DiskId,
    relationship: RelationshipId,
    issued: Rc<RefCell<Vec<u8>>>,
    replica: Rc<RefCell<Vec<u8>>>,
    pending: Rc<RefCell<Vec<Option<Change>>>>,
    fault: Rc<RefCell<Option<String>>>,
    /// Points that were compared, epochs given up, blocks saved before a write.
    seen: Rc<Cell<(u64, u64, u64)>>,
}

impl World {
    fn new(seed: u64, rule: Option<Rule>) -> Self {
        Self {
            rule,
            rng: Rng::new(seed),
            store: PowerCutStore::new(size(SIZE), 512, seed),
            folder: tempfile::tempdir_in("/dev/shm").expect("scratch in memory"),
            boot: BootId::random(),
            disk: DiskId::random(),
            relationship: RelationshipId::random(),
            issued: Rc::new(RefCell::new(vec![0; size(SIZE)])),
            replica: Rc::new(RefCell::new(vec![0xee; size(SIZE)])),
            pending: Rc::new(RefCell::new(vec![None; size(GUESTS)])),
            fault: Rc::default(),
            seen: Rc::default(),
        }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A new process on what the last one left.
    fn start(&self) -> Rc<Tracker<Probe>> {
        let state = DiskState::open(&self.state(), self.boot, self.disk, SIZE, 1);
        let state = state.expect("opened");
        let below = RawDevice::new(self.store.clone(), SIZE, false).expect("whole blocks");
        let issued = Rc::clone(&self.issued);
        let probe = Probe { below, issued };
        let tracker = Tracker::new(probe, state, Arc::default(), Ledger::nowhere());
        tracker.broken.set(self.rule);
        if tracker.state().relationship() != Some(self.relationship) {
            tracker.state().track(self.relationship, Marks::All);
        }
        Rc::new(tracker)
    }

    /// Runs guests and a replicator for a random while, then kills the process.
    fn live(&mut self, last: bool) -> Result<(), String> {
        let tracker = self.start();
        let schedule = Schedule::new(self.rng.bits());
        // Guests that were cut off issue again what was not answered; or they died too.
        if self.rng.once_in(2) {
            let again: Vec<Change> = self
                .pending
                .borrow_mut()
                .iter_mut()
                .flat_map(Option::take)
                .collect();
            for change in again {
                let tracker = Rc::clone(&tracker);
                schedule.spawn(async move {
                    assert_eq!(tracker.run(change.op()).await.outcome, Ok(()));
                });
            }
            assert_eq!(schedule.run(), 0, "operations issued again wait for ever");
        } else {
            self.pending.borrow_mut().fill(None);
            *self.issued.borrow_mut() = self.store.content();
        }
        let operations = 20 + self.rng.below(20);
        for guest in 0..GUESTS {
            let (tracker, pending) = (Rc::clone(&tracker), Rc::clone(&self.pending));
            let mut rng = Rng::new(self.rng.bits());
            schedule.spawn(async move {
                for _ in 0..operations {
                    let change = Change::random(&mut rng, guest);
                    pending.borrow_mut()[size(guest)] = Some(change.clone());
                    let done = tracker.run(change.op()).await;
                    assert_eq!(done.outcome, Ok(()));
                    pending.borrow_mut()[size(guest)] = None;
                }
            });
        }
        self.replicate(&schedule, Rc::clone(&tracker), 6);
        if !last {
            for _ in 0..self.rng.below(6000) {
                schedule.step();
            }
            schedule.kill();
            return self.fault.borrow_mut().take().map_or(Ok(()), Err);
        }
        if schedule.run() != 0 {
            return Err("something waits for ever".to_owned());
        }
        self.replicate(&schedule, tracker, 1);
        assert_eq!(schedule.run(), 0, "the last epoch waits for ever");
        if let Some(fault) = self.fault.borrow_mut().take() {
            return Err(fault);
        }
        differ(&self.replica.borrow(), &self.store.content(), "the end")
    }

    /// Ships `epochs` epochs; an odd number of them ends with a cut.
    fn replicate(&mut self, schedule: &Schedule, tracker: Rc<Tracker<Probe>>, epochs: u64) {
        let mut rng = Rng::new(self.rng.bits());
        let (issued, replica) = (Rc::clone(&self.issued), Rc::clone(&self.replica));
        let (fault, seen) = (Rc::clone(&self.fault), Rc::clone(&self.seen));
        schedule.spawn(async move {
            for number in 0..epochs {
                let pieces = Rc::new(RefCell::new(Vec::new()));
                let only = epochs == 1;
                let budget = if rng.once_in(6) && !only {
                    2 * BLOCK_SIZE
                } else {
                    u64::MAX
                };
                let epoch = epoch(Rc::clone(&pieces), budget);
                // Let the guests come in between.
                for _ in 0..rng.below(30) {
                    pause().await;
                }
                if rng.once_in(3) && !only {
                    let from = rng.below(BLOCKS);
                    let limit = 1 + rng.below(BLOCKS);
                    tracker.seal_part(epoch, from, limit).expect("tracking");
                    tracker.stage().await.expect("the store can be read");
                    apply(&replica, &pieces);
                    tracker.end(true);
                    continue;
                }
                if rng.once_in(3) {
                    coarsen(tracker.state(), 1 + rng.below(6), async || pause().await).await;
                    tracker.publish();
                }
                tracker.park();
                for _ in 0..rng.below(10) {
                    pause().await;
                }
                tracker.seal(epoch).expect("tracking");
                let point = issued.borrow().clone();
                tracker.unpark();
                let (compared, given_up, saved) = seen.get();
                match tracker.stage().await {
                    Ok(report) => {
                        seen.set((compared + 1, given_up, saved + report.copied));
                        if rng.once_in(8) && !only {
                            // The segment could not be completed.
                            tracker.end(false);
                            continue;
                        }
                        apply(&replica, &pieces);
                        let place = format!("epoch {number}");
                        if let Err(error) = differ(&replica.borrow(), &point, &place) {
                            fault.borrow_mut().get_or_insert(error);
                        }
                        tracker.end(true);
                    }
                    Err(why) => {
                        assert_eq!(why, Abandoned::Budget);
                        seen.set((compared, given_up + 1, saved));
                        tracker.end(false);
                    }
                }
            }
        });
    }
}

type Pieces = Rc<RefCell<Vec<Piece>>>;

use crate::flow::Piece;

fn epoch(pieces: Pieces, budget: u64) -> Epoch {
    Epoch {
        disk: 0,
        sink: Box::new(move |piece| pieces.borrow_mut().push(piece)),
        flow: Arc::new(Flow::default()),
        budget,
    }
}

async fn pause() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

fn apply(replica: &RefCell<Vec<u8>>, pieces: &Pieces) {
    for piece in pieces.borrow_mut().drain(..) {
        let at = size(piece.block * BLOCK_SIZE);
        let bytes = piece.content.to_vec();
        replica.borrow_mut()[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}

fn differ(left: &[u8], right: &[u8], place: &str) -> Result<(), String> {
    match left
        .iter()
        .zip(right)
        .position(|(left, right)| left != right)
    {
        Some(at) => Err(format!("{place}: block {} differs", at / 4096)),
        None => Ok(()),
    }
}

/// Lives and kills until the end. What was seen, or what was wrong.
fn history(seed: u64, rule: Option<Rule>) -> Result<(u64, u64, u64), String> {
    let mut world = World::new(seed, rule);
    for life in 0..4 {
        let outcome = world.live(life == 3);
        outcome.map_err(|error| format!("seed {seed}, life {life}: {error}"))?;
    }
    Ok(world.seen.get())
}

fn seeds() -> u64 {
    let raised = std::env::var("PROPTEST_CASES").ok();
    raised.and_then(|cases| cases.parse().ok()).unwrap_or(60)
}

#[test]
fn every_point_is_what_was_issued_before_its_cut_through_kills_and_abandoned_epochs() {
    let (mut compared, mut given_up, mut saved) = (0, 0, 0);
    for seed in 0..seeds() {
        let seen = history(seed, None).unwrap_or_else(|error| panic!("{error}"));
        compared += seen.0;
        given_up += seen.1;
        saved += seen.2;
    }
    // The test must come to the places that it is about.
    assert!(
        compared > 100 && given_up > 5 && saved > 100,
        "{compared} points, {given_up} epochs given up, {saved} bytes saved"
    );
}

#[test]
fn each_rule_of_the_tracker_is_needed() {
    for rule in [
        Rule::MarkBeforeIssue,
        Rule::DoubleMark,
        Rule::CopyBeforeWrite,
        Rule::WaitForCrossing,
    ] {
        let noticed = (0..200).find(|seed| history(*seed, Some(rule)).is_err());
        assert!(noticed.is_some(), "nobody misses {rule:?}");
    }
}

/// One tracker with its own schedule, all blocks shipped.
fn quiet(seed: u64) -> (World, Rc<Tracker<Probe>>, Schedule) {
    let world = World::new(seed, None);
    let tracker = world.start();
    let schedule = Schedule::new(seed);
    let inner = Rc::clone(&tracker);
    schedule.spawn(async move {
        let pieces = Pieces::default();
        inner.seal(epoch(pieces, u64::MAX)).expect("tracking");
        inner.stage().await.expect("read");
        inner.end(true);
    });
    assert_eq!(schedule.run(), 0);
    assert_eq!(tracker.state().dirty(), 0);
    (world, tracker, schedule)
}

#[test]
fn a_write_outside_the_disk_is_refused_and_marks_nothing() {
    let (_world, tracker, schedule) = quiet(1);
    let inner = Rc::clone(&tracker);
    schedule.spawn(async move {
        for (at, len) in [
            (SIZE, 512),
            (SIZE - 512, 1024),
            (u64::MAX - 511, 512),
            (1, 512),
        ] {
            let done = inner.run(Op::Discard { at, len }).await;
            assert_eq!(done.outcome, Err(Fault::Range));
        }
    });
    assert_eq!(schedule.run(), 0);
    assert_eq!(tracker.state().dirty(), 0);
}

#[test]
fn a_failed_flush_is_known_to_the_next_process() {
    let (world, tracker, schedule) = quiet(2);
    world.store.fail_syncs(1);
    let inner = Rc::clone(&tracker);
    schedule.spawn(async move {
        assert_eq!(inner.run(Op::Flush).await.outcome, Err(Fault::Os(5)));
    });
    assert_eq!(schedule.run(), 0);
    drop(tracker);
    let tracker = world.start();
    schedule.spawn(async move {
        assert_eq!(
            tracker.run(Op::Flush).await.outcome,
            Err(Fault::FlushFailed)
        );
        let op = Op::Discard { at: 0, len: 512 };
        assert_eq!(tracker.run(op).await.outcome, Err(Fault::FlushFailed));
        let into = Buffer::zeroed(512);
        let done = tracker.run(Op::Read { at: 0, into }).await;
        assert_eq!(done.outcome, Ok(()));
    });
    assert_eq!(schedule.run(), 0);
}

#[test]
fn a_parked_disk_reads_and_flushes_and_writes_when_it_is_released() {
    let (_world, tracker, schedule) = quiet(3);
    tracker.park();
    let done = Rc::new(Cell::new(0));
    for op in [
        Op::Flush,
        Op::Read {
            at: 0,
            into: Buffer::zeroed(512),
        },
        Op::Discard { at: 0, len: 512 },
    ] {
        let (tracker, done) = (Rc::clone(&tracker), Rc::clone(&done));
        schedule.spawn(async move {
            assert_eq!(tracker.run(op).await.outcome, Ok(()));
            done.set(done.get() + 1);
        });
    }
    assert_eq!((schedule.run(), done.get()), (1, 2));
    tracker.unpark();
    assert_eq!((schedule.run(), done.get()), (0, 3));
}

#[test]
fn old_content_that_is_still_being_read_is_inside_the_copy_budget() {
    let (world, tracker, schedule) = quiet(4);
    let pieces = Pieces::default();
    tracker.state().mark(0..4);
    let (inner, kept) = (Rc::clone(&tracker), Rc::clone(&pieces));
    schedule.spawn(async move {
        inner.seal(epoch(kept, 2 * BLOCK_SIZE)).expect("tracking");
    });
    assert_eq!(schedule.run(), 0);
    // None of the reads that save old content ends.
    world.store.hold(true);
    let write = |block: u64| {
        let inner = Rc::clone(&tracker);
        schedule.spawn(async move {
            let at = block * BLOCK_SIZE;
            let op = Op::Discard { at, len: 512 };
            assert_eq!(inner.run(op).await.outcome, Ok(()));
        });
        for _ in 0..50 {
            schedule.step();
        }
    };
    (0..2).for_each(write);
    assert_eq!(tracker.state().next_sealed(0..BLOCKS), Some(0..4), "room");
    write(2);
    assert_eq!(tracker.state().next_sealed(0..BLOCKS), None, "given up");
    world.store.hold(false);
    assert_eq!(schedule.run(), 0);
    assert!(pieces.borrow().is_empty(), "nobody wants them any more");
    let stage = Rc::clone(&tracker);
    schedule.spawn(async move {
        assert_eq!(stage.stage().await, Err(Abandoned::Budget));
    });
    assert_eq!(schedule.run(), 0);
    assert_eq!(tracker.state().dirty(), 4);
}
