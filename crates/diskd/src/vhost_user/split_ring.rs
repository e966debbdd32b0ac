//! The split virtqueue as the device sees it (VIRTIO 1.2, section 2.7).
//!
//! Only indexes and answers; descriptor chains are walked by [`super::chain`].

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::chain::DESCRIPTOR;
use super::log::DirtyLog;
use super::memory::{Area, Memory};

/// Most entries of a queue; QEMU's own limit.
pub(super) const MAX_SIZE: u16 = 1024;

// Offsets in the available and the used ring.
const AT_FLAGS: usize = 0;
const AT_IDX: usize = 2;
const AT_RING: usize = 4;

/// Where a ring lies, in the front end's address space, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingPlace {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// Why a ring cannot be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RingError {
    /// Some part of it is not in guest memory, or not aligned.
    #[error("the ring lies outside guest memory or between its alignment")]
    Place,
    /// The size is not a power of two up to the limit.
    #[error("the ring has {0} entries, not a power of two up to {MAX_SIZE}")]
    Size(u32),
    /// The driver claims more available entries than the ring has.
    #[error("the driver made {0} entries available at once")]
    Available(u16),
    /// The driver made something available that is not a descriptor.
    #[error("the driver made descriptor {0} available, which does not exist")]
    Head(u16),
    /// The driver made a descriptor available that it has not got back.
    #[error("the driver made descriptor {0} available again before it was used")]
    Busy(u16),
}

/// A ring in guest memory.
#[derive(Debug)]
pub(super) struct SplitRing {
    place: RingPlace,
    descriptors: Area,
    available: Area,
    used: Area,
    /// Next entry of the available ring to take.
    next_available: u16,
    /// Index of the used ring; ours alone, so it is never read back.
    next_used: u16,
    /// Used index when a notification was last considered; none before the first time.
    considered: Option<u16>,
    event_idx: bool,
    /// Where what is written to the used ring is marked, and the ring's guest address for that.
    log: (Option<DirtyLog>, Option<u64>),
}

impl SplitRing {
    /// The ring at `place`. `next_available` is corrected by [`Self::resume_after`] if requests
    /// are in flight.
    pub(super) fn new(
        memory: &Memory,
        place: RingPlace,
        next_available: u16,
        event_idx: bool,
    ) -> Result<Self, RingError> {
        if !place.size.is_power_of_two() || place.size > MAX_SIZE {
            return Err(RingError::Size(place.size.into()));
        }
        let [descriptors, available, used] = areas(memory, place).ok_or(RingError::Place)?;
        let next_used = used.load_u16(AT_IDX, Ordering::Acquire);
        Ok(Self {
            place,
            descriptors,
            available,
            used,
            next_available,
            next_used,
            considered: None,
            event_idx,
            log: (None, None),
        })
    }

    /// Marks what is written to the used ring in this log, if it also has an address there.
    pub(super) fn set_log(&mut self, log: Option<DirtyLog>) {
        self.log.0 = log;
    }

    /// Marks the used ring from guest address `used` on, if there also is a log.
    pub(super) fn log_used_at(&mut self, used: Option<u64>) {
        self.log.1 = used;
    }

    /// Marks `len` bytes of the used ring that were written.
    fn mark(&self, at: usize, len: usize) {
        if let (Some(log), Some(used)) = &self.log {
            log.mark(used.saturating_add(at as u64), len as u64);
        }
    }

    /// Looks the ring up again in a new memory table. If it isn't there (a front end that
    /// replaces a region removes it first), the old mapping of the same memory stays.
    pub(super) fn move_to(&mut self, memory: &Memory) {
        if let Some([descriptors, available, used]) = areas(memory, self.place) {
            (self.descriptors, self.available, self.used) = (descriptors, available, used);
        }
    }

    pub(super) fn descriptors(&self) -> &Area {
        &self.descriptors
    }

    /// Index of the next entry of the available ring that will be taken.
    pub(super) fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Index of the used ring.
    pub(super) fn used_idx(&self) -> u16 {
        self.next_used
    }

    /// Goes on after `taken` requests that were taken and not answered.
    pub(super) fn resume_after(&mut self, taken: u16) {
        self.next_available = self.next_used.wrapping_add(taken);
    }

    /// The next head that the driver made available. It counts as taken only after
    /// [`Self::advance`].
    pub(super) fn peek(&self) -> Result<Option<u16>, RingError> {
        let idx = self.available.load_u16(AT_IDX, Ordering::Acquire);
        let waiting = idx.wrapping_sub(self.next_available);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.place.size {
            return Err(RingError::Available(waiting));
        }
        let slot = usize::from(self.next_available % self.place.size);
        let head = self
            .available
            .load_u16(AT_RING + 2 * slot, Ordering::Relaxed);
        if head >= self.place.size {
            return Err(RingError::Head(head));
        }
        Ok(Some(head))
    }

    /// Takes the head that [`Self::peek`] showed.
    pub(super) fn advance(&mut self) {
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Asks the driver not to notify us: the ring is being looked at.
    pub(super) fn mute(&mut self) {
        // With event indexes a stale `avail_event` already does that.
        if !self.event_idx {
            let flag = low_half(VRING_USED_F_NO_NOTIFY);
            self.used.store_u16(AT_FLAGS, flag, Ordering::Relaxed);
            self.mark(AT_FLAGS, 2);
        }
    }

    /// Asks the driver to notify us about the next entry. The ring must be looked at once
    /// more afterwards.
    pub(super) fn unmute(&mut self) {
        let (at, value) = if self.event_idx {
            let at = AT_RING + 8 * usize::from(self.place.size);
            (at, self.next_available)
        } else {
            (AT_FLAGS, 0)
        };
        self.used.store_u16(at, value, Ordering::Relaxed);
        self.mark(at, 2);
        // Orders the store before the next look at the available ring.
        fence(Ordering::SeqCst);
    }

    /// Writes answer number `ahead` of a batch; the driver doesn't see it before
    /// [`Self::publish`].
    pub(super) fn answer(&self, ahead: u16, head: u16, len: u32) {
        let slot = usize::from(self.next_used.wrapping_add(ahead) % self.place.size);
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        bytes[4..].copy_from_slice(&len.to_le_bytes());
        self.used.write(AT_RING + 8 * slot, &bytes);
        self.mark(AT_RING + 8 * slot, bytes.len());
    }

    /// Publishes `count` answers.
    pub(super) fn publish(&mut self, count: u16) {
        self.next_used = self.next_used.wrapping_add(count);
        self.used
            .store_u16(AT_IDX, self.next_used, Ordering::Release);
        self.mark(AT_IDX, 2);
    }

    /// Whether the driver wants to be notified of what was published since this was last asked.
    pub(super) fn must_notify(&mut self) -> bool {
        // Orders the published index before the look at what the driver asked for.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = self.available.load_u16(AT_FLAGS, Ordering::Relaxed);
            return flags & low_half(VRING_AVAIL_F_NO_INTERRUPT) == 0;
        }
        let at = AT_RING + 2 * usize::from(self.place.size);
        let event = self.available.load_u16(at, Ordering::Relaxed);
        // VIRTIO 1.2, section 2.7.10.
        let new = self.next_used;
        self.considered
            .replace(new)
            .is_none_or(|old| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }
}

#[allow(clippy::cast_possible_truncation, reason = "both flags are 1")]
fn low_half(flag: u32) -> u16 {
    flag as u16
}

/// Descriptor table, available ring, used ring.
fn areas(memory: &Memory, place: RingPlace) -> Option<[Area; 3]> {
    let size = usize::from(place.size);
    let find = |address, len, alignment| {
        memory
            .area_at_user(address, len)
            .filter(|area| area.is_aligned(alignment))
    };
    Some([
        find(place.descriptors, DESCRIPTOR * size, 16)?,
        // Both end with an event index.
        find(place.available, AT_RING + 2 * size + 2, 2)?,
        find(place.used, AT_RING + 8 * size + 2, 4)?,
    ])
}
