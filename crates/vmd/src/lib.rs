//! The supervisor of one VM: holds sockets, starts and reaps diskd and QEMU.
//!
//! ```text
//!   polluxd --control socket--> pollux-vmd --starts, reaps, kills--> pollux-diskd, QEMU
//!                                   |                                     ^
//!                                   '-- listening sockets, held for ------'
//!                                       every diskd that comes
//! ```
//!
//! It exists so that polluxd and diskd can die, at once if need be, while the guest runs on:
//! a client that connects while no diskd runs waits in the backlog of a socket that vmd holds,
//! and the next diskd accepts it. It is kept tiny because its own death is the VM's.
//!
//! Invariants:
//!
//! - One vmd per control socket: the lock `<control>.lock` is taken before any socket file is
//!   touched, and the kernel drops it with the process, however it ends.
//! - A new diskd starts only after the old one was reaped.
//! - Both children die with vmd (`PR_SET_PDEATHSIG`), so that nothing runs unsupervised.
//! - A guest whose lease is over is stopped, whatever polluxd does ([`control::Lease`]).
//! - diskd is asked to end only after the guest is gone.
//!
//! What survives: the death of polluxd (vmd makes itself the leader of its own session) and
//! any number of deaths of diskd. Nothing is written to disk; a vmd that is started after
//! another one died begins with sockets of its own and no guest.

pub mod config;
pub mod control;

mod backoff;
mod connection;
mod lease;
mod process;
mod replace;
mod signals;
mod sockets;
mod supervisor;

pub use supervisor::{Error, run};
