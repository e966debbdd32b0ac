//! `scripts/check-layers` accepts this workspace and refuses each way of breaking the order.
//!
//! The broken workspaces are small ones in a temporary folder: `low`, then `high`, then the
//! crate for tests, as in our own list, and a program `top` that the list does not name.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A crate of the small workspace and the body of its manifest after `[package]`.
type Crate<'a> = (&'a str, &'a str);

const LIST: &str = r#"
[workspace]
resolver = "3"
members = ["crates/*"]

[workspace.dependencies]
low = { package = "pollux-low", path = "crates/low" }
high = { package = "pollux-high", path = "crates/high" }
testkit = { package = "pollux-testkit", path = "crates/testkit" }
"#;

fn check(workspace: &Path) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/check-layers");
    Command::new(script)
        .arg(workspace)
        .env("CARGO_NET_OFFLINE", "true")
        .output()
        .unwrap()
}

fn check_crates(changed: Crate<'_>) -> Output {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("Cargo.toml"), LIST).unwrap();
    let sound = [
        ("low", "[dev-dependencies]\ntestkit.workspace = true"),
        ("high", ""),
        ("testkit", "[dependencies]\nlow.workspace = true"),
        ("top", "[dependencies]\nhigh.workspace = true"),
    ];
    for (name, body) in sound {
        let body = if name == changed.0 { changed.1 } else { body };
        let source = folder.path().join("crates").join(name).join("src");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("lib.rs"), "").unwrap();
        let package =
            format!("[package]\nname = \"pollux-{name}\"\nedition = \"2024\"\n\n{body}\n");
        fs::write(source.join("../Cargo.toml"), package).unwrap();
    }
    check(folder.path())
}

#[track_caller]
fn accepted(changed: Crate<'_>) {
    let output = check_crates(changed);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

#[track_caller]
fn refused(changed: Crate<'_>, complaint: &str) {
    let output = check_crates(changed);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "accepted {changed:?}");
    assert!(errors.contains(complaint), "{errors}");
}

#[test]
fn every_crate_depends_only_on_those_above_it() {
    let output = check(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

#[test]
fn a_sound_order_is_accepted() {
    accepted(("none of them", ""));
}

#[test]
fn a_crate_that_uses_one_below_it_is_refused() {
    refused(
        ("low", "[dependencies]\nhigh.workspace = true"),
        "pollux-low: uses pollux-high, which lies below it",
    );
}

#[test]
fn a_build_script_counts_and_tests_do_not() {
    refused(
        ("low", "[build-dependencies]\nhigh.workspace = true"),
        "pollux-low: uses pollux-high, which lies below it",
    );
    accepted(("low", "[dev-dependencies]\nhigh.workspace = true"));
}

#[test]
fn a_dependency_behind_a_feature_counts_too() {
    refused(
        (
            "low",
            "[dependencies]\nhigh = { workspace = true, optional = true }",
        ),
        "pollux-low: uses pollux-high",
    );
}

#[test]
fn the_crate_for_tests_is_refused_outside_tests() {
    refused(
        ("high", "[dependencies]\ntestkit.workspace = true"),
        "pollux-high: uses testkit outside its tests",
    );
}

#[test]
fn a_crate_missing_from_the_list_may_be_used_by_nobody() {
    refused(
        (
            "low",
            "[dependencies]\ntop = { package = \"pollux-top\", path = \"../top\" }",
        ),
        "pollux-low: uses pollux-top, which nothing may use",
    );
}
