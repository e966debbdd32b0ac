//! `bench [what]`: figures of Pollux beside those of its peers, into `target/bench`.
//!
//! Ratios are what counts: both sides run in one process of measuring, one after the other and
//! again, and the median of the pairs is the figure. Absolute numbers belong to the machine.

mod client;
mod dataplane;
mod failover;
mod figures;
mod load;
mod nbd;
mod raw;
mod replication;
mod scratch;
mod servers;
mod shipped;
mod side;
mod traces;
mod tracking;

use clap::{Parser, ValueEnum};

/// Measures Pollux and prints the figures.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// What to measure; everything if not given.
    what: Option<What>,
    /// Only what has this in its name; or the file of a trace.
    only: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// pollux-diskd against qemu-storage-daemon.
    Dataplane,
    /// What tracking of changes costs, and what is shipped after a crash.
    Tracking,
    /// What is shipped of what is written, for epochs of several lengths.
    Traces,
    /// Initial copies, deltas, histories and power cuts of real pairs of hosts.
    Replication,
    /// A twin that takes over, and the way home.
    Failover,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    pollux_tests::clean_up_on_signals(scratch::remove_all)?;
    let wanted = arguments
        .what
        .map_or(What::value_variants().to_vec(), |what| vec![what]);
    let only = arguments.only.as_deref().unwrap_or("");
    for what in wanted {
        match what {
            What::Dataplane => dataplane::run(only)?,
            What::Tracking => tracking::run(only)?,
            What::Traces => traces::run(only)?,
            What::Replication => replication::run(only)?,
            What::Failover => failover::run(only)?,
        }
    }
    Ok(())
}
