//! Runs in a test guest: writes records that prove what a disk holds; see
//! [`pollux_testkit::workload`]. All that it has to say goes to standard output, the guest's
//! serial line, each line beginning with `pollux-workload:`.
//!
//! `pollux-workload DEVICE [batch=64] [writers=1] [pause-ms=0] [batches=0] [span-mib=0]`; 0 batches:
//! until it is killed; 0 MiB: all of the device, and not only its beginning. What an earlier run left
//! is verified first.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use pollux_testkit::workload::{Cut, Device, Disk, VerifyError, Writer, verify};

struct Options {
    device: String,
    batch: u64,
    writers: u64,
    pause: Duration,
    batches: u64,
    /// In bytes.
    span: u64,
}

fn options() -> Result<Options, String> {
    let mut args = std::env::args().skip(1);
    let mut options = Options {
        device: args.next().ok_or("no device was named")?,
        batch: 64,
        writers: 1,
        pause: Duration::ZERO,
        batches: 0,
        span: u64::MAX,
    };
    for arg in args {
        let bad = || format!("`{arg}` is not understood");
        let (name, value) = arg.split_once('=').ok_or_else(bad)?;
        let value: u64 = value.parse().map_err(|_not_a_number| bad())?;
        match name {
            "batch" => options.batch = value,
            "writers" => options.writers = value.clamp(1, 64),
            "pause-ms" => options.pause = Duration::from_millis(value),
            "batches" => options.batches = value,
            "span-mib" if value > 0 => options.span = value << 20,
            "span-mib" => {}
            _ => return Err(bad()),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let done = options().and_then(|options| {
        run(&options).map_err(|error| format!("I/O ERROR on {}: {error}", options.device))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            say(&format!("FAILED: {fault}"));
            ExitCode::FAILURE
        }
    }
}

/// One write per line: the kernel's own messages share the serial line.
fn say(text: &str) {
    let line = format!("pollux-workload: {text}\n");
    // Nobody could be told.
    let _ = io::stdout().write_all(line.as_bytes());
}

fn run(options: &Options) -> io::Result<()> {
    let disk = Device::open(&options.device, options.span)?;
    match verify(disk.len(), Cut::PowerLoss, |offset, block| {
        disk.read(offset, block)
    }) {
        Ok(found) => say(&format!(
            "found run {} committed {} newest {} checked {}: right",
            hex(&found.run),
            found.committed,
            found.newest,
            found.records_checked
        )),
        Err(VerifyError::NoRun) => say("found no earlier run"),
        Err(VerifyError::Read { source, .. }) => return Err(source),
        Err(fault) => say(&format!("FOUND DAMAGE: {fault}")),
    }
    let mut run = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut run)?;
    let mut writer = Writer::begin(&disk, run, options.batch, options.writers)?;
    say(&format!("run {} begins", hex(&run)));
    let mut batches = 0;
    while options.batches == 0 || batches < options.batches {
        let committed = writer.batch()?;
        say(&format!("flushed {committed}"));
        batches += 1;
        if !options.pause.is_zero() {
            std::thread::sleep(options.pause);
        }
    }
    say("done");
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
