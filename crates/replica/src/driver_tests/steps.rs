//! Each step of either side, by name and by number: what happens when it fails, when the replica or the
//! primary is killed there, and how often chance did what.

use std::collections::BTreeMap;

use super::*;

/// What the primary does with its own disks and records, and what it asks the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Track,
    Reserve,
    Seed,
    Cut,
    ReadOffer,
    ReadChunk,
    Confirm,
    Hashes,
    Compared,
    Changing,
    Mark,
    Suspect,
    FoldBack,
    Persist,
    Gate,
    Contact,
    Configure,
    Tip,
    Compare,
    Offer,
    Put,
    Commit,
}

impl Step {
    /// Those of the primary that something keeps from being done, and those of the replica.
    const FAILING: [Self; 18] = [
        Self::Track,
        Self::Reserve,
        Self::Seed,
        Self::Cut,
        Self::ReadOffer,
        Self::ReadChunk,
        Self::Confirm,
        Self::Hashes,
        Self::Compared,
        Self::Suspect,
        Self::FoldBack,
        Self::Persist,
        Self::Configure,
        Self::Tip,
        Self::Compare,
        Self::Offer,
        Self::Put,
        Self::Commit,
    ];

    fn is_of_the_replica(self) -> bool {
        self >= Self::Contact
    }

    /// Whether it is only one that reads: there is nothing that it could have done before it fails.
    fn only_reads(self) -> bool {
        matches!(self, Self::ReadOffer | Self::ReadChunk)
    }
}

/// Before the step does its work, or after, so that only its answer is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Before,
    After,
}

/// What happens at the step of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Fails(Code),
    ReplicaKilled,
    PrimaryKilled,
    PrimaryLosesPower,
}

/// What a test does at steps.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// This step fails so as long as this is set.
    broken: Option<(Step, When, Code)>,
    /// How often it did.
    refused: u64,
    /// At the step of this number.
    once: Option<(u64, When, What)>,
    /// Steps so far, but for contact: it comes with time, not with what is done.
    steps: u64,
    /// The primary is to be killed now, and loses its power if this says so.
    killed: Option<bool>,
}

/// How often chance did what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen(pub(super) BTreeMap<&'static str, u64>);

impl Seen {
    pub(super) fn add(&mut self, kind: &'static str, count: u64) {
        *self.0.entry(kind).or_default() += count;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            self.add(kind, *count);
        }
    }
}

impl World {
    pub(super) fn happened(&mut self, kind: &'static str) {
        self.seen.add(kind, 1);
    }

    /// What happened in this life.
    pub(super) fn sum_up(&mut self) -> Seen {
        let mut seen = std::mem::take(&mut self.seen);
        seen.add("points", self.points.len() as u64);
        seen.add("chunks", self.puts);
        seen.add("bytes", self.puts * CHUNK);
        seen.add("regions compared", self.compared);
        seen
    }

    /// Whether the replica's newest point is what the disks hold, and the primary knows.
    fn is_settled(&self) -> bool {
        let newest = self.points.last_key_value();
        matches!(self.progress, Progress::Live { .. })
            && self.outbox.is_none()
            && newest.is_some_and(|(_, (held, _))| *held == self.content)
    }
}

const NO_ROOM: &str = "has no room for that";

impl Shared {
    /// The step begins, or its work is done.
    pub(super) async fn at(&self, step: Step, when: When) -> Result<(), Problem> {
        let dies = {
            let mut world = self.world();
            let faults = &mut world.faults;
            if when == When::Before && step != Step::Contact {
                faults.steps += 1;
            }
            if let Some((broken, at, code)) = faults.broken {
                if (broken, at) == (step, when) {
                    faults.refused += 1;
                    return Err(problem(code, NO_ROOM));
                }
            }
            let due = |(number, at, _): &(u64, When, What)| *number == faults.steps && *at == when;
            match faults
                .once
                .take_if(|once| step != Step::Contact && due(once))
            {
                Some((_, _, What::Fails(code))) => return Err(problem(code, NO_ROOM)),
                Some((_, _, What::ReplicaKilled)) => {
                    world.replica_restart();
                    false
                }
                Some((_, _, what)) => {
                    faults.killed = Some(what == What::PrimaryLosesPower);
                    true
                }
                None => false,
            }
        };
        if dies {
            // Whoever sees that it is to be killed ends this.
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// Waits until the replica has what the disks hold; kills the primary when a step says so.
async fn settle(shared: &Shared, running: &mut Running, what: &str) {
    let limit = Instant::now() + Duration::from_secs(3600);
    while !shared.world().is_settled() {
        let killed = shared.world().faults.killed.take();
        if let Some(loses_power) = killed {
            running.task.abort();
            let _ = (&mut running.task).await;
            if loses_power {
                shared.world().power_cut();
            }
            *running = start(shared);
        }
        let report = running.reports.borrow().clone();
        assert_ne!(report.state, ReplicationState::Error, "{what}: {report:?}");
        assert!(Instant::now() < limit, "{what}: never: {report:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A relationship from its beginning on: the initial replication, deltas, a power cut and what is
/// compared after it, a replica that lost its newest point, another configuration.
async fn whole_life(seed: u64, once: Option<(u64, When, What)>) -> u64 {
    let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
    shared.world().faults.once = once;
    let what = format!("seed {seed}, {once:?}");
    let mut running = start(&shared);
    settle(&shared, &mut running, &what).await;
    let copy = shared.world().copy_replica();
    for _ in 0..2 {
        for _ in 0..6 {
            shared.world().write();
        }
        settle(&shared, &mut running, &what).await;
    }
    for loses_power in [true, false] {
        for _ in 0..6 {
            shared.world().write();
        }
        running.task.abort();
        let _ = (&mut running.task).await;
        if loses_power {
            shared.world().power_cut();
        }
        shared.world().faults.killed = None;
        running = start(&shared);
        settle(&shared, &mut running, &what).await;
    }
    shared.world().restore_replica(copy.expect("a point"));
    shared.world().write();
    shared.reconfigure(&running);
    settle(&shared, &mut running, &what).await;
    let _ = running.commands.send(Command::Stop).await;
    if shared.world().faults.killed.is_some() {
        running.task.abort();
    } else {
        running.task.await.expect("ends without a panic");
    }
    let world = shared.world();
    check_points(&world);
    world.faults.steps
}

#[test]
fn at_every_step_either_host_may_be_killed_or_fail_once_and_no_point_is_lost() {
    let (mut lives, mut steps) = (0, 0);
    for seed in chosen(seeds().div_ceil(100)) {
        let count = paused().block_on(whole_life(seed, None));
        steps += count;
        let whats = [
            What::Fails(Code::Full),
            What::ReplicaKilled,
            What::PrimaryKilled,
            What::PrimaryLosesPower,
        ];
        let whens = [When::Before, When::After];
        // Each of them with more seeds than usual, else one in four.
        let stride = if seeds() > 100 { 1 } else { 4 };
        let every = (1..=count).step_by(stride).flat_map(|number| {
            let at = whens.map(|when| whats.map(|what| (number, when, what)));
            at.into_iter().flatten()
        });
        let every: Vec<_> = every.collect();
        // In lots, on several threads: each life is a runtime of its own.
        std::thread::scope(|scope| {
            for lot in every.chunks(every.len().div_ceil(4)) {
                scope.spawn(move || {
                    for once in lot {
                        paused().block_on(whole_life(seed, Some(*once)));
                    }
                });
            }
        });
        lives += every.len();
    }
    println!("{lives} lives with one fault each, at {steps} steps");
    assert!(steps > 100, "{steps}");
}

/// Brings the relationship to where it comes to `step` again and again, if that fails.
async fn come_to(shared: &Shared, running: &mut Running, step: Step) {
    let power_cut = matches!(step, Step::Hashes | Step::Compared | Step::Compare);
    if step == Step::Seed {
        return;
    }
    settle(shared, running, "at first").await;
    match step {
        Step::Suspect => {
            let copy = shared.world().copy_replica().expect("a point");
            shared.world().write();
            settle(shared, running, "another").await;
            shared.world().restore_replica(copy);
        }
        Step::FoldBack => shared.world().damage = 1,
        Step::Configure => shared.reconfigure(running),
        _ => {}
    }
    if power_cut || matches!(step, Step::Track | Step::Tip | Step::Suspect) {
        running.task.abort();
        let _ = (&mut running.task).await;
        if power_cut {
            let mut world = shared.world();
            world.flush();
            // Some regions differ in fact.
            for key in [(0, 1), (1, 9)] {
                world.write_to(key);
                world.flush();
            }
            world.power_cut();
        }
        *running = start(shared);
    }
}

async fn goes_on_by_itself(step: Step, when: When, code: Code) {
    let what = format!("{step:?} {when:?} {code:?}");
    let shared = Shared(Arc::new(Mutex::new(World::new(17))));
    let mut running = start(&shared);
    let early = step == Step::Seed;
    if early {
        shared.world().faults.broken = Some((step, when, code));
    }
    come_to(&shared, &mut running, step).await;
    shared.world().faults.broken = Some((step, when, code));
    shared.world().write();
    let suspended = |report: &LinkReport| {
        let cause = report.last_error.as_ref();
        report.state == ReplicationState::Suspended
            && cause.is_some_and(|cause| cause.reason == NO_ROOM && cause.code == code)
    };
    wait_for(&running, &what, suspended).await;
    // Changes are tracked; it is tried again, and not without a pause.
    let (before, begun) = (shared.world().faults.refused, Instant::now());
    for _ in 0..60 {
        shared.world().write();
        shared.pause(20_000).await;
        let report = running.reports.borrow().clone();
        assert!(suspended(&report), "{what}: {report:?}");
        assert_eq!(report.link_losses, 0, "{what}: the network is good");
    }
    let tries = shared.world().faults.refused - before;
    let longest = begun.elapsed().as_secs();
    // Several chunks are on their way at one time.
    let most = (longest / 15 + 8) * crate::sender::WINDOW as u64;
    assert!((longest / 60..=most).contains(&tries), "{what}: {tries}");
    let told = running.reports.borrow().failures;
    assert!(told > 0, "{what}");
    shared.world().faults.broken = None;
    settle(&shared, &mut running, &what).await;
    wait_for(&running, &what, |report| {
        report.state == ReplicationState::Replicating && report.last_error.is_none()
    })
    .await;
    check_points(&shared.world());
}

#[test]
fn a_step_that_cannot_be_done_suspends_with_its_cause_and_goes_on_by_itself_when_it_can() {
    let mut count = 0;
    for step in Step::FAILING {
        for code in [Code::Full, Code::Failed] {
            let whens = match step {
                step if step.only_reads() => &[When::Before][..],
                // Once done it is not done again.
                Step::Cut
                | Step::Seed
                | Step::FoldBack
                | Step::Confirm
                | Step::Commit
                | Step::Compared
                | Step::Configure
                | Step::Put => &[When::Before][..],
                _ => &[When::Before, When::After],
            };
            for when in whens {
                paused().block_on(goes_on_by_itself(step, *when, code));
                count += 1;
            }
        }
    }
    let replica = Step::FAILING.iter().filter(|step| step.is_of_the_replica());
    println!(
        "{count} causes at {} steps, {} of them of the replica",
        Step::FAILING.len(),
        replica.count()
    );
}

#[test]
fn a_segment_that_nobody_can_take_is_folded_back_and_a_person_told_if_the_next_are_no_better() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(23))));
        let mut running = start(&shared);
        settle(&shared, &mut running, "at first").await;
        let too_long = Some((Step::ReadOffer, When::Before, Code::Invalid));
        let refused = |shared: &Shared| shared.world().faults.refused;
        shared.world().faults.broken = too_long;
        shared.world().write();
        while refused(&shared) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shared.world().faults.broken = None;
        settle(&shared, &mut running, "with another one").await;
        assert_eq!(refused(&shared), 1);
        wait_for(&running, "no error", |report| report.last_error.is_none()).await;
        shared.world().faults.broken = too_long;
        shared.world().write();
        wait_for(&running, "an error", |report| {
            let cause = report.last_error.as_ref();
            report.state == ReplicationState::Error
                && cause.is_some_and(|cause| cause.reason == NO_ROOM)
        })
        .await;
        assert_eq!(refused(&shared), 4);
        shared.world().faults.broken = None;
        let resumed = running.commands.send(Command::Resume).await;
        resumed.expect("it listens");
        let goes_on = |report: &LinkReport| report.state != ReplicationState::Error;
        wait_for(&running, "it goes on", goes_on).await;
        settle(&shared, &mut running, "after that").await;
        check_points(&shared.world());
    });
}
