//! QMP, QEMU's control protocol: commands with answers, and events.
//!
//! ```text
//!   Qmp (any number of clones) --Request--> task: owns the socket --> QEMU
//!                              <--oneshot--       |
//!                              <--broadcast-------'  events
//! ```
//!
//! QEMU is not trusted more than its guest: a line longer than [`MAX_LINE`], or one that is no
//! QMP, ends the connection. QEMU serves one client at a time on its socket, so
//! [`Qmp::connect`] waits, within its limit, until an earlier client has gone.
//! (Protocol: QEMU's `docs/interop/qmp-spec.rst`.)

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::GenerationId;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// Longest line that is read, in bytes; the longest honest answer is `query-qmp-schema`'s.
const MAX_LINE: usize = 4 << 20;
/// How long QEMU may take to answer a command. Those that take longer are jobs with events.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How often a QEMU that does not listen yet is asked again.
const RETRY: Duration = Duration::from_millis(20);
const WAITING_REQUESTS: usize = 64;
const WAITING_EVENTS: usize = 256;

/// Why QMP failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// No connection.
    #[error("cannot reach QEMU at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU did not answer.
    #[error("QEMU did not answer `{command}` within {} s", limit.as_secs())]
    Late {
        /// The command.
        command: String,
        /// How long it had.
        limit: Duration,
    },
    /// QEMU refused the command.
    #[error("QEMU refuses `{command}`: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// What QEMU said.
        reason: String,
    },
    /// The connection ended.
    #[error("QEMU has gone")]
    Gone,
    /// QEMU does not speak QMP as documented.
    #[error("QEMU answered `{command}` with something unexpected: {fault}")]
    Protocol {
        /// The command.
        command: String,
        /// What is wrong.
        fault: String,
    },
}

/// Something that happened in QEMU: `SHUTDOWN`, `STOP`, `RESUME`, `GUEST_PANICKED`...
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// What belongs to it; null if nothing does.
    pub data: Value,
}

/// Answer of `query-status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunStatus {
    /// Whether the processors run.
    pub running: bool,
    /// QEMU's `RunState`: `running`, `paused`, `prelaunch`, `shutdown`, `io-error`...
    pub status: String,
}

/// A connection. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
    events: broadcast::WeakSender<Event>,
}

#[derive(Debug)]
struct Request {
    command: String,
    arguments: Option<Value>,
    answer: oneshot::Sender<Answer>,
}

type Answer = Result<Value, String>;

#[derive(Deserialize)]
struct Line {
    id: Option<u64>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Connects to the socket at `path` and leaves negotiation mode, within `limit`. A QEMU
    /// that was just started and does not listen yet is waited for.
    ///
    /// # Errors
    /// [`QmpError`]; when QEMU serves another client for all of `limit`, [`QmpError::Late`].
    pub async fn connect(path: &Path, limit: Duration) -> Result<Self, QmpError> {
        let begin = async {
            let stream = reach(path, limit).await?;
            let mut lines = Lines::new(stream);
            loop {
                match lines.next().await {
                    Ok(Some(line)) if line.greeting.is_some() => break,
                    // A QEMU that is reached while it starts tells of events before it greets.
                    Ok(Some(line)) if line.event.is_some() => {}
                    Ok(Some(_)) => return Err(unexpected("connect", "no greeting")),
                    Ok(None) => return Err(QmpError::Gone),
                    Err(error) => return Err(unexpected("connect", error)),
                }
            }
            let (requests, receiver) = mpsc::channel(WAITING_REQUESTS);
            let (events, _) = broadcast::channel(WAITING_EVENTS);
            let weak = events.downgrade();
            tokio::spawn(serve(lines, receiver, events));
            let events = weak;
            let qmp = Self { requests, events };
            qmp.execute("qmp_capabilities", None).await?;
            Ok(qmp)
        };
        match timeout(limit, begin).await {
            Ok(result) => result,
            Err(_elapsed) => Err(QmpError::Late {
                command: "connect".to_owned(),
                limit,
            }),
        }
    }

    /// Runs a command and returns what QEMU returned.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn execute(
        &self,
        command: &str,
        arguments: Option<Value>,
    ) -> Result<Value, QmpError> {
        let run = async {
            let (answer, answered) = oneshot::channel();
            let request = Request {
                command: command.to_owned(),
                arguments,
                answer,
            };
            if self.requests.send(request).await.is_err() {
                return Err(QmpError::Gone);
            }
            match answered.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(reason)) => Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason,
                }),
                Err(_dropped) => Err(QmpError::Gone),
            }
        };
        match timeout(ANSWER_LIMIT, run).await {
            Ok(result) => result,
            Err(_elapsed) => Err(QmpError::Late {
                command: command.to_owned(),
                limit: ANSWER_LIMIT,
            }),
        }
    }

    /// What happens from now on. The stream ends when QEMU goes; a receiver that lags loses
    /// the oldest events and is told so.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        match self.events.upgrade() {
            Some(events) => events.subscribe(),
            // Gone: a channel that ends at once.
            None => broadcast::channel(1).1,
        }
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        self.requests.closed().await;
    }

    /// Whether and how the guest runs.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn query_status(&self) -> Result<RunStatus, QmpError> {
        let command = "query-status";
        let answer = self.execute(command, None).await?;
        serde_json::from_value(answer).map_err(|error| unexpected(command, error))
    }

    /// Presses the power button; what follows is the guest's decision.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.run("system_powerdown").await
    }

    /// Ends QEMU at once.
    ///
    /// # Errors
    /// [`QmpError`]; that QEMU goes before it answers is none.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.run("quit").await {
            Err(QmpError::Gone) => Ok(()),
            other => other,
        }
    }

    /// Holds the guest's processors still.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.run("stop").await
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.run("cont").await
    }

    /// The VM-Generation ID that the guest sees.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn query_vm_generation_id(&self) -> Result<GenerationId, QmpError> {
        #[derive(Deserialize)]
        struct Guid {
            guid: GenerationId,
        }
        let command = "query-vm-generation-id";
        let answer = self.execute(command, None).await?;
        match serde_json::from_value::<Guid>(answer) {
            Ok(answer) => Ok(answer.guid),
            Err(error) => Err(unexpected(command, error)),
        }
    }

    async fn run(&self, command: &str) -> Result<(), QmpError> {
        self.execute(command, None).await.map(|_empty| ())
    }
}

pub(crate) fn unexpected(command: &str, fault: impl std::fmt::Display) -> QmpError {
    QmpError::Protocol {
        command: command.to_owned(),
        fault: fault.to_string(),
    }
}

/// Connects as soon as somebody listens; there is no event for that.
async fn reach(path: &Path, limit: Duration) -> Result<UnixStream, QmpError> {
    let give_up = Instant::now() + limit.saturating_sub(RETRY);
    loop {
        let source = match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(source) => source,
        };
        let too_early = matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        );
        if !too_early || Instant::now() >= give_up {
            let path = path.to_owned();
            return Err(QmpError::Connect { path, source });
        }
        sleep(RETRY).await;
    }
}

/// Owns the socket until QEMU or the last [`Qmp`] has gone.
async fn serve(
    mut lines: Lines,
    mut requests: mpsc::Receiver<Request>,
    events: broadcast::Sender<Event>,
) {
    let mut waiting: HashMap<u64, oneshot::Sender<Answer>> = HashMap::new();
    let mut last_id = 0;
    loop {
        tokio::select! {
            line = lines.next() => match line {
                Ok(Some(line)) => handle(line, &mut waiting, &events),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "QMP connection dropped");
                    return;
                }
            },
            request = requests.recv() => {
                let Some(request) = request else { return };
                last_id += 1;
                // Those whose caller gave up are never answered.
                waiting.retain(|_, answer| !answer.is_closed());
                waiting.insert(last_id, request.answer);
                let mut line = json!({ "execute": request.command, "id": last_id });
                if let Some(arguments) = request.arguments {
                    line["arguments"] = arguments;
                }
                let line = format!("{line}\n");
                let sent = timeout(ANSWER_LIMIT, lines.stream.write_all(line.as_bytes())).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
        }
    }
}

fn handle(
    line: Line,
    waiting: &mut HashMap<u64, oneshot::Sender<Answer>>,
    events: &broadcast::Sender<Event>,
) {
    if let Some(name) = line.event {
        let data = line.data;
        // Fails only when nobody listens.
        let _ = events.send(Event { name, data });
        return;
    }
    let answer = match line.error {
        Some(refusal) => Err(refusal.desc),
        None => Ok(line.returned.unwrap_or_default()),
    };
    if let Some(caller) = line.id.and_then(|id| waiting.remove(&id)) {
        // Fails only when the caller gave up.
        let _ = caller.send(answer);
    }
}

/// Bounded lines from the socket; `next` may be cancelled at any point.
struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no end of line.
    searched: usize,
}

impl Lines {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            if let Some(at) = self.buffer[self.searched..]
                .iter()
                .position(|b| *b == b'\n')
            {
                let end = self.searched + at;
                let line = serde_json::from_slice(&self.buffer[..end]);
                self.buffer.drain(..=end);
                self.searched = 0;
                return Ok(Some(line?));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(io::Error::other("a line is too long"));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
