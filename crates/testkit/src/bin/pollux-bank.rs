//! Runs in a test guest: moves money between accounts on several disks; see [`pollux_testkit::bank`]. All
//! that it has to say goes to standard output, the guest's serial line, each line beginning with
//! `pollux-bank:`.
//!
//! `pollux-bank DEVICE DEVICE...`, until it is killed. A bank that is there already is judged first.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use pollux_testkit::Rng;
use pollux_testkit::bank::{Bank, BankError};
use pollux_testkit::workload::{Device, Disk};

/// So many transfers are told of at once.
const TOLD: u64 = 500;

fn main() -> ExitCode {
    let devices: Vec<String> = std::env::args().skip(1).collect();
    if devices.len() < 2 {
        say("FAILED: a bank has two disks at least");
        return ExitCode::FAILURE;
    }
    let Err(error) = run(&devices);
    say(&format!("FAILED: I/O ERROR: {error}"));
    ExitCode::FAILURE
}

/// One write per line: the kernel's own messages share the serial line.
fn say(text: &str) {
    let line = format!("pollux-bank: {text}\n");
    // Nobody could be told.
    let _ = io::stdout().write_all(line.as_bytes());
}

fn run(devices: &[String]) -> io::Result<std::convert::Infallible> {
    let devices = devices.iter().map(|path| Device::open(path, u64::MAX));
    let devices = devices.collect::<io::Result<Vec<_>>>()?;
    let disks = || devices.iter().map(|device| device as &dyn Disk).collect();
    let mut seed = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    let rng = Rng::new(u64::from_le_bytes(seed));
    let mut bank = match Bank::open(disks(), rng.clone()) {
        Ok((bank, found)) => {
            say(&format!("found {} transfers: right", found.transfers));
            bank
        }
        Err(BankError::NoAccount {
            disk: 0,
            account: 0,
        }) => Bank::found(disks(), rng)?,
        Err(BankError::Read { source, .. }) => return Err(source),
        Err(error) => {
            say(&format!("FOUND DAMAGE: {error}"));
            Bank::found(disks(), rng)?
        }
    };
    loop {
        let transfer = bank.transfer()?;
        if transfer % TOLD == 1 {
            say(&format!("transfer {transfer}"));
        }
    }
}
