//! What is known of a disk that is opened.
//!
//! | state of this boot | log of this disk | then |
//! |---|---|---|
//! | tracked | of the same relationship | exact |
//! | tracked | none, or not to be trusted | exact; a new log, everything armed |
//! | none, or untracked | any | tracked again; what is armed is suspect |
//! | none, or untracked | not to be trusted | untracked: for whom is unknown, and the log is removed. Whoever tracks begins with everything suspect |
//! | none, or untracked | none | untracked |
//!
//! Everything is suspect besides if there is a [`Doubt`]. Suspicions are noted before what led to them is
//! forgotten (the stamp, the note of the stack, the failed flush): killed in between, the next process
//! comes to the same.

use std::ops::Range;

use block::{Fault, Store};
use model::BLOCK_SIZE;

use crate::intent::{IntentLog, LogError, Looks};
use crate::ledger::Ledger;
use crate::note::at_a_point;
use crate::state::{DiskState, Marks};

/// Why nobody can tell how a disk differs from its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Doubt {
    /// Writes may be lost.
    #[error("a flush failed before the disk was closed")]
    FailedFlush,
    /// Another stack, not known to read the same.
    #[error("the disk has another stack than before")]
    Stack,
    /// Another file in the place of one of its own.
    #[error("a file of the disk is another one than before")]
    Replaced,
    /// The files don't look as they did.
    #[error("the disk was changed while it was closed")]
    Changed,
    /// New regions could not be armed.
    #[error("the write-intent log cannot be written")]
    Log,
}

/// Brings `ledger` and `state` to what is known; then the disk may be written to. Its files look like
/// `looks`, if they are all there.
///
/// # Errors
/// The write-intent log can neither be written nor removed.
pub(crate) async fn recall<S: Store>(
    ledger: &Ledger<S>,
    state: &DiskState,
    looks: Option<Looks>,
    doubt: Option<Doubt>,
) -> Result<(), Fault> {
    let found = ledger.find().await;
    if let Err(error) = &found {
        let why = crate::engine::chain(error);
        tracing::warn!(why, "nobody knows what the write-intent log says");
    }
    let tracked = state.relationship();
    let of_log = found.as_ref().ok().and_then(Option::as_ref);
    let Some(relationship) = tracked.or(of_log.map(IntentLog::relationship)) else {
        // Read by a later process after all, it would not tell of what is written until then.
        return match found {
            Err(_) => ledger
                .end()
                .map_err(|error| Fault::Os(error.raw_os_error().unwrap_or(libc::EIO))),
            Ok(_) => Ok(()),
        };
    };
    let found = found.ok().flatten();
    let size = state.blocks() * BLOCK_SIZE;
    let all = 0..state.regions();
    let Some(log) = found.filter(|log| log.relationship() == relationship) else {
        ledger.begin(relationship, size).await;
        if let Some(doubt) = doubt {
            say(doubt);
            state.suspect(all);
        }
        return Ok(());
    };
    let since = |closed| looks.is_none_or(|now| now.is_changed_since(&closed));
    let changed = log.closed().is_some_and(since);
    // A log that was kept above a point goes on above the file that holds it.
    let noted = log.identity().filter(|files| *files != at_a_point());
    let other = noted.is_some_and(|files| files != ledger.identity());
    let mut doubt = doubt
        .or(other.then_some(Doubt::Replaced))
        .or(changed.then_some(Doubt::Changed));
    let log = ledger.keep(log);
    if let Err(error) = prepare(&log, size, doubt.map(|_| all.clone())).await {
        ledger.or_lose(&log, Err(error))?;
        doubt = doubt.or(tracked.is_none().then_some(Doubt::Log));
    }
    if let Some(doubt) = doubt {
        say(doubt);
    }
    if tracked.is_none() {
        let suspect = match doubt {
            Some(_) => vec![all],
            None => runs(&log, all),
        };
        state.track(relationship, Marks::Suspect(&suspect));
    } else if doubt.is_some() {
        state.suspect(all);
    }
    let opened = log.opened(ledger.identity()).await;
    ledger.or_lose(&log, opened)
}

fn say(doubt: Doubt) {
    tracing::warn!(%doubt, "the whole disk has to be compared with its replica");
}

/// Arms what the disk has grown by, and `regions`.
async fn prepare<S: Store>(
    log: &IntentLog<S>,
    size: u64,
    regions: Option<Range<u64>>,
) -> Result<(), LogError> {
    log.grow(size).await?;
    match regions {
        Some(regions) => log.arm(regions).await,
        None => Ok(()),
    }
}

fn runs<S: Store>(log: &IntentLog<S>, within: Range<u64>) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut from = within.start;
    while let Some(run) = log.next_armed(from..within.end) {
        from = run.end;
        found.push(run);
    }
    found
}
