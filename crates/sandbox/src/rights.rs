//! What a process may do: data, written by polluxd, applied by vmd.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a process may do.
///
/// The default is a process that is not confined at all: it runs as whoever starts it. Any other
/// value confines it, and what is not named here it may not do; the crate's documentation says what
/// every program may do besides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rights {
    /// It runs as this user, and as the group of the same number; only root can give it. None:
    /// as whoever starts it.
    pub user: Option<u32>,
    /// Its other groups; taken only together with `user`.
    pub groups: Vec<u32>,
    /// Folders, with all that they hold, and files that it reads, writes, makes and removes.
    pub write: Vec<PathBuf>,
    /// Folders, with all that they hold, and files that it reads.
    pub read: Vec<PathBuf>,
    /// Whether it may use io_uring, which does its work past any filter of system calls.
    pub io_uring: bool,
}

impl Rights {
    /// Whether nothing is restricted.
    #[must_use]
    pub fn is_unconfined(&self) -> bool {
        *self == Self::default()
    }
}
