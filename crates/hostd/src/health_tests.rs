//! Every rule, on both sides of its bound.

use super::*;

const SOUND: Trouble = Trouble {
    full: None,
    damage: None,
    stay: None,
};

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

/// As it should be, as near to every bound as that goes.
fn well(mode: Mode) -> Look<'static> {
    Look {
        now: at(NOW),
        vm: "web",
        peer: "pollux",
        mode,
        state: ReplicationState::Replicating,
        paused: false,
        succeeded: None,
        taken_back: false,
        revocable: false,
        error: None,
        away: None,
        trouble: &SOUND,
        certificates: &[],
        successful: 80,
        missed: 20,
        since: at(NOW - 40_000),
        enabled: at(NOW - 90_000),
        last_success: Some(at(NOW - 3600)),
        latency_average_ms: Some(300_000),
        unleased: false,
        damage: None,
    }
}

fn problem(way_out: &str) -> Problem {
    Problem::new(Code::Unreachable, "host `pollux`", "is away", way_out)
}

/// The level, and the reasons in their order.
fn judge(look: &Look<'_>) -> (Health, Vec<HealthReason>) {
    let messages = messages(look);
    for message in &messages {
        let HealthMessage {
            what,
            way_out,
            level,
            ..
        } = message;
        assert!(!what.is_empty() && !what.ends_with('.'), "{message:?}");
        assert!(
            way_out.chars().next().is_some_and(|c| !c.is_lowercase()),
            "{message:?}"
        );
        assert!(*level > Health::Normal, "{message:?}");
    }
    let reasons = messages.iter().map(|message| message.reason).collect();
    (level(look.mode, &messages), reasons)
}

#[test]
fn a_clock_that_was_set_back_for_hours_makes_no_message() {
    for mode in [Mode::Primary, Mode::Replica] {
        for hours in [1, 5, 24 * 400] {
            let ahead = at(NOW + hours * 3600);
            let look = Look {
                since: ahead,
                enabled: ahead,
                last_success: Some(ahead),
                ..well(mode)
            };
            assert_eq!(judge(&look), (Health::Normal, vec![]), "{mode:?} {hours}");
        }
    }
}

#[test]
fn at_every_bound_both_sides_are_normal() {
    for mode in [Mode::Primary, Mode::Replica] {
        assert_eq!(judge(&well(mode)), (Health::Normal, Vec::new()), "{mode}");
    }
}

#[test]
fn more_than_a_fifth_missed_is_a_warning_that_dates_from_where_counting_began() {
    for (successful, missed, bad) in [
        (80, 20, false),
        (79, 20, true),
        (80, 21, true),
        (4, 1, false),
        (3, 1, true),
        (0, 1, true),
        (0, 0, false),
        (0, u64::MAX, true),
        (u64::MAX, u64::MAX, true),
    ] {
        let look = Look {
            successful,
            missed,
            ..well(Mode::Primary)
        };
        let expected = if bad {
            (Health::Warning, vec![HealthReason::PointsMissed])
        } else {
            (Health::Normal, Vec::new())
        };
        assert_eq!(judge(&look), expected, "{successful}, {missed}");
        if bad {
            assert_eq!(messages(&look)[0].since, Some(look.since));
        }
    }
}

#[test]
fn more_than_an_hour_of_silence_is_a_warning_on_either_side() {
    for (mode, reason) in [
        (Mode::Primary, HealthReason::NothingSent),
        (Mode::Replica, HealthReason::NothingReceived),
    ] {
        let mut look = well(mode);
        look.last_success = Some(at(NOW - 3601));
        assert_eq!(judge(&look), (Health::Warning, vec![reason]));
        assert_eq!(messages(&look)[0].since, look.last_success);
        // Never: from when the relationship began.
        look.last_success = None;
        assert_eq!(judge(&look), (Health::Warning, vec![reason]));
        look.enabled = at(NOW - 3600);
        assert_eq!(judge(&look), (Health::Normal, Vec::new()));
        // A clock that was set back.
        look.last_success = Some(at(NOW + 100_000));
        assert_eq!(judge(&look), (Health::Normal, Vec::new()));
    }
}

#[test]
fn a_mean_latency_above_five_minutes_is_a_warning() {
    let mut look = well(Mode::Primary);
    look.latency_average_ms = Some(300_001);
    assert_eq!(judge(&look), (Health::Warning, vec![HealthReason::Slow]));
    look.latency_average_ms = None;
    assert_eq!(judge(&look).0, Health::Normal);
}

#[test]
fn every_state_has_its_level_and_reason() {
    use HealthReason as Why;
    use ReplicationState as State;
    let error = problem("");
    let states = [
        State::ReadyForInitialReplication,
        State::InitialReplicationInProgress,
        State::Replicating,
        State::Resynchronizing,
        State::Suspended,
        State::Error,
        State::PreparedForFailover,
        State::FailedOverWaitingCompletion,
        State::FailedOver,
        State::StoodDown,
    ];
    for mode in [Mode::Primary, Mode::Replica] {
        for state in states {
            for failing in [false, true] {
                let (health, reason) = match (state, mode, failing) {
                    (State::StoodDown, ..) => (Health::Critical, Some(Why::StoodDown)),
                    (State::Error, ..) => (Health::Critical, Some(Why::NeedsAPerson)),
                    (State::FailedOverWaitingCompletion | State::FailedOver, ..) => {
                        (Health::Warning, Some(Why::FailedOver))
                    }
                    (State::Suspended, Mode::Replica, _) => {
                        (Health::Critical, Some(Why::PausedAtReplica))
                    }
                    (State::Suspended, _, true) => (Health::Warning, Some(Why::CannotWriteLog)),
                    (State::Suspended, _, false) => (Health::Warning, Some(Why::Paused)),
                    (_, _, true) => (Health::Critical, Some(Why::CannotSend)),
                    (State::Replicating | State::PreparedForFailover, ..) => (Health::Normal, None),
                    (State::Resynchronizing, ..) => (Health::Warning, Some(Why::Resynchronizing)),
                    (
                        State::ReadyForInitialReplication | State::InitialReplicationInProgress,
                        ..,
                    ) => (Health::Warning, Some(Why::InitialReplication)),
                };
                let look = Look {
                    state,
                    error: failing.then_some(&error),
                    ..well(mode)
                };
                let expected = (health, reason.into_iter().collect());
                assert_eq!(judge(&look), expected, "{mode} {state} {failing}");
            }
        }
    }
}

#[test]
fn a_person_who_paused_it_is_not_told_of_an_older_error() {
    let error = problem("");
    let look = Look {
        state: ReplicationState::Suspended,
        paused: true,
        error: Some(&error),
        ..well(Mode::Primary)
    };
    assert_eq!(judge(&look), (Health::Warning, vec![HealthReason::Paused]));
}

#[test]
fn a_host_that_refuses_or_is_refused_is_one_that_nothing_can_be_sent_to() {
    let mut error = problem("run a command there");
    error.code = Code::Forbidden;
    for (paused, expected) in [
        (false, (Health::Critical, vec![HealthReason::CannotSend])),
        (true, (Health::Warning, vec![HealthReason::Paused])),
    ] {
        let look = Look {
            state: ReplicationState::Suspended,
            paused,
            error: Some(&error),
            ..well(Mode::Primary)
        };
        assert_eq!(judge(&look), expected);
    }
}

#[test]
fn the_copy_of_a_test_failover_has_no_health() {
    let look = Look {
        state: ReplicationState::Error,
        ..well(Mode::TestReplica)
    };
    assert_eq!(judge(&look), (Health::NotApplicable, Vec::new()));
}

#[test]
fn the_worst_stands_first_and_an_error_brings_its_own_way_out() {
    let error = problem("start polluxd there");
    let look = Look {
        error: Some(&error),
        missed: 100,
        last_success: None,
        ..well(Mode::Primary)
    };
    let all = [
        HealthReason::CannotSend,
        HealthReason::PointsMissed,
        HealthReason::NothingSent,
    ];
    assert_eq!(judge(&look), (Health::Critical, all.to_vec()));
    let first = &messages(&look)[0];
    assert_eq!(first.way_out, "Start polluxd there");
    assert!(first.what.contains("host `pollux`: is away"), "{first:?}");
}

#[test]
fn after_a_takeover_the_figures_of_before_say_nothing() {
    for state in [
        ReplicationState::StoodDown,
        ReplicationState::FailedOverWaitingCompletion,
        ReplicationState::FailedOver,
    ] {
        let look = Look {
            state,
            missed: 100,
            last_success: None,
            latency_average_ms: Some(u64::MAX),
            ..well(Mode::Replica)
        };
        assert_eq!(judge(&look).1.len(), 1, "{state}");
    }
}

#[test]
fn whoever_was_succeeded_is_told_what_leads_to_a_twin_again() {
    let cancel = "failover cancel web --drop-writes";
    for (mode, taken_back, revocable, leads, misleads) in [
        (
            Mode::Primary,
            false,
            false,
            "failover reverse web",
            "vm delete",
        ),
        // The other host took back what was failed over to this one: it has nothing to reverse.
        (Mode::Replica, true, true, cancel, "vm delete"),
        (
            Mode::Replica,
            true,
            false,
            "vm delete web",
            "failover reverse",
        ),
        (
            Mode::Primary,
            true,
            false,
            "vm delete web",
            "failover reverse",
        ),
    ] {
        let look = Look {
            state: ReplicationState::StoodDown,
            taken_back,
            revocable,
            ..well(mode)
        };
        let way_out = &messages(&look)[0].way_out;
        assert!(way_out.contains(leads), "{way_out}");
        assert!(!way_out.contains(misleads), "{way_out}");
    }
}

#[test]
fn a_name_with_spaces_is_one_word_of_the_command() {
    let look = Look {
        vm: "web - Test",
        state: ReplicationState::Suspended,
        ..well(Mode::Primary)
    };
    let way_out = &messages(&look)[0].way_out;
    assert_eq!(way_out, "`pollux replica resume 'web - Test'`");
}

#[test]
fn what_lasts_keeps_its_beginning_and_what_comes_again_begins_anew() {
    let mut onset = Onset::default();
    let paused = Look {
        state: ReplicationState::Suspended,
        ..well(Mode::Primary)
    };
    let all = messages(&paused);
    onset.note(at(10), &all);
    onset.note(at(20), &all);
    let mut dated = all.clone();
    onset.date(&mut dated);
    assert_eq!(dated[0].since, Some(at(10)));
    onset.note(at(30), &[]);
    onset.note(at(40), &all);
    let mut dated = all;
    onset.date(&mut dated);
    assert_eq!(dated[0].since, Some(at(40)));
}

#[test]
fn a_store_that_is_away_is_critical_and_names_its_place_in_every_state_of_a_twin() {
    use ReplicationState::{FailedOver, InitialReplicationInProgress, Suspended};
    let away = Problem::new(
        Code::Failed,
        "replica store /srv/a of host `pollux`",
        "is away",
        "mount its disk at /srv/a",
    );
    for state in [InitialReplicationInProgress, Suspended, FailedOver] {
        let look = Look {
            state,
            away: Some(&away),
            ..well(Mode::Replica)
        };
        let (level, reasons) = judge(&look);
        assert_eq!(level, Health::Critical, "{state}");
        assert_eq!(reasons[0], HealthReason::StoreAway, "{state}");
        let first = &messages(&look)[0];
        assert!(first.what.contains("/srv/a"), "{first:?}");
        assert_eq!(first.way_out, "Mount its disk at /srv/a");
    }
    let paused = Look {
        state: Suspended,
        paused: true,
        away: Some(&away),
        ..well(Mode::Replica)
    };
    let both = [HealthReason::StoreAway, HealthReason::PausedAtReplica];
    assert_eq!(judge(&paused).1, both);
}

#[test]
fn damage_of_the_newest_point_is_critical_and_says_where() {
    let look = Look {
        damage: Some("4 KiB, such as 4 KiB at 1 MiB of disk 0"),
        ..well(Mode::Primary)
    };
    let found = (Health::Critical, vec![HealthReason::TwinDamaged]);
    assert_eq!(judge(&look), found);
    assert!(messages(&look)[0].what.contains("at 1 MiB of disk 0"));
}

#[test]
fn a_full_store_damage_and_a_certificate_that_ends_are_told_with_their_way_out() {
    use ReplicationState::{Replicating, Suspended};
    let because = |code| Problem::new(code, "VM `web`", "has a reason", "do something");
    let (full, damage) = (because(Code::Full), because(Code::Failed));
    let certificates = [because(Code::Conflict)];
    let trouble = |full: Option<&Problem>, damage: Option<&Problem>| Trouble {
        full: full.cloned(),
        damage: damage.cloned(),
        stay: full.cloned(),
    };
    for (state, trouble, certificates, level, reasons) in [
        (
            Suspended,
            trouble(Some(&full), None),
            &[][..],
            Health::Warning,
            vec![HealthReason::StoreFull, HealthReason::PointsStay],
        ),
        (
            Replicating,
            trouble(None, Some(&damage)),
            &certificates[..],
            Health::Critical,
            vec![HealthReason::JournalDamaged, HealthReason::Certificate],
        ),
        (
            Suspended,
            trouble(Some(&full), Some(&damage)),
            &[][..],
            Health::Critical,
            vec![
                HealthReason::JournalDamaged,
                HealthReason::StoreFull,
                HealthReason::PointsStay,
            ],
        ),
    ] {
        let look = Look {
            state,
            trouble: &trouble,
            certificates,
            ..well(Mode::Replica)
        };
        assert_eq!(judge(&look), (level, reasons));
        let all = messages(&look);
        assert!(
            all.iter().all(|one| one.way_out == "Do something"),
            "{all:?}"
        );
    }
}

#[test]
fn a_lease_that_is_over_is_told_on_both_hosts_and_says_what_may_happen_next() {
    for (mode, found, says) in [
        (
            Mode::Primary,
            (Health::Critical, HealthReason::LeaseOver),
            "goes on by itself",
        ),
        (
            Mode::Replica,
            (Health::Warning, HealthReason::PrimarySilent),
            "failover start web",
        ),
    ] {
        let look = Look {
            unleased: true,
            ..well(mode)
        };
        assert_eq!(judge(&look), (found.0, vec![found.1]));
        assert!(messages(&look)[0].way_out.contains(says));
        let succeeded = Look {
            state: ReplicationState::StoodDown,
            ..look
        };
        assert_eq!(judge(&succeeded).1, [HealthReason::StoodDown]);
    }
}
