//! A person pauses, ends or reconfigures what goes on.

use std::path::PathBuf;

use model::{Bus, DiskSpec, Generation, VmSpec};

use super::*;
use crate::wire::{Digest, Filling};

pub(super) fn configuration(vm: VmId, disks: &[DiskId], frequency_s: u32) -> Configuration {
    let slots = disks.iter().zip(0_u8..);
    let specs = slots.map(|(id, slot)| {
        let file = PathBuf::from(format!("disk{slot}.raw"));
        let mut disk = DiskSpec::new(file, model::Bytes(BLOCKS * 4096), Bus::Virtio, slot);
        disk.id = *id;
        disk
    });
    let name = "web".parse().expect("a name");
    let (memory, disks) = (model::Bytes(64 << 20), disks.to_vec());
    let spec = VmSpec::new(
        name,
        Generation::Two,
        1,
        memory,
        false,
        None,
        specs.collect(),
    );
    let spec = VmSpec {
        id: vm,
        ..spec.expect("a VM")
    };
    Configuration {
        spec,
        disks,
        frequency_s,
        keep: None,
    }
}

impl World {
    pub(super) fn every(&mut self, seconds: u32) {
        let mut next = (*self.configuration).clone();
        next.frequency_s = seconds;
        self.configuration = Arc::new(next);
    }

    pub(super) fn reception(&self) -> Reception {
        let followed = self.followed.as_ref();
        Reception {
            paused: self.paused,
            revision: followed.map(|followed| followed.revision()),
            filling: self.filling.map(|done| Filling {
                done: model::Bytes(done),
                total: model::Bytes(seeding::COPY),
                problem: None,
            }),
        }
    }

    /// Refuses when the relationship was ended there.
    pub(super) fn known(&self) -> Result<(), LinkError> {
        if self.ended {
            return Err(wire::no_such_relationship());
        }
        Ok(())
    }

    pub(super) fn receives(&mut self) -> Result<(), LinkError> {
        self.known()?;
        if self.paused {
            let problem = crate::sender::paused("VM `web`", "host-b");
            return Err(LinkError::Refused(problem));
        }
        if self.filling.is_some() {
            self.too_early += 1;
            let problem = crate::sender::filled("VM `web`", "host-b");
            return Err(LinkError::Refused(problem));
        }
        Ok(())
    }

    pub(super) fn on_configure(&mut self, asked: &Configure) -> Result<ConfigureAnswer, LinkError> {
        self.known()?;
        if let Some(lineage) = self.taken_over.clone() {
            return Ok(ConfigureAnswer::Superseded { lineage });
        }
        if self.unfit {
            let problem = problem(Code::Conflict, "has a name that is taken");
            return Err(LinkError::Refused(problem));
        }
        assert_eq!(asked.revision, asked.configuration.revision());
        self.followed = Some(Arc::new(asked.configuration.clone()));
        Ok(ConfigureAnswer::Configured)
    }
}

impl Shared {
    /// A person changes the VM or the relationship.
    pub(super) fn reconfigure(&self, running: &Running) {
        self.world().happened("another configuration");
        let mut world = self.world();
        let mut next = (*world.configuration).clone();
        match world.chance.below(3) {
            0 => next.frequency_s = 5 + u32::try_from(world.chance.below(20)).expect("small"),
            1 => next.spec.processors = 1 + u32::try_from(world.chance.below(8)).expect("small"),
            _ => {
                next.spec.name = format!("web {}", world.chance.below(9))
                    .parse()
                    .expect("one")
            }
        }
        world.configuration = Arc::new(next);
        running
            .configurations
            .send_replace(world.configuration.clone());
    }

    fn followed(&self) -> Option<Digest> {
        self.world().reception().revision
    }
}

fn world(seed: u64) -> Shared {
    Shared(Arc::new(Mutex::new(World::new(seed))))
}

async fn one_point(running: &Running) {
    let cycles = running.reports.borrow().cycles;
    wait_for(running, "a point", |report| report.cycles > cycles).await;
}

#[test]
fn what_changes_on_the_primary_is_followed_within_seconds_and_no_point_is_missed_for_it() {
    paused().block_on(async {
        let shared = world(3);
        shared.world().every(300);
        let running = start(&shared);
        one_point(&running).await;
        for _ in 0..20 {
            shared.reconfigure(&running);
            let wanted = shared.world().configuration.revision();
            let before = tokio::time::Instant::now();
            while shared.followed() != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert!(before.elapsed() < Duration::from_secs(5), "not followed");
            }
            shared.pause(5000).await;
        }
        let report = running.reports.borrow().clone();
        assert_eq!((report.missed, report.last_error), (0, None));
    });
}

#[test]
fn a_replica_that_was_restored_with_an_older_configuration_is_given_the_newest_one_again() {
    paused().block_on(async {
        let shared = world(4);
        let running = start(&shared);
        one_point(&running).await;
        let old = shared.world().followed.clone();
        shared.reconfigure(&running);
        one_point(&running).await;
        shared.world().followed = old;
        one_point(&running).await;
        let world = shared.world();
        assert_eq!(world.followed.as_ref(), Some(&world.configuration));
    });
}

#[test]
fn a_configuration_that_the_replica_refuses_is_told_and_points_go_on() {
    paused().block_on(async {
        let shared = world(5);
        shared.world().unfit = true;
        let running = start(&shared);
        for _ in 0..3 {
            one_point(&running).await;
        }
        let report = running.reports.borrow().clone();
        assert_eq!(report.state, ReplicationState::Replicating);
        let problem = report.unconfigured.expect("told");
        assert!(problem.reason.contains("is taken"), "{problem}");
        // Whoever gives way there need not say so here.
        shared.world().unfit = false;
        wait_for(&running, "an end", |report| report.unconfigured.is_none()).await;
        let world = shared.world();
        assert_eq!(world.followed.as_ref(), Some(&world.configuration));
    });
}

#[test]
fn while_it_is_paused_on_the_replica_the_primary_says_so_and_goes_on_seconds_after_it_is_resumed() {
    for seed in 1..40 {
        paused().block_on(async move {
            let shared = world(seed);
            shared.world().every(300);
            let running = start(&shared);
            // During the initial replication, or later.
            if seed % 2 == 0 {
                one_point(&running).await;
            } else {
                shared.pause(3000).await;
            }
            shared.world().paused = true;
            let before = tokio::time::Instant::now();
            wait_for(&running, "a pause", |report| report.paused_there).await;
            assert!(before.elapsed() < Duration::from_secs(5));
            tokio::time::sleep(Duration::from_secs(5)).await;
            let report = running.reports.borrow().clone();
            assert_eq!(report.state, ReplicationState::Suspended);
            let problem = report.last_error.expect("why");
            assert!(problem.reason.contains("paused"), "{problem}");
            assert!(problem.way_out.contains("resume"), "{problem}");
            let tip = shared.world().tip;
            for _ in 0..10 {
                shared.world().write();
            }
            let mut states = running.reports.clone();
            let asked = states.wait_for(|report| report.state != ReplicationState::Suspended);
            let attempts = tokio::time::timeout(Duration::from_secs(900), asked).await;
            assert!(attempts.is_err(), "an attempt is told as a change");
            assert_eq!(shared.world().tip, tip, "nothing is received");
            shared.world().paused = false;
            let before = tokio::time::Instant::now();
            wait_for(&running, "the end of the pause", |report| {
                !report.paused_there
            })
            .await;
            one_point(&running).await;
            assert!(before.elapsed() < Duration::from_secs(60));
            let report = running.reports.borrow().clone();
            assert_eq!((report.last_error, report.missed), (None, 0));
            check_points(&shared.world());
        });
    }
}

#[test]
fn a_relationship_that_ended_on_the_replica_is_told_to_a_person_within_seconds() {
    for seed in 1..20 {
        paused().block_on(async move {
            let shared = world(seed);
            shared.world().every(300);
            let running = start(&shared);
            if seed % 2 == 0 {
                one_point(&running).await;
            } else {
                shared.pause(3000).await;
            }
            shared.world().ended = true;
            let before = tokio::time::Instant::now();
            wait_for(&running, "an error", |report| {
                report.state == ReplicationState::Error
            })
            .await;
            assert!(before.elapsed() < Duration::from_secs(10));
            let problem = running.reports.borrow().last_error.clone().expect("why");
            assert!(!problem.way_out.is_empty(), "{problem}");
            // It was restored there: a person says so.
            shared.world().ended = false;
            let _ = running.commands.send(Command::Resume).await;
            one_point(&running).await;
            check_points(&shared.world());
        });
    }
}

#[test]
fn a_point_that_is_wanted_now_is_cut_now_and_counts_as_no_missed_one() {
    for seed in 1..20 {
        paused().block_on(async move {
            let shared = world(seed);
            shared.world().every(3600);
            let running = start(&shared);
            one_point(&running).await;
            if seed % 2 == 0 {
                // Or the one before is still on its way.
                shared.pause(60_000).await;
            }
            let cycles = running.reports.borrow().cycles;
            shared.world().write_all();
            let before = tokio::time::Instant::now();
            let _ = running.commands.send(Command::Hurry).await;
            wait_for(&running, "all is sent", |report| report.cycles > cycles).await;
            assert!(before.elapsed() < Duration::from_secs(600));
            assert_eq!(running.reports.borrow().missed, 0);
            check_points(&shared.world());
        });
    }
}
