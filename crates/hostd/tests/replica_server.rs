//! The replica server: off until it is switched on, and whom it receives from.

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};

use api::{Admits, Authorize, EnableReplicaServer, EnableReplication, Replication};
use model::{Code, Health, Problem};
use support::{Host, empty, refused};

async fn replicate(host: &Host, vm: &str, to: &str) -> Result<Replication, Problem> {
    let enable = EnableReplication {
        peer: to.to_owned(),
        every_s: 30,
        disks: None,
        keep: None,
    };
    host.client.enable_replication(vm, &enable).await
}

fn authorize(pattern: &str) -> Authorize {
    Authorize {
        pattern: pattern.to_owned(),
        group: None,
        limit: None,
    }
}

fn is_open(address: &str) -> bool {
    let address: SocketAddr = address.parse().expect("an address");
    TcpStream::connect(address).is_ok()
}

/// A port that was free a moment ago.
fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

#[tokio::test]
async fn no_port_is_open_until_the_server_is_on_and_it_stays_as_it_was_left() {
    let host = Host::start("pollux").await;
    let server = host.client.replica_server().await.expect("told");
    assert!(!server.enabled && !server.listening, "{server:?}");
    let listen = free_port();
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
    let before = host.client.replica_server().await.expect("told");
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
    assert_eq!(host.client.replica_server().await.expect("told"), before);
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
        address: free_port(),
        fingerprint: format!("sha256:{}", "0".repeat(64)),
        limit: None,
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
    trust.fingerprint = theirs.fingerprint;
    pollux.client.trust(&trust).await.expect("trusted");
    let made = replicate(&castor, "web", "pollux").await.expect("agreed");
    assert_ne!(made.health, Health::Normal, "there is no point yet");
    let twins = pollux.client.replications().await.expect("listed");
    assert_eq!((twins[0].vm, twins[0].peer.as_str()), (made.vm, "castor"));
}
