//! States that users see, and which may follow which.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a VM is doing.
///
/// ```text
///            start            guest runs
///    Off ----------> Starting ----------> Running <---> Paused
///     ^  \__________________/               |  |
///     |        failed                  stop |  | kill, crash
///     |                                     v  |
///     +------------------------------- Stopping
///     +<---------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// No QEMU.
    Off,
    /// QEMU is being started.
    Starting,
    /// The guest's processors run.
    Running,
    /// QEMU holds the guest still.
    Paused,
    /// The guest was asked to shut down.
    Stopping,
}

impl VmState {
    /// Whether `next` may follow this state.
    #[must_use]
    pub fn is_transition_valid(self, next: Self) -> bool {
        use VmState::{Off, Paused, Running, Starting, Stopping};
        matches!(
            (self, next),
            (Off, Starting)
                | (Starting, Running | Paused | Off)
                | (Running, Paused | Stopping | Off)
                | (Paused, Running | Stopping | Off)
                | (Stopping, Off | Running | Paused)
        )
    }
}

/// The side of a relationship that this host is; Hyper-V's `ReplicationMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The VM runs here and is sent.
    Primary,
    /// The VM is received here.
    Replica,
    /// A VM that a test failover made.
    TestReplica,
}

/// State of a relationship; the names are Hyper-V's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicationState {
    /// Agreed, nothing was sent yet.
    ReadyForInitialReplication,
    /// The content is being copied.
    InitialReplicationInProgress,
    /// Deltas flow.
    Replicating,
    /// What may differ is compared with the twin, which keeps its points; deltas flow again after it.
    Resynchronizing,
    /// Stopped by a person, or by a cause that goes away by itself.
    Suspended,
    /// It needs a person.
    Error,
    /// The VM is off and locked, for its twin to take over as planned.
    PreparedForFailover,
    /// The twin was started here, from a point that may turn out to be the wrong one.
    FailedOverWaitingCompletion,
    /// The twin was started here, and that is final.
    FailedOver,
    /// The partner took over; the VM may not run here.
    StoodDown,
}

/// Health of a relationship.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// There is nothing to judge: it is not replicated, or the copy of a test failover.
    NotApplicable,
    /// As it should be.
    Normal,
    /// Look at it.
    Warning,
    /// The VM is not protected now.
    Critical,
}

macro_rules! shown {
    ($name:ident: $($variant:ident),+) => {
        /// As Hyper-V's tables show it.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => stringify!($variant)),+ })
            }
        }
    };
}
shown!(VmState: Off, Starting, Running, Paused, Stopping);
shown!(Mode: Primary, Replica, TestReplica);
shown!(Health: NotApplicable, Normal, Warning, Critical);
shown!(ReplicationState: ReadyForInitialReplication, InitialReplicationInProgress, Replicating, Resynchronizing, Suspended, Error, PreparedForFailover, FailedOverWaitingCompletion, FailedOver, StoodDown);

#[cfg(test)]
mod tests {
    use super::VmState::{Off, Paused, Running, Starting, Stopping};

    #[test]
    fn a_vm_never_skips_starting_and_can_always_reach_off() {
        for state in [Starting, Running, Paused, Stopping] {
            assert!(state.is_transition_valid(Off), "{state}");
            assert_eq!(Off.is_transition_valid(state), state == Starting, "{state}");
        }
    }
}
