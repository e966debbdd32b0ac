//! The control socket of `pollux-vmd`.
//!
//! A stream of JSON lines, one [`Request`] answered by one [`Reply`], any number of connections.

use std::path::PathBuf;
use std::time::Duration;

use model::Problem;
use sandbox::Rights;
use serde::{Deserialize, Serialize};

use crate::config::Socket;

/// How long diskd may take to make everything durable before it is killed: so much longer than
/// the other requests [`Request::Shutdown`] may take.
pub const DISKD_LIMIT: Duration = Duration::from_secs(60);
/// How long a diskd that is replaced may take to end before it is killed; what it leaves, its
/// successor finds. And how long the successor may take until it serves.
pub const READY_LIMIT: Duration = Duration::from_secs(20);
/// So long after the end of its lease a guest is stopped that nobody held still.
pub const LEASE_GRACE: Duration = Duration::from_millis(500);
/// Longest line in bytes, either way.
pub const MAX_LINE: usize = 1 << 20;

/// What vmd is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How it is. Answered by [`Reply::Status`].
    Status,
    /// Start QEMU. Refused while one runs. Answered by [`Reply::Status`] once it was started.
    Launch(Program),
    /// Answered by [`Reply::Status`] once the guest of process `pid` is gone, or at once when
    /// another or none runs.
    WaitGuest {
        /// The guest's process id.
        pid: u32,
    },
    /// Kill QEMU, if it runs. Answered by [`Reply::Status`] once it was reaped.
    KillGuest,
    /// From now on the guest, or the next one, may run so long. Answered by [`Reply::Status`] at once.
    Lease {
        /// How long.
        lease: Lease,
    },
    /// End diskd in order and start this one in its place, with these sockets: those that are held
    /// already are held on, others are made, and those that are not named are removed. The guest
    /// goes on, and waits meanwhile. Answered by [`Reply::Status`] once the new one serves. If it
    /// does not within [`READY_LIMIT`], the old one and its sockets are put back and the request
    /// is refused with what the new one said.
    Replace {
        /// The new one.
        diskd: Program,
        /// Its sockets.
        sockets: Vec<Socket>,
    },
    /// Kill QEMU if it runs, let diskd make everything durable, exit. Answered by
    /// [`Reply::Done`] when both were reaped.
    Shutdown,
}

/// vmd's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// To all but [`Request::Shutdown`].
    Status(Status),
    /// Done.
    Done,
    /// Refused or failed; nothing was changed.
    Refused {
        /// Why.
        problem: Problem,
    },
}

/// How long a guest may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "lease", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Lease {
    /// As long as it likes.
    #[default]
    None,
    /// Until this reading of the boot-time clock. [`LEASE_GRACE`] later QEMU's process is stopped;
    /// a later lease lets it go on.
    Until {
        /// The reading.
        at: Duration,
    },
    /// polluxd holds it still, for it has no lease.
    Held,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Path of the executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where its standard output and error are appended.
    pub log: PathBuf,
    /// What it may do.
    #[serde(default)]
    pub rights: Rights,
}

/// The processes of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// vmd's own process id.
    pub pid: u32,
    /// diskd's, while it runs.
    pub diskd: Option<u32>,
    /// Whether that one has said that it serves.
    #[serde(default)]
    pub ready: bool,
    /// How often diskd was started again after it died.
    pub diskd_restarts: u64,
    /// QEMU's, while it runs.
    pub guest: Option<u32>,
    /// How long QEMU may run.
    #[serde(default)]
    pub lease: Lease,
    /// Whether its process is stopped, because that was over.
    #[serde(default)]
    pub frozen: bool,
    /// How the last QEMU ended.
    pub last_exit: Option<Exit>,
    /// What the confinement of those that run does without, because the kernel or a container
    /// does not give it.
    #[serde(default)]
    pub lacking: Vec<String>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
}
