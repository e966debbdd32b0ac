//! What a driver tells of its relationship.

use std::time::Duration;

use jiff::Timestamp;
use model::{Bytes, DiskId, PointId, Problem, ReplicationState};

use crate::wire::Filling;

/// A segment on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes of the file that the replica has.
    pub sent: Bytes,
    /// Length of the file.
    pub total: Bytes,
}

/// What may differ being compared with the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// Compared.
    pub done: Bytes,
    /// To be compared, what was done included.
    pub total: Bytes,
}

/// The replica's newest point being verified against the disks, or how that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Which one: as [`Command::Verify`](crate::driver::Command::Verify) said.
    pub number: u64,
    /// Looked at.
    pub done: Bytes,
    /// To be looked at: all disks.
    pub total: Bytes,
    /// Of what was looked at, what had changed since the point and was left out: the next point
    /// replaces it.
    pub changed: Bytes,
    /// What differs and had not changed.
    pub damaged: Bytes,
    /// Where, the first ranges.
    pub damage: Vec<Damage>,
    /// How many more ranges there are.
    pub more: u64,
    /// The point that holds again what was damaged; older ones do not.
    pub repaired: Option<PointId>,
    /// The newest point when all was looked at, or why not all was; none while it goes on.
    pub outcome: Option<Result<PointId, Problem>>,
}

/// A range of a disk that the replica had otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The disk.
    pub disk: DiskId,
    /// Its first byte.
    pub at: u64,
    /// How long it is.
    pub len: Bytes,
}

impl Verification {
    /// One that has looked at nothing yet.
    #[must_use]
    pub fn begin(number: u64, total: Bytes) -> Self {
        Self {
            number,
            done: Bytes(0),
            total,
            changed: Bytes(0),
            damaged: Bytes(0),
            damage: Vec::new(),
            more: 0,
            repaired: None,
            outcome: None,
        }
    }

    /// Whether the replica's newest point is known to be damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damaged > Bytes(0) && self.repaired.is_none()
    }
}

/// A disk that was added, being copied beside the points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joining {
    /// The disk.
    pub disk: DiskId,
    /// Bytes of it that were looked at.
    pub done: Bytes,
    /// Its size.
    pub total: Bytes,
}

/// State and measures of one relationship, on the primary. Counters begin with the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkReport {
    /// State of the relationship.
    pub state: ReplicationState,
    /// Whether a person paused it on the replica.
    pub paused_there: bool,
    /// Why the replica does not follow the VM's configuration; points go on.
    pub unconfigured: Option<Problem>,
    /// The newest point that the replica acknowledged.
    pub acknowledged: Option<PointId>,
    /// When that point was cut: the replica is behind by the time since then (RPO now).
    pub acknowledged_cut: Option<Timestamp>,
    /// When the replica last acknowledged anything.
    pub last_success: Option<Timestamp>,
    /// Why it stands still, or stood still last; none after a success.
    pub last_error: Option<Problem>,
    /// Points acknowledged.
    pub cycles: u64,
    /// Times at which a point was due while the one before was not acknowledged yet.
    pub missed: u64,
    /// How often the partner could not be reached, or a request got no answer.
    pub link_losses: u64,
    /// How often something else than the connection kept it from going on.
    pub failures: u64,
    /// Sum of the lengths of the segment files of points that were acknowledged.
    pub sizes: Bytes,
    /// Sum of the times from the cuts of points to their acknowledgements.
    pub latencies: Duration,
    /// Bytes of chunks that the replica stored.
    pub shipped: Bytes,
    /// Bytes of chunks that the replica had already when a segment was offered.
    pub spared: Bytes,
    /// Time from the last acknowledged cut to its acknowledgement.
    pub last_latency: Option<Duration>,
    /// Length of the last acknowledged segment file.
    pub last_size: Bytes,
    /// The segment on its way, if any.
    pub transfer: Option<Transfer>,
    /// How far the replica is filled from a copy, before anything is sent.
    pub filling: Option<Filling>,
    /// How far the initial replication is: bytes of disks looked at, while it goes on.
    pub seeding: Option<crate::source::Position>,
    /// How far the comparison with the replica is, while one goes on.
    pub comparison: Option<Comparison>,
    /// The last verification of the replica's newest point.
    pub verification: Option<Verification>,
    /// Disks that the replica's points do not have yet.
    pub joining: Vec<Joining>,
    /// Bytes of disks compared with the replica by hash.
    pub compared: Bytes,
    /// Of them, bytes that differed.
    pub differed: Bytes,
}

impl LinkReport {
    /// Before anything happened.
    #[must_use]
    pub fn new(state: ReplicationState) -> Self {
        Self {
            state,
            paused_there: false,
            unconfigured: None,
            acknowledged: None,
            acknowledged_cut: None,
            last_success: None,
            last_error: None,
            cycles: 0,
            missed: 0,
            link_losses: 0,
            failures: 0,
            sizes: Bytes(0),
            latencies: Duration::ZERO,
            shipped: Bytes(0),
            spared: Bytes(0),
            last_latency: None,
            last_size: Bytes(0),
            transfer: None,
            filling: None,
            seeding: None,
            comparison: None,
            verification: None,
            joining: Vec::new(),
            compared: Bytes(0),
            differed: Bytes(0),
        }
    }
}
