//! What is told is read back by a parser that takes nothing but the format's grammar
//! (OpenMetrics 1.0, the parts that are used).

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn measures(name: &str, mode: &str) -> Measures {
    let primary = mode == "primary";
    let only = |value: serde_json::Value| {
        if primary {
            value
        } else {
            serde_json::Value::Null
        }
    };
    serde_json::from_value(serde_json::json!({
        "vm": uuid::Uuid::new_v4(), "name": name,
        "relationship": "010f5aab-6fd3-412c-9ad7-62c75531cf74",
        "mode": mode, "state": "replicating", "health": "warning", "peer": "a\\b\"c\nd",
        "interval_start": "2026-11-29T00:00:00Z", "interval_end": "2026-11-29T12:00:00Z",
        "since": "2026-11-29T00:00:00Z", "successful": 719, "due": only(720.into()),
        "missed": only(1.into()), "network_failures": 2, "replication_failures": 3,
        "size_average": "1536 KiB", "size_maximum": "3 MiB", "latency_average_ms": 250,
        "latency_maximum_ms": 90_000, "last_replication": "2026-11-29T06:00:00Z",
        "last_size": "1 MiB", "last_latency_ms": 240, "last_test_failover": null,
        "sent": "1 GiB", "received": "0 B", "compression_percent": only(60.into()),
        "compared": "0 B", "differed": "0 B", "pending": only("2560 KiB".into()),
        "backlog": only("0 B".into()), "rpo_s": 12, "pause_p99_us": only(214.into()),
        "pause_longest_us": only(1_500.into()),
    }))
    .expect("measures")
}

type Labels = BTreeMap<String, String>;

#[derive(Debug)]
struct Family {
    kind: String,
    help: String,
    samples: Vec<(Labels, f64)>,
}

fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut open: Option<(String, Family)> = None;
    let body = text.strip_suffix("# EOF\n").expect("it ends with EOF");
    assert!(body.is_empty() || body.ends_with('\n'));
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            if let Some((name, family)) = open.take() {
                assert!(
                    families.insert(name, family).is_none(),
                    "a family comes once"
                );
            }
            let (name, help) = rest.split_once(' ').expect("a name and a text");
            let family = Family {
                kind: String::new(),
                help: help.to_owned(),
                samples: Vec::new(),
            };
            open = Some((checked(name), family));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a kind");
            let (open, family) = open.as_mut().expect("after its HELP");
            assert_eq!(open, name);
            assert!(family.kind.is_empty() && family.samples.is_empty());
            assert!(["gauge", "counter"].contains(&kind), "{line}");
            family.kind = kind.to_owned();
        } else {
            let (open, family) = open.as_mut().expect("a sample has a family");
            let (name, rest) = line.split_once('{').expect("labels");
            let expected = match family.kind.as_str() {
                "counter" => format!("{open}_total"),
                _ => open.clone(),
            };
            assert_eq!(name, expected);
            let (labels, value) = labels(rest);
            let value: f64 = value.parse().expect("a number");
            assert!(value.is_finite());
            let known = family.samples.iter().any(|(other, _)| *other == labels);
            assert!(!known, "a sample comes once: {line}");
            family.samples.push((labels, value));
        }
    }
    families.extend(open);
    families
}

fn checked(name: &str) -> String {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    assert!(
        name.chars().all(good) && name.starts_with("pollux_"),
        "{name}"
    );
    name.to_owned()
}

/// `name="value",...} ` and what follows.
fn labels(text: &str) -> (Labels, &str) {
    let mut labels = Labels::new();
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once("=\"").expect("a label");
        assert!(
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase()),
            "{name}"
        );
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("the value is closed") {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().expect("escaped").1 {
                    'n' => '\n',
                    same @ ('\\' | '"') => same,
                    other => panic!("\\{other}"),
                }),
                (_, other) => value.push(other),
            }
        };
        assert!(
            labels.insert(name.to_owned(), value).is_none(),
            "a label comes once"
        );
        rest = &after[end + 1..];
        match rest.strip_prefix("} ") {
            Some(value) => return (labels, value),
            None => rest = rest.strip_prefix(',').expect("another label"),
        }
    }
}

#[test]
fn all_families_are_read_back_with_help_kind_and_values() {
    let all = vec![measures("web", "primary"), measures("db 2", "replica")];
    let families = parse(&text(all).expect("text"));
    assert_eq!(families.len(), METRICS.len());
    for (name, family) in &families {
        assert!(family.help.len() > 10, "{name}: {}", family.help);
        for (labels, _) in &family.samples {
            let names: Vec<&str> = labels.keys().map(String::as_str).collect();
            assert_eq!(names, ["id", "mode", "peer", "vm"]);
            assert_eq!(labels["peer"], "a\\b\"c\nd");
        }
    }
    let value = |name: &str, vm: &str| {
        let mut samples = families[name].samples.iter();
        samples
            .find(|(labels, _)| labels["vm"] == vm)
            .map(|(_, value)| *value)
    };
    for (name, web, db) in [
        ("pollux_replication_health", Some(2.0), Some(2.0)),
        ("pollux_replication_points", Some(719.0), Some(719.0)),
        ("pollux_replication_missed_points", Some(1.0), None),
        (
            "pollux_replication_latency_average_seconds",
            Some(0.25),
            Some(0.25),
        ),
        (
            "pollux_replication_size_average_bytes",
            Some(1_572_864.0),
            Some(1_572_864.0),
        ),
        (
            "pollux_replication_compression_saved_ratio",
            Some(0.6),
            None,
        ),
        (
            "pollux_replication_cut_pause_longest_seconds",
            Some(0.0015),
            None,
        ),
        ("pollux_replication_rpo_seconds", Some(12.0), Some(12.0)),
    ] {
        assert_eq!(
            (value(name, "web"), value(name, "db 2")),
            (web, db),
            "{name}"
        );
    }
}

#[test]
fn without_a_relationship_there_are_families_without_samples() {
    let families = parse(&text(Vec::new()).expect("text"));
    assert!(families.values().all(|family| family.samples.is_empty()));
}

#[test]
fn units_stand_at_the_end_of_names_and_no_name_comes_twice() {
    let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), METRICS.len());
    for metric in METRICS {
        let seconds = metric.per >= 1000;
        assert!(
            !seconds || metric.name.ends_with("_seconds"),
            "{}",
            metric.name
        );
        assert!(!metric.name.ends_with("_total"), "the format adds that");
    }
}
