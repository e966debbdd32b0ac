//! The data-plane process of one VM: vhost-user-blk, tracker, epochs, control socket.
//!
//! ```text
//!   control socket --> server --> engine (control threads; compresses and writes segments)
//!                                   |  Order            ^ Delivery: content of sealed blocks
//!                                   v                   |
//!   guest <--> vhost_user <--> tracker <--> gate <--> layers       one owner thread per disk
//!                                 |
//!                               state (dirty maps in a mapped file)
//! ```
//!
//! - [`tracker`], [`staging`]: marks what changes; cut and staging of an epoch.
//! - [`state`]: what survives `kill -9`.
//! - [`intent`], [`ledger`]: what survives a power cut; `sweep`: what of it is over.
//! - `relation`, `recall`, `suspects`: for whom changes are tracked, what is known of a disk that is
//!   opened, what has to be compared.
//! - [`cut`]: one instant for all disks.
//! - [`owner`], [`fronts`]: the thread of a disk, through what the disk is reached.
//! - `stack`, `note`, `layer`, `plan`, `assemble`, [`point`]: what the disk is made of, and how that changes.
//! - [`engine`], [`outbox`], [`server`]: what the control socket asks for, and the segment file.
//! - [`signals`]: the supervisor asks for an end in order.

#[cfg(test)]
mod arming_tests;
mod assemble;
mod coarse;
pub mod config;
pub mod control;
pub mod cut;
pub mod engine;
mod epoch;
pub mod flow;
pub mod fronts;
#[doc(hidden)]
pub mod fuzzing;
mod holes;
pub mod inherit;
pub mod intent;
#[cfg(test)]
mod lab;
mod layer;
pub mod ledger;
#[cfg(test)]
mod litmus_tests;
pub mod nbd;
mod note;
pub mod outbox;
pub mod owner;
mod plan;
pub mod point;
mod recall;
mod relation;
pub mod server;
pub mod signals;
mod sparse;
mod stack;
pub mod staging;
pub mod state;
mod suspects;
mod sweep;
pub mod syscalls;
mod tally;
pub mod tracker;
#[cfg(test)]
mod tracking_lives;
mod turn;
pub mod vhost_user;
