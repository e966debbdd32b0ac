//! Fuzz targets: everything that reads bytes of guests, peers, disks and users.
//!
//! A target is a module with a function `run`, which must return whatever it is given, and a
//! function `seeds`, which makes inputs that get deep. `fuzz_targets/` turns each into a program,
//! in two builds:
//!
//! - **The fuzzing build** (`make fuzz`): libFuzzer on stable Rust. Coverage comes from LLVM's pass
//!   `sancov-module`, which needs no nightly compiler; overflow checks and debug assertions are on.
//!   (AddressSanitizer would need nightly. The code that is reached is safe Rust, but for a few
//!   lines.) `cargo fuzz` finds the layout that it expects.
//! - **The ordinary build**: the program runs the inputs that it is given, so that a crash can be
//!   looked at in a debugger, and `cargo test` runs the seeds and the inputs in `regressions/`.
//!
//! What was found once stays in `regressions/TARGET/`.

pub mod certificates;
pub mod change_set;
pub mod control;
pub mod intent_log;
pub mod journal_index;
pub mod journal_run;
mod memory;
pub mod nbd;
pub mod overlay_map;
pub mod peer_json;
pub mod receiver;
pub mod segment;
pub mod vhost_user;
pub mod vm_toml;

use std::path::Path;
use std::process::ExitCode;

/// A target by its name.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of its program.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of its format, which the fuzzer puts into its inputs.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "vhost_user_messages",
        run: vhost_user::messages,
        seeds: vhost_user::message_seeds,
        words: &[],
    },
    Target {
        name: "vhost_user_requests",
        run: vhost_user::requests,
        seeds: vhost_user::request_seeds,
        words: &[],
    },
    Target {
        name: "vhost_user_inflight",
        run: vhost_user::inflight,
        seeds: vhost_user::inflight_seeds,
        words: &[],
    },
    Target {
        name: "nbd_connection",
        run: nbd::connection,
        seeds: nbd::connection_seeds,
        words: &["IHAVEOPT", "guest", "base:allocation"],
    },
    Target {
        name: "nbd_option",
        run: nbd::option,
        seeds: nbd::option_seeds,
        words: &["guest", "base:allocation"],
    },
    Target {
        name: "control",
        run: control::run,
        seeds: control::seeds,
        words: control::WORDS,
    },
    Target {
        name: "peer_json",
        run: peer_json::run,
        seeds: peer_json::seeds,
        words: peer_json::WORDS,
    },
    Target {
        name: "receiver",
        run: receiver::run,
        seeds: receiver::seeds,
        words: receiver::WORDS,
    },
    Target {
        name: "peer_certificate",
        run: certificates::peer,
        seeds: certificates::peer_seeds,
        words: &["castor", "*.example.com"],
    },
    Target {
        name: "identity_files",
        run: certificates::files,
        seeds: certificates::file_seeds,
        words: certificates::WORDS,
    },
    Target {
        name: "vm_toml",
        run: vm_toml::run,
        seeds: vm_toml::seeds,
        words: vm_toml::WORDS,
    },
    Target {
        name: "segment",
        run: segment::run,
        seeds: segment::seeds,
        words: segment::WORDS,
    },
    Target {
        name: "journal_index",
        run: journal_index::run,
        seeds: journal_index::seeds,
        words: journal_index::WORDS,
    },
    Target {
        name: "change_set",
        run: change_set::run,
        seeds: change_set::seeds,
        words: &["POLLUXCH"],
    },
    Target {
        name: "journal_run",
        run: journal_run::run,
        seeds: journal_run::seeds,
        words: journal_run::WORDS,
    },
    Target {
        name: "intent_log",
        run: intent_log::run,
        seeds: intent_log::seeds,
        words: &[],
    },
    Target {
        name: "overlay_map",
        run: overlay_map::run,
        seeds: overlay_map::seeds,
        words: &[],
    },
];

/// The program of a target.
#[macro_export]
macro_rules! target {
    ($run:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $run(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::replay($run)
        }
    };
}

/// Runs the files named on the command line.
#[must_use]
pub fn replay(run: fn(&[u8])) -> ExitCode {
    let files: Vec<_> = std::env::args_os().skip(1).collect();
    if files.is_empty() {
        eprintln!("This build runs the inputs that it is given; `make fuzz` looks for new ones.");
        return ExitCode::FAILURE;
    }
    for file in &files {
        match std::fs::read(Path::new(file)) {
            Ok(data) => run(&data),
            Err(error) => {
                eprintln!("cannot read {}: {error}", Path::new(file).display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
