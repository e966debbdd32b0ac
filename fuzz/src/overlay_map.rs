//! The two maps of an overlay, as a disk and a tmpfs may hold them, and operations above them.
//!
//! Whatever the maps say, what is written is read again: at once, after `kill -9`, and, if it was
//! flushed, after a reboot. So it is when the overlay begins to drain between the operations; when
//! nothing is left in it, what lies below reads the same.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use block::{Buffer, Device, Op};
use image::{Overlay, OverlayFiles, Tag};
use model::{BLOCK_SIZE, BootId};
use uuid::Uuid;

use crate::memory::{Memory, now};

/// More blocks than one page of a map has bits, so that there are two.
const BLOCKS: u64 = 40_000;
const TAG: Tag = [7; 32];
const PAGE: usize = 4096;
/// Offsets that are looked at, in sectors: the ends of the disk, of a page of bits, of a word.
const PLACES: [u64; 8] = [
    0,
    3,
    8 * 63,
    8 * 64 + 1,
    8 * 32_767,
    8 * 32_768,
    8 * 39_998,
    8 * 100,
];

/// How many bytes are drained between two operations, and how many at the end.
const SOME: u64 = 2 * BLOCK_SIZE;
const FEW: u64 = 64 * BLOCK_SIZE;

type Disk = Overlay<Memory, Memory, Below>;

/// Reads as the number of each sector that was not written. Clones are the same disk.
#[derive(Clone, Default)]
struct Below {
    content: Memory,
    written: Rc<RefCell<BTreeSet<u64>>>,
    /// Whether the overlay above may write: it drains.
    writable: Rc<Cell<bool>>,
}

impl Below {
    fn put(&self, at: u64, content: &[u8]) {
        assert!(self.writable.get(), "a mutation below an overlay");
        self.content.put(at, content);
        let sectors = at / 512..(at + content.len() as u64) / 512;
        self.written.borrow_mut().extend(sectors);
    }
}

impl Device for Below {
    fn size(&self) -> u64 {
        BLOCKS * BLOCK_SIZE
    }
    async fn run(&self, op: Op) -> block::Done {
        let mut buffer = None;
        match op {
            Op::Read { at, mut into } => {
                for sector in (0..into.len()).step_by(512) {
                    let at = at + sector as u64;
                    let content = if self.written.borrow().contains(&(at / 512)) {
                        self.content.bytes(at, 512)
                    } else {
                        (at / 512).to_le_bytes().repeat(64)
                    };
                    into.copy_from_slice(sector, &content);
                }
                buffer = Some(into);
            }
            Op::Write { at, from } => {
                self.put(at, &from.to_vec());
                buffer = Some(from);
            }
            Op::Discard { at, len } | Op::WriteZeroes { at, len, .. } => {
                self.put(at, &vec![0; usize::try_from(len).expect("a few blocks")]);
            }
            Op::Flush => {}
        }
        block::Done {
            outcome: Ok(()),
            buffer,
        }
    }
}

thread_local! {
    /// In memory, and removed when the process ends in order.
    static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

fn volatile() -> PathBuf {
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder
            .get_or_insert_with(|| tempfile::tempdir_in("/dev/shm").expect("a folder in memory"));
        folder.path().join("volatile")
    })
}

/// What survives a reboot.
#[derive(Default)]
struct Files {
    data: Memory,
    map: Memory,
    below: Below,
}

impl Files {
    fn open(&self, path: &Path, boot: u128) -> Option<Disk> {
        let files = OverlayFiles {
            data: self.data.clone(),
            map: self.map.clone(),
            volatile: path,
        };
        let boot = BootId(Uuid::from_u128(boot));
        now(Overlay::open(files, self.below.clone(), boot, &TAG)).ok()
    }
}

/// A map file as the code makes it, with `bits` in it, the second half in its second page; what
/// `header` holds is put over its header, if it holds anything.
fn forge(map: &mut [u8], header: &[u8], bits: &[u8]) {
    let (first, second) = bits.split_at(bits.len() / 2);
    for (at, part) in [(PAGE, first), (2 * PAGE, second)] {
        for (byte, value) in map[at..].iter_mut().zip(part.iter().take(PAGE)) {
            *byte = *value;
        }
    }
    for (byte, value) in map.iter_mut().zip(header) {
        *byte ^= *value;
    }
}

/// What may be done to it, where, and how long, from three bytes.
fn operation(bytes: &[u8]) -> Op {
    let at = PLACES[usize::from(bytes[1]) % PLACES.len()] * 512;
    let len = (1 + u64::from(bytes[2]) % 12) * 512;
    let len = len.min(BLOCKS * BLOCK_SIZE - at);
    match bytes[0] % 5 {
        0 => Op::Flush,
        1 => Op::Discard { at, len },
        2 => Op::WriteZeroes {
            at,
            len,
            unmap: bytes[0] >= 128,
        },
        _ => {
            let len = usize::try_from(len).expect("a few sectors");
            Op::Write {
                at,
                from: Buffer::from_slice(&vec![bytes[0]; len]),
            }
        }
    }
}

fn read(disk: &impl Device, at: u64, len: u64) -> Vec<u8> {
    let into = Buffer::zeroed(usize::try_from(len).expect("a few blocks"));
    let done = now(disk.run(Op::Read { at, into }));
    assert_eq!(done.outcome, Ok(()));
    done.buffer.expect("given back").to_vec()
}

/// The places that operations touch, with a block on both sides.
fn look(disk: &impl Device) -> Vec<Vec<u8>> {
    let end = BLOCKS * BLOCK_SIZE;
    PLACES
        .iter()
        .map(|sector| {
            let from = (sector * 512).saturating_sub(BLOCK_SIZE);
            read(disk, from, (4 * BLOCK_SIZE).min(end - from))
        })
        .collect()
}

/// First how the maps are forged, then eight operations, then headers and bits.
pub fn run(data: &[u8]) {
    let Some((&[mode, header_len, share], data)) = data.split_first_chunk::<3>() else {
        return;
    };
    let Some((operations, data)) = data.split_first_chunk::<24>() else {
        return;
    };
    let (header, bits) = data.split_at(usize::from(header_len % 64).min(data.len()));
    let (durable_bits, volatile_bits) = bits.split_at(bits.len() * usize::from(share) / 256);
    let none: &[u8] = &[];

    let path = volatile();
    let files = Files::default();
    std::fs::write(&path, none).expect("written");
    drop(files.open(&path, 1).expect("a new overlay"));
    let mut live = std::fs::read(&path).expect("read");
    let mut durable = files.map.bytes(0, live.len());
    let over = if mode & 1 == 0 { none } else { header };
    forge(&mut durable, over, durable_bits);
    files.map.put(0, &durable);
    let over = if mode & 2 == 0 { none } else { header };
    forge(&mut live, over, volatile_bits);
    if mode & 4 != 0 {
        live.truncate(usize::from(share) * 64);
    }
    std::fs::write(&path, &live).expect("written");

    let Some(disk) = files.open(&path, 1) else {
        return;
    };
    let drains_from = if mode & 16 == 0 { 8 } else { share % 8 };
    for (number, bytes) in (0..).zip(operations.chunks_exact(3)) {
        if number >= drains_from {
            files.below.writable.set(true);
            let before = look(&disk);
            assert!(now(disk.drain(SOME)).is_ok());
            assert!(look(&disk) == before, "draining changes nothing");
        }
        let op = operation(bytes);
        let (at, len) = op.range();
        let expected = match &op {
            Op::Write { from, .. } => Some(from.to_vec()),
            Op::Discard { .. } | Op::WriteZeroes { .. } => {
                Some(vec![0; usize::try_from(len).expect("a few sectors")])
            }
            Op::Read { .. } | Op::Flush => None,
        };
        let outcome = now(disk.run(op)).outcome;
        assert_eq!(outcome, Ok(()));
        if let Some(expected) = expected {
            assert!(read(&disk, at, len) == expected, "read as it was written");
        }
    }
    let before = look(&disk);
    if drains_from < 8 && disk.present_bytes() <= FEW {
        assert_eq!(now(disk.drain(FEW)), Ok(0));
        assert!(look(disk.below()) == before, "all of it is below");
    }
    let mut disk = disk;
    if mode & 8 == 0 {
        drop(disk);
        disk = files.open(&path, 1).expect("opened after kill -9");
        assert!(look(&disk) == before, "kill -9 loses nothing");
    }
    assert_eq!(now(disk.run(Op::Flush)).outcome, Ok(()));
    drop(disk);
    let disk = files.open(&path, 2).expect("opened after a reboot");
    assert!(
        look(&disk) == before,
        "a reboot loses nothing that was flushed"
    );
}

/// Empty maps, maps that differ, and overlays that drain.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let operations: Vec<u8> = (0..24).map(|n: u8| n.wrapping_mul(37)).collect();
    let seed = |mode: u8, bits: &[u8]| [&[mode, 8, 128][..], &operations, bits].concat();
    vec![
        seed(0, &[]),
        seed(0, &[0xff; 64]),
        seed(0, &[0x5a; 8192]),
        seed(1, b"PLXPRES1\x01\0\0\0"),
        seed(2, b"PLXVOLA1\x01\0\0\0"),
        seed(4, &[0xaa; 256]),
        seed(8, &[]),
        seed(16, &[0xff; 6]),
        seed(16 + 8, &[0x5a; 64]),
    ]
}
