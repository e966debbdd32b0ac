//! Which peers this host trusts, and for which name each.
//!
//! One file per peer in the state folder, `peers/<name>.toml`. A peer's authority is trusted
//! only for the name that was accepted with it; only subject alternative names count. A peer that
//! could not be asked when it was trusted is known by its authority's fingerprint alone, and shows the
//! authority whenever it connects. What is trusted changes at run time: every handshake and every
//! request looks here.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use model::{Bytes, Code, Problem};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};

use crate::host::Principal;
use crate::identity::{Fingerprint, check_host_name, pem};

const VERSION: u32 = 2;
const MAX_FILE: u64 = 64 * 1024;

/// A trusted peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    version: u32,
    /// Its name: the file's, and the one its certificate must carry.
    pub name: String,
    /// `host:port` of its replica endpoint.
    pub address: String,
    /// Most space that its replicas may take here; none: what the disk has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_limit: Option<Bytes>,
    /// Fingerprint of its authority.
    pub fingerprint: Fingerprint,
    /// Its authority's certificate, PEM; none: it was not seen yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

impl Peer {
    /// A peer whose authority is given as PEM text.
    ///
    /// # Errors
    /// [`Problem`] names what is wrong.
    pub fn new(
        name: &str,
        address: &str,
        authority: &str,
        store_limit: Option<Bytes>,
    ) -> Result<Self, Problem> {
        check_peer(name, address)?;
        let certificate = read_authority(name, authority)?;
        Ok(Self {
            // One text form: whatever else stood in the file is left out.
            authority: Some(pem(&certificate)),
            ..Self::unseen(name, address, Fingerprint::of(&certificate), store_limit)?
        })
    }

    /// A peer of which only its authority's fingerprint is known.
    ///
    /// # Errors
    /// [`Problem`] names what is wrong.
    pub fn unseen(
        name: &str,
        address: &str,
        fingerprint: Fingerprint,
        store_limit: Option<Bytes>,
    ) -> Result<Self, Problem> {
        check_peer(name, address)?;
        Ok(Self {
            version: VERSION,
            name: name.to_owned(),
            address: address.to_owned(),
            store_limit,
            fingerprint,
            authority: None,
        })
    }

    fn check(&self) -> Result<Option<CertificateDer<'static>>, Problem> {
        check_peer(&self.name, &self.address)?;
        let Some(authority) = &self.authority else {
            return Ok(None);
        };
        let certificate = read_authority(&self.name, authority)?;
        let found = Fingerprint::of(&certificate);
        if found != self.fingerprint {
            let reason = format!("has an authority with another fingerprint, {found}");
            let thing = format!("peer `{}`", self.name);
            return Err(Problem::new(Code::Invalid, thing, reason, ""));
        }
        Ok(Some(certificate))
    }
}

/// The certificate of an authority, from PEM text, for the peer `name`.
fn read_authority(name: &str, text: &str) -> Result<CertificateDer<'static>, Problem> {
    let invalid = |reason: String, way_out: &str| {
        Problem::new(Code::Invalid, format!("peer `{name}`"), reason, way_out)
    };
    let certificate = CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|e| invalid(format!("has no certificate in PEM form: {e}"), ""))?;
    webpki::anchor_from_trusted_cert(&certificate)
        .map_err(|e| invalid(format!("has a certificate that cannot be read: {e}"), ""))?;
    if !is_authority(&certificate) {
        let way_out = "give the certificate of the peer's authority, not the peer's own";
        let reason = "has a certificate that is no authority's".to_owned();
        return Err(invalid(reason, way_out));
    }
    Ok(certificate)
}

fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| parsed.is_ca())
}

/// Checks the name and the address of a peer before anybody is asked there.
///
/// # Errors
/// [`Code::Invalid`]
pub fn check_peer(name: &str, address: &str) -> Result<(), Problem> {
    let shown = "`pollux host identity` on that host shows";
    if let Err(error) = check_host_name(name) {
        let way_out = format!("{shown} its name; `polluxd --name` gives it another");
        return Err(Problem::new(
            Code::Invalid,
            "the peer's name",
            error.to_string(),
            way_out,
        ));
    }
    let good = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if !good || address.len() > 300 {
        let given: String = address.chars().take(300).collect();
        return Err(Problem::new(
            Code::Invalid,
            format!("the address of host `{name}`"),
            format!("is `{given}`, not a host and a port, such as `{name}:8443`"),
            format!("{shown} its port"),
        ));
    }
    Ok(())
}

/// A trusted peer, ready for verification.
#[derive(Debug)]
pub struct Trusted {
    /// As it stands in its file.
    pub peer: Peer,
    authority: Option<CertificateDer<'static>>,
}

/// The peers cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The operating system refused.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what this build writes.
    #[error("{} is not a peer: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The trusted peers.
#[derive(Debug)]
pub struct Trust {
    folder: PathBuf,
    peers: RwLock<BTreeMap<String, Arc<Trusted>>>,
}

impl Trust {
    /// Loads every `*.toml` of `folder`, which is made if absent.
    ///
    /// # Errors
    /// [`TrustError`] names the file; one that cannot be read is not passed over.
    pub fn open(folder: &Path) -> Result<Self, TrustError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| TrustError::Io { path, source }
        };
        durable::create_folder(folder).map_err(io(folder))?;
        let mut peers = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(io(folder))? {
            let path = entry.map_err(io(folder))?.path();
            // A leading dot is a temporary file of a write that a crash cut short.
            let hidden = path
                .file_name()
                .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden || path.extension().is_none_or(|end| end != "toml") {
                continue;
            }
            let damaged = |reason: String| TrustError::Damaged {
                path: path.clone(),
                reason,
            };
            let len = std::fs::metadata(&path).map_err(io(&path))?.len();
            if len > MAX_FILE {
                return Err(damaged(format!("it has {len} bytes, more than {MAX_FILE}")));
            }
            let text = std::fs::read_to_string(&path).map_err(io(&path))?;
            let peer: Peer = toml::from_str(&text).map_err(|e| damaged(e.to_string()))?;
            if peer.version != VERSION {
                let reason = format!("it has version {}, not {VERSION}", peer.version);
                return Err(damaged(reason));
            }
            let authority = peer.check().map_err(|e| damaged(e.to_string()))?;
            if path
                .file_stem()
                .is_none_or(|stem| stem != peer.name.as_str())
            {
                return Err(damaged(format!("it names `{}`", peer.name)));
            }
            peers.insert(peer.name.clone(), Arc::new(Trusted { peer, authority }));
        }
        Ok(Self {
            folder: folder.to_owned(),
            peers: RwLock::new(peers),
        })
    }

    /// All peers, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Trusted>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().cloned().collect()
    }

    /// The peer of that name.
    ///
    /// # Errors
    /// [`Code::NotFound`]
    pub fn get(&self, name: &str) -> Result<Arc<Trusted>, Problem> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(name).cloned().ok_or_else(|| {
            let way_out = "`pollux host trust` makes it known; `pollux host peers` lists the known";
            let reason = "is not trusted by this host";
            Problem::new(Code::NotFound, format!("host `{name}`"), reason, way_out)
        })
    }

    /// Trusts `peer` from now on, instead of what was known under its name. Blocking.
    ///
    /// # Errors
    /// [`Problem`]
    pub fn trust(&self, peer: Peer) -> Result<(), Problem> {
        let authority = peer.check()?;
        let text = toml::to_string_pretty(&peer).expect("every field has a TOML form");
        // Held over the write, so that file and memory change in the same order.
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        durable::replace(&self.file(&peer.name), text.as_bytes())
            .map_err(|e| not_stored(&peer.name, &e))?;
        peers.insert(peer.name.clone(), Arc::new(Trusted { peer, authority }));
        Ok(())
    }

    /// Trusts that peer no longer. Blocking.
    ///
    /// # Errors
    /// [`Code::NotFound`], or the file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), Problem> {
        self.get(name)?;
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        match durable::remove(&self.file(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Problem::failed(format!("peer `{name}`"), &error)),
        }
        peers.remove(name);
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }

    /// The one peer whose authority issued `leaf`, for its own name. None if there is no such
    /// peer, or if the certificate serves for several of them.
    #[must_use]
    pub fn identify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<Arc<Trusted>> {
        let now = i64::try_from(now.as_secs()).ok()?;
        let peers = self.list();
        let mut matching = peers
            .into_iter()
            .filter(|peer| peer.issued(leaf, intermediates, now));
        let only = matching.next()?;
        matching.next().is_none().then_some(only)
    }

    /// Whether `known`, identified earlier, is still trusted as it was.
    #[must_use]
    pub fn still(&self, known: &Trusted) -> bool {
        self.get(&known.peer.name)
            .is_ok_and(|now| now.peer.fingerprint == known.peer.fingerprint)
    }
}

impl Trusted {
    /// Its authority's certificate: as it is kept, or among those that it shows.
    fn authority<'a>(&'a self, shown: &'a [CertificateDer<'_>]) -> Option<&'a CertificateDer<'a>> {
        let shown = || {
            shown.iter().find(|shown| {
                Fingerprint::of(shown) == self.peer.fingerprint && is_authority(shown)
            })
        };
        self.authority.as_ref().or_else(shown)
    }

    /// Whether its authority issued `leaf` for its name; see [`chains`].
    pub(crate) fn issued(
        &self,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        now: i64,
    ) -> bool {
        self.authority(shown)
            .is_some_and(|authority| chains(leaf, shown, authority, &self.peer.name, now))
    }

    /// As requests see it.
    #[must_use]
    pub fn principal(&self) -> Principal {
        Principal {
            name: self.peer.name.clone(),
        }
    }
}

fn not_stored(name: &str, error: &io::Error) -> Problem {
    let thing = format!("peer `{name}`");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Problem {
            code: Code::Full,
            way_out: "make room in the file system of the state folder, then try again".to_owned(),
            ..Problem::failed(thing, error)
        },
        _ => Problem::failed(thing, error),
    }
}

/// Whether `leaf` is a client's and server's certificate for `name` that `authority` issued and
/// that is valid at `now`, in seconds of Unix time.
pub(crate) fn chains(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    authority: &CertificateDer<'_>,
    name: &str,
    now: i64,
) -> bool {
    let (Ok(name), Ok(seconds)) = (ServerName::try_from(name), u64::try_from(now)) else {
        return false;
    };
    let Ok(anchor) = webpki::anchor_from_trusted_cert(authority) else {
        return false;
    };
    let Ok(end) = webpki::EndEntityCert::try_from(leaf) else {
        return false;
    };
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let anchors = [anchor];
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let issued = |usage| {
        end.verify_for_usage(
            algorithms.all,
            &anchors,
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .is_ok()
    };
    issued(webpki::KeyUsage::client_auth())
        && issued(webpki::KeyUsage::server_auth())
        && end.verify_is_valid_for_subject_name(&name).is_ok()
}

/// What a host presented when it was asked who it is. Nothing of it is trusted yet.
#[derive(Debug, Clone)]
pub struct Presented {
    leaf: CertificateDer<'static>,
    authority: CertificateDer<'static>,
}

impl Presented {
    /// The chain that a handshake brought: leaf first, its authority last.
    pub(crate) fn new(chain: Vec<CertificateDer<'static>>) -> Option<Self> {
        let mut chain = chain.into_iter();
        let leaf = chain.next()?;
        let authority = chain.next_back()?;
        Some(Self { leaf, authority })
    }

    /// What the administrator compares with what the other host shows.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.authority)
    }

    /// The names that its certificate carries.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&self.leaf) else {
            return Vec::new();
        };
        let Ok(Some(names)) = parsed.subject_alternative_name() else {
            return Vec::new();
        };
        let names = names.value.general_names.iter();
        names
            .filter_map(|name| match name {
                x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect()
    }

    /// The authority's certificate as PEM, if this is the host that was meant.
    ///
    /// # Errors
    /// [`Code::Forbidden`] when the fingerprint or the name is another.
    pub fn accept(
        &self,
        name: &str,
        fingerprint: Fingerprint,
        now: UnixTime,
    ) -> Result<String, Problem> {
        let refuse = |reason: String, way_out: &str| {
            Problem::new(Code::Forbidden, format!("host `{name}`"), reason, way_out)
        };
        let found = self.fingerprint();
        if found != fingerprint {
            return Err(refuse(
                format!("shows the fingerprint {found}, not {fingerprint}"),
                "`pollux host identity` on it shows the right one; if they differ, somebody \
                 else answers at that address",
            ));
        }
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if !chains(&self.leaf, &[], &self.authority, name, seconds) {
            let names = self.names().join("`, `");
            return Err(refuse(
                format!("does not show a valid certificate for that name, but for `{names}`"),
                "trust it under the name it shows, and compare the clocks of both hosts",
            ));
        }
        Ok(pem(&self.authority))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_an_address_that_cannot_be_is_refused_with_a_way_out() {
        for address in ["host-b:8443", "10.0.0.2:1", "[fd00::2]:65535"] {
            assert_eq!(check_peer("host-b", address), Ok(()), "{address}");
        }
        let wrong = [
            "",
            "host-b",
            ":8443",
            "host-b:",
            "host-b:0",
            "host-b:65536",
            "b:x",
        ];
        for address in wrong {
            let problem = check_peer("host-b", address).expect_err(address);
            assert_eq!(problem.code, Code::Invalid, "{address}");
            assert!(
                problem.way_out.contains("pollux host identity"),
                "{problem}"
            );
        }
        let problem = check_peer("Host_B", "host-b:8443").expect_err("no host name");
        assert_eq!(problem.code, Code::Invalid);
        assert!(problem.way_out.contains("--name"), "{problem}");
    }

    #[test]
    fn a_peer_that_a_full_disk_cannot_keep_is_told_from_one_that_cannot_be_written() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let problem = not_stored("host-b", &kind.into());
            assert_eq!(problem.code, Code::Full);
            assert!(problem.way_out.contains("room"), "{problem}");
        }
        let other = not_stored("host-b", &io::ErrorKind::PermissionDenied.into());
        assert_eq!(other.code, Code::Failed);
    }
}
