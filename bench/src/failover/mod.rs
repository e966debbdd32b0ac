//! A twin that takes over ([`takeover`]), and the way home ([`failback`]).

mod failback;
mod takeover;

use anyhow::{Context, Result};

use crate::figures::{Rows, publish};

/// Measures what has `only` in its name, and publishes.
pub(crate) fn run(only: &str) -> Result<()> {
    let mut rows = Rows::new("failover", only);
    takeover::measure(&mut rows).context("cannot measure a takeover")?;
    failback::measure(&mut rows).context("cannot measure a failback")?;
    publish("failover", &rows.figures)
}
