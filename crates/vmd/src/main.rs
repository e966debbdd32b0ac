//! `pollux-vmd --config FILE`: supervises one VM; see the library's documentation.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use pollux_vmd::config::Config;
use rustix::fs::Mode;
use rustix::process::{setsid, umask};

const USAGE: &str = "usage: pollux-vmd --config FILE";
const MAX_CONFIG: u64 = 1 << 20;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match supervise() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn supervise() -> anyhow::Result<()> {
    let file = config_argument(env::args_os().skip(1))?;
    let config = read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    umask(Mode::from_raw_mode(0o077));
    // Fails for the leader of a process group: started by hand, which is fine.
    let _ = setsid();
    pollux_vmd::run(config)?;
    Ok(())
}

fn config_argument(mut args: impl Iterator<Item = OsString>) -> anyhow::Result<PathBuf> {
    match (args.next(), args.next(), args.next()) {
        (Some(name), Some(file), None) if name == "--config" => Ok(PathBuf::from(file)),
        _ => bail!(USAGE),
    }
}

fn read(file: &Path) -> anyhow::Result<Config> {
    let mut text = String::new();
    File::open(file)?
        .take(MAX_CONFIG + 1)
        .read_to_string(&mut text)?;
    let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
    ensure!(length <= MAX_CONFIG, "it is longer than {MAX_CONFIG} bytes");
    Ok(serde_json::from_str(&text)?)
}
