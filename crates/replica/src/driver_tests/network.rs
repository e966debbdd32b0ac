//! What is sent once, sent again, and not sent, when one thing goes wrong.

use super::*;

#[test]
fn on_a_good_network_every_chunk_is_sent_once_and_no_cycle_is_missed() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(7))));
        let running = start(&shared);
        wait_for(&running, "10 points", |report| report.cycles >= 10).await;
        let report = running.reports.borrow().clone();
        assert_eq!((report.missed, report.link_losses), (0, 0));
        assert_eq!(report.spared.0, 0);
        assert_eq!(report.state, ReplicationState::Replicating);
        let world = shared.world();
        assert_eq!(world.unasked, 0);
        assert_eq!(report.shipped.0, world.puts * CHUNK);
    });
}

#[test]
fn after_a_cut_in_the_middle_only_the_missing_chunks_are_sent() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(11))));
        let running = start(&shared);
        wait_for(&running, "the first point", |report| report.cycles >= 1).await;
        // Every block changes, and the network is cut once some of them have come.
        shared.world().write_all();
        shared.world().puts = 0;
        wait_for(&running, "half of it", |report| {
            report
                .transfer
                .is_some_and(|t| t.sent.0 > t.total.0 / 2 && t.total.0 > 20 * CHUNK)
        })
        .await;
        shared.world().weather.cut = true;
        wait_for(&running, "a lost link", |report| report.link_losses > 2).await;
        shared.world().weather.cut = false;
        let cycles = running.reports.borrow().cycles;
        wait_for(&running, "the point", |report| report.cycles > cycles).await;
        let report = running.reports.borrow().clone();
        assert!(report.spared.0 > 20 * CHUNK, "{report:?}");
        let world = shared.world();
        assert_eq!(world.unasked, 0);
        let blocks = DISKS as u64 * BLOCKS;
        assert!(
            world.puts <= blocks + 3 * crate::sender::WINDOW as u64,
            "{}",
            world.puts
        );
    });
}

#[test]
fn a_replica_that_restarts_again_and_again_is_no_error() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(13))));
        let running = start(&shared);
        wait_for(&running, "the first point", |report| report.cycles >= 1).await;
        // Every block changes; what it holds of them is kept over most of its restarts.
        shared.world().write_all();
        for _ in 0..12 {
            let puts = shared.world().puts;
            wait_for(&running, "some chunks", |report| {
                report.transfer.is_some_and(|t| t.sent.0 < t.total.0) && shared.world().puts > puts
            })
            .await;
            shared.world().replica_restart();
        }
        let cycles = running.reports.borrow().cycles;
        wait_for(&running, "the point", |report| report.cycles > cycles).await;
        check_points(&shared.world());
    });
}

#[test]
fn a_damaged_segment_is_folded_back_and_cut_anew_until_it_is_clear_that_all_are() {
    for seed in 1..20 {
        paused().block_on(async move {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            // Parts of the initial replication first.
            shared.world().damage = 2;
            let running = start(&shared);
            wait_for(&running, "the first point", |report| report.cycles >= 1).await;
            shared.world().write();
            shared.world().damage = 1;
            wait_for(&running, "two more", |report| report.cycles >= 3).await;
            assert_eq!(running.reports.borrow().last_error, None);
            check_points(&shared.world());
            shared.world().damage = u32::MAX;
            wait_for(&running, "an error", |report| {
                report.state == ReplicationState::Error
            })
            .await;
            let problem = running.reports.borrow().last_error.clone().expect("why");
            assert!(problem.way_out.contains("resume"), "{problem}");
            shared.world().damage = 0;
            let _ = running.commands.send(Command::Resume).await;
            wait_for(&running, "one more", |report| report.cycles >= 4).await;
            check_points(&shared.world());
        });
    }
}

#[test]
fn a_part_or_a_point_that_nobody_can_read_is_marked_or_compared_and_nothing_is_refused_for_it() {
    for seed in 1..30 {
        for (parts, damage) in [(0, 1), (1, 1), (7, 1), (8, 2), (u64::MAX, 1)] {
            paused().block_on(async move {
                let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
                shared.world().unreadable = true;
                let running = start(&shared);
                // In the first part, in one in the middle, in the last ones, or in a point.
                let is_there = |world: &World| match world.progress {
                    Progress::Seeding { part, .. } => part >= parts,
                    Progress::Live { .. } => true,
                };
                wait_for(&running, "the part", |_| is_there(&shared.world())).await;
                shared.world().damage = damage;
                shared.world().write();
                wait_for(&running, "points", |report| report.cycles >= 3).await;
                assert_eq!(shared.world().damage, 0);
                let report = running.reports.borrow().clone();
                assert_eq!(report.last_error, None, "part {parts}");
                let world = shared.world();
                assert!(world.suspect.is_empty());
                check_points(&world);
            });
        }
    }
}

#[test]
fn a_position_past_a_disk_that_stands_still_ends_the_disk() {
    // A source whose `next` does not rise must not be asked for ever.
    let lineage = Lineage::begin("host-a");
    let configuration = Arc::new(reception::configuration(VmId::random(), &[], 5));
    let plan = Plan {
        thing: "VM `web`".to_owned(),
        partner: "host-b".to_owned(),
        disks: vec![DiskId::random()],
        lineage,
        base_stays: false,
        configuration: configuration.clone(),
    };
    let seed = SeedId::random();
    let progress = Progress::begin(seed);
    let mut sender = Sender::new(plan, progress, 1);
    let now = Now {
        since_start: Duration::ZERO,
        wall: Timestamp::UNIX_EPOCH,
    };
    let outputs = sender.apply(now, Event::Resume);
    assert_eq!(outputs.first(), Some(&Output::Track));
    let tracking = Tracking {
        exact: true,
        suspect: model::Bytes(0),
        staged: None,
        progress,
        reserved: 0,
    };
    assert_eq!(
        sender.apply(now, Event::Tracked(Ok(tracking))),
        [Output::AskTip]
    );
    let tip = TipAnswer::At {
        tip: Tip::Nothing,
        issued: 0,
        disks: Vec::new(),
        reception: Reception {
            paused: false,
            revision: Some(configuration.revision()),
            filling: None,
        },
    };
    let outputs = sender.apply(now, Event::Tip(Ok(tip)));
    assert!(matches!(outputs[..], [Output::Seed(_)]));
    let world = World::new(1);
    let part = StagedPart {
        segment: Staged {
            file: "0.segment".into(),
            header: world.header(Content::Seed { seed, part: 0 }),
            root: Root([0; 32]),
        },
        next: Some(0),
    };
    let outputs = sender.apply(now, Event::SeedStaged(Ok(part)));
    let [Output::Persist(Progress::Seeding { end: Some(end), .. })] = outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(end, Position { disk: 1, from: 0 });
}
