//! Requests to a peer: a small pool of HTTP/1.1 connections over mutual TLS, and the
//! [`Link`] of one relationship over it.
//!
//! Every request is idempotent, so that one that met a connection closed by the other side
//! meanwhile is sent again on a new one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use journal::Root;
use model::{Code, Lineage, Problem, RelationshipId, VmId};
use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use crate::certificate::Flaw;
use crate::identity::{Identity, Leaf};
use crate::link::{Link, LinkError};
use crate::receiver::REQUEST;
use crate::tls::client_config;
use crate::trust::{Trust, Trusted};
use crate::wire::{
    self, CHUNK_TIMEOUT, CONTACT_TIMEOUT, CONTROL_TIMEOUT, CommitAnswer, Compare, CompareAnswer,
    Configure, ConfigureAnswer, Contact, ContactAnswer, Enrol, Enrolled, Hello, Offer, OfferAnswer,
    PartnerStanding, Reverse, Reversed, StandDown, StoodDownFor, TipAnswer,
};

/// Most connections that are kept for later.
const IDLE: usize = 32;
/// Most connections that are established at one time: hundreds of VMs that ask at once take turns, for the
/// peer hears out [so many](crate::tls::Limits::handshakes) of all its peers.
const DIALLED: usize = 8;
/// Longest answer: the numbers of all missing chunks.
const MAX_ANSWER: usize = 4 << 20;
/// After this long a connection that was not established counts as lost.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A trusted peer that can be asked.
#[derive(Debug)]
pub struct PeerClient {
    identity: Arc<Identity>,
    trust: Arc<Trust>,
    name: String,
    idle: Mutex<Vec<Open>>,
    dialled: Semaphore,
}

/// A connection, and what each side was known by when it was made.
#[derive(Debug)]
struct Open {
    peer: Trusted,
    /// What the peer presented, its own certificate first.
    theirs: Vec<CertificateDer<'static>>,
    /// What it was presented.
    ours: Arc<Leaf>,
    sender: SendRequest<Full<Bytes>>,
}

/// How a connection ended.
type Ended = tokio::task::JoinHandle<Result<(), hyper::Error>>;

struct Answer {
    status: StatusCode,
    /// The build that answers, if it says.
    build: Option<String>,
    body: Bytes,
}

/// What was asked: everything but the connection.
struct Call {
    method: Method,
    path: String,
    relationship: Option<RelationshipId>,
    json: bool,
    body: Bytes,
    limit: Duration,
    /// What it counts as that another build does not understand it.
    skew: Code,
}

impl PeerClient {
    /// A client for the peer `name`, which need not be trusted yet; nothing is connected now.
    #[must_use]
    pub fn new(identity: Arc<Identity>, trust: Arc<Trust>, name: &str) -> Self {
        Self {
            identity,
            trust,
            name: name.to_owned(),
            idle: Mutex::default(),
            dialled: Semaphore::new(DIALLED),
        }
    }

    /// The peer's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn thing(&self) -> String {
        format!("host `{}`", self.name)
    }

    fn lost(&self, reason: String) -> LinkError {
        let way_out = format!(
            "check that polluxd runs on `{}` and can be reached",
            self.name
        );
        LinkError::Lost(Problem::new(
            Code::Unreachable,
            self.thing(),
            reason,
            way_out,
        ))
    }

    /// Nobody listens at the peer's address.
    fn shut(&self, address: &str) -> LinkError {
        let way_out = format!(
            "check that polluxd runs on `{0}`; if `{0}` is to receive VMs, run `pollux replica \
             server enable` there",
            self.name
        );
        LinkError::Lost(Problem::new(
            Code::Unreachable,
            self.thing(),
            format!("does not listen at {address}"),
            way_out,
        ))
    }

    /// Who answers, and how it calls us.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn hello(&self, limit: Duration) -> Result<Hello, LinkError> {
        let path = format!("{}/hello", wire::PREFIX);
        let call = self.call(Method::GET, path, None, limit);
        self.ask(call).await
    }

    /// Asks the peer to be the replica of a VM.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn enrol(&self, vm: VmId, enrol: &Enrol) -> Result<Enrolled, LinkError> {
        let call = Call {
            body: self.json(enrol)?,
            json: true,
            ..self.call(
                Method::PUT,
                wire::vm_path(vm, ""),
                Some(enrol.relationship),
                CONTROL_TIMEOUT,
            )
        };
        self.ask(call).await
    }

    fn call(
        &self,
        method: Method,
        path: String,
        relationship: Option<RelationshipId>,
        limit: Duration,
    ) -> Call {
        Call {
            method,
            path,
            relationship,
            json: false,
            body: Bytes::new(),
            limit,
            skew: Code::Failed,
        }
    }

    fn json(&self, body: &impl Serialize) -> Result<Bytes, LinkError> {
        match serde_json::to_vec(body) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(LinkError::Refused(Problem::failed(self.thing(), &error))),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, call: Call) -> Result<T, LinkError> {
        let body = self.tell(call).await?;
        serde_json::from_slice(&body)
            .map_err(|e| self.lost(format!("gave an answer that cannot be read: {e}")))
    }

    /// Sends a request; the body of a good answer.
    async fn tell(&self, call: Call) -> Result<Bytes, LinkError> {
        let answer = match tokio::time::timeout(call.limit, self.send(&call)).await {
            Ok(answer) => answer?,
            Err(_) => {
                // The others may lead nowhere as well, and each would cost its own wait.
                self.forget_idle();
                let limit = call.limit.as_secs();
                return Err(self.lost(format!("gave no answer within {limit} s")));
            }
        };
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        Err(match serde_json::from_slice::<Problem>(&answer.body) {
            Ok(problem) => LinkError::Refused(match another_build(answer.build.as_deref()) {
                Some(theirs) => self.skewed(&theirs, problem, call.skew),
                None => problem,
            }),
            Err(_) => self.lost(format!("answered with HTTP status {}", answer.status)),
        })
    }

    /// A refusal by another build. What it could not read, or does not know how to do, it may
    /// understand once both hosts run the same: that is no contradiction between the two.
    fn skewed(&self, theirs: &str, problem: Problem, code: Code) -> Problem {
        let about_the_request = problem.thing == REQUEST;
        if !about_the_request || !matches!(problem.code, Code::Invalid | Code::NotFound) {
            return problem;
        }
        Problem {
            code,
            thing: self.thing(),
            reason: format!(
                "runs another Pollux ({theirs}) than this host ({}), and the request {}",
                wire::build(),
                problem.reason
            ),
            way_out: "run the same version on both hosts; it goes on by itself then".to_owned(),
        }
    }

    async fn send(&self, call: &Call) -> Result<Answer, LinkError> {
        let peer = self.trust.get(&self.name).map_err(LinkError::Refused)?;
        let mut turn = None;
        loop {
            if let Some(mut open) = self.take_idle(&peer) {
                turn = None;
                match self.exchange(&mut open.sender, call).await {
                    Ok(answer) => {
                        self.keep(open, &answer);
                        return Ok(answer);
                    }
                    // It was closed while it was idle; every request may be repeated.
                    Err(error) => tracing::debug!(peer = self.name, %error, "an idle connection"),
                }
            } else if turn.is_none() {
                // Another request may have ended meanwhile.
                turn = Some(self.dialled.acquire().await.expect("it is never closed"));
            } else {
                break;
            }
        }
        let address = peer.address();
        let (mut open, ended) = self.connect(peer).await?;
        drop(turn);
        match self.exchange(&mut open.sender, call).await {
            Ok(answer) => {
                self.keep(open, &answer);
                Ok(answer)
            }
            Err(error) => {
                // The connection ends without its sender, and knows better what happened.
                drop(open);
                Err(match ended.await {
                    Ok(Err(end)) => self.broken("the connection failed", &address, &end),
                    Ok(Ok(())) | Err(_) => self.broken("the connection failed", &address, &*error),
                })
            }
        }
    }

    /// What a failed connection means: that nobody can be asked, or that the peer refused us.
    fn broken(
        &self,
        what: &str,
        address: &str,
        error: &(dyn std::error::Error + 'static),
    ) -> LinkError {
        let (reason, way_out) = match tls_error(error) {
            Some(TlsError::Flaw(flaw)) => (
                format!("shows a certificate that {flaw}"),
                self.mends(flaw, address),
            ),
            Some(TlsError::Alert(alert)) if refuses_certificate(alert) => self.refused(alert),
            _ => return self.lost(format!("{what}: {}", chain(error))),
        };
        let problem = Problem::new(Code::Forbidden, self.thing(), reason, way_out);
        LinkError::Lost(problem)
    }

    /// What mends the certificate of the peer.
    fn mends(&self, flaw: &Flaw, address: &str) -> String {
        let name = &self.name;
        match flaw {
            Flaw::Untrusted | Flaw::Unreadable => format!(
                "if `pollux host identity` on `{name}` shows another fingerprint than \
                 `pollux host peers` here, run `pollux host trust {name} {address} <fingerprint>` \
                 here; if not, somebody else answers at {address}"
            ),
            Flaw::WrongName { names } => {
                let shown = names.first().map_or("<name>", String::as_str);
                format!(
                    "if that is the host that was meant, run `pollux host trust {shown} {address} \
                     <fingerprint>` here; if not, correct the address with `pollux host trust {name}`"
                )
            }
            Flaw::Expired { .. } | Flaw::Revoked | Flaw::Usage => format!(
                "run `pollux host certificate FILE --key FILE --authority FILE` on `{name}` with a \
                 new one"
            ),
            Flaw::NotYet { .. } => Flaw::waits(name),
        }
    }

    /// Why the peer refused our certificate, as far as it says, and what mends that.
    fn refused(&self, alert: AlertDescription) -> (String, String) {
        let (us, name) = (self.identity.name(), &self.name);
        let renew = format!(
            "run `pollux host certificate FILE --key FILE --authority FILE` on `{us}` with a new one"
        );
        let now = Timestamp::now();
        match alert {
            AlertDescription::CertificateRevoked => {
                let reason = "knows that the certificate of this host was revoked";
                (reason.to_owned(), renew)
            }
            // TLS has one word for what is over and for what has not begun.
            AlertDescription::CertificateExpired => match self.identity.flaw(now) {
                None => {
                    let reason =
                        "does not take the certificate of this host for valid at this time";
                    let way_out = format!("compare the clocks of `{us}` and `{name}`");
                    (reason.to_owned(), way_out)
                }
                Some(flaw @ Flaw::NotYet { .. }) => {
                    let reason = format!("refuses this host: its certificate {flaw}");
                    (reason, Flaw::waits(us))
                }
                Some(_) => {
                    let reason = "refuses this host: its certificate has expired";
                    (reason.to_owned(), renew)
                }
            },
            _ => {
                let way_out = format!(
                    "run `pollux host trust {us} {} {}` there",
                    self.identity.address(),
                    self.identity.fingerprint()
                );
                ("does not trust this host".to_owned(), way_out)
            }
        }
    }

    fn take_idle(&self, peer: &Trusted) -> Option<Open> {
        let ours = self.identity.leaf(Timestamp::now());
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // What was connected under another trust, or closed since, is dropped. So is what this host
        // presented another certificate on: the peer goes by that one as long as it is open.
        idle.retain(|open| {
            open.peer == *peer && Arc::ptr_eq(&open.ours, &ours) && !open.sender.is_closed()
        });
        // The peer's may have expired meanwhile, or been revoked; a new connection tells that.
        std::iter::from_fn(|| idle.pop()).find(|open| {
            let shown = open.theirs.split_first();
            shown.is_some_and(|(leaf, rest)| {
                let checked = self.trust.check(peer, leaf, rest, UnixTime::now());
                checked.is_ok()
            })
        })
    }

    fn forget_idle(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.clear();
    }

    fn keep(&self, open: Open, answer: &Answer) {
        // Who is trusted no longer learns why, and what mends it, by a handshake.
        if answer.status == StatusCode::FORBIDDEN {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && !open.sender.is_closed() {
            idle.push(open);
        }
    }

    /// A new connection, and how it will have ended.
    async fn connect(&self, peer: Trusted) -> Result<(Open, Ended), LinkError> {
        let address = &peer.address();
        let failed = |reason: String| self.lost(reason);
        let ours = self.identity.leaf(Timestamp::now());
        let config = client_config(&ours, &self.trust, &peer).map_err(|e| failed(e.to_string()))?;
        let name = ServerName::try_from(self.name.clone()).map_err(|e| failed(e.to_string()))?;
        let connecting = async {
            let stream = TcpStream::connect(address.as_str()).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(config).connect(name, stream).await
        };
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Err(self.shut(address));
            }
            Ok(stream) => stream.map_err(|e| {
                self.broken(&format!("cannot be reached at {address}"), address, &e)
            })?,
            Err(_) => return Err(failed(format!("does not answer at {address}"))),
        };
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let theirs = shown.iter().map(|one| one.clone().into_owned()).collect();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| failed(e.to_string()))?;
        let ended = tokio::spawn(async move {
            let outcome = connection.await;
            if let Err(error) = &outcome {
                tracing::debug!(%error, "a connection to a peer ended");
            }
            outcome
        });
        let open = Open {
            peer,
            theirs,
            ours,
            sender,
        };
        Ok((open, ended))
    }

    async fn exchange(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        call: &Call,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        sender.ready().await?;
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(HOST, &self.name);
        if call.json {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(relationship) = call.relationship {
            request = request.header(wire::RELATIONSHIP, relationship.to_string());
        }
        let request = request.body(Full::new(call.body.clone()))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let build = answer.headers().get(wire::BUILD);
        let build = build.and_then(|build| build.to_str().ok().map(str::to_owned));
        let body = Limited::new(answer.into_body(), MAX_ANSWER)
            .collect()
            .await?;
        Ok(Answer {
            status,
            build,
            body: body.to_bytes(),
        })
    }
}

/// What TLS says of a failure.
enum TlsError<'a> {
    /// The other side ended it, and said so.
    Alert(AlertDescription),
    /// This side did not accept the other's certificate.
    Flaw(&'a Flaw),
}

fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<TlsError<'a>> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
        // An `io::Error` is not the source of what it wraps: it stands for it.
        let error: Option<&rustls::Error> = match error.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().and_then(|inner| inner.downcast_ref()),
            None => error.downcast_ref(),
        };
        match error? {
            rustls::Error::AlertReceived(alert) => Some(TlsError::Alert(*alert)),
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                other.0.downcast_ref().map(TlsError::Flaw)
            }
            _ => None,
        }
    })
}

/// How to call the build that a peer names, if it is not this one.
fn another_build(theirs: Option<&str>) -> Option<String> {
    match theirs {
        Some(theirs) if theirs == wire::build() => None,
        // It is shown to people.
        Some(theirs) => Some(theirs.chars().take(40).collect()),
        None => Some("which does not tell its version".to_owned()),
    }
}

/// Whether the other side refused our certificate. In TLS 1.3 that comes after the handshake
/// ended here, as an alert in place of the first answer.
fn refuses_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::AccessDenied
    )
}

/// `error` and its sources.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let texts: Vec<String> = std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect();
    texts.join(": ")
}

/// One relationship with a peer.
#[derive(Debug, Clone)]
pub struct PeerLink {
    client: Arc<PeerClient>,
    vm: VmId,
    relationship: RelationshipId,
}

impl PeerLink {
    /// The relationship `relationship` for `vm` with the client's peer.
    #[must_use]
    pub fn new(client: Arc<PeerClient>, vm: VmId, relationship: RelationshipId) -> Self {
        Self {
            client,
            vm,
            relationship,
        }
    }

    fn call(&self, method: Method, path: String, limit: Duration) -> Call {
        let relationship = Some(self.relationship);
        self.client.call(method, path, relationship, limit)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        rest: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, LinkError> {
        let call = Call {
            body: self.client.json(body)?,
            json: true,
            ..self.call(Method::POST, wire::vm_path(self.vm, rest), limit)
        };
        self.client.ask(call).await
    }

    /// How the VM stands on the partner, which learns our lineage.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn standing(
        &self,
        lineage: &Lineage,
        limit: Duration,
    ) -> Result<PartnerStanding, LinkError> {
        let contact = Contact::of(lineage.clone());
        Ok(self.meet(&contact, limit).await?.standing)
    }

    /// The same with all that may be said beside it, and what becomes of a lease.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn meet(
        &self,
        contact: &Contact,
        limit: Duration,
    ) -> Result<ContactAnswer, LinkError> {
        self.post("/standing", contact, limit).await
    }

    /// Asks the partner to stand down for `lineage`, which we are about to open.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn stand_down(
        &self,
        lineage: &Lineage,
        limit: Duration,
    ) -> Result<StoodDownFor, LinkError> {
        let ask = StandDown {
            lineage: lineage.clone(),
        };
        self.post("/stand-down", &ask, limit).await
    }

    /// Asks the partner, which stood down, to be the replica from now on.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn reverse(&self, reverse: &Reverse) -> Result<Reversed, LinkError> {
        self.post("/reverse", reverse, CONTROL_TIMEOUT).await
    }

    /// Ends the relationship on the partner.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn remove(&self) -> Result<(), LinkError> {
        let path = wire::vm_path(self.vm, "");
        let call = self.call(Method::DELETE, path, CONTROL_TIMEOUT);
        self.client.tell(call).await.map(drop)
    }

    /// Ends the relationship on the replica and deletes what it received, which is no whole VM yet.
    ///
    /// # Errors
    /// [`LinkError`]; refused when the replica has a recovery point.
    pub async fn cancel(&self) -> Result<(), LinkError> {
        let path = wire::vm_path(self.vm, "/cancel");
        let call = self.call(Method::POST, path, CONTROL_TIMEOUT);
        self.client.tell(call).await.map(drop)
    }
}

impl Link for PeerLink {
    async fn contact(&self, lineage: &Lineage) -> Result<ContactAnswer, LinkError> {
        self.meet(&Contact::of(lineage.clone()), CONTACT_TIMEOUT)
            .await
    }

    async fn configure(&self, configure: &Configure) -> Result<ConfigureAnswer, LinkError> {
        let path = wire::vm_path(self.vm, "/configuration");
        let call = Call {
            body: self.client.json(configure)?,
            json: true,
            // It holds up nothing: points go on as it was configured before.
            skew: Code::Invalid,
            ..self.call(Method::PUT, path, CONTROL_TIMEOUT)
        };
        self.client.ask(call).await
    }

    async fn tip(&self, lineage: &Lineage) -> Result<TipAnswer, LinkError> {
        let contact = Contact::of(lineage.clone());
        self.post("/tip", &contact, CONTROL_TIMEOUT).await
    }

    async fn compare(&self, compare: &Compare) -> Result<CompareAnswer, LinkError> {
        self.post("/compare", compare, CONTROL_TIMEOUT).await
    }

    async fn offer(&self, offer: &Offer) -> Result<OfferAnswer, LinkError> {
        self.post("/offer", offer, CONTROL_TIMEOUT).await
    }

    async fn put(&self, root: Root, n: u64, chunk: Bytes) -> Result<(), LinkError> {
        let path = wire::chunk_path(self.vm, root, n);
        let call = Call {
            body: chunk,
            ..self.call(Method::PUT, path, CHUNK_TIMEOUT)
        };
        self.client.tell(call).await.map(drop)
    }

    async fn commit(&self, root: Root) -> Result<CommitAnswer, LinkError> {
        let path = wire::commit_path(self.vm, root);
        let call = self.call(Method::POST, path, CONTROL_TIMEOUT);
        self.client.ask(call).await
    }
}
