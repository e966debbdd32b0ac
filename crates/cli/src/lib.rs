//! `pollux`: commands and their output.
//!
//! ```text
//!   arguments --aliases, clap--> args --run--> api::Client --HTTP--> polluxd
//!                                |
//!                                |--> show: tables for people, JSON for programs
//!                                '--> segment: files that are read without polluxd
//! ```
//!
//! Nothing is decided here: what is refused, polluxd refuses, and the exit code is the
//! problem's. Only what cannot even be asked is refused on this side, and what is wrong with a file
//! that is read here.

mod aliases;
mod args;
mod console;
mod new_file;
mod replica_server;
mod run;
mod segment;
mod show;
mod show_disk;
mod show_event;
mod show_point;
mod show_replica;
mod show_tracking;

pub use aliases::{translate, wants_json};
pub use args::Arguments;
pub use run::{refuse, run};
