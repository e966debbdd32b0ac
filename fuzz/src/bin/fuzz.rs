//! Builds the fuzz targets, runs each for a while, two at once, and prints what came of it.
//!
//! `fuzz [SECONDS=60] [TARGET...]`. Everything lies in `target/fuzz`: the corpus, which the next run
//! goes on with, a log for each target, and the inputs that broke one. Ends with 1 if there is any.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use pollux_fuzz::{TARGETS, Target};

/// Coverage of every edge and comparison, and every check that Rust can make; as `cargo fuzz` does.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
    "-Ccodegen-units=1",
];
/// Flags are not for build scripts and macros; for those a target must be named.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const AT_ONCE: usize = 2;
const MEMORY_MIB: u32 = 1024;
const SECONDS_PER_INPUT: u32 = 60;
const LONGEST_INPUT: u32 = 8192;

struct Row {
    name: &'static str,
    runs: String,
    coverage: String,
    corpus: String,
    broken: Vec<PathBuf>,
    failed: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let (seconds, targets) = arguments()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace lies above")?;
    let home = root.join("target/fuzz");
    let begun = Instant::now();
    let programs = build(root, &home, &targets)?;
    println!("fuzz: built in {} s", begun.elapsed().as_secs());
    let waiting = Mutex::new(targets.iter());
    let rows = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            while let Some(target) = { waiting.lock().expect("no panic").next() } {
                let row = fuzz(&programs, &home, target, seconds)?;
                rows.lock().expect("no panic").push(row);
            }
            Ok(())
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("no panic"))
    })?;
    let rows = rows.into_inner().expect("no panic");
    print(&rows, &home);
    Ok(rows.iter().all(|row| !row.failed))
}

fn arguments() -> Result<(u32, Vec<&'static Target>)> {
    let mut seconds = 60;
    let mut named = Vec::new();
    for word in std::env::args().skip(1) {
        if let Ok(number) = word.parse() {
            seconds = number;
        } else {
            let names = || {
                let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
                format!(
                    "there is no target `{word}`; there are {}",
                    names.join(", ")
                )
            };
            let found = TARGETS.iter().find(|target| target.name == word);
            named.push(found.with_context(names)?);
        }
    }
    if named.is_empty() {
        named = TARGETS.iter().collect();
    }
    ensure!(seconds > 0, "it takes a number of seconds above 0");
    Ok((seconds, named))
}

/// Builds the targets; the folder of their programs.
fn build(root: &Path, home: &Path, targets: &[&Target]) -> Result<PathBuf> {
    let folder = home.join("build");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args([
            "build",
            "--locked",
            "--profile",
            "fuzz",
            "--target",
            PLATFORM,
        ])
        .args(["--package", "pollux-fuzz", "--target-dir"])
        .arg(&folder)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    for target in targets {
        cargo.args(["--bin", target.name]);
    }
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "the targets cannot be built");
    Ok(folder.join(PLATFORM).join("fuzz"))
}

fn fuzz(programs: &Path, home: &Path, target: &Target, seconds: u32) -> Result<Row> {
    let folder = home.join(target.name);
    let (corpus, seeds, crashes) = (
        folder.join("corpus"),
        folder.join("seeds"),
        folder.join("broken"),
    );
    let temporary = temporary(&folder, target.name);
    for path in [&corpus, &seeds, &crashes, &temporary] {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    for (number, seed) in (target.seeds)().iter().enumerate() {
        fs::write(seeds.join(number.to_string()), seed)?;
    }
    let before = files(&crashes)?;
    let dictionary = folder.join("dictionary");
    let words = target.words.iter().map(|word| entry(word));
    // libFuzzer refuses one without words.
    fs::write(&dictionary, words.chain([entry("\0")]).collect::<String>())?;
    let log = folder.join("log");
    let output = File::create(&log)?;
    let status = Command::new(programs.join(target.name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .arg(format!("-dict={}", dictionary.display()))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-timeout={SECONDS_PER_INPUT}"))
        .arg(format!("-max_len={LONGEST_INPUT}"))
        .arg("-print_final_stats=1")
        .args([&corpus, &seeds])
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("cannot run {}", target.name))?;
    // Some leave files behind when they are ended.
    let _ = fs::remove_dir_all(&temporary);
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !said.contains("INFO: Loaded") {
        bail!(
            "{} was built without coverage; see {}",
            target.name,
            log.display()
        );
    }
    let last = |label: &str| {
        let after = said.rsplit(label).next().filter(|_| said.contains(label));
        let word = after.and_then(|after| after.split_whitespace().next());
        word.unwrap_or("-").to_owned()
    };
    let mut broken = files(&crashes)?;
    broken.retain(|path| !before.contains(path));
    Ok(Row {
        name: target.name,
        runs: last("stat::number_of_executed_units:"),
        coverage: last("cov: "),
        corpus: files(&corpus)?.len().to_string(),
        broken,
        failed: !status.success(),
    })
}

/// Where a target may write: in memory if there is such a place, for some flush what they write.
fn temporary(folder: &Path, target: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory.join(format!("pollux-fuzz-{}-{target}", std::process::id()))
    } else {
        folder.join("tmp")
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// A line of a libFuzzer dictionary.
fn entry(word: &str) -> String {
    let escaped: String = word
        .bytes()
        .map(|byte| match byte {
            b' '..=b'~' if byte != b'"' && byte != b'\\' => char::from(byte).to_string(),
            other => format!("\\x{other:02x}"),
        })
        .collect();
    format!("\"{escaped}\"\n")
}

fn print(rows: &[Row], home: &Path) {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(["target", "runs", "edges", "inputs kept", "result"]);
    for row in rows {
        let result = if row.failed { "BROKEN" } else { "survived" };
        table.add_row([row.name, &row.runs, &row.coverage, &row.corpus, result]);
    }
    println!("{table}");
    for row in rows.iter().filter(|row| row.failed) {
        println!(
            "{}: see {}",
            row.name,
            home.join(row.name).join("log").display()
        );
        for path in &row.broken {
            println!("  {}", path.display());
            println!(
                "  again: cargo run -p pollux-fuzz --bin {} -- {}",
                row.name,
                path.display()
            );
        }
    }
}
