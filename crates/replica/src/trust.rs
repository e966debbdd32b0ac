//! Which peers this host trusts, and for which names each.
//!
//! ```text
//!   peers/castor.toml          one host: its address, its authority
//!   peers/*.example.com.toml   the hosts of a domain, by one authority (a PKI's)
//!   peers/<fingerprint>.crl    what an authority took back
//! ```
//!
//! An authority is trusted only for the names that were accepted with it; only subject alternative
//! names count. A host that is trusted by its own name is not let in by its domain's authority. A peer
//! that could not be asked when it was trusted is known by its authority's fingerprint alone, and
//! shows the authority whenever it connects. What is trusted changes at run time: every handshake
//! and every request looks here.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use model::{Bytes, Code, Problem};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use crate::authorization::Pattern;
use crate::certificate::{Flaw, is_authority, names, read_authority, verify};
use crate::host::Principal;
use crate::identity::{Fingerprint, pem};
use crate::revocation::{self, Revoked};

const VERSION: u32 = 2;
const MAX_FILE: u64 = 64 * 1024;
/// Refused certificates that are remembered.
const MAX_STRANGERS: usize = 16;

/// A trusted peer, or the trusted peers of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    version: u32,
    /// Its name: the file's, and the one its certificate must carry.
    pub name: Pattern,
    /// `host:port` of its replica endpoint; of a domain's peers `*:port`: each by its own name.
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
        let pattern = check_peer(name, address)?;
        let certificate = peers_authority(&pattern, authority)?;
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
        Ok(Self {
            version: VERSION,
            name: check_peer(name, address)?,
            address: address.to_owned(),
            store_limit,
            fingerprint,
            authority: None,
        })
    }

    fn check(&self) -> Result<Option<CertificateDer<'static>>, Problem> {
        check_peer(&self.name.to_string(), &self.address)?;
        let Some(authority) = &self.authority else {
            return Ok(None);
        };
        let certificate = peers_authority(&self.name, authority)?;
        let found = Fingerprint::of(&certificate);
        if found != self.fingerprint {
            let reason = format!("has an authority with another fingerprint, {found}");
            let thing = format!("peer `{}`", self.name);
            return Err(Problem::new(Code::Invalid, thing, reason, ""));
        }
        Ok(Some(certificate))
    }
}

fn peers_authority(name: &Pattern, text: &str) -> Result<CertificateDer<'static>, Problem> {
    read_authority(text).map_err(|reason| {
        let way_out = "give the certificate of the peer's authority in PEM form";
        Problem::new(Code::Invalid, format!("peer `{name}`"), reason, way_out)
    })
}

/// Checks the name and the address of a peer before anybody is asked there.
///
/// # Errors
/// [`Code::Invalid`]
pub fn check_peer(name: &str, address: &str) -> Result<Pattern, Problem> {
    let shown = "`pollux host identity` on that host shows";
    let pattern = name.parse::<Pattern>().map_err(|error| {
        let way_out = format!("{shown} its name; `polluxd --name` gives it another");
        Problem::new(Code::Invalid, "the peer's name", error.to_string(), way_out)
    })?;
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    let good = address.rsplit_once(':').is_some_and(|(host, given)| {
        let host = match pattern {
            Pattern::Exact(_) => !host.is_empty() && host != "*",
            Pattern::Domain(_) => host == "*",
        };
        host && port(given)
    });
    if good && address.len() <= 300 {
        return Ok(pattern);
    }
    let given: String = address.chars().take(300).collect();
    Err(match pattern {
        Pattern::Exact(name) => Problem::new(
            Code::Invalid,
            format!("the address of host `{name}`"),
            format!("is `{given}`, not a host and a port, such as `{name}:8443`"),
            format!("{shown} its port"),
        ),
        Pattern::Domain(domain) => Problem::new(
            Code::Invalid,
            format!("the address of the hosts of `{domain}`"),
            format!("is `{given}`, not `*` and their port"),
            "give `*:8443`: each is reached by its own name at that port",
        ),
    })
}

/// What is kept of a peer, ready for verification.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// As it stands in its file.
    pub peer: Peer,
    authority: Option<CertificateDer<'static>>,
}

/// One trusted host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    /// What lets it in.
    pub known: Arc<Known>,
    /// Its name.
    pub name: String,
}

/// A certificate that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// The names it is for.
    pub names: Vec<String>,
    /// Fingerprint of the authority that it was shown with, if it was.
    pub authority: Option<Fingerprint>,
    /// What is wrong with it.
    pub flaw: Flaw,
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
    all: RwLock<All>,
    /// The last certificates that were refused, each once.
    strangers: Mutex<VecDeque<Stranger>>,
}

#[derive(Debug, Default)]
struct All {
    peers: BTreeMap<Pattern, Arc<Known>>,
    revoked: BTreeMap<String, Arc<Revoked>>,
}

impl All {
    /// Whoever lets the host `name` in: itself before its domain.
    fn find(&self, name: &str) -> Option<Trusted> {
        let exact = self.peers.get(&Pattern::Exact(name.to_owned()));
        let domain = || {
            let (_, domain) = name.split_once('.')?;
            self.peers.get(&Pattern::Domain(domain.to_owned()))
        };
        let known = exact.or_else(domain)?.clone();
        known.peer.name.matches(name).then(|| Trusted {
            known,
            name: name.to_owned(),
        })
    }

    /// Whether `leaf` is the certificate of `trusted`.
    fn check(
        &self,
        trusted: &Trusted,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        now: i64,
    ) -> Result<(), Flaw> {
        let authority = trusted.authority(shown).ok_or(Flaw::Untrusted)?;
        let revoked = self.revoked.get(&hex(trusted.known.peer.fingerprint));
        let revoked = revoked.map(|revoked| &revoked.list);
        verify(leaf, shown, authority, revoked, &trusted.name, now)
    }
}

/// The digits of a fingerprint: safe in the name of a file.
fn hex(fingerprint: Fingerprint) -> String {
    fingerprint.to_string().replace("sha256:", "")
}

impl Trust {
    /// Loads every `*.toml` and `*.crl` of `folder`, which is made if absent.
    ///
    /// # Errors
    /// [`TrustError`] names the file; one that cannot be read is not passed over.
    pub fn open(folder: &Path) -> Result<Self, TrustError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| TrustError::Io { path, source }
        };
        durable::create_folder(folder).map_err(io(folder))?;
        let mut all = All::default();
        for entry in std::fs::read_dir(folder).map_err(io(folder))? {
            let path = entry.map_err(io(folder))?.path();
            let part = |part: Option<&std::ffi::OsStr>| {
                let part = part.unwrap_or_default().to_string_lossy();
                part.into_owned()
            };
            let stem = part(path.file_stem());
            // A leading dot is a temporary file of a write that a crash cut short.
            if part(path.file_name()).starts_with('.') {
                continue;
            }
            let damaged = |reason: String| TrustError::Damaged {
                path: path.clone(),
                reason,
            };
            match part(path.extension()).as_str() {
                "toml" => {
                    let known = load(&path).map_err(io(&path))?.map_err(damaged)?;
                    if known.peer.name.to_string() != stem {
                        return Err(damaged(format!("it names `{}`", known.peer.name)));
                    }
                    all.peers.insert(known.peer.name.clone(), Arc::new(known));
                }
                revocation::EXTENSION => {
                    let revoked = Revoked::load(&path).map_err(io(&path))?;
                    let revoked = revoked.map_err(|reason| damaged(format!("it {reason}")))?;
                    all.revoked.insert(stem, Arc::new(revoked));
                }
                _ => {}
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            all: RwLock::new(all),
            strangers: Mutex::default(),
        })
    }

    /// All peers, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Known>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.peers.values().cloned().collect()
    }

    /// The peer of that name.
    ///
    /// # Errors
    /// [`Code::NotFound`]
    pub fn get(&self, name: &str) -> Result<Trusted, Problem> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.find(name).ok_or_else(|| unknown(name))
    }

    /// Trusts `peer` from now on, instead of what was known under its name. Blocking.
    ///
    /// # Errors
    /// [`Problem`]
    pub fn trust(&self, peer: Peer) -> Result<(), Problem> {
        let authority = peer.check()?;
        let text = toml::to_string_pretty(&peer).expect("every field has a TOML form");
        // Held over the write, so that file and memory change in the same order.
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        durable::replace(&self.file(&peer.name), text.as_bytes())
            .map_err(|e| not_stored(&peer.name.to_string(), &e))?;
        let known = Known { peer, authority };
        let name = known.peer.name.clone();
        all.peers.insert(name.clone(), Arc::new(known));
        drop(all);
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        strangers.retain(|stranger| !stranger.names.iter().any(|one| name.matches(one)));
        Ok(())
    }

    /// Trusts the peer of that name, or the peers of that pattern, no longer. Blocking.
    ///
    /// # Errors
    /// [`Code::NotFound`], or the file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), Problem> {
        let pattern: Pattern = name.parse().map_err(|_error| unknown(name))?;
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if !all.peers.contains_key(&pattern) {
            return Err(unknown(name));
        }
        match durable::remove(&self.file(&pattern)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Problem::failed(format!("peer `{name}`"), &error)),
        }
        all.peers.remove(&pattern);
        Ok(())
    }

    /// Takes in what an authority took back; the fingerprint of that authority. Blocking.
    ///
    /// # Errors
    /// [`Code::Forbidden`] when no trusted authority made it, [`Code::Conflict`] when a newer one is
    /// known; or the file cannot be written.
    pub fn revoke(&self, revoked: Revoked) -> Result<Fingerprint, Problem> {
        let thing = "the list of revoked certificates";
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let made_it = |known: &&Arc<Known>| {
            let authority = known.authority.as_ref();
            authority.is_some_and(|authority| revoked.is_from(authority))
        };
        let Some(known) = all.peers.values().find(made_it) else {
            let reason = "is not from an authority that is trusted here";
            let way_out = "run `pollux host trust NAME ADDRESS --authority FILE` with its \
                           certificate first";
            return Err(Problem::new(Code::Forbidden, thing, reason, way_out));
        };
        let fingerprint = known.peer.fingerprint;
        let digits = hex(fingerprint);
        if all
            .revoked
            .get(&digits)
            .is_some_and(|old| old.made > revoked.made)
        {
            let reason = "is older than the one that this host has";
            return Err(Problem::new(
                Code::Conflict,
                thing,
                reason,
                "get the newest",
            ));
        }
        let name = format!("{digits}.{}", revocation::EXTENSION);
        durable::replace(&self.folder.join(name), &revoked.der)
            .map_err(|error| not_stored(thing, &error))?;
        all.revoked.insert(digits, Arc::new(revoked));
        Ok(fingerprint)
    }

    /// What the authority of `known` took back, if it said.
    #[must_use]
    pub fn revoked(&self, known: &Known) -> Option<Arc<Revoked>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.revoked.get(&hex(known.peer.fingerprint)).cloned()
    }

    fn file(&self, name: &Pattern) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }

    /// The one peer of which `leaf` is the certificate.
    ///
    /// # Errors
    /// [`Stranger`]: there is no such peer, or the certificate serves for several of them.
    pub fn identify(
        &self,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Trusted, Stranger> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let names = names(leaf);
        let stranger = |flaw| {
            let authority = shown.iter().rev().find(|one| is_authority(one));
            Stranger {
                names: names.clone(),
                authority: authority.map(|one| Fingerprint::of(one)),
                flaw,
            }
        };
        let mut found: Option<Trusted> = None;
        let mut worst = Flaw::Untrusted;
        for name in &names {
            let Some(trusted) = all.find(name) else {
                continue;
            };
            match all.check(&trusted, leaf, shown, now) {
                Ok(()) if found.as_ref().is_some_and(|other| other.name != *name) => {
                    return Err(stranger(Flaw::WrongName {
                        names: names.clone(),
                    }));
                }
                Ok(()) => found = Some(trusted),
                Err(flaw) if flaw.rank() > worst.rank() => worst = flaw,
                Err(_) => {}
            }
        }
        if let Some(found) = found {
            return Ok(found);
        }
        // Of a trusted authority, and for somebody whom it was not trusted for?
        let issued = |known: &&Arc<Known>| {
            let trusted = Trusted {
                known: Arc::clone(known),
                name: String::new(),
            };
            matches!(
                all.check(&trusted, leaf, shown, now),
                Err(Flaw::WrongName { .. })
            )
        };
        if worst.rank() == 0 && all.peers.values().any(|known| issued(&known)) {
            worst = Flaw::WrongName {
                names: names.clone(),
            };
        }
        Err(stranger(worst))
    }

    /// Whether `leaf` is the certificate of `trusted` at `now`.
    ///
    /// # Errors
    /// [`Flaw`]
    pub(crate) fn check(
        &self,
        trusted: &Trusted,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Flaw> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.check(trusted, leaf, shown, now)
    }

    /// Remembers who was refused; whether that is news.
    pub(crate) fn refused(&self, stranger: Stranger) -> bool {
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if strangers.contains(&stranger) {
            return false;
        }
        strangers.truncate(MAX_STRANGERS - 1);
        strangers.push_front(stranger);
        true
    }

    /// Forgets that peer `name`, which shows a good certificate now, was refused for one that was out of date.
    pub(crate) fn let_in(&self, name: &str) {
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        strangers.retain(|stranger| {
            let out_of_date = matches!(stranger.flaw, Flaw::Expired { .. } | Flaw::NotYet { .. });
            !(out_of_date && stranger.names.iter().any(|one| one == name))
        });
    }

    /// Who was refused and is not trusted since, nor let in if the time was the reason, the last one first,
    /// each once.
    #[must_use]
    pub fn strangers(&self) -> Vec<Stranger> {
        let strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        strangers.iter().cloned().collect()
    }
}

fn unknown(name: &str) -> Problem {
    let way_out = "`pollux host trust` makes it known; `pollux host peers` lists the known";
    let reason = "is not trusted by this host";
    let name: String = name.chars().take(200).collect();
    Problem::new(Code::NotFound, format!("host `{name}`"), reason, way_out)
}

fn load(path: &Path) -> io::Result<Result<Known, String>> {
    let len = std::fs::metadata(path)?.len();
    if len > MAX_FILE {
        return Ok(Err(format!("it has {len} bytes, more than {MAX_FILE}")));
    }
    let text = std::fs::read_to_string(path)?;
    let read = || {
        let peer: Peer = toml::from_str(&text).map_err(|e| e.to_string())?;
        if peer.version != VERSION {
            return Err(format!("it has version {}, not {VERSION}", peer.version));
        }
        let authority = peer.check().map_err(|e| e.to_string())?;
        Ok(Known { peer, authority })
    };
    Ok(read())
}

impl Known {
    /// Its authority's certificate, if it was seen.
    #[must_use]
    pub fn authority(&self) -> Option<&CertificateDer<'static>> {
        self.authority.as_ref()
    }
}

impl Trusted {
    /// `host:port` of its replica endpoint.
    #[must_use]
    pub fn address(&self) -> String {
        let address = &self.known.peer.address;
        match address.strip_prefix("*:") {
            Some(port) => format!("{}:{port}", self.name),
            None => address.clone(),
        }
    }

    /// Its authority's certificate: as it is kept, or among those that it shows.
    fn authority<'a>(&'a self, shown: &'a [CertificateDer<'_>]) -> Option<&'a CertificateDer<'a>> {
        let fingerprint = self.known.peer.fingerprint;
        let shown = || {
            let mut shown = shown.iter();
            shown.find(|one| Fingerprint::of(one) == fingerprint && is_authority(one))
        };
        self.known.authority.as_ref().or_else(shown)
    }

    /// As requests see it.
    #[must_use]
    pub fn principal(&self) -> Principal {
        Principal {
            name: self.name.clone(),
        }
    }
}

impl Stranger {
    /// Who was refused, why, and how it would be let in.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let Self {
            names,
            authority,
            flaw,
        } = self;
        let name = names.first().map_or("<name>", String::as_str);
        let name: String = name.chars().take(200).collect();
        let way_out = match flaw {
            Flaw::Expired { .. } | Flaw::Revoked | Flaw::Usage => format!(
                "give it another: run `pollux host certificate FILE --key FILE --authority FILE` on `{name}`"
            ),
            Flaw::NotYet { .. } => Flaw::waits(&name),
            Flaw::WrongName { .. } | Flaw::Untrusted | Flaw::Unreadable => {
                let shown = authority.map_or("<fingerprint>".to_owned(), |one| one.to_string());
                format!(
                    "if it is to be trusted, compare with `pollux host identity` there and run \
                     `pollux host trust {name} <address> {shown}`"
                )
            }
        };
        let reason = format!("was refused: its certificate {flaw}");
        Problem::new(Code::Forbidden, format!("host `{name}`"), reason, way_out)
    }
}

fn not_stored(thing: &str, error: &io::Error) -> Problem {
    let thing = format!("`{thing}`");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Problem {
            code: Code::Full,
            way_out: "make room in the file system of the state folder, then try again".to_owned(),
            ..Problem::failed(thing, error)
        },
        _ => Problem::failed(thing, error),
    }
}

/// What a host presented when it was asked who it is. Nothing of it is trusted yet.
#[derive(Debug, Clone)]
pub struct Presented {
    leaf: CertificateDer<'static>,
    /// The last of them is the authority's.
    others: Vec<CertificateDer<'static>>,
}

impl Presented {
    /// The chain that a handshake brought: leaf first, its authority last.
    pub(crate) fn new(chain: Vec<CertificateDer<'static>>) -> Option<Self> {
        let mut chain = chain.into_iter();
        let leaf = chain.next()?;
        let others: Vec<_> = chain.collect();
        (!others.is_empty()).then_some(Self { leaf, others })
    }

    fn authority(&self) -> &CertificateDer<'static> {
        self.others.last().unwrap_or(&self.leaf)
    }

    /// What the administrator compares with what the other host shows.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.authority())
    }

    /// The names that its certificate carries.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        names(&self.leaf)
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
        let authority = self.authority();
        match verify(&self.leaf, &self.others, authority, None, name, seconds) {
            Ok(()) => Ok(pem(authority)),
            Err(flaw) => Err(refuse(
                format!("shows a certificate that {flaw}"),
                match flaw {
                    Flaw::WrongName { .. } => "trust it under the name it shows",
                    Flaw::Expired { .. } | Flaw::NotYet { .. } => {
                        "compare the clocks of both hosts; if they are right, run `pollux host \
                         certificate` on it, with a certificate that is valid now"
                    }
                    _ => "run `pollux host certificate` on it, with a certificate that serves",
                },
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_an_address_that_cannot_be_is_refused_with_a_way_out() {
        for address in ["host-b:8443", "10.0.0.2:1", "[fd00::2]:65535"] {
            assert!(check_peer("host-b", address).is_ok(), "{address}");
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
        assert!(check_peer("*.example.com", "*:8443").is_ok());
        for address in ["host-b:8443", "*:0", "*", "a*:1"] {
            let problem = check_peer("*.example.com", address).expect_err(address);
            assert!(problem.way_out.contains("`*:8443`"), "{problem}");
        }
        check_peer("host-b", "*:8443").expect_err("of one host");
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
