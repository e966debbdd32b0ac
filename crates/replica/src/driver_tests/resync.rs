//! What is compared after a crash or a restore, and what is sent then.

use super::*;

const REGIONS: u64 = 12;
const MIB: u64 = model::REGION_SIZE;

/// Kills the driver, does `work` and starts it again.
async fn reboot(shared: &Shared, running: Running, work: impl FnOnce(&mut World)) -> Running {
    running.task.abort();
    let _ = running.task.await;
    work(&mut shared.world());
    start(shared)
}

async fn points(running: &Running, more: u64) {
    let before = running.reports.borrow().cycles;
    wait_for(running, "more points", |report| {
        report.cycles >= before + more && report.state == ReplicationState::Replicating
    })
    .await;
}

#[test]
fn after_a_power_cut_only_what_differs_is_sent_and_only_armed_regions_are_compared() {
    for seed in 1..50 {
        paused().block_on(async move {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            let running = start(&shared);
            points(&running, 2).await;
            let _ = running.commands.send(Command::Suspend).await;
            wait_for(&running, "a pause", |report| {
                report.state == ReplicationState::Suspended
            })
            .await;
            let (armed, differ) = {
                let mut world = shared.world();
                world.flush();
                world.armed.clear();
                world.write_to((0, 3));
                world.write_to((0, 4));
                world.write_to((1, 23));
                world.power_cut();
                world.puts = 0;
                world.compared = 0;
                let lost = |key: &(usize, u64)| world.content[key] != world.received[key];
                let written = [(0, 3), (0, 4), (1, 23)];
                (
                    world.armed.len() as u64,
                    written.iter().filter(|key| lost(key)).count() as u64,
                )
            };
            assert_eq!(armed, 3);
            let running = reboot(&shared, running, |_| {}).await;
            wait_for(&running, "a comparison", |report| {
                report.state == ReplicationState::Resynchronizing
            })
            .await;
            points(&running, 1).await;
            let report = running.reports.borrow().clone();
            assert_eq!(report.compared.0, armed * MIB);
            assert_eq!(report.differed.0, differ * 4096);
            assert_eq!(report.comparison, None);
            let world = shared.world();
            assert_eq!(world.compared, armed);
            // A segment without content has one chunk here.
            assert_eq!(world.puts, differ.max(1));
            check_points(&world);
        });
    }
}

#[test]
fn a_comparison_tells_how_far_it_is_and_goes_on_where_it_was() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(21))));
        let running = start(&shared);
        points(&running, 1).await;
        let running = reboot(&shared, running, |world| {
            world.armed = world
                .content
                .keys()
                .copied()
                .map(tracking::region_of)
                .collect();
            world.power_cut();
            world.compared = 0;
        })
        .await;
        let half = |report: &LinkReport| {
            report
                .comparison
                .is_some_and(|so_far| so_far.done.0 >= REGIONS / 2 * MIB)
        };
        wait_for(&running, "half of it", half).await;
        let so_far = running.reports.borrow().comparison.expect("half of it");
        assert_eq!(so_far.total.0, REGIONS * MIB);
        // A person stops it, the network is cut, polluxd is killed: nothing is compared twice but
        // what was on its way.
        let _ = running.commands.send(Command::Suspend).await;
        wait_for(&running, "a pause", |report| {
            report.state == ReplicationState::Suspended
        })
        .await;
        let _ = running.commands.send(Command::Resume).await;
        shared.world().weather.cut = true;
        wait_for(&running, "a lost link", |report| report.link_losses > 1).await;
        shared.world().weather.cut = false;
        let running = reboot(&shared, running, |_| {}).await;
        points(&running, 1).await;
        let compared = shared.world().compared;
        assert!(
            (REGIONS..=REGIONS + 3 * 2).contains(&compared),
            "{compared}"
        );
        check_points(&shared.world());
    });
}

/// The primary loses power while a segment is on its way, and with it some of what the segment holds.
/// Its commit arrives once something was compared; its offer and chunks once more as well, if `all`
/// of it does.
async fn late_segment(seed: u64, all: bool, lie: Option<Lie>) {
    let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
    let running = start(&shared);
    points(&running, 1).await;
    shared.world().lie = lie;
    shared.world().flush();
    // Until every chunk of a segment is at the replica, and nothing was answered to its commit.
    let offer = loop {
        shared.world().write();
        let ready = async {
            loop {
                let found = shared.world().pending.clone();
                match found {
                    Some((offer, there)) if there.len() == offer.chunks.len() => return offer,
                    _ => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        let offer = tokio::time::timeout(Duration::from_secs(60), ready).await;
        if let Ok(offer) = offer {
            break offer;
        }
    };
    let chunks = shared.world().store.get(&offer.root.0).cloned();
    let running = reboot(&shared, running, World::power_cut).await;
    wait_for(&running, "a comparison", |report| report.compared.0 > 0).await;
    {
        let mut world = shared.world();
        // Refused, if the replica is as it should be.
        if all {
            world.on_offer(&offer);
            for (n, chunk) in chunks.unwrap_or_default() {
                let _ = world.on_put(offer.root, n, &chunk);
            }
        }
        let _ = world.on_commit(offer.root);
    }
    shared.pause(10_000).await;
    points(&running, 2).await;
    check_points(&shared.world());
}

#[test]
fn a_segment_of_before_a_power_cut_that_arrives_after_it_harms_no_point() {
    for all in [false, true] {
        try_seeds(seeds(), |seed| {
            paused().block_on(late_segment(seed, all, None));
            Seen::default()
        });
    }
}

#[test]
fn a_replica_that_does_not_forget_what_was_sent_before_a_comparison_is_found_out() {
    for (all, lie) in [(false, Lie::Incoming), (true, Lie::Issued)] {
        let found = (1..seeds() + 1).any(|seed| {
            let life = || paused().block_on(late_segment(seed, all, Some(lie)));
            std::panic::catch_unwind(life).is_err()
        });
        assert!(found, "{lie:?}");
    }
}

/// What happens to the tip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tipped {
    /// The replica was restored from an older copy.
    Back,
    /// The primary was.
    Unknown,
}

#[test]
fn a_host_that_was_restored_is_compared_whole_and_every_point_is_kept() {
    for (tipped, seed) in [Tipped::Back, Tipped::Unknown]
        .into_iter()
        .flat_map(|tipped| (1..20).map(move |seed| (tipped, seed)))
    {
        paused().block_on(async move {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            let running = start(&shared);
            points(&running, 2).await;
            let (primary, replica) = {
                let mut world = shared.world();
                (world.copy_primary(), world.copy_replica())
            };
            for _ in 0..20 {
                shared.world().write();
                shared.pause(2000).await;
            }
            points(&running, 2).await;
            let before = shared.world().points.clone();
            let running = reboot(&shared, running, |world| {
                world.compared = 0;
                match tipped {
                    Tipped::Back => world.restore_replica(replica.expect("a point")),
                    Tipped::Unknown => world.restore_primary(primary.expect("no cut")),
                }
            })
            .await;
            let kept = shared.world().points.clone();
            points(&running, 2).await;
            let report = running.reports.borrow().clone();
            assert_eq!(report.last_error, None, "{tipped:?} {seed}");
            let world = shared.world();
            assert!(world.compared >= REGIONS, "{tipped:?} {seed}");
            for (sequence, point) in &kept {
                assert!(world.points[sequence] == *point, "{tipped:?} {seed}");
            }
            if tipped == Tipped::Unknown {
                let highest = *before.keys().last().expect("points");
                let next = world.points.range(highest + 1..).next();
                assert!(next.is_some_and(|(next, _)| *next > highest + 1000));
            }
            check_points(&world);
        });
    }
}

/// Such as when a disk has become larger: the point comes then, and not an hour later.
#[test]
fn once_all_is_compared_the_point_is_cut_that_was_refused_before() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(22))));
        shared.world().every(3600);
        let running = start(&shared);
        wait_for(&running, "a point", |report| report.cycles > 0).await;
        shared.world().suspect_all();
        tokio::time::sleep(Duration::from_secs(1800)).await;
        wait_for(&running, "a refused cut", |report| {
            report.last_error.is_some()
        })
        .await;
        wait_for(&running, "a comparison", |report| report.compared.0 > 0).await;
        let before = tokio::time::Instant::now();
        wait_for(&running, "the point", |report| report.cycles > 1).await;
        assert!(before.elapsed() < Duration::from_secs(60));
        let report = running.reports.borrow().clone();
        let now = (report.state, report.last_error, report.missed);
        assert_eq!(now, (ReplicationState::Replicating, None, 0));
    });
}

#[test]
fn a_replica_with_a_point_of_another_history_is_not_written_to() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(3))));
        let running = start(&shared);
        points(&running, 3).await;
        let _ = running.commands.send(Command::Suspend).await;
        wait_for(&running, "a pause", |report| {
            report.state == ReplicationState::Suspended
        })
        .await;
        let term = model::TermId::random();
        let point = PointId { term, sequence: 2 };
        let root = Root([0; 32]);
        shared.world().tip = Tip::Point { point, root };
        let _ = running.commands.send(Command::Resume).await;
        wait_for(&running, "an error", |report| {
            report.state == ReplicationState::Error
        })
        .await;
        let problem = running.reports.borrow().last_error.clone().expect("why");
        assert!(!problem.way_out.is_empty(), "{problem}");
        assert_eq!(shared.world().compared, 0);
    });
}

#[test]
fn a_replica_that_answers_what_it_was_not_asked_is_told_to_a_person() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(8))));
        let running = start(&shared);
        points(&running, 1).await;
        let running = reboot(&shared, running, |world| {
            world.suspect_all();
            world.strange_answers = true;
        })
        .await;
        wait_for(&running, "an error", |report| {
            report.state == ReplicationState::Error
        })
        .await;
        assert!(!shared.world().suspect.is_empty(), "nothing was believed");
        shared.world().strange_answers = false;
        let _ = running.commands.send(Command::Resume).await;
        points(&running, 1).await;
        check_points(&shared.world());
    });
}

#[test]
fn when_the_replica_took_over_during_a_comparison_the_guest_is_stopped() {
    for seed in 1..30 {
        paused().block_on(async move {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            let running = start(&shared);
            points(&running, 1).await;
            let running = reboot(&shared, running, World::suspect_all).await;
            wait_for(&running, "a comparison", |report| report.compared.0 > 0).await;
            let theirs = {
                let mut world = shared.world();
                let Tip::Point { point, .. } = world.tip else {
                    panic!("a point was acknowledged")
                };
                let theirs = world.lineage.branch(point, "host-b").expect("on it");
                world.taken_over = Some(theirs.clone());
                theirs
            };
            running.task.await.expect("ends without a panic");
            assert_eq!(shared.world().gated.as_ref(), Some(&theirs));
            let state = running.reports.borrow().state;
            assert_eq!(state, ReplicationState::StoodDown);
        });
    }
}
