//! A second primary: the VM's folder was copied to another host, where it goes on and sends under the name
//! of that host. The replica's relationship is with the first one.

use super::*;

/// A host that runs the copy of a VM, and replicates it as the VM's folder says.
pub(super) struct Second {
    disks: Shared,
    running: Running,
}

impl World {
    /// What a copy of the VM's folder holds, on a host that starts with it.
    fn copied_folder(&mut self) -> Self {
        let mut copy = Self::new(self.chance.next());
        copy.vm = self.vm;
        copy.disks.clone_from(&self.disks);
        copy.lineage = self.lineage.clone();
        copy.configuration = self.configuration.clone();
        copy.content.clone_from(&self.content);
        copy.durable.clone_from(&self.durable);
        copy.tracked.clone_from(&self.tracked);
        copy.armed.clone_from(&self.armed);
        (copy.progress, copy.sequence) = (self.progress, self.sequence);
        copy.power_cut();
        copy
    }
}

impl Second {
    pub(super) fn start(first: &Shared) -> Self {
        let world = {
            let mut world = first.world();
            world.happened("second primary");
            world.copied_folder()
        };
        let disks = Shared(Arc::new(Mutex::new(world)));
        let wire = Wire {
            to: first.clone(),
            name: "host-c",
        };
        let running = running::start_with(&disks, wire);
        Self { disks, running }
    }

    /// Its guest writes, and somebody there wants it to go on, whatever it was told.
    pub(super) fn go_on(&self) {
        for _ in 0..3 {
            self.disks.world().write();
        }
        let _ = self.running.commands.try_send(Command::Resume);
    }

    /// Nothing was taken from it, and if it was told anything, then that it is none of the replica's.
    pub(super) async fn end(self, first: &Shared) {
        self.running.task.abort();
        let _ = self.running.task.await;
        let report = self.running.reports.borrow().clone();
        assert_eq!((report.cycles, report.acknowledged), (0, None));
        if report.state == ReplicationState::Error {
            let problem = report.last_error.expect("why");
            assert_eq!(problem.code, Code::NotFound, "{problem}");
            first.world().happened("second primary told");
        }
    }
}

/// What a copy of a whole host does, which shows the certificate of the first one: nobody can tell them apart.
#[test]
fn two_hosts_that_send_under_one_name_are_told_to_a_person() {
    for seed in 1..40 {
        paused().block_on(async {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            let first = start(&shared);
            wait_for(&first, "points", |report| report.cycles >= 3).await;
            shared.pause(10_000).await;
            let folder = shared.world().copied_folder();
            let before = shared.world().points.clone();
            let disks = Shared(Arc::new(Mutex::new(folder)));
            let wire = Wire {
                to: shared.clone(),
                name: wire::PARTNER,
            };
            let second = running::start_with(&disks, wire);
            if seed % 2 == 0 {
                shared.world().bad_weather();
                shared.world().weather.cut = false;
            }
            let is_told = |running: &Running| {
                let report = running.reports.borrow().clone();
                report.last_error.filter(|problem| {
                    report.state == ReplicationState::Error && problem.code == Code::Conflict
                })
            };
            let begun = Instant::now();
            let problem = loop {
                if let Some(problem) = is_told(&first).or_else(|| is_told(&second)) {
                    break problem;
                }
                assert!(begun.elapsed() < Duration::from_secs(1800), "seed {seed}");
                shared.pause(2000).await;
                shared.world().write();
                disks.world().write();
            };
            assert!(!problem.way_out.is_empty(), "{problem}");
            // What it had before is as it was.
            let world = shared.world();
            for (sequence, point) in &before {
                assert_eq!(world.points.get(sequence), Some(point), "seed {seed}");
            }
        });
    }
}
