//! What is sent of an initial replication that is interrupted, or begins with a copy.

use super::*;

/// What is copied to fill a twin.
pub(super) const COPY: u64 = 20;

impl World {
    /// The twin was filled from a copy of the disks, which differs in these blocks.
    fn copied(seed: u64, differ: &[(usize, u64)]) -> Self {
        let mut world = Self::new(seed);
        let Progress::Seeding { seed, .. } = world.progress else {
            panic!("nothing was sent");
        };
        world.progress = Progress::from_copy(seed, DISKS);
        world.received = world.content.clone();
        for key in differ {
            world.received.insert(*key, u64::MAX);
        }
        world.marks.clear();
        world.exact = false;
        world.suspect_all();
        world
    }

    /// This host took over from the one that is its replica now, whose disks differ in the blocks that are
    /// `known` to, and in those that are `suspect`.
    fn reversed(seed: u64, known: &[(usize, u64)], suspect: &[(usize, u64)]) -> Self {
        let mut world = Self::copied(seed, &[known, suspect].concat());
        let Progress::Seeding { seed, .. } = world.progress else {
            panic!("nothing was sent");
        };
        world.progress = Progress::reversed(seed, DISKS);
        world.tip = Tip::Seeding {
            seed,
            parts: 0,
            last: None,
        };
        world.base_stays = true;
        world.suspect = suspect.iter().copied().map(tracking::region_of).collect();
        world.marks = known.iter().copied().collect();
        world.exact = true;
        world
    }

    /// The copying begins.
    fn fill(&mut self) {
        self.filling = Some(0);
        self.received.clear();
    }

    /// It goes on; killed, it begins again.
    fn filled(&mut self, by: u64, copy: &Disks) {
        self.filling = self
            .filling
            .map(|done| done + by)
            .filter(|done| *done < COPY);
        if self.filling.is_none() {
            self.received = copy.clone();
        }
    }

    fn storm(&mut self) {
        let mut bad = |most| self.chance.below(most);
        self.weather = Weather {
            lost: bad(30),
            unanswered: bad(30),
            repeated: bad(30),
            late: bad(30),
            failing: bad(10),
            cut: false,
        };
    }
}

/// Kills, power cuts of the primary and restarts of the replica until the initial replication is
/// complete, while the guest writes; how many of the power cuts.
async fn survive(shared: &Shared, writes: bool) -> u64 {
    let mut running = start(shared);
    let mut cuts = 0;
    for round in 0..40 {
        shared.pause(2500).await;
        let what = {
            let mut world = shared.world();
            if !matches!(world.progress, Progress::Seeding { .. }) {
                break;
            }
            if round == 30 {
                world.weather = CALM;
            } else if round < 30 {
                world.storm();
            }
            if writes && world.chance.percent(50) {
                world.write();
            }
            world.chance.below(6)
        };
        match what {
            _ if round >= 30 => {}
            0..3 => {
                running.task.abort();
                let _ = running.task.await;
                if what > 0 {
                    shared.world().power_cut();
                    cuts += 1;
                }
                running = start(shared);
            }
            3 => shared.world().replica_restart(),
            4 => shared.world().flush(),
            _ => {}
        }
        let report = running.reports.borrow().clone();
        assert_ne!(report.state, ReplicationState::Error, "{report:?}");
    }
    shared.world().weather = CALM;
    shared.world().write();
    let last = shared.world().sequence;
    wait_for(&running, "a point", |report| {
        let point = report.acknowledged;
        point.is_some_and(|point| point.sequence > last + 1)
    })
    .await;
    check_points(&shared.world());
    cuts
}

#[test]
fn through_power_cuts_what_the_twin_has_of_an_initial_replication_is_not_sent_again() {
    let mut cuts = 0;
    for seed in 1..seeds() + 1 {
        cuts += paused().block_on(async {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            let cuts = survive(&shared, true).await;
            let resent = shared.world().resent;
            assert_eq!(resent, 0, "seed {seed}");
            cuts
        });
    }
    println!("{} seeds, {cuts} power cuts", seeds());
    assert!(cuts > seeds(), "{cuts} power cuts");
}

#[test]
fn of_a_twin_that_was_filled_from_a_copy_only_the_blocks_that_differ_are_sent() {
    let differ = [(0, 0), (0, 5), (1, 23)];
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::copied(3, &differ))));
        let running = start(&shared);
        wait_for(&running, "the first point", |report| report.cycles == 1).await;
        let report = running.reports.borrow().clone();
        let all = DISKS as u64 * BLOCKS / 4;
        assert_eq!(report.compared.0, all * model::REGION_SIZE);
        assert_eq!(report.differed.0, differ.len() as u64 * 4096);
        let world = shared.world();
        assert_eq!((world.compared, world.resent), (all, 0));
        check_points(&world);
    });
    for seed in 1..seeds() + 1 {
        paused().block_on(async {
            let shared = Shared(Arc::new(Mutex::new(World::copied(seed, &differ))));
            survive(&shared, false).await;
            let world = shared.world();
            assert_eq!(world.resent, 0, "seed {seed}");
        });
    }
}

#[test]
fn a_former_primary_gets_what_differs_with_one_point_and_its_disks_stay_until_then() {
    let (known, suspect) = ([(0, 1), (1, 9)], [(0, 5), (1, 23)]);
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::reversed(3, &known, &suspect))));
        let before = shared.world().received.clone();
        let running = start(&shared);
        loop {
            shared.pause(100).await;
            let world = shared.world();
            if matches!(world.tip, Tip::Point { .. }) {
                break;
            }
            assert_eq!(world.received, before);
        }
        wait_for(&running, "the first point", |report| report.cycles == 1).await;
        let report = running.reports.borrow().clone();
        assert_eq!(report.compared.0, 2 * model::REGION_SIZE);
        assert_eq!(report.differed.0, suspect.len() as u64 * 4096);
        check_points(&shared.world());
    });
    let mut cuts = 0;
    for seed in 1..seeds() + 1 {
        cuts += paused().block_on(async {
            let shared = Shared(Arc::new(Mutex::new(World::reversed(
                seed, &known, &suspect,
            ))));
            survive(&shared, true).await
        });
    }
    println!("{} seeds, {cuts} power cuts", seeds());
}

#[test]
fn while_a_twin_is_filled_from_a_copy_nothing_is_sent_and_how_far_it_is_is_told() {
    let differ = [(0, 7), (1, 8)];
    for seed in 1..50 {
        paused().block_on(async {
            let shared = Shared(Arc::new(Mutex::new(World::copied(seed, &differ))));
            let copy = shared.world().received.clone();
            shared.world().fill();
            let mut running = start(&shared);
            for step in 0..COPY {
                shared.pause(4000).await;
                let cut = {
                    let mut world = shared.world();
                    if world.filling.is_none() {
                        break;
                    }
                    assert_eq!((world.puts, world.compared), (0, 0), "seed {seed}");
                    if world.chance.percent(20) {
                        world.replica_restart();
                        world.fill();
                    } else {
                        world.filled(1 + step / 4, &copy);
                    }
                    world.chance.percent(20)
                };
                if cut {
                    running.task.abort();
                    let _ = running.task.await;
                    shared.world().power_cut();
                    running = start(&shared);
                }
            }
            let state = ReplicationState::InitialReplicationInProgress;
            if shared.world().filling.is_some() {
                wait_for(&running, "what is told", |report| {
                    report.filling.is_some() && report.state == state
                })
                .await;
                shared.world().filled(COPY, &copy);
            }
            wait_for(&running, "a point", |report| report.cycles >= 1).await;
            assert_eq!(running.reports.borrow().filling, None);
            let world = shared.world();
            assert_eq!((world.too_early, world.resent), (0, 0), "seed {seed}");
            check_points(&world);
        });
    }
}

/// The primary loses power while a part is on its way. Its commit arrives once something was compared;
/// its offer and chunks once more as well, if `all` of it does.
async fn late_part(seed: u64, all: bool, lie: Option<Lie>) {
    let shared = Shared(Arc::new(Mutex::new(World::copied(seed, &[(0, 1), (1, 2)]))));
    let running = start(&shared);
    shared.world().lie = lie;
    // Until every chunk of a part is at the replica, and nothing was answered to its commit.
    let offer = loop {
        let found = shared.world().pending.clone();
        match found {
            Some((offer, there)) if there.len() == offer.chunks.len() => break offer,
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    assert_eq!(offer.header.point(), None);
    let chunks = shared.world().store.get(&offer.root.0).cloned();
    running.task.abort();
    let _ = running.task.await;
    {
        let mut world = shared.world();
        // What the part holds was written, and is lost here: the twin would have it alone.
        for key in [(0, 1), (1, 2)] {
            world.received.insert(key, 0);
            world.durable.insert(key, 0);
            world.content.insert(key, 0);
        }
        world.power_cut();
    }
    let running = start(&shared);
    wait_for(&running, "a comparison", |report| report.compared.0 > 0).await;
    shared.pause(2000).await;
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
    shared.world().write_to((0, 9));
    wait_for(&running, "points", |report| report.cycles >= 2).await;
    check_points(&shared.world());
}

#[test]
fn a_part_of_before_a_power_cut_that_arrives_after_it_harms_nothing() {
    for all in [false, true] {
        for seed in 1..seeds() {
            paused().block_on(late_part(seed, all, None));
        }
    }
}

#[test]
fn a_replica_or_a_source_that_breaks_its_promises_while_seeding_is_found_out() {
    for (all, lie) in [(false, Lie::Incoming), (true, Lie::Round)] {
        let found = (1..seeds() + 1).any(|seed| {
            let life = || paused().block_on(late_part(seed, all, Some(lie)));
            std::panic::catch_unwind(life).is_err()
        });
        assert!(found, "{lie:?}");
    }
    for lie in [Lie::Unsent, Lie::PowerCut, Lie::Persist] {
        let found = (1..seeds() + 1).any(|seed| {
            let life = || {
                paused().block_on(async {
                    let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
                    shared.world().lie = Some(lie);
                    survive(&shared, true).await
                })
            };
            std::panic::catch_unwind(life).is_err()
        });
        assert!(found, "{lie:?}");
    }
}

#[test]
fn a_replica_that_has_its_own_disks_back_is_said_to_be_none_whatever_is_sent() {
    for seed in 1..30 {
        paused().block_on(async {
            let mut world = World::reversed(seed, &[(0, 3)], &[(1, 8)]);
            let former = Lineage::begin("host-b");
            let since = PointId {
                term: former.current().id,
                sequence: 1,
            };
            world.lineage = former.branch(since, wire::PARTNER).expect("on it");
            world.sequence = since.sequence;
            // Somewhere before the first point has come.
            world.staging = Duration::from_secs(4);
            let at = world.chance.below(4000);
            let shared = Shared(Arc::new(Mutex::new(world)));
            let running = start(&shared);
            tokio::time::sleep(Duration::from_millis(at)).await;
            shared.world().given_back = Some(former);
            wait_for(&running, "a way out", |report| {
                let error = report.last_error.as_ref();
                error.is_some_and(|error| error.way_out.contains("failover reverse web"))
            })
            .await;
            let state = running.reports.borrow().state;
            assert_eq!(state, ReplicationState::Error, "seed {seed}");
            // A person who lets it go on hears the same again.
            let _ = running.commands.send(Command::Resume).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            let report = running.reports.borrow().clone();
            assert_eq!(report.state, ReplicationState::Error, "seed {seed}");
            let error = report.last_error.expect("said");
            assert!(error.way_out.contains("failover reverse web"), "{error}");
            let world = shared.world();
            assert!(world.gated.is_none() && world.points.is_empty());
        });
    }
}
