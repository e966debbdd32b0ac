//! What a primary has that its twin does not: blocks marked in diskd, and segments that wait in
//! the outbox.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diskd::control::{MAX_LINE, Reply, Request};
use model::{Bytes, Code, Problem, RelationshipId};
use tokio::time::{Instant, timeout_at};

use super::replicate::DriverHandle;
use super::source::{DiskdSource, segments};
use crate::lines::Lines;

/// How long diskd may take to answer; whoever asks to stand down waits for it.
const LIMIT: Duration = Duration::from_secs(1);

/// How much waits to be sent; none when nobody can tell. What is being staged at this moment is
/// not in it.
pub(crate) async fn pending(socket: &Path, home: &Path) -> Option<Bytes> {
    let marked = marked(socket).await.ok()?;
    let staged = staged(home).ok()?;
    Some(Bytes(marked.saturating_add(staged)))
}

/// Of a VM that does not run and is asked to stand down.
pub(super) struct Unsent {
    pub(super) thing: String,
    pub(super) socket: PathBuf,
    pub(super) home: PathBuf,
    pub(super) relationship: RelationshipId,
}

impl Unsent {
    /// [`seen`](Self::seen), once the driver has sent all, or at the time `limit`.
    pub(super) async fn seen_by(
        &self,
        limit: Instant,
        driver: Option<&mut DriverHandle>,
    ) -> Result<(), Problem> {
        let Some(driver) = driver else {
            return self.seen().await;
        };
        loop {
            let seen = self.seen().await;
            if seen.is_ok() || timeout_at(limit, driver.moved()).await.is_err() {
                return seen;
            }
        }
    }

    /// Refuses if something is seen that was not sent. What is being staged is not seen.
    async fn seen(&self) -> Result<(), Problem> {
        match pending(&self.socket, &self.home).await {
            Some(Bytes(0)) => Ok(()),
            Some(pending) => Err(self.refusal(format!(
                "has {pending} there that the twin does not have yet"
            ))),
            None => Err(self.unknown("its diskd does not answer")),
        }
    }

    /// [`seen`](Self::seen), once no driver runs: exact, and after a reboot too.
    pub(super) async fn counted(&self) -> Result<(), Problem> {
        // A diskd that has not tracked since its start has marked nothing.
        let request = Request::Track {
            relationship: self.relationship,
            begin: false,
        };
        match ask(&self.socket, &request).await {
            Ok(Reply::Tracking { .. }) => self.seen().await,
            _ => Err(self.unknown("its diskd does not answer")),
        }
    }

    /// Nobody can tell how much there is.
    pub(super) fn unknown(&self, why: &str) -> Problem {
        self.refusal(format!(
            "may have changes there that the twin does not have yet: {why}"
        ))
    }

    fn refusal(&self, reason: String) -> Problem {
        let way_out = "Wait until `pollux replication status` there shows nothing pending, or \
                       take over without it with --force --because STATEMENT";
        Problem::new(Code::Conflict, &self.thing, reason, way_out)
    }
}

/// Bytes of the whole segments in the outbox.
fn staged(home: &Path) -> io::Result<u64> {
    let outbox = DiskdSource::outbox(home);
    if !outbox.exists() {
        return Ok(0);
    }
    segments(&outbox)?.iter().try_fold(0_u64, |sum, file| {
        match std::fs::metadata(file) {
            Ok(meta) => Ok(sum.saturating_add(meta.len())),
            // Acknowledged meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(sum),
            Err(error) => Err(error),
        }
    })
}

/// Bytes marked in all disks, and those of which nobody can tell.
async fn marked(socket: &Path) -> Result<u64, Problem> {
    match ask(socket, &Request::Status).await? {
        Reply::Status { disks, .. } => {
            let pending = disks.iter().map(|disk| {
                let tracking = disk.tracking.as_ref();
                let suspect = tracking.map_or(0, |tracking| tracking.suspect.0);
                disk.dirty.0.saturating_add(suspect)
            });
            Ok(pending.fold(0, u64::saturating_add))
        }
        _ => Err(Problem::new(Code::Failed, "diskd", "is confused", "")),
    }
}

async fn ask(socket: &Path, request: &Request) -> Result<Reply, Problem> {
    let failed = |error| Problem::failed("diskd", &error);
    let lines = Lines::connect(socket, MAX_LINE).await.map_err(failed)?;
    match lines.ask_within(LIMIT, request).await.map_err(failed)? {
        Reply::Refused { problem } => Err(problem),
        reply => Ok(reply),
    }
}
