//! Who this host is to its peers: an authority of its own, and a certificate from it; or a certificate
//! that it was given, from a PKI's.
//!
//! ```text
//!   identity/authority.pem   key and self-signed certificate, made once: its fingerprint is
//!                            what a peer's administrator compares
//!   identity/host.pem        key and certificate for the host's name, from that authority;
//!                            renewed, also while it is in use, when less than a third of its
//!                            life is left
//!   identity/given.pem       key, certificate and its chain up to the authority, as they were
//!                            given: presented instead while the file is there, never renewed here
//! ```
//!
//! Each file is replaced as a whole, so that a key never stands beside another key's certificate.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use model::{Code, Problem};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::certificate::Flaw;

const AUTHORITY: &str = "authority.pem";
const HOST: &str = "host.pem";
const GIVEN: &str = "given.pem";
const AUTHORITY_DAYS: i64 = 30 * 365;
const HOST_DAYS: i64 = 2 * 365;
const DAY_S: i64 = 86_400;
const HOUR_S: i64 = 3600;
/// So long before its end a certificate is warned of.
const WARN_S: i64 = 30 * DAY_S;
/// Most certificates between a host's and its authority's.
const MAX_CHAIN: usize = 8;
const MAX_FILE: usize = 64 * 1024;

/// SHA-256 of an authority's certificate in DER. Text form: `sha256:` and 64 hex digits; colons
/// between the digits and upper case are read too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

/// Text that should have been a [`Fingerprint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a fingerprint (expected `sha256:` and 64 hexadecimal digits)")]
pub struct ParseFingerprintError(String);

impl Fingerprint {
    /// Of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = ring_crypto::digest::digest(&ring_crypto::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = ParseFingerprintError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = ParseFingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseFingerprintError(text.chars().take(100).collect());
        let digits = text.trim();
        let digits = digits
            .get(..7)
            .filter(|start| start.eq_ignore_ascii_case("sha256:"))
            .map_or(digits, |_| &digits[7..]);
        let hex: String = digits.chars().filter(|c| *c != ':').collect();
        match blake3::Hash::from_hex(hex.to_ascii_lowercase()) {
            Ok(bytes) => Ok(Self(bytes.into())),
            Err(_) => Err(refuse()),
        }
    }
}

/// The identity cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a name that a certificate can carry.
    #[error(transparent)]
    Name(#[from] HostNameError),
    /// The operating system refused.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is damaged. Never replaced by itself: peers trust what was in it.
    #[error("{} does not hold a key and its certificate: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// A name that hosts cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a host name (expected lower-case letters, digits, `-` and `.`, such as `host-a`)"
)]
pub struct HostNameError(String);

/// Checks a host's name: a DNS name in lower case, so that it is safe in certificates and paths.
///
/// # Errors
/// [`HostNameError`]
pub fn check_host_name(name: &str) -> Result<(), HostNameError> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    // All digits would read as an IPv4 address in a certificate.
    let number = name
        .split('.')
        .next_back()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if name.len() <= 200 && !number && name.split('.').all(label) {
        Ok(())
    } else {
        Err(HostNameError(name.chars().take(100).collect()))
    }
}

/// This host's authority and its certificate.
pub struct Identity {
    folder: PathBuf,
    name: String,
    authority: CertificateDer<'static>,
    leaf: Mutex<Arc<Leaf>>,
    /// From a PKI.
    given: Mutex<Option<Arc<Leaf>>>,
    address: Mutex<Option<String>>,
}

/// What a host presents to its peers.
pub struct Leaf {
    /// The host's certificate, those in between, and the authority's.
    pub chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// From when on it is to be renewed, in seconds of Unix time.
    renew: i64,
}

impl Leaf {
    fn new(host: &Pair, authority: &CertificateDer<'static>) -> Self {
        Self {
            chain: vec![host.certificate.clone(), authority.clone()],
            key: PrivatePkcs8KeyDer::from(host.key.serialize_der()).into(),
            renew: renew(&host.certificate).unwrap_or(i64::MIN),
        }
    }

    /// The key of the host's certificate.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// What was given: a key, and certificates from the host's to the authority's.
    fn read(text: &[u8]) -> Result<Self, String> {
        let key = PrivateKeyDer::from_pem_slice(text)
            .map_err(|error| format!("has no private key in PEM form: {error}"))?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(text)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("has a certificate that cannot be read: {error}"))?;
        if chain.len() < 2 || chain.len() > MAX_CHAIN + 2 {
            let count = chain.len();
            return Err(format!("has {count} certificates, with the authority's"));
        }
        let provider = rustls::crypto::ring::default_provider();
        rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    "has a private key that is not the certificate's".to_owned()
                }
                error => format!("has a private key that is of no use: {error}"),
            },
        )?;
        Ok(Self {
            chain,
            key,
            renew: i64::MAX,
        })
    }

    fn authority(&self) -> &CertificateDer<'static> {
        // It has two at least.
        &self.chain[self.chain.len() - 1]
    }

    /// Whether peers that trust the authority take it for the host `name`.
    fn check(&self, name: &str, now: Timestamp) -> Result<(), Flaw> {
        let (leaf, others) = (&self.chain[0], &self.chain[1..]);
        let now = now.as_second();
        crate::certificate::verify(leaf, others, self.authority(), None, name, now)
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        let chain = &self.chain;
        f.debug_struct("Leaf")
            .field("chain", chain)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "identity of {}, {}", self.name, self.fingerprint())
    }
}

/// A key and its certificate, as one file holds them.
struct Pair {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl Pair {
    fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let damaged = |reason: String| IdentityError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = path.to_owned();
                return Err(IdentityError::Io { path, source });
            }
        };
        if bytes.len() > MAX_FILE {
            return Err(damaged(format!("it has {} bytes", bytes.len())));
        }
        let key = PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let certificate =
            CertificateDer::from_pem_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|e| damaged(e.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|e| damaged(e.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(damaged("the certificate is of another key".to_owned()));
        }
        Ok(Some(Self { key, certificate }))
    }

    fn store(&self, path: &Path) -> Result<(), IdentityError> {
        let text = self.key.serialize_pem() + &pem(&self.certificate);
        durable::replace(path, text.as_bytes()).map_err(|source| IdentityError::Io {
            path: path.to_owned(),
            source,
        })
    }
}

impl Identity {
    /// Opens the identity of the host `name` in `folder`; makes what is missing, renews what
    /// nears its end at `now`.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn open(folder: &Path, name: &str, now: Timestamp) -> Result<Self, IdentityError> {
        check_host_name(name)?;
        durable::create_folder(folder).map_err(|source| IdentityError::Io {
            path: folder.to_owned(),
            source,
        })?;
        let authority = match Pair::load(&folder.join(AUTHORITY))? {
            Some(pair) => pair,
            None => {
                let pair = make_authority(name, now)?;
                pair.store(&folder.join(AUTHORITY))?;
                pair
            }
        };
        let host = match Pair::load(&folder.join(HOST))? {
            Some(pair) if serves(&pair.certificate, &authority.certificate, name, now) => pair,
            _ => {
                let pair = make_host(&authority, name, now)?;
                pair.store(&folder.join(HOST))?;
                pair
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            leaf: Mutex::new(Arc::new(Leaf::new(&host, &authority.certificate))),
            authority: authority.certificate,
            given: Mutex::new(load_given(&folder.join(GIVEN))?.map(Arc::new)),
            address: Mutex::default(),
        })
    }

    /// Presents a certificate from a PKI from now on: `certificate` may bring those in between
    /// along, `authority` is the one that peers trust. All PEM. Blocking.
    ///
    /// # Errors
    /// [`Problem`] says what is wrong with it; nothing changed.
    pub fn give(
        &self,
        certificate: &str,
        key: &str,
        authority: &str,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let invalid = |thing: &str, reason: String, way_out: &str| {
            Problem::new(Code::Invalid, thing, reason, way_out)
        };
        let authority = crate::certificate::read_authority(authority)
            .map_err(|reason| invalid("the authority", reason, "give its certificate as PEM"))?;
        let text = format!("{key}\n{certificate}\n{}", pem(&authority));
        if text.len() > MAX_FILE {
            let reason = format!("has more than {MAX_FILE} bytes");
            return Err(invalid("the certificate", reason, ""));
        }
        let name = self.name();
        let way_out = "give the host's certificate and its key, both PEM";
        let given = Leaf::read(text.as_bytes())
            .map_err(|reason| invalid("the certificate", reason, way_out))?;
        given.check(name, now).map_err(|flaw| {
            let way_out = match flaw {
                Flaw::WrongName { .. } => format!(
                    "have one made with the subject alternative name `DNS:{name}`, or give the \
                     host that name with `polluxd --name`"
                ),
                Flaw::Untrusted => "give the authority that issued it with --authority, and the \
                                    certificates in between in the file of the certificate"
                    .to_owned(),
                Flaw::Usage => "have one made with the extended key usages serverAuth and \
                                clientAuth"
                    .to_owned(),
                Flaw::Expired { .. } | Flaw::NotYet { .. } | Flaw::Revoked => {
                    "have one made that is valid now; or set the clock".to_owned()
                }
                Flaw::Unreadable => way_out.to_owned(),
            };
            invalid("the certificate", flaw.to_string(), &way_out)
        })?;
        let mut kept = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        durable::replace(&self.folder.join(GIVEN), text.as_bytes())
            .map_err(|error| Problem::failed("the certificate", &error))?;
        *kept = Some(Arc::new(given));
        Ok(())
    }

    /// Presents a certificate of the host's own authority again. Blocking.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn take_back(&self) -> Result<(), Problem> {
        let mut kept = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        match durable::remove(&self.folder.join(GIVEN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Problem::failed("the certificate", &error));
            }
            _ => *kept = None,
        }
        Ok(())
    }

    fn given(&self) -> Option<Arc<Leaf>> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.clone()
    }

    /// Whether what is presented was given, rather than made here.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.given().is_some()
    }

    /// What is wrong with what is presented at `now`, by this host's clock.
    #[must_use]
    pub fn flaw(&self, now: Timestamp) -> Option<Flaw> {
        self.leaf(now).check(&self.name, now).err()
    }

    /// Until when what is presented is valid.
    #[must_use]
    pub fn valid_until(&self, now: Timestamp) -> Option<Timestamp> {
        let (_, until) = crate::certificate::validity(&self.leaf(now).chain[0])?;
        Timestamp::from_second(until).ok()
    }

    /// What is wrong with what is presented at `now`, or will be within 30 days.
    #[must_use]
    pub fn warning(&self, now: Timestamp) -> Option<Problem> {
        let leaf = self.leaf(now);
        let until = crate::certificate::validity(&leaf.chain[0])?.1;
        let reason = match leaf.check(&self.name, now) {
            Err(flaw) => flaw.to_string(),
            Ok(()) if until.saturating_sub(now.as_second()) < WARN_S => {
                format!("expires on {}", crate::certificate::day(until))
            }
            Ok(()) => return None,
        };
        let way_out = if self.is_given() {
            "give it a new one: `pollux host certificate FILE --key FILE --authority FILE`"
        } else {
            "it is renewed by itself, unless polluxd's log says why it cannot be"
        };
        let thing = "the certificate of this host";
        Some(Problem::new(Code::Conflict, thing, reason, way_out))
    }

    /// Says by which `host:port` peers reach this host: for messages.
    pub fn reached_at(&self, address: String) {
        let mut told = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        *told = Some(address);
    }

    /// By which `host:port` peers reach this host, as far as is known.
    #[must_use]
    pub fn address(&self) -> String {
        let told = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone().unwrap_or_else(|| "<address>".to_owned())
    }

    /// What to present at `now`. Blocks for a moment when it has to be renewed; if that fails, the
    /// old one serves on and it is tried again an hour later.
    #[must_use]
    pub fn leaf(&self, now: Timestamp) -> Arc<Leaf> {
        if let Some(given) = self.given() {
            return given;
        }
        let mut leaf = self.leaf.lock().unwrap_or_else(PoisonError::into_inner);
        if now.as_second() >= leaf.renew {
            match self.renewed(now) {
                Ok(renewed) => {
                    tracing::info!(name = self.name, "the host's certificate was renewed");
                    *leaf = Arc::new(renewed);
                }
                Err(error) => {
                    let reason: &dyn std::error::Error = &error;
                    tracing::error!(reason, "the host's certificate cannot be renewed");
                    *leaf = Arc::new(Leaf {
                        chain: leaf.chain.clone(),
                        key: leaf.key(),
                        renew: now.as_second().saturating_add(HOUR_S),
                    });
                }
            }
        }
        leaf.clone()
    }

    fn renewed(&self, now: Timestamp) -> Result<Leaf, IdentityError> {
        let path = self.folder.join(AUTHORITY);
        // Its key is not kept in memory for the years in between.
        let authority = Pair::load(&path)?.filter(|pair| pair.certificate == self.authority);
        let authority = authority.ok_or_else(|| IdentityError::Damaged {
            path,
            reason: "it is not the authority that peers were told of".to_owned(),
        })?;
        let host = make_host(&authority, &self.name, now)?;
        host.store(&self.folder.join(HOST))?;
        Ok(Leaf::new(&host, &self.authority))
    }

    /// The host's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a peer's administrator compares.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        match self.given() {
            Some(given) => Fingerprint::of(given.authority()),
            None => Fingerprint::of(&self.authority),
        }
    }

    /// The authority's certificate, for a peer that takes it from a file.
    #[must_use]
    pub fn authority_pem(&self) -> String {
        match self.given() {
            Some(given) => pem(given.authority()),
            None => pem(&self.authority),
        }
    }
}

fn load_given(path: &Path) -> Result<Option<Leaf>, IdentityError> {
    let damaged = |reason: String| IdentityError::Damaged {
        path: path.to_owned(),
        reason: format!("it {reason}"),
    };
    match std::fs::read(path) {
        Ok(text) if text.len() > MAX_FILE => Err(damaged(format!("has {} bytes", text.len()))),
        Ok(text) => Leaf::read(&text).map(Some).map_err(damaged),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            let path = path.to_owned();
            Err(IdentityError::Io { path, source })
        }
    }
}

/// The text form of a certificate.
#[must_use]
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = base64(certificate);
    for line in encoded.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |n: usize| u32::from(group.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let digit = (bits >> (18 - 6 * n)) & 63;
            text.push(if n <= group.len() {
                char::from(ALPHABET[digit as usize])
            } else {
                '='
            });
        }
    }
    text
}

/// A certificate's life from the day before `now`, so that a clock a little behind accepts it.
fn live(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let day = |seconds: i64| {
        let at = Timestamp::from_second(seconds).unwrap_or(now);
        let date = at.to_zoned(TimeZone::UTC).date();
        rcgen::date_time_ymd(
            i32::from(date.year()),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    };
    params.not_before = day(now.as_second().saturating_sub(DAY_S));
    params.not_after = day(now.as_second().saturating_add(days * DAY_S));
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Pollux authority of {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn make_authority(name: &str, now: Timestamp) -> Result<Pair, IdentityError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = authority_params(name);
    live(&mut params, now, AUTHORITY_DAYS);
    let certificate = params.self_signed(&key)?.der().clone();
    Ok(Pair { key, certificate })
}

fn make_host(authority: &Pair, name: &str, now: Timestamp) -> Result<Pair, IdentityError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    live(&mut params, now, HOST_DAYS);
    let issuer = Issuer::from_ca_cert_der(&authority.certificate, &authority.key)?;
    let certificate = params.signed_by(&key, &issuer)?.der().clone();
    Ok(Pair { key, certificate })
}

/// Whether a host's certificate needs no renewal: it is from this authority, for this name, and
/// has a third of its life left.
fn serves(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
    name: &str,
    now: Timestamp,
) -> bool {
    let now = now.as_second();
    let fresh = renew(certificate).is_some_and(|renew| now < renew);
    fresh && crate::certificate::verify(certificate, &[], authority, None, name, now).is_ok()
}

/// From when on less than a third of a certificate's life is left, in seconds of Unix time.
fn renew(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let from = parsed.validity().not_before.timestamp();
    let to = parsed.validity().not_after.timestamp();
    Some(to - to.saturating_sub(from) / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + day * DAY_S).expect("in range")
    }

    #[test]
    fn an_identity_stays_the_same_and_its_certificate_is_renewed_in_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |name, day| {
            let identity = Identity::open(folder.path(), name, at(day)).expect("opens");
            let chain = identity.leaf(at(day)).chain.clone();
            (identity.fingerprint(), chain)
        };
        let first = open("host-a", 0);
        let again = open("host-a", 400);
        assert_eq!(first, again);
        let later = open("host-a", 600);
        assert_eq!(first.0, later.0);
        assert_ne!(first.1, later.1, "less than a third is left");
        let renamed = open("host-b", 601);
        assert_ne!(later.1, renamed.1);
        assert_eq!(first.0, renamed.0);
    }

    #[test]
    fn a_certificate_in_use_is_renewed_and_serves_on_when_it_cannot_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let identity = Identity::open(folder.path(), "host-a", at(0)).expect("opens");
        let chain = |day| identity.leaf(at(day)).chain.clone();
        let first = chain(0);
        assert_eq!(chain(400), first);
        let authority = std::fs::read(folder.path().join(AUTHORITY)).expect("there");
        std::fs::remove_file(folder.path().join(AUTHORITY)).expect("removed");
        assert_eq!(chain(600), first, "it cannot be renewed");
        std::fs::write(folder.path().join(AUTHORITY), authority).expect("written");
        let second = chain(601);
        assert_ne!(second, first);
        let now = at(1200).as_second();
        let good = crate::certificate::verify(&second[0], &[], &second[1], None, "host-a", now);
        assert!(good.is_ok(), "it serves beyond the life of the first");
        assert_eq!(chain(700), second);
        let again = Identity::open(folder.path(), "host-a", at(700)).expect("opens");
        assert_eq!(again.leaf(at(700)).chain, second, "it was stored");
        let signs = rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(
            again.leaf(at(700)).key().secret_der().to_vec(),
        ));
        let (_, parsed) = x509_parser::parse_x509_certificate(&second[0]).expect("a certificate");
        let public = parsed.public_key().subject_public_key.data.as_ref();
        assert_eq!(signs.expect("a key").public_key_raw(), public);
    }

    #[test]
    fn keys_are_readable_by_their_owner_only_and_damage_is_never_papered_over() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("identity");
        Identity::open(&path, "host-a", at(0)).expect("opens");
        for file in [AUTHORITY, HOST] {
            let mode = std::fs::metadata(path.join(file))
                .expect("there")
                .permissions();
            assert_eq!(mode.mode() & 0o777, 0o600, "{file}");
        }
        let host = std::fs::read(path.join(HOST)).expect("there");
        let authority = std::fs::read_to_string(path.join(AUTHORITY)).expect("there");
        let (key, _) = authority
            .split_once("-----BEGIN CERT")
            .expect("a key first");
        let host_text = String::from_utf8(host).expect("text");
        let at_cert = host_text.find("-----BEGIN CERT").expect("a certificate");
        std::fs::write(
            path.join(AUTHORITY),
            format!("{key}{}", &host_text[at_cert..]),
        )
        .expect("written");
        assert!(matches!(
            Identity::open(&path, "host-a", at(0)),
            Err(IdentityError::Damaged { .. })
        ));
    }

    #[test]
    fn a_fingerprint_reads_back_in_the_forms_people_paste() {
        let print = Fingerprint::of(&CertificateDer::from(vec![1, 2, 3]));
        let text = print.to_string();
        assert_eq!(text.parse(), Ok(print));
        let bare = &text[7..];
        assert_eq!(bare.to_uppercase().parse(), Ok(print));
        let pairs: Vec<&str> = (0..32).map(|n| &bare[2 * n..2 * n + 2]).collect();
        assert_eq!(format!("SHA256:{}", pairs.join(":")).parse(), Ok(print));
        for bad in ["", "sha256:", "sha256:00", "é", &"é".repeat(40)] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names_are_safe_in_paths_and_certificates() {
        for good in ["a", "host-a", "host-a.example.org", "10-0-0-1"] {
            assert_eq!(check_host_name(good), Ok(()), "{good}");
        }
        for bad in ["", "..", "a/b", "A", "10.0.0.1", "-a", "a.", "ä", "a b"] {
            assert!(check_host_name(bad).is_err(), "{bad}");
        }
    }
}
