//! Whole-system tests with real guests, the demo, and their harness.
//!
//! Everything here goes through the programs that users run: a [`Host`] is a
//! `polluxd` with a state folder of its own, driven with the command line
//! `pollux`. Two of them on loopback, with a [`Wire`] between them that can be
//! cut, are a primary and its replica.

pub mod churn;
mod guest;
mod host;
mod interrupted;
mod judge;
mod pair;
pub mod power;
mod shell;
mod until;
mod wire;

pub use guest::{
    BAD_NEWS, FIRST_WRITE, FOUND, create_idle, create_local_writer, create_shell, create_writer,
    device_writes_on, flushed, flushed_on, found_of, kill_diskd, no_bad_news, nothing_pending,
    since_start, tracked, writes_on,
};
pub use host::{Host, Refusal, Scratch, freeze, json_u64, kill, processes_that_name, text, thaw};
pub use interrupted::clean_up_on_signals;
pub use judge::judge;
pub use pair::{Pair, planned, point_name};
pub use shell::{ask, device, shell_waits, start_shell, type_in, write_on};
pub use until::until;
pub use wire::Wire;
