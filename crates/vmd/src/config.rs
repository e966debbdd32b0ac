//! What a `pollux-vmd` supervises: the file that polluxd names on its command line.

use std::path::PathBuf;

use model::VmId;
use serde::{Deserialize, Serialize};

use crate::control::Program;

/// Configuration, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The VM.
    pub vm: VmId,
    /// Path of vmd's own control socket; its lock is `<control>.lock`.
    pub control: PathBuf,
    /// How diskd is started.
    pub diskd: Program,
    /// Listening sockets that are made, held, and passed to every diskd in this order.
    pub sockets: Vec<Socket>,
    /// What is known to be lacking of the confinement before anything is started; told in
    /// [`crate::control::Status`].
    #[serde(default)]
    pub lacking: Vec<String>,
}

/// A listening Unix stream socket, mode 0600.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Socket {
    /// Its name in `LISTEN_FDNAMES`.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
    /// Whose it is, so that a program of that user can connect to it; vmd's own if none.
    #[serde(default)]
    pub user: Option<u32>,
}
