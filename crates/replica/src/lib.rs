//! Replication between two hosts: the state machines (no I/O) and their thin drivers.
//!
//! ```text
//!        primary host                                     replica host
//!   Source (diskd, outbox)                           ReplicaHost (VM folder)
//!        ^                                                    ^
//!        | cut, seed, fold back                               | enrol, contact, stand down
//!   driver <--events/outputs--> sender             receiver --+--> journal
//!        |                                                    ^
//!        +---- Link ---- wire over TLS 1.3, both sides -------+
//! ```
//!
//! - [`identity`], [`trust`], [`certificate`], [`tls`]: who is at the other end. Everything above sees a
//!   [`Principal`](tls::Principal), never a certificate.
//! - [`authorization`]: whom of them this host receives twins from.
//! - [`wire`]: what is said, [`client`] and [`receiver`] say it.
//! - [`sender`]: what the primary does next, a pure function of what happened; [`driver`]
//!   carries it out over a [`Source`](source::Source) and a [`Link`](link::Link).
//! - [`run`] and [`standing`]: which of the two hosts may run the VM, and the durable record
//!   that the decision rests on; [`lease`]: how the replica knows that a silent primary is still;
//!   [`commands`]: what leads out of every stop.

#[cfg(test)]
mod arbiter;
pub mod authorization;
pub mod certificate;
pub mod client;
pub mod commands;
pub mod driver;
pub mod host;
pub mod identity;
mod incoming;
pub mod lease;
pub mod link;
pub mod outbox;
pub mod receiver;
pub mod report;
pub mod revocation;
pub mod run;
pub mod sender;
pub mod source;
pub mod standing;
pub mod tls;
pub mod trust;
pub mod wire;
