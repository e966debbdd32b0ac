//! Strangers at the port of a replica server: each is refused, learns nothing, and keeps nobody out.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use support::{Host, empty, replicate_to};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const LIMIT: Duration = Duration::from_secs(30);
const REQUEST: &[u8] = b"GET /replica/v1/hello HTTP/1.1\r\nhost: pollux\r\n\r\n";

/// A client that takes any server, and notes what it is shown.
#[derive(Debug)]
struct Stranger {
    key: Option<Arc<CertifiedKey>>,
    provider: CryptoProvider,
    shown: Mutex<Vec<CertificateDer<'static>>>,
    /// Authorities that the server says it knows.
    hints: AtomicUsize,
}

impl ServerCertVerifier for Stranger {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(leaf).chain(others);
        *self.shown.lock().expect("no panic") = chain.map(|one| one.clone().into_owned()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Stranger {
    fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.hints.store(hints.len(), Ordering::SeqCst);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a server lets a stranger know.
struct Learnt {
    alert: AlertDescription,
    /// What came beside the alert.
    bytes: Vec<u8>,
    shown: Vec<CertificateDer<'static>>,
    hints: usize,
    protocol: bool,
}

/// Speaks TLS, shows `key`, asks for something, and reads to the end.
async fn asks(
    address: &str,
    key: Option<CertifiedKey>,
    version: &'static SupportedProtocolVersion,
) -> Learnt {
    let provider = rustls::crypto::ring::default_provider();
    let stranger = Arc::new(Stranger {
        key: key.map(Arc::new),
        provider: provider.clone(),
        shown: Mutex::default(),
        hints: AtomicUsize::new(0),
    });
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .expect("a version")
        .dangerous()
        .with_custom_certificate_verifier(stranger.clone())
        .with_client_cert_resolver(stranger.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (mut bytes, mut protocol) = (Vec::new(), false);
    let talk = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("castor").expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await?;
        protocol = stream.get_ref().1.alpn_protocol().is_some();
        stream.write_all(REQUEST).await?;
        stream.read_to_end(&mut bytes).await
    };
    let error = timeout(LIMIT, talk).await.expect("it is answered");
    let error = error.expect_err("it is refused");
    let told = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(Error::AlertReceived(alert)) = told else {
        panic!("no alert: {error}");
    };
    let shown = stranger.shown.lock().expect("no panic").clone();
    Learnt {
        alert: *alert,
        bytes,
        shown,
        hints: stranger.hints.load(Ordering::SeqCst),
        protocol,
    }
}

/// Says that, and nothing more; all that comes back.
async fn says(address: &str, said: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let mut came = Vec::new();
    let talk = async {
        stream.write_all(said).await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut came).await
    };
    // That the connection was cut is a refusal as well.
    let _refused = timeout(LIMIT, talk).await.expect("it comes to an end");
    came
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> CertifiedKey {
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).expect("a key");
    CertifiedKey::new(chain, key)
}

/// Certificates that strangers make themselves, some of them in the name of one that is trusted.
fn made_up() -> Vec<CertifiedKey> {
    let key = || KeyPair::generate().expect("a key");
    let params = |name: &str| CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let mut all = Vec::new();
    for name in ["castor", "nobody"] {
        let key = key();
        let own = params(name).self_signed(&key).expect("signed");
        all.push(certified(vec![own.der().clone()], &key));
    }
    let (ca_key, mut ca) = (key(), params("castor"));
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = ca.self_signed(&ca_key).expect("signed").der().clone();
    let leaf_key = key();
    let issuer = Issuer::from_params(&ca, &ca_key);
    let leaf = params("castor").signed_by(&leaf_key, &issuer);
    let leaf = leaf.expect("signed").der().clone();
    all.push(certified(vec![leaf, authority], &leaf_key));
    all.push(certified(
        vec![CertificateDer::from(vec![0x30; 4000])],
        &key(),
    ));
    all
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

#[tokio::test]
async fn a_stranger_gets_a_refusal_and_nothing_else_and_the_daemon_goes_on() {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    for host in [&castor, &pollux] {
        host.receives().await;
    }
    let address = pollux.client.identity().await.expect("told").address;
    castor.trusts(&pollux).await;
    pollux.trusts(&castor).await;
    // One that never says anything, all the time.
    let _silent = TcpStream::connect(&address).await.expect("it listens");

    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for said in [
        REQUEST,
        b"POST /replica/v1/vms HTTP/1.1\r\ncontent-length: 9999999999\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        // The beginning of a handshake, and a record that is longer than any.
        hello,
        b"\x16\x03\x01\xff\xff",
        &[0; 4096],
        &[0xff; 1 << 20],
        b"",
    ] {
        let came = says(&address, said).await;
        // An alert of TLS is a record of two bytes.
        let alert = came.len() == 7 && came[0] == 21;
        assert!(came.is_empty() || alert, "{came:?}");
    }

    let keys = made_up().into_iter().map(Some);
    let mut alerts = Vec::new();
    for key in std::iter::once(None).chain(keys) {
        let learnt = asks(&address, key, &rustls::version::TLS13).await;
        assert_eq!(learnt.bytes, [0; 0]);
        assert!(learnt.hints == 0 && !learnt.protocol);
        let [leaf, authority] = &learnt.shown[..] else {
            panic!("{:?}", learnt.shown);
        };
        assert_eq!(replica::certificate::names(leaf), ["pollux"]);
        for one in [leaf, authority] {
            for secret in ["castor", env!("CARGO_PKG_VERSION")] {
                assert!(!contains(one, secret), "{secret}");
            }
        }
        alerts.push(learnt.alert);
    }
    // Whose certificate it is, or whether it is one at all, makes no difference.
    let unknown = AlertDescription::UnknownCA;
    assert_eq!(alerts[1..], [unknown; 4]);
    assert_eq!(alerts[0], AlertDescription::CertificateRequired);
    let learnt = asks(&address, None, &rustls::version::TLS12).await;
    assert_eq!(learnt.alert, AlertDescription::ProtocolVersion);
    assert!(learnt.shown.is_empty() && learnt.bytes.is_empty());

    // This side knows who they said to be, and serves whom it trusts.
    let status = pollux.client.host().await.expect("a status");
    let refused: Vec<&str> = status.refused.iter().map(|one| &*one.thing).collect();
    assert_eq!(
        refused,
        [
            "host `<name>`",
            "host `castor`",
            "host `nobody`",
            "host `castor`"
        ]
    );
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let enable = replicate_to("pollux");
    let agreed = castor.client.enable_replication("web", &enable).await;
    agreed.expect("agreed");
}
