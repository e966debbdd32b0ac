//! What happened on a host, as the API tells it.

use jiff::Timestamp;
use model::VmId;
use serde::{Deserialize, Serialize};

use crate::HealthMessage;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number; later ones are higher.
    pub id: u64,
    /// When, by the clock of the host.
    pub time: Timestamp,
    /// What kind of event.
    pub kind: EventKind,
    /// How bad it is.
    pub severity: Severity,
    /// The VM that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// The VM's name at that time, or what else it is about: `host castor`.
    pub thing: String,
    /// What happened, in one sentence without a full stop.
    pub what: String,
    /// What to do; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub way_out: String,
    /// Why the health is what it is now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<HealthMessage>,
}

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Look at it.
    Warning,
    /// A VM is not protected, or not for long.
    Error,
}

impl Severity {
    /// Its text form.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// What kind of event; the text form never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum EventKind {
            $($(#[$doc])+ #[serde(rename = $name)] $variant,)+
        }

        impl EventKind {
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
kinds! {
    /// A VM is replicated from now on, or received.
    Enabled = "replication-enabled",
    /// A relationship ended.
    Removed = "replication-removed",
    /// The state of a relationship changed.
    State = "state-changed",
    /// The health of a relationship changed.
    Health = "health-changed",
    /// Something went wrong with a relationship; told once until it is made good.
    Error = "error",
    /// A verification found damage in the twin.
    Damaged = "twin-damaged",
    /// The twin's newest point holds again what was damaged.
    Repaired = "twin-repaired",
    /// Points are being missed; told once until none was missed for a while.
    PointsMissed = "points-missed",
    /// None was missed for a while.
    PointsOnTime = "points-on-time",
    /// The twin was started because the primary is lost.
    FailedOver = "failed-over",
    /// A failover to this host was called off.
    CalledOff = "failover-called-off",
    /// The other host took over.
    StoodDown = "stood-down",
    /// The guest is held because its lease is over, or the primary's may be held for that.
    LeaseOver = "lease-over",
    /// The lease is renewed again.
    LeaseRenewed = "lease-renewed",
    /// A VM was started although nobody knew whether the other host took over.
    StartedUnasked = "started-unasked",
    /// The folder of a VM is not the one that was stored last, so who may run is asked for.
    Restored = "folder-restored",
    /// A test failover began.
    TestBegan = "test-failover-began",
    /// A test failover ended.
    TestEnded = "test-failover-ended",
    /// A person let the figures be counted anew.
    StatisticsReset = "statistics-reset",
    /// Another host asked for what it may not have.
    Refused = "request-refused",
    /// The hook command failed.
    HookFailed = "hook-failed",
    /// Events could not be kept.
    HistoryLost = "history-lost",
}

/// Which events are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only about this VM: a name, an id, or the beginning of an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Only since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Only after the event of this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// At most so many, the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}
