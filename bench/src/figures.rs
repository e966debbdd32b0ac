//! Rows of figures: from samples to `target/bench/<name>.json` and a table.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Color, Table};
use serde::{Serialize, Serializer};

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// It is only told.
    Reported,
}

impl Goal {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::Reported => true,
        }
    }

    /// As the table says it.
    fn verdict(self, value: f64) -> &'static str {
        match self {
            Self::Reported => "",
            _ if self.is_met_by(value) => "yes",
            _ => "no",
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::Reported => f.write_str("reported"),
        }
    }
}

impl Serialize for Goal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    figure: String,
    /// Median of the runs, unless the name says otherwise.
    value: f64,
    unit: &'static str,
    goal: Goal,
    runs: usize,
    min: f64,
    max: f64,
}

impl Figure {
    /// The median of `samples`, of which there is at least one.
    pub(crate) fn of(figure: String, unit: &'static str, goal: Goal, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Self::sorted(figure, unit, goal, &sorted, median)
    }

    /// What `percent` of `samples`, of which there is at least one, do not exceed.
    pub(crate) fn percentile(
        figure: String,
        unit: &'static str,
        goal: Goal,
        samples: &[f64],
        percent: usize,
    ) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        Self::sorted(figure, unit, goal, &sorted, sorted[rank - 1])
    }

    fn sorted(figure: String, unit: &'static str, goal: Goal, sorted: &[f64], value: f64) -> Self {
        Self {
            figure,
            value: rounded(value),
            unit,
            goal,
            runs: sorted.len(),
            min: rounded(sorted[0]),
            max: rounded(sorted[sorted.len() - 1]),
        }
    }
}

/// The rows of a group that are wanted, and those that were measured.
pub(crate) struct Rows<'a> {
    group: &'static str,
    only: &'a str,
    pub(crate) figures: Vec<Figure>,
}

impl<'a> Rows<'a> {
    /// Those of `group` with `only` in their names.
    pub(crate) fn new(group: &'static str, only: &'a str) -> Self {
        let rest = only.strip_prefix(group);
        Self {
            group,
            only: rest.and_then(|rest| rest.strip_prefix('.')).unwrap_or(only),
            figures: Vec::new(),
        }
    }

    /// Whether a row whose name begins like this is wanted.
    pub(crate) fn want(&self, begin: &str) -> bool {
        begin.contains(self.only) || self.only.starts_with(begin)
    }

    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        goal: Goal,
        samples: &[f64],
    ) {
        let name = format!("{}.{}", self.group, name.into());
        self.figures.push(Figure::of(name, unit, goal, samples));
    }
}

/// Far below 2^52.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn number(value: u64) -> f64 {
    value as f64
}

/// Four significant digits: more would be noise.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The target folder that this program was built into.
pub(crate) fn target() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2);
    Ok(target
        .context("this program does not lie in a target folder")?
        .to_owned())
}

/// Writes `target/bench/<name>.json` and prints the table.
pub(crate) fn publish(name: &str, figures: &[Figure]) -> Result<()> {
    let folder = target()?.join("bench");
    let path = folder.join(format!("{name}.json"));
    let json = serde_json::to_vec_pretty(figures).context("figures have no JSON form")?;
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, json))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header([
        "figure", "value", "unit", "goal", "reached", "runs", "min", "max",
    ]);
    for figure in figures {
        let color = if figure.goal.is_met_by(figure.value) {
            Color::Reset
        } else {
            Color::Yellow
        };
        let number = |value: f64| Cell::new(value).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(&figure.figure),
            number(figure.value).fg(color),
            Cell::new(figure.unit),
            Cell::new(figure.goal),
            Cell::new(figure.goal.verdict(figure.value)),
            Cell::new(figure.runs).set_alignment(CellAlignment::Right),
            number(figure.min),
            number(figure.max),
        ]);
    }
    println!("{table}\n{}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_the_median_with_four_digits() {
        let of = |samples: &[f64]| {
            let figure = Figure::of("a".to_owned(), "x", Goal::AtLeast(3.0), samples);
            (figure.value, figure.min, figure.max, figure.runs)
        };
        assert_eq!(of(&[3.0, 1.0, 2.0]), (2.0, 1.0, 3.0, 3));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0, 4));
        assert_eq!(of(&[123_456.0]).0, 123_500.0);
    }

    #[test]
    fn a_percentile_is_a_sample_that_so_many_do_not_exceed() {
        let samples: Vec<f64> = (1..=300).rev().map(f64::from).collect();
        let of = |samples: &[f64], percent| {
            let name = "a".to_owned();
            Figure::percentile(name, "ms", Goal::Reported, samples, percent).value
        };
        assert_eq!(
            [50, 99, 100].map(|at| of(&samples, at)),
            [150.0, 297.0, 300.0]
        );
        assert_eq!([0, 100].map(|at| of(&[7.0], at)), [7.0; 2]);
    }

    #[test]
    fn a_row_has_the_fields_that_readers_of_the_file_expect() {
        let figure = Figure::of("a.b".to_owned(), "x", Goal::AtMost(0.6), &[0.5]);
        let json = serde_json::to_value(figure).expect("a row");
        let expected = serde_json::json!({
            "figure": "a.b", "value": 0.5, "unit": "x", "goal": "<= 0.6",
            "runs": 1, "min": 0.5, "max": 0.5,
        });
        assert_eq!(json, expected);
    }
}
