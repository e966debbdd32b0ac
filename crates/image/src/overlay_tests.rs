use std::rc::Rc;

use ring::{Ring, RingStore};
use testkit::{PowerCutStore, Rng, Schedule, device_conformance, join, power_cut_conformance};

use super::*;

const SIZE: u64 = 1 << 20;
const TAG: Tag = [7; 32];

/// A disk below that reads as `content` and must never be written.
struct Below(Rc<Vec<u8>>);

impl Device for Below {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    async fn run(&self, op: Op) -> Done {
        if matches!(op, Op::Flush) {
            return Done {
                outcome: Ok(()),
                buffer: None,
            };
        }
        let Op::Read { at, mut into } = op else {
            panic!("{op:?} below an overlay");
        };
        let at = index(at);
        into.copy_from_slice(0, &self.0[at..at + into.len()]);
        Done {
            outcome: Ok(()),
            buffer: Some(into),
        }
    }
}

struct World {
    data: PowerCutStore,
    map: PowerCutStore,
    folder: tempfile::TempDir,
    below: Rc<Vec<u8>>,
}

type Memory = Overlay<PowerCutStore, PowerCutStore, Below>;

impl World {
    fn new(seed: u64, below: Vec<u8>) -> Rc<Self> {
        let alignment = [512, 4096][usize::from(seed % 2 == 0)];
        Rc::new(Self {
            data: PowerCutStore::new(0, alignment, seed),
            map: PowerCutStore::new(0, alignment, !seed),
            folder: tempfile::tempdir_in("/dev/shm").expect("scratch in memory"),
            below: Rc::new(below),
        })
    }

    async fn open(&self, boot: BootId) -> Memory {
        let volatile = self.folder.path().join("volatile");
        let files = OverlayFiles {
            data: self.data.clone(),
            map: self.map.clone(),
            volatile: &volatile,
        };
        let below = Below(Rc::clone(&self.below));
        let overlay = Overlay::open(files, below, boot, &TAG).await;
        overlay.expect("opened")
    }
}

fn drive(seed: u64, test: impl Future<Output = ()> + 'static) {
    let schedule = Schedule::new(seed);
    schedule.spawn(test);
    assert_eq!(schedule.run(), 0, "it waits for ever");
}

fn noise(seed: u64) -> Vec<u8> {
    Rng::new(seed).bytes(index(SIZE))
}

async fn read<D: Device>(device: &D) -> Vec<u8> {
    let into = Buffer::zeroed(index(SIZE));
    let done = device.run(Op::Read { at: 0, into }).await;
    assert_eq!(done.outcome, Ok(()));
    done.buffer.expect("given back").to_vec()
}

#[test]
fn an_overlay_conforms_over_memory_and_over_files() {
    for seed in 1..4 {
        let world = World::new(seed, vec![0; index(SIZE)]);
        drive(seed, async move {
            let overlay = world.open(BootId::random()).await;
            device_conformance(&overlay, seed, 400).await;
        });
    }
    let folder = tempfile::tempdir().expect("scratch");
    let ring = Ring::new(64).expect("this host has io_uring");
    let open = |name| RingStore::open(&ring, &folder.path().join(name), false, true).expect(name);
    ring.block_on(async {
        let volatile = folder.path().join("volatile");
        let files = OverlayFiles {
            data: open("data"),
            map: open("map"),
            volatile: &volatile,
        };
        let below = Below(Rc::new(vec![0; index(SIZE)]));
        let overlay = Overlay::open(files, below, BootId::random(), &TAG).await;
        device_conformance(&overlay.expect("opened"), 9, 300).await;
    });
}

#[test]
fn what_is_not_written_shows_what_is_below_and_what_is_discarded_does_not() {
    for seed in 0..6 {
        let world = World::new(seed, noise(seed));
        drive(seed, async move {
            let boot = BootId::random();
            let overlay = world.open(boot).await;
            let mut model = noise(seed);
            let mut rng = Rng::new(!seed);
            for _ in 0..60 {
                let at = rng.below(SIZE / 512 - 40) * 512;
                let len = (1 + rng.below(40)) * 512;
                let place = index(at)..index(at + len);
                if rng.once_in(4) {
                    let done = overlay.run(Op::Discard { at, len }).await;
                    assert_eq!(done.outcome, Ok(()));
                    model[place].fill(0);
                } else {
                    let bytes = rng.bytes(index(len));
                    let from = Buffer::from_slice(&bytes);
                    let done = overlay.run(Op::Write { at, from }).await;
                    assert_eq!(done.outcome, Ok(()));
                    model[place].copy_from_slice(&bytes);
                }
            }
            // All sectors of one absent block at once: each copy-up keeps the others.
            let writes = (0..8).map(|sector| {
                let at = SIZE - 4096 + sector * 512;
                let from = Buffer::from_slice(&[sector.to_le_bytes()[0]; 512]);
                overlay.run(Op::Write { at, from })
            });
            for done in join(writes.collect()).await {
                assert_eq!(done.outcome, Ok(()));
            }
            for sector in 0..8 {
                let at = index(SIZE - 4096 + sector * 512);
                model[at..at + 512].fill(sector.to_le_bytes()[0]);
            }
            assert!(read(&overlay).await == model);
            // `kill -9`: nothing was flushed, nothing answered is lost.
            drop(overlay);
            let overlay = world.open(boot).await;
            assert!(read(&overlay).await == model, "after kill -9");
            // And a flush by the next process makes durable what the last one wrote.
            assert_eq!(overlay.run(Op::Flush).await.outcome, Ok(()));
            drop(overlay);
            world.data.cut(seed);
            world.map.cut(!seed);
            let overlay = world.open(BootId::random()).await;
            assert!(read(&overlay).await == model, "after a power cut");
        });
    }
}

#[test]
fn a_power_cut_leaves_every_sector_as_it_was_flushed_or_newer() {
    for seed in 0..12 {
        let world = World::new(seed, vec![0; index(SIZE)]);
        drive(seed, async move {
            let overlay = world.open(BootId::random()).await;
            let schedule = Schedule::new(seed);
            let reopen = |cut| {
                world.data.cut(cut);
                world.map.cut(!cut);
                let opened = Rc::new(std::cell::RefCell::new(None));
                let (inner, slot) = (Rc::clone(&world), Rc::clone(&opened));
                schedule.spawn(async move {
                    *slot.borrow_mut() = Some(inner.open(BootId::random()).await);
                });
                assert_eq!(schedule.run(), 0);
                let overlay = opened.borrow_mut().take();
                overlay.expect("opened")
            };
            power_cut_conformance(overlay, reopen, seed, 60).await;
        });
    }
}

#[test]
fn an_overlay_is_not_put_above_another_point() {
    let world = World::new(1, noise(1));
    drive(1, async move {
        drop(world.open(BootId::random()).await);
        let volatile = world.folder.path().join("volatile");
        let files = OverlayFiles {
            data: world.data.clone(),
            map: world.map.clone(),
            volatile: &volatile,
        };
        let below = Below(Rc::clone(&world.below));
        let outcome = Overlay::open(files, below, BootId::random(), &[8; 32]).await;
        assert!(matches!(
            outcome,
            Err(OverlayError::Presence(PresenceError::Foreign))
        ));
    });
}

#[test]
fn a_new_overlay_does_not_take_over_what_an_earlier_one_held() {
    let boot = BootId::random();
    let world = World::new(1, noise(1));
    let earlier = Rc::clone(&world);
    drive(1, async move {
        let overlay = earlier.open(boot).await;
        let (at, len) = (0, 8 * BLOCK_SIZE);
        let done = overlay.run(Op::Discard { at, len }).await;
        assert_eq!(done.outcome, Ok(()));
    });
    // Its files are gone; the volatile map, in the run folder, is not.
    let world = Rc::into_inner(world).expect("nobody else");
    let world = World {
        data: PowerCutStore::new(0, 512, 2),
        map: PowerCutStore::new(0, 512, 3),
        ..world
    };
    drive(2, async move {
        let overlay = world.open(boot).await;
        assert!(read(&overlay).await == noise(1), "what is below");
    });
}

/// A store on a file system that can become full: then it does not grow.
#[derive(Clone)]
struct Tight {
    inner: PowerCutStore,
    full: Rc<Cell<bool>>,
    taken: Rc<Cell<u64>>,
}

impl Tight {
    fn take(&self, end: u64) -> Result<(), Fault> {
        if self.full.get() && end > self.taken.get() {
            return Err(Fault::Os(libc::ENOSPC));
        }
        self.taken.set(self.taken.get().max(end));
        Ok(())
    }
}

impl Store for Tight {
    fn alignment(&self) -> u64 {
        self.inner.alignment()
    }
    async fn read(&self, at: u64, into: Buffer) -> Done {
        self.inner.read(at, into).await
    }
    async fn write(&self, at: u64, from: Buffer) -> Done {
        if let Err(fault) = self.take(at + from.len() as u64) {
            return Op::Write { at, from }.refuse(fault);
        }
        self.inner.write(at, from).await
    }
    async fn punch(&self, at: u64, len: u64) -> Result<(), Fault> {
        self.inner.punch(at, len).await
    }
    async fn zero(&self, at: u64, len: u64) -> Result<(), Fault> {
        self.take(at + len)?;
        self.inner.zero(at, len).await
    }
    async fn sync(&self) -> Result<(), Fault> {
        self.inner.sync().await
    }
    async fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>, Fault> {
        self.inner.next_data(range).await
    }
}

#[test]
fn a_full_file_system_refuses_a_new_overlay_and_fails_no_flush_of_one_that_is_there() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("scratch");
    let map = Tight {
        inner: PowerCutStore::new(0, 1, 1),
        full: Rc::new(Cell::new(true)),
        taken: Rc::default(),
    };
    drive(1, async move {
        let boot = BootId::random();
        let data = PowerCutStore::new(index(SIZE), 512, 2);
        let volatile = folder.path().join("volatile");
        let open = || {
            let files = OverlayFiles {
                data: data.clone(),
                map: map.clone(),
                volatile: &volatile,
            };
            Overlay::open(files, Below(Rc::new(noise(1))), boot, &TAG)
        };
        let refused = open().await.err();
        assert!(matches!(
            refused,
            Some(OverlayError::Presence(PresenceError::Durable(Fault::Os(
                libc::ENOSPC
            ))))
        ));
        map.full.set(false);
        let overlay = open().await.expect("there is room");
        map.full.set(true);
        let from = Buffer::from_slice(&[7; 4096]);
        assert_eq!(overlay.run(Op::Write { at: 0, from }).await.outcome, Ok(()));
        assert_eq!(overlay.run(Op::Flush).await.outcome, Ok(()));
        assert!(!overlay.flush_failed());
    });
}
