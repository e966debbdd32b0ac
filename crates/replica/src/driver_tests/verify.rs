//! The replica's newest point is verified while the guest writes, and what is damaged is repaired.

use super::*;
use crate::report::Verification;

const BLOCK: u64 = 4096;

/// Verifies again and again until nothing is damaged. Nothing else is found than what is rotten.
pub(super) async fn until_whole(shared: &Shared, running: &Running) {
    for number in 1000..1010 {
        wait_for(running, "an end of another one", |report| {
            // The first point may be acknowledged, and not recorded yet.
            let last = report.verification.as_ref();
            report.state == ReplicationState::Replicating
                && last.is_none_or(|last| last.outcome.is_some())
        })
        .await;
        let rotten = shared.world().rotten.clone();
        let found = verified(running, number).await;
        let damaged = blocks(&shared.world(), &found);
        assert!(damaged.is_subset(&rotten), "{damaged:?} {rotten:?}");
        assert!(
            found.outcome.as_ref().is_some_and(Result::is_ok),
            "{found:?}"
        );
        if found.damaged.0 == 0 {
            return;
        }
        wait_for(running, "a repair", |report| {
            let last = report.verification.as_ref();
            last.is_some_and(|last| !last.is_damaged())
        })
        .await;
    }
    panic!("never whole: {:?}", running.reports.borrow().verification);
}

async fn verified(running: &Running, number: u64) -> Verification {
    let _ = running.commands.send(Command::Verify(number)).await;
    ended(running, number).await
}

/// How the verification of this number ended.
async fn ended(running: &Running, number: u64) -> Verification {
    wait_for(running, "an end of what is verified", |report| {
        let last = report.verification.as_ref();
        last.is_some_and(|last| last.number == number && last.outcome.is_some())
    })
    .await;
    let last = running.reports.borrow().verification.clone();
    last.expect("there is one")
}

/// The damaged blocks that were named.
fn blocks(world: &World, found: &Verification) -> BTreeSet<(usize, u64)> {
    let position = |id| world.disks.iter().position(|disk| *disk == id);
    let of = |range: &crate::report::Damage| {
        let disk = position(range.disk).expect("one of its disks");
        let blocks = range.at / BLOCK..(range.at + range.len.0) / BLOCK;
        blocks.map(move |block| (disk, tracking::block_of(block)))
    };
    found.damage.iter().flat_map(of).collect()
}

async fn begin(shared: &Shared) -> Running {
    let running = start(shared);
    wait_for(&running, "points", |report| report.cycles >= 2).await;
    running
}

/// Every block of the newest point that is damaged, and that the guest leaves alone, is found; the guest's
/// writes are not taken for damage; the next point is whole.
#[test]
fn damage_is_found_while_the_guest_writes_and_the_next_point_is_whole() {
    for seed in 1..seeds() {
        paused().block_on(async move {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            let running = begin(&shared).await;
            let rotten = {
                let mut world = shared.world();
                for _ in 0..1 + seed % 4 {
                    world.rot();
                }
                world.rotten.clone()
            };
            let _ = running.commands.send(Command::Verify(7)).await;
            // Elsewhere.
            let writing = async {
                loop {
                    shared.pause(400).await;
                    let key = {
                        let mut world = shared.world();
                        let disk = usize::try_from(world.chance.below(2)).expect("small");
                        (disk, world.chance.below(BLOCKS))
                    };
                    if !rotten.contains(&key) {
                        shared.world().write_to(key);
                    }
                }
            };
            let found = tokio::select! {
                () = writing => unreachable!("it never ends"),
                found = ended(&running, 7) => found,
            };
            assert!(
                found.outcome.as_ref().is_some_and(Result::is_ok),
                "{found:?}"
            );
            assert_eq!(found.damaged.0, rotten.len() as u64 * BLOCK, "seed {seed}");
            let blocks = blocks(&shared.world(), &found);
            assert_eq!(blocks, rotten, "seed {seed}");
            assert_eq!(found.done, found.total);
            wait_for(&running, "a repair", |report| {
                let last = report.verification.as_ref();
                last.is_some_and(|last| last.repaired.is_some())
            })
            .await;
            assert!(shared.world().rotten.is_empty());
            let more = running.reports.borrow().cycles + 2;
            wait_for(&running, "points", |report| report.cycles >= more).await;
            check_points(&shared.world());
            let report = running.reports.borrow().clone();
            assert_eq!((report.missed, report.last_error), (0, None), "seed {seed}");
        });
    }
}

/// With points so frequent that the next one is always due.
#[test]
fn points_go_on_and_the_verification_ends_though_there_is_never_time_for_it() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(5))));
        {
            let mut world = shared.world();
            world.every(1);
            world.staging = Duration::from_secs(3);
        }
        let running = begin(&shared).await;
        let before = running.reports.borrow().cycles;
        let found = verified(&running, 1).await;
        assert_eq!(
            (found.outcome.map(|it| it.is_ok()), found.damaged.0),
            (Some(true), 0)
        );
        let cycles = running.reports.borrow().cycles - before;
        // One lot of regions after each: 3 of each disk.
        assert!((5..=7).contains(&cycles), "{cycles}");
    });
}

#[test]
fn a_verification_that_nobody_waits_for_ends_and_another_one_looks_at_everything() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(6))));
        let running = begin(&shared).await;
        shared.world().every(3600);
        let _ = running
            .configurations
            .send(shared.world().configuration.clone());
        let _ = running.commands.send(Command::Verify(1)).await;
        wait_for(&running, "a part", |report| {
            let last = report.verification.as_ref();
            last.is_some_and(|last| last.done.0 > 0)
        })
        .await;
        let _ = running.commands.send(Command::VerifyNoMore(9)).await;
        let _ = running.commands.send(Command::VerifyNoMore(1)).await;
        let given_up = ended(&running, 1).await;
        assert!(given_up.outcome.is_some_and(|it| it.is_err()));
        let found = verified(&running, 2).await;
        assert_eq!(found.outcome.map(|it| it.is_ok()), Some(true));
        assert_eq!((found.done, found.changed.0), (found.total, 0));
    });
}

#[test]
fn a_disk_that_is_taken_away_while_it_is_verified_is_left_out_and_the_others_are_verified() {
    let regions = BLOCKS / 4;
    for taken in 0..DISKS {
        for before in (0..2 * regions).step_by(2) {
            paused().block_on(async {
                let shared = Shared(Arc::new(Mutex::new(World::new(9))));
                {
                    // A point after each lot of regions.
                    let mut world = shared.world();
                    world.every(1);
                    world.staging = Duration::from_secs(3);
                }
                let running = begin(&shared).await;
                shared.world().compared = 0;
                let _ = running.commands.send(Command::Verify(1)).await;
                while shared.world().compared < before {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let mut next = (*shared.world().configuration).clone();
                next.disks.remove(taken);
                shared.world().configuration = Arc::new(next.clone());
                running.configurations.send_replace(Arc::new(next));
                let found = ended(&running, 1).await;
                assert!(
                    found.outcome.as_ref().is_some_and(Result::is_ok),
                    "{found:?}"
                );
                assert_eq!((found.done, found.damaged.0), (found.total, 0), "{found:?}");
                assert!(shared.world().compared >= regions, "the other disk");
            });
        }
    }
}

#[test]
fn what_keeps_a_verification_from_going_on_does_not_keep_points_from_being_sent() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(8))));
        let running = begin(&shared).await;
        shared.world().uncompared = true;
        let refused = verified(&running, 1).await;
        assert!(refused.outcome.is_some_and(|it| it.is_err()));
        let more = running.reports.borrow().cycles + 2;
        wait_for(&running, "points", |report| report.cycles >= more).await;
        let report = running.reports.borrow().clone();
        assert_eq!(report.state, ReplicationState::Replicating);
        assert_eq!(report.last_error, None);
    });
}

#[test]
fn a_source_that_does_not_tell_what_changed_is_found_out() {
    let found = (1..seeds()).any(|seed| {
        let life = || {
            paused().block_on(async move {
                let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
                shared.world().lie = Some(Lie::Changing);
                let running = begin(&shared).await;
                shared.world().write();
                let found = verified(&running, 1).await;
                assert_eq!(found.damaged.0, 0);
            });
        };
        std::panic::catch_unwind(life).is_err()
    });
    assert!(found);
}
