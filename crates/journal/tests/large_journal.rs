//! How much memory a point of a journal takes that has a point a second. Each measurement is alone in its
//! process, whose memory is looked at.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::Command;

use model::{BLOCK_SIZE, Bytes};
use pollux_journal::large::{self, Large};
use pollux_journal::{Journal, PointReader};

const MIB: u64 = 1 << 20;
/// Says to a child which journal it opens.
const FOLDER: &str = "POLLUX_TEST_LARGE_JOURNAL";

fn large(points: u64) -> Large {
    Large {
        points,
        segments: 64,
        blocks: 4,
        size: Bytes(1 << 36),
    }
}

/// The most that was ever resident of this process, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// Opens the newest point and reads all that was ever changed; tells the growth of the peak.
fn open_and_read(folder: &Path) {
    let newest = {
        let text = std::fs::read_to_string(folder.join("newest")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let before = peak();
    let reader = PointReader::open_pinned(&folder.join("journal"), newest).unwrap();
    let (id, _) = reader.disks().next().unwrap();
    let mut read = [0; 4096];
    for block in large::changed(64, &large(1)) {
        reader.read_at(id, block * BLOCK_SIZE, &mut read).unwrap();
        assert!(read[..] == large::content(block)[..], "block {block}");
        let far = (block ^ 1) * BLOCK_SIZE;
        reader.read_at(id, far, &mut read).unwrap();
    }
    println!("grown by {}", peak() - before);
}

/// The same in another process; gives the growth.
fn growth(points: u64) -> u64 {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("journal");
    let (_, all) = large::make(&path, &large(points)).unwrap();
    let newest = serde_json::to_string(all.last().unwrap()).unwrap();
    std::fs::write(scratch.path().join("newest"), newest).unwrap();
    let mut journal = Journal::open(&path).unwrap();
    while let Some(tidy) = journal.begin_tidy() {
        let tidied = tidy.run().unwrap();
        journal.finish_tidy(tidied);
    }
    let files = std::fs::read_dir(path.join("runs")).unwrap().count();
    assert!((1..40).contains(&files), "{files} run files");
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_point_among_86400_is_opened_and_read_in_64_mib",
            "--nocapture",
        ])
        .env(FOLDER, scratch.path())
        .output()
        .unwrap();
    let said = String::from_utf8(child.stdout).unwrap();
    assert!(child.status.success(), "{said}");
    let grown = said.lines().find_map(|line| line.split("grown by ").nth(1));
    grown.unwrap().parse().unwrap()
}

#[test]
fn a_point_among_86400_is_opened_and_read_in_64_mib() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        open_and_read(Path::new(&folder));
        return;
    }
    let (few, many) = (growth(8_640), growth(86_400));
    eprintln!("{} and {} KiB", few >> 10, many >> 10);
    assert!(many < 64 * MIB, "{} KiB", many >> 10);
    // The index has a line for each point, and the reader knows where each segment is; no more than that.
    let each = many.saturating_sub(few) / (86_400 - 8_640);
    assert!(each < 512, "{each} bytes for each more point");
}
