use std::cell::Cell;
use std::rc::Rc;

use block::Waiters;
use ring::{Ring, RingStore};
use testkit::{
    PowerCutStore, Rng, Schedule, crooked, device_conformance, image_conformance,
    power_cut_conformance, read_only_conformance,
};

use super::*;

const SIZE: u64 = 1 << 20;

fn memory(alignment: u64, seed: u64) -> (PowerCutStore, RawDevice<PowerCutStore>) {
    let store = PowerCutStore::new(0, alignment, seed);
    let device = RawDevice::new(store.clone(), SIZE, false).expect("whole blocks");
    (store, device)
}

/// Runs `test` to its end.
fn drive(seed: u64, test: impl Future<Output = ()> + 'static) {
    let schedule = Schedule::new(seed);
    schedule.spawn(test);
    assert_eq!(schedule.run(), 0, "it waits for ever");
}

#[test]
fn a_raw_disk_over_memory_conforms_whatever_the_store_needs() {
    for (seed, alignment) in [(1, 1), (2, 512), (3, 4096), (4, 4096)] {
        let (_store, device) = memory(alignment, seed);
        drive(seed, async move {
            device_conformance(&device, seed, 400).await;
        });
    }
}

#[test]
fn a_raw_disk_over_a_file_conforms_direct_and_buffered() {
    let disk = tempfile::tempdir().expect("scratch");
    let memory = tempfile::tempdir_in("/dev/shm").expect("scratch in memory");
    for folder in [&disk, &memory] {
        let ring = Ring::new(64).expect("this host has io_uring");
        let path = folder.path().join("disk");
        let store = RingStore::open(&ring, &path, false, true).expect("made");
        let device = RawDevice::new(store, SIZE, false).expect("whole blocks");
        ring.block_on(device_conformance(&device, 5, 300));
    }
}

#[test]
fn a_power_cut_leaves_every_sector_as_it_was_flushed_or_newer() {
    for seed in 0..12 {
        let alignment = [512, 4096][usize::from(seed % 2 == 0)];
        let (store, device) = memory(alignment, seed);
        drive(seed, async move {
            let reopen = |cut| {
                store.cut(cut);
                RawDevice::new(store.clone(), SIZE, false).expect("whole blocks")
            };
            power_cut_conformance(device, reopen, seed, 60).await;
        });
    }
}

#[test]
fn flushes_that_wait_at_the_same_time_share_one_sync() {
    let (store, device) = memory(512, 7);
    let device = Rc::new(device);
    let schedule = Schedule::new(7);
    let done = Rc::new(Cell::new(0));
    for _ in 0..50 {
        let (device, done) = (Rc::clone(&device), Rc::clone(&done));
        schedule.spawn(async move {
            assert_eq!(device.run(Op::Flush).await.outcome, Ok(()));
            done.set(done.get() + 1);
        });
    }
    assert_eq!(schedule.run(), 0);
    assert_eq!(done.get(), 50);
    assert!(store.syncs() < 25, "{} syncs for 50 flushes", store.syncs());
}

#[test]
fn a_flush_never_relies_on_a_sync_that_began_before_it() {
    for seed in 0..40 {
        let (store, device) = memory(4096, seed);
        let device = Rc::new(device);
        let schedule = Schedule::new(seed);
        let flushed = Rc::new(Cell::new(0_u64));
        for block in 0..8_u64 {
            let (device, flushed) = (Rc::clone(&device), Rc::clone(&flushed));
            schedule.spawn(async move {
                let from = Buffer::from_slice(&[1; 4096]);
                let at = block * 4096;
                assert_eq!(device.run(Op::Write { at, from }).await.outcome, Ok(()));
                assert_eq!(device.run(Op::Flush).await.outcome, Ok(()));
                flushed.set(flushed.get() | 1 << block);
            });
        }
        for _ in 0..Rng::new(seed).below(120) {
            schedule.step();
        }
        schedule.kill();
        store.cut(seed);
        let content = store.content();
        for block in (0..8).filter(|block| flushed.get() & (1 << block) != 0) {
            assert_eq!(content[block * 4096..][..4096], [1; 4096], "seed {seed}");
        }
    }
}

#[test]
fn a_failed_flush_is_sticky_for_writes_and_flushes_and_reads_go_on() {
    let (store, device) = memory(512, 9);
    drive(9, async move {
        store.fail_syncs(1);
        assert_eq!(device.run(Op::Flush).await.outcome, Err(Fault::Os(5)));
        assert_eq!(device.run(Op::Flush).await.outcome, Err(Fault::FlushFailed));
        let from = Buffer::zeroed(512);
        let done = device.run(Op::Write { at: 0, from }).await;
        assert_eq!(done.outcome, Err(Fault::FlushFailed));
        let into = Buffer::zeroed(512);
        assert_eq!(device.run(Op::Read { at: 0, into }).await.outcome, Ok(()));
    });
}

#[test]
fn a_read_only_disk_is_read_and_refuses_every_change() {
    for (seed, alignment) in [(1, 1), (2, 512), (3, 4096)] {
        let (store, device) = memory(alignment, seed);
        drive(seed, async move {
            device_conformance(&device, seed, 100).await;
            let content = store_content(&store);
            let device = RawDevice::new(store.clone(), SIZE, true).expect("whole blocks");
            read_only_conformance(&device, &content, seed, 200).await;
            assert!(store_content(&store) == content);
        });
    }
}

#[test]
fn a_raw_disk_tells_where_it_has_content() {
    for (seed, alignment) in [(1, 1), (2, 512), (3, 4096)] {
        let (store, device) = memory(alignment, seed);
        drive(seed, async move {
            image_conformance(&device, &store_content(&store), seed, 10).await;
            device_conformance(&device, seed, 200).await;
            image_conformance(&device, &store_content(&store), seed, 100).await;
        });
    }
    for folder in [tempfile::tempdir(), tempfile::tempdir_in("/dev/shm")] {
        let folder = folder.expect("scratch");
        let ring = Ring::new(64).expect("this host has io_uring");
        let path = folder.path().join("disk");
        let store = RingStore::open(&ring, &path, false, true).expect("made");
        let device = RawDevice::new(store, SIZE, false).expect("whole blocks");
        ring.block_on(async {
            device_conformance(&device, 6, 50).await;
            let content = std::fs::read(&path).expect("read");
            let mut whole = vec![0; index(SIZE)];
            whole[..content.len()].copy_from_slice(&content);
            image_conformance(&device, &whole, 6, 100).await;
        });
    }
}

fn store_content(store: &PowerCutStore) -> Vec<u8> {
    let mut content = store.content();
    content.resize(index(SIZE), 0);
    content
}

#[test]
fn a_discarded_disk_gives_its_space_back_and_a_zeroed_one_keeps_it() {
    let (store, device) = memory(512, 3);
    drive(3, async move {
        let from = Buffer::from_slice(&vec![7; index(SIZE)]);
        let done = device.run(Op::Write { at: 0, from }).await;
        assert_eq!(done.outcome, Ok(()));
        let (at, len) = (512, SIZE / 2);
        let unmap = false;
        let done = device.run(Op::WriteZeroes { at, len, unmap }).await;
        assert_eq!(done.outcome, Ok(()));
        assert_eq!(store.space(), index(SIZE), "zeroed");
        let done = device.run(Op::Discard { at, len }).await;
        assert_eq!(done.outcome, Ok(()));
        assert_eq!(store.space(), index(SIZE / 2 + 4096), "discarded");
    });
}

/// Notes how much memory its requests have at once. Its second punch and those after it wait until
/// they may go on.
struct Watched {
    store: PowerCutStore,
    held: Cell<usize>,
    most: Cell<usize>,
    punches: Cell<u32>,
    go_on: Cell<bool>,
    changed: Waiters,
}

impl Watched {
    /// A disk of `size` bytes over one that needs 4096.
    fn disk(size: u64, seed: u64) -> RawDevice<Self> {
        let store = Self {
            store: PowerCutStore::new(0, 4096, seed),
            held: Cell::new(0),
            most: Cell::new(0),
            punches: Cell::new(0),
            go_on: Cell::new(false),
            changed: Waiters::default(),
        };
        RawDevice::new(store, size, false).expect("whole blocks")
    }

    fn hold(&self, len: usize) {
        self.held.set(self.held.get() + len);
        self.most.set(self.most.get().max(self.held.get()));
    }
}

impl Store for Watched {
    fn alignment(&self) -> u64 {
        self.store.alignment()
    }
    async fn read(&self, at: u64, into: Buffer) -> Done {
        let len = into.len();
        self.hold(len);
        let done = self.store.read(at, into).await;
        self.held.set(self.held.get() - len);
        done
    }
    async fn write(&self, at: u64, from: Buffer) -> Done {
        let len = from.len();
        self.hold(len);
        let done = self.store.write(at, from).await;
        self.held.set(self.held.get() - len);
        done
    }
    async fn punch(&self, at: u64, len: u64) -> Result<(), Fault> {
        self.punches.set(self.punches.get() + 1);
        self.changed.notify();
        if self.punches.get() > 1 {
            self.changed.until(|| self.go_on.get().then_some(())).await;
        }
        self.store.punch(at, len).await
    }
    async fn zero(&self, at: u64, len: u64) -> Result<(), Fault> {
        self.store.zero(at, len).await
    }
    async fn sync(&self) -> Result<(), Fault> {
        self.store.sync().await
    }
    async fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>, Fault> {
        self.store.next_data(range).await
    }
}

#[test]
fn what_the_store_cannot_take_is_copied_through_little_memory() {
    let device = Watched::disk(4 << 20, 1);
    drive(1, async move {
        let most = &device.store().most;
        let mut rng = Rng::new(1);
        let long = 3 << 20;
        for (at, len, straight) in [
            (512, long, true),
            (0, long + 512, true),
            (4096 - 512, long + 1024, true),
            (BOUNCE - 512, 1024, true),
            (0, long, false),
            (1024, long, false),
        ] {
            let memory = if straight {
                Buffer::from_slice
            } else {
                crooked
            };
            let bytes = rng.bytes(len);
            most.set(0);
            let from = memory(&bytes);
            assert_eq!(device.run(Op::Write { at, from }).await.outcome, Ok(()));
            let into = memory(&vec![0; len]);
            let done = device.run(Op::Read { at, into }).await;
            assert_eq!(done.outcome, Ok(()));
            let seen = done.buffer.expect("given back").to_vec();
            assert!(seen == bytes, "{len} at {at}");
            assert!(
                most.get() <= index(BOUNCE),
                "{len} at {at} took {}",
                most.get()
            );
        }
        // What it can take goes to it as it is.
        let from = Buffer::from_slice(&vec![1; long]);
        let done = device.run(Op::Write { at: 4096, from }).await;
        assert_eq!(done.outcome, Ok(()));
        assert_eq!(most.get(), long);
    });
}

#[test]
fn a_write_does_not_wait_for_the_end_of_a_long_discard() {
    for seed in 0..20 {
        let device = Rc::new(Watched::disk(3 * LONGEST, seed));
        let schedule = Schedule::new(seed);
        let discard = Rc::clone(&device);
        schedule.spawn(async move {
            let (at, len) = (512, 3 * LONGEST - 512);
            let done = discard.run(Op::Discard { at, len }).await;
            assert_eq!(done.outcome, Ok(()));
        });
        let write = Rc::clone(&device);
        schedule.spawn(async move {
            let store = write.store();
            let begun = || (store.punches.get() > 0).then_some(());
            store.changed.until(begun).await;
            // A part of a block that is being discarded.
            let (at, from) = (8192 + 512, Buffer::from_slice(&[7; 512]));
            assert_eq!(write.run(Op::Write { at, from }).await.outcome, Ok(()));
            store.go_on.set(true);
            store.changed.notify();
        });
        assert_eq!(schedule.run(), 0, "the write waits for all of it");
        assert_eq!(device.store().punches.get(), 3);
        let content = device.store().store.content();
        assert_eq!(content[8192 + 512..][..512], [7; 512], "it came after");
    }
}

#[test]
fn a_discard_of_many_steps_leaves_zeroes_and_no_space_and_nothing_else_changes() {
    let ring = Ring::new(8).expect("this host has io_uring");
    let folder = tempfile::tempdir().expect("scratch");
    let size = 3 * LONGEST;
    let path = folder.path().join("disk");
    let store = RingStore::open(&ring, &path, false, true).expect("made");
    let device = RawDevice::new(store, size, false).expect("whole blocks");
    ring.block_on(async {
        // Around the ends of the discard and of its steps.
        let ends = [
            4096,
            LONGEST,
            LONGEST + 4096,
            2 * LONGEST,
            2 * LONGEST + 4096,
            size - 4096,
        ];
        for end in ends {
            let (at, from) = (end - 4096, Buffer::from_slice(&[7; 8192]));
            assert_eq!(device.run(Op::Write { at, from }).await.outcome, Ok(()));
        }
        let (start, end) = (512, size - 512);
        let (at, len) = (start, end - start);
        assert_eq!(device.run(Op::Discard { at, len }).await.outcome, Ok(()));
        for near in ends {
            let at = near - 4096;
            let into = Buffer::zeroed(8192);
            let done = device.run(Op::Read { at, into }).await;
            assert_eq!(done.outcome, Ok(()));
            let seen = done.buffer.expect("given back").to_vec();
            for (at, sector) in (at..).step_by(512).zip(seen.chunks(512)) {
                let kept = !(start..end).contains(&at);
                assert_eq!(sector, [if kept { 7 } else { 0 }; 512], "at {at}");
            }
        }
        let mut space = 0;
        let mut visit = |piece: Range<u64>, place| {
            if place != Place::Zero {
                space += piece.end - piece.start;
            }
            ControlFlow::Continue(())
        };
        let told = device.translate(0..size, &mut visit).await;
        assert_eq!(told, Ok(ControlFlow::Continue(())));
        assert_eq!(space, 8192, "the partial blocks at its ends");
    });
}
