//! Two hosts on loopback: real TLS, the real receiver, a real journal.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "two_hosts/builds.rs"]
mod builds;
#[path = "two_hosts/compare.rs"]
mod compare;
#[path = "two_hosts/reception.rs"]
mod reception;
#[path = "two_hosts/slow.rs"]
mod slow;

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
    CHUNK, CommitAnswer, Configure, Digest, Enrol, LeaseAnswer, LeaseRequest, OfferAnswer,
    PartnerStanding, Reception, Tip, TipAnswer,
};
use rustls_pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

const LIMIT: Duration = Duration::from_secs(5);

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
        let listener = TcpListener::bind(at).await.unwrap();
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

/// A host that may hold one replica VM.
struct Replicas {
    path: PathBuf,
    /// Most bytes that one segment may take.
    limit: AtomicU64,
    /// The next segment cannot be taken in.
    broken: Arc<AtomicBool>,
    /// A person pauses it while the next segment is let in.
    pauses: AtomicBool,
    rules: Mutex<Rules>,
    state: Mutex<Option<Enrolled>>,
}

struct Enrolled {
    vm: VmId,
    relation: Relation,
    standing: Standing,
    shelf: Shelf<Paced>,
}

/// A journal that takes a segment in only when the test lets it, if the test wants that.
struct Paced {
    journal: Journal,
    /// Says that it is about to take one in, and waits.
    hold: Option<(mpsc::UnboundedSender<()>, std::sync::mpsc::Receiver<()>)>,
    /// Fails once.
    broken: Arc<AtomicBool>,
}

impl Receipts for Paced {
    fn tip(&self) -> Tip {
        Receipts::tip(&self.journal)
    }

    fn disks(&self) -> Vec<DiskId> {
        Receipts::disks(&self.journal)
    }

    fn check(&self, header: &Header, root: Root) -> Verdict {
        Receipts::check(&self.journal, header, root)
    }

    fn take(&mut self, file: &Path, header: &Header, root: Root) -> Result<(), Problem> {
        if self.broken.swap(false, Ordering::Relaxed) {
            let reason = "cannot be read";
            return Err(Problem::new(Code::Failed, "the segment", reason, ""));
        }
        if let Some((begun, go_on)) = &self.hold {
            begun.send(()).unwrap();
            go_on.recv().unwrap();
        }
        self.journal.take(file, header, root)
    }

    fn open_point(&self, point: PointId) -> Result<Arc<PointReader>, Problem> {
        Receipts::open_point(&self.journal, point)
    }

    fn open_seed(&self) -> Result<Arc<SeedReader>, Problem> {
        Receipts::open_seed(&self.journal)
    }
}

impl Replicas {
    fn new(host: &Host) -> Arc<Self> {
        Arc::new(Self {
            path: host.path.join("vm"),
            limit: AtomicU64::new(64 * CHUNK),
            broken: Arc::default(),
            pauses: AtomicBool::new(false),
            rules: Mutex::new(Rules {
                enabled: true,
                ..Rules::default()
            }),
            state: Mutex::new(None),
        })
    }

    fn with<T>(&self, vm: VmId, work: impl FnOnce(&mut Enrolled) -> T) -> Result<T, Problem> {
        let mut state = self.state.lock().unwrap();
        match state.as_mut().filter(|enrolled| enrolled.vm == vm) {
            Some(enrolled) => Ok(work(enrolled)),
            None => Err(Problem::new(Code::NotFound, "the VM", "is not here", "")),
        }
    }
}

impl ReplicaHost for Replicas {
    type Receipts = Paced;

    fn name(&self) -> &str {
        "host-b"
    }

    fn admits(&self, principal: &Principal) -> Result<(), Problem> {
        let rules = self.rules.lock().unwrap();
        let denied = rules.admit(&principal.name).map(drop);
        denied.map_err(|denied| denied.problem(&principal.name, self.name()))
    }

    async fn enrol(&self, principal: &Principal, vm: VmId, enrol: Enrol) -> Result<(), Problem> {
        let mut state = self.state.lock().unwrap();
        if let Some(enrolled) = state.as_ref() {
            if enrolled.relation.id == enrol.relationship {
                return Ok(());
            }
            return Err(Problem::new(Code::Conflict, "the VM", "is bound", ""));
        }
        let disks: Vec<DiskExtent> = enrol.spec.disks.iter().map(extent).collect();
        let journal = Journal::create(&self.path, vm, &disks, enrol.seed).unwrap();
        *state = Some(Enrolled {
            vm,
            relation: Relation {
                id: enrol.relationship,
                thing: format!("VM `{}`", enrol.spec.name),
                partner: principal.name.clone(),
                role: Role::Replica,
                reception: Reception {
                    paused: false,
                    revision: Some(enrol.revision),
                    filling: None,
                },
                incoming: self.path.join(Journal::INCOMING),
            },
            standing: Standing::replica(&principal.name, enrol.lineage),
            shelf: Arc::new(Mutex::new(Some(Paced {
                journal,
                hold: None,
                broken: self.broken.clone(),
            }))),
        });
        Ok(())
    }

    async fn relation(&self, vm: VmId) -> Option<Relation> {
        self.with(vm, |enrolled| enrolled.relation.clone()).ok()
    }

    fn reception(&self, vm: VmId, id: RelationshipId) -> Option<Reception> {
        let relation = self.with(vm, |enrolled| enrolled.relation.clone()).ok()?;
        (relation.id == id).then_some(relation.reception)
    }

    async fn contact(&self, vm: VmId, theirs: &Lineage) -> Result<PartnerStanding, Problem> {
        self.with(vm, |enrolled| {
            let met = enrolled.standing.meet("the VM", theirs, None)?;
            enrolled.standing = met.standing;
            Ok(enrolled.standing.tell(false))
        })?
    }

    async fn lease(
        &self,
        vm: VmId,
        theirs: &Lineage,
        asked: LeaseRequest,
    ) -> Result<LeaseAnswer, Problem> {
        self.with(vm, |enrolled| {
            let (next, answer) = enrolled.standing.answer_lease(theirs, asked);
            enrolled.standing = next.unwrap_or_else(|| enrolled.standing.clone());
            answer
        })
    }

    async fn stand_down(&self, vm: VmId, asked: &Lineage) -> Result<(), Problem> {
        self.with(vm, |enrolled| {
            enrolled.standing = enrolled.standing.stand_down("the VM", asked, false)?;
            Ok(())
        })?
    }

    async fn admit(&self, vm: VmId, len: u64, held: u64) -> Result<(), Problem> {
        if self.pauses.swap(false, Ordering::Relaxed) {
            self.with(vm, |enrolled| enrolled.relation.reception.paused = true)?;
        }
        if len + held > self.limit.load(Ordering::Relaxed) {
            return Err(Problem::new(Code::Full, "the store", "is full", ""));
        }
        Ok(())
    }

    async fn shelf(&self, vm: VmId) -> Result<Shelf<Paced>, Problem> {
        self.with(vm, |enrolled| {
            let mut shelf = enrolled.shelf.lock().unwrap();
            if shelf.is_none() && enrolled.standing.role == Role::Replica {
                *shelf = Some(Paced {
                    journal: Journal::open(&self.path).unwrap(),
                    hold: None,
                    broken: self.broken.clone(),
                });
            }
            drop(shelf);
            enrolled.shelf.clone()
        })
    }

    fn received(&self, _: VmId, _: &Header, _: u64) {}

    async fn configure(&self, vm: VmId, wanted: Configure) -> Result<(), Problem> {
        self.with(vm, |enrolled| {
            enrolled.relation.reception.revision = Some(wanted.revision);
        })
    }

    async fn cancel(&self, vm: VmId) -> Result<(), Problem> {
        self.remove(vm).await
    }

    async fn remove(&self, _: VmId) -> Result<(), Problem> {
        *self.state.lock().unwrap() = None;
        Ok(())
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
    let size = model::Bytes(16 << 20);
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

async fn pair() -> (Host, Host, Arc<Replicas>, Serving) {
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

#[tokio::test]
async fn an_interrupted_segment_resumes_after_a_restart_and_commits_into_the_journal() {
    let (a, b, replicas, serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let part = Content::Seed {
        seed: ask.seed,
        part: 0,
    };
    let staged = segment(&a.path, header(&spec, &ask.lineage, part), 2000, 1);
    let offer = outbox::offer(&staged).await.unwrap();
    assert_eq!(offer.chunks.len(), 4);
    let all = OfferAnswer::Missing {
        chunks: vec![0, 1, 2, 3],
    };
    assert_eq!(link.offer(&offer).await.unwrap(), all);
    for n in [2, 0] {
        let chunk = outbox::chunk(&staged, n).await.unwrap();
        link.put(offer.root, n, chunk.clone()).await.unwrap();
        link.put(offer.root, n, chunk).await.unwrap();
    }
    // Not what was offered, in three ways.
    let chunk = outbox::chunk(&staged, 0).await.unwrap();
    for (n, body) in [
        (1, chunk.clone()),
        (4, chunk.clone()),
        (1, Bytes::from(vec![0; 3 << 20])),
    ] {
        let error = link.put(offer.root, n, body).await.unwrap_err();
        assert!(
            matches!(&error, LinkError::Refused(p) if p.code == Code::Invalid),
            "{error}"
        );
    }
    let early = link.commit(offer.root).await.unwrap();
    assert!(matches!(early, CommitAnswer::Again { .. }), "{early:?}");

    let at = serving.address;
    serving.stop().await;
    let error = link.tip(&ask.lineage).await.unwrap_err();
    lost(&error);
    let _serving = Serving::start(&b, replicas.clone(), Some(at)).await;
    let error = link.put(offer.root, 1, chunk).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::NotFound),
        "{error}"
    );
    let rest = OfferAnswer::Missing { chunks: vec![1, 3] };
    assert_eq!(link.offer(&offer).await.unwrap(), rest);
    for n in [1, 3] {
        let chunk = outbox::chunk(&staged, n).await.unwrap();
        link.put(offer.root, n, chunk).await.unwrap();
    }
    let tip = Tip::Seeding {
        seed: ask.seed,
        parts: 1,
        last: Some(offer.root),
    };
    let committed = CommitAnswer::Committed { tip };
    assert_eq!(link.commit(offer.root).await.unwrap(), committed);
    // A lost acknowledgement.
    let again = OfferAnswer::Committed { tip };
    assert_eq!(link.offer(&offer).await.unwrap(), again);

    // The first point, and what it reads as.
    let delta = Content::Delta {
        sequence: 1,
        since: Since::Seed {
            seed: ask.seed,
            parts: 1,
        },
    };
    let staged = segment(&a.path, header(&spec, &ask.lineage, delta), 16, 2);
    let offer = outbox::offer(&staged).await.unwrap();
    link.offer(&offer).await.unwrap();
    let chunk = outbox::chunk(&staged, 0).await.unwrap();
    link.put(offer.root, 0, chunk).await.unwrap();
    let point = PointId {
        term: ask.lineage.current().id,
        sequence: 1,
    };
    let tip = Tip::Point {
        point,
        root: offer.root,
    };
    let committed = CommitAnswer::Committed { tip };
    assert_eq!(link.commit(offer.root).await.unwrap(), committed);
    let shelf = replicas.shelf(spec.id).await.unwrap();
    let shelf = shelf.lock().unwrap();
    let journal = &shelf.as_ref().unwrap().journal;
    let reader = journal.open_point(point).unwrap();
    let mut content = vec![0; 2000 * 4096];
    reader.read_at(spec.disks[0].id, 0, &mut content).unwrap();
    let mut expected = noise(1, 2000 * 4096);
    expected[..16 * 4096].copy_from_slice(&noise(2, 16 * 4096));
    assert!(content == expected, "the point reads as what was cut");
    let left = std::fs::read_dir(replicas.path.join(Journal::INCOMING)).unwrap();
    assert_eq!(left.count(), 0, "nothing is left of what was received");
}

#[tokio::test]
async fn a_replica_that_took_over_says_so_to_every_question_and_takes_nothing() {
    let (a, _b, replicas, _serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let point = PointId {
        term: ask.lineage.current().id,
        sequence: 1,
    };
    let lease = |agreement, seconds: Option<u32>| LeaseRequest {
        agreement,
        fence: seconds.map(|seconds| Fence::new(seconds).unwrap()),
    };
    let answered = async |asked| {
        let answer = link.lease(&ask.lineage, asked, LIMIT).await.unwrap();
        answer.lease.map(|lease| (lease.granted, lease.agreement))
    };
    assert_eq!(answered(lease(2, Some(10))).await, Some((true, 2)));
    assert_eq!(answered(lease(1, Some(60))).await, Some((false, 2)), "late");
    assert_eq!(answered(lease(3, None)).await, Some((true, 3)));
    assert_eq!(answered(lease(2, Some(10))).await, Some((false, 3)), "late");
    assert_eq!(answered(lease(4, Some(10))).await, Some((true, 4)));
    let theirs = ask.lineage.branch(point, "host-b").unwrap();
    let taken = theirs.clone();
    replicas
        .with(spec.id, move |enrolled| {
            enrolled.standing.role = Role::FailedOver;
            enrolled.standing.lineage = taken;
            *enrolled.shelf.lock().unwrap() = None;
        })
        .unwrap();
    assert_eq!(answered(lease(4, Some(10))).await, Some((false, 4)));
    let superseded = TipAnswer::Superseded {
        lineage: theirs.clone(),
    };
    assert_eq!(link.tip(&ask.lineage).await.unwrap(), superseded);
    let part = Content::Seed {
        seed: ask.seed,
        part: 0,
    };
    let staged = segment(&a.path, header(&spec, &ask.lineage, part), 16, 3);
    let offer = outbox::offer(&staged).await.unwrap();
    let superseded = OfferAnswer::Superseded { lineage: theirs };
    assert_eq!(link.offer(&offer).await.unwrap(), superseded);
}

#[tokio::test]
async fn what_does_not_fit_or_is_not_what_it_says_is_refused_and_changes_nothing() {
    let (a, _b, _replicas, _serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let part = Content::Seed {
        seed: ask.seed,
        part: 0,
    };
    let staged = segment(&a.path, header(&spec, &ask.lineage, part), 16, 4);
    let good = outbox::offer(&staged).await.unwrap();

    let mut long = good.clone();
    long.file_len = 100 * CHUNK;
    long.chunks = vec![Digest([0; 32]); 100];
    let error = link.offer(&long).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Full),
        "{error}"
    );
    let mut short = good.clone();
    short.chunks.clear();
    let error = link.offer(&short).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Invalid),
        "{error}"
    );
    let mut gap = good.clone();
    gap.header.content = Content::Seed {
        seed: ask.seed,
        part: 7,
    };
    let answer = link.offer(&gap).await.unwrap();
    assert!(matches!(answer, OfferAnswer::Unfit { .. }), "{answer:?}");

    // Every chunk is as offered, and the whole is no segment.
    let junk = Bytes::from(noise(9, 5000));
    let mut lie = good.clone();
    lie.file_len = junk.len() as u64;
    lie.chunks = vec![Digest::of(&junk)];
    link.offer(&lie).await.unwrap();
    link.put(lie.root, 0, junk).await.unwrap();
    let error = link.commit(lie.root).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Invalid),
        "{error}"
    );
    let tip = Tip::Seeding {
        seed: ask.seed,
        parts: 0,
        last: None,
    };
    assert_eq!(link.tip(&ask.lineage).await.unwrap(), at(tip));
}

#[tokio::test]
async fn a_commit_that_outlasts_its_caller_is_found_by_the_next_questions() {
    let (a, _b, replicas, _serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let (begins, mut begun) = mpsc::unbounded_channel();
    let (go_on, goes_on) = std::sync::mpsc::channel();
    let shelf = replicas.shelf(spec.id).await.unwrap();
    shelf.lock().unwrap().as_mut().unwrap().hold = Some((begins, goes_on));
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let part = Content::Seed {
        seed: ask.seed,
        part: 0,
    };
    let staged = segment(&a.path, header(&spec, &ask.lineage, part), 16, 5);
    let offer = outbox::offer(&staged).await.unwrap();
    link.offer(&offer).await.unwrap();
    let chunk = outbox::chunk(&staged, 0).await.unwrap();
    link.put(offer.root, 0, chunk).await.unwrap();
    // As when the limit of the request is over: the caller hangs up.
    tokio::select! {
        answer = link.commit(offer.root) => panic!("answered: {answer:?}"),
        _ = begun.recv() => {}
    }
    // It asks again while the first one is still at it.
    let asking = {
        let (link, offer) = (link.clone(), offer.clone());
        tokio::spawn(async move { link.offer(&offer).await })
    };
    go_on.send(()).unwrap();
    let tip = Tip::Seeding {
        seed: ask.seed,
        parts: 1,
        last: Some(offer.root),
    };
    let committed = OfferAnswer::Committed { tip };
    let answer = tokio::time::timeout(LIMIT, asking).await.unwrap();
    assert_eq!(answer.unwrap().unwrap(), committed);
    assert_eq!(link.tip(&ask.lineage).await.unwrap(), at(tip));
    let left = std::fs::read_dir(replicas.path.join(Journal::INCOMING)).unwrap();
    assert_eq!(left.count(), 0, "the first request ran to its end");
}

#[tokio::test]
async fn content_that_compresses_well_is_held_to_the_limit_by_what_it_takes_in_the_base() {
    let (a, _b, replicas, _serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let part = Content::Seed {
        seed: ask.seed,
        part: 0,
    };
    let file = a.path.join("even.segment");
    let out = std::fs::File::create(&file).unwrap();
    let mut writer = SegmentWriter::create(out, &header(&spec, &ask.lineage, part)).unwrap();
    for at in 0..32 {
        writer.push_frame(0, at * 16, &[7; 16 * 4096]).unwrap();
    }
    // Zeroes take nothing.
    writer.push_zero(0, 32 * 16, 1024).unwrap();
    writer.finish().unwrap();
    let staged = outbox::read(&file).unwrap();
    let offer = outbox::offer(&staged).await.unwrap();
    assert!(offer.file_len < 100_000, "{}", offer.file_len);

    replicas.limit.store(1 << 20, Ordering::Relaxed);
    let all = (0..).take(offer.chunks.len()).collect();
    let missing = OfferAnswer::Missing { chunks: all };
    assert_eq!(link.offer(&offer).await.unwrap(), missing);
    let bytes = Bytes::from(std::fs::read(&file).unwrap());
    assert_eq!(offer.chunks.len(), 1);
    link.put(offer.root, 0, bytes).await.unwrap();
    let error = link.commit(offer.root).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Full),
        "{error}"
    );
    // Nothing was lost: with more room it goes on where it was.
    replicas.limit.store(2 << 20, Ordering::Relaxed);
    let nothing = OfferAnswer::Missing { chunks: Vec::new() };
    assert_eq!(link.offer(&offer).await.unwrap(), nothing);
    let answer = link.commit(offer.root).await.unwrap();
    assert!(
        matches!(answer, CommitAnswer::Committed { .. }),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_segment_on_a_bad_place_of_the_disk_is_sent_anew() {
    let (a, _b, replicas, _serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let part = Content::Seed {
        seed: ask.seed,
        part: 0,
    };
    let staged = segment(&a.path, header(&spec, &ask.lineage, part), 16, 5);
    let offer = outbox::offer(&staged).await.unwrap();
    let bytes = Bytes::from(std::fs::read(a.path.join("5.segment")).unwrap());
    let whole = OfferAnswer::Missing { chunks: vec![0] };
    assert_eq!(link.offer(&offer).await.unwrap(), whole);
    link.put(offer.root, 0, bytes.clone()).await.unwrap();
    replicas.broken.store(true, Ordering::Relaxed);
    let error = link.commit(offer.root).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Failed),
        "{error}"
    );
    assert_eq!(link.offer(&offer).await.unwrap(), whole);
    link.put(offer.root, 0, bytes).await.unwrap();
    let answer = link.commit(offer.root).await.unwrap();
    assert!(
        matches!(answer, CommitAnswer::Committed { .. }),
        "{answer:?}"
    );
}
