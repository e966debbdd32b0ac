//! The per-thread executor and the store over io_uring.
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
//! - **Kernel.** Nothing above Linux 5.15 is needed. The io_uring is restricted to the few
//!   operations that are used here. Where there is none (containers, kernel.io_uring_disabled) the
//!   same is done by poll(2) and a small pool of threads, under the same rules; [`Ring::kind`] and
//!   [`Ring::notice`] say so.
//!
//! ```text
//!   Ring, RingStore --Call--> Engine --+--> uring: submission and completion queue
//!                                      '--> pool:  poll(2), timers, threads that block
//! ```

mod call;
mod engine;
mod executor;
mod mailbox;
mod operation;
mod patience;
mod pool;
mod store;
mod uring;
mod wake;

pub use engine::{Kind, Unavailable};
pub use executor::Ring;
pub use mailbox::{Mailbox, SendError, Sender, mailbox};
pub use patience::Patience;
pub use store::RingStore;
