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
use journal::Root;
use model::{Code, Lineage, Problem, RelationshipId, VmId};
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::identity::Identity;
use crate::link::{Link, LinkError};
use crate::tls::client_config;
use crate::trust::{Trust, Trusted};
use crate::wire::{
    self, CHUNK_TIMEOUT, CONTACT_TIMEOUT, CONTROL_TIMEOUT, CommitAnswer, Compare, CompareAnswer,
    Configure, ConfigureAnswer, Contact, ContactAnswer, Enrol, Enrolled, Hello, Offer, OfferAnswer,
    PartnerStanding, StandDown, StoodDownFor, TipAnswer,
};

/// Most connections that are kept for later.
const IDLE: usize = 8;
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
}

/// A connection, and the trust under which it was made.
#[derive(Debug)]
struct Open {
    peer: Arc<Trusted>,
    sender: SendRequest<Full<Bytes>>,
}

/// How a connection ended.
type Ended = tokio::task::JoinHandle<Result<(), hyper::Error>>;

struct Answer {
    status: StatusCode,
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
            Ok(problem) => LinkError::Refused(problem),
            Err(_) => self.lost(format!("answered with HTTP status {}", answer.status)),
        })
    }

    async fn send(&self, call: &Call) -> Result<Answer, LinkError> {
        let peer = self.trust.get(&self.name).map_err(LinkError::Refused)?;
        while let Some(mut open) = self.take_idle(&peer) {
            match self.exchange(&mut open.sender, call).await {
                Ok(answer) => {
                    self.keep(open);
                    return Ok(answer);
                }
                // It was closed while it was idle; every request may be repeated.
                Err(error) => tracing::debug!(peer = self.name, %error, "an idle connection"),
            }
        }
        let (mut sender, ended) = self.connect(&peer).await?;
        match self.exchange(&mut sender, call).await {
            Ok(answer) => {
                self.keep(Open { peer, sender });
                Ok(answer)
            }
            Err(error) => {
                // The connection ends without its sender, and knows better what happened.
                drop(sender);
                Err(match ended.await {
                    Ok(Err(end)) => self.broken("the connection failed", &end),
                    Ok(Ok(())) | Err(_) => self.broken("the connection failed", &*error),
                })
            }
        }
    }

    /// What a failed connection means: that nobody can be asked, or that the peer refused us.
    fn broken(&self, what: &str, error: &(dyn std::error::Error + 'static)) -> LinkError {
        if !refuses_certificate(error) {
            return self.lost(format!("{what}: {}", chain(error)));
        }
        let way_out = format!(
            "run `pollux host trust {} <address> {}` there",
            self.identity.name(),
            self.identity.fingerprint()
        );
        LinkError::Lost(Problem::new(
            Code::Forbidden,
            self.thing(),
            "does not trust this host",
            way_out,
        ))
    }

    fn take_idle(&self, peer: &Arc<Trusted>) -> Option<Open> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // What was connected under another trust, or closed since, is dropped.
        idle.retain(|open| Arc::ptr_eq(&open.peer, peer) && !open.sender.is_closed());
        idle.pop()
    }

    fn forget_idle(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.clear();
    }

    fn keep(&self, open: Open) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && !open.sender.is_closed() {
            idle.push(open);
        }
    }

    /// A new connection, and how it will have ended.
    async fn connect(
        &self,
        peer: &Arc<Trusted>,
    ) -> Result<(SendRequest<Full<Bytes>>, Ended), LinkError> {
        let address = &peer.peer.address;
        let failed = |reason: String| self.lost(reason);
        let config = client_config(&self.identity, peer).map_err(|e| failed(e.to_string()))?;
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
            Ok(stream) => {
                stream.map_err(|e| self.broken(&format!("cannot be reached at {address}"), &e))?
            }
            Err(_) => return Err(failed(format!("does not answer at {address}"))),
        };
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
        Ok((sender, ended))
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
        let body = Limited::new(answer.into_body(), MAX_ANSWER)
            .collect()
            .await?;
        Ok(Answer {
            status,
            body: body.to_bytes(),
        })
    }
}

/// Whether the other side refused our certificate. In TLS 1.3 that comes after the handshake
/// ended here, as an alert in place of the first answer.
fn refuses_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::{AlertDescription as Alert, Error};
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        // An `io::Error` is not the source of what it wraps: it stands for it.
        let alert = match error.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().and_then(|inner| inner.downcast_ref()),
            None => error.downcast_ref(),
        };
        matches!(
            alert,
            Some(Error::AlertReceived(
                Alert::UnknownCA
                    | Alert::BadCertificate
                    | Alert::CertificateUnknown
                    | Alert::CertificateExpired
                    | Alert::AccessDenied
            ))
        )
    })
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
        Ok(self.meet(lineage, limit).await?.standing)
    }

    async fn meet(&self, lineage: &Lineage, limit: Duration) -> Result<ContactAnswer, LinkError> {
        let contact = Contact {
            lineage: lineage.clone(),
        };
        self.post("/standing", &contact, limit).await
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
        self.meet(lineage, CONTACT_TIMEOUT).await
    }

    async fn configure(&self, configure: &Configure) -> Result<ConfigureAnswer, LinkError> {
        let path = wire::vm_path(self.vm, "/configuration");
        let call = Call {
            body: self.client.json(configure)?,
            json: true,
            ..self.call(Method::PUT, path, CONTROL_TIMEOUT)
        };
        self.client.ask(call).await
    }

    async fn tip(&self, lineage: &Lineage) -> Result<TipAnswer, LinkError> {
        let contact = Contact {
            lineage: lineage.clone(),
        };
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
