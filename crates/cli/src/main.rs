//! `pollux`: the command line.

use std::process::ExitCode;

use clap::Parser;
use pollux_cli::{Arguments, run};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
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
