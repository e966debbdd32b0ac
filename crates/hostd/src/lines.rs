//! Client of a control socket: one line of JSON asked, one answered.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Why a control socket did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// Nobody listens, or the connection broke.
    #[error("{} cannot be reached", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The other side went away instead of answering.
    #[error("{} closed the connection", .0.display())]
    Closed(PathBuf),
    /// The answer is not what the protocol says.
    #[error("{} answered with something unexpected", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The answer took too long.
    #[error("{} did not answer within {} s", path.display(), limit.as_secs())]
    Late {
        /// The socket.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
}

/// A connection that asks `Q` and is answered `A`.
#[derive(Debug)]
pub(crate) struct Lines<Q, A> {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    max_line: usize,
    kind: PhantomData<fn(Q) -> A>,
}

impl<Q: Serialize, A: DeserializeOwned> Lines<Q, A> {
    /// Connects to the socket at `path`. Lines are at most `max_line` bytes long.
    pub(crate) async fn connect(path: &Path, max_line: usize) -> Result<Self, LineError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| LineError::Io {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
            max_line,
            kind: PhantomData,
        })
    }

    /// Asks, and waits for the answer as long as it takes. When this is cancelled the
    /// connection must not be used again: the answer to this question would come to the next.
    pub(crate) async fn ask(&mut self, question: &Q) -> Result<A, LineError> {
        let path = &self.path;
        let broken = |source| LineError::Io {
            path: path.clone(),
            source,
        };
        let answered = |source| LineError::Answer {
            path: path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(question).map_err(answered)?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .await
            .map_err(broken)?;
        line.clear();
        let mut bounded = (&mut self.stream).take(self.max_line as u64);
        bounded.read_until(b'\n', &mut line).await.map_err(broken)?;
        if line.is_empty() {
            return Err(LineError::Closed(self.path.clone()));
        }
        serde_json::from_slice(&line).map_err(answered)
    }

    /// As [`Lines::ask`], within `limit`.
    pub(crate) async fn ask_within(
        mut self,
        limit: Duration,
        question: &Q,
    ) -> Result<A, LineError> {
        match timeout(limit, self.ask(question)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(LineError::Late {
                path: self.path,
                limit,
            }),
        }
    }
}
