use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::TermId;

const HOUR: i64 = 3600;
/// A whole hour, day and week of UTC: Monday, 4 August 2025.
const MONDAY: i64 = 1_754_265_600;

fn keep(text: &str) -> Keep {
    text.parse().expect(text)
}

/// Number of cases: `PROPTEST_CASES` raises it.
fn cases(usual: u32) -> ProptestConfig {
    let raised = std::env::var("PROPTEST_CASES").ok();
    let cases = raised.and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(usual),
        ..ProptestConfig::default()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// Points that were cut in this order at these seconds.
fn points(seconds: impl IntoIterator<Item = i64>) -> Vec<(PointId, Timestamp)> {
    let term = TermId::random();
    let point = |sequence| PointId { term, sequence };
    (1..)
        .zip(seconds)
        .map(|(sequence, second)| (point(sequence), at(second)))
        .collect()
}

/// What is left when `going` is done; it must be something that a journal can do.
fn apply(points: &[(PointId, Timestamp)], going: &[Going]) -> Vec<(PointId, Timestamp)> {
    let mut left = points.to_vec();
    for step in going {
        match step {
            Going::Merge(point) => assert_eq!(left.remove(0).0, *point, "the oldest"),
            Going::Squash { points, into, .. } => {
                assert!(!points.is_empty());
                let first = left.iter().position(|(id, _)| *id == points[0]);
                let first = first.expect("it is there");
                assert!(first > 0, "the oldest is merged");
                let neighbours = &left[first..=first + points.len()];
                let ids = neighbours.iter().map(|(id, _)| id);
                assert!(ids.eq(points.iter().chain([into])), "neighbours");
                left.drain(first..first + points.len());
            }
        }
    }
    left
}

fn kept(keep: &Keep, points: &[(PointId, Timestamp)], now: i64) -> Vec<(PointId, Timestamp)> {
    apply(points, &keep.judge(points, |_| false, at(now)))
}

fn seconds(points: &[(PointId, Timestamp)]) -> Vec<i64> {
    points.iter().map(|(_, time)| time.as_second()).collect()
}

#[test]
fn a_policy_reads_back_as_it_was_written() {
    for (text, written) in [
        ("1h:all,24h:hourly", "1h:all,24h:hourly"),
        (" 60min : all , 1d : 60min ", "1h:all,24h:hourly"),
        (
            "1h:all,24h:hourly,7d:daily,8w:weekly",
            "1h:all,24h:hourly,7d:daily,8w:weekly",
        ),
        ("12:all", "12:all"),
        ("12:all,24:hourly,7:daily", "12:all,24:hourly,7:daily"),
        ("90s:all,6h:15min,1w:24h", "90s:all,6h:15min,7d:daily"),
        ("520w:2w", "520w:2w"),
    ] {
        let policy = keep(text);
        assert_eq!(policy.to_string(), written, "{text}");
        assert_eq!(keep(written), policy, "{text}");
        let json = serde_json::to_string(&policy).expect("has a JSON form");
        assert_eq!(json, format!("\"{written}\""));
        assert_eq!(serde_json::from_str::<Keep>(&json).expect("read"), policy);
    }
    assert_eq!(Keep::default(), keep("1h:all,24h:hourly"));
}

#[test]
fn what_is_no_policy_is_refused_with_a_reason_that_names_the_part_at_fault() {
    for (text, told) in [
        ("", "no step"),
        (" ", "no step"),
        ("1h", "`1h` is no step"),
        ("1h:all,", "`` is no step"),
        ("1h:all;24h:hourly", "which points"),
        ("1m:all", "`1m` does not say how far back"),
        ("h:all", "`h` does not say"),
        ("0:all", "`0` does not say"),
        ("0h:all", "`0h` does not say"),
        ("-1h:all", "`-1h` does not say"),
        ("1.5h:all", "`1.5h` does not say"),
        (
            "100001:all",
            "up to 520 weeks, or a number of points up to 100000",
        ),
        ("99999999999999999999:all", "how far back"),
        ("99999999999999999999w:all", "how far back"),
        ("521w:all", "how far back"),
        ("1h:some", "`some` does not say which points"),
        ("24h:3600", "`3600` does not say which points"),
        ("24h:0min", "`0min` does not say which points"),
        ("24h:", "`` does not say which points"),
        ("1h:daily", "reaches back less"),
        (
            "1h:all,1h:hourly",
            "`1h:hourly` has to reach further back than `1h:all`",
        ),
        (
            "24h:hourly,7d:all",
            "`7d:all` has to keep fewer points than `24h:hourly`",
        ),
        ("1h:all,24h:all", "has to keep fewer points"),
        ("24:hourly,24h:daily", "has to reach further back"),
        (
            "1s:all,2s:1s,3s:2s,4s:3s,5s:4s,6s:5s,7s:6s,8s:7s,9s:8s",
            "9 steps are more than 8",
        ),
    ] {
        let error = text.parse::<Keep>().expect_err(text).to_string();
        assert!(error.contains(told), "{text}: {error}");
        let json = serde_json::to_string(text).expect("a string");
        serde_json::from_str::<Keep>(&json).expect_err("refused there too");
    }
}

#[test]
fn every_point_of_the_last_hour_is_kept_and_one_an_hour_before_that() {
    // One every ten minutes for 48 hours, the last one at a whole hour.
    let all = points((0..=48 * 6).map(|n| MONDAY + n * 600));
    let now = MONDAY + 48 * HOUR;
    let left = seconds(&kept(&Keep::default(), &all, now));
    let hourly = (24..47).map(|hour| MONDAY + hour * HOUR);
    let dense = (0..=6).map(|n| now - HOUR + n * 600);
    assert_eq!(left, hourly.chain(dense).collect::<Vec<_>>());

    // None grows old while none comes, however far the clock here runs.
    let left = kept(&Keep::default(), &all, now);
    for later in [now + 30 * HOUR, now + 900_000_000] {
        assert_eq!(kept(&Keep::default(), &left, later), left);
    }
}

#[test]
fn days_and_weeks_begin_where_people_see_them_begin() {
    let all = points((0..21 * 8).map(|n| MONDAY - 7 * 24 * HOUR + n * 3 * HOUR));
    let now = MONDAY + 14 * 24 * HOUR;
    let left = seconds(&kept(&keep("3d:daily,8w:weekly"), &all, now));
    let day = |n: i64| MONDAY + n * 24 * HOUR;
    assert_eq!(
        left,
        [
            day(-7),
            day(0),
            day(7),
            day(11),
            day(12),
            day(13),
            day(14) - 3 * HOUR
        ]
    );
}

#[test]
fn a_step_that_counts_keeps_as_many_whatever_their_age() {
    let all = points((0..100).map(|n| MONDAY + n * 600));
    let now = MONDAY + 900 * HOUR;
    assert_eq!(
        seconds(&kept(&keep("3:all"), &all, now)),
        [97, 98, 99].map(|n| MONDAY + n * 600)
    );
    let left = seconds(&kept(&keep("2:all,3:hourly"), &all, now));
    assert_eq!(left, [84, 90, 96, 98, 99].map(|n| MONDAY + n * 600));
    assert_eq!(kept(&keep("100000:all"), &all, now), all);
}

#[test]
fn what_is_held_stays_and_nothing_is_merged_past_it() {
    let all = points((0..10).map(|n| MONDAY + n * 60));
    let held = all[4].0;
    let going = keep("1:all").judge(&all, |id| id == held, at(MONDAY + HOUR));
    let merged: Vec<_> = all[..4].iter().map(|(id, _)| Going::Merge(*id)).collect();
    let squashed = Going::Squash {
        points: all[5..9].iter().map(|(id, _)| *id).collect(),
        into: all[9].0,
        lasts: false,
    };
    assert_eq!(going, [merged, vec![squashed]].concat());
    assert_eq!(Keep::default().judge(&[], |_| false, at(MONDAY)), []);
}

#[test]
fn points_are_put_into_one_that_stays_once_all_of_its_hour_have_grown_old() {
    // One every ten minutes; what lasts is done, the rest waits.
    let mut left: Vec<(PointId, Timestamp)> = Vec::new();
    let mut sizes = Vec::new();
    let policy = keep("1h:all,24h:hourly,7d:daily");
    for point in points((0..6 * 24 * 9).map(|n| MONDAY + n * 600)) {
        left.push(point);
        let mut going = policy.judge(&left, |_| false, point.1);
        going.retain(|step| match step {
            Going::Merge(_) => true,
            Going::Squash { points, lasts, .. } => {
                sizes.extend(lasts.then_some(points.len()));
                *lasts
            }
        });
        left = apply(&left, &going);
        assert!(left.len() < 12 + 25 + 24 + 8);
    }
    // Hours of six points, days of 24 hours: each was written once for both.
    assert!(sizes.iter().all(|size| [5, 23].contains(size)), "{sizes:?}");
    assert!(sizes.len() > 200);
}

#[test]
fn a_clock_that_jumps_takes_no_history_with_it() {
    let policy = Keep::default();
    let good: Vec<i64> = (0..=24).map(|n| MONDAY + n * HOUR).collect();
    let now = MONDAY + 24 * HOUR;
    let year = 365 * 24 * HOUR;
    for wrong in [0, now - year, now + year, now + 40 * year] {
        // The clock of the primary is wrong for ten points, and nobody has noticed yet.
        let bad: Vec<i64> = (0..10).map(|n| wrong + n * 60).collect();
        let all = points(good.iter().chain(&bad).copied());
        for here in [now, now - HOUR, 0] {
            let left = seconds(&kept(&policy, &all, here));
            assert!(
                good.iter().all(|time| left.contains(time)),
                "{wrong}, {here}"
            );
        }
        // It was put right, and points come again.
        let after = (1..=10).map(|n| now + n * 60);
        let all = points(good.iter().chain(&bad).copied().chain(after));
        let left = seconds(&kept(&policy, &all, now + 600));
        let lost = good.iter().filter(|time| !left.contains(time)).count();
        assert_eq!(lost, 1, "{wrong}: the oldest, which is older than 24 hours");
        assert!(
            bad.iter().all(|time| left.contains(time)),
            "{wrong}: as old as the next"
        );
    }
    // The clock here is that of a board without a battery: nothing goes.
    let all = points(good.iter().copied());
    assert_eq!(kept(&policy, &all, 0), all);
    assert_eq!(kept(&keep("24h:hourly"), &all, -MONDAY), all);
}

#[test]
fn points_of_one_instant_are_told_apart_by_their_order() {
    let all = points([MONDAY; 50]);
    assert_eq!(kept(&Keep::default(), &all, MONDAY + HOUR), all);
    let later = points([MONDAY; 50].into_iter().chain([MONDAY + 2 * HOUR]));
    let left = kept(&Keep::default(), &later, MONDAY + 2 * HOUR);
    assert_eq!(left, [later[0], later[50]]);
}

/// What the words of a policy mean, for clocks that are right: by the letter.
fn by_definition(keep: &Keep, points: &[(PointId, Timestamp)], at: usize, now: Timestamp) -> bool {
    let present = now.min(points[points.len() - 1].1);
    let wants = |step: &Step| {
        let same = |a: Timestamp, b: Timestamp| match step.grain {
            Grain::All => false,
            grain => grain.bucket(a) == grain.bucket(b),
        };
        let time = points[at].1;
        let is_first = !points[..at].iter().any(|(_, other)| same(*other, time));
        let newer: Vec<_> = points[at..]
            .iter()
            .filter(|(_, other)| !same(*other, time))
            .collect();
        is_first
            && match step.span {
                Span::Age(age) => {
                    let age = SignedDuration::from_secs(i64::try_from(age).expect("small"));
                    present.duration_since(time) <= age
                }
                Span::Count(count) => match step.grain {
                    Grain::All => points.len() - at <= count as usize,
                    grain => {
                        let buckets: BTreeSet<_> =
                            newer.iter().map(|(_, time)| grain.bucket(*time)).collect();
                        buckets.len() < count as usize
                    }
                },
            }
    };
    at + 1 == points.len() || keep.steps().iter().any(wants)
}

fn policy() -> impl Strategy<Value = Keep> {
    let one = prop_oneof![
        Just("1h:all,24h:hourly"),
        Just("2min:all,20min:5min,2h:hourly"),
        Just("3:all"),
        Just("3:all,4:5min,3:hourly"),
        Just("40s:10s,5min:1min"),
        Just("7s:7s,200s:45s"),
        Just("24h:hourly"),
    ];
    one.prop_map(keep)
}

/// Seconds from one point to the next.
fn gaps() -> impl Strategy<Value = Vec<i64>> {
    let gap = prop_oneof![Just(0), 0..20_i64, Just(30), 0..700_i64, 0..9000_i64];
    vec(gap, 1..60)
}

fn steady(gaps: &[i64]) -> Vec<(PointId, Timestamp)> {
    let mut second = MONDAY;
    points(gaps.iter().map(|gap| {
        second += gap;
        second
    }))
}

/// Any times at all.
fn wild() -> impl Strategy<Value = Vec<i64>> {
    let second = prop_oneof![
        Just(MONDAY),
        MONDAY..MONDAY + 300,
        MONDAY - 9000..MONDAY + 9000,
        Just(0),
        Just(i64::from(i32::MAX)),
        -300_000_000_000..250_000_000_000_i64,
    ];
    vec(second, 1..60)
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn exactly_what_no_step_wants_goes(policy in policy(), gaps in gaps(), later in 0..9000_i64) {
        let all = steady(&gaps);
        let now = all[all.len() - 1].1 + SignedDuration::from_secs(later);
        let left = apply(&all, &policy.judge(&all, |_| false, now));
        let wanted: Vec<_> = (0..all.len())
            .filter(|at| by_definition(&policy, &all, *at, now))
            .map(|at| all[at])
            .collect();
        prop_assert_eq!(left, wanted);
    }

    #[test]
    fn what_is_left_is_left_again_whatever_the_clocks_say(
        policy in policy(), times in wild(), now in wild(), held in any::<u64>(),
    ) {
        let all = points(times);
        let is_held = |id: PointId| held >> (id.sequence % 64) & 1 == 1;
        let now = at(now[0]);
        let left = apply(&all, &policy.judge(&all, is_held, now));
        prop_assert_eq!(left.last(), all.last());
        prop_assert!(all.iter().all(|point| !is_held(point.0) || left.contains(point)));
        prop_assert_eq!(policy.judge(&left, is_held, now), vec![]);
    }

    #[test]
    fn what_went_once_would_not_be_wanted_later(policy in policy(), gaps in gaps(), times in wild()) {
        // The clock here goes on, or back; what is left at one time has all that is at a later one.
        let all = steady(&gaps);
        let mut clocks: Vec<_> = times.into_iter().map(at).collect();
        clocks.sort_unstable();
        let mut before = all.clone();
        for now in clocks {
            let left = apply(&all, &policy.judge(&all, |_| false, now));
            prop_assert!(left.iter().all(|point| before.contains(point)));
            before = left;
        }
    }

    #[test]
    fn it_does_not_matter_how_often_it_is_judged_while_points_come(
        policy in policy(), gaps in gaps(), skip in 1..9_usize,
    ) {
        // So an hourly point, once chosen, is not given up for another one of its hour.
        let all = steady(&gaps);
        let mut often: Vec<(PointId, Timestamp)> = Vec::new();
        let mut seldom = Vec::new();
        for (number, point) in all.iter().enumerate() {
            often.push(*point);
            seldom.push(*point);
            often = apply(&often, &policy.judge(&often, |_| false, point.1));
            if number % skip == 0 {
                seldom = apply(&seldom, &policy.judge(&seldom, |_| false, point.1));
            }
        }
        let now = all[all.len() - 1].1;
        seldom = apply(&seldom, &policy.judge(&seldom, |_| false, now));
        prop_assert_eq!(&often, &seldom);
        prop_assert_eq!(often, apply(&all, &policy.judge(&all, |_| false, now)));
    }

    #[test]
    fn one_point_with_a_wrong_time_costs_no_more_than_the_place_that_it_takes(
        policy in policy(), gaps in gaps(), wrong in wild(), place in any::<usize>(),
    ) {
        let good = steady(&gaps);
        let now = good[good.len() - 1].1;
        let mut all = good.clone();
        // Not the newest: that one says what the present is.
        let place = place % good.len();
        let stranger = (PointId { term: TermId::random(), sequence: 1 }, at(wrong[0]));
        all.insert(place, stranger);
        let left = apply(&all, &policy.judge(&all, |_| false, now));
        let expected = apply(&good, &policy.judge(&good, |_| false, now));
        // It may be the one of its hour, or count as one, for each step.
        let lost = expected.iter().filter(|point| !left.contains(point)).count();
        prop_assert!(lost <= policy.steps().len(), "{lost}");
    }

    #[test]
    fn any_text_is_a_policy_that_reads_back_or_is_refused(text in "[0-9a-z:, ]{0,24}") {
        if let Ok(policy) = text.parse::<Keep>() {
            prop_assert_eq!(policy.to_string().parse::<Keep>(), Ok(policy));
        }
    }
}
