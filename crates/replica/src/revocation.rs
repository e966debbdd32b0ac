//! Lists of certificates that an authority took back (RFC 5280 section 5), as files that an
//! administrator gives: one list per authority, `peers/<fingerprint>.crl` in DER.
//!
//! Accepted only with the signature of an authority that is trusted here, and never an older one than
//! is known. A list that is past the time of its next one still counts, and is warned of.

use std::io;
use std::path::Path;

use model::{Code, Problem};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

/// Longest list, in bytes: some 200,000 certificates.
pub const MAX_LEN: usize = 8 << 20;
/// Extension of the files.
pub(crate) const EXTENSION: &str = "crl";

/// What an authority took back.
#[derive(Debug)]
pub struct Revoked {
    /// As certificates are checked against it.
    pub list: CertRevocationList<'static>,
    /// When it was made, in seconds of Unix time.
    pub made: i64,
    /// When the next one is due, in seconds of Unix time.
    pub next: Option<i64>,
    /// The file's content.
    pub(crate) der: Vec<u8>,
}

impl Revoked {
    /// Reads a list in DER.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn read(der: &[u8]) -> Result<Self, String> {
        if der.len() > MAX_LEN {
            return Err(format!("has more than {MAX_LEN} bytes"));
        }
        let list = OwnedCertRevocationList::from_der(der)
            .map_err(|error| format!("cannot be read: {error}"))?;
        let (_, parsed) = CertificateRevocationList::from_der(der)
            .map_err(|error| format!("cannot be read: {error}"))?;
        Ok(Self {
            list: list.into(),
            made: parsed.last_update().timestamp(),
            next: parsed.next_update().map(|next| next.timestamp()),
            der: der.to_vec(),
        })
    }

    /// Reads a list in PEM form.
    ///
    /// # Errors
    /// [`Code::Invalid`]
    pub fn from_pem(text: &str) -> Result<Self, Problem> {
        let invalid = |reason: String| {
            let way_out = "give it in PEM form: `openssl crl -inform DER -in FILE` prints it so";
            Problem::new(
                Code::Invalid,
                "the list of revoked certificates",
                reason,
                way_out,
            )
        };
        let der = CertificateRevocationListDer::from_pem_slice(text.as_bytes())
            .map_err(|error| invalid(format!("is not there: {error}")))?;
        Self::read(&der).map_err(invalid)
    }

    /// Whether `authority` made it.
    #[must_use]
    pub fn is_from(&self, authority: &CertificateDer<'_>) -> bool {
        let Ok((_, parsed)) = CertificateRevocationList::from_der(&self.der) else {
            return false;
        };
        let Ok((_, authority)) = x509_parser::parse_x509_certificate(authority) else {
            return false;
        };
        parsed.issuer().as_raw() == authority.subject().as_raw()
            && parsed.verify_signature(authority.public_key()).is_ok()
    }

    /// Reads the file of an authority's list, which was checked when it was taken in.
    pub(crate) fn load(path: &Path) -> io::Result<Result<Self, String>> {
        let limit = u64::try_from(MAX_LEN).unwrap_or(u64::MAX);
        if std::fs::metadata(path)?.len() > limit {
            return Ok(Err(format!("has more than {MAX_LEN} bytes")));
        }
        Ok(Self::read(&std::fs::read(path)?))
    }
}
