//! Measures and health of a relationship, as the API tells them.

use jiff::Timestamp;
use model::{Bytes, Health, Mode, RelationshipId, ReplicationState, VmId, VmName};
use serde::{Deserialize, Serialize};

/// What was measured of a relationship in the monitoring interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measures {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// The relationship.
    pub relationship: RelationshipId,
    /// The side that this host is.
    pub mode: Mode,
    /// State of the relationship.
    pub state: ReplicationState,
    /// Its health.
    pub health: Health,
    /// Name of the other host.
    pub peer: String,
    /// Beginning of the monitoring interval.
    pub interval_start: Timestamp,
    /// Its end; then the counters begin anew.
    pub interval_end: Timestamp,
    /// Since when it is counted: the interval's beginning, or the relationship's, or a reset.
    pub since: Timestamp,
    /// Points that the twin got.
    pub successful: u64,
    /// Points that were due; known at the primary.
    pub due: Option<u64>,
    /// Of them, those that were not made because the one before was not at the twin yet.
    pub missed: Option<u64>,
    /// How often the other host could not be reached.
    pub network_failures: u64,
    /// How often something else kept the replication from going on.
    pub replication_failures: u64,
    /// Mean length of what was sent for a point.
    pub size_average: Option<Bytes>,
    /// The longest.
    pub size_maximum: Option<Bytes>,
    /// Mean time from the cut of a point until the twin had it, in milliseconds.
    pub latency_average_ms: Option<u64>,
    /// The longest.
    pub latency_maximum_ms: Option<u64>,
    /// When the twin got anything last.
    pub last_replication: Option<Timestamp>,
    /// Length of what was sent for the last point.
    pub last_size: Option<Bytes>,
    /// Time from its cut until the twin had it, in milliseconds.
    pub last_latency_ms: Option<u64>,
    /// When a test failover began last; known at the replica.
    pub last_test_failover: Option<Timestamp>,
    /// Bytes sent.
    pub sent: Bytes,
    /// Bytes received.
    pub received: Bytes,
    /// By how much compression made smaller what was sent, in percent; known at the primary.
    pub compression_percent: Option<u8>,
    /// Bytes of disks compared with the twin by hash.
    pub compared: Bytes,
    /// Of them, bytes that differed.
    pub differed: Bytes,
    /// Changed and not at the twin yet; known at the primary.
    pub pending: Option<Bytes>,
    /// Of the segment on its way, what the twin lacks; known at the primary.
    pub backlog: Option<Bytes>,
    /// Seconds since the latest point that the twin has was cut: what a loss of the primary would
    /// cost now.
    pub rpo_s: Option<u64>,
    /// 99 of 100 cuts held up the guest's writes for at most this, in microseconds, since its disk
    /// server started.
    pub pause_p99_us: Option<u64>,
    /// The longest such pause.
    pub pause_longest_us: Option<u64>,
}

/// Health of a relationship, and why it is not better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationHealth {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// The side that this host is.
    pub mode: Mode,
    /// State of the relationship.
    pub state: ReplicationState,
    /// The worst of the messages.
    pub health: Health,
    /// Why; nothing when all is well.
    pub messages: Vec<HealthMessage>,
}

/// Why a relationship is not healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthMessage {
    /// How bad it is.
    pub level: Health,
    /// Which one it is, for programs.
    pub reason: HealthReason,
    /// What it is, in one sentence without a full stop.
    pub what: String,
    /// Since when.
    pub since: Option<Timestamp>,
    /// What to do about it.
    pub way_out: String,
}

macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// Why a relationship is not healthy; the text form never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum HealthReason {
            $($(#[$doc])+ #[serde(rename = $name)] $variant,)+
        }

        impl HealthReason {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its text form.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}
reasons! {
    /// The replica cannot be reached, or nothing can be sent for another cause.
    CannotSend = "cannot-send",
    /// It stands still until a person looks at it.
    NeedsAPerson = "needs-a-person",
    /// The twin's newest point is not what the disks hold, and no newer one has reached it.
    TwinDamaged = "twin-damaged",
    /// The other host took over.
    StoodDown = "stood-down",
    /// The guest is held because its lease is over.
    LeaseOver = "lease-over",
    /// The primary has not renewed its lease, so that this host may take over.
    PrimarySilent = "primary-silent",
    /// The replica store that the twin lies in is not mounted.
    StoreAway = "store-away",
    /// A verification found damage in the journal of the twin.
    JournalDamaged = "journal-damaged",
    /// Nothing more fits into the replica store.
    StoreFull = "store-full",
    /// Points of the twin that are too old do not go.
    PointsStay = "points-stay",
    /// A certificate on which the relationship rests ends soon, or has ended.
    Certificate = "certificate",
    /// Paused on the replica.
    PausedAtReplica = "paused-at-replica",
    /// Paused on the primary.
    Paused = "paused",
    /// What changed cannot be staged or taken in; it is tracked meanwhile.
    CannotWriteLog = "cannot-write-log",
    /// The initial replication is not complete.
    InitialReplication = "initial-replication",
    /// What may differ is being compared.
    Resynchronizing = "resynchronizing",
    /// The twin was started here and nothing is replicated back.
    FailedOver = "failed-over",
    /// More than a fifth of the points were missed.
    PointsMissed = "points-missed",
    /// Nothing was sent for more than an hour.
    NothingSent = "nothing-sent",
    /// Nothing was received for more than an hour.
    NothingReceived = "nothing-received",
    /// Points take more than five minutes on average.
    Slow = "slow",
}
