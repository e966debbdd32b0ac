//! Replication and failover, as the API tells and takes them.

use jiff::Timestamp;
use model::{
    Bytes, DiskChoice, FenceChoice, Health, Keep, Mode, PointId, Problem, RelationshipId,
    ReplicationState, StartUnasked, VmId, VmName,
};
use serde::{Deserialize, Serialize};

use crate::{HealthMessage, OpenDisk, Progress};

/// A relationship, seen from this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// The relationship.
    pub relationship: RelationshipId,
    /// Its state.
    pub state: ReplicationState,
    /// Its health.
    pub health: Health,
    /// The side that this host is.
    pub mode: Mode,
    /// A point is cut every so many seconds; known at the primary.
    pub every_s: Option<u64>,
    /// Name of the other host.
    pub peer: String,
    /// Seconds since the latest point that the twin has was cut.
    pub lag_s: Option<u64>,
    /// The latest point that the twin has.
    pub latest: Option<PointId>,
    /// Points that the twin has; at the primary: points that it acknowledged since the
    /// relationship began.
    pub points: u64,
    /// Changed and not at the twin yet; none when it cannot be told, and at the twin.
    pub pending: Option<Bytes>,
    /// Bytes of segments sent or received since the relationship began.
    pub shipped: Bytes,
    /// Longest hold-up of the guest's disk operations by a cut since polluxd started, in
    /// microseconds.
    pub longest_pause_us: u64,
    /// How far the initial replication is, while there is one.
    pub initial: Option<Progress>,
    /// Bytes that it does in a second of that, or of the comparison.
    #[serde(default)]
    pub per_second: Option<Bytes>,
    /// Seconds until that is done, if it goes on like that.
    #[serde(default)]
    pub left_s: Option<u64>,
    /// How far the comparison of what may differ from the twin is, while there is one.
    #[serde(default)]
    pub comparison: Option<Progress>,
    /// Numbers of its disks that are not replicated; known at the primary.
    #[serde(default)]
    pub left_out: Vec<u8>,
    /// Disks that were added and that no point of the twin has yet.
    #[serde(default)]
    pub joining: Vec<JoiningDisk>,
    /// Bytes of disks compared with the twin by hash since polluxd started.
    #[serde(default)]
    pub compared: Bytes,
    /// Of them, bytes that differed.
    #[serde(default)]
    pub differed: Bytes,
    /// What went wrong last, if it has not been made good since.
    pub last_error: Option<String>,
    /// The lease under which the VM runs, if it does.
    #[serde(default)]
    pub lease: Option<Lease>,
    /// Whether the VM starts when the other host gives no answer; known at the primary.
    #[serde(default)]
    pub start_unasked: StartUnasked,
    /// Why its health is not better.
    #[serde(default)]
    pub messages: Vec<HealthMessage>,
    /// Name of the host that it is sent from.
    #[serde(default)]
    pub primary_host: String,
    /// Name of the host that has the twin.
    #[serde(default)]
    pub replica_host: String,
    /// TCP port at which that one is reached, if known.
    #[serde(default)]
    pub replica_port: Option<u16>,
}

impl Replication {
    /// How far it is with what it does before points flow, while it does that.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        self.initial.as_ref().or(self.comparison.as_ref())
    }
}

/// A lease: the primary runs only as long as its replica answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The primary is held still after so many seconds without its replica.
    pub seconds: u32,
    /// At the primary: milliseconds until it is; none without a grant.
    #[serde(default)]
    pub left_ms: Option<u64>,
    /// Whether the guest is held because it is over.
    #[serde(default)]
    pub held: bool,
    /// At the replica: milliseconds until it may take over without the primary's word.
    #[serde(default)]
    pub takeover_in_ms: Option<u64>,
}

/// A disk that is copied to the twin beside the points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoiningDisk {
    /// Its number.
    pub disk: u8,
    /// How far that is.
    pub progress: Progress,
}

/// A relationship that was ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedReplication {
    /// Why the other host does not know of it; there it has to be ended too.
    pub untold: Option<Problem>,
}

/// Replicate a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnableReplication {
    /// Name of a trusted peer.
    pub peer: String,
    /// Cut a point every so many seconds, 1 to 3600.
    pub every_s: u64,
    /// Which disks; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DiskChoice>,
    /// Which recovery points are kept; as the other host keeps them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// A VM of that host, off, from which the twin is filled first: only what differs is sent then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed_from: Option<VmName>,
    /// Whether it runs under a lease; not when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<FenceChoice>,
}

/// Replicate a VM in another way from now on; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetReplication {
    /// Cut a point every so many seconds, 1 to 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_s: Option<u64>,
    /// Which disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DiskChoice>,
    /// Which recovery points are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// Whether it runs under a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<FenceChoice>,
    /// Whether it starts when the other host gives no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_unasked: Option<StartUnasked>,
}

/// Start the twin because the primary is lost; or what was failed over, from another point.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartFailover {
    /// The point, `latest` when absent. One that was failed over already goes to the point that is named.
    #[serde(default)]
    pub point: Option<String>,
    /// What was written since the failover may go with the point that is left.
    #[serde(default)]
    pub drop_writes: bool,
    /// A person's statement why the primary cannot be running, when it cannot be asked. It is
    /// recorded.
    #[serde(default)]
    pub because: Option<String>,
    /// Wait until the primary's lease is over, if it holds to one and does not answer.
    #[serde(default)]
    pub wait: bool,
}

/// Shut the VM down and send the last changes, for the twin to take over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareFailover {
    /// Seconds that the guest has to shut down.
    pub timeout_s: u64,
    /// Even if it has checkpoints, so that this host cannot become the replica before they are merged.
    #[serde(default)]
    pub keep_checkpoints: bool,
}

/// Give a VM free that was prepared for a planned failover; or call a failover to this host off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelFailover {
    /// What was written since the failover may go.
    #[serde(default)]
    pub drop_writes: bool,
}

/// Delete the copies that test failovers made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopTest {
    /// If there are none, call a failover to this host off, since which nothing was written.
    #[serde(default)]
    pub or_failover: bool,
}

/// A VM that is off and locked, and whose twin has everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreparedFailover {
    /// What was done, in order.
    pub steps: Vec<FailoverStep>,
    /// The host that can take over now.
    pub replica_host: String,
}

/// A step of a planned failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverStep {
    /// What it is.
    pub step: String,
    /// What came of it.
    pub result: String,
}

/// Start a copy of the twin beside it, or of what its host wrote and never sent: `lost-writes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestFailover {
    /// The point, `latest` when absent.
    #[serde(default)]
    pub point: Option<String>,
}

/// Make the host from which the VM was failed over its replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReverseReplication {
    /// Which disks; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DiskChoice>,
}

/// What a host wrote, or may have written, and never sent before it became the replica of the one that took
/// over. It is kept until it is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LostWrites {
    /// The newest point that the host which took over had: all of this was written after it.
    pub since: PointId,
    /// When that point was cut, by the clock of the host that wrote. None: nobody can tell.
    #[serde(default)]
    pub from: Option<Timestamp>,
    /// When a disk was written last, by the same clock.
    pub until: Option<Timestamp>,
    /// The disks as they were.
    pub disks: Vec<LostDisk>,
    /// What older points of the twin take that would be merged otherwise. None: it cannot be told now.
    #[serde(default)]
    pub held: Option<Bytes>,
    /// How they are read, while they are open.
    #[serde(default)]
    pub open: Vec<OpenDisk>,
}

/// A disk as it was on a host that was taken over from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LostDisk {
    /// Its number.
    pub number: u8,
    /// Its size.
    pub size: Bytes,
    /// Where it may differ from the point, rising; empty for one that is not replicated. None: nobody can
    /// tell.
    pub ranges: Option<Vec<LostRange>>,
    /// A raw disk, which must not be written to: the twin's base is the same file.
    pub file: String,
}

/// A part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LostRange {
    /// Its first byte.
    pub at: u64,
    /// Its length.
    pub len: Bytes,
}
