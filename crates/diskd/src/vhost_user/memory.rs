//! Memory that another process shares with us: the guest's RAM, the in-flight area, the log.
//!
//! ```text
//!   Memory  one table of regions (a snapshot; a change makes a new one)
//!     Span  bytes of it that a descriptor chain names, in order, pieces anywhere
//!   Area    a contiguous, bounded window: a ring, an indirect table, an in-flight area
//! ```
//!
//! A region must lie inside its file when it is mapped. A file that is cut off later, which QEMU
//! seals against, ends this process with SIGBUS and harms nobody but its own VM.
//!
//! All unsafe code of the front end is here. The other side may change any byte at any
//! time, so no reference to the bytes is ever made: atomic loads and stores, and raw copies.
//! A `Span` and an `Area` keep what they point into mapped, so that a change of the
//! table never pulls memory from under a request in flight.
#![allow(unsafe_code, reason = "shared memory is mapped and reached by address")]

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use block::Buffer;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use smallvec::SmallVec;

use super::log::DirtyLog;

/// Most regions in a table; what QEMU's own back ends offer.
pub(super) const MAX_REGIONS: usize = 509;

/// Most contiguous pieces of memory in a [`Span`]: twice the descriptors of a chain, for those that
/// cross from one region into the next.
const MAX_PIECES: usize = 2048;

/// `statfs(2)`.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
const PAGE: u64 = 4096;

/// Why shared memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    /// The file ends before the region does; touching the rest would kill the process.
    #[error("a region of {len} bytes at {offset} of a file of {file_len}")]
    BeyondFile {
        offset: u64,
        len: u64,
        file_len: u64,
    },
    /// Empty, or wraps around the address space.
    #[error("a region of {len} bytes at guest address {guest:#x}, user address {user:#x}")]
    Shape { guest: u64, user: u64, len: u64 },
    /// Two regions share addresses.
    #[error("a region at guest address {0:#x} overlaps another")]
    Overlap(u64),
    /// The table is full.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// An empty log of dirty memory, or one larger than the address space.
    #[error("a log of dirty memory of {len} bytes at {offset}")]
    Log { offset: u64, len: u64 },
    /// No such region to remove.
    #[error("no region of that size at guest address {0:#x}")]
    Unknown(u64),
    /// The system call failed.
    #[error("shared memory cannot be mapped")]
    Map(#[source] io::Error),
}

/// A shared mapping of a file; unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping has no thread affinity, and its bytes are reached only through atomics
// and raw copies, which the other process makes racy anyway.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `len` bytes at `offset` of `file`; also returns how many bytes of the
    /// mapping lie before `offset`.
    fn new(file: &File, offset: u64, len: u64) -> Result<(Self, usize), MemoryError> {
        let file_len = file.metadata().map_err(MemoryError::Map)?.len();
        let beyond = MemoryError::BeyondFile {
            offset,
            len,
            file_len,
        };
        let Some(end) = offset.checked_add(len).filter(|end| *end <= file_len) else {
            return Err(beyond);
        };
        // Huge pages are mapped whole.
        let page = match rustix::fs::fstatfs(file) {
            Ok(fs) if fs.f_type == HUGETLBFS_MAGIC => {
                u64::try_from(fs.f_bsize).unwrap_or(PAGE).max(PAGE)
            }
            _ => PAGE,
        };
        let first = offset / page * page;
        let (Ok(mapped), Ok(before)) = (
            usize::try_from(end.next_multiple_of(page) - first),
            usize::try_from(offset - first),
        ) else {
            return Err(beyond);
        };
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                first,
            )
        }
        .map_err(|errno| MemoryError::Map(errno.into()))?;
        let start = NonNull::new(start.cast()).expect("mmap does not return null");
        Ok((Self { start, len: mapped }, before))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing outlives it (see `Area`, `Span`).
        // A failure would only leave the memory mapped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A region of guest memory.
#[derive(Debug, Clone)]
struct Region {
    /// Guest physical address of its first byte.
    guest: u64,
    /// Address of its first byte in the front end's process; rings are named by these.
    user: u64,
    len: u64,
    /// Where it starts in the mapping.
    at: usize,
    mapping: Arc<Mapping>,
}

/// How a front end describes a region.
#[derive(Debug, Clone, Copy)]
pub(super) struct RegionSpec {
    pub(super) guest: u64,
    pub(super) user: u64,
    pub(super) len: u64,
    /// Offset in the file that comes with it.
    pub(super) offset: u64,
}

/// A snapshot of the guest's memory map.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    /// By rising guest address; they don't overlap.
    regions: Vec<Region>,
}

impl Memory {
    /// This table with one region more.
    pub(super) fn with(&self, spec: RegionSpec, file: &File) -> Result<Self, MemoryError> {
        let RegionSpec {
            guest, user, len, ..
        } = spec;
        let shape = MemoryError::Shape { guest, user, len };
        if len == 0 || user.checked_add(len).is_none() {
            return Err(shape);
        }
        let Some(end) = guest.checked_add(len) else {
            return Err(shape);
        };
        if self.regions.len() == MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let at = self.regions.partition_point(|region| region.guest < guest);
        let below = at.checked_sub(1).map(|below| &self.regions[below]);
        let overlaps = below.is_some_and(|region| region.guest + region.len > guest)
            || self
                .regions
                .get(at)
                .is_some_and(|region| region.guest < end);
        if overlaps {
            return Err(MemoryError::Overlap(guest));
        }
        let (mapping, skip) = Mapping::new(file, spec.offset, len)?;
        let mut regions = self.regions.clone();
        regions.insert(
            at,
            Region {
                guest,
                user,
                len,
                at: skip,
                mapping: Arc::new(mapping),
            },
        );
        Ok(Self { regions })
    }

    /// This table without the region of exactly these addresses and length.
    pub(super) fn without(&self, guest: u64, user: u64, len: u64) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.retain(|region| (region.guest, region.user, region.len) != (guest, user, len));
        if regions.len() == self.regions.len() {
            return Err(MemoryError::Unknown(guest));
        }
        Ok(Self { regions })
    }

    /// The region that holds guest address `guest`, and the bytes before that in it.
    fn find(&self, guest: u64) -> Option<(&Region, u64)> {
        let after = self.regions.partition_point(|region| region.guest <= guest);
        let region = &self.regions[after.checked_sub(1)?];
        let skip = guest - region.guest;
        (skip < region.len).then_some((region, skip))
    }

    /// The guest address of a piece of one of the regions.
    fn guest_address(&self, piece: &libc::iovec) -> u64 {
        let address = piece.iov_base as u64;
        let inside = self.regions.iter().find_map(|region| {
            let start = region.mapping.start.as_ptr() as u64 + region.at as u64;
            let skip = address.checked_sub(start)?;
            (skip < region.len).then(|| region.guest + skip)
        });
        inside.expect("a span lies in the regions of its own memory")
    }

    /// `len` contiguous bytes at guest address `guest`.
    pub(super) fn area(&self, guest: u64, len: usize) -> Option<Area> {
        let (region, skip) = self.find(guest)?;
        region.area(skip, len)
    }

    /// `len` contiguous bytes at `user` in the front end's address space.
    pub(super) fn area_at_user(&self, user: u64, len: usize) -> Option<Area> {
        self.regions.iter().find_map(|region| {
            let skip = user.checked_sub(region.user)?;
            region.area(skip, len)
        })
    }
}

impl Region {
    fn area(&self, skip: u64, len: usize) -> Option<Area> {
        let end = skip.checked_add(u64::try_from(len).ok()?)?;
        (end <= self.len).then(|| Area {
            // Inside the mapping, which is as long as the address space allows.
            at: self.at + usize::try_from(skip).expect("inside a mapping"),
            len,
            mapping: Arc::clone(&self.mapping),
        })
    }
}

/// A contiguous window of shared memory. Offsets are checked; a wrong one is our own mistake
/// and panics.
#[derive(Debug, Clone)]
pub(super) struct Area {
    mapping: Arc<Mapping>,
    at: usize,
    len: usize,
}

impl Area {
    /// A window on `len` bytes at `offset` of a file.
    pub(super) fn map(file: &File, offset: u64, len: usize) -> Result<Self, MemoryError> {
        let (mapping, at) = Mapping::new(file, offset, len as u64)?;
        Ok(Self {
            mapping: Arc::new(mapping),
            at,
            len,
        })
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Part of this window.
    pub(super) fn part(&self, at: usize, len: usize) -> Self {
        self.check(at, len);
        Self {
            mapping: Arc::clone(&self.mapping),
            at: self.at + at,
            len,
        }
    }

    /// Whether it starts at a multiple of `alignment` in our address space.
    pub(super) fn is_aligned(&self, alignment: usize) -> bool {
        (self.mapping.start.as_ptr() as usize + self.at) % alignment == 0
    }

    fn check(&self, at: usize, len: usize) {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {at} of a window of {}",
            self.len
        );
    }

    /// The address of `T` at `at`, inside the window and aligned.
    fn address<T>(&self, at: usize) -> *mut T {
        self.check(at, size_of::<T>());
        // SAFETY: inside the window, and the window is inside the mapping.
        let address = unsafe { self.mapping.start.as_ptr().add(self.at + at) }.cast::<T>();
        assert!(address.is_aligned(), "an access at {at} is not aligned");
        address
    }

    pub(super) fn load_u8(&self, at: usize, order: Ordering) -> u8 {
        // SAFETY: `address` is mapped for as long as `self` lives.
        unsafe { AtomicU8::from_ptr(self.address(at)) }.load(order)
    }

    pub(super) fn store_u8(&self, at: usize, value: u8, order: Ordering) {
        // SAFETY: as in `load_u8`.
        unsafe { AtomicU8::from_ptr(self.address(at)) }.store(value, order);
    }

    /// Sets bits in one byte and leaves the others as they are.
    pub(super) fn set_bits(&self, at: usize, bits: u8) {
        // SAFETY: as in `load_u8`.
        unsafe { AtomicU8::from_ptr(self.address(at)) }.fetch_or(bits, Ordering::Release);
    }

    pub(super) fn load_u16(&self, at: usize, order: Ordering) -> u16 {
        // SAFETY: as in `load_u8`, and aligned.
        u16::from_le(unsafe { AtomicU16::from_ptr(self.address(at)) }.load(order))
    }

    pub(super) fn store_u16(&self, at: usize, value: u16, order: Ordering) {
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(self.address(at)) }.store(value.to_le(), order);
    }

    pub(super) fn load_u64(&self, at: usize, order: Ordering) -> u64 {
        // SAFETY: as in `load_u16`.
        u64::from_le(unsafe { AtomicU64::from_ptr(self.address(at)) }.load(order))
    }

    pub(super) fn store_u64(&self, at: usize, value: u64, order: Ordering) {
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU64::from_ptr(self.address(at)) }.store(value.to_le(), order);
    }

    /// A copy of `N` bytes at `at`; they may be torn.
    pub(super) fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        self.check(at, N);
        let mut bytes = [0; N];
        // SAFETY: the source is inside the window; the target is ours.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.mapping.start.as_ptr().add(self.at + at),
                bytes.as_mut_ptr(),
                N,
            );
        }
        bytes
    }

    /// Stores `bytes` at `at`.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: the target is inside the window; the source is ours.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.mapping.start.as_ptr().add(self.at + at),
                bytes.len(),
            );
        }
    }
}

/// Bytes of guest memory in the order in which a descriptor chain names them.
#[derive(Debug)]
pub(super) struct Span {
    memory: Arc<Memory>,
    pieces: SmallVec<[libc::iovec; 4]>,
    len: u64,
}

impl Span {
    /// Nothing yet.
    pub(super) fn new(memory: &Arc<Memory>) -> Self {
        Self {
            memory: Arc::clone(memory),
            pieces: SmallVec::new(),
            len: 0,
        }
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Adds `len` bytes at guest address `guest`; false, and nothing added, if some of them
    /// are not guest memory or lie in too many regions.
    pub(super) fn push(&mut self, guest: u64, len: u32) -> bool {
        let (pieces, before) = (self.pieces.len(), self.len);
        let (mut guest, mut left) = (guest, u64::from(len));
        while left > 0 {
            let found = self.memory.find(guest);
            let Some((region, skip)) = found.filter(|_| self.pieces.len() < MAX_PIECES) else {
                self.pieces.truncate(pieces);
                self.len = before;
                return false;
            };
            let part = left.min(region.len - skip);
            let (Ok(skip), Ok(part_len)) = (usize::try_from(skip), usize::try_from(part)) else {
                unreachable!("a region is mapped, so its offsets fit the address space")
            };
            self.pieces.push(libc::iovec {
                // SAFETY: inside the region, which is inside its mapping.
                iov_base: unsafe { region.mapping.start.as_ptr().add(region.at + skip) }.cast(),
                iov_len: part_len,
            });
            self.len += part;
            left -= part;
            // Regions end inside the address space, so this can only be met with `left == 0`.
            guest = guest.wrapping_add(part);
        }
        true
    }

    /// Marks all of it in `log`.
    pub(super) fn mark(&self, log: &DirtyLog) {
        for piece in &self.pieces {
            log.mark(self.memory.guest_address(piece), piece.iov_len as u64);
        }
    }

    /// Number of contiguous pieces.
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// The `len` bytes from `at` on, as the memory of an operation.
    ///
    /// # Panics
    /// If the range is outside the span.
    pub(super) fn buffer(&self, at: u64, len: u64) -> Buffer {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {at} of a span of {}",
            self.len
        );
        let mut chosen: SmallVec<[libc::iovec; 4]> = SmallVec::new();
        let (mut skip, mut left) = (at, len);
        for piece in &self.pieces {
            let piece_len = piece.iov_len as u64;
            if left == 0 {
                break;
            }
            if skip >= piece_len {
                skip -= piece_len;
                continue;
            }
            let part = left.min(piece_len - skip);
            let (Ok(skip_len), Ok(part_len)) = (usize::try_from(skip), usize::try_from(part))
            else {
                unreachable!("a piece is mapped, so its offsets fit the address space")
            };
            chosen.push(libc::iovec {
                // SAFETY: inside the piece.
                iov_base: unsafe { piece.iov_base.cast::<u8>().add(skip_len) }.cast(),
                iov_len: part_len,
            });
            left -= part;
            skip = 0;
        }
        let owner: Arc<Memory> = Arc::clone(&self.memory);
        // SAFETY: the pieces lie in mappings that `owner` keeps, readable and writable.
        unsafe { Buffer::borrowed(chosen, owner) }
    }

    /// Copies the bytes from `at` on into `target`; false if there are fewer.
    pub(super) fn read(&self, at: u64, target: &mut [u8]) -> bool {
        let len = target.len() as u64;
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return false;
        }
        self.buffer(at, len).copy_to_slice(0, target);
        true
    }

    /// Copies `source` to `at`; false, and nothing written, if it doesn't fit.
    pub(super) fn write(&self, at: u64, source: &[u8]) -> bool {
        let len = source.len() as u64;
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return false;
        }
        self.buffer(at, len).copy_from_slice(0, source);
        true
    }
}
