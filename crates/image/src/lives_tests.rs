//! Towers of overlays that grow, drain and shrink below a gate, while guests overlap, processes are
//! killed and the power is cut: random torn subsets of what was not flushed, of each data file and each
//! map on its own, with volatile maps lost or left over from the boot before.
//!
//! 100 to 200 seeds of six lives each are tried, `POLLUX_SEEDS` says how many otherwise; 1,000 of each
//! were when this was written. They found a flush that did not sync a map which a killed process had
//! written.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;

use block::{Device, Done, Gate, Op};
use model::BootId;
use testkit::{PowerCutStore, Rng, Schedule, World, finish, lives, seeds};

use crate::overlay::Rule;
use crate::{Overlay, OverlayFiles, RawDevice};

/// Small, so that everything overlaps.
const SIZE: usize = 24 * 4096;
/// Most overlays of a tower.
const HIGHEST: usize = 3;

/// A part of a stack.
enum Layer {
    Raw(RawDevice<PowerCutStore>),
    Overlay(Box<Overlay<PowerCutStore, PowerCutStore, Rc<Layer>>>),
}

impl Device for Layer {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    async fn run(&self, op: Op) -> Done {
        let run: Pin<Box<dyn Future<Output = Done> + '_>> = match self {
            Self::Raw(raw) => Box::pin(raw.run(op)),
            Self::Overlay(overlay) => Box::pin(overlay.run(op)),
        };
        run.await
    }
}

/// The files of an overlay.
#[derive(Clone)]
struct Files {
    number: u64,
    data: PowerCutStore,
    map: PowerCutStore,
}

struct Tower {
    raw: PowerCutStore,
    /// Which overlays there are, from the lowest on: what a configuration file would say.
    overlays: RefCell<Vec<Files>>,
    boot: Cell<BootId>,
    folder: tempfile::TempDir,
    next: Cell<u64>,
    rng: RefCell<Rng>,
    broken: Option<Rule>,
    /// Whether overlays come and go.
    changes: bool,
}

fn store(rng: &mut Rng, size: usize) -> PowerCutStore {
    let alignment = [1, 512, 4096][rng.index(3)];
    PowerCutStore::new(size, alignment, rng.bits())
}

impl Tower {
    fn new(seed: u64, height: usize, changes: bool, broken: Option<Rule>) -> Rc<Self> {
        let mut rng = Rng::new(!seed);
        let tower = Self {
            raw: store(&mut rng, SIZE),
            overlays: RefCell::default(),
            boot: Cell::new(BootId::random()),
            folder: tempfile::tempdir_in("/dev/shm").expect("scratch in memory"),
            next: Cell::new(0),
            rng: RefCell::new(rng),
            broken,
            changes,
        };
        for _ in 0..height {
            let files = tower.new_files();
            tower.overlays.borrow_mut().push(files);
        }
        Rc::new(tower)
    }

    fn new_files(&self) -> Files {
        let mut rng = self.rng.borrow_mut();
        let number = self.next.replace(self.next.get() + 1);
        Files {
            number,
            data: store(&mut rng, 0),
            map: store(&mut rng, 0),
        }
    }

    async fn put(&self, files: &Files, below: Rc<Layer>) -> Rc<Layer> {
        let volatile = self.folder.path().join(files.number.to_string());
        let mut tag = [0; 32];
        tag[..8].copy_from_slice(&files.number.to_le_bytes());
        let parts = OverlayFiles {
            data: files.data.clone(),
            map: files.map.clone(),
            volatile: &volatile,
        };
        let overlay = Overlay::open(parts, below, self.boot.get(), &tag).await;
        let overlay = overlay.expect("opened");
        overlay.broken.set(self.broken);
        Rc::new(Layer::Overlay(Box::new(overlay)))
    }

    fn chance(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }

    /// The layers of a stack, from the lowest on.
    fn layers(top: Rc<Layer>) -> Vec<Rc<Layer>> {
        let mut layers = vec![top];
        while let Layer::Overlay(overlay) = &**layers.last().expect("the top at least") {
            let below = Rc::clone(overlay.below());
            layers.push(below);
        }
        layers.reverse();
        layers
    }

    /// Exchanges what is below the gate for the overlays `wanted`, above `kept` layers that stay.
    async fn exchange(&self, gate: &Gate<Layer>, wanted: Vec<Files>, kept: usize) {
        gate.close();
        gate.drain().await;
        let mut top = Rc::clone(&Self::layers(gate.below())[kept]);
        for files in &wanted[kept..] {
            top = self.put(files, top).await;
        }
        drop(gate.swap(top, Vec::new()));
        self.overlays.replace(wanted);
        gate.open();
    }

    /// Puts an overlay on top, drains one, leaves out one that is drained.
    async fn change(self: Rc<Self>, gate: Rc<Gate<Layer>>) {
        for _ in 0..self.chance(12) {
            let overlays = self.overlays.borrow().clone();
            if overlays.len() < HIGHEST && self.chance(4) == 0 {
                let mut wanted = overlays;
                wanted.push(self.new_files());
                let kept = wanted.len() - 1;
                self.exchange(&gate, wanted, kept).await;
                continue;
            }
            if overlays.is_empty() {
                continue;
            }
            let number = usize::try_from(self.chance(overlays.len() as u64)).expect("few");
            let layer = Rc::clone(&Self::layers(gate.below())[number + 1]);
            let Layer::Overlay(overlay) = &*layer else {
                unreachable!("only the lowest is raw")
            };
            let limit = 4096 * (1 + self.chance(SIZE as u64 / 4096));
            let left = overlay.drain(limit).await.expect("drained");
            if left == 0 && self.chance(2) == 0 {
                let mut wanted = overlays;
                wanted.remove(number);
                self.exchange(&gate, wanted, number).await;
            }
        }
    }
}

impl World for Tower {
    type Disk = Gate<Layer>;

    async fn open(self: Rc<Self>) -> Rc<Gate<Layer>> {
        let raw = RawDevice::new(self.raw.clone(), SIZE as u64, false).expect("whole blocks");
        let mut top = Rc::new(Layer::Raw(raw));
        let overlays = self.overlays.borrow().clone();
        for files in &overlays {
            top = self.put(files, top).await;
        }
        Rc::new(Gate::new(top))
    }

    fn beside(self: Rc<Self>, disk: Rc<Gate<Layer>>, schedule: &Schedule, _: &mut Rng) {
        if self.changes {
            schedule.spawn(self.change(disk));
        }
    }

    fn cut(&self, rng: &mut Rng) {
        self.raw.cut(rng.bits());
        for files in &*self.overlays.borrow() {
            files.data.cut(rng.bits());
            files.map.cut(rng.bits());
            // A volatile map is lost, or still there in another boot.
            if rng.once_in(2) {
                let volatile = self.folder.path().join(files.number.to_string());
                drop(std::fs::remove_file(volatile));
            }
        }
        self.boot.set(BootId::random());
    }
}

fn live(seed: u64, height: usize, changes: bool, broken: Option<Rule>) {
    let tower = Tower::new(seed, height, changes, broken);
    lives(&tower, vec![0; SIZE], seed, 6);
}

#[test]
fn a_raw_disk_keeps_its_promises_through_kills_and_power_cuts() {
    for seed in seeds(100) {
        live(seed, 0, false, None);
    }
}

#[test]
fn overlays_on_overlays_keep_their_promises_through_kills_and_power_cuts() {
    for seed in seeds(100) {
        live(seed, 1 + usize::from(seed % 2 == 0), false, None);
    }
}

#[test]
fn overlays_that_come_drain_and_go_keep_their_promises_through_kills_and_power_cuts() {
    for seed in seeds(200) {
        live(seed, usize::try_from(seed % 3).expect("few"), true, None);
    }
}

#[test]
fn a_broken_rule_is_noticed() {
    for rule in [
        Rule::DataBeforeBit,
        Rule::BelowBeforeClear,
        Rule::AloneOnCopies,
    ] {
        let noticed = (0..400).any(|seed| {
            catch_unwind(AssertUnwindSafe(|| live(seed, 1, true, Some(rule)))).is_err()
        });
        assert!(noticed, "{rule:?}");
    }
}

#[test]
fn a_drained_overlay_gives_everything_to_what_is_below() {
    for seed in seeds(50) {
        let tower = Tower::new(seed, 1, false, None);
        let schedule = Schedule::new(seed);
        let gate = finish(&schedule, Rc::clone(&tower).open());
        let mut rng = Rng::new(seed);
        let bytes = rng.bytes(SIZE);
        let (at, len) = (4096, 8192);
        let content = bytes.clone();
        let left = finish(&schedule, async move {
            let from = block::Buffer::from_slice(&content);
            assert_eq!(gate.run(Op::Write { at: 0, from }).await.outcome, Ok(()));
            assert_eq!(gate.run(Op::Discard { at, len }).await.outcome, Ok(()));
            let top = gate.below();
            let Layer::Overlay(overlay) = &*top else {
                unreachable!("one overlay")
            };
            let mut held = 0..0;
            overlay.held(|range| held = range);
            assert_eq!(held, 0..SIZE as u64);
            assert_eq!(overlay.drain(8192).await, Ok(SIZE as u64 - 8192));
            assert!(!overlay.is_empty());
            overlay.drain(u64::MAX).await
        });
        assert_eq!(left, Ok(0));
        // Durable without another flush, and what was discarded takes no space below.
        tower.raw.cut(seed);
        let mut wanted = bytes;
        wanted[4096..4096 + 8192].fill(0);
        assert!(tower.raw.content() == wanted, "seed {seed}");
        assert_eq!(tower.raw.space(), SIZE - 8192);
    }
}
