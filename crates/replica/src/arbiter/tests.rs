//! The searches: each goes through everything within its bounds.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use super::pair::{Bounds, Pair};
use super::rule::{RULES, Rule};
use super::step::{Arbiter, Step};
use crate::commands::COMMANDS;

const NONE: Bounds = Bounds {
    forces: 0,
    attempts: 0,
    crashes: 0,
    messages: 0,
    points: 0,
    backups: 0,
    restores: 0,
    removals: 0,
    plans: 0,
    reversals: 0,
    cancels: 0,
    calls_off: 0,
    turned: false,
    others: 0,
    seconds: 0,
    drifts: 0,
    unfenced: false,
    longer: false,
    releases: 0,
    unasked: false,
    quiet: false,
};

const fn rights(forces: u8, attempts: u8, crashes: u8, messages: u8) -> Bounds {
    Bounds {
        forces,
        attempts,
        crashes,
        messages,
        ..NONE
    }
}

const fn shipping(points: u8, attempts: u8, crashes: u8, messages: u8) -> Bounds {
    Bounds {
        points,
        attempts,
        crashes,
        messages,
        quiet: true,
        ..NONE
    }
}

const fn leases(seconds: u8, attempts: u8, crashes: u8, messages: u8) -> Bounds {
    Bounds {
        seconds,
        attempts,
        crashes,
        messages,
        quiet: true,
        ..NONE
    }
}

/// What is searched, by name.
const SEARCHES: [(&str, Bounds); 31] = [
    ("stand-down", rights(0, 2, 1, 6)),
    ("override, two attempts", rights(1, 2, 0, 3)),
    ("override, crash", rights(1, 1, 1, 3)),
    ("two overrides", rights(2, 1, 0, 2)),
    (
        "restored",
        Bounds {
            backups: 1,
            restores: 1,
            ..rights(1, 1, 0, 2)
        },
    ),
    (
        "lease, restored",
        Bounds {
            backups: 1,
            restores: 1,
            ..leases(4, 1, 0, 0)
        },
    ),
    (
        "planned",
        Bounds {
            plans: 1,
            ..rights(1, 1, 1, 2)
        },
    ),
    (
        "removed",
        Bounds {
            removals: 2,
            ..rights(1, 1, 0, 2)
        },
    ),
    (
        "reversed",
        Bounds {
            reversals: 1,
            ..rights(1, 1, 1, 2)
        },
    ),
    (
        "points, reversed",
        Bounds {
            reversals: 1,
            forces: 1,
            ..shipping(2, 0, 1, 3)
        },
    ),
    (
        "another point",
        Bounds {
            others: 1,
            ..rights(1, 1, 1, 2)
        },
    ),
    (
        "points, another, reversed",
        Bounds {
            others: 1,
            reversals: 2,
            forces: 1,
            ..shipping(2, 0, 0, 2)
        },
    ),
    ("points", shipping(2, 1, 1, 4)),
    (
        "points, restored",
        Bounds {
            backups: 1,
            restores: 1,
            ..shipping(3, 0, 0, 6)
        },
    ),
    ("points, taken back", shipping(2, 2, 0, 6)),
    (
        "lease, drift",
        Bounds {
            drifts: 1,
            ..leases(4, 1, 0, 0)
        },
    ),
    ("lease, late answers", leases(4, 1, 0, 2)),
    ("lease, crash", leases(4, 1, 1, 0)),
    (
        "lease, agreed on",
        Bounds {
            unfenced: true,
            ..leases(4, 1, 1, 0)
        },
    ),
    (
        "lease, made shorter",
        Bounds {
            longer: true,
            ..leases(4, 1, 1, 0)
        },
    ),
    (
        "lease, released",
        Bounds {
            releases: 1,
            ..leases(4, 1, 0, 2)
        },
    ),
    (
        "lease, taken back",
        Bounds {
            forces: 1,
            ..leases(1, 2, 0, 2)
        },
    ),
    (
        "lease, removed",
        Bounds {
            removals: 1,
            forces: 1,
            ..leases(4, 1, 0, 0)
        },
    ),
    (
        "reversed, given back",
        Bounds {
            reversals: 1,
            cancels: 1,
            ..rights(1, 1, 0, 2)
        },
    ),
    (
        "given back",
        Bounds {
            turned: true,
            cancels: 1,
            reversals: 1,
            ..rights(2, 0, 1, 2)
        },
    ),
    (
        "points, given back",
        Bounds {
            turned: true,
            cancels: 2,
            reversals: 2,
            forces: 1,
            ..shipping(2, 0, 1, 2)
        },
    ),
    (
        "points, lease, given back",
        Bounds {
            turned: true,
            cancels: 1,
            reversals: 1,
            points: 1,
            ..leases(4, 1, 0, 2)
        },
    ),
    (
        "called off",
        Bounds {
            calls_off: 1,
            ..rights(1, 2, 1, 2)
        },
    ),
    (
        "called off, stand-down",
        Bounds {
            calls_off: 1,
            ..rights(0, 2, 0, 5)
        },
    ),
    (
        "points, called off",
        Bounds {
            calls_off: 1,
            forces: 1,
            ..shipping(2, 1, 0, 4)
        },
    ),
    (
        "lease, called off",
        Bounds {
            calls_off: 1,
            ..leases(4, 2, 0, 3)
        },
    ),
];

/// Searched too with `POLLUX_MODEL=large`: four million states, in some ten minutes.
const LARGE: [(&str, Bounds); 14] = [
    (
        "called off, restored, large",
        Bounds {
            calls_off: 1,
            backups: 1,
            restores: 1,
            ..rights(1, 2, 0, 3)
        },
    ),
    (
        "another point, large",
        Bounds {
            others: 2,
            reversals: 1,
            ..rights(1, 1, 1, 3)
        },
    ),
    (
        "called off, large",
        Bounds {
            calls_off: 2,
            ..rights(0, 3, 1, 6)
        },
    ),
    (
        "called off, reversed, large",
        Bounds {
            calls_off: 1,
            reversals: 1,
            cancels: 1,
            others: 1,
            ..rights(1, 1, 0, 2)
        },
    ),
    (
        "points, called off, large",
        Bounds {
            calls_off: 1,
            forces: 1,
            reversals: 1,
            ..shipping(2, 2, 1, 4)
        },
    ),
    ("stand-down, large", rights(0, 3, 1, 6)),
    ("override, large", rights(1, 1, 1, 4)),
    ("two overrides, large", rights(2, 1, 1, 2)),
    (
        "restored, large",
        Bounds {
            backups: 1,
            restores: 1,
            ..rights(1, 1, 0, 3)
        },
    ),
    (
        "points, restored, large",
        Bounds {
            backups: 1,
            restores: 1,
            ..shipping(2, 2, 0, 6)
        },
    ),
    (
        "points, override, large",
        Bounds {
            forces: 1,
            ..shipping(2, 1, 1, 5)
        },
    ),
    (
        "lease, large",
        Bounds {
            drifts: 1,
            ..leases(5, 1, 1, 1)
        },
    ),
    (
        "lease, override, large",
        Bounds {
            forces: 1,
            ..leases(4, 1, 1, 1)
        },
    ),
    (
        "given back, large",
        Bounds {
            turned: true,
            cancels: 2,
            reversals: 2,
            removals: 1,
            ..rights(2, 0, 0, 2)
        },
    ),
];

/// The default ones; with `POLLUX_MODEL=large` the large ones too, with another text only those that have
/// it in their name.
fn bounds() -> Vec<(&'static str, Bounds)> {
    let all = SEARCHES.iter().chain(&LARGE).copied();
    match std::env::var("POLLUX_MODEL").as_deref() {
        Ok("large") => all.collect(),
        Ok(part) => all.filter(|(name, _)| name.contains(part)).collect(),
        Err(_) => SEARCHES.to_vec(),
    }
}

/// Which host's new terms have the higher ids: that matters only when histories diverge.
fn higher(bounds: Bounds) -> std::ops::RangeInclusive<usize> {
    if bounds.forces > 0 { 0..=1 } else { 1..=1 }
}

/// What one search found.
struct Found {
    states: usize,
    /// The promise that is broken, and the history that leads there.
    fault: Option<(String, Vec<String>)>,
}

fn search(off: Option<Rule>, higher: usize, bounds: Bounds) -> Found {
    let checker = Arbiter::new(off, higher, bounds)
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let states = checker.unique_state_count();
    let fault = checker.discoveries().into_iter().next();
    let fault = fault.map(|(name, path)| {
        let path = path.into_vec();
        let last = path.last().map(|(pair, _)| pair.clone()).expect("a state");
        let steps = path
            .iter()
            .filter_map(|(pair, step)| step.as_ref().map(|step| told(pair, *step)));
        let steps = steps.collect();
        (explain(name, &last, checker.model()), steps)
    });
    Found { states, fault }
}

fn told(pair: &Pair, step: Step) -> String {
    match step {
        Step::Deliver { at, then } => {
            let (x, say) = &pair.sent[at];
            let say = format!("{:?}", **say);
            let kind = say.split(['(', ' ']).next().unwrap_or_default();
            format!("{kind} comes to {x}, then {then:?}")
        }
        step => format!("{step:?}"),
    }
}

fn explain(name: &str, pair: &Pair, arbiter: &Arbiter) -> String {
    match (name, pair.fault) {
        ("commands lead out", _) => {
            let stuck = [None, Some(0), Some(1)]
                .into_iter()
                .find_map(|lost| Some((lost, arbiter.lead_out(pair, lost).err()?)));
            format!("{name}: lost and why: {stuck:?}")
        }
        (_, Some(fault)) => fault.to_owned(),
        (name, None) => name.to_owned(),
    }
}

/// The searches that a rule has a part in.
fn bounds_of(rule: Rule) -> Vec<(&'static str, Bounds)> {
    let kind = |bounds: &Bounds| (bounds.points > 0, bounds.seconds > 0);
    let wanted = (rule.is_of_points(), rule.is_of_leases());
    let all = SEARCHES.into_iter();
    all.filter(|(_, bounds)| kind(bounds) == wanted).collect()
}

#[test]
fn every_history_of_two_hosts_keeps_the_promises_and_has_a_way_out() {
    let (mut all, begun) = (0, Instant::now());
    for (name, bounds) in bounds() {
        for higher in higher(bounds) {
            let begun = Instant::now();
            let Found { states, fault } = search(None, higher, bounds);
            println!("{name} ({higher}): {states} states, {:?}", begun.elapsed());
            assert!(fault.is_none(), "{name}: {fault:#?}");
            assert!(
                states > 100,
                "{name}: {states}: the search is not what it was"
            );
            all += states;
        }
    }
    println!("{all} states, {:?}", begun.elapsed());
}

#[test]
fn without_any_one_of_the_rules_a_promise_is_broken() {
    for rule in RULES {
        let begun = Instant::now();
        let found = bounds_of(rule).into_iter().find_map(|(name, bounds)| {
            let mut found =
                higher(bounds).filter_map(|higher| search(Some(rule), higher, bounds).fault);
            found.next().map(|fault| (name, fault))
        });
        let Some((name, (fault, history))) = found else {
            panic!("{rule:?} is not needed");
        };
        println!(
            "without {rule:?} ({name}, {:?}): {fault}: {history:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn a_vm_that_may_start_unasked_runs_twice_and_the_search_finds_it() {
    let bounds = Bounds {
        unasked: true,
        ..rights(1, 1, 0, 1)
    };
    let Found { fault, .. } = search(None, 1, bounds);
    let (fault, history) = fault.expect("`allow` breaks the promise");
    assert_eq!(
        fault, "one starts without evidence while the other runs",
        "{history:?}"
    );
    let asked = Bounds {
        unasked: false,
        ..bounds
    };
    assert!(search(None, 1, asked).fault.is_none());
}

/// What the documentation must say, made from the code.
fn documented() -> [String; 2] {
    let rules = RULES.map(|rule| format!("- {}\n", rule.says())).concat();
    let rows = COMMANDS.map(|command| format!("| `{}` | {} |\n", command.text(), command.does()));
    [rules, rows.concat()]
}

#[test]
fn the_documentation_lists_every_rule_and_every_command() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/who-may-run.md");
    let text = std::fs::read_to_string(path).expect("the page");
    for wanted in documented() {
        assert!(
            text.contains(&wanted),
            "docs/who-may-run.md lacks:\n{wanted}"
        );
    }
}
