//! Two hosts on loopback: real TLS, the real receiver, a real journal.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "two_hosts/builds.rs"]
mod builds;
#[path = "two_hosts/compare.rs"]
mod compare;
#[path = "two_hosts/full.rs"]
mod full;
#[path = "two_hosts/power.rs"]
mod power;
#[path = "two_hosts/reception.rs"]
mod reception;
#[path = "two_hosts/replicas.rs"]
mod replicas;
#[path = "two_hosts/segments.rs"]
mod segments;
#[path = "two_hosts/slow.rs"]
mod slow;
#[path = "two_hosts/trust.rs"]
mod trust;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use jiff::Timestamp;
use journal::{
    Consistency, Content, DiskExtent, Header, Journal, PointReader, Root, SeedReader, SegmentWriter,
};
use model::{
    Code, DiskId, DiskSpec, Generation, Lineage, PointId, Problem, RelationshipId, SeedId, Since,
    VmId, VmSpec,
};
use pollux_replica::authorization::{Admits, Rules};
use pollux_replica::client::{PeerClient, PeerLink};
use pollux_replica::host::{Principal, Receipts, Relation, ReplicaHost, Shelf, Verdict};
use pollux_replica::identity::Identity;
use pollux_replica::lease::Fence;
use pollux_replica::link::{Link, LinkError};
use pollux_replica::outbox;
use pollux_replica::receiver::router;
use pollux_replica::source::Staged;
use pollux_replica::standing::{Role, Standing};
use pollux_replica::tls::{self, Limits};
use pollux_replica::trust::{Peer, Trust};
use pollux_replica::wire::{
    CHUNK, CommitAnswer, Configure, Contact, Digest, Enrol, LeaseAnswer, LeaseRequest, Offer,
    OfferAnswer, PartnerStanding, Reception, Tip, TipAnswer,
};
use rustls_pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use replicas::{Enrolled, Replicas};

const LIMIT: Duration = Duration::from_secs(30);

/// A host: its identity, whom it trusts, and, if it serves, where.
struct Host {
    _folder: tempfile::TempDir,
    path: PathBuf,
    identity: Arc<Identity>,
    trust: Arc<Trust>,
}

impl Host {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let identity = Identity::open(&path.join("identity"), name, Timestamp::now()).unwrap();
        let trust = Trust::open(&path.join("peers")).unwrap();
        Self {
            _folder: folder,
            path,
            identity: Arc::new(identity),
            trust: Arc::new(trust),
        }
    }

    fn trusts(&self, other: &Host, name: &str, address: SocketAddr) {
        let pem = other.identity.authority_pem();
        let peer = Peer::new(name, &address.to_string(), &pem, None).unwrap();
        self.trust.trust(peer).unwrap();
    }

    fn client(&self, name: &str) -> Arc<PeerClient> {
        let client = PeerClient::new(self.identity.clone(), self.trust.clone(), name);
        Arc::new(client)
    }
}

/// A server that ends with this.
struct Serving {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Serving {
    async fn start(host: &Host, replicas: Arc<Replicas>, at: Option<SocketAddr>) -> Self {
        Self::serve(host, router(replicas), at, Limits::default()).await
    }

    async fn serve(host: &Host, router: Router, at: Option<SocketAddr>, limits: Limits) -> Self {
        let at = at.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
        let limit = std::time::Instant::now() + LIMIT;
        let listener = loop {
            match TcpListener::bind(at).await {
                Ok(listener) => break listener,
                // Where one listened before, another program may have the port for a while.
                Err(error) => assert!(std::time::Instant::now() < limit, "{at}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let address = listener.local_addr().unwrap();
        let config = tls::server_config(&host.identity, host.trust.clone()).unwrap();
        let (stop, stopped) = oneshot::channel();
        let trust = host.trust.clone();
        let task = tokio::spawn(tls::serve(listener, config, trust, router, limits, async {
            let _ = stopped.await;
        }));
        let stop = Some(stop);
        Self {
            address,
            stop,
            task,
        }
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(LIMIT, self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

fn extent(disk: &DiskSpec) -> DiskExtent {
    DiskExtent {
        joining: false,
        id: disk.id,
        size: disk.size,
    }
}

fn spec() -> VmSpec {
    spec_of(16)
}

/// With a disk of so many MiB.
fn spec_of(mib: u64) -> VmSpec {
    let size = model::Bytes(mib << 20);
    let disk = DiskSpec::new("disk0.raw".into(), size, model::Bus::Virtio, 0);
    let memory = model::Bytes(64 << 20);
    let name = "web".parse().unwrap();
    VmSpec::new(name, Generation::Two, 1, memory, false, None, vec![disk]).unwrap()
}

fn enrol(spec: &VmSpec) -> Enrol {
    Enrol {
        relationship: RelationshipId::random(),
        spec: spec.clone(),
        disks: spec.disks.iter().map(|disk| disk.id).collect(),
        frequency_s: 5,
        keep: None,
        revision: Digest::of(b"the first"),
        seed: SeedId::random(),
        seed_from: None,
        lineage: Lineage::begin("host-a"),
    }
}

/// The answer of a replica that goes on as one.
fn at(tip: Tip) -> TipAnswer {
    TipAnswer::At {
        tip,
        issued: 0,
        disks: Vec::new(),
        reception: Reception {
            paused: false,
            revision: Some(Digest::of(b"the first")),
            filling: None,
        },
    }
}

/// Content that does not compress, the same for the same `salt`.
fn noise(salt: u64, len: usize) -> Vec<u8> {
    let mut content = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.finalize_xof().fill(&mut content);
    content
}

/// Writes a segment with `blocks` blocks of noise from block 0 on.
fn segment(folder: &Path, header: Header, blocks: usize, salt: u64) -> Staged {
    let file = folder.join(format!("{salt}.segment"));
    let out = std::fs::File::create(&file).unwrap();
    let mut writer = SegmentWriter::create(out, &header).unwrap();
    for (at, frame) in noise(salt, blocks * 4096).chunks(16 * 4096).enumerate() {
        writer.push_frame(0, at as u64 * 16, frame).unwrap();
    }
    writer.finish().unwrap();
    outbox::read(&file).unwrap()
}

fn header(spec: &VmSpec, lineage: &Lineage, content: Content) -> Header {
    Header {
        vm: spec.id,
        disks: spec.disks.iter().map(extent).collect(),
        lineage: lineage.clone(),
        content,
        time: Timestamp::now(),
        consistency: Consistency::Crash,
    }
}

/// Of the first part of the initial replication that `ask` is for.
fn first_part(spec: &VmSpec, ask: &Enrol) -> Header {
    let part = Content::Seed {
        seed: ask.seed,
        part: 0,
    };
    header(spec, &ask.lineage, part)
}

/// Two hosts, and what the second one holds and serves.
type Both = (Host, Host, Arc<Replicas>, Serving);

async fn pair() -> Both {
    let (a, b) = (Host::new("host-a"), Host::new("host-b"));
    let replicas = Replicas::new(&b);
    let serving = Serving::start(&b, replicas.clone(), None).await;
    a.trusts(&b, "host-b", serving.address);
    b.trusts(&a, "host-a", "127.0.0.1:1".parse().unwrap());
    (a, b, replicas, serving)
}

fn lost(error: &LinkError) -> &Problem {
    match error {
        LinkError::Lost(problem) => problem,
        LinkError::Refused(problem) => panic!("an answer was given: {problem}"),
    }
}

/// Host-a with a VM that host-b is enrolled for, and the first part of its initial replication.
struct Sending {
    a: Host,
    _b: Host,
    replicas: Arc<Replicas>,
    _serving: Serving,
    spec: VmSpec,
    ask: Enrol,
    link: PeerLink,
    staged: Staged,
    offer: Offer,
}

impl Sending {
    /// The part holds `blocks` blocks of noise.
    async fn new(blocks: usize) -> Self {
        Self::of(pair().await, blocks).await
    }

    async fn of(both: Both, blocks: usize) -> Self {
        Self::of_spec(both, spec(), blocks).await
    }

    async fn of_spec((a, b, replicas, serving): Both, spec: VmSpec, blocks: usize) -> Self {
        let client = a.client("host-b");
        let ask = enrol(&spec);
        client.enrol(spec.id, &ask).await.unwrap();
        let link = PeerLink::new(client, spec.id, ask.relationship);
        let staged = segment(&a.path, first_part(&spec, &ask), blocks, 1);
        let offer = outbox::offer(&staged.file).await.unwrap();
        Self {
            a,
            _b: b,
            replicas,
            _serving: serving,
            spec,
            ask,
            link,
            staged,
            offer,
        }
    }

    async fn put(&self, n: u64) -> Result<(), LinkError> {
        let chunk = outbox::chunk(&self.staged, n).await.unwrap();
        self.link.put(self.offer.root, n, chunk).await
    }

    /// Offers it, and puts every chunk.
    async fn put_all(&self) {
        self.link.offer(&self.offer).await.unwrap();
        for n in 0..self.offer.chunks.len() as u64 {
            self.put(n).await.unwrap();
        }
    }

    /// What the replica has, once so many parts came.
    fn parts(&self, parts: u64) -> Tip {
        Tip::Seeding {
            seed: self.ask.seed,
            parts,
            last: (parts > 0).then_some(self.offer.root),
        }
    }
}

fn refused(error: LinkError) -> Problem {
    match error {
        LinkError::Refused(problem) => problem,
        LinkError::Lost(problem) => panic!("no answer: {problem}"),
    }
}
