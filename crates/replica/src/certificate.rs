//! Whether a certificate is a host's: one pure decision, and what is wrong if it is not.
//!
//! It is if the authority trusted for that name issued it, to be used by clients and by servers, for
//! now, and did not take it back; and if the name is among its subject alternative names, written
//! out: a name of many hosts (`*.example.com`) says nothing about which of them presents it.

use std::fmt::Write as _;

use jiff::Timestamp;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{CertRevocationList, ExpirationPolicy, RevocationCheckDepth, UnknownStatusPolicy};

/// Most names of a certificate that are looked at: each that is trusted costs a verification.
pub const MAX_NAMES: usize = 64;
/// Most names of a certificate that are told.
const MAX_TOLD: usize = 4;

/// What is wrong with a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It cannot be read.
    #[error("cannot be read")]
    Unreadable,
    /// No trusted authority issued it.
    #[error("is from another authority than the one that is trusted for that name")]
    Untrusted,
    /// The authority issued it for others.
    #[error("is {}", for_names(names))]
    WrongName {
        /// Those that it names.
        names: Vec<String>,
    },
    /// The authority took it back.
    #[error("was revoked by its authority")]
    Revoked,
    /// It was valid until then.
    #[error("expired on {}", day(*at))]
    Expired {
        /// When, in seconds of Unix time.
        at: i64,
    },
    /// It is valid from then on.
    #[error("is not valid before {}", day(*at))]
    NotYet {
        /// When, in seconds of Unix time.
        at: i64,
    },
    /// It may not be used as hosts use theirs.
    #[error("is not for both clients and servers (extended key usage)")]
    Usage,
}

impl Flaw {
    /// Whether whoever presents it is a trusted peer, but for the time or a revocation.
    pub(crate) fn is_of_a_peer(&self) -> bool {
        matches!(
            self,
            Self::Expired { .. } | Self::NotYet { .. } | Self::Revoked
        )
    }

    /// The way out for a certificate that is not valid yet.
    pub(crate) fn waits(host: &str) -> String {
        format!(
            "compare the clocks of both hosts; if they are right, run `pollux host certificate FILE \
             --key FILE --authority FILE` on `{host}` with one that is valid now"
        )
    }

    /// How much is known of whoever presents such a certificate: of several flaws the one that
    /// says most is the one to tell.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Expired { .. } | Self::NotYet { .. } | Self::Revoked => 3,
            Self::Usage => 2,
            Self::WrongName { .. } => 1,
            Self::Untrusted | Self::Unreadable => 0,
        }
    }
}

fn for_names(names: &[String]) -> String {
    let mut text = String::from("for");
    for name in names.iter().take(MAX_TOLD) {
        let shown: String = name.chars().take(100).collect();
        let _ = write!(text, " `{shown}`");
    }
    match names.len() {
        0 => "for no DNS name".to_owned(),
        n if n > MAX_TOLD => text + " and others",
        _ => text,
    }
}

/// Such as `2026-11-29`.
pub(crate) fn day(second: i64) -> String {
    let at = Timestamp::from_second(second);
    at.map_or_else(
        |_| second.to_string(),
        |at| at.strftime("%Y-%m-%d").to_string(),
    )
}

/// The DNS names that a certificate is for, in lower case: [`MAX_NAMES`] of them at most, and none that
/// could not be a host's. A stranger writes them, and they are shown to people, in commands as well.
#[must_use]
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    let names = names.value.general_names.iter();
    names
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .filter(|name| is_name(name))
        .take(MAX_NAMES)
        .collect()
}

/// Whether a text looks like a host's name, or like that of many.
fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte);
    (1..=253).contains(&text.len()) && text.bytes().all(good)
}

/// From when to when a certificate is valid, in seconds of Unix time.
#[must_use]
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let validity = parsed.validity();
    Some((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

/// The certificate of an authority, from PEM text.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn read_authority(text: &str) -> Result<CertificateDer<'static>, String> {
    let certificate = CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|error| format!("has no certificate in PEM form: {error}"))?;
    webpki::anchor_from_trusted_cert(&certificate)
        .map_err(|error| format!("has a certificate that cannot be read: {error}"))?;
    if is_authority(&certificate) {
        Ok(certificate)
    } else {
        Err("has a certificate that is no authority's".to_owned())
    }
}

pub(crate) fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| parsed.is_ca())
}

/// Whether `leaf` is the certificate of the host `name`, issued by `authority`, at `now` in seconds
/// of Unix time. `revoked`: what that authority took back, if it says so.
///
/// # Errors
/// [`Flaw`]: a time or a revocation is told only of a certificate that is that host's otherwise.
pub fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    authority: &CertificateDer<'_>,
    revoked: Option<&CertRevocationList<'_>>,
    name: &str,
    now: i64,
) -> Result<(), Flaw> {
    let (from, _) = validity(leaf).ok_or(Flaw::Unreadable)?;
    let chains = |at| chain(leaf, intermediates, authority, revoked, at);
    let names = names(leaf);
    let named = || {
        if names.iter().any(|one| one == name) {
            Ok(())
        } else {
            Err(Flaw::WrongName {
                names: names.clone(),
            })
        }
    };
    match chains(now) {
        Ok(()) => named(),
        Err(Flaw::Untrusted) => Err(Flaw::Untrusted),
        // Whether it was issued is looked at last there: would it do in its own time?
        Err(flaw @ (Flaw::Expired { .. } | Flaw::NotYet { .. })) => match chains(from) {
            Ok(()) => named().and(Err(flaw)),
            Err(Flaw::Revoked) => named().and(Err(Flaw::Revoked)),
            Err(_) => Err(Flaw::Untrusted),
        },
        Err(flaw) => named().and(Err(flaw)),
    }
}

/// Everything but the name.
fn chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    authority: &CertificateDer<'_>,
    revoked: Option<&CertRevocationList<'_>>,
    now: i64,
) -> Result<(), Flaw> {
    let seconds = u64::try_from(now).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let end = webpki::EndEntityCert::try_from(leaf).map_err(|_error| Flaw::Unreadable)?;
    let anchor = webpki::anchor_from_trusted_cert(authority).map_err(|_error| Flaw::Untrusted)?;
    let anchors = [anchor];
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let lists: Vec<&CertRevocationList<'_>> = revoked.into_iter().collect();
    for usage in [
        webpki::KeyUsage::client_auth(),
        webpki::KeyUsage::server_auth(),
    ] {
        let options = webpki::RevocationOptionsBuilder::new(&lists).ok();
        let options = options.map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                // Of an authority in between, nobody has to say anything; an old list still counts.
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let (all, none) = (algorithms.all, None);
        end.verify_for_usage(all, &anchors, intermediates, now, usage, options, none)
            .map(drop)
            .map_err(|error| flaw(&error))?;
    }
    Ok(())
}

fn flaw(error: &webpki::Error) -> Flaw {
    use webpki::Error;
    let second = |time: &UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match error {
        Error::CertExpired { not_after, .. } => Flaw::Expired {
            at: second(not_after),
        },
        Error::CertNotValidYet { not_before, .. } => Flaw::NotYet {
            at: second(not_before),
        },
        Error::CertRevoked => Flaw::Revoked,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Flaw::Usage,
        Error::BadDer | Error::BadDerTime => Flaw::Unreadable,
        _ => Flaw::Untrusted,
    }
}
