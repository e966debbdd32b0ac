//! A workload that proves what a disk holds, and its verifier.
//!
//! The guest writes numbered records at slots that look random, flushes after each batch, then
//! makes a *commit record* durable that says how far it came. Nothing of the next batch is
//! issued before that, so that a copy of the disk can be judged by its content alone:
//!
//! ```text
//!   block 0      block 1      block 2 ...
//!   +----------+------------+--------+--------+--------+--
//!   | commit 2 | commit 3   | rec 7  |        | rec 2  |  record i lies at 2 + permutation(i)
//!   +----------+------------+--------+--------+--------+--
//!     write records of batch b -> flush -> write commit b -> flush -> batch b + 1
//! ```
//!
//! With the newest commit record on the disk saying `n`, and batches of `B`:
//!
//! - every record up to `n` is there and right: they were flushed;
//! - none above `n + B` is: it would have been issued before its commit was durable;
//! - at a [`Cut::Point`] with one writer, those above `n` are there without a gap, because a
//!   point holds exactly the writes issued before it.
//!
//! Record numbers wrap around the disk: a slot then holds the newest record that may be there.
//! The same code runs in the guest (`pollux-workload`) and judges images on the host.

mod device;
mod record;
mod verify;
mod write;

pub use device::Device;
pub use record::{BLOCK, Commit, FIRST_SLOT_BLOCK, RunId};
pub use verify::{Cut, Verified, VerifyError, verify};
pub use write::{Disk, Writer};

#[cfg(test)]
mod tests;
