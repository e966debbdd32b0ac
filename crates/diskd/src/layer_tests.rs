//! Stacks over memory that change under writers, in orders that seeds decide.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use block::{Buffer, Gate};
use model::{BootId, CheckpointId, DiskId, RelationshipId};
use testkit::{PowerCutStore, Rng, Schedule, device_conformance, image_conformance, seeds};

use super::*;
use crate::ledger::Ledger;
use crate::plan::{Base, Flat};
use crate::state::{DiskState, Marks};
use crate::tracker::{Stats, Tracker};

const BLOCKS: usize = 24;
const SIZE: usize = BLOCKS * 4096;
const SECTORS: usize = SIZE / 512;
const WRITERS: usize = 4;

type MemoryLayer = Layer<PowerCutStore>;
type Disk = Tracker<Rc<Gate<MemoryLayer>>>;

struct Scene {
    folder: tempfile::TempDir,
    boot: BootId,
    gate: Rc<Gate<MemoryLayer>>,
    tracker: Rc<Disk>,
    flat: RefCell<Flat>,
    names: Cell<u64>,
    size: usize,
}

impl Scene {
    fn new(seed: u64) -> Rc<Self> {
        Self::sized(seed, SIZE)
    }

    fn sized(seed: u64, size: usize) -> Rc<Self> {
        let folder = tempfile::tempdir_in("/dev/shm").expect("scratch");
        let store = PowerCutStore::new(size, 512, seed);
        let device = RawDevice::new(store, size as u64, false).expect("whole blocks");
        let gate = Rc::new(Gate::new(Rc::new(Layer::Raw { device, lock: None })));
        let boot = BootId::random();
        let path = folder.path().join("state");
        let state = DiskState::open(&path, boot, DiskId::random(), size as u64, 1);
        let state = state.expect("opened");
        state.track(RelationshipId::random(), Marks::None);
        let tracker = Tracker::new(
            Rc::clone(&gate),
            state,
            std::sync::Arc::new(Stats::default()),
            Ledger::nowhere(),
        );
        Rc::new(Self {
            folder,
            boot,
            gate,
            tracker: Rc::new(tracker),
            flat: RefCell::new(Flat {
                base: Base::Raw(PathBuf::from("base")),
                overlays: Vec::new(),
            }),
            names: Cell::new(0),
            size,
        })
    }

    async fn fresh(&self, seed: u64) -> OverlayLayer<PowerCutStore> {
        self.names.set(self.names.get() + 1);
        let name = self.names.get().to_string();
        let below = Below::new(self.gate.below());
        let files = image::OverlayFiles {
            data: PowerCutStore::new(self.size, 512, seed),
            map: PowerCutStore::new(0, 1, seed + 1),
            volatile: &self.folder.path().join(&name),
        };
        let overlay = Overlay::open(files, Rc::clone(&below), self.boot, &[7; 32]).await;
        let over = Over {
            file: Path::new(&name).to_owned(),
            map: Path::new(&name).with_extension("map"),
            checkpoint: Some(CheckpointId::random()),
        };
        OverlayLayer::new(overlay.expect("opened"), below, over, None)
    }

    /// As `stack` does. What was thrown away.
    async fn go_to(&self, overlays: Vec<Over>, fresh: Vec<OverlayLayer<PowerCutStore>>) {
        let mut new = self.flat.borrow().clone();
        new.overlays = overlays;
        new.overlays
            .extend(fresh.iter().map(|layer| layer.over.clone()));
        let plan = Plan::between(&self.flat.borrow(), &new).expect("it can be reached");
        self.gate.close();
        self.gate.drain().await;
        let before = layers(&self.gate.below());
        self.tracker.replaced(&thrown_away(&before, &plan));
        let top = restack(&before, &plan, None, fresh);
        drop(self.gate.swap(top, Vec::new()));
        self.gate.open();
        self.flat.replace(new);
    }

    /// One change of the stack that shows nobody another content.
    async fn change(&self, rng: &mut Rng) {
        let overlays = self.flat.borrow().overlays.clone();
        if overlays.is_empty() || rng.once_in(3) {
            let layer = self.fresh(rng.bits()).await;
            self.go_to(overlays, vec![layer]).await;
            return;
        }
        let at = rng.index(overlays.len());
        let layer = Rc::clone(&layers(&self.gate.below())[at + 1]);
        let overlay = layer.overlay().expect("an overlay");
        overlay.will_drain();
        for _ in 0..1 + rng.below(6) {
            let left = overlay
                .drain(4096 * (1 + rng.below(6)), self.tracker.state())
                .await;
            if left.expect("drained").0 == 0 {
                let mut overlays = overlays;
                overlays.remove(at);
                self.go_to(overlays, Vec::new()).await;
                return;
            }
        }
    }
}

async fn read(disk: &impl Device, at: usize, len: usize) -> Vec<u8> {
    let into = Buffer::zeroed(len);
    let done = disk
        .run(Op::Read {
            at: at as u64,
            into,
        })
        .await;
    assert_eq!(done.outcome, Ok(()));
    done.buffer.expect("given back").to_vec()
}

/// Writes to every `WRITERS`th sector, so that blocks are shared with the others, and reads it back.
async fn work(disk: Rc<Disk>, number: usize, seed: u64, content: Rc<RefCell<Vec<u8>>>) {
    let mut rng = Rng::new(seed);
    for _ in 0..40 {
        let sector = rng.index(SECTORS / WRITERS) * WRITERS + number;
        let place = sector * 512..(sector + 1) * 512;
        let at = place.start as u64;
        if rng.once_in(5) {
            let seen = read(&*disk, place.start, 512).await;
            assert!(
                seen == content.borrow()[place],
                "sector {sector} (seed {seed})"
            );
            continue;
        }
        let (op, bytes) = if rng.once_in(5) {
            (Op::Discard { at, len: 512 }, vec![0; 512])
        } else {
            let bytes = rng.bytes(512);
            let from = Buffer::from_slice(&bytes);
            (Op::Write { at, from }, bytes)
        };
        assert_eq!(disk.run(op).await.outcome, Ok(()));
        content.borrow_mut()[place].copy_from_slice(&bytes);
        if rng.once_in(8) {
            assert_eq!(disk.run(Op::Flush).await.outcome, Ok(()));
        }
    }
}

#[test]
fn stacks_change_under_writers_and_none_of_them_sees_it() {
    for seed in seeds(300) {
        let schedule = Schedule::new(seed);
        let scene = Scene::new(seed);
        let content = Rc::new(RefCell::new(vec![0; SIZE]));
        for number in 0..WRITERS {
            let seed = seed * 10 + number as u64;
            let disk = Rc::clone(&scene.tracker);
            schedule.spawn(work(disk, number, seed, Rc::clone(&content)));
        }
        let changing = Rc::clone(&scene);
        schedule.spawn(async move {
            let mut rng = Rng::new(seed);
            for _ in 0..8 {
                changing.change(&mut rng).await;
            }
        });
        assert_eq!(schedule.run(), 0, "somebody waits for ever (seed {seed})");
        let (end, model) = (Rc::clone(&scene), Rc::clone(&content));
        schedule.spawn(async move {
            assert!(
                read(&*end.tracker, 0, SIZE).await == *model.borrow(),
                "seed {seed}"
            );
        });
        assert_eq!(schedule.run(), 0);
    }
}

#[test]
fn what_an_applied_checkpoint_changes_is_marked() {
    for seed in 0..100 {
        let schedule = Schedule::new(seed);
        let scene = Scene::new(seed);
        schedule.spawn(async move {
            let mut rng = Rng::new(seed);
            let content = Rc::new(RefCell::new(vec![0; SIZE]));
            let write = |rng: &mut Rng| {
                let disk = Rc::clone(&scene.tracker);
                work(disk, 0, rng.bits(), Rc::clone(&content))
            };
            write(&mut rng).await;
            let held = read(&*scene.tracker, 0, SIZE).await;
            let layer = scene.fresh(rng.bits()).await;
            scene.go_to(Vec::new(), vec![layer]).await;
            write(&mut rng).await;
            let before = read(&*scene.tracker, 0, SIZE).await;
            // A replica has all of it.
            scene.tracker.state().seal();
            scene.tracker.state().release();
            let layer = scene.fresh(rng.bits()).await;
            scene.go_to(Vec::new(), vec![layer]).await;
            let after = read(&*scene.tracker, 0, SIZE).await;
            assert!(after == held, "applied (seed {seed})");
            for block in 0..BLOCKS {
                let place = block * 4096..(block + 1) * 4096;
                let number = block as u64;
                let marked = scene
                    .tracker
                    .state()
                    .next_marked(number..number + 1)
                    .is_some();
                assert!(
                    marked || before[place.clone()] == after[place],
                    "block {block} is not marked (seed {seed})"
                );
            }
        });
        assert_eq!(schedule.run(), 0);
    }
}

#[test]
fn a_stack_of_layers_is_a_device_like_any_other() {
    for seed in 0..12 {
        let schedule = Schedule::new(seed);
        let scene = Scene::sized(seed, 1 << 20);
        schedule.spawn(async move {
            let mut rng = Rng::new(seed);
            for _ in 0..rng.below(4) {
                let layer = scene.fresh(rng.bits()).await;
                let overlays = scene.flat.borrow().overlays.clone();
                scene.go_to(overlays, vec![layer]).await;
            }
            device_conformance(&scene.tracker, seed, 100).await;
        });
        assert_eq!(schedule.run(), 0);
    }
}

/// Writes and discards of up to three blocks each.
async fn scribble(disk: &impl Device, rng: &mut Rng, content: &mut [u8]) {
    for _ in 0..6 {
        let first = rng.index(SECTORS);
        let count = 1 + rng.index((SECTORS - first).min(24));
        let place = first * 512..(first + count) * 512;
        let (at, len) = (place.start as u64, place.len() as u64);
        let (op, bytes) = if rng.once_in(3) {
            (Op::Discard { at, len }, vec![0; place.len()])
        } else {
            let bytes = rng.bytes(place.len());
            let from = Buffer::from_slice(&bytes);
            (Op::Write { at, from }, bytes)
        };
        assert_eq!(disk.run(op).await.outcome, Ok(()));
        content[place].copy_from_slice(&bytes);
    }
}

#[test]
fn a_stack_of_layers_is_an_image_like_any_other_and_so_is_each_layer_of_it() {
    for seed in seeds(40) {
        let schedule = Schedule::new(seed);
        let scene = Scene::new(seed);
        schedule.spawn(async move {
            let mut rng = Rng::new(seed);
            let mut content = vec![0; SIZE];
            for _ in 0..8 {
                scribble(&scene.tracker, &mut rng, &mut content).await;
                scene.change(&mut rng).await;
                image_conformance(&scene.tracker, &content, rng.bits(), 20).await;
                // As an export of a checkpoint asks it.
                for layer in layers(&scene.gate.below()) {
                    let held = read(&*layer, 0, SIZE).await;
                    image_conformance(&*layer, &held, rng.bits(), 10).await;
                }
            }
        });
        assert_eq!(schedule.run(), 0, "somebody waits for ever (seed {seed})");
    }
}

/// Its pieces are all of it, and none that is told to be zero is not.
async fn zeroes_are_zero(image: &impl Image, content: &[u8]) {
    let mut at = 0;
    let mut visit = |piece: Range<u64>, place| {
        assert_eq!(piece.start, at, "a gap");
        at = piece.end;
        let bytes = usize::try_from(piece.start).unwrap()..usize::try_from(piece.end).unwrap();
        assert!(
            place != Place::Zero || content[bytes].iter().all(|byte| *byte == 0),
            "{piece:?} is not zero"
        );
        ControlFlow::Continue(())
    };
    let outcome = image.translate(0..SIZE as u64, &mut visit).await;
    assert_eq!(outcome, Ok(ControlFlow::Continue(())));
    assert_eq!(at, SIZE as u64, "it ends early");
}

#[test]
fn where_a_disk_has_content_is_told_right_while_its_stack_changes() {
    for seed in seeds(100) {
        let schedule = Schedule::new(seed);
        let scene = Scene::new(seed);
        let tasks = schedule.clone();
        schedule.spawn(async move {
            let mut rng = Rng::new(seed);
            let mut content = vec![0; SIZE];
            for _ in 0..3 {
                scribble(&scene.tracker, &mut rng, &mut content).await;
                let layer = scene.fresh(rng.bits()).await;
                let overlays = scene.flat.borrow().overlays.clone();
                scene.go_to(overlays, vec![layer]).await;
            }
            scribble(&scene.tracker, &mut rng, &mut content).await;
            let disk = Rc::clone(&scene.tracker);
            tasks.spawn(async move {
                for _ in 0..40 {
                    zeroes_are_zero(&disk, &content).await;
                }
            });
            for _ in 0..8 {
                scene.change(&mut rng).await;
            }
        });
        assert_eq!(schedule.run(), 0, "somebody waits for ever (seed {seed})");
    }
}

#[test]
fn a_flush_that_fails_while_an_overlay_is_merged_fails_the_disk() {
    let schedule = Schedule::new(1);
    let scene = Scene::new(1);
    schedule.spawn(async move {
        let layer = scene.fresh(1).await;
        scene.go_to(Vec::new(), vec![layer]).await;
        let write = || Op::Write {
            at: 0,
            from: Buffer::from_slice(&[1; 4096]),
        };
        assert_eq!(scene.tracker.run(write()).await.outcome, Ok(()));
        let layers = layers(&scene.gate.below());
        let overlay = layers[1].overlay().expect("an overlay");
        if let Layer::Raw { device, .. } = &*layers[0] {
            device.store().fail_syncs(1);
        }
        overlay.will_drain();
        let state = scene.tracker.state();
        assert!(overlay.drain(u64::MAX, state).await.is_err());
        assert!(state.flush_failed(), "what lies below may be lost");
        let done = scene.tracker.run(write()).await;
        assert_eq!(done.outcome, Err(Fault::FlushFailed));
    });
    assert_eq!(schedule.run(), 0);
}
