//! What happened: kept in a database, told to who follows, and to the hook.
//!
//! ```text
//!   anybody --record, never waits--> bounded queue --> thread: history (SQLite)
//!                                                        |--> followers (API, SSE)
//!                                                        '--> hook
//! ```
//!
//! An event that does not fit into the queue is lost, counted, and the count is told in the next
//! one. Nothing that moves data waits for it.

mod history;
pub(crate) mod hook;
pub(crate) mod notice;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::{Event, EventKind, HealthMessage, Severity};
use jiff::{SignedDuration, Timestamp};
use model::{Code, Problem, VmId};
use tokio::sync::{broadcast, mpsc, oneshot};

use history::History;
pub(crate) use history::Wanted;

/// Events that wait to be kept.
const QUEUE: usize = 1024;
/// Events that a follower may be behind before it has to look them up.
const BEHIND: usize = 256;
/// Events that are kept in one transaction.
const BATCH: usize = 256;
/// So often refusals of one host are told.
const REFUSALS: Duration = Duration::from_secs(3600);
/// Hosts whose refusals are told in that time.
const MAX_REFUSALS: usize = 64;
/// Longest text of an event, in bytes: others' words may be in it.
const MAX_TEXT: usize = 4096;

/// An event that has no number yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) kind: EventKind,
    pub(crate) severity: Severity,
    pub(crate) vm: Option<VmId>,
    pub(crate) thing: String,
    pub(crate) what: String,
    pub(crate) way_out: String,
    pub(crate) messages: Vec<HealthMessage>,
}

impl Draft {
    /// Something worth knowing about `thing`.
    pub(crate) fn new(kind: EventKind, severity: Severity, thing: &str, what: String) -> Self {
        Self {
            kind,
            severity,
            vm: None,
            thing: thing.to_owned(),
            what,
            way_out: String::new(),
            messages: Vec::new(),
        }
    }

    /// About the VM `vm`.
    pub(crate) fn about(self, vm: VmId) -> Self {
        Self {
            vm: Some(vm),
            ..self
        }
    }

    fn numbered(self, id: u64, time: Timestamp) -> Event {
        Event {
            id,
            time,
            kind: self.kind,
            severity: self.severity,
            vm: self.vm,
            thing: shortened(self.thing),
            what: shortened(self.what),
            way_out: shortened(self.way_out),
            messages: self.messages,
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ...");
    }
    text
}

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) count: u64,
    pub(crate) age: SignedDuration,
}

enum Request {
    Record(Draft, Timestamp),
    List(Wanted, oneshot::Sender<Result<Vec<Event>, Problem>>),
}

/// The events of a host.
#[derive(Debug)]
pub(crate) struct Events {
    requests: SyncSender<Request>,
    told: broadcast::Sender<Event>,
    lost: AtomicU64,
    /// Whose refusals were told lately.
    refusals: Mutex<VecDeque<(String, Instant)>>,
}

impl Events {
    /// Keeps events in the file `path`; gives them to `hook` as well. The file is opened by the
    /// thread: what is wrong with it is told, and costs no more than the history.
    ///
    /// # Errors
    /// A problem if no thread can be had.
    pub(crate) fn begin(
        path: &Path,
        bounds: Bounds,
        hook: Option<mpsc::Sender<Event>>,
    ) -> Result<Self, Problem> {
        let (requests, asked) = sync_channel(QUEUE);
        let (told, _) = broadcast::channel(BEHIND);
        let (path, telling) = (path.to_owned(), told.clone());
        std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                let history = History::open(&path, bounds, Timestamp::now());
                serve(history, &asked, &telling, hook.as_ref());
            })
            .map_err(|error| Problem::failed("the history of events", &error))?;
        Ok(Self {
            requests,
            told,
            lost: AtomicU64::new(0),
            refusals: Mutex::default(),
        })
    }

    /// Records an event; never waits.
    pub(crate) fn record(&self, draft: Draft) {
        let now = Timestamp::now();
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let what = format!("{lost} events came faster than they could be kept");
            let draft = Draft::new(EventKind::HistoryLost, Severity::Warning, "polluxd", what);
            if self.requests.try_send(Request::Record(draft, now)).is_err() {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
        if self.requests.try_send(Request::Record(draft, now)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that the host `peer` was refused something; once an hour, for it may go on asking.
    pub(crate) fn refused(&self, peer: &str, problem: &Problem) {
        let mut told = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|(_, at)| at.elapsed() < REFUSALS);
        if told.iter().any(|(known, _)| known == peer) || told.len() >= MAX_REFUSALS {
            return;
        }
        told.push_back((peer.to_owned(), Instant::now()));
        drop(told);
        let what = format!("{}: {}", problem.thing, problem.reason);
        self.record(Draft {
            way_out: problem.way_out.clone(),
            ..Draft::new(
                EventKind::Refused,
                Severity::Warning,
                &format!("host {peer}"),
                what,
            )
        });
    }

    /// Events of the history, the oldest first.
    pub(crate) async fn list(&self, wanted: Wanted) -> Result<Vec<Event>, Problem> {
        let busy = || {
            let reason = "cannot be asked now: too much is waiting for it";
            let way_out = "Try again in a moment";
            Problem::new(Code::Conflict, "the history of events", reason, way_out)
        };
        let (answer, answered) = oneshot::channel();
        let request = Request::List(wanted, answer);
        self.requests.try_send(request).map_err(|_full| busy())?;
        answered.await.map_err(|_gone| busy())?
    }

    /// Events as they come, from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Event> {
        self.told.subscribe()
    }
}

/// The thread; ends with the last [`Events`].
fn serve(
    mut history: History,
    asked: &Receiver<Request>,
    told: &broadcast::Sender<Event>,
    hook: Option<&mpsc::Sender<Event>>,
) {
    while let Ok(first) = asked.recv() {
        let mut drafts = Vec::new();
        let mut answers = Vec::new();
        let more = std::iter::from_fn(|| asked.try_recv().ok()).take(BATCH - 1);
        for request in std::iter::once(first).chain(more) {
            match request {
                Request::Record(draft, time) => drafts.push((draft, time)),
                Request::List(wanted, answer) => answers.push((wanted, answer)),
            }
        }
        for event in history.keep(drafts) {
            if let Some(hook) = hook {
                hook::offer(hook, &event);
            }
            // Fails only when nobody follows.
            let _ = told.send(event);
        }
        for (wanted, answer) in answers {
            // Fails only when nobody waits for it any more.
            let _ = answer.send(history.list(&wanted));
        }
    }
}

#[cfg(test)]
mod tests;
