//! The tests that pages of the documentation name are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const PAGES: [(&str, &str); 2] = [
    ("docs/tracking.md", include_str!("../../docs/tracking.md")),
    (
        "docs/hostile-peers.md",
        include_str!("../../docs/hostile-peers.md"),
    ),
];

/// Names in backticks of as many words as only tests have.
fn named(page: &str) -> BTreeSet<&str> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .filter(|name| name.matches('_').count() >= 4)
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether `text` has a test of that name: a function below an attribute that makes it one, or a
/// function in a block of `proptest!`, which has the same.
fn has(text: &str, name: &str) -> bool {
    let Some(at) = text.find(&format!("fn {name}(")) else {
        return false;
    };
    let above = text[..at].rsplit("\n\n").next().unwrap_or_default();
    above.contains("#[test]") || above.contains("#[tokio::test")
}

#[test]
fn every_test_that_a_page_names_exists() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    sources(&root.join("crates"), &mut files)?;
    sources(&root.join("tests"), &mut files)?;
    let texts = files.iter().map(fs::read_to_string);
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    for (page, text) in PAGES {
        let names = named(text);
        ensure!(names.len() >= 5, "{page} names only {names:?}");
        for name in names {
            let there = texts.iter().any(|text| has(text, name));
            ensure!(there, "{page} names the test {name}, which does not exist");
        }
    }
    Ok(())
}

#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let text = "#[test]\nfn a_b() {}\n\nfn c_d() {}\n\n#[tokio::test]\nasync fn e_f() {}\n";
    assert!(has(text, "a_b") && has(text, "e_f"));
    assert!(!has(text, "c_d") && !has(text, "a"));
    let names = named("`copy_budget` `one_two_three_four_five` and one_two_three_four_six");
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["one_two_three_four_five"]
    );
}
