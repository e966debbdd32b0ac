//! The replica endpoint: an axum router over a [`ReplicaHost`].
//!
//! ```text
//!   TLS --Principal--> authorize --Relation--> standing, stand-down, removal --> ReplicaHost
//!              |                \--> admitted --> what fills a twin --> Incoming --> Receipts
//!              '---> enrolment, if admitted
//! ```
//!
//! - Whether this host receives anything of a principal ([`ReplicaHost::admits`]) is asked for each
//!   enrolment and each request that fills a twin. Who may run a VM is agreed on all the same.
//! - A request about a VM passes only if its relationship is bound to the principal that asks
//!   and has the id that the request names, or had it; anything else gets the same refusal as a VM that
//!   does not exist.
//! - Offers, commits and comparisons of one VM go one at a time; chunks beside each other.
//! - A handler that began runs to its end, also when the caller hangs up.
//! - Nothing is acknowledged that is not durable; what was offered and not committed may be lost
//!   at any time.

mod compare;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawPathParams, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::{HeaderMap, StatusCode};
use journal::Root;
use model::{Code, Problem, RelationshipId, VmId};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use compare::{Comparison, Issued, Round};

use crate::host::{Principal, Receipts, Relation, ReplicaHost, Shelf, Verdict};
use crate::incoming::{Ahead, Incoming};
use crate::run::{Rank, anew, name, rank};
use crate::sender::{filled, paused};
use crate::standing::Role;
use crate::wire::{
    self, CHUNK, CommitAnswer, Configuration, Configure, ConfigureAnswer, Contact, ContactAnswer,
    Enrol, Enrolled, Hello, MAX_BODY, MAX_CHUNKS, MAX_OFFER_BODY, Offer, OfferAnswer,
    PartnerStanding, Reverse, Reversed, StandDown, StoodDownFor, Tip, TipAnswer,
};

/// After this long a body that has not come whole is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Offers and chunks of one peer that are in memory at one time, in MiB; more wait, and are not read.
const BODIES: usize = 128;
const MIB: usize = 1 << 20;
/// Parts of a body that are shorter are gathered.
const SMALL_PART: usize = 8 << 10;
/// To such of about this length.
const GATHERED_PARTS: usize = 64 << 10;

/// What a refusal is about that is about no VM.
pub(crate) const REQUEST: &str = "the request";

/// A refusal as an answer.
struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

type Answer<T> = Result<T, Refusal>;

/// What is being received for one VM. The lock is held over a whole offer, commit or comparison.
type Lane = Arc<tokio::sync::Mutex<Receiving>>;

/// See [`Lane`].
#[derive(Default)]
struct Receiving {
    incoming: Option<Current>,
    /// Since the last comparison.
    issued: Option<Issued>,
    /// Of what came of the initial replication.
    round: Option<Round>,
    comparison: Option<Comparison>,
}

/// What is being received; who drops it ends it.
struct Current(Arc<Incoming>);

impl Drop for Current {
    fn drop(&mut self) {
        self.0.end();
    }
}

struct Receiver<H> {
    host: Arc<H>,
    lanes: Mutex<HashMap<VmId, Lane>>,
    /// Room for what comes from each peer.
    bodies: Mutex<HashMap<String, Arc<Semaphore>>>,
}

type Here<H> = State<Arc<Receiver<H>>>;

/// The endpoint. Each request must carry a [`Principal`] as an extension
/// ([`tls::serve`](crate::tls::serve) puts it there).
pub fn router<H: ReplicaHost>(host: Arc<H>) -> Router {
    let receiver = Arc::new(Receiver {
        host,
        lanes: Mutex::default(),
        bodies: Mutex::default(),
    });
    let fills = Router::new()
        .route("/tip", post(tip::<H>))
        .route("/configuration", put(configure::<H>))
        .route("/cancel", post(cancel::<H>))
        .route("/reverse", post(reverse::<H>))
        .route("/compare", post(compare::compare::<H>))
        .route("/offer", post(offer::<H>))
        .route("/incoming/{root}/chunks/{n}", put(chunk::<H>))
        .route("/incoming/{root}/commit", post(commit::<H>))
        .route_layer(from_fn_with_state(receiver.clone(), admitted::<H>));
    let bound = Router::new()
        .route("/", axum::routing::delete(remove::<H>))
        .route("/standing", post(standing::<H>))
        .route("/stand-down", post(stand_down::<H>))
        .merge(fills)
        .route_layer(from_fn_with_state(receiver.clone(), authorize::<H>));
    let open = Router::new()
        .route(&format!("{}/hello", wire::PREFIX), get(hello::<H>))
        .route(&format!("{}/vms/{{vm}}", wire::PREFIX), put(enrol::<H>))
        .route_layer(axum::middleware::from_fn(to_the_end));
    Router::new()
        .nest(&format!("{}/vms/{{vm}}", wire::PREFIX), bound)
        .merge(open)
        .fallback(async || {
            let reason = "is not a path of the replica endpoint";
            Refusal(Problem::new(Code::NotFound, REQUEST, reason, ""))
        })
        .layer(axum::middleware::map_response(name_build))
        .with_state(receiver)
}

/// Names this build in every answer, so that whoever is refused can tell whether it is another one.
async fn name_build(mut response: Response) -> Response {
    if let Ok(build) = wire::build().parse() {
        response.headers_mut().insert(wire::BUILD, build);
    }
    response
}

/// Runs the rest in a task of its own, which a caller that hangs up does not end.
async fn to_the_end(request: Request, next: Next) -> Response {
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => Refusal(Problem::failed(REQUEST, &error)).into_response(),
    }
}

/// The one place where it is decided whether a principal may speak about a VM.
async fn authorize<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(principal): Extension<Principal>,
    params: RawPathParams,
    headers: HeaderMap,
    mut request: Request,
    next: Next,
) -> Response {
    let vm = params
        .iter()
        .find(|(name, _)| *name == "vm")
        .and_then(|(_, value)| value.parse::<VmId>().ok());
    let named = headers
        .get(wire::RELATIONSHIP)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<RelationshipId>().ok());
    let relation = match (vm, named) {
        (Some(vm), Some(named)) => receiver
            .host
            .relation(vm)
            .await
            .filter(|relation| relation.partner == principal.name && relation.is_called(named)),
        _ => None,
    };
    let (Some(vm), Some(relation)) = (vm, relation) else {
        let problem = not_related(vm, &principal.name, receiver.host.name());
        return Refusal(problem).into_response();
    };
    request.extensions_mut().insert(Bound { vm, relation });
    to_the_end(request, next).await
}

fn not_related(vm: Option<VmId>, peer: &str, host: &str) -> Problem {
    let thing = vm.map_or("the VM".to_owned(), |vm| format!("VM {vm}"));
    let reason = format!("has no such relationship between `{peer}` and `{host}`");
    let way_out = anew(&thing);
    Problem::new(Code::NotFound, thing, reason, way_out)
}

/// Lets through only principals of which this host receives twins.
async fn admitted<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(principal): Extension<Principal>,
    request: Request,
    next: Next,
) -> Response {
    match receiver.host.admits(&principal) {
        Ok(()) => next.run(request).await,
        Err(problem) => Refusal(problem).into_response(),
    }
}

/// A VM and its relationship with the caller.
#[derive(Debug, Clone)]
struct Bound {
    vm: VmId,
    relation: Relation,
}

impl Bound {
    fn thing(&self) -> String {
        self.relation.thing.clone()
    }
}

/// The body, as it comes, but for what comes in small parts: each of them would keep alive what it was read
/// into, which is larger.
async fn read_parts(body: Body, limit: usize) -> Answer<Vec<Bytes>> {
    let wrong = |reason: String| Refusal(Problem::new(Code::Invalid, REQUEST, reason, ""));
    let mut body = Limited::new(body, limit);
    let reading = async {
        let (mut parts, mut gathered) = (Vec::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let Ok(part) = frame?.into_data() else {
                continue;
            };
            let is_small = part.len() < SMALL_PART;
            if is_small {
                gathered.extend_from_slice(&part);
            }
            if !is_small || gathered.len() >= GATHERED_PARTS {
                parts.extend(Some(gathered.split().freeze()).filter(|all| !all.is_empty()));
            }
            if !is_small {
                parts.push(part);
            }
        }
        parts.extend(Some(gathered.freeze()).filter(|all| !all.is_empty()));
        Ok(parts)
    };
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(parts)) => Ok(parts),
        Ok(Err::<_, axum::BoxError>(error)) => {
            Err(wrong(format!("has a body that cannot be read: {error}")))
        }
        Err(_) => {
            let reason = "did not come whole in time";
            Err(Refusal(Problem::new(
                Code::Unreachable,
                REQUEST,
                reason,
                "",
            )))
        }
    }
}

async fn read_json<T: DeserializeOwned>(body: Body, limit: usize) -> Answer<T> {
    let bytes = read_parts(body, limit).await?.concat();
    serde_json::from_slice(&bytes).map_err(|e| {
        let reason = format!("is not what this host understands: {e}");
        let way_out = "run the same version of Pollux on both hosts";
        Refusal(Problem::new(Code::Invalid, REQUEST, reason, way_out))
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(outcome?),
        Err(error) => Err(Refusal(Problem::failed(REQUEST, &error))),
    }
}

async fn hello<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(principal): Extension<Principal>,
) -> Json<Hello> {
    Json(Hello {
        version: wire::VERSION,
        host: receiver.host.name().to_owned(),
        you: principal.name,
    })
}

async fn enrol<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(principal): Extension<Principal>,
    Path(vm): Path<String>,
    body: Body,
) -> Answer<Json<Enrolled>> {
    receiver.host.admits(&principal)?;
    let wrong = |reason: &str| Refusal(Problem::new(Code::Invalid, REQUEST, reason, ""));
    let vm: VmId = vm.parse::<VmId>().map_err(|e| wrong(&e.to_string()))?;
    let enrol: Enrol = read_json(body, MAX_BODY).await?;
    check_spec(vm, &enrol.spec, &enrol.disks)?;
    receiver.host.enrol(&principal, vm, enrol).await?;
    let shelf = receiver.host.shelf(vm).await?;
    let tip = on_shelf(shelf, |journal| Ok(journal.tip())).await?;
    Ok(Json(Enrolled {
        tip: tip.unwrap_or(Tip::Nothing),
    }))
}

async fn reverse<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(principal): Extension<Principal>,
    Extension(bound): Extension<Bound>,
    body: Body,
) -> Answer<Json<Reversed>> {
    let asked: Reverse = read_json(body, MAX_BODY).await?;
    check_spec(bound.vm, &asked.enrol.spec, &asked.enrol.disks)?;
    // Whatever was being received belongs to another journal.
    let lane = receiver.lane(bound.vm);
    let mut receiving = lane.lock().await;
    let reversed = receiver.host.reverse(&principal, bound.vm, asked).await?;
    *receiving = Receiving::default();
    Ok(Json(reversed))
}

/// Whether a VM that is replicated can be this one.
fn check_spec(vm: VmId, spec: &model::VmSpec, disks: &[model::DiskId]) -> Answer<()> {
    let wrong = |reason: &str| Refusal(Problem::new(Code::Invalid, REQUEST, reason, ""));
    if spec.id != vm {
        return Err(wrong("describes another VM than it names"));
    }
    let known = |id| spec.disks.iter().any(|disk| disk.id == id);
    let mut distinct = disks.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    if disks.is_empty() || distinct.len() != disks.len() || !disks.iter().all(|id| known(*id)) {
        return Err(wrong("replicates disks that the VM does not have, or none"));
    }
    // A VM without any of its limits would be refused by its own host as well.
    model::VmSpec::from_toml(&spec.to_toml()).map_err(|e| wrong(&e.to_string()))?;
    Ok(())
}

async fn configure<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
    body: Body,
) -> Answer<Json<ConfigureAnswer>> {
    let wanted: Configure = read_json(body, MAX_BODY).await?;
    let Configuration { spec, disks, .. } = &wanted.configuration;
    check_spec(bound.vm, spec, disks)?;
    if let Some(lineage) = meet(&receiver, &bound, &wanted.lineage).await? {
        return Ok(Json(ConfigureAnswer::Superseded { lineage }));
    }
    receiver.host.configure(bound.vm, wanted).await?;
    Ok(Json(ConfigureAnswer::Configured))
}

/// Works with the journal, if this host is still the replica.
async fn on_shelf<R: Receipts, T: Send + 'static>(
    shelf: Shelf<R>,
    work: impl FnOnce(&mut R) -> Result<T, Problem> + Send + 'static,
) -> Answer<Option<T>> {
    blocking(move || {
        let mut journal = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        journal.as_mut().map(work).transpose()
    })
    .await
}

/// Tells the host the primary's lineage. If this host goes on as the replica, none; else the
/// lineage that succeeded the primary's.
async fn meet<H: ReplicaHost>(
    receiver: &Receiver<H>,
    bound: &Bound,
    theirs: &model::Lineage,
) -> Answer<Option<model::Lineage>> {
    let ours: PartnerStanding = receiver.host.contact(bound.vm, theirs, None).await?;
    if ours.role == Role::Replica {
        return Ok(None);
    }
    if rank(&ours.lineage, theirs) == Some(Rank::Ours) {
        return Ok(Some(ours.lineage));
    }
    let reason = format!("is not a replica on `{}`", receiver.host.name());
    let anew = anew(&bound.relation.thing);
    let (code, way_out) = match ours.role {
        // Whoever took the VM back tries again until it is the replica.
        Role::FailedOver => {
            let name = name(&bound.relation.thing);
            let cancel =
                format!("`pollux failover cancel {name}` there makes it the replica again");
            (
                Code::Failed,
                format!("{cancel}; if its failover is complete, {anew}"),
            )
        }
        Role::Primary | Role::Replica => (Code::Conflict, anew),
    };
    Err(Refusal(Problem::new(code, bound.thing(), reason, way_out)))
}

async fn standing<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
    body: Body,
) -> Answer<Json<ContactAnswer>> {
    let contact: Contact = read_json(body, MAX_BODY).await?;
    let standing = receiver
        .host
        .contact(bound.vm, &contact.lineage, contact.opened)
        .await?;
    let lease = match contact.lease {
        Some(asked) => Some(
            receiver
                .host
                .lease(bound.vm, &contact.lineage, asked)
                .await?,
        ),
        None => None,
    };
    let receives = standing.role == Role::Replica;
    let reception = receives.then_some(bound.relation.reception.clone());
    Ok(Json(ContactAnswer {
        standing,
        reception,
        lease,
    }))
}

async fn stand_down<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
    body: Body,
) -> Answer<Json<StoodDownFor>> {
    let ask: StandDown = read_json(body, MAX_BODY).await?;
    receiver.host.stand_down(bound.vm, &ask.lineage).await?;
    Ok(Json(StoodDownFor {
        term: ask.lineage.current().id,
    }))
}

async fn remove<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
) -> Answer<StatusCode> {
    let lane = receiver.lane(bound.vm);
    let mut receiving = lane.lock().await;
    receiver.host.remove(bound.vm).await?;
    forget_lane(&mut receiving).await
}

async fn cancel<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
) -> Answer<StatusCode> {
    let lane = receiver.lane(bound.vm);
    let mut receiving = lane.lock().await;
    // First, for it lies in the twin's folder; should the host refuse, it is sent again.
    let forgotten = forget_lane(&mut receiving).await?;
    receiver.host.cancel(bound.vm).await?;
    Ok(forgotten)
}

/// The relationship is over: what is being received for it goes.
async fn forget_lane(receiving: &mut Receiving) -> Answer<StatusCode> {
    if let Some(current) = std::mem::take(receiving).incoming {
        blocking(move || current.0.remove()).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn tip<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
    body: Body,
) -> Answer<Json<TipAnswer>> {
    let contact: Contact = read_json(body, MAX_BODY).await?;
    if let Some(lineage) = meet(&receiver, &bound, &contact.lineage).await? {
        return Ok(Json(TipAnswer::Superseded { lineage }));
    }
    let shelf = receiver.host.shelf(bound.vm).await?;
    let term = contact.lineage.current().id;
    let issued = receiver.lane(bound.vm).lock().await.issued(term);
    let reception = bound.relation.reception.clone();
    match on_shelf(shelf, |journal| Ok((journal.tip(), journal.disks()))).await? {
        Some((tip, disks)) => Ok(Json(TipAnswer::At {
            tip,
            issued,
            disks,
            reception,
        })),
        None => Err(Refusal(taken(&bound))),
    }
}

/// Refuses what would change or read the twin while a person wants that nothing is received, while it
/// is filled from a copy, or when the relationship ended since the request was let in: it may have waited for another.
fn check_receives<H: ReplicaHost>(host: &H, bound: &Bound) -> Result<(), Problem> {
    let Relation { id, thing, .. } = &bound.relation;
    match host.reception(bound.vm, *id) {
        Some(reception) if reception.paused => Err(paused(thing, host.name())),
        Some(reception) if reception.filling.is_some() => Err(filled(thing, host.name())),
        Some(_) => Ok(()),
        None => Err(not_related(
            Some(bound.vm),
            &bound.relation.partner,
            host.name(),
        )),
    }
}

/// The journal was taken out between two questions; asking again tells why.
fn taken(bound: &Bound) -> Problem {
    let reason = "is being taken over on its replica";
    Problem::new(Code::Failed, bound.thing(), reason, "")
}

async fn offer<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
    body: Body,
) -> Answer<Json<OfferAnswer>> {
    let offer: Offer = {
        let _room = receiver.room(&bound, MAX_OFFER_BODY).await?;
        read_json(body, MAX_OFFER_BODY).await?
    };
    check_offer(&bound, &offer)?;
    let lane = receiver.lane(bound.vm);
    let mut receiving = lane.lock().await;
    check_receives(&*receiver.host, &bound)?;
    if let Some(lineage) = meet(&receiver, &bound, &offer.header.lineage).await? {
        return Ok(Json(OfferAnswer::Superseded { lineage }));
    }
    let shelf = receiver.host.shelf(bound.vm).await?;
    let (header, root) = (offer.header.clone(), offer.root);
    let checked = on_shelf(shelf, move |journal| {
        Ok((journal.check(&header, root), journal.tip()))
    });
    match checked.await? {
        None => return Err(Refusal(taken(&bound))),
        Some((Verdict::Have, tip)) => return Ok(Json(OfferAnswer::Committed { tip })),
        Some((Verdict::Unfit(problem), _)) => return Ok(Json(OfferAnswer::Unfit { problem })),
        Some((Verdict::Fits, _)) => {}
    }
    let old = receiving.issued;
    let thing = &bound.relation.thing;
    let point = old.and_then(|old| old.refuses(&offer.header, thing));
    let part = receiving.round.and_then(|now| now.refuses(&offer, thing));
    if let Some(problem) = point.or(part) {
        return Ok(Json(OfferAnswer::Unfit { problem }));
    }
    receiving.comparison = None;
    let current = receiving
        .incoming
        .take()
        .filter(|current| *current.0.offer() == offer);
    let current = match current {
        Some(current) => current,
        // The other one ended: nothing is written to its folder afterwards.
        None => {
            let (header, len) = (&offer.header, offer.file_len);
            receiver.host.admit(bound.vm, header, len, 0).await?;
            let folder = bound.relation.incoming.clone();
            Current(Arc::new(
                blocking(move || Incoming::open(&folder, offer)).await?,
            ))
        }
    };
    let chunks = current.0.missing();
    receiving.incoming = Some(current);
    Ok(Json(OfferAnswer::Missing { chunks }))
}

fn check_offer(bound: &Bound, offer: &Offer) -> Answer<()> {
    let wrong = |reason: String| Refusal(Problem::new(Code::Invalid, bound.thing(), reason, ""));
    if offer.header.vm != bound.vm {
        return Err(wrong("was offered a segment of another VM".to_owned()));
    }
    offer
        .header
        .check()
        .map_err(|e| wrong(format!("was offered a segment that is wrong: {e}")))?;
    let count = Offer::chunk_count(offer.file_len);
    if count == 0 || count > MAX_CHUNKS || count != offer.chunks.len() as u64 {
        let chunks = offer.chunks.len();
        let reason = format!(
            "was offered a segment of {} bytes in {chunks} chunks",
            offer.file_len
        );
        return Err(wrong(reason));
    }
    Ok(())
}

async fn chunk<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
    Path((_, root, n)): Path<(String, String, u64)>,
    body: Body,
) -> Answer<StatusCode> {
    let incoming = receiver
        .receiving(&bound, &root)
        .await
        .ok_or_else(|| not_offered(&root))?;
    let limit = usize::try_from(CHUNK).unwrap_or(usize::MAX);
    let _room = receiver.room(&bound, limit).await?;
    let parts = read_parts(body, limit).await?;
    let storing = incoming.clone();
    let stored = blocking(move || storing.store(n, &parts)).await;
    if matches!(&stored, Err(Refusal(problem)) if problem.code == Code::Failed) {
        receiver.give_up(&bound, &incoming).await;
    }
    stored?;
    receiver.take_ahead(&bound, &incoming).await;
    Ok(StatusCode::NO_CONTENT)
}

fn not_offered(root: &str) -> Refusal {
    let thing = format!("segment {}", root.chars().take(64).collect::<String>());
    Refusal(Problem::new(
        Code::NotFound,
        thing,
        "was not offered",
        "offer it first",
    ))
}

async fn commit<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
    Path((_, root)): Path<(String, String)>,
) -> Answer<Json<CommitAnswer>> {
    let lane = receiver.lane(bound.vm);
    let mut receiving = lane.lock().await;
    check_receives(&*receiver.host, &bound)?;
    let again = |problem| Ok(Json(CommitAnswer::Again { problem }));
    let current = receiving.incoming.as_ref().map(|current| current.0.clone());
    let Some(incoming) = current.filter(|i| same(i, &root)) else {
        return again(not_offered(&root).0);
    };
    if !incoming.missing().is_empty() {
        let reason = "has chunks that did not come";
        return again(Problem::new(
            Code::Conflict,
            format!("segment {root}"),
            reason,
            "",
        ));
    }
    if let Some(lineage) = meet(&receiver, &bound, &incoming.offer().header.lineage).await? {
        return Ok(Json(CommitAnswer::Superseded { lineage }));
    }
    if incoming.is_admitted().await {
        // That was a while ago, and most of it is in the base since.
        let header = &incoming.offer().header;
        receiver.host.admit(bound.vm, header, 0, 0).await?;
    } else {
        // What is no segment holds nothing: the commit says it.
        receiver.admit_content(&bound, &incoming).await?;
    }
    let shelf = receiver.host.shelf(bound.vm).await?;
    let (taking, host, asks) = (incoming.clone(), receiver.host.clone(), bound.clone());
    let outcome = blocking(move || {
        let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(problem) = check_receives(&*host, &asks) {
            return Ok(Err(problem));
        }
        let Some(journal) = shelf.as_mut() else {
            return Ok(Err(taken(&asks)));
        };
        let offer = taking.offer();
        let taken = journal.take(taking.path(), &offer.header, offer.root);
        let tip = journal.tip();
        if matches!(&taken, Err(problem) if problem.code == Code::Failed) {
            // What is on disk may not be what it has in memory: it is opened again.
            *shelf = None;
        }
        taken.map(|()| Ok(tip))
    })
    .await;
    if let Ok(Err(problem)) = outcome {
        // What came stays for when it is wanted again.
        return Err(Refusal(problem));
    }
    let again_later = matches!(&outcome, Err(Refusal(problem)) if problem.code == Code::Full);
    if !(again_later && incoming.path().exists()) {
        // Committed, not what it claimed to be, or on a place that cannot be read or synced: a
        // second try there would fail as well, or succeed with what was never written.
        forget(&bound, &mut receiving.incoming).await;
    }
    let tip = outcome??;
    let offer = incoming.offer();
    receiver
        .host
        .received(bound.vm, &offer.header, offer.file_len);
    Ok(Json(CommitAnswer::Committed { tip }))
}

/// Receives it no more; what is offered again is sent anew.
async fn forget(bound: &Bound, incoming: &mut Option<Current>) {
    let Some(done) = incoming.take() else {
        return;
    };
    if let Err(Refusal(problem)) = blocking(move || done.0.remove()).await {
        tracing::warn!(vm = %bound.vm, %problem, "cannot clear what was received");
    }
}

fn same(incoming: &Incoming, root: &str) -> bool {
    root.parse::<Root>()
        .is_ok_and(|root| root == incoming.offer().root)
}

impl<H: ReplicaHost> Receiver<H> {
    fn lane(&self, vm: VmId) -> Lane {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.entry(vm).or_default().clone()
    }

    /// Waits until there is room for a body of at most `limit` bytes of this peer.
    async fn room(&self, bound: &Bound, limit: usize) -> Answer<OwnedSemaphorePermit> {
        let of_peer = {
            let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
            let of_peer = bodies.entry(bound.relation.partner.clone());
            of_peer
                .or_insert_with(|| Arc::new(Semaphore::new(BODIES)))
                .clone()
        };
        let mib = u32::try_from(limit.div_ceil(MIB)).unwrap_or(u32::MAX);
        let room = of_peer.acquire_many_owned(mib).await;
        room.map_err(|error| Refusal(Problem::failed("the request", &error)))
    }

    /// Drops an incoming file that cannot be written, unless another took its place.
    async fn give_up(&self, bound: &Bound, broken: &Arc<Incoming>) {
        let mut receiving = self.lane(bound.vm).lock_owned().await;
        if receiving
            .incoming
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(&now.0, broken))
        {
            tracing::warn!(vm = %bound.vm, "what is being received is dropped after an I/O error");
            forget(bound, &mut receiving.incoming).await;
        }
    }

    async fn receiving(&self, bound: &Bound, root: &str) -> Option<Arc<Incoming>> {
        let lane = self.lane(bound.vm).lock_owned().await;
        let current = lane.incoming.as_ref().map(|current| &current.0);
        current.filter(|incoming| same(incoming, root)).cloned()
    }

    /// Refuses a segment whose content has no room beyond what its file takes. Whether it can be told yet
    /// what that is.
    async fn admit_content(&self, bound: &Bound, incoming: &Arc<Incoming>) -> Answer<bool> {
        let (measured, held) = (incoming.clone(), incoming.offer().file_len);
        let content = blocking(move || Ok(measured.content())).await?;
        let more = content.unwrap_or(0).saturating_sub(held);
        let header = &incoming.offer().header;
        self.host.admit(bound.vm, header, more, held).await?;
        Ok(content.is_some())
    }

    /// Takes in what has come of a part of an initial replication while the rest still comes. The commit
    /// does what is left, and tells what goes wrong.
    async fn take_ahead(&self, bound: &Bound, incoming: &Arc<Incoming>) {
        let Some(mut ahead) = incoming.ahead() else {
            return;
        };
        match *ahead {
            Ahead::Never | Ahead::Stopped => return,
            Ahead::NotYet | Ahead::Admitted if !incoming.has_tables() => return,
            Ahead::NotYet => match self.admit_content(bound, incoming).await {
                Ok(true) => {
                    *ahead = Ahead::Admitted;
                    if let Err(error) = incoming.note_admitted() {
                        tracing::debug!(vm = %bound.vm, %error, "cannot note that it was admitted");
                    }
                }
                // Its tables are longer, or there is no room: the commit tells.
                Ok(false) | Err(_) => {
                    *ahead = Ahead::Never;
                    return;
                }
            },
            Ahead::Admitted => {}
        }
        let Ok(shelf) = self.host.shelf(bound.vm).await else {
            return;
        };
        let (taking, host, asks) = (incoming.clone(), self.host.clone(), bound.clone());
        let taken = blocking(move || {
            let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            if taking.is_over() || check_receives(&*host, &asks).is_err() {
                return Ok(());
            }
            match shelf.as_mut() {
                Some(journal) => journal.ahead(taking.path(), taking.offer().root, taking.come()),
                None => Ok(()),
            }
        });
        if taken.await.is_err() {
            *ahead = Ahead::Stopped;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn a_body_in_the_smallest_parts_takes_no_more_memory_than_its_length() {
        let byte = |n: usize| u8::try_from(n % 251).expect("small");
        let small = (0..100_000).map(|n| Bytes::copy_from_slice(&[byte(n)]));
        let large = Bytes::from(vec![7; SMALL_PART]);
        let short = Bytes::from(vec![8; SMALL_PART - 1]);
        let sent: Vec<_> = small
            .chain([large.clone(), short, Bytes::new(), large])
            .collect();
        let expected = sent.concat();
        let body = || {
            Body::from_stream(stream::iter(
                sent.clone().into_iter().map(Ok::<_, Infallible>),
            ))
        };
        let parts = read_parts(body(), expected.len()).await;
        let Ok(parts) = parts else {
            panic!("it is not too long")
        };
        assert!(parts.concat() == expected);
        // Two of the single ones, and the last three.
        assert_eq!(parts.len(), 5);
        assert!(read_parts(body(), expected.len() - 1).await.is_err());
    }
}
