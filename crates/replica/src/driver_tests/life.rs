//! Lives in which chance does whatever may happen to either host and to the network.

use second::Second;

use super::*;

/// What must have happened in many lives.
const LIVES: [&str; 21] = [
    "lost request",
    "lost answer",
    "repeated request",
    "late request",
    "failed step",
    "network cut",
    "primary killed",
    "primary lost power",
    "replica killed",
    "part laid down ahead",
    "primary restored",
    "replica restored",
    "paused on the replica",
    "another configuration",
    "regions compared",
    "points",
    "point let go",
    "clock set",
    "second primary",
    "second primary told",
    "another host refused",
];

/// What happened.
async fn live_through(seed: u64, lie: Option<Lie>) -> Seen {
    let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
    shared.world().lie = lie;
    shared.world().add_disks();
    shared.world().keep = Some("90s:all".parse().expect("a policy"));
    let mut second: Option<Second> = None;
    let mut running = start(&shared);
    let steps = 30 + shared.world().chance.below(60);
    let (mut primary, mut replica): (Option<tracking::Primary>, Option<tracking::Replica>) =
        (None, None);
    for _ in 0..steps {
        shared.pause(3000).await;
        let (action, writes) = {
            let mut world = shared.world();
            (world.chance.below(112), world.chance.below(6))
        };
        for _ in 0..writes {
            shared.world().write();
        }
        match action {
            0..20 => shared.world().bad_weather(),
            20..33 => shared.world().weather = CALM,
            33..47 => {
                // Killed at whatever it was doing; nothing that it had begun goes on.
                running.task.abort();
                let _ = running.task.await;
                shared.world().happened("primary killed");
                if action >= 39 {
                    shared.world().power_cut();
                }
                running = start(&shared);
            }
            47..57 => shared.world().replica_restart(),
            57..62 => {
                let _ = running.commands.send(Command::Suspend).await;
                shared.pause(20_000).await;
                let _ = running.commands.send(Command::Resume).await;
            }
            62..69 => shared.world().flush(),
            // Reopened after a failed flush.
            72 => shared.world().suspect_all(),
            // A person cleans up.
            73 => shared.world().lose_outbox(),
            74..78 => primary = shared.world().copy_primary(),
            78..82 => replica = shared.world().copy_replica(),
            // Each at most once, or it would be an error that asks for a person.
            69..72 | 82 | 83 => {
                if let Some(copy) = primary.take() {
                    running.task.abort();
                    let _ = running.task.await;
                    // What it had sent before does not outlive a restore.
                    tokio::time::sleep(Duration::from_secs(10)).await;
                    shared.world().restore_primary(copy);
                    running = start(&shared);
                }
            }
            84 | 85 | 100 => {
                if let Some(copy) = replica.take() {
                    shared.world().restore_replica(copy);
                }
            }
            86..89 => {
                shared.world().happened("paused on the replica");
                shared.world().paused = true;
            }
            89..93 => shared.world().paused = false,
            93..95 => shared.reconfigure(&running),
            95 => shared.world().rot(),
            96 => {
                let _ = running.commands.send(Command::Verify(action)).await;
            }
            97..100 => shared.change_disks(&running),
            101..107 => shared.world().set_a_clock(),
            _ => match second.take() {
                Some(ends) => ends.end(&shared).await,
                None => second = Some(Second::start(&shared)),
            },
        }
        if let Some(second) = &second {
            second.go_on();
        }
        let report = running.reports.borrow().clone();
        assert_ne!(report.state, ReplicationState::Error, "{report:?}");
    }
    if let Some(second) = second {
        second.end(&shared).await;
    }
    all_is_well(&shared, running).await;
    let mut world = shared.world();
    assert_eq!(world.followed.as_ref(), Some(&world.configuration));
    check_points(&world);
    world.sum_up()
}

/// Nothing goes wrong any more, until the replica is what the disks are, and a verification finds that.
async fn all_is_well(shared: &Shared, running: Running) {
    shared.world().weather = CALM;
    shared.world().paused = false;
    let _ = running.commands.send(Command::Resume).await;
    // A point cut after the last write was acknowledged.
    let last = {
        let world = shared.world();
        match world.tip {
            Tip::Point { point, .. } => world.sequence.max(point.sequence),
            _ => world.sequence,
        }
    };
    wait_for(&running, "a point after the last write", |report| {
        let newest = report.acknowledged.map_or(0, |point| point.sequence);
        newest > last + 1 && report.joining.is_empty()
    })
    .await;
    shared.world().rot();
    verify::until_whole(shared, &running).await;
    let _ = running.commands.send(Command::Stop).await;
    running.task.await.expect("ends without a panic");
}

#[test]
fn through_cuts_losses_repeats_and_restarts_the_replica_ends_equal_and_no_point_is_lost() {
    let seen = try_seeds(seeds(), |seed| paused().block_on(live_through(seed, None)));
    // The test must come to the places that it is about.
    if chosen(seeds()).count() >= 100 {
        let rare = LIVES
            .iter()
            .find(|kind| seen.0.get(*kind).is_none_or(|count| *count < 10));
        assert_eq!(rare, None, "{:?}", seen.0);
    }
}

#[test]
fn a_source_that_breaks_its_promises_is_found_out() {
    for lie in [
        Lie::FoldBack,
        Lie::Persist,
        Lie::PowerCut,
        Lie::Compared,
        Lie::Mark,
        Lie::Sweep,
        Lie::Cut,
        Lie::Stranger,
        Lie::Times,
    ] {
        let found = (1..seeds() + 1).any(|seed| {
            let life = || paused().block_on(live_through(seed, Some(lie)));
            std::panic::catch_unwind(life).is_err()
        });
        assert!(found, "{lie:?}");
    }
}
