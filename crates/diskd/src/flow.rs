//! How much content is on its way from an owner to the segment writer.

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use block::Buffer;
use model::BLOCK_SIZE;

/// Content that staging reads ahead of the writer, per disk, in bytes.
const WINDOW: u64 = 2 << 20;

/// Why content was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was its turn. Waits while the window is full.
    Staged,
    /// The guest was about to overwrite it. Never waits; counts against the copy budget.
    Copied,
}

/// Buffers of these lengths are used again: most reads have one of them.
const USUAL: [usize; 2] = [64 << 10, 256 << 10];

/// Bytes that are being read, or were handed over and are not written yet.
#[derive(Debug, Default)]
pub struct Flow {
    staged: AtomicU64,
    copied: AtomicU64,
    waiting: Mutex<Vec<Waker>>,
    spare: Mutex<Vec<Buffer>>,
}

impl Flow {
    fn counter(&self, cause: Cause) -> &AtomicU64 {
        match cause {
            Cause::Staged => &self.staged,
            Cause::Copied => &self.copied,
        }
    }

    /// Bytes of saved old content that are in memory, or about to be.
    pub fn copied(&self) -> u64 {
        self.copied.load(Ordering::Acquire)
    }

    /// Counts `bytes` until the permit is dropped.
    pub fn take(self: &Arc<Self>, cause: Cause, bytes: u64) -> Permit {
        self.counter(cause).fetch_add(bytes, Ordering::AcqRel);
        Permit {
            flow: Arc::clone(self),
            cause,
            bytes,
        }
    }

    /// Waits until staging may read on.
    pub async fn room(&self) {
        let has_room = || self.staged.load(Ordering::Acquire) < WINDOW;
        poll_fn(|cx| {
            if has_room() {
                return Poll::Ready(());
            }
            self.waiters().push(cx.waker().clone());
            // It may have come between the look and the push.
            if has_room() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn spares(&self) -> std::sync::MutexGuard<'_, Vec<Buffer>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiters(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Some content counts in its [`Flow`] until this is dropped.
#[derive(Debug)]
pub struct Permit {
    flow: Arc<Flow>,
    cause: Cause,
    bytes: u64,
}

impl Permit {
    /// A buffer of `len` bytes to be read into; what it holds before is of no meaning.
    pub fn buffer(&self, len: usize) -> Buffer {
        let used = {
            let mut spares = self.flow.spares();
            let used = spares.iter().position(|spare| spare.len() == len);
            used.map(|used| spares.swap_remove(used))
        };
        used.unwrap_or_else(|| Buffer::zeroed(len))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let flow = &self.flow;
        flow.counter(self.cause)
            .fetch_sub(self.bytes, Ordering::AcqRel);
        if self.cause == Cause::Staged {
            let wakers = std::mem::take(&mut *flow.waiters());
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// What consecutive blocks of a sealed epoch hold.
pub enum Payload {
    /// Whole blocks that were read.
    Read(Buffer),
    /// So many blocks of zeroes that take no space: nothing was read.
    Zeroes(u64),
}

impl Payload {
    /// How much it is, in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read(content) => content.len() as u64,
            Self::Zeroes(blocks) => blocks * BLOCK_SIZE,
        }
    }

    #[cfg(test)]
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        match self {
            Self::Read(content) => content.to_vec(),
            Self::Zeroes(_) => vec![0; usize::try_from(self.bytes()).expect("small")],
        }
    }
}

/// Content of consecutive blocks of a sealed epoch.
pub struct Piece {
    /// Position of the disk in the segment's header.
    pub disk: u16,
    /// First block.
    pub block: u64,
    /// The content.
    pub content: Payload,
    /// Why it was read.
    pub cause: Cause,
    /// Kept until the content is written or dropped.
    pub permit: Permit,
}

impl Piece {
    /// It was written: what it took may be read into again.
    pub fn written(self) {
        if let Payload::Read(content) = self.content {
            let mut spares = self.permit.flow.spares();
            let kept: usize = spares.iter().map(Buffer::len).sum();
            // As much as the window takes.
            if USUAL.contains(&content.len()) && ((kept + content.len()) as u64) <= WINDOW {
                spares.push(content);
            }
        }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {} bytes of disk {} from block {} on",
            self.cause,
            self.content.bytes(),
            self.disk,
            self.block
        )
    }
}
