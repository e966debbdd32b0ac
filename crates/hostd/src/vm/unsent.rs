//! What a primary has that its twin does not: blocks marked in diskd, and segments that wait in
//! the outbox.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diskd::control::{Reply, Request};
use model::{Bytes, Code, DiskId, Problem, RelationshipId};
use tokio::time::{Instant, timeout_at};

use super::replicate::DriverHandle;
use super::source::{DiskdSource, ask, segments};

/// How long diskd may take to answer; whoever asks to stand down waits for it.
const LIMIT: Duration = Duration::from_secs(1);

/// How much waits to be sent; none when nobody can tell.
pub(crate) async fn pending(socket: &Path, home: &Path) -> Option<Bytes> {
    let (marked, unconfirmed) = marked(socket).await.ok()?;
    let staged = match staged(home).ok()? {
        // Removed by somebody: it did not reach the twin for that.
        0 => unconfirmed,
        staged => staged,
    };
    Some(Bytes(marked.saturating_add(staged)))
}

/// Of a VM that does not run and is asked to stand down.
pub(super) struct Unsent {
    pub(super) thing: String,
    pub(super) socket: PathBuf,
    pub(super) home: PathBuf,
    pub(super) relationship: RelationshipId,
    /// Disks that are not replicated.
    pub(super) left_out: Vec<DiskId>,
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

    /// Refuses if something is seen that was not sent.
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
            sent: Vec::new(),
            but: self.left_out.clone(),
        };
        match ask(&self.socket, &self.thing, &request, LIMIT).await {
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
        let way_out = "Wait until `pollux replica status` there shows nothing pending, or \
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

/// Bytes marked in all disks, or being staged, with those of which nobody can tell; and how much of them was
/// staged and not confirmed.
async fn marked(socket: &Path) -> Result<(u64, u64), Problem> {
    match ask(socket, "diskd", &Request::Status, LIMIT).await? {
        Reply::Status { disks, .. } => {
            let (mut marked, mut unconfirmed) = (0_u64, 0_u64);
            for disk in &disks {
                marked = marked.saturating_add(disk.dirty.0);
                if let Some(tracking) = &disk.tracking {
                    let more = tracking.suspect.0.saturating_add(tracking.sealed.0);
                    marked = marked.saturating_add(more);
                    unconfirmed = unconfirmed.saturating_add(tracking.unconfirmed.0);
                }
            }
            Ok((marked, unconfirmed))
        }
        _ => Err(Problem::new(Code::Failed, "diskd", "is confused", "")),
    }
}

#[cfg(test)]
mod tests {
    use diskd::control::{DiskStatus, EpochStatus, LogStatus, StoreKind, TrackingStatus};
    use model::{DiskId, REGION_SIZE};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    /// Answers as a diskd does that waits for the confirmation of a segment, and stages another one with so
    /// many bytes.
    fn diskd(socket: &Path, sealed: u64) {
        let listener = UnixListener::bind(socket).expect("bound");
        let tracking = TrackingStatus {
            relationship: RelationshipId::random(),
            marked: Bytes(0),
            sealed: Bytes(sealed),
            unconfirmed: Bytes(REGION_SIZE),
            suspect: Bytes(0),
            armed: Bytes(REGION_SIZE),
            log: LogStatus::Kept,
            commits: 0,
            sweeps: 0,
        };
        let status = Reply::Status {
            pid: 1,
            version: String::new(),
            generation: 1,
            store: StoreKind::IoUring,
            lacking: Vec::new(),
            disks: vec![DiskStatus {
                id: DiskId::random(),
                size: Bytes(REGION_SIZE),
                connected: false,
                waiting_for_room: 0,
                overlays: Vec::new(),
                dirty: Bytes(0),
                reads: 0,
                writes: 0,
                flushes: 0,
                flush_failed: false,
                replaced: false,
                tracking: Some(tracking),
            }],
            epochs: EpochStatus::default(),
        };
        let mut reply = serde_json::to_string(&status).expect("made");
        reply.push('\n');
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.expect("a request");
                let written = stream.get_mut().write_all(reply.as_bytes()).await;
                written.expect("answered");
            }
        });
    }

    #[tokio::test]
    async fn a_segment_that_somebody_removed_is_not_taken_for_sent() {
        let home = tempfile::tempdir().expect("scratch");
        let socket = home.path().join("diskd.sock");
        diskd(&socket, 0);
        let outbox = DiskdSource::outbox(home.path());
        std::fs::create_dir(&outbox).expect("made");
        let file = outbox.join("7.delta");
        std::fs::write(&file, [1; 100]).expect("staged");
        assert_eq!(pending(&socket, home.path()).await, Some(Bytes(100)));
        std::fs::remove_file(&file).expect("removed");
        let gone = pending(&socket, home.path()).await;
        assert_eq!(gone, Some(Bytes(REGION_SIZE)));
    }

    #[tokio::test]
    async fn what_is_being_staged_waits_to_be_sent() {
        let home = tempfile::tempdir().expect("scratch");
        let socket = home.path().join("diskd.sock");
        diskd(&socket, 4096);
        let pending = pending(&socket, home.path()).await;
        assert_eq!(pending, Some(Bytes(4096 + REGION_SIZE)));
    }
}
