//! `pollux`: commands and their output.
//!
//! ```text
//!   arguments --clap--> args --run--> api::Client --HTTP--> polluxd
//!                                |
//!                                '--> show: tables for people, JSON for programs
//! ```
//!
//! Nothing is decided here: what is refused, polluxd refuses, and the exit code is the
//! problem's. Only what cannot even be asked is refused on this side.

mod args;
mod console;
mod export;
mod run;
mod show;
mod show_disk;

pub use args::Arguments;
pub use run::run;
