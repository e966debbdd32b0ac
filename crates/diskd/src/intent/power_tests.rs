//! Lives of a disk with a log: guests that arm and write at once, sweeps, a disk that grows, kills and
//! power cuts at any instant, with random torn subsets of what was not flushed of the log and of the
//! disk, each on its own. After each, every region in which the disk differs from what was confirmed must
//! be armed, and every one whose `arm` returned and that was not disarmed.
//!
//! 2,000 seeds of five lives each are tried, `POLLUX_SEEDS` says how many otherwise.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use block::{Buffer, Store};
use model::{DiskId, REGION_SIZE, RelationshipId};
use testkit::{PowerCutStore, Rng, Schedule, finish, seeds};
use uuid::Uuid;

use super::page::REGIONS;
use super::{Armed, BROKEN, IntentLog, Looks, Rule, Tag};

const TAG: Tag = Tag {
    disk: DiskId(Uuid::from_u128(1)),
    relationship: RelationshipId(Uuid::from_u128(2)),
};
const LIVES: u32 = 5;
/// Regions that are written, of three pages; those of the third are there once the disk has grown.
const PLACES: [u64; 13] = [
    0,
    1,
    2,
    63,
    64,
    700,
    REGIONS - 1,
    REGIONS,
    REGIONS + 1,
    REGIONS + 100,
    2 * REGIONS + 3,
    2 * REGIONS + 4,
    2 * REGIONS + 90,
];
/// How many of them lie in the first two pages, where the disk ends at first.
const FIRST: usize = 10;
const SECTOR: usize = 512;

/// Rules of whoever uses a log that the test breaks, to see that it would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Log(Rule),
    FlushBeforeDisarm,
    ArmBeforeWrite,
}

struct World {
    log: PowerCutStore,
    /// A sector for each place.
    disk: PowerCutStore,
    /// What the twin has of each place.
    confirmed: RefCell<Vec<u64>>,
    /// What was last issued to each.
    issued: RefCell<Vec<u64>>,
    /// How many writes to each are in flight.
    flights: RefCell<Vec<u32>>,
    /// Places whose regions must be armed: `arm` returned.
    promised: RefCell<Vec<bool>>,
    places: Cell<usize>,
    next: Cell<u64>,
    broken: Option<Broken>,
}

impl World {
    fn new(seed: u64, broken: Option<Broken>) -> Rc<Self> {
        let mut rng = Rng::new(!seed);
        let alignment = [1, 512, 4096][rng.index(3)];
        let count = PLACES.len();
        Rc::new(Self {
            log: PowerCutStore::new(0, alignment, rng.bits()),
            disk: PowerCutStore::new(count * SECTOR, 1, rng.bits()),
            confirmed: RefCell::new(vec![0; count]),
            issued: RefCell::new(vec![0; count]),
            flights: RefCell::new(vec![0; count]),
            promised: RefCell::new(vec![false; count]),
            places: Cell::new(FIRST),
            next: Cell::new(1),
            broken,
        })
    }

    fn keeps(&self, rule: Broken) -> bool {
        self.broken != Some(rule)
    }

    fn size(&self) -> u64 {
        (PLACES[self.places.get() - 1] + 1) * REGION_SIZE
    }

    /// What the disk has at each place.
    fn content(&self) -> Vec<u64> {
        let content = self.disk.content();
        let words = content.chunks(SECTOR);
        words
            .map(|sector| u64::from_le_bytes(sector[..8].try_into().expect("8 bytes")))
            .collect()
    }

    async fn write(self: Rc<Self>, log: Rc<IntentLog<PowerCutStore>>, mut rng: Rng) {
        for _ in 0..rng.below(10) {
            let place = rng.index(self.places.get());
            let region = PLACES[place];
            if self.keeps(Broken::ArmBeforeWrite) {
                while !log.is_armed(&(256 * region..256 * region + 1)) {
                    log.arm(region..region + 1).await.expect("armed");
                }
                self.promised.borrow_mut()[place] = true;
            }
            let version = self.next.replace(self.next.get() + 1);
            self.issued.borrow_mut()[place] = version;
            self.flights.borrow_mut()[place] += 1;
            let at = (place * SECTOR) as u64;
            let from = Buffer::from_slice(&version.to_le_bytes().repeat(SECTOR / 8));
            assert_eq!(self.disk.write(at, from).await.outcome, Ok(()));
            self.flights.borrow_mut()[place] -= 1;
            if !self.keeps(Broken::ArmBeforeWrite) {
                log.arm(region..region + 1).await.expect("armed");
            }
        }
    }

    /// Confirms what nobody writes to, and disarms it.
    async fn sweep(self: Rc<Self>, log: Rc<IntentLog<PowerCutStore>>, mut rng: Rng) {
        for _ in 0..rng.below(4) {
            let content = self.content();
            let chosen: Vec<usize> = (0..self.places.get())
                .filter(|place| self.flights.borrow()[*place] == 0 && !rng.once_in(3))
                .collect();
            for place in &chosen {
                self.confirmed.borrow_mut()[*place] = content[*place];
                // What a killed process wrote is what it is.
                self.issued.borrow_mut()[*place] = content[*place];
            }
            if self.keeps(Broken::FlushBeforeDisarm) {
                assert_eq!(self.disk.sync().await, Ok(()));
            }
            let clean = chosen
                .iter()
                .filter(|place| self.confirmed.borrow()[**place] == self.issued.borrow()[**place]);
            let ranges: Vec<_> = clean
                .map(|place| {
                    self.promised.borrow_mut()[*place] = false;
                    PLACES[*place]..PLACES[*place] + 1
                })
                .collect();
            log.disarm(&ranges).await.expect("disarmed");
        }
    }

    async fn grow(self: Rc<Self>, log: Rc<IntentLog<PowerCutStore>>) {
        log.grow((PLACES[PLACES.len() - 1] + 1) * REGION_SIZE)
            .await
            .expect("grown");
        self.places.set(PLACES.len());
    }

    async fn open(self: Rc<Self>) -> Rc<IntentLog<PowerCutStore>> {
        let log = IntentLog::open(self.log.clone(), TAG.disk).await;
        Rc::new(log.expect("a log with a header"))
    }

    /// What must hold at any instant, and after it.
    fn check(&self, log: &IntentLog<PowerCutStore>) {
        for (place, content) in self.content().into_iter().enumerate() {
            let region = PLACES[place];
            let armed = log.next_armed(region..region + 1).is_some();
            let differs = content != self.confirmed.borrow()[place];
            assert!(
                armed || !differs,
                "region {region} differs and is not armed"
            );
            let promised = self.promised.borrow()[place];
            assert!(armed || !promised, "region {region} was armed");
        }
        assert!(log.size() >= self.size(), "the log covers the disk");
    }
}

fn live(seed: u64, broken: Option<Broken>) {
    BROKEN.set(match broken {
        Some(Broken::Log(rule)) => Some(rule),
        _ => None,
    });
    let mut rng = Rng::new(seed);
    let world = World::new(seed, broken);
    let store = world.log.clone();
    let size = world.size();
    let armed = [Armed::None, Armed::All][rng.index(2)];
    let mut log = Rc::new(finish(&Schedule::new(seed), async move {
        let log = IntentLog::create(store, TAG, size, armed).await;
        log.expect("created")
    }));
    for _ in 0..LIVES {
        let schedule = Schedule::new(rng.bits());
        let opened = Rc::clone(&log);
        // A log need not be told so that it keeps its promise.
        let told = rng.once_in(2);
        finish(&schedule, async move {
            if !told {
                return;
            }
            opened.opened(Looks::of(&[1])).await.expect("noted");
        });
        for _ in 0..1 + rng.below(5) {
            let guest = Rng::new(rng.bits());
            schedule.spawn(Rc::clone(&world).write(Rc::clone(&log), guest));
        }
        schedule.spawn(Rc::clone(&world).sweep(Rc::clone(&log), Rng::new(rng.bits())));
        if rng.once_in(4) {
            schedule.spawn(Rc::clone(&world).grow(Rc::clone(&log)));
        }
        if rng.once_in(5) {
            assert_eq!(schedule.run(), 0, "something waits for ever");
        } else {
            let longest = [30, 400][rng.index(2)];
            for _ in 0..rng.below(longest) {
                schedule.step();
            }
        }
        schedule.kill();
        world.flights.borrow_mut().fill(0);
        if rng.once_in(2) {
            world.log.cut(rng.bits());
            world.disk.cut(rng.bits());
        }
        log = finish(&Schedule::new(rng.bits()), Rc::clone(&world).open());
        world.check(&log);
    }
}

#[test]
fn whatever_is_lost_all_that_differs_is_armed() {
    for seed in seeds(2000) {
        live(seed, None);
    }
}

#[test]
fn a_broken_rule_is_noticed() {
    for broken in [
        Broken::Log(Rule::SyncBeforeRelease),
        Broken::Log(Rule::OlderCopy),
        Broken::Log(Rule::ForgetAtOnce),
        Broken::Log(Rule::SyncAtOpening),
        Broken::FlushBeforeDisarm,
        Broken::ArmBeforeWrite,
    ] {
        let noticed = (0..1000)
            .find(|seed| catch_unwind(AssertUnwindSafe(|| live(*seed, Some(broken)))).is_err());
        BROKEN.set(None);
        println!("{broken:?}: by seed {noticed:?}");
        assert!(noticed.is_some(), "{broken:?}");
    }
}
