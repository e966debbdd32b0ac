//! `polluxd`: the daemon of one host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use pollux_hostd::{Options, serve};
use tracing_subscriber::EnvFilter;

/// The daemon of a Pollux host: virtual machines, and their twins on other hosts.
///
/// Guests run on when it ends, however it ends; the next one adopts them.
#[derive(Debug, Parser)]
#[command(name = "polluxd", version)]
struct Arguments {
    /// Folder for VMs, twins, identity and peers; it survives a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pollux")]
    state: PathBuf,
    /// Folder for sockets; best on a tmpfs
    #[arg(long, value_name = "DIR", default_value = "/run/pollux")]
    run: PathBuf,
    /// Name of this host, by which other hosts know it [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// Where other hosts reach this one; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8443")]
    replica_listen: SocketAddr,
    /// Where `pollux` reaches it [default: api.sock in the run folder]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("POLLUX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let name = arguments.name.unwrap_or_else(|| {
        let uname = rustix::system::uname();
        uname.nodename().to_string_lossy().into_owned()
    });
    let options = Options {
        socket: arguments
            .socket
            .unwrap_or_else(|| arguments.run.join("api.sock")),
        state: arguments.state,
        run: arguments.run,
        name,
        replica_listen: arguments.replica_listen,
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: polluxd: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(serve(options));
    // What waits for guests or partners is simply dropped.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(problem.code.exit())
        }
    }
}
