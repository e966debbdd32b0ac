//! A small client of the API over its Unix socket: one connection per request.

use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes as Chunk, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use model::{Code, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::{
    ApplyCheckpoint, AttachDisk, Authorization, Authorize, CONSOLE_PROTOCOL, CancelFailover,
    Checkpoint, ComparedReplica, CreateDisk, CreateVm, DetachDisk, EnableReplicaServer,
    EnableReplication, EndedReplication, Event, EventQuery, ExportDisk, ExportPoint, ExportedDisk,
    GiveCertificate, HostStatus, Identity, JobLine, LockPoint, LostWrites, MAX_LINE,
    MakeCheckpoint, Measures, OpenPoint, OpenedPoint, Peer, Point, PrepareFailover,
    PreparedFailover, Progress, ReplicaServer, Replication, ReplicationHealth, ResizeDisk,
    ResizedDisk, ReverseReplication, Revoke, Revoked, SetReplication, StartFailover, StartVm,
    StopTest, StopVm, TestFailover, Tracking, TrustPeer, VerifiedReplica, Vm, VmDetails, VmDisk,
};

/// Longest whole answer that is read into memory, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// The API of one polluxd.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the polluxd that listens on `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The socket that polluxd listens on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How the host is.
    pub async fn host(&self) -> Result<HostStatus, Problem> {
        self.get("/v1/host").await
    }

    /// What another host needs to trust this one.
    pub async fn identity(&self) -> Result<Identity, Problem> {
        self.get("/v1/host/identity").await
    }

    /// Gives the host a certificate of a PKI to show.
    pub async fn give_certificate(&self, give: &GiveCertificate) -> Result<Identity, Problem> {
        self.call(Method::PUT, "/v1/host/certificate", Some(give))
            .await
    }

    /// Lets it show one of its own authority again.
    pub async fn take_certificate(&self) -> Result<Identity, Problem> {
        self.call(Method::DELETE, "/v1/host/certificate", None::<&()>)
            .await
    }

    /// Takes in what an authority took back.
    pub async fn revoke(&self, revoke: &Revoke) -> Result<Revoked, Problem> {
        self.call(Method::POST, "/v1/host/revocations", Some(revoke))
            .await
    }

    /// The hosts that are trusted.
    pub async fn peers(&self) -> Result<Vec<Peer>, Problem> {
        self.get("/v1/host/peers").await
    }

    /// Trusts another host.
    pub async fn trust(&self, peer: &TrustPeer) -> Result<Peer, Problem> {
        self.call(Method::POST, "/v1/host/peers", Some(peer)).await
    }

    /// Trusts another host no longer.
    pub async fn untrust(&self, name: &str) -> Result<(), Problem> {
        let path = format!("/v1/host/peers/{}", escape(name));
        self.call(Method::DELETE, &path, None::<&()>).await
    }

    /// How the replica server is.
    pub async fn replica_server(&self) -> Result<ReplicaServer, Problem> {
        self.get("/v1/replica-server").await
    }

    /// Switches it on, or changes how it is.
    pub async fn enable_replica_server(
        &self,
        enable: &EnableReplicaServer,
    ) -> Result<ReplicaServer, Problem> {
        self.call(Method::PUT, "/v1/replica-server", Some(enable))
            .await
    }

    /// Switches it off.
    pub async fn disable_replica_server(&self) -> Result<ReplicaServer, Problem> {
        self.call(Method::DELETE, "/v1/replica-server", None::<&()>)
            .await
    }

    /// Who may make twins on the host.
    pub async fn authorizations(&self) -> Result<Vec<Authorization>, Problem> {
        self.get("/v1/replica-server/authorizations").await
    }

    /// Lets primaries make twins on the host.
    pub async fn authorize(&self, authorize: &Authorize) -> Result<ReplicaServer, Problem> {
        let path = "/v1/replica-server/authorizations";
        self.call(Method::POST, path, Some(authorize)).await
    }

    /// Lets them no longer.
    pub async fn deny(&self, pattern: &str) -> Result<ReplicaServer, Problem> {
        let path = format!("/v1/replica-server/authorizations/{}", escape(pattern));
        self.call(Method::DELETE, &path, None::<&()>).await
    }

    /// All VMs and twins.
    pub async fn vms(&self) -> Result<Vec<Vm>, Problem> {
        self.get("/v1/vms").await
    }

    /// One VM.
    pub async fn vm(&self, vm: &str) -> Result<VmDetails, Problem> {
        self.get(&path(vm, "")).await
    }

    /// Makes a VM; `progress` is told how far the copy of its images is.
    pub async fn create(
        &self,
        vm: &CreateVm,
        progress: impl FnMut(Progress),
    ) -> Result<VmDetails, Problem> {
        self.job(Method::POST, "/v1/vms", Some(vm), progress).await
    }

    /// Starts a VM; answers when QEMU runs the guest.
    pub async fn start(&self, vm: &str, start: &StartVm) -> Result<VmDetails, Problem> {
        self.call(Method::POST, &path(vm, "/start"), Some(start))
            .await
    }

    /// Asks the guest to shut down; answers when it is off.
    pub async fn stop(&self, vm: &str, stop: &StopVm) -> Result<VmDetails, Problem> {
        self.call(Method::POST, &path(vm, "/stop"), Some(stop))
            .await
    }

    /// Ends a guest at once, as if its plug was pulled.
    pub async fn kill(&self, vm: &str) -> Result<VmDetails, Problem> {
        self.call(Method::POST, &path(vm, "/kill"), None::<&()>)
            .await
    }

    /// Deletes a VM and its folder.
    pub async fn delete(&self, vm: &str) -> Result<(), Problem> {
        self.call(Method::DELETE, &path(vm, ""), None::<&()>).await
    }

    /// Forgets a twin whose replica store is lost; what lies there is not touched.
    pub async fn delete_lost(&self, vm: &str) -> Result<(), Problem> {
        let path = path(vm, "?store=lost");
        self.call(Method::DELETE, &path, None::<&()>).await
    }

    /// Starts the diskd of a running VM anew, from the program that is installed now.
    pub async fn upgrade(&self, vm: &str) -> Result<VmDetails, Problem> {
        self.call(Method::POST, &path(vm, "/upgrade"), None::<&()>)
            .await
    }

    /// The disks of a VM.
    pub async fn disks(&self, vm: &str) -> Result<Vec<VmDisk>, Problem> {
        self.get(&path(vm, "/disks")).await
    }

    /// One disk.
    pub async fn disk(&self, vm: &str, disk: &str) -> Result<VmDisk, Problem> {
        self.get(&disk_path(vm, disk, "")).await
    }

    /// Makes a disk and plugs it in.
    pub async fn create_disk(&self, vm: &str, disk: &CreateDisk) -> Result<VmDisk, Problem> {
        self.call(Method::POST, &path(vm, "/disks"), Some(disk))
            .await
    }

    /// Plugs in a raw file as it is.
    pub async fn attach_disk(&self, vm: &str, disk: &AttachDisk) -> Result<VmDisk, Problem> {
        self.call(Method::POST, &path(vm, "/disks/attach"), Some(disk))
            .await
    }

    /// Unplugs a disk.
    pub async fn detach_disk(
        &self,
        vm: &str,
        disk: &str,
        detach: &DetachDisk,
    ) -> Result<(), Problem> {
        self.call(Method::DELETE, &disk_path(vm, disk, ""), Some(detach))
            .await
    }

    /// Makes a disk larger.
    pub async fn resize_disk(
        &self,
        vm: &str,
        disk: &str,
        resize: &ResizeDisk,
    ) -> Result<ResizedDisk, Problem> {
        self.call(Method::PUT, &disk_path(vm, disk, "/size"), Some(resize))
            .await
    }

    /// Writes a disk into a file on the host; `progress` is told how far that is.
    pub async fn export_disk(
        &self,
        vm: &str,
        disk: &str,
        export: &ExportDisk,
        progress: impl FnMut(Progress),
    ) -> Result<ExportedDisk, Problem> {
        let path = disk_path(vm, disk, "/export");
        self.job(Method::POST, &path, Some(export), progress).await
    }

    /// The checkpoints of a VM, the oldest first.
    pub async fn checkpoints(&self, vm: &str) -> Result<Vec<Checkpoint>, Problem> {
        self.get(&path(vm, "/checkpoints")).await
    }

    /// Keeps all disks of a VM as they are now.
    pub async fn make_checkpoint(
        &self,
        vm: &str,
        make: &MakeCheckpoint,
    ) -> Result<Checkpoint, Problem> {
        self.call(Method::POST, &path(vm, "/checkpoints"), Some(make))
            .await
    }

    /// Takes all disks of a VM back to a checkpoint.
    pub async fn apply_checkpoint(
        &self,
        vm: &str,
        checkpoint: &str,
        apply: &ApplyCheckpoint,
    ) -> Result<VmDetails, Problem> {
        let path = path(vm, &format!("/checkpoints/{}/apply", escape(checkpoint)));
        self.call(Method::POST, &path, Some(apply)).await
    }

    /// Removes a checkpoint; what was written since stays. It goes on if nobody waits for it.
    pub async fn merge_checkpoint(
        &self,
        vm: &str,
        checkpoint: &str,
        progress: impl FnMut(Progress),
    ) -> Result<(), Problem> {
        let path = path(vm, &format!("/checkpoints/{}/merge", escape(checkpoint)));
        self.job(Method::POST, &path, None::<&()>, progress).await
    }

    /// Removes all of them, the oldest first.
    pub async fn merge_checkpoints(
        &self,
        vm: &str,
        progress: impl FnMut(Progress),
    ) -> Result<(), Problem> {
        let path = path(vm, "/checkpoints/merge");
        self.job(Method::POST, &path, None::<&()>, progress).await
    }

    /// The serial port of a running VM, as a stream of bytes both ways.
    pub async fn console(&self, vm: &str) -> Result<TokioIo<hyper::upgrade::Upgraded>, Problem> {
        let path = path(vm, "/console");
        let mut request = self.request(Method::GET, &path, None::<&()>)?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(CONSOLE_PROTOCOL));
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.broken(&"polluxd did not switch to the console"));
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| self.broken(&error))?;
        Ok(TokioIo::new(upgraded))
    }

    /// What a VM wrote to its serial port.
    pub async fn serial_log(&self, vm: &str) -> Result<Vec<u8>, Problem> {
        let request = self.request(Method::GET, &path(vm, "/serial-log"), None::<&()>)?;
        let response = self.send(request).await?;
        self.collect(response).await
    }

    /// All relationships of the host.
    pub async fn replications(&self) -> Result<Vec<Replication>, Problem> {
        self.get("/v1/replications").await
    }

    /// The relationship of one VM.
    pub async fn replication(&self, vm: &str) -> Result<Replication, Problem> {
        self.get(&path(vm, "/replication")).await
    }

    /// What happened on the host, the oldest first.
    pub async fn events(&self, wanted: &EventQuery) -> Result<Vec<Event>, Problem> {
        self.get(&format!("/v1/events{}", query(wanted))).await
    }

    /// What happened on the host, and what happens from now on.
    pub async fn follow_events(&self, wanted: &EventQuery) -> Result<EventStream, Problem> {
        let path = format!("/v1/events/stream{}", query(wanted));
        let request = self.request(Method::GET, &path, None::<&()>)?;
        Ok(EventStream {
            body: self.send(request).await?.into_body(),
            buffer: BytesMut::new(),
            client: self.clone(),
        })
    }

    /// Measures of all relationships, as Prometheus takes them.
    pub async fn metrics(&self) -> Result<Vec<u8>, Problem> {
        let request = self.request(Method::GET, "/metrics", None::<&()>)?;
        let response = self.send(request).await?;
        self.collect(response).await
    }

    /// Measures of all relationships of the host.
    pub async fn all_measures(&self) -> Result<Vec<Measures>, Problem> {
        self.get("/v1/replications/measures").await
    }

    /// Measures of the relationship of one VM.
    pub async fn measures(&self, vm: &str) -> Result<Measures, Problem> {
        self.get(&path(vm, "/replication/measures")).await
    }

    /// Begins to count anew.
    pub async fn reset_measures(&self, vm: &str) -> Result<Measures, Problem> {
        let path = path(vm, "/replication/measures");
        self.call(Method::DELETE, &path, None::<&()>).await
    }

    /// Health of all relationships of the host.
    pub async fn all_health(&self) -> Result<Vec<ReplicationHealth>, Problem> {
        self.get("/v1/replications/health").await
    }

    /// Health of the relationship of one VM.
    pub async fn health(&self, vm: &str) -> Result<ReplicationHealth, Problem> {
        self.get(&path(vm, "/replication/health")).await
    }

    /// How the changes of a VM are tracked.
    pub async fn tracking(&self, vm: &str) -> Result<Tracking, Problem> {
        self.get(&path(vm, "/tracking")).await
    }

    /// Replicates a VM to a peer.
    pub async fn enable_replication(
        &self,
        vm: &str,
        enable: &EnableReplication,
    ) -> Result<Replication, Problem> {
        self.call(Method::PUT, &path(vm, "/replication"), Some(enable))
            .await
    }

    /// Replicates a VM in another way.
    pub async fn set_replication(
        &self,
        vm: &str,
        set: &SetReplication,
    ) -> Result<Replication, Problem> {
        self.call(Method::PATCH, &path(vm, "/replication"), Some(set))
            .await
    }

    /// Gives an initial replication up; what came of the twin is deleted.
    pub async fn cancel_replication(&self, vm: &str) -> Result<(), Problem> {
        self.call(Method::POST, &path(vm, "/replication/cancel"), None::<&()>)
            .await
    }

    /// Replicates a VM no longer. The twin stays at the peer.
    pub async fn disable_replication(&self, vm: &str) -> Result<EndedReplication, Problem> {
        self.call(Method::DELETE, &path(vm, "/replication"), None::<&()>)
            .await
    }

    /// The same on a person's word that the peer, which counts on a lease and does not answer, is lost.
    pub async fn disable_replication_because(
        &self,
        vm: &str,
        statement: &str,
    ) -> Result<EndedReplication, Problem> {
        let path = path(vm, &format!("/replication?because={}", escape(statement)));
        self.call(Method::DELETE, &path, None::<&()>).await
    }

    /// Sends nothing until resumed; changes go on being tracked.
    pub async fn suspend_replication(&self, vm: &str) -> Result<Replication, Problem> {
        self.call(Method::POST, &path(vm, "/replication/suspend"), None::<&()>)
            .await
    }

    /// Goes on after a suspension or an error.
    pub async fn resume_replication(&self, vm: &str) -> Result<Replication, Problem> {
        self.call(Method::POST, &path(vm, "/replication/resume"), None::<&()>)
            .await
    }

    /// Recovery points of a twin, the oldest first.
    pub async fn points(&self, vm: &str) -> Result<Vec<Point>, Problem> {
        self.get(&path(vm, "/points")).await
    }

    /// Reads everything that a twin has and compares it with its hashes; `progress` is told how far
    /// that is.
    pub async fn verify_replica(
        &self,
        vm: &str,
        progress: impl FnMut(Progress),
    ) -> Result<VerifiedReplica, Problem> {
        let path = path(vm, "/replication/verify");
        self.job(Method::POST, &path, None::<&()>, progress).await
    }

    /// Compares a twin's newest point with the disks of the primary, which this host is; `progress` is
    /// told how far that is.
    pub async fn compare_replica(
        &self,
        vm: &str,
        progress: impl FnMut(Progress),
    ) -> Result<ComparedReplica, Problem> {
        let path = path(vm, "/replication/compare");
        self.job(Method::POST, &path, None::<&()>, progress).await
    }

    /// Serves the disks of a point over NBD; answers when they are served.
    pub async fn open_point(
        &self,
        vm: &str,
        point: &str,
        open: &OpenPoint,
    ) -> Result<OpenedPoint, Problem> {
        self.call(Method::POST, &point_path(vm, point, "/open"), Some(open))
            .await
    }

    /// Serves them no longer.
    pub async fn close_point(&self, vm: &str, point: &str) -> Result<(), Problem> {
        let path = point_path(vm, point, "/open");
        self.call(Method::DELETE, &path, None::<&()>).await
    }

    /// Keeps a point until a time, whatever happens.
    pub async fn lock_point(
        &self,
        vm: &str,
        point: &str,
        lock: &LockPoint,
    ) -> Result<Point, Problem> {
        self.call(Method::PUT, &point_path(vm, point, "/lock"), Some(lock))
            .await
    }

    /// Writes the disks of a point into files on the host; `progress` is told how far that is.
    pub async fn export_point(
        &self,
        vm: &str,
        point: &str,
        export: &ExportPoint,
        progress: impl FnMut(Progress),
    ) -> Result<Vec<ExportedDisk>, Problem> {
        let path = point_path(vm, point, "/export");
        self.job(Method::POST, &path, Some(export), progress).await
    }

    /// Starts the twin because the primary is lost.
    pub async fn failover(&self, vm: &str, failover: &StartFailover) -> Result<VmDetails, Problem> {
        self.call(Method::POST, &path(vm, "/failover"), Some(failover))
            .await
    }

    /// Makes a failover final: the point that it was started from stays, and goes into the VM's own disks.
    /// It goes on if nobody waits for it.
    pub async fn complete_failover(
        &self,
        vm: &str,
        progress: impl FnMut(Progress),
    ) -> Result<(), Problem> {
        let path = path(vm, "/failover/completion");
        self.job(Method::POST, &path, None::<&()>, progress).await
    }

    /// Shuts the VM down, locks it and sends its last changes.
    pub async fn prepare_failover(
        &self,
        vm: &str,
        prepare: &PrepareFailover,
        progress: impl FnMut(Progress),
    ) -> Result<PreparedFailover, Problem> {
        let path = path(vm, "/planned-failover");
        self.job(Method::POST, &path, Some(prepare), progress).await
    }

    /// Gives it free again; or calls off the failover to this host.
    pub async fn cancel_failover(&self, vm: &str, cancel: CancelFailover) -> Result<(), Problem> {
        let path = path(vm, "/planned-failover");
        self.call(Method::DELETE, &path, Some(&cancel)).await
    }

    /// Makes the host from which the VM was failed over its replica.
    pub async fn reverse(
        &self,
        vm: &str,
        reverse: &ReverseReplication,
    ) -> Result<Replication, Problem> {
        let path = path(vm, "/replication/reverse");
        self.call(Method::POST, &path, Some(reverse)).await
    }

    /// What this host wrote and never sent.
    pub async fn lost_writes(&self, vm: &str) -> Result<LostWrites, Problem> {
        self.get(&path(vm, "/lost-writes")).await
    }

    /// Keeps that no longer.
    pub async fn drop_lost_writes(&self, vm: &str) -> Result<(), Problem> {
        self.call(Method::DELETE, &path(vm, "/lost-writes"), None::<&()>)
            .await
    }

    /// Starts a copy of the twin beside it.
    pub async fn test_failover(
        &self,
        vm: &str,
        failover: &TestFailover,
    ) -> Result<VmDetails, Problem> {
        self.call(Method::POST, &path(vm, "/test-failover"), Some(failover))
            .await
    }

    /// Deletes the copy that a test failover made, or all copies of a twin.
    pub async fn stop_test_failover(&self, vm: &str, stop: StopTest) -> Result<(), Problem> {
        let path = path(vm, "/test-failover");
        self.call(Method::DELETE, &path, Some(&stop)).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Problem> {
        let request = self.request(method, path, body)?;
        let response = self.send(request).await?;
        let bytes = self.collect(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(&error))
    }

    async fn job<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        mut progress: impl FnMut(Progress),
    ) -> Result<T, Problem> {
        let request = self.request(method, path, body)?;
        let mut body = self.send(request).await?.into_body();
        let mut lines = BytesMut::new();
        while let Some(chunk) = next(&mut body).await {
            lines.extend_from_slice(&chunk.map_err(|error| self.broken(&error))?);
            while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                let line: JobLine<T> =
                    serde_json::from_slice(&lines[..end]).map_err(|error| self.broken(&error))?;
                lines.advance(end + 1);
                match line {
                    JobLine::Progress(now) => progress(now),
                    JobLine::Done(done) => return Ok(done),
                    JobLine::Failed(problem) => return Err(problem),
                }
            }
            if lines.len() > MAX_LINE {
                return Err(self.broken(&"a line of the answer is too long"));
            }
        }
        Err(self.broken(&"the answer was cut off before the work was done"))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Request<Full<Chunk>>, Problem> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "pollux");
        let (request, body) = match body {
            None => (request, Chunk::new()),
            Some(body) => {
                let body = serde_json::to_vec(body).map_err(|error| self.broken(&error))?;
                (
                    request.header(CONTENT_TYPE, "application/json"),
                    body.into(),
                )
            }
        };
        request
            .body(Full::new(body))
            .map_err(|error| self.broken(&error))
    }

    /// Sends a request; a refusal becomes its problem.
    async fn send(&self, request: Request<Full<Chunk>>) -> Result<Response<Incoming>, Problem> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        tokio::spawn(connection.with_upgrades());
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let bytes = self.collect(response).await?;
        Err(serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| self.broken(&format!("it answered with HTTP status {status}"))))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Vec<u8>, Problem> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(chunk) = next(&mut body).await {
            bytes.extend_from_slice(&chunk.map_err(|error| self.broken(&error))?);
            if bytes.len() > MAX_ANSWER {
                return Err(self.broken(&"the answer is too long"));
            }
        }
        Ok(bytes)
    }

    fn thing(&self) -> String {
        format!("polluxd at {}", self.socket.display())
    }

    fn unreachable(&self, error: &std::io::Error) -> Problem {
        let way_out = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "Its socket belongs to another user: run `pollux` as that user, or name another \
                 socket with --socket or POLLUX_SOCKET"
            }
            _ => "Start polluxd, or name its socket with --socket or POLLUX_SOCKET",
        };
        Problem::new(
            Code::Unreachable,
            self.thing(),
            format!("cannot be reached: {error}"),
            way_out,
        )
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Problem {
        Problem::new(
            Code::Unreachable,
            self.thing(),
            format!("the conversation broke off: {error}"),
            "Its log says more",
        )
    }
}

/// Events, as they come.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    buffer: BytesMut,
    client: Client,
}

impl EventStream {
    /// The next event; none when polluxd has ended.
    pub async fn next(&mut self) -> Option<Result<Event, Problem>> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                // An event is on one line; what else there is names it again, or keeps the
                // connection up.
                if let Some(data) = line.strip_prefix(b"data:") {
                    let event = serde_json::from_slice(data);
                    return Some(event.map_err(|error| self.client.broken(&error)));
                }
            }
            if self.buffer.len() > MAX_LINE {
                return Some(Err(self.client.broken(&"a line of the answer is too long")));
            }
            match next(&mut self.body).await? {
                Ok(chunk) => self.buffer.extend_from_slice(&chunk),
                Err(error) => return Some(Err(self.client.broken(&error))),
            }
        }
    }
}

fn query(wanted: &EventQuery) -> String {
    let EventQuery {
        vm,
        since,
        after,
        limit,
    } = wanted;
    let parts = [
        ("vm", vm.clone()),
        ("since", since.map(|since| since.to_string())),
        ("after", after.map(|after| after.to_string())),
        ("limit", limit.map(|limit| limit.to_string())),
    ];
    let parts = parts.into_iter().filter_map(|(name, value)| {
        let value = value?;
        Some(format!("{name}={}", escape(&value)))
    });
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!("?{}", parts.join("&"))
    }
}

/// The next data of a body; trailers are skipped.
async fn next(body: &mut Incoming) -> Option<Result<Chunk, hyper::Error>> {
    loop {
        match body.frame().await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

fn disk_path(vm: &str, disk: &str, rest: &str) -> String {
    path(vm, &format!("/disks/{}{rest}", escape(disk)))
}

fn point_path(vm: &str, point: &str, rest: &str) -> String {
    path(vm, &format!("/points/{}{rest}", escape(point)))
}

fn path(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}{rest}", escape(vm))
}

/// Percent-encodes all but the unreserved characters of RFC 3986 section 2.3.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    // A segment of only dots would be resolved away.
    if escaped.chars().all(|c| c == '.') {
        return escaped.replace('.', "%2E");
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn a_name_cannot_leave_its_place_in_the_path() {
        assert_eq!(escape("web - Test"), "web%20-%20Test");
        assert_eq!(escape("../host"), "..%2Fhost");
        assert_eq!(escape(".."), "%2E%2E");
        assert_eq!(escape("zwölf?x#y"), "zw%C3%B6lf%3Fx%23y");
    }
}
