//! `pollux`: the command line.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use pollux_cli::{Arguments, refuse, run, translate, wants_json};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let json = wants_json(&words);
    let arguments = match translate(words) {
        Ok(words) => Arguments::parse_from(words),
        Err(problem) => return refuse(&problem, json),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: pollux: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(arguments));
    // A thread may still wait for the keyboard.
    runtime.shutdown_background();
    code
}
