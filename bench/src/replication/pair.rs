//! Two hosts on loopback, and a VM that is off: its disks are served all the same, so this program
//! writes to them in place of a guest.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pollux_tests::{Host, json_u64, text, until};
use serde_json::Value;

use crate::client::VhostUserClient;
use crate::load::Load;

/// Longest wait for whatever the hosts do: several times what it takes on a machine that does nothing
/// else.
const LIMIT: Duration = Duration::from_secs(600);
/// Between two lines about a wait.
const PROGRESS: Duration = Duration::from_secs(5);
/// A segment that holds nothing is not longer than this, and may be on its way at any time.
const EMPTY: u64 = 16 << 10;
/// The VM.
pub(super) const VM: &str = "web";

/// A primary and its replica.
pub(super) struct Pair {
    pub(super) castor: Host,
    pub(super) pollux: Host,
    /// Id of the VM, once it was made.
    id: String,
    scratch: pollux_tests::Scratch,
}

impl Pair {
    pub(super) fn new(what: &str) -> Result<Self> {
        let scratch = pollux_tests::Scratch::new(&format!("bench/{what}"))?;
        let castor = Host::start("castor", &scratch)?;
        let pollux = Host::start("pollux", &scratch)?;
        pollux.pollux(&["replica", "server", "enable"])?;
        castor.trust_each_other(&pollux, &format!("127.0.0.1:{}", pollux.port()))?;
        Ok(Self {
            castor,
            pollux,
            id: String::new(),
            scratch,
        })
    }

    /// Where files of the measurement may lie: on the file system of both hosts' state.
    pub(super) fn folder(&self) -> &Path {
        self.scratch.state()
    }

    /// Makes the VM with the raw file `disk`.
    pub(super) fn create(&mut self, disk: &Path) -> Result<()> {
        let disk = disk.to_str().context("the file's path is not UTF-8")?;
        let small = ["--memory", "64MiB", "--disk-file", disk];
        self.castor
            .pollux(&[&["vm", "create", VM], &small[..]].concat())?;
        let vm = self.castor.json(&["vm", "show", VM])?;
        text(&vm, "/vm/id")?.clone_into(&mut self.id);
        Ok(())
    }

    pub(super) fn enable(&self, frequency: &str) -> Result<()> {
        let to = ["--to", "pollux", "--frequency", frequency];
        self.castor
            .pollux(&[&["replica", "enable", VM], &to[..]].concat())?;
        Ok(())
    }

    /// Ends the relationship and deletes the twin.
    pub(super) fn remove(&self) -> Result<()> {
        self.castor.pollux(&["replica", "remove", VM])?;
        self.pollux.pollux(&["vm", "delete", VM])?;
        Ok(())
    }

    /// Points of the twin, the oldest first.
    pub(super) fn points(&self) -> Result<Vec<Value>> {
        let points = self.pollux.json(&["point", "list", VM]);
        let points = points.ok().and_then(|points| points.as_array().cloned());
        Ok(points.unwrap_or_default())
    }

    /// Waits until the twin has a point that is none of `before`.
    pub(super) fn wait_for_new_point(&self, before: &[Value]) -> Result<()> {
        self.wait("the twin has a new point", || {
            let points = self.points()?;
            let newest = points.last().map(|point| &point["id"]);
            let known = before.last().map(|point| &point["id"]);
            Ok((newest.is_some() && newest != known).then_some(()))
        })
    }

    /// Waits until the twin has all that was written. A point must come every second.
    pub(super) fn wait_until_sent(&self) -> Result<()> {
        let acknowledged = |status: &Value| json_u64(status, "/latest/sequence").unwrap_or(0);
        // The one on its way may have been cut before the last write, the next one is later.
        let enough = acknowledged(&self.status()?) + 2;
        self.wait("nothing waits to be sent", || {
            let status = self.status()?;
            let nothing = bytes(&status, "/pending").is_ok_and(|pending| pending <= EMPTY);
            let sent = status["state"] == "replicating" && nothing;
            Ok((sent && acknowledged(&status) >= enough).then_some(()))
        })
    }

    /// Waits, and says now and then how the relationship stands; so does the error of a wait in vain.
    fn wait(&self, what: &str, mut look: impl FnMut() -> Result<Option<()>>) -> Result<()> {
        let mut told = Instant::now();
        let waited = until(LIMIT, what, || {
            let found = look()?;
            if found.is_none() && told.elapsed() >= PROGRESS {
                told = Instant::now();
                eprintln!("  until {what}: {}", brief(&self.status()?));
            }
            Ok(found)
        });
        waited.with_context(|| match self.status() {
            Ok(status) => format!("the relationship is: {}", brief(&status)),
            Err(error) => format!("the relationship cannot be told: {error:#}"),
        })
    }

    /// The relationship, as the primary tells it.
    pub(super) fn status(&self) -> Result<Value> {
        let all = self.castor.json(&["replica", "status", VM])?;
        all.get(0).cloned().context("there is no relationship")
    }

    /// A client of the VM's disk.
    pub(super) fn client(&self, load: Load) -> Result<VhostUserClient> {
        let socket = self.castor.diskd_socket(&self.id);
        VhostUserClient::connect(&socket.with_file_name("disk0.sock"), load)
    }

    /// The folder of the twin's journal.
    pub(super) fn journal(&self) -> PathBuf {
        let replicas = self.pollux.state().join("replicas");
        replicas.join(&self.id).join("journal")
    }
}

/// State, progress and last error of a relationship.
fn brief(status: &Value) -> String {
    let fields = ["state", "initial", "comparison", "pending", "last_error"];
    let told = fields.map(|field| (field, &status[field]));
    let told = told.iter().filter(|(_, value)| !value.is_null());
    let told: Vec<String> = told
        .map(|(field, value)| format!("{field} {value}"))
        .collect();
    told.join(", ")
}

/// Bytes of a size as the command line prints it for programs.
pub(super) fn bytes(object: &Value, path: &str) -> Result<u64> {
    match text(object, path) {
        Ok(text) => Ok(text.parse::<model::Bytes>()?.0),
        Err(_) => json_u64(object, path),
    }
}
