//! The data-plane process of one VM: vhost-user-blk, tracker, epochs, control socket.
//!
//! ```text
//!   control socket --> server --> engine (control threads; compresses and writes segments)
//!                                   |  Order            ^ Delivery: content of sealed blocks
//!                                   v                   |
//!   guest <--> vhost_user <--> tracker <--> image <--> store       one owner thread per disk
//!                                 |
//!                               state (dirty maps in a mapped file)
//! ```
//!
//! - [`tracker`], [`staging`]: marks what changes; cut and staging of an epoch.
//! - [`state`]: what survives `kill -9`.
//! - [`cut`]: one instant for all disks.
//! - [`owner`], [`stack`], [`point`]: the thread of a disk, what the disk is made of.
//! - [`engine`], [`outbox`], [`server`]: what the control socket asks for, and the segment file.
//! - [`signals`]: the supervisor asks for an end in order.

pub mod config;
pub mod control;
pub mod cut;
pub mod engine;
mod epoch;
pub mod flow;
pub mod inherit;
pub mod nbd;
pub mod outbox;
pub mod owner;
pub mod point;
pub mod server;
pub mod signals;
mod sparse;
pub mod stack;
pub mod staging;
pub mod state;
pub mod syscalls;
pub mod tracker;
pub mod vhost_user;
