//! `pollux segment` as a process: what it prints, what it refuses, and how it ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use journal::{Consistency, Content, DiskExtent, Header, SegmentWriter};
use model::{Bytes, Code, DiskId, Lineage, Problem, SeedId, Since, VmId};

fn pollux(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pollux"))
        .args(args)
        .output()
        .expect("pollux runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("it was chosen here")
}

/// A segment of a disk of 1 MiB: block 2 holds sevens, block 3 reads as zeroes.
fn segment(folder: &Path) -> PathBuf {
    let path = folder.join("1.delta");
    let header = Header {
        vm: VmId::random(),
        disks: vec![DiskExtent {
            joining: false,
            id: DiskId::random(),
            size: Bytes(1 << 20),
        }],
        lineage: Lineage::begin("castor"),
        content: Content::Delta {
            sequence: 1,
            since: Since::Seed {
                seed: SeedId::random(),
                parts: 1,
            },
        },
        time: jiff::Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
    };
    let file = File::create(&path).expect("made");
    let mut writer = SegmentWriter::create(file, &header).expect("begun");
    writer.push_frame(0, 2, &[7; 4096]).expect("pushed");
    writer.push_zero(0, 3, 1).expect("pushed");
    writer.finish().expect("finished");
    path
}

#[test]
fn content_goes_to_standard_output_and_holes_are_told_on_standard_error() {
    let folder = tempfile::tempdir().expect("scratch");
    let path = segment(folder.path());
    let cat = ["segment", "cat", text(&path), "--at", "8KiB", "--length"];
    let held = pollux(&[&cat[..], &["8KiB"]].concat());
    assert!(held.status.success(), "{}", stderr(&held));
    assert_eq!(stderr(&held), "");
    assert_eq!(held.stdout.len(), 8192);
    assert!(held.stdout[..4096].iter().all(|byte| *byte == 7));
    assert!(held.stdout[4096..].iter().all(|byte| *byte == 0));
    let more = pollux(&[&cat[..], &["12KiB"]].concat());
    assert_eq!(more.stdout.len(), 3 * 4096);
    let said = stderr(&more);
    assert!(said.starts_with("notice: 4 KiB of 12 KiB"), "{said}");
    assert!(said.contains("4 KiB at 16 KiB"), "{said}");
}

#[test]
fn a_whole_disk_goes_into_a_sparse_file() {
    let folder = tempfile::tempdir().expect("scratch");
    let path = segment(folder.path());
    let to = folder.path().join("disk.raw");
    let done = pollux(&[
        "-o",
        "json",
        "segment",
        "cat",
        text(&path),
        "--to",
        text(&to),
    ]);
    assert!(done.status.success(), "{}", stderr(&done));
    let copied: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(copied["length"], "1 MiB");
    assert_eq!(copied["absent"][1]["at"], "16 KiB", "{copied}");
    let content = fs::read(&to).expect("there");
    assert_eq!(content.len(), 1 << 20);
    assert!(content[8192..12288].iter().all(|byte| *byte == 7));
}

#[test]
fn verify_ends_with_success_only_for_a_whole_segment() {
    let folder = tempfile::tempdir().expect("scratch");
    let path = segment(folder.path());
    let whole = pollux(&["segment", "verify", text(&path)]);
    assert!(whole.status.success(), "{}", stderr(&whole));
    let bytes = fs::read(&path).expect("read");
    // Not one byte of it may change, whatever part it lies in.
    for at in (0..bytes.len()).step_by(97) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).expect("written");
        let found = pollux(&["-o", "json", "segment", "verify", text(&path)]);
        let problem: Problem = serde_json::from_slice(&found.stderr).expect("a problem");
        assert_eq!(
            found.status.code(),
            Some(i32::from(problem.code.exit())),
            "{at}"
        );
        assert!(problem.thing.contains("1.delta"), "{problem}");
    }
}

#[test]
fn what_is_no_segment_is_told_apart_and_never_a_panic() {
    let folder = tempfile::tempdir().expect("scratch");
    let path = segment(folder.path());
    let bytes = fs::read(&path).expect("read");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("written");
        path
    };
    let cases = [
        (folder.path().join("absent"), Code::NotFound, "outbox"),
        (folder.path().to_owned(), Code::Invalid, "is a folder"),
        (PathBuf::from("/dev/null"), Code::Invalid, "is no file"),
        (file("empty", b""), Code::Invalid, "no segment"),
        (
            file("text", &[b'x'; 9000]),
            Code::Invalid,
            "does not begin as one",
        ),
        (
            file("short", &bytes[..bytes.len() - 1]),
            Code::Invalid,
            "cut short",
        ),
        (
            file("longer", &[&bytes[..], &[0; 10]].concat()),
            Code::Invalid,
            "cut short",
        ),
    ];
    for (path, code, says) in &cases {
        for verb in ["info", "verify", "cat"] {
            let refused = pollux(&["segment", verb, text(path)]);
            let said = stderr(&refused);
            assert_eq!(
                refused.status.code(),
                Some(i32::from(code.exit())),
                "{verb}: {said}"
            );
            assert!(said.contains(says), "{verb} {}: {said}", path.display());
            assert!(said.starts_with("error: file "), "{said}");
            assert!(refused.stdout.is_empty());
        }
    }
}

#[test]
fn a_segment_that_may_not_be_read_says_who_may() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("scratch");
    let path = segment(folder.path());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("changed");
    if File::open(&path).is_ok() {
        // Root reads everything.
        return;
    }
    let refused = pollux(&["segment", "info", text(&path)]);
    assert_eq!(
        refused.status.code(),
        Some(i32::from(Code::Forbidden.exit()))
    );
    assert!(stderr(&refused).contains("as root"), "{}", stderr(&refused));
}

#[test]
fn content_and_json_do_not_share_standard_output() {
    let folder = tempfile::tempdir().expect("scratch");
    let path = segment(folder.path());
    let refused = pollux(&["-o", "json", "segment", "cat", text(&path)]);
    assert_eq!(refused.status.code(), Some(i32::from(Code::Invalid.exit())));
    let listed = pollux(&["-o", "json", "segment", "cat", text(&path), "--index"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(listed[0]["at"], "8 KiB");
    assert_eq!(listed[1]["frame"], serde_json::Value::Null);
}
