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

use crate::figures::{Figure, Goal, publish};

/// Bytes of the disk, if nothing else is said; written before it is measured.
const DISK: u64 = 512 << 20;

/// The rows that are wanted, and those that were measured.
struct Rows<'a> {
    only: &'a str,
    figures: Vec<Figure>,
}

impl Rows<'_> {
    /// Whether a row whose name begins like this is wanted.
    fn want(&self, begin: &str) -> bool {
        begin.contains(self.only) || self.only.starts_with(begin)
    }

    fn add(&mut self, name: impl Into<String>, unit: &'static str, goal: Goal, samples: &[f64]) {
        let name = format!("tracking.{}", name.into());
        self.figures.push(Figure::of(name, unit, goal, samples));
    }
}

type Measure = fn(&mut Rows) -> Result<()>;

/// Measures what has `only` in its name, and publishes.
pub(crate) fn run(only: &str) -> Result<()> {
    let mut rows = Rows {
        only: only.strip_prefix("tracking.").unwrap_or(only),
        figures: Vec::new(),
    };
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

/// Far below 2^52.
#[allow(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}
