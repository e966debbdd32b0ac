//! The command line without a polluxd: what it says and how it ends.

use std::process::{Command, Output};

use model::{Code, Problem};

fn pollux(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pollux"))
        .env_remove("POLLUX_SOCKET")
        .args(["--socket", "/absent/api.sock"])
        .args(args)
        .output()
        .expect("pollux runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_polluxd_that_is_not_there_is_unreachable_and_the_way_out_is_told() {
    let output = pollux(&["vm", "list"]);
    assert_eq!(
        output.status.code(),
        Some(i32::from(Code::Unreachable.exit()))
    );
    let said = stderr(&output);
    assert!(
        said.starts_with("error: polluxd at /absent/api.sock: "),
        "{said}"
    );
    assert!(said.contains("--socket"), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn errors_are_one_json_object_when_json_is_asked_for() {
    let output = pollux(&["-o", "json", "vm", "list"]);
    let problem: Problem = serde_json::from_slice(&output.stderr).expect("a problem");
    assert_eq!(problem.code, Code::Unreachable);
    assert_eq!(output.status.code(), Some(i32::from(problem.code.exit())));
}

#[test]
fn a_command_in_the_words_of_hyper_v_is_asked_like_ours() {
    for args in [
        &["Get-VMReplication"][..],
        &["Enable-VMReplication", "web", "-ReplicaServerName", "b"],
        &["-o", "json", "measure-vmreplication", "-VM", "web"],
    ] {
        let output = pollux(args);
        let said = stderr(&output);
        assert!(
            said.contains("polluxd at /absent/api.sock"),
            "{args:?}: {said}"
        );
        assert_eq!(
            output.status.code(),
            Some(i32::from(Code::Unreachable.exit()))
        );
    }
    let output = pollux(&["Get-VMReplication", "-Colour", "red", "-o", "json"]);
    let problem: Problem = serde_json::from_slice(&output.stderr).expect("a problem");
    assert_eq!(problem.code, Code::Invalid);
}

#[test]
fn what_cannot_even_be_asked_ends_with_the_code_of_a_wrong_request() {
    for (args, says) in [
        (&["vm", "create", "../web"][..], "name"),
        (&["vm", "create", "web", "--generation", "3"], "generation"),
        (&["vm", "create", "web", "--memory", "much"], "much"),
        (&["vm", "create", "web", "--initrd", "x"], "--kernel"),
        (&["vm", "fly", "web"], "fly"),
        (&["vm", "create", "web", "--bus", "usb"], "virtio"),
        (&["vm", "upgrade"], "<VM>"),
        (&["disk", "create", "web", "large"], "large"),
        (&["disk", "create", "web", "1GiB", "--bus", "usb"], "virtio"),
        (&["disk", "attach", "web"], "FILE"),
        (&["track", "status"], "<VM>"),
        (&["segment", "info"], "<FILE>"),
        (&["segment", "cat", "x", "--at", "1.5MiB"], "not a size"),
        (
            &["segment", "cat", "x", "--index", "--to", "y"],
            "cannot be used with",
        ),
        (
            &["disk", "export", "web", "0", "x", "--format", "vmdk"],
            "qcow2",
        ),
        (&["failover", "start", "web", "--force"], "--because"),
        (&["replica", "enable", "web"], "--to"),
        (&["replica", "points"], "<VM>"),
        (&["replica", "reset-statistics"], "<VM>"),
        (&["event", "list", "--since", "yesterday"], "12h"),
        (&["Get-VMReplication", "-Colour", "red"], "`-Colour`"),
        (&["Get-VMSwitch"], "Get-VMReplication"),
        (&["suspend-vmreplication"], "`-VMName`"),
        (&["-o", "csv", "vm", "list"], "pollux replica measure"),
        (
            &["replica", "enable", "web", "--to", "b", "--frequency", "0s"],
            "--frequency",
        ),
        (
            &["replica", "enable", "web", "--to", "b", "--disks", "0,0"],
            "all-but:1",
        ),
        (
            &[
                "replica", "enable", "web", "--to", "b", "--keep", "for ever",
            ],
            "--keep",
        ),
        (&["replica", "set", "web"], "--frequency"),
    ] {
        let output = pollux(args);
        assert_eq!(
            output.status.code(),
            Some(i32::from(Code::Invalid.exit())),
            "{args:?}"
        );
        assert!(
            stderr(&output).contains(says),
            "{args:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn what_would_steer_a_terminal_is_escaped_in_errors() {
    let output = pollux(&["vm", "create", "a\u{1b}[31mb"]);
    let said = stderr(&output);
    assert!(said.contains("a\\u{1b}[31mb"), "{said:?}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn help_documents_every_exit_code() {
    let output = pollux(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for code in [
        Code::Failed,
        Code::Invalid,
        Code::NotFound,
        Code::Conflict,
        Code::Forbidden,
        Code::Unreachable,
        Code::Full,
    ] {
        assert!(
            text.contains(&format!("{} ", code.exit())),
            "{code:?}: {text}"
        );
    }
}
