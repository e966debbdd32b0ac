//! Certificates of a PKI over real TLS: who is let in, who is not, and what each side is told.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use axum::{Extension, Json, Router};
use jiff::Timestamp;
use model::{Code, Problem};
use pollux_replica::certificate::{self, Flaw};
use pollux_replica::client::PeerClient;
use pollux_replica::host::Principal;
use pollux_replica::identity::{Fingerprint, Identity, pem};
use pollux_replica::link::LinkError;
use pollux_replica::revocation::Revoked;
use pollux_replica::tls::{self, Limits};
use pollux_replica::trust::{Peer, Trust};
use pollux_replica::wire::{self, Hello};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(60);
const BOTH: [Usage; 2] = [Usage::ServerAuth, Usage::ClientAuth];

/// An authority of a company.
struct Authority {
    key: KeyPair,
    params: CertificateParams,
    der: CertificateDer<'static>,
}

/// A certificate as it is ordered.
#[derive(Clone)]
struct Order<'a> {
    names: &'a [&'a str],
    years: (i32, i32),
    usages: &'a [Usage],
    serial: u64,
}

fn order<'a>(names: &'a [&'a str]) -> Order<'a> {
    Order {
        names,
        years: (2020, 2090),
        usages: &BOTH,
        serial: 7,
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2095, 1, 1);
    params
}

impl Authority {
    fn new(name: &str) -> Self {
        let (key, params) = (KeyPair::generate().unwrap(), authority_params(name));
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { key, params, der }
    }

    /// One between this one and hosts.
    fn below(&self, name: &str) -> Self {
        let (key, params) = (KeyPair::generate().unwrap(), authority_params(name));
        let der = params
            .signed_by(&key, &self.issuer())
            .unwrap()
            .der()
            .clone();
        Self { key, params, der }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    fn pem(&self) -> String {
        pem(&self.der)
    }

    /// A key and its certificate, both PEM.
    fn issue(&self, order: &Order<'_>) -> (String, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = order.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        // What stands there never counts.
        params.distinguished_name.push(DnType::CommonName, "castor");
        params.not_before = date_time_ymd(order.years.0, 1, 1);
        params.not_after = date_time_ymd(order.years.1, 1, 1);
        params.serial_number = Some(SerialNumber::from(order.serial));
        params.extended_key_usages = order.usages.to_vec();
        let made = params.signed_by(&key, &self.issuer()).unwrap();
        (key.serialize_pem(), made.der().clone())
    }

    fn revokes(&self, serials: &[u64], year: i32) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(year + 1, 1, 1),
            crl_number: SerialNumber::from(u64::try_from(year).unwrap()),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer()).unwrap().pem().unwrap()
    }
}

struct Host {
    _folder: tempfile::TempDir,
    path: PathBuf,
    identity: Arc<Identity>,
    trust: Arc<Trust>,
}

impl Host {
    /// A host that presents what it was given, good or not.
    fn with(name: &str, given: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        if let Some(given) = given {
            std::fs::create_dir(path.join("identity")).unwrap();
            std::fs::write(path.join("identity/given.pem"), given).unwrap();
        }
        let identity = Identity::open(&path.join("identity"), name, Timestamp::now()).unwrap();
        identity.reached_at("192.0.2.1:8443".to_owned());
        Self {
            trust: Arc::new(Trust::open(&path.join("peers")).unwrap()),
            identity: Arc::new(identity),
            path,
            _folder: folder,
        }
    }

    fn from(authority: &Authority, name: &str, order: &Order<'_>) -> Self {
        let (key, certificate) = authority.issue(order);
        let given = format!("{key}{}{}", pem(&certificate), authority.pem());
        Self::with(name, Some(given))
    }

    fn trusts(&self, name: &str, address: &str, authority: &str) {
        let peer = Peer::new(name, address, authority, None).unwrap();
        self.trust.trust(peer).unwrap();
    }

    async fn serves(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = tls::server_config(&self.identity, self.trust.clone()).unwrap();
        let name = self.identity.name().to_owned();
        let hello = async move |Extension(principal): Extension<Principal>| {
            Json(Hello {
                version: wire::VERSION,
                host: name,
                you: principal.name,
            })
        };
        let router = Router::new().route(&format!("{}/hello", wire::PREFIX), get(hello));
        let trust = self.trust.clone();
        let never = std::future::pending();
        tokio::spawn(tls::serve(
            listener,
            config,
            trust,
            router,
            Limits::default(),
            never,
        ));
        address
    }

    /// As whom the host at the other end knows this one.
    async fn hello(&self, to: &str) -> Result<String, Problem> {
        let client = PeerClient::new(self.identity.clone(), self.trust.clone(), to);
        match client.hello(LIMIT).await {
            Ok(hello) => Ok(hello.you),
            Err(LinkError::Lost(problem) | LinkError::Refused(problem)) => Err(problem),
        }
    }
}

/// A replica that trusts the hosts of a domain, and castor, by two authorities.
struct Scene {
    company: Authority,
    own: Authority,
    pollux: Host,
    address: SocketAddr,
}

impl Scene {
    async fn new() -> Self {
        let (company, own) = (Authority::new("Company"), Authority::new("Castor's own"));
        let pollux = Host::from(&company, "pollux", &order(&["pollux"]));
        pollux.trusts("*.example.com", "*:8443", &company.pem());
        pollux.trusts("castor", "127.0.0.1:1", &own.pem());
        pollux.trusts("leda", "127.0.0.1:1", &company.pem());
        let address = pollux.serves().await;
        Self {
            company,
            own,
            pollux,
            address,
        }
    }

    /// As whom pollux knows a host with that certificate.
    async fn meets(&self, authority: &Authority, order: &Order<'_>) -> Result<String, Problem> {
        let host = Host::from(authority, "castor", order);
        host.trusts("pollux", &self.address.to_string(), &self.company.pem());
        host.hello("pollux").await
    }

    fn last_refused(&self) -> Problem {
        self.pollux.trust.strangers().first().unwrap().problem()
    }
}

#[tokio::test]
async fn an_authority_lets_in_the_names_that_were_accepted_with_it_and_no_others() {
    let scene = Scene::new().await;
    let (company, own) = (&scene.company, &scene.own);
    for (authority, name) in [
        (own, "castor"),
        (company, "leda"),
        (company, "a.example.com"),
        (company, "b.example.com"),
    ] {
        let known = scene.meets(authority, &order(&[name])).await;
        assert_eq!(known.as_deref(), Ok(name));
    }
    for (authority, name) in [
        (company, "castor"),
        (own, "leda"),
        (own, "a.example.com"),
        (company, "example.com"),
        (company, "a.b.example.com"),
        (company, "helen"),
    ] {
        let refused = scene.meets(authority, &order(&[name])).await.unwrap_err();
        assert_eq!(refused.code, Code::Forbidden, "{name}: {refused}");
    }
    // Its own name takes a host out of what the domain's authority is trusted for.
    let other = Authority::new("Another");
    scene
        .pollux
        .trusts("a.example.com", "127.0.0.1:1", &other.pem());
    scene
        .meets(company, &order(&["a.example.com"]))
        .await
        .unwrap_err();
    let known = scene.meets(&other, &order(&["a.example.com"])).await;
    assert_eq!(known.as_deref(), Ok("a.example.com"));
}

#[tokio::test]
async fn a_host_is_one_name_written_out_among_the_subject_alternative_names() {
    let scene = Scene::new().await;
    let company = &scene.company;
    for names in [
        &[][..],
        &["*.example.com"],
        &["a.example.com", "b.example.com"],
        &["a.example.com", "leda"],
        &["192.0.2.1"],
    ] {
        scene.meets(company, &order(names)).await.unwrap_err();
    }
    // Other names beside the one are no harm.
    let known = scene
        .meets(company, &order(&["x.org", "leda", "*.example.com"]))
        .await;
    assert_eq!(known.as_deref(), Ok("leda"));
}

#[tokio::test]
async fn strangers_are_told_the_same_whatever_is_wrong_and_this_side_knows_why() {
    let scene = Scene::new().await;
    let (company, nobodys) = (&scene.company, Authority::new("Nobody's"));
    let expired = Order {
        years: (2001, 2002),
        ..order(&["castor"])
    };
    let client_only = Order {
        usages: &[Usage::ClientAuth],
        ..order(&["leda"])
    };
    let cases: [(&Authority, Order<'_>, &str); 6] = [
        (&nobodys, order(&["castor"]), "another authority"),
        (&nobodys, expired.clone(), "another authority"),
        (company, order(&["helen"]), "is for `helen`"),
        (
            company,
            Order {
                names: &["helen"],
                ..expired
            },
            "is for `helen`",
        ),
        (company, order(&["*.example.com"]), "is for `*.example.com`"),
        (company, client_only, "extended key usage"),
    ];
    for (authority, order, says) in cases {
        let told = scene.meets(authority, &order).await.unwrap_err();
        assert_eq!(told.reason, "does not trust this host", "{says}");
        let command = "run `pollux host trust castor 192.0.2.1:8443 sha256:";
        assert!(told.way_out.starts_with(command), "{told}");
        let refused = scene.last_refused();
        assert!(refused.reason.contains(says), "{refused}");
    }
    // The command that mends it, with what is to be compared.
    scene.meets(company, &order(&["helen"])).await.unwrap_err();
    let known: Vec<Problem> = scene
        .pollux
        .trust
        .strangers()
        .iter()
        .map(|one| one.problem())
        .collect();
    let command = format!(
        "`pollux host trust helen <address> {}`",
        Fingerprint::of(&company.der)
    );
    assert!(
        known.iter().any(|one| one.way_out.contains(&command)),
        "{known:?}"
    );
    // Whoever is trusted since is a stranger no more.
    scene.pollux.trusts("helen", "127.0.0.1:1", &company.pem());
    let helens = |one: &pollux_replica::trust::Stranger| one.names == ["helen"];
    assert!(!scene.pollux.trust.strangers().iter().any(helens));
}

#[tokio::test]
async fn names_that_a_stranger_writes_are_few_and_no_more_than_names() {
    let scene = Scene::new().await;
    let nobodys = Authority::new("Nobody's");
    let names: Vec<String> = (0..1000).map(|n| format!("{n}.example.com")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.splice(0..0, ["$(reboot)", "`reboot`", "a b", "\u{1b}[2J"]);
    scene.meets(&nobodys, &order(&names)).await.unwrap_err();
    let stranger = &scene.pollux.trust.strangers()[0];
    assert_eq!(stranger.names.len(), certificate::MAX_NAMES);
    assert_eq!(stranger.names[0], "0.example.com");

    scene
        .meets(&nobodys, &order(&["$(reboot)"]))
        .await
        .unwrap_err();
    let refused = scene.last_refused();
    assert!(!refused.to_string().contains("reboot"), "{refused}");
    assert!(refused.way_out.contains("host trust <name>"), "{refused}");
}

#[tokio::test]
async fn a_peer_whose_certificate_is_out_of_date_is_told_so_with_what_mends_it() {
    let scene = Scene::new().await;
    let mut ask = Order {
        years: (2001, 2002),
        ..order(&["castor"])
    };
    let told = scene.meets(&scene.own, &ask).await.unwrap_err();
    assert!(told.reason.contains("has expired"), "{told}");
    assert!(
        told.way_out
            .contains("`pollux host certificate FILE --key FILE"),
        "{told}"
    );
    let refused = scene.last_refused();
    assert!(
        refused.reason.contains("expired on 2002-01-01"),
        "{refused}"
    );
    ask.years = (2080, 2090);
    let told = scene.meets(&scene.own, &ask).await.unwrap_err();
    let refused = scene.last_refused();
    for problem in [told, refused] {
        let says = problem.to_string();
        assert!(says.contains("is not valid before 2080-01-01"), "{says}");
        assert!(says.contains("clocks"), "{says}");
        assert!(
            says.contains("`pollux host certificate FILE --key FILE"),
            "{says}"
        );
    }
    // With a good one it is let in, and nothing is told of those any more.
    assert_eq!(scene.pollux.trust.strangers().len(), 2);
    let good = order(&["castor"]);
    scene.meets(&scene.own, &good).await.unwrap();
    assert!(scene.pollux.trust.strangers().is_empty());
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_at_once_also_on_an_open_connection() {
    let scene = Scene::new().await;
    let (pollux, company) = (&scene.pollux, &scene.company);
    let (good, bad) = (order(&["a.example.com"]), order(&["b.example.com"]));
    let bad = Order { serial: 666, ..bad };
    let host = Host::from(company, "castor", &bad);
    host.trusts("pollux", &scene.address.to_string(), &company.pem());
    let client = PeerClient::new(host.identity.clone(), host.trust.clone(), "pollux");
    client.hello(LIMIT).await.unwrap();
    let revoke = |text: &str| pollux.trust.revoke(Revoked::from_pem(text)?);
    let from = revoke(&company.revokes(&[666], 2023)).unwrap();
    assert_eq!(from, Fingerprint::of(&company.der));
    let LinkError::Refused(told) = client.hello(LIMIT).await.unwrap_err() else {
        panic!("the connection was open");
    };
    assert_eq!(told.code, Code::Forbidden);
    let told = host.hello("pollux").await.unwrap_err();
    assert!(told.reason.contains("was revoked"), "{told}");
    assert!(told.way_out.contains("`pollux host certificate"), "{told}");
    let refused = scene.last_refused();
    assert!(
        refused.reason.contains("was revoked by its authority"),
        "{refused}"
    );
    scene.meets(company, &good).await.unwrap();

    // Nobody else's list, no older one, no changed one; and what counts is still there.
    let foreign = revoke(&Authority::new("Company").revokes(&[], 2024)).unwrap_err();
    assert_eq!(foreign.code, Code::Forbidden);
    assert!(foreign.way_out.contains("--authority"), "{foreign}");
    let older = revoke(&company.revokes(&[], 2022)).unwrap_err();
    assert_eq!(older.code, Code::Conflict);
    for text in [
        "",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    ] {
        assert_eq!(revoke(text).unwrap_err().code, Code::Invalid);
    }
    host.hello("pollux").await.unwrap_err();
    // It outlives a restart, and a newer one replaces it.
    let again = Trust::open(&pollux.path.join("peers")).unwrap();
    let known = again.list();
    let domain = known
        .iter()
        .find(|one| one.peer.name.matches("b.example.com"))
        .unwrap();
    assert!(again.revoked(domain).is_some());
    revoke(&company.revokes(&[], 2024)).unwrap();
    host.hello("pollux").await.unwrap();
}

#[tokio::test]
async fn an_open_connection_goes_by_the_certificates_of_now_on_either_side() {
    let scene = Scene::new().await;
    let (company, own) = (&scene.company, &scene.own);
    let bad = Order {
        serial: 666,
        ..order(&["castor"])
    };
    let castor = Host::from(own, "castor", &bad);
    castor.trusts("pollux", &scene.address.to_string(), &company.pem());
    let client = PeerClient::new(castor.identity.clone(), castor.trust.clone(), "pollux");
    client.hello(LIMIT).await.unwrap();
    let list = Revoked::from_pem(&own.revokes(&[666], 2023)).unwrap();
    scene.pollux.trust.revoke(list).unwrap();
    client.hello(LIMIT).await.unwrap_err();
    // Another one is given while that connection is open still.
    let (key, given) = own.issue(&order(&["castor"]));
    let now = Timestamp::now();
    castor
        .identity
        .give(&pem(&given), &key, &own.pem(), now)
        .unwrap();
    client.hello(LIMIT).await.unwrap();

    let list = Revoked::from_pem(&company.revokes(&[7], 2023)).unwrap();
    castor.trust.revoke(list).unwrap();
    let LinkError::Lost(told) = client.hello(LIMIT).await.unwrap_err() else {
        panic!("nothing is asked of a host whose certificate was revoked");
    };
    assert!(
        told.reason.contains("was revoked by its authority"),
        "{told}"
    );
}

#[tokio::test]
async fn a_server_with_a_certificate_that_does_not_do_is_refused_with_what_mends_that() {
    let (company, other) = (Authority::new("Company"), Authority::new("Another"));
    let castor = Host::from(&company, "castor", &order(&["castor"]));
    let cases: [(&Authority, Order<'_>, &str, &str); 5] = [
        (
            &other,
            order(&["pollux"]),
            "another authority",
            "run `pollux host trust pollux 127.0.0.1:",
        ),
        (
            &company,
            order(&["leda"]),
            "is for `leda`",
            "run `pollux host trust leda 127.0.0.1:",
        ),
        (
            &company,
            Order {
                years: (2001, 2002),
                ..order(&["pollux"])
            },
            "expired on 2002-01-01",
            "`pollux host certificate FILE --key FILE --authority FILE` on `pollux`",
        ),
        (
            &company,
            Order {
                years: (2080, 2090),
                ..order(&["pollux"])
            },
            "not valid before 2080-01-01",
            "clocks",
        ),
        (
            &company,
            Order {
                usages: &[Usage::ServerAuth],
                ..order(&["pollux"])
            },
            "extended key usage",
            "`pollux host certificate",
        ),
    ];
    for (authority, order, reason, way_out) in cases {
        let pollux = Host::from(authority, "pollux", &order);
        pollux.trusts("castor", "127.0.0.1:1", &company.pem());
        let address = pollux.serves().await.to_string();
        castor.trusts("pollux", &address, &company.pem());
        let told = castor.hello("pollux").await.unwrap_err();
        assert_eq!(told.code, Code::Forbidden, "{told}");
        assert!(told.reason.contains(reason), "{told}");
        assert!(told.way_out.contains(way_out), "{told}");
    }
    let pollux = Host::from(
        &company,
        "pollux",
        &Order {
            serial: 8,
            ..order(&["pollux"])
        },
    );
    pollux.trusts("castor", "127.0.0.1:1", &company.pem());
    castor.trusts("pollux", &pollux.serves().await.to_string(), &company.pem());
    castor.hello("pollux").await.unwrap();
    let list = Revoked::from_pem(&company.revokes(&[8], 2023)).unwrap();
    castor.trust.revoke(list).unwrap();
    let told = castor.hello("pollux").await.unwrap_err();
    assert!(
        told.reason.contains("was revoked by its authority"),
        "{told}"
    );
}

#[tokio::test]
async fn a_pki_with_authorities_in_between_serves_and_its_fingerprint_is_enough() {
    let root = Authority::new("Root");
    let between = root.below("Issuing");
    let pollux = Host::with("pollux", None);
    let (key, certificate) = between.issue(&order(&["pollux"]));
    let chain = pem(&certificate) + &between.pem();
    let now = Timestamp::now();
    pollux
        .identity
        .give(&chain, &key, &root.pem(), now)
        .unwrap();
    assert_eq!(pollux.identity.fingerprint(), Fingerprint::of(&root.der));
    // Castor has one of its own making, and knows of pollux what `host identity` shows.
    let castor = Host::with("castor", None);
    let address = pollux.serves().await.to_string();
    let peer = Peer::unseen("pollux", &address, pollux.identity.fingerprint(), None).unwrap();
    castor.trust.trust(peer).unwrap();
    let peer = Peer::unseen("castor", "127.0.0.1:1", castor.identity.fingerprint(), None).unwrap();
    pollux.trust.trust(peer).unwrap();
    assert_eq!(castor.hello("pollux").await.as_deref(), Ok("castor"));
    // As one asks before it is trusted.
    let presented = tls::fetch_authority(&address, LIMIT).await.unwrap();
    let accepted = presented.accept(
        "pollux",
        Fingerprint::of(&root.der),
        rustls_pki_types::UnixTime::now(),
    );
    assert_eq!(accepted.as_deref(), Ok(root.pem().as_str()));
}

#[test]
fn what_a_host_is_given_is_checked_kept_and_taken_back() {
    let (company, other) = (Authority::new("Company"), Authority::new("Another"));
    let host = Host::with("castor", None);
    let (identity, now) = (&host.identity, Timestamp::now());
    let own = identity.fingerprint();
    let (key, good) = company.issue(&order(&["castor"]));
    let (strange_key, _) = company.issue(&order(&["castor"]));
    let give = |certificate: &str, key: &str, authority: &Authority| {
        identity.give(certificate, key, &authority.pem(), now)
    };
    let issue = |order: &Order<'_>| {
        let (key, certificate) = company.issue(order);
        (pem(&certificate), key)
    };
    let wrong = issue(&order(&["leda"]));
    let wild = issue(&order(&["*"]));
    let old = issue(&Order {
        years: (2001, 2002),
        ..order(&["castor"])
    });
    let client_only = issue(&Order {
        usages: &[Usage::ClientAuth],
        ..order(&["castor"])
    });
    let cases: [(&str, &str, &Authority, &str); 8] = [
        (&pem(&good), &strange_key, &company, "not the certificate's"),
        (&pem(&good), "", &company, "no private key"),
        ("", &key, &company, "1 certificates"),
        (&pem(&good), &key, &other, "--authority"),
        (&wrong.0, &wrong.1, &company, "`DNS:castor`"),
        (&wild.0, &wild.1, &company, "`DNS:castor`"),
        (&old.0, &old.1, &company, "expired on 2002-01-01"),
        (&client_only.0, &client_only.1, &company, "clientAuth"),
    ];
    for (certificate, key, authority, says) in cases {
        let refused = give(certificate, key, authority).unwrap_err();
        assert_eq!(refused.code, Code::Invalid, "{refused}");
        assert!(refused.to_string().contains(says), "{says}: {refused}");
        assert!(!identity.is_given());
    }
    let not_an_authority = identity
        .give(&pem(&good), &key, &pem(&good), now)
        .unwrap_err();
    assert!(
        not_an_authority.reason.contains("no authority's"),
        "{not_an_authority}"
    );

    give(&pem(&good), &key, &company).unwrap();
    let open = || Identity::open(&host.path.join("identity"), "castor", now).unwrap();
    for identity in [identity.as_ref(), &open()] {
        assert!(identity.is_given() && identity.flaw(now).is_none());
        assert_eq!(identity.fingerprint(), Fingerprint::of(&company.der));
        assert_eq!(identity.warning(now), None);
    }
    // Thirty days before its end, and after it.
    let end: Timestamp = "2090-01-01T00:00:00Z".parse().unwrap();
    let days = |days: i64| end - jiff::SignedDuration::from_hours(24 * days);
    assert_eq!(identity.warning(days(31)), None);
    let soon = identity.warning(days(29)).unwrap();
    assert!(soon.reason.contains("expires on 2090-01-01"), "{soon}");
    assert!(soon.way_out.contains("pollux host certificate"), "{soon}");
    assert!(
        identity
            .warning(days(-1))
            .unwrap()
            .reason
            .contains("expired on")
    );
    let mode = std::fs::metadata(host.path.join("identity/given.pem")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );

    identity.take_back().unwrap();
    identity.take_back().unwrap();
    for identity in [identity.as_ref(), &open()] {
        assert_eq!(identity.fingerprint(), own);
    }
}

#[test]
fn no_byte_of_a_certificate_or_of_a_list_can_be_changed() {
    let company = Authority::new("Company");
    let (_, leaf) = company.issue(&order(&["castor"]));
    let now = Timestamp::now().as_second();
    let list = Revoked::from_pem(&company.revokes(&[7], 2023)).unwrap();
    let check = |leaf: &CertificateDer<'_>, list| {
        certificate::verify(leaf, &[], &company.der, list, "castor", now)
    };
    assert_eq!(check(&leaf, None), Ok(()));
    assert_eq!(check(&leaf, Some(&list.list)), Err(Flaw::Revoked));
    let mut changed = 0;
    for at in 0..leaf.len() {
        for bit in [1, 0x80] {
            let mut bytes = leaf.to_vec();
            bytes[at] ^= bit;
            let bytes = CertificateDer::from(bytes);
            assert!(check(&bytes, None).is_err(), "byte {at}");
            let _ = certificate::names(&bytes);
            changed += 1;
        }
        let cut = CertificateDer::from(leaf[..at].to_vec());
        assert!(check(&cut, None).is_err(), "cut at {at}");
    }
    let der = {
        use rustls_pki_types::pem::PemObject;
        let text = company.revokes(&[7], 2023);
        rustls_pki_types::CertificateRevocationListDer::from_pem_slice(text.as_bytes()).unwrap()
    };
    for at in 0..der.len() {
        let mut bytes = der.to_vec();
        bytes[at] ^= 1;
        let taken = Revoked::read(&bytes).is_ok_and(|list| list.is_from(&company.der));
        assert!(!taken, "byte {at}");
        assert!(Revoked::read(&der[..at]).is_err(), "cut at {at}");
        changed += 1;
    }
    println!("{changed} changed bits refused");
}
