use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).expect("a time")
}

fn related() -> Related<'static> {
    Related {
        peer: "pollux",
        received: false,
        succeeded: None,
        state: Some(ReplicationState::Replicating),
        health: Health::Normal,
        messages: &[],
        error: None,
        missed: 0,
        verified: None,
    }
}

fn facts(relation: Option<Related<'_>>) -> Facts<'_> {
    Facts {
        vm: VmId(uuid::Uuid::nil()),
        name: "web",
        relation,
    }
}

/// One that was told of a healthy relationship before.
fn settled() -> Notices {
    let told = (Some(ReplicationState::Replicating), Some(Health::Normal));
    Notices::after(told.0, told.1)
}

fn kinds(notices: &mut Notices, second: i64, relation: Option<Related<'_>>) -> Vec<EventKind> {
    let drafts = notices.notice(at(second), &facts(relation));
    drafts.iter().map(|draft| draft.kind).collect()
}

#[test]
fn what_is_found_at_the_start_as_it_was_left_is_no_event() {
    let mut notices = settled();
    assert_eq!(kinds(&mut notices, 0, Some(related())), []);
    assert_eq!(kinds(&mut notices, 100, Some(related())), []);
}

#[test]
fn a_relationship_that_begins_and_ends_is_told() {
    let mut notices = Notices::default();
    assert_eq!(kinds(&mut notices, 0, None), []);
    let began = kinds(&mut notices, 1, Some(related()));
    assert_eq!(began, [EventKind::Enabled, EventKind::State]);
    assert_eq!(kinds(&mut notices, 2, None), [EventKind::Removed]);
    assert_eq!(kinds(&mut notices, 3, None), []);
    // And what was told of it is no more.
    let began = kinds(&mut notices, 4, Some(related()));
    assert_eq!(began, [EventKind::Enabled, EventKind::State]);
}

#[test]
fn a_state_is_told_once_and_one_that_nobody_can_tell_is_not() {
    let mut notices = settled();
    let unknown = Related {
        state: None,
        ..related()
    };
    assert_eq!(kinds(&mut notices, 0, Some(unknown)), []);
    let paused = Related {
        state: Some(ReplicationState::Suspended),
        ..related()
    };
    let drafts = notices.notice(at(1), &facts(Some(paused.clone())));
    assert_eq!(drafts[0].what, "went from Replicating to Suspended");
    assert_eq!(kinds(&mut notices, 2, Some(paused)), []);
    for (state, kind) in [
        (
            ReplicationState::FailedOverWaitingCompletion,
            EventKind::FailedOver,
        ),
        (ReplicationState::StoodDown, EventKind::StoodDown),
    ] {
        let now = Related {
            state: Some(state),
            ..related()
        };
        assert_eq!(kinds(&mut settled(), 0, Some(now)), [kind]);
    }
}

#[test]
fn health_is_told_once_it_has_lasted_and_a_blip_is_not() {
    let mut notices = settled();
    let bad = Related {
        health: Health::Critical,
        ..related()
    };
    assert_eq!(kinds(&mut notices, 0, Some(bad.clone())), []);
    assert_eq!(kinds(&mut notices, 9, Some(bad.clone())), []);
    assert_eq!(kinds(&mut notices, 9, Some(related())), [], "it was a blip");
    assert_eq!(kinds(&mut notices, 11, Some(bad.clone())), []);
    let worse = kinds(&mut notices, 21, Some(bad.clone()));
    assert_eq!(worse, [EventKind::Health]);
    assert_eq!(notices.told().1, Some(Health::Critical));
    assert_eq!(kinds(&mut notices, 99, Some(bad)), []);
    assert_eq!(kinds(&mut notices, 100, Some(related())), []);
    let drafts = notices.notice(at(110), &facts(Some(related())));
    assert_eq!(drafts[0].what, "health went from Critical to Normal");
    assert_eq!(drafts[0].severity, Severity::Info);
}

#[test]
fn an_error_is_told_once_and_not_with_every_retry() {
    let mut notices = settled();
    let lost = Problem::new(Code::Unreachable, "host `pollux`", "is away", "Start it");
    let failing = Related {
        error: Some(&lost),
        ..related()
    };
    let drafts = notices.notice(at(0), &facts(Some(failing.clone())));
    assert_eq!(drafts[0].kind, EventKind::Error);
    assert_eq!(
        (&*drafts[0].what, &*drafts[0].way_out),
        ("host `pollux`: is away", "Start it")
    );
    for second in (1..1000).step_by(60) {
        assert_eq!(kinds(&mut notices, second, Some(failing.clone())), []);
    }
    // It comes and goes.
    assert_eq!(kinds(&mut notices, 1001, Some(related())), []);
    assert_eq!(kinds(&mut notices, 1002, Some(failing.clone())), []);
    assert_eq!(kinds(&mut notices, 1003, Some(related())), []);
    let later = kinds(&mut notices, 1302, Some(failing.clone()));
    assert_eq!(later, [EventKind::Error]);
    let full = Problem::new(Code::Full, "the outbox", "is full", "");
    let other = Related {
        error: Some(&full),
        ..related()
    };
    assert_eq!(kinds(&mut notices, 1303, Some(other)), [EventKind::Error]);
}

#[test]
fn missed_points_are_told_at_their_beginning_and_their_end() {
    let mut notices = settled();
    let missed = |missed| {
        Some(Related {
            missed,
            ..related()
        })
    };
    assert_eq!(kinds(&mut notices, 0, missed(1)), [EventKind::PointsMissed]);
    assert_eq!(kinds(&mut notices, 10, missed(2)), []);
    assert_eq!(kinds(&mut notices, 200, missed(5)), []);
    // The interval is over, and counting began anew.
    assert_eq!(kinds(&mut notices, 300, missed(2)), []);
    assert_eq!(kinds(&mut notices, 599, missed(2)), []);
    let drafts = notices.notice(at(600), &facts(missed(2)));
    assert_eq!(drafts[0].kind, EventKind::PointsOnTime);
    assert!(drafts[0].what.contains("7 were missed"), "{drafts:?}");
    assert_eq!(kinds(&mut notices, 601, missed(0)), []);
}

#[test]
fn damage_of_the_twin_is_told_once_and_so_is_its_repair() {
    let mut notices = settled();
    let point = PointId {
        term: model::TermId::random(),
        sequence: 9,
    };
    let verified = |number, damaged: bool, repaired| {
        Some(Related {
            verified: Some(Verified {
                number,
                damage: damaged.then(|| "4 KiB at 1 MiB of disk 0".to_owned()),
                repaired,
            }),
            ..related()
        })
    };
    let (damaged, repaired) = (EventKind::Damaged, EventKind::Repaired);
    assert_eq!(kinds(&mut notices, 0, verified(1, false, None)), []);
    assert_eq!(kinds(&mut notices, 1, verified(2, true, None)), [damaged]);
    assert_eq!(kinds(&mut notices, 2, verified(2, true, None)), []);
    let told = kinds(&mut notices, 3, verified(2, true, Some(point)));
    assert_eq!(told, [repaired]);
    let told = kinds(&mut notices, 4, verified(2, true, Some(point)));
    assert_eq!(told, []);
    // Found and repaired between two looks.
    let told = kinds(&mut notices, 5, verified(3, true, Some(point)));
    assert_eq!(told, [damaged, repaired]);
}
