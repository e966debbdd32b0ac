//! The replica server: off until it is switched on, and whom it receives from.

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};

use api::{Admits, Authorize, EnableReplicaServer, Replication};
use model::{Code, Health, Problem};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use support::{Host, empty, refused, replicate_to};
use testkit::free_port;

async fn replicate(host: &Host, vm: &str, to: &str) -> Result<Replication, Problem> {
    let enable = replicate_to(to);
    host.client.enable_replication(vm, &enable).await
}

fn authorize(pattern: &str) -> Authorize {
    Authorize {
        pattern: pattern.to_owned(),
        group: None,
        limit: None,
        store: None,
        copies: Vec::new(),
    }
}

fn is_open(address: &str) -> bool {
    let address: SocketAddr = address.parse().expect("an address");
    TcpStream::connect(address).is_ok()
}

fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

#[tokio::test]
async fn no_port_is_open_until_the_server_is_on_and_it_stays_as_it_was_left() {
    let host = Host::start("pollux").await;
    let server = host.client.replica_server().await.expect("told");
    assert!(!server.enabled && !server.listening, "{server:?}");
    let listen = free_address();
    let enable = EnableReplicaServer {
        listen: Some(listen.clone()),
        ..EnableReplicaServer::default()
    };
    let server = host.client.enable_replica_server(&enable).await;
    let server = server.expect("enabled");
    assert!(server.enabled && server.listening, "{server:?}");
    assert_eq!(
        (server.listen.as_str(), server.admits),
        (listen.as_str(), Admits::Any)
    );
    assert!(is_open(&listen));

    let host = host.restarted("pollux").await;
    // Again, without an address: as it was.
    let server = host.receives().await;
    assert_eq!(server.listen, listen);
    assert!(is_open(&listen));
    let server = host.client.disable_replica_server().await.expect("off");
    assert!(!server.enabled && !server.listening, "{server:?}");
    assert!(!is_open(&listen));
    let host = host.restarted("pollux").await;
    let server = host.client.replica_server().await.expect("told");
    assert!(!server.enabled && !server.listening, "{server:?}");
    assert!(!is_open(&listen));
}

#[tokio::test]
async fn an_address_that_cannot_be_listened_on_is_refused_and_changes_nothing() {
    let host = Host::start("pollux").await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|at| (taken, at.to_string()));
    let (_holds_it, taken) = taken.expect("bound");
    let told = async || {
        let mut server = host.client.replica_server().await.expect("told");
        // Others write to the same file system.
        server.stores.iter_mut().for_each(|store| store.free = None);
        server
    };
    let before = told().await;
    for (listen, code, says) in [
        (taken.as_str(), Code::Conflict, "--listen"),
        ("nowhere", Code::Invalid, "`nowhere`"),
        ("192.0.2.1", Code::Invalid, "with a port"),
    ] {
        let enable = EnableReplicaServer {
            listen: Some(listen.to_owned()),
            ..EnableReplicaServer::default()
        };
        refused(host.client.enable_replica_server(&enable).await, code, says);
    }
    assert_eq!(told().await, before);
}

#[tokio::test]
async fn a_server_that_is_off_refuses_new_twins_and_says_which_it_receives_no_more() {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    pollux.receives().await;
    castor.receives().await;
    castor.trusts(&pollux).await;
    pollux.trusts(&castor).await;
    for name in ["web", "db"] {
        castor
            .create(name, vec![empty(1 << 20)])
            .await
            .expect("made");
    }
    let twin = replicate(&castor, "web", "pollux").await.expect("agreed");
    let server = pollux.client.disable_replica_server().await.expect("off");
    // The partner may still ask who runs the VM.
    assert!(!server.enabled && server.listening, "{server:?}");
    let unreceived = &server.unreceived[0];
    assert_eq!(
        (unreceived.vm, unreceived.peer.as_str()),
        (twin.vm, "castor")
    );
    refused(
        replicate(&castor, "db", "pollux").await,
        Code::Forbidden,
        "`pollux replica server enable` on `pollux`",
    );
    let vms = pollux.client.vms().await.expect("listed");
    assert_eq!(vms.len(), 1, "{vms:?}");
    // On again: nothing was lost, and the other one comes as well.
    assert!(pollux.receives().await.unreceived.is_empty());
    replicate(&castor, "db", "pollux").await.expect("agreed");

    // Neither has a reason to listen once the relationships are gone.
    castor.client.disable_replica_server().await.expect("off");
    pollux.client.disable_replica_server().await.expect("off");
    for vm in ["web", "db"] {
        let server = castor.client.replica_server().await.expect("told");
        assert!(server.listening, "{vm} has a partner");
        castor.client.disable_replication(vm).await.expect("ended");
    }
    for host in [&castor, &pollux] {
        // Carried out at once, and seen with the next change of the settings at the latest.
        let server = host.client.disable_replica_server().await.expect("off");
        assert!(!server.listening, "{server:?}");
    }
}

#[tokio::test]
async fn only_the_authorized_make_twins_once_somebody_is() {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    pollux.receives().await;
    castor.receives().await;
    castor.trusts(&pollux).await;
    pollux.trusts(&castor).await;
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let client = &pollux.client;
    let server = client.authorize(&authorize("*.example.com")).await;
    assert_eq!(server.expect("authorized").admits, Admits::Authorized);
    refused(
        replicate(&castor, "web", "pollux").await,
        Code::Forbidden,
        "`pollux replica authorize castor` on `pollux`",
    );
    let mut castors = authorize("castor");
    castors.group = Some("cluster".to_owned());
    castors.limit = Some(model::Bytes(1 << 30));
    client.authorize(&castors).await.expect("authorized");
    replicate(&castor, "web", "pollux").await.expect("agreed");
    let listed = client.authorizations().await.expect("listed");
    let shown: Vec<_> = listed.iter().map(|one| one.pattern.as_str()).collect();
    assert_eq!(shown, ["castor", "*.example.com"]);
    assert_eq!(listed[0].group.as_deref(), Some("cluster"));

    for (pattern, code, says) in [
        ("*", Code::Invalid, "--allow-any"),
        ("Castor", Code::Invalid, "`Castor`"),
        ("a*.example.com", Code::Invalid, "label"),
    ] {
        refused(client.authorize(&authorize(pattern)).await, code, says);
    }
    refused(client.deny("leda").await, Code::NotFound, "`leda`");
    castors.group = Some("two words".to_owned());
    refused(
        client.authorize(&castors).await,
        Code::Invalid,
        "trust group",
    );
    assert_eq!(client.authorizations().await.expect("listed"), listed);

    // Taking the last one away lets nobody in.
    let server = client.deny("castor").await.expect("denied");
    assert!(
        server.unreceived[0]
            .problem
            .way_out
            .contains("authorize castor")
    );
    client.deny("*.example.com").await.expect("denied");
    let pollux = pollux.restarted("pollux").await;
    let server = pollux.client.replica_server().await.expect("told");
    assert_eq!(
        (server.admits, server.unreceived.len()),
        (Admits::Authorized, 1)
    );
    let any = EnableReplicaServer {
        allow_any: true,
        ..EnableReplicaServer::default()
    };
    let server = pollux
        .client
        .enable_replica_server(&any)
        .await
        .expect("any");
    assert_eq!((server.admits, server.unreceived.len()), (Admits::Any, 0));
}

#[tokio::test]
async fn a_host_that_does_not_listen_is_trusted_by_its_fingerprint_and_known_when_it_comes() {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    pollux.receives().await;
    castor.trusts(&pollux).await;
    let theirs = castor.client.identity().await.expect("an identity");
    let mut trust = api::TrustPeer {
        name: theirs.name,
        address: free_address(),
        fingerprint: Some(format!("sha256:{}", "0".repeat(64))),
        ..api::TrustPeer::default()
    };
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let unseen = pollux.client.trust(&trust).await.expect("trusted").unseen;
    assert_eq!(unseen.expect("it does not listen").code, Code::Unreachable);
    // Another fingerprint than its own.
    refused(
        replicate(&castor, "web", "pollux").await,
        Code::Forbidden,
        "does not trust this host",
    );
    trust.fingerprint = Some(theirs.fingerprint);
    pollux.client.trust(&trust).await.expect("trusted");
    let made = replicate(&castor, "web", "pollux").await.expect("agreed");
    assert_ne!(made.health, Health::Normal, "there is no point yet");
    let twins = pollux.client.replications().await.expect("listed");
    assert_eq!((twins[0].vm, twins[0].peer.as_str()), (made.vm, "castor"));
}

/// An authority of a company.
struct Company {
    key: KeyPair,
    params: CertificateParams,
    pem: String,
}

impl Company {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "Company");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { key, params, pem }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// Gives a host a certificate for its name.
    async fn gives(&self, host: &Host, serial: u64) -> Result<api::Identity, Problem> {
        let name = host.client.identity().await.expect("an identity").name;
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name]).expect("a name");
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let made = params.signed_by(&key, &self.issuer()).expect("signed");
        let give = api::GiveCertificate {
            certificate: made.pem(),
            key: key.serialize_pem(),
            authority: self.pem.clone(),
        };
        host.client.give_certificate(&give).await
    }

    fn revokes(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2026, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer()).expect("signed");
        list.pem().expect("a text")
    }
}

#[tokio::test]
async fn the_hosts_of_a_domain_are_let_in_by_their_companys_certificates_until_one_is_revoked() {
    let company = Company::new();
    let (castor, pollux) = (
        Host::start("castor.example.com").await,
        Host::start("pollux").await,
    );
    let own = castor.client.identity().await.expect("an identity");
    let given = company.gives(&castor, 666).await.expect("given");
    assert!(given.given && given.fingerprint != own.fingerprint);
    pollux.receives().await;
    castor.trusts(&pollux).await;
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let mut trust = api::TrustPeer {
        name: "*.example.com".to_owned(),
        address: "*:8443".to_owned(),
        authority: Some(company.pem.clone()),
        ..api::TrustPeer::default()
    };
    let domain = pollux.client.trust(&trust).await.expect("trusted");
    assert_eq!(domain.fingerprint, given.fingerprint);
    let made = replicate(&castor, "web", "pollux").await.expect("agreed");
    let twins = pollux.client.replications().await.expect("listed");
    assert_eq!(
        (twins[0].vm, twins[0].peer.as_str()),
        (made.vm, "castor.example.com")
    );
    // What lets the partner of a twin in stays.
    let untrusted = pollux.client.untrust("*.example.com").await;
    refused(untrusted, Code::Conflict, "`web`");

    let revoke = api::Revoke {
        list: company.revokes(666),
    };
    let revoked = pollux.client.revoke(&revoke).await.expect("taken in");
    assert_eq!(revoked.authority, given.fingerprint);
    castor
        .create("db", vec![empty(1 << 20)])
        .await
        .expect("made");
    refused(
        replicate(&castor, "db", "pollux").await,
        Code::Forbidden,
        "`pollux host certificate FILE --key FILE --authority FILE` on `castor.example.com`",
    );
    let status = pollux.client.host().await.expect("a status");
    let late = &status.certificates[0];
    assert!(late.way_out.contains("`pollux host revoke FILE`"), "{late}");
    let stranger = &status.refused[0];
    assert!(stranger.reason.contains("was revoked"), "{stranger}");
    let pollux = pollux.restarted("pollux").await;
    assert_eq!(
        pollux.client.host().await.expect("a status").certificates[0],
        *late
    );

    // A list without its authority, and one of another.
    trust.revoked = Some(Company::new().revokes(1));
    refused(
        pollux.client.trust(&trust).await,
        Code::Invalid,
        "given with it",
    );
    trust.fingerprint = Some(own.fingerprint.clone());
    refused(
        pollux.client.trust(&trust).await,
        Code::Invalid,
        "the one or the other",
    );
    let again = castor.client.take_certificate().await.expect("its own");
    assert!(!again.given);
    assert_eq!(again.fingerprint, own.fingerprint);
}
