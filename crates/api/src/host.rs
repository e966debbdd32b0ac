//! The host and its peers, as the API tells and takes them.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use model::{Bytes, Problem};
use serde::{Deserialize, Serialize};

/// What runs the instructions of guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The processor, through `/dev/kvm`; proven by running a guest for a moment.
    Kvm,
    /// QEMU's translator; many times slower.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        })
    }
}

/// How a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// Version of polluxd.
    pub version: String,
    /// Where its state lies.
    pub state: PathBuf,
    /// Where its sockets lie.
    pub run: PathBuf,
    /// What runs the guests' instructions; none when QEMU cannot be run.
    pub accelerator: Option<Accelerator>,
    /// Why it is that one.
    pub accelerator_reason: String,
    /// Version of QEMU; none when it cannot be run.
    pub qemu: Option<String>,
    /// Memory of the host.
    pub memory_total: Bytes,
    /// Memory that new guests can have: what is available less the host's reserve.
    pub memory_available: Bytes,
    /// Memory of the guests that run.
    pub memory_guests: Bytes,
    /// VMs of this host, twins received from others not counted.
    pub vms: u64,
    /// Of them, with a QEMU.
    pub running: u64,
    /// Twins received from other hosts.
    pub replicas: u64,
    /// Size of the file system that holds the twins.
    pub store_total: Bytes,
    /// What is free of it.
    pub store_free: Bytes,
    /// Where primaries reach this host.
    pub replica_listen: String,
    /// What the confinement of the VMs that run does without, because this host does not give it.
    pub lacking: Vec<String>,
    /// How the diskds that run read and write files.
    pub stores: Vec<String>,
    /// What is wrong with folders of VMs that cannot be used.
    pub left_out: Vec<Problem>,
    /// Certificates that are out of date, or will be within 30 days.
    pub certificates: Vec<Problem>,
    /// Hosts of which the certificate was refused lately.
    pub refused: Vec<Problem>,
}

/// What another host needs to trust this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the host, as in its certificate.
    pub name: String,
    /// Address and port of its replica endpoint.
    pub address: String,
    /// Fingerprint of its certificate authority.
    pub fingerprint: String,
    /// Whether its certificate was given to it, rather than made by its own authority.
    pub given: bool,
    /// Until when its certificate is valid. One of its own authority is renewed before.
    pub valid_until: Option<Timestamp>,
}

/// A certificate for a host to show, from a PKI. All PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GiveCertificate {
    /// The host's certificate, and those between it and its authority's.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// The certificate of the authority that other hosts are to trust.
    pub authority: String,
}

impl fmt::Debug for GiveCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a certificate and its key")
    }
}

/// Take in what an authority took back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// Its list of revoked certificates, PEM.
    pub list: String,
}

/// What an authority took back counts from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Fingerprint of the authority.
    pub authority: String,
}

/// Another host that is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Address and port of its replica endpoint.
    pub address: String,
    /// Fingerprint of its certificate authority.
    pub fingerprint: String,
    /// Most space that its twins may take here; none: what the file system has.
    pub limit: Option<Bytes>,
    /// When it is trusted: why its certificate could not be looked at yet. It is, on every connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<Problem>,
}

/// Trust another host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustPeer {
    /// Its name; or `*.` and a domain, for all its hosts.
    pub name: String,
    /// Address and port of its replica endpoint; of a domain's hosts `*:` and their port.
    pub address: String,
    /// Fingerprint of its certificate authority, as `pollux host identity` prints it there.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// Or the authority's certificate, PEM.
    #[serde(default)]
    pub authority: Option<String>,
    /// What that authority took back, PEM.
    #[serde(default)]
    pub revoked: Option<String>,
    /// Most space that its twins may take here.
    #[serde(default)]
    pub limit: Option<Bytes>,
}
