//! What is shipped over what was written, for epochs of 1 s, 5 s, 30 s and 5 min: a block that is written
//! again and again is shipped once an epoch, so that longer epochs ship less.
//!
//! The blocks are counted by the map that diskd keeps ([`DiskState`]: marked at a write, sealed at the
//! end of an epoch, released, confirmed), fed with traces in place of a guest; nothing is read,
//! compressed or sent. What is counted is content before compression. The last epoch of a trace ends
//! with it.
//!
//! Traces are [`generated`], recorded on real file systems (`bench/traces`), or of the user, as
//! [`csv`] files.

mod csv;
mod generated;

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use diskd::state::{DiskState, Marks};
use model::{BLOCK_SIZE, DiskId, RelationshipId};

use crate::figures::{Figure, Goal, publish};
use crate::side::run_folder;

/// Every disk of a trace has this size; its maps take 128 MiB of tmpfs for each length of epochs.
const DISK: u64 = 2 << 40;
const EPOCHS: [(&str, Duration); 4] = [
    ("1s", Duration::from_secs(1)),
    ("5s", Duration::from_secs(5)),
    ("30s", Duration::from_secs(30)),
    ("5min", Duration::from_secs(300)),
];
/// `bench/traces/README.md` says how each was recorded.
const RECORDED: [(&str, &[u8]); 4] = [
    ("packages", include_bytes!("../../traces/packages.csv.zst")),
    ("git", include_bytes!("../../traces/git.csv.zst")),
    ("sqlite", include_bytes!("../../traces/sqlite.csv.zst")),
    ("postgres", include_bytes!("../../traces/postgres.csv.zst")),
];

/// A write of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Write {
    /// Since the trace begins.
    time: Duration,
    /// Bytes.
    at: u64,
    len: u64,
}

/// Counts for the traces that have `only` in their name, or for the one in the file `only`, or, if that
/// is `-`, for the one on the standard input; and publishes.
pub(crate) fn run(only: &str) -> Result<()> {
    let mut figures = Vec::new();
    let only = only.strip_prefix("traces.").unwrap_or(only);
    if only == "-" {
        let writes = csv::read(std::io::stdin().lock());
        replay("stdin", writes, &mut figures)?;
    } else if Path::new(only).is_file() {
        let name = Path::new(only).file_name().unwrap_or_default();
        let writes = csv::open(Path::new(only))?;
        replay(&name.to_string_lossy(), writes, &mut figures)?;
    } else {
        for (name, writes) in generated::all() {
            if name.contains(only) {
                replay(name, writes.map(Ok), &mut figures)?;
            }
        }
        for (name, content) in RECORDED {
            let name = format!("recorded.{name}");
            if name.contains(only) {
                replay(&name, csv::read(decompressed(content)?), &mut figures)?;
            }
        }
        ensure!(
            !figures.is_empty(),
            "no trace is called {only}, and no file"
        );
    }
    publish("traces", &figures)
}

fn decompressed<'a>(content: impl Read + 'a) -> Result<impl Read + 'a> {
    zstd::Decoder::new(content).context("the trace cannot be decompressed")
}

/// Epochs of one length of a disk.
struct Epochs {
    state: DiskState,
    length: Duration,
    /// When the current one ends.
    end: Duration,
    /// Blocks of those that have ended.
    shipped: u64,
}

impl Epochs {
    fn new(folder: &Path, length: Duration) -> Result<Self> {
        let path = folder.join(format!("{}", length.as_secs()));
        let state = DiskState::open(&path, durable::boot_id()?, DiskId::random(), DISK, 1)?;
        state.track(RelationshipId::random(), Marks::None);
        Ok(Self {
            state,
            length,
            end: length,
            shipped: 0,
        })
    }

    fn write(&mut self, write: &Write) {
        if write.time >= self.end {
            self.ship();
            let passed = write.time.as_nanos() / self.length.as_nanos();
            self.end = self.length * (u32::try_from(passed).unwrap_or(u32::MAX - 1) + 1);
        }
        let end = (write.at + write.len).div_ceil(BLOCK_SIZE);
        self.state.mark(write.at / BLOCK_SIZE..end);
    }

    /// The epoch ends.
    fn ship(&mut self) {
        self.state.seal();
        self.shipped += self.state.sealed();
        self.state.release();
        self.state.confirm();
    }
}

fn replay(
    name: &str,
    writes: impl Iterator<Item = Result<Write>>,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    let folder = run_folder()?;
    let mut epochs: Vec<Epochs> = EPOCHS
        .iter()
        .map(|(_, length)| Epochs::new(folder.path(), *length))
        .collect::<Result<_>>()?;
    let (mut written, mut number, mut last) = (0, 0_u64, Duration::ZERO);
    for write in writes {
        let write = write.with_context(|| format!("cannot read the trace {name}"))?;
        let inside = write
            .at
            .checked_add(write.len)
            .is_some_and(|end| end <= DISK);
        ensure!(
            inside,
            "the trace {name} writes behind the 2 TiB that are looked at: {write:?}"
        );
        epochs.iter_mut().for_each(|epochs| epochs.write(&write));
        written += write.len;
        number += 1;
        last = last.max(write.time);
    }
    ensure!(written > 0, "the trace {name} has no writes");
    // Far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let mut add = |what: &str, unit, bytes: u64, of: u64| {
        let value = bytes as f64 / of as f64;
        let figure = format!("traces.{name}.{what}");
        figures.push(Figure::of(figure, unit, Goal::Reported, &[value]));
    };
    add("written", "MiB", written, 1 << 20);
    add("writes", "", number, 1);
    add("seconds", "s", last.as_secs(), 1);
    for ((length, _), epochs) in EPOCHS.iter().zip(&mut epochs) {
        epochs.ship();
        let what = format!("shipped_over_written.{length}");
        add(&what, "x", epochs.shipped * BLOCK_SIZE, written);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(seconds: f64, at: u64, len: u64) -> Write {
        let time = Duration::from_secs_f64(seconds);
        Write { time, at, len }
    }

    #[test]
    fn a_block_is_shipped_once_in_each_epoch_in_which_it_is_written() {
        let folder = tempfile::tempdir().expect("scratch");
        let mut epochs = Epochs::new(folder.path(), Duration::from_secs(5)).expect("made");
        for (at, write) in [
            (0, write(0.0, 0, 4096)),
            // Again, and a part of the next one.
            (0, write(4.9, 0, 4608)),
            (2, write(5.0, 512, 512)),
            (3, write(104.0, 1 << 30, 8192)),
            (5, write(105.0, 0, 1)),
        ] {
            epochs.write(&write);
            assert_eq!(epochs.shipped, at, "{write:?}");
        }
        epochs.ship();
        assert_eq!(epochs.shipped, 6);
    }

    #[test]
    fn the_recorded_traces_can_be_read_and_last_at_least_twenty_minutes() {
        for (name, content) in RECORDED {
            let writes = csv::read(decompressed(content).expect("zstd"));
            let writes: Vec<Write> = writes.map(|write| write.expect("a write")).collect();
            assert!(writes.len() > 1000, "{name}");
            let end = writes[writes.len() - 1].time;
            assert!(end > Duration::from_secs(1190), "{name}: {end:?}");
            assert!(content.len() < 300 << 10, "{name}");
        }
    }
}
