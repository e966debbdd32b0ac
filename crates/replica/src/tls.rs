//! TLS 1.3 with certificates on both sides, and the server loop over it.
//!
//! A handshake succeeds only if the peer's certificate leads to exactly one trusted peer
//! ([`Trust::identify`]); a stranger's is refused in the handshake, and it learns nothing else: not
//! even whether its authority or its name would be known. Only who is a trusted peer but for the
//! time or a revocation is told that. Why anybody was refused is kept on this side.
//! Sessions are never resumed, so that whoever is trusted no longer is refused at once: on its
//! next connection by the handshake, on an open one with its next request.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use model::{Code, Problem};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certificate::Flaw;
use crate::identity::{Identity, Leaf};
use crate::trust::{Presented, Trust, Trusted};

pub use crate::host::Principal;
pub use rustls::ServerConfig;

/// Limits of the server loop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in their handshake at one time, or in wait for a place; the oldest makes way for one more.
    pub handshakes: usize,
    /// Connections of trusted peers at one time; more wait for a place until the handshake limit.
    pub connections: usize,
    /// Of these, those of one peer: one that keeps all that it gets takes no place from others.
    pub of_one_peer: usize,
    /// Longest handshake, including the wait for a place.
    pub handshake: Duration,
    /// Longest wait for a request's head on an open connection.
    pub idle: Duration,
    /// How long requests may finish after the shutdown began.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 256,
            connections: 1024,
            of_one_peer: 512,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            drain: Duration::from_secs(10),
        }
    }
}

/// TLS cannot be set up with this identity.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS for peers")]
pub struct TlsError(#[from] Error);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Accepts a client if [`Trust::identify`] knows it.
#[derive(Debug)]
struct PeerVerifier {
    trust: Arc<Trust>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A stranger need not learn whom this host trusts.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let stranger = match self.trust.identify(end_entity, intermediates, now) {
            Ok(_) => return Ok(ClientCertVerified::assertion()),
            Err(stranger) => stranger,
        };
        let told = match stranger.flaw {
            Flaw::Expired { .. } => CertificateError::Expired,
            Flaw::NotYet { .. } => CertificateError::NotValidYet,
            Flaw::Revoked => CertificateError::Revoked,
            Flaw::Untrusted | Flaw::WrongName { .. } | Flaw::Usage | Flaw::Unreadable => {
                CertificateError::UnknownIssuer
            }
        };
        let problem = stranger.problem();
        if self.trust.refused(stranger) {
            tracing::warn!(%problem, "a certificate was refused");
        }
        Err(told.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Accepts one peer as the server.
#[derive(Debug)]
struct OnePeer {
    peer: Trusted,
    trust: Arc<Trust>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OnePeer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.trust.check(&self.peer, end_entity, intermediates, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            // Found again by whoever connects; the server learns nothing of it.
            Err(flaw) => Err(CertificateError::Other(OtherError(Arc::new(flaw))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Presents the certificate of the moment: it is renewed while the server runs.
#[derive(Debug)]
struct Presents {
    identity: Arc<Identity>,
    provider: Arc<CryptoProvider>,
}

impl Presents {
    fn now(&self) -> Result<CertifiedKey, Error> {
        let leaf = self.identity.leaf(Timestamp::now());
        CertifiedKey::from_der(leaf.chain.clone(), leaf.key(), &self.provider)
    }
}

impl ResolvesServerCert for Presents {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.now() {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                tracing::error!(%error, "the host's certificate is of no use");
                None
            }
        }
    }
}

/// What the server end presents and whom it lets in.
///
/// # Errors
/// [`TlsError`] when the identity is of no use to TLS.
pub fn server_config(
    identity: &Arc<Identity>,
    trust: Arc<Trust>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let verifier = Arc::new(PeerVerifier {
        trust,
        provider: provider.clone(),
    });
    let presents = Presents {
        identity: identity.clone(),
        provider: provider.clone(),
    };
    presents.now()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(presents));
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// What the client end presents, and the one peer that it accepts.
///
/// # Errors
/// [`TlsError`] when that is of no use to TLS.
pub fn client_config(
    leaf: &Leaf,
    trust: &Arc<Trust>,
    peer: &Trusted,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let verifier = OnePeer {
        peer: peer.clone(),
        trust: trust.clone(),
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(leaf.chain.clone(), leaf.key())?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Serves `router` on `listener` to trusted peers until `shutdown`; each request carries its
/// [`Principal`] as an extension. Then lets running requests finish, within the limit.
pub async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    trust: Arc<Trust>,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let handshakes = Arc::new(Handshakes::default());
    let places = Arc::new(Places::new(limits));
    let (closing, closed) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task failed");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of descriptors, mostly: without the pause this loop would spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let shaking = handshakes.begin(limits.handshakes);
        let connection = Connection {
            acceptor: TlsAcceptor::from(config.clone()),
            trust: trust.clone(),
            router: router.clone(),
            limits,
            places: places.clone(),
            closed: closed.clone(),
        };
        tasks.spawn(connection.run(stream, shaking));
    }
    drop(listener);
    let _ = closing.send(true);
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, drained).await.is_err() {
        tracing::warn!("connections of peers were cut: their requests took too long");
    }
}

/// Connections in their handshake, the oldest first. A peer's is over after a few round trips, in which
/// hardly anybody begins that many others: whoever only holds them open makes way, and keeps nobody out.
#[derive(Default)]
struct Handshakes(Mutex<VecDeque<oneshot::Sender<()>>>);

/// One of them, until it is dropped.
struct Handshake {
    all: Arc<Handshakes>,
    makes_way: oneshot::Receiver<()>,
}

impl Handshakes {
    fn lock(&self) -> MutexGuard<'_, VecDeque<oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of at most `most`.
    fn begin(self: &Arc<Self>, most: usize) -> Handshake {
        let (make_way, makes_way) = oneshot::channel();
        let mut all = self.lock();
        while all.len() >= most.max(1) {
            // It may end by itself at this moment.
            let _ = all.pop_front().map(|oldest| oldest.send(()));
        }
        all.push_back(make_way);
        Handshake {
            all: Arc::clone(self),
            makes_way,
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.makes_way.close();
        self.all.lock().retain(|other| !other.is_closed());
    }
}

/// Places for connections of trusted peers.
struct Places {
    all: Arc<Semaphore>,
    of_one_peer: usize,
    of: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Held while the connection is.
type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Places {
    fn new(limits: Limits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.connections)),
            of_one_peer: limits.of_one_peer,
            of: Mutex::default(),
        }
    }

    /// Waits for a place of `peer`, then for one of all.
    async fn take(&self, peer: &str) -> Result<Place, AcquireError> {
        let own = {
            let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            let own = of.entry(peer.to_owned());
            own.or_insert_with(|| Arc::new(Semaphore::new(self.of_one_peer)))
                .clone()
        };
        let own = own.acquire_owned().await?;
        Ok((own, self.all.clone().acquire_owned().await?))
    }
}

struct Connection {
    acceptor: TlsAcceptor,
    trust: Arc<Trust>,
    router: Router,
    limits: Limits,
    places: Arc<Places>,
    closed: watch::Receiver<bool>,
}

impl Connection {
    async fn run(mut self, stream: TcpStream, mut shaking: Handshake) {
        let address = stream.peer_addr().ok();
        let _ = stream.set_nodelay(true);
        let handshake = async {
            let stream = match self.acceptor.accept(stream).into_fallible().await {
                Ok(stream) => stream,
                Err((error, stream)) => {
                    see_off(stream).await;
                    return Err(error);
                }
            };
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let peer = chain
                .split_first()
                .and_then(|(leaf, rest)| self.trust.identify(leaf, rest, UnixTime::now()).ok());
            let shown: Vec<_> = chain.iter().map(|one| one.clone().into_owned()).collect();
            let entered = match peer {
                Some(peer) => {
                    self.trust.let_in(&peer.name);
                    let place = self.places.take(&peer.name).await;
                    place.ok().map(|place| (peer, shown, place))
                }
                // Trusted when its certificate was verified, and no longer.
                None => None,
            };
            Ok::<_, std::io::Error>((stream, entered))
        };
        let entered = tokio::select! {
            // What is done is done, also if it should make way just now.
            biased;
            entered = tokio::time::timeout(self.limits.handshake, handshake) => entered,
            _ = &mut shaking.makes_way => {
                tracing::info!(?address, "a connection in its handshake made way for another one");
                return;
            }
            _ = self.closed.changed() => return,
        };
        let (stream, peer, shown, _place) = match entered {
            Ok(Ok((stream, Some((peer, shown, place))))) => (stream, peer, shown, place),
            Ok(Ok((_, None))) => return,
            Ok(Err(error)) => {
                tracing::info!(?address, %error, "a connection was refused");
                return;
            }
            Err(_) => {
                tracing::info!(
                    ?address,
                    "a connection did not finish its handshake in time"
                );
                return;
            }
        };
        drop(shaking);
        let (trust, router) = (self.trust.clone(), self.router.clone());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            let known = still(&trust, &peer.name, &shown);
            let principal = peer.principal();
            request.extensions_mut().insert(principal.clone());
            let router = TowerToHyperService::new(router.clone());
            async move {
                match known {
                    Ok(()) => router.call(request).await,
                    Err(problem) => {
                        Ok((hyper::StatusCode::FORBIDDEN, axum::Json(problem)).into_response())
                    }
                }
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle)
            .max_headers(64)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let outcome = tokio::select! {
            outcome = &mut connection => outcome,
            _ = self.closed.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(?address, %error, "a connection ended");
        }
    }
}

/// Takes what a refused caller sent already, so that the alert reaches it: a connection closed
/// with unread bytes is reset, and the alert may be lost with it.
async fn see_off(mut stream: TcpStream) {
    let mut seen = [0; 1024];
    let _ = stream.shutdown().await;
    // More than its first request may bring before it reads; whoever goes on is cut off.
    for _ in 0..64 {
        if !matches!(stream.read(&mut seen).await, Ok(1..)) {
            return;
        }
    }
}

/// Whether the peer `name`, let in with the chain `shown`, would be let in still: its certificate may
/// have expired meanwhile, or been revoked.
fn still(trust: &Trust, name: &str, shown: &[CertificateDer<'_>]) -> Result<(), Problem> {
    let gone = || {
        Problem::new(
            Code::Forbidden,
            format!("host `{name}`"),
            "is not trusted any more by the host it asks",
            format!("run `pollux host trust {name} <address> <fingerprint>` there"),
        )
    };
    let (leaf, rest) = shown.split_first().ok_or_else(gone)?;
    match trust.identify(leaf, rest, UnixTime::now()) {
        Ok(now) if now.name == name => Ok(()),
        Ok(_) => Err(gone()),
        Err(stranger) if stranger.flaw.is_of_a_peer() => {
            let problem = stranger.problem();
            trust.refused(stranger);
            Err(problem)
        }
        Err(_) => Err(gone()),
    }
}

/// Records whatever chain a server presents, after checking that it has the key to it.
#[derive(Debug)]
struct Recorder {
    provider: Arc<CryptoProvider>,
    offered: Mutex<Vec<CertificateDer<'static>>>,
    proven: Mutex<Option<Vec<CertificateDer<'static>>>>,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        *self.offered.lock().unwrap_or_else(PoisonError::into_inner) =
            chain.map(|c| c.clone().into_owned()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = verify_tls13_signature(message, cert, dss, algorithms)?;
        let mut offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        *self.proven.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(std::mem::take(&mut offered));
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Asks the host at `address` (`host:port`) who it is, without telling it who we are.
///
/// # Errors
/// [`Code::Unreachable`] when nothing answers there that presents an authority.
pub async fn fetch_authority(address: &str, limit: Duration) -> Result<Presented, Problem> {
    let failed = |reason: String| {
        let way_out = "check the address, and that polluxd runs there";
        Problem::new(
            Code::Unreachable,
            format!("the host at {address}"),
            reason,
            way_out,
        )
    };
    let provider = provider();
    let recorder = Arc::new(Recorder {
        provider: provider.clone(),
        offered: Mutex::default(),
        proven: Mutex::default(),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(recorder.clone())
        .with_no_client_auth();
    let name = ServerName::try_from("pollux").map_err(|e| failed(e.to_string()))?;
    let asked = async {
        let stream = TcpStream::connect(address).await?;
        // The other side refuses us after the part that matters here.
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map(drop)
    };
    let outcome = tokio::time::timeout(limit, asked).await;
    let proven = recorder
        .proven
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(presented) = proven.and_then(Presented::new) {
        return Ok(presented);
    }
    Err(failed(match outcome {
        Err(_) => format!("gave no answer within {} s", limit.as_secs()),
        Ok(Err(error)) => format!("cannot be asked: {error}"),
        Ok(Ok(())) => "presents a certificate without its authority's".to_owned(),
    }))
}
