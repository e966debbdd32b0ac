//! The state file: its opening, its header, and the pages that are reserved in it.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use model::{BLOCK_SIZE, BootId, DiskId};
use rustix::fs::FallocateFlags;
use uuid::Uuid;

use super::bits::{Bits, Summary, store};
use super::layout::{FILE, MAGIC, MAX_DISK, Map, PAGE, flush, index, phase, word};

/// The file, mapped whole.
pub(super) struct StateFile {
    file: File,
    map: MmapRaw,
    /// Blocks that the pages of the maps are reserved for.
    room: Cell<u64>,
    summaries: [Summary; 4],
}

impl StateFile {
    /// Opens the file, or begins it if it is not that of `disk` since `boot` or if the disk became
    /// smaller than `size`. Whether it was found.
    pub(super) fn open(
        path: &Path,
        boot: BootId,
        disk: DiskId,
        size: u64,
    ) -> io::Result<(Self, bool)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let had = had(&file, boot, disk)?.filter(|had| *had <= size);
        if had.is_none() {
            // Whatever it was, its pages are given back.
            file.set_len(0)?;
            file.set_len(FILE)?;
        }
        let state = Self {
            map: MmapOptions::new().len(index(FILE)).map_raw(&file)?,
            file,
            room: Cell::new(0),
            summaries: Default::default(),
        };
        let blocks = had.unwrap_or(size) / BLOCK_SIZE;
        rustix::fs::fallocate(&state.file, FallocateFlags::empty(), 0, PAGE)?;
        state.make_room(blocks)?;
        if had.is_some() {
            state.sum_up(blocks)?;
        } else {
            state.put(word::FLUSH, flush::NONE_FAILED);
            state.put(word::SIZE, size);
            state.put_uuid(word::BOOT, boot.0);
            state.put_uuid(word::DISK, disk.0);
            // Last: killed before, the next process begins it.
            state.put(word::MAGIC, MAGIC);
        }
        Ok((state, had.is_some()))
    }

    fn sum_up(&self, blocks: u64) -> io::Result<()> {
        for map in Map::ALL {
            // Reserved by a process that was killed before the disk had grown.
            let (end, most) = (map.bytes(blocks), map.most());
            if end < most {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, flags, map.offset() + end, most - end)?;
            }
            let bits = self.bits(map);
            bits.sum_up(&self.file, map.offset(), map.bits(blocks))?;
        }
        Ok(())
    }

    /// Reserves the pages of the maps of a disk of so many blocks. Every page is there before it is
    /// used: a full tmpfs refuses now, not with a signal.
    pub(super) fn make_room(&self, blocks: u64) -> io::Result<()> {
        if self.has_room(blocks) {
            return Ok(());
        }
        if blocks > MAX_DISK / BLOCK_SIZE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        for map in Map::ALL {
            let len = map.bytes(blocks);
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), map.offset(), len)?;
        }
        self.room.set(blocks);
        Ok(())
    }

    pub(super) fn has_room(&self, blocks: u64) -> bool {
        blocks <= self.room.get()
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, lives as long as `self`, and is only ever seen as atomic
        // words. The file has its length, and is never shortened while it is mapped: whoever maps it
        // holds the disk's lock.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.map.len() / 8) }
    }

    /// One of the maps.
    pub(super) fn bits(&self, map: Map) -> Bits<'_> {
        let (at, len) = (index(map.offset() / 8), index(map.most() / 8));
        Bits {
            words: &self.words()[at..at + len],
            summary: &self.summaries[map as usize],
        }
    }

    pub(super) fn get(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Relaxed)
    }

    pub(super) fn put(&self, at: usize, value: u64) {
        store(&self.words()[at], value);
    }

    pub(super) fn uuid(&self, at: usize) -> Uuid {
        Uuid::from_u64_pair(self.get(at), self.get(at + 1))
    }

    pub(super) fn put_uuid(&self, at: usize, value: Uuid) {
        let (high, low) = value.as_u64_pair();
        self.put(at, high);
        self.put(at + 1, low);
    }
}

/// The size of the disk according to `file`, if it is the state of `disk` since `boot`.
fn had(file: &File, boot: BootId, disk: DiskId) -> io::Result<Option<u64>> {
    if file.metadata()?.len() != FILE {
        return Ok(None);
    }
    let mut header = [0; 256];
    file.read_exact_at(&mut header, 0)?;
    let get = |at: usize| {
        let word = header[at * 8..at * 8 + 8].try_into().expect("8 bytes");
        u64::from_ne_bytes(word)
    };
    let uuid = |at| Uuid::from_u64_pair(get(at), get(at + 1));
    let size = get(word::SIZE);
    let ours = get(word::MAGIC) == MAGIC
        && uuid(word::BOOT) == boot.0
        && uuid(word::DISK) == disk.0
        && size % BLOCK_SIZE == 0
        && get(word::PHASE) <= phase::CURRENT | phase::SEALED
        && get(word::TRACKED) <= 1;
    Ok(ours.then_some(size))
}
