//! The hook: a program of the admin's that is told of what may need a person.
//!
//! `hook = ["/usr/local/bin/tell", "argument"]` in `host.toml`. It is run once per event, with the
//! event as one line of JSON on its standard input; no shell is in between. One runs at a time,
//! others wait in a bounded queue. It has a limited time, after which it is killed with all that
//! it started. That it failed is an event, which it is not told of.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use api::{Event, EventKind, Severity};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::{Draft, Events};

/// Events that wait for it.
pub(crate) const QUEUE: usize = 64;
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(30);
/// What it said is read for so long after its end.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// So much of what it says on standard error is told.
const MAX_SAID: u64 = 1024;

/// Whether the hook is told of `kind`.
pub(crate) fn is_told(kind: EventKind) -> bool {
    match kind {
        EventKind::Health
        | EventKind::Error
        | EventKind::Damaged
        | EventKind::FailedOver
        | EventKind::StoodDown
        | EventKind::LeaseOver
        | EventKind::StartedUnasked
        | EventKind::Restored => true,
        EventKind::Enabled
        | EventKind::Removed
        | EventKind::State
        | EventKind::Repaired
        | EventKind::PointsMissed
        | EventKind::PointsOnTime
        | EventKind::CalledOff
        | EventKind::LeaseRenewed
        | EventKind::TestBegan
        | EventKind::TestEnded
        | EventKind::StatisticsReset
        | EventKind::Refused
        | EventKind::HookFailed
        | EventKind::HistoryLost => false,
    }
}

/// Gives an event to the hook, if it is told of such. Never waits: one that does not fit is lost,
/// and the hook is slower than the events come, which the log says.
pub(super) fn offer(hook: &mpsc::Sender<Event>, event: &Event) {
    if is_told(event.kind) && hook.try_send(event.clone()).is_err() {
        tracing::warn!(
            event = event.id,
            "the hook is not told: too many wait for it"
        );
    }
}

/// Runs `command` for each event, until no more can come.
pub(crate) async fn run(
    command: Vec<String>,
    mut events: mpsc::Receiver<Event>,
    history: Arc<Events>,
) {
    while let Some(event) = events.recv().await {
        if let Err(reason) = tell(&command, &event, LIMIT).await {
            tracing::warn!(event = event.id, reason, "the hook failed");
            let what = format!("the hook was not told of event {}: {reason}", event.id);
            let kind = EventKind::HookFailed;
            history.record(Draft {
                way_out: "Mend the program that `hook` in host.toml names; it reads the event on \
                          its standard input and has 30 seconds"
                    .to_owned(),
                ..Draft::new(kind, Severity::Warning, "polluxd", what)
            });
        }
    }
}

/// Runs it once; the error says why it failed.
async fn tell(command: &[String], event: &Event, limit: Duration) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let mut line = serde_json::to_vec(event).map_err(|error| error.to_string())?;
    line.push(b'\n');
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let group = child.id();
    let ended = tokio::time::timeout(limit, converse(&mut child, &line)).await;
    if let Some(group) = group
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
    {
        // What it left behind goes too. Fails when nothing is left.
        let _ = kill_process_group(group, Signal::KILL);
    }
    match ended {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(format!(
            "{program} did not end within {} s and was killed",
            limit.as_secs()
        )),
    }
}

async fn converse(child: &mut Child, line: &[u8]) -> Result<(), String> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let write = async move {
        if let Some(mut stdin) = stdin {
            // A program that does not want to read it says with its exit code how it went.
            let _ = stdin.write_all(line).await;
        }
    };
    let mut said = Vec::new();
    let status = {
        let read = async {
            let Some(stderr) = stderr else { return };
            let mut first = stderr.take(MAX_SAID);
            // What cannot be read is not told.
            let _ = first.read_to_end(&mut said).await;
            // Or it would wait for a reader.
            let _ = tokio::io::copy(&mut first.into_inner(), &mut tokio::io::sink()).await;
        };
        tokio::pin!(read);
        let ended = async {
            tokio::select! {
                () = &mut read => child.wait().await,
                status = child.wait() => {
                    // What it started may hold the pipe open.
                    let _ = tokio::time::timeout(LAST_WORDS, &mut read).await;
                    status
                }
            }
        };
        let ((), status) = tokio::join!(write, ended);
        status.map_err(|error| error.to_string())
    };
    let status = status?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let said = said.trim();
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    };
    Err(format!("it ended with {status}{said}"))
}

#[cfg(test)]
#[path = "hook_tests.rs"]
mod tests;
