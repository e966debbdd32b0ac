//! How fast a point of a large journal is opened and read: `cargo run --release --example point_reads
//! FOLDER [POINTS [BLOCKS [GIB]]]`. The journal is made in FOLDER, unless it is there.
#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use model::{BLOCK_SIZE, Bytes};
use pollux_journal::large::{self, Large};
use pollux_journal::{Journal, PointReader};

fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap()
        .trim()
        .strip_suffix(" kB")
        .unwrap()
        .parse()
        .unwrap()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().expect("a folder");
    let mut number = |usual| arguments.next().map_or(usual, |text| text.parse().unwrap());
    let large = Large {
        points: number(86_400),
        blocks: number(32),
        size: Bytes(number(100) << 30),
        segments: 4096,
    };
    let path = Path::new(&folder);
    if !path.join("journal/index").exists() {
        let begun = Instant::now();
        large::make(&path.join("journal"), &large).unwrap();
        println!("made in {:?}", begun.elapsed());
        let begun = Instant::now();
        let mut journal = Journal::open(&path.join("journal")).unwrap();
        while let Some(tidy) = journal.begin_tidy() {
            let tidied = tidy.run().unwrap();
            journal.finish_tidy(tidied);
        }
        println!("tidied in {:?}; run again", begun.elapsed());
        return;
    }
    let journal = path.join("journal");
    let newest = {
        let mut opened = Journal::open(&journal).unwrap();
        let newest = opened.points().last().unwrap().id;
        opened.pin(newest, "measured").unwrap();
        newest
    };
    if std::env::var("CHILD").is_err() {
        let exe = std::env::current_exe().unwrap();
        let all: Vec<_> = std::env::args().skip(1).collect();
        let done = std::process::Command::new(exe)
            .args(all)
            .env("CHILD", "1")
            .status();
        assert!(done.unwrap().success());
        return;
    }
    measure(&journal, &large, newest);
}

fn measure(journal: &Path, large: &Large, newest: model::PointId) {
    let before = status("VmRSS:");
    let begun = Instant::now();
    let reader = PointReader::open_pinned(journal, newest).unwrap();
    println!(
        "opened in {:?}, {} KiB more, {reader:?}",
        begun.elapsed(),
        status("VmRSS:") - before
    );
    let (id, size) = reader.disks().next().unwrap();
    let image = reader.image(id).unwrap();
    let changed = large::changed(u64::MAX, large);
    let raw = std::fs::File::create_new(journal.with_file_name("raw"));
    if let Ok(raw) = &raw {
        for block in &changed {
            raw.write_all_at(&large::content(*block), block * BLOCK_SIZE)
                .unwrap();
        }
    }
    let raw = std::fs::File::open(journal.with_file_name("raw")).unwrap();
    let mut seed = 1_u64;
    let mut chance = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut into = [0; 4096];
    for (what, hot) in [
        ("changed", changed.len()),
        ("changed, hot 1000", 1000),
        ("any", 0),
    ] {
        let count = 100_000;
        let blocks: Vec<u64> = (0..count)
            .map(|_| match hot {
                0 => chance() % (size.0 / BLOCK_SIZE),
                hot => changed[usize::try_from(chance()).unwrap() % hot],
            })
            .collect();
        let begun = Instant::now();
        for block in &blocks {
            raw.read_at(&mut into, block * BLOCK_SIZE).unwrap();
        }
        let plain = begun.elapsed();
        let begun = Instant::now();
        for block in &blocks {
            image.read_at(block * BLOCK_SIZE, &mut into).unwrap();
        }
        let point = begun.elapsed();
        println!(
            "{what}: raw {:?}, point {:?} a read, ratio {:.3}",
            plain / count,
            point / count,
            plain.as_secs_f64() / point.as_secs_f64()
        );
    }
    let begun = Instant::now();
    let mut pieces = 0;
    let mut count = |_, _| {
        pieces += 1;
        std::ops::ControlFlow::Continue(())
    };
    let swept = block::Image::translate(&image, 0..size.0, &mut count);
    assert!(testkit::ready(swept).is_ok());
    println!("{pieces} pieces of the whole disk in {:?}", begun.elapsed());
    println!("most memory: {} KiB", status("VmHWM:"));
}
