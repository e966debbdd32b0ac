//! What a VM does next: pure functions from its state and what happened.
//!
//! The states and which may follow which are [`VmState`]'s. Whoever calls these carries the
//! answer out and changes the state only to the one given back.

use model::{Code, Problem, VmState};

/// What somebody asks of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Run.
    Start,
    /// Ask the guest to shut down.
    Stop,
    /// Pull the plug.
    Kill,
    /// Be gone.
    Delete,
}

/// What has to be done for a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Start QEMU.
    Launch,
    /// Press the guest's power button.
    PressPower,
    /// Nothing new: an earlier wish of the same kind is being carried out; wait for it.
    Wait,
    /// End QEMU.
    End,
    /// Remove the folder.
    Remove,
}

/// What happened to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// QEMU runs the guest.
    Launched,
    /// QEMU is gone, or was never started, and all is tidy.
    Gone,
    /// The guest did not shut down in the time that it had.
    StopExpired,
    /// QEMU holds the guest still.
    Held,
    /// QEMU holds it no longer.
    GoesOn,
}

/// Whether a wish is granted in `state`: the state from now on, and what to do.
///
/// `replicated`: the VM takes part in a relationship.
pub(crate) fn wish(
    thing: &str,
    state: VmState,
    wish: Wish,
    replicated: bool,
) -> Result<(VmState, Act), Problem> {
    use VmState::{Off, Paused, Running, Starting, Stopping};
    let refuse =
        |reason: &str, way_out: &str| Err(Problem::new(Code::Conflict, thing, reason, way_out));
    match (wish, state) {
        (Wish::Start, Off) => Ok((Starting, Act::Launch)),
        (Wish::Start, Starting) => Ok((Starting, Act::Wait)),
        (Wish::Start, Running) => refuse(
            "runs already",
            "`pollux vm list` shows the state of each VM",
        ),
        (Wish::Start, Paused) => refuse(
            "is held still",
            "`pollux vm show` tells why; `pollux vm kill` ends it, and then it can be started",
        ),
        (Wish::Start, Stopping) => refuse(
            "is shutting down",
            "Wait until it is off, or end it with `pollux vm kill`",
        ),
        (Wish::Stop | Wish::Kill, Off) => refuse("is off already", ""),
        (Wish::Stop, Starting) => refuse(
            "is being started",
            "Wait until it runs, or end it with `pollux vm kill`",
        ),
        (Wish::Stop, Running) => Ok((Stopping, Act::PressPower)),
        (Wish::Stop, Paused) => refuse(
            "is paused, so its guest cannot shut itself down",
            "End it with `pollux vm kill`",
        ),
        // Once more: the guest may have missed the first.
        (Wish::Stop, Stopping) => Ok((Stopping, Act::PressPower)),
        (Wish::Kill, state) => Ok((state, Act::End)),
        (Wish::Delete, Off) if replicated => refuse(
            "is replicated",
            "End that first with `pollux replica remove`",
        ),
        (Wish::Delete, Off) => Ok((Off, Act::Remove)),
        (Wish::Delete, _) => refuse(
            "is not off",
            "Shut it down first with `pollux vm stop`, or end it with `pollux vm kill`",
        ),
    }
}

/// The state after something happened.
pub(crate) fn after(state: VmState, event: Event) -> VmState {
    use VmState::{Off, Paused, Running, Starting, Stopping};
    match (event, state) {
        (Event::Launched, Starting) => Running,
        (Event::Gone, _) => Off,
        (Event::StopExpired, Stopping) => Running,
        (Event::Held, Running | Stopping) => Paused,
        (Event::GoesOn, Paused) => Running,
        // Too late to matter: the state has moved on since.
        (_, state) => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [VmState; 5] = [
        VmState::Off,
        VmState::Starting,
        VmState::Running,
        VmState::Paused,
        VmState::Stopping,
    ];

    #[test]
    fn no_wish_and_no_event_makes_a_transition_that_the_model_forbids() {
        for state in STATES {
            for asked in [Wish::Start, Wish::Stop, Wish::Kill, Wish::Delete] {
                for replicated in [false, true] {
                    if let Ok((next, _)) = wish("VM `x`", state, asked, replicated) {
                        let good = next == state || state.is_transition_valid(next);
                        assert!(good, "{asked:?}: {state} -> {next}");
                    }
                }
            }
            for event in [
                Event::Launched,
                Event::Gone,
                Event::StopExpired,
                Event::Held,
                Event::GoesOn,
            ] {
                let next = after(state, event);
                let good = next == state || state.is_transition_valid(next);
                assert!(good, "{event:?}: {state} -> {next}");
            }
        }
    }

    #[test]
    fn only_a_vm_that_is_off_and_not_replicated_is_deleted() {
        for state in STATES {
            for replicated in [false, true] {
                let granted = wish("VM `x`", state, Wish::Delete, replicated).is_ok();
                assert_eq!(granted, state == VmState::Off && !replicated, "{state}");
            }
        }
    }

    #[test]
    fn a_vm_that_is_not_off_can_always_be_killed() {
        for state in STATES {
            let granted = wish("VM `x`", state, Wish::Kill, true);
            assert_eq!(granted.is_ok(), state != VmState::Off, "{state}");
        }
    }

    #[test]
    fn every_refusal_names_the_vm() {
        for state in STATES {
            for asked in [Wish::Start, Wish::Stop, Wish::Kill, Wish::Delete] {
                if let Err(problem) = wish("VM `x`", state, asked, true) {
                    assert!(problem.to_string().starts_with("VM `x`: "), "{problem}");
                }
            }
        }
    }
}
