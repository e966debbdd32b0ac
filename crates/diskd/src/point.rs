//! A disk of a recovery point, read-only, for what lies above it.
//!
//! Reading a point blocks (files, decompression), and an owner must not: a few threads do it.

use std::future::poll_fn;
use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use block::{Buffer, Device, Done, Fault, Image, Op, Place};
use journal::{JournalError, PointImage};
use model::SECTOR_SIZE;
use tracing::Span;

use crate::sparse::Sparse;

/// Threads of a disk: reads of the point that run at once.
const THREADS: usize = 4;

/// See the module. Its threads end when it is dropped.
pub struct PointDevice {
    reader: Arc<Reader>,
    jobs: Sender<Job>,
}

/// What the threads share.
struct Reader {
    image: PointImage,
    faults: Sparse,
    /// That of the owner thread: says which disk it is.
    span: Span,
}

struct Job {
    at: u64,
    into: Buffer,
    answer: Answer,
}

#[derive(Default)]
struct Slot(Mutex<(Option<Done>, Option<Waker>)>);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, (Option<Done>, Option<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the outcome goes. Dropped without one it says that the read failed.
struct Answer(Arc<Slot>);

impl Answer {
    fn give(&self, done: Done) {
        let waker = {
            let mut slot = self.0.lock();
            slot.0.get_or_insert(done);
            slot.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.give(Done {
            outcome: Err(Fault::Os(libc::EIO)),
            buffer: None,
        });
    }
}

impl PointDevice {
    /// A device that reads `image`.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(image: PointImage) -> io::Result<Self> {
        let reader = Arc::new(Reader {
            image,
            faults: Sparse::default(),
            span: Span::current(),
        });
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let (reader, queue) = (Arc::clone(&reader), Arc::clone(&queue));
            std::thread::Builder::new()
                .name("point".to_owned())
                .spawn(move || reader.span.in_scope(|| work(&reader, &queue)))?;
        }
        Ok(Self { reader, jobs })
    }
}

fn work(reader: &Reader, queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            at,
            mut into,
            answer,
        }) = job
        else {
            return;
        };
        let mut bytes = vec![0; into.len()];
        let outcome = reader.image.read_at(at, &mut bytes).map_err(|error| {
            if let Some(so_far) = reader.faults.next() {
                let (len, error) = (bytes.len(), crate::engine::chain(&error));
                tracing::error!(at, len, error, so_far, "cannot read the point");
            }
            fault(&error)
        });
        if outcome.is_ok() {
            into.copy_from_slice(0, &bytes);
        }
        answer.give(Done {
            outcome,
            buffer: Some(into),
        });
    }
}

fn fault(error: &JournalError) -> Fault {
    match error {
        JournalError::Range { .. } => Fault::Range,
        JournalError::Io { source, .. } => Fault::Os(source.raw_os_error().unwrap_or(libc::EIO)),
        _ => Fault::Corrupt,
    }
}

impl Device for PointDevice {
    fn size(&self) -> u64 {
        Image::size(&self.reader.image)
    }

    async fn run(&self, op: Op) -> Done {
        let (at, len) = op.range();
        let inside = at
            .checked_add(len)
            .is_some_and(|end| end <= Device::size(self));
        if !inside || (at | len) % SECTOR_SIZE != 0 {
            return op.refuse(Fault::Range);
        }
        match op {
            Op::Read { at, into } => {
                let slot = Arc::new(Slot::default());
                let answer = Answer(Arc::clone(&slot));
                // With all threads gone the answer is dropped, and says so.
                drop(self.jobs.send(Job { at, into, answer }));
                poll_fn(|cx| {
                    let mut slot = slot.lock();
                    if let Some(done) = slot.0.take() {
                        return Poll::Ready(done);
                    }
                    slot.1 = Some(cx.waker().clone());
                    Poll::Pending
                })
                .await
            }
            Op::Flush => Done {
                outcome: Ok(()),
                buffer: None,
            },
            Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. } => {
                op.refuse(Fault::ReadOnly)
            }
        }
    }
}

/// Asking does not wait for its content, only for pages of its index that were not used lately.
impl Image for PointDevice {
    fn size(&self) -> u64 {
        Image::size(&self.reader.image)
    }

    async fn translate(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>, Place) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        self.reader.image.translate(range, visit).await
    }
}

#[cfg(test)]
#[path = "point_tests.rs"]
mod tests;
