//! Someone who is measured, in short slices that alternate with those of others.
//!
//! All sides of a comparison are up at once and take turns, so that what else the machine does hits
//! them alike; a figure is the median of the ratios of neighbouring slices.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::figures::target;
use crate::load::{Client, Load, Pace};
use crate::scratch::Scratch;
use crate::servers::{Aio, Server};

/// Slices of each side for each figure.
pub(crate) const RUNS: usize = 9;
/// Length of a slice.
pub(crate) const RUN: Duration = Duration::from_millis(400);
/// Run before the first slice, and to find a peer's better mode.
pub(crate) const WARM_UP: Duration = Duration::from_millis(200);

/// Where the disk's file lies.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) folder: PathBuf,
    /// Whether the file is opened with O_DIRECT: on tmpfs that would measure nothing that exists.
    pub(crate) direct: bool,
}

impl Place {
    /// Memory.
    pub(crate) fn tmpfs() -> Self {
        Self {
            name: "tmpfs",
            folder: PathBuf::from("/dev/shm"),
            direct: false,
        }
    }

    /// The disk that this program was built on.
    pub(crate) fn disk() -> Result<Self> {
        Ok(Self {
            name: "disk",
            folder: target()?,
            direct: true,
        })
    }
}

/// Folder for the sockets and the state of one server, on tmpfs as in use.
pub(crate) fn run_folder() -> Result<Scratch> {
    Scratch::new(Path::new("/dev/shm"))
}

/// A file of `len` bytes, whole MiB, whose blocks are all there.
pub(crate) fn fill(path: &Path, len: u64) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        let chunk: Vec<u8> = (0..1_u32 << 20).map(|at| at.to_le_bytes()[0] | 1).collect();
        for _ in 0..len / chunk.len() as u64 {
            file.write_all(&chunk)?;
        }
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// One slice of one side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) operations_per_second: f64,
    /// Microseconds of the server's processor time; none where there is no server.
    pub(crate) cpu_per_operation: f64,
}

impl Sample {
    pub(crate) fn speed(&self) -> f64 {
        self.operations_per_second
    }

    pub(crate) fn cpu(&self) -> f64 {
        self.cpu_per_operation
    }
}

/// Someone who is measured.
pub(crate) struct Side {
    pub(crate) server: Option<Server>,
    client: Box<dyn Client>,
    load: Load,
    samples: Vec<Sample>,
}

impl Side {
    pub(crate) fn of_server(server: Server, load: Load) -> Result<Self> {
        let client = server.connect(load)?;
        Ok(Self {
            server: Some(server),
            client,
            load,
            samples: Vec::new(),
        })
    }

    /// The client itself does what a server would do.
    pub(crate) fn of_client(client: impl Client + 'static, load: Load) -> Self {
        Self {
            server: None,
            client: Box::new(client),
            load,
            samples: Vec::new(),
        }
    }

    /// The server that `start` makes, in the mode in which it does most operations per second.
    pub(crate) fn best(
        load: Load,
        direct: bool,
        start: impl Fn(Aio) -> Result<Server>,
    ) -> Result<(Self, Aio)> {
        let mut best = None;
        let mut most = 0.0;
        for aio in Aio::modes(direct) {
            let mut side = Self::of_server(start(*aio)?, load)?;
            side.slice(WARM_UP)?;
            let speed = side.slice(WARM_UP)?.speed();
            if speed > most {
                (best, most) = (Some((side, *aio)), speed);
            }
        }
        best.context("the peer completes nothing")
    }

    pub(crate) fn slice(&mut self, duration: Duration) -> Result<Sample> {
        self.run(&mut Pace::start(self.load, duration))
    }

    /// A slice that the caller paces.
    pub(crate) fn run(&mut self, pace: &mut Pace) -> Result<Sample> {
        let cpu_time =
            |server: &Option<Server>| server.as_ref().map_or(Ok(Duration::ZERO), Server::cpu_time);
        let before = cpu_time(&self.server)?;
        self.client.run(pace)?;
        let (operations, took) = pace.end();
        let cpu = cpu_time(&self.server)?.saturating_sub(before);
        // Far below 2^52.
        #[allow(clippy::cast_precision_loss)]
        let operations = operations as f64;
        Ok(Sample {
            operations_per_second: operations / took.as_secs_f64(),
            cpu_per_operation: cpu.as_secs_f64() * 1e6 / operations,
        })
    }

    /// Takes a slice and keeps it.
    pub(crate) fn take(&mut self) -> Result<()> {
        let sample = self.slice(RUN)?;
        self.samples.push(sample);
        Ok(())
    }

    pub(crate) fn all(&self, of: fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(of).collect()
    }

    /// Ratios of slices that were taken one after the other.
    pub(crate) fn over(&self, other: &Self, of: fn(&Sample) -> f64) -> Vec<f64> {
        let both = self.samples.iter().zip(&other.samples);
        both.map(|(own, other)| of(own) / of(other)).collect()
    }
}
