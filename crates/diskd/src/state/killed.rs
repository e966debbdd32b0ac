//! A kill between two stores, in tests.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    /// Stores that are left before the kill.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Killed;

/// Called before every store.
pub(super) fn maybe() {
    match LEFT.get() {
        None => {}
        Some(0) => resume_unwind(Box::new(Killed)),
        Some(left) => LEFT.set(Some(left - 1)),
    }
}

/// Runs `work` up to and without its store number `stores`; what it is in the middle of is left as
/// it is. What it returned, if it came to its end.
pub(super) fn after<T>(stores: u64, work: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(stores));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    LEFT.set(None);
    match outcome {
        Ok(value) => Some(value),
        Err(cause) if cause.is::<Killed>() => None,
        Err(cause) => resume_unwind(cause),
    }
}
