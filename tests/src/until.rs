//! Waiting for what another process does.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often is looked; far below what is waited for.
const LOOK: Duration = Duration::from_millis(25);

/// Looks until `look` finds something, and fails after `limit` with `what` was waited for.
///
/// # Errors
/// The limit was reached, or `look` failed.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("waited {} s in vain: {what}", limit.as_secs());
        }
        std::thread::sleep(LOOK);
    }
}
