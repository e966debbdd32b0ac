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
    /// Folders, with all that they hold, and files that it reads, writes, makes and removes. A path
    /// that is not there when the process starts gives nothing.
    pub write: Vec<PathBuf>,
    /// Folders, with all that they hold, and files that it reads; sockets in them that it connects
    /// to.
    pub read: Vec<PathBuf>,
    /// Whether owner and mode of what it may read do not matter, so that Landlock alone says what
    /// it reads: it keeps `CAP_DAC_READ_SEARCH`. Only root can give it.
    pub read_any: bool,
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
