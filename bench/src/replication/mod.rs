//! Replication as users have it: two polluxd on loopback, TLS between them, and this program in place of
//! the guest ([`pair`]).

mod content;
mod delta;
mod epochs;
mod fleet;
mod history;
mod initial;
mod pair;
mod peer;
mod resync;

use anyhow::{Context, Result};

use crate::figures::{Rows, publish};

type Measure = fn(&mut Rows) -> Result<()>;

/// Measures what has `only` in its name, and publishes.
pub(crate) fn run(only: &str) -> Result<()> {
    let mut rows = Rows::new("replication", only);
    let measurements: [(&str, Measure); 6] = [
        ("initial replication", initial::measure),
        ("a delta", delta::measure),
        ("what it costs the guest", epochs::measure),
        ("a long history", history::measure),
        ("what is shipped after a power cut", resync::measure),
        ("a replica host with many twins", fleet::measure),
    ];
    for (what, measure) in measurements {
        measure(&mut rows).with_context(|| format!("cannot measure {what}"))?;
    }
    publish("replication", &rows.figures)
}
