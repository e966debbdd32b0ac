//! What others would do to copy a disk to another host: `qemu-img convert` from a qemu-nbd with TLS and
//! certificates on both sides.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::until;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

const START: Duration = Duration::from_secs(20);
/// Longest time for a copy.
const COPY: Duration = Duration::from_secs(300);
const NAME: &str = "localhost";

/// How it copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// As it does unless told otherwise: eight requests at once, written in order.
    Usual,
    /// Sixteen requests at once, written as they come: its documentation's way to go faster.
    Any,
}

/// Certificates as QEMU wants them, for a server and a client that trust one authority.
pub(super) struct Credentials {
    folder: PathBuf,
}

impl Credentials {
    pub(super) fn make(folder: &Path) -> Result<Self> {
        let folder = folder.join("tls");
        fs::create_dir_all(&folder)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("ca-cert.pem"), authority.pem())?;
        for (who, purpose) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
            // QEMU wants the second one as well, though the keys are not of RSA.
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
            ];
            params.extended_key_usages = vec![purpose];
            params.distinguished_name.push(DnType::CommonName, who);
            let certificate = params.signed_by(&key, &authority)?;
            fs::write(folder.join(format!("{who}-cert.pem")), certificate.pem())?;
            fs::write(folder.join(format!("{who}-key.pem")), key.serialize_pem())?;
        }
        Ok(Self { folder })
    }

    fn object(&self, endpoint: &str) -> String {
        let folder = self.folder.display();
        format!("tls-creds-x509,id=tls,endpoint={endpoint},dir={folder},verify-peer=yes")
    }
}

/// A qemu-nbd that serves a raw file; killed when dropped.
pub(super) struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Opened as the disk of a VM is: past the page cache.
    pub(super) fn start(file: &Path, credentials: &Credentials) -> Result<Self> {
        let port = TcpListener::bind((NAME, 0))?.local_addr()?.port();
        let child = Command::new("qemu-nbd")
            .args(["--format=raw", "--persistent", "--read-only", "--shared=8"])
            .args(["--cache=none", "--aio=native", "--bind=127.0.0.1"])
            .arg(format!("--port={port}"))
            .args(["--object", &credentials.object("server")])
            .args(["--tls-creds=tls", "--export-name=disk"])
            .arg(file)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start qemu-nbd: `apt-get install qemu-utils` brings it")?;
        let mut server = Self { child, port };
        until(START, "qemu-nbd listens", || {
            let ended = server.child.try_wait()?;
            ensure!(ended.is_none(), "qemu-nbd ended at once: {ended:?}");
            Ok(TcpStream::connect(("127.0.0.1", port)).ok().map(drop))
        })?;
        Ok(server)
    }

    /// Copies it into the new file `to`, durably.
    pub(super) fn copy(&self, credentials: &Credentials, order: Order, to: &Path) -> Result<()> {
        let source = format!(
            "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={},export=disk,\
             tls-creds=tls,tls-hostname={NAME}",
            self.port
        );
        let mut command = Command::new("qemu-img");
        command.args(["convert", "--object", &credentials.object("client")]);
        if order == Order::Any {
            command.args(["-m", "16", "-W"]);
        }
        let mut copying = command
            .args(["--image-opts", "-O", "raw", &source])
            .arg(to)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run qemu-img: `apt-get install qemu-utils` brings it")?;
        let ended = until(COPY, "qemu-img convert has copied the disk", || {
            Ok(copying.try_wait()?)
        });
        if ended.is_err() {
            // It may have ended at this moment.
            let _ = copying.kill();
            let _ = copying.wait();
        }
        let status = ended?;
        ensure!(status.success(), "qemu-img convert ended with {status}");
        File::open(to)?.sync_all()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
