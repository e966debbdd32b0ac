//! Each host's clock: it drifts, and is set by hours and years. The replica lets points go by its own.

use jiff::SignedDuration;
use model::Going;

use super::*;

/// When the world begins, by clocks that are right, in seconds since 1970.
const BEGINNING: i64 = 1_800_000_000;
/// How far a clock is set.
const SET: [SignedDuration; 5] = [
    SignedDuration::from_secs(2),
    SignedDuration::from_secs(90),
    SignedDuration::from_hours(5),
    SignedDuration::from_hours(24 * 40),
    SignedDuration::from_hours(24 * 365 * 30),
];

/// The clock of a host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    begun: Instant,
    wrong: SignedDuration,
    /// Parts of a million that it runs ahead.
    drift: i32,
}

/// Those of both hosts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) primary: Clock,
    pub(super) replica: Clock,
}

impl Clock {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            wrong: SignedDuration::ZERO,
            drift: 0,
        }
    }

    pub(super) fn says(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.begun.elapsed()).expect("a short life");
        let ahead = elapsed * self.drift / 1_000_000;
        let beginning = Timestamp::from_second(BEGINNING).expect("a time");
        beginning + elapsed + ahead + self.wrong
    }

    fn set(&mut self, chance: &mut Chance) {
        let by = SET[usize::try_from(chance.below(SET.len() as u64)).expect("small")];
        let drift = i32::try_from(chance.below(200_000)).expect("small") - 100_000;
        match chance.below(4) {
            0 => self.wrong = SignedDuration::ZERO,
            1 => self.wrong = by,
            2 => self.wrong = -by,
            _ => self.drift = drift,
        }
    }
}

impl Clocks {
    pub(super) fn new() -> Self {
        Self {
            primary: Clock::new(),
            replica: Clock::new(),
        }
    }
}

impl World {
    /// The clock of one host is set, or goes faster or slower from now on.
    pub(super) fn set_a_clock(&mut self) {
        let mut chance = self.chance;
        if chance.percent(60) {
            self.clocks.primary.set(&mut chance);
        } else {
            self.clocks.replica.set(&mut chance);
        }
        self.chance = chance;
        self.happened("clock set");
    }

    /// The replica lets points go that nobody wants any more.
    pub(super) fn let_go(&mut self) {
        let Some(keep) = &self.keep else {
            return;
        };
        let term = self.lineage.current().id;
        let id = |sequence| PointId { term, sequence };
        let points = self.points.keys();
        let points: Vec<_> = points
            .map(|sequence| (id(*sequence), self.times[sequence]))
            .collect();
        for going in keep.judge(&points, |_| false, self.clocks.replica.says()) {
            let gone = match going {
                Going::Merge(point) => vec![point],
                Going::Squash { points, .. } => points,
            };
            for point in gone {
                self.points.remove(&point.sequence);
                self.happened("point let go");
            }
        }
    }
}

#[test]
fn clocks_that_are_set_change_neither_the_schedule_nor_what_is_measured() {
    for seed in 1..20 {
        paused().block_on(async move {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            let running = start(&shared);
            while running.reports.borrow().cycles < 20 {
                shared.pause(400).await;
                let mut world = shared.world();
                world.write();
                world.set_a_clock();
            }
            let report = running.reports.borrow().clone();
            assert_eq!((report.missed, report.failures), (0, 0), "seed {seed}");
            let latency = report.last_latency.expect("a point");
            let most = Duration::from_secs(5);
            assert!(latency < most, "seed {seed}: {latency:?}");
            assert!(
                report.latencies < most * 20,
                "seed {seed}: {:?}",
                report.latencies
            );
            // One that was cut after the last write.
            wait_for(&running, "two more points", |report| report.cycles >= 22).await;
            check_points(&shared.world());
        });
    }
}
