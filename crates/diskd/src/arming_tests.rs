//! A tracked disk and its write-intent log, on stores that fail, wait and lose power.
#![allow(clippy::single_range_in_vec_init, reason = "runs are replaced")]

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use block::{Buffer, Device, Fault, Op};
use image::RawDevice;
use model::{BLOCK_SIZE, BootId, DiskId, REGION_SIZE, RelationshipId};
use testkit::{PowerCutStore, Schedule};

use crate::control::LogStatus;
use crate::flow::Flow;
use crate::intent::{IntentLog, Looks};
use crate::ledger::{Ledger, Place};
use crate::recall::recall;
use crate::staging::Epoch;
use crate::state::{DiskState, Marks};
use crate::tracker::{Rule, SealError, Tracker};

const REGIONS: u64 = 8;
const SIZE: u64 = REGIONS * REGION_SIZE;
const REGION_BLOCKS: u64 = REGION_SIZE / BLOCK_SIZE;

/// The folder of a log.
#[derive(Clone)]
struct Shelf {
    log: PowerCutStore,
    there: Rc<Cell<bool>>,
    /// Nothing in it can be removed.
    stuck: Rc<Cell<bool>>,
}

impl Place<PowerCutStore> for Shelf {
    fn open(&self) -> io::Result<Option<PowerCutStore>> {
        Ok(self.there.get().then(|| self.log.clone()))
    }

    fn make(&self) -> io::Result<PowerCutStore> {
        self.there.set(true);
        Ok(self.log.clone())
    }

    fn remove(&self) -> io::Result<()> {
        if self.stuck.get() {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        self.there.set(false);
        Ok(())
    }
}

type Disk = Tracker<RawDevice<PowerCutStore>, PowerCutStore>;

struct Scene {
    folder: tempfile::TempDir,
    id: DiskId,
    boot: BootId,
    store: PowerCutStore,
    shelf: Shelf,
    disk: Rc<Disk>,
    schedule: Schedule,
}

impl Scene {
    /// A disk whose twin has all of it, and nothing is armed.
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").expect("scratch in memory");
        let size = usize::try_from(SIZE).expect("small");
        let store = PowerCutStore::new(size, 512, seed);
        let shelf = Shelf {
            log: PowerCutStore::new(1 << 20, 512, seed + 1),
            there: Rc::default(),
            stuck: Rc::default(),
        };
        let (id, boot) = (DiskId::random(), BootId::random());
        let path = folder.path().join("state");
        let state = DiskState::open(&path, boot, id, SIZE, 1).expect("opened");
        let below = RawDevice::new(store.clone(), SIZE, false).expect("whole blocks");
        let ledger = Ledger::new(id, Looks::of(&[]), Box::new(shelf.clone()));
        let disk = Rc::new(Tracker::new(below, state, Arc::default(), ledger));
        let schedule = Schedule::new(seed);
        let scene = Self {
            folder,
            id,
            boot,
            store,
            shelf,
            disk,
            schedule,
        };
        scene.run(|disk| async move {
            assert!(!disk.track(RelationshipId::random(), None).await);
            assert_eq!(disk.seal(epoch()), Err(SealError::Suspect));
            for region in 0..REGIONS {
                disk.compared(region, &[]).await.expect("armed");
            }
            disk.sweep(true).await.expect("swept");
        });
        assert_eq!(scene.armed(), 0);
        scene
    }

    /// Begins it; what a store holds does not end.
    fn begin<F: Future<Output = ()> + 'static>(&self, task: impl FnOnce(Rc<Disk>) -> F) {
        self.schedule.spawn(task(Rc::clone(&self.disk)));
        self.turns(2000);
    }

    fn turns(&self, count: u64) {
        // What is held goes round and round.
        for _ in 0..count {
            self.schedule.step();
        }
    }

    fn run<F: Future<Output = ()> + 'static>(&self, task: impl FnOnce(Rc<Disk>) -> F) {
        self.schedule.spawn(task(Rc::clone(&self.disk)));
        assert_eq!(self.schedule.run(), 0);
    }

    fn armed(&self) -> u64 {
        self.disk.ledger.armed(REGIONS)
    }

    /// Everything marked is sent and confirmed.
    fn ship(&self) {
        self.disk.seal(epoch()).expect("tracked");
        self.begin(|disk| async move {
            disk.stage().await.expect("read");
            disk.end(true);
            disk.confirm();
        });
        assert!(self.disk.staging.borrow().is_none());
    }

    /// A sweep of all, during whose flush `meanwhile` happens.
    fn sweep_during(&self, meanwhile: impl FnOnce()) {
        self.store.hold_syncs(true);
        self.begin(|disk| async move { disk.sweep(true).await.expect("swept") });
        assert!(self.disk.sweeping.get());
        meanwhile();
        self.store.hold_syncs(false);
        assert_eq!(self.schedule.run(), 0);
        assert!(!self.disk.sweeping.get());
    }

    /// The regions that a power cut now leaves armed.
    fn after_a_power_cut(&self, seed: u64) -> Vec<u64> {
        self.shelf.log.cut(seed);
        let (store, id) = (self.shelf.log.clone(), self.id);
        let found = Rc::new(Cell::new(Vec::new()));
        let told = Rc::clone(&found);
        self.run(|_| async move {
            let log = IntentLog::open(store, id).await.expect("it is there");
            let armed = (0..REGIONS).filter(|region| {
                log.is_armed(&(region * REGION_BLOCKS..region * REGION_BLOCKS + 1))
            });
            told.set(armed.collect());
        });
        found.take()
    }
}

fn epoch() -> Epoch {
    Epoch {
        disk: 0,
        sink: Box::new(drop),
        flow: Arc::new(Flow::default()),
        budget: u64::MAX,
    }
}

async fn write(disk: Rc<Disk>, region: u64) {
    let from = Buffer::from_slice(&[7; 4096]);
    let at = region * REGION_SIZE;
    assert_eq!(disk.run(Op::Write { at, from }).await.outcome, Ok(()));
}

#[test]
fn a_write_that_waits_for_the_log_holds_up_no_cut_and_belongs_to_the_next_epoch() {
    let scene = Scene::new(1);
    scene.shelf.log.hold(true);
    scene.begin(|disk| write(disk, 3));
    assert_eq!(scene.disk.state().dirty(), 0, "not armed, not marked");
    scene.disk.park();
    scene.disk.seal(epoch()).expect("nobody is waited for");
    assert_eq!(scene.disk.state().next_sealed(0..SIZE / BLOCK_SIZE), None);
    // It is looked at again once it is armed: the disk is parked.
    scene.shelf.log.hold(false);
    scene.turns(2000);
    assert_eq!(scene.armed(), 1);
    assert_eq!(scene.disk.state().dirty(), 0, "held up by the cut");
    assert_eq!(scene.store.content()[3 << 20], 0);
    scene.disk.unpark();
    assert_eq!(scene.schedule.run(), 0);
    assert_eq!(scene.disk.state().dirty(), 1);
    assert_eq!(scene.store.content()[3 << 20], 7);
    scene.run(|disk| async move {
        let staged = disk.stage().await.expect("read");
        assert_eq!(staged.copied, 0);
        disk.end(true);
    });
}

#[test]
fn what_was_written_is_armed_after_a_power_cut_at_any_time() {
    for seed in 0..50 {
        let scene = Scene::new(seed);
        scene.run(|disk| write(disk, 2));
        scene.schedule.spawn(write(Rc::clone(&scene.disk), 5));
        scene.turns(seed);
        let issued = scene.disk.state().dirty() == 2;
        let armed = scene.after_a_power_cut(seed);
        assert!(armed.contains(&2), "{armed:?}");
        assert!(armed.contains(&5) || !issued, "{armed:?}");
    }
    // Without the rule it is not.
    let scene = Scene::new(0);
    scene.disk.broken.set(Some(Rule::ArmBeforeIssue));
    scene.run(|disk| write(disk, 2));
    assert!(scene.after_a_power_cut(0).is_empty());
}

#[test]
fn a_log_that_cannot_be_written_is_removed_and_the_guest_goes_on_without() {
    let scene = Scene::new(2);
    scene.shelf.log.fail_syncs(1);
    scene.run(|disk| write(disk, 0));
    assert!(!scene.shelf.there.get());
    let tracking = scene.disk.tracking().expect("tracked");
    assert!(
        matches!(tracking.log, LogStatus::Lost { .. }),
        "{tracking:?}"
    );
    assert_eq!(tracking.armed.0, SIZE);
    scene.run(|disk| write(disk, 1));
    assert_eq!(scene.disk.state().dirty(), 2);
    // Who tracks next begins a new one, with everything armed.
    scene.run(|disk| async move {
        let relationship = disk.state().relationship().expect("tracked");
        assert!(disk.track(relationship, None).await, "the marks are exact");
    });
    assert!(scene.shelf.there.get());
    assert_eq!(scene.after_a_power_cut(2).len() as u64, REGIONS);
}

#[test]
fn writes_are_refused_while_a_log_can_neither_be_written_nor_removed() {
    let scene = Scene::new(3);
    scene.run(|disk| write(disk, 0));
    scene.shelf.log.fail_syncs(1);
    scene.shelf.stuck.set(true);
    scene.run(|disk| async move {
        for region in [1, 0] {
            let at = region * REGION_SIZE;
            let op = Op::Discard { at, len: 4096 };
            assert_eq!(disk.run(op).await.outcome, Err(Fault::Os(libc::EIO)));
        }
        assert_eq!(disk.run(Op::Flush).await.outcome, Ok(()));
    });
    assert_eq!(scene.disk.state().dirty(), 1);
    scene.shelf.stuck.set(false);
    scene.run(|disk| write(disk, 1));
    assert_eq!(scene.disk.state().dirty(), 2);
}

#[test]
fn a_sweep_forgets_what_the_twin_has_and_what_is_durable_and_keeps_what_is_hot() {
    let scene = Scene::new(4);
    let sweep = |all: bool| {
        scene.run(|disk| async move { disk.sweep(all).await.expect("swept") });
        scene.armed()
    };
    scene.run(|disk| write(disk, 0));
    scene.run(|disk| write(disk, 1));
    assert_eq!(sweep(true), 2, "not sent");
    scene.ship();
    let syncs = scene.store.syncs();
    assert_eq!(sweep(true), 0);
    assert!(scene.store.syncs() > syncs, "it is durable first");
    assert!(scene.after_a_power_cut(4).is_empty());

    let scene = Scene::new(5);
    let sweep = |all: bool| {
        scene.run(|disk| async move { disk.sweep(all).await.expect("swept") });
        scene.armed()
    };
    scene.run(|disk| write(disk, 0));
    scene.ship();
    assert_eq!(sweep(false), 1, "touched since the last sweep");
    scene.run(|disk| write(disk, 1));
    scene.ship();
    assert_eq!(sweep(false), 1, "one is hot, one is not any more");
    assert_eq!(sweep(false), 0);
    // Unconfirmed and suspect regions are not clean.
    scene.run(|disk| write(disk, 2));
    scene.disk.seal(epoch()).expect("tracked");
    scene.run(|disk| async move {
        disk.stage().await.expect("read");
        disk.end(true);
    });
    assert_eq!(sweep(true), 1, "unconfirmed");
    scene.disk.suspect_unconfirmed();
    scene.disk.confirm();
    assert_eq!(sweep(true), 1, "suspect");
}

#[test]
fn what_is_written_and_confirmed_during_the_flush_of_a_sweep_stays_armed() {
    for rule in [None, Some(Rule::TouchedStays)] {
        let scene = Scene::new(6);
        scene.disk.broken.set(rule);
        scene.run(|disk| write(disk, 0));
        scene.run(|disk| write(disk, 1));
        scene.ship();
        scene.sweep_during(|| {
            scene.begin(|disk| async move {
                let from = Buffer::from_slice(&[8; 4096]);
                assert_eq!(disk.run(Op::Write { at: 0, from }).await.outcome, Ok(()));
            });
            scene.ship();
        });
        // That something was confirmed meanwhile keeps nothing else.
        assert_eq!(scene.armed(), u64::from(rule.is_none()));
        scene.store.cut(1);
        let lost = scene.store.content()[..4096] != [8; 4096];
        assert!(lost, "the flush began before it was written");
        let armed = scene.after_a_power_cut(6);
        assert_eq!(armed.contains(&0), rule.is_none(), "{rule:?}");
    }
}

#[test]
fn what_waited_to_be_written_when_a_sweep_began_stays_armed() {
    let scene = Scene::new(12);
    scene.run(|disk| write(disk, 0));
    scene.ship();
    scene.disk.park();
    scene.begin(|disk| write(disk, 0));
    scene.sweep_during(|| {
        scene.disk.unpark();
        scene.turns(2000);
        assert_eq!(scene.disk.state().dirty(), 1);
        scene.ship();
    });
    assert_eq!(scene.armed(), 1);
    scene.run(|disk| async move { disk.sweep(true).await.expect("swept") });
    assert_eq!(scene.armed(), 0);
}

#[test]
fn what_is_replaced_and_confirmed_during_the_flush_of_a_sweep_stays_armed() {
    let scene = Scene::new(13);
    scene.run(|disk| write(disk, 0));
    scene.run(|disk| write(disk, 1));
    scene.ship();
    scene.sweep_during(|| {
        let hold = scene.disk.hold();
        scene.begin(|disk| async move { disk.arm_for(&[0..1], SIZE).await.expect("armed") });
        scene.disk.replaced(&[0..1]);
        drop(hold);
        scene.ship();
    });
    assert_eq!(scene.armed(), 1);
    // While a change is prepared nothing leaves the log, whatever was a candidate before.
    let mut hold = None;
    scene.sweep_during(|| hold = Some(scene.disk.hold()));
    assert_eq!(scene.armed(), 1);
}

#[test]
fn a_log_that_is_begun_during_the_flush_of_a_sweep_loses_nothing_by_it() {
    let scene = Scene::new(14);
    scene.run(|disk| write(disk, 0));
    scene.ship();
    scene.sweep_during(|| {
        scene.begin(|disk| async move {
            disk.untrack().expect("removed");
            assert!(!disk.track(RelationshipId::random(), None).await);
        });
    });
    assert_eq!(scene.armed(), REGIONS);
    assert_eq!(scene.after_a_power_cut(14).len() as u64, REGIONS);
}

#[test]
fn a_flush_that_fails_lets_a_sweep_forget_nothing() {
    let scene = Scene::new(7);
    scene.run(|disk| write(disk, 0));
    scene.ship();
    scene.store.fail_syncs(1);
    scene.run(|disk| async move { assert!(disk.sweep(true).await.is_err()) });
    assert!(scene.disk.state().flush_failed());
    assert_eq!(scene.armed(), 1);
    // Without the rule it forgets what is not durable.
    let scene = Scene::new(8);
    scene.run(|disk| write(disk, 0));
    scene.ship();
    scene.store.fail_syncs(1);
    scene.disk.broken.set(Some(Rule::FlushBeforeClear));
    scene.run(|disk| async move { disk.sweep(true).await.expect("swept") });
    assert_eq!(scene.armed(), 0);
}

#[test]
fn what_a_change_of_the_stack_will_mark_stays_armed_until_it_is_done() {
    let scene = Scene::new(9);
    let hold = scene.disk.hold();
    let runs = [0..3, 5 * REGION_BLOCKS..6 * REGION_BLOCKS];
    let armed = runs.clone();
    scene.run(|disk| async move {
        disk.arm_for(&armed, SIZE).await.expect("armed");
        disk.sweep(true).await.expect("swept");
    });
    assert_eq!(scene.armed(), 2);
    scene.disk.replaced(&runs);
    drop(hold);
    scene.run(|disk| async move { disk.sweep(true).await.expect("swept") });
    assert_eq!(scene.armed(), 2, "marked");
    assert_eq!(scene.after_a_power_cut(9), [0, 5]);
    // One that is given up leaves nothing behind.
    let scene = Scene::new(10);
    drop(scene.disk.hold());
    scene.run(|disk| async move {
        disk.arm_for(&runs, SIZE).await.expect("armed");
        disk.sweep(true).await.expect("swept");
    });
    assert_eq!(scene.armed(), 0);
}

#[test]
fn a_disk_that_is_closed_without_its_log_is_compared_as_a_whole_unless_its_guest_goes_on() {
    for guest in [false, true] {
        let scene = Scene::new(15);
        scene.shelf.log.fail_syncs(1);
        scene.run(|disk| write(disk, 2));
        assert!(!scene.shelf.there.get());
        let looks = Looks::of(&[7]);
        scene.run(|disk| async move { disk.close(looks, guest).await.expect("flushed") });
        let Scene {
            folder,
            id,
            boot,
            shelf,
            disk,
            schedule,
            ..
        } = scene;
        drop(disk);
        let state = DiskState::open(&folder.path().join("state"), boot, id, SIZE, 1);
        let state = Rc::new(state.expect("opened"));
        assert!(state.was_found());
        let ledger = Rc::new(Ledger::new(id, Looks::of(&[]), Box::new(shelf)));
        let (found, kept) = (Rc::clone(&state), Rc::clone(&ledger));
        schedule.spawn(async move {
            let recalled = recall(&kept, &found, Some(looks), None).await;
            recalled.expect("a new log is begun");
        });
        assert_eq!(schedule.run(), 0);
        assert_eq!(state.suspects(), if guest { 0 } else { REGIONS });
        assert_eq!(state.dirty(), 1, "the marks are kept");
        assert_eq!(ledger.armed(REGIONS), REGIONS);
        assert!(!ledger.is_lost());
    }
}

#[test]
fn a_disk_that_is_not_tracked_has_no_log_and_waits_for_none() {
    let scene = Scene::new(11);
    scene.disk.untrack().expect("removed");
    assert!(!scene.shelf.there.get());
    let syncs = scene.shelf.log.syncs();
    scene.run(|disk| write(disk, 4));
    scene.run(|disk| async move { disk.mark(0..9).await.expect("nothing to arm") });
    assert_eq!(scene.shelf.log.syncs(), syncs);
    assert_eq!(scene.disk.state().dirty(), 0);
    assert_eq!(scene.disk.tracking(), None);
    scene
        .disk
        .state()
        .track(RelationshipId::random(), Marks::None);
    assert!(scene.disk.tracking().is_some());
}
