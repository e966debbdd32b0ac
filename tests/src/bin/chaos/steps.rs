//! What may be done to the pair, and the dice.

use anyhow::{Context, Result};
use testkit::Rng;

/// A host, by what it is for the VM.
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

/// What happens while a person's command is carried out; durations in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trouble {
    None,
    /// `kill -9` of the polluxd that was asked, after so long.
    KillHere(u64),
    /// Of the other one.
    KillThere(u64),
    KillBoth(u64),
    /// The network breaks once it carried so many bytes.
    Cut(u64),
    /// The other polluxd is stopped for so long.
    FreezeThere(u64),
    /// The other host has no room for so long.
    FullThere(u64),
}

/// How the VM comes to run on the host of its twin.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// Prepared on its own host, and perhaps cancelled once before.
    Planned(bool),
    /// Without the primary's word, which is away.
    Forced(Loss),
}

/// What is lost of the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// All of its processes.
    Host,
    /// Its polluxd: the guest runs on.
    Daemon,
    /// The network to it: everything runs on.
    Network,
}

/// Who is lost next, before the VM is replicated again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Nobody,
    /// The host that took over by force dies, and the former primary runs until it is back.
    Successor,
}

/// The VM that was failed over goes to another point of its twin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Another {
    /// The point at this part of the list (of 1000); past that `latest`.
    pub(super) point: u64,
    pub(super) trouble: Trouble,
}

/// How a person looks into what was never sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) open: bool,
    pub(super) test: bool,
    /// Whether the polluxd is killed while it is open and tested.
    pub(super) kill: bool,
    /// Of what opens it, tests it and ends the test.
    pub(super) troubles: [Trouble; 3],
}

/// When the host that is to take over as planned is lost, after so long where a duration is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// While the VM is prepared for it.
    Preparing(u64),
    Prepared,
    /// While it is failed over to.
    Starting(u64),
    /// Once the VM writes there.
    Started,
}

/// The host is lost to which the VM is failed over as planned, and the VM stays.
#[derive(Debug, Clone, Copy)]
pub(super) struct Successor {
    pub(super) stage: Stage,
    /// Whether the primary's polluxd is killed as well.
    pub(super) daemon: bool,
    /// Whether it comes back as it was; else another one by its name.
    pub(super) back: bool,
}

/// The VM goes to the other host, and is replicated back from there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circle {
    pub(super) way: Way,
    /// The point at this part of the list (of 1000); past that the newest.
    pub(super) point: u64,
    /// Other points: at once, and when the former primary is there again.
    pub(super) others: [Option<Another>; 2],
    pub(super) again: Again,
    /// Whether the failover is called off instead, if it is not completed.
    pub(super) call_off: Option<Trouble>,
    /// Whether the failover is completed before the VM is replicated back.
    pub(super) complete: bool,
    /// Whether the new replica is asked for its disks back before it has a point.
    pub(super) give_back: bool,
    /// Whether what was never sent is looked into.
    pub(super) look: Option<Look>,
    /// Whether what was never sent is dropped as soon as there is a point.
    pub(super) drop: bool,
    /// Of the preparation, the failover, its completion, the way back, and the drop.
    pub(super) troubles: [Trouble; 5],
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
    /// `kill -9` of everything on a host, which is away for so long, or until all is mended; as after a
    /// power cut what lay in memory is gone, or not.
    KillHost(Side, Option<u64>, bool),
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
    /// A polluxd is stopped for so long.
    FreezeDaemon(Side, u64),
    /// A process of the VM is stopped for so long.
    Freeze(Part, u64),
    /// The file system of a host has no room for so long.
    Full(Side, u64),
    /// Suspended for so long, or until all is mended.
    Suspend(Option<u64>),
    /// The guest shuts down, and starts again.
    Restart,
    /// The oldest point is open while newer ones come; and polluxd is killed meanwhile, or not.
    Open(bool),
    /// Test failover of the point at this part of the list (of 1000); meanwhile the replica's
    /// polluxd or the test's diskd may be killed.
    Test(u64, bool, bool),
    /// See there.
    Successor(Successor),
    /// See there.
    Circle(Circle),
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
        match rng.below(30) {
            0 | 1 => Self::KillDaemon(side, lasting),
            2 | 3 => Self::Kill(part, rng.once_in(2)),
            4 => Self::KillInStart(short / 3),
            5 => Self::KillWhileOff(if part == Part::Guest { Part::Vmd } else { part }),
            6 => Self::Cut(lasting),
            7 => Self::Flicker(1 + rng.below(400_000), 1 + rng.below(4)),
            8 => Self::FlickerAndKill(1 + rng.below(400_000)),
            9 => Self::Suspend(lasting),
            10 => Self::Restart,
            11 => Self::KillAll(part, short),
            12 => Self::Open(rng.once_in(2)),
            13 => Self::Test(rng.below(1000), rng.once_in(2), rng.once_in(2)),
            14 => Self::KillHost(side, lasting, rng.once_in(2)),
            15 => Self::FreezeDaemon(side, short),
            16 => Self::Freeze(part, short),
            17 | 18 => Self::Full(side, short),
            19 | 20 => Self::Successor(Successor::any(rng)),
            _ => Self::Circle(Circle::any(rng)),
        }
    }
}

impl Circle {
    fn any(rng: &mut Rng) -> Self {
        let way = match rng.below(5) {
            0 => Way::Planned(false),
            1 => Way::Planned(true),
            2 => Way::Forced(Loss::Host),
            3 => Way::Forced(Loss::Daemon),
            _ => Way::Forced(Loss::Network),
        };
        Self {
            way,
            point: rng.below(2000),
            others: [3, 4].map(|n| rng.once_in(n).then(|| Another::any(rng))),
            again: match rng.once_in(4) {
                true => Again::Successor,
                false => Again::Nobody,
            },
            call_off: rng.once_in(3).then(|| Trouble::any(rng)),
            complete: rng.once_in(2),
            give_back: rng.once_in(4),
            look: rng.once_in(3).then(|| Look::any(rng)),
            drop: rng.once_in(2),
            troubles: [(); 5].map(|()| Trouble::any(rng)),
        }
    }
}

impl Another {
    fn any(rng: &mut Rng) -> Self {
        Self {
            point: rng.below(1200),
            trouble: Trouble::kill(rng),
        }
    }
}

impl Look {
    fn any(rng: &mut Rng) -> Self {
        let test = rng.once_in(2);
        Self {
            open: !test || rng.once_in(2),
            test,
            kill: rng.once_in(2),
            troubles: [(); 3].map(|()| Trouble::kill(rng)),
        }
    }
}

impl Successor {
    fn any(rng: &mut Rng) -> Self {
        let stage = match rng.below(4) {
            0 => Stage::Preparing(rng.below(3000)),
            1 => Stage::Prepared,
            2 => Stage::Starting(rng.below(1500)),
            _ => Stage::Started,
        };
        Self {
            stage,
            daemon: rng.once_in(3),
            back: rng.once_in(2),
        }
    }
}

impl Trouble {
    fn any(rng: &mut Rng) -> Self {
        let soon = rng.below(600);
        match rng.below(12) {
            0 => Self::KillHere(soon),
            1 => Self::KillThere(soon),
            2 => Self::KillBoth(soon),
            3 => Self::Cut(1 + rng.below(20_000)),
            4 => Self::FreezeThere(1000 + 2 * soon),
            5 => Self::FullThere(soon),
            _ => Self::None,
        }
    }

    /// A polluxd is killed, or not.
    fn kill(rng: &mut Rng) -> Self {
        let soon = rng.below(600);
        match rng.below(6) {
            0 | 1 => Self::KillHere(soon),
            2 => Self::KillThere(soon),
            3 => Self::KillBoth(soon),
            _ => Self::None,
        }
    }
}
