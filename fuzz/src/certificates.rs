//! Certificates and lists of revoked ones: of a peer that connects, and in the files of this host.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use replica::certificate::{self, Flaw, MAX_NAMES};
use replica::identity::{Fingerprint, Identity, pem};
use replica::revocation::Revoked;
use replica::trust::{Peer, Trust};
use rustls_pki_types::{CertificateDer, UnixTime};
use tempfile::TempDir;

/// Words of the files.
pub const WORDS: &[&str] = &[
    "-----BEGIN CERTIFICATE-----\n",
    "-----END CERTIFICATE-----\n",
    "-----BEGIN PRIVATE KEY-----\n",
    "-----END PRIVATE KEY-----\n",
    "-----BEGIN X509 CRL-----\n",
    "-----END X509 CRL-----\n",
    "version = 2",
    "name = ",
    "address = ",
    "fingerprint = ",
    "store_limit = ",
    "authority = ",
    "sha256:",
    "castor",
    "*.example.com",
];

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;

/// A folder in memory, if there is one: what is stored durably is stored fast.
fn scratch() -> TempDir {
    let memory = tempfile::tempdir_in("/dev/shm");
    memory.or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// A part of the input with its length before it.
fn part<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let Some((len, rest)) = data.split_first_chunk::<2>() else {
        return std::mem::take(data);
    };
    let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
    let (part, rest) = rest.split_at(len);
    *data = rest;
    part
}

/// What a peer shows, and what is known of it here: the authority's certificate, the peer's, one in
/// between, and what the authority took back.
pub fn peer(mut data: &[u8]) {
    let [authority, leaf, between] =
        [(); 3].map(|()| CertificateDer::from(part(&mut data).to_vec()));
    let list = Revoked::read(part(&mut data)).ok();
    let now = i64::try_from(NOW).expect("in range");

    let names = certificate::names(&leaf);
    assert!(names.len() <= MAX_NAMES);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._*".contains(c);
    assert!(names.iter().all(|name| name.chars().all(plain)));
    let shown = [between, authority.clone()];
    let revoked = list.as_ref().map(|list| &list.list);
    let known = certificate::verify(&leaf, &shown, &authority, revoked, "castor", now);
    if known.is_ok() {
        assert!(names.iter().any(|name| name == "castor"));
        let (from, to) = certificate::validity(&leaf).expect("it was looked at");
        assert!((from..=to).contains(&now));
    }

    let text = pem(&authority);
    let Ok(peer) = Peer::new("castor", "castor:8443", &text, None) else {
        return;
    };
    assert_eq!(peer.fingerprint, Fingerprint::of(&authority));
    let folder = scratch();
    let trust = Trust::open(folder.path()).expect("it is empty");
    trust.trust(peer).expect("it was checked");
    if let Some(list) = list {
        // Refused, unless that authority made it.
        let _counts = trust.revoke(list);
    }
    let held = trust.get("castor").expect("it is trusted");
    let held = trust.revoked(&held.known);
    let held = held.as_ref().map(|held| &held.list);
    let known = certificate::verify(&leaf, &shown, &authority, held, "castor", now);
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    match trust.identify(&leaf, &shown, at) {
        Ok(trusted) => assert!(known.is_ok() && trusted.name == "castor"),
        Err(stranger) => {
            assert!(known.is_err());
            let told = stranger.problem().to_string();
            assert!(!told.chars().any(char::is_control), "{told:?}");
        }
    }
    let again = Trust::open(folder.path()).expect("what was stored is read");
    assert_eq!(again.list(), trust.list());
}

/// A host's folder, in which one file is replaced.
static HOST: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = scratch();
    Identity::open(folder.path(), "castor", Timestamp::now()).expect("made");
    folder
});

/// Which file, and what it holds.
pub fn files(data: &[u8]) {
    let _any = is_opened(data);
}

/// Whether a host starts with that file.
#[must_use]
pub fn is_opened(data: &[u8]) -> bool {
    let Some((which, content)) = data.split_first() else {
        return false;
    };
    if let Ok(text) = std::str::from_utf8(content) {
        given(text);
    }
    match which % 4 {
        0 => identity("given.pem", content),
        1 => identity("authority.pem", content),
        2 => peers("castor.toml", content),
        _ => peers(&format!("{}.crl", "0".repeat(64)), content),
    }
}

/// What a person gives.
fn given(text: &str) {
    if let Ok(authority) = certificate::read_authority(text) {
        assert_eq!(certificate::read_authority(&pem(&authority)), Ok(authority));
    }
    if let Err(refused) = Revoked::from_pem(text) {
        assert!(!refused.way_out.is_empty());
    }
    if let Ok(print) = text.parse::<Fingerprint>() {
        assert_eq!(print.to_string().parse(), Ok(print));
    }
}

fn identity(name: &str, content: &[u8]) -> bool {
    let folder = scratch();
    for entry in fs::read_dir(HOST.path()).expect("there") {
        let path = entry.expect("listed").path();
        fs::copy(&path, folder.path().join(path.file_name().expect("a file"))).expect("copied");
    }
    fs::write(folder.path().join(name), content).expect("written");
    let now = Timestamp::now();
    let Ok(identity) = Identity::open(folder.path(), "castor", now) else {
        return false;
    };
    let _warning = identity.warning(now);
    let again = Identity::open(folder.path(), "castor", now).expect("what was opened is again");
    assert_eq!(again.fingerprint(), identity.fingerprint());
    assert_eq!(again.is_given(), name == "given.pem");
    true
}

fn peers(name: &str, content: &[u8]) -> bool {
    let folder = scratch();
    fs::write(folder.path().join(name), content).expect("written");
    let Ok(trust) = Trust::open(folder.path()) else {
        return false;
    };
    for known in trust.list() {
        trust.trust(known.peer.clone()).expect("it was read");
    }
    let again = Trust::open(folder.path()).expect("what was stored is read");
    assert_eq!(again.list(), trust.list());
    true
}

/// An authority, what it issued for a name, and the list that takes that back.
struct Made {
    authority: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    key: String,
    list: Vec<u8>,
    list_pem: String,
}

fn made(name: &str, years: (i32, i32)) -> Made {
    let key = || KeyPair::generate().expect("a key");
    let (ca_key, mut ca) = (key(), CertificateParams::default());
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = ca.self_signed(&ca_key).expect("signed").der().clone();
    let issuer = Issuer::from_params(&ca, &ca_key);
    let leaf_key = key();
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    params.serial_number = Some(SerialNumber::from(7_u64));
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let leaf = params.signed_by(&leaf_key, &issuer).expect("signed");
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2025, 1, 1),
        next_update: date_time_ymd(2026, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(7_u64),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).expect("signed");
    Made {
        authority,
        leaf: leaf.der().clone(),
        key: leaf_key.serialize_pem(),
        list: list.der().to_vec(),
        list_pem: list.pem().expect("a text"),
    }
}

fn parts(parts: [&[u8]; 4]) -> Vec<u8> {
    let part = |part: &[u8]| {
        let len = u16::try_from(part.len()).expect("short");
        [&len.to_le_bytes(), part].concat()
    };
    parts.map(part).concat()
}

/// A good peer, one that was revoked, one that has expired, and another's name.
#[must_use]
pub fn peer_seeds() -> Vec<Vec<u8>> {
    let good = made("castor", (2020, 2090));
    let old = made("castor", (2001, 2002));
    let other = made("leda.example.com", (2020, 2090));
    let mut seeds: Vec<Vec<u8>> = [&good, &old, &other]
        .map(|made| parts([&made.authority, &made.leaf, &[], &[]]))
        .into();
    seeds.push(parts([&good.authority, &good.leaf, &[], &good.list]));
    seeds.push(parts([&good.authority, &old.leaf, &old.authority, &[]]));
    seeds
}

/// What peers of which seeds are known as, in their order; see [`peer_seeds`].
#[must_use]
pub fn peer_flaws() -> Vec<Result<(), Flaw>> {
    let seeds = peer_seeds();
    let verified = seeds.iter().map(|seed| {
        let mut data = &seed[..];
        let [authority, leaf, _] = [(); 3].map(|()| CertificateDer::from(part(&mut data).to_vec()));
        let list = Revoked::read(part(&mut data)).ok();
        let revoked = list.as_ref().map(|list| &list.list);
        let now = i64::try_from(NOW).expect("in range");
        certificate::verify(&leaf, &[], &authority, revoked, "castor", now)
    });
    verified.collect()
}

/// Each file as it should be, and texts that a person gives.
#[must_use]
pub fn file_seeds() -> Vec<Vec<u8>> {
    let made = made("castor", (2020, 2090));
    let given = made.key + &pem(&made.leaf) + &pem(&made.authority);
    let read = |path: &Path| fs::read(path).expect("there");
    let own = read(&HOST.path().join("authority.pem"));
    let folder = scratch();
    let trust = Trust::open(folder.path()).expect("it is empty");
    let peer = Peer::new("castor", "castor:8443", &pem(&made.authority), None);
    trust.trust(peer.expect("good")).expect("trusted");
    let peer = read(&folder.path().join("castor.toml"));
    let print = Fingerprint::of(&made.authority).to_string();
    let seed = |which: u8, content: &[u8]| [&[which], content].concat();
    vec![
        seed(0, given.as_bytes()),
        seed(1, &own),
        seed(2, &peer),
        seed(3, &made.list),
        seed(0, made.list_pem.as_bytes()),
        seed(0, print.as_bytes()),
    ]
}
