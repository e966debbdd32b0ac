//! What a client sends: many small requests in one call, large content straight to its place.

use block::Buffer;

use super::connection::{Connection, Ended};

/// Bytes that are received at once: a queue of 32 writes of 4 KiB, and some. Memory that is not used
/// takes none.
const CAPACITY: usize = 256 << 10;

/// Content from this length on is received where it belongs; what precedes it is kept short, so that
/// little of it is copied.
const LARGE: usize = 64 << 10;

/// Bytes that are received before content that is expected to be large.
const SHORT: usize = 4 << 10;

/// Received and not yet looked at.
pub(super) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// The last call gave less than there was room for: there is nothing more yet.
    dry: bool,
    /// How much to receive at once.
    reach: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
            dry: true,
            reach: CAPACITY,
        }
    }

    /// The next `len` bytes, at most 128 KiB.
    pub(super) async fn take(&mut self, from: &Connection, len: usize) -> Result<&[u8], Ended> {
        while self.end - self.start < len {
            if self.start == self.end || CAPACITY - self.start < len {
                self.bytes.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            let most = CAPACITY.min(self.end + self.reach.max(len));
            let room = &mut self.bytes[self.end..most];
            self.end += from.receive(None, room, &mut self.dry).await?;
        }
        let taken = self.start..self.start + len;
        self.start = taken.end;
        Ok(&self.bytes[taken])
    }

    /// Fills `buffer` with what comes next.
    pub(super) async fn fill(
        &mut self,
        from: &Connection,
        buffer: &mut Buffer,
    ) -> Result<(), Ended> {
        let len = buffer.len();
        self.reach = if len >= LARGE { SHORT } else { CAPACITY };
        let mut done = len.min(self.end - self.start);
        buffer.copy_from_slice(0, &self.bytes[self.start..self.start + done]);
        self.start += done;
        while done < len {
            // Everything that was here is in the buffer.
            (self.start, self.end) = (0, 0);
            let after = &mut self.bytes[..self.reach];
            let rest = Some((&mut *buffer, done));
            let moved = from.receive(rest, after, &mut self.dry).await?;
            self.end = moved.saturating_sub(len - done);
            done += moved - self.end;
        }
        Ok(())
    }

    /// Passes over the next `len` bytes.
    pub(super) async fn skip(&mut self, from: &Connection, len: u64) -> Result<(), Ended> {
        let mut left = len;
        loop {
            let here = self.end - self.start;
            let over = usize::try_from(left).map_or(here, |left| left.min(here));
            self.start += over;
            left -= over as u64;
            if left == 0 {
                return Ok(());
            }
            self.start = 0;
            self.end = from.receive(None, &mut self.bytes, &mut self.dry).await?;
        }
    }
}
