//! A primary and its replica.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::{FIRST_WRITE, FOUND, Host, Scratch, Wire, found_of, json_u64, text, until};

/// For a replica that is busy with an initial copy.
const LIMIT: Duration = Duration::from_secs(600);

/// Two hosts that trust each other; the primary reaches the replica through the wire.
pub struct Pair {
    /// The primary.
    pub castor: Host,
    /// The replica.
    pub pollux: Host,
    /// The network between them.
    pub wire: Wire,
    /// Where both keep their state.
    pub scratch: Scratch,
}

impl Pair {
    /// Two hosts with their state in `target/system/<what>`.
    ///
    /// # Errors
    /// One does not come up.
    pub fn new(what: &str) -> Result<Self> {
        Self::start_in(Scratch::new(&format!("system/{what}"))?)
    }

    /// Two hosts with their state in the folders `castor` and `pollux` of `scratch`.
    ///
    /// # Errors
    /// One does not come up.
    pub fn start_in(scratch: Scratch) -> Result<Self> {
        let castor = Host::start("castor", &scratch)?;
        let pollux = Host::start("pollux", &scratch)?;
        let wire = Wire::to(pollux.port())?;
        pollux.pollux(&["replica", "server", "enable"])?;
        castor.trust_each_other(&pollux, &wire.address())?;
        Ok(Self {
            castor,
            pollux,
            wire,
            scratch,
        })
    }

    /// Replicates `vm` of the primary every second.
    ///
    /// # Errors
    /// It is refused.
    pub fn replicate(&self, vm: &str) -> Result<()> {
        let enable = ["replica", "enable", vm, "--to", "pollux"];
        self.castor
            .pollux(&[&enable[..], &["--frequency", "1s"]].concat())?;
        Ok(())
    }

    /// The points of the twin of `vm`, the oldest first; none while it is being made.
    #[must_use]
    pub fn points(&self, vm: &str) -> Vec<Value> {
        let points = self.pollux.json(&["point", "list", vm]);
        points
            .ok()
            .and_then(|points| points.as_array().cloned())
            .unwrap_or_default()
    }

    /// The points of the twin once it has `count`.
    ///
    /// # Errors
    /// It does not get them within ten minutes.
    pub fn wait_for_points(&self, vm: &str, count: usize) -> Result<Vec<Value>> {
        until(LIMIT, &format!("the twin has {count} points"), || {
            Ok(Some(self.points(vm)).filter(|points| points.len() >= count))
        })
    }
}

/// A point as it is written on the command line.
///
/// # Errors
/// It is none.
pub fn point_name(point: &Value) -> Result<String> {
    let term = text(point, "/id/term")?;
    let number = json_u64(point, "/id/sequence")?;
    Ok(format!("{}.{number}", &term[..8]))
}

/// Fails `web` over as planned from one host to the other, which has points; its guest finds what it wrote.
///
/// # Errors
/// A host refuses, or records are missing.
pub fn planned(from: &Host, to: &Host) -> Result<()> {
    from.insist(&["failover", "prepare", "web"])?;
    let before = to.serial_log("web").map_or(0, |log| log.len());
    to.insist(&["failover", "start", "web"])?;
    found_of(&to.serial_line("web", before, FOUND, FIRST_WRITE)?)?;
    // Before it listens for its power button it does not shut down.
    to.serial_line("web", before, "pollux-workload: flushed", FIRST_WRITE)?;
    Ok(())
}
