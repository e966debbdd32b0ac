//! HTTP types of the management API, and its client.
//!
//! `polluxd` answers JSON over HTTP/1.1 on a Unix socket that only its owner can reach. Every
//! refusal is a [`model::Problem`] with the HTTP status of its code.
//!
//! ```text
//!   GET    /v1/host                                 HostStatus
//!   GET    /v1/host/identity                        Identity
//!   PUT    /v1/host/certificate                     GiveCertificate -> Identity
//!   DELETE /v1/host/certificate                                 -> Identity
//!   POST   /v1/host/revocations                     Revoke      -> Revoked
//!   GET    /v1/host/peers                           [Peer]
//!   POST   /v1/host/peers                           TrustPeer   -> Peer
//!   DELETE /v1/host/peers/{name}
//!   GET    /v1/replica-server                       ReplicaServer
//!   PUT    /v1/replica-server                       EnableReplicaServer -> ReplicaServer
//!   DELETE /v1/replica-server                                   -> ReplicaServer
//!   GET    /v1/replica-server/authorizations        [Authorization]
//!   POST   /v1/replica-server/authorizations        Authorize   -> ReplicaServer
//!   DELETE /v1/replica-server/authorizations/{pattern}          -> ReplicaServer
//!   GET    /v1/vms                                  [Vm]
//!   POST   /v1/vms                                  CreateVm    -> job: VmDetails
//!   GET    /v1/vms/{vm}                             VmDetails
//!   DELETE /v1/vms/{vm}                             ?store=lost: without what lies in its store
//!   POST   /v1/vms/{vm}/start                       StartVm     -> VmDetails
//!   POST   /v1/vms/{vm}/stop                        StopVm      -> VmDetails
//!   POST   /v1/vms/{vm}/kill                                    -> VmDetails
//!   POST   /v1/vms/{vm}/upgrade                                 -> VmDetails
//!   GET    /v1/vms/{vm}/disks                       [VmDisk]
//!   POST   /v1/vms/{vm}/disks                       CreateDisk  -> VmDisk
//!   POST   /v1/vms/{vm}/disks/attach                AttachDisk  -> VmDisk
//!   GET    /v1/vms/{vm}/disks/{disk}                VmDisk
//!   DELETE /v1/vms/{vm}/disks/{disk}                DetachDisk
//!   PUT    /v1/vms/{vm}/disks/{disk}/size           ResizeDisk  -> ResizedDisk
//!   POST   /v1/vms/{vm}/disks/{disk}/export         ExportDisk  -> job: ExportedDisk
//!   GET    /v1/vms/{vm}/checkpoints                 [Checkpoint]
//!   POST   /v1/vms/{vm}/checkpoints                 MakeCheckpoint -> Checkpoint
//!   POST   /v1/vms/{vm}/checkpoints/{name}/apply    ApplyCheckpoint -> VmDetails
//!   POST   /v1/vms/{vm}/checkpoints/{name}/merge    job: null
//!   POST   /v1/vms/{vm}/checkpoints/merge           job: null
//!   GET    /v1/vms/{vm}/console                     upgrade to the serial port's bytes
//!   GET    /v1/vms/{vm}/serial-log                  text
//!   GET    /v1/replications                         [Replication]
//!   GET    /v1/vms/{vm}/replication                 Replication
//!   PUT    /v1/vms/{vm}/replication                 EnableReplication -> Replication
//!   PATCH  /v1/vms/{vm}/replication                 SetReplication -> Replication
//!   DELETE /v1/vms/{vm}/replication
//!   POST   /v1/vms/{vm}/replication/cancel
//!   POST   /v1/vms/{vm}/replication/suspend                     -> Replication
//!   POST   /v1/vms/{vm}/replication/resume                      -> Replication
//!   GET    /metrics                                 OpenMetrics text, for Prometheus
//!   GET    /v1/events                               ?EventQuery -> [Event]
//!   GET    /v1/events/stream                        ?EventQuery -> Event, as server-sent events
//!   GET    /v1/replications/measures                [Measures]
//!   GET    /v1/vms/{vm}/replication/measures        Measures
//!   DELETE /v1/vms/{vm}/replication/measures                    -> Measures
//!   GET    /v1/replications/health                  [ReplicationHealth]
//!   GET    /v1/vms/{vm}/replication/health          ReplicationHealth
//!   GET    /v1/vms/{vm}/tracking                    Tracking
//!   POST   /v1/vms/{vm}/replication/verify          job: VerifiedReplica
//!   POST   /v1/vms/{vm}/replication/compare         job: ComparedReplica
//!   GET    /v1/vms/{vm}/points                      [Point]
//!   POST   /v1/vms/{vm}/points/{point}/open         OpenPoint   -> OpenedPoint
//!   DELETE /v1/vms/{vm}/points/{point}/open
//!   PUT    /v1/vms/{vm}/points/{point}/lock         LockPoint   -> Point
//!   POST   /v1/vms/{vm}/points/{point}/export       ExportPoint -> job: [ExportedDisk]
//!   POST   /v1/vms/{vm}/failover                    StartFailover -> VmDetails
//!   POST   /v1/vms/{vm}/failover/completion         job: null
//!   POST   /v1/vms/{vm}/planned-failover            PrepareFailover -> a job, PreparedFailover
//!   DELETE /v1/vms/{vm}/planned-failover            CancelFailover
//!   POST   /v1/vms/{vm}/replication/reverse         ReverseReplication -> Replication
//!   GET    /v1/vms/{vm}/lost-writes                 LostWrites
//!   DELETE /v1/vms/{vm}/lost-writes
//!   POST   /v1/vms/{vm}/test-failover               TestFailover  -> VmDetails
//!   DELETE /v1/vms/{vm}/test-failover               StopTest
//! ```
//!
//! `{vm}` is a name, an id, or the beginning (four digits or more) of an id that no other VM's has. `{point}` is
//! `latest`, or the term's first eight digits, a dot and the sequence. A *job* answers with
//! lines of JSON, see [`JobLine`]. `{disk}` is a disk's number, the name of its file or the beginning of its
//! id, `{name}` a checkpoint's name or the beginning of its id.

mod client;
mod disk;
mod event;
mod host;
mod job;
mod measure;
mod point;
mod replication;
mod server;
mod tracking;
mod vm;

pub use client::{Client, EventStream};
pub use disk::{
    ApplyCheckpoint, AttachDisk, Checkpoint, CreateDisk, DetachDisk, DiskFormat, DiskOverlay,
    ExportDisk, ExportedDisk, MakeCheckpoint, ResizeDisk, ResizedDisk, VmDisk,
};
pub use event::{Event, EventKind, EventQuery, Severity};
pub use host::{
    Accelerator, GiveCertificate, HostStatus, Identity, Peer, Revoke, Revoked, TrustPeer,
};
pub use job::{JobLine, MAX_LINE, Progress};
pub use measure::{HealthMessage, HealthReason, Measures, ReplicationHealth};
pub use point::{
    ComparedReplica, DamagedFile, DamagedRange, ExportPoint, LockPoint, OpenDisk, OpenPoint,
    OpenedPoint, Point, VerifiedReplica,
};
pub use replication::{
    CancelFailover, EnableReplication, EndedReplication, FailoverStep, JoiningDisk, Lease,
    LostDisk, LostRange, LostWrites, PrepareFailover, PreparedFailover, Replication,
    ReverseReplication, SetReplication, StartFailover, StopTest, TestFailover,
};
pub use server::{
    Admits, Authorization, Authorize, EnableReplicaServer, ReplicaServer, ReplicaStore, Unreceived,
};
pub use tracking::{Epochs, Finding, FoldedBack, IntentLog, Tracked, TrackedDisk, Tracking};
pub use vm::{
    CreateVm, DiskContentFrom, NewDisk, Processes, StartVm, StopVm, Succeeded, Vm, VmDetails,
};

/// Where polluxd listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/pollux/api.sock";

/// The protocol that `GET /v1/vms/{vm}/console` upgrades to.
pub const CONSOLE_PROTOCOL: &str = "pollux-console";
