//! The replica server of a host: whom it receives twins from, and where it keeps them.

use std::path::PathBuf;

use model::{Bytes, Problem, VmId, VmName};
use serde::{Deserialize, Serialize};

/// Who may make twins while the server is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Admits {
    /// Every trusted host.
    Any,
    /// Whom an authorization names.
    Authorized,
}

/// How the replica server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaServer {
    /// Whether it is on.
    pub enabled: bool,
    /// Who may make twins then.
    pub admits: Admits,
    /// Where it listens, or would.
    pub listen: String,
    /// Whether peers can connect now: it is on, or a VM or twin of this host has a partner.
    pub listening: bool,
    /// Why it does not listen although it should.
    pub problem: Option<Problem>,
    /// Where twins lie: the folder in polluxd's state first.
    pub stores: Vec<ReplicaStore>,
    /// Number of entries.
    pub authorizations: u64,
    /// Twins that are not received any more, for what the server is now.
    pub unreceived: Vec<Unreceived>,
}

/// A folder that twins lie in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStore {
    /// Where.
    pub path: PathBuf,
    /// Whether a new twin comes there unless an authorization names another.
    pub default: bool,
    /// Twins that lie there.
    pub twins: u64,
    /// Space of its file system, as far as that is known.
    pub total: Option<Bytes>,
    /// How much of it is free.
    pub free: Option<Bytes>,
    /// Why it cannot be used now.
    pub problem: Option<Problem>,
}

/// A twin that is not received any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreceived {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// Its primary.
    pub peer: String,
    /// Why.
    pub problem: Problem,
}

/// Switch the server on, or change how it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnableReplicaServer {
    /// Address and port to listen on; none: as it was, at first as polluxd was told.
    #[serde(default)]
    pub listen: Option<String>,
    /// Let every trusted host in, whatever authorizations say.
    #[serde(default)]
    pub allow_any: bool,
    /// Where new twins come unless an authorization says; none: as it was, at first in polluxd's state
    /// folder.
    #[serde(default)]
    pub store: Option<PathBuf>,
}

/// Primaries that may make twins on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorization {
    /// Their name, or `*.` and their domain.
    pub pattern: String,
    /// Store of their new twins.
    pub store: PathBuf,
    /// Primaries that may be given each other's VMs, and compare with what the twins of them hold.
    pub group: Option<String>,
    /// Most space that the twins of one of them may take; none: what the peer's limit says.
    pub limit: Option<Bytes>,
    /// VMs of this host from which they may have their twins filled.
    #[serde(default)]
    pub copies: Vec<VmName>,
}

/// Let primaries make twins on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorize {
    /// Their name, or `*.` and their domain.
    pub pattern: String,
    /// Primaries that may be given each other's VMs, and compare with what the twins of them hold.
    #[serde(default)]
    pub group: Option<String>,
    /// Most space that the twins of one of them may take.
    #[serde(default)]
    pub limit: Option<Bytes>,
    /// Store of their new twins; none: the server's.
    #[serde(default)]
    pub store: Option<PathBuf>,
    /// VMs of this host from which they may have their twins filled. By comparing they can find out what
    /// those hold.
    #[serde(default)]
    pub copies: Vec<VmName>,
}
