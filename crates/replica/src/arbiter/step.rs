//! What may happen next, and what must never be seen.

use std::collections::HashMap;
use std::sync::Mutex;

use jiff::Timestamp;
use model::{Lineage, TermId};
use stateright::{Model, Property};
use uuid::Uuid;

use super::pair::{Asked, Bounds, Disk, Guest, Host, Kept, Lives, Pair, Say, base};
use super::rule::Rule;
use crate::run::{Evidence, Rank, must_hold, rank};
use crate::standing::{Override, Relationship, Role, Standing, Warrant};
use crate::wire::PartnerStanding;

pub(super) const VM: &str = "VM `web`";

/// What happens; the number is the host to which it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A person starts the guest; the partner is not asked.
    Start(usize),
    /// The same, asked and answered.
    StartAsked(usize),
    /// The guest ends.
    Stop(usize),
    /// It asks the partner how it stands.
    Tell(usize),
    /// A takeover begins; from an older point if a person chose that.
    Prepare {
        host: usize,
        older: bool,
    },
    AskToStandDown(usize),
    /// The primary is locked for a planned failover.
    Plan(usize),
    /// A host that took over makes its partner, which gave way, the replica. The partner becomes it; its
    /// answer comes, or not.
    Reverse {
        host: usize,
        told: bool,
    },
    /// A former primary that is the replica, and has no point yet, takes its disks back.
    GiveBack(usize),
    /// A host that took over calls that off, and is the replica again.
    CallOff(usize),
    /// A host that took over starts from another point; its partner is asked, or not.
    Another {
        host: usize,
        older: bool,
        asked: bool,
    },
    /// A person overrides.
    Force(usize),
    HostCrashes(usize),
    PolluxdCrashes(usize),
    BackUp(usize),
    /// From a backup of the VM's folder, or of everything that the host keeps.
    Restore {
        host: usize,
        whole: bool,
    },
    /// The relationship is ended; the partner hears of it, or not.
    Remove {
        host: usize,
        told: bool,
    },
    /// The primary cuts a point and offers it.
    Cut(usize),
    /// The primary will hold to a lease, or to a shorter one.
    Agree(usize),
    /// The primary holds to a lease no longer.
    Release(usize),
    /// A second passes.
    Second,
    /// A clock gains on the other one.
    Drift(usize),
    /// The guest is held still without a lease.
    Hold(usize),
    /// The replica takes over: the primary's lease is over.
    LeaseOver(usize),
    /// The message at this place comes.
    Deliver {
        at: usize,
        then: Then,
    },
}

/// What is done with a message beside heeding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    TakeOver,
    Start,
}

/// Two hosts under the rules, but for one that is off.
pub(super) struct Arbiter {
    pub(super) off: Option<Rule>,
    /// Which host's new terms have the higher ids.
    pub(super) higher: usize,
    pub(super) bounds: Bounds,
    /// For which hosts it is known that commands lead out.
    pub(super) led_out: Mutex<HashMap<u64, bool>>,
}

pub(super) fn word() -> Override {
    // Empty: histories are copied often.
    Override {
        statement: String::new(),
        by: String::new(),
        at: Timestamp::UNIX_EPOCH,
    }
}

impl Arbiter {
    pub(super) fn new(off: Option<Rule>, higher: usize, bounds: Bounds) -> Self {
        Self {
            off,
            higher,
            bounds,
            led_out: Mutex::default(),
        }
    }

    pub(super) fn on(&self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    // -- Contact ------------------------------------------------------------------------

    /// `x` learns how the partner stands, or stood before its last override.
    pub(super) fn meet(&self, pair: &mut Pair, x: usize, theirs: &PartnerStanding, before: bool) {
        let y = 1 - x;
        let ours = pair.hosts[x].standing();
        let told = theirs.stood_down.as_ref();
        let met = ours
            .meet(VM, &theirs.lineage, told)
            .expect("both began as one VM");
        let related = ours.lineage.current().id == theirs.lineage.current().id
            || ours.lineage.succeeds(&theirs.lineage)
            || theirs.lineage.succeeds(&ours.lineage);
        // The override of the partner is known here once its lineage is, as it stands now. If this
        // host outranks it, or counts on its lease, it runs until it hears of this host.
        let outranks = rank(&ours.lineage, &theirs.lineage) == Some(Rank::Ours);
        if theirs.lineage == pair.hosts[y].standing().lineage {
            let leased = pair.hosts[y].standing().fence.is_some();
            pair.unsettled[y] &= before || outranks || leased;
            pair.stale[x] = false;
        }
        let overridden = |standing: &Standing| standing.warrant == Some(Warrant::Override);
        let ended = overridden(ours) && !overridden(&met.standing) && !outranks;
        pair.unsettled[x] &= !(met.gate || ended);
        if !related && !self.on(Rule::OneRank) {
            return;
        }
        let gate = met.gate && self.on(Rule::Gate);
        let mut next = met.standing;
        if told.map(Lineage::current) == Some(next.lineage.current())
            && next.stood_down.is_none()
            && !self.on(Rule::ReturnedAsks)
        {
            next.warrant = Some(Warrant::StoodDown);
        }
        pair.keep_standing(x, next, true);
        if gate && pair.hosts[x].guest == Guest::Runs {
            pair.hosts[x].guest = Guest::Held;
        }
    }

    pub(super) fn tell(pair: &Pair, x: usize) -> PartnerStanding {
        let host = &pair.hosts[x];
        host.standing().tell(host.guest != Guest::Off)
    }

    fn question(pair: &Pair, x: usize) -> Lives {
        let standing = pair.hosts[x].standing();
        let asks = standing.role == Role::Primary && standing.stood_down.is_none();
        Lives {
            says: Self::tell(pair, x),
            overridden: pair.unsettled[x],
            question: true,
            asks: standing.fence.filter(|_| asks).map(|fence| Asked {
                at: pair.reading(x),
                fence,
                agreement: standing.agreement,
            }),
            answers: None,
        }
    }

    /// `x` heeds a question or an answer; the answer to a question.
    pub(super) fn heed(&self, pair: &mut Pair, x: usize, lives: &Lives) -> Option<Lives> {
        self.meet(pair, x, &lives.says, !lives.overridden);
        let answers = lives
            .asks
            .map(|asked| self.promise(pair, x, &lives.says.lineage, asked));
        if let Some(answer) = lives.answers {
            self.answered(pair, x, &lives.says, answer);
        }
        lives.question.then(|| Lives {
            says: Self::tell(pair, x),
            overridden: pair.unsettled[x],
            question: false,
            asks: None,
            answers,
        })
    }

    /// What an answer that was heeded is worth for a start at `x`.
    fn worth(&self, pair: &Pair, x: usize, says: PartnerStanding) -> Evidence {
        let host = &pair.hosts[x];
        let fenced = host.standing().fence.is_some();
        let leased = fenced && !must_hold(host.standing(), host.grant, pair.reading(x));
        if leased || (fenced && !self.on(Rule::LeaseToStart)) {
            Evidence::Leased(says)
        } else {
            Evidence::Says(says)
        }
    }

    /// `x` asks, and is answered at once.
    pub(super) fn ask(&self, pair: &mut Pair, x: usize) -> Evidence {
        let question = Self::question(pair, x);
        let answer = self.heed(pair, 1 - x, &question).expect("a question");
        self.heed(pair, x, &answer);
        self.worth(pair, x, answer.says)
    }

    // -- Running ------------------------------------------------------------------------

    pub(super) fn start(&self, pair: &Pair, x: usize, evidence: &Evidence) -> Option<Pair> {
        let host = &pair.hosts[x];
        if host.guest != Guest::Off {
            return None;
        }
        let mut standing = host.standing().clone();
        if !self.on(Rule::StoodDownStays) {
            standing.stood_down = None;
        }
        let unasked = *evidence == Evidence::Unasked && !self.on(Rule::AskFirst);
        let evidence = if unasked {
            &Evidence::StoodDown(standing.lineage.current().id)
        } else {
            evidence
        };
        let started = standing.start(VM, evidence).ok()?;
        let mut next = pair.clone();
        next.keep_standing(x, started, self.on(Rule::StoreBeforeStart));
        next.hosts[x].guest = Guest::Runs;
        Some(next)
    }

    /// The id of the next term that `x` names.
    pub(super) fn next_term(&self, pair: &mut Pair, x: usize) -> TermId {
        pair.terms += 1;
        let half = u128::from(x == self.higher);
        TermId(Uuid::from_u128(2 * u128::from(pair.terms) + half))
    }

    /// A takeover of `x` begins.
    pub(super) fn prepare(&self, pair: &Pair, x: usize, older: bool) -> Option<Pair> {
        let host = &pair.hosts[x];
        if host.guest != Guest::Off {
            return None;
        }
        let (standing, points) = (host.standing(), &host.memory.points);
        let mut next = pair.clone();
        let id = self.next_term(&mut next, x);
        let ready = match standing.role {
            Role::Replica => {
                let back = if older { 2 } else { 1 };
                let point = points[points.len().checked_sub(back)?].id;
                standing.prepare_as(VM, point, "", id).ok()?
            }
            Role::Primary | Role::FailedOver if older => return None,
            Role::Primary | Role::FailedOver => {
                let used = host.memory.reserved;
                standing.prepare_return_as(VM, used, "", id).ok()?
            }
        };
        next.keep_standing(x, ready, true);
        next.hosts[x].from_newest = !older;
        Some(next)
    }

    pub(super) fn take_over(&self, pair: &Pair, x: usize, evidence: &Evidence) -> Option<Pair> {
        let host = &pair.hosts[x];
        if host.guest != Guest::Off {
            return None;
        }
        let standing = host.standing();
        let attempt = standing.attempt.as_ref()?;
        let evidence = match evidence {
            Evidence::StoodDown(_) if !self.on(Rule::AnswerNamesTheTerm) => {
                &Evidence::StoodDown(attempt.current().id)
            }
            _ => evidence,
        };
        let from_newest = host.from_newest && standing.role == Role::Replica;
        let newest = host.memory.points.last().map(|point| point.id);
        let newest = newest.filter(|_| from_newest && self.on(Rule::GrowFromNewest));
        let taken = standing.take_over(VM, evidence, newest).ok()?;
        let mut next = pair.clone();
        next.keep_standing(x, taken, self.on(Rule::StoreBeforeStart));
        self.judge_takeover(pair, x, evidence, from_newest, &mut next);
        Some(next)
    }

    /// Whether the takeover passes over anything that nobody chose to pass over.
    fn judge_takeover(
        &self,
        before: &Pair,
        x: usize,
        evidence: &Evidence,
        from_newest: bool,
        next: &mut Pair,
    ) {
        let y = 1 - x;
        let lineage = next.hosts[x].standing().lineage.clone();
        let theirs = &before.hosts[y].standing().lineage;
        let chosen = matches!(evidence, Evidence::Override(_)) || before.restored != [false; 2];
        if !chosen && !before.unsettled[y] && !lineage.descends_from(theirs) {
            next.fault = Some("what the other one did is passed over without an override");
        }
        for acked in &mut next.acked {
            if !acked.passed && !lineage.contains(acked.point.id) {
                if from_newest && !chosen {
                    next.fault = Some("an acknowledged point is passed over by nobody's choice");
                }
                acked.passed = true;
            }
        }
    }

    /// Another point takes the place of the one that the failover to `x` is from, and the guest starts.
    fn another(&self, pair: &Pair, x: usize, older: bool, asked: bool) -> Option<Pair> {
        let points = &pair.hosts[x].memory.points;
        let back = if older { 2 } else { 1 };
        let point = points[points.len().checked_sub(back)?].id;
        let mut next = pair.clone();
        let evidence = match asked && pair.is_linked() {
            true => self.ask(&mut next, x),
            false => Evidence::Unreachable(String::new()),
        };
        let id = self.next_term(&mut next, x);
        let mut standing = next.hosts[x].standing().clone();
        let mut unheard = evidence.clone();
        if !self.on(Rule::AnotherByRight) {
            standing.stood_down = None;
            unheard = Evidence::StoodDown(standing.lineage.current().id);
        }
        let standing = standing.another_as(VM, point, "", &unheard, id).ok()?;
        let disk = Disk {
            standing,
            asked_back: pair.hosts[x]
                .memory
                .asked_back
                .filter(|_| !self.on(Rule::AnotherEndsReversal)),
            ..(*next.hosts[x].memory).clone()
        };
        next.keep(x, disk, true);
        // A person chose it.
        let lineage = next.hosts[x].standing().lineage.clone();
        for acked in &mut next.acked {
            acked.passed |= !lineage.contains(acked.point.id);
        }
        self.start(&next, x, &evidence)
    }

    fn stand_down(&self, pair: &Pair, x: usize, asked: &Lineage) -> Option<Pair> {
        let host = &pair.hosts[x];
        let runs = host.guest != Guest::Off && self.on(Rule::RefuseWhileRunning);
        let mut standing = host.standing().clone();
        if !self.on(Rule::BuildOn) {
            // Pretends that what is asked for builds on what is here.
            let mut terms = asked.terms().to_vec();
            terms.pop();
            standing.lineage = Lineage::try_from(terms).expect("one is left");
        }
        let mut down = standing.stand_down(VM, asked, runs).ok()?;
        down.lineage = host.standing().lineage.clone();
        if !self.on(Rule::DropAttempt) {
            down.attempt = host.standing().attempt.clone();
        }
        let mut next = pair.clone();
        next.keep_standing(x, down, self.on(Rule::StoreBeforeAnswer));
        next.send(1 - x, Say::Down(asked.current().id));
        Some(next)
    }

    /// A person overrides at `x`.
    pub(super) fn force(&self, pair: &Pair, x: usize) -> Option<Pair> {
        let host = &pair.hosts[x];
        let forced = Evidence::Override(word());
        let standing = host.standing();
        let mut next = match standing.role {
            Role::Replica => {
                let ready = self.prepare(pair, x, false)?;
                let taken = self.take_over(&ready, x, &forced)?;
                self.start(&taken, x, &forced)?
            }
            Role::Primary | Role::FailedOver if host.guest == Guest::Off => {
                let mut next = pair.clone();
                let used = host.memory.reserved;
                let id = self.next_term(&mut next, x);
                let back = standing.take_back_as(VM, used, "", &forced, id).ok()?;
                next.keep_standing(x, back, self.on(Rule::StoreBeforeStart));
                self.judge_takeover(pair, x, &forced, false, &mut next);
                next.hosts[x].guest = Guest::Runs;
                next
            }
            Role::Primary | Role::FailedOver => return None,
        };
        next.unsettled[x] = true;
        Some(next)
    }

    // -- What else happens --------------------------------------------------------------

    fn crash(pair: &mut Pair, x: usize, whole: bool) {
        let host = &mut pair.hosts[x];
        host.memory = host.durable.clone();
        host.from_newest = true;
        if whole {
            host.guest = Guest::Off;
            host.boot += 1;
            host.zero = pair.now;
            host.grant = None;
        }
    }

    /// The folder of `x` is restored; what the host keeps outside of it is not, unless the `whole` is.
    fn restore(&self, pair: &Pair, x: usize, whole: bool) -> Option<Pair> {
        let mut next = pair.clone();
        let backup = next.hosts[x].backup.take()?;
        let last = &pair.hosts[x].durable.standing;
        let noticed = !whole && backup.standing != *last && self.on(Rule::RestoredAsks);
        next.hosts[x].durable = match noticed {
            false => backup,
            true => Kept::new(Disk {
                standing: backup
                    .standing
                    .restore(Timestamp::UNIX_EPOCH, last.shared_with()),
                ..(*backup).clone()
            }),
        };
        // Whoever asked does not wait so long for the answer, and a connection to a polluxd does not outlive
        // it.
        next.sent
            .retain(|(_, say)| !matches!(**say, Say::Down(_) | Say::Lives(_)));
        Self::crash(&mut next, x, true);
        let now = next.reading(x);
        next.hosts[x].promise = crate::lease::Promise::begin(now);
        next.stale[x] = whole;
        // An override that it has again, whatever the partner learnt since.
        next.unsettled[x] |= next.hosts[x].standing().warrant == Some(Warrant::Override);
        next.restored[x] = true;
        Some(next)
    }

    pub(super) fn remove(&self, pair: &Pair, x: usize, told: bool) -> Option<Pair> {
        let y = 1 - x;
        let mut next = pair.clone();
        if told && pair.hosts[y].memory.linked {
            if self.on(Rule::MeetBeforeEnd) {
                self.ask(&mut next, x);
            }
            let ended = next.hosts[y].standing().end(VM, true, None).ok()?;
            Self::unlink(&mut next, y, ended);
        }
        next.removed = true;
        let heard = told || !pair.hosts[y].memory.linked || !self.on(Rule::FenceEndsTold);
        let ended = next.hosts[x].standing().end(VM, heard, None).ok()?;
        Self::unlink(&mut next, x, ended);
        Some(next)
    }

    /// `x` makes its partner the replica, or finds that it is.
    fn reverse(&self, pair: &Pair, x: usize, told: bool) -> Option<Pair> {
        let y = 1 - x;
        if !pair.is_linked() {
            return None;
        }
        let mut next = pair.clone();
        let before = pair.hosts[x].memory.asked_back;
        let seed = match (pair.hosts[x].standing().role, before) {
            (Role::FailedOver, before) => before,
            (Role::Primary, Some(asked)) => {
                // It may have taken its disks back since.
                self.ask(&mut next, x);
                let is_done = asked == pair.hosts[x].memory.seed;
                if is_done && next.hosts[y].standing().role == Role::Replica {
                    return None;
                }
                before.filter(|_| !is_done)
            }
            _ => return None,
        };
        let seeds = pair.hosts.iter().map(|host| &host.memory);
        let used = seeds.map(|disk| disk.seed.max(disk.asked_back.unwrap_or(0)));
        let seed = seed.unwrap_or(1 + used.max().unwrap_or(0));
        let ours = next.hosts[x].standing();
        let (lineage, back) = (ours.lineage.clone(), ours.reverse(VM).ok()?);
        let says = Self::tell(&next, x);
        self.meet(&mut next, y, &says, !pair.unsettled[x]);
        let host = &next.hosts[y];
        let theirs = host.standing();
        let is_that = theirs.role == Role::Replica && host.memory.branch.is_some();
        if !is_that {
            let runs = host.guest != Guest::Off && self.on(Rule::TurnWhileOff);
            let relationship = match before {
                Some(_) if self.on(Rule::AgreementStays) => Relationship::Same,
                _ => Relationship::New,
            };
            let disk = Disk {
                standing: theirs.turn(VM, &lineage, runs, relationship).ok()?,
                points: Vec::new(),
                history: lineage.clone(),
                branch: Some(theirs.lineage.clone()),
                asked_back: None,
                seed,
                ..(*host.memory).clone()
            };
            next.keep(y, disk, true);
            // Its earlier points are gone with the journal that it had.
            next.acked.retain(|acked| acked.by != y);
        } else if before.is_none() || host.memory.seed != seed {
            // It is that in another relationship, or for an earlier request.
            return None;
        }
        let mut disk = Disk {
            asked_back: Some(seed),
            ..(*next.hosts[x].memory).clone()
        };
        if told {
            disk.standing = back;
            disk.acknowledged = base(seed);
            disk.seed = seed;
        }
        next.keep(x, disk, true);
        if before.is_none() {
            // In a new relationship nothing more is taken in of what was sent in the one before.
            let is_point = |say: &Say| matches!(say, Say::Offer { .. } | Say::Committed(_));
            next.sent.retain(|(_, say)| !is_point(say));
        }
        Some(next)
    }

    /// `x`, which its partner made the replica, takes its disks back.
    pub(super) fn give_back(&self, pair: &Pair, x: usize) -> Option<Pair> {
        let host = &pair.hosts[x];
        let branch = host.memory.branch.as_ref()?;
        if host.guest != Guest::Off || !host.memory.points.is_empty() {
            return None;
        }
        let linked = host.memory.linked && self.on(Rule::GivenBackMeets);
        let disk = Disk {
            standing: host.standing().give_back(VM, branch, linked).ok()?,
            linked,
            branch: None,
            ..(*host.memory).clone()
        };
        let mut next = pair.clone();
        next.keep(x, disk, true);
        Some(next)
    }

    /// `x`, which took over, calls that off.
    pub(super) fn call_off(&self, pair: &Pair, x: usize) -> Option<Pair> {
        let host = &pair.hosts[x];
        // While it is to be replicated back polluxd refuses.
        if host.memory.asked_back.is_some() {
            return None;
        }
        let newest = host.memory.points.last()?.id;
        let runs = host.guest != Guest::Off && self.on(Rule::CallOffWhileOff);
        let mut standing = host.standing().call_off(VM, newest, runs).ok()?;
        if !self.on(Rule::CallOffLeavesTerm) {
            standing.lineage = host.standing().lineage.clone();
        }
        let mut next = pair.clone();
        next.keep_standing(x, standing, true);
        Some(next)
    }

    /// The primary was failed over from, as planned, and has just become the replica.
    fn turned(&self) -> Pair {
        let bounds = Bounds {
            attempts: 1,
            messages: 2,
            reversals: 1,
            ..self.bounds
        };
        let mut pair = Pair::begin(bounds);
        let (at, host) = (0, 1);
        let older = false;
        let asked = [
            Step::Stop(0),
            Step::Prepare { host, older },
            Step::AskToStandDown(1),
        ];
        let heard = |then| Step::Deliver { at, then };
        let told = [
            heard(Then::TakeOver),
            Step::Start(1),
            Step::Reverse { host, told: true },
        ];
        for step in asked.into_iter().chain([heard(Then::Nothing)]) {
            pair = self.apply(&pair, step).expect("it stands down");
        }
        pair.sent.retain(|(to, _)| *to == host);
        for step in told {
            pair = self.apply(&pair, step).expect("it gave way");
        }
        pair.sent.clear();
        pair.left = self.bounds;
        if pair.left.seconds > 0 && !pair.left.unfenced {
            self.agree(&mut pair, host).expect("it is the primary");
            self.ask(&mut pair, host);
        }
        pair
    }

    fn unlink(pair: &mut Pair, x: usize, standing: Standing) {
        let disk = Disk {
            standing,
            linked: false,
            ..(*pair.hosts[x].memory).clone()
        };
        pair.keep(x, disk, true);
    }

    fn deliver(&self, pair: &Pair, at: usize, then: Then) -> Option<Pair> {
        let (x, say) = &pair.sent[at];
        let x = *x;
        if !pair.hosts[x].memory.linked {
            return None;
        }
        match (&**say, then) {
            (Say::Lives(lives), then) => {
                let mut next = pair.clone();
                let answer = self.heed(&mut next, x, lives);
                if let Some(answer) = answer {
                    next.send(1 - x, Say::Lives(answer));
                }
                match then {
                    Then::Nothing => Some(next),
                    Then::TakeOver => self.take_over(&next, x, &Evidence::Says(lives.says.clone())),
                    // Late: what it says may not be so any more.
                    Then::Start => {
                        let evidence = self.worth(&next, x, lives.says.clone());
                        self.start(&next, x, &evidence)
                    }
                }
            }
            (Say::Ask(asked), Then::Nothing) => self.stand_down(pair, x, asked),
            (Say::Down(term), Then::TakeOver) => {
                self.take_over(pair, x, &Evidence::StoodDown(*term))
            }
            (
                Say::Offer {
                    lineage,
                    sequence,
                    since,
                    root,
                },
                Then::Nothing,
            ) => self.offered(pair, x, lineage, *sequence, *since, *root),
            (Say::Committed(point), Then::Nothing) => Self::committed(pair, x, *point),
            _ => None,
        }
    }

    fn apply(&self, pair: &Pair, step: Step) -> Option<Pair> {
        let mut next = pair.clone();
        match step {
            Step::Start(x) => return self.start(pair, x, &Evidence::Unasked),
            Step::StartAsked(x) if !pair.is_linked() => {
                // Nobody answers, or the partner has no such relationship.
                return self.start(&next, x, &Evidence::Unreachable(String::new()));
            }
            Step::StartAsked(x) => {
                let evidence = self.ask(&mut next, x);
                return self.start(&next, x, &evidence);
            }
            Step::Stop(x) => next.hosts[x].guest = Guest::Off,
            Step::Tell(x) => next.send(1 - x, Say::Lives(Self::question(pair, x))),
            Step::Prepare { host, older } => {
                next = self.prepare(pair, host, older)?;
                next.left.attempts -= 1;
            }
            Step::AskToStandDown(x) => {
                let attempt = pair.hosts[x].standing().attempt.clone()?;
                next.send(1 - x, Say::Ask(attempt));
            }
            Step::Plan(x) => {
                let host = &pair.hosts[x];
                let runs = host.guest != Guest::Off;
                let ready = host.standing().prepare_failover(VM, runs).ok()?;
                next.keep_standing(x, ready, true);
                next.left.plans -= 1;
            }
            Step::Reverse { host, told } => {
                next = self.reverse(pair, host, told)?;
                next.left.reversals -= 1;
            }
            Step::GiveBack(x) => {
                next = self.give_back(pair, x)?;
                next.left.cancels -= 1;
            }
            Step::CallOff(x) => {
                next = self.call_off(pair, x)?;
                next.left.calls_off -= 1;
            }
            Step::Another { host, older, asked } => {
                next = self.another(pair, host, older, asked)?;
                next.left.others -= 1;
            }
            Step::Force(x) => {
                next = self.force(pair, x)?;
                next.left.forces -= 1;
            }
            Step::HostCrashes(x) | Step::PolluxdCrashes(x) => {
                Self::crash(&mut next, x, step == Step::HostCrashes(x));
                self.promise_anew(&mut next, x);
                next.left.crashes -= 1;
            }
            Step::BackUp(x) => {
                next.hosts[x].backup = Some(pair.hosts[x].durable.clone());
                next.left.backups -= 1;
            }
            Step::Restore { host: x, whole } => {
                next = self.restore(pair, x, whole)?;
                next.left.restores -= 1;
            }
            Step::Remove { host, told } => {
                next = self.remove(pair, host, told)?;
                next.left.removals -= 1;
            }
            Step::Cut(x) => {
                next = self.cut(pair, x)?;
                next.left.points -= 1;
            }
            Step::Agree(x) => {
                self.agree(&mut next, x)?;
                next.left.longer = false;
            }
            Step::Release(x) => {
                self.release(&mut next, x)?;
                next.left.releases -= 1;
            }
            Step::Second => next = self.second(pair)?,
            Step::Drift(x) => {
                next.left.drifts -= 1;
                Self::drift(&mut next, x);
            }
            Step::Hold(x) => next.hosts[x].guest = Guest::Held,
            Step::LeaseOver(x) => {
                let evidence = self.over(pair, x)?;
                return self.take_over(pair, x, &evidence);
            }
            Step::Deliver { at, then } => return self.deliver(pair, at, then),
        }
        Some(next)
    }

    fn judge(&self, before: &Pair, step: Step, after: &mut Pair) {
        if after.fault.is_some() || !after.both_run() {
            return;
        }
        let unwarranted = matches!(step, Step::Start(x) if !Self::is_warranted(before, x));
        let is_person = before.stale != [false; 2] || before.is_parted();
        if !is_person && (unwarranted || matches!(step, Step::StartAsked(_))) {
            after.fault = Some("one starts without evidence while the other runs");
        } else if after.unsettled == [false; 2] && after.stale == [false; 2] {
            after.fault = Some("both run without an override");
        }
    }

    /// Whether `x` may start without asking. A primary may not because its partner stood down: that may have
    /// become the replica again, and taken over.
    fn is_warranted(pair: &Pair, x: usize) -> bool {
        let ours = pair.hosts[x].standing();
        match ours.role {
            Role::Primary => ours.warrant == Some(Warrant::Override),
            Role::FailedOver | Role::Replica => ours.warrant.is_some(),
        }
    }

    /// Whether two that run do so only until they meet.
    fn meeting_ends_it(&self, pair: &Pair) -> bool {
        if !pair.both_run() || pair.is_parted() {
            return true;
        }
        if !pair.is_linked() {
            return false;
        }
        let mut met = pair.clone();
        for x in [0, 1, 0] {
            let told = Self::tell(&met, 1 - x);
            self.meet(&mut met, x, &told, false);
        }
        !met.both_run()
    }

    /// Whether every acknowledged point is at the replica, unless something was restored.
    fn acknowledged_is_there(pair: &Pair) -> bool {
        pair.acked.iter().all(|acked| {
            let there = &pair.hosts[acked.by].durable.points;
            let mut same = there.iter().filter(|point| point.id == acked.point.id);
            pair.restored[acked.by] || same.any(|point| point.root == acked.point.root)
        })
    }

    fn local(pair: &Pair, x: usize, steps: &mut Vec<Step>) {
        let (host, left) = (&pair.hosts[x], &pair.left);
        let off = host.guest == Guest::Off;
        if off {
            steps.extend([Step::Start(x), Step::StartAsked(x)]);
        } else {
            steps.push(Step::Stop(x));
        }
        let standing = host.standing();
        if !left.quiet || (standing.fence.is_some() && standing.role == Role::Primary) {
            steps.push(Step::Tell(x));
        }
        if (left.unfenced && host.standing().fence.is_none()) || left.longer {
            steps.push(Step::Agree(x));
        }
        if left.releases > 0 && host.standing().fence.is_some() {
            steps.push(Step::Release(x));
        }
        if host.standing().attempt.is_some() {
            steps.push(Step::AskToStandDown(x));
            if host.standing().fence.is_some() {
                steps.push(Step::LeaseOver(x));
            }
        }
        if left.attempts > 0 && off {
            for older in [false, true] {
                steps.push(Step::Prepare { host: x, older });
            }
        }
        if left.plans > 0 && off {
            steps.push(Step::Plan(x));
        }
        if left.reversals > 0 {
            for told in [false, true] {
                steps.push(Step::Reverse { host: x, told });
            }
        }
        if left.cancels > 0 && off {
            steps.push(Step::GiveBack(x));
        }
        if left.calls_off > 0 {
            steps.push(Step::CallOff(x));
        }
        if left.others > 0 && off {
            for (older, asked) in [(false, false), (false, true), (true, false), (true, true)] {
                let host = x;
                steps.push(Step::Another { host, older, asked });
            }
        }
        if left.forces > 0 && off {
            steps.push(Step::Force(x));
        }
        if left.crashes > 0 {
            steps.extend([Step::HostCrashes(x), Step::PolluxdCrashes(x)]);
        }
        if left.backups > 0 && host.backup.is_none() {
            steps.push(Step::BackUp(x));
        }
        if left.restores > 0 && host.backup.is_some() {
            for whole in [false, true] {
                steps.push(Step::Restore { host: x, whole });
            }
        }
        if left.removals > 0 && host.memory.linked {
            for told in [false, true] {
                steps.push(Step::Remove { host: x, told });
            }
        }
        if left.points > 0 {
            steps.push(Step::Cut(x));
        }
        if left.drifts > 0 {
            steps.push(Step::Drift(x));
        }
        if Self::is_over_due(pair, x) {
            steps.push(Step::Hold(x));
        }
    }
}

impl Model for Arbiter {
    type State = Pair;
    type Action = Step;

    fn init_states(&self) -> Vec<Pair> {
        vec![match self.bounds.turned {
            true => self.turned(),
            false => Pair::begin(self.bounds),
        }]
    }

    fn actions(&self, pair: &Pair, steps: &mut Vec<Step>) {
        if pair.fault.is_some() {
            return;
        }
        for x in 0..2 {
            Self::local(pair, x, steps);
        }
        if pair.left.seconds > 0 {
            steps.push(Step::Second);
        }
        for (at, (x, say)) in pair.sent.iter().enumerate() {
            let off = pair.hosts[*x].guest == Guest::Off;
            let thens: &[Then] = match &**say {
                Say::Lives(_) if off => &[Then::Nothing, Then::TakeOver, Then::Start],
                Say::Down(_) => &[Then::TakeOver],
                _ => &[Then::Nothing],
            };
            steps.extend(thens.iter().map(|then| Step::Deliver { at, then: *then }));
        }
    }

    fn next_state(&self, pair: &Pair, step: Step) -> Option<Pair> {
        let mut next = self.apply(pair, step)?;
        self.judge(pair, step, &mut next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no step breaks a promise", |_, pair: &Pair| {
                pair.fault.is_none()
            }),
            Property::always("where it is received no guest is", |_, pair: &Pair| {
                let is_replica = |host: &Host| host.standing().role == Role::Replica;
                let mut hosts = pair.hosts.iter();
                hosts.all(|host| host.guest == Guest::Off || !is_replica(host))
            }),
            Property::always("two run until they meet only", |arbiter: &Self, pair| {
                arbiter.meeting_ends_it(pair)
            }),
            Property::always("no acknowledged point is lost", |_, pair| {
                Self::acknowledged_is_there(pair)
            }),
            Property::always("commands lead out", |arbiter: &Self, pair| {
                arbiter.off.is_some() || arbiter.commands_lead_out(pair)
            }),
        ]
    }
}
