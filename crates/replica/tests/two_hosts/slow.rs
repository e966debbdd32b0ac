//! Peers that are slow, or never answer: they are given up, and cost nobody else anything.
//!
//! Time is paused and goes on when nothing else does, so that minutes of waiting take none.

use std::convert::Infallible;

use axum::body::Body;
use futures_util::stream;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// A connection of `host` to host-b, for what no client of ours would send.
async fn raw(host: &Host) -> TlsStream<TcpStream> {
    let peer = host.trust.get("host-b").unwrap();
    let config =
        tls::client_config(&host.identity.leaf(Timestamp::now()), &host.trust, &peer).unwrap();
    let stream = TcpStream::connect(peer.address()).await.unwrap();
    let name = ServerName::try_from("host-b").unwrap();
    let connecting = TlsConnector::from(config).connect(name, stream);
    connecting.await.unwrap()
}

/// Sends `head`, then a byte every five seconds until an answer comes; the answer, and how long it took.
async fn trickle(mut stream: TlsStream<TcpStream>, head: String) -> (String, Duration) {
    let begun = Instant::now();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    loop {
        tokio::select! {
            read = stream.read(&mut answer) => {
                answer.truncate(read.unwrap());
                return (String::from_utf8(answer).unwrap(), begun.elapsed());
            }
            () = sleep(Duration::from_secs(5)) => stream.write_all(b"x").await.unwrap(),
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "never");
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_that_trickle_are_given_up_and_neither_take_the_memory_nor_hold_up_other_requests() {
    let sending = Sending::new(600).await;
    let Sending {
        a,
        spec,
        ask,
        link,
        staged,
        offer,
        ..
    } = &sending;
    link.offer(offer).await.unwrap();
    let head = |method: &str, path: String, len: u64| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: host-b\r\n{}: {}\r\nContent-Length: {len}\r\n\r\n",
            pollux_replica::wire::RELATIONSHIP,
            ask.relationship
        )
    };
    let chunk = || {
        let path = pollux_replica::wire::chunk_path(spec.id, offer.root, 0);
        head("PUT", path, CHUNK)
    };
    let an_offer = || {
        let path = pollux_replica::wire::vm_path(spec.id, "/offer");
        head("POST", path, 8 << 20)
    };
    let mut slow = Vec::new();
    for _ in 0..8 {
        slow.push(tokio::spawn(trickle(raw(a).await, chunk())));
        slow.push(tokio::spawn(trickle(raw(a).await, an_offer())));
    }
    // A connection on which nothing ever comes, and one whose head does not end.
    let silent = raw(a).await;
    let mut endless = raw(a).await;
    endless.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    // What is sent as it should be goes on beside them; at most 128 MiB of bodies at once, so that it
    // may have to wait for those that trickle.
    let begun = Instant::now();
    for n in 0..offer.chunks.len() as u64 {
        let chunk = outbox::chunk(staged, n).await.unwrap();
        link.put(offer.root, n, chunk).await.unwrap();
    }
    let committed = link.commit(offer.root).await.unwrap();
    assert!(matches!(committed, CommitAnswer::Committed { .. }));
    assert!(begun.elapsed() < Duration::from_secs(60), "held up");
    let mut given_up = 0;
    for slow in slow {
        let (answer, took) = slow.await.unwrap();
        // Chunks that were begun after the commit have nowhere to go.
        let whole = !answer.contains("did not come whole in time");
        assert!(!whole || answer.contains("was not offered"), "{answer}");
        given_up += u32::from(!whole);
        // The clock of the test runs ahead whenever all wait for the network.
        assert!(took < Duration::from_secs(200), "{took:?}");
    }
    assert!(given_up >= 8, "{given_up} of 16 were given up");
    for mut left in [silent, endless] {
        let ended = tokio::time::timeout(Duration::from_secs(400), left.read_u8()).await;
        assert!(ended.unwrap().is_err(), "closed");
    }
}

#[tokio::test]
async fn a_peer_that_takes_all_the_connections_it_can_leaves_some_to_others() {
    let (a, b, c) = (
        Host::new("host-a"),
        Host::new("host-b"),
        Host::new("host-c"),
    );
    let limits = Limits {
        connections: 4,
        of_one_peer: 2,
        ..Limits::default()
    };
    let router = router(Replicas::new(&b));
    let serving = Serving::serve(&b, router, None, limits).await;
    for host in [&a, &c] {
        host.trusts(&b, "host-b", serving.address);
        let address = "127.0.0.1:1".parse().unwrap();
        b.trusts(host, host.identity.name(), address);
    }
    let (one, two) = (raw(&a).await, raw(&a).await);
    // Its third one has no place, and is closed when it waited long enough.
    let error = a.client("host-b").hello(LIMIT).await.unwrap_err();
    lost(&error);
    let hello = c.client("host-b").hello(LIMIT).await.unwrap();
    assert_eq!(hello.you, "host-c");
    drop(one);
    let until = std::time::Instant::now() + LIMIT;
    while let Err(error) = a.client("host-b").hello(LIMIT).await {
        assert!(std::time::Instant::now() < until, "{error}");
    }
    drop(two);
    serving.stop().await;
}

#[tokio::test]
async fn strangers_that_hold_all_handshakes_open_keep_no_peer_out() {
    let (a, b) = (Host::new("host-a"), Host::new("host-b"));
    let limits = Limits {
        handshakes: 8,
        // Nobody is let go for having taken too long.
        handshake: Duration::from_secs(100_000),
        ..Limits::default()
    };
    let serving = Serving::serve(&b, router(Replicas::new(&b)), None, limits).await;
    a.trusts(&b, "host-b", serving.address);
    b.trusts(&a, "host-a", "127.0.0.1:1".parse().unwrap());
    let mut strangers = Vec::new();
    for _ in 0..3 {
        for _ in 0..limits.handshakes {
            strangers.push(TcpStream::connect(serving.address).await.unwrap());
        }
        // Each time over a new connection.
        let hello = a.client("host-b").hello(LIMIT).await.unwrap();
        assert_eq!(hello.you, "host-a");
    }
    // The first ones were closed for it, and the last ones were not.
    let mut byte = [0];
    let closed = tokio::time::timeout(LIMIT, strangers[0].read(&mut byte)).await;
    assert!(matches!(closed.unwrap(), Ok(0) | Err(_)));
    let last = strangers.last_mut().unwrap();
    let open = tokio::time::timeout(Duration::from_millis(50), last.read(&mut byte)).await;
    assert!(open.is_err(), "{open:?}");
    serving.stop().await;
}

#[tokio::test]
async fn hundreds_of_vms_that_ask_at_once_are_all_heard() {
    let (a, b) = (Host::new("host-a"), Host::new("host-b"));
    let limits = Limits {
        handshakes: 8,
        ..Limits::default()
    };
    let serving = Serving::serve(&b, router(Replicas::new(&b)), None, limits).await;
    a.trusts(&b, "host-b", serving.address);
    b.trusts(&a, "host-a", "127.0.0.1:1".parse().unwrap());
    let client = a.client("host-b");
    for _ in 0..2 {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..300 {
            let client = client.clone();
            all.spawn(async move { client.hello(LIMIT).await });
        }
        for answer in all.join_all().await {
            answer.unwrap();
        }
    }
    serving.stop().await;
}

/// Counts what is being answered.
struct Answering(Arc<AtomicU64>);

impl Answering {
    fn begin(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_never_ends_its_answer_counts_as_lost_and_leaves_nothing_behind() {
    let (a, b) = (Host::new("host-a"), Host::new("host-b"));
    let (spec, answering) = (spec(), Arc::<AtomicU64>::default());
    let count = answering.clone();
    // Nothing to most questions, a byte a second to commits, and to comparisons more than anybody wants.
    let router = Router::new().fallback(async move |request: axum::extract::Request| {
        let answering = Answering::begin(&count);
        let path = request.uri().path().to_owned();
        if path.ends_with("/commit") {
            let bytes = stream::unfold(answering, async |answering| {
                sleep(Duration::from_secs(1)).await;
                Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), answering))
            });
            return Body::from_stream(bytes);
        }
        if path.ends_with("/compare") {
            let bytes = stream::unfold(answering, async |answering| {
                let much = Bytes::from_static(&[b' '; 64 << 10]);
                Some((Ok::<_, Infallible>(much), answering))
            });
            return Body::from_stream(bytes);
        }
        // What is not read would keep the server from seeing that the connection was closed.
        let _ = axum::body::to_bytes(request.into_body(), 4 << 20).await;
        std::future::pending::<()>().await;
        drop(answering);
        Body::empty()
    });
    let serving = Serving::serve(&b, router, None, Limits::default()).await;
    a.trusts(&b, "host-b", serving.address);
    b.trusts(&a, "host-a", "127.0.0.1:1".parse().unwrap());
    let ask = enrol(&spec);
    let link = PeerLink::new(a.client("host-b"), spec.id, ask.relationship);
    let part = Content::Seed {
        seed: ask.seed,
        part: 0,
    };
    let staged = segment(&a.path, header(&spec, &ask.lineage, part), 16, 1);
    let offer = outbox::offer(&staged.file).await.unwrap();
    let compare = pollux_replica::wire::Compare {
        lineage: ask.lineage.clone(),
        basis: pollux_replica::wire::Basis::Point {
            point: PointId {
                term: ask.lineage.current().id,
                sequence: 1,
            },
        },
        issued: 1,
        disk: spec.disks[0].id,
        size: spec.disks[0].size,
        regions: Vec::new(),
    };
    for _ in 0..3 {
        let begun = Instant::now();
        let chunk = outbox::chunk(&staged, 0).await.unwrap();
        let errors = [
            (3, link.contact(&ask.lineage).await.map(drop)),
            (120, link.tip(&ask.lineage).await.map(drop)),
            (120, link.offer(&offer).await.map(drop)),
            (60, link.put(offer.root, 0, chunk).await),
            (120, link.commit(offer.root).await.map(drop)),
        ];
        let sum: u64 = errors.iter().map(|(seconds, _)| seconds).sum();
        for (seconds, error) in errors {
            let error = error.unwrap_err();
            let reason = format!("no answer within {seconds} s");
            assert!(lost(&error).reason.contains(&reason), "{error}");
        }
        let took = begun.elapsed().as_secs();
        assert!((sum..sum + 5).contains(&took), "{took}");
        let error = link.compare(&compare).await.unwrap_err();
        assert!(!lost(&error).reason.contains("no answer"), "{error}");
    }
    // What was given up is ended on both sides.
    for _ in 0..1000 {
        if answering.load(Ordering::SeqCst) == 0 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(answering.load(Ordering::SeqCst), 0, "connections are left");
    serving.stop().await;
}
