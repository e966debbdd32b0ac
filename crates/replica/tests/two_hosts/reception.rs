//! What a person does to a relationship, on either host.

use pollux_replica::wire::{Configuration, ConfigureAnswer};

use super::*;

/// What the replica says of its reception, however long that takes.
async fn reception(link: &PeerLink, lineage: &Lineage) -> Option<Reception> {
    let contact = Contact::of(lineage.clone());
    link.meet(&contact, LIMIT).await.unwrap().reception
}

#[tokio::test]
async fn the_replica_follows_a_configuration_and_tells_which() {
    let (a, _b, replicas, _serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let mut configuration = Configuration {
        disks: ask.disks.clone(),
        spec,
        frequency_s: 60,
        keep: None,
    };
    configuration.spec.processors = 4;
    let wanted = Configure {
        lineage: ask.lineage.clone(),
        revision: configuration.revision(),
        configuration,
    };
    for _ in 0..2 {
        let answer = link.configure(&wanted).await.unwrap();
        assert_eq!(answer, ConfigureAnswer::Configured);
    }
    let told = reception(&link, &ask.lineage).await.unwrap();
    assert_eq!(told.revision, Some(wanted.revision));

    let mut strange = [wanted.clone(), wanted.clone(), wanted.clone()];
    strange[0].configuration.disks.clear();
    strange[1].configuration.spec.id = VmId::random();
    strange[2].configuration.spec.processors = 0;
    for strange in &strange {
        let problem = refused(link.configure(strange).await.unwrap_err());
        assert_eq!(problem.code, Code::Invalid, "{problem}");
    }
    let vm = wanted.configuration.spec.id;
    let kept = replicas.relation(vm).await.unwrap().reception;
    assert_eq!(kept.revision, Some(wanted.revision));

    // A replica that took over follows nobody.
    let mut theirs = ask.lineage.clone();
    let point = PointId {
        term: ask.lineage.current().id,
        sequence: 1,
    };
    replicas
        .with(vm, |enrolled| {
            theirs = ask.lineage.branch(point, "host-b").unwrap();
            enrolled.standing.role = Role::FailedOver;
            enrolled.standing.lineage = theirs.clone();
        })
        .unwrap();
    let answer = link.configure(&wanted).await.unwrap();
    assert_eq!(answer, ConfigureAnswer::Superseded { lineage: theirs });
    assert_eq!(reception(&link, &ask.lineage).await, None);
}

#[tokio::test]
async fn a_replica_that_is_paused_takes_nothing_in_and_says_so() {
    let sending = Sending::new(8).await;
    let Sending {
        replicas,
        spec,
        ask,
        link,
        offer,
        ..
    } = &sending;
    sending.put_all().await;
    let pause = |paused| {
        let pause = |enrolled: &mut Enrolled| enrolled.relation.reception.paused = paused;
        replicas.with(spec.id, pause).unwrap();
    };
    pause(true);
    for error in [
        link.offer(offer).await.unwrap_err(),
        link.commit(offer.root).await.unwrap_err(),
    ] {
        let problem = refused(error);
        assert!(problem.reason.contains("paused"), "{problem}");
        assert!(problem.way_out.contains("resume"), "{problem}");
    }
    let told = reception(link, &ask.lineage).await.unwrap();
    assert!(told.paused);
    let TipAnswer::At { reception, .. } = link.tip(&ask.lineage).await.unwrap() else {
        panic!("it is the replica")
    };
    assert!(reception.paused);
    pause(false);
    // What had come before is not sent again.
    let missing = OfferAnswer::Missing { chunks: Vec::new() };
    assert_eq!(link.offer(offer).await.unwrap(), missing);
    let committed = link.commit(offer.root).await.unwrap();
    assert!(matches!(committed, CommitAnswer::Committed { .. }));
}

#[tokio::test]
async fn nothing_is_taken_in_after_a_pause_though_it_was_let_in_before() {
    let sending = Sending::new(8).await;
    let Sending {
        replicas,
        spec,
        ask,
        link,
        offer,
        ..
    } = &sending;
    let resume = || {
        let resume = |enrolled: &mut Enrolled| enrolled.relation.reception.paused = false;
        replicas.with(spec.id, resume).unwrap();
    };
    link.offer(offer).await.unwrap();
    replicas.pauses.store(true, Ordering::Relaxed);
    sending.put(0).await.unwrap();
    assert_eq!(super::segments::laid_down(replicas, spec, 1, 8), 0);
    resume();
    replicas.pauses.store(true, Ordering::Relaxed);
    let problem = refused(link.commit(offer.root).await.unwrap_err());
    assert!(problem.reason.contains("paused"), "{problem}");
    assert_eq!(super::segments::laid_down(replicas, spec, 1, 8), 0);
    let parts = |tip| match tip {
        TipAnswer::At {
            tip: Tip::Seeding { parts, .. },
            ..
        } => parts,
        other => panic!("{other:?}"),
    };
    assert_eq!(parts(link.tip(&ask.lineage).await.unwrap()), 0);
    resume();
    // What had come is there still, and is not sent again.
    let missing = OfferAnswer::Missing { chunks: Vec::new() };
    assert_eq!(link.offer(offer).await.unwrap(), missing);
}
