//! Waiting for what another process does.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// From one look to the next, at first and at most: a look is a process in general, and must not take the
/// processor from what is waited for.
const FIRST: Duration = Duration::from_millis(25);
const LONGEST: Duration = Duration::from_millis(200);

/// Looks until `look` finds something, and fails after `limit` with `what` was waited for.
///
/// # Errors
/// The limit was reached, or `look` failed.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let (start, mut pause) = (Instant::now(), FIRST);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("waited {} s in vain: {what}", limit.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(LONGEST);
    }
}
