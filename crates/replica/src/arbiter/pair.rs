//! Two hosts, and everything that was ever sent between them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use model::{BootId, Lineage, PointId, StartUnasked, TermId};
use uuid::Uuid;

use crate::lease::{BootTime, Fence, Grant, Promise};
use crate::standing::Standing;
use crate::wire::PartnerStanding;

/// A value that is shared, and hashed and compared once: histories are copied often.
#[derive(Debug, Clone)]
pub(super) struct Kept<T>(Arc<T>, u64);

impl<T: Hash> Kept<T> {
    pub(super) fn new(value: T) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self(Arc::new(value), hasher.finish())
    }

    pub(super) fn mark(&self) -> u64 {
        self.1
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> PartialEq for Kept<T> {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}

impl<T> Eq for Kept<T> {}

impl<T> Hash for Kept<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.1.hash(state);
    }
}

/// A point, what it builds on, and what stands for its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    pub(super) id: PointId,
    pub(super) since: PointId,
    pub(super) root: u8,
}

/// What the first point builds on that goes to a former primary: the disks that this had, when it was made
/// the replica by this seed.
pub(super) const fn base(seed: u8) -> PointId {
    PointId {
        term: TermId(Uuid::max()),
        sequence: seed as u64,
    }
}

/// The seed, if it is such disks that a point builds on.
pub(super) fn seed_of(since: PointId) -> Option<u64> {
    (since.term == base(0).term).then_some(since.sequence)
}

/// What a host has on disk, and what its polluxd believes to be there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Disk {
    pub(super) standing: Standing,
    /// Whether it has the relationship.
    pub(super) linked: bool,
    /// The journal, the oldest first, and the lineage of the newest.
    pub(super) points: Vec<Stored>,
    pub(super) history: Lineage,
    /// The lineage of the disks that its twin began with: it was the primary before.
    pub(super) branch: Option<Lineage>,
    /// The seed by which its partner was asked to become the replica, if it was: who asks again goes on with
    /// that.
    pub(super) asked_back: Option<u8>,
    /// The one by which it sends, or receives, what builds on disks that were there before.
    pub(super) seed: u8,
    /// The sender's progress.
    pub(super) acknowledged: PointId,
    pub(super) reserved: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Guest {
    Off,
    Runs,
    /// By its host: succeeded, or without a lease.
    Held,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub(super) durable: Kept<Disk>,
    pub(super) memory: Kept<Disk>,
    pub(super) backup: Option<Kept<Disk>>,
    pub(super) guest: Guest,
    /// Whether the takeover that was prepared is from the newest point.
    pub(super) from_newest: bool,
    pub(super) boot: u8,
    /// What the time was when it booted, in milliseconds, less what its clock is ahead.
    pub(super) zero: i32,
    pub(super) grant: Option<Grant>,
    pub(super) promise: Promise,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lives {
    pub(super) says: PartnerStanding,
    /// It is under an override that the partner has not learnt of.
    pub(super) overridden: bool,
    /// Wants an answer.
    pub(super) question: bool,
    /// Asks for a lease.
    pub(super) asks: Option<Asked>,
    /// What was asked, and whether it is granted; the number of the agreement that is known there.
    pub(super) answers: Option<(Asked, bool, u64)>,
}

/// A question for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    /// By the clock of who asks.
    pub(super) at: BootTime,
    pub(super) fence: Fence,
    pub(super) agreement: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Say {
    Lives(Lives),
    /// Stand down for this lineage.
    Ask(Lineage),
    /// Stood down for this term.
    Down(TermId),
    /// A segment, whole.
    Offer {
        lineage: Lineage,
        sequence: u64,
        since: PointId,
        root: u8,
    },
    /// This point is there.
    Committed(PointId),
}

/// How much may happen in one history; bounds the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Bounds {
    pub(super) forces: u8,
    pub(super) attempts: u8,
    pub(super) crashes: u8,
    /// Different messages that are sent.
    pub(super) messages: u8,
    /// Points that are cut.
    pub(super) points: u8,
    /// Backups, each restored once at most.
    pub(super) backups: u8,
    pub(super) restores: u8,
    pub(super) removals: u8,
    /// A person locks the primary for a planned failover.
    pub(super) plans: u8,
    /// A host that took over makes its partner the replica.
    pub(super) reversals: u8,
    /// A former primary that is the replica takes its disks back.
    pub(super) cancels: u8,
    /// A host that took over calls that off.
    pub(super) calls_off: u8,
    /// It begins when the primary was failed over from, as planned, and has just become the replica.
    pub(super) turned: bool,
    /// A host that took over starts from another point.
    pub(super) others: u8,
    /// Seconds that pass; none: there is no lease.
    pub(super) seconds: u8,
    /// How often a clock gains on the other one.
    pub(super) drifts: u8,
    /// The lease is agreed on later.
    pub(super) unfenced: bool,
    /// It was agreed on for longer, and is made shorter.
    pub(super) longer: bool,
    /// Leases that are ended while the relationship stays.
    pub(super) releases: u8,
    /// The primary starts when its partner gives no answer.
    pub(super) unasked: bool,
    /// Nobody asks the partner how it stands unless something is to be done.
    pub(super) quiet: bool,
}

/// An acknowledged point; passed over once a person chose a history without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Acked {
    pub(super) point: Stored,
    /// By which host.
    pub(super) by: usize,
    pub(super) passed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) hosts: [Host; 2],
    /// Everything that was ever sent: to whom, and what. In an order that depends on nothing else.
    pub(super) sent: Vec<(usize, Kept<Say>)>,
    /// In milliseconds.
    pub(super) now: i32,
    pub(super) left: Bounds,
    /// Terms that were named.
    pub(super) terms: u8,
    /// Points that were cut.
    pub(super) cuts: u8,
    pub(super) acked: Vec<Acked>,
    /// Overrides that the partner has not learnt of.
    pub(super) unsettled: [bool; 2],
    /// Restored, and has not met the partner since.
    pub(super) stale: [bool; 2],
    /// Was restored: what it had acknowledged may be gone.
    pub(super) restored: [bool; 2],
    /// A person ended the relationship.
    pub(super) removed: bool,
    /// A promise that the last step broke.
    pub(super) fault: Option<&'static str>,
}

/// The shortest lease.
pub(super) fn fence() -> Fence {
    Fence::new(Fence::SHORTEST).expect("a length")
}

/// A longer one.
fn longer() -> Fence {
    Fence::new(Fence::SHORTEST + 1).expect("a length")
}

pub(super) fn first_lineage() -> Lineage {
    let mut terms: Vec<model::Term> = Lineage::begin("").into();
    terms[0].id = TermId(Uuid::from_u128(0));
    Lineage::try_from(terms).expect("one term")
}

impl Host {
    fn new(disk: Disk, guest: Guest) -> Self {
        let disk = Kept::new(disk);
        let begun = BootTime {
            boot: BootId(Uuid::from_u128(0)),
            at: Duration::ZERO,
        };
        Self {
            durable: disk.clone(),
            memory: disk,
            backup: None,
            guest,
            from_newest: true,
            boot: 0,
            zero: 0,
            grant: None,
            promise: Promise::begin(begun),
        }
    }

    /// Its boot-time clock.
    pub(super) fn reading(&self, now: i32) -> BootTime {
        let at = u64::try_from(now - self.zero).unwrap_or(0);
        BootTime {
            boot: BootId(Uuid::from_u128(self.boot.into())),
            at: Duration::from_millis(at),
        }
    }

    pub(super) fn standing(&self) -> &Standing {
        &self.memory.standing
    }
}

impl Pair {
    /// A primary that runs and its replica, which has the first point.
    pub(super) fn begin(bounds: Bounds) -> Self {
        let lineage = first_lineage();
        let first = PointId {
            term: lineage.current().id,
            sequence: 1,
        };
        let stored = Stored {
            id: first,
            since: first,
            root: 1,
        };
        let mut primary = Standing::primary(lineage.clone());
        primary.partner = Some(String::new());
        let mut replica = Standing::replica("", lineage.clone());
        let leased = bounds.seconds > 0 && !bounds.unfenced;
        let agreed = if bounds.longer { longer() } else { fence() };
        if leased {
            primary.fence = Some(agreed);
            replica.fence = Some(agreed);
        }
        if bounds.unasked {
            primary.start_unasked = StartUnasked::Allow;
        }
        let disk = |standing, points| Disk {
            standing,
            linked: true,
            points,
            history: lineage.clone(),
            branch: None,
            asked_back: None,
            seed: 0,
            acknowledged: first,
            reserved: 1,
        };
        let mut hosts = [
            Host::new(disk(primary, vec![]), Guest::Runs),
            Host::new(disk(replica, vec![stored]), Guest::Off),
        ];
        if leased {
            let asked = hosts[0].reading(0);
            hosts[0].grant = Some(Grant::answered(1, asked, agreed));
        }
        Self {
            hosts,
            sent: Vec::new(),
            now: 0,
            left: bounds,
            terms: 0,
            cuts: 0,
            acked: vec![Acked {
                point: stored,
                by: 1,
                passed: false,
            }],
            unsettled: [false; 2],
            stale: [false; 2],
            restored: [false; 2],
            removed: false,
            fault: None,
        }
    }

    pub(super) fn send(&mut self, to: usize, say: Say) {
        let say = Kept::new(say);
        let at = self
            .sent
            .binary_search_by_key(&(to, say.mark()), |(to, say)| (*to, say.mark()));
        if let Err(at) = at {
            if self.left.messages > 0 {
                self.left.messages -= 1;
                self.sent.insert(at, (to, say));
            }
        }
    }

    pub(super) fn reading(&self, x: usize) -> BootTime {
        self.hosts[x].reading(self.now)
    }

    pub(super) fn both_run(&self) -> bool {
        self.hosts.iter().all(|host| host.guest == Guest::Runs)
    }

    pub(super) fn is_linked(&self) -> bool {
        self.hosts.iter().all(|host| host.memory.linked)
    }

    /// Whether the two meet no more because a person wanted it so.
    pub(super) fn is_parted(&self) -> bool {
        self.removed && !self.is_linked()
    }

    /// Keeps a record, durably unless the rule that asks for that is off.
    pub(super) fn keep(&mut self, x: usize, disk: Disk, durable: bool) {
        let disk = Kept::new(disk);
        if durable {
            self.hosts[x].durable = disk.clone();
        }
        self.hosts[x].memory = disk;
    }

    pub(super) fn keep_standing(&mut self, x: usize, standing: Standing, durable: bool) {
        // As polluxd does: what it believes to be there already is not stored.
        if self.hosts[x].memory.standing != standing {
            let disk = Disk {
                standing,
                ..(*self.hosts[x].memory).clone()
            };
            self.keep(x, disk, durable);
        }
    }
}
