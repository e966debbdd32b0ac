//! The accumulator against a list of everything that happened.

use model::Bytes;
use proptest::prelude::*;

use super::*;

const HOUR: i64 = 3600;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

/// One hour's intervals, so that a test of some hours sees many.
fn hourly() -> Monitoring {
    Monitoring::try_from("1h".to_owned()).expect("an interval")
}

fn begin(second: i64) -> Measured {
    Measured::begin(RelationshipId::random(), hourly(), at(second))
}

fn cycle(size: u64, latency_ms: u64, second: i64) -> (Tally, Last) {
    let tally = Tally {
        cycles: 1,
        sizes: size,
        latencies_ms: latency_ms,
        sent: size,
        ..Tally::default()
    };
    let last = Last {
        time: at(second),
        cut: Some(at(second)),
        size,
        latency_ms: Some(latency_ms),
    };
    (tally, last)
}

#[test]
fn counters_begin_anew_with_the_interval_and_what_was_last_stays() {
    let mut measured = begin(10 * HOUR + 5);
    assert_eq!(
        measured.since,
        at(10 * HOUR + 5),
        "not from before it began"
    );
    let (tally, last) = cycle(100, 7, 10 * HOUR + 10);
    measured.add(&tally, Some(last));
    assert!(!measured.roll(hourly(), at(11 * HOUR - 1)));
    assert_eq!(measured.now.successful, 1);
    assert!(measured.roll(hourly(), at(11 * HOUR)));
    assert_eq!(measured.now, Counters::default());
    assert_eq!(
        (measured.start, measured.end, measured.since),
        (at(11 * HOUR), at(12 * HOUR), at(11 * HOUR))
    );
    assert_eq!((measured.points, measured.last_size), (1, Some(100)));
    assert_eq!(measured.last_cut, Some(at(10 * HOUR + 10)));
}

#[test]
fn a_clock_set_back_a_little_does_not_bring_back_an_interval_and_one_set_right_begins_one() {
    let mut measured = begin(10 * HOUR);
    let (tally, last) = cycle(100, 7, 10 * HOUR);
    measured.add(&tally, Some(last));
    assert!(!measured.roll(hourly(), at(10 * HOUR - 1)));
    assert!(!measured.roll(hourly(), at(9 * HOUR)));
    assert_eq!(measured.now.successful, 1);
    assert!(measured.roll(hourly(), at(9 * HOUR - 1)));
    assert_eq!(measured.start, at(8 * HOUR));
    assert!(measured.roll(hourly(), Timestamp::MAX));
    assert!(measured.roll(hourly(), Timestamp::MIN));
}

#[test]
fn another_length_of_the_interval_begins_one() {
    let mut measured = begin(10 * HOUR + 5);
    assert!(measured.roll(Monitoring::default(), at(10 * HOUR + 5)));
    assert_eq!((measured.start, measured.end), (at(0), at(12 * HOUR)));
}

#[test]
fn a_reset_counts_from_then_on_and_keeps_what_was_last() {
    let mut measured = begin(10 * HOUR);
    let missed = Tally {
        missed: 9,
        ..Tally::default()
    };
    measured.add(&missed, None);
    measured.tested(at(10 * HOUR + 1));
    measured.reset(at(10 * HOUR + 2));
    assert_eq!(measured.now, Counters::default());
    assert_eq!(measured.since, at(10 * HOUR + 2));
    assert_eq!(measured.last_test, Some(at(10 * HOUR + 1)));
}

#[test]
fn a_segment_from_a_host_whose_clock_is_ahead_has_no_latency_and_a_part_of_a_copy_is_no_point() {
    let mut measured = begin(10 * HOUR);
    let part = Receipt { len: 50, cut: None };
    measured.received(at(10 * HOUR), part);
    assert_eq!((measured.now.successful, measured.now.received), (0, 50));
    assert_eq!(measured.size_average(), None);
    let ahead = Receipt {
        len: 10,
        cut: Some(at(11 * HOUR)),
    };
    measured.received(at(10 * HOUR), ahead);
    assert_eq!(measured.latency_average_ms(), Some(0));
    assert_eq!(measured.size_average(), Some(10));
}

#[test]
fn the_efficiency_of_compression_is_what_was_saved() {
    let mut measured = begin(0);
    assert_eq!(measured.compression_percent(), None);
    let sums = StagedSums::default();
    sums.add(1000, 250);
    measured.staged(&sums);
    measured.staged(&sums);
    assert_eq!(measured.now.content, 1000, "counted once");
    assert_eq!(measured.compression_percent(), Some(75));
    sums.add(1000, 5000);
    measured.staged(&sums);
    assert_eq!(
        measured.compression_percent(),
        Some(0),
        "never below nothing"
    );
}

#[test]
fn a_report_is_counted_by_what_came_since_the_last_look() {
    let mut report = LinkReport::new(ReplicationState::Replicating);
    let before = Tally::of(&report);
    report.cycles = 3;
    report.sizes = Bytes(300);
    report.latencies = Duration::from_millis(30);
    report.failures = 2;
    let came = Tally::of(&report).since(&before);
    assert_eq!((came.cycles, came.sizes), (3, 300));
    assert_eq!((came.latencies_ms, came.failures), (30, 2));
    assert_eq!(
        Tally::of(&report).since(&Tally::of(&report)),
        Tally::default()
    );
}

#[derive(Debug, Clone)]
enum Step {
    /// So many seconds pass; negative: the clock is set back.
    Pass(i64),
    Cycle {
        size: u64,
        latency_ms: u64,
    },
    Missed(u64),
    Lost,
    Received {
        len: u64,
        point: bool,
    },
    /// polluxd is killed, and the next one reads what was written.
    Restart,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_i64..900).prop_map(Step::Pass),
        1 => (-4 * HOUR..4 * HOUR).prop_map(Step::Pass),
        4 => (0_u64..1 << 40, 0_u64..100_000)
            .prop_map(|(size, latency_ms)| Step::Cycle { size, latency_ms }),
        1 => (0_u64..100).prop_map(Step::Missed),
        1 => Just(Step::Lost),
        2 => (0_u64..1 << 40, any::<bool>()).prop_map(|(len, point)| Step::Received { len, point }),
        1 => Just(Step::Restart),
        1 => Just(Step::Reset),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_counters_are_those_of_everything_since_the_interval_or_a_reset_began(steps in steps()) {
        let folder = tempfile::tempdir().expect("scratch");
        let files = file::Files::new(folder.path(), folder.path(), model::VmId::random());
        let mut now = 1_000 * HOUR + 17;
        let mut measured = begin(now);
        // The model: everything that happened since counting began.
        let mut cycles: Vec<(u64, u64)> = Vec::new();
        let (mut missed, mut lost, mut received, mut sent) = (0, 0, 0, 0);
        let (mut points, mut moved) = (0, 0);
        let mut start = now.div_euclid(HOUR) * HOUR;
        for (serial, step) in (1_u64..).zip(steps) {
            if let Step::Pass(seconds) = step {
                now += seconds;
            }
            let over = now >= start + HOUR || now < start - HOUR;
            prop_assert_eq!(measured.roll(hourly(), at(now)), over);
            if over || matches!(step, Step::Reset) {
                cycles.clear();
                (missed, lost, received, sent) = (0, 0, 0, 0);
            }
            if over {
                start = now.div_euclid(HOUR) * HOUR;
            }
            match step {
                Step::Pass(_) => {}
                Step::Cycle { size, latency_ms } => {
                    let (tally, last) = cycle(size, latency_ms, now);
                    measured.add(&tally, Some(last));
                    cycles.push((size, latency_ms));
                    sent += size;
                    moved += size;
                    points += 1;
                }
                Step::Missed(more) => {
                    measured.add(&Tally { missed: more, ..Tally::default() }, None);
                    missed += more;
                }
                Step::Lost => {
                    measured.add(&Tally { link_losses: 1, ..Tally::default() }, None);
                    lost += 1;
                }
                Step::Received { len, point } => {
                    let cut = point.then(|| at(now));
                    measured.received(at(now), Receipt { len, cut });
                    received += len;
                    moved += len;
                    if point {
                        cycles.push((len, 0));
                        points += 1;
                    }
                }
                Step::Restart => {
                    files.write(&measured, serial, at(now)).expect("written");
                    let (read, last) = files.read(measured.relationship).expect("there");
                    prop_assert_eq!(&read, &measured);
                    prop_assert_eq!(last, serial);
                    measured = read;
                }
                Step::Reset => measured.reset(at(now)),
            }
            let counted = &measured.now;
            prop_assert_eq!(counted.successful, cycles.len() as u64);
            prop_assert_eq!(counted.sizes, cycles.iter().map(|one| one.0).sum::<u64>());
            prop_assert_eq!(counted.size_max, cycles.iter().map(|one| one.0).max().unwrap_or(0));
            let longest = cycles.iter().map(|one| one.1).max();
            prop_assert_eq!(counted.latency_max_ms, longest.unwrap_or(0));
            let mean = cycles.iter().map(|one| one.1).sum::<u64>().checked_div(cycles.len() as u64);
            prop_assert_eq!(measured.latency_average_ms(), mean);
            prop_assert_eq!((counted.missed, counted.network_failures), (missed, lost));
            prop_assert_eq!((counted.received, counted.sent), (received, sent));
            prop_assert_eq!((measured.points, measured.moved), (points, moved));
            prop_assert!(measured.start < measured.end);
            prop_assert!(at(now) < measured.end);
        }
    }
}
