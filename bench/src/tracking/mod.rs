//! What tracking of changes costs, and what is shipped after a crash: beside a disk that is not tracked,
//! QEMU's persistent bitmap, and a full copy of each write to a log.
//!
//! Nothing is replicated anywhere: what polluxd asks of diskd is asked by this program ([`primary`]),
//! and in place of being sent a segment is read and hashed. The other host's part of the work is none
//! of the guest's.

mod cold;
mod cost;
mod epochs;
mod kill;
mod memory;
mod primary;

use anyhow::{Context, Result};

use crate::figures::{Rows, publish};

/// Bytes of the disk, if nothing else is said; written before it is measured.
const DISK: u64 = 512 << 20;

type Measure = fn(&mut Rows) -> Result<()>;

/// Measures what has `only` in its name, and publishes.
pub(crate) fn run(only: &str) -> Result<()> {
    let mut rows = Rows::new("tracking", only);
    let measurements: [(&str, Measure); 5] = [
        ("the cost of tracking", cost::measure),
        ("first writes", cold::measure),
        ("epochs", epochs::measure),
        ("what is shipped after a kill", kill::measure),
        ("memory", memory::measure),
    ];
    for (what, measure) in measurements {
        measure(&mut rows).with_context(|| format!("cannot measure {what}"))?;
    }
    publish("tracking", &rows.figures)
}
