//! The health of a relationship, by Hyper-V's rules.

use model::{Health, ReplicationState};

/// More than this part of the points missed is a warning, in percent.
const MISSED: u64 = 20;
/// Of fewer points than this a part says nothing.
const FEW: u64 = 10;
/// So long without success is a warning, in seconds.
const LONG: u64 = 3600;

/// What the health depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) state: ReplicationState,
    /// Something went wrong and has not been made good.
    pub(crate) troubled: bool,
    /// Points that were due.
    pub(crate) due: u64,
    /// Of them, those that could not be cut in time.
    pub(crate) missed: u64,
    /// Seconds since anything was acknowledged or received.
    pub(crate) since_success_s: Option<u64>,
}

/// Critical: nothing can be sent, or a person is needed. Warning: it should be looked at.
pub(crate) fn health(look: &Look) -> Health {
    use ReplicationState::{
        Error, FailedOver, InitialReplicationInProgress, ReadyForInitialReplication, Replicating,
        Resynchronizing, StoodDown, Suspended,
    };
    let late = look.since_success_s.is_some_and(|seconds| seconds > LONG);
    let many = look.missed.saturating_mul(100) > look.due.saturating_mul(MISSED);
    let missed = look.due >= FEW && many;
    match look.state {
        Error | StoodDown => Health::Critical,
        Replicating
        | Resynchronizing
        | InitialReplicationInProgress
        | ReadyForInitialReplication
            if look.troubled =>
        {
            Health::Critical
        }
        Suspended
        | FailedOver
        | ReadyForInitialReplication
        | InitialReplicationInProgress
        | Resynchronizing => Health::Warning,
        Replicating if late || missed => Health::Warning,
        Replicating => Health::Normal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(state: ReplicationState) -> Look {
        Look {
            state,
            troubled: false,
            due: 100,
            missed: 20,
            since_success_s: Some(3600),
        }
    }

    #[test]
    fn a_fifth_of_the_points_missed_is_normal_and_more_is_a_warning() {
        let mut now = look(ReplicationState::Replicating);
        assert_eq!(health(&now), Health::Normal);
        now.missed = 21;
        assert_eq!(health(&now), Health::Warning);
        (now.missed, now.due) = (2, 3);
        assert_eq!(health(&now), Health::Normal, "too few to tell");
    }

    #[test]
    fn an_hour_without_success_is_a_warning() {
        let mut now = look(ReplicationState::Replicating);
        now.since_success_s = Some(3601);
        assert_eq!(health(&now), Health::Warning);
    }

    #[test]
    fn what_cannot_be_sent_or_needs_a_person_is_critical() {
        let mut now = look(ReplicationState::Replicating);
        now.troubled = true;
        assert_eq!(health(&now), Health::Critical);
        for state in [ReplicationState::Error, ReplicationState::StoodDown] {
            assert_eq!(health(&look(state)), Health::Critical);
        }
    }

    #[test]
    fn paused_incomplete_and_failed_over_are_warnings() {
        for state in [
            ReplicationState::Suspended,
            ReplicationState::InitialReplicationInProgress,
            ReplicationState::Resynchronizing,
            ReplicationState::FailedOver,
        ] {
            assert_eq!(health(&look(state)), Health::Warning, "{state}");
        }
    }
}
