//! How the changes of a VM are tracked, for people.

use api::{Epochs, Finding, IntentLog, Tracking};

use crate::show::{Shown, columns, exact_time, finish, harmless, list};

impl Shown for Tracking {
    fn table(&self) -> String {
        let mut table = columns(&[
            "Disk", "Size", "Marked", "Sealed", "Staged", "Suspect", "Armed", "Log",
        ]);
        for disk in &self.disks {
            let mut row = vec![disk.slot.to_string(), disk.size.to_string()];
            match &disk.tracked {
                None => row.extend(["-"; 6].map(str::to_owned)),
                Some(tracked) => {
                    let sizes = [
                        tracked.marked,
                        tracked.sealed,
                        tracked.unconfirmed,
                        tracked.suspect,
                        tracked.armed,
                    ];
                    row.extend(sizes.map(|size| size.to_string()));
                    row.push(log(&tracked.log).to_owned());
                }
            }
            table.add_row(row);
        }
        let mut facts = vec![
            ("Twin", format!("at host {}, {}", self.peer, self.state)),
            ("Tracking", self.health.to_string()),
        ];
        facts.extend(of_epochs(&self.epochs));
        let findings: String = self.findings.iter().map(of_finding).collect();
        format!("{}\n\n{}{findings}", finish(&table), list(facts))
    }
}

fn log(log: &IntentLog) -> &'static str {
    match log {
        IntentLog::Kept => "kept",
        IntentLog::Lost { .. } => "lost",
    }
}

fn of_epochs(epochs: &Epochs) -> Vec<(&'static str, String)> {
    let folded_back = match &epochs.last_fold_back {
        None => epochs.folded_back.to_string(),
        Some(last) => format!(
            "{}, the last at {} UTC: {}",
            epochs.folded_back,
            exact_time(last.time),
            harmless(&last.why)
        ),
    };
    let pause = if epochs.cuts == 0 {
        "-".to_owned()
    } else {
        format!(
            "last {}, median {}, 99 % {}, longest {}",
            milliseconds(epochs.pause_last_us),
            milliseconds(epochs.pause_p50_us),
            milliseconds(epochs.pause_p99_us),
            milliseconds(epochs.pause_longest_us)
        )
    };
    vec![
        (
            "Cuts",
            format!("{}, and {} given up", epochs.cuts, epochs.abandoned),
        ),
        ("Pause", pause),
        ("Copied before write", epochs.copied.to_string()),
        ("Folded back", folded_back),
    ]
}

/// Below, for a sentence in a narrow column cannot be read.
fn of_finding(finding: &Finding) -> String {
    let Finding {
        health,
        disk,
        what,
        way_out,
    } = finding;
    let thing = disk.map_or_else(|| "the VM".to_owned(), |disk| format!("disk {disk}"));
    // Reasons may name files.
    let (what, way_out) = (harmless(what), harmless(way_out));
    format!("\n\n{health}: {thing}: {what}. {way_out}")
}

/// Such as `0.21 ms`.
fn milliseconds(us: u64) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(change: impl FnOnce(&mut serde_json::Value)) -> Tracking {
        let mut value = serde_json::json!({
            "vm": "3113a526-618a-457f-a413-8ba96208dae2", "name": "web",
            "relationship": "010f5aab-6fd3-412c-9ad7-62c75531cf74",
            "peer": "pollux", "state": "replicating", "health": "normal", "findings": [],
            "disks": [
                {"slot": 0, "id": "67e55044-10b1-426f-9247-bb680e5fe0c8", "size": "1023 GiB",
                 "tracked": {"marked": "1048572 KiB", "sealed": "1023 MiB",
                    "unconfirmed": "1048575 MiB", "suspect": "1048575 MiB",
                    "armed": "1048575 MiB", "log": "kept", "commits": 7, "sweeps": 2}},
                {"slot": 1, "id": "67e55044-10b1-426f-9247-bb680e5fe0c9", "size": "1 GiB",
                 "tracked": null},
            ],
            "epochs": {"cuts": 12, "abandoned": 1, "folded_back": 1,
                "last_fold_back": {"why": "no space left", "time": "2026-11-22T22:00:00Z"},
                "pause_last_us": 214, "pause_longest_us": 12_345, "pause_p50_us": 100,
                "pause_p99_us": 1008, "copied": "12 MiB"},
        });
        change(&mut value);
        serde_json::from_value(value).expect("a status")
    }

    #[test]
    fn the_table_fits_a_terminal_of_eighty_columns_with_the_largest_figures() {
        let text = status(|_| {}).table();
        let table: Vec<&str> = text.lines().take(3).collect();
        assert!(table[0].starts_with("Disk"), "{text}");
        assert!(table[2].starts_with("1 "), "{text}");
        for line in table {
            assert!(line.chars().count() <= 80, "{line}: {}", line.len());
        }
    }

    #[test]
    fn what_became_of_the_epochs_stands_below() {
        let text = status(|_| {}).table();
        for part in [
            "at host pollux, Replicating",
            "12, and 1 given up",
            "last 0.21 ms, median 0.10 ms, 99 % 1.00 ms, longest 12.34 ms",
            "12 MiB",
            "1, the last at 2026-11-22 22:00:00.000 UTC: no space left",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn findings_stand_on_lines_of_their_own_and_steer_no_terminal() {
        let text = status(|value| {
            value["health"] = "warning".into();
            value["disks"][0]["tracked"]["log"] = serde_json::json!({"lost": {"why": "x"}});
            value["findings"] = serde_json::json!([{
                "health": "warning", "disk": 0, "what": "has no log: \u{1b}[31m", "way_out": "Mend it",
            }]);
        })
        .table();
        let last = text.lines().last().expect("lines");
        assert_eq!(last, "Warning: disk 0: has no log: \\u{1b}[31m. Mend it");
        assert!(text.contains("lost"), "{text}");
    }

    #[test]
    fn before_the_first_cut_there_is_no_pause() {
        let text = status(|value| {
            value["epochs"]["cuts"] = 0.into();
            value["epochs"]["last_fold_back"] = serde_json::Value::Null;
        })
        .table();
        let pause = text.lines().find(|line| line.starts_with("Pause"));
        assert!(pause.expect("a line").ends_with(" -"), "{text}");
    }
}
