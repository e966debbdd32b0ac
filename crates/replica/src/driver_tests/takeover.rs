//! The replica takes over, and the primary hears of it whatever it is at.

use super::*;

#[test]
fn when_the_replica_took_over_the_guest_is_stopped_and_nothing_more_is_sent() {
    for seed in 1..50 {
        paused().block_on(async move {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            let running = start(&shared);
            wait_for(&running, "a point", |report| report.cycles >= 1).await;
            let theirs = {
                let mut world = shared.world();
                world.weather.failing = 10;
                world.weather.cut = world.chance.percent(50);
                let Tip::Point { point, .. } = world.tip else {
                    panic!("a point was acknowledged")
                };
                world.lineage.branch(point, "host-b").expect("on it")
            };
            let before = {
                let mut world = shared.world();
                world.taken_over = Some(theirs.clone());
                world.points.len()
            };
            shared.pause(30_000).await;
            shared.world().weather.cut = false;
            let ended = tokio::time::timeout(Duration::from_secs(600), running.task).await;
            ended.expect("in time").expect("without a panic");
            let world = shared.world();
            assert_eq!(world.gated.as_ref(), Some(&theirs), "seed {seed}");
            assert_eq!(world.points.len(), before);
            let state = running.reports.borrow().state;
            assert_eq!(state, ReplicationState::StoodDown);
        });
    }
}

/// What the driver is at when the replica takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Idle,
    Suspended,
    Error,
    Staging,
    Partition,
}

#[test]
fn the_guest_is_stopped_a_second_after_the_first_contact_whatever_the_driver_is_at() {
    for at in [
        At::Idle,
        At::Suspended,
        At::Error,
        At::Staging,
        At::Partition,
    ] {
        for seed in 1..20 {
            paused().block_on(superseded(at, seed));
        }
    }
}

async fn superseded(at: At, seed: u64) {
    let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
    shared.world().every(300);
    let running = start(&shared);
    wait_for(&running, "a point", |report| report.cycles >= 1).await;
    match at {
        At::Idle => {}
        At::Suspended => {
            let _ = running.commands.send(Command::Suspend).await;
            wait_for(&running, "a pause", |report| {
                report.state == ReplicationState::Suspended
            })
            .await;
        }
        At::Error => {
            shared.world().damage = u32::MAX;
            wait_for(&running, "an error", |report| {
                report.state == ReplicationState::Error
            })
            .await;
        }
        At::Staging => {
            shared.world().staging = Duration::from_secs(3600);
            let before = shared.world().sequence;
            while shared.world().sequence == before {
                shared.pause(1000).await;
            }
        }
        At::Partition => {
            shared.world().weather.cut = true;
            shared.pause(600_000).await;
        }
    }
    shared.pause(5000).await;
    {
        let mut world = shared.world();
        let Tip::Point { point, .. } = world.tip else {
            panic!("a point was acknowledged")
        };
        let theirs = world.lineage.branch(point, "host-b").expect("on it");
        world.taken_over = Some(theirs);
    }
    let healed = Instant::now();
    shared.world().weather.cut = false;
    while shared.world().gated.is_none() {
        assert!(healed.elapsed() < Duration::from_secs(60), "{at:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Contact takes up to 400 ms and an answer that just missed the takeover as long again.
    let pause = match at {
        At::Partition => LONGEST_CONTACT,
        _ => crate::sender::CONTACT,
    };
    let limit = pause + Duration::from_millis(900);
    assert!(healed.elapsed() < limit, "{at:?}: {:?}", healed.elapsed());
    running.task.await.expect("ends without a panic");
    let state = running.reports.borrow().state;
    assert_eq!(state, ReplicationState::StoodDown);
}

#[test]
fn contact_is_made_every_second_and_no_measure_knows_of_it() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(5))));
        shared.world().every(300);
        let running = start(&shared);
        wait_for(&running, "a point", |report| report.cycles >= 1).await;
        let before = running.reports.borrow().clone();
        shared.world().contacts = 0;
        tokio::time::sleep(Duration::from_secs(100)).await;
        let contacts = shared.world().contacts;
        assert!((60..=100).contains(&contacts), "{contacts}");
        shared.world().weather.cut = true;
        tokio::time::sleep(Duration::from_secs(100)).await;
        // One may have been on its way.
        assert!(shared.world().contacts <= contacts + 1);
        let after = running.reports.borrow().clone();
        let measures = |r: &LinkReport| (r.cycles, r.missed, r.link_losses, r.shipped);
        assert_eq!(measures(&after), measures(&before));
        assert_eq!(
            (after.last_error, after.state),
            (None, ReplicationState::Replicating)
        );
        shared.world().weather.cut = false;
        wait_for(&running, "5 points", |report| report.cycles >= 6).await;
        let report = running.reports.borrow().clone();
        assert_eq!((report.missed, report.link_losses), (0, 0));
    });
}
