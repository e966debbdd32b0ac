//! Requests of another host at the replica endpoint, one after the other: let in, read, received, laid down,
//! committed, compared, over a real journal. What was acknowledged is there afterwards, and is read.
//!
//! ```text
//!   input | kind | length, 2 bytes | content | kind | ...
//! ```
//!
//! The hashes of a segment are put right first, and it is offered as what it says it is, as a peer that means
//! harm would. Every other body is sent as it is.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper::{Method, Request, StatusCode};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use journal::{
    Consistency, Content, DiskExtent, Header, Journal, Root, SegmentReader, SegmentWriter, compare,
};
use model::{
    BLOCK_SIZE, Bus, Bytes, Code, DiskId, DiskSpec, Generation, Lineage, Problem, RelationshipId,
    SeedId, Since, Term, TermId, VmId, VmSpec,
};
use replica::host::{Principal, Receipts, Relation, ReplicaHost, Shelf};
use replica::receiver;
use replica::standing::{Role, Standing};
use replica::wire::{
    Basis, CHUNK, CommitAnswer, Compare, Configuration, Configure, Contact, Digest, Enrol,
    LeaseAnswer, LeaseRequest, Offer, PartnerStanding, RELATIONSHIP, Reception, RegionDigest,
    Reverse, Reversed, StandDown, Tip, chunk_path, commit_path, vm_path,
};
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

/// Keys of the bodies, and of headers.
pub const WORDS: &[&str] = crate::peer_json::WORDS;

const SIZE: u64 = 64 * BLOCK_SIZE;
/// The largest disk that it takes.
const LARGEST: u64 = 1 << 30;
/// Most that the store takes of a segment.
const ROOM: u64 = 8 << 20;
/// The host that asks.
const PEER: &str = "castor";

/// What is asked with a body that is sent as it is.
const BODIES: [(Method, &str); 10] = [
    (Method::POST, "/tip"),
    (Method::POST, "/standing"),
    (Method::PUT, "/configuration"),
    (Method::POST, "/offer"),
    (Method::POST, "/compare"),
    (Method::POST, "/stand-down"),
    (Method::POST, "/reverse"),
    (Method::PUT, ""),
    (Method::POST, "/cancel"),
    (Method::DELETE, ""),
];
/// What ends the relationship comes last of them, and seldom.
const GOES_ON: usize = 8;
/// A kind with this bit is a segment;
const SEGMENT: u8 = 0x80;
/// with these it is offered as longer than it is, in a later round, with the root of another file, or as
/// the first part of the initial replication;
const LONGER: u8 = 1;
const LATER: u8 = 2;
const OTHER: u8 = 4;
const FIRST: u8 = 8;
/// with this it is offered only.
const OFFERED: u8 = 16;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn vm() -> VmId {
    VmId(id(1))
}

fn relationship() -> RelationshipId {
    RelationshipId(id(2))
}

fn seed() -> SeedId {
    SeedId(id(3))
}

fn disk() -> DiskId {
    DiskId(id(4))
}

fn lineage() -> Lineage {
    let first = Term {
        number: 1,
        id: TermId(id(5)),
        opener: PEER.to_owned(),
        parent: None,
    };
    Lineage::try_from(vec![first]).expect("a first term")
}

fn extent() -> DiskExtent {
    DiskExtent {
        joining: false,
        id: disk(),
        size: Bytes(SIZE),
    }
}

fn header(content: Content) -> Header {
    Header {
        vm: vm(),
        disks: vec![extent()],
        lineage: lineage(),
        content,
        time: Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
    }
}

fn part(number: u64) -> Content {
    Content::Seed {
        seed: seed(),
        part: number,
    }
}

/// A host that is the replica of one VM.
struct Host {
    path: PathBuf,
    twin: Mutex<Option<Twin>>,
}

struct Twin {
    relation: Relation,
    standing: Standing,
    shelf: Shelf<Journal>,
}

fn not_here() -> Problem {
    Problem::new(Code::NotFound, "the VM", "is not here", "")
}

fn journal(error: &journal::JournalError) -> Problem {
    Problem::failed("the journal", error)
}

impl Host {
    fn new(path: &Path) -> Self {
        let made = Journal::create(path, vm(), &[extent()], seed()).expect("made");
        let relation = Relation {
            id: relationship(),
            earlier: Vec::new(),
            thing: "VM `web`".to_owned(),
            partner: PEER.to_owned(),
            role: Role::Replica,
            reception: Reception {
                paused: false,
                revision: None,
                filling: None,
            },
            incoming: path.join(Journal::INCOMING),
        };
        let twin = Twin {
            relation,
            standing: Standing::replica(PEER, lineage()),
            shelf: Arc::new(Mutex::new(Some(made))),
        };
        Self {
            path: path.to_owned(),
            twin: Mutex::new(Some(twin)),
        }
    }

    fn twin(&self) -> MutexGuard<'_, Option<Twin>> {
        self.twin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Twin) -> T) -> Result<T, Problem> {
        self.twin().as_mut().map(work).ok_or_else(not_here)
    }
}

impl ReplicaHost for Host {
    type Receipts = Journal;

    fn name(&self) -> &'static str {
        "pollux"
    }

    fn admits(&self, _: &Principal) -> Result<(), Problem> {
        Ok(())
    }

    async fn enrol(&self, _: &Principal, _: VmId, enrol: Enrol) -> Result<(), Problem> {
        let bound = self.with(|twin| twin.relation.id)?;
        if bound == enrol.relationship {
            return Ok(());
        }
        Err(Problem::new(Code::Conflict, "the VM", "is bound", ""))
    }

    async fn reverse(&self, _: &Principal, _: VmId, _: Reverse) -> Result<Reversed, Problem> {
        let reason = "was never the primary";
        Err(Problem::new(Code::Conflict, "the VM", reason, ""))
    }

    async fn configure(&self, _: VmId, wanted: Configure) -> Result<(), Problem> {
        self.with(|twin| twin.relation.reception.revision = Some(wanted.revision))
    }

    async fn relation(&self, asked: VmId) -> Option<Relation> {
        let relation = self.with(|twin| twin.relation.clone()).ok()?;
        (asked == vm()).then_some(relation)
    }

    fn reception(&self, _: VmId, id: RelationshipId) -> Option<Reception> {
        let relation = self.with(|twin| twin.relation.clone()).ok()?;
        (relation.id == id).then_some(relation.reception)
    }

    async fn contact(
        &self,
        _: VmId,
        theirs: &Lineage,
        _: Option<Timestamp>,
    ) -> Result<PartnerStanding, Problem> {
        self.with(|twin| {
            twin.standing = twin.standing.meet("the VM", theirs, None)?.standing;
            Ok(twin.standing.tell(false))
        })?
    }

    async fn lease(
        &self,
        _: VmId,
        theirs: &Lineage,
        asked: LeaseRequest,
    ) -> Result<LeaseAnswer, Problem> {
        self.with(|twin| {
            let (next, answer) = twin.standing.answer_lease(theirs, asked);
            twin.standing = next.unwrap_or_else(|| twin.standing.clone());
            answer
        })
    }

    async fn stand_down(&self, _: VmId, asked: &Lineage) -> Result<(), Problem> {
        self.with(|twin| {
            twin.standing = twin.standing.stand_down("the VM", asked, false)?;
            Ok(())
        })?
    }

    async fn admit(&self, _: VmId, header: &Header, len: u64, held: u64) -> Result<(), Problem> {
        // Not every file system has files that are as long as a disk may be.
        let too_large = header.disks.iter().any(|disk| disk.size.0 > LARGEST);
        if too_large || len.saturating_add(held) > ROOM {
            return Err(Problem::new(Code::Full, "the store", "is full", ""));
        }
        Ok(())
    }

    async fn shelf(&self, _: VmId) -> Result<Shelf<Journal>, Problem> {
        let shelf = self.with(|twin| twin.shelf.clone())?;
        let mut held = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(Journal::open(&self.path).map_err(|error| journal(&error))?);
        }
        drop(held);
        Ok(shelf)
    }

    fn received(&self, _: VmId, _: &Header, _: u64) {}

    async fn remove(&self, _: VmId) -> Result<(), Problem> {
        *self.twin() = None;
        Ok(())
    }

    async fn cancel(&self, vm: VmId) -> Result<(), Problem> {
        let shelf = self.shelf(vm).await?;
        let has_points = |held: &Option<Journal>| {
            let held = held.as_ref();
            held.is_some_and(|held| !held.points().is_empty())
        };
        if has_points(&shelf.lock().unwrap_or_else(PoisonError::into_inner)) {
            let reason = "has a recovery point";
            return Err(Problem::new(Code::Conflict, "the VM", reason, ""));
        }
        self.remove(vm).await
    }
}

/// The endpoint, and who asks.
struct Peer {
    endpoint: TowerToHyperService<Router>,
    /// The last that was said to be committed.
    told: Option<Tip>,
}

impl Peer {
    /// Asks, and gives the body of a good answer.
    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Option<Vec<u8>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(RELATIONSHIP, relationship().to_string())
            .extension(Principal {
                name: PEER.to_owned(),
            });
        let request = request.body(Body::from(body)).expect("a request");
        let Ok(answer) = self.endpoint.call(request).await;
        let status = answer.status();
        let collected = answer.into_body().collect().await;
        let body = collected.expect("it is whole").to_bytes().to_vec();
        if status.is_success() {
            return Some(body);
        }
        let problem = serde_json::from_slice::<Problem>(&body).expect("a refusal says why");
        assert!(!problem.reason.is_empty(), "{problem:?}");
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{problem:?}");
        None
    }

    /// Offers and sends `bytes`, and asks for its commit.
    async fn segment(&mut self, flags: u8, mut bytes: Vec<u8>) {
        journal::fuzzing::forge_segment(&mut bytes);
        let opened = SegmentReader::of(Arc::new(crate::segment::Bare(bytes.clone())));
        let (mut header, root) = match &opened {
            Ok(reader) => (reader.header().clone(), reader.summary().root),
            Err(_) => (header(part(0)), Root([7; 32])),
        };
        if flags & FIRST != 0 {
            header.content = part(0);
        }
        if flags & OTHER != 0 {
            bytes.reverse();
        }
        let chunk = usize::try_from(CHUNK).expect("2 MiB");
        let offer = Offer {
            round: u64::from(flags & LATER),
            header,
            root,
            file_len: bytes.len() as u64 + u64::from(flags & LONGER),
            chunks: bytes.chunks(chunk).map(Digest::of).collect(),
        };
        self.ask(Method::POST, &vm_path(vm(), "/offer"), json(&offer))
            .await;
        if flags & OFFERED != 0 {
            return;
        }
        for (n, chunk) in (0..).zip(bytes.chunks(chunk)) {
            self.ask(Method::PUT, &chunk_path(vm(), root, n), chunk.to_vec())
                .await;
        }
        let path = commit_path(vm(), root);
        let Some(answer) = self.ask(Method::POST, &path, Vec::new()).await else {
            return;
        };
        let answer = serde_json::from_slice(&answer).expect("an answer");
        if let CommitAnswer::Committed { tip } = answer {
            self.told = Some(tip);
        }
    }
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("has a JSON form")
}

thread_local! {
    static RUNTIME: Runtime = {
        let built = Builder::new_current_thread().enable_time().build();
        built.expect("a runtime")
    };
}

/// Some requests.
pub fn run(data: &[u8]) {
    let _tip = committed(data);
}

/// What was committed last of what `data` asks.
///
/// # Panics
/// What was acknowledged is not there, or cannot be read.
#[must_use]
pub fn committed(mut data: &[u8]) -> Option<Tip> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("twin");
    let host = Arc::new(Host::new(&path));
    let mut peer = Peer {
        endpoint: TowerToHyperService::new(receiver::router(host.clone())),
        told: None,
    };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            while let Some(([kind, low, high], rest)) = data.split_first_chunk::<3>() {
                let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
                let (content, rest) = rest.split_at(len);
                data = rest;
                if kind & SEGMENT != 0 {
                    peer.segment(*kind, content.to_vec()).await;
                } else {
                    let number = usize::from(*kind) % (4 * GOES_ON);
                    let asked = BODIES.get(number).unwrap_or(&BODIES[number % GOES_ON]);
                    let (method, path) = asked;
                    let path = vm_path(vm(), path);
                    peer.ask(method.clone(), &path, content.to_vec()).await;
                }
            }
        });
    });
    let committed = peer.told;
    drop((peer, host));
    let journal = Journal::open(&path).expect("it is opened again");
    let there = Receipts::tip(&journal);
    let nothing = Tip::Seeding {
        seed: seed(),
        parts: 0,
        last: None,
    };
    assert_eq!(there, committed.unwrap_or(nothing));
    for point in journal.points() {
        let reader = Receipts::open_point(&journal, point.id).expect("it is there");
        for (disk, size) in reader.disks() {
            let image = reader.image(disk).expect("it has the disk");
            let first = compare::region(0, size).map(|_| image.region_hashes(0, size));
            first.transpose().expect("it is read");
        }
    }
    committed
}

/// A relationship from its first part to its second point, what says who may run, and what ends it.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let (first, second) = (segment(part(0)), segment(part(1)));
    let since = Since::Seed {
        seed: seed(),
        parts: 1,
    };
    let point = segment(Content::Delta { sequence: 1, since });
    let contact = json(&Contact::of(lineage()));
    let asks = |bodies: &[(u8, &[u8])]| {
        let mut input = Vec::new();
        for (kind, content) in bodies {
            let len = u16::try_from(content.len()).expect("short");
            input.push(*kind);
            input.extend_from_slice(&len.to_le_bytes());
            input.extend_from_slice(content);
        }
        input
    };
    let seeding = Basis::Seed {
        seed: seed(),
        parts: 1,
        round: 1,
    };
    let basis = Basis::Point {
        point: header(Content::Delta { sequence: 1, since })
            .point()
            .expect("a point"),
    };
    let (early, late) = (json(&question(seeding)), json(&question(basis)));
    let (configure, enrol) = (json(&configure()), json(&enrolment()));
    let stand_down = json(&StandDown { lineage: lineage() });
    vec![
        asks(&[
            (7, &enrol),
            (0, &contact),
            (SEGMENT, &first),
            (SEGMENT, &point),
            (4, &late),
        ]),
        asks(&[
            (SEGMENT, &first),
            (4, &early),
            (SEGMENT, &second),
            (SEGMENT | LATER, &second),
            (SEGMENT | OFFERED, &point),
        ]),
        asks(&[
            (SEGMENT | OTHER, &first),
            (SEGMENT | LONGER, &first),
            (SEGMENT | FIRST, &point),
            (SEGMENT, &first),
        ]),
        asks(&[(2, &configure), (1, &contact), (5, &stand_down)]),
        asks(&[(SEGMENT | OFFERED, &first), (8, b""), (0, &contact)]),
        asks(&[(SEGMENT, &first), (9, b""), (SEGMENT, &point)]),
    ]
}

fn segment(content: Content) -> Vec<u8> {
    let mut writer = SegmentWriter::create(Vec::new(), &header(content)).expect("a good header");
    writer.push_frame(0, 9, &[3; 8192]).expect("pushed");
    writer.push_zero(0, 0, 3).expect("pushed");
    writer.finish().expect("finished").1
}

fn question(basis: Basis) -> Compare {
    Compare {
        lineage: lineage(),
        basis,
        issued: 0,
        disk: disk(),
        size: Bytes(SIZE),
        regions: vec![RegionDigest {
            region: 0,
            digest: Digest([1; 32]),
        }],
    }
}

fn spec() -> VmSpec {
    let only = DiskSpec::new("disk0.raw".into(), Bytes(SIZE), Bus::Virtio, 0);
    let only = DiskSpec { id: disk(), ..only };
    let (name, memory) = ("web".parse().expect("a name"), Bytes(64 << 20));
    let spec = VmSpec::new(name, Generation::Two, 1, memory, false, None, vec![only]);
    VmSpec {
        id: vm(),
        ..spec.expect("a VM")
    }
}

fn configure() -> Configure {
    let configuration = Configuration {
        spec: spec(),
        disks: vec![disk()],
        frequency_s: 30,
        keep: None,
    };
    Configure {
        lineage: lineage(),
        revision: configuration.revision(),
        configuration,
    }
}

fn enrolment() -> Enrol {
    Enrol {
        relationship: relationship(),
        spec: spec(),
        disks: vec![disk()],
        frequency_s: 30,
        keep: None,
        revision: configure().revision,
        seed: seed(),
        seed_from: None,
        lineage: lineage(),
    }
}
