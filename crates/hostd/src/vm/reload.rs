//! What a running diskd serves, brought in line with what is wanted.
//!
//! ```text
//!   vm.toml durable --> configuration, generation + 1 --+--> Reload      the same disks
//!                                                       '--> Replace     other disks, other program
//! ```
//!
//! Refused: the earlier configuration is put back, and nothing was changed. No answer: whichever
//! diskd answers next tells by its generation what it opened. A diskd that is killed on the way
//! opens the new configuration when it is started again, so there is nothing in between.
//!
//! A replacement gets a configuration file of its own: if it dies before it is ready, vmd starts
//! the earlier program with the earlier file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diskd::config::Config as DiskdConfig;
use diskd::control::{self, DiskStatus, EpochStatus, StoreKind};
use model::{Bytes, CheckpointId, Code, DiskId, Problem};
use tokio::time::{Instant, sleep};
use vmd::config::Config as VmdConfig;
use vmd::control::{Reply, Request};

use super::access::{Access, publish};
use super::folder::VmFolder;
use super::supervisor::{AT_ONCE, POLL, SLOW, Supervisor};
use crate::lines::{LineError, Lines};
use crate::programs::Programs;

/// How long diskd may take to change what it serves, restarts included.
const RELOAD: Duration = Duration::from_secs(60);
/// How long diskd may take to merge one part.
const DRAIN: Duration = Duration::from_secs(300);

/// What a diskd tells of itself.
#[derive(Debug, Clone)]
pub(crate) struct DiskdStatus {
    pub(crate) version: String,
    pub(crate) generation: u64,
    pub(crate) store: StoreKind,
    pub(crate) lacking: Vec<String>,
    pub(crate) disks: Vec<DiskStatus>,
    pub(crate) epochs: EpochStatus,
}

/// What vmd and diskd are started with.
#[derive(Debug, Clone)]
pub(super) struct Configs {
    pub(super) diskd: DiskdConfig,
    pub(super) vmd: VmdConfig,
}

impl Configs {
    /// The file that diskd reads.
    fn file(&self) -> PathBuf {
        PathBuf::from(self.vmd.diskd.args.first().map_or("", String::as_str))
    }
}

impl Supervisor {
    /// Gives the VM's processes what `folder` names, and nothing else of its disks.
    pub(crate) fn give(&self, programs: &Programs, folder: &VmFolder, kvm: bool) {
        if let Err(problem) = Access::settle(folder, self.run(), programs, kvm) {
            tracing::warn!(%problem, "its processes may not reach all of its files");
        }
    }

    fn vmd_file(&self) -> PathBuf {
        self.run().join("vmd.json")
    }

    /// What those that run were told last.
    pub(super) fn written(&self) -> Option<Configs> {
        let vmd: VmdConfig = read(&self.vmd_file())?;
        let file = vmd.diskd.args.first()?;
        let diskd = read(Path::new(file))?;
        Some(Configs { diskd, vmd })
    }

    /// Writes what those that are started next are told.
    pub(super) fn write(&self, configs: &Configs) -> Result<(), Problem> {
        self.put(&configs.file(), &configs.diskd)?;
        self.put(&self.vmd_file(), &configs.vmd)
    }

    fn put(&self, file: &Path, config: &impl serde::Serialize) -> Result<(), Problem> {
        let text = serde_json::to_vec_pretty(config).expect("a configuration has a JSON form");
        publish(file, &text).map_err(|error| super::create::no_space_or(self.thing(), &error))
    }

    /// Brings `folder` into force, if anything serves its disks; `anew`: with the program that is
    /// installed now.
    pub(crate) async fn bring_into_force(
        &self,
        programs: &Programs,
        folder: &VmFolder,
        term: u64,
        copy_budget: Bytes,
        kvm: bool,
        anew: bool,
    ) -> Result<(), Problem> {
        let _alone = self.changing().lock().await;
        if self.status().await?.is_none() {
            return Ok(());
        }
        let before = Access::settled(self.run());
        let access = Access::settle(folder, self.run(), programs, kvm)?;
        if access.user != before.user {
            let reason = access.notice.unwrap_or_else(|| {
                "runs as polluxd's own user, and would as its own from its next start".to_owned()
            });
            let way_out = "Let its user reach all of its files, or stop the VM first";
            return Err(Problem::new(Code::Conflict, self.thing(), reason, way_out));
        }
        let mut wanted = self.wanted(programs, folder, term, copy_budget, access);
        let Some(found) = self.written() else {
            let reason = "runs with a configuration that this polluxd cannot read";
            let way_out = "Stop the VM and start it again";
            return Err(Problem::new(Code::Conflict, self.thing(), reason, way_out));
        };
        wanted.diskd.generation = found.diskd.generation;
        // Written, and not brought into force before a polluxd was killed: nobody can tell which
        // sockets there are.
        let status = self.diskd_status().await;
        let behind = status.is_some_and(|now| now.generation != found.diskd.generation);
        let anew = anew || behind;
        let (reload, replace) = (
            wanted.diskd != found.diskd,
            anew || wanted.vmd.sockets != found.vmd.sockets,
        );
        if !reload && !replace {
            return Ok(());
        }
        wanted.diskd.generation += 1;
        if replace {
            self.replace(&found, wanted).await
        } else {
            wanted.vmd = found.vmd.clone();
            self.reload(&found, &wanted).await
        }
    }

    async fn replace(&self, found: &Configs, mut wanted: Configs) -> Result<(), Problem> {
        let name = format!("diskd-{}.json", wanted.diskd.generation);
        wanted.vmd.diskd.args = vec![self.run().join(name).display().to_string()];
        self.write(&wanted)?;
        let request = Request::Replace {
            diskd: wanted.vmd.diskd.clone(),
            sockets: wanted.vmd.sockets.clone(),
        };
        let (done, outdated) = match self.ask_vmd(&request, SLOW + RELOAD).await {
            Ok(()) => (Ok(()), found),
            // Nothing runs any more: what was written is what the next ones open.
            Err(_) if matches!(self.status().await, Ok(None)) => (Ok(()), found),
            Err(problem) => {
                self.put(&self.vmd_file(), &found.vmd)?;
                (Err(problem), &wanted)
            }
        };
        // Fails only when it is gone already.
        let _ = fs::remove_file(outdated.file());
        done
    }

    async fn ask_vmd(&self, request: &Request, limit: Duration) -> Result<(), Problem> {
        let failed = |error: &LineError| Problem::failed(self.thing(), error);
        let lines = Lines::connect(&self.control(), vmd::control::MAX_LINE)
            .await
            .map_err(|error| failed(&error))?;
        match lines.ask_within(limit, request).await {
            Ok(Reply::Refused { problem }) => Err(problem),
            Ok(_) => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn reload(&self, found: &Configs, wanted: &Configs) -> Result<(), Problem> {
        self.put(&wanted.file(), &wanted.diskd)?;
        let deadline = Instant::now() + RELOAD;
        let refused = loop {
            match self.ask_diskd(&control::Request::Reload, RELOAD).await {
                Ok(control::Reply::Refused { problem }) => break problem,
                Ok(_) => return Ok(()),
                // Killed, perhaps: the next one opens what was written.
                Err(error) => match self.diskd_status().await {
                    Some(status) if status.generation == wanted.diskd.generation => return Ok(()),
                    None if matches!(self.status().await, Ok(None)) => return Ok(()),
                    _ if Instant::now() > deadline => break Problem::failed(self.thing(), &error),
                    _ => sleep(POLL).await,
                },
            }
        };
        self.put(&found.file(), &found.diskd)?;
        Err(refused)
    }

    async fn ask_diskd(
        &self,
        request: &control::Request,
        limit: Duration,
    ) -> Result<control::Reply, LineError> {
        let lines = Lines::connect(&self.diskd_socket(), control::MAX_LINE).await?;
        lines.ask_within(limit, request).await
    }

    /// How diskd is; none when none answers.
    pub(crate) async fn diskd_status(&self) -> Option<DiskdStatus> {
        match self.ask_diskd(&control::Request::Status, AT_ONCE).await {
            Ok(control::Reply::Status {
                version,
                generation,
                store,
                lacking,
                disks,
                epochs,
                ..
            }) => Some(DiskdStatus {
                version,
                generation,
                store,
                lacking,
                disks,
                epochs,
            }),
            _ => None,
        }
    }

    /// Merges about `limit` of what was written since a checkpoint into what lies below; returns
    /// what is left.
    pub(crate) async fn drain(
        &self,
        disk: DiskId,
        checkpoint: CheckpointId,
        limit: Bytes,
    ) -> Result<Bytes, Problem> {
        let request = control::Request::Drain {
            disk,
            checkpoint,
            limit,
        };
        match self.ask_diskd(&request, DRAIN).await {
            Ok(control::Reply::Drained { left }) => Ok(left),
            Ok(control::Reply::Refused { problem }) => Err(problem),
            Ok(_) => {
                let reason = "its diskd gave an answer to another question";
                Err(Problem::new(Code::Failed, self.thing(), reason, ""))
            }
            Err(error) => Err(Problem::failed(self.thing(), &error)),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}
