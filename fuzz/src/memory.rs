//! A store in memory, and an executor for futures that never have to wait for it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use block::{Buffer, Done, Fault, Store};

const PAGE: u64 = 4096;

/// Sparse bytes; clones are the same store.
#[derive(Clone, Default)]
pub(crate) struct Memory(Rc<RefCell<BTreeMap<u64, Vec<u8>>>>);

impl Memory {
    /// Stores `from` at byte `at`.
    pub(crate) fn put(&self, at: u64, from: &[u8]) {
        let mut pages = self.0.borrow_mut();
        for (at, byte) in (at..).zip(from) {
            let page = pages.entry(at / PAGE).or_insert_with(|| vec![0; 4096]);
            page[usize::try_from(at % PAGE).expect("inside a page")] = *byte;
        }
    }

    /// The byte at `at`.
    fn get(&self, at: u64) -> u8 {
        let pages = self.0.borrow();
        let page = pages.get(&(at / PAGE));
        page.map_or(0, |page| {
            page[usize::try_from(at % PAGE).expect("inside a page")]
        })
    }

    /// Bytes from `at` on.
    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        (at..).take(len).map(|at| self.get(at)).collect()
    }

    fn clear(&self, at: u64, len: u64) {
        self.put(at, &vec![0; usize::try_from(len).expect("a few sectors")]);
    }
}

impl Store for Memory {
    fn alignment(&self) -> u64 {
        1
    }
    async fn read(&self, at: u64, mut into: Buffer) -> Done {
        let bytes = self.bytes(at, into.len());
        into.copy_from_slice(0, &bytes);
        Done {
            outcome: Ok(()),
            buffer: Some(into),
        }
    }
    async fn write(&self, at: u64, from: Buffer) -> Done {
        self.put(at, &from.to_vec());
        Done {
            outcome: Ok(()),
            buffer: Some(from),
        }
    }
    async fn punch(&self, at: u64, len: u64) -> Result<(), Fault> {
        self.clear(at, len);
        Ok(())
    }
    async fn zero(&self, at: u64, len: u64) -> Result<(), Fault> {
        self.clear(at, len);
        Ok(())
    }
    async fn sync(&self) -> Result<(), Fault> {
        Ok(())
    }
    async fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>, Fault> {
        Ok(Some(range))
    }
}

/// Runs a future over such stores, of which only one is run at a time.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits, and there is nothing to wait for"),
    }
}

/// Runs a future over such stores that gives way now and then.
pub(crate) fn soon<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut turns = (0..1000).map(|_| {
        future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    });
    match turns.find(Poll::is_ready) {
        Some(Poll::Ready(value)) => value,
        _ => panic!("it waits, and there is nothing to wait for"),
    }
}
