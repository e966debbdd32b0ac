//! The log of guest memory that we wrote, for live migration.
//!
//! The front end copies the guest's memory to another host while the guest runs, and asks in
//! this bitmap which 4 KiB pages changed under it (vhost-user specification, "Migration"): bit
//! `address / 4096`, lowest bit of a byte first. What must be marked, after it was written and
//! before the guest is told: the memory of reads, status bytes, and the used ring.
//!
//! The front end clears bits while we set them, so they are set atomically. Its file is checked as
//! guest memory is; a page beyond its end is not marked.

use std::fs::File;
use std::sync::Arc;

use super::memory::{Area, MemoryError};

/// Bytes of guest memory for each bit (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;

/// A mapped log; clones are the same log.
#[derive(Debug, Clone)]
pub(super) struct DirtyLog(Arc<Area>);

impl DirtyLog {
    /// The log of `len` bytes at `offset` of `file`.
    pub(super) fn open(file: &File, offset: u64, len: u64) -> Result<Self, MemoryError> {
        let shape = MemoryError::Log { offset, len };
        let Ok(bytes) = usize::try_from(len) else {
            return Err(shape);
        };
        if bytes == 0 {
            return Err(shape);
        }
        Ok(Self(Arc::new(Area::map(file, offset, bytes)?)))
    }

    /// Marks the pages of `len` bytes at guest address `guest`.
    pub(super) fn mark(&self, guest: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (first, last) = (guest / PAGE, guest.saturating_add(len - 1) / PAGE);
        let end = (self.0.len() as u64).min(last / 8 + 1);
        for byte in first / 8..end {
            // The bits of this byte from the first page on, and up to the last.
            let low = first.saturating_sub(byte * 8);
            let high = (last - byte * 8).min(7);
            let mask = (0xff << low) & (0xff >> (7 - high));
            let Ok(at) = usize::try_from(byte) else {
                unreachable!("a byte of a mapping")
            };
            self.0.set_bits(at, mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn log(len: u64) -> (File, DirtyLog) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        let log = DirtyLog::open(&file, 0, len).unwrap();
        (file, log)
    }

    fn pages(file: &File) -> Vec<u64> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let bits = bytes.len() as u64 * 8;
        let set = |bit: &u64| bytes[usize::try_from(bit / 8).unwrap()] & (1 << (bit % 8)) != 0;
        (0..bits).filter(set).collect()
    }

    #[test]
    fn every_page_that_a_range_touches_is_marked_and_no_other() {
        for first in 0..20 {
            for last in first..28 {
                let (file, log) = log(4);
                // From the last byte of the first page to the first byte of the last one.
                let from = first * PAGE + if first == last { 0 } else { PAGE - 1 };
                log.mark(from, last * PAGE + 1 - from);
                assert_eq!(pages(&file), (first..=last).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn marks_are_added_to_those_of_others() {
        let (file, log) = log(1);
        file.write_all_at(&[0x81], 0).unwrap();
        log.mark(3 * PAGE, 1);
        assert_eq!(pages(&file), [0, 3, 7]);
    }

    #[test]
    fn a_range_beyond_the_log_is_marked_as_far_as_it_goes() {
        let (file, log) = log(2);
        log.mark(15 * PAGE, 100 * PAGE);
        log.mark(u64::MAX - 1, u64::MAX);
        log.mark(16 * PAGE, 1);
        log.mark(0, 0);
        assert_eq!(pages(&file), [15]);
    }

    #[test]
    fn a_log_that_its_file_does_not_hold_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        for (offset, len) in [(0, 0), (0, 4097), (1, 4096), (u64::MAX, 2), (0, u64::MAX)] {
            assert!(
                DirtyLog::open(&file, offset, len).is_err(),
                "{offset} {len}"
            );
        }
        assert!(DirtyLog::open(&file, 4095, 1).is_ok());
    }
}
