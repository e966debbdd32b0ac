//! A polluxd of its own in a temporary folder, asked through its socket. No guest is started.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use api::{
    Client, CreateVm, DiskContentFrom, EnableReplicaServer, EnableReplication, NewDisk,
    ReplicaServer, TrustPeer, VmDetails,
};
use model::{Bytes, Code, Generation, Problem};

/// A host, ended and removed when dropped.
pub(crate) struct Host {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) daemon: Child,
    pub(crate) client: Client,
}

/// polluxd beside files that stand in for the programs that it only starts with a guest.
pub(crate) fn program(folder: &Path) -> PathBuf {
    let program = folder.join("polluxd");
    if !program.exists() {
        // Another program copies it: were it open for writing here, a test beside this one that
        // starts its own would hand the descriptor on, and the kernel refuses to run what is
        // open for writing.
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_polluxd"))
            .arg(&program)
            .status();
        assert!(copied.expect("cp runs").success());
        for name in ["pollux-vmd", "pollux-diskd"] {
            fs::write(folder.join(name), "").expect("stand-in");
        }
    }
    program
}

pub(crate) fn command(folder: &Path, name: &str) -> Command {
    let mut command = Command::new(program(folder));
    command
        .arg("--state")
        .arg(folder.join("state"))
        .arg("--run")
        .arg(folder.join("run"))
        .args(["--name", name, "--replica-listen", "127.0.0.1:0"])
        .stdin(Stdio::null());
    command
}

impl Host {
    pub(crate) async fn start(name: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("pollux-")
            .tempdir()
            .expect("scratch");
        Self::start_in(folder, name).await
    }

    pub(crate) async fn start_in(folder: tempfile::TempDir, name: &str) -> Self {
        let log = fs::File::create(folder.path().join("log")).expect("log");
        let daemon = command(folder.path(), name)
            .stderr(log)
            .spawn()
            .expect("spawn");
        let client = Client::new(folder.path().join("run/api.sock"));
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(problem) = client.vms().await {
            let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{problem}: {log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self {
            folder,
            daemon,
            client,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Ends its polluxd and starts it anew.
    pub(crate) async fn restarted(mut self, name: &str) -> Self {
        self.daemon.kill().expect("kill");
        self.daemon.wait().expect("reap");
        let elsewhere = tempfile::tempdir().expect("scratch");
        let folder = std::mem::replace(&mut self.folder, elsewhere);
        Self::start_in(folder, name).await
    }

    /// Receives twins of every host it trusts.
    pub(crate) async fn receives(&self) -> ReplicaServer {
        let enable = EnableReplicaServer::default();
        let enabled = self.client.enable_replica_server(&enable).await;
        enabled.expect("enabled")
    }

    /// Trusts `other`, under its own name.
    pub(crate) async fn trusts(&self, other: &Host) {
        let theirs = other.client.identity().await.expect("an identity");
        let trust = TrustPeer {
            name: theirs.name,
            address: theirs.address,
            fingerprint: Some(theirs.fingerprint),
            ..TrustPeer::default()
        };
        self.client.trust(&trust).await.expect("trusted");
    }

    pub(crate) async fn create(
        &self,
        name: &str,
        disks: Vec<NewDisk>,
    ) -> Result<VmDetails, Problem> {
        self.client.create(&wanted(name, disks), |_| {}).await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

pub(crate) fn wanted(name: &str, disks: Vec<NewDisk>) -> CreateVm {
    CreateVm {
        name: name.parse().expect("a good name"),
        generation: Generation::Two,
        processors: 1,
        memory: Bytes(64 << 20),
        secure_boot: None,
        direct_boot: None,
        disks,
    }
}

/// To replicate a VM to `peer`, of which nothing else was chosen.
pub(crate) fn replicate_to(peer: &str) -> EnableReplication {
    EnableReplication {
        peer: peer.to_owned(),
        every_s: 30,
        disks: None,
        keep: None,
        seed_from: None,
        fence: None,
    }
}

pub(crate) fn empty(size: u64) -> NewDisk {
    NewDisk {
        from: DiskContentFrom::Empty,
        size: Some(Bytes(size)),
        bus: None,
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Problem>, code: Code, says: &str) {
    let problem = result.expect_err(says);
    assert_eq!(problem.code, code, "{problem}");
    assert!(problem.to_string().contains(says), "{problem}");
}
