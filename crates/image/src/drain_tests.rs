use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::rc::Rc;

use block::{Buffer, Gate, Image, Op};
use model::BootId;
use testkit::{
    PowerCutStore, Rng, Schedule, device_conformance, finish, image_conformance,
    power_cut_conformance,
};

use super::*;
use crate::{OverlayFiles, RawDevice};

const SIZE: u64 = 1 << 20;

type Raw = RawDevice<PowerCutStore>;
type OnRaw = Overlay<PowerCutStore, PowerCutStore, Raw>;

#[derive(Clone)]
struct Parts {
    raw: PowerCutStore,
    data: PowerCutStore,
    map: PowerCutStore,
    folder: Rc<tempfile::TempDir>,
}

impl Parts {
    fn new(seed: u64) -> Self {
        let alignment = [1, 512, 4096][usize::try_from(seed % 3).expect("small")];
        Self {
            raw: PowerCutStore::new(usize::try_from(2 * SIZE).expect("small"), alignment, seed),
            data: PowerCutStore::new(0, alignment, seed + 1),
            map: PowerCutStore::new(0, alignment, seed + 2),
            folder: Rc::new(tempfile::tempdir_in("/dev/shm").expect("scratch in memory")),
        }
    }

    fn volatile(&self) -> PathBuf {
        self.folder.path().join("volatile")
    }

    async fn open(self, size: u64, boot: BootId) -> OnRaw {
        let below = RawDevice::new(self.raw.clone(), size, false).expect("whole blocks");
        let volatile = self.volatile();
        let files = OverlayFiles {
            data: self.data,
            map: self.map,
            volatile: &volatile,
        };
        let overlay = Overlay::open(files, below, boot, &[3; 32]).await;
        overlay.expect("opened")
    }
}

async fn read<D: Device>(device: &D) -> Vec<u8> {
    let into = Buffer::zeroed(usize::try_from(device.size()).expect("small"));
    let done = device.run(Op::Read { at: 0, into }).await;
    assert_eq!(done.outcome, Ok(()));
    done.buffer.expect("given back").to_vec()
}

#[test]
fn a_draining_overlay_conforms_and_so_does_a_gate_above_it() {
    for seed in 0..6 {
        let parts = Parts::new(seed);
        finish(&Schedule::new(seed), async move {
            let overlay = Rc::new(parts.open(SIZE, BootId::random()).await);
            // Something to drain, that reads as zeroes.
            let done = overlay.run(Op::Discard { at: 0, len: SIZE }).await;
            assert_eq!(done.outcome, Ok(()));
            overlay.start_draining().await;
            if seed % 2 == 0 {
                device_conformance(&*overlay, seed, 300).await;
            } else {
                device_conformance(&Gate::new(Rc::clone(&overlay)), seed, 300).await;
            }
            let content = read(&*overlay).await;
            assert_eq!(overlay.drain(u64::MAX).await, Ok(0));
            assert!(read(&*overlay).await == content, "after the drain");
            assert!(read(overlay.below()).await == content, "below");
        });
    }
}

#[test]
fn a_power_cut_of_a_draining_overlay_leaves_what_was_flushed_or_newer() {
    for seed in 0..12 {
        let parts = Parts::new(seed);
        let schedule = Schedule::new(seed);
        let inner = parts.clone();
        finish(&schedule, async move {
            let overlay = inner.clone().open(SIZE, BootId::random()).await;
            let done = overlay.run(Op::Discard { at: 0, len: SIZE }).await;
            assert_eq!(done.outcome, Ok(()));
            overlay.start_draining().await;
            let reopen = |cut| {
                inner.raw.cut(cut);
                inner.data.cut(cut ^ 1);
                inner.map.cut(cut ^ 2);
                finish(
                    &Schedule::new(cut),
                    inner.clone().open(SIZE, BootId::random()),
                )
            };
            power_cut_conformance(overlay, reopen, seed, 60).await;
        });
    }
}

#[test]
fn an_overlay_tells_where_its_disk_has_content_normal_and_draining() {
    for seed in 0..6 {
        let parts = Parts::new(seed);
        finish(&Schedule::new(seed), async move {
            let raw = RawDevice::new(parts.raw.clone(), SIZE, false).expect("whole blocks");
            let mut rng = Rng::new(seed);
            let overlay = parts.open(SIZE, BootId::random()).await;
            let gate = Gate::new(Rc::new(overlay));
            for round in 0..60 {
                let (at, len) = (rng.below(SIZE / 512 - 40) * 512, (1 + rng.below(40)) * 512);
                let from = Buffer::from_slice(&rng.bytes(usize::try_from(len).expect("small")));
                let op = match rng.below(3) {
                    0 => Op::Discard { at, len },
                    _ => Op::Write { at, from },
                };
                let outcome = if round < 20 {
                    raw.run(op).await.outcome
                } else {
                    gate.run(op).await.outcome
                };
                assert_eq!(outcome, Ok(()));
                if round % 10 == 9 {
                    let content = read(&gate).await;
                    image_conformance(&gate, &content, seed, 30).await;
                }
                if round == 30 {
                    gate.below().start_draining().await;
                }
                if round > 30 {
                    let left = gate.below().drain(8192).await;
                    assert_eq!(left, Ok(gate.below().present_bytes()));
                }
            }
        });
    }
}

#[test]
fn a_failed_flush_of_data_map_or_what_is_below_is_sticky() {
    for part in 0..3 {
        let parts = Parts::new(1);
        let failing = [&parts.data, &parts.map, &parts.raw][part].clone();
        finish(&Schedule::new(1), async move {
            let overlay = parts.open(SIZE, BootId::random()).await;
            if part == 2 {
                overlay.start_draining().await;
            }
            let write = || Op::Write {
                at: 512,
                from: Buffer::zeroed(1024),
            };
            assert_eq!(overlay.run(write()).await.outcome, Ok(()));
            failing.fail_syncs(1);
            let first = overlay.run(Op::Flush).await.outcome;
            assert_eq!(first, Err(Fault::Os(5)), "part {part}");
            for op in [Op::Flush, write(), Op::Discard { at: 0, len: 512 }] {
                assert_eq!(overlay.run(op).await.outcome, Err(Fault::FlushFailed));
            }
            assert_eq!(overlay.drain(4096).await, Err(Fault::FlushFailed));
            read(&overlay).await;
        });
    }
}

#[test]
fn an_overlay_grows_with_its_disk_and_keeps_what_a_killed_process_wrote() {
    let parts = Parts::new(2);
    let boot = BootId::random();
    finish(&Schedule::new(2), async move {
        let write = |at| Op::Write {
            at,
            from: Buffer::from_slice(&[7; 4096]),
        };
        let overlay = parts.clone().open(SIZE, boot).await;
        assert_eq!(overlay.run(write(4096)).await.outcome, Ok(()));
        drop(overlay);
        let overlay = parts.clone().open(2 * SIZE, boot).await;
        assert_eq!(overlay.run(write(SIZE)).await.outcome, Ok(()));
        assert_eq!(overlay.present_bytes(), 8192);
        let content = read(&overlay).await;
        for at in [4096, usize::try_from(SIZE).expect("small")] {
            assert_eq!(content[at..at + 4096], [7; 4096]);
        }
    });
}

#[test]
fn a_disk_in_many_pieces_is_looked_at_once_when_it_is_asked_for_piece_by_piece() {
    for seed in 0..6 {
        let parts = Parts::new(seed);
        finish(&Schedule::new(seed), async move {
            let raw = RawDevice::new(parts.raw.clone(), SIZE, false).expect("whole blocks");
            let overlay = parts.clone().open(SIZE, BootId::random()).await;
            for block in (0..SIZE / BLOCK_SIZE).step_by(4) {
                for (at, above) in [(block, false), (block + 2, true)] {
                    let at = at * BLOCK_SIZE;
                    let from = Buffer::from_slice(&[7; 4096]);
                    let op = Op::Write { at, from };
                    let done = if above {
                        overlay.run(op).await
                    } else {
                        raw.run(op).await
                    };
                    assert_eq!(done.outcome, Ok(()));
                }
            }
            let before = parts.raw.looks() + parts.data.looks();
            let (mut at, mut pieces) = (0, 0);
            while at < SIZE {
                let rest = at..SIZE;
                let mut first = |piece: Range<u64>, _| {
                    at = piece.end;
                    pieces += 1;
                    ControlFlow::Break(())
                };
                let flow = overlay.translate(rest, &mut first).await;
                assert_eq!(flow, Ok(ControlFlow::Break(())));
            }
            assert!(pieces >= SIZE / BLOCK_SIZE / 2, "{pieces} pieces");
            let looks = parts.raw.looks() + parts.data.looks() - before;
            assert!(looks <= pieces, "{looks} looks for {pieces} pieces");
        });
    }
}
