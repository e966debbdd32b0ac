//! Ways out: from every state, the commands that refusals name lead to one host that runs.
//!
//! A person tries the plain commands on the hosts that are there, and those that a refusal
//! named; nothing else. Both hosts answer, or one of them is lost for good.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use model::{Code, PointId, Problem};

use super::pair::{Guest, Pair};
use super::step::{Arbiter, VM, word};
use crate::commands::Command;
use crate::run::{Evidence, weigh};
use crate::standing::Role;

/// So many commands are given at most.
const LONGEST: usize = 4;
/// What a person tries unasked.
const PLAIN: [Command; 4] = [
    Command::Start,
    Command::Stop,
    Command::Kill,
    Command::Failover,
];

/// Which hosts are there.
type Lost = Option<usize>;

impl Arbiter {
    pub(super) fn commands_lead_out(&self, pair: &Pair) -> bool {
        let key = hosts_key(pair);
        let known = self.led_out.lock().expect("no panic").get(&key).copied();
        known.unwrap_or_else(|| {
            let out = [None, Some(0), Some(1)]
                .into_iter()
                .all(|lost| self.lead_out(pair, lost).is_ok());
            self.led_out.lock().expect("no panic").insert(key, out);
            out
        })
    }

    /// The commands that were given, or what stops them.
    pub(super) fn lead_out(&self, pair: &Pair, lost: Lost) -> Result<Vec<Command>, String> {
        let mut begun = pair.clone();
        begun.sent.clear();
        if let Some(lost) = lost {
            begun.hosts[lost].guest = Guest::Off;
        }
        if lost.is_none() && begun.is_linked() {
            // They are in contact every second.
            for x in [0, 1, 0] {
                self.ask(&mut begun, x);
            }
        }
        let mut allowed: Vec<Command> = PLAIN.to_vec();
        let mut refusals = Vec::new();
        // What a refusal names is tried from the beginning, too.
        loop {
            let known = allowed.len();
            let found = self.follow(&begun, lost, &mut allowed, &mut refusals)?;
            if let Some(commands) = found {
                return Ok(commands);
            }
            if allowed.len() == known {
                return Err(format!("nothing leads on: {refusals:?}"));
            }
        }
    }

    fn follow(
        &self,
        begun: &Pair,
        lost: Lost,
        allowed: &mut Vec<Command>,
        refusals: &mut Vec<String>,
    ) -> Result<Option<Vec<Command>>, String> {
        let mut seen = HashSet::from([hosts_key(begun)]);
        let mut paths = vec![(begun.clone(), Vec::new())];
        for _ in 0..=LONGEST {
            let mut further = Vec::new();
            for (pair, given) in paths {
                let run = pair.hosts.iter().filter(|host| host.guest == Guest::Runs);
                if run.count() == 1 {
                    return Ok(Some(given));
                }
                for command in allowed.clone() {
                    for x in (0..2).filter(|x| Some(*x) != lost) {
                        match self.give(&pair, x, command, lost) {
                            Ok(None) => {}
                            Ok(Some(next)) => {
                                if seen.insert(hosts_key(&next)) {
                                    let mut given = given.clone();
                                    given.push(command);
                                    further.push((next, given));
                                }
                            }
                            Err(problem) => {
                                let named = Command::named(&problem.way_out, "web", command);
                                if named.is_empty() {
                                    return Err(format!("no command is named: {problem}"));
                                }
                                allowed.extend(named);
                                refusals.push(problem.to_string());
                            }
                        }
                    }
                }
                allowed.sort_unstable_by_key(|command| *command as u8);
                allowed.dedup();
            }
            paths = further;
        }
        Ok(None)
    }

    /// A command is given at `x`; none if it does not apply there.
    fn give(
        &self,
        pair: &Pair,
        x: usize,
        command: Command,
        lost: Lost,
    ) -> Result<Option<Pair>, Problem> {
        let host = &pair.hosts[x];
        let off = host.guest == Guest::Off;
        let is_replica = host.standing().role == Role::Replica;
        let mut next = pair.clone();
        match command {
            Command::Start | Command::ForceStart if off => {
                let forced = command == Command::ForceStart;
                let mut evidence = self.evidence(&mut next, x, lost, forced);
                if next.hosts[x].standing().may_return(&evidence) {
                    self.come_back(&mut next, x)?;
                    evidence = self.evidence(&mut next, x, lost, forced);
                }
                let standing = next.hosts[x].standing().clone();
                let used = next.hosts[x].memory.reserved;
                let id = self.next_term(&mut next, x);
                let started = standing.take_back_as(VM, used, "", &evidence, id)?;
                next.keep_standing(x, started, true);
                next.hosts[x].guest = Guest::Runs;
                Ok(Some(next))
            }
            Command::Failover | Command::ForceFailover if off && is_replica => {
                let Some(newest) = host.memory.points.last() else {
                    return Err(crate::run::no_point(VM, host.memory.branch.is_some()));
                };
                let newest = newest.id;
                let forced = command == Command::ForceFailover;
                self.fail_over(pair, x, newest, lost, forced).map(Some)
            }
            Command::FailoverOlder | Command::ForceFailoverOlder if off && is_replica => {
                let forced = command == Command::ForceFailoverOlder;
                let mut points = host.memory.points.iter().rev().map(|point| point.id);
                let point = points.find(|point| host.standing().lineage.contains(*point));
                point
                    .map(|point| self.fail_over(pair, x, point, lost, forced))
                    .transpose()
            }
            Command::Stop if host.guest == Guest::Runs => {
                next.hosts[x].guest = Guest::Off;
                Ok(Some(next))
            }
            Command::Kill if !off => {
                next.hosts[x].guest = Guest::Off;
                Ok(Some(next))
            }
            Command::CancelFailover if is_replica => Ok(self.give_back(pair, x)),
            Command::CancelFailover if host.standing().role == Role::FailedOver => {
                Ok(self.call_off(pair, x))
            }
            Command::CancelFailover if host.standing().prepared => {
                let free = host.standing().cancel_failover(VM)?;
                next.keep_standing(x, free, true);
                Ok(Some(next))
            }
            Command::Remove if host.memory.linked => Ok(self.remove(pair, x, lost.is_none())),
            _ => Ok(None),
        }
    }

    /// `x`, which stood down, asks its partner, which is the replica, to stand down.
    fn come_back(&self, next: &mut Pair, x: usize) -> Result<(), Problem> {
        let y = 1 - x;
        let id = self.next_term(next, x);
        let used = next.hosts[x].memory.reserved;
        let ready = next.hosts[x].standing();
        let ready = ready.prepare_return_as(VM, used, "", id)?;
        let asked = ready.attempt.clone().expect("prepared");
        let runs = next.hosts[y].guest != Guest::Off;
        let evidence = match next.hosts[y].standing().stand_down(VM, &asked, runs) {
            Ok(down) => {
                next.keep_standing(y, down, true);
                Evidence::StoodDown(id)
            }
            Err(problem) => Evidence::Refused(problem),
        };
        next.keep_standing(x, ready.take_over(VM, &evidence, None)?, true);
        Ok(())
    }

    /// What the partner of `x` says when it is asked.
    fn evidence(&self, pair: &mut Pair, x: usize, lost: Lost, forced: bool) -> Evidence {
        if lost.is_none() && pair.is_linked() {
            let evidence = self.ask(pair, x);
            return match evidence {
                Evidence::Says(says) if forced => {
                    weigh(pair.hosts[x].standing(), says, Some(word()))
                }
                evidence => evidence,
            };
        }
        silence(pair, x, lost, forced)
    }

    fn fail_over(
        &self,
        pair: &Pair,
        x: usize,
        point: PointId,
        lost: Lost,
        forced: bool,
    ) -> Result<Pair, Problem> {
        let y = 1 - x;
        let mut next = pair.clone();
        let id = self.next_term(&mut next, x);
        let ready = pair.hosts[x].standing().prepare_as(VM, point, "", id)?;
        let asked = ready.attempt.clone().expect("prepared");
        let evidence = if lost.is_none() && pair.is_linked() {
            let runs = pair.hosts[y].guest != Guest::Off;
            match pair.hosts[y].standing().stand_down(VM, &asked, runs) {
                Ok(down) => {
                    next.keep_standing(y, down, true);
                    Evidence::StoodDown(id)
                }
                Err(_) if runs => Evidence::Says(Self::tell(pair, y)),
                Err(_) if forced => Evidence::Override(word()),
                Err(problem) => Evidence::Refused(problem),
            }
        } else if ready.fence.is_some() && pair.hosts[x].memory.linked && !forced {
            // After a while.
            Evidence::LeaseExpired
        } else {
            silence(pair, x, lost, forced)
        };
        let taken = ready.take_over(VM, &evidence, Some(point))?;
        let started = taken.start(VM, &evidence)?;
        next.keep_standing(x, started, true);
        next.hosts[x].guest = Guest::Runs;
        Ok(next)
    }
}

/// What is known at `x` of a partner that gives no answer.
fn silence(pair: &Pair, x: usize, lost: Lost, forced: bool) -> Evidence {
    if forced {
        return Evidence::Override(word());
    }
    if !pair.hosts[x].memory.linked {
        return Evidence::Unasked;
    }
    if lost.is_some() {
        return Evidence::Unreachable("no route".to_owned());
    }
    let reason = "has no such relationship";
    let way_out = crate::run::anew(VM);
    Evidence::Refused(Problem::new(Code::NotFound, VM, reason, way_out))
}

/// The same for hosts that stand alike, whatever was sent and may still happen.
fn hosts_key(pair: &Pair) -> u64 {
    let mut hasher = DefaultHasher::new();
    for host in &pair.hosts {
        (&host.durable, &host.memory, host.guest).hash(&mut hasher);
    }
    hasher.finish()
}
