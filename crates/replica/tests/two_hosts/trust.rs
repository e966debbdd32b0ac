//! Who is let in, and who a relationship answers to.

use super::*;

#[tokio::test]
async fn peers_that_trust_each_other_talk_and_know_each_others_names() {
    let (a, _b, _, serving) = pair().await;
    let hello = a.client("host-b").hello(LIMIT).await.unwrap();
    assert_eq!(
        (hello.host.as_str(), hello.you.as_str()),
        ("host-b", "host-a")
    );
    serving.stop().await;
}

#[tokio::test]
async fn a_stranger_is_refused_in_the_handshake_and_learns_nothing() {
    let (_, b, _, serving) = pair().await;
    let stranger = Host::new("host-s");
    stranger.trusts(&b, "host-b", serving.address);
    // A long request as well: what is not read may not cost the refusal's reason.
    let (client, spec) = (stranger.client("host-b"), spec());
    let mut long = enrol(&spec);
    long.disks = vec![DiskId::random(); 1000];
    for error in [
        client.hello(LIMIT).await.unwrap_err(),
        client.enrol(spec.id, &long).await.unwrap_err(),
    ] {
        let problem = lost(&error);
        assert_eq!(problem.code, Code::Forbidden, "{error}");
        let way_out = format!(
            "run `pollux host trust host-s <address> {}` there",
            stranger.identity.fingerprint()
        );
        assert_eq!(problem.way_out, way_out);
    }
    // Who is not there at all is something else.
    serving.stop().await;
    let error = client.hello(LIMIT).await.unwrap_err();
    assert_eq!(lost(&error).code, Code::Unreachable, "{error}");
}

#[tokio::test]
async fn whom_the_server_does_not_let_in_enrols_and_fills_nothing_but_agrees_on_who_may_run() {
    let (a, _b, replicas, serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let enrol = enrol(&spec);
    let refused = |error: LinkError, says: &str| match error {
        LinkError::Refused(problem) => {
            assert_eq!(problem.code, Code::Forbidden, "{problem}");
            assert!(problem.way_out.contains(says), "{problem}");
        }
        LinkError::Lost(problem) => panic!("no answer: {problem}"),
    };
    let off = "pollux replica server enable";
    replicas.rules.lock().unwrap().enabled = false;
    refused(client.enrol(spec.id, &enrol).await.unwrap_err(), off);
    assert!(replicas.state.lock().unwrap().is_none());
    replicas.rules.lock().unwrap().enabled = true;
    client.enrol(spec.id, &enrol).await.unwrap();
    let link = PeerLink::new(client.clone(), spec.id, enrol.relationship);
    for (rules, says) in [
        (Rules::default(), off),
        (
            Rules {
                enabled: true,
                admits: Admits::Authorized,
                store: None,
                entries: vec![],
            },
            "pollux replica authorize host-a",
        ),
    ] {
        *replicas.rules.lock().unwrap() = rules;
        // The same enrolment again, and all that fills the twin.
        refused(client.enrol(spec.id, &enrol).await.unwrap_err(), says);
        refused(link.tip(&enrol.lineage).await.unwrap_err(), says);
        let root = Root([0; 32]);
        let put = link.put(root, 0, Bytes::from_static(b"x")).await;
        refused(put.unwrap_err(), says);
        refused(link.commit(root).await.unwrap_err(), says);
        link.standing(&enrol.lineage, LIMIT).await.unwrap();
    }
    replicas.rules.lock().unwrap().enabled = false;
    link.remove().await.unwrap();
    serving.stop().await;
}

#[tokio::test]
async fn a_peers_authority_is_trusted_for_its_own_name_only() {
    let (_, b, _, serving) = pair().await;
    // Trusted as `host-c`, but its certificate says `host-x`, or even `host-a`.
    for name in ["host-x", "host-a"] {
        let other = Host::new(name);
        b.trusts(&other, "host-c", "127.0.0.1:1".parse().unwrap());
        other.trusts(&b, "host-b", serving.address);
        let error = other.client("host-b").hello(LIMIT).await.unwrap_err();
        lost(&error);
    }
}

#[tokio::test]
async fn a_server_with_another_authority_or_another_name_is_refused() {
    let (a, b, _, serving) = pair().await;
    let impostor = Host::new("host-b");
    impostor.trusts(&a, "host-a", "127.0.0.1:1".parse().unwrap());
    let other = Serving::start(&impostor, Replicas::new(&impostor), None).await;
    // The right authority is expected, and the impostor answers at the address.
    a.trusts(&b, "host-b", other.address);
    let error = a.client("host-b").hello(LIMIT).await.unwrap_err();
    assert!(lost(&error).reason.contains("certificate"), "{error}");
    // The right host, asked for under another name.
    a.trusts(&b, "host-c", serving.address);
    let error = a.client("host-c").hello(LIMIT).await.unwrap_err();
    assert!(lost(&error).reason.contains("certificate"), "{error}");
}

#[tokio::test]
async fn trust_by_fingerprint_accepts_the_right_host_only_and_ends_at_once() {
    let (a, b, _, serving) = pair().await;
    let address = serving.address.to_string();
    let presented = tls::fetch_authority(&address, LIMIT).await.unwrap();
    assert_eq!(presented.fingerprint(), b.identity.fingerprint());
    assert_eq!(presented.names(), ["host-b"]);
    let now = UnixTime::now();
    let right = b.identity.fingerprint();
    let pem = presented.accept("host-b", right, now).unwrap();
    assert_eq!(pem, b.identity.authority_pem());
    let wrong = a.identity.fingerprint();
    for refused in [
        presented.accept("host-b", wrong, now),
        presented.accept("host-c", right, now),
    ] {
        assert_eq!(refused.unwrap_err().code, Code::Forbidden);
    }

    let client = a.client("host-b");
    client.hello(LIMIT).await.unwrap();
    b.trust.remove("host-a").unwrap();
    // On the connection that is open already.
    let error = client.hello(LIMIT).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Forbidden),
        "{error}"
    );
    let error = a.client("host-b").hello(LIMIT).await.unwrap_err();
    lost(&error);
    a.trust.remove("host-b").unwrap();
    let error = client.hello(LIMIT).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::NotFound),
        "{error}"
    );
}

#[tokio::test]
async fn a_relationship_answers_only_to_the_peer_and_the_id_it_is_bound_to() {
    let (a, b, _, serving) = pair().await;
    let other = Host::new("host-o");
    other.trusts(&b, "host-b", serving.address);
    b.trusts(&other, "host-o", "127.0.0.1:1".parse().unwrap());
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    let enrolled = client.enrol(spec.id, &ask).await.unwrap();
    let seeding = Tip::Seeding {
        seed: ask.seed,
        parts: 0,
        last: None,
    };
    assert_eq!(enrolled.tip, seeding);
    assert_eq!(client.enrol(spec.id, &ask).await.unwrap().tip, seeding);

    let lineage = &ask.lineage;
    let right = PeerLink::new(client.clone(), spec.id, ask.relationship);
    assert_eq!(right.tip(lineage).await.unwrap(), at(seeding));
    let links = [
        PeerLink::new(other.client("host-b"), spec.id, ask.relationship),
        PeerLink::new(client.clone(), spec.id, RelationshipId::random()),
        PeerLink::new(client.clone(), VmId::random(), ask.relationship),
    ];
    for link in links {
        let error = link.tip(lineage).await.unwrap_err();
        assert!(
            matches!(&error, LinkError::Refused(p) if p.code == Code::NotFound),
            "{error}"
        );
        let error = link.stand_down(lineage, LIMIT).await.unwrap_err();
        assert!(matches!(error, LinkError::Refused(_)));
    }
    // A VM whose disks are not what it says is refused before the host is asked.
    let mut strange = enrol(&spec);
    strange.disks.push(DiskId::random());
    let error = client.enrol(spec.id, &strange).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Invalid),
        "{error}"
    );
}
