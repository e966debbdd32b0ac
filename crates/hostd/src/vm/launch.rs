//! Starting QEMU, step by step; whatever fails leaves nothing running.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use model::{Bytes, Code, Generation, Problem};
use qemu::{Accelerator, Firmware, Machine, Qemu, Qmp, QmpError};
use tokio::time::{Instant, sleep};
use vmd::control::{Lease, Program};

use super::access::Access;
use super::ended::{describe, log_tail};
use super::folder::VmFolder;
use super::supervisor::{GuestRecord, Supervisor};
use crate::programs::Programs;

/// How long QEMU may take until the guest's processors run.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Nothing tells when QEMU begins to listen, so it is asked this often.
const POLL: Duration = Duration::from_millis(20);

/// The QEMU of this host.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) qemu: Qemu,
    pub(crate) accelerator: Accelerator,
}

impl Engine {
    /// Finds QEMU and proves the accelerator.
    pub(crate) async fn find() -> Result<Self, Problem> {
        const PROBE_LIMIT: Duration = Duration::from_secs(5);
        let qemu = Qemu::find().await.map_err(|error| {
            Problem::new(
                Code::Failed,
                "QEMU",
                error.to_string(),
                "`pollux host status` shows what this host uses",
            )
        })?;
        let accelerator = Accelerator::probe(&qemu.program, PROBE_LIMIT)
            .await
            .map_err(|error| Problem::failed("accelerator probe", &error))?;
        match &accelerator {
            Accelerator::Kvm => tracing::info!("guests run on KVM"),
            Accelerator::Tcg { reason } => {
                tracing::warn!(%reason, "KVM is not usable: guests are emulated, many times slower");
            }
        }
        Ok(Self { qemu, accelerator })
    }

    /// For the API.
    pub(crate) fn kind(&self) -> api::Accelerator {
        match self.accelerator {
            Accelerator::Kvm => api::Accelerator::Kvm,
            Accelerator::Tcg { .. } => api::Accelerator::Tcg,
        }
    }
}

/// What a launch needs to know.
pub(crate) struct Launch {
    pub(crate) folder: VmFolder,
    pub(crate) supervisor: Supervisor,
    pub(crate) programs: Arc<Programs>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) term: u64,
    pub(crate) copy_budget: Bytes,
    /// How long the guest may run, as far as that is known when QEMU starts.
    pub(crate) lease: Box<dyn Fn() -> Lease + Send + Sync>,
}

/// A guest that runs.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) record: GuestRecord,
    /// None when it was found running and does not answer.
    pub(crate) qmp: Option<Qmp>,
}

impl Launch {
    /// Starts the supervisor, diskd and QEMU, and waits until the guest runs.
    pub(crate) async fn run(self) -> Result<Guest, Problem> {
        let thing = self.folder.thing();
        self.folder.check_files()?;
        let firmware = self.firmware(&thing)?;
        let paths = self.supervisor.qemu_paths(&self.folder);
        let machine = Machine {
            spec: &self.folder.spec,
            accelerator: &self.engine.accelerator,
            run: &paths,
            firmware: firmware.as_ref(),
        };
        let args = machine
            .arguments()
            .map_err(|error| Problem::failed(&thing, &error))?;
        self.supervisor
            .ensure(
                &self.programs,
                &self.folder,
                self.term,
                self.copy_budget,
                matches!(self.engine.accelerator, Accelerator::Kvm),
            )
            .await?;
        // Before there is anything that could run on without one.
        self.supervisor.lease((self.lease)()).await?;
        // A socket that an earlier QEMU left would only be refused; without it less is asked.
        for socket in [&paths.qmp, &paths.console] {
            let _ = std::fs::remove_file(socket);
        }
        let run = self.supervisor.run();
        let program = Program {
            program: self.engine.qemu.program.clone(),
            args,
            log: self.folder.path.join("qemu.log"),
            rights: Access::settled(run).qemu(&self.folder, run, &paths, firmware.as_ref()),
        };
        let begun = self.begin(program, &paths.qmp).await;
        if begun.is_err() {
            // The first problem is the one that matters; that nothing runs is made sure of by
            // whoever hears of it.
            let _ = self.supervisor.kill_guest().await;
        }
        begun
    }

    /// Starts QEMU; may leave it running when it fails.
    async fn begin(&self, program: Program, qmp: &Path) -> Result<Guest, Problem> {
        let thing = self.folder.thing();
        let log = program.log.clone();
        let start = std::fs::metadata(&log).map_or(0, |meta| meta.len());
        let status = self.supervisor.launch(program).await?;
        let gone = || Problem::new(Code::Failed, &thing, "QEMU ended at once", "");
        let pid = status.guest.ok_or_else(gone)?;
        let qmp = tokio::select! {
            started = reach(qmp) => started.map_err(|error| Problem::failed(&thing, &error)),
            ended = self.supervisor.wait_guest(pid) => {
                let exit = ended.ok().and_then(|status| describe(status.last_exit));
                let exit = exit.unwrap_or_else(|| "QEMU ended before the guest ran".to_owned());
                let said = log_tail(&log, start).map_or_else(String::new, |text| format!(": {text}"));
                let way_out = format!("All it said is in {}", log.display());
                Err(Problem::new(Code::Failed, &thing, format!("{exit}{said}"), way_out))
            }
        }?;
        let record = GuestRecord {
            pid,
            started: Timestamp::now(),
            accelerator: self.engine.kind(),
        };
        self.supervisor.record(&record)?;
        let qmp = Some(qmp);
        Ok(Guest { record, qmp })
    }

    fn firmware(&self, thing: &str) -> Result<Option<Firmware>, Problem> {
        let spec = &self.folder.spec;
        if spec.generation == Generation::One || spec.direct_boot.is_some() {
            return Ok(None);
        }
        let firmware = Firmware::find(spec.secure_boot)
            .map_err(|error| Problem::new(Code::Failed, thing, error.to_string(), ""))?;
        let copy: PathBuf = self.supervisor.qemu_paths(&self.folder).variables;
        firmware
            .prepare_variables(&copy)
            .map_err(|error| Problem::failed(thing, &error))?;
        Ok(Some(firmware))
    }
}

/// Connects to QMP and waits until the guest's processors run.
async fn reach(socket: &Path) -> Result<Qmp, QmpError> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match Qmp::connect(socket, START_LIMIT).await {
            Ok(qmp) => {
                while !qmp.query_status().await?.running {
                    if Instant::now() > deadline {
                        return Err(late());
                    }
                    sleep(POLL).await;
                }
                return Ok(qmp);
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(QmpError::Connect { .. } | QmpError::Gone) => sleep(POLL).await,
            Err(error) => return Err(error),
        }
    }
}

fn late() -> QmpError {
    QmpError::Late {
        command: "query-status".to_owned(),
        limit: START_LIMIT,
    }
}
