//! The per-thread executor and the io_uring store.
//!
//! One [`Ring`] is one io_uring and one thread: an *owner*. Everything that touches
//! a disk runs there as local tasks, so that nothing on the data path is locked.
//!
//! ```text
//!            one turn of the loop (Ring::block_on)
//!   +-> run every task that is ready          (they push submission entries)
//!   |   one io_uring_enter: submit them all;  wait only if no task is ready
//!   +-- take the completions, ready their tasks
//!
//!   other threads --Sender::send--> queue + eventfd --> Mailbox::recv
//! ```
//!
//! - **Memory.** What the kernel may touch belongs to the operation, and the operation
//!   to the ring until its completion arrives. Dropping the future of an operation drops the
//!   interest in it and cancels what can be cancelled, never the memory.
//! - **Wakers** may be sent anywhere: woken on the owner they cost a push, woken elsewhere a
//!   lock and an eventfd.
//! - **Kernel.** Nothing above Linux 5.15 is needed. The ring is restricted to the few operations
//!   that are used here. Without io_uring there is an error that says how to allow it; a store
//!   on a pool of threads for such hosts comes later.

mod executor;
mod mailbox;
mod operation;
mod patience;
mod store;
mod wake;

pub use executor::{Ring, Unavailable};
pub use mailbox::{Mailbox, SendError, Sender, mailbox};
pub use patience::Patience;
pub use store::RingStore;
