//! What may be done to the pair, and the dice.

use anyhow::{Context, Result};
use testkit::Rng;

/// A host of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Primary,
    Replica,
}

/// A process of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Vmd,
    Diskd,
    Guest,
}

/// Something that is done to the pair; durations in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// `kill -9` of a polluxd, which is away for so long; or until all is mended.
    KillDaemon(Side, Option<u64>),
    /// `kill -9` of a process of the VM; with it, of the polluxd.
    Kill(Part, bool),
    /// `kill -9` of both polluxd and of a process of the VM; so long until they are back.
    KillAll(Part, u64),
    /// `kill -9` of the primary's polluxd while the VM is being started for so long.
    KillInStart(u64),
    /// `kill -9` of a process of the VM while the guest is off.
    KillWhileOff(Part),
    /// The network is away for so long; or until all is mended.
    Cut(Option<u64>),
    /// The network breaks after so many bytes, a few times.
    Flicker(u64, u64),
    /// As above, and the replica's polluxd is killed when it breaks.
    FlickerAndKill(u64),
    /// Suspended for so long, or until all is mended.
    Suspend(Option<u64>),
    /// The guest shuts down, and starts again.
    Restart,
    /// The oldest point is open while newer ones come; and polluxd is killed meanwhile, or not.
    Open(bool),
    /// Test failover of the point at this part of the list (of 1000); meanwhile the replica's
    /// polluxd or the test's diskd may be killed.
    Test(u64, bool, bool),
}

impl Step {
    /// One of which the name begins with `only`.
    pub(super) fn draw(rng: &mut Rng, only: &str) -> Result<Self> {
        let mut steps = std::iter::repeat_with(|| Self::any(rng)).take(1000);
        steps
            .find(|step| format!("{step:?}").starts_with(only))
            .with_context(|| format!("no step begins with {only}"))
    }

    fn any(rng: &mut Rng) -> Self {
        let side = if rng.once_in(2) {
            Side::Primary
        } else {
            Side::Replica
        };
        let part = [Part::Vmd, Part::Diskd, Part::Diskd, Part::Guest][rng.index(4)];
        let short = rng.below(3000);
        let lasting = (!rng.once_in(3)).then_some(short);
        match rng.below(16) {
            0..=2 => Self::KillDaemon(side, lasting),
            3 | 4 => Self::Kill(part, rng.once_in(2)),
            5 => Self::KillInStart(short / 3),
            6 => Self::KillWhileOff(if part == Part::Guest { Part::Vmd } else { part }),
            7 => Self::Cut(lasting),
            8 | 9 => Self::Flicker(1 + rng.below(400_000), 1 + rng.below(4)),
            10 => Self::FlickerAndKill(1 + rng.below(400_000)),
            11 => Self::Suspend(lasting),
            12 => Self::Restart,
            13 => Self::KillAll(part, short),
            14 => Self::Open(rng.once_in(2)),
            _ => Self::Test(rng.below(1000), rng.once_in(2), rng.once_in(2)),
        }
    }
}
