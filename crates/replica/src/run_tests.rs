//! A search through every state of two hosts, in which any message may be lost, late, repeated
//! and out of order: a message that was sent can be delivered at any later time, any number of
//! times, or never. Hosts and their polluxd crash, guests start and stop, and a person overrides.

use std::collections::{HashSet, VecDeque};

use jiff::Timestamp;
use model::PointId;
use uuid::Uuid;

use super::*;

const VM: &str = "VM `web`";
const NAMES: [&str; 2] = ["host-a", "host-b"];

/// How much may happen in one history; bounds the search.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    forces: u8,
    attempts: u8,
    crashes: u8,
    /// Different messages that are sent.
    messages: usize,
}

const fn bounds(forces: u8, attempts: u8, crashes: u8, messages: usize) -> Bounds {
    Bounds {
        forces,
        attempts,
        crashes,
        messages,
    }
}

/// Each is searched whole.
const SEARCHES: [Bounds; 4] = [
    bounds(0, 2, 1, 6),
    bounds(1, 2, 0, 3),
    bounds(1, 1, 1, 4),
    bounds(2, 1, 1, 2),
];

/// A rule that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// A guest that runs is not given up.
    RefuseWhileRunning,
    /// A stand-down counts for the term that it names only.
    AnswerNamesTheTerm,
    /// Who stands down drops its own attempt.
    DropAttempt,
    /// Whoever was succeeded stops at contact.
    Gate,
    /// Who stood down does not start.
    StoodDownStays,
    /// A stand-down is durable before it is answered.
    StoreBeforeAnswer,
    /// A term is durable before it runs.
    StoreBeforeStart,
    /// A host stands down only for a lineage that builds on its own.
    BuildOn,
    /// A partner that was not asked is no evidence.
    AskFirst,
}

const RULES: [Rule; 9] = [
    Rule::RefuseWhileRunning,
    Rule::AnswerNamesTheTerm,
    Rule::DropAttempt,
    Rule::Gate,
    Rule::StoodDownStays,
    Rule::StoreBeforeAnswer,
    Rule::StoreBeforeStart,
    Rule::BuildOn,
    Rule::AskFirst,
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Say {
    /// A lineage in use, as a question or an answer.
    Lives(PartnerStanding),
    /// Stand down for this lineage.
    Ask(Lineage),
    /// Stood down for this term.
    Down(TermId),
}

#[derive(Debug, Clone)]
struct Host {
    /// What is on disk, and what polluxd believes; the same, if the rules hold.
    durable: Standing,
    memory: Standing,
    running: bool,
}

#[derive(Debug, Clone)]
struct Pair {
    hosts: [Host; 2],
    /// Everything that was ever sent: to whom, and what.
    sent: Vec<(usize, Say)>,
    /// Overrides that the partner has not learnt of.
    unsettled: [bool; 2],
    forces: u8,
    attempts: u8,
    crashes: u8,
    room: usize,
}

/// Who did what.
type Step = (usize, &'static str);

struct Search {
    off: Option<Rule>,
    /// Which host's new terms have the higher ids.
    higher: usize,
    bounds: Bounds,
}

fn word() -> Override {
    // Empty: histories are copied often.
    Override {
        statement: String::new(),
        by: String::new(),
        at: Timestamp::UNIX_EPOCH,
    }
}

impl Pair {
    fn begin(bounds: Bounds) -> Self {
        let mut lineage: Vec<model::Term> = Lineage::begin("").into();
        lineage[0].id = TermId(Uuid::from_u128(0));
        let lineage = Lineage::try_from(lineage).expect("one term");
        let mut primary = Standing::primary(lineage.clone());
        primary.partner = Some(String::new());
        let host = |standing: Standing, running| Host {
            durable: standing.clone(),
            memory: standing,
            running,
        };
        Self {
            hosts: [
                host(primary, true),
                host(Standing::replica("", lineage), false),
            ],
            sent: Vec::new(),
            unsettled: [false; 2],
            forces: bounds.forces,
            attempts: bounds.attempts,
            crashes: bounds.crashes,
            room: bounds.messages,
        }
    }

    fn send(&mut self, to: usize, say: Say) {
        if self.sent.len() < self.room && !self.sent.contains(&(to, say.clone())) {
            self.sent.push((to, say));
        }
    }

    /// A short form that is the same for the same state, whatever the order of `sent`.
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(128);
        for host in &self.hosts {
            put_standing(&mut key, &host.durable);
            if host.memory == host.durable {
                key.push(254);
            } else {
                put_standing(&mut key, &host.memory);
            }
            key.push(host.running.into());
        }
        let mut sent: Vec<Vec<u8>> = self.sent.iter().map(put_sent).collect();
        sent.sort_unstable();
        key.extend(sent.into_iter().flatten());
        key.extend(self.unsettled.map(u8::from));
        key.extend([self.forces, self.attempts, self.crashes]);
        key
    }
}

fn put_sent((to, say): &(usize, Say)) -> Vec<u8> {
    let mut key = vec![u8::try_from(*to).expect("0 or 1")];
    match say {
        Say::Lives(standing) => {
            key.push(0);
            key.extend([standing.role as u8, standing.runs.into()]);
            put_lineage(&mut key, Some(&standing.lineage));
            put_lineage(&mut key, standing.stood_down.as_ref());
        }
        Say::Ask(lineage) => {
            key.push(1);
            put_lineage(&mut key, Some(lineage));
        }
        Say::Down(term) => key.extend([2, term.0.as_bytes()[15]]),
    }
    key
}

fn put_lineage(key: &mut Vec<u8>, lineage: Option<&Lineage>) {
    let terms = lineage.map(Lineage::terms).unwrap_or_default();
    for term in terms {
        key.extend([term.id.0.as_bytes()[15], term.number.to_le_bytes()[0]]);
    }
    key.push(255);
}

fn put_standing(key: &mut Vec<u8>, standing: &Standing) {
    key.push(standing.role as u8);
    key.push(standing.warrant.map_or(9, |warrant| warrant as u8));
    key.push(u8::try_from(standing.overrides.len()).expect("few"));
    put_lineage(key, Some(&standing.lineage));
    put_lineage(key, standing.stood_down.as_ref());
    put_lineage(key, standing.attempt.as_ref());
}

impl Search {
    fn on(&self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    /// Stores the standing of `x`, if `rule` asks for that.
    fn keep(&self, pair: &mut Pair, x: usize, standing: Standing, rule: Option<Rule>) {
        if rule.is_none_or(|rule| self.on(rule)) {
            pair.hosts[x].durable = standing.clone();
        }
        pair.hosts[x].memory = standing;
    }

    /// `x` learns the partner's lineage.
    fn meet(&self, pair: &mut Pair, x: usize, theirs: &PartnerStanding) {
        let y = 1 - x;
        let host = &pair.hosts[x];
        let met = host
            .memory
            .meet(VM, &theirs.lineage, theirs.stood_down.as_ref())
            .expect("one VM");
        // The override of the partner is known here once its lineage is, as it stands now.
        if theirs.lineage == pair.hosts[y].memory.lineage {
            pair.unsettled[y] = false;
        }
        let gate = met.gate && self.on(Rule::Gate);
        self.keep(pair, x, met.standing, None);
        if gate {
            pair.hosts[x].running = false;
        }
    }

    fn tell(pair: &Pair, x: usize) -> PartnerStanding {
        pair.hosts[x].memory.tell(pair.hosts[x].running)
    }

    fn prepare(&self, pair: &Pair, x: usize) -> Option<Standing> {
        let memory = &pair.hosts[x].memory;
        let terms = memory.lineage.terms();
        let point = PointId {
            term: memory.lineage.current().id,
            sequence: 10 * terms.len() as u64,
        };
        let used =
            2 * u128::from(self.bounds.attempts + self.bounds.forces - pair.attempts - pair.forces);
        let half = u128::from(x == self.higher);
        let id = TermId(Uuid::from_u128(2 + used + half));
        memory.prepare_as(VM, point, "", id).ok()
    }

    fn start(&self, pair: &Pair, x: usize, evidence: &Evidence) -> Option<Pair> {
        let mut standing = pair.hosts[x].memory.clone();
        if pair.hosts[x].running {
            return None;
        }
        if !self.on(Rule::StoodDownStays) {
            standing.stood_down = None;
        }
        let evidence = if !self.on(Rule::AskFirst) && *evidence == Evidence::Unasked {
            &Evidence::StoodDown(standing.lineage.current().id)
        } else {
            evidence
        };
        let started = standing.start(VM, evidence).ok()?;
        let mut next = pair.clone();
        self.keep(&mut next, x, started, Some(Rule::StoreBeforeStart));
        next.hosts[x].running = true;
        Some(next)
    }

    fn take_over(&self, pair: &Pair, x: usize, evidence: &Evidence) -> Option<Pair> {
        let memory = &pair.hosts[x].memory;
        if pair.hosts[x].running {
            return None;
        }
        let evidence = match (evidence, &memory.attempt) {
            (Evidence::StoodDown(_), Some(attempt)) if !self.on(Rule::AnswerNamesTheTerm) => {
                &Evidence::StoodDown(attempt.current().id)
            }
            _ => evidence,
        };
        let taken = memory.take_over(VM, evidence, None).ok()?;
        let mut next = pair.clone();
        self.keep(&mut next, x, taken, Some(Rule::StoreBeforeStart));
        Some(next)
    }

    fn stand_down(&self, pair: &Pair, x: usize, asked: &Lineage) -> Option<Pair> {
        let host = &pair.hosts[x];
        let runs = host.running && self.on(Rule::RefuseWhileRunning);
        let mut standing = host.memory.clone();
        if !self.on(Rule::BuildOn) {
            // Pretends that what is asked for builds on what is here.
            let mut terms = asked.terms().to_vec();
            terms.pop();
            standing.lineage = Lineage::try_from(terms).expect("one is left");
        }
        let mut down = standing.stand_down(VM, asked, runs).ok()?;
        down.lineage = host.memory.lineage.clone();
        if !self.on(Rule::DropAttempt) {
            down.attempt = host.memory.attempt.clone();
        }
        let mut next = pair.clone();
        self.keep(&mut next, x, down, Some(Rule::StoreBeforeAnswer));
        next.send(1 - x, Say::Down(asked.current().id));
        Some(next)
    }

    /// Everything that may happen next.
    fn next(&self, pair: &Pair) -> Vec<(Step, Pair)> {
        let mut all = Vec::new();
        for x in 0..2 {
            self.local(pair, x, &mut all);
        }
        for (x, say) in &pair.sent {
            self.deliver(pair, *x, say, &mut all);
        }
        all
    }

    fn local(&self, pair: &Pair, x: usize, all: &mut Vec<(Step, Pair)>) {
        let y = 1 - x;
        let mut add = |what: &'static str, next: Option<Pair>| {
            all.extend(next.map(|next| ((x, what), next)));
        };
        let host = &pair.hosts[x];
        add("start", self.start(pair, x, &Evidence::Unasked));
        let mut asked = pair.clone();
        let question = Self::tell(pair, x);
        self.meet(&mut asked, y, &question);
        let answer = Self::tell(&asked, y);
        self.meet(&mut asked, x, &answer);
        add(
            "start asked",
            self.start(&asked, x, &Evidence::Says(answer)),
        );
        if host.running {
            let mut next = pair.clone();
            next.hosts[x].running = false;
            add("stop", Some(next));
        }
        let mut next = pair.clone();
        next.send(y, Say::Lives(Self::tell(pair, x)));
        add("tell", Some(next));
        if let Some(attempt) = &host.memory.attempt {
            let mut next = pair.clone();
            next.send(y, Say::Ask(attempt.clone()));
            add("ask to stand down", Some(next));
        }
        if pair.attempts > 0 && !host.running {
            if let Some(ready) = self.prepare(pair, x) {
                let mut next = pair.clone();
                next.attempts -= 1;
                self.keep(&mut next, x, ready, None);
                add("prepare", Some(next));
            }
        }
        if pair.forces > 0 && !host.running {
            let forced = Evidence::Override(word());
            let mut base = pair.clone();
            if let Some(ready) = self.prepare(pair, x) {
                base.hosts[x].memory = ready;
                base = self.take_over(&base, x, &forced).unwrap_or(base);
            }
            let next = self.start(&base, x, &forced).map(|mut next| {
                next.forces -= 1;
                next.unsettled[x] = true;
                next
            });
            add("force", next);
        }
        if pair.crashes > 0 {
            for (what, running) in [("host crashes", false), ("polluxd crashes", host.running)] {
                let mut next = pair.clone();
                next.crashes -= 1;
                next.hosts[x].memory = host.durable.clone();
                next.hosts[x].running = running;
                add(what, Some(next));
            }
        }
    }

    fn deliver(&self, pair: &Pair, x: usize, say: &Say, all: &mut Vec<(Step, Pair)>) {
        let mut add = |what: &'static str, next: Option<Pair>| {
            all.extend(next.map(|next| ((x, what), next)));
        };
        match say {
            Say::Lives(theirs) => {
                let mut next = pair.clone();
                self.meet(&mut next, x, theirs);
                next.send(1 - x, Say::Lives(Self::tell(&next, x)));
                let says = Evidence::Says(theirs.clone());
                add(
                    "takes over, partner says so",
                    self.take_over(&next, x, &says),
                );
                // Late: what it says may not be so any more.
                add("late start", self.start(&next, x, &says));
                add("learns", Some(next));
            }
            Say::Ask(asked) => add("stands down", self.stand_down(pair, x, asked)),
            Say::Down(term) => {
                let evidence = Evidence::StoodDown(*term);
                add("takes over", self.take_over(pair, x, &evidence));
            }
        }
    }

    /// What is wrong with this step, if anything.
    fn wrong_step(before: &Pair, (x, what): Step, after: &Pair) -> Option<&'static str> {
        let y = 1 - x;
        if both_run(after) {
            let unwarranted = what == "start" && before.hosts[x].memory.warrant.is_none();
            if unwarranted || what == "start asked" {
                return Some("one starts without evidence while the other runs");
            }
            if after.unsettled == [false; 2] {
                return Some("both run without an override");
            }
        }
        let theirs = &after.hosts[y].memory.lineage;
        let lost = what.starts_with("takes over")
            && !after.unsettled[y]
            && !after.hosts[x].memory.lineage.descends_from(theirs);
        lost.then_some("what the other one did is passed over without an override")
    }

    /// What is wrong with a state, if anything.
    fn wrong_state(&self, pair: &Pair) -> Option<&'static str> {
        if !both_run(pair) {
            return None;
        }
        let mut met = pair.clone();
        for x in [0, 1, 0] {
            let told = Self::tell(&met, 1 - x);
            self.meet(&mut met, x, &told);
        }
        both_run(&met).then_some("both run on after they met")
    }

    /// The shortest history that breaks a promise, and how many states were seen.
    fn run(&self) -> (Option<(&'static str, Vec<String>)>, usize) {
        let mut seen = HashSet::new();
        let mut from: Vec<(usize, Step)> = vec![(0, (0, ""))];
        let first = Pair::begin(self.bounds);
        seen.insert(first.key());
        let mut queue = VecDeque::from([(0, first)]);
        while let Some((at, pair)) = queue.pop_front() {
            for (step, next) in self.next(&pair) {
                let mut fault = Self::wrong_step(&pair, step, &next);
                if fault.is_none() {
                    if !seen.insert(next.key()) {
                        continue;
                    }
                    fault = self.wrong_state(&next);
                }
                from.push((at, step));
                let index = from.len() - 1;
                if let Some(fault) = fault {
                    return (Some((fault, history(&from, index))), seen.len());
                }
                queue.push_back((index, next));
            }
        }
        (None, seen.len())
    }
}

fn both_run(pair: &Pair) -> bool {
    pair.hosts[0].running && pair.hosts[1].running
}

fn history(from: &[(usize, Step)], mut at: usize) -> Vec<String> {
    let mut steps = Vec::new();
    while at > 0 {
        let (before, (x, what)) = from[at];
        steps.push(format!("{}: {what}", NAMES[x]));
        at = before;
    }
    steps.reverse();
    steps
}

fn searches(off: Option<Rule>) -> impl Iterator<Item = Search> {
    let both = move |bounds| {
        [0, 1].map(|higher| Search {
            off,
            higher,
            bounds,
        })
    };
    SEARCHES.into_iter().flat_map(both)
}

#[test]
fn two_never_run_without_an_override_and_after_one_only_until_they_meet() {
    for search in searches(None) {
        let begun = std::time::Instant::now();
        let (fault, seen) = search.run();
        println!("{:?}: {seen} states, {:?}", search.bounds, begun.elapsed());
        assert!(fault.is_none(), "{fault:#?}");
        assert!(
            seen > 1000,
            "only {seen} states: the search is not what it was"
        );
    }
}

#[test]
fn without_any_one_of_the_rules_the_search_finds_two_that_run() {
    for rule in RULES {
        let found = searches(Some(rule)).find_map(|search| search.run().0);
        let (fault, history) = found.unwrap_or_else(|| panic!("{rule:?} is not needed"));
        println!("without {rule:?}: {fault}: {history:?}");
    }
}
